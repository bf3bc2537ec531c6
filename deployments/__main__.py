"""Serves on this machine until it is interrupted: `python -m deployments`, which `diptych serve` becomes."""

import sys

from deployments.local.start import main

if __name__ == "__main__":
    sys.exit(main())
