"""`diptych models` and `diptych compare`: the catalogue, with or without a server."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve.client.board import plain
from serve.client.http_client import Failure, NoServer, Server
from serve.errors import NotFound

Json = dict[str, Any]


def models(url: str, key: str | None) -> int:
    """Print every known model and its tasks: from the server, or from the catalogue where there is no server."""
    console = Console()
    try:
        with Server(url, key) as server:
            cards, standing = server.get("/v1/catalog")["data"], server.ready()
        source = f"Served at {url}: {standing['status']}."
    except NoServer as error:
        from serve.models import catalog

        cards, standing = catalog.catalogue({}).model_dump()["data"], {}
        source = f"The catalogue. {error}"
    console.print(_models(cards, standing.get("models", {})))
    for name, detail in standing.get("details", {}).items():
        console.print(plain(f"{name}: {detail['step']} (for {detail['since_s']:.0f} s)"), soft_wrap=True)
    for line in toy_notes(cards, [card["id"] for card in cards]):
        console.print(line, soft_wrap=True)
    source += " Tasks in brackets: not trained for, but told in words or made of others."
    console.print(plain(source), soft_wrap=True)
    return 0


def compare(names: Sequence[str]) -> int:
    """Print the cards of some models, row by row. Takes the short names that the page takes (`llava-1.5`).

    Raises Failure naming close matches for an unknown model.
    """
    from serve.models import MODELS, catalog

    try:
        table = catalog.compare_models(names, {}).model_dump()
    except NotFound as error:
        raise Failure(error.message) from None
    console = Console()
    console.print(_comparison(table))
    for name in table["models"]:
        if overview := MODELS[name].card.overview:
            console.print(plain(name, "bold"))
            console.print(*map(plain, overview), sep="\n", end="\n\n")
    shared = [f"{row['title'].lower()} ({row['task']})" for row in table["tasks"]["shared"]]
    console.print(plain(f"Tasks they share: {', '.join(shared) or 'none'}."), soft_wrap=True)
    for row in table["tasks"]["unshared"]:
        console.print(plain(f"{row['title']} ({row['task']}): only {', '.join(row['models'])}."), soft_wrap=True)
    return 0


def toy_notes(cards: Sequence[Json], names: Sequence[str]) -> list[Text]:
    """Return the notes of the toys among these models, each sentence once."""
    toys: dict[str, list[str]] = {}
    for card in cards:
        if card["toy"] and card["id"] in names:
            toys.setdefault(card["about"], []).append(card["id"])
    return [plain(f"{', '.join(ids)}: {about}", "yellow") for about, ids in toys.items()]


def _models(cards: Sequence[Json], states: Mapping[str, str]) -> Table:
    """Return a row for each card. A task in brackets is one that the model was not trained for."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    if states:
        table.add_column("served", no_wrap=True)
    table.add_column("tasks", ratio=3)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("licence", ratio=2, overflow="fold")
    for card in cards:
        state = [plain(states.get(card["id"], "-"))] if states else []
        bases = card["bases"]
        tasks = " ".join(task if bases[task] == "native" else f"({task})" for task in card["skills"])
        licence = card["licence"] + " (gated)" * (card["gated"] and "gated" not in card["licence"])
        table.add_row(plain(card["id"]), *state, plain(tasks), quantity(card["parameters"]), plain(licence))
    return table


def _comparison(comparison: Json) -> Table:
    table = Table(show_lines=True)
    table.add_column()
    for name in comparison["models"]:
        table.add_column(plain(name), overflow="fold")
    for row in comparison["rows"]:
        style, mark = ("bold", " *") if row["differs"] else ("", "")
        table.add_row(plain(row["title"] + mark, style), *(_value(row["name"], value) for value in row["values"]))
    table.caption = "* differs" if len(comparison["models"]) > 1 else None
    table.caption_justify = "left"
    return table


def _value(field: str, value: object) -> Text:
    if field == "parameters" and isinstance(value, int):
        return Text(quantity(value))
    if isinstance(value, list):
        return plain("\n".join(map(str, value)))
    return plain(f"{value:,}" if isinstance(value, int) else value)


def quantity(count: int | None) -> str:
    """7063427072 -> 7.06 B; a dash for None."""
    if count is None:
        return "-"
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)
