"""Imports point one way, and only deployments/ knows Ray."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [  # a package's entry applies to its modules without an entry of their own
    {"accounting", "errors", "tracing", "media.video_caps", "media.lettering"},
    {"media"},
    {"media.fetch", "media.image", "limits", "rights"},
    {"media.video", "media.geometry", "media.masks"},
    {"media.decoding", "media.drawing"},
    {"engines", "transport"},
    {"engines.plugins"},
    {"engines.vllm"},
    {"tasks.request"},
    {"tasks.reply"},
    {"tasks.base", "tasks.answers", "tasks.json_reply"},
    {"tasks.boxes", "tasks.object_schema"},
    {"tasks.masks", "tasks.points", "tasks.scored_labels", "tasks.extracted", "tasks.ocr_result"},
    {"tasks.merging"},
    {"tasks"},
    {"models"},
    {"router"},
    {"worker", "arena"},
    {"api"},
    {"api.chat_completions"},
    {"api.model_responses"},
    {"api.app", "toy"},
    {"checking"},
    {"client"},
    {"cli"},
    {"client.evaluation.uploaded"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
FORBIDDEN = {"utils", "common", "helpers", "types", "http", "openai"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what stands in a module's blocks: imports are among it, and in no expression."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from statements(child)


@functools.cache
def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in statements(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def entry(dotted: str) -> str | None:
    """Return the entry of LAYERS that a module under serve belongs to: the longest name that it begins with."""
    parts = dotted.split(".")
    names = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)] if parts[0] == "serve" else []
    return next((name for name in names if name in HEIGHT), None)


def upward(path: Path) -> list[str]:
    """Return the imports of a file under serve/ that point to its own layer's other entries, or higher."""
    own = entry(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:
        return []
    others = {name: entry(name) for name in imports(path)}
    relative = path.relative_to(ROOT)
    return [
        f"{relative} imports {name}"
        for name, other in others.items()
        if other is not None and other != own and HEIGHT[other] >= HEIGHT[own]
    ]


def test_imports_of_serve_point_downwards() -> None:
    assert [line for path in modules("serve") for line in upward(path)] == []


def test_module_has_a_layer() -> None:
    tops = {path.relative_to(ROOT / "serve").parts[0].removesuffix(".py") for path in modules("serve")}
    assert tops - set(HEIGHT) - {"__init__", "__main__"} == set()


def test_serve_imports_neither_ray_nor_deployments() -> None:
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
def test_module_has_no_forbidden_name(package: str) -> None:
    for path in modules(package):
        assert not {part.removesuffix(".py") for part in path.relative_to(ROOT).parts} & FORBIDDEN


def test_planted_upward_import_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_gateway_imports_no_heavy_package(heavy: str) -> None:
    """Check the imports of the gateway, followed file by file."""
    seen = imported_from(ROOT / "serve" / "router" / "router.py", ROOT / "serve" / "api" / "app.py")
    assert [path for path, names in seen.items() if heavy in {name.split(".")[0] for name in names}] == []
    assert len(seen) > 10


@pytest.mark.parametrize("folder", ["deployments/routing", "deployments/server"])
def test_routing_and_http_server_import_no_ray(folder: str) -> None:
    seen = imported_from(*modules(folder))
    assert [path for path, names in seen.items() if "ray" in {name.split(".")[0] for name in names}] == []
    assert len(seen) > 10
