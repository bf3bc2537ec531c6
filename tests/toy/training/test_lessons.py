"""Scenes as training data."""

import functools
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from lazy_module import LazyModule

from serve.engines.base import Generation
from serve.media.image import Image
from serve.models import MODELS
from serve.tasks import TASKS
from serve.toy.questions import Question
from serve.toy.training import prompts
from serve.toy.varied import facts, grammar, scenes
from serve.toy.varied.names import COLOR_NAMES, PALETTE, SHAPE_NAMES, STYLE_OTHERS

corpus, tokenizer = LazyModule("serve.toy.training.corpus"), LazyModule("serve.toy.training.tokenizer")
lessons, recipes = LazyModule("serve.toy.training.lessons"), LazyModule("serve.toy.training.recipes")
train, torch = LazyModule("serve.toy.training.train"), LazyModule("torch")
towers = LazyModule("serve.toy.training.towers")
pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker


@functools.cache
def drawn_scenes():
    return [scenes.varied_scene(seed) for seed in range(40)]


@pytest.fixture(autouse=True)
def built_in_font(monkeypatch):
    monkeypatch.setattr("serve.toy.training.lessons.FONTS", scenes.BUILT_IN)


@pytest.fixture
def quick_training(tmp_path, monkeypatch):
    """Train with two steps a phase, of few pictures and forty scenes, from nothing, and measure nothing on the way."""
    monkeypatch.setattr("serve.toy.training.train.STARTED", tmp_path / "started")
    monkeypatch.setattr("serve.toy.training.train.SCENES", 40)
    monkeypatch.setattr("serve.toy.training.train.TEST_SCENES", 16)
    monkeypatch.setattr(train.Trainer, "held_out_accuracy", lambda self, phase: "")

    def trainer(name, work):
        run = train.Trainer(name, 1e-9, work, "cpu")
        run.phases = [train.replace(phase, images=6, written=min(2, phase.written)) for phase in run.phases[:2]]
        return run

    return trainer


TRAINED: dict[str, bytes] = {}
"""States after a quick training, which is the same each time."""


def begin_with(quick_training, work, *names):
    """Put the states of quick trainings into a folder, the tower's first."""
    for name in names:
        file = work / f"{name}.pt"
        if name in TRAINED:
            file.write_bytes(TRAINED[name])
        else:
            quick_training(name, work).run()
            TRAINED[name] = file.read_bytes()


def new_siglip(side):
    torch.manual_seed(0)
    recipe = recipes.TOWER
    return train.new_net(recipe, side), train.PatchProbe(recipe.vision.width)


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_every_thing_has_a_patch_with_valid_labels(family):
    for scene in drawn_scenes():
        labels, edges = lessons.patch_labels(scene, family, 10)
        assert (labels.max(0) < list(lessons.CLASSES.values())).all()
        assert len({tuple(box) for box in edges if box.any()}) == len(scene.things) + bool(scene.writing)
        text, after = (list(lessons.CLASSES).index(name) for name in ("text", "letters after"))
        assert bool(labels[:, text].any()) == bool(labels[:, after].any()) == bool(scene.writing)


def test_labels_say_where_how_large_and_how_many():
    names = list(lessons.CLASSES)
    for scene in drawn_scenes():
        labels, edges = lessons.patch_labels(scene, "paligemma", 10)
        for thing in scene.things:
            mine = labels[(edges == np.float32(thing.box)).all(1)][0]
            label = {name: mine[names.index(name)] for name in names}
            wide, high = ((thing.box[side] + thing.box[side + 2]) / 2 for side in (0, 1))
            assert (label["place"] - 1) % 3 == np.searchsorted([0.38, 0.62], wide)
            assert (label["place"] - 1) // 3 == np.searchsorted([0.38, 0.62], high)
            assert label["same shape"] == [other.kind for other in scene.things].count(thing.kind)
            assert label["same color"] == [other.color for other in scene.things].count(thing.color)
            assert label["things"] == len(scene.things)
        areas = [facts.frame_area(thing) for thing in scene.things]
        sizes = [labels[(edges == np.float32(thing.box)).all(1)][0][names.index("size")] for thing in scene.things]
        assert [sizes[i] for i in np.argsort(areas)] == sorted(sizes)


