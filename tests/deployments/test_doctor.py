"""Planted faults are named by `diptych doctor`, each with what mends it."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint_files import write_checkpoint, write_tensors
from loopback_hub import COMMIT, serving_hub
from test_plan import checkpoint, nvidia_smi

from deployments import doctor
from serve.models import MODELS

TOY = Path(MODELS["toy-llava"].checkpoint.hub)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with a machine that has no hub, no token and nothing downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)


class Examined:
    """The output of doctor. status: its exit status."""

    def __init__(self, status: int, printed: str) -> None:
        self.status, self.printed = status, printed

    def finding(self, subject: str) -> tuple[str, str]:
        """Return a finding's state and its text, with what mends it."""
        lines = [line for line in self.printed.splitlines() if line[7:].startswith(f"{subject}: ")]
        assert len(lines) == 1, (subject, self.printed)
        return lines[0][:6].strip(), lines[0][7:]


@pytest.fixture
def examine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*entries: Any, port: int = 1) -> Examined:
        config = tmp_path / "config.yaml"
        application = {"import_path": "deployments.app:build", "args": {"models": list(entries)}}
        config.write_text(yaml.dump({"applications": [application]}))
        status = doctor.main(["--config", str(config), "--port", str(port)])
        return Examined(status, capsys.readouterr().out)

    return run


