import random

import pytest

pytest.importorskip("tokenizers")

from serve.toy import questions, world
from serve.toy.training import prompts, tokenizer

FAMILIES = ("llava", "paligemma")


def asked(family):
    """Prompts and answers of a few hundred scenes, whole."""
    rng = random.Random(0)
    for seed in range(200):
        what = world.scene(seed)
        found = [questions.vqa(what, kind, rng) for kind in questions.KINDS]
        found.append(questions.Question("caption", "", "", questions.caption(what)))
        found += [questions.detect(what, [phrase]) for phrase in questions.phrases(what, unique=True)]
        found += [questions.Question("ocr", "", "", what.text or "nothing")]
        if family == "llava":
            found.append(questions.chat(what, rng))
        for one in filter(None, found):
            if family == "llava":
                asking, answer = prompts.llava(one, what.size)
                yield prompts.turn(asking), f" {answer}</s>"
            else:
                asking, answer = prompts.paligemma(one)
                yield f"<bos>{asking}\n", f"{answer}<eos>"


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(family):
    tokens = tokenizer.build(family)
    odd = "Größe “naïve”\t東京  \n\n[0.5] ; 007 STOPPED<image>"
    for text in [odd, *(part for pair in asked(family) for part in pair)]:
        ids = tokens.encode(text, add_special_tokens=False).ids
        assert tokens.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_words_of_the_world_are_one_token_each(family):
    tokens = tokenizer.build(family)
    for text in (part for pair in asked(family) for part in pair):
        for piece in tokens.encode(text, add_special_tokens=False).tokens:
            assert len(piece) > 1 or not piece.isalpha() or piece in ("a", "Ġ", "Ċ"), (piece, text)


def test_a_llava_box_is_nine_tokens():
    tokens = tokenizer.build("llava")
    assert len(tokens.encode(" [0.12, 0.30, 0.44, 0.62]", add_special_tokens=False).ids) == 9


def test_paligemma_places_are_ordinary_tokens():
    tokens = tokenizer.build("paligemma")
    text = "<loc0008><loc0504><loc1016><loc0024> red circle"
    ids = tokens.encode(text, add_special_tokens=False).ids
    assert len(ids) == 6
    assert tokens.decode(ids, skip_special_tokens=True) == text
    assert tokens.encode("\n", add_special_tokens=False).tokens == ["\n"]


@pytest.mark.parametrize(("family", "count"), [("llava", 50), ("paligemma", 64)])
def test_places(family, count):
    places = tokenizer.coordinates(family)
    assert len(places) == count
    assert list(places.values()) == sorted(places.values())
    assert max(places) < tokenizer.size(family)
