"""LoRA adapters come and go while two gateways and two replicas of their base run, over real connections."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapter_files import write_adapter
from crashed_server import crash
from served import URL, calling, message

from deployments.adapters.loader import AdapterLoader
from deployments.args import Args
from deployments.replica import Replica
from deployments.routing.pool import Pool
from deployments.routing.replica_route import Quarantine, ReplicaRoute
from deployments.routing.replicas import Address, Replicas
from serve.api.app import create_app
from serve.router import Router

BASE, OTHER = "toy-llava", "toy-paligemma"
REPLIES = {"mine": "blue", "theirs": "green", "configured": "white"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.replica.bind_to_loopback", lambda: None)
    for name, seconds in (
        ("adapters.loader.CHECK_S", 0.02),
        ("adapters.loader.SEEN_S", 0.1),
        ("adapters.holder.LINGER_S", 0.1),
        ("adapters.holder.ROOM_S", 0.3),
        ("routing.replicas.REFRESH_S", 0.02),
        ("routing.replicas.RETRY_S", 0.02),
    ):
        monkeypatch.setattr(f"deployments.{name}", seconds)


class InProcessReplica(Replica):
    """A replica of this process, with a port of its own on loopback."""

    def __del__(self) -> None:  # type: ignore[override]
        pass

    async def start(self) -> Address:
        return Address("127.0.0.1", await self.server.start("127.0.0.1"), self.server.token)

    @property
    def fake(self) -> Any:
        return self.worker.engine

    async def crash(self) -> None:
        await crash(self.server)


class Gateway:
    """An app in front of the fleet's replicas, as the gateway's process makes it."""

    def __init__(self, args: Args, addresses: dict[str, list[Address]]) -> None:
        self.args = args

        def pool(name: str) -> Pool:
            async def find(report: Callable[[Address], None]) -> None:
                for address in addresses[name]:
                    report(address)

            async def wake() -> None: ...

            return Pool(Replicas(find, wake), args.engines()[name])

        self.pools = {name: pool(name) for name in args.engines()}
        settings = args.gateway.adapters
        self.loader = None if settings is None else AdapterLoader(settings, self.renew)
        self.renew()
        if self.loader is not None:
            self.loader.start()

    def renew(self) -> None:
        args = self.args
        if self.loader is not None:
            args = self.loader.added_to(args)
            self.loader.serve(self.args, args, self.pools)
        bases = {entry.name: entry.base for entry in args.models if hasattr(entry, "base")}
        routes = [
            ReplicaRoute(model, self.pools[bases.get(name, name)], Quarantine())
            for name, model in args.models_by_name.items()
        ]
        self.app = create_app(Router(routes), adapters=self.loader)

    async def __call__(self, *call: Any) -> None:
        await self.app(*call)

    def stop(self) -> None:
        if self.loader is not None:
            self.loader.stop()
        for pool in self.pools.values():
            pool.close()


class Fleet:
    """The replicas of a config, and its gateways with a client each."""

    def __init__(self, folder: Path, stack: contextlib.AsyncExitStack, *models: Any, **settings: Any) -> None:
        self.folder, self._stack = folder, stack
        (folder / "adapters").mkdir(exist_ok=True)
        adapters = {"folder": str(folder / "adapters"), "file": str(folder / "state.json"), "max_mb": 1, **settings}
        entry = {"simulate": {"replies": "red", "adapters": REPLIES, "kept": 9}, "max_loras": 2}
        self.args = Args.model_validate(
            {
                "models": list(models) or [{"name": BASE, **entry}],
                "gateway": {"replicas": 2, "adapters": adapters},
            }
        )
        self.addresses: dict[str, list[Address]] = {name: [] for name in self.args.engines()}
        self.replicas: list[InProcessReplica] = []
        self.gateways: list[Gateway] = []

    async def add_replica(self, name: str = BASE) -> InProcessReplica:
        replica = InProcessReplica(self.args.engines()[name], self.args.adapters(name))
        self.replicas.append(replica)
        self.addresses[name].append(await replica.start())
        self._stack.push_async_callback(replica.server.stop)
        await replica._starting
        return replica

    async def add_gateway(self) -> httpx.AsyncClient:
        gateway = Gateway(self.args, self.addresses)
        self.gateways.append(gateway)
        self._stack.callback(gateway.stop)
        client = await self._stack.enter_async_context(calling(gateway))  # type: ignore[arg-type]
        assert await eventually(lambda: models_of(client), lambda models: BASE in models)
        for pool in gateway.pools.values():
            await pool.loaded(BASE)
        return client

    def hold_replies(self) -> Callable[[], None]:
        """Let no engine generate until what is returned is called."""
        slots = asyncio.Semaphore(0)
        for replica in self.replicas:
            replica.fake._slots = slots

        def go() -> None:
            for _ in range(99):
                slots.release()

        return go

    def kept(self) -> list[str]:
        """Return the names of the adapters in the file."""
        file = self.folder / "state.json"
        return [entry["name"] for entry in json.loads(file.read_text())["adapters"]] if file.exists() else []

    def added(self) -> list[int]:
        """Return the number of adapters in each replica's engine."""
        return [len(replica.fake.added) for replica in self.replicas]


