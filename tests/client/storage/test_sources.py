"""Pictures of folders, tar files, parquet files and lists; and shards of them."""

import base64
import io
import itertools
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import PIL.Image
import pytest

from serve.client.http_client import Failure, Misuse
from serve.client.storage import sources
from serve.client.storage.sources import WHOLE, PictureSource, Shard, open_source
from serve.client.storage.store import LocalStore


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("L", (2, 2), shade).save(file, "PNG")
    return file.getvalue()


def names(source: PictureSource, shard: Shard = WHOLE) -> list[str]:
    return sorted(picture.name for picture in source.pictures(shard))


def contents(source: PictureSource) -> dict[str, bytes | str]:
    return {picture.name: picture.load() for picture in source.pictures()}


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def test_folder_is_read_without_hidden_files_and_by_first_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b", "deep/.c.png", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "e.png").write_text("no picture")
    source = open_source(f"{tmp_path}/")
    assert contents(source) == {"a.png": png(), "deep/b": png()}
    assert source.expected() == 2  # by their names: a.png, e.png


def test_shards_have_every_picture_once_and_keep_theirs_when_others_are_added(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(png())
    source = open_source(str(tmp_path))
    before = [names(source, Shard(index, 3)) for index in range(3)]
    assert sorted(sum(before, [])) == names(source) and all(before)
    (tmp_path / "new.png").write_bytes(png())
    after = [names(source, Shard(index, 3)) for index in range(3)]
    assert all(set(old) <= set(new) for old, new in zip(before, after, strict=True))


def test_list_is_read_no_further_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = (f"{number}.png" for number in itertools.count())
    monkeypatch.setattr(LocalStore, "walk", lambda self: endless)
    monkeypatch.setattr(LocalStore, "holds_picture", lambda self, path: True)
    taken = itertools.islice(open_source(str(tmp_path)).pictures(), 3)
    assert [picture.name for picture in taken] == ["0.png", "1.png", "2.png"] and next(endless) == "3.png"


@pytest.mark.parametrize("word", ["3", "3/", "3/3", "-1/3", "a/b", "0/0", "1/2/3"])
def test_shard_of_another_form_is_refused(word: str) -> None:
    with pytest.raises(ValueError):
        Shard.parse(word)


def test_tar_files_are_read_by_a_pattern(tmp_path: Path) -> None:
    tar(tmp_path / "a-0.tar", {"x/1.png": png(1), "x/1.json": b"{}", "x/2.jpg": b"whatever it is"})
    tar(tmp_path / "a-1.tar", {"1.png": png(2)})
    tar(tmp_path / "b.tgz", {"1.png": png(3)})
    assert contents(open_source(f"{tmp_path}/a-*.tar")) == {
        "a-0.tar/x/1.png": png(1),
        "a-0.tar/x/2.jpg": b"whatever it is",
        "a-1.tar/1.png": png(2),
    }
    assert contents(open_source(f"{tmp_path}/b.tgz")) == {"b.tgz/1.png": png(3)}
    shards = [names(open_source(f"{tmp_path}/a-*.tar"), Shard(index, 5)) for index in range(5)]
    assert sorted(sum(shards, [])) == names(open_source(f"{tmp_path}/a-*.tar"))


def test_picture_that_is_left_out_is_not_read(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {f"{number}.png": png(number) for number in range(4)})
    taken = open_source(f"{tmp_path}/a.tar").pictures(skip=lambda name: name != "a.tar/2.png")
    assert [picture.name for picture in taken] == ["a.tar/2.png"]


def test_list_names_pictures_in_every_way(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").write_bytes(png(1))
    inline = "data:image/png;base64," + base64.b64encode(png(2)).decode()
    entries = [
        {"image": "deep/a.png"},
        {"image": f"file://{tmp_path}/deep/a.png", "file": "the same"},
        {"image": "https://example.com/b.jpg"},
        {"image": inline, "file": "inline", "answer": "of no use here"},
        {"image": "gone.png"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    pictures = {picture.name: picture for picture in open_source(f"{tmp_path}/list.jsonl").pictures()}
    with pytest.raises(FileNotFoundError):
        pictures.pop("gone.png").load()
    assert {name: picture.load() for name, picture in pictures.items()} == {
        "deep/a.png": png(1),
        "the same": png(1),
        "https://example.com/b.jpg": "https://example.com/b.jpg",
        "inline": png(2),
    }


@pytest.mark.parametrize(
    "line",
    [
        *("{}", "[]", "a.jpg", '{"image": 3}', '{"image": "data:image/png;base64,AAAA"}', '{"image": ""}'),
        *('{"image": "a.png", "file": "/"}', '{"image": "a.png", "file": "a\\u0000"}'),
    ],
)
def test_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.jsonl").write_text('{"image": "a.png"}\n' + line + "\n")
    with pytest.raises(Failure, match=r"list\.jsonl, line 2: "):
        names(open_source(f"{tmp_path}/list.jsonl"))


def test_line_is_read_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_LINE", 100)
    (tmp_path / "list.jsonl").write_text('{"image": "a.png"}\n{"image": "' + 200 * "a" + '"}\n')
    with pytest.raises(Failure, match=r"list\.jsonl, line 2: "):
        names(open_source(f"{tmp_path}/list.jsonl"))


@pytest.mark.parametrize("image", ["\ud800.png", "a\0.png", "pipe.png"])
def test_image_that_no_file_can_be_is_unreadable(tmp_path: Path, image: str) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": image, "file": "a.png"}))
    (named,) = open_source(f"{tmp_path}/list.jsonl").pictures()
    with pytest.raises(OSError):
        named.load()


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([{"comment": "x" * 2**21}], "headers are too large"),
        ([{"comment": "x" * 900} for _ in range(2000)], "headers are too large|recursion"),
        ([{"comment": "x" * 9} for _ in range(1000)], "recursion"),
    ],
)
def test_tar_file_with_large_headers_is_refused(headers: list[dict[str, str]], says: str, tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        for header in headers:
            file.write(tarfile.TarInfo.create_pax_global_header(header))
        file.write(tarfile.TarInfo("a.png").tobuf())
    with pytest.raises(Failure, match=says):
        names(open_source(f"{tmp_path}/a.tar"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_header_of_gigabytes_is_not_read(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.type, member.size = kind, 2**31
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(member.tobuf())
        file.truncate(2**31)
    tracemalloc.start()
    with pytest.raises(Failure, match="headers are too large"):
        names(open_source(f"{tmp_path}/a.tar"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**24


def test_tar_file_with_a_wrong_map_of_holes_is_named(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.pax_headers = {"GNU.sparse.map": "x"}
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.addfile(member)
    with pytest.raises(Failure, match=r"a\.tar is cut short or damaged"):
        names(open_source(f"{tmp_path}/a.tar"))


@pytest.mark.parametrize("name", [5, b"\xff"])
def test_parquet_without_texts_as_names_is_named(tmp_path: Path, name: object) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: make install-dev")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": [png()], "file": [name]}), tmp_path / "a.parquet")
    with pytest.raises(Failure, match=r"a\.parquet, row 0: the picture's name"):
        names(open_source(f"{tmp_path}/a.parquet"))


def test_parquet_whose_images_are_neither_bytes_nor_texts_is_unreadable(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: make install-dev")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": [[1, 2]]}), tmp_path / "a.parquet")
    (named,) = open_source(f"{tmp_path}/a.parquet").pictures()
    with pytest.raises(OSError, match="no picture here"):
        named.load()


def test_parquet_whose_texts_or_pages_are_damaged_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: make install-dev")
    parquet = pytest.importorskip("pyarrow.parquet")
    broken = pyarrow.array([b"\xff"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"image": [png()], "file": broken}), tmp_path / "text.parquet")
    parquet.write_table(pyarrow.table({"image": [png()]}), tmp_path / "page.parquet")
    whole = (tmp_path / "page.parquet").read_bytes()
    (tmp_path / "page.parquet").write_bytes(whole[:4] + bytes(40) + whole[44:])
    for file in ("text", "page"):
        with pytest.raises(Failure, match="cannot be read"):
            names(open_source(f"{tmp_path}/{file}.parquet"))


def test_parquet_has_bytes_or_addresses_of_pictures(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: make install-dev")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.png").write_bytes(png(9))
    write = parquet.write_table
    write(pyarrow.table({"image": [png(1), png(2), png(3)]}), tmp_path / "bytes.parquet", row_group_size=2)
    write(
        pyarrow.table({"image": [{"bytes": png(4), "path": "x"}, {"bytes": None, "path": "a.png"}]}),
        tmp_path / "hf.parquet",
    )
    write(pyarrow.table({"image": ["a.png"], "file": ["its name"]}), tmp_path / "named.parquet")
    write(pyarrow.table({"text": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "bytes.parquet").read_bytes()[:-9])
    by_number = {f"bytes.parquet/{number}": png(number + 1) for number in range(3)}
    assert contents(open_source(f"{tmp_path}/bytes.parquet")) == by_number
    assert contents(open_source(f"{tmp_path}/hf.parquet")) == {"hf.parquet/0": png(4), "hf.parquet/1": png(9)}
    assert contents(open_source(f"{tmp_path}/named.parquet")) == {"its name": png(9)}
    shards = [names(open_source(f"{tmp_path}/bytes.parquet"), Shard(index, 4)) for index in range(4)]
    assert sorted(sum(shards, [])) == sorted(by_number)
    for file, says in (("other", "has no column 'image'"), ("cut", "cannot be read"), ("gone", "No such file")):
        with pytest.raises(Failure, match=says):
            names(open_source(f"{tmp_path}/{file}.parquet"))


@pytest.mark.parametrize(
    ("name", "error"),
    [("gone", Misuse), ("none-*.tar", Misuse), ("gone.tar", Failure), ("text.tar", Failure), ("ftp://a/b", Misuse)],
)
def test_source_that_cannot_be_read_is_named(tmp_path: Path, name: str, error: type[Failure]) -> None:
    (tmp_path / "text.tar").write_text("no tar" * 200)
    address = name if "://" in name else f"{tmp_path}/{name}"
    with pytest.raises(error, match=name.replace("*", r"\*").replace(".", r"\.")):
        names(open_source(address))
