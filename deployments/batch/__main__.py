"""Labels pictures through the models of a Ray cluster: `python -m deployments.batch`, which `diptych batch` becomes."""

import sys

from deployments.batch.command import main

if __name__ == "__main__":
    sys.exit(main())
