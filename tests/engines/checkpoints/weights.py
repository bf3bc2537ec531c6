"""Random weights whose logits are not flat, under the names that the hub's files have.

They are drawn so that the logits are not flat (standard deviation about 3): with a plain 0.02 initialisation real
errors shrink a hundredfold and a parity test proves nothing. Everything is stored as bfloat16, as published.
"""

import json
import math
from pathlib import Path
from typing import Any

PARTS = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}


def draw(model: Any) -> None:
    """Draw fan-in scaled normals: logits have a standard deviation of about 3 and do not repeat the last token.

    Where the output layer is the embedding (Gemma), a token mostly predicts itself unless the layers outweigh the
    input: small embeddings, large layer outputs and a large last norm.
    """
    text = model.config.text_config
    kind = text.model_type
    for name, weight in model.named_parameters():
        gemma = kind.startswith("gemma") and "language_model" in name  # its norms scale by 1 + weight
        tied = text.tie_word_embeddings and "language_model" in name
        if name.endswith("image_newline"):
            weight.normal_(0, 1)  # stands among the embeddings
        elif weight.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") and not gemma else 0.0
            if tied and name.endswith("language_model.norm.weight"):
                centre += 8.0
            if kind == "gemma2" and gemma and ".post_" in name:
                centre = 3.0
            weight.normal_(centre, 0.1)
        elif "embed_tokens" in name:
            weight.normal_(0, 0.03 if tied else 1)
        elif "lm_head" in name:
            weight.normal_(0, 3 / math.sqrt(weight.shape[-1]))
        else:
            loud = 4 if tied and ("o_proj" in name or "down_proj" in name) else 1
            weight.normal_(0, loud / math.sqrt(weight[0].numel()))


def publish(folder: Path) -> None:
    """Convert files that transformers 5 has written to the hub's layout: `vision_model.` in names, a file per
    processor.

    vLLM needs the published names.
    """
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model.")
        if "vision_tower." in name and ".vision_model." not in name
        else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    publish_processors(folder)


def publish_processors(folder: Path) -> None:
    """Write a file for each processor, in place of the one that transformers 5 writes."""
    whole = json.loads((folder / "processor_config.json").read_text())
    for part, file in PARTS.items():
        if part in whole:
            (folder / file).write_text(json.dumps(whole.pop(part), indent=2))
    (folder / "processor_config.json").write_text(json.dumps(whole, indent=2))