def test_labels_name_neighbours_and_order():
    names, colors = list(lessons.CLASSES), list(PALETTE)
    for scene in drawn_scenes():
        labels, edges = lessons.patch_labels(scene, "paligemma", 10)
        met = set()
        for at, thing in enumerate(scene.things):
            patches = labels[(edges == np.float32(thing.box)).all(1)]
            label = {name: patches[0][names.index(name)] for name in names}
            assert sorted(patches[:, names.index("center")])[-2:] in ([2], [1, 2])
            assert label["order"] == at + 1
            assert label["first of color"] == 1 + (thing.color not in met)
            met.add(thing.color)
            areas = sorted((facts.frame_area(other) for other in scene.things), reverse=True)
            assert areas[label["size order"] - 1] == facts.frame_area(thing)
            left = {other.color for other in scene.things if other.center[0] <= thing.center[0] - 0.09}
            assert label["left color"] in ({2 + colors.index(color) for color in left} or {1})
            assert (label["nearest shape"] == 1) == (len(scene.things) == 1)
        assert labels[0, names.index("colors")] == len(met)


def asked_of_a_full_scene(family, seed, times=20):
    """Return a packer, a scene of four things or more, and questions about it, drawn so many times."""
    scene, rng = next(scene for scene in drawn_scenes() if len(scene.things) > 3), random.Random(seed)
    drawn = [question for _ in range(times) for question in lessons.training_questions(scene, family, rng)]
    return corpus.Packer(family), scene, drawn


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_packed_phrases_end_where_their_boxes_are_meant(family):
    packer, scene, drawn = asked_of_a_full_scene(family, seed=3)
    asked_about = [(question, scene.size) for question in drawn if packer.meant(question, scene.size)]
    packed = packer.pack([(0, asked_about[:6])], 400)
    expected = [(phrase, box) for question, _ in asked_about[:6] for phrase, box in question.meant]
    assert len(packed.boxes) == len(packed.phrases) <= len(expected)
    boxes = {phrase: prompts.padded(box, scene.size) if family == "llava" else box for phrase, box in expected}
    for (row, at), box in zip(packed.phrases.tolist(), packed.boxes.tolist(), strict=True):
        before = packer.tokens.decode(packed.ids[row, : at - packer.prefix + 1].tolist(), skip_special_tokens=False)
        assert any(before.lower().endswith(phrase) and boxes[phrase] == pytest.approx(box) for phrase in boxes)
    assert len(packed.boxes) > 1
    asked_twice = [(question, size) for question, size in asked_about if len(packer.meant(question, size)) == 2]
    both = packer.pack([(0, asked_twice)], 2000)
    assert len(asked_twice) == len(both.pairs) > 0
    for at in both.pairs.tolist():
        (row, end), (later_row, later_end) = both.phrases[at - 1 : at + 1].tolist()
        assert row == later_row and end < later_end


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_single_things_that_answers_name_are_located_before_their_names(family):
    packer, scene, drawn = asked_of_a_full_scene(family, seed=5, times=10)
    named = [(question, scene.size) for question in drawn if question.named]
    packed = packer.pack([(0, named)], 20_000)
    boxes = [box for question, _ in named for _, box in question.named]
    assert len(packed.names) == len(packed.named_boxes) == len(boxes) > len(named)
    if family == "llava":
        boxes = [prompts.padded(box, scene.size) for box in boxes]
    assert np.allclose(packed.named_boxes, boxes)
    starts = [question.answer[at:] for question, _ in named for at, _ in question.named]
    following = {
        (row, at): target
        for row, (places, targets) in enumerate(zip(packed.keep.tolist(), packed.target.tolist(), strict=True))
        for at, target in zip(places, targets, strict=True)
    }
    for start, (row, at) in zip(starts, packed.names.tolist(), strict=True):
        assert start.startswith(packer.tokens.decode([following[row, at]]).strip())


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_boxes_of_answers_are_known_before_their_first_tokens(family):
    packer, rng, several = corpus.Packer(family), random.Random(8), 0
    for scene in drawn_scenes():
        drawn = lessons.training_questions(scene, family, rng, segment=3 * (family == "paligemma"))
        located = [(question, scene.size) for question in drawn if question.boxes]
        packed = packer.pack([(0, located)], 2000)
        boxes = [box for question, _ in located for _, box in question.boxes]
        several += len(boxes) - len(located)
        assert np.allclose(
            packed.named_boxes, [prompts.padded(box, scene.size) if family == "llava" else box for box in boxes]
        )
        targets = dict(zip(packed.keep[0].tolist(), packed.target[0].tolist(), strict=True))
        before = [packer.tokens.decode([targets[at]]) for _, at in packed.names.tolist()]
        assert len(before) == len(boxes) and all(text.startswith((" [0.", "<loc")) for text in before)
    assert several > 20 or family == "llava"


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_verdict_on_two_things_is_known_at_the_second_phrase_and_at_the_prompts_end(family):
    packer, scene, drawn = asked_of_a_full_scene(family, seed=3)
    about_two = [question for question in drawn if len(packer.meant(question, scene.size)) == 2]
    packed = packer.pack([(0, [(question, scene.size) for question in about_two])], 2000)
    verdicts = [question.answer.lower() for question in about_two if re.match("(yes|no)\\b", question.answer.lower())]
    assert packed.yes.tolist() == [answer.startswith("yes") for answer in verdicts]
    assert 0 < packed.yes.sum() < len(packed.yes) < len(about_two)
    seconds = packed.phrases[packed.pairs].tolist()
    first_kept = {int(packed.keep[0, (packed.group[0] == group).nonzero()[0]]) for group in range(len(packed.kinds))}
    for row, second, end in packed.verdicts.tolist():
        assert [row, second] in seconds and second < end and end in first_kept


