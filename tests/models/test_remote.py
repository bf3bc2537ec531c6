"""A model on another server is a few lines of YAML, which are checked before anything is started."""

import json
from typing import Any

import numpy as np
import pytest

from deployments.args import Args
from deployments.config import ConfigError, parse_config
from serve.engines.base import Generation, ReasoningOptions
from serve.engines.remote.chat_request import DEFAULT_FIELDS
from serve.errors import BadRequest, ParseError
from serve.media.image import Image
from serve.models.base import Price, Turn
from serve.models.reasoning import KIMI, THINK
from serve.models.remote import RemoteModel, chat_messages, remote_model
from serve.tasks import TASKS
from serve.tasks.caption import CaptionRequest
from serve.tasks.classify import ClassifyRequest
from serve.tasks.ocr import OcrRequest, OcrResult
from serve.tasks.vqa import VqaRequest

REMOTE = {"remote": "https://api.example.com/v1", "model": "gpt-x"}
IMAGE = Image(np.zeros((4, 4, 3), np.uint8))


def parsed(*models: Any) -> Args:
    text = json.dumps({"applications": [{"import_path": "deployments.app:build", "args": {"models": list(models)}}]})
    return parse_config(text, "c.yaml").args


def refusal(**fields: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        parsed({**REMOTE, **fields})
    return str(refused.value)


def test_url_and_name_are_enough() -> None:
    args = parsed("toy-llava", REMOTE, {**REMOTE, "model": "Qwen/Qwen3-VL-8B"}, {**REMOTE, "name": "mine"})
    assert list(args.models_by_name) == ["toy-llava", "gpt-x", "Qwen3-VL-8B", "mine"]
    assert list(args.engines()) == ["toy-llava"] and list(args.remotes()) == ["gpt-x", "Qwen3-VL-8B", "mine"]
    model = args.models_by_name["gpt-x"]
    assert (
        list(model.skills) == [name for name, task in TASKS.items() if task.instruction]
        and model.images
        and not model.videos
    )
    assert model.card.remote and model.card.price is None
    assert args.remotes()["gpt-x"].key_env is None


def test_remote_models_alone_are_served() -> None:
    assert parsed(REMOTE).engines() == {} and parsed(REMOTE).adapters("gpt-x") == []


def test_operator_gives_tasks_prompts_lengths_card_and_price() -> None:
    fields = {
        "tasks": ["vqa"],
        "prompts": {"vqa": "Q: {question}"},
        "max_tokens": 9,
        "weight": 2,
        "card": {"licence": "theirs", "parameters": 7},
        "price": {"input": 1, "output": 2, "currency": "EUR"},
    }
    model = parsed({**REMOTE, **fields}).models_by_name["gpt-x"]
    assert list(model.skills) == ["vqa"] and model.card.tasks == ("vqa",) and model.weight == 2
    assert (model.card.licence, model.card.parameters, model.card.price) == ("theirs", 7, Price(1, 2, "EUR"))
    (prompt,) = model.skills["vqa"].ask(VqaRequest(image=IMAGE, question="what?"))
    assert json.loads(prompt.text)[0]["content"][1]["text"] == "Q: what?" and prompt.sampling.max_tokens == 9


@pytest.mark.parametrize(
    "url",
    [
        *["api.example.com/v1", "ftp://api.example.com/v1", "https://user:word@api.example.com/v1", "https://"],
        *["https://api.example.com/v1?key=abc", "https://api.example.com/%2e%2e", "http://2130706433/v1", "file:///x"],
        *["https://api.example.com/v1\r\nx: y", "https://a b.example/v1", "https://api.example.com:99999/v1"],
    ],
)
def test_url_that_names_no_api_is_refused(url: str) -> None:
    assert "remote: it must be the base URL of an API" in refusal(remote=url)


@pytest.mark.parametrize("key", ["sk-abcdef0123456789", "abc", "KEY=VALUE", "", "A" * 200])
def test_key_in_place_of_its_variable_is_refused_and_not_repeated(key: str) -> None:
    message = refusal(key_env=key)
    assert "key_env" in message and (not key or key not in message)


def test_detection_is_refused_with_the_reason() -> None:
    assert "tasks: detect needs `boxes`, its coordinate contract" in refusal(tasks=["vqa", "detect"])
    assert "tasks: gpt-x cannot do segment, only vqa, caption, ocr" in refusal(tasks=["segment"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fields": ["temperature"]}, "fields: one of max_tokens and max_completion_tokens must be there"),
        ({"fields": ["max_tokens", "max_completion_tokens"]}, "fields: one of max_tokens"),
        ({"fields": ["max_tokens", "top_k"]}, "fields: 1: Input should be 'max_tokens'"),
        ({"image_types": ["webp"]}, "image_types: png or jpeg must be there"),
        ({"price": {"input": -1, "output": 1}}, "price: input:"),
        ({"price": {"input": 1}}, "price: output: Field required"),
        ({"prompts": {"vqa": "what?"}}, "{question} is missing"),
        ({"name": "toy-llava"}, "'toy-llava' is a known model"),
        ({"name": "vqa"}, "'vqa' means something else here"),
        ({"num_gpus": 1}, "num_gpus: there is no such field"),
        ({"model": "a model"}, "name: String should match pattern"),
    ],
)
def test_wrong_setting_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    assert message in refusal(**fields)


def test_conversation_becomes_messages_with_a_place_for_the_image() -> None:
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "a", has_image=True),
        Turn("assistant", "b"),
        Turn("user", "</s>"),
    ]
    assert json.loads(chat_messages(turns)) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": ""}}, {"type": "text", "text": "a"}],
        },
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "< /s>"},
    ]
    with pytest.raises(BadRequest, match="must be the user's"):
        chat_messages(turns[:-1])


