"""The names of a model's modules in older and newer releases of transformers.

The hub's checkpoints and vLLM 0.32 use `language_model.model.` and `vision_tower.vision_model.`. A fine-tune saved by
transformers 5 leaves out `vision_model.`, which vLLM does not understand: such a checkpoint cannot be loaded, and a
LoRA for such a module is silently ignored. `EXTENSION`, as vLLM's worker_extension_cls, adds the mapping.
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
    """Return whether a module's or tensor's name is one of transformers 5 that vLLM does not know."""
    return BARE.match(name) is not None


def older(name: str) -> str:
    """Return a module's name as vLLM and the hub's checkpoints have it."""
    for new, old in MOVED:
        if name.startswith(new):
            name = old + name.removeprefix(new)
    return BARE.sub(r"\1vision_model.", name)


def any_newer(folder: Path) -> bool:
    """Return whether a checkpoint holds names for which `newer` is true. Reads only its files' headers."""
    return any(map(newer, hub.all_tensors(folder)))
