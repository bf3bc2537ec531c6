"""The arena's routes: nothing before the vote tells a name, a vote counts once, bad input is refused by name."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from name_guesser import features, guess
from served import LLAVA, PALIGEMMA, URL, calling, router, served

from serve.api.app import create_app
from serve.arena import duel as duel_module
from serve.arena.duel import Pace
from serve.arena.store import VoteStore
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.limits import Limits
from serve.models import MODELS
from serve.router import Router
from serve.worker import Worker

ASK = {"image": URL, "question": "which colour?"}
DUELS = 200
NAMES = ("toy-llava", "toy-llava-b", "toy-paligemma", "toy-paligemma-b")
COLOURS = ("red", "blue", "green", "white")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[VoteStore]:
    opened = VoteStore(tmp_path / "votes.db")
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def quick_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duel_module, "STEPS_S", (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 60.0))
    monkeypatch.setattr("serve.api.arena_endpoints.VOTES_A_MINUTE", 1_000_000)


async def seen_duel(client: httpx.AsyncClient, body: dict[str, Any] = ASK, task: str = "vqa") -> httpx.Response:
    """Ask for a duel until one is shown."""
    for _ in range(20):
        response = await client.post(f"/v1/arena/duels/{task}", json=body)
        if response.status_code != 503:
            return response
    raise AssertionError(response.text)


def styled(before: str, after: str, capital: bool, seed: int) -> Any:
    """Return a function that answers with a colour, drawn alike for all, in a style of its own."""
    draw = random.Random(seed)

    def reply(prompt: Prompt) -> list[str]:
        colour = draw.choice(COLOURS)
        return [before, colour.capitalize() if capital else colour, after]

    return reply


def four_models() -> Router:
    styles = [("", "", False), ("  ", ".", True), ("", " ", True), ("\n", "\n\n", False)]
    delays = (0.0, 0.002, 0.005, 0.012)
    workers = [
        Worker(MODELS[name], FakeEngine(styled(*style, seed), first_delay_s=delay))
        for seed, (name, style, delay) in enumerate(zip(NAMES, styles, delays, strict=True))
    ]
    for worker in workers:
        worker.mark("ready", "ready")
    return Router(workers)


@pytest.mark.slow
async def test_script_that_sees_all_before_the_vote_guesses_no_better_than_chance(store: VoteStore) -> None:
    past: list[tuple[dict[str, Any], tuple[str, str]]] = []
    right = 0
    async with calling(create_app(four_models(), votes=store)) as client:
        for _ in range(20):  # until the pace knows every model
            await client.post("/v1/arena/duels/vqa", json=ASK)
        while len(past) < DUELS:
            began = time.perf_counter()
            response = await client.post("/v1/arena/duels/vqa", json=ASK)
            if response.status_code == 503:  # later than all duels are: not shown
                continue
            seen = features(response, time.perf_counter() - began)
            named = guess(seen, past, NAMES)
            vote = (await client.post("/v1/arena/votes", json={"duel": response.json()["id"], "choice": "tie"})).json()
            names = (vote["left"]["model"], vote["right"]["model"])
            right += sum(named[seat] == name for seat, name in zip(("left", "right"), names, strict=True))
            past.append((seen, names))
    chance, error = 0.25, (0.25 * 0.75 / (2 * DUELS)) ** 0.5
    print(f"{right} of {2 * DUELS} seats named rightly; chance is {2 * DUELS * chance:.0f}")
    assert right / (2 * DUELS) < chance + 3 * error


async def test_vote_tells_names_and_a_repeated_one_counts_once(store: VoteStore) -> None:
    async with calling(create_app(router(), votes=store)) as client:
        duel = (await seen_duel(client)).json()
        assert set(duel) == {"id", "object", "task", "image", "left", "right", "expires_s"}
        assert duel["left"] == duel["right"] == {"result": {"answer": "Red"}}
        body = {"duel": duel["id"], "choice": "left"}
        votes = [(await client.post("/v1/arena/votes", json=body)).json() for _ in range(2)]
        assert votes[0] == votes[1] and {votes[0][seat]["model"] for seat in ("left", "right")} == {LLAVA, PALIGEMMA}
        other = await client.post("/v1/arena/votes", json=body | {"choice": "right"})
        assert other.status_code == 409 and other.json()["error"]["param"] == "choice"
        board = (await client.get("/v1/arena/board?task=vqa")).json()
        assert board["duels"] == 1 and board["models"][0]["model"] == votes[0]["left"]["model"]


async def test_other_gateway_takes_the_vote(store: VoteStore, tmp_path: Path) -> None:
    second = VoteStore(tmp_path / "votes.db")
    async with (
        calling(create_app(router(), votes=store)) as first,
        calling(create_app(router(), votes=second)) as other,
    ):
        duel = (await seen_duel(first)).json()
        vote = await other.post("/v1/arena/votes", json={"duel": duel["id"], "choice": "tie"})
        assert vote.status_code == 200
        assert (await first.get("/v1/arena/board?task=vqa")).json()["duels"] == 1
    second.close()


async def test_failure_names_no_model_and_is_counted(store: VoteStore) -> None:
    failing = FakeEngine("red", fail_after=0)
    async with calling(create_app(router(paligemma=failing), votes=store)) as client:
        response = await client.post("/v1/arena/duels/vqa", json=ASK)
        assert response.status_code == 503 and response.json()["error"]["code"] == "duel_incomplete"
        assert "toy" not in response.text
        metrics = (await client.get("/metrics")).text
        assert "diptych_replies_total{" not in metrics and "diptych_tokens_total{" not in metrics
    rows = await store.call(lambda file: file._file.execute("SELECT model, duels FROM unanswered").fetchall())
    assert rows == [(PALIGEMMA, 1)]


async def test_duel_takes_the_same_time_for_every_pair(store: VoteStore) -> None:
    pace = Pace()
    assert pace.seconds("vqa", NAMES) == 0.03
    pace.add("vqa", NAMES[3], 0.2)
    assert pace.seconds("vqa", NAMES) == 0.25 and pace.seconds("caption", NAMES) == 0.03
    for _ in range(duel_module.KEPT):
        pace.add("vqa", NAMES[3], 0.01)
    assert pace.seconds("vqa", NAMES) == 0.03


async def test_duel_ends_at_its_deadline_however_long_duels_take(
    store: VoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duel_module, "STEPS_S", (60.0,))
    async with calling(create_app(router(), votes=store)) as client:
        async with asyncio.timeout(30):
            duel = await client.post("/v1/arena/duels/vqa", json=ASK | {"deadline_s": 0.3})
    assert duel.status_code == 200, duel.text


async def test_boxes_of_both_families_have_one_form(store: VoteStore) -> None:
    boxes = FakeEngine("[0.1, 0.1, 0.5, 0.5]"), FakeEngine("<loc0300><loc0400><loc0700><loc0900> cat")
    async with calling(create_app(router(*boxes), votes=store)) as client:
        duel = (await seen_duel(client, {"image": URL, "labels": ["cat"]}, "detect")).json()
    step = 64 / 100
    for seat in ("left", "right"):
        (box,) = duel[seat]["result"]["boxes"]
        assert set(box) == {"label", "box"} and all(edge == round(round(edge / step) * step) for edge in box["box"])


async def test_judge_that_agrees_with_itself_votes_and_its_family_is_known(store: VoteStore) -> None:
    def words(prompt: Prompt) -> str:
        if "Two answers" not in prompt.text:
            return "red"
        return "The answer is B." if prompt.text.index('"Blue"') > prompt.text.index('"Red"') else "A"

    async with calling(create_app(router(FakeEngine(words), FakeEngine("blue")), votes=store)) as client:
        for _ in range(20):
            response = await client.post("/v1/arena/duels/vqa?judge=toy-llava", json=ASK)
            if response.status_code == 200:
                break
        assert "judge" not in response.text and "toy" not in response.text
        vote = (await client.post("/v1/arena/votes", json={"duel": response.json()["id"], "choice": "tie"})).json()
    blue = "left" if vote["left"]["model"] == PALIGEMMA else "right"
    assert vote["judges"] == [{"model": LLAVA, "family": "Llava", "choice": blue, "own_family": 1}]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/v1/arena/duels/fly", ASK, 404, "task"),
        ("POST", "/v1/arena/duels/vqa", ASK | {"models": [LLAVA]}, 400, "models"),
        ("POST", "/v1/arena/duels/vqa", ASK | {"stream": True}, 400, "stream"),
        ("POST", "/v1/arena/duels/vqa", {"image": URL}, 400, "question"),
        ("POST", "/v1/arena/duels/vqa?judge=gpt", ASK, 404, "judge"),
        ("POST", "/v1/arena/duels/detect?judge=toy-llava", {"image": URL, "labels": ["cat"]}, 400, "judge"),
        ("POST", "/v1/arena/votes", {"duel": "duel-1", "choice": "left"}, 404, "duel"),
        ("POST", "/v1/arena/votes", {"duel": "duel-1", "choice": "both"}, 400, "choice"),
        ("POST", "/v1/arena/votes", {"duel": "x" * 301, "choice": "left"}, 400, "duel"),
        ("POST", "/v1/arena/votes", {"duel": "d", "choice": "left", "why": "w"}, 400, "why"),
        ("GET", "/v1/arena/board?task=fly", None, 404, "task"),
        ("GET", "/v1/arena/board?task=vqa&voters=cats", None, 400, "voters"),
    ],
)
async def test_bad_input_is_refused_by_name(
    store: VoteStore, method: str, path: str, body: Any, status: int, param: str
) -> None:
    async with calling(create_app(router(), votes=store)) as client:
        response = await client.request(method, path, json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


async def test_duel_where_a_request_may_ask_one_model_is_refused(store: VoteStore) -> None:
    async with calling(create_app(router(), votes=store, limits=Limits(max_models=1))) as client:
        response = await client.post("/v1/arena/duels/vqa", json=ASK)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, None, "too_many_models")
        assert "toy" not in response.text


async def test_closed_arena_answers_404_with_a_sentence() -> None:
    async with calling(served()) as client:
        for method, path in (("POST", "duels/vqa"), ("POST", "votes"), ("GET", "board?task=vqa")):
            response = await client.request(method, f"/v1/arena/{path}", json=ASK if method == "POST" else None)
            assert response.status_code == 404 and "gateway.arena" in response.json()["error"]["message"]
        assert "gateway.arena" in (await client.get("/arena")).text
        assert 'id="to-arena"' not in (await client.get("/")).text


async def test_votes_are_limited_for_each_address(store: VoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.api.arena_endpoints.VOTES_A_MINUTE", 2)
    async with calling(create_app(router(), votes=store)) as client:
        body = {"duel": "duel-1", "choice": "left"}
        statuses = [(await client.post("/v1/arena/votes", json=body)).status_code for _ in range(3)]
    assert statuses == [404, 404, 429]
