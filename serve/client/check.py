"""`diptych check`: whether served models see. It asks a running server for boxes, facts and words of drawn scenes."""

import argparse
import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from serve.checking.check import PIXELS, Ask, CheckAnswer, check
from serve.checking.questions import CheckQuestion
from serve.client.board import plain
from serve.client.evaluation.asker import Asker
from serve.client.http_client import Failure, NoServer, Server
from serve.errors import ParseError
from serve.models.check_report import CheckReport
from serve.models.contracts import Contract

Json = dict[str, Any]

LIMIT_S = 900.0
PATIENCE_S = 30.0
"""For how long a model that is starting or busy is asked again, before that counts as no reply."""
NOT_ASKED = 3
"""The exit status where no model failed, but some could not be asked."""
_CONTRACT = TypeAdapter(Contract)


def check_command(options: argparse.Namespace) -> int:
    """Check the models, print a table or JSON. Raises Failure where none is served.

    Return 0 where all passed, 1 where a model failed, NOT_ASKED where none failed but some could not be asked.
    """
    with Server(options.server, options.api_key) as server:
        cards = {card["id"]: card for card in server.get("/v1/catalog")["data"] if card["served"] and card["images"]}
        names = list(cards) if "all" in options.names else list(dict.fromkeys(options.names))
        if unknown := [name for name in names if name not in cards]:
            raise Failure(f"{', '.join(unknown)}: not served at {server.url} for images, but {', '.join(cards)}.")
        if not names:
            raise Failure(f"No model is served at {server.url} for images.")
        reports = asyncio.run(_check_all(server, [cards[name] for name in names], options.seed))
    if options.json:
        print(json.dumps([report.model_dump(mode="json") for report in reports], indent=2))
    else:
        _print(reports)
    outcomes = {report.outcome for report in reports}
    return 1 if "failed" in outcomes else NOT_ASKED if "not_asked" in outcomes else 0


async def _check_all(server: Server, cards: Sequence[Json], seed: int) -> list[CheckReport]:
    async with Asker(server, patience_s=PATIENCE_S) as asker:
        return await asyncio.gather(*(check_card(asker, card, seed) for card in cards))


async def check_card(asker: Asker, card: Json, seed: int) -> CheckReport:
    """Check the model of a card, by the contract that stands on it.

    A task that the server turned off, because its own check failed, has that check's outcome.
    """
    contract = None if card["contract"] is None else _CONTRACT.validate_python(card["contract"])
    earlier = None if card["check"] is None else CheckReport.model_validate(card["check"])
    ask = ask_server(asker, card["id"])
    report = await check(card["id"], card["skills"], ask, contract=contract, seed=seed, limit_s=LIMIT_S)
    if earlier is None:
        return report
    off = {task: outcome for task, outcome in earlier.tasks.items() if task not in card["skills"]}
    return CheckReport.of(card["id"], {**off, **report.tasks}, earlier.versions)


def ask_server(asker: Asker, model: str) -> Ask:
    """Return a function that asks a served model a question. It raises NoServer where the server is gone."""

    async def ask(question: CheckQuestion) -> CheckAnswer:
        fields = {**question.fields, "models": [model]}
        try:
            response = await asker.ask(question.task, await asyncio.to_thread(question.load), fields, unreadable=True)
        except NoServer:
            raise
        except Failure as failure:  # the model's server refuses all that it is asked
            return CheckAnswer(message=str(failure), replied=False)
        replies = response.get("replies") or [{"error": response.get("error")}]
        return _answer(replies[0], question)

    return ask


def _answer(reply: Json, question: CheckQuestion) -> CheckAnswer:
    error, result = reply.get("error"), reply.get("result")
    if error:
        message = re.sub(r" \(request \w+\)$", "", error["message"])  # the same text each time
        return CheckAnswer(reply.get("text", ""), None, message, replied=error["code"] == ParseError.code)
    if result is None:
        return CheckAnswer(message="The server sent neither a result nor an error.", replied=False)
    if question.task == "detect":
        shapes = [(box["label"], box["box"]) for box in result["boxes"]]
        return CheckAnswer(reply["text"], PIXELS.format(shapes, question.size))
    (text,) = result.values()
    return CheckAnswer(reply["text"], str(text))


def _print(reports: Sequence[CheckReport]) -> None:
    console = Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("model", "outcome", "boxes", "error", "margin", "vqa", "ocr"):
        table.add_column(title, no_wrap=True)
    for report in reports:
        detect = report.tasks.get("detect")
        boxes = None if detect is None else detect.boxes
        table.add_row(
            plain(report.model),
            report.outcome,
            "-" if boxes is None else plain(boxes.verdict.value),
            _percent(None if boxes is None else boxes.error),
            _percent(None if boxes is None else boxes.margin),
            *(_percent(report.tasks[task].right if task in report.tasks else None) for task in ("vqa", "ocr")),
        )
    console.print(table)
    for report in reports:
        for name, task in report.tasks.items():
            if task.boxes is not None or task.outcome != "passed":
                console.print(plain(f"{report.model}: {name}: {task.reason}"), soft_wrap=True)
            for message in task.messages:
                if message not in task.reason:
                    console.print(plain(f"{report.model}: {name}: {message}"), soft_wrap=True)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
