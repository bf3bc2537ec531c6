"""`python -m serve`: the `diptych` command where it is not installed."""

import sys

from serve.cli import main

if __name__ == "__main__":
    sys.exit(main())
