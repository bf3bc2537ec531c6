"""Compare one request to N models with N requests: `make bench-many-servers`.

A is a client that asks N servers of vLLM at once, one for each toy, and waits for all of them. B is the same client
with one request to Diptych, which serves the same toys and merges their replies too. Checkpoints, engine arguments,
plugins, prompts and the length of the replies are equal; the number of prompt tokens is compared.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import resource
import statistics
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from loadtest.arguments import checkout, several, whole, word
from loadtest.client import Client, Result, read_chunk, session
from loadtest.ledger import percentile
from loadtest.pictures import SIDES, data_url, pictures
from loadtest.processes import processor
from loadtest.servers import START_S, NotAnswering, Server, diptych, fetch, only, running, vllm
from loadtest.tables import columns, spread
from serve.models import MODELS
from serve.tasks import TASKS

TOYS = ("toy-llava", "toy-paligemma", "toy-llava-b", "toy-paligemma-b")
TASK, TOKENS = "caption", 16
COUNTS = {1: 40, 4: 80, 16: 160, 64: 256}
"""Fan-outs of a block at 224 pixels, by clients."""
LARGE = {"2mp": 0.4, "12mp": 0.15}
"""Share of these at larger sizes."""


@dataclass(frozen=True)
class Case:
    """A kind of load. door: of Diptych, "task" for /v1/tasks, "chat" for `caption:*` as a chat completion."""

    models: int
    stream: bool
    size: str
    clients: int
    door: str = "task"

    @property
    def name(self) -> str:
        how = "streamed" if self.stream else "whole"
        return f"N={self.models} {how}, {self.size}, {self.clients} clients, {self.door}"

    @property
    def count(self) -> int:
        return max(2 * self.clients, int(COUNTS.get(self.clients, 8 * self.clients) * LARGE.get(self.size, 1)))


@dataclass(frozen=True)
class Block:
    """The numbers of a case on one side. Times in ms of a fan-out; CPU in ms a fan-out; sent: bytes a fan-out.

    outside: CPU of all the side's processes but the engines; client: of this process.
    """

    side: str
    case: Case
    round: int
    rate: float
    p50: float
    p99: float
    first: float
    outside: float
    engines: float
    client: float
    sent: int
    cpu: dict[str, float]
    prompt_tokens: list[int]
    failed: int
    error: str


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=several(whole(1, len(TOYS))), default="2,4", help="numbers of models")
    parser.add_argument("--clients", type=several(whole(1)), default="1,4,16,64")
    parser.add_argument("--sizes", type=several(word(*SIDES)), default="1x,2mp,12mp")
    parser.add_argument("--doors", type=several(word("task", "chat")), default="task,chat")
    parser.add_argument("--rounds", type=whole(1), default=3)
    parser.add_argument("--previous", type=checkout, help="another checkout, measured as side P")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Measure every case on both sides, in rounds. Met: every target that could be checked."""
    blocks: list[Block] = []
    ended = ""
    try:
        for width in options.models:
            with _sides(TOYS[:width], options.previous) as sides:
                servers = [server for group in sides.values() for server in group]
                for at in range(options.rounds):
                    for case in _cases(width, options):
                        for side in sorted(sides, reverse=bool(at % 2)):
                            with only(sides[side], servers):
                                blocks.append(uvloop.run(measure(side, sides[side], case, at)))
                                print(_line(blocks[-1]), flush=True)
    except NotAnswering as error:
        if not blocks:
            raise
        ended = f"\nMISSED  it ended before its time: {error}"
    met, checked = _targets(blocks)
    print(f"\n{_summary(blocks)}\n\n{checked}{ended}\n{processor()}")
    values = {"processor": processor(), "blocks": [asdict(block) for block in blocks]}
    return "many_servers", values, met and not ended


def _cases(width: int, options: argparse.Namespace) -> Iterator[Case]:
    clients = options.clients
    for door, size, stream in itertools.product(options.doors, options.sizes, (False, True)):
        for number in clients if (door, size) == ("task", "1x") else clients[1:2] or clients:
            yield Case(width, stream, size, number, door)


@contextlib.contextmanager
def _sides(toys: Sequence[str], previous: Path | None) -> Iterator[dict[str, list[Server]]]:
    """Start the servers of all sides, one after the other."""
    own = diptych("B", "Diptych", [{"name": name} for name in toys])
    kinds = {"A": [vllm("A", name) for name in toys], "B": [own]}
    if previous:
        kinds["P"] = [replace(own, key="P", checkout=previous)]
    with contextlib.ExitStack() as stack:
        sides: dict[str, list[Server]] = {}
        for side, group in kinds.items():
            for kind in group:
                began = time.monotonic()
                sides.setdefault(side, []).append(stack.enter_context(running(kind)))
                if side != "A":
                    wait_until_ready(sides[side][-1], toys)
                print(f"{side} {kind.name}: {kind.model} answers after {time.monotonic() - began:.0f} s", flush=True)
        yield sides


