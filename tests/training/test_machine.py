from __future__ import annotations

import subprocess
import sys

import pytest

# a process of its own, because the rule stays; a tensor is larger than what glibc would keep
SCRIPT = """
import resource
import torch
from simtrail.training.machine import ready_for

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    torch.ones(2**26, dtype=torch.uint8)

def pages():
    before = faults()
    for _ in range(10):
        step()
    return (faults() - before) * resource.getpagesize() / 2**26

step()
usual = pages()
with ready_for(torch.device("cpu")):
    pages()  # the heap grows
    print(usual, pages())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_memory_that_a_step_frees_serves_the_next_one():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    usual, kept = map(float, done.stdout.split())  # tensors whose pages the system gave, of ten
    assert usual > 8
    assert kept < 2
