"""The pages' files, and a page put together from them. The command line reads one, too: nothing heavy is imported."""

from pathlib import Path

WEB = Path(__file__).parent / "web"


def whole_page(name: str) -> str:
    """Return a page with the head and the top that all pages share."""
    parts = {f"<!--{part}-->": (WEB / f"{part}.html").read_text(encoding="utf-8").strip() for part in ("head", "top")}
    text = (WEB / name).read_text(encoding="utf-8")
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text
