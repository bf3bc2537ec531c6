import random
import re

import pytest

pytest.importorskip("tokenizers")

from serve.toy import questions, world
from serve.toy.training import prompts, tokenizer
from serve.toy.varied import grammar

FAMILIES = ("llava", "paligemma")


def pairs(family):
    """Yield prompts and answers about two hundred scenes, with their control tokens."""
    rng = random.Random(0)
    for seed in range(200):
        scene = world.scene(seed)
        drawn = [questions.vqa(scene, kind, rng) for kind in questions.KINDS]
        drawn.append(questions.Question("caption", "", "", questions.caption(scene)))
        drawn += [questions.detect(scene, [phrase]) for phrase in questions.phrases(scene, unique=True)]
        drawn += [questions.Question("ocr", "", "", scene.text or "nothing")]
        if family == "llava":
            drawn.append(questions.chat(scene, rng))
        for question in filter(None, drawn):
            if family == "llava":
                asking, answer = prompts.llava(question, scene.size)
                yield prompts.turn(asking), f" {answer}</s>"
            else:
                asking, answer = prompts.paligemma(question)
                yield f"<bos>{asking}\n", f"{answer}<eos>"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_text_decodes_back_to_itself(family):
    tokens = tokenizer.build_tokenizer(family)
    odd = "Größe “naïve”\t東京  \n\n[0.5] ; 007 STOPPED<image>"
    for text in [odd, *(part for pair in pairs(family) for part in pair)]:
        ids = tokens.encode(text, add_special_tokens=False).ids
        assert tokens.decode(ids, skip_special_tokens=False) == text


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_word_of_the_scenes_is_a_single_token(family):
    tokens = tokenizer.build_tokenizer(family)
    for text in (part for pair in pairs(family) for part in pair):
        for piece in tokens.encode(text, add_special_tokens=False).tokens:
            assert len(piece) > 1 or not piece.isalpha() or piece in ("a", "Ġ", "Ċ"), (piece, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_nearly_all_words_of_templates_are_single_tokens(family):
    vocabulary = tokenizer.build_tokenizer(family).get_vocab()
    known = [f"Ġ{word}" in vocabulary
             for text in grammar.texts() for word in re.findall("[a-z]+", re.sub(r"{\w+}", "", text))]  # fmt: skip
    assert len(known) > 10_000 and sum(known) > 0.98 * len(known)


def test_llava_box_is_nine_tokens():
    tokens = tokenizer.build_tokenizer("llava")
    assert len(tokens.encode(" [0.12, 0.30, 0.44, 0.62]", add_special_tokens=False).ids) == 9


def test_paligemma_locations_are_ordinary_tokens():
    tokens = tokenizer.build_tokenizer("paligemma")
    text = "<loc0004><loc0508><loc1020><loc0012> red circle"
    ids = tokens.encode(text, add_special_tokens=False).ids
    assert len(ids) == 6
    assert tokens.decode(ids, skip_special_tokens=True) == text
    assert tokens.encode("\n", add_special_tokens=False).tokens == ["\n"]


@pytest.mark.parametrize(("family", "count"), [("llava", 50), ("paligemma", 128)])
def test_coordinates_have_sorted_values(family, count):
    places = tokenizer.coordinates(family)
    assert len(places) == count
    assert list(places.values()) == sorted(places.values())
    assert max(places) < tokenizer.size(family)
