"""A gateway's part: loads and unloads LoRA adapters by request, and keeps replicas and file in agreement."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from deployments.adapters.state import HOLD, AdapterFile, AdapterState, LoadedAdapter, WantedAdapters, parse_state
from deployments.args import AdapterArgs, Args
from deployments.routing.pool import Pool
from serve.api.adapter_changes import LoadRequest
from serve.api.error_responses import validation_error
from serve.errors import BadRequest, ModelError, NotFound, ServeError
from serve.models.own import lora
from serve.transport.connection import Connection

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""Seconds between two looks into the file, and for replicas that lack an adapter."""
SEEN_S = 1.5
"""Seconds within which every gateway has looked into the file. A request is answered only then."""
LOAD_S = 300.0
"""Seconds for a replica to load an adapter."""
RETRY_S = 30.0
"""Seconds after which a replica that could not load an adapter is asked again."""
NOT_FOUND = ("adapter_missing", "checkpoint_missing")
REFUSED = ("adapter_broken", "adapter_refused", "checkpoint_broken", "load_failed", "too_many_adapters")
"""Codes of a replica's errors that are about the adapter."""


class AdapterLoader:
    """Loads LoRA adapters on every replica of their base; each is then served as one of the config.

    changed: called once others are loaded than before; it calls `added_to` and `serve`. Raises OSError or ValueError
    where the file cannot be used.
    """

    def __init__(self, args: AdapterArgs, changed: Callable[[], None]) -> None:
        self.args = args
        self.pools: Mapping[str, Pool] = {}
        """The replicas of each model with an engine."""
        self._changed = changed
        self._file = AdapterFile(args.file)
        self._content = self._file.content()
        self._state = parse_state(self._content, args.file)
        self._unserved = False
        self._config: Args | None = None
        self._served: Sequence[LoadedAdapter] = ()
        self._given: WeakKeyDictionary[Connection, tuple[WantedAdapters, float]] = WeakKeyDictionary()
        """By replica: what it was given, and the monotonic time at which it is to be given it again."""
        self._giving: dict[Connection, asyncio.Task[None]] = {}
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Keep up with the file and the replicas from now on."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    def stop(self) -> None:
        for task in (self._keeping, *self._giving.values()):
            if task is not None:
                task.cancel()

    def added_to(self, config: Args) -> Args:
        """Return a config with the loaded adapters as entries. Those that do not go with it are left out and logged."""
        served: list[LoadedAdapter] = []
        for adapter in self._state.adapters:
            try:
                _check(adapter, config, served)
            except ServeError as error:
                log.warning("the loaded LoRA adapter %s is not served: %s", adapter.name, error.message)
            else:
                served.append(adapter)
        return Args(models=[*config.models, *served], groups=config.groups, gateway=config.gateway)

    def serve(self, config: Args, served: Args, pools: Mapping[str, Pool]) -> None:
        """Load adapters for this config from now on. served: what `added_to` made of it. pools: of its engines."""
        self._config, self.pools = config, pools
        self._served = [entry for entry in served.models if isinstance(entry, LoadedAdapter)]

    async def load(self, given: LoadRequest) -> None:
        """Load an adapter on every replica of its base, or on none. Raises ServeError naming the field at fault."""
        async with self._file.turn():
            await self._read()
            version = self._state.next_version()
            adapter = self._adapter(given, version)
            replicas = await self._replicas(adapter.base)
            if not replicas:
                raise ModelError(f"No process of {adapter.base} is loaded now; ask again.", code="model_starting")
            former, after = self._state, [*self._state.without(adapter.name), adapter]
            served = [each for each in self._served if each.name != adapter.name]
            wanted = self._wanted(version, adapter.base, [*served, adapter])
            try:
                await self._load_everywhere(replicas, wanted, adapter)
                await self._write(AdapterState(version, after))
            except BaseException:
                await asyncio.shield(self._go_back(replicas, adapter.base, former, version))
                raise
        await self._tell_others()

    async def unload(self, name: str) -> None:
        """Unload an adapter on all replicas, each once its requests with it have ended. Raises ServeError."""
        async with self._file.turn():
            await self._read()
            if self._state.named(name) is None:
                raise self._unknown(name)
            await self._write(AdapterState(self._state.next_version(), self._state.without(name)))
        await self._give_all()
        await self._tell_others()

    def _adapter(self, given: LoadRequest, version: int) -> LoadedAdapter:
        """Return the adapter that a request names. Raises BadRequest naming the field at fault."""
        config = self._config
        assert config is not None
        if not given.load_inplace and self._state.named(given.lora_name) is not None:
            raise BadRequest(
                f"An adapter {given.lora_name} is loaded already: unload it first, or say load_inplace.",
                param="lora_name",
                code="adapter_exists",
            )
        fields = {
            "name": given.lora_name,
            "base": _base(given, config),
            "adapter": str(_path_in(self.args.folder, given.lora_path)),
            "loaded": version,
            **given.model_dump(include={"tasks", "prompts", "max_tokens", "weight"}, exclude_unset=True),
        }
        try:
            adapter = LoadedAdapter.model_validate(fields)
        except ValidationError as error:
            refusal = validation_error(error, fields)
            if refusal.param == "name":
                refusal = BadRequest(f"lora_{refusal.message}", param="lora_name", code=refusal.code)
            raise refusal from None
        _check(adapter, config, self._state.without(adapter.name))
        return adapter

    def _unknown(self, name: str) -> ServeError:
        if self._config is not None and name in self._config.models_by_name:
            return BadRequest(
                f"{name} is of the server's config, and stays until its entry there goes.",
                param="lora_name",
                code="adapter_of_config",
            )
        return NotFound(f"No adapter {name!r} is loaded.", param="lora_name", code="adapter_not_found")

    async def _load_everywhere(
        self, replicas: Sequence[Connection], wanted: WantedAdapters, adapter: LoadedAdapter
    ) -> None:
        answers = await asyncio.gather(*(self._hold(each, wanted) for each in replicas), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            if (error := answer.get(adapter.name)) is not None:
                raise _client_error(error)

    async def _go_back(self, replicas: Sequence[Connection], base: str, former: AdapterState, version: int) -> None:
        """Let everything be as it was before a load that failed, also replicas that have loaded it."""
        state = AdapterState(max(version + 1, former.next_version()), former.adapters)
        wanted = self._wanted(state.version, base, self._served)
        await asyncio.gather(*(self._hold(each, wanted) for each in replicas), return_exceptions=True)
        with contextlib.suppress(OSError, ValueError):
            await self._write(state)

    async def _keep(self) -> None:
        while True:
            try:
                await self._read()
                self._renew()
                await self._give_all()
            except (OSError, ValueError):
                log.exception("%s cannot be used; the adapters that are loaded stay", self.args.file)
            await asyncio.sleep(CHECK_S)

    async def _read(self) -> None:
        """Take over what another gateway has written. Raises OSError or ValueError where the file cannot be used."""
        content = await asyncio.to_thread(self._file.content)
        if content != self._content:
            self._content = content  # one that is no state is complained of once
            self._take(parse_state(content, self.args.file), content)

    async def _write(self, state: AdapterState) -> None:
        self._take(state, await asyncio.to_thread(self._file.write, state))

    def _take(self, state: AdapterState, content: bytes) -> None:
        former, self._state, self._content = self._state, state, content
        self._unserved |= state.adapters != former.adapters
        self._renew()

    def _renew(self) -> None:
        """Let the gateway serve by the state. One that could not, as a database was locked, is asked again."""
        if self._unserved:
            self._changed()
            self._unserved = False

    async def _give_all(self) -> None:
        """Give every replica that has not got it the present state, each in a task of its own."""
        if self._config is None or self._state.version == 0:
            return
        for base, entry in self._config.engines().items():
            for replica in await self._replicas(base) if entry.max_loras else ():
                given, again_at = self._given.get(replica, (None, 0.0))
                wanted = self._wanted(self._state.version, base, self._served)  # another config may serve others
                if replica not in self._giving and (given != wanted or time.monotonic() >= again_at):
                    self._giving[replica] = asyncio.get_running_loop().create_task(self._give(replica, wanted))

    async def _give(self, replica: Connection, wanted: WantedAdapters) -> None:
        again_at = time.monotonic() + RETRY_S
        try:
            errors = await self._hold(replica, wanted)
        except ServeError as error:
            log.warning("a replica could not be given its LoRA adapters: %s", error.message)
        else:
            for failure in errors.values():
                log.warning("%s", failure.message)
            again_at = again_at if errors else float("inf")
        finally:
            del self._giving[replica]
        self._given[replica] = wanted, again_at

    async def _replicas(self, base: str) -> list[Connection]:
        pool = self.pools.get(base)
        return [] if pool is None else await pool.loaded(base)

    def _wanted(self, version: int, base: str, adapters: Iterable[LoadedAdapter]) -> WantedAdapters:
        of_base = tuple(adapter for adapter in adapters if adapter.base == base)
        return WantedAdapters(version, of_base, self.args.folder, self.args.max_mb)

    async def _hold(self, replica: Connection, wanted: WantedAdapters) -> dict[str, ModelError]:
        """Make a replica hold these adapters. Return the errors of those that it cannot load. Raises ModelError."""
        try:
            async with asyncio.timeout(LOAD_S), contextlib.aclosing(replica.stream(HOLD, wanted)) as answers:
                async for answer in answers:
                    errors: dict[str, ModelError] = answer
                    return errors
        except TimeoutError:
            raise ModelError(f"A process was not done within {LOAD_S:g} s.", code="load_failed") from None
        except ConnectionError:
            pass
        raise ModelError("A process ended while it was loading adapters; ask again.", code="model_starting")

    async def _tell_others(self) -> None:
        """Wait until all gateways know: a client's next request may come to any of them."""
        if self._config is not None and self._config.gateway.max_replicas > 1:
            await asyncio.sleep(SEEN_S)


def _base(given: LoadRequest, config: Args) -> str:
    """Return the model that takes the adapter. Raises BadRequest naming `base_model_name`."""
    able = [name for name, entry in config.engines().items() if entry.max_loras]
    name = given.base_model_name or (able[0] if len(able) == 1 else None)
    if name in able:
        return name
    if name is None and able:
        why = f"Several models take adapters: name one of {', '.join(able)}."
    else:
        named = "No model" if name is None else repr(name[:200])
        why = f"{named} takes no adapters while it runs (max_loras)" + (f"; {', '.join(able)} do." if able else ".")
    raise BadRequest(why, param="base_model_name")


def _path_in(folder: Path, path: str) -> Path:
    """Return the path of an adapter below the folder. Raises BadRequest naming `lora_path`."""
    absolute = Path(os.path.normpath(folder / path))
    if "://" in path or not path.isprintable() or folder not in absolute.parents:
        raise BadRequest(
            f"lora_path must be a folder within {folder}, absolute or relative to it; nothing is fetched.",
            param="lora_path",
            code="path_not_allowed",
        )
    return absolute


def _check(adapter: LoadedAdapter, config: Args, others: Iterable[LoadedAdapter]) -> None:
    """Raise BadRequest where an adapter does not go with a config and the others that are loaded."""
    entry = config.engines().get(adapter.base)
    others = list(others)
    if adapter.name in config.models_by_name or adapter.name in [other.name for other in others]:
        raise BadRequest(f"{adapter.name} is served here already.", param="lora_name", code="model_exists")
    if entry is None:
        raise BadRequest(f"{adapter.base!r} is not served here.", param="base_model_name")
    if sum(other.base == adapter.base for other in others) >= entry.max_loras:
        raise BadRequest(
            f"{adapter.base} takes {entry.max_loras} adapters at a time (max_loras): unload one first.",
            param="lora_name",
            code="too_many_adapters",
        )
    try:
        lora(adapter, config.models_by_name[adapter.base])
    except ValueError as error:
        raise BadRequest(str(error), param=str(error).partition(":")[0]) from None


def _client_error(error: ModelError) -> ServeError:
    """Return a replica's error as the client hears it: most are about the adapter that it named."""
    if error.code in NOT_FOUND:
        return NotFound(error.message, param="lora_path", code=error.code)
    if error.code in REFUSED:
        return BadRequest(error.message, param="lora_path", code=error.code)
    return error
