"""Every benchmark: `python -m loadtest.bench [fan-out|scale|repeats]`; without a name the servers side by side.

Each has `options(parser)` and `run(options)`, which prints and gives a file's name, what goes into it as JSON, and
whether the targets were met. It raises Refused where a server does not start.
"""

import argparse
import json
import sys
from pathlib import Path

from loadtest import compare, fan_out, repeats, scale
from loadtest.sides import Refused

KINDS = {"fan-out": fan_out, "scale": scale, "repeats": repeats}


def main(argv: list[str]) -> int:
    """0: measured, and every target met; 1: a target was missed; 2: nothing could be measured."""
    kind = KINDS.get(argv[0]) if argv else None
    benchmark = kind or compare
    parser = argparse.ArgumentParser(benchmark.__name__, description=benchmark.__doc__)
    parser.add_argument("--out", default="build/bench", help="the folder that gets its numbers as JSON")
    benchmark.options(parser)
    options = parser.parse_args(argv[1:] if kind else argv)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        name, values, met = benchmark.run(options)
    except Refused as refused:
        print(f"{benchmark.__name__}: {refused}", file=sys.stderr)
        return 2
    file = folder / f"{name}.json"
    file.write_text(json.dumps(values, indent=1))
    print(f"\nEvery number: {file}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