def test_probes_read_a_verdict_at_both_places_and_nothing_where_there_is_none():
    packer, scene, drawn = asked_of_a_full_scene("llava", seed=3, times=60)
    probes = train.TextProbes(4)
    torch.nn.init.zeros_(probes.verdict.bias)
    for kinds, loss in ((("side",), np.log(2)), (("caption",), 0.0)):
        packed = packer.pack([(0, [(question, scene.size) for question in drawn if question.kind in kinds])], 2000)
        states = [torch.zeros(1, packed.mask.shape[1], 4)] * 3
        assert probes.losses([states], [packed])["verdicts"].item() == pytest.approx(loss)


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_phrases_are_counted_at_their_ends_but_not_where_one_is_there_twice(family):
    packer, scene, drawn = asked_of_a_full_scene(family, seed=6)
    counted = [(question, scene.size) for question in drawn if packer.counted(question, scene.size)]
    packed = packer.pack([(0, counted)], 20_000)
    numbers = [dict(question.counts) for question, _ in counted for _ in packer.counted(question, scene.size)]
    assert len(packed.counted) == len(numbers) > 30
    for (row, at, count), known in zip(packed.counted.tolist(), numbers, strict=True):
        before = packer.tokens.decode(packed.ids[row, : at - packer.prefix + 1].tolist(), skip_special_tokens=False)
        assert count in {number for phrase, number in known.items() if before.lower().endswith(phrase)}
    assert len(set(packed.counted[:, 2].tolist())) > 2
    twice = Question("vqa", "more", "are there more circles than red circles?", "no", counts=(("circles", 2),))
    assert packer.counted(twice, scene.size) == []


def test_sets_of_things_are_those_that_answers_are_about():
    packer, rng, met = corpus.Packer("llava"), random.Random(7), Counter()
    for scene in (*drawn_scenes(), *map(scenes.varied_scene, range(40, 80))):  # rare kinds are asked in few
        for question in lessons.training_questions(scene, "llava", rng):
            packed = packer.pack([(0, [(question, scene.size)])], 400)
            assert len(packed.sets) == len(packed.about) == (question.about is not None)
            if question.about is None:
                continue
            *there, count = packed.sets[0].tolist()
            names = {name for name, is_there in zip(corpus.ATTRIBUTES, there, strict=True) if is_there}
            assert packed.about[0, 1] == packed.keep[0, 0]  # where the answer's first token is predicted
            if question.kind in ("kinds", "colors"):
                assert set(re.findall("[a-z]+", question.answer)) - {"and"} == names & set(
                    SHAPE_NAMES.values() if question.kind == "kinds" else PALETTE
                )
            elif question.kind in ("count", "count_all", "count_other") and question.task == "vqa":
                assert question.answer == str(int(count)) and bool(names) == bool(count)
            elif question.kind == "exists_no" and question.task == "vqa":
                assert question.answer == ("no" if count else "yes")
            met[question.kind] += 1
    assert min(met[kind] for kind in ("kinds", "colors", "count", "count_other", "exists_no", "caption")) > 3


