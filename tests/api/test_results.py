"""Shared results: kept where the operator allows it, read by their address alone, bounded in number and size."""

import base64
import contextlib
import io
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest
from served import URL, calling, picture, router, served

from serve.api import result_card
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys, new_key
from serve.api.shared_results import LOCK_S, ResultFile
from serve.engines.fake import FakeEngine
from serve.errors import Forbidden, NotFound
from serve.limits import Limits

BOXES = FakeEngine("<loc0100><loc0100><loc0500><loc0500> red cat")


@pytest.fixture
def file(tmp_path: Path) -> ResultFile:
    return ResultFile(tmp_path / "results.db", days=30, max_mb=1)


async def answered(client: httpx.AsyncClient, task: str = "vqa", **fields: Any) -> dict[str, Any]:
    response = await client.post(f"/v1/tasks/{task}", json={"image": URL, **(fields or {"question": "which colour?"})})
    return dict(response.json())


async def shared(client: httpx.AsyncClient, **changes: Any) -> httpx.Response:
    body = {"answer": await answered(client), "image": URL, "question": "which colour?"} | changes
    return await client.post("/v1/results", json=body)


async def test_shared_result_has_a_page_a_picture_and_a_card_for_other_sites(file: ResultFile) -> None:
    app = create_app(router(paligemma=BOXES), results=file)
    async with calling(app) as client:
        answer = await answered(client, "detect", labels=["red cat"])
        posted = await shared(client, answer=answer, question="red cat <b>")
        assert posted.status_code == 200 and posted.json()["expires"] > time.time() + 29 * 86_400
        path, name = posted.json()["path"], posted.json()["id"]
        assert len(name) >= 22 and path == f"r/{name}"
        read = (await client.get(f"/v1/results/{name}")).json()
        assert read["answer"] == answer and read["question"] == "red cat <b>"
        image = await client.get(f"/v1/results/{name}/image")
        assert image.headers["content-type"] == "image/webp"
        assert PIL.Image.open(io.BytesIO(image.content)).size == (64, 48)
        card = await client.get(f"/{path}.png")
        assert PIL.Image.open(io.BytesIO(card.content)).width == 1200
        page, frame = await client.get(f"/{path}"), await client.get(f"/{path}/card")
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        policy = frame.headers["content-security-policy"]
        assert "frame-ancestors *" in policy and "script-src" not in policy and f"{name}.png" in frame.text


async def test_result_with_line_breaks_and_a_name_without_end_is_drawn(file: ResultFile) -> None:
    async with calling(create_app(router(), results=file)) as client:
        answer = await answered(client)
        answer["replies"][0]["model"] = "m" * 100_000
        answer["replies"][1] |= {"status": "error", "result": None, "error": {"message": "one\ntwo", "code": "a"}}
        posted = await shared(client, answer=answer, question="one\ntwo")
        assert posted.status_code == 200, posted.text


