"""An account of a checkpoint's tensors: whether vLLM read each of them, and all of it.

vLLM 0.32 leaves out tensors without a word (GLM-4.1V's biases, where a configuration lacks a key) and reads only the
beginning of others (GLM-OCR's merger): the engine starts and answers wrongly. So each worker counts the elements that
are copied out of every tensor of the files while the weights are loaded (`weight_reads_vllm.py`), and here the count is
held against the sizes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EXTENSION = "serve.engines.plugins.weight_reads_vllm.CountedReads"
WITH_NEWER_NAMES = "serve.engines.plugins.weight_reads_newer_vllm.CountedReads"
"""The same, for LLaVA as transformers 5 saves it (module_names.py). A worker has one extension."""
METHOD = "count_of_reads"
"""The method of EXTENSION that returns a worker's account."""
UNUSED = (
    r"(^|\.)rotary_emb\.inv_freq$",
    r"(^|\.)position_ids$",
    r"(^|\.)masked_bias$",
    r"(^|\.)num_batches_tracked$",
    r"(^|\.)mtp\.",  # layers that guess several tokens ahead
    r"(^|\.)vision_(tower|model)\.(vision_model\.)?head\.",  # SigLIP's pooling, which no language model reads
    r"(^|\.)(audio_tower|audio_model|embed_audio|audio_projector)\.",
    r"(^|\.)(talker|token2wav)\.",
)
"""Names of tensors that no picture and no text needs."""
TIED = r"(^|\.)lm_head\.weight$"
"""The output layer, where it is the embedding."""
LISTED = 3


@dataclass(frozen=True)
class WeightAccount:
    """A loaded checkpoint. model_class: the class that vLLM chose. unread, cut: tensors of which nothing, or not all,
    was read."""

    model_class: str
    unread: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()

    @property
    def by_transformers(self) -> bool:
        """Return whether vLLM has no class of its own for it and runs transformers' code."""
        return self.model_class.startswith("Transformers")

    def fault(self) -> str | None:
        """Return in a sentence what was not read; None where everything was."""
        for names, what in ((self.unread, "does not read"), (self.cut, "reads only a part of")):
            if names:
                more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
                return (
                    f"vLLM's {self.model_class} {what} {', '.join(names[:LISTED])}{more} of the checkpoint, so its "
                    "replies would be wrong. Where you know that it is not needed, say so: `unused: [REGEX]`."
                )
        return None


def unused_layers(feature_layer: Any, layers: Any) -> list[str]:
    """Return patterns of the tensors of a vision tower behind the deepest layer whose features are taken.

    feature_layer: one or several of the `layers`, from 1, or from the end as -1; LLaVA takes the last but one. Anything
    else gives none.
    """
    chosen = feature_layer if isinstance(feature_layer, list | tuple) else [feature_layer]
    if not isinstance(layers, int) or not chosen or not all(isinstance(layer, int) for layer in chosen):
        return []
    needed = max(layer if layer >= 0 else layers + 1 + layer for layer in chosen)
    if needed >= layers:
        return []
    behind = "|".join(map(str, range(needed, layers)))
    tower = r"(^|\.)vision_(tower|model)\."
    return [rf"{tower}(\w+\.)*layers\.({behind})\.", rf"{tower}(\w+\.)*post_layernorm\."]


def guessing_layers(layers: Any, guessing: Any) -> list[str]:
    """Return a pattern of the layers behind a language model's own that guess several tokens ahead, as GLM numbers
    them."""
    if not isinstance(layers, int) or not isinstance(guessing, int) or guessing <= 0:
        return []
    behind = "|".join(map(str, range(layers, layers + guessing)))
    return [rf"^(?!.*vis)(\w+\.)*layers\.({behind})\."]


def account(reports: Sequence[Mapping[str, Any]], unused: Iterable[str] = ()) -> WeightAccount:
    """Return the account of all workers of an engine, which may each read a part.

    reports: what METHOD returned in each. unused: further regular expressions for tensors that are not needed.
    """
    sizes: dict[str, int] = {}
    reads: Counter[str] = Counter()
    for report in reports:
        for name, (size, read) in report["tensors"].items():
            sizes[name] = size
            reads[name] += read
    first = reports[0]
    known = [
        re.compile(pattern) for pattern in (*UNUSED, *unused, *first["unused"], *([TIED] if first["tied"] else []))
    ]
    needed = {name: size for name, size in sizes.items() if not any(pattern.search(name) for pattern in known)}
    return WeightAccount(
        str(first["model_class"]),
        tuple(name for name, size in needed.items() if size and not reads[name]),
        tuple(name for name, size in needed.items() if 0 < reads[name] < size),
    )
