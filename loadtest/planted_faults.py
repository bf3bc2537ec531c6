"""Checks the models of a running server many times, as they are and with a fault planted in their replies.

    python -m loadtest.planted_faults --server http://127.0.0.1:8000 --times 20 --models toy-llava

A fault is planted between the server and the check: boxes are written anew, or the server is sent another picture.
Prints a Markdown table; exits with 1 where a sound model was refused, or a fault was not, or by another name; with 2
where nothing could be checked.
"""

import argparse
import asyncio
import functools
import hashlib
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from pydantic import TypeAdapter

from serve.checking.check import Ask, CheckAnswer, check
from serve.checking.questions import CheckQuestion
from serve.client.check import LIMIT_S, PATIENCE_S, ask_server
from serve.client.evaluation.asker import Asker
from serve.client.http_client import Failure, Server
from serve.models.check_report import CheckReport
from serve.models.contracts import Contract, Size
from serve.models.probing import ProbeFault

OFF = 90
"""Pixels by which boxes are moved to the right and down."""
Box = tuple[float, ...]


@dataclass(frozen=True)
class PlantedFault:
    """A fault, the contract that is declared of the model and the one that its replies are written in, both made of its
    own contract; and the name by which it has to be refused, None where the model is as it is."""

    title: str
    expected: ProbeFault | None
    declared: Callable[[Contract], Contract] = lambda own: own
    written: Callable[[Contract], Contract] = lambda own: own
    move: float = 0
    blind: bool = False


def _swapped(own: Contract) -> Contract:
    return replace(own, order="yx" if own.order == "xy" else "xy")


def _pixels(own: Contract) -> Contract:
    return replace(own, scale=None, padded=False)


def _thousandths(own: Contract) -> Contract:
    return replace(own, scale=999, padded=False, decimals=0)


FAULTS = (
    PlantedFault("as it is", None),
    PlantedFault("x and y swapped", ProbeFault.AXES_SWAPPED, written=_swapped),
    PlantedFault("0-999 taken for pixels", ProbeFault.OTHER_SCALE, declared=_pixels, written=_thousandths),
    PlantedFault(f"everything {OFF} pixels off", ProbeFault.SHIFTED, move=OFF),
    PlantedFault("answers without the picture", ProbeFault.WITHOUT_PICTURE, blind=True),
)


def planted(fault: PlantedFault, ask: Ask, own: Contract) -> Ask:
    """Return `ask` with the fault in it. own: the contract that the model's replies really follow."""

    async def ask_faulty(question: CheckQuestion) -> CheckAnswer:
        if fault.blind:
            return await ask(replace(question, load=functools.partial(_grey, question.size)))
        answer = await ask(question)
        if question.task != "detect" or fault.expected is None or not answer.replied:
            return answer
        return replace(answer, text=_rewritten(answer.text, fault, own, question))

    return ask_faulty


def _rewritten(text: str, fault: PlantedFault, own: Contract, question: CheckQuestion) -> str:
    labels = question.fields["labels"]
    decoded = own.parse(text, question.size, labels)
    shapes = [(shape.label, _moved(shape.numbers, fault.move, question.size)) for shape in decoded.shapes]
    return fault.written(own).format(shapes, question.size) if shapes else text


def _moved(box: Box, off: float, size: Size) -> Box:
    return tuple(min(edge + off, side) for edge, side in zip(box, size * 2, strict=True))


@functools.cache
def _grey(size: Size) -> bytes:
    """Return a picture with nothing on it, as a PNG."""
    out = io.BytesIO()
    Image.new("RGB", size, (146, 146, 146)).save(out, "PNG")
    return out.getvalue()


def cached(ask: Ask) -> Ask:
    """Return `ask` for replies that do not change: what several faults rewrite is asked once."""
    answers: dict[Any, asyncio.Task[CheckAnswer]] = {}

    async def ask_once(question: CheckQuestion) -> CheckAnswer:
        key = (question.task, str(question.fields), hashlib.sha256(question.load()).digest())
        if key not in answers:
            answers[key] = asyncio.ensure_future(ask(question))
        return await answers[key]

    return ask_once


async def check_model(asker: Asker, card: Mapping[str, Any], seeds: Sequence[int]) -> list[tuple[str, int, list[str]]]:
    """Return for each fault its title, how often the outcome was right, and the outcomes that were not."""
    own = TypeAdapter(Contract).validate_python(card["contract"])
    right: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {fault.title: [] for fault in FAULTS}
    ask = cached(ask_server(asker, card["id"]))
    for seed in seeds:
        for fault in FAULTS:
            tasks = card["skills"] if fault.expected is None or fault.blind else ["detect"]
            report = await check(
                card["id"], tasks, planted(fault, ask, own), contract=fault.declared(own), seed=seed, limit_s=LIMIT_S
            )
            if _is_right(report, fault):
                right[fault.title] += 1
            else:
                wrong[fault.title].append(f"seed {seed}: {report.summary}")
    return [(fault.title, right[fault.title], wrong[fault.title]) for fault in FAULTS]


def _is_right(report: CheckReport, fault: PlantedFault) -> bool:
    boxes = report.tasks["detect"].boxes
    if fault.expected is None:
        return report.outcome == "passed"
    named = boxes is not None and boxes.faults == (fault.expected,) and report.refusal("detect") is not None
    others = {task.outcome for name, task in report.tasks.items() if name != "detect"}
    return named and (not fault.blind or others == {"failed"})


async def _check_all(server: Server, names: Sequence[str], seeds: Sequence[int]) -> int:
    cards = [card for card in server.get("/v1/catalog")["data"] if card["served"] and card["contract"]]
    cards = [card for card in cards if not names or card["id"] in names]
    if missing := set(names) - {card["id"] for card in cards}:
        raise Failure(f"{', '.join(sorted(missing))}: not served here, or without a contract.")
    if not cards:
        raise Failure("No model that is served here declares a contract.")
    began, failures = time.monotonic(), 0
    print("| model | " + " | ".join(fault.title for fault in FAULTS) + " |")
    print("|---|" + "---|" * len(FAULTS))
    async with Asker(server, patience_s=PATIENCE_S) as asker:
        for card in cards:
            rows = await check_model(asker, card, seeds)
            cells = [f"{count} of {len(seeds)}" for _, count, _ in rows]
            print(f"| `{card['id']}` | {' | '.join(cells)} |", flush=True)
            for title, _, wrong in rows:
                failures += len(wrong)
                for line in wrong:
                    print(f"{card['id']}, {title}, {line}", file=sys.stderr)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(failures > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--models", default="", help="by commas; all that declare a contract if left out")
    parser.add_argument("--times", type=int, default=20, help="checks of each, with the seeds 1, 2, ...")
    parser.add_argument("--first-seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.times < 1:
        parser.error("--times: there has to be one check at least")
    names = [name for name in options.models.split(",") if name]
    seeds = range(options.first_seed, options.first_seed + options.times)
    try:
        with Server(options.server, options.api_key) as server:
            return asyncio.run(_check_all(server, names, seeds))
    except Failure as error:
        print(f"planted_faults: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
