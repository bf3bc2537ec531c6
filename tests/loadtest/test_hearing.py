"""What a load test's client hears in the answers of a real app, whose models say what they are told to."""

import json
from typing import Any

import pytest
from served import LLAVA, PALIGEMMA, URL, calling, message, served

from loadtest.hearing import Hearing
from serve.engines.fake import FakeEngine

BOTH = (LLAVA, PALIGEMMA)
DOORS = ["/v1/tasks/vqa", "/v1/chat/completions"]


def asked(path: str, stream: bool, model: str = "vqa:*") -> dict[str, Any]:
    if path == "/v1/tasks/vqa":
        return {"image": URL, "question": "what?", "stream": stream}
    return {"model": model, "messages": [message()], "stream": stream}


async def answered(path: str, stream: bool, llava: FakeEngine, model: str = "vqa:*") -> bytes:
    async with calling(served(llava, FakeEngine("a red star"))) as client:
        reply = await client.post(path, json=asked(path, stream, model))
        assert reply.status_code == 200
        return reply.content


def heard(body: bytes, models: tuple[str, ...] = BOTH, stream: bool = True) -> Hearing:
    """Each line 10 ms after the last."""
    hearing = Hearing(models)
    if stream:
        for at, line in enumerate(body.splitlines(keepends=True)):
            hearing.line(line, 10.0 * at)
    else:
        hearing.whole(body, 10.0)
    return hearing


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DOORS)
async def test_a_fan_out_is_its_columns_and_a_merged_reply(path: str, stream: bool) -> None:
    hearing = heard(await answered(path, stream, FakeEngine("red star")), stream=stream)
    assert hearing.faults() == []
    assert sorted(column.model for column in hearing.columns) == sorted(BOTH)
    assert all(column.status == "ok" and column.latency_ms > 0 for column in hearing.columns)
    assert hearing.merged is not None
    if stream:
        assert hearing.first is not None and hearing.first < hearing.merged
        assert len(hearing.gaps) == 3  # two words and three; each column's own gaps


async def test_one_model_alone() -> None:
    hearing = heard(await answered(DOORS[1], True, FakeEngine("a b c"), LLAVA), ())
    assert (hearing.faults(), hearing.columns, hearing.merged, len(hearing.gaps)) == ([], [], None, 2)


async def test_the_first_token_is_one_with_words() -> None:
    body = await answered(DOORS[1], True, FakeEngine("a b c"), LLAVA)
    lines = body.splitlines()
    role = next(at for at, line in enumerate(lines) if b'"role"' in line)
    words = next(at for at, line in enumerate(lines) if b'"content":"a' in line)
    assert heard(body, ()).first == 10.0 * words > 10.0 * role


async def test_what_arrives_together_is_one_piece() -> None:
    hearing = Hearing()
    for line in (await answered(DOORS[1], True, FakeEngine("a b c"), LLAVA)).splitlines():
        hearing.line(line, 30.0)
    assert (hearing.first, hearing.gaps) == (30.0, [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DOORS)
async def test_a_column_that_failed_is_named(path: str, stream: bool) -> None:
    hearing = heard(await answered(path, stream, FakeEngine("red star", fail_after=1)), stream=stream)
    assert hearing.faults() == [f"{LLAVA}: error (model_error)"]
    assert hearing.merged is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DOORS)
async def test_a_column_that_is_not_there_is_named(path: str, stream: bool) -> None:
    body = await answered(path, stream, FakeEngine("red star"))
    assert heard(body, (*BOTH, "third"), stream).faults() == ["no column of third"]


def test_words_that_are_not_in_the_task_s_form_are_no_fault() -> None:
    reply = {"model": LLAVA, "status": "error", "latency_ms": 5, "text": "?", "error": {"code": "parse_error"}}
    hearing = heard(json.dumps({"replies": [reply], "merged": {"method": "vote"}}).encode(), (LLAVA,), stream=False)
    assert hearing.faults() == [] and hearing.columns[0].unread


@pytest.mark.parametrize("path", DOORS)
async def test_a_stream_that_breaks_off(path: str) -> None:
    body = (await answered(path, True, FakeEngine("red star"))).removesuffix(b"data: [DONE]\n\n")
    assert heard(body).faults() == ["the stream ended without [DONE]"]


async def test_an_error_in_the_stream() -> None:
    body = await answered(DOORS[1], True, FakeEngine("a b c", fail_after=1), LLAVA)
    (fault,) = heard(body, ()).faults()
    assert fault.startswith("an error: The model failed. (request ")


def test_a_task_s_error_event() -> None:
    body = b'event: error\ndata: {"error": {"message": "Gone.", "param": null}}\n\ndata: [DONE]\n\n'
    assert heard(body).faults()[:2] == ["an error: Gone.", "no merged reply"]


@pytest.mark.parametrize(("body", "fault"), [(b"", "no words"), (b"data: {]\n\n", "not understood")])
def test_nothing_and_nonsense(body: bytes, fault: str) -> None:
    assert fault in heard(body, ()).faults()


def test_a_comment_is_no_event() -> None:
    hearing = Hearing()
    hearing.line(b": still here\n", 1.0)
    assert "not understood" not in hearing.faults()


def test_a_connection_that_broke_is_told_first() -> None:
    hearing = Hearing()
    hearing.line(b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}]}\n', 1.0)
    hearing.broken("the connection broke")
    assert hearing.faults() == ["the connection broke", "the stream ended without [DONE]"]
