"""Tests how a load test's client reads the answers of a real app with fake engines."""

import json
from typing import Any

import pytest
from served import LLAVA, PALIGEMMA, URL, calling, message, served

from loadtest.response_reader import UNREAD, ResponseReader
from serve.engines.fake import FakeEngine

BOTH = (LLAVA, PALIGEMMA)
ROUTES = ["/v1/tasks/vqa", "/v1/chat/completions"]


def question(path: str, stream: bool, model: str = "vqa:*") -> dict[str, Any]:
    if path == "/v1/tasks/vqa":
        return {"image": URL, "question": "what?", "stream": stream}
    return {"model": model, "messages": [message()], "stream": stream}


async def answered(path: str, stream: bool, llava: FakeEngine, model: str = "vqa:*") -> bytes:
    async with calling(served(llava, FakeEngine("a red star"))) as client:
        reply = await client.post(path, json=question(path, stream, model))
        assert reply.status_code == 200
        return reply.content


def read(body: bytes, models: tuple[str, ...] = BOTH, stream: bool = True) -> ResponseReader:
    """Read the lines of a stream 10 ms apart, or a whole body."""
    reader = ResponseReader(models)
    if stream:
        for at, line in enumerate(body.splitlines(keepends=True)):
            reader.line(line, 10.0 * at)
    else:
        reader.body(body, 10.0)
    return reader


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ROUTES)
async def test_fan_out_has_its_columns_and_a_merged_reply(path: str, stream: bool) -> None:
    reader = read(await answered(path, stream, FakeEngine("red star")), stream=stream)
    assert reader.faults() == []
    assert sorted(column.model for column in reader.columns) == sorted(BOTH)
    assert all(column.status == "ok" and column.latency_ms > 0 for column in reader.columns)
    assert reader.merged is not None
    if stream:
        assert reader.first is not None and reader.first < reader.merged
        assert len(reader.gaps) == 3  # two words and three; each column's own gaps


async def test_single_model_has_no_columns() -> None:
    reader = read(await answered(ROUTES[1], True, FakeEngine("a b c"), LLAVA), ())
    assert (reader.faults(), reader.columns, reader.merged, len(reader.gaps)) == ([], [], None, 2)


async def test_first_token_has_words() -> None:
    body = await answered(ROUTES[1], True, FakeEngine("a b c"), LLAVA)
    lines = body.splitlines()
    role = next(at for at, line in enumerate(lines) if b'"role"' in line)
    content = next(at for at, line in enumerate(lines) if b'"content":"a' in line)
    assert read(body, ()).first == 10.0 * content > 10.0 * role


async def test_lines_that_arrive_together_have_no_gaps() -> None:
    reader = ResponseReader()
    for line in (await answered(ROUTES[1], True, FakeEngine("a b c"), LLAVA)).splitlines():
        reader.line(line, 30.0)
    assert (reader.first, reader.gaps) == (30.0, [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ROUTES)
async def test_failed_column_is_a_fault(path: str, stream: bool) -> None:
    reader = read(await answered(path, stream, FakeEngine("red star", fail_after=1)), stream=stream)
    assert reader.faults() == [f"{LLAVA}: error (model_error)"]
    assert reader.merged is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ROUTES)
async def test_missing_column_is_a_fault(path: str, stream: bool) -> None:
    body = await answered(path, stream, FakeEngine("red star"))
    assert read(body, (*BOTH, "third"), stream).faults() == ["no column of third"]


def test_unread_column_is_no_fault() -> None:
    reply = {"model": LLAVA, "status": "error", "latency_ms": 5, "text": "?", "error": {"code": "parse_error"}}
    reader = read(json.dumps({"replies": [reply], "merged": {"method": "vote"}}).encode(), (LLAVA,), stream=False)
    assert reader.faults() == [] and reader.columns[0].unread


@pytest.mark.parametrize(
    ("code", "faults"), [(UNREAD, []), ("no_model_answered", ["an error: No model answered.", "no words"])]
)
@pytest.mark.parametrize("stream", [False, True])
def test_answer_of_which_no_reply_could_be_read_is_no_fault(stream: bool, code: str, faults: list[str]) -> None:
    body = json.dumps({"error": {"message": "No model answered.", "code": code}}).encode()
    reader = read(b"event: error\ndata: " + body + b"\n\ndata: [DONE]\n" if stream else body, (), stream)
    assert reader.faults() == faults and reader.code == code


@pytest.mark.parametrize("path", ROUTES)
async def test_stream_without_end_is_a_fault(path: str) -> None:
    body = (await answered(path, True, FakeEngine("red star"))).removesuffix(b"data: [DONE]\n\n")
    assert read(body).faults() == ["the stream ended without [DONE]"]


async def test_error_in_a_stream_is_a_fault() -> None:
    body = await answered(ROUTES[1], True, FakeEngine("a b c", fail_after=1), LLAVA)
    (fault,) = read(body, ()).faults()
    assert fault.startswith("an error: The model failed. (request ")


def test_error_event_of_a_task_is_a_fault() -> None:
    body = b'event: error\ndata: {"error": {"message": "Gone.", "param": null}}\n\ndata: [DONE]\n\n'
    assert read(body).faults()[:2] == ["an error: Gone.", "no merged reply"]


@pytest.mark.parametrize(("body", "fault"), [(b"", "no words"), (b"data: {]\n\n", "not understood")])
def test_empty_or_garbled_answer_is_a_fault(body: bytes, fault: str) -> None:
    assert fault in read(body, ()).faults()


def test_comment_is_no_event() -> None:
    reader = ResponseReader()
    reader.line(b": still here\n", 1.0)
    assert "not understood" not in reader.faults()


def test_broken_connection_is_the_first_fault() -> None:
    reader = ResponseReader()
    reader.line(b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}]}\n', 1.0)
    reader.broken("the connection broke")
    assert reader.faults() == ["the connection broke", "the stream ended without [DONE]"]
