"""What a load test must show, in words: `TTFT p95 < 500`. Knows no locust: rows are whatever counts as locust's do.

    [ROWS] MEASURE COMPARISON LIMIT

ROWS        nothing: all requests together. Otherwise a type of row (one of KINDS) and, if wanted, words of the row's
            name: `COLUMN`, `COLUMN toy-llava`, `STREAM chat`.
MEASURE     p50 ... p99.9, mean, max: a time. failures: a share. rate: a number a second.
COMPARISON  < <= > >=
LIMIT       a time in ms or s (ms where nothing is said), a share in %, a rate with or without /s.

Each row has to hold by itself, and the worst one is told; the rates of several rows are added up.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

KINDS = {
    "WHOLE": "a request answered in one piece: from sending it to the last byte",
    "STREAM": "a streamed request: from sending it to [DONE]",
    "TTFT": "time to first token: from sending a streamed request to the first words of any model",
    "ITL": "inter-token latency: from one piece of a model's words to its next, as they reach the client",
    "COLUMN": "one model's part of a fan-out, whole or streamed, as the server measured it",
    "UNREAD": "columns among them whose words are not in the task's form: the model's doing, no failure",
    "MERGED": "from sending a streamed fan-out to its merged reply",
}
"""Every type of row, and what its times are."""

_WORDS = re.compile(
    r"(?:(?P<kind>[A-Za-z]+)\s+(?:(?P<name>\S.*?)\s+)?)?"
    r"(?P<measure>p\d{1,2}(?:\.\d+)?|mean|max|rate|failures)\s*"
    r"(?P<compared><=|>=|<|>)\s*(?P<limit>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|%|/s)?"
)
_COMPARED = {
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
}
_UNITS = {"rate": ("", "/s"), "failures": ("%",)}
_TIMES = ("", "ms", "s")


class Wrong(ValueError):
    """What was written is not an objective; the sentence says why."""


class Row(Protocol):
    """What is read of a row of statistics, as locust's entries have it. Times in ms."""

    name: str
    method: str
    num_requests: int
    max_response_time: float

    @property
    def avg_response_time(self) -> float: ...
    @property
    def fail_ratio(self) -> float: ...
    @property
    def total_rps(self) -> float: ...
    def get_response_time_percentile(self, percent: float) -> float: ...


@dataclass(frozen=True)
class Verdict:
    """An objective after the run. seen: the value with its unit, and whose it is."""

    text: str
    met: bool
    seen: str

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'}  {self.text}: {self.seen}"


@dataclass(frozen=True)
class Slo:
    """One objective. kind: empty for all requests together. limit: ms, percent or a number a second."""

    text: str
    kind: str
    name: tuple[str, ...]
    measure: str
    compared: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Raises Wrong."""
        found = _WORDS.fullmatch(text.strip())
        if found is None:
            raise Wrong(f"{text!r} is no SLO. Write it as 'TTFT p95 < 500', 'failures < 0.1%' or 'rate > 5'.")
        kind, measure, unit = (found["kind"] or "").upper(), found["measure"], found["unit"] or ""
        if kind and kind not in KINDS:
            raise Wrong(f"{text!r}: there are no rows of type {found['kind']}; types: {', '.join(KINDS)}.")
        if unit not in (allowed := _UNITS.get(measure, _TIMES)):
            asked = " or ".join(unit or "no unit" for unit in allowed)
            raise Wrong(f"{text!r}: the limit of {measure} needs {asked}.")
        limit = float(found["limit"]) * (1000 if unit == "s" else 1)
        return cls(
            " ".join(text.split()), kind, tuple((found["name"] or "").split()), measure, found["compared"], limit
        )

    def judge(self, rows: Iterable[Row], total: Row) -> Verdict:
        """rows: every row; total: all requests as one."""
        mine = [row for row in rows if self._mine(row)] if self.kind else [total]
        mine = [row for row in mine if row.num_requests]
        if not mine:
            return Verdict(self.text, False, "nothing was measured")
        value, whose = self._worst(mine)
        return Verdict(self.text, _COMPARED[self.compared](value, self.limit), f"{self._said(value)}{whose}")

    def _mine(self, row: Row) -> bool:
        return row.method == self.kind and set(self.name) <= set(row.name.split())

    def _worst(self, rows: Sequence[Row]) -> tuple[float, str]:
        """The value that is held against the limit, and the row that it is from where there are several."""
        if self.measure == "rate":
            return sum(row.total_rps for row in rows), ""
        ranked = sorted(((self._value(row), row.name) for row in rows), reverse=self.compared[0] == "<")
        value, name = ranked[0]
        return value, f" ({name})" if self.kind else ""

    def _value(self, row: Row) -> float:
        match self.measure:
            case "mean":
                return row.avg_response_time
            case "max":
                return row.max_response_time
            case "failures":
                return 100 * row.fail_ratio
        return row.get_response_time_percentile(float(self.measure[1:]) / 100)

    def _said(self, value: float) -> str:
        if self.measure == "rate":
            return f"{value:.2f}/s"
        return f"{value:.2f}%" if self.measure == "failures" else f"{value:.0f} ms"
