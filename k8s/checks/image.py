"""Checks that a change of the code writes little of an image anew: packages are installed before any code is copied."""

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LIMIT_MB = 50
IGNORED = Path(__file__).parents[1] / "Dockerfile.dockerignore"
PACKAGES = {"deployments/install.py", "deployments/locks"}
"""All that the installation of packages reads."""


class Step(NamedTuple):
    """An instruction of a Dockerfile. stage: the name, or the number, of the stage that it is in."""

    stage: str
    name: str
    arguments: list[str]


def layers(file: Path, root: Path) -> Iterator[str]:
    """Yield what would make a change of the code install, or transfer, the packages again. root: of the build."""
    steps = list(_steps(file.read_text()))
    for stage in dict.fromkeys(step.stage for step in steps):
        own = [step for step in steps if step.stage == stage]
        if any(
            step.name == "RUN" and any(argument.endswith("install.py") for argument in step.arguments) for step in own
        ):
            for path in sorted(set(_sources(own)) - PACKAGES):
                yield f"{stage}: {path} is copied before packages are installed: a change of it installs them anew"
        first = next((at for at, step in enumerate(own) if _is_packages(step)), None)
        if first is not None:
            for path in _sources(own[:first]):
                yield f"{stage}: {path} is copied before the packages: a change of it writes their layer anew"
    if (written := rewritten_mb(file, root)) > LIMIT_MB:
        yield f"a change of the code writes {written:.0f} MB of an image anew, more than {LIMIT_MB}"


def rewritten_mb(file: Path, root: Path) -> float:
    """Return how much of the last image a change of the code writes anew: all that is copied after its packages."""
    steps = list(_steps(file.read_text()))
    first = max((at for at, step in enumerate(steps) if _is_packages(step)), default=0)
    return sum(size(root / path) for path in _sources(steps[first:])) / 1e6


def size(path: Path) -> int:
    """Return the bytes of a file or folder, as k8s/Dockerfile.dockerignore lets them into the build."""
    files = path.rglob("*") if path.is_dir() else [path]
    kept_out = [Path(line).name for line in IGNORED.read_text().splitlines() if "/" in line and line[0] not in "!#"]
    return sum(
        file.stat().st_size
        for file in files
        if file.is_file() and not any(fnmatch.fnmatch(part, name) for part in file.parts for name in kept_out)
    )


def _steps(text: str) -> Iterator[Step]:
    stage = ""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for number, line in enumerate(re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()):
        name, *arguments = line.split() or [""]
        if name == "FROM":
            stage = arguments[-1] if "AS" in arguments else str(number)
        if name:
            yield Step(stage, name, arguments)


def _sources(steps: list[Step]) -> Iterator[str]:
    """Yield what these steps copy out of the build's folder."""
    for step in steps:
        if step.name == "COPY" and not any(argument.startswith("--from") for argument in step.arguments):
            yield from (argument for argument in step.arguments[:-1] if not argument.startswith("--"))


def _is_packages(step: Step) -> bool:
    return step.name == "COPY" and any(re.match(r"--from=.*packages", argument) for argument in step.arguments)
