"""The load test's own command-line options, beside locust's, and the shapes of its load. Knows no locust."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from loadtest.pictures import SIDES
from loadtest.slo import Invalid, Slo

KINDS = ("chat", "task", "fan-out")
MIX = ",".join(f"{kind}=1" for kind in KINDS)


def steps(over: float) -> float:
    """Rise in five steps: where does it bend?"""
    return (min(int(over * 5), 4) + 1) / 5


def spike(over: float) -> float:
    """Keep a fifth of the users, but all of them for the middle fifth of the time: does it recover?"""
    return 1.0 if 0.4 <= over < 0.6 else 0.2


def soak(over: float) -> float:
    """Rise for a tenth of the time, then stay: does anything creep?"""
    return min(1.0, 10 * over)


SHAPES: dict[str, Callable[[float], float]] = {"steps": steps, "spike": spike, "soak": soak}
"""Each returns the share of the users, for the share of the time that is over (both 0..1)."""


def add(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("Diptych")
    group.add_argument("--mix", default=MIX, help=f"users of each kind, by weight; {MIX} if left out")
    group.add_argument("--streamed", type=float, default=0.5, help="share of the requests that stream, 0 to 1")
    group.add_argument("--tasks", default="", help="tasks to ask for, by commas; all that the server does if left out")
    group.add_argument("--tokens", type=int, default=16, help="exact length of a chat's reply")
    group.add_argument("--size", choices=list(SIDES), default="1x", help="of the pictures")
    group.add_argument("--repeat", type=int, default=0, help="so many pictures in turn; 0: each request its own")
    group.add_argument("--pace", type=float, default=0, help="requests a second of each user; 0: ask when answered")
    group.add_argument("--shape", choices=["", *SHAPES], default="", help="of the load over --run-time, up to --users")
    group.add_argument("--slo", action="append", default=[], help="such as 'TTFT p95 < 500'; may be given many times")


def check(options: Namespace) -> None:
    """Raise Invalid for options that make no sense."""
    slos(options)
    weights(options)
    if not 0 <= options.streamed <= 1:
        raise Invalid(f"--streamed {options.streamed:g} is not between 0 and 1.")
    for name in ("tokens", "repeat", "pace"):
        if not 0 <= (value := getattr(options, name)) < float("inf"):
            raise Invalid(f"--{name} {value:g} is less than 0, or no number.")
    if options.num_users is not None and options.num_users < 1:
        raise Invalid("--users 0: there has to be one user at least.")
    if options.shape and not (options.run_time or options.worker):
        raise Invalid(f"--shape {options.shape} needs a --run-time to stretch over.")


def slos(options: Namespace) -> list[Slo]:
    """Parse the objectives. Raises Invalid."""
    return [Slo.parse(text) for text in options.slo]


def weights(options: Namespace) -> dict[str, int]:
    """Parse `--mix chat=2,task=1`: users of each kind, by weight; 0 of a kind that is left out. Raises Invalid."""
    weights = dict.fromkeys(KINDS, 0)
    for part in options.mix.split(","):
        kind, _, weight = part.strip().partition("=")
        if kind not in KINDS or not weight.isdecimal():
            raise Invalid(f"--mix {options.mix!r} is not of the form {MIX}.")
        weights[kind] = int(weight)
    if not any(weights.values()):
        raise Invalid(f"--mix {options.mix!r} asks for nobody.")
    return weights


def sentence(options: Namespace, host: str) -> str:
    """Describe the load in a sentence."""
    users = f"{options.num_users} users ({options.mix}, {100 * options.streamed:.0f}% streamed)"
    shape = f" in the shape {options.shape}" if options.shape else ""
    pace = f"each asks {options.pace:g} times a second" if options.pace else "each asks again once it is answered"
    pictures = f"{options.repeat} pictures in turn" if options.repeat else "a new picture for every request"
    width, height = SIDES[options.size]
    return f"{host}: {users}{shape}; {pace}; {pictures}, {width} x {height} pixels."
