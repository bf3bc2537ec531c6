"""Names and docstrings use the field's words: docstrings say what is done, names say what a thing is (CONTRIBUTING)."""

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("serve", "deployments", "k8s", "loadtest", "tests")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
PRONOUNS = {"said", "told", "one", "found", "asked", "made", "heard", "shown"}
"""No parameter, local, attribute or function is called so: the name would not say what it holds."""
NO_SUBJECT = {
    *PRONOUNS - {"one", "shown"},
    "it",
    "they",
    "them",
    "who",
    "whoever",
    "what",
    "somebody",
    "nobody",
    "anybody",
}
"""No test's name has one of these words: it gives subject, condition and outcome."""
NO_BEGINNING = set(
    "what whether of so around how why where when who whose which as same that it its is are has have one ones if and "
    "or but until while because since than then there here not".split()
)
"""No docstring begins with one of these words: it would have no subject or no verb."""
NO_VERB = NO_BEGINNING | set(
    "the this these those every all each some any only no none both either neither another other such their his her "
    "our my your they we you i for from to in on at by with without within after before between behind beside into "
    "onto over under up down out off about against also always never nothing nobody everything everybody whoever "
    "whatever two three four many more most less several".split()
)
"""Nor does a function's, which begins with a verb or with "A <noun>"."""
NAMING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Name, ast.Attribute, ast.arg)
"""Nodes that have a docstring or may give a name."""
SHARED = {"main": "runs a module as a program", "register": "the entry point that vLLM calls in a plugin"}
"""Public names that several modules define, and why."""


def docstrings(nodes: Sequence[ast.AST]) -> Iterator[tuple[ast.AST, int, str]]:
    """Yield each documented module, class and function with its line and its docstring."""
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and text.strip():
                yield node, getattr(node, "lineno", 1), text


def docstring_faults(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for node, line, text in docstrings(nodes):
        first = text.split()[0].strip(",.:;`\"'()").lower()
        forbidden = NO_VERB if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else NO_BEGINNING
        if first in forbidden:
            yield f"line {line}, a docstring begins with {first!r}: {text.strip().splitlines()[0]}"


def names(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    """Yield every name that a module gives, with its line."""
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def name_faults(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for line, name in names(nodes):
        parts = set(name.split("_")) if name.startswith("test_") else set()
        refused = parts & NO_SUBJECT or {name.strip("_").lower()} & PRONOUNS
        if refused:
            yield f"line {line}, {name}: name the subject in place of {', '.join(sorted(refused))}"


@functools.cache
def read(path: Path) -> tuple[list[str], list[str]]:
    """Return a file's faults and the public names that it defines. Its tree is not kept: the garbage collector would
    go through the trees of all files again and again, which took three quarters of the time."""
    tree = ast.parse(path.read_bytes())
    nodes = [node for node in ast.walk(tree) if isinstance(node, NAMING)]
    defined = [
        node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [*docstring_faults(nodes), *name_faults(nodes)], [name for name in defined if name[0] != "_"]


def test_docstrings_and_names_are_plain() -> None:
    faults = [f"{path.relative_to(ROOT)}, {fault}" for path in FILES for fault in read(path)[0]]
    assert not faults, "\n".join(["CONTRIBUTING, Style:", *faults])


def test_public_names_have_one_definition_each() -> None:
    where = defaultdict(list)
    for path in FILES:
        if path.is_relative_to(ROOT / "serve") or path.is_relative_to(ROOT / "deployments"):
            for name in read(path)[1]:
                where[name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in where.items() if len(paths) > 1 and name not in SHARED} == {}


@pytest.mark.parametrize(
    "source",
    [
        '"""What it does."""',
        'def read():\n    """The file."""',
        "found = 1",
        "shown = 1",
        "def f(one): ...",
        "def test_it_works(): ...",
    ],
)
def test_planted_faults_are_listed(source: str) -> None:
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, NAMING)]
    assert len([*docstring_faults(nodes), *name_faults(nodes)]) == 1
