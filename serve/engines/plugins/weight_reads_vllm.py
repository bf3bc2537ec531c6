"""The part of weight_reads.py that runs inside vLLM 0.32. Only vLLM imports this module, in a worker's process.

While the weights are loaded, a dispatch mode of torch's sees every operation. One that copies numbers out of a tensor
of the files, or out of one that was made of it, counts their elements.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from serve.engines.plugins.weight_reads import guessing_layers, unused_layers

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.clone.default)
"""Operations whose result holds the same numbers: what is read of it is read of the original."""


class Source:
    """A storage with numbers of a tensor of the files. size, read: elements; copies: storages made of it."""

    def __init__(self, size: int) -> None:
        self.size, self.read = size, 0
        self.copies: list[tuple[int, Source]] = []
        """The number of elements that each copy took, and the copy."""

    def elements_read(self) -> int:
        """Return how many elements were read, a copy's as far as it was read itself."""
        of_copies = sum(taken * copy.elements_read() // max(1, copy.size) for taken, copy in self.copies)
        return self.read + min(self.size, of_copies)


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A count of the elements that are read of each tensor of the files."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: dict[str, Source] = {}
        self._sources: dict[int, Source] = {}
        self._alive: list[StorageWeakRef] = []
        """Keep the addresses of the storages, by which they are known, from being used again."""

    def watch(self, name: str, tensor: torch.Tensor) -> None:
        """Count what is read of a tensor of the files."""
        self.tensors[name] = self._source(tensor)

    def _source(self, tensor: torch.Tensor) -> Source:
        storage = tensor.untyped_storage()
        self._alive.append(StorageWeakRef(storage))  # type: ignore[no-untyped-call]
        source = self._sources[storage._cdata] = Source(tensor.numel())
        return source

    def _find(self, value: Any) -> Source | None:
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            return None
        return self._sources.get(value.untyped_storage()._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is aten.copy_.default:
            if (source := self._find(args[1])) is not None:
                source.read += args[1].numel()
            return out
        known = [(value, source) for value in tree_leaves((args, kwargs or {})) if (source := self._find(value))]
        if not known:
            return out
        results = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
        if any(self._find(value) is not None for value in results):
            return out  # a view: nothing was read yet
        value, source = known[0]
        if func in COPIES and results and results[0].device.type != "meta":
            source.copies.append((value.numel(), self._source(results[0])))
        elif results:
            for value, source in known:
                source.read += value.numel()
        return out


READS: Reads | None = None
"""The count of the engine that was loaded last in this process."""
_load, _iterate = DefaultModelLoader.load_weights, DefaultModelLoader.get_all_weights


@functools.wraps(_load)
def _load_counted(self: Any, *args: Any, **keywords: Any) -> Any:
    global READS
    READS = Reads()
    with READS:
        return _load(self, *args, **keywords)


@functools.wraps(_iterate)
def _iterate_watched(self: Any, *args: Any, **keywords: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in _iterate(self, *args, **keywords):
        if READS is not None:
            READS.watch(name, tensor)
        yield name, tensor


DefaultModelLoader.load_weights = _load_counted
DefaultModelLoader.get_all_weights = _iterate_watched


class CountedReads:
    """A base class that vLLM adds to its worker."""

    def count_of_reads(self) -> dict[str, Any]:
        """Return the class of the model, and of each tensor of the files its size and what was read, in elements."""
        worker: Any = self
        config = worker.vllm_config.model_config.hf_config
        text = config.get_text_config()
        tensors = {} if READS is None else READS.tensors
        return {
            "model_class": type(worker.get_model()).__name__,
            "tied": bool(getattr(config, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False)),
            "unused": [*_unused_in_transformers(config), *_unused_layers(config)],
            "tensors": {name: (source.size, source.elements_read()) for name, source in tensors.items()},
        }


def _unused_layers(config: Any) -> list[str]:
    vision = getattr(config, "vision_config", None)
    text = config.get_text_config()
    return [
        *unused_layers(getattr(config, "vision_feature_layer", None), getattr(vision, "num_hidden_layers", None)),
        *guessing_layers(text.num_hidden_layers, getattr(text, "num_nextn_predict_layers", 0)),
    ]


def _unused_in_transformers(config: Any) -> list[str]:
    """Return the patterns of tensors that transformers' class leaves out of a checkpoint, by its own list."""
    import transformers

    classes = [getattr(transformers, name, None) for name in config.architectures or []]
    return [pattern for each in classes for pattern in getattr(each, "_keys_to_ignore_on_load_unexpected", None) or []]
