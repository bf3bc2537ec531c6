"""The Ray Serve application: one deployment per engine, and the gateway before them."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Container, Sequence
from typing import Any

import ray.serve
from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle
from starlette.types import Receive, Scope, Send

from deployments import autoscaling, logs
from deployments.args import Args, Engined, GatewayArgs, LoraArgs, Placed
from deployments.front import Front
from deployments.machine import stay_inside
from deployments.pool import Pool
from deployments.remote import Remote
from deployments.replica import Replica
from deployments.watching import watch
from serve import tracing
from serve.api import create_app
from serve.fetch.fetcher import Fetcher
from serve.loop_lag import LoopLag
from serve.media import processes
from serve.media.budget import Budget, give_back_large_blocks
from serve.router import Router
from serve.wire.meters import Meters
from serve.wire.shares import Shares

log = logging.getLogger(__name__)

NAME = "diptych"
LATE_S = 2.0
"""So long after its drain_s Serve kills what has not ended by itself."""
MEET_S = 3.0
"""What a new engine's replicas are given to be found, before they are asked."""
KEYS_S = 5.0
"""How often the file of keys is looked at."""
LIGHT = {"replicas", "autoscaling", "max_ongoing_requests", "keeps_pictures", "weight"}
"""What of an entry is no business of its replicas': they stay when it changes."""