def test_name_that_two_things_share_is_not_located():
    things = [thing for scene in drawn_scenes() for thing in scene.things]
    circle = next(thing for thing in things if thing.kind == "circle")
    star = next(thing for thing in things if thing.kind == "star")
    scene = replace(drawn_scenes()[0], things=(circle, star, circle))
    assert lessons.named_things("a circle and a star", scene) == ((13, star.box),)
    assert lessons.named_things("yes", scene) == ()


def test_list_names_things_in_its_order():
    things = [thing for scene in drawn_scenes() for thing in scene.things]
    first, second = [thing for thing in things if thing.kind == "circle"][:2]
    star = next(thing for thing in things if thing.kind == "star")
    row = [replace(thing, color="red", style="filled") for thing in (first, star, second)]
    scene = replace(drawn_scenes()[0], things=tuple(row))
    caption = "a red circle, a red star and a red circle"
    starts = [(0, row[0].box), (14, row[1].box), (29, row[2].box)]
    assert list(lessons.named_things(caption, scene, scene.things)) == starts
    assert lessons.named_things(caption, scene) == ((14, star.box),)
    assert lessons.named_things("star and circle", scene, row[1:]) == ((0, star.box), (9, second.box))


def test_joined_phrases_are_answered_one_after_the_other():
    rng, seen = random.Random(2), Counter()
    for scene in drawn_scenes() * 5:
        for question in lessons.training_questions(scene, "paligemma", rng, segment=3):
            phrases = question.text.split(" ; ")
            if question.task in ("detect", "segment") and len(phrases) > 1:
                answered = list(dict.fromkeys(phrase for phrase, _ in question.boxes))
                assert answered == [phrase for phrase in phrases if phrase in answered] != []
                assert set(question.meant) <= set(question.boxes)
                assert len(question.codes) == (len(question.boxes) if question.task == "segment" else 0)
                seen[question.task, len(answered) == len(phrases)] += 1
    assert min(seen.values()) > 10 and len(seen) == 4  # some phrases mean nothing


def test_phrase_that_is_missing_means_nothing():
    rng, named = random.Random(4), 0
    canonical = {**COLOR_NAMES, **SHAPE_NAMES}
    canonical |= {other: name for name, others in STYLE_OTHERS.items() for other in (name, *others)}
    for scene in drawn_scenes():
        for _ in range(10):
            traits = {
                canonical[word] for word in re.findall("[a-z]+", grammar.missing(scene, rng)) if word in canonical
            }
            assert not traits or not any(traits <= {thing.style, thing.color, thing.kind} for thing in scene.things)
            named += bool(traits)
    assert 100 < named < 300  # the others are other things


def test_boxes_are_compared_where_that_is_clear():
    first = torch.tensor([[0.1, 0.5, 0.3, 0.7], [0.4, 0.1, 0.6, 0.3]])
    second = torch.tensor([[0.5, 0.1, 0.6, 0.2], [0.41, 0.5, 0.61, 0.7]])
    true, clear = train.nets.compared(first, second)
    assert true.tolist()[0] == [0, 1, 1] and clear.tolist() == [[True, True, True], [False, True, False]]
    assert true[1, 1] == 0


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_questions_cover_the_tasks_and_fit_the_context(family):
    rng, tasks = random.Random(0), set()
    packer = corpus.Packer(family)
    for scene in drawn_scenes():
        for question in lessons.training_questions(
            scene, family, rng, segment=3 * (family == "paligemma"), absent=0.1 * (family == "paligemma")
        ):
            tasks.add(question.task)
            assert packer.prefix + packer.length(question, scene.size) < 384
            for _, box in question.boxes:
                assert box in [thing.box for thing in scene.things] + [scene.writing and scene.writing.box]
    assert tasks == {"vqa", "caption", "ocr", "detect"} | ({"segment"} if family == "paligemma" else {"chat"})


