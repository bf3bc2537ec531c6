"""Pictures one after the other, so that a list of millions takes no memory, and which of them a shard has.

A source is a folder, or the files that a name or a pattern with * matches: tar files (WebDataset's), parquet files, or
lists of JSON lines. Each is on this machine or in an object store.
"""

import binascii
import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from serve.client.asking import ENOUGH
from serve.client.http_client import Failure, Misuse
from serve.client.storage.names import encoded_name
from serve.client.storage.store import LocalStore, Store, has_picture_suffix, is_address, open_store, require_package

COLUMN = "image"
"""The column, or field, that holds a picture: its bytes, Hugging Face's {"bytes", "path"}, or where it is."""
NAME = "file"
"""The column, or field, that holds its name, as in what `diptych run` writes."""
ROWS = 16
"""Rows of a parquet file that are in memory at a time."""
LONGEST_LINE = 2 * ENOUGH
"""Bytes of a list's line that are read: a picture in a data URL fits."""
MOST_SPLITS = 256
MOST_HEADERS = 2**20
"""Bytes of headers before a member of a tar file: its long name, attributes and map of holes."""
Skip = Callable[[str], bool]


@dataclass(frozen=True)
class NamedPicture:
    """A picture. name: the same in every run. load: returns the file's bytes, or a URL that the server fetches; raises
    OSError."""

    name: str
    load: Callable[[], bytes | str]


@dataclass(frozen=True)
class Shard:
    """A part of all pictures, chosen by their names, so that it stays the same when others are added.

    index: from 0 to count - 1.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, word: str) -> "Shard":
        """Parse 3/16. Raises ValueError."""
        index, _, count = word.partition("/")
        shard = cls(int(index), int(count))
        if not 0 <= shard.index < shard.count:
            raise ValueError("no shard")
        return shard

    def has(self, name: str) -> bool:
        if self.count == 1:
            return True
        digest = hashlib.blake2b(encoded_name(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard()


class PictureSource(Protocol):
    """Pictures under an address."""

    def pictures(self, shard: Shard = WHOLE, skip: Skip = lambda name: False) -> Iterator[NamedPicture]:
        """Yield the pictures of a shard. skip: called with each name once; True leaves the picture out, unread.

        Raises Failure where the source cannot be read.
        """

    def expected(self) -> int | None:
        """Return the number of all pictures, by the files' names, where counting them is quick."""

    def splits(self) -> int:
        """Return the number of shards that are worth reading at once: each reads a part of the files."""


def open_source(address: str) -> PictureSource:
    """Return the pictures at an address: of a folder, or of tar, parquet or JSON lines files by name or pattern.

    Raises Misuse or Failure where there are none.
    """
    parent, slash, name = address.rstrip("/").rpartition("/")
    kind = next((kind for suffix, kind in KINDS.items() if name.lower().endswith(suffix)), None)
    if kind is None or (not is_address(address) and Path(address).is_dir()):
        return _Folder(_folder(address))
    return kind(open_store(f"{parent}{slash}" if parent or slash else "."), name)


def _folder(address: str) -> Store:
    store = open_store(address)
    if isinstance(store, LocalStore) and not store.root.is_dir():
        raise Misuse(f"{address}: there is no such folder.")
    return store


class _Folder:
    """The pictures of a folder and its subfolders. Their names are their paths in it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def pictures(self, shard: Shard = WHOLE, skip: Skip = lambda name: False) -> Iterator[NamedPicture]:
        for path in self.store.walk():
            if shard.has(path) and not skip(path) and self.store.holds_picture(path):
                yield NamedPicture(path, functools.partial(self.store.read, path))

    def expected(self) -> int | None:
        if not isinstance(self.store, LocalStore):
            return None
        return sum(map(has_picture_suffix, self.store.walk()))

    def splits(self) -> int:
        return 1


@dataclass(frozen=True)
class _Files:
    """Files that a name or a pattern matches. A shard has whole files, or whole parts of them."""

    store: Store
    pattern: str

    def paths(self) -> list[str]:
        """Return the files' paths, sorted. Raises Misuse where there is none."""
        if "*" not in self.pattern:
            return [self.pattern]
        paths = [path for path in self.store.walk() if "/" not in path and fnmatchcase(path, self.pattern)]
        if not paths:
            raise Misuse(f"{self.store}/{self.pattern}: there are no such files.")
        return sorted(paths)

    def open(self, path: str) -> IO[bytes]:
        try:
            return self.store.open(path)
        except OSError as error:
            raise Failure(f"{self.store}/{path}: {error.strerror or error}.") from None

    def expected(self) -> int | None:
        return None

    def splits(self) -> int:
        return min(MOST_SPLITS, len(self.paths()))


class _Tars(_Files):
    """The pictures in tar files. Their names are the file's and the member's."""

    def pictures(self, shard: Shard = WHOLE, skip: Skip = lambda name: False) -> Iterator[NamedPicture]:
        for path in filter(shard.has, self.paths()):
            try:
                with self.open(path) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as tar:
                    for member in tar:
                        tar.members = []  # type: ignore[attr-defined]  # the module would keep them all
                        name = f"{path}/{member.name}"
                        if member.isfile() and has_picture_suffix(name) and not skip(name):
                            yield NamedPicture(name, functools.partial(bytes, _content(tar, member)))
            except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as error:
                # ValueError: a wrong map of holes; RecursionError: header upon header
                raise Failure(f"{self.store}/{path} is cut short or damaged: {error}.") from None


