"""The shipped checkpoints: their layout, their accuracy, and the agreement of our nets with transformers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from lazy_module import LazyModule

import serve.toy
from serve.models import MODELS, mask_decoder
from serve.toy.training import prompts
from serve.toy.varied import scenes
from serve.toy.varied.names import SHAPE_OTHERS

torch, safetensors = LazyModule("torch"), LazyModule("safetensors")
recipes = LazyModule("serve.toy.training.recipes")
pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker
HERE = Path(serve.toy.__file__).parent
TOYS = [name.removeprefix("toy-") for name, model in MODELS.items() if model.card.toy]
PALIGEMMAS = [name for name in TOYS if MODELS[f"toy-{name}"].prefix_lm]


def header(toy):
    with safetensors.safe_open(HERE / toy / "model.safetensors", "np") as file:
        return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict


def test_every_toy_has_a_recipe():
    assert set(recipes.RECIPES) == set(TOYS)


@pytest.mark.parametrize("toy", TOYS)
def test_checkpoint_is_small_and_in_bfloat16(toy):
    assert sum(path.stat().st_size for path in (HERE / toy).iterdir()) < 12_000_000
    slices = header(toy)
    assert {part.get_dtype() for part in slices.values()} == {"BF16"}
    parameters = sum(math.prod(part.get_shape()) for part in slices.values())
    assert 4_000_000 <= parameters <= 6_000_000
    assert f"{parameters:,} parameters" in (HERE / toy / "README.md").read_text()
    assert MODELS[f"toy-{toy}"].card.parameters == parameters


@pytest.mark.parametrize("toy", TOYS)
def test_weights_have_the_published_names(toy):
    names = set(header(toy))
    assert "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    if recipes.RECIPES[toy].family == "llava":
        assert {
            "multi_modal_projector.linear_1.weight",
            "language_model.lm_head.weight",
            "vision_tower.vision_model.pre_layrnorm.weight",
        } <= names
    else:
        assert "multi_modal_projector.linear.weight" in names
        assert "language_model.lm_head.weight" not in names
    assert not [name for name in names if "wave" in name]


@pytest.mark.parametrize("toy", TOYS)
def test_shipped_tokenizer_equals_a_new_build(toy):
    pytest.importorskip("tokenizers")
    from serve.toy.training import tokenizer

    assert json.loads((HERE / toy / "tokenizer.json").read_text()) == json.loads(
        tokenizer.build_tokenizer(recipes.RECIPES[toy].family).to_str()
    )


@pytest.mark.parametrize("toy", TOYS)
def test_model_card_names_a_toy(toy):
    assert "**A toy.**" in (HERE / toy / "README.md").read_text()


@pytest.mark.parametrize("toy", PALIGEMMAS)
def test_shipped_mask_decoder_decodes_the_codes_of_each_shape(toy):
    decoder = mask_decoder.find(str(HERE / toy / "vae-oid.npz"))
    assert (HERE / toy / "vae-oid.npz").stat().st_size < 200_000
    assert set(prompts.CODES) == set(SHAPE_OTHERS)
    for kind, codes in prompts.CODES.items():
        mask, box = decoder(np.array([codes]))[0] > 0, (0.0, 0.0, 1.0, 1.0)
        true = scenes.silhouette(scenes.Thing(kind, "red", "filled", box, (255, 0, 0), box), (64, 64))
        assert (mask & true).sum() / (mask | true).sum() > 0.93, kind


def reference_of(toy, **drawing):
    """Return a shipped toy in transformers."""
    from serve.toy.training import evaluate

    evaluate.repair()
    return evaluate.Reference(recipes.RECIPES[toy].family, HERE / toy, "cpu", **drawing)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("toy", TOYS)
def test_nets_agree_with_transformers(toy):
    from serve.toy.questions import Question
    from serve.toy.training import corpus, export

    recipe, scene = recipes.RECIPES[toy], scenes.varied_scene(1, writing=True)
    family = recipe.family
    reference = reference_of(toy)
    net = export.load_net(HERE / toy)
    packer = corpus.Packer(family, side=recipe.side)
    question = Question("vqa", "where", "whats left of the hollow star?", "red circle")
    inputs = reference.inputs(scene, question)
    with torch.no_grad():
        expected = reference.model(**inputs).logits[0, -1]
        asking = packer.pair(question, scene.size)[0]
        parts = [
            net.embed(torch.tensor([packer.head], dtype=torch.long)),
            net.image(net.features(inputs["pixel_values"])),
        ]
        x = torch.cat([*parts, net.embed(torch.tensor([asking]))], dim=1)
        length = x.shape[1]
        mask = torch.zeros(1, length, length)
        if family == "llava":
            mask = mask.masked_fill(torch.ones_like(mask).triu(1).bool(), -1e9)
        logits = net.logits(net.text(x, torch.arange(length)[None], mask, torch.tensor([[length - 1]]))[0])[0, 0]
    assert inputs["input_ids"].shape[1] == length
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("toy", TOYS)
def test_accuracy_is_above_the_floors(toy):
    """Run a short `python -m serve.toy.training.evaluate`, with lower floors for its smaller sample."""
    from serve.toy.training import evaluate

    reference = reference_of(toy)
    family = reference.family
    items = [*evaluate.vqa_items(2 * len(evaluate.KINDS), 1_000), *evaluate.other_items(family, 20, 1_000)]
    replies = reference.answers(items)
    scores = evaluate.score_replies(family, items, replies)
    for task, floor in evaluate.FLOORS[toy].items():
        assert scores[task].percent >= floor - 10, (task, scores[task])
    if family == "paligemma":
        some = reference.answers(items[::2], causal=True)
        assert sum(a != b for a, b in zip(replies[::2], some, strict=True)) >= 4, "a wrong mask must show"


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("toy", TOYS)
def test_shipped_scenes_are_answered_rightly(toy):
    """Ask every other ordinary question that the shipped scenes allow, in both languages, and in every other task."""
    from serve.toy.training import evaluate

    reference = reference_of(toy, draw=evaluate.shipped_picture)
    family = reference.family
    listed = enumerate(evaluate.shipped_items(family, 1))
    items = [item for at, item in listed if at % 2 or item.question.task != "vqa"]
    scores = evaluate.score_replies(family, items, reference.answers(items))
    least = {"vqa": 80, "caption": 80, "ocr": 95, "detect": 80, "segment": 80}
    assert {task: score.percent for task, score in scores.items() if score.percent < least[task]} == {}
