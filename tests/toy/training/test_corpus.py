import random

import numpy as np
import pytest
from lazy_module import LazyModule

from serve.toy import questions, world
from serve.toy.questions import Question

torch, tokenizer = LazyModule("torch"), LazyModule("serve.toy.training.tokenizer")
corpus, nets = LazyModule("serve.toy.training.corpus"), LazyModule("serve.toy.training.nets")
pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker
SCENE = world.scene(3)
QUESTIONS = [(Question("vqa", "color", "What color is the star?", "red"), SCENE.size),
         (Question("caption", "caption", "", questions.caption(SCENE)), SCENE.size)]  # fmt: skip


def logits(net, packer, packed, image):
    """Return the logits of the kept positions."""
    head = torch.tensor([packer.head], dtype=torch.long).expand(len(packed.ids), -1)
    x = torch.cat([net.embed(head), image.expand(len(packed.ids), -1, -1), net.embed(packed.ids)], dim=1)
    return net.logits(net.text(x, packed.positions, packed.mask, packed.keep)[0])


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_packed_questions_do_not_see_each_other(family):
    torch.manual_seed(0)
    net, packer = nets.Net(family, tokenizer.size(family)), corpus.Packer(family)
    image = torch.randn(1, 49, net.size.width)
    with torch.no_grad():
        together = packer.pack([(0, QUESTIONS)], 200)
        alone = [packer.pack([(0, [question])], 200) for question in QUESTIONS]
        apart = torch.cat([logits(net, packer, packed, image)[0] for packed in alone])
        torch.testing.assert_close(logits(net, packer, together, image)[0], apart, atol=1e-4, rtol=1e-4)
    assert torch.equal(together.target[0], torch.cat([packed.target[0] for packed in alone]))


def test_exact_mask_is_full_over_image_and_prompt_and_causal_over_the_answer():
    packer = corpus.Packer("paligemma")
    packed = packer.pack([(0, QUESTIONS[1:])], 200, exact=True)
    prefix = 49 + len(packer.pair(*QUESTIONS[1])[0])
    seen = packed.mask[0] == 0
    assert seen[:prefix, :prefix].all() and not seen[:prefix, prefix:].any()
    answer = seen[prefix:, prefix:]
    assert seen[prefix:, :prefix].all() and torch.equal(answer, torch.ones_like(answer).tril())
    assert packed.keep[0, 0] == prefix - 1


def test_first_token_of_an_answer_has_full_weight():
    packed = corpus.Packer("llava").pack([(0, QUESTIONS)], 200)
    first = [int((packed.group[0] == group).nonzero()[0]) for group in (0, 1)]
    assert packed.weight[0, first].tolist() == [1.0, 1.0]
    assert (packed.weight[0][first[1] + 1 :] < 1).all()


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_every_object_has_a_patch_and_every_patch_valid_labels(family):
    for seed in range(200):
        scene = corpus.training_scene(seed)
        labels, edges = corpus.patch_labels(scene, family, nets.SIDE // nets.PATCH)
        assert (labels.max(0) < list(corpus.CLASSES.values())).all()
        assert len({tuple(box) for box in edges if box.any()}) == len(scene.shapes)
        assert bool(labels[:, 4].any()) == bool(scene.text)
        assert ((labels[:, 0] > 0) == edges.any(1)).all()


def test_mask_and_absent_questions_follow_the_phase_settings():
    rng = random.Random(0)
    plain, more = [], []
    for seed in range(300):
        scene = corpus.training_scene(seed)
        plain += [(scene, question) for question in corpus.training_questions(scene, "paligemma", rng)]
        full = corpus.training_questions(scene, "paligemma", rng, segment=True, absent=0.1)
        more += [(scene, question) for question in full]
    assert not [question for _, question in plain if question.task == "segment" or question.kind == "absent"]
    placed = [(scene, question) for scene, question in more if question.task in ("detect", "segment")]
    missing = [(scene, question) for scene, question in placed if not question.boxes]
    assert 0.05 < len(missing) / len(placed) < 0.2
    assert {question.task for _, question in missing} == {"detect", "segment"}
    assert not [question for scene, question in missing if questions.matching(scene, question.text)]


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_training_boxes_are_true(family):
    rng = random.Random(0)
    for seed in range(100):
        scene = corpus.training_scene(seed)
        chosen = corpus.training_questions(scene, family, rng)
        assert len({question.task for question in chosen}) >= 3
        for question in chosen:
            for _, box in question.boxes:
                assert box in [shape.box for shape in scene.shapes]


def test_view_is_square_and_small():
    picture = world.draw(SCENE, 2.0)
    assert corpus.view(picture, "llava").size == corpus.view(picture, "paligemma").size == (nets.SIDE, nets.SIDE)
    corner = np.asarray(corpus.view(world.draw(world.scene(0)), "llava"))
    assert corner.shape == (nets.SIDE, nets.SIDE, 3)


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_larger_tower_keeps_interpolated_positions(family):
    torch.manual_seed(0)
    net = nets.Net(family, tokenizer.size(family))
    embeddings = net.vision_tower.vision_model.embeddings
    places = embeddings.position_embedding.weight
    head, across = places[: len(places) - 49].clone(), torch.linspace(-1, 1, 7)
    with torch.no_grad():  # each position holds its column, -1 to 1, in a 7 x 7 square
        places[len(head) :] = across.repeat(7)[:, None]
    embeddings.grow(144)
    grown = embeddings.position_embedding.weight.detach()
    assert grown.shape == (len(head) + 81, nets.VISION) and torch.equal(grown[: len(head)], head)
    rows = grown[len(head) :].view(9, 9, nets.VISION)
    assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-6)
    assert (rows[0].diff(dim=0) > 0).all() and rows[0, 4].abs().max() < 1e-6
    assert embeddings(torch.zeros(2, 3, 144, 144)).shape == (2, len(head) + 81, nets.VISION)


def test_corpus_of_larger_images_has_its_own_cache(tmp_path):
    coarse = corpus.Corpus.of("paligemma", 5, 3, tmp_path)
    fine = corpus.Corpus.of("paligemma", 5, 3, tmp_path, 144)
    assert coarse.images.shape == (3, 3, 112, 112) and fine.images.shape == (3, 3, 144, 144)
    assert coarse.labels.shape[:2] == coarse.edges.shape[:2] == (3, 49) and fine.labels.shape[:2] == (3, 81)
    again = corpus.Corpus.of("paligemma", 5, 3, tmp_path, 144)
    assert np.array_equal(again.images, fine.images) and np.array_equal(again.edges, fine.edges)


def test_counting_setting_raises_the_share_of_counting_questions():
    def share(counting):
        chosen = [
            question
            for seed in range(60)
            for question in corpus.training_questions(SCENE, "paligemma", random.Random(seed), counting=counting)
        ]
        counted = sum(question.kind == "count_kind" for question in chosen)
        return counted / sum(question.task == "vqa" for question in chosen)

    assert share(0.0) < 0.25 < 0.45 < share(0.7)
