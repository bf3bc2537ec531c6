"""A model on another server is a column like any other: streamed, merged, bounded, quarantined, and failing alone."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from chat_server import (
    KEY,
    ChatServer,
    breaks_after,
    chat_server,
    delta,
    event,
    replies_with,
    speaks,
    streams,
    wait,
)
from served import LLAVA, PALIGEMMA, URL, frames, message, picture

from deployments.routing import endpoint as endpoints
from deployments.routing.endpoint import Endpoint
from deployments.routing.pool import FAILURES
from deployments.routing.replica_route import Quarantine, ReplicaRoute
from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from serve.engines.remote.engine import RemoteEngine
from serve.engines.remote.image_files import ImageFiles
from serve.errors import ModelError, Overloaded
from serve.media.budget import Budget
from serve.media.decoding import MediaDecoder
from serve.media.image import undecoded_image
from serve.models import MODELS
from serve.models.remote import RemoteModel, remote_model
from serve.router import Router
from serve.tasks.reply import Delta, Reply
from serve.tasks.vqa import VqaRequest
from serve.worker import Worker

NAME = "gpt-x"


@dataclass
class Side:
    """The gateway's side of one model on another server."""

    endpoint: Endpoint
    route: ReplicaRoute
    quarantine: Quarantine

    async def ask(self, question: str = "what?", **fields: Any) -> Reply:
        """Return the reply to a question. Raises what the route raises."""
        request = VqaRequest(image=undecoded_image(picture()), question=question, **fields)
        events = [item async for item in self.route.answer("vqa", request)]
        assert isinstance(events[-1], Reply) and all(isinstance(item, Delta) for item in events[:-1])
        return events[-1]

    async def failure(self, question: str = "what?", **fields: Any) -> Any:
        with pytest.raises(Exception) as caught:
            await self.ask(question, **fields)
        return caught.value

    async def state(self) -> tuple[str, str]:
        status = await self.route.status()
        return status.state, status.step

    async def reach(self, state: str) -> None:
        async with asyncio.timeout(30):
            while (await self.state())[0] != state:
                await asyncio.sleep(0.01)


async def until_asked(server: ChatServer, times: int) -> None:
    async with asyncio.timeout(30):
        while len(server.bodies) < times:
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_KEY", KEY)


@asynccontextmanager
async def side(server: ChatServer, **fields: Any) -> AsyncIterator[Side]:
    entry = RemoteModel.model_validate({"remote": server.url, "model": NAME, "key_env": "GPT_KEY", **fields})
    files = ImageFiles(MediaDecoder(Budget(2**27)))
    engine = RemoteEngine(
        entry.name,
        entry.model,
        entry.url(),
        files,
        key_env=entry.key_env,
        fields=entry.fields,
        image_types=entry.image_types,
        silence_s=entry.silence_s,
    )
    endpoint, quarantine = Endpoint(remote_model(entry), engine, entry), Quarantine()
    try:
        yield Side(endpoint, ReplicaRoute(remote_model(entry), endpoint, quarantine), quarantine)
    finally:
        endpoint.close()
        await asyncio.sleep(0.02)
        await server.wait_closed()


