"""Runs the gateway: a process with the HTTP app, and a route to every model."""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import ray.serve
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from deployments import autoscaling, logs, serve_status
from deployments.adapters.loader import AdapterLoader
from deployments.args import AdapterArgs, Args, GatewayArgs, Listen, LoraArgs, ModelPlacement
from deployments.file_watch import watch_file
from deployments.local.machine import bind_to_loopback
from deployments.quotas import QuotaActor
from deployments.routing.discovery import ServeDiscovery
from deployments.routing.endpoint import Endpoint
from deployments.routing.pool import Pool
from deployments.routing.replica_route import Quarantine, ReplicaRoute
from deployments.routing.replicas import Replicas
from deployments.server.http_server import HttpServer
from serve import tracing
from serve.api.app import create_app, readiness
from serve.api.batches.runner import BatchRunner
from serve.api.batches.store import BatchStore
from serve.api.loop_lag import LoopLag, freeze_heap
from serve.api.metrics import Metrics
from serve.api.quotas import OwnQuotas, SharedQuotas
from serve.api.rate_limiter import RateLimiter
from serve.api.request_log import RequestLog, RequestLogArgs
from serve.api.shared_results import ResultFile
from serve.api.usage_file import UsageFile
from serve.arena.store import VoteStore
from serve.engines.remote.engine import RemoteEngine
from serve.engines.remote.image_files import ImageFiles
from serve.media import processes
from serve.media.budget import Budget, release_large_blocks
from serve.media.decoding import MediaDecoder
from serve.media.fetch.fetcher import Fetcher
from serve.models.base import Model
from serve.models.remote import RemoteModel
from serve.router import Router

log = logging.getLogger(__name__)

WAIT_FOR_REPLICA_S = 3.0
"""Longest wait for the first replica of a new engine, before requests are routed to it."""
KEYS_FILE_CHECK_S = 5.0
"""Seconds between two checks of the keys file."""
STATUS_S = 5.0
"""Seconds between two questions to Serve: why models have no process; whether there is another config."""
LOADING_S = 0.5
"""Seconds between two looks whether models are loaded."""


