"""A model of one's own in a Serve config answers, is compared and merged like any other, and fails alone."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from huggingface_hub import errors
from pydantic import ValidationError
from served import URL

from deployments import config
from deployments.args import Args
from deployments.config import ConfigError
from deployments.replica import Replica
from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from serve.media.image import Image
from serve.models.base import Model
from serve.models.check_report import CheckReport
from serve.router import Router
from serve.router.route import Status
from serve.tasks.vqa import VqaRequest
from serve.worker import Worker

BASE = {
    "name": "toy-paligemma",
    "simulate": {
        "replies": "red",
        "adapters": {"mine": "blue", "other": "green"},
        "fail_adapters": {"odd": "Odd."},
        "kept": 9,
    },
}
OWN = {
    "name": "receipts",
    "like": "toy-paligemma",
    "checkpoint": "/models/receipts",
    "tasks": ["vqa", "ocr"],
    "prompts": {"vqa": "receipt {question}"},
    "weight": 2,
    "simulate": {"replies": "blue", "kept": 9},
}
MINE = {"name": "mine", "base": "toy-paligemma", "adapter": "me/lora", "revision": "abc", "weight": 0.5}
ODD = {"name": "odd", "base": "receipts", "adapter": "/lora"}


def args(*models: Any) -> Args:
    return Args.model_validate({"models": list(models)})


@pytest.fixture(autouse=True)
def outside_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.replica.bind_to_loopback", lambda: None)


class InProcessReplica(Replica):
    """A replica whose engine needs no stopping: it has no process of its own."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


class InProcessRoute:
    """A route to a model in a replica of this process, as ReplicaRoute is over Ray."""

    full = joining = False

    def __init__(self, model: Model, replica: Replica) -> None:
        self.model, self.replica = model, replica

    def answer(self, task: str, request: Any) -> AsyncGenerator[Any, None]:
        return self.replica.answer(task, request, self.model.name)

    def speak(self, prompt: Any) -> AsyncGenerator[Any, None]:
        return self.replica.speak(prompt, self.model.name)

    async def status(self) -> Status:
        return (await self.replica.statuses())[self.model.name]


async def served(given: Args) -> tuple[httpx.AsyncClient, dict[str, InProcessReplica]]:
    """Start the replicas that `build_models` would place, in this process; return their client, and them."""
    replicas = {name: InProcessReplica(entry, given.adapters(name)) for name, entry in given.engines().items()}
    await asyncio.gather(*(replica._tried.wait() for replica in replicas.values()))
    of = {adapter.name: name for name in replicas for adapter in given.adapters(name)}
    router = Router(
        [InProcessRoute(model, replicas[of.get(name, name)]) for name, model in given.models_by_name.items()]
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(router)), base_url="http://test"), replicas


def test_own_models_follow_the_catalogues_in_written_order() -> None:
    given = args(MINE, OWN, BASE, "toy-llava")
    assert list(given.models_by_name) == ["toy-llava", "toy-paligemma", "mine", "receipts"]
    assert list(given.engines()) == ["toy-llava", "toy-paligemma", "receipts"]
    assert [adapter.name for adapter in given.adapters("toy-paligemma")] == ["mine"]
    assert given.models_by_name["mine"].checkpoint.revision == "abc"


def test_entry_overrides_a_known_models_weight_and_checkpoint() -> None:
    model = args({"name": "paligemma-3b-pt-448", "weight": 3, "checkpoint": "/here"}).models_by_name[
        "paligemma-3b-pt-448"
    ]
    assert (model.weight, model.checkpoint.hub, model.checkpoint.revision) == (3, "/here", None)
    assert not model.checkpoint.gated
    assert "text_config.vocab_size" not in model.checkpoint.expect


@pytest.mark.parametrize("entry", [{"name": "toy-llava"}, {**MINE, "tasks": ["vqa", "caption"]}], ids=["known", "own"])
async def test_entry_gives_weights_by_task(entry: dict[str, Any]) -> None:
    entries = [{"name": "toy-paligemma"}, {**entry, "weight": 3, "task_weights": {"vqa": 0.5}}]
    models = args(*entries).models_by_name
    model = models[entry["name"]]
    assert (model.weight_in("vqa"), model.weight_in("caption")) == (0.5, 3)
    plan = Router([Worker(each, FakeEngine()) for each in models.values()]).plan
    image = Image(np.zeros((4, 4, 3), np.uint8))
    assert plan("vqa", VqaRequest(image=image, question="q")).weights[model.name] == 0.5
    assert plan("vqa", VqaRequest(image=image, question="q", weights={model.name: 9})).weights[model.name] == 9
    for wrong, message in (({"segment": 1}, "does not do segment"), ({"sing": 1}, "sing"), ({"vqa": -1}, "equal to 0")):
        with pytest.raises(ValidationError, match=message):
            args(entries[0], {**entry, "task_weights": wrong})


