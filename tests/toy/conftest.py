"""One torch thread in the tests of the toys."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads wait for each other in a spin: on a busy machine 15 small steps then take 32 s in place of 3."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
