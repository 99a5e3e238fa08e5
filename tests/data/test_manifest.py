from __future__ import annotations

import os
from contextlib import closing

import numpy as np
import pytest

from simtrail.data.manifest import _statistics, in_parallel


@pytest.mark.parametrize("crashes", [[40], [0, 41, 79]])
def test_an_item_that_kills_its_process_has_a_result_of_its_own(monkeypatch, crashes):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    items = ["__import__('os')._exit(1)" if i in crashes else str(i) for i in range(80)]
    results = list(in_parallel(eval, items, "test", crashed=lambda item: "crashed"))
    assert results == ["crashed" if i in crashes else i for i in range(80)]


@pytest.mark.parametrize("nodata", [None, 7])
def test_statistics_of_8_bits_by_counting_are_those_of_the_values(nodata):
    image = np.random.default_rng(0).integers(0, 12, (3, 50, 60)).astype(np.uint8)
    image[2] = 7
    counted, _ = _statistics(image, nodata, with_crc=False)
    added, _ = _statistics(image, nodata, with_crc=True)  # as for images that are read by memory map
    for name, values in added.items():
        np.testing.assert_allclose(counted[name], values, rtol=1e-12, atol=1e-12, err_msg=name)


def test_an_error_of_the_caller_does_not_wait_for_the_other_items(tmp_path):
    item = "(__import__('time').sleep(0.002), __import__('pathlib').Path({!r}).touch())"
    items = [item.format(str(tmp_path / str(i))) for i in range(2000)]
    with closing(in_parallel(eval, items, "test", crashed=str)) as results:
        next(results)
    assert 0 < len(list(tmp_path.iterdir())) < 1000  # those that had been handed to a process
