"""The command line of `diptych batch`, and what it writes."""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from deployments.batch.question import BatchQuestion, checked_question
from deployments.config import ConfigError
from deployments.local.machine import PrivateRay
from serve.cli import add_question_options
from serve.client import legible
from serve.client.evaluation.batch import Tally
from serve.client.evaluation.run import in_parts, interrupted_by_sigterm, require_pictures
from serve.client.http_client import Failure, Misuse
from serve.client.storage.parts import FORMS, Parts, form_of
from serve.client.storage.sources import WHOLE, PictureSource, open_source

Json = dict[str, Any]
FIRST = 100
"""Where none of so many pictures has an answer, the question is at fault and not the pictures."""
OBJECT_STORE_BYTES = 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 when every picture has its answer, 1 when some have an error or the run stopped."""
    options = parse_options(argv)
    try:
        return run_batch(options)
    except (Failure, ConfigError) as error:
        print(f"diptych: {legible(error)}", file=sys.stderr)
        return getattr(error, "status", 2)
    except KeyboardInterrupt:
        return 130


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
    tally, earlier = Tally(), len(out.done)
    began = time.monotonic()
    try:
        with _ray(question, options.address), interrupted_by_sigterm():  # Ray has put its own handler there
            _write(_answers(source, question, out), out, tally)
    except BaseException:
        out.close()
        raise
    out.close(whole=True)
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


def _write(lines: Iterable[Json], out: Parts, tally: Tally) -> None:
    """Write all lines. Raises Failure."""
    with Console(stderr=True).status("starting") as status:
        for line in lines:
            if line["file"] in out.done:  # a block that was made twice, as its actor was lost
                continue
            out.add(line)
            tally.add(line)
            if tally.failed == FIRST and not tally.answered:
                raise Failure(f"None of the first {FIRST} pictures has an answer. {line['error']['message']}")
            status.update(f"{tally.answered} answers, {tally.failed} failed")


@contextlib.contextmanager
def _ray(question: BatchQuestion, address: str | None) -> Iterator[None]:
    """Use the cluster at an address while the block runs, or a private Ray on this machine."""
    if address or os.environ.get("RAY_ADDRESS"):
        import ray

        ray.init(address=address, log_to_driver=False, logging_level="warning")
        try:
            yield
        finally:
            ray.shutdown()
        return
    args = question.args
    entries = [args.engines()[name] for name in question.engines()]
    num_cpus = sum(entry.num_cpus * entry.max_replicas for entry in entries)
    spare = len(os.sched_getaffinity(0))  # tasks of lists, of decoding and of merging
    with PrivateRay(num_cpus, args.simulated_gpus(), spare_cpus=spare, object_store_bytes=OBJECT_STORE_BYTES):
        yield
