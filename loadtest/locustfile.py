"""Users of a running server, for locust: `make loadtest`. How to run it and what its rows are: loadtest/README.md."""

import logging
import os
import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from locust import FastHttpUser, LoadTestShape, constant, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest import options, report
from loadtest.asks import Ask, Asks, Nothing, Served
from loadtest.hearing import Hearing
from loadtest.slo import Wrong
from loadtest.waves import WAVES
from serve.client.http_client import Failure, sentence

URL = "http://127.0.0.1:8000"
KEY = os.environ.get("DIPTYCH_API_KEY")
HEADERS = {"content-type": "application/json", **({"authorization": f"Bearer {KEY}"} if KEY else {})}
logging.getLogger("httpx").setLevel(logging.WARNING)  # its line for every question to the catalogue


class Visitor(FastHttpUser):
    """Asks, hears the answer as it arrives, and asks again. asks: what all users of this process send."""

    abstract = True
    kind: ClassVar[str]
    asks: ClassVar[Asks]
    network_timeout = 120.0

    def on_start(self) -> None:
        pace = self.environment.parsed_options.pace
        self.pause: Callable[[Any], float] = constant_throughput(pace) if pace else constant(0)

    def on_stop(self) -> None:
        self.client.client.close()

    def wait_time(self) -> float:
        return self.pause(self)

    @task
    def visit(self) -> None:
        stream = random.random() < self.environment.parsed_options.streamed
        self.send(self.ask(stream), stream)

    def ask(self, stream: bool) -> Ask:
        raise NotImplementedError

    def send(self, ask: Ask, stream: bool) -> None:
        """One request as a row of its own, and what was heard in it as others."""
        hearing, began = Hearing(ask.models), time.perf_counter()

        def now() -> float:
            return 1000 * (time.perf_counter() - began)

        sent = {"data": ask.body, "headers": HEADERS, "name": ask.name, "stream": stream, "catch_response": True}
        with self.client.post(ask.path, **sent) as reply:
            reply.request_meta["request_type"] = "STREAM" if stream else "WHOLE"
            if reply.status_code == 0:
                return  # no connection: locust says why
            if reply.status_code != 200:
                reply.failure(f"HTTP {reply.status_code}: {said(reply)}")
                return
            try:
                if stream:
                    while line := reply.stream.readline(b"\n"):  # iter_lines would wait until 1 KiB is there
                        hearing.line(line, now())
                else:
                    hearing.whole(reply.content, now())
            except FAILURE_EXCEPTIONS as error:
                hearing.broken(f"the connection broke: {type(error).__name__}")
            reply.request_meta["response_time"] = now()
            if faults := hearing.faults():
                reply.failure("; ".join(faults))
        self.tell(ask.door, stream, hearing)

    def tell(self, door: str, stream: bool, hearing: Hearing) -> None:
        """What was heard, beside the requests: not through the request event, which would count it as requests."""
        entries = self.environment.stats.entries
        for column in hearing.columns:
            entries[column.model, "COLUMN"].log(column.latency_ms, 0)
            if column.fault:
                entries[column.model, "COLUMN"].log_error(column.fault)
            if column.unread:
                entries[column.model, "UNREAD"].log(column.latency_ms, 0)
        if stream and hearing.first is not None:
            entries[door, "TTFT"].log(hearing.first, 0)
        for gap in hearing.gaps:
            entries[door, "ITL"].log(gap, 0)
        if stream and hearing.models and hearing.merged is not None:
            entries[door, "MERGED"].log(hearing.merged, 0)


class Chat(Visitor):
    """One model alone, by OpenAI's door."""

    kind = "chat"

    def ask(self, stream: bool) -> Ask:
        return self.asks.chat(stream)


class Task(Visitor):
    """A task of all models that can, by its own door."""

    kind = "task"

    def ask(self, stream: bool) -> Ask:
        return self.asks.task(stream)


class FanOut(Visitor):
    """The same by OpenAI's door."""

    kind = "fan-out"

    def ask(self, stream: bool) -> Ask:
        return self.asks.fan_out(stream)


class Wave(LoadTestShape):
    """--shape: its share of --users, for as long as --run-time."""

    abstract = True  # locust would take it whether it is asked for or not

    def __init__(self, options: Namespace) -> None:
        super().__init__()
        self.options = options

    def tick(self) -> tuple[int, float] | None:
        over = self.get_run_time() / self.options.run_time
        if over >= 1:
            return None
        users = self.options.num_users or 1
        return max(1, round(users * WAVES[self.options.shape](over))), self.options.spawn_rate or users


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    options.add(parser)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Refuses what cannot work before anything is sent. Workers of --processes do so too: else they outlive the run."""
    worker = isinstance(environment.runner, WorkerRunner)
    asked = environment.parsed_options
    if worker and environment.host is None:
        return  # started by hand: its master tells it what to do
    environment.host = environment.host or URL
    try:
        options.check(asked)
        Served.by(environment.host, asked.tasks)
    except (Wrong, Nothing, Failure) as error:
        if not worker:
            print(f"loadtest: {error}", file=sys.stderr)
        sys.exit(2)
    if worker:
        return
    weights = options.weights(asked)
    for user in environment.user_classes:
        user.weight = weights[user.kind]
    environment.user_classes = [user for user in environment.user_classes if user.weight]
    if asked.shape:
        environment.shape_class = Wave(asked)
    events.quitting.add_listener(judge)


@events.test_start.add_listener
def load(environment: Environment, **_: Any) -> None:
    """Every process that sends requests has pictures of its own. A master sends none."""
    if not isinstance(environment.runner, MasterRunner):
        asked = environment.parsed_options
        served = Served.by(environment.host, asked.tasks)
        Visitor.asks = Asks(served, size=asked.size, repeat=asked.repeat, tokens=asked.tokens)


def judge(environment: Environment, **_: Any) -> None:
    """The exit code: by the objectives where there are any, else as locust has it. Later its rows may be gone."""
    asked, stats = environment.parsed_options, environment.stats
    verdicts = [slo.judge(stats.entries.values(), stats.total) for slo in options.slos(asked)]
    if verdicts:
        met = all(verdict.met for verdict in verdicts)
        environment.process_exit_code = 0 if met and not environment.runner.exceptions else 1

    def conclude(exit_code: int) -> None:
        """Every objective, on the terminal and before everything else in the report."""
        if verdicts:
            print(report.told(verdicts))
        if asked.html_file and Path(asked.html_file).exists():
            report.preface(Path(asked.html_file), options.sentence(asked, environment.host), verdicts)
            print(f"Report: {asked.html_file}")

    events.quit.add_listener(conclude)


def said(reply: Any) -> str:
    """The server's own words for a refusal."""
    try:
        return sentence(reply.json()) or "no reason given"
    except (ValueError, AttributeError):
        return "no reason given"
