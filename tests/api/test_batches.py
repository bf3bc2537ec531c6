"""Files and batches: by the openai package, each key its own, one output line for each request whatever happens."""

import asyncio
import contextlib
import errno
import json
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch
from served import LLAVA, URL, calling, message, router, served

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.batches.runner import TRIES, BatchRunner, LineAnswer, call_app
from serve.api.batches.store import BatchStore, FileObject, Outputs
from serve.api.keys import Keys
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.limits import Limits

CHAT = "/v1/chat/completions"
ASK = {"messages": [message()]}


def line(name: str, model: str = LLAVA, url: str = CHAT, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": {"model": model, **(body or ASK)}}


def lines(*requests: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


class Kept:
    """An app with batches in a folder, called in this process."""

    def __init__(
        self, folder: Path, *engines: FakeEngine, max_mb: float = 10, ready: bool = True, **options: Any
    ) -> None:
        self.store = BatchStore(folder, days=30, max_mb=max_mb, max_lines=50)
        self.now = time.time
        self.runner = BatchRunner(self.store, at_once=3, clock=lambda: self.now())
        self.models = router(*engines, ready=ready)
        self.app = create_app(self.models, batches=self.runner, **options)

    def client(self, http: httpx.AsyncClient, key: str = "none") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url="http://diptych/v1", api_key=key, max_retries=0, http_client=http)

    def output(self, file_id: str | None) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.store.path(file_id).read_bytes().splitlines()] if file_id else []


@pytest.fixture
async def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Kept]]:
    monkeypatch.setattr("serve.api.batches.runner.POLL_S", 0.05)
    opened: list[Kept] = []

    def create(*engines: FakeEngine, folder: str = "batches", **options: Any) -> Kept:
        opened.append(Kept(tmp_path / folder, *engines, **options))
        return opened[-1]

    yield create
    for each in opened:
        await each.runner.stop()


async def begin(client: openai.AsyncOpenAI, content: bytes, endpoint: Any = CHAT, **more: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


async def reach(client: openai.AsyncOpenAI, batch: Batch, *statuses: str) -> Batch:
    for _ in range(400):
        batch = await client.batches.retrieve(batch.id)
        if batch.status in (statuses or ("completed", "failed", "expired", "cancelled")):
            return batch
        await asyncio.sleep(0.02)
    raise AssertionError(batch)


@pytest.mark.slow
async def test_batch_answers_each_request_on_a_model_and_on_a_fan_out(kept: Callable[..., Kept]) -> None:
    paligemma = FakeEngine("red")
    served_app = kept(FakeEngine("a red square"), paligemma)
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        given = [line("one"), line("all", "vqa:*"), line("nobody", "nobody"), line("live", **ASK, stream=True)]
        batch = await reach(client, await begin(client, lines(*given) + b"\n", metadata={"a": "b"}))
        assert batch.status == "completed" and batch.metadata == {"a": "b"} and batch.completed_at is not None
        assert batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (4, 2, 2)
        assert batch.output_file_id is not None and batch.error_file_id is not None
        text = (await client.files.content(batch.output_file_id)).text
        answers = {each["custom_id"]: each for each in map(json.loads, text.splitlines())}
        assert {name: each["response"]["status_code"] for name, each in answers.items()} == {"one": 200, "all": 200}
        assert answers["one"]["response"]["body"]["choices"][0]["message"]["content"] == "a red square"
        assert len(answers["all"]["response"]["body"]["choices"]) == 3 and answers["all"]["response"]["request_id"]
        errors = {each["custom_id"]: each["response"] for each in served_app.output(batch.error_file_id)}
        assert errors["nobody"]["status_code"] == 404 and errors["live"]["body"]["error"]["param"] == "stream"
        assert [each.id async for each in client.batches.list()] == [batch.id]
        purposes = [each.purpose async for each in client.files.list()]
        assert sorted(purposes) == ["batch", "batch_output", "batch_output"]
    assert all(prompt.batch for prompt in paligemma.prompts if isinstance(prompt, Prompt))


async def test_line_breaks_of_unicode_in_a_reply_or_an_id_are_escaped(kept: Callable[..., Kept]) -> None:
    breaks = "a\u2028b\u2029c\u0085d"
    served_app = kept(FakeEngine(f"rot grün {breaks}"))
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        batch = await reach(client, await begin(client, lines(line("good"), line(breaks, "nobody"))))
        assert batch.output_file_id is not None and batch.error_file_id is not None
        files = [(await client.files.content(name)).text for name in (batch.output_file_id, batch.error_file_id)]
        (answer,), (error,) = [[json.loads(text) for text in file.splitlines()] for file in files]
        assert answer["response"]["body"]["choices"][0]["message"]["content"] == f"rot grün {breaks}"
        assert error["custom_id"] == breaks and "grün" in files[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/responses", {"model": "vqa", "input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "what?"}]}]}),
        ("/v1/tasks/vqa", {"image": URL, "question": "what?"}),
    ],
)  # fmt: skip
async def test_batch_of_responses_or_of_a_task_is_answered(
    kept: Callable[..., Kept], url: str, body: dict[str, Any]
) -> None:
    served_app = kept()
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        given = {"custom_id": "a", "method": "POST", "url": url, "body": body}
        batch = await reach(client, await begin(client, lines(given), url))
        (answer,) = served_app.output(batch.output_file_id)
        assert answer["response"]["status_code"] == 200 and "red" in json.dumps(answer["response"]["body"])