def test_machine_that_can_serve_the_toys_has_no_fault(examine: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    examined = examine("toy-llava", "toy-paligemma", port=port)
    assert examined.status == 0 and "FAULT" not in examined.printed
    assert examined.finding("hub") == (
        "ok",
        "hub: offline (HF_HUB_OFFLINE is set), which does not matter: every checkpoint is on this machine",
    )
    assert examined.finding("toy-llava, files")[0] == "ok"


def test_missing_compiler_is_named(examine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    examined = examine("toy-llava")
    state, text = examined.finding("compilers")
    assert (examined.status, state) == (1, "FAULT") and "C++ compiler" in text and "apt install g++" in text


def test_port_in_use_is_named(examine: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        state, text = examine("toy-llava", port=port).finding("port")
    assert state == "FAULT" and f"choose another: --port {port + 1}" in text


def test_gpu_that_is_too_small_is_named(examine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", "0, Small, 12000, 11900, 580.95.05, 8.9"))
    entry = {"name": "llava-1.5-7b", "checkpoint": str(checkpoint(tmp_path / "model", "7b")), "num_gpus": 1}
    examined = examine(entry)
    state, text = examined.finding("plan, llava-1.5-7b")
    assert (examined.status, state) == (1, "FAULT") and "a GPU of 12.6 GB has" in text and "a GPU of 24 GB" in text
    assert examined.finding("GPU 0")[0] == "ok"


@pytest.mark.parametrize(
    ("row", "subject", "words"),
    [
        ("0, Old, 81559, 81000, 550.54.15, 9.0", "driver", "CUDA 13 needs 580 or newer"),
        ("0, Turing, 81559, 81000, 580.95.05, 7.5", "GPU 0", "7.5 has no bfloat16"),
        ("0, Busy, 81559, 40000, 580.95.05, 9.0", "GPU 0", "less than the 92 % that vLLM takes"),
    ],
)
def test_gpu_that_cannot_be_used_is_named(
    examine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, subject: str, words: str
) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", row))
    entry = {"name": "llava-1.5-7b", "checkpoint": str(checkpoint(tmp_path / "model", "7b")), "num_gpus": 1}
    state, text = examine(entry).finding(subject)
    assert state == "FAULT" and words in text and " -> " in text


def test_missing_gpu_is_named(examine: Any, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    entry = {"name": "llava-1.5-7b", "checkpoint": str(checkpoint(tmp_path / "model", "7b")), "num_gpus": 1}
    state, text = examine(entry).finding("GPU")
    assert state == "FAULT" and "none is seen here" in text


def test_licence_that_is_not_accepted_is_named(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with serving_hub({"llava-hf/llava-1.5-7b-hf": TOY}, refused=["google/paligemma-3b-mix-448"]) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        examined = examine("llava-1.5-7b", "paligemma-3b-mix-448")
    assert examined.finding("hub")[0] == "ok" and examined.finding("token")[0] == "ok"
    assert examined.finding("llava-1.5-7b") == ("ok", "llava-1.5-7b: it can be downloaded")
    state, text = examined.finding("paligemma-3b-mix-448")
    assert (examined.status, state) == (1, "FAULT")
    assert "is gated -> accept its licence at https://huggingface.co/google/paligemma-3b-mix-448" in text


def test_hub_and_token_that_are_missing_are_named(examine: Any) -> None:
    examined = examine("paligemma-3b-mix-448")
    assert examined.finding("hub")[0] == examined.finding("token")[0] == "FAULT" and examined.status == 1
    assert "set HF_TOKEN" in examined.finding("token")[1]
    assert examined.finding("paligemma-3b-mix-448, files")[0] == "note"


def downloaded(cache: Path, name: str) -> Path:
    """Write the folder of a download as the hub's client keeps it, and return it."""
    source = MODELS[name].checkpoint
    top = cache / f"models--{source.hub.replace('/', '--')}"
    folder = top / "snapshots" / (source.revision or COMMIT)
    folder.mkdir(parents=True)
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text(source.revision or COMMIT)
    return checkpoint(folder, "2b")


def test_half_a_download_is_named(examine: Any, tmp_path: Path) -> None:
    folder = downloaded(tmp_path / "cache", "llava-1.5-7b")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    examined = examine("llava-1.5-7b")
    state, text = examined.finding("llava-1.5-7b, files")
    assert state == "note" and "half a download" in text and "lacks its file model-00002.safetensors" in text
    assert (examined.status, examined.finding("hub")[0]) == (1, "FAULT")  # the rest cannot come


def test_file_that_is_cut_short_is_named(examine: Any, tmp_path: Path) -> None:
    file = downloaded(tmp_path / "cache", "llava-1.5-7b") / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    state, text = examine("llava-1.5-7b").finding("llava-1.5-7b, files")
    assert state == "FAULT" and "cut short" in text and "delete that file" in text


def test_checkpoint_of_another_model_is_named(examine: Any, tmp_path: Path) -> None:
    entry = {"name": "paligemma-3b-mix-448", "checkpoint": str(checkpoint(tmp_path / "model", "2b"))}
    state, text = examine(entry).finding("paligemma-3b-mix-448, files")
    assert state == "FAULT" and "architectures should be PaliGemmaForConditionalGeneration" in text


def test_lora_of_another_model_is_named(examine: Any, tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    layer = "base_model.model.language_model.model.layers.0.self_attn.q_proj"
    write_tensors(
        folder / "adapter_model.safetensors", {f"{layer}.lora_A.weight": (4, 4096), f"{layer}.lora_B.weight": (4096, 4)}
    )
    examined = examine("toy-llava", {"name": "mine", "base": "toy-llava", "adapter": str(folder)})
    state, text = examined.finding("mine, LoRA")
    assert (examined.status, state) == (1, "FAULT") and "made for a layer of 4096 to 4096" in text
    assert examined.finding("mine, files")[0] == "ok"


def test_published_pair_lacks_memory_here_by_its_card(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.engines.vllm.memory.available", lambda: 16 * 10**9)
    state, text = examine("llava-1.5-7b").finding("plan, llava-1.5-7b")
    assert state == "FAULT" and "by its card 28.3 GB of weights in float32, and 16.0 GB" in text
    assert "1 GPU of 24 GB" in text


def test_named_checkpoint_that_would_be_served_wrongly_is_a_fault(examine: Any, tmp_path: Path) -> None:
    folder = tmp_path / "molmo"
    write_checkpoint(folder, {"model_type": "molmo2", "vision_config": {"patch_size": 14}}, {"w": (2,)})
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    examined = examine({"folder": str(folder)})
    state, text = examined.finding("molmo, files")
    assert (examined.status, state) == (1, "FAULT") and "its pictures attend both ways" in text
