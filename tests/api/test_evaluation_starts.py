"""Evaluations that are started over HTTP: bounds, pieces, keys, cancelling, what a stopped server leaves."""

import asyncio
import errno
import io
import json
import os
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import calling, listening, picture, router, served

from serve.api import evaluation_starts
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.evaluation_runs import RunFolder
from serve.api.evaluation_starts import ARRIVAL_S, Bounds, Caller
from serve.api.keys import Keys

BOUNDS = Bounds(mb=1, pictures=10, minutes=1, kept=10, kept_mb=1)
SET = {"name": "colours", "size": 10}


def archive(labels: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("colours/a.png", picture())
        packed.writestr("colours/labels.jsonl", "".join(json.dumps(label) + "\n" for label in labels))
    return out.getvalue()


def app(folder: Path, bounds: Bounds | None = BOUNDS, **options: Any) -> Any:
    return create_app(router(), evaluations=RunFolder(folder, bounds), **options)


async def begun(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    response = await client.post("/v1/evaluations", json=SET | changes)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def state(client: httpx.AsyncClient, at: int = 0) -> dict[str, Any]:
    return dict((await client.get("/v1/evaluations")).json()["started"][at])


async def test_evaluations_are_not_started_unless_the_operator_allows(tmp_path: Path) -> None:
    async with calling(app(tmp_path, None)) as client, calling(served()) as bare:
        assert (await client.get("/v1/evaluations")).json()["bounds"] is None
        refused = await client.post("/v1/evaluations", json=SET)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "evaluations_not_started")
        assert (await bare.post("/v1/evaluations", json=SET)).json()["error"]["code"] == "evaluations_off"
        assert (await bare.put("/v1/evaluations/abc?offset=0", content=b"x")).status_code == 404


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"size": 2**20 + 1}, "size"),
        ({"size": 0}, "size"),
        ({"name": "../runs"}, "name"),
        ({"task": "dance"}, "task"),
        ({"models": ["nobody"]}, "models"),
        ({"models": ["toy-llava"] * 101}, "models"),
        ({"n": 0}, "n"),
        ({"more": 1}, "more"),
    ],
)
async def test_wrong_start_is_refused_by_its_field(changes: dict[str, Any], param: str, tmp_path: Path) -> None:
    async with calling(app(tmp_path)) as client:
        refused = await client.post("/v1/evaluations", json=SET | changes)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert (await client.get("/v1/evaluations")).json()["started"] == []


async def test_pieces_come_in_order_and_one_evaluation_at_a_time(tmp_path: Path) -> None:
    async with calling(app(tmp_path)) as client:
        run = await begun(client)
        refused = await client.post("/v1/evaluations", json=SET)
        assert refused.status_code == 429 and "retry-after" in refused.headers
        path = f"/v1/evaluations/{run['id']}"
        assert (await client.put(f"{path}?offset=0", content=b"12345")).json()["received"] == 5
        for offset, piece, param in ((0, b"12345", "offset"), (5, b"123456", "size"), (5, b"", "offset")):
            refused = await client.put(f"{path}?offset={offset}", content=piece)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert (await state(client))["received"] == 5
        assert (await client.delete(path)).json()["state"] == "cancelled"
        assert not (tmp_path / "started" / run["id"] / "folder.zip").exists()
        refused = await client.put(f"{path}?offset=5", content=b"1")
        assert "cancelled" in refused.json()["error"]["message"]
        await begun(client)


@pytest.mark.parametrize("name", ["none", "..%2Fruns", "x" * 300])
async def test_unknown_run_is_answered_404(name: str, tmp_path: Path) -> None:
    async with calling(app(tmp_path)) as client:
        assert (await client.delete(f"/v1/evaluations/{name}")).status_code == 404


async def test_run_belongs_to_the_key_of_its_start(tmp_path: Path) -> None:
    access = Access(keys=Keys(["alice:4lice", "bob:b0b"]))
    async with calling(app(tmp_path, access=access)) as client:
        assert (await client.post("/v1/evaluations", json=SET)).status_code == 401
        client.headers["authorization"] = "Bearer 4lice"
        run = await begun(client)
        client.headers["authorization"] = "Bearer b0b"
        for refused in (
            await client.delete(f"/v1/evaluations/{run['id']}"),
            await client.put(f"/v1/evaluations/{run['id']}?offset=0", content=b"x"),
        ):
            assert (refused.status_code, refused.json()["error"]["param"]) == (403, "name")


