"""The objectives of a load test, such as `TTFT p95 < 500`. Knows no locust: a row is any object with these counts.

    [ROWS] MEASURE COMPARISON LIMIT

ROWS        nothing: all requests together. Otherwise a type of row (one of KINDS) and, if wanted, words of the row's
            name: `COLUMN`, `COLUMN toy-llava`, `STREAM chat`.
MEASURE     p50 ... p99.9, mean, max: a time. failures: a share. rate: a number a second.
COMPARISON  < <= > >=
LIMIT       a time in ms or s (ms without a unit), a share in %, a rate with or without /s.

Each row has to hold by itself, and the worst is shown; the rates of several rows are added up.
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


class Invalid(ValueError):
    """A text that is no objective, or an option that makes no sense: the sentence says why."""


class Row(Protocol):
    """A row of statistics, as locust's entries are. Times in ms."""

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
    """An objective after the run. seen: the value with its unit, and its row's name."""

    text: str
    met: bool
    seen: str

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'}  {self.text}: {self.seen}"


@dataclass(frozen=True)
class Slo:
    """An objective. kind: empty for all requests together. limit: ms, percent or a number a second."""

    text: str
    kind: str
    name: tuple[str, ...]
    measure: str
    compared: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Parse an objective. Raises Invalid."""
        match = _WORDS.fullmatch(text.strip())
        if match is None:
            raise Invalid(f"{text!r} is no SLO. Write it as 'TTFT p95 < 500', 'failures < 0.1%' or 'rate > 5'.")
        kind, measure, unit = (match["kind"] or "").upper(), match["measure"], match["unit"] or ""
        if kind and kind not in KINDS:
            raise Invalid(f"{text!r}: there are no rows of type {match['kind']}; types: {', '.join(KINDS)}.")
        if unit not in (allowed := _UNITS.get(measure, _TIMES)):
            units = " or ".join(unit or "no unit" for unit in allowed)
            raise Invalid(f"{text!r}: the limit of {measure} needs {units}.")
        limit = float(match["limit"]) * (1000 if unit == "s" else 1)
        return cls(
            " ".join(text.split()), kind, tuple((match["name"] or "").split()), measure, match["compared"], limit
        )

    def judge(self, rows: Iterable[Row], total: Row) -> Verdict:
        """Judge every row that the objective is about; `total` counts all requests together."""
        own = [row for row in rows if self._is_about(row)] if self.kind else [total]
        own = [row for row in own if row.num_requests]
        if not own:
            return Verdict(self.text, False, "nothing was measured")
        value, name = self._worst(own)
        return Verdict(self.text, _COMPARED[self.compared](value, self.limit), f"{self._format(value)}{name}")

    def _is_about(self, row: Row) -> bool:
        return row.method == self.kind and set(self.name) <= set(row.name.split())

    def _worst(self, rows: Sequence[Row]) -> tuple[float, str]:
        """Return the value to compare with the limit, and in brackets the name of its row."""
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

    def _format(self, value: float) -> str:
        if self.measure == "rate":
            return f"{value:.2f}/s"
        return f"{value:.2f}%" if self.measure == "failures" else f"{value:.0f} ms"
