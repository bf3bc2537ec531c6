"""Replies side by side in a terminal, filled while the models stream, with the merged reply below."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from serve.client import legible

Json = dict[str, Any]
PLACES = frozenset({"boxes", "points"})
"""Fields of results that hold objects with their places in the image."""
NARROW = 26  # characters: with narrower columns the models are stacked


def plain(text: object, style: str = "") -> Text:
    """Return text from a server for rich to print, without reading markup or control characters in it."""
    return Text(legible(text), style=style)


class Board:
    """The columns of one request, a rich renderable. order: the models as the server lists them; others follow."""

    def __init__(self, order: Sequence[str] = ()) -> None:
        self.order = list(order)
        self.texts: dict[str, str] = {}
        self.waits: dict[str, str] = {}
        self.replies: dict[str, Json] = {}
        self.merged: Json | None = None
        self.over = False

    def take(self, event: str, body: Json) -> None:
        """Add a streamed event: `waiting`, `delta`, `reply` or `merged`, with its JSON."""
        if event == "waiting":
            self.texts.setdefault(body["model"], "")
            self.waits[body["model"]] = body["message"]
        elif event == "delta":
            self.texts[body["model"]] = self.texts.get(body["model"], "") + body["text"]
        elif event == "reply":
            self.texts.setdefault(body["model"], "")
            self.replies[body["model"]] = body
        elif event == "merged":
            self.merged = body

    def fill(self, response: Json) -> None:
        """Add a whole response."""
        for reply in response["replies"]:
            self.take("reply", reply)
        self.merged = response["merged"]

    def columns(self) -> list[str]:
        """Return the models with text or a reply so far, in order."""
        return sorted(self.texts, key=lambda name: self.order.index(name) if name in self.order else len(self.order))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = self.columns()
        if not names:
            yield Text("" if self.over else "waiting for the first word ...", style="dim")
            return
        wide = options.max_width // len(names) >= NARROW
        yield self._side_by_side(names) if wide else self._stacked(names)
        if self.merged is not None:
            yield _merged(self.merged)

    def _side_by_side(self, names: Sequence[str]) -> Table:
        table = Table(expand=True, show_footer=True)
        for name in names:
            table.add_column(plain(name), footer=self._footer(name), ratio=1, overflow="fold")
        table.add_row(*map(self._cell, names))
        return table

    def _stacked(self, names: Sequence[str]) -> Table:
        table = Table(expand=True, show_header=False, show_lines=True)
        table.add_column(ratio=1, overflow="fold")
        table.add_column(ratio=2, overflow="fold")
        for name in names:
            table.add_row(Group(plain(name, "bold"), self._footer(name)), self._cell(name))
        return table

    def _footer(self, name: str) -> Text:
        reply = self.replies.get(name)
        if reply is None:
            return Text("speaking" if self.texts[name] else "waiting", style="dim")
        return _timing(reply)

    def _cell(self, name: str) -> RenderableType:
        reply = self.replies.get(name)
        if reply is None:
            return plain(f"{self.texts[name] or self.waits.get(name, '')} ...", "dim")
        if reply["status"] == "ok":
            return plain("\n".join(format_result(reply["result"])))
        error = plain((reply.get("error") or {}).get("message", reply["status"]), "red")
        return Group(error, plain(reply["text"], "dim")) if reply["text"] else error


def placed_items(result: Mapping[str, Any] | None) -> Sequence[Json]:
    """Return a result's boxes or points; empty for one without."""
    items: Sequence[Json] = next((value for name, value in (result or {}).items() if name in PLACES), ())
    return items


def pixels_of(item: Json) -> Sequence[float]:
    """Return the pixels of a box, x0, y0, x1, y1, or of a point, x, y."""
    pixels: Sequence[float] = item["box"] if "box" in item else item["point"]
    return pixels


def first_field(result: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name and the value of a result's first field, which is the answer."""
    return next(iter(result.items()), ("", ""))


def answer_text(answer: Any) -> str:
    """Return the value of a result's first field as a person reads it: a text, a number, labels, an object."""
    if isinstance(answer, list):
        return ", ".join(str(item["label"] if isinstance(item, dict) and "label" in item else item) for item in answer)
    return json.dumps(answer, ensure_ascii=False, indent=2) if isinstance(answer, dict) else str(answer)


def format_result(result: Mapping[str, Any] | None) -> list[str]:
    """Format a result as lines: its first field, and others that are a text or a number with their names, or a line
    for each box or point."""
    if result is None:
        return ["(nothing)"]
    field, answer = first_field(result)
    if field not in PLACES:
        if field == "labels":
            return [f"{item['label']}  {item['score']:.2f}" for item in answer] or ["none of them"]
        return [answer_text(answer) + "".join(_further(result))]
    lines = [
        f"{item['label']}  {' '.join(f'{v:.0f}' for v in pixels_of(item))}  {item['score']:.2f}" for item in answer
    ]
    return lines or ["nothing found"]


def _further(result: Mapping[str, Any]) -> Iterator[str]:
    for name, value in list(result.items())[1:]:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            yield f"  {name} {value:.4g}" if isinstance(value, float) else f"  {name} {value}"


def _timing(reply: Json) -> Text:
    if reply["status"] != "ok" and not reply["text"]:
        return Text(f"{reply['status']} after {_duration(reply['latency_ms'])}", style="dim")
    parts = [f"{_duration(reply['latency_ms'])} in all", f"{reply['usage']['completion_tokens']} tokens"]
    if reply.get("ttft_ms") is not None:
        parts.insert(0, f"first word {_duration(reply['ttft_ms'])}")
    return Text(", ".join(parts), style="dim")


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _merged(merged: Json) -> Table:
    """Show the merged result, each box with the models that support it, and how it was merged."""
    # how one of several models counted says nothing of the merged count
    result = {name: value for name, value in (merged["result"] or {}).items() if name != "by"} or None
    lines = [merged["error"]["message"]] if merged.get("error") else format_result(result)
    supporters = merged["supporters"]
    placed = next(iter(merged["result"] or {}), "") in PLACES
    if placed and len(supporters) == len(lines):
        lines = [f"{line}  {', '.join(names)}" for line, names in zip(lines, supporters, strict=True)]
    how = f"by {merged['method']}, {merged['agreement']:.0%} agreement, from {', '.join(merged['models'])}"
    judge = merged.get("judge") or {}
    if judge.get("error"):
        how += f"; no judgement: {judge['error']['message']}"
    elif judge:
        how += f"; {judge['model']} judged"
    elif not placed and len(supporters) == 1 and supporters[0] != merged["models"]:
        how += f"; it is what {', '.join(supporters[0])} said"
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("merged", "bold"), Group(plain("\n".join(lines), "bold"), plain(how, "dim")))
    return table