@contextlib.asynccontextmanager
async def running(folder: Path, *models: Any, replicas: int = 2, **settings: Any) -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as stack:
        fleet = Fleet(folder, stack, *models, **settings)
        write_adapter(folder / "adapters" / "mine")
        write_adapter(folder / "adapters" / "theirs")
        for name in fleet.addresses:
            for _ in range(replicas):
                await fleet.add_replica(name)
        yield fleet


async def eventually(get: Callable[[], Any], holds: Callable[[Any], bool]) -> bool:
    for _ in range(200):
        value = get()
        if holds(await value if asyncio.iscoroutine(value) else value):
            return True
        await asyncio.sleep(0.02)
    return False


async def models_of(client: httpx.AsyncClient) -> dict[str, str]:
    """Return the states of the models that a gateway has."""
    return dict((await client.get("/ready")).json()["models"])


async def has_models(client: httpx.AsyncClient, states: dict[str, str]) -> bool:
    """Wait until a gateway has these models in these states. Return whether that comes."""
    return await eventually(lambda: models_of(client), lambda models: models == states)


async def load(client: httpx.AsyncClient, name: str = "mine", **fields: Any) -> httpx.Response:
    return await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": name, **fields})


async def unload(client: httpx.AsyncClient, name: str = "mine") -> httpx.Response:
    return await client.post("/v1/unload_lora_adapter", json={"lora_name": name})


async def ask(client: httpx.AsyncClient, model: str = "mine") -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"model": model, "messages": [message()]})


def error(reply: httpx.Response) -> tuple[int, str | None, str]:
    body = reply.json()["error"]
    return reply.status_code, body["param"], body["code"]


