"""The closed loop as curves over the number of clients: replies a second, and the first word."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from loadtest.block import Block
from loadtest.sides import SORTS
from loadtest.tables import Value

COLOURS = {"A": "#666666", "B": "#c2410c", "C": "#1d4ed8", "D": "#15803d", "P": "#7c3aed"}


def draw(blocks: Sequence[Block], file: Path) -> None:
    """Write them as SVG or PNG, by the file's ending; nothing where no closed loop was run."""
    plain = [b for b in blocks if (b.case.loop, b.case.tokens, b.case.size) == ("closed", 16, "1x")]
    if not plain:
        return
    matplotlib.use("agg")
    shown: tuple[tuple[str, bool, Value], ...] = (
        ("whole replies: replies a second", False, lambda b: b.rate),
        ("streamed: replies a second", True, lambda b: b.rate),
        ("streamed: first word, ms (median)", True, lambda b: b.first),
        ("CPU outside the engine, ms a streamed request", True, lambda b: b.outside),
    )
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, (title, stream, value) in zip(axes.flat, shown, strict=True):
        for side, sort in SORTS.items():
            mine = [b for b in plain if b.side == side and b.case.stream == stream]
            levels = sorted({b.case.level for b in mine})
            if not levels:
                continue
            rounds = [[value(b) for b in mine if b.case.level == level] for level in levels]
            middle = [statistics.median(found) for found in rounds]
            axis.fill_between(
                levels, [min(r) for r in rounds], [max(r) for r in rounds], color=COLOURS[side], alpha=0.15
            )
            axis.plot(levels, middle, marker="o", color=COLOURS[side], label=f"{side} {sort.name}")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({b.case.level for b in plain}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("clients, each sending its next request when the last one is answered")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(file)
    plt.close(figure)
