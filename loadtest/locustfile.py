"""Users of a running server, for locust: `make loadtest`. Its options and rows: loadtest/README.md."""

import logging
import os
import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from gevent import GreenletExit
from locust import FastHttpUser, LoadTestShape, constant, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS
from locust.env import Environment
from locust.exception import CatchResponseError
from locust.runners import MasterRunner, WorkerRunner

from loadtest import options, report
from loadtest.asks import Ask, Asks, Nothing, Served
from loadtest.response_reader import UNREAD, ResponseReader
from loadtest.slo import Invalid
from serve.client.http_client import Failure, sentence

URL = "http://127.0.0.1:8000"
KEY = os.environ.get("DIPTYCH_API_KEY")
HEADERS = {"content-type": "application/json", **({"authorization": f"Bearer {KEY}"} if KEY else {})}
logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every request to the catalogue


class Visitor(FastHttpUser):
    """A user that asks, reads the answer as it arrives, and asks again. asks: draws requests for all users here."""

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
        ask, began = self.ask(stream), time.perf_counter()
        try:
            self.send(ask, stream)
        except GreenletExit:
            if self.environment.stop_timeout:  # else users are ended wherever they are, and nothing is wrong
                self.log_unanswered(ask, stream, 1000 * (time.perf_counter() - began))
            raise

    def ask(self, stream: bool) -> Ask:
        kinds = {"chat": self.asks.chat, "task": self.asks.task, "fan-out": self.asks.fan_out}
        return kinds[self.kind](stream)

    def send(self, ask: Ask, stream: bool) -> None:
        """Send a request, which locust logs as a row, and log its parts as others."""
        reader, began = ResponseReader(ask.models), time.perf_counter()

        def now() -> float:
            return 1000 * (time.perf_counter() - began)

        sent = {"data": ask.body, "headers": HEADERS, "name": ask.name, "stream": stream, "catch_response": True}
        with self.client.post(ask.path, **sent) as reply:
            reply.request_meta["request_type"] = "STREAM" if stream else "WHOLE"
            if reply.status_code == 0:
                return  # no connection: locust says why
            if reply.status_code != 200:
                reader.body(reply.content, now())
                if reader.code != UNREAD:
                    reply.failure(f"HTTP {reply.status_code}: {reason(reply)}")
                    return
                reply.success()
                self.environment.stats.entries[ask.name, "UNREAD"].log(now(), 0)
                return
            try:
                if stream:
                    while line := reply.stream.readline(b"\n"):  # iter_lines would wait until 1 KiB is there
                        reader.line(line, now())
                else:
                    reader.body(reply.content, now())
            except FAILURE_EXCEPTIONS as error:
                reader.broken(f"the connection broke: {type(error).__name__}")
            reply.request_meta["response_time"] = now()
            if faults := reader.faults():
                reply.failure("; ".join(faults))
        self.log_parts(ask.door, stream, reader)

    def log_unanswered(self, ask: Ask, stream: bool, waited_ms: float) -> None:
        """Log a request as failed that had no whole answer when its user was ended, --stop-timeout after the run."""
        self.environment.events.request.fire(
            request_type="STREAM" if stream else "WHOLE",
            name=ask.name,
            response_time=waited_ms,
            response_length=0,
            exception=CatchResponseError("no whole answer by the end of --stop-timeout"),
            context={},
        )

    def log_parts(self, door: str, stream: bool, reader: ResponseReader) -> None:
        """Log an answer's parts: not through the request event, which would count them as requests."""
        entries = self.environment.stats.entries
        for column in reader.columns:
            entries[column.model, "COLUMN"].log(column.latency_ms, 0)
            if column.fault:
                entries[column.model, "COLUMN"].log_error(column.fault)
            if column.unread:
                entries[column.model, "UNREAD"].log(column.latency_ms, 0)
        if stream and reader.first is not None:
            entries[door, "TTFT"].log(reader.first, 0)
        for gap in reader.gaps:
            entries[door, "ITL"].log(gap, 0)
        if stream and reader.models and reader.merged is not None:
            entries[door, "MERGED"].log(reader.merged, 0)


class Chat(Visitor):
    kind = "chat"


class Task(Visitor):
    kind = "task"


class FanOut(Visitor):
    kind = "fan-out"


class Shape(LoadTestShape):
    """The load by --shape: a share of --users, over --run-time."""

    abstract = True  # locust would use it without --shape, too

    def __init__(self, options: Namespace) -> None:
        super().__init__()
        self.options = options

    def tick(self) -> tuple[int, float] | None:
        over = self.get_run_time() / self.options.run_time
        if over >= 1:
            return None
        users = self.options.num_users or 1
        return max(1, round(users * options.SHAPES[self.options.shape](over))), self.options.spawn_rate or users


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    options.add(parser)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Refuse options that cannot work before anything is sent, also in workers of --processes, which then end."""
    worker = isinstance(environment.runner, WorkerRunner)
    wanted = environment.parsed_options
    if worker and environment.host is None:
        return  # started by hand: its master has the options
    environment.host = environment.host or URL
    try:
        options.check(wanted)
        Served.by(environment.host, wanted.tasks)
    except (Invalid, Nothing, Failure) as error:
        if not worker:
            print(f"loadtest: {error}", file=sys.stderr)
        sys.exit(2)
    if worker:
        return
    weights = options.weights(wanted)
    for user in environment.user_classes:
        user.weight = weights[user.kind]
    environment.user_classes = [user for user in environment.user_classes if user.weight]
    if wanted.shape:
        environment.shape_class = Shape(wanted)
    events.quitting.add_listener(judge)


@events.test_start.add_listener
def load(environment: Environment, **_: Any) -> None:
    """Give every process that sends requests pictures of its own. A master sends none."""
    if not isinstance(environment.runner, MasterRunner):
        wanted = environment.parsed_options
        served = Served.by(environment.host, wanted.tasks)
        Visitor.asks = Asks(served, size=wanted.size, repeat=wanted.repeat, tokens=wanted.tokens)


def judge(environment: Environment, **_: Any) -> None:
    """Set the exit code by the objectives, if any, before locust drops its rows; print and report them at the end."""
    wanted, stats = environment.parsed_options, environment.stats
    verdicts = [slo.judge(stats.entries.values(), stats.total) for slo in options.slos(wanted)]
    if verdicts:
        met = all(verdict.met for verdict in verdicts)
        environment.process_exit_code = 0 if met and not environment.runner.exceptions else 1

    def conclude(exit_code: int) -> None:
        if verdicts:
            print(report.summary(verdicts))
        if wanted.html_file and Path(wanted.html_file).exists():
            report.preface(Path(wanted.html_file), options.sentence(wanted, environment.host), verdicts)
            print(f"Report: {wanted.html_file}")

    events.quit.add_listener(conclude)


def reason(reply: Any) -> str:
    """Return the server's reason for an error."""
    try:
        return sentence(reply.json()) or "no reason given"
    except (ValueError, AttributeError):
        return "no reason given"
