"""Answers as the parts of a folder, on this machine or in an object store, where nothing can be appended to a file.

    part-00003-of-00016-000000.jsonl, ...    answers of shard 3 of 16, every picture in one line of one part
    errors-00003-of-00016.jsonl              the pictures that had none when the run ended; the next call asks again
    manifest-00003-of-00016.json             the question, the parts with their lines, and whether all were asked

A part is written whole or not at all, under the next free number, and never again. A run that goes on reads the names
in its shard's parts first. Of two that write the same shard, the second to write a number is refused: it has not read
what the first has answered.
"""

import hashlib
import io
import json
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, Protocol

from serve.client.http_client import Failure, Misuse
from serve.client.storage.names import NameSet, encoded_name
from serve.client.storage.sources import Shard
from serve.client.storage.store import LocalStore, Store, open_store, require_package

Json = dict[str, Any]
MOST_LINES, MOST_BYTES, MOST_S = 1000, 2**26, 60.0
"""Lines, bytes and seconds after which a part is written: what a kill loses is asked again."""
OBJECT = "diptych.run"
SPOOLED = 2**20


class AnsweredPicture(NamedTuple):
    """A line, and its picture where the part holds pictures."""

    line: Json
    picture: bytes | None


class Encode(Protocol):
    """A function that writes answers as a file. stems: those of members that other parts have; it adds its own."""

    def __call__(self, answers: Sequence[AnsweredPicture], stems: NameSet | None = None) -> bytes: ...


class Form(NamedTuple):
    """A format of parts. lines: a file -> its lines, of which `file` alone must be there. pictures: a part has them."""

    encode: Encode
    lines: Callable[[IO[bytes]], Iterator[Json]]
    pictures: bool = False


class Parts:
    """The answers of one shard. Raises Misuse where the folder holds answers to another question, or Failure.

    question: fields of the manifest, equal in every call. form: one of FORMS. most_lines: of a part.
    """

    def __init__(self, address: str, question: Json, shard: Shard, form: str, most_lines: int | None = None) -> None:
        if form == "parquet":
            require_package("pyarrow", address)
        self.address, self.form = address, FORMS[form]
        self._most_lines = most_lines or MOST_LINES
        self.done = NameSet()
        self._stems = NameSet()
        self._store: Store = open_store(address)
        stem = f"{shard.index:05d}-of-{shard.count:05d}"
        self._stem, self._suffix = f"part-{stem}-", f".{form}"
        self._manifest_path, self._errors_path = f"manifest-{stem}.json", f"errors-{stem}.jsonl"
        self._manifest: Json = {"object": OBJECT, **question, "shard": str(shard), "format": form}
        self._parts: list[Json] = []
        self._waiting: list[AnsweredPicture] = []
        self._bytes, self._since = 0, time.monotonic()
        self._errors: IO[bytes] | None = None
        self._failed = 0
        self._closed = False
        self._begin(shard)

    def add(self, line: Json, picture: bytes | str | None = None) -> None:
        """Keep a line, and write a part where it is full. Raises Failure."""
        self.done.add(line["file"])
        if "error" in line:
            if self._errors is None:
                self._errors = tempfile.SpooledTemporaryFile(SPOOLED)  # noqa: SIM115 (open until `close`)
            self._errors.write(json.dumps(line).encode() + b"\n")
            self._failed += 1
            return
        if not self._waiting:
            self._since = time.monotonic()
        kept = picture if self.form.pictures and isinstance(picture, bytes) else None
        self._waiting.append(AnsweredPicture(line, kept))
        self._bytes += len(json.dumps(line)) + len(kept or b"")
        late = time.monotonic() - self._since > MOST_S
        if late or len(self._waiting) >= self._most_lines or self._bytes >= MOST_BYTES:
            self._write()

    def close(self, *, whole: bool = False) -> None:
        """Write the rest, the errors and the manifest, once. whole: every picture of the shard was asked about."""
        if self._closed:
            return
        self._closed = True
        try:
            self._write()
            if self._errors is not None:
                self._errors.seek(0)
                self._store.replace(self._errors_path, self._errors.read())
            self._store.replace(self._manifest_path, self._body(whole))
        finally:
            if self._errors is not None:
                self._errors.close()

    def _begin(self, shard: Shard) -> None:
        """Read what earlier calls have left. Raises Misuse or Failure."""
        if isinstance(self._store, LocalStore):
            try:
                self._store.root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Failure(f"{self.address} was not written: {error.strerror}.") from None
        paths = sorted(path for path in self._store.walk() if "/" not in path)
        for path in paths:
            other = re.fullmatch(r"manifest-\d{5,}-of-(\d{5,})\.json", path)
            if other and int(other[1]) != shard.count:
                raise Misuse(f"{self.address} holds answers of {int(other[1])} shards, not {shard.count}.")
        if self._manifest_path in paths or not self._store.create(self._manifest_path, self._body(False)):
            self._check_same()
        for path in paths:
            if path.startswith(self._stem):
                self._read_part(path)
        self._store.remove(self._errors_path)

    def _check_same(self) -> None:
        try:
            manifest = json.loads(self._store.read(self._manifest_path))
            there = {name: manifest.get(name) for name in self._manifest}
        except (OSError, ValueError, AttributeError, RecursionError):
            raise Failure(f"{self.address}/{self._manifest_path} is no manifest; nothing was changed.") from None
        for name, value in self._manifest.items():
            if there[name] != value:
                was, now = (json.dumps(given)[:80] for given in (there[name], value))
                raise Misuse(
                    f"{self.address} holds answers to another question ({name}: {was} there, {now} here): "
                    "give another --out."
                )

    def _read_part(self, path: str) -> None:
        expected = f"{self._stem}{len(self._parts):06d}{self._suffix}"
        if path != expected:
            raise Failure(f"{self.address}: {path} is there, and {expected} is not; nothing was changed.")
        count = 0
        try:
            with self._store.open(path) as file:
                for line in self.form.lines(file):
                    self.done.add(line["file"])
                    count += 1
                    if self.form.pictures:
                        member_names(line["file"], self._stems)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, tarfile.TarError) as error:
            raise Failure(f"{self.address}/{path} cannot be read; nothing was changed: {error}.") from None
        self._parts.append({"name": path, "lines": count})

    def _write(self) -> None:
        if not self._waiting:
            return
        path = f"{self._stem}{len(self._parts):06d}{self._suffix}"
        if not self._store.create(path, self.form.encode(self._waiting, self._stems)):
            raise Failure(f"{self.address}: another diptych writes shard {self._manifest['shard']}; this one ends.")
        self._parts.append({"name": path, "lines": len(self._waiting)})
        self._waiting, self._bytes = [], 0

    def _body(self, complete: bool) -> bytes:
        answers = sum(part["lines"] for part in self._parts)
        counts = {"answers": answers, "errors": self._failed, "complete": complete, "parts": self._parts}
        return json.dumps(self._manifest | counts, indent=1).encode() + b"\n"


