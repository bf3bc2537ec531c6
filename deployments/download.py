"""`python -m deployments.download`: every checkpoint of a Serve config onto this machine, before it serves."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deployments.args import LoraArgs
from deployments.config import Refused, read
from serve.engines import adapters
from serve.engines.hub import locate
from serve.errors import ModelError


def main(argv: Sequence[str] | None = None) -> int:
    """0: all is here; 1: something is not, with a sentence about each on stderr; the others are here all the same."""
    parser = argparse.ArgumentParser("deployments.download", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    try:
        args = read(parser.parse_args(argv).config).args
    except Refused as refused:
        print(f"diptych: {refused}", file=sys.stderr)
        return 1
    loras = {entry.name for entry in args.models if isinstance(entry, LoraArgs)}
    missing = 0
    for name, model in args.built().items():
        one = model.checkpoint
        check = adapters.whole if name in loras else None
        try:
            folder = locate(
                one.hub, one.revision, gated=one.gated, check=check, progress=lambda words: print(f"  {words}")
            )
            print(f"{name}: {folder}", flush=True)
        except ModelError as error:
            print(f"{name}: {error.message}", file=sys.stderr, flush=True)
            missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
