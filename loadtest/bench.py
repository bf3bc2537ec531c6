"""Every benchmark: `python -m loadtest.bench [KIND]`; without a name the servers side by side.

Each is a module with `options(parser)` and `run(options)`, which prints and returns a file's name, its content as JSON,
and whether the targets were met. It raises NotAnswering where nothing can be measured.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from loadtest.servers import NotAnswering

KINDS = (
    "many-servers",
    "fan-out",
    "scale",
    "gateways",
    "turns",
    "repeats",
    "columns",
    "same-answers",
    "chaos",
    "hostile",
    "soak",
    "store",
    "batch",
)


def main(argv: list[str]) -> int:
    """Return 0 where every target was met, 1 where one was missed, 2 where nothing could be measured."""
    kind = argv[0] if argv and argv[0] in KINDS else None
    benchmark = importlib.import_module(f"loadtest.{kind.replace('-', '_') if kind else 'compare'}")
    parser = argparse.ArgumentParser(benchmark.__name__, description=benchmark.__doc__)
    parser.add_argument("--out", default="build/bench", help="the folder that gets its numbers as JSON")
    benchmark.options(parser)
    options = parser.parse_args(argv[1:] if kind else argv)
    try:
        name, values, met = benchmark.run(options)
    except NotAnswering as error:
        print(f"{benchmark.__name__}: {error}", file=sys.stderr)
        return 2
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(values, indent=1))
    print(f"\nEvery number: {folder / name}.json")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
