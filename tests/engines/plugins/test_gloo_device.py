"""The plugin by which groups of one process share a device, each time in a process that has no other groups."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.engine

PROGRAM = """
import json, os, sys
import torch, torch.distributed
from serve.engines.plugins import gloo_device

if sys.argv[1] == "with":
    gloo_device.register()
    gloo_device.register()  # a second time changes nothing
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
before = len(os.listdir("/proc/self/task"))
groups = [torch.distributed.new_group([0], backend="gloo") for _ in range(5)]
ones = torch.ones(3)
torch.distributed.all_reduce(ones, group=groups[0])
torch.distributed.barrier(group=groups[4])
backend = torch.distributed.get_backend(groups[1])
print(json.dumps([len(os.listdir("/proc/self/task")) - before, ones.tolist(), backend]))
"""


def run(which: str) -> tuple[int, list[float], str]:
    """Return the threads of five more groups, what a sum over one of them is, and its backend."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, which], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    threads, ones, backend = json.loads(done.stdout)
    return threads, ones, backend


def test_groups_of_one_process_share_a_thread_that_looks_for_messages() -> None:
    threads, ones, backend = run("without")
    fewer, same, again = run("with")
    assert (ones, backend) == (same, again) == ([1.0, 1.0, 1.0], "gloo")
    assert threads - fewer == 5
