"""Evaluates an uploaded folder for a gateway, as `diptych evaluate --keep` does.

python -m serve.client.evaluation.uploaded

The gateway (serve/api/evaluation_starts.py) writes an UploadOrder as a line of JSON to stdin; events come as lines of
JSON on stdout: {"answered", "items"}, {"kept"}, {"notes"}, {"failed"}. What people upload is read in this process
alone, which has limits on memory and processor time, gives way to everything else, and ends when its stdin does: with
the gateway.
"""

import contextlib
import io
import json
import os
import resource
import stat
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict

from serve import cli
from serve.client.evaluation import folder
from serve.client.evaluation.evaluate import DRAWN, Listener, evaluate
from serve.client.evaluation.measures import MEASURES
from serve.client.http_client import Failure
from serve.errors import ServeError
from serve.media.image import undecoded_image

NICENESS = 10
MEMORY = 4 * 2**30
"""Address space, in bytes, beyond what the imports take."""
CONCURRENCY = 4
"""Requests at once: an upload is in no hurry."""
MAX_NAME, MAX_DEPTH = 200, 16
"""Longest path in a zip file, in characters, and most folders in it."""
FILES_PER_PICTURE = 3
"""Files that a zip file may hold, as a multiple of the pictures: labels may have a file for each picture."""
MAX_OTHER_FILES = 100
ENTRIES_PER_FILE = 3
"""Entries that are read, as a multiple of the files: a system may add one to each, and folders have their own."""
ENTRY_BYTES = 512
"""Bytes of an entry, on average: 46, its path, and what systems note about it."""
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, LookupError, RuntimeError, ValueError, OverflowError)
"""What zipfile raises for bytes that are no zip file, or a broken one."""
SPACING_S = 0.5
"""Seconds between two events about the progress."""
NOTES = 2000
"""Characters of a failure, and of the notes, that are told."""


class UploadOrder(BaseModel):
    """An evaluation to run. archive: a zip file. here: the folder to unpack it in. name: of the run's target.

    server: this gateway's address; host: its Host header. keep: the folder of runs. max_bytes: of what is unpacked.
    """

    model_config = ConfigDict(extra="forbid")

    archive: Path
    here: Path
    name: str
    task: str
    n: int | None
    models: list[str] | None
    server: str
    host: str | None
    api_key: str | None
    keep: Path
    max_bytes: int
    max_pictures: int
    max_s: int


def main() -> None:
    """Run the order on stdin."""
    order = UploadOrder.model_validate_json(sys.stdin.readline())
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    threading.Thread(target=_end_with_stdin, daemon=True).start()
    _confine(order.max_s)
    notes = io.StringIO()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(notes):
        try:
            run_order(order, tell)
        except Failure as failure:
            tell(failed=str(failure)[:NOTES])
        except MemoryError:
            tell(failed="To read it takes too much memory.")
    tell(notes=notes.getvalue()[:NOTES])


def run_order(order: UploadOrder, tell: Callable[..., None]) -> None:
    """Unpack, check, ask, score and keep. Raises Failure."""
    if order.name in DRAWN:
        raise Failure(f"{order.name} is the name of a set that is drawn: take another.")
    if order.task not in (*MEASURES, "all"):
        raise Failure(f"Nothing measures {order.task}: take one of {', '.join(MEASURES)}, or all.")
    here = order.here / order.name
    unpack(order.archive, here, order.max_bytes, FILES_PER_PICTURE * order.max_pictures + MAX_OTHER_FILES)
    order.archive.unlink()
    check_pictures(here, order.max_pictures)
    os.chdir(order.here)  # errors and the page name files as the uploader knows them
    arguments = [
        f"--task={order.task}",
        f"--server={order.server}",
        f"--keep={order.keep}",
        f"--concurrency={CONCURRENCY}",
    ]
    arguments += [f"--n={order.n}"] * (order.n is not None)
    arguments += [f"--models={','.join(order.models)}"] if order.models else []
    options = cli.parsed(["evaluate", order.name, *arguments])
    options.api_key, options.host = order.api_key, order.host
    last = 0.0

    def answered(done: int, total: int) -> None:
        nonlocal last
        if done in (0, total) or time.monotonic() - last > SPACING_S:
            last = time.monotonic()
            tell(answered=done, items=total)

    evaluate(options, Listener(answered, lambda name: tell(kept=name)))


