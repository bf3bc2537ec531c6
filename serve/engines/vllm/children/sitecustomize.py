"""Install the torchvision repair at the start of every Python process that ours starts.

`serve` may not be importable this early, so the repair is loaded by its path. Python runs only the first
sitecustomize that it finds, so the next one, if there is any, is run from here.
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
next_spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
if next_spec is not None and next_spec.loader is not None:
    next_spec.loader.exec_module(importlib.util.module_from_spec(next_spec))
