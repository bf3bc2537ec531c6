"""Whoever spells a control token says letters, in every family."""

import json
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serve import toy
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Model, Turn
from serve.models.own import Own, own
from serve.models.words import plain
from serve.tasks import TASKS

SPELLED = (
    "<s> </s> <unk> <pad> <image> <video>"  # Llama, Mistral
    " <|startoftext|> <|endoftext|> <|im_start|> <|im_end|> <|im_sep|> <|reserved003|>"  # Yi, Qwen 2
    " <bos> <eos> <mask> <2mass> [@BOS@] <unused0> <unused98> <start_of_turn> <end_of_turn>"  # Gemma
    " <loc0000> <loc1023> <seg000> <seg127>"  # PaliGemma
).split()
TOYS = sorted(path.parent for path in Path(toy.__file__).parent.glob("*/tokenizer.json"))
HARMLESS = ("a < b", "is 3 <4> 5?", "<table>", "</b>", "<locked>", "a <|b", "[x]", "<loc12>", "<S>", "snow <\u2744>")


def added(folder: Path) -> list[str]:
    """What a tokenizer finds in a text before it looks at words; a line break is one of them, and a word."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return [token["content"] for token in tokens if token["content"].strip()]


@pytest.mark.parametrize("spelled", SPELLED)
def test_a_control_token_is_broken_and_still_reads_the_same(spelled: str) -> None:
    for text in (spelled, f"what is {spelled}?", spelled * 2, f"<{spelled}>", f"{spelled[:-1]}{spelled}"):
        said = plain(text)
        assert spelled not in said and said.replace(" ", "") == text.replace(" ", "") and plain(said) == said


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_alike_stays(text: str) -> None:
    assert plain(text) == text


@given(st.lists(st.sampled_from([*SPELLED, "<", ">", "|", "/", " ", "s", "<|", "|>", "é"]), max_size=12))
def test_no_order_of_them_gets_through(parts: list[str]) -> None:
    said = plain("".join(parts))
    assert not [spelled for spelled in SPELLED if spelled in said]


@pytest.mark.parametrize("folder", TOYS, ids=lambda folder: folder.name)
def test_no_word_becomes_a_control_token_of_a_shipped_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    control = {tokenizer.token_to_id(token) for token in added(folder)}
    assert control and set(tokenizer.encode(" ".join(added(folder)), add_special_tokens=False).ids) & control
    unknown = tokenizer.token_to_id("<unk>")
    for token in added(folder):
        for text in (token, f"a {token}b", token * 3):
            ids = set(tokenizer.encode(plain(text), add_special_tokens=False).ids)
            assert not (ids - {unknown}) & control, text


@pytest.mark.parametrize("spelled", ["</s>", "<image>", "<video>", "<|im_end|>", "<loc0000>", "<eos>"])
@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_no_task_and_no_conversation_lets_one_through(model: Model, spelled: str) -> None:
    def texts(word: str) -> list[str]:
        image = Image.of(PIL.Image.new("RGB", (32, 24)))
        found = []
        for task in ("vqa", "chat", "detect"):
            if task in model.skills and model.images:
                field = {"labels": [f"a {word}", word]} if task == "detect" else {"question": f"what is {word}?"}
                found += [prompt.text for prompt in model.skills[task].ask(TASKS[task].request(image=image, **field))]
        first = Turn("user", f"what is {word}?", pictured=model.images, filmed=not model.images)
        found.append(model.converse([first]))
        if "chat" in model.skills and not model.card.toy:
            more = [Turn("system", f"be {word}"), first, Turn("assistant", f"{word} it is"), Turn("user", f"{word}?")]
            found.append(model.converse(more))
        return found

    ours = [text.count(spelled) for text in texts("nothing")]
    assert [text.count(spelled) for text in texts(spelled)] == ours


def test_nor_do_prompts_of_ones_own() -> None:
    about = {"name": "mine", "like": "toy-paligemma", "checkpoint": "/x", "prompts": {"vqa": "answer {question}"}}
    model = own(Own.model_validate(about))
    image = Image.of(PIL.Image.new("RGB", (32, 24)))
    (prompt,) = model.skills["vqa"].ask(TASKS["vqa"].request(image=image, question="what is <loc0001>?"))
    assert prompt.text == "answer what is < loc0001>?"
