"""A client's record of each of its requests: the only evidence that a fault is judged by."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

GRACE_S = 1.0
"""A request that has not ended so long after its deadline hangs."""


@dataclass
class Entry:
    """A request. Times are seconds of the client's monotonic clock; columns: by model "ok" or an error's code.

    whole: it ended as it should, a stream with [DONE], a body with valid JSON. trouble: the transport's error.
    """

    sent: float
    deadline_s: float
    status: int = 0
    last: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    code: str = ""
    whole: bool = False
    trouble: str = ""
    retry_after: str = ""

    @property
    def seconds(self) -> float:
        """Return the seconds to its end, however it ended; infinite where it did not."""
        return float("inf") if self.last is None else self.last - self.sent

    @property
    def hung(self) -> bool:
        return self.seconds > self.deadline_s + GRACE_S

    @property
    def ok(self) -> bool:
        """Return whether it has a whole answer, whatever became of single columns."""
        return self.status == 200 and self.whole and not self.hung

    @property
    def all_ok(self) -> bool:
        """Return whether it has a whole answer in which every column is ok."""
        return self.ok and set(self.columns.values()) == {"ok"}


class Ledger:
    """All requests of one scenario, in the order they were sent."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def failed(self, models: Collection[str]) -> list[Entry]:
        """Return the requests without a whole answer, or in which a column of these models is not ok."""
        columns = [(entry, [entry.columns.get(model, "ok") for model in models]) for entry in self.entries]
        return [entry for entry, codes in columns if not entry.ok or set(codes) - {"ok"}]

    def hung(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.hung]

    def errors(self, model: str) -> list[Entry]:
        """Return the requests in which this model's column is not ok."""
        return [entry for entry in self.entries if entry.columns.get(model, "ok") != "ok"]

    def first(self, after: float, wanted: Callable[[Entry], bool]) -> float | None:
        """Return the seconds from `after` to the end of the first request that was sent later and is `wanted`."""
        later = (entry for entry in self.entries if entry.sent >= after and wanted(entry))
        ends = [entry.last for entry in later if entry.last is not None]
        return min(ends) - after if ends else None

    def recovery(self, after: float, good: Callable[[Entry], bool]) -> float:
        """Return the seconds from `after` until all requests sent are `good` again; infinite where the last is not."""
        sent = sorted((entry for entry in self.entries if entry.sent >= after), key=lambda entry: entry.sent)
        bad = [at for at, entry in enumerate(sent) if not good(entry)]
        if not bad:
            return 0.0
        return sent[bad[-1] + 1].sent - after if bad[-1] + 1 < len(sent) else float("inf")

    def percentile(self, share: float) -> float:
        """Return this percentile of the requests' seconds."""
        return percentile((entry.seconds for entry in self.entries), share)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which this share of them lies; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
