"""`diptych run` over an object store: every picture once, whoever is killed when."""

import importlib.util
import json
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_s3 import serving_s3
from served import until
from served_folder import album, lines, serving, started

from serve.client.storage import parts
from serve.client.storage.sources import Shard
from serve.engines.fake import FakeEngine

pytest.importorskip("s3fs", reason="s3fs is not installed: make install-dev")


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Path]:
    """Yield the folder that is served as s3://bucket; a page of its listing has three keys."""
    (tmp_path / "bucket").mkdir()
    with serving_s3(tmp_path, page_size=3):
        yield tmp_path / "bucket"


def recorded(folder: Path) -> list[str]:
    return sorted(line["file"] for part in folder.glob("part-*.jsonl") for line in lines(part))


def pictures(bucket: Path, count: int) -> list[str]:
    album(bucket / "photos", count)
    for path in (bucket / "photos").rglob("*"):
        if path.is_file() and not path.suffix:
            path.rename(path.with_suffix(".webp"))  # in an object store files count by their names
    return sorted(str(path.relative_to(bucket / "photos")) for path in (bucket / "photos").rglob("*.*"))


@pytest.mark.slow
def test_shards_of_a_bucket_have_every_picture_once(diptych: Any, server: str, bucket: Path) -> None:
    names = pictures(bucket, 10)
    (bucket / "photos" / "notes.txt").write_text("no picture")
    for index in range(3):
        out = ("--out", "s3://bucket/answers/", "--shard", f"{index}/3")
        ran = diptych("run", "s3://bucket/photos/", "--server", server, *out)
        assert (ran.status, ran.out) == (0, ""), ran.err
        manifest = json.loads((bucket / "answers" / f"manifest-{index:05d}-of-00003.json").read_text())
        assert manifest["answers"] == sum(map(Shard(index, 3).has, names)) and manifest["complete"]
    assert recorded(bucket / "answers") == names


@pytest.mark.slow
def test_second_call_over_a_bucket_asks_about_new_pictures_only(diptych: Any, bucket: Path) -> None:
    names, engine = pictures(bucket, 4), FakeEngine("red")
    with serving(engine) as url:
        arguments = ("run", "s3://bucket/photos", "--server", url, "--out", "s3://bucket/answers/")
        assert diptych(*arguments).status == 0
        (bucket / "photos" / "new.png").write_bytes((bucket / "photos" / names[-1]).read_bytes())
        (bucket / "photos" / "bad.png").write_bytes(b"no picture")
        ran = diptych(*arguments)
        assert ran.status == 1 and "1 of 6 pictures have no answer" in ran.err
        assert len(engine.prompts) == 5
        assert diptych(*arguments, "--may-fail", "20%").status == 0
    assert recorded(bucket / "answers") == sorted([*names, "new.png"])
    assert [line["file"] for line in lines(bucket / "answers" / "errors-00000-of-00001.jsonl")] == ["bad.png"]


@pytest.mark.slow
def test_list_in_a_bucket_names_pictures_of_another(diptych: Any, server: str, bucket: Path, tmp_path: Path) -> None:
    names = pictures(bucket, 3)
    (tmp_path / "lists").mkdir()
    entries = [{"image": f"s3://bucket/photos/{name}", "file": name} for name in [*names, names[0]]]
    (tmp_path / "lists" / "a.jsonl").write_text("\n".join(map(json.dumps, entries)))
    ran = diptych("run", "s3://lists/a.jsonl", "--server", server)
    assert ran.status == 0 and sorted(json.loads(line)["file"] for line in ran.out.splitlines()) == names


@pytest.mark.slow
def test_tar_files_of_a_bucket_become_tar_files_with_answers(diptych: Any, server: str, bucket: Path) -> None:
    names = pictures(bucket, 3)
    with tarfile.open(bucket / "a-0.tar", "w") as tar:
        for name in names:
            tar.add(bucket / "photos" / name, name)
    assert diptych("run", "s3://bucket/a-*.tar", "--server", server, "--out", "s3://bucket/out.tar").status == 0
    with tarfile.open(bucket / "out.tar" / "part-00000-of-00001-000000.tar") as tar:
        members = {member.name for member in tar}
    assert members == {f"a-0.tar/{path}" for name in names for path in (name, str(Path(name).with_suffix(".json")))}


@pytest.mark.slow
def test_writer_that_lost_its_shard_is_refused(
    diptych: Any, server: str, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(bucket, 2)
    begin = parts.Parts._begin

    def begin_twice(self: parts.Parts, shard: Shard) -> None:
        begin(self, shard)
        path = bucket / "answers" / "part-00000-of-00001-000000.jsonl"
        path.write_text('{"file": "another writer\'s"}\n')

    monkeypatch.setattr(parts.Parts, "_begin", begin_twice)
    ran = diptych("run", "s3://bucket/photos", "--server", server, "--out", "s3://bucket/answers/")
    assert ran.status == 1 and "another diptych writes shard 0/1; this one ends" in ran.err
    assert recorded(bucket / "answers") == ["another writer's"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "out", "says"),
    [
        ("s3://gone/photos", "s3://bucket/a/", "s3://gone/photos: there is nothing"),
        ("s3://bucket/empty", "s3://bucket/a/", "s3://bucket/empty holds no PNG, JPEG, WEBP or GIF picture"),
        ("s3://bucket/photos", "gs://bucket/a/", "gs://bucket/a/ needs gcsfs, which is not installed"),
        ("s3://bucket/photos", "ftp://bucket/a/", "there is no ftp:// here"),
    ],
)
def test_address_that_cannot_be_used_is_named(
    diptych: Any, server: str, bucket: Path, source: str, out: str, says: str
) -> None:
    pictures(bucket, 1)
    if "gcsfs" in says and importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    ran = diptych("run", source, "--server", server, "--out", out)
    assert ran.status in (1, 2) and says in ran.err and not (bucket / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--shard", "16/16"), "from 0/16 to 15/16"),
        (("--may-fail", "3"), "is not from 0% to 100%"),
        (("--format", "coco", "--task", "detect", "--labels", "cat"), "--format is for all pictures of a folder"),
    ],
)
def test_wrong_arguments_about_addresses_are_refused(diptych: Any, arguments: tuple[str, ...], says: str) -> None:
    ran = diptych("run", "s3://bucket/photos", "--out", "s3://bucket/a/", *arguments)
    assert ran.status == 2 and says in ran.err


@pytest.mark.slow
def test_sigterm_writes_the_part_that_is_not_full(bucket: Path) -> None:
    pictures(bucket, 60)
    engine = FakeEngine("red", delay_s=0.05, kept=1000)
    with serving(engine) as url:
        arguments = ("run", "s3://bucket/photos", "--server", url, "--out", "s3://bucket/answers/")
        process = started(*arguments, "--concurrency", 2)
        assert until(lambda: len(engine.prompts) >= 8, 30)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same call goes on from there" in stderr and "Traceback" not in stderr
    assert 6 <= len(recorded(bucket / "answers")) < 60
