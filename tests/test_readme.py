"""Holds READMEs to the program: tables, examples, links, lists of files. Run as a program it writes the tables."""

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deployments.args import AdapterArgs, Args, GatewayArgs, GroupArgs, Listen, ModelArgs, ModelPlacement, Placement
from deployments.autoscaling import Scaling
from serve.api.request_log import RequestLogArgs
from serve.limits import KeyLimits, Limits, RateLimits
from serve.media.fetch.policy import Policy
from serve.models import MODELS
from serve.models.generic import NamedCheckpoint
from serve.models.own import Lora, Own, OwnCard, ReasoningSettings, Tuned
from serve.models.remote import RemoteModel, RemotePrice
from serve.rights import KeyRights
from serve.tasks import TASKS
from serve.tasks.base import Task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MODELS_README = "serve/models/README.md"
TASKS_README = "serve/tasks/README.md"
SETTINGS_README = "deployments/README.md"
TO_WRITE = "<to write>"
"""What `write_tables` puts where a person has to write: what a setting is, what a reply to a task strays by."""
FOLDERS = ["deployments", "k8s", "loadtest", "serve", "tests"]
PAGES = sorted(
    path.relative_to(ROOT)
    for pages in (ROOT.glob("*.md"), *((ROOT / folder).rglob("*.md") for folder in FOLDERS))
    for path in pages
)


BASES = {"native": "yes", "prompted": "prompted", "derived": "derived"}


def table() -> str:
    lines = [f"| model | {' | '.join(TASKS)} | shown | parameters | licence |", f"|---|{'---|' * (len(TASKS) + 3)}"]
    for model in MODELS.values():
        can = " | ".join(BASES[model.skills[task].basis] if task in model.skills else "" for task in TASKS)
        media = " or ".join(["image"] * model.images + ["video"] * model.videos)
        lines.append(
            f"| `{model.name}` | {can} | {media} | {model.card.parameters / 1e9:.3g}B | {model.card.licence} |"
        )
    return "\n".join(lines)


def test_models_readme_has_the_table_of_all_models() -> None:
    assert table() in (ROOT / MODELS_README).read_text(), f"Run make tables: {MODELS_README} lacks\n{table()}"


def methods(task: Task) -> str:
    """Return a task's merge methods as the table of tasks lists them."""
    return ", ".join(f"`{name}`" for name in (*task.methods, *(["judge"] if task.judging else [])))


def task_row(task: Task) -> str:
    return f"| {task.name} | {methods(task)} | {TO_WRITE} |"


def listed_methods(page: str) -> dict[str, str]:
    """Return the cell of merge methods of each task in the table of tasks."""
    rows = re.findall(r"^\| ([\w, ]+) \| (`.*?) \|", page, re.MULTILINE)
    return {name: cell for names, cell in rows for name in names.split(", ")}


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_tasks_readme_has_a_row_of_every_task(task: Task) -> None:
    listed = listed_methods((ROOT / TASKS_README).read_text())
    assert listed.get(task.name) == methods(task), f"Run make tables: {TASKS_README} lacks\n{task_row(task)}"