@pytest.mark.slow
async def test_loaded_adapter_is_a_model_on_every_endpoint_of_both_gateways(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        first, second = await fleet.add_gateway(), await fleet.add_gateway()
        reply = await load(first)
        assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'mine' added successfully.")
        assert fleet.added() == [1, 1] and fleet.kept() == ["mine"]
        for client in (first, second):
            assert await has_models(client, {BASE: "ready", "mine": "ready"})
            listed = {entry["id"]: entry for entry in (await client.get("/v1/models")).json()["data"]}
            assert listed["mine"]["parent"] == BASE and listed["vqa"]["diptych"]["models"] == [BASE, "mine"]
            assert (await ask(client)).json()["choices"][0]["message"]["content"] == "blue"
            fan_out = (await ask(client, "chat:*")).json()["choices"]
            assert [choice["message"]["content"] for choice in fan_out[1:]] == ["red", "blue"]
            body = {"image": URL, "question": "what?", "models": ["mine"]}
            assert (await client.post("/v1/tasks/vqa", json=body)).json()["merged"]["result"]["answer"] == "blue"
            response = await client.post("/v1/responses", json={"model": "mine", "input": [message_of_responses()]})
            assert response.json()["output"][0]["content"][0]["text"] == "blue"
            table = (await client.get("/v1/compare", params={"models": f"{BASE},mine"})).json()
            assert table["models"] == [BASE, "mine"]


def message_of_responses() -> dict[str, Any]:
    image, text = {"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "what?"}
    return {"role": "user", "content": [image, text]}


@pytest.mark.slow
async def test_unloaded_adapter_is_gone_everywhere_once_its_requests_have_ended(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        first, second = await fleet.add_gateway(), await fleet.add_gateway()
        await load(first, tasks=["chat"], max_tokens=7)
        go = fleet.hold_replies()
        requests = [asyncio.create_task(ask(client)) for client in (first, second)]
        assert await eventually(
            lambda: sum(replica.fake.speaking for replica in fleet.replicas), lambda count: count == 2
        )
        reply = await unload(second)
        assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'mine' removed successfully.")
        for client in (first, second):
            assert await has_models(client, {BASE: "ready"})
            assert error(await ask(client)) == (404, "model", "model_not_found")
        asked_ones = [min(1, replica.fake.speaking) for replica in fleet.replicas]
        assert await eventually(fleet.added, lambda added: added == asked_ones)  # where it is asked it is held still
        go()
        assert [(await task).json()["choices"][0]["message"]["content"] for task in requests] == ["blue"] * 2
        assert await eventually(fleet.added, lambda added: added == [0, 0]) and fleet.kept() == []
        assert error(await unload(first)) == (404, "lora_name", "adapter_not_found")


async def test_change_that_a_gateway_could_not_serve_by_is_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        client = await fleet.add_gateway()
        await load(client)
        loader = fleet.gateways[-1].loader
        renew, locked = loader._changed, True

        def renew_unless_locked() -> None:
            if locked:  # until the reply: the loop that reads the file may be the first to try
                raise OSError("database is locked")
            renew()

        loader._changed = renew_unless_locked
        assert (await unload(client)).status_code == 503
        locked = False
        assert await has_models(client, {BASE: "ready"})
        assert error(await ask(client)) == (404, "model", "model_not_found")


@pytest.mark.slow
async def test_load_that_fails_on_one_replica_leaves_none_loaded(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        first, second = await fleet.add_gateway(), await fleet.add_gateway()
        fleet.replicas[1].fake.fail_adapters["mine"] = "The adapter mine cannot be used: its base has no layer q_proj."
        reply = await load(first)
        assert error(reply) == (400, "lora_path", "adapter_refused") and "no layer q_proj" in reply.text
        assert await eventually(fleet.added, lambda added: added == [0, 0]) and fleet.kept() == []
        for client in (first, second):
            assert await has_models(client, {BASE: "ready"})
        assert (await load(second, "theirs")).status_code == 200


async def test_adapter_survives_its_replicas_and_gateways(tmp_path: Path) -> None:
    async with running(tmp_path, replicas=1) as fleet:
        first = await fleet.add_gateway()
        await load(first)
        await fleet.replicas[0].crash()
        fleet.addresses[BASE].clear()
        await fleet.add_replica()
        assert await eventually(lambda: models_of(first), lambda models: models.get("mine") == "ready")
        assert (await ask(first)).json()["choices"][0]["message"]["content"] == "blue"
    async with running(tmp_path, replicas=1) as fleet:  # the whole server anew
        first = await fleet.add_gateway()
        assert await eventually(lambda: models_of(first), lambda models: models.get("mine") == "ready")
        assert (await ask(first)).json()["choices"][0]["message"]["content"] == "blue"


@pytest.mark.slow
async def test_adapter_that_a_new_replica_cannot_load_has_failed_with_its_reason(tmp_path: Path) -> None:
    async with running(tmp_path, replicas=1) as fleet:
        await load(await fleet.add_gateway())
    async with running(tmp_path, replicas=0) as fleet:
        (tmp_path / "adapters" / "mine" / "adapter_config.json").unlink()
        await fleet.add_replica()
        first = await fleet.add_gateway()
        assert await eventually(lambda: models_of(first), lambda models: models.get("mine") == "failed")
        details = (await first.get("/ready")).json()["details"]["mine"]
        assert details["step"].startswith("The adapter mine cannot be used: ")
        assert error(await load(first)) == (400, "lora_name", "adapter_exists")
        write_adapter(tmp_path / "adapters" / "mine")
        assert (await load(first, load_inplace=True)).status_code == 200
        assert (await ask(first)).json()["choices"][0]["message"]["content"] == "blue"


@pytest.mark.slow
async def test_adapter_with_an_unforeseen_fault_keeps_no_other_one_from_a_new_replica(tmp_path: Path) -> None:
    async with running(tmp_path, replicas=1) as fleet:
        first = await fleet.add_gateway()
        assert [(await load(first, name)).status_code for name in ("mine", "theirs")] == [200, 200]
    async with running(tmp_path, replicas=1) as fleet:
        add = fleet.replicas[0].fake.add_adapter

        async def add_theirs(adapter: Any) -> Any:
            if adapter.name == "mine":
                raise OSError("Stale file handle")
            return await add(adapter)

        fleet.replicas[0].fake.add_adapter = add_theirs
        first = await fleet.add_gateway()
        assert await has_models(first, {BASE: "ready", "mine": "failed", "theirs": "ready"})
        assert "Stale file handle" in (await first.get("/ready")).json()["details"]["mine"]["step"]


@pytest.mark.slow
async def test_replica_is_given_the_adapters_that_another_config_serves(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        first = await fleet.add_gateway()
        assert [(await load(first, name)).status_code for name in ("mine", "theirs")] == [200, 200]
    async with running(tmp_path) as fleet:
        more, entry = fleet.args, fleet.args.engines()[BASE]
        fleet.args = more.model_copy(update={"models": [entry.model_copy(update={"max_loras": 1})]})
        first = await fleet.add_gateway()
        assert await has_models(first, {BASE: "ready", "mine": "ready"}) and fleet.added() == [1, 1]
        fleet.gateways[0].args = more
        fleet.gateways[0].renew()
        assert await has_models(first, {BASE: "ready", "mine": "ready", "theirs": "ready"}) and fleet.added() == [2, 2]


@pytest.mark.slow
async def test_adapter_is_replaced_in_place_while_requests_of_the_old_one_run(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        first, second = await fleet.add_gateway(), await fleet.add_gateway()
        await load(first)
        names = [set(replica.fake.added) for replica in fleet.replicas]
        go = fleet.hold_replies()
        request = asyncio.create_task(ask(first))
        assert await eventually(
            lambda: sum(replica.fake.speaking for replica in fleet.replicas), lambda count: count == 1
        )
        assert (await load(second, lora_path="theirs", load_inplace=True)).status_code == 200
        go()
        assert (await request).json()["choices"][0]["message"]["content"] == "blue"
        assert await eventually(fleet.added, lambda added: added == [1, 1]) and fleet.kept() == ["mine"]
        for replica, name in zip(fleet.replicas, names, strict=True):  # a cache by the name has nothing of the old one
            assert not replica.fake.added & name
        assert (await load(first, "theirs")).status_code == 200
        full = await load(first, load_inplace=True)  # the new one needs room beside the old one
        assert error(full) == (400, "lora_path", "too_many_adapters")
        assert (await ask(second)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"lora_path": "../state.json"}, (400, "lora_path", "path_not_allowed")),
        ({"lora_path": "/etc"}, (400, "lora_path", "path_not_allowed")),
        ({"lora_path": "."}, (400, "lora_path", "path_not_allowed")),
        ({"lora_path": "a\0b"}, (400, "lora_path", "path_not_allowed")),
        ({"lora_path": "https://example.com/lora"}, (400, "lora_path", "path_not_allowed")),
        ({"lora_path": "s3://bucket/lora"}, (400, "lora_path", "path_not_allowed")),
        ({"lora_path": "absent"}, (404, "lora_path", "adapter_missing")),
        ({"lora_path": "a" * 300}, (404, "lora_path", "adapter_missing")),
        ({"lora_path": "mine/adapter_config.json"}, (404, "lora_path", "adapter_missing")),
        ({"lora_path": "link"}, (400, "lora_path", "adapter_refused")),
        ({"lora_path": "linked-file"}, (400, "lora_path", "adapter_refused")),
        ({"lora_path": "loop"}, (404, "lora_path", "adapter_missing")),
        ({"lora_path": "large"}, (400, "lora_path", "adapter_refused")),
        ({"lora_path": "empty"}, (400, "lora_path", "adapter_broken")),
        ({"lora_name": BASE}, (400, "lora_name", "invalid_value")),
        ({"lora_name": "vqa"}, (400, "lora_name", "invalid_value")),
        ({"lora_name": "configured"}, (400, "lora_name", "model_exists")),
        ({"lora_name": "a b"}, (400, "lora_name", "invalid_value")),
        ({"lora_name": None}, (400, "lora_name", "invalid_type")),
        ({"base_model_name": "gpt"}, (400, "base_model_name", "invalid_value")),
        ({"base_model_name": "configured"}, (400, "base_model_name", "invalid_value")),
        ({"tasks": ["sing"]}, (400, "tasks[0]", "invalid_value")),
        ({"tasks": ["extract"]}, (400, "tasks", "invalid_value")),
        ({"prompts": {"vqa": "{quesion}"}}, (400, "prompts", "invalid_value")),
        ({"is_3d_lora_weight": True}, (400, "is_3d_lora_weight", "invalid_value")),
        ({"load_inplace": "yes"}, (400, "load_inplace", "invalid_type")),
        ({"rank": 8}, (400, "rank", "unknown_parameter")),
    ],
)
async def test_bad_load_is_refused_with_the_parameters_name(
    tmp_path: Path, fields: dict[str, Any], answer: tuple[int, str, str]
) -> None:
    entry = {"name": BASE, "simulate": {"replies": "red"}, "max_loras": 2}
    models = [entry, {"name": "configured", "base": BASE, "adapter": "/lora"}]
    folder = tmp_path / "adapters"
    write_adapter(tmp_path / "outside")
    write_adapter(folder / "large", padding=2**20)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(folder / "loop")
    write_adapter(folder / "linked-file")
    (folder / "linked-file" / "adapter_model.safetensors").unlink()
    os.symlink(tmp_path / "outside" / "adapter_model.safetensors", folder / "linked-file" / "adapter_model.safetensors")
    async with running(tmp_path, *models, replicas=1) as fleet:
        client = await fleet.add_gateway()
        assert error(await load(client, **fields)) == answer
        assert fleet.added() == [0] and fleet.kept() == []


@pytest.mark.slow
async def test_base_that_is_not_named_or_full_is_refused(tmp_path: Path) -> None:
    models = [{"name": name, "simulate": {"adapters": REPLIES}, "max_loras": 1} for name in (BASE, OTHER)]
    async with running(tmp_path, *models, replicas=1) as fleet:
        client = await fleet.add_gateway()
        reply = await load(client)
        assert error(reply)[:2] == (400, "base_model_name") and OTHER in reply.text
        assert (await load(client, base_model_name=OTHER)).status_code == 200
        assert fleet.added() == [0, 1]
        assert error(await load(client, base_model_name=OTHER)) == (400, "lora_name", "adapter_exists")
        full = await load(client, "theirs", base_model_name=OTHER)
        assert error(full) == (400, "lora_name", "too_many_adapters")
        await unload(client)
        assert (await load(client, "theirs", base_model_name=OTHER)).status_code == 200
        assert fleet.added() == [0, 1]
        assert (await load(client, base_model_name=BASE)).status_code == 200


@pytest.mark.slow
async def test_adapter_of_the_config_is_not_unloaded_and_comes_before_a_loaded_one(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        await load(await fleet.add_gateway(), "configured", lora_path="mine")
    entry = {"name": BASE, "simulate": {"adapters": REPLIES}, "max_loras": 2}
    models = [entry, {"name": "configured", "base": BASE, "adapter": "/lora"}]
    async with running(tmp_path, *models) as fleet:
        client = await fleet.add_gateway()
        assert (await ask(client, "configured")).json()["choices"][0]["message"]["content"] == "white"
        assert fleet.added() == [0, 0]
        await unload(client, "configured")
        assert error(await unload(client, "configured")) == (400, "lora_name", "adapter_of_config")


async def test_routes_are_closed_where_the_operator_set_no_folder(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        fleet.args.gateway.adapters = None
        client = await fleet.add_gateway()
        assert error(await load(client)) == (404, None, "adapters_off")
        assert error(await unload(client)) == (404, None, "adapters_off")


@pytest.mark.slow
async def test_file_with_an_adapter_twice_serves_the_first(tmp_path: Path) -> None:
    async with running(tmp_path, replicas=1) as fleet:
        await load(await fleet.add_gateway())
    file = tmp_path / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "adapters": state["adapters"] * 2}))
    async with running(tmp_path, replicas=1) as fleet:
        first = await fleet.add_gateway()
        assert await has_models(first, {BASE: "ready", "mine": "ready"})
        file.write_text('{"version": Infinity, "adapters": []}')
        await asyncio.sleep(0.1)
        await unload(first)
        assert await has_models(first, {BASE: "ready"})


async def test_file_that_holds_something_else_is_refused_and_unknown_entries_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text('{"version": 7, "adapters": [{"name": "odd", "base": "toy-llava", "loaded": 7, "colour": 1}]}')
    async with running(tmp_path, replicas=1) as fleet:
        client = await fleet.add_gateway()
        assert list(await models_of(client)) == [BASE]
        file.write_text("odd")
        await asyncio.sleep(0.1)
        assert (await ask(client, BASE)).status_code == 200
        with pytest.raises(ValueError, match="does not hold which LoRA adapters are loaded"):
            await fleet.add_gateway()
