import random

import numpy as np
import pytest
from later import Later

from serve.toy import questions, world
from serve.toy.questions import Question

torch, tokenizer = Later("torch"), Later("serve.toy.training.tokenizer")
corpus, nets = Later("serve.toy.training.corpus"), Later("serve.toy.training.nets")
WHAT = world.scene(3)
ASKED = [(Question("vqa", "color", "What color is the star?", "red"), WHAT.size),
         (Question("caption", "caption", "", questions.caption(WHAT)), WHAT.size)]  # fmt: skip


def said(net, packer, packed, image):
    """Logits of the kept rows."""
    head = torch.tensor([packer.head], dtype=torch.long).expand(len(packed.ids), -1)
    x = torch.cat([net.embed(head), image.expand(len(packed.ids), -1, -1), net.embed(packed.ids)], dim=1)
    return net.logits(net.text(x, packed.positions, packed.mask, packed.keep))


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_packed_questions_do_not_see_each_other(family):
    torch.manual_seed(0)
    net, packer = nets.Net(family, tokenizer.size(family)), corpus.Packer(family)
    image = torch.randn(1, 49, net.size.width)
    with torch.no_grad():
        together = packer.pack([(0, ASKED)], 200)
        alone = [packer.pack([(0, [one])], 200) for one in ASKED]
        apart = torch.cat([said(net, packer, one, image)[0] for one in alone])
        torch.testing.assert_close(said(net, packer, together, image)[0], apart, atol=1e-4, rtol=1e-4)
    assert torch.equal(together.target[0], torch.cat([one.target[0] for one in alone]))


def test_exact_packs_let_the_picture_see_the_prompt_and_nothing_see_the_answer_before_it():
    packer = corpus.Packer("paligemma")
    packed = packer.pack([(0, ASKED[1:])], 200, exact=True)
    prefix = 49 + len(packer.pair(*ASKED[1])[0])
    seen = packed.mask[0] == 0
    assert seen[:prefix, :prefix].all() and not seen[:prefix, prefix:].any()
    answer = seen[prefix:, prefix:]
    assert seen[prefix:, :prefix].all() and torch.equal(answer, torch.ones_like(answer).tril())
    assert packed.keep[0, 0] == prefix - 1


def test_the_first_word_weighs_in_full():
    packed = corpus.Packer("llava").pack([(0, ASKED)], 200)
    first = [int((packed.group[0] == group).nonzero()[0]) for group in (0, 1)]
    assert packed.weight[0, first].tolist() == [1.0, 1.0]
    assert (packed.weight[0][first[1] + 1 :] < 1).all()


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_every_thing_has_a_patch_and_every_patch_a_truth(family):
    for seed in range(200):
        what = corpus.scene(seed)
        labels, edges = corpus.patch_labels(what, family, nets.SIDE // nets.PATCH)
        assert (labels.max(0) < list(corpus.CLASSES.values())).all()
        assert len({tuple(box) for box in edges if box.any()}) == len(what.shapes)
        assert bool(labels[:, 4].any()) == bool(what.text)
        assert ((labels[:, 0] > 0) == edges.any(1)).all()


def test_masks_and_absent_things_are_asked_for_where_the_phase_says_so():
    rng = random.Random(0)
    plain, more = [], []
    for seed in range(300):
        what = corpus.scene(seed)
        plain += [(what, one) for one in corpus.asked(what, "paligemma", rng)]
        more += [(what, one) for one in corpus.asked(what, "paligemma", rng, segment=True, absent=0.1)]
    assert not [one for _, one in plain if one.task == "segment" or one.kind == "absent"]
    placed = [(what, one) for what, one in more if one.task in ("detect", "segment")]
    missing = [(what, one) for what, one in placed if not one.boxes]
    assert 0.05 < len(missing) / len(placed) < 0.2
    assert {one.task for _, one in missing} == {"detect", "segment"}
    assert not [one for what, one in missing if questions.matching(what, one.text)]


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_training_questions_are_true(family):
    rng = random.Random(0)
    for seed in range(100):
        what = corpus.scene(seed)
        asked = corpus.asked(what, family, rng)
        assert len({one.task for one in asked}) >= 3
        for one in asked:
            for _, box in one.boxes:
                assert box in [shape.box for shape in what.shapes]


def test_a_view_is_square_and_small():
    picture = world.draw(WHAT, 2.0)
    assert corpus.view(picture, "llava").size == corpus.view(picture, "paligemma").size == (nets.SIDE, nets.SIDE)
    corner = np.asarray(corpus.view(world.draw(world.scene(0)), "llava"))
    assert corner.shape == (nets.SIDE, nets.SIDE, 3)


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_a_tower_that_grows_keeps_its_places(family):
    torch.manual_seed(0)
    net = nets.Net(family, tokenizer.size(family))
    embeddings = net.vision_tower.vision_model.embeddings
    places = embeddings.position_embedding.weight
    head, across = places[: len(places) - 49].clone(), torch.linspace(-1, 1, 7)
    with torch.no_grad():  # a place that says how far right it is, as (row, column) of a 7 x 7 square
        places[len(head) :] = across.repeat(7)[:, None]
    embeddings.grow(144)
    grown = embeddings.position_embedding.weight.detach()
    assert grown.shape == (len(head) + 81, nets.VISION) and torch.equal(grown[: len(head)], head)
    rows = grown[len(head) :].view(9, 9, nets.VISION)
    assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-6)
    assert (rows[0].diff(dim=0) > 0).all() and rows[0, 4].abs().max() < 1e-6
    assert embeddings(torch.zeros(2, 3, 144, 144)).shape == (2, len(head) + 81, nets.VISION)


def test_a_finer_corpus_is_kept_apart(tmp_path):
    coarse = corpus.Corpus.of("paligemma", 5, 3, tmp_path)
    fine = corpus.Corpus.of("paligemma", 5, 3, tmp_path, 144)
    assert coarse.images.shape == (3, 3, 112, 112) and fine.images.shape == (3, 3, 144, 144)
    assert coarse.labels.shape[:2] == coarse.edges.shape[:2] == (3, 49) and fine.labels.shape[:2] == (3, 81)
    again = corpus.Corpus.of("paligemma", 5, 3, tmp_path, 144)
    assert np.array_equal(again.images, fine.images) and np.array_equal(again.edges, fine.edges)


def test_a_phase_may_ask_for_more_counting():
    def share(counting):
        found = [
            q for seed in range(60) for q in corpus.asked(WHAT, "paligemma", random.Random(seed), counting=counting)
        ]
        return sum(q.kind == "count_kind" for q in found) / sum(q.task == "vqa" for q in found)

    assert share(0.0) < 0.25 < 0.45 < share(0.7)