class _Member(tarfile.TarInfo):
    """A member of a tar file, whose headers are read up to MOST_HEADERS: the module reads them whole."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Member":
        """Read the next member's headers. Called by TarFile, and once more for each header before it."""
        file = tarfile.fileobj
        if isinstance(file, _Headers):
            return super().fromtarfile(tarfile)
        tarfile.fileobj = _Headers(file)  # type: ignore[assignment]  # no more of a file is used here
        try:
            member = super().fromtarfile(tarfile)
        finally:
            tarfile.fileobj = file
        if sum(map(len, tarfile.pax_headers.values())) > MOST_HEADERS:
            raise OSError("its headers are too large")
        return member


class _Headers:
    """The file while headers are read from it. Raises OSError where they are larger than MOST_HEADERS."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, MOST_HEADERS

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise OSError("its headers are too large")
        return bytes(self._file.read(size))

    def tell(self) -> int:
        return int(self._file.tell())


class _Parquets(_Files):
    """The pictures in a column `image` of parquet files. Their names: a column `file`, else the file and the row."""

    def pictures(self, shard: Shard = WHOLE, skip: Skip = lambda name: False) -> Iterator[NamedPicture]:
        require_package("pyarrow", f"{self.store}/{self.pattern}")
        from pyarrow import ArrowException, parquet

        for path in self.paths():
            try:
                with self.open(path) as file:
                    table = parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
                    columns = [name for name in (COLUMN, NAME) if name in table.schema_arrow.names]
                    if COLUMN not in columns:
                        raise Failure(f"{self.store}/{path} has no column {COLUMN!r}.")
                    row = 0
                    for group in range(table.num_row_groups):
                        first, row = row, row + table.metadata.row_group(group).num_rows
                        if shard.has(f"{path}#{group}"):
                            for at, values in enumerate(_rows(table, group, columns), first):
                                name = values.get(NAME) or f"{path}/{at}"
                                _check_name(name, f"{self.store}/{path}, row {at}")
                                if not skip(name):
                                    yield NamedPicture(name, _loader(self.store, values[COLUMN]))
            except (ArrowException, OSError, UnicodeDecodeError) as error:
                raise Failure(f"{self.store}/{path} cannot be read: {' '.join(str(error).split())[:200]}.") from None


class _Lists(_Files):
    """The pictures that JSON lines name: {"image": a path beside the list, an address or a URL, "file": its name}."""

    def pictures(self, shard: Shard = WHOLE, skip: Skip = lambda name: False) -> Iterator[NamedPicture]:
        for path in self.paths():
            with io.BufferedReader(self.open(path)) as file:  # type: ignore[type-var]  # fsspec's readline has no limit
                for number, line in enumerate(iter(functools.partial(file.readline, LONGEST_LINE), b""), 1):
                    if not line.strip():
                        continue
                    image, name = _entry(line, f"{self.store}/{path}, line {number}")
                    if shard.has(name) and not skip(name):
                        yield NamedPicture(name, _loader(self.store, image))

    def splits(self) -> int:
        return 1


KINDS: Mapping[str, Callable[[Store, str], PictureSource]] = {
    ".tar": _Tars,
    ".tar.gz": _Tars,
    ".tgz": _Tars,
    ".parquet": _Parquets,
    ".jsonl": _Lists,
}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "a member that is a file"
    return file.read(ENOUGH)


def _rows(table: Any, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in table.iter_batches(ROWS, row_groups=[group], columns=columns):
        yield from batch.to_pylist()


def _entry(line: bytes, where: str) -> tuple[str, str]:
    """Return (image, name) of a line of a list. Raises Failure."""
    try:
        entry = json.loads(line)
        image = entry[COLUMN]
        name = entry.get(NAME, image)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failure(f'{where}: this is not of the form {{"image": "a/b.jpg"}}.') from None
    if not isinstance(image, str):
        raise Failure(f"{where}: image is a text.")
    _check_name(name, where)
    if name.startswith("data:"):
        raise Failure(f"{where}: a picture in the list itself needs a name, in file.")
    return image, name


def _check_name(name: object, where: str) -> None:
    """Raise Failure for what is no text, or cannot be the name of a file in a tar file."""
    if not isinstance(name, str) or not PurePosixPath(name).name or "\0" in name:
        raise Failure(f"{where}: the picture's name, in {NAME} or {COLUMN}, is no text that can name a file.")


def _loader(store: Store, value: Any) -> Callable[[], bytes | str]:
    """Return the function that loads a picture from a column's value."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return functools.partial(bytes, value)
    return functools.partial(_load, store, value)


def _load(store: Store, where: Any) -> bytes | str:
    """Load the picture at a path beside a list, at an address, or in a data URL. Raises OSError."""
    if not where or not isinstance(where, str):
        raise OSError("There is no picture here")
    if where.lower().startswith(("http://", "https://")):
        return where
    if where.lower().startswith("data:"):
        try:
            return binascii.a2b_base64(where.partition(",")[2].encode("ascii"), strict_mode=True)
        except ValueError:
            raise OSError("The data URL is not valid base64") from None
    if not is_address(where):
        try:
            return store.read(where.removeprefix("file://"))
        except ValueError as error:  # no path has a zero byte, or a half of a surrogate pair
            raise OSError(f"There cannot be such a file ({error})") from None
    bucket, _, key = where.partition("://")[2].partition("/")
    return _bucket(f"{where.partition('://')[0]}://{bucket}").read(key)


@functools.lru_cache(maxsize=64)
def _bucket(address: str) -> Store:
    return open_store(address)
