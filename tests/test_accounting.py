"""Accounting: what each key used, to the token, also of cut streams, failed columns and judges."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi_calls import Reply, call
from prometheus_client.parser import text_string_to_metric_families
from served import LLAVA, PALIGEMMA, URL, calling, listening, message, router, until

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.api.metrics import Metrics
from serve.api.request_limits import ACCESS
from serve.arena.store import VoteStore
from serve.engines.base import Piece, Prompt
from serve.engines.fake import FakeEngine
from serve.limits import Limits

KEYS = Keys(["alice:4lice", "bob:b0b"])
ALICE, BOB = ({"authorization": f"Bearer {key}"} for key in ("4lice", "b0b"))
VQA: dict[str, Any] = {"image": URL, "question": "what is it?"}
CHAT = {"model": LLAVA, "messages": [message()]}


class CountedEngine(FakeEngine):
    """An engine that counts the pieces that it has generated."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pieces = 0

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        async with aclosing(super().generate(prompt)) as pieces:
            async for piece in pieces:
                self.pieces += 1
                yield piece


def tokens(text: str) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """Return the tokens by (model, kind) and by (key, kind) of Prometheus' text."""
    by_model: Counter[tuple[str, str]] = Counter()
    by_key: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "diptych_tokens_total":
                by_model[sample.labels["model"], sample.labels["kind"]] += int(sample.value)
            elif sample.name == "diptych_key_tokens_total":
                by_key[sample.labels["key"], sample.labels["kind"]] += int(sample.value)
    return by_model, by_key


def sums(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    return {kind: sum(n for (_, other), n in counts.items() if other == kind) for kind in ("input", "output")}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def leave_after(client: httpx.AsyncClient, path: str, body: dict[str, Any], wanted: str) -> None:
    """Read a stream until `wanted` has come, then disconnect."""
    async with client.stream("POST", path, json=body | {"stream": True}) as reply:
        seen = ""
        async for text in reply.aiter_text():
            seen += text
            if wanted in seen:
                return


async def test_sum_over_keys_equals_sum_over_models_after_cut_streams_and_failed_columns() -> None:
    long, metrics = "word " * 400, Metrics()
    replies = {"slowly": long, "": "a red circle"}
    llava = FakeEngine(replies, delay_s=0.002)
    paligemma = FakeEngine(replies, delay_s=0.002, fail_after=5)
    app = create_app(router(llava, paligemma), access=Access(keys=KEYS), metrics=metrics)
    slow = {"image": URL, "question": "slowly, what?"}
    with listening(app) as address:
        async with (
            httpx.AsyncClient(base_url=address, headers=ALICE, timeout=30) as alice,
            httpx.AsyncClient(base_url=address, headers=BOB, timeout=30) as bob,
        ):
            await asyncio.gather(
                *(client.post("/v1/tasks/vqa", json=VQA) for client in (alice, bob, bob)),
                alice.post("/v1/tasks/caption", json={"image": URL, "merge": "judge", "stream": True}),
                bob.post("/v1/chat/completions", json=CHAT | {"n": 3, "seed": 1}),
                alice.post("/v1/chat/completions", json=CHAT | {"model": "vqa:*", "stream": True}),
                bob.post("/v1/tasks/vqa", json=slow | {"stream": True, "deadline_s": 0.3}),
                bob.post("/v1/tasks/vqa", json=VQA | {"quorum": 1, "stream": True}),
                leave_after(alice, "/v1/tasks/vqa", slow, "event: delta"),
                leave_after(alice, "/v1/chat/completions", CHAT | {"messages": [message("slowly")]}, "word"),
                leave_after(
                    bob, "/v1/chat/completions", CHAT | {"model": "vqa:*", "messages": [message("slowly")]}, "word"
                ),
            )
            assert until(lambda: not llava.speaking and not paligemma.speaking and not metrics.running._value.get())
    by_model, by_key = tokens(metrics.text().decode())
    assert sums(by_model) == sums(by_key) and {key for key, _ in by_key} == {"alice", "bob"}
    assert by_model[PALIGEMMA, "output"] > 0 and sums(by_key)["output"] < 2 * 400 + 100  # what was cut was not written


@pytest.mark.slow
async def test_cut_stream_is_counted_up_to_its_last_delta() -> None:
    metrics = Metrics()
    llava, paligemma = FakeEngine("red " * 50, delay_s=0.01), FakeEngine("red " * 4, delay_s=0.001, fail_after=3)
    app = create_app(router(llava, paligemma), access=Access(keys=KEYS), metrics=metrics)
    async with calling(app) as client:
        reply = await client.post("/v1/tasks/vqa", json=VQA | {"stream": True, "deadline_s": 0.2}, headers=ALICE)
    assert "deadline_exceeded" in reply.text and "model_error" in reply.text
    by_model, by_key = tokens(metrics.text().decode())
    assert by_model[PALIGEMMA, "output"] == 3 and 0 < by_model[LLAVA, "output"] < 50
    assert min(by_model[LLAVA, "input"], by_model[PALIGEMMA, "input"]) > 49  # a picture's, and the question's
    assert by_key["alice", "output"] == by_model[LLAVA, "output"] + 3


def both(reply: dict[str, str]) -> tuple[CountedEngine, CountedEngine]:
    return CountedEngine(reply, delay_s=0.001), CountedEngine(reply, delay_s=0.001)


async def leave_at(app: Any, path: str, body: dict[str, Any], pieces: int, engines: tuple[CountedEngine, ...]) -> Reply:
    """Send a request and disconnect once the engines have generated so many pieces. Return what came until then."""
    data = json.dumps(body | {"max_tokens": 390}).encode()
    return await call(
        app, path, [data], headers=ALICE, leaves=lambda: sum(engine.pieces for engine in engines) >= pieces
    )


def access_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.name == ACCESS.name]


