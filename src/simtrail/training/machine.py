"""What a process changes on its machine in order to train."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # options of glibc's mallopt(3)


@contextmanager
def ready_for(device: torch.device) -> Iterator[None]:
    """Within it, PyTorch is set for training on the device.

    For a GPU, it uses one thread of the processor: what is left to the processor is so small that further threads cost
    more time than they save. On a processor, memory that a step frees is kept for the next step: glibc would give that
    of large tensors back to the system, and get it again page by page, which takes up to two fifths of the time
    (benchmarks/throughput.py, "memory returned"). At the end, what is free is given back; the rule stays for what the
    process does later.
    """
    if device.type == "cuda":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
        return
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):  # another C library
        yield
        return
    libc.mallopt(MMAP_MAX, 0)  # all memory comes from the heap,
    libc.mallopt(TRIM_THRESHOLD, -1)  # which does not shrink
    try:
        yield
    finally:
        libc.malloc_trim(0)
