"""A task that no other file names goes through every place that knows tasks: none of them needs a line for it."""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field, field_validator
from served import LLAVA, URL, calling, message, picture

from loadtest.asks import Asks, Served
from serve.api.app import create_app
from serve.api.model_list import model_list
from serve.arena.presentation import length, present
from serve.client.asking import text_fields
from serve.client.board import format_result
from serve.client.evaluation import export
from serve.client.evaluation.annotations import Labelled
from serve.client.evaluation.asker import form
from serve.client.http_client import Failure, Misuse
from serve.engines.base import Generation
from serve.engines.fake import FakeEngine
from serve.errors import ParseError
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Model
from serve.models.instructed import chat_messages, instructed_skills
from serve.router import Router
from serve.tasks import TASKS
from serve.tasks.base import Instruction, Task, TextField
from serve.tasks.labels.json_lines import write_json_lines
from serve.tasks.labels.label_studio import read_label_studio, write_label_studio
from serve.tasks.labels.picture import Answered
from serve.tasks.merging.vote import majority
from serve.tasks.reply import Reply, Result
from serve.tasks.request import Request
from serve.tasks.vqa import Question
from serve.worker import Worker

IMAGE = Image(np.zeros((30, 40, 3), np.uint8))


class TallyRequest(Request):
    things: Annotated[list[str], Field(min_length=1, max_length=1)]


class TallyResult(Result):
    tally: Annotated[int, Field(ge=0)]


def read_tally(generation: Generation, request: TallyRequest) -> TallyResult:
    if not re.fullmatch("[0-9]{1,9}", generation.text):
        raise ParseError("The reply is no number.")
    return TallyResult(tally=int(generation.text))


def tally_of(reply: Reply) -> str:
    return str(reply.result)


TALLY = Task(
    name="tally",
    title="Tallying",
    request=TallyRequest,
    result=TallyResult,
    methods={"vote": majority(tally_of), "weighted_vote": majority(tally_of, by_confidence=True)},
    text_field=TextField("things", "Things to tally", "Tally what?", "phrases"),
    example={"things": ["red circle"]},
    instruction=Instruction(lambda request: f"How many times {request.things[0]}?", read_tally, max_tokens=8),
    by_confidence=True,
)


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Model:
    """Add TALLY to the tasks; return a model that is told to do them."""
    monkeypatch.setitem(TASKS, "tally", TALLY)
    return dataclasses.replace(MODELS[LLAVA], skills=instructed_skills(MODELS[LLAVA].converse))


def test_new_task_is_a_skill_of_instructed_models_with_log_probabilities(tally: Model) -> None:
    (prompt,) = tally.skills["tally"].ask(TallyRequest(image=IMAGE, things=["cat"]))
    assert "How many times cat?" in prompt.text and prompt.sampling.max_tokens == 8 and prompt.sampling.logprobs
    silent = instructed_skills(chat_messages, logprobs=False)["tally"]
    assert not silent.ask(TallyRequest(image=IMAGE, things=["cat"]))[0].sampling.logprobs


@pytest.mark.usefixtures("tally")
def test_new_task_is_shown_in_a_duel() -> None:
    answer = present(TALLY, Reply(model="a", status="ok", result=TallyResult(tally=12)), IMAGE)
    assert answer == {"tally": "12"} and length(answer) == 2


def test_new_task_is_listed_with_the_details_that_a_page_needs(tally: Model) -> None:
    details = {entry.id: entry.diptych for entry in model_list({tally.name: tally}, {}).data}
    assert details["tally"].models == [tally.name] and details["tally"].text_field == "things"
    assert details["tally"].boxed is False and details["tally"].places is None
    assert details["tally"].example == {"things": ["red circle"]}


@pytest.mark.usefixtures("tally")
def test_load_test_sends_a_new_task_no_more_labels_than_its_request_takes() -> None:
    asks = Asks(Served(("m",), {"tally": ("m",)}), size="1x", repeat=8, tokens=1)
    for _ in range(8):
        TallyRequest.model_validate_json(asks.task(stream=False).body)
        assert b";" not in asks.fan_out(stream=False).body.partition(b'"text"')[2]


class PairRequest(Request):
    things: Annotated[list[str], Field(min_length=2, max_length=2)]

    @field_validator("things")
    @classmethod
    def _refuse_the_same(cls, things: list[str]) -> list[str]:
        if len(set(things)) < len(things):
            raise ValueError("name two different things")
        return things


@pytest.mark.usefixtures("tally")
def test_load_test_names_two_different_things_where_a_task_wants_two(monkeypatch: pytest.MonkeyPatch) -> None:
    example = {"things": ["red circle", "blue square"]}
    pair = dataclasses.replace(TALLY, name="pair", request=PairRequest, example=example)
    monkeypatch.setitem(TASKS, "pair", pair)
    assert (pair.min_phrases, pair.max_phrases, TASKS["detect"].min_phrases, TASKS["vqa"].min_phrases) == (
        2,
        2,
        1,
        None,
    )
    asks = Asks(Served(("m",), {"pair": ("m",)}), size="1x", repeat=32, tokens=1)
    sent = [PairRequest.model_validate_json(asks.task(stream=False).body).things for _ in range(32)]
    assert example["things"] in sent and any(things != example["things"] for things in sent)
    model = dataclasses.replace(MODELS[LLAVA], skills=instructed_skills(MODELS[LLAVA].converse))
    (entry,) = (entry for entry in model_list({model.name: model}, {}).data if entry.id == "pair")
    assert (entry.diptych.min_phrases, entry.diptych.max_phrases) == (2, 2)


