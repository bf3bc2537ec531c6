"""A task's scores as a table, and as JSON."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from serve.client.board import plain
from serve.client.evaluation.abstention import Abstention
from serve.client.evaluation.fitting import FittedWeights
from serve.client.evaluation.score import Gain, Interval, Report


def rendered(report: Report) -> Iterator[RenderableType]:
    """Yield the table, and below it the gain or loss of merging."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=_title(report), title_justify="left")
    table.add_column("", min_width=max(len(word) for row in report.rows for word in row.name.split()))
    table.add_column("n", justify="right")
    for measure, lower in report.measures.items():
        table.add_column(plain(_directed(measure, lower)))
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


def agreement_table(abstention: Abstention) -> Table:
    """Return a table of what is answered where some agreement is asked for (`min_agreement`)."""
    measure = _directed(abstention.measure, abstention.lower_is_better)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=plain(f"{abstention.task}: by agreement", "bold"))
    for name in ("at least", "answered", "of all", f"{measure} of what is answered"):
        table.add_column(plain(name))
    for row in abstention.thresholds:
        value = Text("-") if row.measured is None else _cell(row.measured, False)
        table.add_row(f"{row.min_agreement:g}", str(row.answered), _cell(row.coverage, False), value)
    return table


def fits(fits: Sequence[FittedWeights]) -> Iterator[RenderableType]:
    """Yield for each task the scores by equal, today's and fitted weights, and each model's calibration, on the half of
    the pictures that nothing was fitted to; then what to write into the config."""
    for fit in fits:
        title = f"{fit.task}: by weights, merged by {fit.method}"
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=plain(title, "bold"), title_justify="left")
        for name in ("", "n", _directed(fit.measure, fit.lower_is_better)):
            table.add_column(plain(name))
        for name, value in fit.rows.items():
            table.add_row(name, str(fit.items), _cell(value, False))
        yield table
        for name, gain in fit.gains.items():
            yield plain(f"  fitted - {name} = {_numbers(gain)}")
        weights = ", ".join(f"{model} {weight:g}" for model, weight in fit.weights.items())
        yield plain(f"  Fitted to {fit.fitted_to} items of other pictures (seed {fit.seed}): {weights}.")
        if not fit.recommended:
            yield plain("  The interval of the gain over today's weights includes 0: keep those.")
        if fit.calibrations:
            yield _calibrations(fit)
        yield Text("")
    worth = [fit for fit in fits if fit.recommended]
    if worth:
        yield plain("Beyond chance, for the entries of these models in the config:")
        yield Text(_config(worth))


def _calibrations(fit: FittedWeights) -> Table:
    title = plain(f"{fit.task}: confidence as the chance of being right", "bold")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for name in ("", "n", "right", "temp.", "ECE ↓", "Brier ↓", "less by"):
        table.add_column(plain(name), no_wrap=not name)
    for row in fit.calibrations:
        errors = [f"{before.value:.1f} → {after.value:.1f}" for before, after in (row.ece, row.brier)]
        values = (str(row.replies), f"{row.right:.1f}", f"{row.temperature:.3g}", *errors, _numbers(row.gain))
        table.add_row(plain(row.model), *values)
    return table


def _config(fits: Sequence[FittedWeights]) -> str:
    """Return the fitted weights as YAML, as a Serve config has them."""
    models = dict.fromkeys(model for fit in fits for model in fit.weights)
    lines = ["models:"]
    for model in models:
        weights = ", ".join(f"{fit.task}: {fit.weights[model]:g}" for fit in fits if model in fit.weights)
        lines += [f"  - name: {model}", f"    task_weights: {{{weights}}}"]
    return "\n".join(lines)


def _directed(measure: str, lower_is_better: bool) -> str:
    """Return a measure's name with an arrow to where it is better."""
    return f"{measure} {'↓' if lower_is_better else '↑'}"


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
    return f"{gain.measure}: {gain.row} - {gain.best} (best single) = {_numbers(value)} {word}"


def _numbers(gain: Interval) -> str:
    return f"{_signed(gain.value)} [{_signed(gain.low)}, {_signed(gain.high)}]"


def _signed(value: float) -> str:
    # Adding 0.0 turns -0.0 into +0.0.
    return f"{round(value, 1) + 0.0:+.1f}"