@pytest.mark.slow
async def test_wrong_lines_fail_the_batch_by_their_numbers(kept: Callable[..., Kept]) -> None:
    served_app = kept()
    wrong = [
        {**line("a"), "method": "GET"},
        line("a"),
        line("b", url="/v1/responses"),
        {"custom_id": "c"},
        line(""),
    ]
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        batch = await reach(client, await begin(client, lines(line("a"), *wrong) + b"{\n"))
        assert batch.status == "failed" and batch.errors is not None and batch.errors.data is not None
        assert [(fault.line, fault.code) for fault in batch.errors.data] == [
            (2, "duplicate_custom_id"),
            (3, "duplicate_custom_id"),
            (4, "mismatched_endpoint"),
            (5, "invalid_json_line"),
            (6, "invalid_custom_id"),
            (7, "invalid_json_line"),
        ]
        deep = lines(line("a", a=0)).replace(b'"a": 0', b'"a": ' + 10_000 * b"[" + 10_000 * b"]")
        many = lines(*(line(str(i)) for i in range(51)))
        for content, code in ((b"\n", "empty_file"), (many, "too_many_lines"), (deep, "invalid_json_line")):
            batch = await reach(client, await begin(client, content))
            assert batch.errors is not None and batch.errors.data is not None and batch.errors.data[0].code == code


@pytest.mark.slow
async def test_cancelled_batch_has_an_error_for_each_request_without_an_answer(kept: Callable[..., Kept]) -> None:
    served_app = kept(FakeEngine(["quick"] * 2, delay_s=0.1))
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        names = [f"r{i}" for i in range(12)]
        batch = await begin(client, lines(*map(line, names)))
        while not (folder := served_app.store.path(Outputs.of(batch.id).output)).exists() or not folder.stat().st_size:
            await asyncio.sleep(0.01)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        batch = await reach(client, batch)
        assert batch.status == "cancelled" and batch.cancelled_at is not None
        answers, errors = served_app.output(batch.output_file_id), served_app.output(batch.error_file_id)
        assert {each["error"]["code"] for each in errors} == {"batch_cancelled"} and answers
        assert sorted(each["custom_id"] for each in [*answers, *errors]) == sorted(names)
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)


