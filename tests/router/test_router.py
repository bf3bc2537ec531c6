"""Fan-out over scripted routes: order, deadline, quorum, partial failure, leaving early."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence

import numpy as np
import pytest

from serve.engines.base import Piece, Prompt
from serve.errors import BadRequest, ModelError, NotFound, ParseError, ServeError, Unavailable
from serve.media.image import Image
from serve.media.video import Video
from serve.models import MODELS
from serve.models.base import Model
from serve.router import Router
from serve.router.route import Status
from serve.tasks import TASKS
from serve.tasks.chat import ChatRequest
from serve.tasks.reply import Delta, Event, Merged, Reply
from serve.tasks.request import Request
from serve.tasks.vqa import VqaRequest, VqaResult

PICTURE = Image(np.zeros((4, 4, 3), np.uint8))
Step = float | str | ServeError | Exception


class ScriptedRoute:
    """A route that follows a script: a number waits, a string is spoken, an exception is raised."""

    full = joining = False

    def __init__(self, name: str, *script: Step, base: str = "toy-paligemma") -> None:
        self.model: Model = dataclasses.replace(MODELS[base], name=name)
        self.script = script
        self.left = asyncio.Event()

    async def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]:
        text = ""
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, str):
                    text += step
                    yield Delta(self.model.name, step)
                else:
                    await asyncio.sleep(step)
            yield Reply(model=self.model.name, status="ok", text=text, result=VqaResult(answer=text), confidence=0.5)
        finally:
            self.left.set()

    async def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        yield Piece("")

    async def status(self) -> Status:
        return Status(self.model.name, "ready", "ready", 0.0)


def ask(**fields: object) -> VqaRequest:
    return VqaRequest(image=PICTURE, question="q", **fields)  # type: ignore[arg-type]


def ask_video(**fields: object) -> VqaRequest:
    video = Video(np.zeros((2, 8, 8, 3), np.uint8), (0.0, 1.0), 2.0)
    return VqaRequest(video=video, question="q", **fields)  # type: ignore[arg-type, call-arg]


def route_that_takes(name: str, *, images: bool, videos: bool, reply: str = "red") -> ScriptedRoute:
    route = ScriptedRoute(name, reply)
    route.model = dataclasses.replace(route.model, images=images, videos=videos)
    return route


async def run(routes: Sequence[ScriptedRoute], request: Request | None = None) -> list[Event]:
    router = Router(routes)
    return [event async for event in router.run(router.plan("vqa", request or ask()))]


def replies(events: Sequence[Event]) -> dict[str, Reply]:
    return {event.model: event for event in events if isinstance(event, Reply)}


async def test_deltas_interleave_and_the_merged_reply_comes_last() -> None:
    events = await run([ScriptedRoute("a", "x", 0.05, "y"), ScriptedRoute("b", 0.02, "z")])
    order = [(e.model, e.text) for e in events if isinstance(e, Delta)]
    assert order == [("a", "x"), ("b", "z"), ("a", "y")]
    assert isinstance(events[-1], Merged) and events[-1].models == ["a", "b"]
    assert events[-1].result == VqaResult(answer="xy")  # a tie goes to the catalogue's first, though b was faster
    assert replies(events)["b"].latency_ms < replies(events)["a"].latency_ms


@pytest.mark.slow
async def test_slow_model_fails_its_own_reply_only() -> None:
    began = time.monotonic()
    slow = ScriptedRoute("slow", "so", 30.0)
    events = await run([slow, ScriptedRoute("b", "z")], ask(deadline_s=0.2))
    assert time.monotonic() - began < 2
    lost = replies(events)["slow"]
    assert (lost.status, lost.error and lost.error.code, lost.text) == ("timeout", "deadline_exceeded", "so")
    assert isinstance(events[-1], Merged) and events[-1].models == ["b"]
    assert slow.left.is_set()


@pytest.mark.parametrize(
    ("failure", "code"),
    [(ModelError("gone", code="engine_dead"), "engine_dead"), (RuntimeError("secret"), "internal_error")],
)
async def test_failed_model_fails_its_own_reply_only(failure: Exception, code: str) -> None:
    events = await run([ScriptedRoute("a", "x", failure), ScriptedRoute("b", "z")])
    dead = replies(events)["a"]
    assert dead.status == "error" and dead.error is not None and dead.error.code == code
    assert "secret" not in dead.error.message and dead.text == "x"
    assert isinstance(events[-1], Merged) and events[-1].models == ["b"]


async def test_fan_out_without_any_answer_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="gone"):
        await run([ScriptedRoute("a", ModelError("gone")), ScriptedRoute("b", 30.0)], ask(deadline_s=0.1))


async def test_request_refused_by_every_model_is_a_bad_request() -> None:
    refusals = [BadRequest("too long for a", param="question"), BadRequest("too long for b", param="question")]
    with pytest.raises(BadRequest, match="for a"):
        await run([ScriptedRoute("a", 0.01, refusals[0]), ScriptedRoute("b", refusals[1])])
    with pytest.raises(Unavailable):
        await run([ScriptedRoute("a", refusals[0]), ScriptedRoute("b", ModelError("gone"))])
    merged = (await run([ScriptedRoute("a", refusals[0]), ScriptedRoute("b", "yes")]))[-1]
    assert isinstance(merged, Merged) and merged.models == ["b"]


async def test_request_refused_beside_unreadable_replies_is_a_bad_request() -> None:
    refusal, unreadable = BadRequest("too long", param="question"), ParseError("no answer")
    with pytest.raises(BadRequest, match="too long"):
        await run([ScriptedRoute("a", unreadable), ScriptedRoute("b", refusal)])
    with pytest.raises(Unavailable):  # a retry may help where one model is away
        await run([ScriptedRoute("a", unreadable), ScriptedRoute("b", refusal), ScriptedRoute("c", ModelError("gone"))])


@pytest.mark.parametrize(("task", "param"), [("vqa", "question"), ("detect", "labels"), ("caption", None)])
async def test_refusal_by_engines_names_the_field_of_the_task(task: str, param: str | None) -> None:
    text = {"question": "x"} if task == "vqa" else {"labels": ["x"]} if task == "detect" else {}
    request = TASKS[task].request(image=Image(np.zeros((8, 8, 3), np.uint8)), **text)
    router = Router([ScriptedRoute("a", BadRequest("too long", param="question"))])
    with pytest.raises(BadRequest) as refused:
        async for _ in router.run(router.plan(task, request)):
            pass
    assert refused.value.param == param


async def test_quorum_cuts_the_remaining_models() -> None:
    slow = ScriptedRoute("slow", 30.0)
    events = await run([slow, ScriptedRoute("b", "z"), ScriptedRoute("c", 0.02, "w")], ask(quorum=2))
    given_up = replies(events)["slow"]
    assert (given_up.status, given_up.error and given_up.error.code) == ("timeout", "quorum_reached")
    assert slow.left.is_set()
    assert isinstance(events[-1], Merged) and events[-1].models == ["b", "c"]


async def test_closed_stream_stops_all_models() -> None:
    routes = [ScriptedRoute("a", "x", 30.0), ScriptedRoute("b", 30.0)]
    router = Router(routes)
    events = router.run(router.plan("vqa", ask()))
    async for _ in events:
        break
    await events.aclose()
    assert all(route.left.is_set() for route in routes)


async def test_single_model_answers_and_is_merged() -> None:
    events = await run([ScriptedRoute("a", "x", 0.01, "y")])
    assert [type(event) for event in events] == [Delta, Delta, Reply, Merged]
    assert replies(events)["a"].text == "xy" and replies(events)["a"].ttft_ms is not None


@pytest.mark.parametrize(
    ("step", "message"),
    [(30.0, "a had not finished after 0.1 s"), (RuntimeError("secret"), "a failed unexpectedly")],
)
async def test_single_model_that_fails_leaves_no_answer(step: Step, message: str) -> None:
    route = ScriptedRoute("a", "x", step)
    with pytest.raises(Unavailable, match=message):
        await run([route], ask(deadline_s=0.1))
    assert route.left.is_set()


@pytest.mark.parametrize("count", [1, 2])
async def test_model_that_ends_without_a_reply_has_failed(count: int) -> None:
    class RouteWithoutReply(ScriptedRoute):
        async def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]:
            yield Delta(self.model.name, "x")

    with pytest.raises(Unavailable, match="a stopped without a reply"):
        await run([RouteWithoutReply(name) for name in "ab"[:count]])


async def test_subset_of_models_is_in_catalogue_order() -> None:
    routes = [ScriptedRoute(name, name) for name in "abc"]
    events = await run(routes, ask(models=["c", "a", "a"]))
    assert isinstance(events[-1], Merged) and events[-1].models == ["a", "c"]


async def test_weight_of_the_model_counts_where_the_request_has_none() -> None:
    def routes() -> list[ScriptedRoute]:
        created = [ScriptedRoute("a", "x"), ScriptedRoute("b", "y")]
        created[1].model = dataclasses.replace(created[1].model, weight=2.0)
        return created

    async def winner(**fields: object) -> object:
        merged = (await run(routes(), ask(**fields)))[-1]
        assert isinstance(merged, Merged)
        return merged.result

    assert await winner() == VqaResult(answer="y")
    assert await winner(weights={"a": 3}) == VqaResult(answer="x")
    assert await winner(weights={"b": 0.5}) == VqaResult(answer="x")


@pytest.mark.parametrize("slow", ["a", "b", "c"])
async def test_merged_reply_does_not_depend_on_the_order_of_arrival(slow: str) -> None:
    routes = [ScriptedRoute(name, 0.02 if name == slow else 0.0, text) for name, text in zip("abc", "xyz", strict=True)]
    events = await run(routes)
    assert [event.model for event in events if isinstance(event, Reply)][-1] == slow
    assert isinstance(events[-1], Merged) and events[-1].models == ["a", "b", "c"]
    assert events[-1].result == VqaResult(answer="x")


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"models": ["nobody"]}, NotFound, "models"),
        ({"merge": "judge"}, BadRequest, "merge"),
        ({"quorum": 3}, BadRequest, "quorum"),
        ({"weights": {"nobody": 1}}, NotFound, "weights"),
    ],
)
def test_impossible_plan_is_refused_by_field(fields: dict[str, object], kind: type[ServeError], param: str) -> None:
    with pytest.raises(kind) as refused:
        Router([ScriptedRoute("a", "x"), ScriptedRoute("b", "x")]).plan("vqa", ask(**fields))
    assert refused.value.param == param


async def test_model_without_the_skill_is_refused_when_named_and_left_out_otherwise() -> None:
    router = Router([ScriptedRoute("a", base="toy-llava"), ScriptedRoute("b", base="toy-paligemma")])
    chat = ChatRequest(image=PICTURE, question="q")
    assert [route.model.name for route in router.plan("chat", chat).routes] == ["a"]
    with pytest.raises(BadRequest, match="b cannot do chat"):
        router.plan("chat", chat.model_copy(update={"models": ["b"]}))
    with pytest.raises(NotFound, match="No served model"):
        Router([ScriptedRoute("b", base="toy-paligemma")]).plan("chat", chat)


async def test_model_without_a_status_counts_as_starting() -> None:
    class UnresponsiveRoute(ScriptedRoute):
        async def status(self) -> Status:
            await asyncio.sleep(30)
            raise AssertionError

    states = await Router([UnresponsiveRoute("a"), ScriptedRoute("b")]).statuses(timeout_s=0.05)
    assert [(s.model, s.state) for s in states] == [("a", "starting"), ("b", "ready")]


# Videos


async def test_video_goes_to_models_that_take_videos() -> None:
    routes = [
        route_that_takes("stills", images=True, videos=False),
        route_that_takes("videos", images=False, videos=True),
        route_that_takes("both", images=True, videos=True),
    ]
    assert [event.model for event in await run(routes, ask_video()) if isinstance(event, Reply)] == ["videos", "both"]
    assert [event.model for event in await run(routes, ask()) if isinstance(event, Reply)] == ["stills", "both"]
    router = Router(routes)
    for request, name, text, code in (
        (ask_video(models=["stills"]), "models", "stills takes images, not video.", "video_not_supported"),
        (ask_video(models=["both", "stills"]), "models", "stills takes images, not video.", "video_not_supported"),
        (ask(models=["videos"]), "models", "videos takes video, not images.", "image_not_supported"),
    ):
        with pytest.raises(BadRequest) as caught:
            router.plan("vqa", request)
        assert (caught.value.param, caught.value.message, caught.value.code) == (name, text, code)


async def test_video_without_a_model_for_videos_is_refused() -> None:
    with pytest.raises(NotFound, match="No served model can do vqa about a video.") as video:
        Router([route_that_takes("stills", images=True, videos=False)]).plan("vqa", ask_video())
    with pytest.raises(NotFound, match="No served model can do vqa about an image.") as picture:
        Router([route_that_takes("videos", images=False, videos=True)]).plan("vqa", ask())
    for caught in (video, picture):
        assert (caught.value.param, caught.value.code) == ("models", "no_able_model")
