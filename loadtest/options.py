"""What can be said on the command line of a load test, beside what locust knows. Knows no locust itself."""

from argparse import ArgumentParser, Namespace

from loadtest.pictures import SIDES
from loadtest.slo import Slo, Wrong
from loadtest.waves import WAVES

KINDS = ("chat", "task", "fan-out")
MIX = ",".join(f"{kind}=1" for kind in KINDS)


def add(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("Diptych")
    group.add_argument("--mix", default=MIX, help=f"users of each kind, by weight; {MIX} if left out")
    group.add_argument("--streamed", type=float, default=0.5, help="share of the requests that stream, 0 to 1")
    group.add_argument("--tasks", default="", help="tasks to ask for, by commas; all that the server does if left out")
    group.add_argument("--tokens", type=int, default=16, help="exact length of a chat's reply")
    group.add_argument("--size", choices=list(SIDES), default="1x", help="of the pictures")
    group.add_argument("--repeat", type=int, default=0, help="so many pictures in turn; 0: each request its own")
    group.add_argument("--pace", type=float, default=0, help="requests a second of each user; 0: ask when answered")
    group.add_argument("--shape", choices=["", *WAVES], default="", help="of the load over --run-time, up to --users")
    group.add_argument("--slo", action="append", default=[], help="such as 'TTFT p95 < 500'; may be given many times")


def check(options: Namespace) -> None:
    """Raises Wrong for what cannot be meant."""
    slos(options)
    weights(options)
    if not 0 <= options.streamed <= 1:
        raise Wrong(f"--streamed {options.streamed:g} is not between 0 and 1.")
    if options.shape and not (options.run_time or options.worker):
        raise Wrong(f"--shape {options.shape} needs a --run-time to stretch over.")


def slos(options: Namespace) -> list[Slo]:
    """Raises Wrong."""
    return [Slo.parse(text) for text in options.slo]


def weights(options: Namespace) -> dict[str, int]:
    """`--mix chat=2,task=1`: users of each kind, by weight; 0 of a kind that is left out. Raises Wrong."""
    found = dict.fromkeys(KINDS, 0)
    for part in options.mix.split(","):
        kind, _, weight = part.strip().partition("=")
        if kind not in KINDS or not weight.isdecimal():
            raise Wrong(f"--mix {options.mix!r} is not of the form {MIX}.")
        found[kind] = int(weight)
    if not any(found.values()):
        raise Wrong(f"--mix {options.mix!r} asks for nobody.")
    return found


def sentence(options: Namespace, host: str) -> str:
    """The load in words."""
    users = f"{options.num_users} users ({options.mix}, {100 * options.streamed:.0f}% streamed)"
    shape = f" in the shape {options.shape}" if options.shape else ""
    pace = f"each asks {options.pace:g} times a second" if options.pace else "each asks again once it is answered"
    pictures = f"{options.repeat} pictures in turn" if options.repeat else "a new picture for every request"
    width, height = SIDES[options.size]
    return f"{host}: {users}{shape}; {pace}; {pictures}, {width} x {height} pixels."