async def test_queued_batch_that_is_cancelled_ends_at_once_with_its_error_lines(kept: Callable[..., Kept]) -> None:
    served_app = kept(FakeEngine("red", delay_s=60))
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        running = await begin(client, lines(line("a")))
        queued = await begin(client, lines(line("b"), line("c")))
        last = await begin(client, lines(line("d")))
        await reach(client, running, "in_progress")
        assert (await client.batches.cancel(queued.id)).status == "cancelling"
        batch = await reach(client, queued)
        assert batch.status == "cancelled" and batch.output_file_id is None and batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (2, 0, 2)
        errors = [(each["custom_id"], each["error"]["code"]) for each in served_app.output(batch.error_file_id)]
        assert errors == [("b", "batch_cancelled"), ("c", "batch_cancelled")]
        assert (await client.files.delete(queued.input_file_id)).deleted
        assert [(await client.batches.retrieve(each.id)).status for each in (running, last)] == [
            "in_progress",
            "validating",
        ]


async def test_queued_batch_of_wrong_lines_that_is_cancelled_has_their_faults(kept: Callable[..., Kept]) -> None:
    served_app = kept(FakeEngine("red", delay_s=60))
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        await begin(client, lines(line("a")))
        queued = await begin(client, lines(line("a")) + b"{\n")
        await client.batches.cancel(queued.id)
        batch = await reach(client, queued)
        assert batch.status == "cancelled" and batch.error_file_id is None and batch.errors is not None
        assert [(fault.line, fault.code) for fault in batch.errors.data or []] == [(2, "invalid_json_line")]


async def test_queued_batch_past_its_window_has_an_error_for_each_request(kept: Callable[..., Kept]) -> None:
    served_app = kept(FakeEngine("red", delay_s=60))
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        batches = [await begin(client, lines(line("a"), line("b"))) for _ in range(3)]
        await reach(client, batches[0], "in_progress")
        served_app.now = lambda: time.time() + 86_401
        for batch in [await reach(client, each) for each in batches]:
            assert batch.status == "expired"
            errors = [(each["custom_id"], each["error"]["code"]) for each in served_app.output(batch.error_file_id)]
            assert errors == [("a", "batch_expired"), ("b", "batch_expired")]


async def test_batch_past_its_window_expires(kept: Callable[..., Kept]) -> None:
    served_app = kept()
    served_app.now = lambda: time.time() + 86_401
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        batch = await reach(client, await begin(client, lines(line("a"), line("b"))))
        assert batch.status == "expired" and batch.expired_at is not None and batch.output_file_id is None
        assert [each["error"]["code"] for each in served_app.output(batch.error_file_id)] == ["batch_expired"] * 2


async def test_cut_batch_is_resumed_with_one_line_for_each_request(kept: Callable[..., Kept]) -> None:
    first = kept(FakeEngine("red", delay_s=0.05))
    names = [f"r{i}" for i in range(9)]
    async with calling(first.app) as http:
        batch = await begin(first.client(http), lines(*map(line, names)))
        path = first.store.path(Outputs.of(batch.id).output)
        while not path.exists() or path.read_bytes().count(b"\n") < 3:
            await asyncio.sleep(0.01)
        await first.runner.stop()
    path.write_bytes(path.read_bytes()[:-7])  # a kill may leave a part of a line
    second = kept()
    second.runner.start()
    async with calling(second.app) as http:
        batch = await reach(second.client(http), batch)
        assert batch.status == "completed" and batch.request_counts is not None
        assert batch.request_counts.completed == 9
    assert sorted(each["custom_id"] for each in second.output(batch.output_file_id)) == names


RUN = """
import asyncio, sys
from pathlib import Path
from serve.engines.fake import FakeEngine
from test_batches import Kept

async def run():
    Kept(Path(sys.argv[1]), FakeEngine("red", delay_s=0.05)).runner.start()
    await asyncio.sleep(60)

asyncio.run(run())
"""


