"""Finds what packages ship for the labelled sets. Nothing is fetched: an error names the command that fetches it."""

import importlib
import os
from pathlib import Path
from typing import Any

from serve.client.http_client import Failure

UNPACKED = "DIPTYCH_PACKAGES"
"""Environment variable: a folder into which Debian packages were unpacked (`dpkg -x`), where nobody may install."""
SYSTEM = Path("/")


def packaged_file(path: str, package: str) -> Path:
    """Return a file or folder of a Debian package; path is relative to /. Raises Failure where it is missing."""
    roots = [Path(os.environ[UNPACKED]), SYSTEM] if os.environ.get(UNPACKED) else [SYSTEM]
    for root in roots:
        if (root / path).exists():
            return root / path
    raise Failure(f"{roots[0] / path} is not there: apt-get install {package}.")


def packaged_module(name: str, package: str) -> Any:
    """Import a module of a Python package. Raises Failure where that fails."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Failure(f"{name} cannot be imported ({error}): pip install {package}.") from None
