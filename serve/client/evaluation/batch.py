"""Many requests to a server, a bounded number at once; each answer is written as a line when it arrives."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serve.client.board import plain
from serve.client.evaluation.asker import Asker
from serve.client.evaluation.lines import Lines
from serve.client.http_client import Failure

Json = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A request. line: the first fields of its line, its name first. picture: returns the image, or a URL that the
    server fetches; raises OSError."""

    line: Json
    task: str
    fields: Json
    picture: Callable[[], bytes | str]


class Tally:
    """A count of the answers and errors, for the progress bar and the summary."""

    def __init__(self) -> None:
        self.answered = self.failed = 0
        self.columns: dict[str, dict[str, int]] = {}

    def add(self, line: Json) -> None:
        if "error" in line:
            self.failed += 1
            return
        self.answered += 1
        for reply in line["replies"]:
            if reply["status"] != "ok":
                column = self.columns.setdefault(reply["model"], {})
                why = (reply.get("error") or {}).get("code") or reply["status"]
                column[why] = column.get(why, 0) + 1

    def sentences(self) -> list[str]:
        """Return a sentence for each model that failed at times, with its error codes."""
        sentences = []
        for model, column in self.columns.items():
            whys = ", ".join(f"{count} x {why}" for why, count in sorted(column.items()))
            sentences.append(f"{model} did not answer every time: {whys}.")
        return sentences


def ask_all(
    jobs: Iterable[Job],
    asker: Asker,
    out: Lines,
    *,
    total: int | None = None,
    done: int = 0,
    answered: Callable[[int, int], None] | None = None,
) -> Tally:
    """Send all requests, with a progress bar on stderr. Jobs are taken when they are sent, and in a thread.

    total: their number, where it is known. done: the number that an earlier call has answered. answered: called with
    the number of answers so far, and of all, at the beginning and after each. Lines come in the order of the answers.
    Raises Failure where the run ends early; lines written so far are kept.
    """
    tally, report = Tally(), answered or _nothing
    report(done, done + (total or 0))
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        bar_id = bar.add_task("", total=None if total is None else total + done, completed=done, rate="")

        def write(line: Json, picture: bytes | str | None) -> None:
            out.add(line, picture)
            tally.add(line)
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            failed = f" [red]{tally.failed} failed[/red]" if tally.failed else ""
            rate = f"{speed:.1f}/s{failed}" if speed else failed
            bar.update(bar_id, advance=1, rate=rate, description=line["task"])
            report(done + tally.answered + tally.failed, done + (total or 0))

        asyncio.run(_ask_all(jobs, asker, write))
    for sentence in tally.sentences():
        console.print(plain(sentence), soft_wrap=True)
    return tally


def _nothing(done: int, total: int) -> None:
    pass


async def _ask_all(jobs: Iterable[Job], asker: Asker, write: Callable[[Json, bytes | str | None], None]) -> None:
    waiting, taking, writing = iter(jobs), asyncio.Lock(), asyncio.Lock()

    async def work() -> None:
        while True:
            async with taking:
                job = await asyncio.to_thread(next, waiting, None)
            if job is None:
                return
            picture: bytes | str | None = None
            try:
                picture = await asyncio.to_thread(job.picture)
            except OSError as error:
                answer: Json = {"error": {"message": f"{error.strerror or error}.", "code": "unreadable"}}
            else:
                answer = await asker.ask(job.task, picture, job.fields)
            async with writing:  # a disk or an object store may take its time
                await asyncio.to_thread(write, job.line | answer, picture)

    try:
        async with asker, asyncio.TaskGroup() as workers:
            for _ in range(asker.concurrency):
                workers.create_task(work())
    except* Failure as failures:
        raise _first(failures) from None


def _first(failures: BaseExceptionGroup[Failure]) -> Failure:
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
