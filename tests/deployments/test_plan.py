"""A plan places models on GPUs by their files' headers, and refuses what does not fit with what would."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from checkpoint_files import decoder, write_checkpoint
from loopback_hub import serving_hub

from deployments import plan
from deployments.args import Args
from deployments.local.measured import measured
from deployments.plan import MemoryPlan, Need, _arranged, in_equal_parts, make_plan, read_needs, usable
from serve.engines.description import read
from serve.engines.vllm import memory
from serve.engines.vllm.footprint import CONTEXT

GB = 10**9
LLAVA = {"architectures": ["LlavaForConditionalGeneration"]}
CLIP = {"image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096}
SHAPES = {
    "2b": {"layers": 18, "hidden": 2048, "inner": 16384, "heads": 8, "kv_heads": 1, "width": 256, "vocabulary": 32064},
    "7b": {
        "layers": 32,
        "hidden": 4096,
        "inner": 11008,
        "heads": 32,
        "kv_heads": 32,
        "width": 128,
        "vocabulary": 32064,
    },
    "34b": {
        "layers": 60,
        "hidden": 7168,
        "inner": 20480,
        "heads": 56,
        "kv_heads": 8,
        "width": 128,
        "vocabulary": 64064,
    },
}


def checkpoint(folder: Path, size: str) -> Path:
    """Write a LLaVA of this size."""
    text = {"hidden_size": SHAPES[size]["hidden"], "max_position_embeddings": 4096, "model_type": "llama"}
    shapes = decoder("language_model.model.", **SHAPES[size])  # type: ignore[arg-type]
    shapes |= {f"vision_tower.layers.{n}.fc1.weight": (4096, 1024) for n in range(24)}
    return write_checkpoint(folder, {**LLAVA, "text_config": text, "vision_config": CLIP}, shapes)


def need(folder: Path, name: str, size: str = "7b", **more: Any) -> Need:
    chosen = {"max_model_len": 4096, **more.pop("chosen", {})}
    return Need(name, read(checkpoint(folder / name, size)), chosen, **more)


def where(planned: MemoryPlan) -> dict[str, tuple[int, ...]]:
    return {place.name: place.gpus for place in planned.places}


def test_models_get_a_gpu_each_where_there_are_enough(tmp_path: Path) -> None:
    planned = make_plan([need(tmp_path, "a"), need(tmp_path, "b", "2b")], [80 * GB, 80 * GB])
    assert sorted(where(planned).values()) == [(0,), (1,)] and planned.fits
    assert all(place.share == 1 and place.bytes == usable(80 * GB) for place in planned.places)


def test_models_share_a_gpu_so_that_each_holds_as_many_requests(tmp_path: Path) -> None:
    planned = make_plan([need(tmp_path, "a"), need(tmp_path, "b", "2b")], [80 * GB])
    assert planned.fits and sum(place.share for place in planned.places) <= 1
    assert sum(place.bytes for place in planned.places) <= usable(80 * GB)
    held = [(place.cache - place.held.cache(4096)) / place.held.request for place in planned.places]
    assert held[0] == pytest.approx(held[1], rel=0.02) and held[0] > 50


def test_model_that_does_not_fit_is_refused_with_the_ways_that_would(tmp_path: Path) -> None:
    planned = make_plan([need(tmp_path, "a"), need(tmp_path, "big", "34b")], [48 * GB, 48 * GB])
    assert where(planned) == {"a": (0,)} and list(planned.refused) == ["big"]
    sentence = planned.refused["big"]
    assert "a GPU of 48.0 GB has 44.2 for engines" in sentence
    assert "tensor_parallel_size: 2" in sentence and "num_gpus: 2" in sentence and "a GPU of 96 GB" in sentence
    parts = make_plan([need(tmp_path, "big", "34b", chosen={"tensor_parallel_size": 2})], [48 * GB, 48 * GB])
    assert where(parts) == {"big": (0, 1)} and parts.fits


def test_models_that_do_not_fit_together_are_refused_with_the_one_to_leave_out(tmp_path: Path) -> None:
    planned = make_plan([need(tmp_path, "a"), need(tmp_path, "b")], [24 * GB])
    assert len(planned.places) == 1 and list(planned.refused) == ["b"]
    assert "the others leave too little" in planned.refused["b"] and "without a" in planned.refused["b"]


def test_context_that_would_fit_is_named(tmp_path: Path) -> None:
    planned = make_plan([need(tmp_path, "long", chosen={"max_model_len": 65536})], [24 * GB])
    context = int(planned.refused["long"].partition("max_model_len: ")[2].partition("}")[0])
    assert 4096 <= context < 65536
    assert make_plan([need(tmp_path, "long", chosen={"max_model_len": context})], [24 * GB]).fits


def test_packing_finds_the_place_that_spreading_misses(tmp_path: Path) -> None:
    parts = (0.58, 0.4, 0.4, 0.29, 0.29)
    needs = [need(tmp_path, f"part-{number}", "2b", reserved=part) for number, part in enumerate(parts)]
    assert len(_arranged(needs, [80 * GB, 80 * GB], spread=True)[1]) == 1
    assert make_plan(needs, [80 * GB, 80 * GB]).fits


def test_parts_that_the_config_reserves_are_kept_and_checked(tmp_path: Path) -> None:
    halves = [need(tmp_path, "a", reserved=0.5), need(tmp_path, "b", reserved=0.5)]
    planned = make_plan(halves, [80 * GB])
    assert [(place.gpus, place.share) for place in planned.places] == [((0,), 0.5)] * 2
    small = make_plan([need(tmp_path, "a", reserved=0.25)], [48 * GB])
    assert "num_gpus 0.25 of a GPU of 48.0 GB has 11.0" in small.refused["a"]


def test_models_on_several_gpus_get_equal_parts_where_these_do(tmp_path: Path) -> None:
    needs = [need(tmp_path, name, "2b") for name in ("a", "b", "c")]
    assert [each.reserved for each in in_equal_parts(needs, [80 * GB, 80 * GB])] == [0.5] * 3
    assert in_equal_parts(needs, [80 * GB]) is needs and in_equal_parts(needs, [80 * GB] * 3) is needs
    assert in_equal_parts([*needs, need(tmp_path, "d", "34b")], [80 * GB, 80 * GB])[0].reserved is None


def test_replicas_are_placed_one_by_one(tmp_path: Path) -> None:
    planned = make_plan([need(tmp_path, "a", replicas=2, reserved=1)], [24 * GB, 24 * GB, 24 * GB])
    assert [place.gpus for place in planned.places] == [(0,), (1,)]


def test_too_large_a_model_for_main_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 16 * GB)
    planned = make_plan([need(tmp_path, "a")], [])
    assert "GB of main memory in float32" in planned.refused["a"] and "a GPU of 24 GB" in planned.refused["a"]


def nvidia_smi(folder: Path, *rows: str) -> str:
    """Write an nvidia-smi that lists these GPUs, and return the PATH that has it first."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\ncase \"$1\" in --query-gpu*) cat <<'END'\n" + "\n".join(rows) + "\nEND\n;; esac\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_command_prints_a_plan_for_folders_and_this_machines_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "model", "7b")
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", "0, NVIDIA L4, 23034, 22500, 580.95.05, 8.9"))
    assert plan.main(["--models", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 GPU of 24.2 GB: vLLM uses 92%") and "576 tokens a picture" in printed
    assert plan.main(["--models", f"{folder},{tmp_path / 'none'}", "--gpus", "1", "--memory", "80", "--json"]) == 1
    planned = json.loads(capsys.readouterr().out)
    assert planned["gpus"] == [80 * GB] and planned["places"][0]["held"]["picture"] == 576
    assert "There is no folder" in planned["unread"][str(tmp_path / "none")]


def test_command_asks_how_large_gpus_are_that_this_machine_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--models", "toy-llava", "--gpus", "64"]) == 1
    assert "say how large the 64 are" in capsys.readouterr().err
    assert plan.main(["--models", "toy-lava"]) == 1
    assert "There is no model" in capsys.readouterr().err


def test_simulated_engines_take_no_memory() -> None:
    args = Args.model_validate({"models": [{"name": "toy-llava", "simulate": {}}, "toy-paligemma"]})
    needs, unread = read_needs(args)
    assert [each.name for each in needs] == ["toy-paligemma"] and not unread


def test_checkpoint_on_the_hub_is_planned_by_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "model", "7b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving_hub({"org/seven": folder}) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert plan.main(["--models", "org/seven", "--gpus", "1", "--memory", "24", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    direct = make_plan([Need("org/seven", read(folder), {})], [24 * GB])
    assert planned["places"] == json.loads(json.dumps(direct.as_json()))["places"]
    fetched = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert fetched < 1_000_000


def test_checkpoint_on_an_unreachable_hub_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert plan.main(["--models", "llava-1.5-7b", "--gpus", "1", "--memory", "24"]) == 1
    assert "could not be planned: llava-hf/llava-1.5-7b-hf is not downloaded yet" in capsys.readouterr().out


def test_server_refuses_to_start_a_model_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deployments.local import start

    config = tmp_path / "config.yaml"
    entry = {"name": "llava-1.5-7b", "checkpoint": str(checkpoint(tmp_path / "model", "7b")), "num_gpus": 1}
    application = {"import_path": "deployments.app:build", "args": {"models": [entry]}}
    config.write_text(yaml.dump({"applications": [application]}))
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", "0, Small, 12000, 11900, 580.95.05, 8.9"))
    assert start.main(["--config", str(config), "--port", "1"]) == 1
    printed = capsys.readouterr().err
    assert "llava-1.5-7b does not fit: it needs" in printed and "It would fit" in printed
    assert f"diptych doctor --config {config} --port 1" in printed


@pytest.fixture
def replica() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with the title of a replica, and one that it has forked, each with 50 MB of its own."""
    own = "held = os.urandom(50_000_000)"
    program = f"import os, time\nif not os.fork(): {own}\nelse: {own}\nprint(flush=True)\ntime.sleep(60)"
    process = subprocess.Popen(
        ["ray::ServeReplica:pretended:pretended", "-c", program], executable=sys.executable, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    yield process
    for member in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
        member.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_measured_memory_is_that_of_a_replica_and_its_engine(replica: subprocess.Popen[bytes]) -> None:
    assert 100_000_000 < measured(["pretended", "absent"])["pretended"] < 250_000_000


@pytest.mark.slow
def test_measured_memory_on_a_gpu_is_the_drivers(
    replica: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho {replica.pid}, 2048\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measured(["pretended"]) == {"pretended": 2048 << 20}


@pytest.mark.slow
def test_group_needs_the_largest_of_its_models_that_are_awake_together(tmp_path: Path) -> None:
    """Six models of 7B on a GPU of 48 GB: two at a time fit, each beside the contexts of the four that sleep."""
    members = [need(tmp_path, name, reserved=0.5, group="card", awake=2) for name in "abcdef"]
    planned = make_plan(members, [48 * GB])
    assert planned.fits and set(where(planned).values()) == {(0,)}
    most = sum(sorted(place.bytes for place in planned.places)[-2:])
    assert most + 4 * CONTEXT == pytest.approx(usable(48 * GB), rel=1e-6)
    assert "a: GPU 0 (50%), 2 of group card awake at a time" in plan.plan_text(planned)
    alone = [need(tmp_path, name, reserved=0.5) for name in "abcdef"]
    assert not make_plan(alone, [48 * GB]).fits


def test_group_member_that_does_not_fit_is_refused_and_others_are_not(tmp_path: Path) -> None:
    members = [need(tmp_path, "a", "2b", reserved=0.5, group="card", awake=2)]
    members += [need(tmp_path, "b", "34b", reserved=0.5, group="card", awake=2)]
    planned = make_plan(members, [48 * GB])
    assert list(planned.refused) == ["b"] and list(where(planned)) == ["a"]


def test_group_on_a_processor_needs_memory_for_those_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(awake: int, free: float) -> bool:
        monkeypatch.setattr(memory, "available", lambda: int(free))
        members = [need(tmp_path, name, "2b", group="all", awake=awake) for name in "abc"]
        return make_plan(members, []).fits

    monkeypatch.setattr(memory, "available", lambda: 1000 * GB)
    size = make_plan([need(tmp_path, "a", "2b")], []).places[0].bytes
    assert fits(1, size + 2.2 * GB) and not fits(2, size + 2.2 * GB) and fits(2, 2 * size + 1.1 * GB)