@pytest.mark.slow
async def test_killed_process_leaves_one_line_for_each_request(kept: Callable[..., Kept]) -> None:
    last = kept()
    names = [f"r{i:02}" for i in range(40)]
    file = last.store.add_file("", "in.jsonl", "batch", lines(*map(line, names)))
    batch = last.store.add_batch("", CHAT, file.id, 3600.0, None)
    output = last.store.path(Outputs.of(batch.id).output)
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests / "api", tests.parent)))}
    for kills in range(1, 4):
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", RUN, str(last.store.folder), env=environment)
        while not output.exists() or output.read_bytes().count(b"\n") < 7 * kills:
            assert child.returncode is None
            await asyncio.sleep(0.01)
        child.kill()
        await child.wait()
    last.runner.start()
    while last.store.batch("", batch.id).status != "completed":
        await asyncio.sleep(0.02)
    assert sorted(each["custom_id"] for each in last.output(last.store.batch("", batch.id).output_file_id)) == names


@pytest.mark.slow
async def test_line_is_sent_again_while_no_model_has_room(
    kept: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = iter([429, 503, 200])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"retry-after", b"0")]
        await send({"type": "http.response.start", "status": next(statuses), "headers": headers})
        await send({"type": "http.response.body", "body": b'{"a": 1}'})

    served_app = kept()
    monkeypatch.setattr(served_app.runner, "app", app)
    monkeypatch.setattr("serve.api.batches.runner.LONGEST_WAIT_S", 0.01)
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        batch = await reach(client, await begin(client, lines(line("a"))))
        assert served_app.output(batch.output_file_id)[0]["response"]["body"] == {"a": 1}


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the statuses of the responses to lines, which are asked again at once."""
    received: list[int] = []

    async def call(*request: Any) -> LineAnswer:
        answer = await call_app(*request)
        received.append(answer.status)
        return answer

    monkeypatch.setattr("serve.api.batches.runner.LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr("serve.api.batches.runner.call_app", call)
    return received


TASK = "/v1/tasks/vqa"


async def asked_often(client: openai.AsyncOpenAI, batch: Batch, statuses: list[int]) -> bool:
    """Wait until a batch's line was asked more than TRIES times; return whether it was before the batch ended."""
    while len(statuses) <= TRIES and (await client.batches.retrieve(batch.id)).completed_at is None:
        await asyncio.sleep(0.01)
    return len(statuses) > TRIES and set(statuses) == {503}


@pytest.mark.parametrize(
    ("url", "body"),
    [(CHAT, {"model": LLAVA, **ASK}), (CHAT, {"model": "vqa:*", **ASK}), (TASK, {"image": URL, "question": "what?"})],
)
async def test_line_waits_until_its_models_have_started(
    kept: Callable[..., Kept], statuses: list[int], url: str, body: dict[str, Any]
) -> None:
    served_app = kept(ready=False)
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        batch = await begin(client, lines({"custom_id": "a", "method": "POST", "url": url, "body": body}), url)
        assert await asked_often(client, batch, statuses)
        for worker in served_app.models.routes.values():
            worker.mark("ready", "ready")
        batch = await reach(client, batch)
        assert [each["response"]["status_code"] for each in served_app.output(batch.output_file_id)] == [200]


async def test_line_whose_model_never_starts_expires_with_its_batch(
    kept: Callable[..., Kept], statuses: list[int]
) -> None:
    served_app = kept(ready=False)
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        batch = await begin(client, lines(line("a")))
        assert await asked_often(client, batch, statuses)
        served_app.now = lambda: time.time() + 86_401
        batch = await reach(client, batch)
        assert [each["error"]["code"] for each in served_app.output(batch.error_file_id)] == ["batch_expired"]


async def test_line_whose_model_fails_has_an_error_after_a_few_tries(
    kept: Callable[..., Kept], statuses: list[int]
) -> None:
    served_app = kept(FakeEngine("red", fail_after=0))
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        batch = await reach(client, await begin(client, lines(line("a"))))
        (error,) = served_app.output(batch.error_file_id)
        assert error["response"]["body"]["error"]["code"] == "model_error" and statuses == [503] * TRIES