def test_boxes_have_the_phrase_as_given_with_words_that_mean_nothing_too():
    rng, unknown = random.Random(2), 0
    known = {word for text in [*grammar.texts(), *grammar.slot_names()] for word in re.findall("[a-z]+", text)}
    for scene in drawn_scenes() * 3:
        for question in lessons.training_questions(scene, "paligemma", rng, segment=3):
            if question.task in ("detect", "segment"):
                assert {phrase for phrase, _ in question.boxes} <= set(question.text.split(" ; "))
                unknown += not set(re.findall("[a-z]+", question.text)) <= known
    assert unknown > 20


def test_question_in_other_words_keeps_those_that_matter():
    rng, text = random.Random(4), "Is there a red circle left of the star?"
    changed = [lessons.in_other_words(text, rng).split(" ") for _ in range(400)]
    longer, shorter = (sum(len(changed_words) - 9 == by for changed_words in changed) for by in (1, -1))
    assert 20 < longer < 80 and 20 < shorter < 80
    for changed_words in changed:
        kept = [word for word in text.split(" ") if word.lower() not in lessons.SMALL_WORDS]
        assert [word for word in changed_words if word in kept] == kept
        assert sum(word not in text.split(" ") for word in changed_words) <= 1
    assert lessons.in_other_words("what colour", random.Random(1)) == "what colour"


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_words_of_questions_and_answers_are_tokens(family):
    tokens, rng = tokenizer.build_tokenizer(family), random.Random(1)
    assert tokenizer.size(family) < 4300
    split, count = Counter(), 0
    for scene in drawn_scenes():
        for question in lessons.training_questions(scene, family, rng):
            text = f" {question.text}\n{question.answer}"
            encoded = tokens.encode(text, add_special_tokens=False)
            assert tokens.decode(encoded.ids, skip_special_tokens=False) == text
            for word in re.findall(r" [a-z]+", text):
                count += 1
                split[word] += len(tokens.encode(word, add_special_tokens=False).ids) > 1
    # spelt out are typos, the words that mean nothing, and some of templates that came after the vocabulary was frozen
    assert sum(split.values()) < 0.04 * count and max(split.values()) < 0.002 * count


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_served_parser_reads_trained_boxes(name):
    rng, recipe = random.Random(2), recipes.RECIPES[name]
    for scene in drawn_scenes():
        picture = Image.of(scenes.render(scene))
        question = lessons._locate("detect", scene, "llava", rng, 0.0)
        if question is None:
            continue
        if name == "llava":
            answer = prompts.llava(question, scene.size)[1]
        else:
            answer = prompts.paligemma(question, recipe.first_loc, recipe.loc_step)[1]
        request = TASKS["detect"].request(image=picture, labels=[question.text])
        (item,) = MODELS[f"toy-{name}"].skills["detect"].parse([Generation(answer)], request).boxes
        width, height = scene.size
        x0, y0, x1, y1 = question.boxes[0][1]
        true = (x0 * width, y0 * height, x1 * width, y1 * height)
        assert item.label == question.text
        assert item.box == pytest.approx(true, abs=(0.011 if name == "llava" else 0.005) * max(scene.size) + 1)


def test_finer_bins_halve_the_rounding():
    for value in (0.0, 0.2, 0.305, 0.5, 0.77, 1.0):
        bin_ = prompts.loc_bin(value, 4, 8)
        assert bin_ % 8 == 4 and abs(bin_ - value * 1023) <= 4.01
    question = Question(
        "segment", "", "the big one", boxes=(("the big one", (0.0, 0.0, 1.0, 1.0)),), codes=((7,) * 16,)
    )
    assert prompts.paligemma(question, 4, 8)[1].count("<seg007>") == 16


@pytest.mark.parametrize(
    ("name", "last"), [("llava", ["short", "listed"]), ("paligemma", ["short", "short fine", "listed", "listed fine"])]
)
def test_second_toy_goes_on_as_the_first_on_larger_images(name, last):
    first, second = ({phase.name: phase for phase in recipes.RECIPES[toy].phases} for toy in (name, f"{name}-b"))
    assert list(first)[-len(last) :] == list(second)[-len(last) :] == last
    for phase in last:
        assert train.replace(first[phase], steps=second[phase].steps, side=176) == second[phase]


