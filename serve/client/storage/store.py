"""Files below an address: a folder on this machine, or s3://bucket/folder and gs://bucket/folder by fsspec.

A file is written whole or not at all, and `create` never replaces one: what a reader sees is always complete, and of
two writers one is refused.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from serve.client.asking import ENOUGH
from serve.client.evaluation import folder
from serve.client.http_client import Failure, Misuse

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""By the scheme of an address: the package that reads it."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
BLOCK = 2**22
"""Bytes that are read at once from a large file in an object store."""


class Store(Protocol):
    """Files below an address. Paths are relative to it. Methods raise Failure where the store cannot be reached."""

    def walk(self) -> Iterator[str]:
        """Yield the paths of all files, with those in subfolders and without hidden ones (.name)."""

    def holds_picture(self, path: str) -> bool:
        """Return whether a file is a picture: here by its first bytes, in an object store by its name."""

    def read(self, path: str) -> bytes:
        """Return a file's bytes, at most ENOUGH. Raises OSError where it is missing or may not be read."""

    def open(self, path: str) -> IO[bytes]:
        """Open a file. Raises OSError as `read`."""

    def create(self, path: str, content: bytes) -> bool:
        """Write a new file. Return False where there is one already, which is left as it is."""

    def replace(self, path: str, content: bytes) -> None: ...

    def remove(self, path: str) -> None:
        """Remove a file, where there is one."""


def is_address(text: str) -> bool:
    """Return whether a text is an address with a scheme, not a path on this machine."""
    return "://" in text and not text.startswith("file://")


def open_store(address: str) -> Store:
    """Return the files below an address: a path, file://, s3:// or gs://. Raises Misuse or Failure."""
    return ObjectStore(address) if is_address(address) else LocalStore(Path(address.removeprefix("file://")))


def require_package(name: str, address: str) -> None:
    """Raise Failure where the package that an address needs is not installed."""
    if importlib.util.find_spec(name) is None:
        raise Failure(f"{address} needs {name}, which is not installed: pip install 'diptych[cloud]'.")


def has_picture_suffix(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)


class LocalStore:
    """The files of a folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def walk(self) -> Iterator[str]:
        folders = [""]
        while folders:
            here = folders.pop()
            try:
                with os.scandir(self.root / here) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{here}{entry.name}/")
                        else:
                            yield f"{here}{entry.name}"
            except OSError as error:
                raise Failure(f"{error.filename}: {error.strerror}.") from None

    def holds_picture(self, path: str) -> bool:
        return folder.is_picture(self.root / path)

    def read(self, path: str) -> bytes:
        full = self.root / path
        if full.exists() and not full.is_file():  # reading a pipe would block
            raise OSError("This is no file")
        return folder.content(full)

    def open(self, path: str) -> IO[bytes]:
        return open(self.root / path, "rb")

    def create(self, path: str, content: bytes) -> bool:
        with self._written(path, content) as new, contextlib.suppress(FileExistsError):
            os.link(new, self.root / path)
            return True
        return False

    def replace(self, path: str, content: bytes) -> None:
        with self._written(path, content) as new:
            os.replace(new, self.root / path)

    def remove(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _written(self, path: str, content: bytes) -> Iterator[Path]:
        """Write a hidden file, for the block to move into place. Raises Failure."""
        target = self.root / path
        new = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(new, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield new
        except OSError as error:
            raise Failure(f"{target} was not written: {error.strerror or error}.") from None
        finally:
            new.unlink(missing_ok=True)


class ObjectStore:
    """The objects below s3://bucket/folder or gs://bucket/folder."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        scheme = address.partition("://")[0]
        if scheme not in PACKAGES:
            schemes = " and ".join(f"{known}://" for known in PACKAGES)
            raise Misuse(f"{address}: there is no {scheme}:// here; folders, {schemes} are read and written.")
        require_package(PACKAGES[scheme], address)
        import fsspec  # type: ignore[import-untyped]

        self._in_s3 = scheme == "s3"
        with self._explained():
            self._files, self._root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)

    def __str__(self) -> str:
        return self.address

    def walk(self) -> Iterator[str]:
        with self._explained(missing=True):
            for path in self._s3_keys() if self._in_s3 else self._folders():
                if not path.endswith("/") and not any(part.startswith(".") for part in path.split("/")):
                    yield path

    def holds_picture(self, path: str) -> bool:
        return has_picture_suffix(path)

    def read(self, path: str) -> bytes:
        with self._explained():
            return bytes(self._files.cat_file(self._path(path), start=0, end=ENOUGH))

    def open(self, path: str) -> IO[bytes]:
        with self._explained():
            file: IO[bytes] = self._files.open(self._path(path), "rb", block_size=BLOCK, cache_type="readahead")
            return file

    def create(self, path: str, content: bytes) -> bool:
        try:
            with self._explained(missing=True):
                self._files.pipe_file(self._path(path), content, mode="create")
        except FileExistsError:
            # the answer to a first try may have been lost on its way
            return self.read(path) == content[:ENOUGH]
        return True

    def replace(self, path: str, content: bytes) -> None:
        with self._explained(missing=True):
            self._files.pipe_file(self._path(path), content)

    def remove(self, path: str) -> None:
        with self._explained(missing=True), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(path))

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else str(self._root)

    def _s3_keys(self) -> Iterator[str]:
        """Yield all keys, page by page: fsspec's own listings hold all of them."""
        bucket, _, prefix = str(self._root).partition("/")
        where: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
        while True:
            page = self._files.call_s3("list_objects_v2", **where)
            for entry in page.get("Contents", ()):
                yield entry["Key"][len(where["Prefix"]) :]
            if not page.get("IsTruncated"):
                return
            where["ContinuationToken"] = page["NextContinuationToken"]

    def _folders(self) -> Iterator[str]:
        """Yield all paths, a folder at a time."""
        for here, _, names in self._files.walk(self._root):
            below = here[len(self._root) :].strip("/")
            yield from (f"{below}/{name}" if below else name for name in names)

    @contextlib.contextmanager
    def _explained(self, *, missing: bool = False) -> Iterator[None]:
        """Turn all errors but those of a single object into Failure. missing: those as well."""
        try:
            yield
        except (Failure, GeneratorExit):
            raise
        except (FileNotFoundError, PermissionError, FileExistsError) as error:
            if missing and not isinstance(error, FileExistsError):
                missing_here = isinstance(error, FileNotFoundError)
                why = "there is nothing" if missing_here else "these credentials may not use it"
                raise Failure(f"{self.address}: {why} ({_brief(error)}).") from None
            raise
        except Exception as error:  # each store's client has errors of its own
            raise Failure(f"{self.address} cannot be reached: {_brief(error)}.") from None


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
