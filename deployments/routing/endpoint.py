"""Asks a model on another server from the gateway's own process, in the place of a Pool of replicas."""

import asyncio
import contextlib
import functools
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from deployments.routing.pool import ENGINE_DEAD, Breaker, EngineDied, RoutingKey
from serve.checking.at_load import check_at_load
from serve.engines.base import Engine, State
from serve.engines.remote.engine import FAILED, KEY_REFUSED, UNREACHABLE, RemoteBusy
from serve.errors import ModelError, Overloaded, ServeError
from serve.limits import LIMITS
from serve.models.base import Model
from serve.models.remote import RemoteModel
from serve.router.route import Status
from serve.tasks.request import Request
from serve.transport.messages import Room
from serve.worker import Worker

log = logging.getLogger(__name__)

FAULTS = (ENGINE_DEAD, UNREACHABLE, FAILED)
"""Codes of failures that are the server's fault."""
CHECK_READY_S, CHECK_FAILED_S = 60.0, 10.0
"""Seconds between two checks of a server that answers, and of one that does not."""
MAX_TRIES = 5
"""Times that a request is sent to a server that gives a time to try again."""
MAX_WAIT_S = 60.0
"""Longest wait for that, for a request with a later deadline."""
MAX_CHECKS = 10
"""Checks of a model's answers, where its server does not reply to enough of the questions."""
LEAST_WAIT_S = 0.2
"""Shortest wait for the first of these times; it doubles."""


class Endpoint:
    """A model on another server, with the interface of a Pool and, since it has one place only, of its replica.

    Requests need no process of their own: the gateway waits for the network and does little else, and the key stays in
    one kind of process.
    """

    def __init__(self, model: Model, engine: Engine, entry: RemoteModel) -> None:
        """Begin to check the server, until `close`."""
        self.entry = entry
        self._engine = engine
        self._worker = Worker(model, engine)
        self._examine = check_at_load(entry) if entry.check else None
        if self._examine is None:
            self._worker.mark("ready", "ready")  # requests are tried whatever the last check said
        self._checks = 0
        self._breaker = Breaker()
        self._prompts = 0
        self._requests = 0
        self._deaths = 0
        self._state: State = "starting"
        self._step = "asking its server"
        self._since = time.monotonic()
        self._closed = False
        self._checking = asyncio.get_running_loop().create_task(self._check())

    @contextlib.contextmanager
    def counted(self, model: str) -> Iterator[None]:
        """Count a request in the model's status while the block runs."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextlib.asynccontextmanager
    async def replica(self, model: str, key: RoutingKey) -> AsyncIterator["Endpoint"]:
        """Return this endpoint for the request that runs in the block, and learn from how it ends.

        Raises Overloaded where there is no room, ModelError where the server is left alone, and EngineDied where it
        broke off in the middle of its reply. What else the block raises is passed on.
        """
        if not key.room(self.entry.max_ongoing_requests).fits(self._prompts):
            raise Overloaded.of_model(model)
        if self._breaker.open:
            raise ModelError(f"{model} failed several times in a row and is left alone.", code="model_resting")
        self._breaker.started()
        self._prompts += key.prompts
        life = self._deaths  # a request that began before a death is blamed for that one
        try:
            yield self
            self._breaker.succeeded()
            self._mark("ready", "ready")
        except ModelError as error:
            self._learn(error)
            if error.code == ENGINE_DEAD:
                self._deaths = max(self._deaths, life + 1)
                raise EngineDied(error.message, life) from None
            raise
        finally:
            self._prompts -= key.prompts
            await self._stop_when_closed()

    async def stream(self, method: str, *arguments: Any, pace_s: float, room: Room) -> AsyncGenerator[Any, None]:
        """Yield what the worker's method yields. A refused request is sent again when the server says, if in time.

        The last of `arguments`, the model's name, is for replicas with several models; pace_s and room are for another
        process.
        """
        *arguments_of_worker, _ = arguments
        request = next((value for value in arguments_of_worker if isinstance(value, Request)), None)
        loop = asyncio.get_running_loop()
        most_s = min(MAX_WAIT_S, LIMITS.get().max_deadline_s)
        end = loop.time() + (most_s if request is None else min(most_s, request.deadline_s))
        for attempt in range(MAX_TRIES):
            empty = True
            try:
                async with contextlib.aclosing(getattr(self._worker, method)(*arguments_of_worker)) as items:
                    async for item in items:
                        empty = False
                        yield item
                return
            except RemoteBusy as busy:
                wait_s = max(busy.wait_s, LEAST_WAIT_S * 2**attempt) * random.uniform(1, 1.1)
                if not empty or attempt + 1 == MAX_TRIES or loop.time() + wait_s > end:
                    raise
                await asyncio.sleep(wait_s)

    def full(self) -> bool:
        """Return whether as many prompts run as may."""
        return self._prompts >= self.entry.max_ongoing_requests

    def is_joining(self, model: str) -> bool:
        """Return False: its server runs already."""
        return False

    async def status(self, model: str) -> Status:
        """Return what the last check or request showed."""
        since_s = time.monotonic() - self._since
        return Status(model, self._state, self._step, since_s, self._requests, report=self._worker.report)

    def close(self) -> None:
        """Stop checking: no new request will come. Running requests go on; connections are closed after the last."""
        self._closed = True
        self._checking.cancel()
        if not self._prompts:
            self._checking = asyncio.get_running_loop().create_task(self._engine.stop())

    async def _stop_when_closed(self) -> None:
        if self._closed and not self._prompts:
            await self._engine.stop()

    async def _check(self) -> None:
        while True:
            try:
                await self._engine.check()
                await self._examine_once()
            except ServeError as error:
                self._learn(error)
            except Exception as error:  # any: without checks its state would stay as it is for good
                log.exception("%s could not be checked", self.entry.name)
                why = f"It could not be checked, by a fault of Diptych: {type(error).__name__}. The log says more."
                self._mark("failed", why)
            else:
                self._mark("ready", "ready")
            await asyncio.sleep(CHECK_READY_S if self._state == "ready" else CHECK_FAILED_S)

    async def _examine_once(self) -> None:
        """Ask the model about drawn scenes where that is switched on, up to MAX_CHECKS times until all is answered."""
        report = self._worker.report
        if self._examine is None or self._checks == MAX_CHECKS or (report is not None and report.complete):
            return
        self._checks += 1
        progress = functools.partial(self._mark, "starting") if report is None else lambda step: None
        self._worker.adopt(await self._examine(self._worker.model, self._engine, progress))
        self._worker.mark("ready", "ready")

    def _learn(self, error: ServeError) -> None:
        if error.code in FAULTS:
            self._breaker.failed()
        if error.code in (*FAULTS, KEY_REFUSED):
            self._mark("failed", error.message)

    def _mark(self, state: State, step: str) -> None:
        if state != self._state:
            self._since = time.monotonic()
        self._state, self._step = state, step
