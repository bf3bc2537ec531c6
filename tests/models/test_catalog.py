"""The catalogue, the comparison table and the list of models, as functions and over HTTP."""

import dataclasses
import datetime
import re
from pathlib import Path

import pytest
from served import LLAVA, PALIGEMMA, calling, router, served

from serve.api.model_list import model_list
from serve.engines.base import Memory
from serve.errors import NotFound
from serve.models import FAMILIES, MODELS, catalog
from serve.router.route import Status
from serve.tasks import TASKS

SERVED = {name: MODELS[name] for name in (LLAVA, PALIGEMMA)}


def test_catalogue_has_every_card_and_marks_served_models() -> None:
    entries = {entry.id: entry for entry in catalog.catalogue(SERVED).data}
    assert list(entries) == list(MODELS)
    assert {name for name, entry in entries.items() if entry.served} == set(SERVED)
    for name, model in MODELS.items():
        assert entries[name].skills == [task for task in TASKS if task in model.skills]
        assert entries[name].organization == model.card.organization


def test_catalogue_hides_the_folder_of_a_toy() -> None:
    entries = {entry.id: entry for entry in catalog.catalogue({}).data}
    assert entries[LLAVA].checkpoint is None
    assert entries["llava-1.5-7b"].checkpoint == "llava-hf/llava-1.5-7b-hf"


def test_private_model_comes_last() -> None:
    private = dataclasses.replace(MODELS[LLAVA], name="ours")
    assert catalog.catalogue({"ours": private}).data[-1].id == "ours"
    assert catalog.compare_models(["ours"], {"ours": private}).served == ["ours"]


def test_comparison_has_a_row_per_property_and_marks_differences() -> None:
    table = catalog.compare_models(["llava-1.5-7b", "llava-1.5-13b"], {})
    rows = {row.name: row for row in table.rows}
    assert list(rows) == [
        "organization",
        "category",
        "modality",
        "released",
        "context_window",
        "parameters",
        "licence",
        "tasks",
        "features",
        "hardware",
        "checked",
    ]
    assert rows["parameters"].values == [7_063_427_072, 13_351_494_656] and rows["parameters"].differs
    assert not rows["organization"].differs and rows["organization"].title == "Organization"
    assert rows["tasks"].values[0] == list(MODELS["llava-1.5-7b"].card.tasks) and not rows["tasks"].differs
    assert table.served == []


def test_features_in_another_order_do_not_differ() -> None:
    card = MODELS[LLAVA].card
    turned = dataclasses.replace(card, features=tuple(reversed(card.features)))
    other = dataclasses.replace(MODELS[LLAVA], name="other", card=turned)
    rows = {row.name: row for row in catalog.compare_models([LLAVA, "other"], {"other": other}).rows}
    assert len(card.features) > 1 and not rows["features"].differs


def test_comparison_lists_shared_and_unshared_tasks() -> None:
    tasks = catalog.compare_models([PALIGEMMA, LLAVA], {}).tasks
    assert {"vqa", "caption", "detect"} <= {row.task for row in tasks.shared}
    assert all(row.models == [PALIGEMMA, LLAVA] for row in tasks.shared)
    assert {row.task: row.models for row in tasks.unshared}["chat"] == [LLAVA]


def test_comparison_has_each_model_once_in_the_given_order() -> None:
    assert catalog.compare_models([PALIGEMMA, LLAVA, PALIGEMMA], {}).models == [PALIGEMMA, LLAVA]


def test_unknown_model_is_named_in_the_error() -> None:
    with pytest.raises(NotFound, match="'nobody' in the catalogue. GET /v1/catalog lists all") as caught:
        catalog.compare_models([LLAVA, "nobody"], SERVED)
    assert (caught.value.param, caught.value.code) == ("models", "model_not_found")


def test_model_list_has_models_before_tasks() -> None:
    entries = model_list(
        SERVED,
        {
            LLAVA: Status(LLAVA, "ready", "ready", 1.0, memory=Memory(14_000, 6_000, 12)),
            PALIGEMMA: Status(PALIGEMMA, "starting", "loading", 1.0),
        },
    ).data
    names = [entry.id for entry in entries]
    able = [task for task in TASKS if any(task in model.skills for model in SERVED.values())]
    assert names == [LLAVA, PALIGEMMA, *able]
    first, second = entries[:2]
    assert (first.diptych.kind, first.diptych.state, second.diptych.state) == ("model", "ready", "starting")
    assert first.diptych.memory == Memory(14_000, 6_000, 12) and second.diptych.memory is None
    assert first.created == 1795996800 and first.owned_by == "Diptych"
    assert first.diptych.about and "toy" in first.diptych.about
    vqa = entries[names.index("vqa")]
    assert (vqa.diptych.kind, vqa.diptych.models, vqa.diptych.state) == ("task", [LLAVA, PALIGEMMA], None)


