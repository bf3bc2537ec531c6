"""Checks the Helm chart by Helm's own engine: it is linted, and gives what kustomize gives for each overlay."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from k8s.checks.rendered import Document

KUSTOMIZES = {("Namespace", "diptych"), ("ConfigMap", "diptych-serve-config")}
"""Helm makes the namespace by --create-namespace, and reads the Serve config from its file."""

INFO = 1
"""Helm's severity of a hint."""


def engine(folder: Path) -> Any:
    """Return helm-python-sdk's module from the folder that it was installed into."""
    sys.path.append(str(folder))
    try:
        return importlib.import_module("helm_python")
    finally:
        sys.path.remove(str(folder))


def linted(helm: Any, chart: Path) -> Iterator[str]:
    with _quiet():
        messages = helm.lint(str(chart))["messages"]
    for message in messages:
        if message["severity"] > INFO:
            yield f"{message['path']}: {message['error']}"


def profile(chart: Path, overlay: str) -> dict[str, Any]:
    """Return an overlay's values; the chart's own are cpu-demo's."""
    file = chart / "profiles" / f"{overlay}.yaml"
    return dict(yaml.safe_load(file.read_text())) if file.exists() else {}


def templated(helm: Any, chart: Path, values: dict[str, Any]) -> list[Document]:
    """Return the documents of a release. Raises helm's HelmError."""
    with _quiet(), helm.Chart.load(str(chart)) as loaded:
        files = loaded.render(values, name="diptych", namespace="diptych")
    texts = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def differences(helm: Any, chart: Path, overlay: str, documents: list[Document]) -> Iterator[str]:
    """Yield where the chart's objects differ from kustomize's, by their names and the place in them."""
    try:
        given = {_name(document): document for document in templated(helm, chart, profile(chart, overlay))}
    except helm.HelmError as error:
        yield " ".join(str(error).split())[:600]
        return
    wanted = {_name(document): document for document in documents if _name(document) not in KUSTOMIZES}
    for name in sorted(given.keys() ^ wanted.keys()):
        yield f"{' '.join(name)} is in {'the chart' if name in given else 'the overlay'} alone"
    for name in sorted(given.keys() & wanted.keys()):
        for place in _places(wanted[name], given[name]):
            yield f"{' '.join(name)}: {place}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the engine writes to stderr: a line for each of the chart's links to the overlays' files."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _name(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def _places(wanted: Any, given: Any, place: str = "") -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(given, dict):
        for key in sorted(wanted.keys() | given.keys()):
            yield from _places(wanted.get(key), given.get(key), f"{place}.{key}" if place else key)
    elif isinstance(wanted, list) and isinstance(given, list) and len(wanted) == len(given):
        for at, pair in enumerate(zip(wanted, given, strict=True)):
            yield from _places(*pair, f"{place}.{at}")
    elif wanted != given:
        yield f"{place}: {str(given)[:80]} in the chart, {str(wanted)[:80]} in the overlay"
