"""Rates over several gateways: they ask the process that counts, and take their share where it is lost."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from served import calling, router

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.api.quotas import LOST_S, OwnQuotas, SharedQuotas
from serve.api.rate_limiter import RateLimiter
from serve.errors import QuotaUsedUp
from serve.limits import Limits, RateLimits

KEYS = Keys(["alice:4lice"])
ALICE = {"authorization": "Bearer 4lice"}
EVENLY, UNEVENLY, SINGLE = [1, 1, 1], [8, 1, 1], [1, 0, 0]


class Cluster:
    """Three gateways, and what counts for all. lost: it does not answer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lost = False
        self._counter = OwnQuotas(clock=lambda: self.now)
        self.limiters = [
            RateLimiter(SharedQuotas(self._ask, 3, clock=lambda: self.now, answer_s=0.05), clock=lambda: self.now)
            for _ in range(3)
        ]
        limits = Limits(requests_per_minute=60)
        self.apps = [
            create_app(router(), limits=limits, access=Access(keys=KEYS), rate_limiter=limiter)
            for limiter in self.limiters
        ]

    def restart(self) -> None:
        """Lose all counts."""
        self._counter = OwnQuotas(clock=lambda: self.now)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        await asyncio.sleep(1 if self.lost else 0)  # as a message takes
        return await getattr(self._counter, method)(*arguments)

    async def let_in(self, requests: int, shares: Sequence[int]) -> list[int]:
        """Send requests to the gateways by these shares; return how many each lets in."""
        statuses: list[list[int]] = [[], [], []]
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(calling(app)) for app in self.apps]
            turns = [index for index, share in enumerate(shares) for _ in range(share)]

            async def ask(index: int, client: httpx.AsyncClient) -> None:
                reply = await client.post("/v1/tasks/vqa", content=b"{", headers=ALICE)
                statuses[index].append(reply.status_code)

            for at in range(0, requests, 10):
                batch = [turns[(at + i) % len(turns)] for i in range(10)]
                await asyncio.gather(*(ask(index, clients[index]) for index in batch))
        return [codes.count(400) for codes in statuses]


@pytest.mark.slow
@pytest.mark.parametrize("shares", [EVENLY, UNEVENLY, SINGLE])
async def test_three_gateways_share_sixty_requests_a_minute(shares: list[int]) -> None:
    cluster = Cluster()
    assert 54 <= sum(await cluster.let_in(120, shares)) <= 66
    cluster.now = 30
    assert 27 <= sum(await cluster.let_in(60, SINGLE)) <= 33
    cluster.now = 90
    assert 54 <= sum(await cluster.let_in(90, shares)) <= 66


@pytest.mark.slow
@pytest.mark.parametrize("shares", [EVENLY, UNEVENLY])
async def test_gateway_takes_its_share_while_the_counts_of_all_are_lost(shares: list[int]) -> None:
    cluster = Cluster()
    cluster.lost = True
    let_in = await cluster.let_in(90 if shares == EVENLY else 250, shares)
    assert let_in == [20, 20, 20]
    cluster.lost, cluster.now = False, 60 + LOST_S
    assert 54 <= sum(await cluster.let_in(90, SINGLE)) <= 66


async def test_loss_does_not_begin_with_a_full_share() -> None:
    cluster = Cluster()
    assert sum(await cluster.let_in(60, EVENLY)) == 60
    cluster.lost = True
    assert sum(await cluster.let_in(30, EVENLY)) == 0


async def spend(limiter: RateLimiter, tokens: int, limits: RateLimits) -> None:
    await limiter.start("alice", limits)
    limiter.finish("alice", tokens)
    await limiter.report()


async def test_gateways_share_a_budget_of_tokens_and_report_all_after_a_restart() -> None:
    cluster, limits = Cluster(), RateLimits(tokens_per_day=100)
    first, second, third = cluster.limiters
    await spend(first, 50, limits)
    await spend(second, 49, limits)
    await third.start("alice", limits)
    await spend(second, 1, limits)
    cluster.now = 2
    cluster.restart()
    await first.report()
    await second.report()
    with pytest.raises(QuotaUsedUp):
        await third.start("alice", limits)


async def test_tokens_of_the_time_of_a_loss_are_reported_afterwards() -> None:
    cluster, limits = Cluster(), RateLimits(tokens_per_day=100)
    cluster.lost = True
    await spend(cluster.limiters[0], 99, limits)
    await spend(cluster.limiters[0], 1, limits)
    with pytest.raises(QuotaUsedUp):
        await cluster.limiters[0].start("alice", limits)
    cluster.lost, cluster.now = False, LOST_S + 1
    await cluster.limiters[0].report()
    with pytest.raises(QuotaUsedUp):
        await cluster.limiters[1].start("alice", limits)
