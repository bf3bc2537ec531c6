"""Probing with what the shipped toys really reply. Their reference implementation is transformers, as for engines."""

import dataclasses

import pytest

from serve.models.contracts import LLAVA, PALIGEMMA
from serve.models.probing import ProbeAnswer, Verdict, probe
from serve.toy import world
from serve.toy.probe_scenes import probe_scenes
from serve.toy.questions import Question

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

SEEDS = range(5)


def ask(reference, seed):
    """Return the toy's replies about two shapes of each scene."""
    from serve.toy.training.evaluate import ExamItem

    items, known = [], []
    for scene in probe_scenes(seed):
        width, height = scene.size
        for label, (x0, y0, x1, y1) in scene.boxes[:2]:
            box = (x0 / width, y0 / height, x1 / width, y1 / height)
            items.append(ExamItem(scene.scene, Question("detect", "", label, boxes=((label, box),))))
            known.append((scene.size, (label, (x0, y0, x1, y1))))
    replies = reference.answers(items)
    return [ProbeAnswer(text, size, [pair]) for text, (size, pair) in zip(replies, known, strict=True)]


@pytest.mark.parametrize(
    ("toy", "contract"),
    [("llava", LLAVA), ("llava-b", LLAVA), ("paligemma", PALIGEMMA), ("paligemma-b", PALIGEMMA)],
)
def test_toy_agrees_with_its_contract_and_with_no_other(toy, contract):
    from serve.engines.vllm.torchvision import repair

    repair()
    from serve.toy.training import evaluate

    folder = evaluate.HERE / toy
    reference = evaluate.Reference(toy.removesuffix("-b"), folder, "cpu", lambda scene: world.draw(scene, 2.0))
    swapped = dataclasses.replace(contract, order="yx" if contract.order == "xy" else "xy")
    for seed in SEEDS:
        answers = ask(reference, seed)
        result = probe(answers, contract)
        assert (result.verdict, result.contract) == (Verdict.AGREES, contract) and result.error < 0.02, (seed, result)
        unknown = probe(answers)
        assert unknown.verdict == Verdict.FITS
        kept = unknown.contract.order, unknown.contract.scale, unknown.contract.padded
        assert kept == (contract.order, contract.scale, contract.padded)
        assert probe(answers, swapped).reason == "x and y are swapped."
        blind = [
            dataclasses.replace(own, text=other.text.replace(other.boxes[0][0], own.boxes[0][0]))
            for own, other in zip(answers, answers[14:] + answers[:14], strict=True)
        ]  # replies about other pictures
        assert probe(blind, contract).reason == "The answers do not depend on the picture."
