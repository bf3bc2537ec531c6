"""Media processes go behind everything else that the machine has to do."""

import contextlib
import os
from pathlib import Path

from serve.media.decoder import NICENESS, SESSION_NICENESS
from serve.media.processes import Zygote
from tests.served import until


def test_a_media_process_and_its_session_are_nice() -> None:
    zygote = Zygote()
    zygote.start()
    try:
        process = zygote.pid
        assert process is not None
        wanted = min(19, os.nice(0) + NICENESS)
        assert until(lambda: os.getpriority(os.PRIO_PROCESS, process) == wanted, 10)
        if _session_share(os.getpid()) is not None:  # not every kernel groups processes by session
            assert until(lambda: _session_share(process) == SESSION_NICENESS, 10)
    finally:
        zygote.close()


def _session_share(process: int) -> int | None:
    """Return the niceness of the process's session; None where sessions have none."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/{process}/autogroup").read_text().rpartition(" ")[2])
    return None