async def test_shared_picture_above_the_configured_megapixels_is_refused(file: ResultFile) -> None:
    async with calling(create_app(router(), results=file)) as client:
        answer = await answered(client)
    async with calling(create_app(router(), results=file, limits=Limits(max_image_megapixels=0.001))) as client:
        body = {"answer": answer, "image": URL, "question": "which colour?"}
        refused = await client.post("/v1/results", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (413, "image")


@pytest.mark.parametrize("edge", [1e308, -1e308, float("nan")])
async def test_result_whose_boxes_no_picture_has_is_refused(edge: float, file: ResultFile) -> None:
    async with calling(create_app(router(paligemma=BOXES), results=file)) as client:
        answer = await answered(client, "detect", labels=["red cat"])
        answer["merged"]["result"]["boxes"][0]["box"] = [edge] * 4
        body = json.dumps({"answer": answer, "image": URL})
        refused = await client.post("/v1/results", content=body, headers={"content-type": "application/json"})
        assert refused.status_code == 400 and "answer" in refused.json()["error"]["param"]


def test_card_has_few_places_however_many_replies() -> None:
    result = {"boxes": [{"label": "cat", "box": [0, 0, 1, 1], "score": 0.5}]}
    answer = {"replies": [{"result": result}] * 5000, "merged": {"result": result}}
    assert sum(len(layer.items) for layer in result_card._layers(answer, 1.0)) == result_card.MAX_PLACES + 1


async def test_card_page_has_no_markup_of_its_address(file: ResultFile) -> None:
    async with calling(create_app(router(), results=file)) as client:
        assert "<b>" not in (await client.get("/r/%3Cb%3E/card")).text


async def test_results_are_not_shared_without_a_file() -> None:
    async with calling(served()) as client:
        for path in ("/r/abc", "/r/abc.png", "/r/abc/card", "/v1/results/abc"):
            response = await client.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (404, "results_off")
        assert (await shared(client)).json()["error"]["code"] == "results_off"
        assert 'id="publish" hidden' in (await client.get("/")).text


@pytest.mark.slow
async def test_results_are_read_without_a_key_and_kept_with_one(file: ResultFile) -> None:
    access = Access(keys=Keys(["alice:4lice"]), results=True)
    async with calling(create_app(router(), access=access, results=file)) as client:
        assert (await client.post("/v1/results", json={})).status_code == 401
        client.headers["authorization"] = "Bearer 4lice"
        path = (await shared(client)).json()["path"]
        del client.headers["authorization"]
        for open_path in (f"/{path}", f"/{path}.png", f"/{path}/card", f"/v1/results/{path[2:]}", "/web/result.js"):
            assert (await client.get(open_path)).status_code == 200
        assert (await client.get("/")).status_code == (await client.get("/v1/evaluations")).status_code == 401


@pytest.mark.slow
async def test_result_is_deleted_by_its_token_or_by_its_sharers_key(file: ResultFile) -> None:
    access = Access(keys=Keys(["alice:4lice", "bob:b0b"]), results=True)
    async with calling(create_app(router(), access=access, results=file)) as client:
        alice, bob = ({"authorization": f"Bearer {key}"} for key in ("4lice", "b0b"))
        client.headers.update(alice)
        first, second = [(await shared(client)).json() for _ in range(2)]
        del client.headers["authorization"]
        path = f"/{first['path']}"
        for headers in ({}, bob, {"x-delete-token": second["delete_token"]}, {"authorization": "Bearer x"}):
            refused = await client.delete(path, headers=headers)
            assert (refused.status_code, refused.json()["error"]["param"]) == (403, "x-delete-token")
        deleted = await client.delete(path, headers={"x-delete-token": first["delete_token"]})
        assert deleted.json() == {"id": first["id"], "object": "diptych.shared.deleted", "deleted": True}
        assert (await client.get(f"/v1/results/{first['id']}")).status_code == 404
        assert (await client.delete(path, headers=alice)).status_code == 404
        assert (await client.delete(f"/{second['path']}", headers=alice)).status_code == 200


async def test_result_is_not_deleted_by_a_key_that_has_expired(file: ResultFile) -> None:
    key, entry = new_key("alice", "expires=2026-01-31")
    given = file.add(b"{}", b"", b"", "alice")
    async with calling(create_app(router(), access=Access(keys=Keys([entry]), results=True), results=file)) as client:
        refused = await client.delete(f"/r/{given.id}", headers={"authorization": f"Bearer {key}"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_yours")


async def test_result_without_keys_is_deleted_by_its_token_alone(file: ResultFile) -> None:
    async with calling(create_app(router(), results=file)) as client:
        posted = (await shared(client)).json()
        assert (await client.delete(f"/{posted['path']}")).status_code == 403
        headers = {"x-delete-token": posted["delete_token"]}
        assert (await client.delete(f"/{posted['path']}", headers=headers)).status_code == 200


def test_file_of_the_version_before_is_read_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        old.execute(
            "CREATE TABLE results (id TEXT PRIMARY KEY, at REAL NOT NULL, expires REAL NOT NULL, size INTEGER NOT NULL,"
            " answer BLOB NOT NULL, picture BLOB NOT NULL, card BLOB NOT NULL)"
        )
        old.execute("INSERT INTO results VALUES ('a', 1, 1e12, 2, '{}', '', '')")
        old.execute("PRAGMA user_version = 1")
    file = ResultFile(path, days=1, max_mb=1)
    assert file.find("a").expires == 1e12
    with pytest.raises(Forbidden):
        file.delete("a", None, None)
    ticket = file.add(b"{}", b"", b"")
    file.delete(ticket.id, None, ticket.token)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"image": "https://example.com/a.png"}, "image"),
        ({"image": "data:image/png;base64,AAAA"}, "image"),
        ({"image": "data:image/png;base64," + base64.b64encode(picture(8, 8)).decode()}, "answer.image"),
        ({"answer": {"task": "paint"}}, "answer.task"),
        ({"answer": {"task": "vqa"}}, "id"),
        ({"question": "x" * 2001}, "question"),
        ({"more": 1}, "more"),
    ],
)
async def test_wrong_result_is_refused_by_its_field(changes: dict[str, Any], param: str, file: ResultFile) -> None:
    async with calling(create_app(router(), results=file)) as client:
        response = await shared(client, **changes)
        assert response.status_code == 400 and param in response.json()["error"]["param"]


def test_oldest_results_make_room_and_old_ones_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ResultFile(tmp_path / "results.db", days=1, max_mb=1)
    names = [file.add(b"{}", b"x" * 400_000, b"").id for _ in range(3)]
    with pytest.raises(NotFound):
        file.find(names[0])
    assert len(file.find(names[2]).picture) == 400_000
    late = time.time() + 86_401
    monkeypatch.setattr(time, "time", lambda: late)
    with pytest.raises(NotFound):
        file.find(names[2])


def test_file_is_opened_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    ResultFile(path, days=1, max_mb=1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        ResultFile(path, days=1, max_mb=1)
        assert time.monotonic() - began < LOCK_S / 2


def test_file_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no database, but longer than its header is: " * 100)
    with pytest.raises(OSError, match="cannot be used"):
        ResultFile(tmp_path / "notes", days=1, max_mb=1)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("/object-detection/a-vs-b", "../compare/a-vs-b?task=detect"),
        ("/ocr/a-vs-b?models=a", "../compare/a-vs-b?task=ocr&models=a"),
        ("/vqa/org/a-vs-b", "../../compare/org/a-vs-b?task=vqa"),
    ],
)
async def test_task_and_models_in_an_address_lead_to_their_comparison(path: str, to: str) -> None:
    async with calling(served()) as client:
        response = await client.get(path)
        assert (response.status_code, response.headers["location"]) == (307, to)
