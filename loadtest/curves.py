"""Draws the closed loop as curves over the number of clients: replies a second, first word, CPU."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from loadtest.measurement import Measurement
from loadtest.servers import KINDS
from loadtest.tables import Value, is_plain

COLOURS = {"A": "#666666", "B": "#c2410c", "C": "#1d4ed8", "D": "#15803d", "E": "#0e7490", "P": "#7c3aed"}


def draw(results: Sequence[Measurement], file: Path) -> None:
    """Write the curves as SVG or PNG, by the file's ending; nothing where no closed loop was run."""
    plain = [result for result in results if is_plain(result.case)]
    if not plain:
        return
    matplotlib.use("agg")
    charts: tuple[tuple[str, bool, Value], ...] = (
        ("whole replies: replies a second", False, lambda result: result.rate),
        ("streamed: replies a second", True, lambda result: result.rate),
        ("streamed: first word, ms (median)", True, lambda result: result.first),
        ("CPU outside the engine, ms a streamed request", True, lambda result: result.outside),
    )
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, (title, stream, value) in zip(axes.flat, charts, strict=True):
        for side, kind in KINDS.items():
            own = [result for result in plain if result.side == side and result.case.stream == stream]
            levels = sorted({result.case.level for result in own})
            if not levels:
                continue
            rounds = [[value(result) for result in own if result.case.level == level] for level in levels]
            middle = [statistics.median(values) for values in rounds]
            low, high = [min(values) for values in rounds], [max(values) for values in rounds]
            axis.fill_between(levels, low, high, color=COLOURS[side], alpha=0.15)
            axis.plot(levels, middle, marker="o", color=COLOURS[side], label=f"{side} {kind.name}")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({result.case.level for result in plain}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("clients, each sending its next request when the last one is answered")
        axis.grid(alpha=0.25)
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(file)
    plt.close(figure)