def test_root_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_link_leads_to_a_file_and_heading(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", (ROOT / page).read_text()):
        linked = page if not target else Path(os.path.relpath((ROOT / page).parent / target, ROOT))
        assert (ROOT / linked).exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def python_in(folder: Path) -> set[str]:
    """Return the names of Python files in a folder and of the folders in it that have some, `__init__.py` aside."""
    if folder == Path():
        return {f"{name}/" for name in FOLDERS}
    paths = [path.relative_to(ROOT / folder).parts for path in (ROOT / folder).rglob("*.py")]
    return {parts[0] + "/" * (len(parts) > 1) for parts in paths} - {"__init__.py"}


def trees(page: str) -> list[list[str]]:
    """Return the file trees of a page, line by line: unmarked blocks whose first line names a folder."""
    blocks = re.findall(r"^```\n(\S+/(?: .*)?\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in blocks]


def listed(lines: list[str]) -> dict[Path, set[str]]:
    """Return what a tree lists in each folder that it opens, by the folder's path from the root."""
    folder = Path()
    inside: dict[Path, set[str]] = {folder: set()}
    for line in lines:
        name = line.split()[0]
        if line.startswith(" "):
            inside[folder].add(name)
        else:
            folder = Path(name)
            inside[Path()].add(name)
            inside[folder] = set()
    if "serve/" not in inside[Path()] or len(inside[Path()]) == 1:  # a tree of some folders, not of the root
        del inside[Path()]
    return inside


def tables(page: str) -> list[set[str]]:
    """Return the names in the first columns of a page's tables of files."""
    blocks = re.findall(r"^\| file \|.*\n\|-.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [
        {name for row in rows.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])} for rows in blocks
    ]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_list_of_files_is_whole(page: Path) -> None:
    text = (ROOT / page).read_text()
    folders = [(page.parent, names) for names in tables(text)]
    for tree in trees(text):
        folders += [(folder, names) for folder, names in listed(tree).items() if names]
    for folder, names in folders:
        assert [name for name in sorted(names) if not (ROOT / folder / name).exists()] == [], f"{page} lists them"
        missing = python_in(folder) - names - {"__main__.py"}
        assert not missing, f"{page}: run make tables, or add {', '.join(sorted(missing))} to its list of files"


def defined(path: Path) -> set[str]:
    """Return the names of a file's functions, classes and methods."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if hasattr(part, "name")}
    return names


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_function_that_is_named_with_its_file_exists(page: Path) -> None:
    for path, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / page).read_text()):
        assert name in defined(ROOT / path), f"{page}: {path}:{name}"


SETTINGS: dict[str, list[type[BaseModel]]] = {
    "The whole": [Args],
    "Every process: models with an engine of their own, and `gateway`": [Placement],
    "A model with an engine of its own": [ModelPlacement],
    "A group": [GroupArgs],
    "A known model": [ModelArgs],
    "A model of your own": [Tuned],
    "A fine-tune": [Own],
    "A checkpoint by its name": [NamedCheckpoint],
    "A LoRA adapter": [Lora],
    "A remote model": [RemoteModel],
    "`price`": [RemotePrice],
    "`card`": [OwnCard],
    "`reasoning`": [ReasoningSettings],
    "`autoscaling`": [Scaling],
    "`gateway`": [GatewayArgs],
    "A key's entry: rights": [KeyRights],
    "`gateway`: limits that a key's entry may set for that key": [RateLimits, KeyLimits],
    "`gateway`: limits on all requests": [Limits],
    "`gateway.listen`": [Listen],
    "`gateway.request_log`": [RequestLogArgs],
    "`gateway.adapters`": [AdapterArgs],
    "`gateway.images`": [Policy],
}
"""The tables of deployments/README.md, "Every setting", and the classes whose own keys, not their bases', each has."""


def default(field: FieldInfo) -> str:
    """Return a setting's default as the table shows it."""
    if field.is_required():
        return "required"
    value = field.default
    if value is None or isinstance(value, BaseModel):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


def section(page: str, title: str) -> str:
    """Return the text below a heading of the third level, up to the next heading."""
    text = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert text is not None, f'{SETTINGS_README}, "Every setting", has no "### {title}"'
    return text[1]


def settings_rows(title: str, written: str) -> list[str]:
    """Return the rows of a table of settings. written: as it is, for descriptions that no field has."""
    by_hand = {key: row for row, key in re.findall(r"^(\| `(\w+)` \|.*)$", written, re.MULTILINE)}
    rows = []
    for schema in SETTINGS[title]:
        for name, field in schema.model_fields.items():
            if name in schema.__annotations__:
                key = field.alias or name
                start = f"| `{key}` | {default(field)}".rstrip() + " | "
                what = field.description or by_hand.get(key, "").removeprefix(start).removesuffix(" |")
                rows.append(f"{start}{what or TO_WRITE} |")
    return rows


