"""The pictures of a folder."""

import os
from pathlib import Path

from serve.client.asking import ENOUGH
from serve.client.http_client import Failure, Misuse


def pictures(folder: Path) -> list[str]:
    """Relative paths of all pictures, subfolders included, sorted. A picture is what begins like one, whatever it is
    called; what is hidden (a name that begins with a dot) is left out. Raises Misuse where there are none."""
    if not folder.is_dir():
        raise Misuse(f"{folder}: there is no such folder.")
    found = []
    for here, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(here, name)
            if not name.startswith(".") and is_picture(path):
                found.append(path.relative_to(folder).as_posix())
    if not found:
        raise Misuse(f"{folder} holds no PNG, JPEG, WEBP or GIF picture.")
    return sorted(found)


def is_picture(path: Path) -> bool:
    """By its first bytes. What cannot be opened but is called like a picture counts too: its line says why not."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".gif")
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8")) or (head[:4], head[8:]) == (
        b"RIFF",
        b"WEBP",
    )


def content(path: Path) -> bytes:
    """A picture's bytes; the server says what is too large."""
    with open(path, "rb") as file:
        return file.read(ENOUGH)


def _unreadable(error: OSError) -> None:
    raise Failure(f"{error.filename}: {error.strerror}.")
