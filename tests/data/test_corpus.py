"""Every file of the corpus is read as it must be, or refused with one clear line."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data.corpus import Case, TableCase, check_orientations, file_cases, table_cases

from simtrail import read_image
from simtrail.data.readers import Reading, open_image
from simtrail.data.tables import read_table
from simtrail.errors import InputError

FILES = file_cases()
TABLES = table_cases()
ADDRESS = re.compile(r"0x[0-9a-f]{6,}|<[\w.]+ object")


def clear(error: Exception) -> str:
    """The message, which must be one line that a user understands."""
    message = str(error)
    assert message.strip(), f"no message: {error!r}"
    assert "\n" not in message, message
    assert not ADDRESS.search(message), message
    return message


def refused_rightly(error: Exception, case: Case | TableCase) -> None:
    message = clear(error)
    assert case.refused or case.may_refuse, f"refused: {message}"
    assert not case.refused or re.search(case.refused, message), message


def peak_in_megabytes() -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@contextmanager
def limited(megabytes: float):
    """Fails if this takes more memory than allowed, and then also if it takes more than five seconds."""
    refs = Path("/proc/self/clear_refs")
    if not megabytes or not refs.exists():
        yield
        return
    refs.write_text("5")  # the peak starts again from here
    before, started = peak_in_megabytes(), time.monotonic()
    yield
    assert time.monotonic() - started < 5
    assert peak_in_megabytes() - before < megabytes


def compare(image: np.ndarray, expected: np.ndarray, case: Case) -> None:
    if case.alpha is None:
        image = image[: len(expected)]
    assert image.shape == expected.shape
    if not case.within:
        assert image.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(image, expected)
    elif image.size > 10**7:  # without a copy in 64 bits
        assert abs(int(image.min()) - int(expected.min())) <= case.within
        assert abs(int(image.max()) - int(expected.max())) <= case.within
    else:
        np.testing.assert_allclose(image.astype(float), expected.astype(float), rtol=0, atol=case.within)


@pytest.mark.parametrize("case", FILES, ids=[case.name for case in FILES])
def test_file(case: Case, tmp_path):
    path = case.write_in(tmp_path)
    expected = case.expected()
    with limited(case.megabytes):
        try:
            decoded = open_image(path, Reading(**case.reading))
        except (ValueError, OSError) as error:
            refused_rightly(error, case)
            return
    assert case.refused is None, f"read as {decoded.image.shape} {decoded.image.dtype}, notes: {decoded.notes}"
    compare(decoded.image, expected, case)
    assert case.alpha is None or decoded.alpha is case.alpha
    assert isinstance(decoded.notes, tuple)
    if case.notes:
        assert any(re.search(case.notes, note) for note in decoded.notes), decoded.notes
    for key, value in case.facts.items():
        found = getattr(decoded.facts, key)
        if value is None or isinstance(value, str) or (isinstance(value, tuple) and isinstance(value[0], str)):
            assert (tuple(found) if isinstance(found, list) else found) == value, key
        else:
            assert found is not None, key
            np.testing.assert_allclose(np.array(found, float), np.array(value, float), rtol=1e-6, err_msg=key)
    if not case.reading and expected.size < 10**6:
        np.testing.assert_array_equal(read_image(path), decoded.image)


def text(value: object) -> str | None:
    """A cell as the contract has it; anything but text or a missing value fails."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return None
    assert isinstance(value, str), repr(value)
    return value


@pytest.mark.parametrize("case", TABLES, ids=[case.name for case in TABLES])
def test_table(case: TableCase, tmp_path):
    path = case.write_in(tmp_path)
    if case.isolated:  # a reader that fails here takes its process with it
        code = """if True:
            import resource, sys
            from pathlib import Path
            from simtrail.data.tables import read_table
            resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
            print(read_table(Path(sys.argv[1])).shape)"""
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == str((len(case.rows), len(case.columns))) or "InputError" in done.stderr, done
        return
    with limited(400):
        try:
            table = read_table(path)
        except (InputError, OSError) as error:
            refused_rightly(error, case)
            return
    assert case.refused is None, table
    assert list(table.columns) == case.columns
    found = [[text(value) for value in line] for line in table.itertuples(index=False)]
    assert len(found) == len(case.rows), found
    for line, expected in zip(found, case.rows, strict=True):
        for value, right in zip(line, expected, strict=True):
            assert value in right if isinstance(right, tuple) else value == right, (line, expected)


def test_the_corpus_turns_images_as_opencv_does():
    check_orientations()
