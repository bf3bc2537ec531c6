"""The `keys` commands: make API keys, and keep the server's file of them. A key is printed once and stored nowhere."""

import argparse
import contextlib
import fcntl
import getpass
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from serve.api.keys import Keys, entry_of, new_key, parse_entries
from serve.client.http_client import Failure, Misuse


def add(options: argparse.Namespace) -> int:
    """Print a new key. Add its entry to the file, or print that too."""
    with _explained():
        key, entry = new_key(options.name, *_settings(options))
    if options.file is None:
        print(key)
        print(
            f"This key is shown once. The server's line for it, in keys_file or DIPTYCH_API_KEYS:\n{entry}",
            file=sys.stderr,
        )
        return 0

    def with_entry(text: str) -> str:
        added = f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{entry}\n"
        Keys(parse_entries(added))  # raises where there is a key of this name
        return added

    _change(options.file, with_entry)
    print(key)
    print(f"This key is shown once. {options.file} has its line.", file=sys.stderr)
    return 0


def print_entry(options: argparse.Namespace) -> int:
    """Print the entry of a key that is typed, or comes from a pipe."""
    key = getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
    with _explained():
        print(entry_of(options.name, key, *_settings(options)))
    return 0


def list_keys(options: argparse.Namespace) -> int:
    """Print a table of the file's keys, with what each may do."""
    with _explained():
        keys = Keys(parse_entries(_read(options.file)), may_be_none=True)
    table = Table("key", "scopes", "models", "tasks", "limits", "expires")
    for name, rights in keys.rights.items():
        limits = " ".join(f"{limit}={value}" for limit, value in keys.limits[name].items())
        models, tasks = (", ".join(names) if names else "all" for names in (rights.models, rights.tasks))
        expires = "" if rights.expires is None else f"{rights.expires}{' (expired)' * rights.expired()}"
        table.add_row(name, ", ".join(rights.scopes), models, tasks, limits, expires)
    Console(highlight=False).print(table)
    return 0


def revoke(options: argparse.Namespace) -> int:
    """Remove a key's entry from the file."""

    def without_entry(text: str) -> str:
        if options.name not in Keys(parse_entries(text), may_be_none=True).names:
            raise ValueError(f"{options.file} has no key of the name {options.name}.")
        lines = []
        for line in text.splitlines():
            kept = [entry for entry in line.split(",") if entry.strip().partition(":")[0] != options.name]
            if line.lstrip().startswith("#") or len(kept) == line.count(",") + 1:
                lines.append(line)
            elif kept:
                lines.append(",".join(kept))
        return "".join(f"{line}\n" for line in lines)

    _change(options.file, without_entry)
    print(f"{options.name} is removed from {options.file}.", file=sys.stderr)
    return 0


def _settings(options: argparse.Namespace) -> list[str]:
    """Return the settings of the key's entry, in its form."""
    lists = {"scopes": options.scopes, "models": options.models, "tasks": options.tasks}
    settings = [f"{name}={'+'.join(values)}" for name, values in lists.items() if values]
    return [*settings, *([f"expires={options.expires}"] if options.expires else []), *options.limits]


def _change(file: Path, change: Callable[[str], str]) -> None:
    """Replace the file by one with the changed text, which only its owner may read. Raises Failure.

    A reader sees the old text or the new one, and of two commands at once the second waits. A link stays a link.
    """
    file = file.resolve()
    written = file.with_name(f".{file.name}.{os.getpid()}")
    with _explained():
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            text = change(_read(file) if file.exists() else "")
            with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
                output.write(text)
                output.flush()
                if file.exists() and os.geteuid() == 0:  # root must not take the file away from the server's user
                    os.fchown(output.fileno(), file.stat().st_uid, file.stat().st_gid)
                os.fsync(output.fileno())
            os.replace(written, file)
            os.fsync(folder)
        finally:
            written.unlink(missing_ok=True)
            os.close(folder)


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what is wrong with an entry or the file into a sentence."""
    try:
        yield
    except OSError as error:
        raise Failure(f"{error.filename or 'The file'}: {error.strerror}.") from None
    except ValueError as error:
        raise Misuse(str(error)) from None