@pytest.mark.parametrize(
    ("entry", "weights"),
    [
        ({}, {"detect": 4, "vqa": 1}),
        ({"task_weights": {"vqa": 2}}, {"detect": 4, "vqa": 2}),
        ({"task_weights": {"detect": 1}}, {"detect": 1, "vqa": 1}),
        ({"weight": 3}, {"detect": 3, "vqa": 3}),
    ],
)
def test_catalogues_weights_by_task_hold_until_an_entry_has_a_weight(
    entry: dict[str, Any], weights: dict[str, float]
) -> None:
    model = args({"name": "toy-paligemma", **entry}).models_by_name["toy-paligemma"]
    assert {task: model.weight_in(task) for task in weights} == weights


async def test_own_models_answer_beside_the_others() -> None:
    client, replicas = await served(args(BASE, OWN, MINE))
    body = {"image": URL, "question": "what colour?"}
    answer = (await client.post("/v1/tasks/vqa", json=body)).json()
    answers = {reply["model"]: reply["result"]["answer"] for reply in answer["replies"]}
    assert answers == {"toy-paligemma": "red", "mine": "blue", "receipts": "blue"}
    assert answer["merged"]["result"]["answer"] == "blue"
    assert answer["merged"]["agreement"] == pytest.approx(2.5 / 3.5, abs=0.01)  # weights 1, 0.5 and 2
    engine: Any = replicas["receipts"].worker.engine
    assert [prompt.text for prompt in engine.prompts] == ["receipt what colour?"]
    shared: Any = replicas["toy-paligemma"].worker.engine
    assert sorted(str(prompt.adapter) for prompt in shared.prompts) == ["None", "mine"]
    named = {"model": "mine", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "caption en"}]}]}  # fmt: skip
    completion = (await client.post("/v1/chat/completions", json=named)).json()
    assert completion["choices"][0]["message"]["content"] == "blue"


async def test_loading_file_goes_when_the_model_is_loaded_or_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_LOADING", str(tmp_path / "loading"))
    broken = {**OWN, "simulate": {"fail_start": "Broken."}}
    for entry in args(BASE, broken).engines().values():
        replica = InProcessReplica(entry)
        await replica.check_health()
        assert list((tmp_path / "loading").iterdir())
        await replica._tried.wait()
        await replica.check_health()
        assert not list((tmp_path / "loading").iterdir())


async def test_engine_whose_start_fails_unforeseen_is_stopped_before_the_next_try() -> None:
    replica = InProcessReplica(args({**BASE, "retry_s": 0.01}).engines()["toy-paligemma"])
    engine = replica.worker.engine
    assert isinstance(engine, FakeEngine)
    loaded: list[bool] = []
    start = engine.start

    async def note_and_start() -> None:
        loaded.append(engine.started)
        await start()

    async def fail_twice(*_: Any) -> CheckReport:
        if len(loaded) < 3:
            raise PermissionError("a folder that may not be read")
        return CheckReport.of("toy-paligemma", {}, {})

    engine.start = note_and_start  # type: ignore[method-assign]
    replica.worker._check = fail_twice
    async with asyncio.timeout(10):
        await replica._starting
    assert loaded == [False, False, False]
    assert engine.started and (await replica.worker.status()).state == "ready"


async def test_replica_that_could_not_listen_has_an_address_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = InProcessReplica(args(BASE).engines()["toy-paligemma"])
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    with monkeypatch.context() as without_files:
        without_files.setenv("RAY_USE_TLS", "1")
        with pytest.raises(ValueError, match="RAY_TLS_SERVER_CERT"):
            await replica.address()
    address = await replica.address()
    assert await replica.address() == address
    await replica.server.stop()


async def test_own_models_have_no_blank_cell_in_catalogue_and_comparison() -> None:
    large = {"name": "large", "like": "llava-1.5-7b", "checkpoint": "/models/large", "simulate": {"replies": "no"}}
    client, _ = await served(args(BASE, OWN, MINE, large))
    cards = {card["id"]: card for card in (await client.get("/v1/catalog")).json()["data"]}
    assert cards["mine"]["served"] and cards["receipts"]["skills"] == ["vqa", "ocr"]
    assert cards["large"]["served"] and cards["large"]["checkpoint"] is None  # a folder of this machine is not shown
    assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]][:3] == [
        "toy-paligemma",
        "receipts",
        "mine",
    ]
    table = (await client.get("/v1/compare", params={"models": "receipts,mine,llava-1.5-7b"})).json()
    assert all(value not in ("", [], None) for row in table["rows"] for value in row["values"])
    assert [row["task"] for row in table["tasks"]["shared"]] == ["vqa", "ocr"]


async def test_failed_adapter_leaves_its_base_and_siblings_ready() -> None:
    client, _ = await served(args(BASE, MINE, {**ODD, "base": "toy-paligemma"}))
    ready = (await client.get("/ready")).json()
    assert ready["models"] == {"toy-paligemma": "ready", "mine": "ready", "odd": "failed"}
    assert ready["details"]["odd"]["step"] == "Odd."
    answer = (await client.post("/v1/tasks/vqa", json={"image": URL, "question": "q"})).json()
    assert [reply["status"] for reply in answer["replies"]] == ["ok", "ok", "error"]
    assert answer["replies"][2]["error"]["message"] == "odd cannot answer: Odd."


