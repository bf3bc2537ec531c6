"""What a client saw of each of its requests: the only evidence that a fault is judged by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

GRACE_S = 1.0
"""A request that has not ended so long after its deadline hangs."""


@dataclass
class Entry:
    """One request. Times are seconds of the client's monotonic clock; columns: by model "ok" or an error's code.

    whole: it ended as it should, a stream with [DONE], a body with valid JSON. trouble: what the transport said.
    """

    sent: float
    deadline_s: float
    status: int = 0
    first: float | None = None
    last: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    code: str = ""
    whole: bool = False
    trouble: str = ""
    retry_after: str = ""

    @property
    def took(self) -> float:
        """Seconds to its end, however it ended; infinite where it did not."""
        return float("inf") if self.last is None else self.last - self.sent

    @property
    def hung(self) -> bool:
        return self.took > self.deadline_s + GRACE_S

    @property
    def ok(self) -> bool:
        """A whole answer, whatever became of single columns."""
        return self.status == 200 and self.whole and not self.hung

    @property
    def told(self) -> bool:
        """It was refused, or broke, in words: an error with a code, and a proper end."""
        return self.whole and bool(self.code)


class Ledger:
    """All requests of one scenario, in the order they were sent."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def failed(self, models: Iterable[str]) -> list[Entry]:
        """Requests that got no whole answer, or in which one of these models' columns is not ok."""
        wanted = set(models)
        return [
            one
            for one in self.entries
            if not one.ok or any(code != "ok" for name, code in one.columns.items() if name in wanted)
        ]

    def hung(self) -> list[Entry]:
        return [one for one in self.entries if one.hung]

    def errors(self, model: str) -> list[Entry]:
        """Requests in which this model's column is not ok."""
        return [one for one in self.entries if one.columns.get(model, "ok") != "ok"]

    def first(self, after: float, wanted: Callable[[Entry], bool]) -> float | None:
        """Seconds from `after` to the end of the first request that was sent later and is `wanted`."""
        ends = [one.last for one in self.entries if one.sent >= after and one.last is not None and wanted(one)]
        return min(ends) - after if ends else None

    def well_again(self, after: float, well: Callable[[Entry], bool]) -> float:
        """Seconds from `after` until everything that was sent is well again; infinite where the last is not."""
        sent = sorted((one for one in self.entries if one.sent >= after), key=lambda one: one.sent)
        bad = [at for at, one in enumerate(sent) if not well(one)]
        if not bad:
            return 0.0
        return sent[bad[-1] + 1].sent - after if bad[-1] + 1 < len(sent) else float("inf")


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which this share of them lies; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