def test_later_fields_of_a_result_are_printed_with_their_names() -> None:
    assert format_result({"larger": "red circle", "ratio": 2.50001, "by": "words", "points": []}) == [
        "red circle  ratio 2.5  by words"
    ]


@pytest.mark.usefixtures("tally")
def test_command_line_explains_a_new_task_by_its_own_example() -> None:
    assert text_fields("tally", "cat", None, lambda *given: "") == {"things": ["cat"]}
    with pytest.raises(Misuse, match="--labels 'red circle'"):
        text_fields("tally", None, None, lambda field, words: f"--{field} {words}")


@pytest.mark.usefixtures("tally")
def test_new_task_is_labelled_by_its_results_own_fields(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"image": "a.png", "task": "tally", "things": ["cat"], "tally": 2}')
    (item,) = Labelled(tmp_path, None).items
    assert (item.task, item.fields, item.truth) == ("tally", {"things": ["cat"]}, {"tally": 2})
    for wrong, why in (('"tally": 2', "things: tally needs it"), ('"things": ["cat"], "tally": -1', "tally: Input")):
        labels.write_text(f'{{"image": "a.png", "task": "tally", {wrong}}}')
        with pytest.raises(Failure, match=why):
            Labelled(tmp_path, None)


class NamesResult(Result):
    names: list[str]


@pytest.mark.usefixtures("tally")
def test_label_studio_and_its_corrections_keep_a_new_tasks_number_or_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    listed = dataclasses.replace(TALLY, name="list", request=Request, result=NamesResult, text_field=None, example={})
    monkeypatch.setitem(TASKS, "list", listed)
    for task, fields, result, typed, corrected in (
        ("list", {}, {"names": ["dog", "old tree"]}, "dog; old tree", "dog ;grass;"),
        ("tally", {"things": ["cat"]}, {"tally": 2}, "2", "3"),
    ):
        answered = Answered("a.png", task, fields, (40, 30), result, 0.9)
        write_label_studio(tmp_path / task, tmp_path, [answered])
        (work,) = json.loads((tmp_path / task / "tasks.json").read_text())
        (region,) = work["predictions"][0]["result"]
        assert region["value"] == {"text": [typed]}
        done = {"data": work["data"], "annotations": [{"result": [region | {"value": {"text": [corrected]}}]}]}
        (truth,) = read_label_studio("a", [done])
        assert (truth.task, truth.fields) == (task, fields)
        assert truth.truth == ({"names": ["dog", "grass"]} if task == "list" else {"tally": 3})
        (tmp_path / "back.json").write_text(json.dumps([done]))
        options = argparse.Namespace(folder=tmp_path, corrected=[tmp_path / "back.json"], task=task, asked=None)
        (item,), files = export._corrected([answered], options)
        assert item.result == truth.truth and files == {"a.png"}
    with pytest.raises(ValueError, match="'many' is no tally"):
        list(read_label_studio("a", [json.loads(json.dumps(done).replace('"3"', '"many"'))]))


class SumRequest(Request):
    expression: Question


@pytest.mark.usefixtures("tally")
def test_text_of_a_new_task_keeps_its_own_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    field = TextField("expression", "Expression", "Which sum?")
    example = {"expression": "1 + 2"}
    monkeypatch.setitem(
        TASKS, "sum", dataclasses.replace(TALLY, name="sum", request=SumRequest, text_field=field, example=example)
    )
    assert text_fields("sum", "1 + 2", None, lambda *given: "") == example
    (tmp_path / "a.png").write_bytes(picture())
    write_json_lines(tmp_path, tmp_path, [Answered("a.png", "sum", example, result={"tally": 3})])
    (item,) = Labelled(tmp_path, None).items
    assert (item.task, item.fields, item.truth) == ("sum", example, {"tally": 3})
    details = {
        entry.id: entry.diptych
        for entry in model_list(
            {"m": dataclasses.replace(MODELS[LLAVA], skills=instructed_skills(chat_messages))}, {}
        ).data
    }
    assert (details["sum"].text_field, details["sum"].text_title, details["sum"].text_kind) == (
        "expression",
        "Expression",
        "text",
    )
    assert TASKS["sum"].texts(SumRequest(image=IMAGE, expression="1 + 2")) == ("1 + 2",)


async def test_new_task_has_an_endpoint_and_chat_completions(tally: Model) -> None:
    worker = Worker(tally, FakeEngine("2"))
    worker.mark("ready", "ready")
    async with calling(create_app(Router([worker]))) as client:
        by_json = await client.post("/v1/tasks/tally", json={"image": URL, "things": ["cat"]})
        sent = form(picture(), {"things": ["cat, or dog"]})
        by_form = await client.post("/v1/tasks/tally", files=sent["files"], data=sent["data"])
        body = {"model": "tally:*", "messages": [message("cat")]}
        choices = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    assert by_json.json()["merged"]["result"] == by_form.json()["merged"]["result"] == {"tally": 2}
    assert [choice["message"]["content"] for choice in choices] == ["2", "2"]
