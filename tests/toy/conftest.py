"""Fixtures of the toys' tests."""

import sys

import pytest


@pytest.fixture(autouse=True)
def single_thread(monkeypatch):
    """Limit torch to a thread: two spin while they wait, so that 15 small steps take 32 s, not 3, on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # where it is this test that imports torch
    if torch := sys.modules.get("torch"):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)
    else:
        yield
