"""Decides which models of a group are awake, from their reports and the time alone.

The rules, in this order:

1. At most `awake` members hold a place: those that wake, are awake, or finish their requests before they sleep.
2. Waiting members get places by the time at which they are due: `max_wait_s` after their oldest interactive request
   came, BATCH times as long after a batch request, or after their process came, where they have to be started for the
   first time.
3. Where no place is free, a member has to leave its own: an idle one, that which was idle longest, for anybody; one
   with batch requests only, for an interactive request; and any, that which was awake longest, once the waiting one is
   due.
4. A member stays awake for `min_awake_s` at least, and as long as its last waking took.
5. Members are woken at most `switches_per_minute` times in any minute. First starts do not count.
"""

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from deployments.args import GroupArgs

Phase = Literal["new", "asleep", "waking", "awake", "leaving", "failed"]
"""new: its engine was never started. leaving: it finishes its requests, then sleeps. failed: it cannot be started."""
Kind = Literal["interactive", "batch"]

HOLDING = ("waking", "awake", "leaving")
BATCH = 5
"""Times max_wait_s until a batch request is due."""
IDLE_S = 1.0
"""Seconds without a request after which a member is idle: shorter pauses lie between a client's requests."""
MINUTE_S = 60.0
LOST_S = 3.0
"""Seconds for which a member whose connection is lost keeps its place: its engine ends within two."""
GATHER_S = 5.0
"""Seconds after the scheduler's start in which members that may be awake report; before, nobody is woken."""


@dataclass(frozen=True)
class MemberReport:
    """The state of a member. Times are durations, so that clocks need not agree.

    order: the number of the last order that it began to follow. interactive_s, batch_s: how long its oldest waiting
    request of each kind has waited; None without one. running: the kind of request in its engine, interactive where
    there are both; None without one. idle_s: since its last request ended. awake_s: since it woke. wake_s: that its
    last waking took.
    """

    phase: Phase
    order: int = 0
    interactive_s: float | None = None
    batch_s: float | None = None
    running: Kind | None = None
    idle_s: float = 0.0
    awake_s: float = 0.0
    wake_s: float = 0.0


class Order(NamedTuple):
    """An order to a member. notice: what its waiting requests wait for. A new number means: wake, or sleep."""

    number: int
    awake: bool
    notice: str = ""


@dataclass
class MemberState:
    """A member as the policy knows it. holds: whether it has a place. lost_at: when its connection was lost."""

    name: str
    report: MemberReport
    at: float
    order: Order
    holds: bool
    joined: float
    lost_at: float | None = None
    interactive_since: float | None = field(init=False, default=None)
    batch_since: float | None = field(init=False, default=None)

    @property
    def leaving(self) -> bool:
        return self.holds and not self.order.awake

    @property
    def requested(self) -> bool:
        """Return whether a request waits for it."""
        return self.interactive_since is not None or self.batch_since is not None

    def idle_s(self, now: float) -> float:
        """Return the seconds without a request; 0 while it has one."""
        return 0.0 if self.requested or self.report.running is not None else self.report.idle_s + now - self.at

    def awake_s(self, now: float) -> float:
        return self.report.awake_s + now - self.at

    def take(self, report: MemberReport, now: float) -> None:
        """Take its newest report."""
        self.report, self.at, self.lost_at = report, now, None
        self.interactive_since = None if report.interactive_s is None else now - report.interactive_s
        self.batch_since = None if report.batch_s is None else now - report.batch_s
        if report.phase in HOLDING:
            self.holds = True
        elif report.order >= self.order.number:  # an older report crossed with the order to wake
            self.holds = False