@pytest.mark.slow
async def test_each_key_has_files_and_batches_of_its_own(kept: Callable[..., Kept]) -> None:
    keys = Keys(["ann:4nn", "bob:b0b"])
    served_app = kept(access=Access(keys=keys), limits=Limits(max_models=1))
    async with calling(served_app.app) as http:
        ann, bob = served_app.client(http, "4nn"), served_app.client(http, "b0b")
        batch = await reach(ann, await begin(ann, lines(line("one"), line("both", "vqa"))))
        (error,) = served_app.output(batch.error_file_id)
        assert error["response"]["body"]["error"]["code"] == "too_many_models"
        assert len(served_app.output(batch.output_file_id)) == 1
        for call in (
            bob.batches.retrieve(batch.id),
            bob.batches.cancel(batch.id),
            bob.files.retrieve(batch.input_file_id),
            bob.files.content(batch.input_file_id),
            bob.files.delete(batch.input_file_id),
            bob.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
        ):  # fmt: skip
            with pytest.raises(openai.NotFoundError):
                await call
        assert [each async for each in bob.files.list()] == [each async for each in bob.batches.list()] == []


@pytest.mark.slow
async def test_request_of_a_removed_key_is_refused(tmp_path: Path) -> None:
    first = Kept(tmp_path / "batches", FakeEngine("red", delay_s=60), access=Access(keys=Keys(["ann:4nn"])))
    async with calling(first.app) as http:
        batch = await begin(first.client(http, "4nn"), lines(line("a")))
        await first.runner.stop()
    second = Kept(tmp_path / "batches", access=Access(keys=Keys(["bob:b0b"])))
    second.runner.start()
    while not second.store.batch("ann", batch.id).completed_at:
        await asyncio.sleep(0.02)
    await second.runner.stop()
    (error,) = second.output(second.store.batch("ann", batch.id).error_file_id)
    assert error["response"]["status_code"] == 401


