"""Services that the routes of an app share: the router, metrics, the loader of media, and what the operator set up."""

import asyncio
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request

from serve.api.adapter_changes import AdapterChanges
from serve.api.batches.runner import BatchRunner
from serve.api.evaluation_runs import RunFolder
from serve.api.media_loader import MediaLoader
from serve.api.metrics import Metrics
from serve.api.quotas import Buckets
from serve.api.shared_results import ResultFile
from serve.arena.duel import Pace
from serve.arena.store import VoteStore
from serve.errors import NotFound
from serve.rights import RIGHTS
from serve.router import Router

T = TypeVar("T")


@dataclass
class Services:
    """The services of an app.

    votes (of the arena), evaluations, results, batches, adapters: None where none were set up. awaited: required models
    that were not loaded yet.
    """

    whole_router: Router
    metrics: Metrics
    media: MediaLoader
    votes: VoteStore | None
    evaluations: RunFolder | None
    results: ResultFile | None
    batches: BatchRunner | None = None
    adapters: AdapterChanges | None = None
    awaited: set[str] = field(default_factory=set)
    vote_limiter: Buckets = field(default_factory=Buckets)
    pace: Pace = field(default_factory=Pace)
    scraping: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the models' gauges are set anew and written, which takes a thread 20 ms."""
    reading_runs: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the folder of evaluations is read, however many ask."""
    drawing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a shared result is drawn."""
    drawings: int = 0
    """Results that are drawn or wait to be."""

    @property
    def router(self) -> Router:
        """Return the router of the models that the current request's key may use."""
        return self.whole_router.restricted(RIGHTS.get().models)


def set_up(given: T | None, off: str, code: str) -> T:
    """Return what the operator set up. Raises NotFound where it is None."""
    if given is None:
        raise NotFound(off, code=code)
    return given


def services(request: Request) -> Services:
    """Return the services of the app that got this request."""
    own: Services = request.app.state.services
    return own
