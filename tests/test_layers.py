"""Imports point one way, and only deployments/ knows Ray."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {
        "deadline",
        "errors",
        "fetch",
        "image",
        "loop_lag",
        "reading",
        "request_id",
        "tracing",
        "video",
        "video_caps",
        "geometry",
        "masks",
        "media",
    },
    {"engines", "rpc"},
    {"tasks"},
    {"models"},
    {"router"},
    {"worker", "catalog"},
    {"wire"},
    {"chat_completions"},
    {"api", "pages", "toy"},
    {"cli", "terminal", "evaluation"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
WITHIN = {  # the lowest layer has an order of its own
    **{"errors": 0, "loop_lag": 0, "video_caps": 0, "request_id": 0, "tracing": 0, "deadline": 1, "media": 1},
    **{"fetch": 2, "image": 2, "video": 3, "geometry": 3, "masks": 3, "reading": 4},
}
FORBIDDEN = {"utils", "common", "helpers", "types", "http", "openai"}


def modules(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "serve" and len(parts) > 1 and parts[1] in HEIGHT else None


def upward(path: Path) -> list[str]:
    """The imports of a file under serve/ that point to a higher layer."""
    own = path.relative_to(ROOT / "serve").parts[0].removesuffix(".py")
    if own not in HEIGHT:
        return []
    found = []
    for name in imports(path):
        other = layer(name)
        if other is None or other == own:
            continue
        if HEIGHT[other] > HEIGHT[own] or (own in WITHIN and other in WITHIN and WITHIN[other] >= WITHIN[own]):
            found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


def test_imports_point_one_way() -> None:
    assert [line for path in modules("serve") for line in upward(path)] == []


def test_every_module_has_a_layer() -> None:
    tops = {path.relative_to(ROOT / "serve").parts[0].removesuffix(".py") for path in modules("serve")}
    assert tops - set(HEIGHT) - {"__init__", "__main__"} == set()


def test_only_deployments_imports_ray_and_nobody_below_imports_deployments() -> None:
    for path in modules("serve"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"ray", "deployments"}, path


def test_training_is_imported_by_training_alone() -> None:
    training = "serve.toy.training"
    for package in ("serve", "deployments", "loadtest", "k8s"):
        for path in modules(package):
            inside = path.is_relative_to(ROOT / "serve" / "toy" / "training")
            assert inside or not any(name.startswith(training) for name in imports(path)), path


@pytest.mark.parametrize("package", ["serve", "deployments"])
def test_no_module_has_a_name_that_says_nothing(package: str) -> None:
    for path in modules(package):
        assert not {part.removesuffix(".py") for part in path.relative_to(ROOT).parts} & FORBIDDEN


def test_a_planted_upward_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    planted = tmp_path / "serve" / "tasks" / "planted.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("import serve.router\n")
    assert upward(planted) == ["serve/tasks/planted.py imports serve.router"]


def imported_from(*paths: Path) -> dict[Path, set[str]]:
    """Return what these files import, and what the files of ours among that import, and so on."""
    seen: dict[Path, set[str]] = {}
    todo = list(paths)
    while todo:
        path = todo.pop()
        if path in seen or not path.exists():
            continue
        seen[path] = imports(path)
        for name in seen[path]:
            if name.split(".")[0] in ("serve", "deployments"):
                plain = ROOT / name.replace(".", "/")
                todo += [plain.with_suffix(".py"), plain / "__init__.py"]
    return seen


@pytest.mark.parametrize("heavy", ["torch", "vllm", "transformers", "ray", "av"])
def test_the_gateway_stays_light(heavy: str) -> None:
    """What the gateway imports, followed file by file, never reaches a heavy package."""
    seen = imported_from(ROOT / "serve" / "router" / "router.py", ROOT / "serve" / "api.py")
    assert [path for path, names in seen.items() if heavy in {name.split(".")[0] for name in names}] == []
    assert len(seen) > 10


@pytest.mark.parametrize("folder", ["deployments/routing", "deployments/server"])
def test_routing_and_http_server_import_no_ray(folder: str) -> None:
    seen = imported_from(*modules(folder))
    assert [path for path, names in seen.items() if "ray" in {name.split(".")[0] for name in names}] == []
    assert len(seen) > 10
