"""Parts of a folder: every picture in one line of one part, whoever is killed when."""

import contextlib
import json
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from serve.client.http_client import Failure, Misuse
from serve.client.storage import parts
from serve.client.storage.names import NameSet
from serve.client.storage.parts import Parts, form_of, line_of, row_of
from serve.client.storage.sources import WHOLE, Shard

QUESTION = {"task": "vqa", "asked": {"question": "what?"}}


def line(name: str, **more: Any) -> dict[str, Any]:
    merged = {"result": {"answer": "é"}, "agreement": 0.5}
    return {"file": name, **QUESTION, "image": {"width": 2, "height": 1}, "merged": merged, "replies": [], **more}


def open_parts(folder: Path, form: str = "jsonl", shard: Shard = WHOLE, **question: Any) -> Parts:
    return Parts(f"{folder}/", QUESTION | question, shard, form)


def recorded(folder: Path) -> list[str]:
    return sorted(
        json.loads(text)["file"] for part in folder.glob("part-*.jsonl") for text in part.read_text().splitlines()
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "parquet", "tar"])
def test_next_call_knows_the_names_in_parts(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: make install-dev")
    monkeypatch.setattr(parts, "MOST_LINES", 2)
    first = open_parts(tmp_path, form)
    for name in ("a.png", "b/c.png", "d.png"):
        first.add(line(name), b"picture")
    del first  # killed: the third line was in no part yet
    second = open_parts(tmp_path, form)
    assert [name in second.done for name in ("a.png", "b/c.png", "d.png")] == [True, True, False]
    second.add(line("d.png"), b"picture")
    second.close(whole=True)
    manifest = json.loads((tmp_path / "manifest-00000-of-00001.json").read_text())
    counts = [(part["name"], part["lines"]) for part in manifest["parts"]]
    assert counts == [(f"part-00000-of-00001-{number:06d}.{form}", 2 - number) for number in range(2)]
    assert (manifest["answers"], manifest["errors"], manifest["complete"]) == (3, 0, True)
    assert {name: manifest[name] for name in QUESTION} == QUESTION
    if form == "tar":
        with tarfile.open(tmp_path / counts[0][0]) as tar:
            assert tar.getnames() == ["a.png", "a.json", "b/c.png", "b/c.json"]


def test_errors_are_kept_apart_and_not_done(tmp_path: Path) -> None:
    out = open_parts(tmp_path)
    out.add(line("a.png"))
    out.add({"file": "b.png", **QUESTION, "error": {"message": "x"}})
    out.close(whole=True)
    errors = tmp_path / "errors-00000-of-00001.jsonl"
    assert recorded(tmp_path) == ["a.png"] and json.loads(errors.read_text())["file"] == "b.png"
    again = open_parts(tmp_path)
    assert "b.png" not in again.done and not errors.exists()
    again.add(line("b.png"))
    again.close(whole=True)
    assert recorded(tmp_path) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"task": "caption"}, 'another question .task: "vqa" there, "caption" here'),
        ({"form": "tar"}, 'another question .format: "jsonl" there'),
        ({"shard": Shard(0, 2)}, "holds answers of 1 shards, not 2"),
    ],
)
def test_folder_of_another_run_is_refused_and_not_modified(tmp_path: Path, how: dict[str, Any], says: str) -> None:
    out = open_parts(tmp_path)
    out.add(line("a.png"))
    out.close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(Misuse, match=says):
        open_parts(tmp_path, **how)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_second_writer_of_a_shard_is_refused(tmp_path: Path) -> None:
    first, second, other = open_parts(tmp_path), open_parts(tmp_path), open_parts(tmp_path / "b", shard=Shard(1, 2))
    for writer in (first, second, other):
        writer.add(line("a.png"))
    first.close(whole=True)
    with pytest.raises(Failure, match="another diptych writes shard 0/1"):
        second.close(whole=True)
    assert recorded(tmp_path) == ["a.png"]


def test_missing_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MOST_LINES", 1)
    out = open_parts(tmp_path)
    out.add(line("a.png"))
    out.add(line("b.png"))
    (tmp_path / "part-00000-of-00001-000000.jsonl").unlink()
    with pytest.raises(Failure, match=r"000001\.jsonl is there, and part-00000-of-00001-000000\.jsonl is not"):
        open_parts(tmp_path)


