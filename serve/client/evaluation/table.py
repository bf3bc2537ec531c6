"""A task's scores as a table, and as JSON."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from serve.client.board import plain
from serve.client.evaluation.score import Gain, Interval, Report


def rendered(report: Report) -> Iterator[RenderableType]:
    """Yield the table, and below it the gain or loss of merging."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=_title(report), title_justify="left")
    table.add_column("", min_width=max(len(word) for row in report.rows for word in row.name.split()))
    table.add_column("n", justify="right")
    for measure, lower in report.measures.items():
        table.add_column(plain(f"{measure} {'↓' if lower else '↑'}"))
    if any(row.failed for row in report.rows):
        table.add_column("no answer", justify="right")
    for row in report.rows:
        cells = [_cell(row.measures[name], row.name in report.best(name)) for name in report.measures]
        failed = [str(row.failed)] if any(other.failed for other in report.rows) else []
        table.add_row(plain(row.name, "bold" if row.merged else ""), str(report.items), *cells, *failed)
    yield table
    for gain in report.gains:
        yield plain(f"  {_sentence(gain)}", "red" if gain.gain.value < -1e-9 else "")
    if report.left_out:
        yield plain(f"  {report.left_out} items left out: their request failed. The same call asks them again.", "red")
    yield Text("")


def kinds_table(reports: Mapping[str, Report]) -> Table:
    """Return a table of the first measure by kind of question. reports: by kind, of one task."""
    first = next(iter(reports.values()))
    measure = next(iter(first.measures))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=plain(f"{first.task}: {measure} by kind", "bold"))
    for name in ("kind", "n", *(row.name for row in first.rows)):
        table.add_column(plain(name), justify="left" if name == "kind" else "right")
    for kind, report in reports.items():
        cells = [plain(f"{row.measures[measure].value:.1f}", "bold" if row.merged else "") for row in report.rows]
        table.add_row(plain(kind), str(report.items), *cells)
    return table


def as_json(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report) | {"best": {name: report.best(name) for name in report.measures}}


def _title(report: Report) -> Text:
    same = report.items == report.pictures
    return plain(f"{report.task}: {report.items} items" + ("" if same else f" in {report.pictures} pictures"), "bold")


def _cell(value: Interval, best: bool) -> Text:
    cell = Text(f"{value.value:6.1f}", style="bold" if best else "")
    return cell.append(f" [{value.low:.1f}, {value.high:.1f}]{' *' if best else ''}", "dim")


def _sentence(gain: Gain) -> str:
    value = gain.gain
    word = "equal" if abs(value.value) <= 1e-9 else "better" if value.value > 0 else "WORSE"
    numbers = f"{_signed(value.value)} [{_signed(value.low)}, {_signed(value.high)}]"
    return f"{gain.measure}: {gain.row} - {gain.best} (best single) = {numbers} {word}"


def _signed(value: float) -> str:
    # Adding 0.0 turns -0.0 into +0.0.
    return f"{round(value, 1) + 0.0:+.1f}"