def test_language_is_named_in_the_instruction() -> None:
    skills = remote_model(RemoteModel.model_validate(REMOTE)).skills
    (prompt,) = skills["caption"].ask(CaptionRequest(image=IMAGE, lang="de"))
    assert "ISO 639 code de" in prompt.text and not prompt.sampling.logprobs
    (prompt,) = skills["caption"].ask(CaptionRequest(image=IMAGE))
    assert "ISO" not in prompt.text


@pytest.mark.parametrize(("reply", "text"), [("STOP", "STOP"), ("(no text)", ""), ("No text.", ""), ("", "")])
def test_words_for_an_image_without_text_are_read(reply: str, text: str) -> None:
    skill = remote_model(RemoteModel.model_validate(REMOTE)).skills["ocr"]
    assert skill.parse([Generation(reply)], OcrRequest(image=IMAGE)) == OcrResult(text=text)


@pytest.mark.parametrize(
    ("reply", "cut", "text"),
    [
        ("```\nSTOP\nGO\n```", False, "STOP\nGO"),
        ("```text\nSTOP\n```\n", False, "STOP"),
        ("```\n(no text)\n```", False, ""),
        ("```plaintext\nSTOP\nG", True, "STOP\nG"),
        ("```\nSTOP", False, "```\nSTOP"),
        ("```\na\n```\nb\n```\nc\n```", False, "```\na\n```\nb\n```\nc\n```"),
    ],
)
def test_fence_around_a_transcript_is_left_out(reply: str, cut: bool, text: str) -> None:
    skill = remote_model(RemoteModel.model_validate(REMOTE)).skills["ocr"]
    assert skill.parse([Generation(reply, cut=cut)], OcrRequest(image=IMAGE)) == OcrResult(text=text)


def test_fence_that_is_cut_before_its_first_word_is_an_error() -> None:
    skill = remote_model(RemoteModel.model_validate(REMOTE)).skills["ocr"]
    with pytest.raises(ParseError, match="cut by max_tokens"):
        skill.parse([Generation("```text\n", cut=True)], OcrRequest(image=IMAGE))


@pytest.mark.parametrize("more", [{}, {"fields": [*DEFAULT_FIELDS, "reasoning_effort"]}])
def test_schema_of_a_task_is_sent_whether_the_model_reasons_or_not(more: dict[str, Any]) -> None:
    model = parsed({**REMOTE, **more}).models_by_name["gpt-x"]
    (prompt,) = model.skills["classify"].ask(ClassifyRequest(image=IMAGE, labels=["cat", "dog"]))
    assert prompt.sampling.json_schema is not None and model.reasoning is not None
    for options in (ReasoningOptions(), ReasoningOptions("high" if more else None)):
        sent = model.reasoning.prompt(prompt, options, extend=True)
        assert sent.sampling.json_schema == prompt.sampling.json_schema


def test_reasoning_follows_the_fields_and_the_settings() -> None:
    fields = ["max_tokens", "reasoning_effort", "thinking_token_budget"]
    plain = parsed(REMOTE).models_by_name["gpt-x"].reasoning
    assert plain is not None and not plain.switchable and not plain.bounded and plain.on is None
    settings = {"on": False, "budget": 64, "style": "kimi"}
    chosen = parsed({**REMOTE, "fields": fields, "reasoning": settings}).models_by_name["gpt-x"].reasoning
    assert chosen is not None and chosen.switchable and (chosen.on, chosen.budget) == (False, 64)
    assert chosen.styles == (KIMI,)


@pytest.mark.parametrize(("setting", "words"), [({"on": False}, "reasoning: on"), ({"budget": 9}, "reasoning: budget")])
def test_reasoning_beyond_the_servers_fields_is_refused(setting: dict[str, Any], words: str) -> None:
    assert words in refusal(reasoning=setting)
    fine_tune = {"name": "mine", "like": "toy-llava", "checkpoint": "/x", "reasoning": setting}
    with pytest.raises(ConfigError, match="style"):
        parsed(fine_tune)


def test_fine_tune_that_reasons_says_between_which_marks() -> None:
    fine_tune = {"name": "mine", "like": "toy-llava", "checkpoint": "/x", "reasoning": {"style": "think", "budget": 9}}
    reasoning = parsed(fine_tune).models_by_name["mine"].reasoning
    assert reasoning is not None and (reasoning.styles, reasoning.on, reasoning.budget) == ((THINK,), True, 9)
