"""Fixtures of the toys' tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def single_thread():
    """Limit torch to a thread: two spin while they wait, so that 15 small steps take 32 s, not 3, on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