def test_toys_fit_twelve_megabytes():
    for recipe in recipes.RECIPES.values():
        net = train.new_net(recipe, recipe.side)
        assert 2 * sum(part.numel() for part in net.parameters()) < 12_000_000


def test_stopped_training_continues_to_the_same_weights(tmp_path, quick_training, monkeypatch):
    begin_with(quick_training, tmp_path, "tower")
    whole = quick_training("paligemma", tmp_path)
    whole.run()
    whole.state.unlink()
    stopped, step = quick_training("paligemma", tmp_path), train.Trainer._step

    def fail_in_the_second_phase(self, phase, at, batch):
        if (phase.name, at) == ("exact", 1):
            self._save()
            raise KeyboardInterrupt
        return step(self, phase, at, batch)

    monkeypatch.setattr(train.Trainer, "_step", fail_in_the_second_phase)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    monkeypatch.setattr(train.Trainer, "_step", step)
    again = quick_training("paligemma", tmp_path)
    again.run()
    for key, part in whole.net.state_dict().items():
        assert torch.equal(part, again.net.state_dict()[key]), key


def test_clone_without_state_goes_on_with_the_weights_that_were_kept(tmp_path, quick_training, monkeypatch):
    begin_with(quick_training, tmp_path, "tower")
    here, after_the_first_phase = quick_training("paligemma", tmp_path), {}
    whole, here.phases = here.phases, here.phases[:1]
    here.run()
    here.keep()
    here.phases = whole

    def look(self, phase, at, batch):
        after_the_first_phase.setdefault(
            (phase.name, at), {name: part.clone() for name, part in self.net.state_dict().items()}
        )
        return ""

    monkeypatch.setattr(train.Trainer, "_step", look)
    there = quick_training("paligemma", tmp_path / "elsewhere")
    there.run()
    assert list(after_the_first_phase) == [("exact", 0), ("exact", 1)]
    for name, part in here.net.state_dict().items():
        assert torch.equal(after_the_first_phase["exact", 0][name], part.half().float()), name


def test_mean_with_the_weights_kept_before_is_kept(tmp_path, quick_training):
    begin_with(quick_training, tmp_path, "tower")
    run = quick_training("paligemma", tmp_path)
    whole, run.phases = run.phases, run.phases[:1]
    run.run()
    run.keep()
    before = {key: part.clone() for key, part in run.net.state_dict().items()}
    run.phases = whole
    run.run()
    run.keep(0.25)
    kept, after = torch.load(run.started), run.net.state_dict()
    assert kept["done"] == (2, 0)
    for key, part in kept["net"].items():
        assert torch.allclose(part.float(), 0.75 * before[key] + 0.25 * after[key], atol=1e-2, rtol=1e-2), key
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_toy_without_its_tower_is_refused_by_name(tmp_path, quick_training):
    with pytest.raises(SystemExit, match="Train tower first"):
        quick_training("llava", tmp_path).run()


def test_second_toy_begins_with_the_first_on_larger_images(tmp_path, quick_training, monkeypatch):
    begin_with(quick_training, tmp_path, "tower", "paligemma")
    first, second = torch.load(tmp_path / "paligemma.pt"), quick_training("paligemma-b", tmp_path)
    expected = {key: part.clone() for key, part in train.deepened(first["net"], second.net).items()}
    seen = []
    monkeypatch.setattr(train.Trainer, "_step", lambda self, *step: seen.append(self.net.state_dict()) or "")
    second.run()
    positions = "vision_tower.vision_model.embeddings.position_embedding.weight"
    assert {key for key, part in expected.items() if not torch.equal(part, seen[0][key])} == {positions}
    assert len(seen[0][positions]) == 121


