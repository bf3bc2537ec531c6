"""`diptych evaluate`: asks all able models about a labelled set, and scores each model and the merged replies."""

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from serve.client.board import plain
from serve.client.evaluation import annotations, emoji, lines, score, stamps, table, things, toys, varied, written
from serve.client.evaluation.abstention import abstention
from serve.client.evaluation.asker import Asker, wait_ready
from serve.client.evaluation.batch import Job, ask_all
from serve.client.evaluation.fitting import fit_task
from serve.client.evaluation.items import Item
from serve.client.evaluation.judged import judge_answers
from serve.client.evaluation.keep import keep_run
from serve.client.evaluation.measures import MEASURES
from serve.client.http_client import Failure, Misuse, Server
from serve.models.base import Price
from serve.tasks import TASKS

Json = dict[str, Any]
KEY = "item"
TOY_SCENES = 500
DRAWN: Mapping[str, tuple[Collection[str], Callable[[Collection[str], int, int], list[Item]]]] = {
    "toy": (toys.QUESTIONS, toys.everything),
    "varied": (varied.QUESTIONS, varied.all_varied_items),
    "emoji": (things.TASK_NAMES, emoji.EMOJI_SET.items),
    "stamps": (things.TASK_NAMES, stamps.STAMP_SET.items),
    "words": (written.READ, written.word_items),
    "captcha": (written.READ, written.captcha_items),
    "digits": (written.DIGIT_TASKS, written.digit_items),
}
"""Named sets: their tasks, and (tasks, items of each, seed) -> items."""


@dataclass(frozen=True)
class Listener:
    """Functions that `evaluate` calls. answered: (items with an answer, all items). kept: (the run's name)."""

    answered: Callable[[int, int], None] | None = None
    kept: Callable[[str], None] = lambda name: print(f"Kept as {name}.", file=sys.stderr)


def evaluate(options: argparse.Namespace, listener: Listener = Listener()) -> int:
    """Ask, score and print. Return 1 where --require-merged finds a merge worse than the best single model, else 0.

    Raises Failure where there is nothing to score.
    """
    if (options.target is None) == (options.recorded is None):
        raise Misuse(f"Evaluate what? diptych evaluate FOLDER, {', '.join(DRAWN)}, or --from FILE.")
    weights = options.weights or {}
    jobs: dict[str, Job] = {}
    if options.recorded is not None:
        if options.judged_by is not None:
            raise Misuse("--judged-by asks the server about pictures: not together with --from.")
        answers, again = _recorded(options.recorded, options.task), options.merge
    else:
        answers, jobs = _ask(options, listener)
        again = options.merge if weights or options.merge == score.ALL else None
        if options.judged_by is not None:
            _judge(options, answers, jobs, again)
    reports = score.reports(answers, again, weights)
    if not reports:
        raise Failure(f"There is no answer to {options.task} to score.")
    kinds = score.reports_by_kind(answers, again, weights) if options.by_kind else {}
    names = [report.task for report in reports]
    abstentions = {task: abstention(task, answers, again, weights) for task in names if options.by_agreement}
    fits = {
        task: fit_task(task, answers, options.seed, options.merge, weights) for task in names if options.fit_weights
    }
    if options.json:
        entries = [table.as_json(report) for report in reports]
        for entry in entries:
            task = entry["task"]
            if task in kinds:
                entry["kinds"] = {kind: table.as_json(part) for kind, part in kinds[task].items()}
            if task in abstentions:
                entry["by_agreement"] = dataclasses.asdict(abstentions[task])
            if task in fits:
                entry["fit"] = dataclasses.asdict(fits[task]) | {"recommended": fits[task].recommended}
        print(json.dumps(entries, indent=2))
    else:
        _show(reports)
        tables = [*map(table.kinds_table, kinds.values()), *map(table.agreement_table, abstentions.values())]
        for part in [*tables, *table.fits([*fits.values()])]:
            Console().print(part, soft_wrap=isinstance(part, Text))
    if options.keep is not None:
        listener.kept(_keep(options, reports, answers, jobs))
    return _floor(reports) if options.require_merged else 0