@pytest.mark.parametrize("cut", [5, -1])
def test_part_that_is_damaged_is_named(tmp_path: Path, cut: int) -> None:
    out = open_parts(tmp_path)
    out.add(line("a.png"))
    out.close()
    part = tmp_path / "part-00000-of-00001-000000.jsonl"
    part.write_bytes(part.read_bytes()[:cut] if cut > 0 else b"[]\n")
    with pytest.raises(Failure, match="000000.jsonl cannot be read; nothing was changed"):
        open_parts(tmp_path)


@pytest.mark.parametrize("content", [b'{"file": 5}\n', b"[" * 100_000 + b"\n"])
def test_part_of_another_form_is_named(tmp_path: Path, content: bytes) -> None:
    open_parts(tmp_path).close()
    (tmp_path / "part-00000-of-00001-000000.jsonl").write_bytes(content)
    with pytest.raises(Failure, match="cannot be read; nothing was changed"):
        open_parts(tmp_path)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "tar"])
def test_name_that_is_no_utf8_is_written_and_known_to_the_next_call(tmp_path: Path, form: str) -> None:
    out = open_parts(tmp_path, form)
    out.add(line("\udcff.png"))
    out.close()
    assert "\udcff.png" in open_parts(tmp_path, form).done


def test_folder_of_as_many_shards_as_need_six_digits_is_refused_for_fewer(tmp_path: Path) -> None:
    open_parts(tmp_path, shard=Shard(0, 100_000)).close()
    with pytest.raises(Misuse, match="holds answers of 100000 shards"):
        open_parts(tmp_path)


def test_old_or_large_part_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    out = open_parts(tmp_path)
    out.add(line("a.png"))
    now[0] = 61.0
    out.add(line("b.png"))
    assert recorded(tmp_path) == ["a.png", "b.png"]
    monkeypatch.setattr(parts, "MOST_BYTES", 10)
    out.add(line("c.png"))
    assert recorded(tmp_path) == ["a.png", "b.png", "c.png"]
    out.close()


def test_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    out_parts: list[Parts] = []
    with contextlib.suppress(Failure):
        out_parts.append(open_parts(tmp_path))
    assert not out_parts and list(tmp_path.iterdir()) == []


def test_unpacked_tar_files_of_pictures_with_one_stem_lose_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_LINES", 2)
    names = ["a/b.jpg", "a/b.png", "a/b", "a/b.c.png", "https://x.org/p.jpg?id=1", "https://x.org/p.jpg?id=2"]
    names += ["https://x.org/p.json", "a//b.jpg"]
    out, target = tmp_path / "out", tmp_path / "unpacked"
    for at in range(len(names)):  # each call adds a picture to what earlier calls have left
        again = open_parts(out, "tar")
        assert [name for name in names if name in again.done] == names[:at]
        again.add(line(names[at]), names[at].encode())
        if at % 3 == 0:
            again.add(line(f"{at}.png"), b"")
        again.close()
    answers: dict[str, bytes] = {}
    for part in sorted(out.glob("*.tar")):
        with tarfile.open(part) as tar:
            tar.extractall(target, filter="data")
            members = tar.getnames()
            for picture, answer in zip(members[::2], members[1::2], strict=True):
                assert (
                    PurePosixPath(picture).with_suffix("") == PurePosixPath(answer).with_suffix("")
                    or "." not in picture
                )
                answers[json.loads((target / answer).read_text())["file"]] = (target / picture).read_bytes()
    assert {name: answers[name] for name in names} == {name: name.encode() for name in names}
    assert len([path for path in target.rglob("*") if path.is_file()]) == 2 * len(answers) == 2 * (len(names) + 3)


def test_many_pictures_of_one_stem_have_names_of_their_own() -> None:
    stems = NameSet()
    members = [name for at in range(5_000) for name in parts.member_names(f"https://x.org/p?id={at}.5", stems)]
    members += [name for at in range(5_000) for name in parts.member_names(f"https://x.org/p.jpg?id={at}", stems)]
    assert len(set(members)) == len(members) == 20_000


def test_row_of_a_parquet_file_is_its_line_again() -> None:
    whole = line("a.png", replies=[{"model": "toy-llava", "text": "é\n"}])
    assert line_of(row_of(whole)) == whole


def test_format_is_in_the_name() -> None:
    named = {name: form_of(name) for name in ("a", "a/", "s3://b/a.parquet", "s3://b/a.parquet/", "x.tar", "x.jsonl")}
    assert list(named.values()) == ["jsonl", "jsonl", "parquet", "parquet", "tar", "jsonl"]