@pytest.mark.parametrize("title", SETTINGS)
def test_table_of_settings_has_every_key_and_default(title: str) -> None:
    written = section((ROOT / SETTINGS_README).read_text(), title)
    rows = re.findall(r"^\| `\w+` \|.*$", written, re.MULTILINE)
    assert sorted(rows) == sorted(settings_rows(title, written)), f'{SETTINGS_README}, "### {title}": run make tables'


@pytest.mark.parametrize("page", [SETTINGS_README, TASKS_README])
def test_table_is_written_to_the_end(page: str) -> None:
    assert TO_WRITE not in (ROOT / page).read_text(), f"{page}: write what stands for {TO_WRITE}"


def write_tables() -> None:
    """Bring the tables of READMEs up to date: models, tasks, settings. Other text stays as it is."""
    page = (ROOT / SETTINGS_README).read_text()
    for title in SETTINGS:
        written = section(page, title)
        rows = "\n".join(settings_rows(title, written))
        page = page.replace(
            written,
            re.sub(r"(?:^\| `\w+` \|.*\n)+", lambda _, rows=rows: rows + "\n", written, count=1, flags=re.MULTILINE),
        )
    (ROOT / SETTINGS_README).write_text(page)
    page = (ROOT / MODELS_README).read_text()
    (ROOT / MODELS_README).write_text(
        re.sub(r"^\| model \| .*\n(?:\|.*\n)+", lambda _: table() + "\n", page, count=1, flags=re.MULTILINE)
    )
    page = (ROOT / TASKS_README).read_text()
    new = [task_row(task) for task in TASKS.values() if listed_methods(page).get(task.name) != methods(task)]
    page = re.sub(
        r"^\| task \| .*\n(?:\|.*\n)+",
        lambda rows: "\n".join([rows[0].rstrip(), *new, ""]),
        page,
        count=1,
        flags=re.MULTILINE,
    )
    files = ", ".join(dict.fromkeys(f"`{Path(inspect.getfile(task.request)).name}`" for task in TASKS.values()))
    page = re.sub(r"^\| .* \| the tasks \|$", f"| {files} | the tasks |", page, count=1, flags=re.MULTILINE)
    (ROOT / TASKS_README).write_text(page)


def example(language: str, begins: str) -> tuple[list[str], str]:
    """Return the README's command that begins with `begins`, and the block after it, which is its output."""
    match = re.search(rf"```sh\n({re.escape(begins)}.*)\n```\n```{language}\n(.*?)```", README, re.DOTALL)
    assert match is not None
    return shlex.split(match[1]), match[2]


def without_times(reply: Any) -> Any:
    """Return the reply without the fields that change from call to call or between CPUs."""
    if isinstance(reply, dict):
        changing = {"id", "latency_ms", "ttft_ms", "confidence"}
        return {name: without_times(value) for name, value in reply.items() if name not in changing}
    return [without_times(item) for item in reply] if isinstance(reply, list) else reply


@pytest.mark.ray
@pytest.mark.engine
def test_reply_in_readme_equals_the_output_of_curl(server: str) -> None:
    command, printed = example("json", "curl ")
    command[-1] = command[-1].replace("http://127.0.0.1:8000", server)
    ran = subprocess.run([command[0], "-sS", *command[1:]], cwd=ROOT, capture_output=True, check=True)
    assert without_times(json.loads(ran.stdout)) == without_times(json.loads(printed))


@pytest.mark.ray
@pytest.mark.engine
def test_table_in_readme_equals_the_output_of_ask(server: str, tmp_path: Path) -> None:
    command, printed = example("", ".venv/bin/diptych ask ")
    command[-1] = str(tmp_path / command[-1])
    environment = {**os.environ, "COLUMNS": "80", "DIPTYCH_URL": server}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)

    def plain_words(text: str) -> list[str]:
        return re.findall(r"[a-z_-]*[a-z]", text)

    assert plain_words(ran.stdout)[: len(plain_words(printed))] == plain_words(printed)


if __name__ == "__main__":
    write_tables()
