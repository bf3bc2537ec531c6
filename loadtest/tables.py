"""Blocks as text: each one's line, every case beside side A, and the targets."""

import statistics
from collections.abc import Callable, Iterator, Sequence

from loadtest.block import Block, Case
from loadtest.sides import SORTS

BASE = "A"
Value = Callable[[Block], float]


def line(block: Block) -> str:
    """One block, as soon as it is measured."""
    cpu = ", ".join(f"{role} {spent:.1f}" for role, spent in sorted(block.cpu.items()) if spent >= 0.05)
    failed = f"; {block.errors} FAILED: {block.error}" if block.errors else ""
    return (
        f"{block.round} {block.side}  {block.case.name}: {block.rate:.1f}/s, first {block.first:.0f} ms, "
        f"gap {block.gap:.0f} ms, CPU ms {cpu}{failed}"
    )


def summary(blocks: Sequence[Block]) -> str:
    """Every case: medians of the rounds, and for each other side its ratio to A in the same round, with the spread."""
    rows = [["case", "side", "replies/s", "to A", "first word ms", "to A", "p95", "gap ms", "CPU ms", "outside engine"]]
    for case in dict.fromkeys(block.case for block in blocks):
        for side in SORTS:
            mine = _of(blocks, case, side)
            if not mine:
                continue
            rows.append(
                [
                    case.name if side == next(iter(b.side for b in blocks if b.case == case)) else "",
                    side,
                    f"{_median(mine, lambda b: b.rate):.1f}",
                    _spread(blocks, case, side, lambda b: b.rate),
                    f"{_median(mine, lambda b: b.first):.0f}",
                    _spread(blocks, case, side, lambda b: b.first),
                    f"{_median(mine, lambda b: b.first_p95):.0f}",
                    f"{_median(mine, lambda b: b.gap):.0f}" if case.stream else "",
                    f"{_median(mine, lambda b: sum(b.cpu.values())):.1f}",
                    f"{_median(mine, lambda b: b.outside):.1f}",
                ]
            )
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    letters = ", ".join(f"{key} {sort.name}" for key, sort in SORTS.items() if any(b.side == key for b in blocks))
    failed = sum(block.errors for block in blocks)
    return "\n".join(
        [*table, f"{letters}. Ratios: median [lowest to highest] of the rounds. Failed requests: {failed}."]
    )


def targets(blocks: Sequence[Block]) -> tuple[bool, str]:
    """Whether all that could be checked are met, and each in a line."""
    said, met = [], True
    for what, value, good in _checked(blocks):
        met = met and good
        said.append(f"{'met   ' if good else 'MISSED'}  {what}: {value}")
    return met and bool(said), "\n".join(said or ["No target could be checked: A, B and 32 clients are needed."])


def _checked(blocks: Sequence[Block]) -> Iterator[tuple[str, str, bool]]:
    for stream, least in ((False, 1.0), (True, 1.1)):
        case = _case(blocks, 32, stream)
        how = "streamed" if stream else "whole"
        if case is None:
            continue
        if ratios := _ratios(blocks, case, "B", lambda b: b.rate):
            found = statistics.median(ratios)
            yield f"{how}, 32 clients, replies/s to A >= {least}", f"{found:.2f}", found >= least
            outside = statistics.median(_ratios(blocks, case, "B", lambda b: b.outside))
            yield f"{how}, 32 clients, CPU outside the engine to A <= 1", f"{outside:.2f}", outside <= 1
        if others := _ratios(blocks, case, "B", lambda b: b.rate, "C"):
            found = statistics.median(others)
            yield f"{how}, 32 clients, replies/s to C >= 2.5", f"{found:.2f}", found >= 2.5
    for clients in (1, 32):
        case = _case(blocks, clients, True)
        if case is not None and (ratios := _ratios(blocks, case, "B", lambda b: b.first)):
            found = statistics.median(ratios)
            yield f"first word, {clients} clients, to A <= 1", f"{found:.2f}", found <= 1
    for case in dict.fromkeys(block.case for block in blocks if block.side == "P"):
        least = 1.0 if case.size == "12mp" else 0.98
        if previous := _ratios(blocks, case, "B", lambda b: b.rate, "P"):
            ratio = statistics.median(previous)
            spread = f"{ratio:.2f} [{min(previous):.2f} to {max(previous):.2f}]"
            yield f"{case.name}, replies/s to P >= {least}", spread, ratio >= least
    case = _case(blocks, 32, True)
    if case is not None and (mine := _of(blocks, case, "B")):
        gap = _median(mine, lambda b: b.gap)
        yield "gap between pieces, 32 clients, <= 50 ms", f"{gap:.0f} ms", gap <= 50


def _case(blocks: Sequence[Block], clients: int, stream: bool) -> Case | None:
    """The plain one: closed loop, short replies, small pictures."""
    for block in blocks:
        case = block.case
        if (case.loop, case.level, case.stream, case.tokens, case.size) == ("closed", clients, stream, 16, "1x"):
            return case
    return None


def _of(blocks: Sequence[Block], case: Case, side: str) -> list[Block]:
    return [block for block in blocks if block.case == case and block.side == side]


def _median(blocks: Sequence[Block], value: Value) -> float:
    return statistics.median(map(value, blocks))


def _ratios(blocks: Sequence[Block], case: Case, side: str, value: Value, base: str = BASE) -> list[float]:
    """A side's value to the base's in the same round."""
    bases = {block.round: value(block) for block in _of(blocks, case, base)}
    return [value(block) / bases[block.round] for block in _of(blocks, case, side) if bases.get(block.round)]


def _spread(blocks: Sequence[Block], case: Case, side: str, value: Value) -> str:
    ratios = _ratios(blocks, case, side, value)
    if side == BASE or not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f} to {max(ratios):.2f}]"