def unpack(archive: Path, to: Path, max_bytes: int, max_files: int) -> None:
    """Write the files of a zip file into a new folder; a folder around all of them is left out.

    Raises Failure for a file that is no zip file, and for one that holds too much, links, or paths that lead outside.
    """
    try:
        _check_directory(archive, ENTRIES_PER_FILE * max_files)
        with zipfile.ZipFile(archive) as packed:
            infos = [info for info in packed.infolist() if not info.is_dir() and not _is_litter(info.filename)]
            if not infos:
                raise Failure("The zip file holds no files.")
            if len(infos) > max_files:
                raise Failure(f"The zip file holds {len(infos):,} files; at most {max_files:,} are unpacked.")
            size = sum(info.file_size for info in infos)  # of no file more is read than it says
            if size > max_bytes:
                raise Failure(f"Unpacked it has {size / 2**20:,.0f} MiB; at most {max_bytes / 2**20:,.0f} are allowed.")
            paths = [_checked_path(info) for info in infos]
            if len({str(path).casefold() for path in paths}) < len(paths):
                raise Failure("The zip file holds two files of one name.")
            around = {path.parts[0] for path in paths} if all(len(path.parts) > 1 for path in paths) else set()
            to.mkdir(parents=True)
            for info, path in zip(infos, paths, strict=True):
                target = to.joinpath(*path.parts[len(around) == 1 :])
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(info) as source, target.open("xb") as file:
                    while chunk := source.read(2**20):
                        file.write(chunk)
    except UNREADABLE as error:
        raise Failure(f"This is no zip file that can be read: {str(error) or type(error).__name__}.") from None
    except OSError as error:
        raise Failure(f"The folder could not be unpacked: {error.strerror}.") from None


def check_pictures(here: Path, most: int) -> None:
    """Check number and outlines of the pictures: format, size in bytes and in pixels. Raises Failure."""
    names = folder.pictures(here)
    if len(names) > most:
        raise Failure(f"The folder holds {len(names):,} pictures; at most {most:,} are evaluated at a time.")
    for name in names:
        try:
            undecoded_image(folder.content(here / name))
        except ServeError as error:
            raise Failure(f"{name}: {error.message}") from None


def _check_directory(archive: Path, most: int) -> None:
    """Raise Failure where the list of a zip file's contents, which zipfile reads whole, has more entries or bytes."""
    with archive.open("rb") as file:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # zipfile goes by the same record
    if end is None:
        return
    entries, size = end[zipfile._ECD_ENTRIES_TOTAL], end[zipfile._ECD_SIZE]  # type: ignore[attr-defined]
    if entries > most:
        raise Failure(f"The zip file holds {entries:,} files and folders; at most {most:,} are read.")
    if size > ENTRY_BYTES * most:  # whatever number it gives
        raise Failure(f"The zip file's list of contents has {size:,} bytes; at most {ENTRY_BYTES * most:,} are read.")


def _checked_path(info: zipfile.ZipInfo) -> PurePosixPath:
    """Return the path of a file in the folder. Raises Failure for one that leads elsewhere, and for what is no file."""
    name = info.filename
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable()
    if outside or len(name) > MAX_NAME or len(path.parts) > MAX_DEPTH:
        raise Failure(f"The zip file holds a path that is not one inside a folder: {name[:80]!r}.")
    mode = info.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise Failure(f"{name}: the zip file holds a link, or what is no file.")
    if info.flag_bits & 1 or info.compress_type not in METHODS:
        raise Failure(f"{name}: it is encrypted, or packed otherwise than by deflate.")
    return path


def _is_litter(name: str) -> bool:
    """Return whether a file is one that systems put beside those that people pack."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part != ".." for part in parts)


def _confine(max_s: int) -> None:
    os.nice(NICENESS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (max_s, max_s))


def _end_with_stdin() -> None:
    """Wait until the gateway closes stdin, or has died, and end this process."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
