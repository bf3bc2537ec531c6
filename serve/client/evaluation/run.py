"""`diptych run`: pictures through all models, one JSON line per picture; and labels for other tools."""

import argparse
import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from serve.client.asking import given, text_fields
from serve.client.evaluation import folder, lines
from serve.client.evaluation.asker import Asker, wait_ready
from serve.client.evaluation.batch import Job, Tally, ask_all
from serve.client.evaluation.export import check_export, export_labels
from serve.client.http_client import Failure, Misuse, Server
from serve.client.storage.names import NameSet
from serve.client.storage.parts import Parts, form_of
from serve.client.storage.sources import NamedPicture, PictureSource, open_source
from serve.client.storage.store import is_address

Json = dict[str, Any]
KEY = "file"


def run(options: argparse.Namespace) -> int:
    """Return 0 when every image has its answer, 1 when more lines hold an error than may. Raises Failure if it stops
    early.

    Labels of a record that has every image's answer are written without a server.
    """
    fields = request_fields(options)
    target = _export_target(options)
    source = open_source(options.source)
    require_pictures(source, options.source)
    names = [] if target is None else folder.pictures(options.folder)
    asker = None if target is not None and _answered(options.out, names) else _asker(options)
    out = open_answers(options, fields)
    expected = source.expected() if options.shard.count == 1 else None
    taken, done = Taken(out.done), len(out.done)
    jobs = (_job(picture, options.task, fields) for picture in source.pictures(options.shard, taken))
    tally = Tally()
    try:
        if asker is not None:
            total = None if expected is None else max(0, expected - done)
            with interrupted_by_sigterm():
                tally = ask_all(jobs, asker, out, total=total, done=done)
    except BaseException as error:
        out.close()
        if isinstance(error, Failure | KeyboardInterrupt):
            print(how_to_continue(options.out), file=sys.stderr)
        raise
    out.close(whole=True)
    if target is not None:
        lines_by_name = {line[KEY]: line for line in lines.read_lines(options.out, KEY)}
        export_labels([lines_by_name[name] for name in names], options, target)
    count = tally.answered + tally.failed + taken.earlier
    if tally.failed:
        again = " the same call asks about them again" if options.out else " see the lines with an error"
        Console(stderr=True).print(f"{tally.failed} of {count} pictures have no answer:{again}.", soft_wrap=True)
    return 1 if tally.failed > options.may_fail * count else 0


class Taken:
    """The names that have been taken. Called with a name: whether it was taken before, here or in an earlier call."""

    def __init__(self, names: NameSet) -> None:
        self._names = names
        self.earlier = 0

    def __call__(self, name: str) -> bool:
        new = self._names.add(name)
        self.earlier += not new
        return not new


def require_pictures(source: PictureSource, address: str) -> None:
    """Raise Misuse where a source has no picture at all, Failure where it cannot be read."""
    if next(source.pictures(), None) is None:
        raise Misuse(f"{address} holds no PNG, JPEG, WEBP or GIF picture.")


def open_answers(options: argparse.Namespace, fields: Json) -> lines.Lines:
    """Open where answers go: stdout, a file, or the parts of a folder. Raises Misuse or Failure."""
    if options.out is None:
        return lines.Kept(sys.stdout)
    if not in_parts(str(options.out)):
        path = Path(options.out)
        return lines.Record(path, KEY, functools.partial(_check_same, path, options.task, fields))
    return Parts(
        options.out, {"task": options.task, "asked": fields}, options.shard, form_of(options.out), options.part
    )


def in_parts(out: str) -> bool:
    """Return whether answers go into the parts of a folder: in an object store, and where the name says so."""
    return is_address(out) or out.endswith("/") or form_of(out) != "jsonl"


def _export_target(options: argparse.Namespace) -> Path | None:
    """Return the folder that labels are written to; None where no format is given. Raises Misuse."""
    if options.format is not None:
        if not Path(options.source).is_dir() or options.shard.count > 1:
            raise Misuse("--format is for all pictures of a folder on this machine.")
        if options.out is not None:
            if in_parts(options.out):
                raise Misuse("--format goes with --out FILE: labels are made from what it records.")
            options.out = Path(options.out)
        options.folder = Path(options.source)
    return check_export(options)


def _asker(options: argparse.Namespace) -> Asker:
    with Server(options.server, options.api_key) as server:
        wait_ready(server, options.patience_s)
        return Asker(server, concurrency=options.concurrency, patience_s=options.patience_s)


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """End by SIGTERM, which a pod gets, as by Ctrl-C: what was answered is still written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        # asyncio's handler cancels its main task; an exception raised wherever a task runs would be reported as lost
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(number, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def request_fields(options: argparse.Namespace) -> Json:
    """Return the request's fields, the same for every image. Raises Misuse where the task needs more."""

    def usage(field: str, words: str) -> str:
        return f"diptych run {options.source} --task {options.task} --{field} {words}"

    return given(options) | text_fields(options.task, options.asked, options.labels, usage, options.schema)


def _answered(out: Path, names: Sequence[str]) -> bool:
    """Return whether a record has the answer to every image."""
    if not out.exists():
        return False
    return {line[KEY] for line in lines.read_lines(out, KEY) if "error" not in line}.issuperset(names)


def _job(picture: NamedPicture, task: str, fields: Json) -> Job:
    return Job({KEY: picture.name, "task": task, "asked": fields}, task, fields, picture.load)


def _check_same(path: Path, task: str, fields: Json, line: Json) -> None:
    for name, was, now in (("task", line["task"], task), ("asked", line.get("asked"), fields)):
        if was != now:
            raise lines.differs(path, name, was, now)


def how_to_continue(out: Path | str | None) -> str:
    if out is None:
        return "Stopped. With --out FILE in place of > FILE the same call would go on from here."
    return f"Stopped. What was answered is in {out}: the same call goes on from there."
