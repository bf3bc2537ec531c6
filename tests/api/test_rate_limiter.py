"""The limits of a key: requests and pictures a minute, requests at once, tokens a day and a month."""

import asyncio
import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import LLAVA, URL, calling, message, router

from serve.api import quotas, rate_limiter
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.api.quotas import Buckets, OwnQuotas
from serve.api.rate_limiter import RateLimiter
from serve.api.usage_file import UsageFile
from serve.engines.fake import FakeEngine
from serve.errors import QuotaUsedUp, TooMany
from serve.limits import Limits, RateLimits

KEYS = Keys(["alice:4lice", "bob:b0b"])
ALICE, BOB = ({"authorization": f"Bearer {key}"} for key in ("4lice", "b0b"))
CHAT: dict[str, Any] = {"model": LLAVA, "messages": [message()]}
VQA: dict[str, Any] = {"image": URL, "question": "what?"}


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def waits(limiter: RateLimiter, limits: RateLimits, times: int, key: str = "a") -> list[int | None]:
    """Start so many requests; return the seconds that each refused one is to wait, None for those that start."""
    results: list[int | None] = []
    for _ in range(times):
        try:
            await limiter.start(key, limits)
            results.append(None)
        except TooMany as error:
            results.append(error.retry_after_s)
    return results


def test_tokens_refill_with_time() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    assert [buckets.take("a", 2) for _ in range(3)] == [0, 0, 30]
    assert buckets.take("b", 2) == 0
    clock.now = 29
    assert buckets.take("a", 2) == 1
    clock.now = 30
    assert buckets.take("a", 2) == 0 and buckets.take("a", 2) == 30
    clock.now = 10_000
    assert [buckets.take("a", 2) for _ in range(3)] == [0, 0, 30]


@given(st.lists(st.floats(0, 100), max_size=50), st.integers(1, 30))
def test_at_most_twice_the_minutes_limit_starts_in_a_minute(pauses: list[float], most: int) -> None:
    clock, taken = Clock(), []
    buckets = Buckets(clock)
    for pause in pauses:
        clock.now += pause
        if not buckets.take("a", most):
            taken.append(clock.now)
    for start in taken:
        assert sum(start <= at < start + 60 for at in taken) <= 2 * most


async def test_request_refused_for_the_limit_at_once_takes_no_token() -> None:
    limiter, limits = RateLimiter(clock=Clock()), RateLimits(requests_per_minute=2, requests_at_once=1)
    assert await waits(limiter, limits, 6) == [None, 1, 1, 1, 1, 1]
    limiter.finish("a")
    assert await waits(limiter, limits, 1) == [None]


async def test_refused_request_does_not_count_as_running() -> None:
    limiter, limits = RateLimiter(clock=Clock()), RateLimits(requests_per_minute=1, requests_at_once=2)
    assert await waits(limiter, limits, 5) == [None, 60, 60, 60, 60]
    assert await waits(limiter, RateLimits(requests_at_once=2), 2) == [None, 1]


async def test_use_stays_counted_when_limits_change() -> None:
    limiter, limits = RateLimiter(clock=Clock()), RateLimits(requests_per_minute=3, requests_at_once=2)
    assert await waits(limiter, limits, 2) == [None, None]
    limits = RateLimits(requests_per_minute=2, requests_at_once=9)
    assert await waits(limiter, limits, 2) == [None, 30]
    assert await waits(limiter, limits, 1, "new") == [None]
    limits = RateLimits(requests_at_once=2)
    assert await waits(limiter, limits, 1) == [1]
    for _ in range(2):
        limiter.finish("a")
    assert await waits(limiter, limits, 1) == [None]


async def test_pictures_beyond_the_minutes_limit_are_refused() -> None:
    app = create_app(router(), limits=Limits(pictures_per_minute=2), access=Access(keys=KEYS))
    async with calling(app) as client:
        for path, body in (("/v1/tasks/vqa", VQA), ("/v1/chat/completions", CHAT | {"n": 2})):
            assert (await client.post(path, json=body, headers=ALICE)).status_code == 200
        for path, body in (("/v1/tasks/vqa", VQA | {"stream": True}), ("/v1/chat/completions", CHAT)):
            reply = await client.post(path, json=body, headers=ALICE)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (429, "rate_limit_exceeded") and "pictures" in error["message"]
            assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert (await client.get("/v1/models", headers=ALICE)).status_code == 200
        assert (await client.post("/v1/tasks/vqa", json=VQA, headers=BOB)).status_code == 200


@pytest.mark.parametrize("period", ["day", "month"])
async def test_key_that_has_used_its_tokens_is_refused_until_the_period_ends(period: str) -> None:
    limits = Limits.model_validate({f"tokens_per_{period}": 60})
    app = create_app(router(FakeEngine("a red circle")), limits=limits, access=Access(keys=KEYS))
    async with calling(app) as client:
        used = (await client.post("/v1/chat/completions", json=CHAT, headers=ALICE)).json()["usage"]["total_tokens"]
        assert 50 < used < 60
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=ALICE)).status_code == 200
        reply = await client.post("/v1/chat/completions", json=CHAT, headers=ALICE)
        error = reply.json()["error"]
        assert (reply.status_code, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
        assert f"60 tokens of this {period}" in error["message"] and reply.headers["x-should-retry"] == "false"
        assert 0 < int(reply.headers["retry-after"]) <= 86_400 * (1 if period == "day" else 31)
        assert (await client.get("/v1/models", headers=ALICE)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=BOB)).status_code == 200


