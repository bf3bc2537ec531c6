"""The drill of `make bench-store`, small, on an object store of the tests' own."""

from pathlib import Path

import PIL.Image
import pytest
from loopback_s3 import serving_s3
from served import listening, served

from loadtest.store import drill
from serve.client.storage.sources import Shard
from serve.engines.fake import FakeEngine


@pytest.mark.slow
def test_shard_that_is_killed_at_random_times_has_every_picture_once(tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed: make install-dev")
    for bucket in ("photos", "answers"):
        (tmp_path / bucket).mkdir()
    for number in range(80):
        PIL.Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    engine = FakeEngine("red", delay_s=0.05, kept=1000)
    with serving_s3(tmp_path, page_size=7), listening(served(engine)) as url:
        source, out = "s3://photos", "s3://answers/run/"
        drilled = drill(source, out, url, Shard(0, 2), 2, lambda: len(engine.prompts), {}, part=4)
    assert [call.killed for call in drilled.calls] == [True, True, False]
    assert 20 < drilled.expected == drilled.answers and not drilled.repeated and not drilled.missing
    assert drilled.expected <= drilled.requests