class SwappableApp:
    """An ASGI app that can be replaced. A request stays with the app in which it began."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@ray.serve.ingress()
class Gateway:
    """A process that serves the HTTP app. It imports neither torch nor vLLM, so it starts in a second.

    A new config does not restart it (`reconfigure`): running requests keep the old config, new ones use the new one.
    """

    def __init__(self, listen: Listen | None) -> None:
        """Start without a config, which `reconfigure` brings. listen: the port to open then."""
        bind_to_loopback()
        tracing.start("diptych-gateway")
        processes.warm()
        self._listen = listen
        self._pools: dict[tuple[str, str], Pool] = {}
        """By application and name of the model."""
        self._endpoints: dict[str, Endpoint] = {}
        self._quarantines: defaultdict[str, Quarantine] = defaultdict(Quarantine)
        self._config: dict[str, Any] = {}
        release_large_blocks()
        self._lag = LoopLag()
        self._lag.start()
        self._metrics, self._rate_limiter = Metrics(), RateLimiter()
        self._quota_actor = QuotaActor()
        self._metrics.watch(lag=self._lag)
        self._votes: dict[Path, VoteStore] = {}
        self._usage: dict[Path, UsageFile] = {}
        self._request_log: RequestLog | None = None
        self._batches: BatchRunner | None = None
        self._adapters: AdapterLoader | None = None
        self._awaited: set[str] = set()
        """Required models that were not loaded since this process began."""
        self._refusal: str | None = None
        """Why the last config is not the one that is served."""
        self._app = SwappableApp(FastAPI())
        self.server: HttpServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve by a config. Called by Serve once this process has started, and when the config changes.

        config: {"args": an Args as JSON}; with `hold` this gateway counts as started only once models are loaded.
        Raises ValueError or OSError where the first config cannot be used; with a later one that ends nothing, it is
        logged and the old one kept.
        """
        if self._config:
            await self._change(config)
            self._config = config
        else:
            await self._begin(config)

    async def _begin(self, config: dict[str, Any]) -> None:
        self._args = args = Args.model_validate(config["args"])
        logs.configure("gateway", args.gateway.access_log)
        self._budget = Budget.of_this_process(args.gateway.memory_mb)
        self._files = ImageFiles(MediaDecoder(self._budget))
        self._awaited = {name for name, entry in args.engines().items() if entry.required}
        self._app.app = self._create_app(args)
        if (warning := args.gateway.warning()) is not None:
            log.warning(warning)
        watching = watch_file(lambda: self._args.gateway.keys_file, self._renew_app, KEYS_FILE_CHECK_S)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(task) for task in (watching, self._find_hindrances())]
        self._reporting = loop.create_task(self._rate_limiter.keep_reporting())
        if self._listen is not None:
            self.server = HttpServer(self._app, self._listen.host, self._listen.port, args.gateway)
        freeze_heap()
        await self._wait_for_quotas()
        self._config = config
        if config.get("hold"):
            await self._until_loaded(args.gateway.wait_s)
        if self.server is not None:  # in a rollout the next gateway is stopped once this one counts as started
            await asyncio.sleep(args.gateway.leave_s)

    async def _change(self, config: dict[str, Any]) -> None:
        """Serve by another config, or note why it cannot be used: the one before is kept then."""
        try:
            await self._apply(config)
        except (ValueError, OSError) as error:
            log.exception("the new config cannot be used; the old one is kept")
            self._refusal = str(error)
        else:
            self._refusal = None
        self._metrics.config_refused.set(self._refusal is not None)

    async def _apply(self, config: dict[str, Any]) -> None:
        args = Args.model_validate(config["args"])
        known, models = set(self._pools), self._args.models_by_name.keys()
        before, app = self._app.app, self._create_app(args)
        new = [pool for key, pool in self._pools.items() if key not in known]
        # on a cluster the search only begins: there the other gateways' turns come after this one's
        seconds = 0 if config.get("hold") else WAIT_FOR_REPLICA_S
        await asyncio.gather(*(pool.wait_for_replica(seconds) for pool in new))
        await self._wait_for_quotas()
        if self._app.app is not before:  # keys or adapters changed meanwhile, for the old config
            app = self._create_app(args)
        for (_, name), pool in self._pools.items():
            if not pool.entry.sleeps:
                pool.joining |= {name, *(adapter.name for adapter in args.adapters(name))} - models
        self._awaited &= {name for name, entry in args.engines().items() if entry.required}
        self._app.app, self._args = app, args
        self._budget.resize(Budget.of_this_process(args.gateway.memory_mb).total)
        logs.set_access_log(args.gateway.access_log)
        if self.server is not None:
            self.server.limit(args.gateway)

    async def _until_loaded(self, wait_s: float) -> None:
        """Return once required models are loaded, and the others too, or have failed; after wait_s without those."""
        until = time.monotonic() + wait_s
        following = asyncio.get_running_loop().create_task(self._follow_config())
        try:
            while True:
                state = await readiness(self._router, self._awaited)
                if not self._awaited and ("starting" not in state.models.values() or time.monotonic() > until):
                    return
                await asyncio.sleep(LOADING_S)
        finally:
            following.cancel()

    async def _follow_config(self) -> None:
        """Keep serving by the config that Serve has, which it brings to no process that has not started."""
        while True:
            await asyncio.sleep(STATUS_S)
            with contextlib.suppress(*serve_status.UNREACHABLE):
                config = await serve_status.config_of_gateways()
                if config is not None and config != self._config:
                    await self._change(config)
                    self._config = config

    async def _find_hindrances(self) -> None:
        """Keep every pool without a process informed why it has none."""
        while True:
            missing = {key: pool for key, pool in self._pools.items() if pool.is_missing()}
            try:
                reasons = await serve_status.hindrances(missing) if missing else {}
            except serve_status.UNREACHABLE:
                reasons = {}
            for key, pool in missing.items():
                pool.hindrance = reasons.get(key)
            await asyncio.sleep(STATUS_S)

    def __serve_build_asgi_app__(self) -> SwappableApp:
        """Return the app for Serve's own ingress, which serves it where there is no `listen`."""
        return self._app

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the number of requests being answered. Called by Serve where gateways are autoscaled."""
        return {autoscaling.ONGOING: float(self.server.answering() if self.server is not None else 0)}

    async def refusal(self) -> str | None:
        """Return why the last config could not be used, so that the one before it is served; None where it is."""
        return self._refusal

    async def drain(self) -> None:
        """Refuse new requests and finish running ones within drain_s. Called before all gateways stop."""
        if self._batches is not None:
            await self._batches.stop()
        if self.server is not None:
            await self.server.drain()
        await self._close_files()  # Ray's processes are ended next, without __del__

    async def __del__(self) -> None:
        """Stop. Called by Serve when it stops this gateway; others on the same port take new requests."""
        self._lag.stop()
        if self._batches is not None:
            await self._batches.stop()
        if self.server is not None:
            await self.server.stop()
        await self._close_files()

    def _create_app(self, config: Args) -> FastAPI:
        """Create the app for this config, keeping the pools of engines that stay.

        Raises ValueError or OSError where the keys cannot be used, or a file or folder that the gateway keeps things
        in; then nothing has changed for the app that is there.
        """
        gateway = config.gateway
        access = gateway.access()
        votes, usage, store = self._open_votes(gateway.arena), self._open_usage(gateway), batch_store(gateway)
        results = None
        if gateway.results is not None:
            results = ResultFile(gateway.results, gateway.results_days, gateway.results_mb)
        loader = self._adapter_loader(gateway.adapters)
        args = config if loader is None else loader.added_to(config)
        request_log = self._open_request_log(gateway.request_log)
        # nothing fails from here on
        self._keep_adapters(loader)
        for key, rights in () if access.keys is None else access.keys.rights.items():
            if unknown := [model for model in rights.models or () if model not in args.models_by_name]:
                log.warning("the key %s may use models that are not served here: %s", key, ", ".join(unknown))
        self._share_quotas(gateway, usage)
        bases = {entry.name: entry.base for entry in args.models if isinstance(entry, LoraArgs)}
        engines = args.engines()
        for application, name in self._pools.keys() - {(args.application(name), name) for name in engines}:
            self._pools.pop((application, name)).close()
            self._quarantines.pop(name, None)
        pools: dict[str, Pool | Endpoint] = {
            name: self._pool(args.application(name), name, entry) for name, entry in engines.items()
        }
        remotes = args.remotes()
        for name in [name for name, endpoint in self._endpoints.items() if endpoint.entry != remotes.get(name)]:
            self._endpoints.pop(name).close()
            self._quarantines.pop(name, None)
        for name, remote in remotes.items():
            pools[name] = self._endpoint(args.models_by_name[name], remote)
        routes = []
        for name, model in args.models_by_name.items():
            engine = bases.get(name, name)
            routes.append(ReplicaRoute(model, pools[engine], self._quarantines[engine]))
        if loader is not None:
            loader.serve(config, args, {name: pool for name, pool in pools.items() if isinstance(pool, Pool)})
        self._router = Router(routes)
        batches = self._run_batches(store, gateway.batch_requests_at_once)
        return create_app(
            self._router,
            limits=gateway.limits(),
            access=access,
            cors=gateway.cors,
            fetcher=Fetcher(gateway.images),
            metrics=self._metrics,
            rate_limiter=self._rate_limiter,
            budget=self._budget,
            votes=votes,
            evaluations=gateway.runs(),
            results=results,
            request_log=request_log,
            batches=batches,
            adapters=loader,
            awaited=self._awaited,
        )

    async def _close_files(self) -> None:
        self._reporting.cancel()
        if self._adapters is not None:
            self._adapters.stop()
        await self._rate_limiter.report()
        if isinstance(quotas := self._rate_limiter.quotas, OwnQuotas):
            quotas.file = None  # this may be called twice
        for votes in self._votes.values():
            votes.close()
        for usage in self._usage.values():
            usage.close()
        self._votes, self._usage = {}, {}
        if self._request_log is not None:
            await asyncio.to_thread(self._request_log.close)

    def _run_batches(self, store: BatchStore | None, at_once: int) -> BatchRunner | None:
        """Return what runs the batches of a store; None where there is none."""
        runner = self._batches
        if runner is not None and (store is None or store.folder != runner.store.folder):
            self._stopping = asyncio.get_running_loop().create_task(runner.stop())
            runner = None
        if store is not None:
            runner = runner or BatchRunner(store, at_once)
            runner.store, runner.at_once = store, at_once
            runner.start()
        self._batches = runner
        return runner

    def _open_votes(self, path: Path | None) -> VoteStore | None:
        """Return the store of the arena's votes. Raises OSError where the file cannot be used.

        One that another file has followed stays open until the gateway stops: a request may still use it.
        """
        if path is None:
            return None
        if path not in self._votes:
            self._votes[path] = VoteStore(path)
        return self._votes[path]

    def _open_request_log(self, args: RequestLogArgs | None) -> RequestLog | None:
        """Return the request log. Raises OSError where its file cannot be written."""
        former = self._request_log
        if args != (None if former is None else former.args):
            self._request_log = None if args is None else RequestLog(args)
            if former is not None:
                former.close()  # requests that began with it are logged no more
        return self._request_log

    def _open_usage(self, args: GatewayArgs) -> UsageFile | None:
        """Return the file of tokens, where this process writes it. Raises OSError where it cannot be used."""
        path = args.usage_file
        if path is None or args.shares_quotas():
            return None
        if path not in self._usage:
            self._usage[path] = UsageFile(path)
        return self._usage[path]

    def _share_quotas(self, args: GatewayArgs, usage: UsageFile | None) -> None:
        """Count keys' requests and tokens for all gateways, where there may be several; else here."""
        quotas = self._rate_limiter.quotas
        if args.shares_quotas():
            if not isinstance(quotas, SharedQuotas):
                quotas = SharedQuotas(self._quota_actor.ask, args.max_replicas)
            self._quota_actor.path, quotas.gateways = args.usage_file, args.max_replicas
        else:
            if not isinstance(quotas, OwnQuotas):
                quotas = OwnQuotas()
            quotas.file = usage
        self._rate_limiter.quotas = quotas

    async def _wait_for_quotas(self) -> None:
        """Wait for what counts for all gateways: until then each would let in its share alone."""
        if isinstance(self._rate_limiter.quotas, SharedQuotas):
            await self._quota_actor.wait()

    def _adapter_loader(self, settings: AdapterArgs | None) -> AdapterLoader | None:
        """Return what loads adapters by these settings. Raises ValueError or OSError where their file is bad."""
        if settings is None:
            return None
        if self._adapters is not None and self._adapters.args == settings:
            return self._adapters
        return AdapterLoader(settings, self._renew_app)

    def _keep_adapters(self, loader: AdapterLoader | None) -> None:
        """Let this one, and no other, keep file and replicas in agreement from now on."""
        former, self._adapters = self._adapters, loader
        if former is not loader:
            if former is not None:
                former.stop()
            if loader is not None:
                loader.start()

    def _renew_app(self) -> None:
        """Serve by the keys and the LoRA adapters as they are now. Raises ValueError or OSError as `_create_app`."""
        self._app.app = self._create_app(self._args)

    def _endpoint(self, model: Model, entry: RemoteModel) -> Endpoint:
        if model.name not in self._endpoints:
            engine = RemoteEngine(
                entry.name,
                entry.model,
                entry.url(),
                self._files,
                key_env=entry.key_env,
                fields=entry.fields,
                image_types=entry.image_types,
                silence_s=entry.silence_s,
            )
            self._endpoints[model.name] = Endpoint(model, engine, entry)
        return self._endpoints[model.name]

    def _pool(self, application: str, name: str, entry: ModelPlacement) -> Pool:
        key = application, name
        if key not in self._pools:
            discovery = ServeDiscovery(serve_status.deployment(name, application), serve_status.UNREACHABLE)
            self._pools[key] = Pool(Replicas(discovery.find, discovery.wake), entry)
        self._pools[key].entry = entry
        return self._pools[key]


def batch_store(args: GatewayArgs) -> BatchStore | None:
    """Return the store of batches; None where there is no folder. Raises OSError where it cannot be used."""
    if args.batches is None:
        return None
    return BatchStore(args.batches, args.batches_days, args.batches_mb, args.batch_lines)
