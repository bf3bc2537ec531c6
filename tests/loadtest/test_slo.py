"""Tests objectives: parsing, refusals, and the rows that each is held against."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.slo import KINDS, Invalid, Slo


def row(method: str, name: str, times: Sequence[float] = (), failures: int = 0) -> Any:
    """Return a row with these times (ms), over ten seconds."""
    count = len(times)
    return SimpleNamespace(
        method=method,
        name=name,
        num_requests=count,
        max_response_time=max(times, default=0),
        avg_response_time=sum(times) / max(1, count),
        fail_ratio=failures / max(1, count),
        total_rps=count / 10,
        get_response_time_percentile=lambda share: sorted(times)[min(count - 1, int(share * count))],
    )


ROWS = [
    row("TTFT", "chat toy-llava", range(100)),
    row("TTFT", "fan-out", range(0, 200, 2)),
    row("COLUMN", "toy-llava", [10] * 50, failures=1),
    row("COLUMN", "toy-llava-b", [3000] * 50),
    row("COLUMN", "never-asked"),
]
TOTAL = row("", "Aggregated", range(200), failures=1)


@pytest.mark.parametrize(
    ("text", "met", "seen"),
    [
        ("TTFT p95 < 500", True, "190 ms (fan-out)"),  # the worst row is shown
        ("ttft p95<=189", False, "190 ms (fan-out)"),
        ("TTFT chat p95 < 100", True, "95 ms (chat toy-llava)"),
        ("TTFT p50 > 50", False, "50 ms (chat toy-llava)"),  # and the worst is the least here
        ("COLUMN p99.9 < 3.1 s", True, "3000 ms (toy-llava-b)"),
        ("COLUMN toy-llava max < 11ms", True, "10 ms (toy-llava)"),  # whole words: not toy-llava-b
        ("COLUMN failures < 2%", False, "2.00% (toy-llava)"),
        ("COLUMN rate >= 10/s", True, "10.00/s"),  # added up
        ("mean < 99", False, "100 ms"),
        ("failures <= 0.5%", True, "0.50%"),
        ("rate > 20", False, "20.00/s"),
        ("COLUMN never-asked p95 < 500", False, "nothing was measured"),
        ("MERGED p95 < 500", False, "nothing was measured"),
    ],
)
def test_objective_is_judged_by_its_worst_row(text: str, met: bool, seen: str) -> None:
    verdict = Slo.parse(text).judge(ROWS, TOTAL)
    assert (verdict.met, verdict.seen) == (met, seen)
    assert str(verdict) == f"{'met   ' if met else 'MISSED'}  {text}: {seen}"


def test_run_without_requests_meets_no_objective() -> None:
    assert not Slo.parse("failures < 1%").judge([], row("", "Aggregated")).met


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no SLO"),
        ("be fast", "is no SLO"),
        ("TTFT p95 = 500", "is no SLO"),
        ("TTFT p95 < fast", "is no SLO"),
        ("TTFT p100 < 5", "is no SLO"),
        ("p95 < -5", "is no SLO"),
        ("LATENCY p95 < 500", "there are no rows of type LATENCY"),
        ("failures < 1", "needs %"),
        ("p95 < 5%", "needs no unit or ms or s"),
        ("rate > 5 s", "needs no unit or /s"),
    ],
)
def test_invalid_objective_is_refused_in_a_sentence(text: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        Slo.parse(text)


@given(
    st.sampled_from(["", *KINDS]),
    st.lists(st.sampled_from(["chat", "toy-llava", "vqa:*"]), max_size=2),
    st.integers(1, 99),
    st.sampled_from(["<", "<=", ">", ">="]),
    st.integers(0, 10**6),
    st.sampled_from(["", "ms", " ms", "s", " s"]),
)
def test_well_formed_objective_is_parsed(
    kind: str, name: list[str], percent: int, compared: str, limit: int, unit: str
) -> None:
    rows = [kind, *(name if kind else [])]
    slo = Slo.parse(" ".join(filter(None, [*rows, f"p{percent}", compared, f"{limit}{unit}"])))
    assert (slo.kind, slo.name, slo.measure) == (kind, tuple(name if kind else []), f"p{percent}")
    assert (slo.compared, slo.limit) == (compared, limit * (1000 if unit.strip() == "s" else 1))


@given(st.text() | st.text("TFp95 <>=%ms/0.", max_size=20))
def test_any_other_text_is_refused_as_invalid(text: str) -> None:
    try:
        Slo.parse(text)
    except Invalid as invalid:
        assert repr(text) in str(invalid)
