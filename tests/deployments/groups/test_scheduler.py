"""Members reach the scheduler over the connections that gateways and replicas use."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from deployments.args import GroupArgs
from deployments.groups.member import Link, Member
from deployments.groups.scheduler import Scheduler
from serve.engines.base import Piece, Prompt
from serve.engines.fake import FakeEngine
from serve.transport.connection import Connection
from serve.transport.server import StreamServer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_members_take_turns_over_connections_and_a_lost_one_is_missed_at_once() -> None:
    scheduler = Scheduler(GroupArgs(awake=1, min_awake_s=0, max_wait_s=0), ["a", "b"])

    async def statuses() -> dict[str, str]:
        return {}

    server = StreamServer({"join": scheduler.join, "report": scheduler.report}, statuses)
    port = await server.start("127.0.0.1")
    connections: dict[str, Connection] = {}

    def member(name: str) -> Member:
        engine = FakeEngine("red")

        async def connect() -> Link | None:
            connections[name] = await Connection.open("127.0.0.1", port, server.token)
            return connections[name]

        async def start() -> str | None:
            await engine.start()
            return None

        return Member(
            name, engine, at_once=8, start=start, connect=connect, mark=lambda state, step: None, retries=iter(())
        )

    async def ask(model: Member) -> list[Piece]:
        def pieces() -> AsyncGenerator[Piece, None]:
            return model._engine.generate(Prompt("what?", None))  # type: ignore[attr-defined]

        items = model.in_turn(pieces(), "interactive", model.name)
        return [item async for item in items if isinstance(item, Piece)]

    first, second = member("a"), member("b")
    try:
        await until(lambda: first.started.is_set() and second.started.is_set())
        for each in (first, second, first):
            assert [piece.text for piece in await ask(each)] == ["red"]
            assert each.phase == "awake"
        holder = next(place for place in scheduler.policy.places.values() if place.holds)
        connections["a"].abort()
        await until(lambda: holder.lost_at is not None)
        await until(lambda: holder.lost_at is None)  # it has joined again
        assert holder.holds and first.phase == "awake"
    finally:
        for each in (first, second):
            each.stop()
        scheduler.stop()
        for connection in connections.values():
            connection.close()
        await server.stop()
