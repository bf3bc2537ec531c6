"""`python -m deployments`: serves on this machine until it is interrupted. `diptych serve` becomes this process."""

import sys

from deployments.local.start import main

if __name__ == "__main__":
    sys.exit(main())
