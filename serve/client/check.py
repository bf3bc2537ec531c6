"""`diptych check`: whether served models see. It asks a running server for boxes, facts and words of drawn scenes."""

import argparse
import asyncio
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from serve.client.board import plain
from serve.client.evaluation import toys
from serve.client.evaluation.asker import Asker
from serve.client.evaluation.measures.answers import accuracy
from serve.client.evaluation.measures.characters import tidy
from serve.client.http_client import Failure, Server
from serve.models import MODELS
from serve.models.contracts import Contract, Size
from serve.models.probing import Pixels, ProbeAnswer, ProbeResult, meaning, probe
from serve.toy.probe_scenes import ProbeScene, probe_scenes

Json = dict[str, Any]

QUESTIONS = 14
"""Questions for vqa, each kind twice, and words for ocr."""
LEAST_RIGHT = 0.5
"""The least part of answers that must be right. A model that does not get the picture is right about a quarter."""
LABELS = 2
"""The most labels in one request."""
PIXELS = Contract("pixels", scale=None, decimals=2)
"""The contract of the HTTP API's boxes, for models whose own one is not declared."""


@dataclass(frozen=True)
class Checked:
    """The outcome of one model's check. detect: None where it has no such task. right: the part of answers that were
    right, by task (vqa, ocr). errors: the server's messages in place of replies, each once."""

    model: str
    detect: ProbeResult | None
    right: Mapping[str, float]
    errors: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Return whether it can be trusted with each task that it takes; False where it takes none of them."""
        sees = [share >= LEAST_RIGHT for share in self.right.values()]
        return all(sees) and (self.detect.usable if self.detect is not None else bool(sees))

    def body(self) -> Json:
        """Return the outcome as JSON."""
        boxes: Json | None = None
        if self.detect is not None:
            probed = self.detect
            boxes = {
                "verdict": probed.verdict.value,
                "reason": probed.reason,
                "contract": None if probed.contract is None else meaning(probed.contract),
                "error": probed.error,
                "margin": probed.margin,
                "runner_up": None if probed.runner_up is None else meaning(probed.runner_up),
                "shift": probed.shift,
                "boxes": {"read": probed.read, "drawn": probed.drawn},
            }
        errors = list(self.errors)
        return {
            "model": self.model,
            "passed": self.passed,
            "detect": boxes,
            "right": dict(self.right),
            "errors": errors,
        }


def check(options: argparse.Namespace) -> int:
    """Check the models, print a table or JSON; return 0 if all passed, else 1. Raises Failure where none is served."""
    with Server(options.server, options.api_key) as server:
        cards = {card["id"]: card for card in server.get("/v1/catalog")["data"] if card["served"] and card["images"]}
        names = list(cards) if "all" in options.names else list(dict.fromkeys(options.names))
        if unknown := [name for name in names if name not in cards]:
            raise Failure(f"{', '.join(unknown)}: not served at {server.url} for images, but {', '.join(cards)}.")
        if not names:
            raise Failure(f"No model is served at {server.url} for images.")
        checked = asyncio.run(_check_all(server, {name: cards[name]["skills"] for name in names}, options.seed))
    if options.json:
        print(json.dumps([outcome.body() for outcome in checked], indent=2))
    else:
        _print(checked)
    return 0 if all(outcome.passed for outcome in checked) else 1


async def _check_all(server: Server, skills: Mapping[str, Sequence[str]], seed: int) -> list[Checked]:
    async with Asker(server) as asker:
        return await check_models(asker, skills, seed)


async def check_models(asker: Asker, skills: Mapping[str, Sequence[str]], seed: int) -> list[Checked]:
    """Ask each question of all models that can do its task at once. skills: the tasks of each model."""
    errors: dict[str, list[str]] = {name: [] for name in skills}
    able = {task: [name for name in skills if task in skills[name]] for task in ("detect", "vqa", "ocr")}
    answers: dict[str, list[ProbeAnswer]] = {name: [] for name in able["detect"]}
    for scene in probe_scenes(seed) if able["detect"] else []:
        boxes = scene.boxes[:LABELS]
        fields = {"labels": [label for label, _ in boxes], "models": able["detect"]}
        for name, result in (await _results(asker, "detect", _png(scene), fields, errors)).items():
            answers[name] += _written(_declared(name), result, scene.size, boxes)
    right: dict[str, dict[str, float]] = {name: {} for name in skills}
    for task in ("vqa", "ocr"):
        for item in toys.items(task, QUESTIONS, seed) if able[task] else []:
            fields = {**item.fields, "models": able[task]}
            for name, result in (await _results(asker, task, item.load(), fields, errors)).items():
                share = _is_right(task, result, item.truth) / QUESTIONS
                right[name][task] = right[name].get(task, 0.0) + share
    return [
        Checked(
            name,
            probe(answers[name], _declared(name)) if name in answers else None,
            {task: round(share, 3) for task, share in right[name].items()},
            tuple(dict.fromkeys(errors[name])),
        )
        for name in skills
    ]


def _declared(name: str) -> Contract:
    skill = MODELS[name].skills.get("detect") if name in MODELS else None
    return skill.contract if skill is not None and skill.contract is not None else PIXELS


async def _results(
    asker: Asker, task: str, picture: bytes, fields: Json, errors: Mapping[str, list[str]]
) -> dict[str, Json | None]:
    """Return each model's result, None with its message added to `errors` where it has none."""
    results: dict[str, Json | None] = dict.fromkeys(fields["models"])
    response = await asker.ask(task, picture, fields)
    nothing = [{"model": name, "error": response.get("error")} for name in results]  # where no model answered
    for reply in response.get("replies", nothing):
        results[reply["model"]] = reply.get("result")
        if reply.get("error"):
            message = re.sub(r" \(request \w+\)$", "", reply["error"]["message"])  # the same text each time
            errors[reply["model"]].append(f"{task}: {message}")
    return results


