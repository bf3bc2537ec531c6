"""The images of a folder."""

import os
from pathlib import Path

from serve.client.asking import ENOUGH
from serve.client.http_client import Failure, Misuse


def pictures(folder: Path) -> list[str]:
    """Return the relative paths of all images, sorted, with those of subfolders. Files count by their first bytes, not
    by their names; hidden ones (.name) are left out. Raises Misuse if there are none."""
    if not folder.is_dir():
        raise Misuse(f"{folder}: there is no such folder.")
    paths = []
    for here, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(here, name)
            if not name.startswith(".") and is_picture(path):
                paths.append(path.relative_to(folder).as_posix())
    if not paths:
        raise Misuse(f"{folder} holds no PNG, JPEG, WEBP or GIF picture.")
    return sorted(paths)


def is_picture(path: Path) -> bool:
    """Check a file's first bytes. A file that cannot be opened counts by its name, so that its line holds the error."""
    try:
        if not path.is_file():  # reading a pipe would block
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
    """Return an image's bytes, at most ENOUGH of them: the server refuses such a size."""
    with open(path, "rb") as file:
        return file.read(ENOUGH)


def _unreadable(error: OSError) -> None:
    raise Failure(f"{error.filename}: {error.strerror}.")