def wait_until_ready(server: Server, models: Sequence[str]) -> None:
    """Wait until every model of a Diptych is ready; `running` has waited for the first."""
    until = time.monotonic() + START_S
    while not _are_ready(server, models):
        if time.monotonic() > until:
            raise NotAnswering(f"Not every model is ready; the server's log: {server.log}")
        time.sleep(0.5)


def _are_ready(server: Server, models: Sequence[str]) -> bool:
    try:
        states = json.loads(fetch(f"{server.url}/ready"))["models"]
    except OSError:  # 503: no model is ready yet
        return False
    return all(states[name] == "ready" for name in models)


async def measure(
    side: str, servers: Sequence[Server], case: Case, at: int, models: Sequence[str] | None = None
) -> Block:
    """Run a block. Both sides of a round get the same pictures, which no cache has seen. models: other than the toys.

    Side A is a server of vLLM for each model, any other side one Diptych.
    """
    names = models or TOYS[: case.models]
    drawn = itertools.islice(pictures(case.size, zlib.crc32(repr((case, at, names)).encode())), case.count)
    asks = _asks_vllm(servers, names, drawn, case) if side == "A" else _asks_diptych(servers[0], names, drawn, case)
    waiting = iter(asks)
    results: list[Result] = []

    async def client(http: aiohttp.ClientSession) -> None:
        for calls in waiting:
            results.append(await _fan_out(http, calls))

    before, own = [server.cpu() for server in servers], resource.getrusage(resource.RUSAGE_SELF)
    async with session() as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(case.clients)))
        seconds = time.perf_counter() - began
    cpu: dict[str, float] = {}
    for server, past in zip(servers, before, strict=True):
        for role, spent in server.cpu_since(past).items():
            cpu[role] = cpu.get(role, 0.0) + 1000 * spent / len(asks)
    after = resource.getrusage(resource.RUSAGE_SELF)
    good = [result for result in results if not result.error] or results[:1]
    errors = [result.error for result in results if result.error]
    return Block(
        side=side,
        case=case,
        round=at,
        rate=(len(results) - len(errors)) / seconds,
        p50=1000 * percentile((result.seconds for result in good), 0.5),
        p99=1000 * percentile((result.seconds for result in good), 0.99),
        first=1000 * percentile((result.first for result in good), 0.5),
        outside=sum(spent for role, spent in cpu.items() if role != "engine"),
        engines=cpu.get("engine", 0.0),
        client=1000 * (after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime) / len(asks),
        sent=sum(len(call.body) for calls in asks for call in calls) // len(asks),
        cpu=cpu,
        prompt_tokens=sorted({result.prompt_tokens for result in good}),
        failed=len(errors),
        error=errors[0] if errors else "",
    )


@dataclass(frozen=True)
class Call:
    """A request to one server."""

    client: Client
    body: bytes
    stream: bool


async def _fan_out(http: aiohttp.ClientSession, calls: Sequence[Call]) -> Result:
    """Send all calls of a fan-out at once. The result ends with the last of them and begins with the first text."""
    began = time.perf_counter()
    parts = await asyncio.gather(*(call.client.call(http, call.body, call.stream) for call in calls))
    firsts = [part.first for part in parts if part.first]
    return Result(
        seconds=time.perf_counter() - began,
        first=min(firsts, default=0.0),
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        error=next((part.error for part in parts if part.error), ""),
    )


def _asks_vllm(
    servers: Sequence[Server], toys: Sequence[str], drawn: Iterator[bytes], case: Case
) -> list[tuple[Call, ...]]:
    """Return for each picture a chat completion for each server, with the prompt that Diptych gives that model."""
    texts = []
    for name in toys:
        request = TASKS[TASK].request.model_construct(lang="en")
        (prompt,) = MODELS[name].skills[TASK].ask(request)
        texts.append(prompt.text)
    asks: list[tuple[Call, ...]] = []
    for picture in drawn:
        image, calls = {"type": "image_url", "image_url": {"url": data_url(picture)}}, []
        for server, name, text in zip(servers, toys, texts, strict=True):
            content = [image, {"type": "text", "text": text}]
            body: dict[str, Any] = {
                "model": name,
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": TOKENS,
                "ignore_eos": True,
                "stream": case.stream,
                "add_special_tokens": True,
                "skip_special_tokens": False,
            }
            if case.stream:
                body["stream_options"] = {"include_usage": True}
            calls.append(Call(Client(server.chat), json.dumps(body).encode(), case.stream))
        asks.append(tuple(calls))
    return asks