def test_deeper_toy_computes_as_the_first_until_its_training():
    first, second = (train.new_net(recipes.RECIPES[name], 160) for name in ("paligemma", "paligemma-b"))
    second.load_state_dict(train.deepened(first.state_dict(), second))
    states, positions, mask = torch.randn(1, 5, 192), torch.arange(5)[None], torch.zeros(1, 5, 5)
    with torch.no_grad():
        (last, between), (deeper_last, deeper) = (net.text(states, positions, mask) for net in (first, second))
    assert torch.equal(last, deeper_last) and len(between) == 3 and len(deeper) == 5
    assert torch.equal(between[1], deeper[2]) and torch.equal(between[2], deeper[4])  # where probes read


FEW = """
from serve.toy.training import train
train.TEST_SCENES = 256
recipe = train.ALL["llava-b"]
train.ALL["llava-b"] = train.replace(recipe, phases=tuple(train.replace(phase, images=6) for phase in recipe.phases))
train.main()
"""


def test_two_processes_train_one_net(tmp_path):
    program = tmp_path / "few.py"
    program.write_text(FEW)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", program]
    options = ["llava-b", "--steps-scale", "0.0001", "--work", str(tmp_path), "--no-half"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    torch.save(torch.load(train.STARTED / "llava-b.pt") | {"done": (3, 0)}, tmp_path / "llava-b.pt")
    run = subprocess.run([sys.executable, *command, *options], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("listed 0/2 ") == 1  # one of them reports
    assert torch.load(tmp_path / "llava-b.pt")["done"] == (3, 2)


def test_gradients_of_two_processes_are_averaged(monkeypatch):
    net, probe = new_siglip(160)
    run = SimpleNamespace(_modules=lambda: {"net": net, "probe": probe}, ranks=2)
    for part in (net.vision_tower.vision_model.post_layernorm.weight, probe.bias):
        part.grad = torch.full_like(part, 3.0)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda total: total.add_(1.0))  # another process had ones
    train.Trainer._average_gradients(run)
    assert (net.vision_tower.vision_model.post_layernorm.weight.grad == 2.0).all() and (probe.bias.grad == 2.0).all()


def test_siglip_tower_is_copied_to_a_siglip_tower_and_grows():
    (old, old_probe), (new, new_probe) = new_siglip(160), new_siglip(176)
    torch.nn.init.normal_(old_probe.weight)
    state = {"net": old.state_dict(), "probe": old_probe.state_dict(), "side": 160}
    towers.take_over(new, new_probe, state, np.zeros((1, 3, 176, 176), np.uint8))
    old.vision_tower.vision_model.embeddings.grow(176)
    pixels = torch.randn(2, 3, 176, 176)
    torch.testing.assert_close(new_probe(new.features(pixels)), old_probe(old.features(pixels)))


def test_siglip_tower_becomes_a_clip_tower_that_sees_much_the_same():
    old, old_probe = new_siglip(160)
    recipe = recipes.RECIPES["llava"]
    new, new_probe = train.new_net(recipe, 160), train.PatchProbe(recipe.vision.width)
    images = np.stack([
        np.asarray(scenes.render(scene).resize((160, 160))).transpose(2, 0, 1) for scene in drawn_scenes()[:16]
    ])  # fmt: skip
    towers.take_over(
        new, new_probe, {"net": old.state_dict(), "probe": old_probe.state_dict(), "side": 160}, images[:8]
    )
    with torch.no_grad():
        before = old_probe(old.features(corpus.normalized(images[8:], "either")))
        features = new.features(corpus.normalized(images[8:], "llava"))
        both = torch.stack([before.flatten(), new_probe(features).flatten()])
    assert 0.7 < features.std() < 1.4
    assert torch.corrcoef(both)[0, 1] > 0.95


def test_probe_without_the_last_labels_is_taken_over(monkeypatch):
    fewer = dict(list(lessons.CLASSES.items())[:-2])
    with monkeypatch.context() as patch:
        patch.setattr("serve.toy.training.probes.CLASSES", fewer)
        old = train.PatchProbe(4)
    new = train.PatchProbe(4)
    labels, edges = sum(fewer.values()), train.nets.EDGES
    untrained = new.weight[labels:-edges].clone()
    new.take_over(old.state_dict())
    assert torch.equal(new.weight, torch.cat([old.weight[:labels], untrained, old.weight[labels:]]))
    assert torch.equal(new.bias[-edges:], old.bias[labels:])


def test_probe_that_was_added_since_begins_untrained(tmp_path, quick_training):
    begin_with(quick_training, tmp_path, "tower", "llava")
    state = torch.load(tmp_path / "llava.pt")
    known = {key: part for key, part in state["text_probes"].items() if not key.startswith("gatherer")}
    of_patches = state.pop("image_probe")
    torch.save({**state, "text_probes": known}, tmp_path / "llava.pt")
    again = quick_training("llava", tmp_path)
    untrained = again.text_probes.gatherer.weight.clone()
    again._load(again.state)
    assert torch.equal(again.text_probes.gatherer.weight, untrained)
    assert torch.equal(again.text_probes.counter.weight, known["counter.weight"])
    assert not any(optimizer.state for optimizer in again.optimizers)  # moments of other shapes begin anew
    assert not torch.equal(again.image_probe.weight, of_patches["weight"])
    again._load_weights({**state, "image_probe": of_patches})
    assert torch.equal(again.image_probe.weight, of_patches["weight"])


def test_loss_of_patches_embeddings_trains_the_projector(tmp_path, quick_training):
    run = quick_training("llava", tmp_path)
    batch = run.batch(0, 0)
    run.image_loss(run.net.image(run.net.features(batch.pixels).detach()), batch).backward()
    projector = run.net.multi_modal_projector["linear_1"].weight.grad
    assert projector is not None and projector.abs().sum() > 0
    assert all(part.grad is None for part in run.net.language_model.parameters())


def test_words_are_taken_over_by_token_where_the_vocabulary_grew():
    table = torch.arange(6.0).view(3, 2)
    key = "language_model.model.embed_tokens.weight"
    run = SimpleNamespace(
        tokens=["a", "new", "c", "b"], net=SimpleNamespace(state_dict=lambda: {key: torch.full((5, 2), 9.0)})
    )
    rows = train.Trainer._by_token(run, key, table.half(), ["a", "b", "c"])
    assert rows.tolist() == [[0, 1], [9, 9], [4, 5], [2, 3], [9, 9]]
    assert train.Trainer._by_token(run, "vision_tower.weight", table, ["a", "b", "c"]) is table


def test_letters_of_patches_spell_the_text():
    seen = 0
    for scene in map(scenes.written_scene, range(60)):
        labels, _ = lessons.patch_labels(scene, "paligemma", 10)
        first = list(lessons.CLASSES).index("left letter")
        left, middle, right, before, after = labels.T[first : first + 5]
        assert not scene.things and middle.any()
        for at in np.flatnonzero(middle):
            letter = lessons.LETTERS[middle[at] - 1]
            assert scene.writing.text[before[at] - 1] == letter
            assert before[at] + after[at] == len(scene.writing.text) + 1
            seen += left[at] != right[at]
    assert seen > 50  # a patch often has parts of two letters


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_exported_toy_agrees_with_transformers(name, tmp_path):
    from serve.toy.training import evaluate, export

    evaluate.repair()
    torch.manual_seed(0)
    recipe, scene = recipes.RECIPES[name], drawn_scenes()[3]
    export.export(train.new_net(recipe, recipe.side), name, tmp_path)
    reference = evaluate.Reference(recipe.family, tmp_path, "cpu")
    net, packer = export.load_net(tmp_path), corpus.Packer(recipe.family)
    question = Question("vqa", "where", "whats left of the hollow star?", "red circle")
    inputs = reference.inputs(scene, question)
    with torch.no_grad():
        expected = reference.model(**inputs).logits[0, -1]
        asking = packer.pair(question, scene.size)[0]
        head, image = torch.tensor([packer.head], dtype=torch.long), net.image(net.features(inputs["pixel_values"]))
        x = torch.cat([net.embed(head), image, net.embed(torch.tensor([asking]))], dim=1)
        length = x.shape[1]
        mask = torch.zeros(1, length, length)
        if recipe.family == "llava":
            mask = mask.masked_fill(torch.ones_like(mask).triu(1).bool(), -1e9)
        logits = net.logits(net.text(x, torch.arange(length)[None], mask, torch.tensor([[length - 1]]))[0])[0, 0]
    assert inputs["input_ids"].shape[1] == length
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
