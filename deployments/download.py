"""Downloads every checkpoint that a Serve config needs: `python -m deployments.download --config FILE`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deployments.args import LoraArgs
from deployments.config import ConfigError, read_config
from serve.engines import adapters
from serve.engines.hub import locate
from serve.errors import ModelError


def main(argv: Sequence[str] | None = None) -> int:
    """Download all that models need. Return 0, or 1 where some are missing, with a sentence about each on stderr."""
    parser = argparse.ArgumentParser("deployments.download", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    try:
        args = read_config(parser.parse_args(argv).config).args
    except ConfigError as refused:
        print(f"diptych: {refused}", file=sys.stderr)
        return 1
    loras = {entry.name for entry in args.models if isinstance(entry, LoraArgs)}
    missing = 0
    for name in args.with_checkpoint():
        checkpoint = args.models_by_name[name].checkpoint
        try:
            folder = locate(
                checkpoint.hub,
                checkpoint.revision,
                gated=checkpoint.gated,
                check=adapters.check_files if name in loras else None,
                progress=lambda line: print(f"  {line}"),
            )
            print(f"{name}: {folder}", flush=True)
        except ModelError as error:
            print(f"{name}: {error.message}", file=sys.stderr, flush=True)
            missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
