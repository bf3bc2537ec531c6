"""Prints the state of each model and the seconds passed, until each model is ready, asleep or failed."""

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
COUNTS = re.compile(r"\d+")  # a download that has come further is printed again only after REMIND_S


@dataclass
class Progress:
    """Prints a line per model and step; on a terminal they are rewritten in place, with the seconds running."""

    models: Sequence[str]
    out: TextIO = field(default_factory=lambda: sys.stdout)
    began: float = field(default_factory=time.monotonic)
    printed: dict[str, tuple[str, float]] = field(default_factory=dict)
    drawn: int = 0
    key: str | None = None

    def follow(self, url: str) -> dict[str, str]:
        """Print progress until no model is starting; return each model's state."""
        while True:
            ready = get_ready(url, self.key)
            states: dict[str, str] = ready.get("models", {})
            details: dict[str, dict[str, Any]] = ready.get("details", {})
            steps = {name: details.get(name, {}).get("step", states.get(name, "starting")) for name in self.models}
            self.show(steps, states)
            if states and "starting" not in states.values():
                return states
            time.sleep(EVERY_S)

    def log(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        self.out.write(f"{time.monotonic() - self.began:6.1f} s  {text}\n")
        self.out.flush()

    def show(self, steps: dict[str, str], states: dict[str, str]) -> None:
        """Print the steps that changed; on a terminal, print all again."""
        now = time.monotonic()
        if self.out.isatty():
            lines = [f"  {name:<24} {self.line(step, states.get(name))}" for name, step in steps.items()]
            self.out.write(f"\x1b[{self.drawn}F\x1b[J" if self.drawn else "")
            self.out.write(f"{int(now - self.began)} s\n" + "".join(line + "\n" for line in lines))
            self.drawn = 1 + sum(1 + (len(line) - 1) // _width() for line in lines)
        else:
            for name, step in steps.items():
                last, at = self.printed.get(name, ("", 0.0))
                changed = COUNTS.sub("", step) != COUNTS.sub("", last)
                if changed or (states.get(name) == "starting" and now - at > REMIND_S):
                    self.log(f"{name}: {self.line(step, states.get(name))}")
                    self.printed[name] = (step, now)
        self.out.flush()

    @staticmethod
    def line(step: str, state: str | None) -> str:
        return {"failed": "FAILED: ", "asleep": "asleep: "}.get(state or "", "") + step


def get_ready(url: str, key: str | None = None) -> dict[str, Any]:
    """Return the JSON of GET /ready; empty while there is no answer."""
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
