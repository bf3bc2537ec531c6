import numpy as np
import pytest
from lazy_module import LazyModule

from serve.toy.questions import Question
from serve.toy.varied import facts, scenes

torch, tokenizer = LazyModule("torch"), LazyModule("serve.toy.training.tokenizer")
corpus, nets = LazyModule("serve.toy.training.corpus"), LazyModule("serve.toy.training.nets")
pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker
SCENE = scenes.varied_scene(3, fonts=scenes.BUILT_IN)
QUESTIONS = [(Question("vqa", "color", "What color is the star?", "red"), SCENE.size),
         (Question("caption", "caption", "", facts.caption_of(SCENE)), SCENE.size)]  # fmt: skip

END = {"llava": "</s>", "paligemma": "<eos>"}


def logits(net, packer, packed, image):
    """Return the logits of the kept positions."""
    head = torch.tensor([packer.head], dtype=torch.long).expand(len(packed.ids), -1)
    x = torch.cat([net.embed(head), image.expand(len(packed.ids), -1, -1), net.embed(packed.ids)], dim=1)
    return net.logits(net.text(x, packed.positions, packed.mask, packed.keep)[0])


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_packed_questions_do_not_see_each_other(family):
    torch.manual_seed(0)
    net, packer = nets.Net(family, tokenizer.size(family)), corpus.Packer(family)
    image = torch.randn(1, 100, net.size.width)
    with torch.no_grad():
        together = packer.pack([(0, QUESTIONS)], 200)
        alone = [packer.pack([(0, [question])], 200) for question in QUESTIONS]
        apart = torch.cat([logits(net, packer, packed, image)[0] for packed in alone])
        torch.testing.assert_close(logits(net, packer, together, image)[0], apart, atol=1e-4, rtol=1e-4)
    assert torch.equal(together.target[0], torch.cat([packed.target[0] for packed in alone]))


def test_exact_mask_is_full_over_image_and_prompt_and_causal_over_the_answer():
    packer = corpus.Packer("paligemma")
    packed = packer.pack([(0, QUESTIONS[1:])], 200, exact=True)
    prefix = 100 + len(packer.pair(*QUESTIONS[1])[0])
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
def test_choices_in_a_list_have_full_weight(family):
    packer = corpus.Packer(family)
    answer = (*packer.encode(" a red circle, a star and a cross"), *packer.encode(END[family]))
    full = packer.weights(answer, starts=[1, 5, 8]) == 1
    assert full.tolist() == [True, True, False, True, False, True, True, False, True, True]
    assert packer.weights(answer, starts=[])[1:] == pytest.approx(10**-0.5)


def test_view_is_square_and_small():
    picture = scenes.render(SCENE, 2.0)
    assert corpus.view(picture, "llava").size == corpus.view(picture, "paligemma").size == (nets.SIDE, nets.SIDE)
    assert np.asarray(corpus.view(picture, "llava")).shape == (nets.SIDE, nets.SIDE, 3)


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_larger_tower_keeps_interpolated_positions(family):
    torch.manual_seed(0)
    net = nets.Net(family, tokenizer.size(family))
    embeddings = net.vision_tower.vision_model.embeddings
    places = embeddings.position_embedding.weight
    head, across = places[: len(places) - 100].clone(), torch.linspace(-1, 1, 10)
    with torch.no_grad():  # each position holds its column, -1 to 1, in a 10 x 10 square
        places[len(head) :] = across.repeat(10)[:, None]
    embeddings.grow(176)
    grown = embeddings.position_embedding.weight.detach()
    assert grown.shape == (len(head) + 121, net.vision.width) and torch.equal(grown[: len(head)], head)
    rows = grown[len(head) :].view(11, 11, net.vision.width)
    assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-6)
    assert (rows[0].diff(dim=0) > 0).all() and rows[0, 5].abs().max() < 1e-6
    assert embeddings(torch.zeros(2, 3, 176, 176)).shape == (2, len(head) + 121, net.vision.width)


def test_corpus_of_larger_images_has_its_own_cache(tmp_path):
    coarse = corpus.Corpus.of("paligemma", 5, 3, tmp_path)
    fine = corpus.Corpus.of("paligemma", 5, 3, tmp_path, 176)
    assert coarse.images.shape == (3, 3, 160, 160) and fine.images.shape == (3, 3, 176, 176)
    assert coarse.labels.shape[:2] == coarse.edges.shape[:2] == (3, 100) and fine.labels.shape[:2] == (3, 121)
    again = corpus.Corpus.of("paligemma", 5, 3, tmp_path, 176)
    assert np.array_equal(again.images, fine.images) and np.array_equal(again.edges, fine.edges)