def _asks_diptych(server: Server, toys: Sequence[str], drawn: Iterator[bytes], case: Case) -> list[tuple[Call, ...]]:
    """Return for each picture one request to all models."""

    def whole(data: bytes, result: Result) -> None:
        answer = json.loads(data)
        replies = answer["replies"] if case.door == "task" else [choice["diptych"] for choice in answer["choices"][1:]]
        failed = [reply for reply in replies if reply["status"] != "ok"]
        if failed or len(replies) != len(toys):
            raise ValueError(f"not every model answered: {failed or replies}")
        result.prompt_tokens = answer["usage"]["prompt_tokens"]

    def event(data: dict[str, Any], result: Result) -> bool:
        replies = [data] if case.door == "task" else [c["diptych"] for c in data["choices"] if "diptych" in c]
        if any(reply.get("status", "ok") not in ("ok", "speaking") for reply in replies):
            raise ValueError(f"not every model answered: {data}")
        if case.door == "chat":
            return read_chunk(data, result)
        if "usage" in data:
            result.prompt_tokens += data["usage"]["prompt_tokens"]
        return "text" in data and "status" not in data

    asks: list[tuple[Call, ...]] = []
    for picture in drawn:
        url, body = f"{server.url}/v1/tasks/{TASK}", dict[str, Any](image=data_url(picture), models=list(toys))
        if case.door == "chat":
            image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
            url = server.chat
            body = {"model": f"{TASK}:*", "messages": [{"role": "user", "content": [image]}]}
            if case.stream:
                body["stream_options"] = {"include_usage": True}
        sent = {**body, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "stream": case.stream}
        asks.append((Call(Client(url, whole, event), json.dumps(sent).encode(), case.stream),))
    return asks


def _line(block: Block) -> str:
    cpu = ", ".join(f"{role} {spent:.1f}" for role, spent in sorted(block.cpu.items()) if spent >= 0.05)
    failed = f"; {block.failed} FAILED: {block.error}" if block.failed else ""
    return (
        f"{block.round} {block.side}  {block.case.name}: {block.rate:.1f}/s, p50 {block.p50:.0f} p99 {block.p99:.0f} "
        f"first {block.first:.0f} ms, CPU ms {cpu}, client {block.client:.1f}, prompt {block.prompt_tokens}{failed}"
    )


HEAD = "case,side,fan-outs/s,to A,p50,to A,p99,to A,first,outside,to A,engines,to A,client,KB sent".split(",")


def _summary(blocks: Sequence[Block]) -> str:
    """Return a table: medians of the rounds, and the median of the ratios to A in the same round."""
    rows: list[Sequence[str]] = [HEAD]
    for case in dict.fromkeys(block.case for block in blocks):
        for side in sorted({block.side for block in blocks}):
            row = [case.name if side == "A" else "", side]
            for measure in ("rate", "p50", "p99", "first", "outside", "engines", "client", "sent"):
                own = [getattr(block, measure) for block in _of(blocks, case, side)]
                value = statistics.median(own) if own else math.nan
                row.append(f"{value / 1000:.0f}" if measure == "sent" else f"{value:.1f}")
                if measure not in ("first", "client", "sent"):
                    ratios = [] if side == "A" else _ratios(blocks, case, measure, side)
                    row.append(f"{statistics.median(ratios):.2f}" if ratios else "")
            rows.append(row)
    failed = sum(block.failed for block in blocks)
    return "\n".join([*columns(rows), f"Times and CPU in ms a fan-out. Failed fan-outs: {failed}."])


def _targets(blocks: Sequence[Block]) -> tuple[bool, str]:
    """Return whether all targets that could be checked are met, and a line for each."""
    lines, met = [], True
    for case in dict.fromkeys(block.case for block in blocks if block.case.door == "task"):
        for measure, limit in _limits(case).items():
            ratios = _ratios(blocks, case, measure, "B")
            if not ratios:
                continue
            value = statistics.median(ratios)
            good = value >= limit if measure == "rate" else value <= limit
            met &= good
            sign = ">=" if measure == "rate" else "<="
            lines.append(
                f"{'met   ' if good else 'MISSED'}  {case.name}, {measure} to A {sign} {limit}: {spread(ratios)}"
            )
    for side in ("A", "B"):
        if failed := sum(block.failed for block in blocks if block.side == side):
            met = False
            lines.append(f"MISSED  fan-outs of {side} that failed, 0: {failed}")
    return met and bool(lines), "\n".join(lines)


def _limits(case: Case) -> dict[str, float]:
    """Return the targets of a case, as ratios to A: issue 23's table."""
    wide = case.models > 2
    limits = {"p50": 1.0, "p99": 1.0} if case.clients <= 16 else {}
    if case.size == "1x":
        limits["rate"] = 1.1 if wide else 1.05
        if case.clients == 16:
            limits["outside"] = 0.6 if wide else 0.75
    elif case.size == "12mp":
        limits |= {"rate": 2.0 if wide else 1.5, "outside": 0.4 if wide else 0.6}
    return limits


def _of(blocks: Sequence[Block], case: Case, side: str) -> list[Block]:
    return [block for block in blocks if block.case == case and block.side == side]


def _ratios(blocks: Sequence[Block], case: Case, measure: str, side: str) -> list[float]:
    """Return a side's value to A's in the same round, for each round in which both answered something."""
    base = {block.round: float(getattr(block, measure)) for block in _of(blocks, case, "A") if block.rate}
    own = [block for block in _of(blocks, case, side) if block.rate]
    return [getattr(block, measure) / base[block.round] for block in own if base.get(block.round)]