def test_task_without_a_model_is_not_listed() -> None:
    names = [entry.id for entry in model_list({PALIGEMMA: MODELS[PALIGEMMA]}, {}).data]
    assert "vqa" in names and "chat" not in names


def test_date_without_a_day_becomes_timestamp_0() -> None:
    vague = dataclasses.replace(MODELS[LLAVA], card=dataclasses.replace(MODELS[LLAVA].card, released="2024"))
    assert model_list({LLAVA: vague}, {}).data[0].created == 0


def test_error_suggests_similar_names() -> None:
    with pytest.raises(NotFound, match="near it: .*paligemma-3b-mix-448"):
        catalog.compare_models(["paligemma-3b-448"], {})


def test_comparison_of_llava_and_paligemma_has_no_blank_cell() -> None:
    table = catalog.compare_models(["llava-1.5-7b", "paligemma-3b-mix-448"], {})
    assert all(all(row.values) for row in table.rows)
    assert {"vqa", "caption", "ocr", "detect"} <= {row.task for row in table.tasks.shared}
    unshared = {row.task: row.models for row in table.tasks.unshared}
    assert unshared["segment"] == ["paligemma-3b-mix-448"] and unshared["chat"] == ["llava-1.5-7b"]


def test_file_of_a_family_is_short() -> None:
    folder = Path(catalog.__file__).parent
    lines = {name: (folder / f"{name}.py").read_text().count("\n") for name in FAMILIES}
    assert max(lines.values()) <= 120, lines


def test_card_is_complete() -> None:
    entries = {entry.id: entry for entry in catalog.catalogue({}).data}
    optional = {"object", "served", "toy", "remote", "price", "gated", "images", "videos", "check"}
    for name, model in MODELS.items():
        entry = entries[name]
        may_lack = {"links", "checkpoint", "revision"} if model.card.toy else {"revision"}
        may_lack |= set() if "detect" in model.skills else {"contract"}
        if model.engine != "vllm":
            may_lack |= {"checkpoint", "context_window"}  # a package
        empty = {field for field, value in entry.model_dump(exclude=optional).items() if not value}
        assert empty <= may_lack, name
        released = (entry.released + "-01-01")[:10]  # a month, or a year, where no day is known
        assert datetime.date.fromisoformat(released) <= datetime.date(2026, 11, 30), name
        assert entry.images or entry.videos, name
        assert len(entry.overview) == 2 and all(15 <= len(text.split()) <= 90 for text in entry.overview), name
        assert model.engine != "vllm" or model.family_args["max_model_len"] <= entry.context_window, name
        assert model.checkpoint.revision is None or re.fullmatch("[0-9a-f]{40}", model.checkpoint.revision), name


@pytest.mark.parametrize(
    ("beginning", "meant"),
    [
        ("llava-1.5", "llava-1.5-7b"),
        ("paligemma", "paligemma-3b-mix-448"),
        ("paligemma2", "paligemma2-3b-mix-448"),
        ("llava-v1.6", "llava-v1.6-mistral-7b"),
        ("llava-1-5", "llava-1.5-7b"),
        ("llava-next", "llava-v1.6-mistral-7b"),
        ("llava-next-video", "llava-next-video-7b"),
    ],
)
def test_beginning_of_a_name_is_completed(beginning: str, meant: str) -> None:
    assert catalog.compare_models([beginning, "toy-llava"], {}).models == [meant, "toy-llava"]


def test_beginning_of_several_names_is_the_served_model() -> None:
    served = {"llava-1.5-13b": MODELS["llava-1.5-13b"]}
    assert catalog.compare_models(["llava-1.5", "llava-1.5-7b"], served).models == ["llava-1.5-13b", "llava-1.5-7b"]


async def test_routes_return_catalogue_comparison_and_models() -> None:
    async with calling(served()) as client:
        cards = (await client.get("/v1/catalog")).json()
        table = (await client.get("/v1/compare", params={"models": f"llava-1.5-7b, {PALIGEMMA}"})).json()
        models = (await client.get("/v1/models")).json()
        model = (await client.get(f"/v1/models/{LLAVA}")).json()
    assert cards["object"] == "list" and len(cards["data"]) == len(MODELS)
    assert table["object"] == "diptych.comparison" and table["models"] == ["llava-1.5-7b", PALIGEMMA]
    assert models["object"] == "list" and models["data"][0] == model
    assert model["diptych"]["state"] == "ready" and list(router().routes) == [LLAVA, PALIGEMMA]