async def test_adapters_of_a_failed_base_fail_with_its_reason_until_the_base_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    broken = {**BASE, "simulate": {"needs": str(weights)}, "retry_s": 0.1, "retry_max_s": 0.1}
    client, replicas = await served(args(broken, MINE, OWN))
    ready = (await client.get("/ready")).json()
    assert ready["models"] == {"toy-paligemma": "failed", "mine": "failed", "receipts": "ready"}
    why = f"There is no {weights}."
    assert ready["details"]["toy-paligemma"]["step"] == f"{why} It is tried again after 0.1 s."
    assert ready["details"]["mine"]["step"] == f"Its base toy-paligemma could not be started: {why}"
    weights.touch()
    await replicas["toy-paligemma"]._starting
    assert set((await client.get("/ready")).json()["models"].values()) == {"ready"}


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("cut", "model.safetensors is cut short or damaged"),
        ("other", "architectures should be PaliGemmaForConditionalGeneration and is LlavaForConditionalGeneration"),
        ("missing", "There is no folder"),
        ("half", "lacks its file model-00002.safetensors"),
        ("own/gated", "own/gated is gated: accept its licence at https://huggingface.co/own/gated and set HF_TOKEN"),
    ],
)
async def test_unusable_checkpoint_fails_only_its_own_model(
    tmp_path: Path, checkpoint: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gated(*_: Any, **__: Any) -> str:
        request = httpx.Request("GET", "https://huggingface.co/api")
        raise errors.GatedRepoError("refused", response=httpx.Response(403, request=request))

    monkeypatch.setattr("huggingface_hub.snapshot_download", gated)
    toys = Path(config.HERE.parent / "serve" / "toy")
    if checkpoint in ("cut", "other", "half"):
        (tmp_path / checkpoint).mkdir()
        for file in (toys / ("llava" if checkpoint == "other" else "paligemma")).iterdir():
            (tmp_path / checkpoint / file.name).write_bytes(file.read_bytes())
    if checkpoint == "cut":
        file = tmp_path / "cut" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    if checkpoint == "half":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
        (tmp_path / "half" / "model.safetensors.index.json").write_text(json.dumps(index))
    place = checkpoint if "/" in checkpoint else str(tmp_path / checkpoint)
    entry = {"name": "own", "like": "toy-paligemma", "checkpoint": place}
    client, _ = await served(args(BASE, entry))
    ready = (await client.get("/ready")).json()
    assert ready["models"] == {"toy-paligemma": "ready", "own": "failed"}
    answer = (await client.post("/v1/tasks/vqa", json={"image": URL, "question": "q"})).json()
    assert [reply["status"] for reply in answer["replies"]] == ["ok", "error"]
    assert answer["replies"][1]["error"]["message"].startswith("own cannot answer: ")
    assert message in answer["replies"][1]["error"]["message"] and message in ready["details"]["own"]["step"]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([{**OWN, "prompts": {"vqa": "{quesion}"}}], "models.0 (receipts): prompts: vqa: {quesion} is no placeholder"),
        ([{**OWN, "like": "gpt"}], "models.0 (receipts): like: There is no model 'gpt' to be like."),
        ([{**OWN, "tasks": ["chat"]}], "models.0 (receipts): tasks: toy-paligemma cannot do chat"),
        ([{**OWN, "weights": 2}], "models.0 (receipts): weights: there is no such field."),
        ([{**OWN, "card": {"licens": "x"}}], "models.0 (receipts): card: licens: there is no such field."),
        ([{"name": "x", "like": "toy-llava"}], "models.0 (x): checkpoint: Field required."),
        ([BASE, {"name": "x", "base": "toy-paligemma"}], "models.1 (x): adapter: Field required."),
        ([BASE, {**MINE, "num_gpus": 1}], "models.1 (mine): num_gpus: there is no such field."),
        ([MINE], "mine: base: 'toy-paligemma' is not served here with an engine of its own"),
        ([BASE, MINE, {**ODD, "base": "mine"}], "odd: base: 'mine' is not served here with an engine of its own"),
        ([BASE, {**MINE, "tasks": ["chat"]}], "mine: tasks: toy-paligemma cannot do chat"),
        ([BASE, MINE, MINE], "Named twice: mine."),
        ([{"name": "gpt"}], "A model of your own says what it is `like`"),
    ],
)
def test_wrong_entry_is_refused_with_its_name_and_field(tmp_path: Path, models: list[Any], message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.dump({"applications": [{"import_path": config.APP, "args": {"models": models}}]}))
    with pytest.raises(ConfigError) as refused:
        config.read_config(file)
    assert message in str(refused.value) and "\n" not in str(refused.value)
