"""A pod's container of a real image, by runc, as its template wants it: its user, what it may write to, its memory.

runc is what container engines call; it needs no daemon and joins the network namespace that the pod has already. podman
has built the image and lends its files. Not applied: seccomp's default profile.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMESPACES = ("pid", "mount", "ipc", "uts")
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


class Unable(Exception):
    """Why there can be no such container here."""


@dataclass
class Image:
    """Its files, and what it sets in the environment."""

    files: Path
    env: dict[str, str]
    folder: str


@contextmanager
def image(name: str) -> Iterator[Image]:
    """One that podman has. Raises Unable."""
    for program in ("podman", "runc"):
        if shutil.which(program) is None:
            raise Unable(f"containers of {name} need {program}")
    config = json.loads(_podman("image", "inspect", name))[0]["Config"]
    lent = _podman("create", name).strip()  # with a layer of its own, in which runc makes the places to mount at
    try:
        files = Path(_podman("mount", lent).strip())
        yield Image(files, dict(one.split("=", 1) for one in config["Env"]), config["WorkingDir"])
    finally:
        _podman("rm", "--force", lent)


def command(
    of: Image, name: str, spec: Mapping[str, Any], line: list[str], env: Mapping[str, str], space: str, folder: Path
) -> list[str]:
    """What runs `line` as the first container of a pod's spec. Its bundle, and its Secrets' files, lie in `folder`."""
    container = spec["containers"][0]
    user, may = spec["securityContext"], container["securityContext"]
    config = {
        "ociVersion": "1.0.2",
        "hostname": name,
        "process": {
            "user": {"uid": user["runAsUser"], "gid": user["runAsGroup"]},
            "args": line,
            "cwd": of.folder,
            "env": [f"{key}={value}" for key, value in {**of.env, **env}.items()],
            "capabilities": {},  # may.capabilities.drop is ALL: `make k8s-check` holds it
            "noNewPrivileges": not may["allowPrivilegeEscalation"],
        },
        "root": {"path": str(of.files), "readonly": may["readOnlyRootFilesystem"]},
        "mounts": [*_system(), *_volumes(spec, container, folder)],
        "linux": {
            "namespaces": [
                *({"type": one} for one in NAMESPACES),
                {"type": "network", "path": f"/run/netns/{space}"},
            ],
            "resources": {"memory": {"limit": _bytes(container["resources"]["limits"]["memory"])}},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
        },
    }
    bundle = folder / f"bundle-{name}"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(config, indent=1))
    return ["runc", "run", "--bundle", str(bundle), space]


def remove(name: str) -> None:
    """What may be left of one, also of a run that was killed: without runc there was none."""
    if shutil.which("runc") is not None:
        subprocess.run(["runc", "delete", "--force", name], capture_output=True)


def _system() -> Iterator[dict[str, Any]]:
    yield {"destination": "/proc", "type": "proc", "source": "proc"}
    yield {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}
    yield _tmpfs("/dev/shm", "mode=1777", "size=64m")  # what a pod without a volume there has
    yield {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]}


def _volumes(spec: Mapping[str, Any], container: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in container["volumeMounts"]:
        volume = volumes[mount["name"]]
        if "secret" in volume:
            source = folder / volume["secret"]["secretName"]
            source.mkdir(exist_ok=True)
            options = ["bind", "ro"]
            yield {"destination": mount["mountPath"], "type": "bind", "source": str(source), "options": options}
        elif "emptyDir" in volume:
            limit = volume["emptyDir"].get("sizeLimit")
            yield _tmpfs(mount["mountPath"], "mode=777", *([f"size={_bytes(limit)}"] if limit else []))
        else:
            raise Unable(f"a volume of another kind than emptyDir and secret: {mount['name']}")


def _tmpfs(path: str, *options: str) -> dict[str, Any]:
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", *options]}


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def _podman(*words: str) -> str:
    done = subprocess.run(["podman", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise Unable(f"podman {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
