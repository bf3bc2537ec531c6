"""The files of a LoRA adapter that loads nothing, for simulated engines."""

import json
from pathlib import Path


def write_adapter(folder: Path, padding: int = 0) -> Path:
    """Write an adapter without matrices. padding: bytes of it that mean nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    header = json.dumps({"__metadata__": {"format": "pt", "padding": " " * padding}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder
