"""Tests the clients' ledger: failures, hangs, recovery, columns."""

import json
import math

import pytest

from loadtest.chaos_server import record
from loadtest.ledger import Entry, Ledger, percentile
from loadtest.soak import Sample, slope


def entry(sent: float, seconds: float | None = 0.1, **fields: object) -> Entry:
    given = {"status": 200, "whole": True, "columns": {"one": "ok", "two": "ok"}, **fields}
    return Entry(sent, deadline_s=5.0, last=None if seconds is None else sent + seconds, **given)  # type: ignore[arg-type]


def ledger(*entries: Entry) -> Ledger:
    full = Ledger()
    full.entries = list(entries)
    return full


def test_failed_column_fails_requests_only_for_its_model() -> None:
    seen = ledger(entry(0), entry(1, columns={"one": "ok", "two": "engine_dead"}), entry(2, status=503))
    assert [entry.sent for entry in seen.failed(["one"])] == [2]
    assert [entry.sent for entry in seen.failed(["one", "two"])] == [1, 2]
    assert [entry.sent for entry in seen.errors("two")] == [1]


def test_unended_stream_and_late_answer_are_failures() -> None:
    seen = ledger(entry(0, whole=False), entry(1, seconds=None), entry(2, seconds=6.5), entry(3, seconds=5.5))
    assert [entry.sent for entry in seen.failed(["one"])] == [0, 1, 2]
    assert [entry.sent for entry in seen.hung()] == [1, 2]


def test_recovery_is_the_time_until_the_last_bad_request() -> None:
    seen = ledger(entry(0, status=503), *(entry(at, status=503 if at in (11, 13) else 200) for at in range(10, 16)))
    assert seen.recovery(10, lambda entry: entry.ok) == 4
    assert seen.recovery(14, lambda entry: entry.ok) == 0
    assert ledger(entry(11, status=503)).recovery(10, lambda entry: entry.ok) == math.inf
    assert seen.first(10, lambda entry: not entry.ok) == pytest.approx(1.1)


def test_recorded_stream_has_columns_and_end() -> None:
    column = {"model": "one", "status": "error", "latency_ms": 1, "text": "", "error": {"code": "engine_dead"}}
    reply = f"event: reply\ndata: {json.dumps(column)}\n\n"
    seen = Entry(0, 5)
    record(seen, (reply + "data: [DONE]\n\n").encode(), "text/event-stream")
    assert seen.whole and seen.columns == {"one": "engine_dead"}
    cut = Entry(0, 5)
    record(cut, reply.encode(), "text/event-stream")
    assert not cut.whole
    refused = Entry(0, 5)
    record(refused, b'{"error": {"code": "overloaded"}}', "application/json")
    assert (refused.whole, refused.code, refused.columns) == (True, "overloaded", {})


def test_percentile_of_no_values_is_zero() -> None:
    assert percentile(range(100), 0.95) == 95
    assert percentile([], 0.95) == 0


def test_slope_is_memory_by_requests_after_warm_up() -> None:
    warm = [Sample(0, 0, {"gateway": 10.0}, {}, {}), Sample(1, 500, {"gateway": 90.0}, {}, {})]
    steady = [Sample(at, 1000 * at, {"gateway": 100.0 + 0.5 * at, "replica": 50.0}, {}, {}) for at in range(2, 10)]
    steep, error = slope(warm + steady, None)
    assert abs(steep - 0.5) < 1e-6 and error < 1e-6
    assert abs(slope(warm + steady, "replica")[0]) < 1e-6