def _written(
    contract: Contract, result: Json | None, size: Size, boxes: Sequence[tuple[str, Pixels]]
) -> Iterator[ProbeAnswer]:
    """Yield an answer for each label, with its boxes as the model wrote them: `contract` is the one that read them."""
    for label, box in boxes:
        shapes = [(label, other["box"]) for other in (result or {"boxes": []})["boxes"] if other["label"] == label]
        yield ProbeAnswer(contract.format(shapes, size), size, [(label, box)])


def _is_right(task: str, result: Json | None, truth: Json) -> bool:
    if result is None:
        return False
    if task == "vqa":
        return accuracy(str(result["answer"]), truth["answers"]) > 0
    return tidy(str(result["text"])).casefold() == tidy(truth["text"]).casefold()


def _png(scene: ProbeScene) -> bytes:
    out = io.BytesIO()
    scene.draw().save(out, "PNG", compress_level=1)
    return out.getvalue()


def _print(checked: Sequence[Checked]) -> None:
    console = Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("model", "passed", "boxes", "error", "margin", "vqa", "ocr"):
        table.add_column(title, no_wrap=True)
    for outcome in checked:
        probed = outcome.detect
        table.add_row(
            plain(outcome.model),
            "yes" if outcome.passed else "no",
            "-" if probed is None else plain(probed.verdict.value),
            _percent(None if probed is None else probed.error),
            _percent(None if probed is None else probed.margin),
            *(_percent(outcome.right.get(task)) for task in ("vqa", "ocr")),
        )
    console.print(table)
    for outcome in checked:
        if outcome.detect is not None:
            console.print(plain(f"{outcome.model}: {outcome.detect.reason}"), soft_wrap=True)
        for message in outcome.errors[:3]:
            console.print(plain(f"{outcome.model}: {message}"), soft_wrap=True)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