async def test_upload_without_pieces_for_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling(app(tmp_path)) as client:
        run = await begun(client)
        late = time.time() + ARRIVAL_S + 1
        monkeypatch.setattr(time, "time", lambda: late)
        assert (await state(client))["message"] == "Its folder did not arrive."
        assert (await begun(client))["id"] != run["id"]


async def test_upload_in_small_pieces_ends_with_the_time_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(app(tmp_path)) as client:
        run = await begun(client)
        late = time.time() + 61
        monkeypatch.setattr(time, "time", lambda: late)
        refused = await client.put(f"/v1/evaluations/{run['id']}?offset=0", content=b"x")
        assert "it takes nothing more" in refused.json()["error"]["message"]
        assert (await state(client))["state"] == "cut"


async def test_start_on_a_full_disk_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    async with calling(app(tmp_path)) as client:
        refused = await client.post("/v1/evaluations", json=SET)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "evaluations_unavailable")
    assert os.listdir(tmp_path / "started") == [".lock"]


async def test_run_of_a_server_that_was_stopped_is_cut_and_its_folder_removed(tmp_path: Path) -> None:
    async with calling(app(tmp_path)) as client:
        run = await begun(client)
        here = tmp_path / "started" / run["id"]
        (here / "folder").mkdir()
        (here / "folder" / "a.png").touch()
        (here / "state.json").write_text(json.dumps(run | {"state": "running", "answered": 3, "items": 9}))
        cut = await state(client)
        assert (cut["state"], cut["answered"]) == ("cut", 3) and "stopped" in cut["message"]
        assert sorted(os.listdir(here)) == ["alive", "key", "state.json"]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str, str], None]:
    """Let the scripted program run in place of the one that evaluates, with these events."""
    monkeypatch.setattr(evaluation_starts, "PROGRAM", "tests.api.scripted_program")

    def write(folder: Path, run: str, *events: str) -> None:
        (folder / "started" / run / "script").write_text("".join(event + "\n" for event in events))

    return write


@pytest.mark.slow
async def test_running_evaluation_shows_its_progress_and_is_cancelled(tmp_path: Path, scripted: Any) -> None:
    async with calling(app(tmp_path)) as client:
        run = await begun(client)
        scripted(tmp_path, run["id"], '{"answered": 0, "items": 9}', '{"answered": 4, "items": 9}')
        path = f"/v1/evaluations/{run['id']}"
        sent = await client.put(f"{path}?offset=0", content=b"0123456789")
        assert sent.json()["state"] == "running"
        while (await state(client))["answered"] < 4:
            await asyncio.sleep(0.01)
        assert (await client.post("/v1/evaluations", json=SET)).status_code == 429
        await client.delete(path)
        while (await state(client))["state"] == "running":
            await asyncio.sleep(0.02)
        assert (await state(client))["state"] == "cancelled"
        while "folder.zip" in os.listdir(tmp_path / "started" / run["id"]):  # removed once its end is written
            await asyncio.sleep(0.01)


async def test_evaluation_cancelled_while_its_last_piece_arrives_is_not_begun(tmp_path: Path, scripted: Any) -> None:
    arriving, cancelled = asyncio.Event(), asyncio.Event()

    async def piece() -> AsyncIterator[bytes]:
        yield b"01234"
        arriving.set()
        await cancelled.wait()
        yield b"56789"

    async with calling(app(tmp_path)) as client:
        run = await begun(client)
        scripted(tmp_path, run["id"], '{"answered": 0, "items": 9}')
        path = f"/v1/evaluations/{run['id']}"
        sending = asyncio.create_task(client.put(f"{path}?offset=0", content=piece()))
        await arriving.wait()
        await client.delete(path)
        cancelled.set()
        assert (await sending).json()["error"]["param"] == "name"
        assert (await state(client))["state"] == "cancelled"
        assert "folder.zip" not in os.listdir(tmp_path / "started" / run["id"])


