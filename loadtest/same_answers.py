"""Compare the answers of two checkouts: `python -m loadtest.bench same-answers --previous ../before`.

Both serve the four toys, one after the other. Each is asked every task about the same drawn scenes, with the questions
of `diptych evaluate toy`. Replies and merged results have to be equal; those that differ are printed.
"""

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import uvloop

from loadtest.arguments import checkout, several, whole, word
from loadtest.client import session
from loadtest.many_servers import TOYS, wait_until_ready
from loadtest.pictures import data_url
from loadtest.servers import NotAnswering, Server, diptych, running
from loadtest.tables import columns
from serve.client.evaluation.items import Item
from serve.client.evaluation.toys import everything
from serve.tasks import TASKS

CLIENTS = 8
PRINTED = 5
"""Differences that are printed."""

Answers = Mapping[str, dict[str, Any]]
"""By item: the result of each model, and that of `merged`."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--previous", required=True, type=checkout, help="the other checkout")
    parser.add_argument("--scenes", type=whole(1), default=500, help="scenes of each task")
    parser.add_argument("--tasks", type=several(word(*TASKS)), default="vqa,chat,caption,ocr,detect,segment")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Ask both checkouts. Met: every merged result is the same."""
    items = everything(options.tasks, options.scenes, 0)
    kind = diptych("B", "Diptych", [{"name": name} for name in TOYS])
    answers: list[Answers] = []
    for side in (kind, replace(kind, key="P", checkout=options.previous)):
        with running(side) as server:
            wait_until_ready(server, TOYS)
            answers.append(uvloop.run(_ask(server, items)))
    equal, differences = compare(items, *answers)
    print("\n".join(columns([("task", "result of", "items", "equal"), *equal])))
    for line in differences[:PRINTED]:
        print(line)
    return (
        "same_answers",
        {"equal": equal, "differences": differences},
        all(items == same for _, column, items, same in equal if column == "merged"),
    )


def compare(items: Sequence[Item], now: Answers, before: Answers) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Return a row for each task and column, with the numbers of items and of equal results, and the differences."""
    counts, same = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    differences = []
    for item in items:
        for column in sorted(now[item.name] | before[item.name]):
            result, old = now[item.name].get(column), before[item.name].get(column)
            counts[item.task, column] += 1
            if result == old:
                same[item.task, column] += 1
            else:
                differences.append(f"{item.name} {column}: {json.dumps(old)} is now {json.dumps(result)}")
    return [(task, column, str(counts[task, column]), str(same[task, column])) for task, column in counts], differences


async def _ask(server: Server, items: Sequence[Item]) -> Answers:
    """Ask a server every item, some at a time."""
    answers: dict[str, dict[str, Any]] = {}
    waiting = iter(items)

    async def client(http: aiohttp.ClientSession) -> None:
        for item in waiting:
            request = json.dumps({**item.fields, "image": data_url(item.load())})
            try:
                async with http.post(f"{server.url}/v1/tasks/{item.task}", data=request) as response:
                    body = await response.json()
            except (aiohttp.ClientError, TimeoutError) as error:
                why = str(error) or type(error).__name__
                raise NotAnswering(f"{item.name}: {why}; the server's log: {server.log}") from error
            if response.status != 200:
                raise NotAnswering(f"{item.name}: {body}")
            merged = body.get("merged") or {}
            answers[item.name] = {reply["model"]: reply.get("result") for reply in body["replies"]}
            answers[item.name]["merged"] = merged.get("result")

    async with session() as http:
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    return answers
