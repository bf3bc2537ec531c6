"""The `diptych` command and its subcommands. What is heavy is imported by the one that needs it."""

import argparse
import importlib.util
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

LOCAL = "http://127.0.0.1:8000"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 where it answered, at least in part, 1 where it failed, with a sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # a terminal that lacks a character still gets the rest
    options = parsed(argv)
    try:
        return _run_or_explain(options.run, options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `diptych models | head`: nobody reads on, also not what Python flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. argparse alone takes no QUESTION after options (`ask x.png --task detect circle`)."""
    known = parser()
    options, rest = known.parse_known_args(argv)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "question", "") is None:
        options.question = rest.pop()
    if options.run in (_plan, _doctor, _deploy, _batch):  # the program that they become reads its own options
        options.rest, rest = rest, []
    if rest:
        known.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _run_or_explain(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    from serve.client import legible
    from serve.client.http_client import Failure

    try:
        return run(options)
    except Failure as failure:
        print(f"diptych: {legible(failure)}", file=sys.stderr)
        return failure.status


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("diptych", description="One picture, every model, side by side.", allow_abbrev=False)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _serve_options(commands.add_parser("serve", help="start a server (the embedded toy models, unless told otherwise)"))
    for name, run, text in (
        ("doctor", _doctor, "whether this machine can serve them, and what to mend"),
        ("plan", _plan, "which models fit on which GPUs together"),
        ("batch", _batch, "pictures by the million through the models of a Ray cluster, without a server"),
        ("deploy", _deploy, "send a configuration to a running Ray, and follow what it changes"),
    ):
        commands.add_parser(name, help=text, add_help=False).set_defaults(run=run)
    _ask_options(commands.add_parser("ask", help="ask every model about a picture or a film"))
    _run_options(commands.add_parser("run", help="every picture of a folder or a URI through all models"))
    _report_options(commands.add_parser("report", help="a record of run or evaluate as one HTML file"))
    _evaluate_options(commands.add_parser("evaluate", help="how right the models are, and their merged reply"))
    _check_options(
        commands.add_parser("check", help="whether served models see: boxes, answers, words of drawn scenes")
    )
    models = commands.add_parser("models", help="which models there are, and what they can do")
    _server_option(models)
    models.set_defaults(run=_models)
    compare = commands.add_parser("compare", help="two or more models in one table")
    compare.add_argument("names", nargs="+", metavar="MODEL")
    compare.set_defaults(run=_compare)
    _arena_options(commands.add_parser("arena", help="two answers without names, votes, and a board of the models"))
    _keys_options(commands.add_parser("keys", help="make API keys, and keep the file that lets them in"))
    return top


def _serve_options(serve: argparse.ArgumentParser) -> None:
    which = serve.add_mutually_exclusive_group()
    which.add_argument("--config", metavar="FILE", help="a Ray Serve configuration, as in deployments/*.yaml")
    which.add_argument("--models", metavar="A,B", help="names from `diptych models`")
    serve.add_argument("--host", metavar="ADDRESS", help="default 127.0.0.1: this machine only")
    serve.add_argument("--port", type=_count, metavar="N", help="default 8000")
    serve.set_defaults(run=_serve)


def _ask_options(ask: argparse.ArgumentParser) -> None:
    ask.add_argument(
        "image",
        metavar="IMAGE",
        help="a PNG, JPEG, WEBP or GIF picture or its https URL, an MP4, MOV or WEBM film; - is stdin",
    )
    ask.add_argument("--video", action="store_true", help="an animated GIF or WEBP as a film, not as its first frame")
    ask.add_argument(
        "question", nargs="?", type=_text, metavar="QUESTION", help="for detect: phrases, as in 'cat; dog'"
    )
    ask.add_argument("--task", type=_text, help="default vqa with a question, else caption; see `diptych models`")
    ask.add_argument("--labels", type=_text, metavar="PHRASES", help="the phrases to find, instead of QUESTION")
    ask.add_argument("--schema", type=_text, metavar="FILE|JSON", help="for extract: the JSON schema of its object")
    ask.add_argument("--multiple", action="store_true", default=None, help="for classify: several labels may be right")
    ask.add_argument("--boxes", action="store_true", default=None, help="for ocr: also where each line stands")
    _request_options(ask)
    ask.add_argument("--json", action="store_true", help="print the server's JSON and nothing else")
    ask.add_argument(
        "--save", type=_picture_file, metavar="FILE", help="draw boxes or points into a copy of the picture"
    )
    _server_option(ask)
    ask.set_defaults(run=_ask)


def _request_options(command: argparse.ArgumentParser) -> None:
    """Add the options for the request's fields that ask and run have in common."""
    command.add_argument("--models", type=_names, metavar="A,B", help="default: all that can do the task")
    command.add_argument("--deadline", dest="deadline_s", type=_number, metavar="S", help="seconds a model may take")
    command.add_argument("--quorum", type=_count, metavar="N", help="merge as soon as so many models answered")
    command.add_argument("--merge", type=_text, metavar="METHOD", help="default: the task's own")
    command.add_argument(
        "--judge", type=_text, metavar="MODEL", help="who judges a caption or chat, with --merge judge"
    )
    command.add_argument("--weights", type=_weights, metavar="A=2,B=1", help="how much a model counts in the merge")
    command.add_argument(
        "--min-agreement", type=_number, metavar="A", help="0..1; below it they disagree: no merged reply"
    )
    command.add_argument("--temperature", type=_number, metavar="T", help="default 0: the likeliest words")
    command.add_argument("--max-tokens", type=_count, metavar="N", help="at most so many tokens a reply")
    command.add_argument("--seed", type=int, metavar="N", help="for a temperature above 0")
    command.add_argument("--reasoning-effort", type=_text, metavar="LEVEL", help="of models that reason; none: off")
    command.add_argument("--thinking-token-budget", type=int, metavar="N", help="end their reasoning after N tokens")
    command.add_argument("--lang", type=_text, metavar="CODE", help="the language of the answer, such as en")


def add_question_options(command: argparse.ArgumentParser) -> None:
    """Add where pictures come from, and what is asked about each."""
    command.add_argument(
        "source",
        metavar="FOLDER|FILES|URI",
        help="pictures of a folder, or in tar, parquet or JSON lines files, as 'a-*.tar'; here, or at s3:// or gs://",
    )
    command.add_argument("--task", type=_text, default="caption", help="default caption; see `diptych models`")
    command.add_argument("--question", dest="asked", type=_text, metavar="TEXT", help="for tasks that take one, as vqa")
    command.add_argument("--labels", type=_text, metavar="PHRASES", help="for tasks that take phrases: 'cat; dog'")
    command.add_argument("--schema", type=_text, metavar="FILE|JSON", help="for extract: the JSON schema of its object")
    command.add_argument(
        "--multiple", action="store_true", default=None, help="for classify: several labels may be right"
    )
    _request_options(command)
    command.add_argument(
        "--may-fail", type=_share, default=0.0, metavar="N%", help="of the pictures, and the exit status is still 0"
    )


def _run_options(run: argparse.ArgumentParser) -> None:
    add_question_options(run)
    _batch_options(run, str, "FILE|FOLDER/|URI")
    run.add_argument(
        "--shard", type=_shard, default="0/1", metavar="I/N", help="the I-th of N parts, from 0, chosen by the names"
    )
    run.add_argument("--part", type=_count, metavar="N", help="lines of a part where --out has parts, default 1000")
    run.add_argument(
        "--format", type=_format, metavar="NAME", help="labels as coco, yolo, voc, label-studio, fiftyone or jsonl"
    )
    run.add_argument("--to", type=Path, metavar="FOLDER", help="where labels go; default beside --out")
    run.add_argument(
        "--review-below",
        type=_below,
        metavar="A|N%",
        help="labels with less agreement, or the N %% with the least, apart",
    )
    run.add_argument(
        "--corrected",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="what people made of them, in place of the merged answers",
    )
    run.add_argument("--pictures-at", metavar="URL", help="where Label Studio finds them; default its local files")
    run.set_defaults(run=_run)


def _report_options(report: argparse.ArgumentParser) -> None:
    report.add_argument("record", type=Path, metavar="RECORD", help="what --out of run or evaluate wrote")
    report.add_argument(
        "folder", type=Path, nargs="?", metavar="FOLDER", help="its pictures; the toys' are drawn again"
    )
    report.add_argument("--to", type=Path, metavar="FILE", help="default: RECORD's name, with .html")
    report.add_argument(
        "--side", type=_count, metavar="N", help="pixels of a picture's longer side; default by their number"
    )
    report.set_defaults(run=_report)


def _evaluate_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "target",
        nargs="?",
        metavar="FOLDER|toy|varied|emoji|stamps|words|captcha|digits",
        help="labelled pictures, or a named set: freshly drawn scenes, or made of what a package ships",
    )
    evaluate.add_argument("--task", type=_measured_task, default="all", help="default all; see `diptych models`")
    evaluate.add_argument(
        "--n", type=_count, metavar="N", help="items a task; default 500 scenes, or all that there are"
    )
    evaluate.add_argument("--seed", type=int, default=0, metavar="N", help="which scenes, or which N of the pictures")
    evaluate.add_argument("--models", type=_names, metavar="A,B", help="default: all that can do the task")
    evaluate.add_argument("--merge", type=_text, metavar="METHOD", help="or all: every method, over the same replies")
    evaluate.add_argument(
        "--judge", type=_text, metavar="MODEL", help="who judges captions or chat, with --merge judge"
    )
    evaluate.add_argument("--weights", type=_weights, metavar="A=2,B=1", help="merge again, with these weights")
    evaluate.add_argument(
        "--annotations", type=Path, nargs="+", metavar="FILE", help="labels of any kind that is read; default: found"
    )
    evaluate.add_argument(
        "--from", dest="recorded", type=Path, metavar="FILE", help="score what --out recorded; asks nothing"
    )
    evaluate.add_argument("--by-kind", action="store_true", help="also by kind of question, of the drawn sets")
    evaluate.add_argument(
        "--by-agreement", action="store_true", help="also for those that agree: how many are answered, and how rightly"
    )
    evaluate.add_argument(
        "--fit-weights",
        action="store_true",
        help="weights by task and temperatures of confidences: fitted to half of the pictures, scored on the others",
    )
    evaluate.add_argument(
        "--judged-by", type=_text, metavar="MODEL", help="who says which answers in other words are right, too"
    )
    evaluate.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the run for the page /evaluations (gateway.evaluations)"
    )
    evaluate.add_argument("--json", action="store_true", help="print the scores as JSON")
    evaluate.add_argument(
        "--require-merged", action="store_true", help="exit 1 where the merged reply is worse than the best single one"
    )
    _batch_options(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _check_options(check: argparse.ArgumentParser) -> None:
    check.add_argument("names", nargs="+", metavar="MODEL|all", help="served models; all: every one")
    check.add_argument("--seed", type=int, default=0, metavar="N", help="which scenes are drawn")
    check.add_argument("--json", action="store_true", help="print the outcome as JSON")
    _server_option(check)
    check.set_defaults(run=_check)


def _arena_options(arena: argparse.ArgumentParser) -> None:
    from serve.client import arena as commands

    verbs = arena.add_subparsers(required=True, metavar="COMMAND")
    duel = verbs.add_parser("duel", help="two models' answers about a picture; choose one, then see the names")
    duel.add_argument("image", metavar="IMAGE", help="a picture, or its https URL; - is stdin")
    duel.add_argument(
        "question", nargs="?", type=_text, metavar="QUESTION", help="for detect: phrases, as in 'cat; dog'"
    )
    duel.add_argument("--task", type=_text, help="default vqa with a question, else caption; see `diptych models`")
    duel.add_argument("--judge", type=_text, metavar="MODEL", help="a model that votes as well")
    duel.add_argument("--choice", choices=list(commands.CHOICES.values()), help="vote so, and ask nothing")
    _server_option(duel)
    duel.set_defaults(run=commands.duel)
    board = verbs.add_parser("board", help="a task's ratings, with intervals and cautions")
    board.add_argument("--task", type=_text, default="vqa", help="default vqa")
    board.add_argument("--voters", choices=["all", "people", "judges"], default="all", help="default all")
    board.add_argument("--votes", type=Path, metavar="FILE", help="of this file, SQLite or JSON lines; asks no server")
    board.add_argument("--json", action="store_true", help="print the board as JSON")
    _server_option(board)
    board.set_defaults(run=commands.board)
    judge = verbs.add_parser("judge", help="have a model vote on a duel about each picture of a folder")
    judge.add_argument("folder", type=Path, metavar="FOLDER", help="its PNG, JPEG, WEBP and GIF files, subfolders too")
    judge.add_argument("question", nargs="?", type=_text, metavar="QUESTION", help="for tasks that take one, as vqa")
    judge.add_argument("--task", type=_text, default="caption", help="default caption; a task that is answered in text")
    judge.add_argument("--judge", type=_text, metavar="MODEL", required=True, help="a served model that can chat")
    _server_option(judge)
    judge.set_defaults(run=commands.judge)
    export = verbs.add_parser("export", help="print a file's votes as JSON lines")
    export.add_argument("file", type=Path, metavar="FILE", help="the server's gateway.arena")
    export.set_defaults(run=commands.export_votes)
    add = verbs.add_parser("import", help="add votes of JSON lines to a file, each once")
    add.add_argument("file", type=Path, metavar="FILE", help="the server's gateway.arena; made where there is none")
    add.add_argument("votes", type=Path, metavar="VOTES", help="JSON lines, as export prints them")
    add.set_defaults(run=commands.import_votes)


def _keys_options(keys: argparse.ArgumentParser) -> None:
    verbs = keys.add_subparsers(required=True, metavar="COMMAND")
    add = verbs.add_parser("add", help="make a key; without --file print the line that lets it in")
    digest = verbs.add_parser("hash", help="print the line of a key that is read from standard input")
    for verb in (add, digest):
        verb.add_argument("name", metavar="NAME", help="whose key it is; it stands in refusals, logs and metrics")
        verb.add_argument(
            "--scopes", type=_names, default=["ask"], metavar="A,B", help="of ask, scrape, admin; default ask"
        )
        verb.add_argument("--models", type=_names, metavar="A,B", help="models that it may use; default all")
        verb.add_argument("--tasks", type=_names, metavar="A,B", help="tasks that it may ask; default all")
        verb.add_argument("--expires", metavar="DAY", help="the last day on which it is let in, as 2027-01-31")
        verb.add_argument(
            "--limit", dest="limits", action="append", default=[], metavar="NAME=N", help="as requests_per_minute=60"
        )
    show = verbs.add_parser("list", help="print the keys of a file, without their digests")
    revoke = verbs.add_parser("revoke", help="remove a key from a file; servers refuse it within five seconds")
    revoke.add_argument("name", metavar="NAME")
    for verb in (add, show, revoke):
        verb.add_argument(
            "--file", type=Path, required=verb is not add, metavar="FILE", help="the server's gateway.keys_file"
        )
    for name, verb in verbs.choices.items():
        verb.set_defaults(run=_keys, verb=name)


def _batch_options(
    command: argparse.ArgumentParser, out: Callable[[str], object] = Path, metavar: str = "FILE"
) -> None:
    command.add_argument("--out", type=out, metavar=metavar, help="where the answers go; the same call again goes on")
    command.add_argument("--concurrency", type=_count, default=32, metavar="N", help="pictures at once, default 32")
    command.add_argument(
        "--patience", dest="patience_s", type=_number, default=120.0, metavar="S",
        help="seconds to wait for a server that starts, is busy or gone; default 120",
    )  # fmt: skip
    _server_option(command)


def _server_option(command: argparse.ArgumentParser) -> None:
    url = os.environ.get("DIPTYCH_URL") or LOCAL
    command.add_argument("--server", default=url, metavar="URL", help=f"default $DIPTYCH_URL, or {LOCAL}")
    key = os.environ.get("DIPTYCH_API_KEY")
    command.add_argument("--api-key", default=key, metavar="KEY", help="default $DIPTYCH_API_KEY, which no `ps` shows")


def _serve(options: argparse.Namespace) -> NoReturn:
    """Replace this process by the one that serves, so that signals and the exit status are its own. Raises Failure."""
    from serve.client.http_client import Failure

    missing = [name for name in ("ray", "vllm") if importlib.util.find_spec(name) is None]
    if missing:
        raise Failure(f"Serving needs {' and '.join(missing)}: install diptych[cpu] or diptych[gpu], or make serve.")
    given = {name: getattr(options, name) for name in ("config", "models", "host", "port")}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    _become("deployments", flags)


def _doctor(options: argparse.Namespace) -> NoReturn:
    _become("deployments.doctor", options.rest)


def _plan(options: argparse.Namespace) -> NoReturn:
    _become("deployments.plan", options.rest)


def _batch(options: argparse.Namespace) -> NoReturn:
    from serve.client.http_client import Failure

    missing = [name for name in ("ray", "vllm", "pyarrow", "pandas") if importlib.util.find_spec(name) is None]
    if missing:
        raise Failure(f"diptych batch needs {' and '.join(missing)}: install diptych[cpu,cloud] or diptych[gpu,cloud].")
    _become("deployments.batch", options.rest)


def _deploy(options: argparse.Namespace) -> NoReturn:
    _become("deployments.deploy", options.rest)


def _become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by one that runs a module of deployments/, which serve/ does not import."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def _ask(options: argparse.Namespace) -> int:
    from serve.client.asking import ask

    return ask(options)


def _run(options: argparse.Namespace) -> int:
    from serve.client.evaluation.run import run

    return run(options)


def _evaluate(options: argparse.Namespace) -> int:
    from serve.client.evaluation.evaluate import evaluate

    return evaluate(options)


def _report(options: argparse.Namespace) -> int:
    from serve.client.report import report

    return report(options)


def _check(options: argparse.Namespace) -> int:
    from serve.client.check import check_command

    return check_command(options)


def _models(options: argparse.Namespace) -> int:
    from serve.client.listing import models

    return models(options.server, options.api_key)


def _compare(options: argparse.Namespace) -> int:
    from serve.client.listing import compare

    return compare(options.names)


def _keys(options: argparse.Namespace) -> int:
    from serve.client import keys

    run = {"add": keys.add, "hash": keys.print_entry, "list": keys.list_keys, "revoke": keys.revoke}[options.verb]
    return run(options)


def _text(word: str) -> str:
    """Replace what cannot be sent: bytes that are no UTF-8 arrive in argv as lone surrogates."""
    return word.encode("utf-8", "replace").decode()


def _measured_task(word: str) -> str:
    """Check the name of a task that `evaluate` can measure, or `all`."""
    if word != "all":
        from serve.client.evaluation.measures import MEASURES
        from serve.tasks import TASKS

        names = [*(name for name in TASKS if name in MEASURES), "all"]
        if word not in names:
            raise argparse.ArgumentTypeError(f"invalid choice: {word!r} (choose from {', '.join(map(repr, names))})")
    return word


def _format(word: str) -> str:
    from serve.tasks.labels import FORMATS

    if word not in FORMATS:
        raise argparse.ArgumentTypeError(f"invalid choice: {word!r} (choose from {', '.join(FORMATS)})")
    return word


def _below(word: str) -> object:
    from serve.client.evaluation.export import Below

    try:
        return Below.parse(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word} is neither from 0 to 1 nor from 0% to 100%") from None


def _share(word: str) -> float:
    value = _number(word.removesuffix("%"))
    if not word.endswith("%") or not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{word} is not from 0% to 100%")
    return value / 100


def _shard(word: str) -> object:
    from serve.client.storage.sources import Shard

    try:
        return Shard.parse(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word} is not of the form 3/16, from 0/16 to 15/16") from None


def _names(word: str) -> list[str]:
    return [name for part in _text(word).split(",") if (name := part.strip())]


def _weights(word: str) -> dict[str, float]:
    weights = {}
    for name, equals, value in (part.partition("=") for part in _names(word)):
        if not equals or _number(value) < 0:
            raise argparse.ArgumentTypeError(f"{word} is not of the form A=2,B=0.5")
        weights[name.strip()] = _number(value)
    return weights


def _number(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{word} is not a number to count with")
    return value


def _count(word: str) -> int:
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _picture_file(word: str) -> Path:
    path = Path(word)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise argparse.ArgumentTypeError(f"{word} does not end in .png, .jpg or .webp")
    return path


if __name__ == "__main__":
    sys.exit(main())