@asynccontextmanager
async def beside(
    remote: Side, llava: FakeEngine | None = None, paligemma: FakeEngine | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the remote model beside the two toys with fake engines."""
    engines = {LLAVA: llava or FakeEngine("red"), PALIGEMMA: paligemma or FakeEngine("red")}
    workers = [Worker(MODELS[name], engine) for name, engine in engines.items()]
    for worker in workers:
        worker.mark("ready", "ready")
    app = create_app(Router([*workers, remote.route]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def fan_out(remote: Side, *, llava: FakeEngine | None = None, task: str = "vqa", **fields: Any) -> dict[str, Any]:
    async with beside(remote, llava) as client:
        body = {"image": URL, **({"question": "what colour?"} if task in ("vqa", "chat") else {}), **fields}
        response = await client.post(f"/v1/tasks/{task}", json=body)
    assert response.status_code == 200, response.text
    assert KEY not in response.text
    return dict(response.json())


def replies(answer: dict[str, Any]) -> dict[str, Any]:
    return {reply["model"]: reply for reply in answer["replies"]}


async def test_remote_column_is_merged_beside_native_ones() -> None:
    async with chat_server(speaks("Bl", "ue.")) as server, side(server, weight=3) as remote:
        answer = await fan_out(remote)
        reply = replies(answer)[NAME]
        assert (reply["status"], reply["text"], reply["result"]) == ("ok", "Blue.", {"answer": "Blue."})
        assert reply["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        assert reply["confidence"] is None and reply["finish_reason"] == "stop"
        assert [each["model"] for each in answer["replies"]] == [LLAVA, PALIGEMMA, NAME]
        assert answer["merged"]["result"]["answer"] == "Blue."  # three against two
        (body,) = server.bodies
        text = body["messages"][0]["content"][1]["text"]
        assert text == "what colour?\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("task", "text", "result"),
    [
        ("caption", "A red square.", {"caption": "A red square."}),
        ("ocr", "STOP\nnow", {"text": "STOP\nnow"}),
        ("ocr", "(No text).", {"text": ""}),
        ("chat", "It is red.", {"text": "It is red."}),
    ],
)
async def test_task_is_done_by_instruction(task: str, text: str, result: dict[str, Any]) -> None:
    async with chat_server(speaks(text)) as server, side(server) as remote:
        answer = await fan_out(remote, task=task, models=[NAME])
        assert replies(answer)[NAME]["result"] == result


async def test_deltas_of_a_remote_column_arrive_before_its_end() -> None:
    async with (
        chat_server(streams(event(delta("bl")), 0.05, event(delta("ue", "stop")))) as server,
        side(server) as remote,
        beside(remote) as client,
    ):
        body = {"image": URL, "question": "what?", "stream": True, "models": [NAME]}
        text = (await client.post("/v1/tasks/vqa", json=body)).text
    events = [(name, json.loads(data)) for name, data in frames(text) if name]
    assert [data["text"] for name, data in events if name == "delta"] == ["bl", "ue"]
    assert [name for name, _ in events][-2:] == ["reply", "merged"]


async def test_death_in_mid_answer_costs_its_column_only() -> None:
    async with chat_server(breaks_after(event(delta("bl")))) as server, side(server) as remote:
        answer = await fan_out(remote)
        reply = replies(answer)[NAME]
        assert (reply["status"], reply["text"], reply["error"]["code"]) == ("error", "bl", "engine_dead")
        assert answer["merged"]["result"]["answer"] == "red" and answer["merged"]["models"] == [LLAVA, PALIGEMMA]


async def test_death_of_a_native_column_leaves_the_remote_one() -> None:
    async with chat_server(speaks("blue")) as server, side(server) as remote:
        answer = await fan_out(remote, llava=FakeEngine("a b", die_after=1))
        assert {name: reply["status"] for name, reply in replies(answer).items()} == {
            LLAVA: "error",
            PALIGEMMA: "ok",
            NAME: "ok",
        }


@pytest.mark.slow
async def test_slow_server_is_cut_at_the_deadline() -> None:
    async with chat_server(streams(event(delta("bl")), 30.0)) as server, side(server) as remote:
        began = time.monotonic()
        answer = await fan_out(remote, deadline_s=0.3)
        assert time.monotonic() - began < 2
        reply = replies(answer)[NAME]
        assert (reply["status"], reply["text"], reply["error"]["code"]) == ("timeout", "bl", "deadline_exceeded")
        await server.wait_idle()


async def test_client_that_leaves_ends_the_servers_work() -> None:
    async with chat_server(streams(event(delta("bl")), 30.0)) as server, side(server) as remote:
        request = VqaRequest(image=undecoded_image(picture()), question="what?", stream=True)
        stream = remote.route.answer("vqa", request)
        assert await anext(stream) == Delta(NAME, "bl")
        await stream.aclose()
        await server.wait_idle()
        assert remote.endpoint._prompts == 0


async def test_conversation_with_a_remote_model_alone() -> None:
    async with chat_server(speaks("It is ", "red.")) as server, side(server) as remote, beside(remote) as client:
        body = {"model": NAME, "messages": [{"role": "system", "content": "Be brief."}, message("what? </s>")]}
        whole = (await client.post("/v1/chat/completions", json=body)).json()
        assert whole["choices"][0]["message"]["content"] == "It is red."
        assert whole["usage"]["prompt_tokens"] == 7
        (sent,) = server.bodies
        assert (sent["temperature"], sent["max_tokens"]) == (1.0, 512)
        assert sent["messages"][1]["content"][1]["text"] == "what? < /s>"  # as for every model here
        refused = (await client.post("/v1/chat/completions", json={**body, "logprobs": True})).json()
        assert (refused["error"]["param"], refused["error"]["code"]) == ("logprobs", "unsupported_parameter")
        refused = (await client.post("/v1/chat/completions", json={**body, "ignore_eos": True})).json()
        assert refused["error"]["param"] == "ignore_eos" and len(server.bodies) == 1


async def test_remote_model_judges() -> None:
    async with chat_server(speaks("Both are red.")) as server, side(server) as remote:
        await remote.reach("ready")
        answer = await fan_out(remote, task="caption", models=[LLAVA, PALIGEMMA], merge="judge", judge=NAME)
        assert answer["merged"]["method"] == "judge" and answer["merged"]["result"]["caption"] == "Both are red."
        assert answer["merged"]["judge"]["model"] == NAME


@pytest.mark.parametrize(("task", "sent"), [("vqa", True), ("ocr", True), ("caption", False), ("chat", False)])
async def test_logprobs_are_requested_where_merging_weighs_by_confidence(task: str, sent: bool) -> None:
    fields = ["max_tokens", "temperature", "logprobs"]
    async with chat_server(speaks("blue", logprob=-0.5)) as server, side(server, fields=fields) as remote:
        answer = await fan_out(remote, task=task)
        assert ("logprobs" in server.bodies[0]) is sent
        confidence = replies(answer)[NAME]["confidence"]
        assert confidence == pytest.approx(0.6065, abs=1e-3)  # this server gives them unasked


@pytest.mark.slow
async def test_request_to_a_busy_server_is_sent_again_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "LEAST_WAIT_S", 0.01)
    busy = replies_with(429, headers="retry-after-ms: 100\r\n")
    async with chat_server(busy, busy, speaks("red")) as server, side(server) as remote:
        began = time.monotonic()
        assert (await remote.ask()).text == "red"
        assert 0.2 <= time.monotonic() - began < 1 and len(server.bodies) == 3
        assert (await remote.state())[0] == "ready"


async def test_busy_server_is_not_waited_for_beyond_the_deadline() -> None:
    async with chat_server(replies_with(429, headers="retry-after: 7\r\n")) as server, side(server) as remote:
        began = time.monotonic()
        error = await remote.failure(deadline_s=5)
        assert isinstance(error, Overloaded) and error.retry_after_s == 7
        assert time.monotonic() - began < 1 and len(server.bodies) == 1


async def test_request_to_a_server_that_stays_busy_is_sent_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "LEAST_WAIT_S", 0.001)
    async with chat_server(replies_with(429, headers="retry-after: 0\r\n")) as server, side(server) as remote:
        assert isinstance(await remote.failure(), Overloaded)
        assert len(server.bodies) == endpoints.MAX_TRIES


async def test_request_to_a_busy_server_without_a_time_is_sent_once() -> None:
    async with chat_server(replies_with(429)) as server, side(server) as remote:
        assert isinstance(await remote.failure(), Overloaded) and len(server.bodies) == 1


async def test_requests_beyond_the_limit_are_refused_and_batch_ones_sooner() -> None:
    async with chat_server(wait) as server, side(server, max_ongoing_requests=2) as remote:
        first = asyncio.create_task(remote.ask("a"))
        await until_asked(server, 1)
        assert isinstance(await remote.failure("b", priority="batch"), Overloaded)
        second = asyncio.create_task(remote.ask("b"))
        await until_asked(server, 2)
        assert remote.route.full and isinstance(await remote.failure("c"), Overloaded)
        assert (await remote.route.status()).unanswered == 2
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert not remote.route.full and len(server.bodies) == 2


async def test_server_that_fails_in_a_row_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with chat_server(replies_with(500)) as server, side(server) as remote:
        await remote.reach("ready")
        for _ in range(FAILURES):
            assert (await remote.failure()).code == "remote_failed"
        error = await remote.failure()
        assert isinstance(error, ModelError) and error.code == "model_resting" and len(server.bodies) == FAILURES
        assert await remote.state() == ("failed", f"{NAME}'s server failed (500).")


async def test_state_follows_checks_and_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "CHECK_FAILED_S", 0.02)
    async with chat_server(speaks("red")) as server:
        server.models = replies_with(401)
        async with side(server) as remote:
            assert await remote.state() == ("starting", "asking its server")
            await remote.reach("failed")
            assert await remote.state() == ("failed", f"{NAME}'s server refuses its key (401).")
            assert (await remote.ask()).status == "ok"  # it is tried all the same
            assert await remote.state() == ("ready", "ready")
        server.models = replies_with(401)
        async with side(server) as remote:
            await remote.reach("failed")
            server.models = None
            await remote.reach("ready")


async def test_missing_key_fails_the_column_and_readiness_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT_KEY")
    async with chat_server(speaks("red")) as server, side(server) as remote, beside(remote) as client:
        await asyncio.sleep(0.02)
        ready = (await client.get("/ready")).json()
        assert ready["status"] == "degraded" and ready["models"][NAME] == "failed"
        assert "the environment variable GPT_KEY is not set" in ready["details"][NAME]["step"]
        answer = await fan_out(remote)
        assert replies(answer)[NAME]["error"]["code"] == "remote_key" and server.connections == 0


async def test_request_that_ends_the_server_twice_is_quarantined() -> None:
    dies = breaks_after(event(delta("b")))
    async with chat_server(dies, dies, speaks("red")) as server, side(server) as remote:
        for _ in range(2):
            assert (await remote.failure("poison")).code == "engine_dead"
        assert (await remote.failure("poison")).code == "quarantined" and len(server.bodies) == 2
        assert (await remote.ask("water")).status == "ok"


async def test_equal_requests_at_a_death_are_blamed_once() -> None:
    dies = breaks_after(0.05)
    async with chat_server(dies, dies, speaks("red")) as server, side(server) as remote:
        errors = await asyncio.gather(remote.failure("popular"), remote.failure("popular"))
        assert [error.code for error in errors] == ["engine_dead"] * 2
        assert (await remote.ask("popular")).status == "ok" and remote.quarantine.suspects == 0


async def test_refused_connection_and_error_blame_no_request() -> None:
    async with chat_server(replies_with(500)) as server, side(server) as remote:
        await remote.failure()
        server.port = 1
        await remote.failure()
        assert remote.quarantine.suspects == 0


async def test_check_that_fails_unforeseen_is_repeated_and_its_state_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "CHECK_FAILED_S", 0.02)
    check, faults = RemoteEngine.check, [OSError(24, "Too many open files"), OSError(24, "Too many open files")]

    async def check_without_descriptors(engine: RemoteEngine) -> None:
        if faults:
            raise faults.pop()
        await check(engine)

    monkeypatch.setattr(RemoteEngine, "check", check_without_descriptors)
    async with chat_server(speaks("red")) as server, side(server) as remote:
        await remote.reach("failed")
        assert (await remote.state())[
            1
        ] == "It could not be checked, by a fault of Diptych: OSError. The log says more."
        await remote.reach("ready")
        assert not faults


async def test_closed_endpoint_lets_a_running_request_finish() -> None:
    slow = streams(event(delta("bl")), 0.1, event(delta("ue", "stop")))
    async with chat_server(slow) as server, side(server) as remote:
        running = asyncio.create_task(remote.ask())
        await until_asked(server, 1)
        remote.endpoint.close()
        assert (await running).text == "blue"
        await server.wait_closed()


async def test_model_list_and_catalogue_say_that_a_model_is_remote_and_its_price() -> None:
    price = {"input": 2.5, "output": 10}
    async with chat_server(speaks("red")) as server, side(server, price=price) as remote, beside(remote) as client:
        entries = {entry["id"]: entry["diptych"] for entry in (await client.get("/v1/models")).json()["data"]}
        assert entries[NAME]["remote"] is True and entries[LLAVA]["remote"] is False
        assert entries[NAME]["price"] == {"input": 2.5, "output": 10.0, "currency": "USD"}
        assert {"vqa", "caption", "ocr", "chat"} <= {*entries[NAME]["tasks"]} and "detect" not in entries[NAME]["tasks"]
        assert entries[LLAVA]["price"] is None
        text = (await client.get("/v1/catalog")).text
        card = next(card for card in json.loads(text)["data"] if card["id"] == NAME)
        assert card["remote"] and card["price"] == entries[NAME]["price"] and card["checkpoint"] is None
        assert card["parameters"] is None and card["context_window"] is None
        assert "127.0.0.1" not in text and "GPT_KEY" not in text  # where it is asked is the operator's
        table = (await client.get("/v1/compare", params={"models": f"{NAME},{LLAVA}"})).json()
        assert all(value not in ("", [], None) for row in table["rows"] for value in row["values"])


async def test_detection_by_a_remote_model_is_refused() -> None:
    async with chat_server(speaks("red")) as server, side(server) as remote, beside(remote) as client:
        body = {"image": URL, "labels": ["red"], "models": [NAME]}
        refused = await client.post("/v1/tasks/detect", json=body)
        assert refused.status_code == 400 and refused.json()["error"]["message"] == f"{NAME} cannot do detect."
