"""The command line of `diptych batch`, and what it writes."""

import argparse
import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from deployments.batch.question import BatchQuestion, checked_question
from deployments.config import ConfigError
from deployments.local.machine import PrivateRay
from deployments.local.stopping import Stopper
from serve.cli import add_question_options
from serve.client import legible
from serve.client.evaluation.batch import Tally
from serve.client.evaluation.run import in_parts, require_pictures
from serve.client.http_client import Failure, Misuse
from serve.client.storage.parts import FORMS, Parts, form_of
from serve.client.storage.sources import WHOLE, PictureSource, open_source

Json = dict[str, Any]
FIRST = 100
"""Where none of so many pictures has an answer, the question is at fault and not the pictures."""
OBJECT_STORE_BYTES = 2**30
STOPPED = 130
"""Exit status after SIGINT or SIGTERM: a Job tries again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 when every picture has its answer, 1 when some have an error or the run failed, STOPPED by a signal."""
    options = parse_options(argv)
    try:
        return run_batch(options)
    except (Failure, ConfigError) as error:
        print(f"diptych: {legible(error)}", file=sys.stderr)
        return getattr(error, "status", 2)
    except KeyboardInterrupt:
        return STOPPED


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser("diptych batch", allow_abbrev=False, description=__doc__.partition("\n")[0])
    add_question_options(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="a Serve config; default: the embedded toys")
    parser.add_argument("--out", required=True, metavar="FOLDER/|URI", help="answers.parquet, answers/, s3://b/answers")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster; default $RAY_ADDRESS, or this machine"
    )
    return parser.parse_args(argv)


def run_batch(options: argparse.Namespace) -> int:
    """Ask about all pictures and write the answers. Return the exit status. Raises Failure or ConfigError."""
    if not in_parts(options.out):
        raise Misuse(f"--out {options.out}: it is a folder, as answers.parquet, answers/ or s3://bucket/answers.")
    if FORMS[form_of(options.out)].pictures:
        raise Misuse(f"--out {options.out}: pictures stay where they are decoded; diptych run writes them beside.")
    for name in ("judge", "quorum"):
        if getattr(options, name) is not None:
            raise Misuse(f"--{name} needs a server: diptych run has it.")
    question = asyncio.run(checked_question(options))
    source = open_source(options.source)
    require_pictures(source, options.source)
    out = Parts(options.out, {"task": options.task, "asked": question.fields}, WHOLE, form_of(options.out))
    earlier, began = len(out.done), time.monotonic()
    writer = AnswerWriter(out)
    ray, stop_ray = _ray(question, options.address)

    def stop() -> None:
        try:
            writer.end()
        finally:
            stop_ray()

    stopper = Stopper(stop, status=STOPPED)
    with stopper:
        try:
            with ray, writer.status:
                stopper.take_signals()  # ray.init has set a handler of its own for SIGTERM
                writer.write(_answers(source, question, out))
        except BaseException:
            writer.close()
            raise
        writer.close(whole=True)
    tally = writer.tally
    console = Console(stderr=True)
    for sentence in tally.sentences():
        console.print(sentence, soft_wrap=True, markup=False)
    count = tally.answered + tally.failed
    console.print(f"{count} pictures in {time.monotonic() - began:.0f} s, with the models' start.", soft_wrap=True)
    if tally.failed:
        console.print(f"{tally.failed} have no answer: the same call asks about them again.", soft_wrap=True)
    return 1 if tally.failed > options.may_fail * (count + earlier) else 0


def _answers(source: PictureSource, question: BatchQuestion, out: Parts) -> Iterator[Json]:
    from deployments.batch.stages import answers  # imports Ray, which has to find its settings in the environment

    return answers(source, question, out.done)


class AnswerWriter:
    """Writes answers, shows how many there are, and ends with what there is where a signal's thread wants it."""

    def __init__(self, out: Parts) -> None:
        self.out, self.tally = out, Tally()
        self.status = Console(stderr=True).status("starting")
        self._writing = threading.Lock()

    def write(self, lines: Iterable[Json]) -> None:
        """Write all lines. Raises Failure."""
        for line in lines:
            with self._writing:
                if line["file"] in self.out.done:  # a block that was made twice, as its actor was lost
                    continue
                self.out.add(line)
            self.tally.add(line)
            if self.tally.failed == FIRST and not self.tally.answered:
                raise Failure(f"None of the first {FIRST} pictures has an answer. {line['error']['message']}")
            self.status.update(f"{self.tally.answered} answers, {self.tally.failed} failed")

    def close(self, *, whole: bool = False) -> None:
        """Write the rest. whole: there is an answer or an error for every picture. Raises Failure."""
        with self._writing:
            self.out.close(whole=whole)

    def end(self) -> None:
        """Write the rest, and nothing later: who wants to waits for this process's end."""
        self._writing.acquire()
        self.status.stop()  # the cursor is seen again
        try:
            self.out.close()
        except Failure as failure:
            print(f"diptych: {legible(failure)}", file=sys.stderr)


def _ray(question: BatchQuestion, address: str | None) -> tuple[AbstractContextManager[Any], Callable[[], None]]:
    """Return the Ray to use while a block runs: of the cluster at an address, or a private one on this machine.

    The second is what stops it from another thread. A cluster's processes for us end with this one.
    """
    if address or os.environ.get("RAY_ADDRESS"):
        return _joined(address), lambda: None
    args = question.args
    entries = [args.engines()[name] for name in question.engines()]
    num_cpus = sum(entry.num_cpus * entry.max_replicas for entry in entries)
    spare = len(os.sched_getaffinity(0))  # tasks of lists, of decoding and of merging
    private = PrivateRay(num_cpus, args.simulated_gpus(), spare_cpus=spare, object_store_bytes=OBJECT_STORE_BYTES)
    return private, private.stop


@contextlib.contextmanager
def _joined(address: str | None) -> Iterator[None]:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()