def _keep(
    options: argparse.Namespace, reports: Sequence[score.Report], answers: Sequence[Json], jobs: Mapping[str, Job]
) -> str:
    """Keep the run for the page /evaluations; return its name. A recorded one has neither prices nor pictures."""
    prices: dict[str, Price] = {}
    if options.recorded is None:
        with _server(options) as server:
            known = {entry["id"]: entry["diptych"].get("price") for entry in server.get("/v1/models")["data"]}
        prices = {name: Price(**price) for name, price in known.items() if price is not None}
    pictures = {name: job.picture for name, job in jobs.items()}
    return keep_run(options.keep, options.target or options.recorded.stem, reports, answers, prices, pictures)


def _show(reports: Sequence[score.Report]) -> None:
    console = Console()
    for report in reports:
        for part in table.rendered(report):
            console.print(part, soft_wrap=isinstance(part, Text))
    note = "All x 100; [95 % interval, bootstrap over pictures]; * best. The first measure of a task decides."
    console.print(plain(note, "dim"), soft_wrap=True)


def _floor(reports: Sequence[score.Report]) -> int:
    lost = [(report, gain) for report in reports for gain in report.lost()]
    for report, gain in lost:
        loss = f"{gain.row} is {-gain.gain.value:.2f} worse than {gain.best} in {gain.measure}"
        print(f"diptych: {report.task}: {loss}.", file=sys.stderr)
    return 1 if lost else 0


def _recorded(path: Path, task: str) -> list[Json]:
    recorded = [line for line in lines.read_lines(path, KEY) if task in ("all", line["task"])]
    for line in recorded:
        if not {"truth", "picture"} <= line.keys():
            raise Failure(f"{path}: {line[KEY]} says nothing of what is true: it was not written by diptych evaluate.")
    return recorded


def _server(options: argparse.Namespace) -> Server:
    """Return the connection. options.host: the name by which the server knows itself, where its address is another."""
    return Server(options.server, options.api_key, getattr(options, "host", None))


def _ask(options: argparse.Namespace, listener: Listener) -> tuple[list[Json], dict[str, Job]]:
    """Ask what has no recorded answer yet, and return the lines of all items, and each item's job."""
    with _server(options) as server:
        wait_ready(server, options.patience_s)
        able = _able(server, options.models)
        asker = Asker(server, concurrency=options.concurrency, patience_s=options.patience_s)
    items = _items(options, able)
    fixed = {"models": options.models} if options.models else {}
    if options.merge not in (None, score.ALL):
        fixed["merge"] = options.merge
    if options.judge is not None:
        fixed["judge"] = options.judge
    jobs: dict[str, Job] = {}
    for item in items:
        if item.name in jobs:
            raise Failure(f"{item.name} names two items, of which one would be lost: give each an id of its own.")
        jobs[item.name] = _job(item, fixed)

    def same(line: Json) -> None:
        job = jobs.get(line[KEY])
        for name in ("asked", "truth") if job is not None else ():
            if job is not None and line.get(name) != job.line[name]:
                raise lines.differs(options.out, f"{line[KEY]}, {name}", line.get(name), job.line[name])

    out = lines.Record(options.out, KEY, same) if options.out else lines.Kept()
    try:
        todo = [job for name, job in jobs.items() if name not in out.done]
        ask_all(todo, asker, out, total=len(todo), done=len(jobs) - len(todo), answered=listener.answered)
    except (Failure, KeyboardInterrupt):
        kept = (
            f"is in {options.out}: the same call goes on from there" if options.out else "is lost: --out FILE keeps it"
        )
        print(f"Stopped. What was answered {kept}.", file=sys.stderr)
        raise
    finally:
        out.close()
    answers = lines.read_lines(options.out, KEY) if options.out else out.lines if isinstance(out, lines.Kept) else []
    return [line for line in answers if line[KEY] in jobs], jobs


