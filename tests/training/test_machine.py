from __future__ import annotations

import resource
import sys

import pytest
import torch

from simtrail.training.machine import ready_for

SIZE = 2**26  # bytes of a tensor that glibc would get from the system each time


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_memory_that_a_step_frees_serves_the_next_one():
    with ready_for(torch.device("cpu")):
        torch.ones(SIZE, dtype=torch.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(SIZE, dtype=torch.uint8)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 2 * SIZE / 4096  # those of less than two such tensors, of ten
