"""Keeps a run for the page /evaluations: its scores, what they cost, its answers and small pictures."""

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from serve.api.evaluation_runs import Cost, Run
from serve.client import report as reports
from serve.client.evaluation import score, table
from serve.client.http_client import Failure
from serve.models.base import Price

Json = dict[str, Any]
JOULES_PER_WH = 3600


def keep_run(
    folder: Path,
    target: str,
    scored: Sequence[score.Report],
    lines: Sequence[Json],
    prices: Mapping[str, Price],
    pictures: Mapping[str, Callable[[], bytes | str]],
) -> str:
    """Write a run's two files and return its name. pictures: by item, what returns its bytes. Raises Failure."""
    began = datetime.datetime.now(datetime.UTC)
    word = "".join(c if c.isascii() and c.isalnum() else "-" for c in Path(target).name) or "run"  # as Run.name has it
    name = f"{began:%Y-%m-%d-%H%M%S}-{word}"[:100]
    target = target.encode("utf-8", "replace").decode()  # a folder's name may be no UTF-8
    digest = hashlib.sha256()
    for line in sorted(lines, key=lambda line: str(line["item"])):
        digest.update(json.dumps([line["item"], line.get("truth")], sort_keys=True).encode())
    tables = [table.as_json(report) for report in scored]
    for entry in tables:
        of_task = [line for line in lines if line["task"] == entry["task"]]
        for row in entry["rows"]:
            cost = _merged_cost(of_task, prices) if row["merged"] else _cost(of_task, row["name"], prices)
            row["cost"] = None if cost is None else cost.model_dump()
    run = Run(name=name, at=time.time(), target=target, labelled_set=digest.hexdigest()[:16], tasks=tables)  # type: ignore[arg-type]
    side = next((side for most, side in reports.SIDES if len(lines) <= most), reports.SMALLEST_SIDE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.jsonl").open("w") as out:
            for line in lines:
                load = pictures.get(line["item"])
                picture = None if load is None else load()
                preview = {"preview": reports.preview_of(picture, side)} if isinstance(picture, bytes) else {}
                out.write(json.dumps(reports.trimmed(line) | preview) + "\n")
        (folder / f"{name}.json").write_text(run.model_dump_json(), "utf-8")  # last: a run counts once it is whole
    except OSError as error:
        raise Failure(f"The run was not kept in {folder}: {error.strerror or error}.") from None
    return name


def _replies(line: Json, model: str | None = None) -> list[Json]:
    return [
        reply
        for reply in line.get("replies") or []
        if reply["status"] == "ok" and (model is None or reply["model"] == model)
    ]


def _cost(lines: Sequence[Json], model: str, prices: Mapping[str, Price]) -> Cost | None:
    replies = [reply for line in lines for reply in _replies(line, model)]
    if not replies:
        return None
    first = [reply["ttft_ms"] / 1000 for reply in replies if reply.get("ttft_ms") is not None]
    prompt, completion = (
        fmean(reply["usage"][name] for reply in replies) for name in ("prompt_tokens", "completion_tokens")
    )
    price = prices.get(model)
    joules = [reply["energy_j"] for reply in replies if reply.get("energy_j") is not None]
    return Cost(
        seconds=fmean(reply["latency_ms"] for reply in replies) / 1000,
        first_word_s=fmean(first) if first else None,
        prompt_tokens=prompt,
        completion_tokens=completion,
        price=price,
        price_per_1000=None if price is None else 1000 * (prompt * price.input + completion * price.output) / 1e6,
        energy_wh_per_1000=1000 * fmean(joules) / JOULES_PER_WH if joules else None,
    )


def _merged_cost(lines: Sequence[Json], prices: Mapping[str, Price]) -> Cost | None:
    """Return what all models cost together; a price where each has one, all in one currency."""
    answered = [replies for line in lines if (replies := _replies(line))]
    if not answered:
        return None
    names = dict.fromkeys(reply["model"] for replies in answered for reply in replies)
    costs = [cost for name in names if (cost := _cost(lines, name, prices)) is not None]
    known = [cost.price_per_1000 for cost in costs if cost.price_per_1000 is not None]
    currencies = {cost.price.currency for cost in costs if cost.price is not None}
    whole = len(known) == len(costs) and len(currencies) == 1
    energy = [cost.energy_wh_per_1000 for cost in costs if cost.energy_wh_per_1000 is not None]
    return Cost(
        seconds=fmean(max(reply["latency_ms"] for reply in replies) for replies in answered) / 1000,
        first_word_s=None,
        prompt_tokens=sum(cost.prompt_tokens for cost in costs),
        completion_tokens=sum(cost.completion_tokens for cost in costs),
        price=Price(0, 0, currencies.pop()) if whole else None,
        price_per_1000=sum(known) if whole else None,
        energy_wh_per_1000=sum(energy) if len(energy) == len(costs) else None,
    )