def _judge(options: argparse.Namespace, answers: Sequence[Json], jobs: Mapping[str, Job], again: str | None) -> None:
    """Let the judge say which answers are right, those that the replies are merged to again too."""
    others: dict[str, list[Json | None]] = {}
    for task in {line["task"]: None for line in answers}:
        of_task = [line for line in answers if line["task"] == task]
        for _, merged in score.merges(task, of_task, again, options.weights or {}):
            for line, reply in zip(of_task, merged, strict=True):
                others.setdefault(line[KEY], []).append((reply or {}).get("result"))
    with _server(options) as server:
        asker = Asker(server, concurrency=options.concurrency, patience_s=options.patience_s)
    judge_answers(answers, {name: job.picture for name, job in jobs.items()}, asker, options.judged_by, others)


def _items(options: argparse.Namespace, able: set[str]) -> list[Item]:
    """Return the items to ask: those of the wanted tasks that a served model can do."""
    console = Console(stderr=True)
    wanted = [task for task in TASKS if task in MEASURES] if options.task == "all" else [options.task]
    if options.target in DRAWN:
        tasks, draw = DRAWN[options.target]
        if options.annotations:
            raise Misuse(f"--annotations are for a folder; {options.target} knows what is in its pictures.")
        wanted = [task for task in wanted if task in tasks]
        if not wanted:
            raise Failure(f"{options.target} has no questions for {options.task}, only for {', '.join(tasks)}.")
        served = _served(wanted, able, options.task)
        items = draw(served, options.n or TOY_SCENES, options.seed)
    else:
        labelled = annotations.Labelled(Path(options.target), options.annotations)
        for note in labelled.notes:
            console.print(plain(note), soft_wrap=True)
        known = {item.task for item in labelled.items}
        if labelled.of(options.task):
            known.add(options.task)
        if options.task != "all" and options.task not in known:
            raise Failure(f"{options.target} has no labels for {options.task}, only for {', '.join(sorted(known))}.")
        served = _served([task for task in wanted if task in known], able, options.task)
        items = [item for task in served for item in _drawn(labelled.of(task), task, options)]
    for task in wanted:
        if options.target in DRAWN and task not in served:
            console.print(plain(f"No served model can do {task}: left out."), soft_wrap=True)
    return items


def _served(wanted: Sequence[str], able: set[str], option: str) -> list[str]:
    served = [task for task in wanted if task in able]
    if not served:
        raise Failure(f"No served model can do {option if option != 'all' else ' or '.join(wanted)}.")
    return served


def _drawn(items: Sequence[Item], task: str, options: argparse.Namespace) -> list[Item]:
    """Return a task's items, in order; with --n so many of them, drawn at random."""
    if options.n is None or options.n >= len(items):
        return list(items)
    chosen = random.Random(f"draw {task} {options.seed}").sample(range(len(items)), options.n)
    return [items[at] for at in sorted(chosen)]


def _able(server: Server, names: Sequence[str] | None) -> set[str]:
    """Return the tasks that all of these models can do; those that any served model can do where none is named."""
    entries = [entry for entry in server.get("/v1/models")["data"] if entry["diptych"]["kind"] == "model"]
    skills = {entry["id"]: set(entry["diptych"]["tasks"]) for entry in entries}
    missing = [name for name in names or () if name not in skills]
    if missing:
        raise Failure(f"models: {', '.join(missing)} is not served here. Served: {', '.join(skills)}.")
    return set.intersection(*(skills[name] for name in names)) if names else set().union(*skills.values())


def _job(item: Item, fixed: Json) -> Job:
    fields = item.fields | fixed
    line = {KEY: item.name, "task": item.task, "picture": item.picture, "asked": fields, "truth": item.truth}
    return Job(json.loads(json.dumps(line)), item.task, fields, item.load)  # as it will be read: a tuple is a list