async def test_evaluation_cancelled_before_its_program_is_started_is_not_begun(tmp_path: Path, scripted: Any) -> None:
    given = app(tmp_path)
    starts = given.state.services.evaluations.starts
    async with calling(given) as client:
        run = await begun(client)
        scripted(tmp_path, run["id"], '{"answered": 0, "items": 9}')
        whole = starts.append(run["id"], None, 0, b"0123456789")
        await client.delete(f"/v1/evaluations/{run['id']}")
        caller = Caller(server="http://127.0.0.1:9", host=None, api_key=None)
        assert (await starts.begin(whole, caller)).state == "cancelled"
        assert (await state(client))["state"] == "cancelled"


@pytest.mark.parametrize("line", ['{"failed": "' + 70_000 * "x" + '"}', "no event"])
async def test_program_that_tells_no_event_fails_the_evaluation(line: str, tmp_path: Path, scripted: Any) -> None:
    async with calling(app(tmp_path)) as client:
        run = await begun(client)
        scripted(tmp_path, run["id"], line)
        refused = await client.put(f"/v1/evaluations/{run['id']}?offset=0", content=b"0123456789")
        assert refused.status_code == 400 and "unexpectedly" in refused.json()["error"]["message"]
        assert (await state(client))["state"] == "failed"


@pytest.mark.slow
async def test_evaluation_that_takes_too_long_is_ended(tmp_path: Path, scripted: Any) -> None:
    async with calling(app(tmp_path, replace(BOUNDS, minutes=0.01))) as client:
        run = await begun(client)
        scripted(tmp_path, run["id"], '{"answered": 0, "items": 9}')
        await client.put(f"/v1/evaluations/{run['id']}?offset=0", content=b"0123456789")
        while (await state(client))["state"] == "running":
            await asyncio.sleep(0.02)
        assert (await state(client))["message"] == "It took longer than 0.01 minutes."


async def test_folder_that_cannot_be_read_is_the_last_pieces_error(tmp_path: Path, scripted: Any) -> None:
    async with calling(app(tmp_path)) as client:
        run = await begun(client)
        scripted(tmp_path, run["id"], '{"failed": "labels.jsonl, line 1: this is not JSON."}')
        refused = await client.put(f"/v1/evaluations/{run['id']}?offset=0", content=b"0123456789")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "folder")
        assert "line 1" in (await state(client))["message"]


@pytest.mark.slow
def test_uploaded_folder_is_evaluated_with_its_uploaders_key_and_kept(tmp_path: Path) -> None:
    access = Access(keys=Keys(["alice:4lice"]), hosts=frozenset({"vision.example.com"}))
    labels = [{"image": "a.png", "question": "which colour?", "answer": colour} for colour in ("red", "blue")]
    data = archive(labels)
    with listening(app(tmp_path, access=access)) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.headers.update({"authorization": "Bearer 4lice", "host": "vision.example.com"})
        run = client.post("/v1/evaluations", json=SET | {"size": len(data), "task": "vqa"}).json()
        for offset in (0, 100):
            piece = data[offset : offset + 100] if offset == 0 else data[offset:]
            sent = client.put(f"/v1/evaluations/{run['id']}?offset={offset}", content=piece)
        assert sent.json()["state"] in ("running", "done"), sent.text
        while (listed := client.get("/v1/evaluations").json())["started"][0]["state"] in ("reading", "running"):
            time.sleep(0.05)
        (ended,) = listed["started"]
        assert (ended["state"], ended["answered"], ended["items"]) == ("done", 2, 2), ended
        (kept,) = listed["data"]
        assert kept["name"] == ended["run"] and kept["target"] == "colours"
        scores = {row["name"]: row["measures"]["VQA accuracy"]["value"] for row in kept["tasks"][0]["rows"]}
        assert scores == {"toy-llava": 50.0, "toy-paligemma": 50.0, "merged": 50.0}
        assert len(client.get(f"/v1/evaluations/{kept['name']}").text.splitlines()) == 2
        metrics = client.get("/metrics").text
        assert 'route="/v1/tasks/vqa",status="200"' in metrics
