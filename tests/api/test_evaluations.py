"""The folder of evaluated runs over HTTP."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from served import calling, router, served

from serve.api.app import create_app
from serve.api.evaluation_runs import MAX_SCORES, RunFolder
from serve.api.evaluation_starts import Bounds, StartRequest


def write_run(folder: Path, name: str, at: float = 1.0) -> None:
    run: dict[str, Any] = {"name": name, "at": at, "target": "toy", "labelled_set": "abc", "tasks": []}
    (folder / f"{name}.json").write_text(json.dumps(run))
    (folder / f"{name}.jsonl").write_text('{"item": "a", "task": "vqa"}\n')


async def test_runs_are_listed_newest_first_and_unreadable_ones_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "old", 1.0)
    write_run(tmp_path, "new", 2.0)
    write_run(tmp_path, "unfinished", 3.0)
    (tmp_path / "unfinished.jsonl").unlink()
    (tmp_path / "bad.json").write_text("{")
    write_run(tmp_path, "endless", math.inf)
    write_run(tmp_path, "pipe")
    (tmp_path / "pipe.json").unlink()
    os.mkfifo(tmp_path / "pipe.json")  # to read it would wait for a writer
    (tmp_path / "large.json").write_text(" " * (MAX_SCORES + 1))
    async with calling(create_app(router(), evaluations=RunFolder(tmp_path))) as client:
        assert [run["name"] for run in (await client.get("/v1/evaluations")).json()["data"]] == ["new", "old"]
        record = await client.get("/v1/evaluations/old")
        assert record.json() == {"item": "a", "task": "vqa"} and "ndjson" in record.headers["content-type"]
        page = await client.get("/evaluations")
        assert page.status_code == 200 and "frame-ancestors 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["none", "..%2Fsecret", ".hidden", "x" * 300])
async def test_name_without_a_run_is_answered_404(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text("secret")
    (folder / ".hidden.jsonl").write_text("secret")
    async with calling(create_app(router(), evaluations=RunFolder(folder))) as client:
        assert (await client.get(f"/v1/evaluations/{name}")).status_code == 404


async def test_there_are_no_evaluations_without_a_folder() -> None:
    async with calling(served()) as client:
        for path in ("/evaluations", "/v1/evaluations", "/v1/evaluations/a"):
            assert (await client.get(path)).json()["error"]["code"] == "evaluations_off"
        assert 'id="to-evaluations"' not in (await client.get("/")).text


@pytest.mark.parametrize(
    ("kept", "kept_mb", "stay"),
    [(2, 9.0, ["4", "3"]), (9, 2.5, ["4", "3"]), (1, 0.5, ["4"]), (9, 9.0, ["4", "3", "2", "1"])],
)
@pytest.mark.parametrize("writing", [False, True])
async def test_oldest_runs_that_people_started_are_removed_once_an_evaluation_ends(
    kept: int, kept_mb: float, stay: list[str], writing: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "started" / "kept"
    folder.mkdir(parents=True)
    write_run(tmp_path, "own", 0.0)  # of `diptych evaluate --keep`: the oldest, and not counted
    for at in range(1, 5):
        write_run(folder, str(at), at)
        (folder / f"{at}.jsonl").write_bytes(bytes(2**20))
        os.utime(folder / f"{at}.jsonl", (at, at))
    if writing:
        (folder / "5.jsonl").touch()  # a running evaluation has no scores yet
        kept += 1
    runs = RunFolder(tmp_path, Bounds(mb=1, pictures=1, minutes=1, kept=kept, kept_mb=kept_mb))
    assert runs.starts is not None
    started = runs.starts.create(StartRequest(name="cats", size=1), None)
    runs.starts.cancel(started.id, None)
    if writing:
        assert (folder / "5.jsonl").exists()
        stay = stay if kept_mb > 1 else []  # the newest is then the one that is written
    async with calling(create_app(router(), evaluations=runs)) as client:
        listed = (await client.get("/v1/evaluations")).json()["data"]
        assert [run["name"] for run in listed] == [*stay, "own"]
        for name in ("1", "own"):
            status = (await client.get(f"/v1/evaluations/{name}")).status_code
            assert status == (200 if name in [*stay, "own"] else 404)
