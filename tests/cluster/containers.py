"""A pod's container of a real image, by runc, with its template's user, volumes, read-only files and memory limit.

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
    """The reason why there can be no such container or cluster here."""


@dataclass
class Image:
    """An image: its files, environment and working directory."""

    files: Path
    env: dict[str, str]
    folder: str


@contextmanager
def image(name: str) -> Iterator[Image]:
    """Mount an image that podman has. Raises Unable."""
    for program in ("podman", "runc"):
        if shutil.which(program) is None:
            raise Unable(f"containers of {name} need {program}")
    config = json.loads(run("podman", "image", "inspect", name))[0]["Config"]
    container = run(
        "podman", "create", name
    ).strip()  # with a layer of its own, in which runc makes the places to mount at
    try:
        files = Path(run("podman", "mount", container).strip())
        yield Image(files, dict(line.split("=", 1) for line in config["Env"]), config["WorkingDir"])
    finally:
        run("podman", "rm", "--force", container)


def command(
    image: Image, name: str, spec: Mapping[str, Any], line: list[str], env: Mapping[str, str], space: str, folder: Path
) -> list[str]:
    """Return the command that runs `line` in the first container of a pod's spec.

    folder: for its bundle and its Secrets' files.
    """
    container = spec["containers"][0]
    user, security = spec["securityContext"], container["securityContext"]
    config = {
        "ociVersion": "1.0.2",
        "hostname": name,
        "process": {
            "user": {"uid": user["runAsUser"], "gid": user["runAsGroup"]},
            "args": line,
            "cwd": image.folder,
            "env": [f"{key}={value}" for key, value in {**image.env, **env}.items()],
            "capabilities": {},  # capabilities.drop is ALL: `make k8s-check` holds it
            "noNewPrivileges": not security["allowPrivilegeEscalation"],
        },
        "root": {"path": str(image.files), "readonly": security["readOnlyRootFilesystem"]},
        "mounts": [*_system(), *_volumes(spec, container, folder)],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in NAMESPACES),
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
    """Delete what may be left of a container, also of a run that was killed."""
    if shutil.which("runc") is not None:
        subprocess.run(["runc", "delete", "--force", name], capture_output=True)


def _system() -> Iterator[dict[str, Any]]:
    yield {"destination": "/proc", "type": "proc", "source": "proc"}
    yield {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}
    yield _tmpfs("/dev/shm", "mode=1777", "size=64m")  # the default of a pod without a volume there
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


def run(*command: str) -> str:
    """Run a command and return its output. Raises Unable."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unable(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
