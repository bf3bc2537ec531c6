"""An actor of Ray that counts keys' requests and tokens for all gateways of a cluster (serve/api/quotas.py).

Each request of a key with a rate asks it once. It is started by the first gateway that asks, by its name. Where it
dies, Ray starts it again, with full buckets, and each gateway reports all its tokens of the day with its next ones.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from deployments import logs
from serve.api.quotas import OwnQuotas, TokenUse
from serve.api.usage_file import UsageFile

log = logging.getLogger(__name__)

NAME, NAMESPACE = "quotas", "diptych"
START_S = 15.0
AT_ONCE = 1000
"""Calls that it answers at once; each takes microseconds."""


class QuotaCounter:
    """The actor's class. path: of the file that keeps tokens over a restart."""

    def __init__(self, path: Path | None) -> None:
        logs.configure("quotas")
        self._quotas = OwnQuotas()
        self._path: Path | None = None
        self._open(path)

    async def take(self, path: Path | None, bucket: str, per_minute: int) -> int:
        """Take one from a bucket; see `Quotas.take`. path: of the file, which the config may have changed."""
        self._open(path)
        return await self._quotas.take(bucket, per_minute)

    async def report(
        self, path: Path | None, gateway: str, counts: Mapping[tuple[str, str], int], names: Collection[str]
    ) -> dict[str, TokenUse] | None:
        """Set a gateway's tokens; see `Quotas.report`."""
        self._open(path)
        return await self._quotas.report(gateway, counts, names)

    def _open(self, path: Path | None) -> None:
        if path != self._path:
            file = None if path is None else UsageFile(path)
            if self._quotas.file is not None:
                self._quotas.file.close()
            self._quotas.file, self._path = file, path


class QuotaActor:
    """The actor as a gateway calls it. path: the file that it is to keep tokens in."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._actor: Any = None

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Return what its method returns. Raises RayError where it cannot be reached, or the file cannot be used."""
        if self._actor is None:
            self._actor = await asyncio.to_thread(self._connect)
        try:
            return await getattr(self._actor, method).remote(self.path, *arguments)
        except ray.exceptions.RayActorError:
            self._actor = None
            raise

    async def wait(self) -> None:
        """Wait until it answers, for at most START_S."""
        try:
            async with asyncio.timeout(START_S):
                await self.ask("report", "", {}, ())
        except (TimeoutError, ray.exceptions.RayError):
            log.exception("what counts keys' rates and tokens for all gateways does not answer")

    def _connect(self) -> Any:
        options = {
            "name": NAME,
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "lifetime": "detached",  # it must outlive the gateway that started it
            "max_restarts": -1,
            "max_concurrency": AT_ONCE,
            "num_cpus": 0,
        }
        return ray.remote(QuotaCounter).options(**options).remote(self.path)
