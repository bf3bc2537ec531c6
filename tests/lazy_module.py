"""Modules that are imported when a test uses them: torch takes seconds, and each worker collects every test."""

import importlib
from typing import Any


class LazyModule:
    """A stand-in for the module `name`, which is imported with the first attribute that is read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or attribute == "_mock_name":
            raise AttributeError(attribute)  # pytest looks for these in every name of a test's module
        return getattr(importlib.import_module(self._name), attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute != "_name":
            raise TypeError(f'Only this stand-in would change: monkeypatch.setattr("{self._name}.{attribute}", ...)')
        super().__setattr__(attribute, value)
