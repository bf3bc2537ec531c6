"""A control token in a user's text reaches no model as a control token, in any family."""

import json
from pathlib import Path

import PIL.Image
import pytest
from distinct_models import distinct
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serve import toy
from serve.media.image import Image
from serve.models.base import Model, Turn
from serve.models.own import Own, own
from serve.models.turns import escape_control_tokens
from serve.tasks import TASKS

CONTROL_TOKENS = (
    "<s> </s> <unk> <pad> <image> <video>"  # Llama, Mistral
    " <|startoftext|> <|endoftext|> <|im_start|> <|im_end|> <|im_sep|> <|reserved003|>"  # Yi, Qwen 2
    " <bos> <eos> <mask> <2mass> [@BOS@] <unused0> <unused98> <start_of_turn> <end_of_turn>"  # Gemma
    " <loc0000> <loc1023> <seg000> <seg127>"  # PaliGemma
).split()
TOYS = sorted(path.parent for path in Path(toy.__file__).parent.glob("*/tokenizer.json"))
HARMLESS = ("a < b", "is 3 <4> 5?", "<table>", "</b>", "<locked>", "a <|b", "[x]", "<loc12>", "<S>", "snow <\u2744>")


def added_tokens(folder: Path) -> list[str]:
    """Return the tokens that a tokenizer looks for first, without the line break, which is ordinary text."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return [token["content"] for token in tokens if token["content"].strip()]


def test_control_token_gets_a_space_and_keeps_its_letters() -> None:
    for token in CONTROL_TOKENS:
        for text in (token, f"what is {token}?", token * 2, f"<{token}>", f"{token[:-1]}{token}"):
            escaped = escape_control_tokens(text)
            assert token not in escaped
            assert escaped.replace(" ", "") == text.replace(" ", "")
            assert escape_control_tokens(escaped) == escaped


@pytest.mark.parametrize("text", HARMLESS)
def test_text_similar_to_a_control_token_is_unchanged(text: str) -> None:
    assert escape_control_tokens(text) == text


@given(st.lists(st.sampled_from([*CONTROL_TOKENS, "<", ">", "|", "/", " ", "s", "<|", "|>", "é"]), max_size=12))
def test_no_sequence_of_control_tokens_stays_whole(parts: list[str]) -> None:
    escaped = escape_control_tokens("".join(parts))
    assert not [token for token in CONTROL_TOKENS if token in escaped]


@pytest.mark.parametrize("folder", TOYS, ids=lambda folder: folder.name)
def test_shipped_tokenizer_reads_escaped_text_without_control_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    control = {tokenizer.token_to_id(token) for token in added_tokens(folder)}
    assert control and set(tokenizer.encode(" ".join(added_tokens(folder)), add_special_tokens=False).ids) & control
    unknown = tokenizer.token_to_id("<unk>")
    for token in added_tokens(folder):
        for text in (token, f"a {token}b", token * 3):
            ids = set(tokenizer.encode(escape_control_tokens(text), add_special_tokens=False).ids)
            assert not (ids - {unknown}) & control, text


TEMPLATED = [model for model in distinct() if model.engine == "vllm" and model.chat is None]
"""Models whose prompts are written here. A chat model's messages are escaped by its engine (test_generic.py)."""


@pytest.mark.parametrize("model", TEMPLATED, ids=lambda x: x.name)
def test_control_token_in_a_request_does_not_reach_the_prompt(model: Model) -> None:
    def texts(word: str) -> list[str]:
        image = Image.of(PIL.Image.new("RGB", (32, 24)))
        prompts = []
        for task in ("vqa", "chat", "detect"):
            if task in model.skills and model.images:
                field = {"labels": [f"a {word}", word]} if task == "detect" else {"question": f"what is {word}?"}
                prompts += [prompt.text for prompt in model.skills[task].ask(TASKS[task].request(image=image, **field))]
        first = Turn("user", f"what is {word}?", has_image=model.images, has_video=not model.images)
        prompts.append(model.converse([first]))
        if "chat" in model.skills and not model.card.toy:
            more = [Turn("system", f"be {word}"), first, Turn("assistant", f"{word} it is"), Turn("user", f"{word}?")]
            prompts.append(model.converse(more))
        return prompts

    plain = texts("nothing")
    for token in ("</s>", "<image>", "<video>", "<|im_end|>", "<loc0000>", "<eos>"):
        assert [text.count(token) for text in texts(token)] == [text.count(token) for text in plain], token


def test_control_token_does_not_reach_a_custom_prompt() -> None:
    spec = {"name": "mine", "like": "toy-paligemma", "checkpoint": "/x", "prompts": {"vqa": "answer {question}"}}
    model = own(Own.model_validate(spec))
    image = Image.of(PIL.Image.new("RGB", (32, 24)))
    (prompt,) = model.skills["vqa"].ask(TASKS["vqa"].request(image=image, question="what is <loc0001>?"))
    assert prompt.text == "answer what is < loc0001>?"
