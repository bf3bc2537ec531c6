"""The reader of text is served by default where it is installed, counted in plans, and never given a GPU."""

import importlib.util
import json
from typing import Any

import pytest

from deployments import config, doctor, plan
from deployments.config import READER, ConfigError, default_config, for_models, parse_config
from serve.engines.ocr.reader import PACKAGES


def parsed(*models: Any) -> config.Config:
    application = {"import_path": "deployments.app:build", "args": {"models": list(models)}}
    return parse_config(json.dumps({"applications": [application]}), "c.yaml")


@pytest.mark.parametrize("installed", [False, True])
def test_default_has_a_reader_that_is_installed(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr(config, "is_installed", lambda: installed)
    args = default_config().args
    assert list(args.engines()) == ["toy-llava", "toy-paligemma", *([READER] if installed else [])]
    assert list(args.models_by_name) == list(args.engines())


def test_reader_gets_no_gpu() -> None:
    args = for_models(["llava-1.5-7b", READER], gpus=0.5).args
    assert [(entry.name, entry.num_gpus) for entry in args.engines().values()] == [("llava-1.5-7b", 0.5), (READER, 0)]


def test_plan_counts_the_main_memory_of_a_reader() -> None:
    args = parsed("toy-llava", {"name": READER, "replicas": 2}).args
    beside = plan.readers(args)
    assert beside == {READER: 2 * plan.READER_BYTES}
    needs, unread = plan.read_needs(args)
    assert [need.name for need in needs] == ["toy-llava"] and not unread
    assert plan.brief_readers(beside) == [f"  {READER}: main memory, 2.00 GB (measured), and no GPU"]
    assert plan.make_plan(needs, [], beside=10**15).refused.keys() == {"toy-llava"}


def test_doctor_names_the_missing_packages_of_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    args = parsed(READER).args
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (finding,) = doctor._readers(args)
    assert (finding.state, finding.mend) == ("FAULT", "pip install 'diptych[ocr]'")
    assert all(package in finding.text for package in PACKAGES)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (finding,) = doctor._readers(args)
    assert finding.state == "ok" and "no GPU" in finding.text


@pytest.mark.parametrize(
    "entry",
    [{"name": "mine", "base": READER, "adapter": "/x"}, {"name": "mine", "like": READER, "checkpoint": "/x"}],
)
def test_reader_has_no_fine_tunes(entry: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"mine.*: (base|like): "):
        parsed(READER, entry)