async def test_duel_that_its_client_leaves_counts_for_the_key_up_to_its_last_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engines, metrics, votes = both({"": "word " * 390}), Metrics(), VoteStore(tmp_path / "votes.db")
    app = create_app(
        router(*engines), access=Access(keys=KEYS), metrics=metrics, votes=votes, limits=Limits(tokens_per_day=100)
    )
    with caplog.at_level(logging.INFO, ACCESS.name):
        await leave_at(app, "/v1/arena/duels/vqa", VQA, 60, engines)
    (line,) = access_lines(caplog)
    generated = sum(engine.pieces for engine in engines)
    assert generated - 2 <= line["output_tokens"] <= generated < 2 * 390 and line["input_tokens"] > 2 * 49
    assert sums(tokens(metrics.text().decode())[0]) == {"input": 0, "output": 0}  # they would tell the models' names
    refused = await leave_at(app, "/v1/arena/duels/vqa", VQA, 10_000, engines)
    assert refused.status == 429 and b"insufficient_quota" in refused.body
    votes.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_judge_that_its_client_leaves_counts_up_to_its_last_words(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engines, metrics = both({"": "a red circle", "quotations": "word " * 390}), Metrics()
    app = create_app(router(*engines), access=Access(keys=KEYS), metrics=metrics)
    with caplog.at_level(logging.INFO, ACCESS.name):
        await leave_at(app, "/v1/tasks/caption", {"image": URL, "merge": "judge", "stream": stream}, 60, engines)
    (line,) = access_lines(caplog)
    generated = sum(engine.pieces for engine in engines)
    assert generated - 1 <= line["output_tokens"] <= generated < 390 and line["input_tokens"] > 3 * 49
    by_model, by_key = tokens(metrics.text().decode())
    assert sums(by_model) == sums(by_key) == {"input": line["input_tokens"], "output": line["output_tokens"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_judge_that_is_waited_for_counts_once(stream: bool) -> None:
    engines, metrics = both({"": "a red circle", "quotations": "word " * 20}), Metrics()
    async with calling(create_app(router(*engines), access=Access(keys=KEYS), metrics=metrics)) as client:
        body = {"image": URL, "merge": "judge", "stream": stream}
        assert (await client.post("/v1/tasks/caption", json=body, headers=ALICE)).status_code == 200
    by_model, by_key = tokens(metrics.text().decode())
    assert sums(by_model) == sums(by_key) and sums(by_model)["output"] == 2 * 3 + 20


async def test_pictures_and_widths_are_counted_by_key() -> None:
    metrics = Metrics()
    async with calling(create_app(router(), access=Access(keys=KEYS), metrics=metrics)) as client:
        await client.post("/v1/tasks/vqa", json=VQA, headers=ALICE)
        await client.post("/v1/tasks/vqa", json=VQA | {"models": [LLAVA]}, headers=ALICE)
        await client.post("/v1/chat/completions", json=CHAT, headers=BOB)
    assert [value(metrics, "diptych_key_pictures_total", key=key) for key in ("alice", "bob")] == [2, 1]
    assert value(metrics, "diptych_key_fan_out_models_sum", key="alice") == 3
    assert value(metrics, "diptych_key_fan_out_models_count", key="alice") == 2
    assert value(metrics, "diptych_key_fan_out_models_count", key="bob") == 0


async def test_access_line_has_the_use_of_its_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, ACCESS.name):
        async with calling(create_app(router(), access=Access(keys=KEYS))) as client:
            body = (await client.post("/v1/tasks/vqa", json=VQA, headers=ALICE)).json()
            await client.get("/v1/models", headers=BOB)
    answered, listed = (record.__dict__["fields"] for record in caplog.records if record.name == ACCESS.name)
    usage = body["usage"]
    assert (answered["input_tokens"], answered["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (answered["key"], answered["pictures"], answered["model_calls"]) == ("alice", 1, 2)
    assert listed["key"] == "bob" and not {"pictures", "model_calls", "output_tokens"} & listed.keys()


async def test_server_without_keys_counts_by_model_alone() -> None:
    metrics = Metrics()
    async with calling(create_app(router(), metrics=metrics)) as client:
        await client.post("/v1/tasks/vqa", json=VQA)
    by_model, by_key = tokens(metrics.text().decode())
    assert sums(by_model)["output"] == 2 and not by_key
