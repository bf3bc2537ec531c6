"""What the clients' ledger calls a failure, a hang and a recovery."""

import math

import pytest

from loadtest.ledger import Entry, Ledger, percentile
from loadtest.soak import Sample, slope
from loadtest.world import _note


def entry(sent: float, took: float | None = 0.1, **fields: object) -> Entry:
    given = {"status": 200, "whole": True, "columns": {"one": "ok", "two": "ok"}, **fields}
    return Entry(sent, deadline_s=5.0, last=None if took is None else sent + took, **given)  # type: ignore[arg-type]


def ledger(*entries: Entry) -> Ledger:
    made = Ledger()
    made.entries = list(entries)
    return made


def test_a_column_fails_only_for_those_who_ask_about_it() -> None:
    seen = ledger(entry(0), entry(1, columns={"one": "ok", "two": "engine_dead"}), entry(2, status=503))
    assert [one.sent for one in seen.failed(["one"])] == [2]
    assert [one.sent for one in seen.failed(["one", "two"])] == [1, 2]
    assert [one.sent for one in seen.errors("two")] == [1]


def test_a_stream_without_its_end_and_an_answer_after_its_time_are_failures() -> None:
    seen = ledger(entry(0, whole=False), entry(1, took=None), entry(2, took=6.5), entry(3, took=5.5))
    assert [one.sent for one in seen.failed(["one"])] == [0, 1, 2]
    assert [one.sent for one in seen.hung()] == [1, 2]


def test_it_is_well_again_when_nothing_bad_was_sent_any_more() -> None:
    seen = ledger(entry(0, status=503), *(entry(at, status=503 if at in (11, 13) else 200) for at in range(10, 16)))
    assert seen.well_again(10, lambda one: one.ok) == 4
    assert seen.well_again(14, lambda one: one.ok) == 0
    assert ledger(entry(11, status=503)).well_again(10, lambda one: one.ok) == math.inf
    assert seen.first(10, lambda one: not one.ok) == pytest.approx(1.1)


def test_a_stream_is_read_for_its_columns_and_its_end() -> None:
    reply = 'event: reply\ndata: {"model": "one", "status": "error", "error": {"code": "engine_dead"}}\n\n'
    seen = Entry(0, 5)
    _note(seen, (reply + "data: [DONE]\n\n").encode(), "text/event-stream")
    assert seen.whole and seen.columns == {"one": "engine_dead"}
    cut = Entry(0, 5)
    _note(cut, reply.encode(), "text/event-stream")
    assert not cut.whole
    refused = Entry(0, 5)
    _note(refused, b'{"error": {"code": "overloaded"}}', "application/json")
    assert refused.told and not refused.columns


def test_percentiles_are_of_what_was_measured() -> None:
    assert percentile(range(100), 0.95) == 95
    assert percentile([], 0.95) == 0


def test_the_slope_is_of_memory_by_requests_after_the_start() -> None:
    warm = [Sample(0, 0, {"gateway": 10.0}, {}, {}), Sample(1, 500, {"gateway": 90.0}, {}, {})]
    steady = [Sample(at, 1000 * at, {"gateway": 100.0 + 0.5 * at, "replica": 50.0}, {}, {}) for at in range(2, 10)]
    steep, error = slope(warm + steady, None)
    assert abs(steep - 0.5) < 1e-6 and error < 1e-6
    assert abs(slope(warm + steady, "replica")[0]) < 1e-6
