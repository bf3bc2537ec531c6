"""Many questions to one server: a bounded number under way, every answer a line the moment it is there."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
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
    """One question. line: what its line begins with, its name first. picture: reads or draws it; raises OSError."""

    line: Json
    task: str
    fields: Json
    picture: Callable[[], bytes]


class Tally:
    """What came back, for the bar and the last sentence."""

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
        """The models that did not always answer, and why."""
        said = []
        for model, column in self.columns.items():
            whys = ", ".join(f"{count} x {why}" for why, count in sorted(column.items()))
            said.append(f"{model} did not answer every time: {whys}.")
        return said


def ask_all(jobs: Sequence[Job], asker: Asker, out: Lines, *, done: int = 0) -> Tally:
    """Ask them all, with a progress bar on stderr; `done`: how many were answered by an earlier call.

    Lines come in the order of their answers. Raises Failure where it ends early; what was answered is kept.
    """
    tally = Tally()
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
        shown = bar.add_task("", total=len(jobs) + done, completed=done, rate="")

        def tell(line: Json) -> None:
            out.add(line)
            tally.add(line)
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            failed = f" [red]{tally.failed} failed[/red]" if tally.failed else ""
            rate = f"{speed:.1f}/s{failed}" if speed else failed
            bar.update(shown, advance=1, rate=rate, description=line["task"])

        asyncio.run(_ask_all(jobs, asker, tell))
    for sentence in tally.sentences():
        console.print(plain(sentence), soft_wrap=True)
    return tally


async def _ask_all(jobs: Iterable[Job], asker: Asker, tell: Callable[[Json], None]) -> None:
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            try:
                picture = await asyncio.to_thread(job.picture)
            except OSError as error:
                answer: Json = {"error": {"message": f"{error.strerror or error}.", "code": "unreadable"}}
            else:
                answer = await asker.ask(job.task, picture, job.fields)
            tell(job.line | answer)

    try:
        async with asker, asyncio.TaskGroup() as workers:
            for _ in range(asker.concurrency):
                workers.create_task(work())
    except* Failure as failures:
        raise _first(failures) from None


def _first(failures: BaseExceptionGroup[Failure]) -> Failure:
    one = failures.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one
