"""The recipes of k8s/README.md: what of them needs no cluster is run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import doctor
from k8s.checks import rendered
from k8s.checks.kuberay import kuberay
from serve import cli
from serve.api.keys import Keys, parse_entries

ROOT = Path(__file__).parents[2]
CRDS = Path(os.environ.get("CRDS", ROOT.parent / "shared" / "kuberay"))
README = (ROOT / "k8s" / "README.md").read_text()
SECTION = README.partition("\n## Upgrade, and back\n")[2].partition("\n## ")[0]
LINES = [line for block in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL) for line in block.splitlines()]
pytestmark = pytest.mark.skipif(not rendered.able(), reason="kubectl is not installed")


@pytest.mark.slow
def test_patch_for_adapters_gives_gateways_and_models_one_volume(tmp_path: Path) -> None:
    (patch,) = re.findall(r"^  ```yaml\n(  patches:\n.*?)^  ```", README, re.DOTALL | re.MULTILINE)
    folder = tmp_path / "k8s"
    shutil.copytree(rendered.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "overlays" / "gpu-node" / "kustomization.yaml"
    shared = file.read_text().replace("components/model-cache\n", "components/model-cache-shared\n")
    file.write_text(shared + textwrap.dedent(patch))
    (service,) = rendered.of_kind(rendered.rendered(file.parent), "RayService")
    claims = {
        name: {
            volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName")
            for volume in group["template"]["spec"]["volumes"]
        }
        for name, group in rendered.groups(service)
    }
    assert claims["gateways"]["cache"] == claims["models"]["cache"] == "diptych-models"


@pytest.mark.parametrize("readme", ["k8s/README.md", "deployments/README.md"])
def test_cards_that_a_readme_asks_for_are_those_that_doctor_accepts(readme: str) -> None:
    text = (ROOT / readme).read_text()
    assert re.findall(r"driver (?:of )?(\d+) or newer.*?compute capability ([\d.]+) or newer", text) == [
        (str(doctor.DRIVER), ".".join(map(str, doctor.CAPABILITY)))
    ]


def written(line: str) -> Any:
    """Run a line of a recipe up to where it needs a cluster. Return the object that it would apply."""
    command, _, rest = line.partition(" | ")
    assert rest == "kubectl apply -f -"
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (line, done.stderr)
    return yaml.safe_load(done.stdout)


def test_recipe_of_a_key_makes_the_secret_that_gateways_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["keys", "add", "alice", "--file", "keys"])
    for line in LINES:
        if line.startswith("diptych keys"):
            assert cli.main(shlex.split(line, comments=True)[1:]) == 0
    assert Keys(parse_entries(Path("keys").read_text())).names == ["alice-2"]
    (line,) = {line for line in LINES if " secret generic " in line}
    secret = written(line)
    service = (ROOT / "k8s" / "base" / "rayservice.yaml").read_text()
    assert list(secret["data"]) == ["keys"] and f"secretName: {secret['metadata']['name']} #" in service


def test_recipe_of_a_certificate_makes_the_secret_that_the_ingress_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a"]
        + ["-keyout", "tls.key", "-out", "tls.crt"],
        capture_output=True,
        check=True,
    )
    (line,) = [line for line in LINES if " secret tls " in line]
    secret = written(line)
    ingress = yaml.safe_load((ROOT / "k8s" / "components" / "ingress" / "ingress.yaml").read_text())
    assert secret["type"] == "kubernetes.io/tls"
    assert secret["metadata"]["name"] == ingress["spec"]["tls"][0]["secretName"]


def test_recipe_of_the_number_of_pods_changes_one_group_of_a_cluster() -> None:
    (patch,) = re.findall(r"patch raycluster \$NAME --type json -p '(.*?)'", SECTION, re.DOTALL)
    (service,) = rendered.of_kind(rendered.rendered(ROOT / "k8s" / "overlays" / "gpu-node"), "RayService")
    cluster = {"spec": service["spec"]["rayClusterConfig"]}
    changed = []
    for operation in json.loads(patch):
        *places, field = operation["path"].removeprefix("/").split("/")
        within: Any = cluster
        for place in places:
            within = within[int(place) if isinstance(within, list) else place]
        assert operation["op"] == "replace" and isinstance(within[field], int)
        within[field] = operation["value"]
        changed.append(within)
    assert all(group is changed[0] for group in changed) and not list(kuberay(service))
    assert (changed[0]["minReplicas"], changed[0]["replicas"], changed[0]["maxReplicas"]) == (2, 2, 2)


def test_recipe_of_a_change_has_no_wait_that_ends_at_once() -> None:
    assert LINES and not [line for line in LINES if "condition=Ready" in line]


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"{CRDS} is no folder of CRDs: CRDS names one")
def test_places_that_recipes_read_are_in_the_status_of_a_service() -> None:
    definition = yaml.safe_load((CRDS / "ray.io_rayservices.yaml").read_text())
    schema = next(each["schema"] for each in definition["spec"]["versions"] if each["name"] == "v1")["openAPIV3Schema"]
    places = re.findall(r"get rayservice diptych -o jsonpath='\{\.([\w.]+)\}'", README)
    assert places
    for place in places:
        within = schema
        for field in place.split("."):
            within = within["properties"][field]