class TurnPolicy:
    """The turns of one group. Every method takes the time, of any monotonic clock.

    members: the names of the models that will join.
    """

    def __init__(self, args: GroupArgs, members: Collection[str], now: float) -> None:
        self.args = args
        self.places: dict[str, MemberState] = {}
        self._awaited = set(members)
        self._began = now
        self._woken: deque[float] = deque()

    def join(self, key: str, name: str, report: MemberReport, now: float) -> None:
        """Add a member, or take it back. key: of its process; two have the same name while one replaces the other."""
        self._awaited.discard(name)
        known = self.places.get(key)
        if known is None:
            order = Order(report.order, report.phase in ("waking", "awake"))
            self.places[key] = known = MemberState(name, report, now, order, report.phase in HOLDING, now)
        known.take(report, now)

    def report(self, key: str, report: MemberReport, now: float) -> None:
        """Take a member's report."""
        if key in self.places:
            self.places[key].take(report, now)

    def lose(self, key: str, now: float) -> None:
        """Record that a member's connection was lost."""
        if key in self.places:
            self.places[key].lost_at = now

    @property
    def settled(self) -> bool:
        """True where only a report can change a decision: nobody waits and nobody is lost."""
        return not self._waiting() and all(place.lost_at is None for place in self.places.values())

    def decide(self, now: float) -> set[str]:
        """Decide. Return the keys of the members whose order, or its notice, changed."""
        for key in [key for key, place in self.places.items() if _gone(place, now)]:
            del self.places[key]
        while self._woken and now - self._woken[0] >= MINUTE_S:
            self._woken.popleft()
        before = {key: place.order for key, place in self.places.items()}
        if not self._awaited or now - self._began >= GATHER_S:
            self._give_places(now)
        return {key for key, place in self.places.items() if place.order != before[key]}

    def due(self, place: MemberState) -> float:
        """Return the time from which a waiting member may take the place of a busy one."""
        times = [place.joined + BATCH * self.args.max_wait_s] if place.report.phase == "new" else []
        if place.interactive_since is not None:
            times.append(place.interactive_since + self.args.max_wait_s)
        if place.batch_since is not None:
            times.append(place.batch_since + BATCH * self.args.max_wait_s)
        return min(times)

    def _waiting(self) -> list[MemberState]:
        """Return the members that need a place, those that are due first in front."""
        waiting = [
            place
            for place in self.places.values()
            if not place.holds
            and place.lost_at is None
            and (place.report.phase == "new" or (place.report.phase == "asleep" and place.requested))
        ]
        return sorted(waiting, key=self.due)

    def _give_places(self, now: float) -> None:
        held = [place for place in self.places.values() if place.holds]
        free = self.args.awake - len(held)
        leaving = sum(place.leaving for place in held)
        switches = self.args.switches_per_minute - len(self._woken)
        ahead: list[str] = []
        for place in self._waiting():
            first = place.report.phase == "new"
            if not first and switches <= 0:
                place.order = place.order._replace(
                    notice=f"its group has changed its models {self.args.switches_per_minute} times in a minute"
                )
                continue
            switches -= not first
            if free > 0:
                free -= 1
                place.holds = True
                place.order = Order(place.order.number + 1, awake=True)
                if not first:
                    self._woken.append(now)
                continue
            if leaving > 0:
                leaving -= 1
            else:
                self._free_place(place, now)
            place.order = place.order._replace(notice=self._notice(ahead))
            ahead.append(place.name)

    def _free_place(self, waiting: MemberState, now: float) -> None:
        """Order a member to sleep for `waiting`, where one may be."""
        overdue = now >= self.due(waiting)
        pressing = overdue or waiting.interactive_since is not None
        first = waiting.report.phase == "new" and not pressing
        may_leave = [
            place
            for place in self.places.values()
            if place.report.phase == "awake"
            and place.order.awake
            and (first or place.awake_s(now) >= max(self.args.min_awake_s, place.report.wake_s))
        ]
        idle = [place for place in may_leave if place.idle_s(now) >= IDLE_S]
        batch = [place for place in may_leave if place.report.running == "batch" and place.interactive_since is None]
        if idle:
            leaver = max(idle, key=lambda place: place.idle_s(now))
        elif pressing and batch:
            leaver = max(batch, key=lambda place: place.awake_s(now))
        elif overdue and may_leave:
            leaver = max(may_leave, key=lambda place: place.awake_s(now))
        else:
            return
        leaver.order = Order(leaver.order.number + 1, awake=False)

    def _notice(self, ahead: Collection[str]) -> str:
        leaving = [place.name for place in self.places.values() if place.leaving]
        holding = [place.name for place in self.places.values() if place.holds and not place.leaving]
        if len(leaving) > len(ahead):
            return f"{leaving[len(ahead)]} finishes and goes to sleep for it"
        after = f", after {' and '.join(ahead)}" if ahead else ""
        return f"it waits for the place of {' or '.join(holding) or 'another model'}{after}"


def longest_wait_s(args: GroupArgs, models: int, turn_s: float, wake_s: float, *, batch: bool = False) -> float:
    """Return the bound on a model's wait for its turn in a group of so many models, all of which may be asked.

    It is due after max_wait_s; each model that is due sooner has a turn before it. turn_s: the longest answer, falling
    asleep and waking, together; wake_s: waking alone. Where switches_per_minute may hold it back, minutes are added.
    """
    turn_s += max(args.min_awake_s, wake_s) + IDLE_S
    may_be_limited = args.switches_per_minute < args.awake * MINUTE_S / turn_s
    minutes = math.ceil(models / args.switches_per_minute) if may_be_limited else 0
    return args.max_wait_s * (BATCH if batch else 1) + math.ceil(models / args.awake) * turn_s + MINUTE_S * minutes


def _gone(place: MemberState, now: float) -> bool:
    return place.lost_at is not None and now - place.lost_at >= LOST_S
