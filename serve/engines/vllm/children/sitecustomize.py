"""Runs at the start of every Python process that ours starts: puts the torchvision repair in place, lazily.

`serve` may not be importable this early, so the repair is loaded by its path. Python runs only the first
sitecustomize that it finds: the next one, if there is any, is run from here.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

here = Path(__file__).parent
spec = importlib.util.spec_from_file_location("diptych_torchvision", here.parent / "torchvision.py")
if spec is not None and spec.loader is not None:
    repair = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(repair)
    repair.repair()

others = [path for path in sys.path if Path(path) != here]
found = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
if found is not None and found.loader is not None:
    found.loader.exec_module(importlib.util.module_from_spec(found))