class Served:
    """The app that answers what comes from now on. What was begun goes on in the one before."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@ray.serve.ingress()
class Gateway:
    """The HTTP front. It imports neither torch nor vLLM: it starts in a second and weighs little.

    A new config does not restart it (`reconfigure`): what was begun goes on by the old one, what comes goes by the new.
    """

    def __init__(self, args: Args, handles: dict[str, DeploymentHandle]) -> None:
        """handles: one for each engine, by the name of its model; adapters go by their base's."""
        stay_inside()
        logs.configure("gateway", args.gateway.access_log)
        tracing.start("diptych-gateway")
        processes.warm()
        self._handles = handles
        self._pools: dict[str, Pool] = {}
        self._told: dict[str, Any] = {}
        give_back_large_blocks()
        self._budget = Budget.of_this_process(args.gateway.memory_mb)
        self._lag = LoopLag()
        self._lag.start()
        self._meters, self._shares = Meters(), Shares()
        self._meters.watch(lag=self._lag)
        self._args = args
        self._served = Served(self._app(args))
        listen = args.gateway.listen
        self.front = Front(self._served, listen.host, listen.port, args.gateway) if listen is not None else None
        if (warning := args.gateway.warning()) is not None:
            log.warning(warning)
        watching = watch(lambda: self._args.gateway.keys_file, self._read_keys, KEYS_S)
        self._watching = asyncio.get_running_loop().create_task(watching)

    async def reconfigure(self, told: dict[str, Any]) -> None:
        """Asked by Serve once it has started, and when the config changes: `told` is its new args.

        Args that cannot be used are logged, and those before serve on: an error here would end this process.
        """
        if self._told:
            try:
                args = Args.model_validate(told["args"])
                known = set(self._pools)
                app = self._app(args)
            except (ValueError, OSError):
                log.exception("the new config cannot be used; the old one serves on")
                return
            await asyncio.gather(*(pool.meet(MEET_S) for name, pool in self._pools.items() if name not in known))
            self._served.app, self._args = app, args
            self._budget.resize(Budget.of_this_process(args.gateway.memory_mb).total)
            logs.lines_for_requests(args.gateway.access_log)
            if self.front is not None:
                self.front.limit(args.gateway)
        elif self.front is not None:  # in a rollout the next gateway is stopped once this one counts as started
            await asyncio.sleep(self._args.gateway.leave_s)
        self._told = told

    def __serve_build_asgi_app__(self) -> "Served":
        """For Serve's own ingress, where there is one."""
        return self._served

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve where gateways are autoscaled: how many requests this one is answering."""
        return {autoscaling.ONGOING: float(self.front.answering() if self.front is not None else 0)}

    async def drain(self) -> None:
        """Asked when all gateways are to stop: refuse what is new, and finish what was begun, in at most drain_s."""
        if self.front is not None:
            await self.front.drain()

    async def __del__(self) -> None:
        """Asked by Serve when it stops this gateway: the others take what is new, at the same port."""
        self._lag.stop()
        if self.front is not None:
            await self.front.stop()

    def _app(self, args: Args) -> FastAPI:
        """What answers by these args; ways to engines that stay are kept. Raises ValueError or OSError where the keys
        cannot be used."""
        access = args.gateway.access()  # first: nothing is touched when it fails
        bases = {entry.name: entry.base for entry in args.models if isinstance(entry, LoraArgs)}
        engines = args.engines()
        for name in self._pools.keys() - engines.keys():
            self._pools.pop(name).close()
        pools = {name: self._pool(name, entry) for name, entry in engines.items()}
        gateway = args.gateway
        return create_app(
            Router([Remote(model, pools[bases.get(name, name)]) for name, model in args.built().items()]),
            limits=gateway.limits(),
            access=access,
            origins=gateway.cors,
            fetcher=Fetcher(gateway.images),
            meters=self._meters,
            shares=self._shares,
            budget=self._budget,
        )

    def _read_keys(self) -> None:
        """Let in by the keys as they are now. Raises ValueError or OSError where they cannot be used."""
        self._served.app = self._app(self._args)

    def _pool(self, name: str, entry: Engined) -> Pool:
        if name not in self._pools:
            handle = self._handles.get(name) or ray.serve.get_deployment_handle(name, NAME)
            self._pools[name] = Pool(handle, entry)
        self._pools[name].entry = entry
        return self._pools[name]


def build(args: Args) -> ray.serve.Application:
    """The application of a Serve config's `args`, with its models in catalogue order.

    A deployment is named as the model whose engine it holds; the LoRA adapters on it have none of their own. A replica
    counts as started when its model is loaded, so that whoever upgrades a cluster does not come too early.
    """
    return built(args, [args], args.engines())


def built(answering: Args, engines: Sequence[Args], waiting: Container[str] = ()) -> ray.serve.Application:
    """Gateways that answer by these args, before all the engines of those; where two name the same, the later counts.
    waiting: models whose replicas count as started when they are loaded, and not at once."""
    replicas = {}
    for args in engines:
        for name, entry in args.engines().items():
            adapters = args.adapters(name)
            options = _options(name, entry, _version(entry, adapters))
            told = {"wait": True} if name in waiting else None
            replicas[name] = ray.serve.deployment(Replica).options(**options, user_config=told).bind(entry, adapters)
    listen = answering.gateway.listen
    gateway = ray.serve.deployment(Gateway).options(
        **_options("gateway", answering.gateway, _digest(listen and listen.model_dump())),
        user_config={"args": answering.model_dump(mode="json", exclude_unset=True), "read": time.time()},
    )
    return gateway.bind(answering, replicas)


def changed(old: Args, new: Args) -> list[str]:
    """The models whose replicas must be started for `new`: those that are not in `old`, or otherwise."""
    before = {name: _version(entry, old.adapters(name)) for name, entry in old.engines().items()}
    return [name for name, entry in new.engines().items() if before.get(name) != _version(entry, new.adapters(name))]


def _version(entry: Engined, adapters: Sequence[LoraArgs]) -> str:
    placed = entry.num_cpus, entry.num_gpus, entry.resources
    return _digest([placed, *(one.model_dump(mode="json", exclude=LIGHT) for one in (entry, *adapters))])


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _options(name: str, placed: Placed, version: str) -> dict[str, Any]:
    count: dict[str, object] = (
        {"num_replicas": placed.replicas}
        if placed.autoscaling is None
        else {"autoscaling_config": placed.autoscaling.config()}
    )
    return {
        **count,
        "name": name,
        # Without one Serve starts every replica anew at each `ray.serve.run`. Where it builds the application by itself
        # (`serve deploy`, RayService) it puts its own in this place: a hash of the whole args.
        "version": version,
        "_internal": True,
        "ray_actor_options": {
            "num_cpus": placed.num_cpus,
            "num_gpus": placed.num_gpus,
            "resources": placed.resources,
        },
        "max_ongoing_requests": placed.max_ongoing_requests,
        "max_surge_percent": 100 if placed.surges else 0,
        # A dead engine is noticed after three failed checks; a model that loads answers them, so they may be quick.
        "health_check_period_s": 1,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": placed.drain_s
        + LATE_S
        + (placed.leave_s if isinstance(placed, GatewayArgs) else 0),
    }
