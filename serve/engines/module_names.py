"""What transformers calls the modules of a model, before and since it moved them about.

The hub's checkpoints and vLLM 0.32 say `language_model.model.` and `vision_tower.vision_model.`; a fine-tune saved by
transformers 5 leaves out `vision_model.`, of which vLLM makes nothing (it cannot be loaded, and a LoRA for such a
module would be left out without a word). `EXTENSION`, as vLLM's worker_extension_cls, teaches it that name.
"""

import re
from pathlib import Path

from serve.engines import hub

EXTENSION = "serve.engines.plugins.module_names_vllm.NewerNames"
MOVED = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
BARE = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")


def newer(name: str) -> bool:
    """Whether a module's or tensor's name is one that vLLM does not know by itself."""
    return BARE.match(name) is not None


def older(name: str) -> str:
    """A module's name as vLLM and the hub's checkpoints have it."""
    for moved, place in MOVED:
        if name.startswith(moved):
            name = place + name.removeprefix(moved)
    return BARE.sub(r"\1vision_model.", name)


def any_newer(folder: Path) -> bool:
    """Whether a checkpoint holds such names; reads its files' headers only."""
    return any(newer(name) for file in folder.glob("*.safetensors") for name in hub.shapes(file))