def _encode_json(answers: Sequence[AnsweredPicture], stems: NameSet | None = None) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line, _ in answers)


def _json_lines(file: IO[bytes]) -> Iterator[Json]:
    yield from map(json.loads, file)


def row_of(line: Json) -> Json:
    """Return an answer's row of a parquet file: what differs between tasks is JSON."""
    return {
        "file": encoded_name(line["file"]).decode(),
        "task": line["task"],
        "asked": json.dumps(line["asked"]),
        "width": line["image"]["width"],
        "height": line["image"]["height"],
        "agreement": line["merged"]["agreement"],
        "merged": json.dumps(line["merged"]),
        "replies": json.dumps(line["replies"]),
    }


def line_of(row: Json) -> Json:
    """Return a row of a parquet file as the line that it was."""
    size = {"width": row["width"], "height": row["height"]}
    texts = {name: json.loads(row[name]) for name in ("merged", "replies")}
    return {"file": row["file"], "task": row["task"], "asked": json.loads(row["asked"]), "image": size, **texts}


def _encode_parquet(answers: Sequence[AnsweredPicture], stems: NameSet | None = None) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([row_of(line) for line, _ in answers]), file, compression="zstd")
    return file.getvalue()


def _parquet_lines(file: IO[bytes]) -> Iterator[Json]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(file).iter_batches():
        yield from map(line_of, batch.to_pylist())


def _encode_tar(answers: Sequence[AnsweredPicture], stems: NameSet | None = None) -> bytes:
    """Write pictures with their answers beside them, as WebDataset has them: a/b.jpg and a/b.json."""
    file, stems = io.BytesIO(), NameSet() if stems is None else stems
    with tarfile.open(fileobj=file, mode="w") as tar:
        for line, picture in answers:
            contents = (picture, json.dumps(line).encode())
            for name, content in zip(member_names(line["file"], stems), contents, strict=True):
                if content is not None:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def member_names(file: str, stems: NameSet) -> tuple[str, str]:
    """Return the names of a picture and of its answer in a tar file, and add what they begin with to the stems in use.

    A stem that is in use gets digits of the name's digest: of a/b.jpg and a/b.png, or of addresses that differ in their
    query, the second is a/b-685d9cf5.png, and neither replaces the other where they are unpacked.
    """
    path, suffix = str(PurePosixPath(file)), PurePosixPath(file).suffix
    stem = path.removesuffix(suffix)
    if not stems.add(stem):
        digest = hashlib.blake2b(encoded_name(file), digest_size=16).hexdigest()
        stem = next(name for end in (8, 16, 32) if stems.add(name := f"{stem}-{digest[:end]}") or end == 32)
    return stem + (".picture" if path.endswith(".json") else suffix), f"{stem}.json"


def _tar_lines(file: IO[bytes]) -> Iterator[Json]:
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            if member.name.endswith(".json") and (content := tar.extractfile(member)) is not None:
                yield json.loads(content.read())


FORMS = {
    "jsonl": Form(_encode_json, _json_lines),
    "parquet": Form(_encode_parquet, _parquet_lines),
    "tar": Form(_encode_tar, _tar_lines, pictures=True),
}


def form_of(address: str) -> str:
    """Return the format of the parts in a folder: by the end of its name, JSON lines by default."""
    suffix = PurePosixPath(address.rstrip("/")).suffix[1:]
    return suffix if suffix in FORMS else "jsonl"
