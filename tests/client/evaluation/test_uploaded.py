"""An uploaded zip file: what is unpacked, what is refused, and its evaluation against a server."""

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import listening, picture, served

from serve.client.evaluation import uploaded
from serve.client.evaluation.uploaded import UploadOrder, check_pictures, run_order, unpack
from serve.client.http_client import Failure

MB = 2**20


def packed(path: Path, files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change is not None:
                change(info)
            archive.writestr(info, data)
    return path


def unpacked(tmp_path: Path, files: dict[str, bytes], **more: Any) -> list[str]:
    change = more.pop("change", None)
    bounds = {"max_bytes": MB, "max_files": 100} | more
    unpack(packed(tmp_path / "a.zip", files, change), tmp_path / "to", **bounds)
    return sorted(str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*") if path.is_file())


def test_files_are_unpacked_without_an_outer_folder_and_without_litter(tmp_path: Path) -> None:
    files = {"set/a/b.png": b"1", "set/labels.jsonl": b"2", "__MACOSX/set/._b.png": b"3", "set/.DS_Store": b"4"}
    assert unpacked(tmp_path, files) == ["a/b.png", "labels.jsonl"]
    assert (tmp_path / "to" / "a" / "b.png").read_bytes() == b"1"


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "/tmp/out.png", "a\\..\\out.png", "C:/out.png", "a\nb.png", "x" * 201]
)
def test_path_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="not one inside a folder"):
        unpacked(tmp_path, {"a.png": b"", name: b""})
    assert not (tmp_path / "to").exists()


def test_archive_that_unpacks_to_too_much_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="Unpacked it has 2 MiB; at most 1"):
        unpacked(tmp_path, {"a.png": bytes(2 * MB)})
    with pytest.raises(Failure, match="holds 101 files; at most 100"):
        unpacked(tmp_path, {f"{at}.png": b"" for at in range(101)})
    assert not (tmp_path / "to").exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", [None, 1])
def test_archive_with_a_long_list_of_contents_is_refused_before_that_is_read(
    count: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "a.zip", {f"set/{at}.png": b"" for at in range(4000)})
    if count is not None:  # it gives another number
        data = path.read_bytes()
        path.write_bytes(data[:-14] + count.to_bytes(2, "little") * 2 + data[-10:])
    monkeypatch.delattr(zipfile, "ZipFile")
    with pytest.raises(Failure, match="4,000 files and folders; at most 300" if count is None else "list of contents"):
        unpack(path, tmp_path / "to", MB, 100)


def test_archive_that_lies_about_a_files_size_is_cut_there(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"a.png": bytes(2 * MB)})
    data = path.read_bytes()
    path.write_bytes(data.replace((2 * MB).to_bytes(4, "little"), (5).to_bytes(4, "little")))
    with pytest.raises(Failure, match="no zip file that can be read"):
        unpack(path, tmp_path / "to", MB, 100)
    assert sum(file.stat().st_size for file in (tmp_path / "to").iterdir()) <= 5


def test_link_and_unknown_packing_are_refused(tmp_path: Path) -> None:
    def link(info: zipfile.ZipInfo) -> None:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    def bzip(info: zipfile.ZipInfo) -> None:
        info.compress_type = zipfile.ZIP_BZIP2

    with pytest.raises(Failure, match="a link"):
        unpacked(tmp_path, {"a.png": b"/etc/passwd"}, change=link)
    with pytest.raises(Failure, match="otherwise than by deflate"):
        unpacked(tmp_path, {"a.png": b""}, change=bzip)


def test_file_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no zip file that can be read"):
        unpacked(tmp_path, {"a.png": b"", "": b""})


@pytest.mark.parametrize("data", [b"", b"no zip file", b"PK\x05\x06" + bytes(18)])
def test_file_that_is_no_archive_is_explained(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(Failure, match="no zip file that can be read|holds no files"):
        unpack(tmp_path / "a.zip", tmp_path / "to", MB, 100)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="two files of one name"):
        unpacked(tmp_path, {"a.png": b"", "A.png": b""})


def test_too_many_pictures_and_broken_ones_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    check_pictures(tmp_path, 2)
    with pytest.raises(Failure, match="2 pictures; at most 1"):
        check_pictures(tmp_path, 1)
    (tmp_path / "b.png").write_bytes(picture()[:20])
    with pytest.raises(Failure, match=r"b\.png"):
        check_pictures(tmp_path, 2)


def test_wrong_labels_are_named_by_file_and_line_without_the_servers_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = json.dumps({"image": "b.png", "question": "which colour?", "answer": "red"})
    archive = packed(tmp_path / "a.zip", {"set/a.png": picture(), "set/labels.jsonl": labels.encode()})
    with listening(served()) as url:
        order = UploadOrder(
            archive=archive, here=tmp_path / "here", name="set", task="all", n=None, models=None, server=url,
            host=None, api_key=None, keep=tmp_path / "runs", max_bytes=MB, max_pictures=10, max_s=60,
        )  # fmt: skip
        with pytest.raises(Failure, match=r"^set/labels\.jsonl, line 1: image: there is no b\.png in set") as failed:
            run_order(order, lambda **event: None)
    assert str(tmp_path) not in str(failed.value) and not archive.exists()


def test_name_of_a_drawn_set_and_unmeasured_task_are_refused(tmp_path: Path) -> None:
    order = UploadOrder(
        archive=tmp_path, here=tmp_path, name="toy", task="all", n=None, models=None, server="", host=None,
        api_key=None, keep=tmp_path, max_bytes=MB, max_pictures=10, max_s=60,
    )  # fmt: skip
    with pytest.raises(Failure, match="the name of a set that is drawn"):
        run_order(order, lambda **event: None)
    with pytest.raises(Failure, match="Nothing measures dance"):
        run_order(order.model_copy(update={"name": "a", "task": "dance"}), lambda **event: None)
    assert uploaded.CONCURRENCY < 8
