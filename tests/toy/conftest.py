"""Fixtures of the toys' tests."""

import sys

import pytest


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Give torch one thread: two wait for each other in a spin, and on a busy machine 15 steps take 32 s, not 3."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # where it is this test that imports torch
    if torch := sys.modules.get("torch"):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)
    else:
        yield
