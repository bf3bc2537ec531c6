"""The checkpoints as shipped: their layout, and that the lean nets compute what transformers does."""

import json
from pathlib import Path

import pytest

import serve.toy

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import safetensors
import torch

HERE = Path(serve.toy.__file__).parent
FAMILIES = ("llava", "paligemma")


def header(family):
    with safetensors.safe_open(HERE / family / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict


@pytest.mark.parametrize("family", FAMILIES)
def test_small_and_in_bfloat16(family):
    assert sum(path.stat().st_size for path in (HERE / family).iterdir()) < 8_000_000
    slices = header(family)
    assert {part.get_dtype() for part in slices.values()} == {"BF16"}
    parameters = sum(torch.Size(part.get_shape()).numel() for part in slices.values())
    assert 2_000_000 <= parameters <= 3_000_000


@pytest.mark.parametrize("family", FAMILIES)
def test_published_weight_names(family):
    names = set(header(family))
    assert "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    if family == "llava":
        assert {
            "multi_modal_projector.linear_1.weight",
            "language_model.lm_head.weight",
            "vision_tower.vision_model.pre_layrnorm.weight",
        } <= names
    else:
        assert "multi_modal_projector.linear.weight" in names
        assert "language_model.lm_head.weight" not in names
    assert not [name for name in names if "wave" in name]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizer_is_the_one_that_is_built(family):
    pytest.importorskip("tokenizers")
    from serve.toy import tokenizer

    assert json.loads((HERE / family / "tokenizer.json").read_text()) == json.loads(tokenizer.build(family).to_str())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_toy_says_that_it_is_one(family):
    assert "**A toy.**" in (HERE / family / "README.md").read_text()


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_lean_nets_agree_with_transformers(family):
    from serve.toy import corpus, evaluate, export, world
    from serve.toy.questions import Question

    evaluate.repair()
    student = evaluate.Student(family, HERE / family, "cpu")
    net = export.load(HERE / family)
    packer = corpus.Packer(family)
    what = world.scene(1, text=True)
    question = Question("vqa", "color", "What color is the circle?", "red")
    inputs = student._input(what, question)
    with torch.no_grad():
        reference = student.model(**inputs).logits[0, -1]
        asking = packer.pair(question, what.size)[0]
        parts = [
            net.embed(torch.tensor([packer.head], dtype=torch.long)),
            net.image(net.features(inputs["pixel_values"])),
        ]
        x = torch.cat([*parts, net.embed(torch.tensor([asking]))], dim=1)
        length = x.shape[1]
        mask = torch.zeros(1, length, length)
        if family == "llava":
            mask = mask.masked_fill(torch.ones_like(mask).triu(1).bool(), -1e9)
        lean = net.logits(net.text(x, torch.arange(length)[None], mask, torch.tensor([[length - 1]])))[0, 0]
    assert inputs["input_ids"].shape[1] == length
    assert reference.std() > 0.5
    torch.testing.assert_close(lean, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_accuracy_is_above_the_floors(family):
    """A quick form of `python -m serve.toy.evaluate`, with room for its smaller sample."""
    from serve.toy import evaluate

    evaluate.repair()
    student = evaluate.Student(family, HERE / family, "cpu")
    asked = evaluate.exam(family, 40, seed=1_000)
    scores = evaluate.marked(family, asked, student.answers(asked))
    for task, floor in evaluate.FLOORS[family].items():
        assert scores[task].percent >= floor - 10, (task, scores[task])
    if family == "paligemma":
        causal = evaluate.marked(family, asked, student.answers(asked, causal=True))
        assert causal["vqa"].percent < scores["vqa"].percent - 3, "a wrong mask must show"
