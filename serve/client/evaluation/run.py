"""`diptych run`: a folder's images through all models, one JSON line per image."""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from serve.client.asking import given, text_fields
from serve.client.evaluation import folder, lines
from serve.client.evaluation.asker import Asker, wait_ready
from serve.client.evaluation.batch import Job, ask_all
from serve.client.http_client import Failure, Server

Json = dict[str, Any]
KEY = "file"


def run(options: argparse.Namespace) -> int:
    """Return 0 when every image has its answer, 1 when some lines hold an error. Raises Failure if it stops early."""
    fields = request_fields(options)
    here: Path = options.folder
    names = folder.pictures(here)
    console = Console(stderr=True)
    with Server(options.server, options.api_key) as server:
        wait_ready(server, options.patience_s)
        asker = Asker(server, concurrency=options.concurrency, patience_s=options.patience_s)
    out = lines.open_lines(options.out, KEY, functools.partial(_check_same, options.out, options.task, fields))
    try:
        jobs = [_job(here, name, options.task, fields) for name in names if name not in out.done]
        try:
            tally = ask_all(jobs, asker, out, done=len(names) - len(jobs))
        except (Failure, KeyboardInterrupt):
            print(_how_to_continue(options.out), file=sys.stderr)
            raise
    finally:
        out.close()
    if tally.failed:
        again = " the same call asks about them again" if options.out else " see the lines with an error"
        console.print(f"{tally.failed} of {len(names)} pictures have no answer:{again}.", soft_wrap=True)
    return 1 if tally.failed else 0


def request_fields(options: argparse.Namespace) -> Json:
    """Return the request's fields, the same for every image. Raises Misuse where the task needs more."""
    command = f"diptych run {options.folder} --task {options.task}"
    usage = {"labels": f"{command} --labels 'cat; dog'", "question": f"{command} --question 'what is this?'"}
    return given(options) | text_fields(options.task, options.asked, options.labels, usage)


def _job(here: Path, name: str, task: str, fields: Json) -> Job:
    return Job({KEY: name, "task": task, "asked": fields}, task, fields, lambda: folder.content(here / name))


def _check_same(path: Path, task: str, fields: Json, line: Json) -> None:
    for name, was, now in (("task", line["task"], task), ("asked", line.get("asked"), fields)):
        if was != now:
            raise lines.differs(path, name, was, now)


def _how_to_continue(out: Path | None) -> str:
    if out is None:
        return "Stopped. With --out FILE in place of > FILE the same call would go on from here."
    return f"Stopped. What was answered is in {out}: the same call goes on from there."
