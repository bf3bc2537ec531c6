"""Stands in for the program that evaluates: prints the events of the file `script` beside the archive, then waits."""

import json
import sys
import time
from pathlib import Path

order = json.loads(sys.stdin.readline())
print((Path(order["archive"]).parent / "script").read_text(), end="", flush=True)
time.sleep(60)
