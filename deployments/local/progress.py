"""Says what each model is doing and for how long, until every one is ready or has failed."""

import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

EVERY_S = 0.5
REMIND_S = 30.0
COUNTS = re.compile(r"\d+")  # a download that has come further is no news, until REMIND_S


@dataclass
class Progress:
    """A line per model and step; on a terminal the lines are rewritten in place, with the seconds running."""

    models: Sequence[str]
    out: TextIO = field(default_factory=lambda: sys.stdout)
    began: float = field(default_factory=time.monotonic)
    said: dict[str, tuple[str, float]] = field(default_factory=dict)
    drawn: int = 0
    key: str | None = None

    def follow(self, url: str) -> dict[str, str]:
        """Every model's state, when none is starting any more."""
        while True:
            found = ask(url, self.key)
            states: dict[str, str] = found.get("models", {})
            details: dict[str, dict[str, Any]] = found.get("details", {})
            steps = {name: details.get(name, {}).get("step", states.get(name, "starting")) for name in self.models}
            self.show(steps, states)
            if states and "starting" not in states.values():
                return states
            time.sleep(EVERY_S)

    def say(self, words: str) -> None:
        """A line of its own, with the seconds since the beginning."""
        self.out.write(f"{time.monotonic() - self.began:6.1f} s  {words}\n")
        self.out.flush()

    def show(self, steps: dict[str, str], states: dict[str, str]) -> None:
        """Print what is new; on a terminal, print all anew."""
        now = time.monotonic()
        if self.out.isatty():
            lines = [f"  {name:<24} {self.line(step, states.get(name))}" for name, step in steps.items()]
            self.out.write(f"\x1b[{self.drawn}F\x1b[J" if self.drawn else "")
            self.out.write(f"{int(now - self.began)} s\n" + "".join(line + "\n" for line in lines))
            self.drawn = 1 + sum(1 + (len(line) - 1) // _width() for line in lines)
        else:
            for name, step in steps.items():
                last, at = self.said.get(name, ("", 0.0))
                news = COUNTS.sub("", step) != COUNTS.sub("", last)
                if news or (states.get(name) == "starting" and now - at > REMIND_S):
                    self.say(f"{name}: {self.line(step, states.get(name))}")
                    self.said[name] = (step, now)
        self.out.flush()

    @staticmethod
    def line(step: str, state: str | None) -> str:
        return {"failed": "FAILED: ", "asleep": "asleep: "}.get(state or "", "") + step


def ask(url: str, key: str | None = None) -> dict[str, Any]:
    """GET /ready; nothing while nobody answers."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/ready", headers=headers), timeout=10) as reply:
            return dict(json.load(reply))
    except urllib.error.HTTPError as error:
        try:
            return dict(json.load(error))
        except ValueError:
            return {}
    except (OSError, ValueError):
        return {}


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