async def test_new_keys_reset_neither_rates_nor_budgets() -> None:
    limiter = RateLimiter()
    limits = Limits(requests_per_minute=3, tokens_per_day=100)
    for status in (200, 200, 429):
        keys = Keys(["alice:4lice", f"new-{status}:n3w"])
        app = create_app(router(), limits=limits, access=Access(keys=keys), rate_limiter=limiter)
        async with calling(app) as client:
            reply = await client.post("/v1/chat/completions", json=CHAT, headers=ALICE)
            assert reply.status_code == status
    assert reply.json()["error"]["code"] == "insufficient_quota"


def on(day: str, patch: pytest.MonkeyPatch) -> None:
    """Make it this day."""
    for module in (quotas, rate_limiter):
        patch.setattr(module, "utc_day", lambda: day)


async def use(limiter: RateLimiter, tokens: int, limits: RateLimits) -> None:
    await limiter.start("alice", limits)
    limiter.finish("alice", tokens)


@pytest.mark.parametrize("kept", [False, True])
async def test_day_begins_with_all_its_tokens_and_the_month_goes_on(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, limits = Clock(), RateLimits(tokens_per_day=100, tokens_per_month=250)
    file = UsageFile(tmp_path / "usage") if kept else None
    limiter = RateLimiter(OwnQuotas(file, clock), clock)
    for day, tokens in (("2027-01-30", 100), ("2027-01-31", 100), ("2027-02-01", 100), ("2027-02-02", 150)):
        on(day, monkeypatch)
        await use(limiter, tokens, limits)
        with pytest.raises(QuotaUsedUp, match="of this day"):
            await limiter.start("alice", limits)
        await limiter.report()
    on("2027-02-03", monkeypatch)
    with pytest.raises(QuotaUsedUp, match="250 tokens of this month"):
        await limiter.start("alice", limits)
    on("2027-03-01", monkeypatch)
    await limiter.start("alice", limits)
    if file is not None:
        file.close()


async def test_tokens_are_kept_over_a_restart_and_shared_by_processes_of_a_file(tmp_path: Path) -> None:
    clock, limits = Clock(), RateLimits(tokens_per_day=100)
    first, second = UsageFile(tmp_path / "usage"), UsageFile(tmp_path / "usage")
    limiter, other = (RateLimiter(OwnQuotas(file, clock), clock) for file in (first, second))
    await use(limiter, 60, limits)
    await limiter.report()
    await limiter.report()  # a report that comes twice changes nothing
    await use(other, 39, limits)
    await other.start("alice", limits)
    other.finish("alice", 1)
    await other.report()
    first.close()
    second.close()
    again = UsageFile(tmp_path / "usage")
    with pytest.raises(QuotaUsedUp):
        await RateLimiter(OwnQuotas(again), clock).start("alice", limits)
    await RateLimiter(OwnQuotas(again), clock).start("alice", RateLimits(tokens_per_day=101))
    again.close()


@pytest.mark.parametrize("silent", [False, True])
async def test_report_that_is_lost_is_not_repeated_by_each_request(
    silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limiter, "REFRESH_S", 0.01)
    clock, limits, reports = Clock(), RateLimits(tokens_per_day=100), 0
    limiter = RateLimiter(clock=clock)
    await use(limiter, 40, limits)

    async def lost(*_: object) -> None:
        nonlocal reports
        reports += 1
        if silent:
            await asyncio.Event().wait()

    monkeypatch.setattr(limiter.quotas, "report", lost)
    clock.now = 1
    for _ in range(20):
        await use(limiter, 3, limits)
    with pytest.raises(QuotaUsedUp):
        await limiter.start("alice", limits)
    assert reports == 1


async def test_file_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "usage").write_text("no database, but long enough to be read as the head of one: " * 20)
    with pytest.raises(OSError, match="cannot be used for the tokens of keys"):
        UsageFile(tmp_path / "usage")


async def test_budget_goes_on_by_own_counts_where_the_file_cannot_be_written(tmp_path: Path) -> None:
    file = UsageFile(tmp_path / "usage")
    limiter, limits = RateLimiter(OwnQuotas(file)), RateLimits(tokens_per_day=100)
    file._thread.submit(file._file.execute, "DROP TABLE tokens").result()
    await use(limiter, 100, limits)
    with pytest.raises(QuotaUsedUp):
        await limiter.start("alice", limits)
    await limiter.report()
    file.close()


def test_months_long_over_are_dropped_and_not_by_a_clock_that_was_wrong(tmp_path: Path) -> None:
    file = UsageFile(tmp_path / "usage")

    def report(today: str, tokens: int) -> dict[str, tuple[int, int]]:
        return file._thread.submit(file._report, "g", {(today, "a"): tokens}, ["a"], today).result()

    for month in range(14):
        report(f"{2026 + month // 12}-{month % 12 + 1:02}-28", month + 1)
    days = file._thread.submit(lambda: file._file.execute("SELECT min(day), count(*) FROM tokens").fetchall()).result()
    assert days == [("2026-02-28", 13)]
    report("2099-01-01", 1)
    assert report("2027-02-28", 14) == {"a": (14, 14)}
    file.close()


def test_retry_after_ends_with_the_month() -> None:
    seconds, now = rate_limiter._seconds_to_next("month"), datetime.datetime.now(datetime.UTC)
    then = now + datetime.timedelta(seconds=seconds)
    assert (then.day, then.hour, then.month) == (1, 0, now.month % 12 + 1)