@pytest.mark.slow
async def test_files_are_bounded_listed_and_removed(kept: Callable[..., Kept]) -> None:
    served_app = kept(max_mb=0.012)
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        files = [await client.files.create(file=("a.jsonl", b"x" * 3000), purpose="batch") for _ in range(3)]
        assert (files[0].bytes, files[0].filename, files[0].status) == (3000, "a.jsonl", "processed")
        for content in (b"x" * 3000, b"x"):
            with pytest.raises(openai.APIStatusError) as full:
                await client.files.create(file=("a.jsonl", content), purpose="batch")
            assert (full.value.status_code, full.value.code) == (413, "storage_full")
        page = await client.files.list(limit=2, order="asc")
        assert [each.id for each in page.data] == [files[0].id, files[1].id] and page.has_more
        assert [each.id async for each in client.files.list(limit=1)] == [each.id for each in reversed(files)]
        assert (await client.files.delete(files[0].id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.content(files[0].id)
        for wrong, param in (({"purpose": "vision"}, "purpose"), ({"purpose": "batch", "a": "b"}, "a")):
            posted = await http.post("/v1/files", files={"file": b"{}"}, data=wrong)
            assert posted.status_code == 400 and posted.json()["error"]["param"] == param
        assert (await http.post("/v1/files", json={})).json()["error"]["param"] == "file"


@pytest.mark.slow
async def test_batches_take_room_of_a_keys_files(kept: Callable[..., Kept]) -> None:
    served_app = kept(max_mb=0.012)
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        await reach(client, await begin(client, b"no request"))
        with pytest.raises(openai.APIStatusError) as full:
            for _ in range(9):
                await begin(client, b"no request")
        assert (full.value.status_code, full.value.code) == (413, "storage_full")
        (file,) = [each async for each in client.files.list()][:1]
        with pytest.raises(openai.APIStatusError) as full:
            for _ in range(9):
                await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        assert (full.value.status_code, full.value.code) == (413, "storage_full")


async def test_batch_of_a_key_without_room_fails_and_writes_nothing(
    kept: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    served_app = kept()
    monkeypatch.setattr(served_app.store, "room", lambda owner: 0)
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        batch = await reach(client, await begin(client, lines(line("a"))))
        assert batch.status == "failed" and batch.error_file_id is None and batch.errors is not None
        assert [fault.code for fault in batch.errors.data or []] == ["storage_full"]


async def removed_by_hand(served_app: Kept, client: openai.AsyncOpenAI) -> str:
    """Upload a file and remove its content from the folder; return its id."""
    file = await client.files.create(file=("a.jsonl", lines(line("a"))), purpose="batch")
    served_app.store.path(file.id).unlink()
    return file.id


@pytest.mark.slow
async def test_batch_whose_file_is_gone_fails_and_the_next_one_runs(kept: Callable[..., Kept]) -> None:
    served_app = kept()
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        file_id = await removed_by_hand(served_app, client)
        lost = await client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        assert (await reach(client, await begin(client, lines(line("a"))))).status == "completed"
        lost = await client.batches.retrieve(lost.id)
        assert lost.errors is not None and [fault.code for fault in lost.errors.data or []] == ["input_file_missing"]


async def test_content_that_was_removed_by_hand_is_answered_404(kept: Callable[..., Kept]) -> None:
    served_app = kept()
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        file_id = await removed_by_hand(served_app, client)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.files.content(file_id)
        assert (missing.value.code, missing.value.param) == ("file_not_found", "file_id")
        assert (await client.files.delete(file_id)).deleted


async def test_file_that_a_batch_begins_with_is_not_removed_meanwhile(
    kept: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = kept().store
    file = store.add_file("ann", "a.jsonl", "batch", lines(line("a")))
    check = store.file

    def delete_after(owner: str, file_id: str) -> FileObject:
        checked = check(owner, file_id)
        monkeypatch.setattr(store, "file", check)
        with contextlib.closing(sqlite3.connect(store.folder / "batches.db", timeout=0)) as other, other:
            other.execute("DELETE FROM files")
        return checked

    monkeypatch.setattr(store, "file", delete_after)
    with pytest.raises(OSError, match="locked"):
        store.add_batch("ann", CHAT, file.id, 60, None)


async def test_file_on_a_full_disk_leaves_nothing(kept: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    served_app = kept()
    monkeypatch.setattr(os, "fsync", full)
    async with calling(served_app.app) as http:
        refused = await http.post("/v1/files", files={"file": b"{}"}, data={"purpose": "batch"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "batches_unavailable")
    assert list(served_app.store.contents.iterdir()) == []


@pytest.mark.slow
async def test_old_files_and_batches_are_removed(kept: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    served_app = kept()
    async with calling(served_app.app) as http:
        client = served_app.client(http)
        await reach(client, await begin(client, lines(line("a"))))
        late = time.time() + 31 * 86_400
        monkeypatch.setattr(time, "time", lambda: late)
        served_app.store.remove_old()
        assert [each async for each in client.files.list()] == [each async for each in client.batches.list()] == []
    assert list(served_app.store.contents.iterdir()) == []


async def test_batches_are_off_without_a_folder() -> None:
    async with calling(served()) as http:
        for path in ("/v1/files", "/v1/batches", "/v1/files/a/content"):
            response = await http.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (404, "batches_off")


async def test_wrong_batch_is_refused_by_its_field(kept: Callable[..., Kept]) -> None:
    served_app = kept()
    async with calling(served_app.app) as http:
        good = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"}
        for wrong, status, param in (
            ({}, 404, "input_file_id"),
            ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
            ({"endpoint": "vqa"}, 400, "endpoint"),
            ({"completion_window": "1h"}, 400, "completion_window"),
            ({"metadata": dict.fromkeys(map(str, range(17)), "x")}, 400, "metadata"),
            ({"metadata": {"a": "x" * 513}}, 400, "metadata.a"),
            ({"metadata": {"a": {"b": 1}}}, 400, "metadata.a"),
            ({"more": 1}, 400, "more"),
        ):
            response = await http.post("/v1/batches", json={**good, **wrong})
            assert (response.status_code, response.json()["error"]["param"]) == (status, param)
