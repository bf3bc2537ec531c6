"""Measurements as text: a line for each, a table of every case beside server A, and the targets."""

import operator
import statistics
from collections.abc import Callable, Iterator, Sequence

from loadtest.measurement import Case, Measurement
from loadtest.servers import KINDS

BASE = "A"
COMPARED = "ABCP"
"""The sides that targets are about."""
Value = Callable[[Measurement], float]
_rate, _first, _gap, _outside = map(operator.attrgetter, ("rate", "first", "gap", "outside"))


def line(result: Measurement) -> str:
    """Return a measurement in one line."""
    cpu = ", ".join(f"{role} {spent:.1f}" for role, spent in sorted(result.cpu.items()) if spent >= 0.05)
    failed = f"; {result.errors} FAILED: {result.error}" if result.errors else ""
    return (
        f"{result.round} {result.side}  {result.case.name}: {result.rate:.1f}/s, first {result.first:.0f} ms, "
        f"gap {result.gap:.0f} ms, CPU ms {cpu}{failed}"
    )


def summary(results: Sequence[Measurement]) -> str:
    """Return a table of all cases: medians of the rounds, and ratios to A in the same round with their spread."""
    rows = [["case", "side", "replies/s", "to A", "first word ms", "to A", "p95", "gap ms", "CPU ms", "outside engine"]]
    for case in dict.fromkeys(result.case for result in results):
        name = case.name
        for side in KINDS:
            own = _of(results, case, side)
            if not own:
                continue
            rows.append(
                [
                    name,
                    side,
                    f"{_median(own, _rate):.1f}",
                    spread([] if side == BASE else _ratios(results, case, side, _rate)),
                    f"{_median(own, _first):.0f}",
                    spread([] if side == BASE else _ratios(results, case, side, _first)),
                    f"{_median(own, lambda result: result.first_p95):.0f}",
                    f"{_median(own, _gap):.0f}" if case.stream else "",
                    f"{_median(own, lambda result: sum(result.cpu.values())):.1f}",
                    f"{_median(own, _outside):.1f}",
                ]
            )
            name = ""
    table = columns(rows)
    letters = ", ".join(f"{key} {kind.name}" for key, kind in KINDS.items() if any(r.side == key for r in results))
    failed = sum(result.errors for result in results)
    return "\n".join(
        [*table, f"{letters}. Ratios: median [lowest to highest] of the rounds. Failed requests: {failed}."]
    )


def targets(results: Sequence[Measurement]) -> tuple[bool, str]:
    """Return whether all targets that could be checked are met, and a line for each."""
    checked = [*_checked(results), *_failures(results)]
    lines = [f"{'met   ' if met else 'MISSED'}  {target}: {value}" for target, value, met in checked]
    none = ["No target could be checked: A, B and 32 clients are needed."]
    return bool(checked) and all(met for _, _, met in checked), "\n".join(lines or none)


def _checked(results: Sequence[Measurement]) -> Iterator[tuple[str, str, bool]]:
    """Yield each target, its value and whether it is met."""
    for stream, least in ((False, 1.0), (True, 1.1)):
        how = "streamed" if stream else "whole"
        for case in _plain(results, 32, stream):
            if ratios := _ratios(results, case, "B", _rate):
                rate = statistics.median(ratios)
                yield f"{how}, 32 clients, replies/s to A >= {least}", f"{rate:.2f}", rate >= least
                outside = statistics.median(_ratios(results, case, "B", _outside))
                yield f"{how}, 32 clients, CPU outside the engine to A <= 1", f"{outside:.2f}", outside <= 1
            if ratios := _ratios(results, case, "B", _rate, "C"):
                rate = statistics.median(ratios)
                yield f"{how}, 32 clients, replies/s to C >= 2.5", f"{rate:.2f}", rate >= 2.5
    for clients in (1, 32):
        for case in _plain(results, clients, True):
            if ratios := _ratios(results, case, "B", _first):
                first = statistics.median(ratios)
                yield f"first word, {clients} clients, to A <= 1", f"{first:.2f}", first <= 1
    for case in dict.fromkeys(result.case for result in results if result.side == "P"):
        least = 1.0 if case.size == "12mp" else 0.98
        if previous := _ratios(results, case, "B", _rate, "P"):
            yield f"{case.name}, replies/s to P >= {least}", spread(previous), statistics.median(previous) >= least
    for case in _plain(results, 32, True):
        if own := _of(results, case, "B"):
            gap = _median(own, _gap)
            yield "gap between pieces, 32 clients, <= 50 ms", f"{gap:.0f} ms", gap <= 50


def _failures(results: Sequence[Measurement]) -> Iterator[tuple[str, str, bool]]:
    """Yield each side that targets compare and of which requests failed: what was measured there says little."""
    for side in COMPARED:
        if failed := sum(result.errors for result in results if result.side == side):
            yield f"requests of {side} that failed, 0", str(failed), False


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def is_plain(case: Case) -> bool:
    """Return whether it is a closed loop of short replies about small pictures."""
    return (case.loop, case.tokens, case.size) == ("closed", 16, "1x")


def _plain(results: Sequence[Measurement], clients: int, stream: bool) -> list[Case]:
    """Return the plain case of so many clients, where it was measured."""
    cases = dict.fromkeys(result.case for result in results)
    return [case for case in cases if is_plain(case) and (case.level, case.stream) == (clients, stream)]


def _of(results: Sequence[Measurement], case: Case, side: str) -> list[Measurement]:
    return [result for result in results if result.case == case and result.side == side]


def _median(results: Sequence[Measurement], value: Value) -> float:
    return statistics.median(map(value, results))


def _ratios(results: Sequence[Measurement], case: Case, side: str, value: Value, base: str = BASE) -> list[float]:
    """Return a server's value to the base's in the same round, for each round in which both answered something."""
    bases = {result.round: value(result) for result in _of(results, case, base) if result.rate}
    own = [result for result in _of(results, case, side) if result.rate]
    return [value(result) / bases[result.round] for result in own if bases.get(result.round)]


def spread(ratios: Sequence[float]) -> str:
    """Return the median with the lowest and highest; empty where there are none."""
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f} to {max(ratios):.2f}]" if ratios else ""
