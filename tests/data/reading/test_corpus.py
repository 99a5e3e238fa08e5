"""Every file of the corpus is read as it must be, or refused with one clear line."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import unicodedata
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data.reading.corpus import Case, TableCase, check_orientations, file_cases, pillow, table_cases

from simtrail import read_image
from simtrail.data.dataset import Dataset
from simtrail.data.reading.readers import Reading, open_image
from simtrail.data.tables import load_table
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


def read_apart(imported: str, path: Path) -> None:
    """Reads a file that could take its process with it, or never end, in another process."""
    code = f"""if True:
        import resource, sys
        from pathlib import Path
        from simtrail.errors import InputError
        {imported}
        resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
        try:
            read(Path(sys.argv[1]))
        except (ValueError, OSError, InputError) as error:
            assert str(error) and len(str(error).splitlines()) == 1, error"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])


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
    if case.isolated:
        read_apart("from simtrail.data.reading.readers import open_image as read", path)
        return
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
    if case.isolated:
        read_apart("from simtrail.data.tables import load_table as read", path)
        return
    with limited(400):
        try:
            table = load_table(path)
        except (InputError, OSError) as error:
            refused_rightly(error, case)
            return
    assert case.refused is None, table
    assert table.columns == case.columns
    found = [[text(value) for value in line] for line in table.rows]
    assert len(found) == len(case.rows), found
    for line, expected in zip(found, case.rows, strict=True):
        for value, right in zip(line, expected, strict=True):
            assert value in right if isinstance(right, tuple) else value == right, (line, expected)


def test_the_corpus_turns_images_as_opencv_does():
    check_orientations()


# --- a table and the files that it names -----------------------------------------------------------------------------


def dataset(folder: Path, *images: str) -> Path:
    """A data set with these files below images/; no two are equal."""
    rng = np.random.default_rng(0)
    for name in images:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pillow(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), "PNG"))
    return folder


def labels(folder: Path) -> dict[str, str | None]:
    """The label of every file, by its name without folders, in Unicode's composed form."""
    table = Dataset(folder).table()
    assert {"path", "label", "group", "split"} <= set(table.columns)
    names = [unicodedata.normalize("NFC", path.replace("\\\\", "/").rsplit("/", 1)[-1]) for path in table["path"]]
    assert len(set(names)) == len(names), names
    return dict(zip(names, [text(value) for value in table["label"]], strict=True))


COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "Bäume/é1.png"), unicodedata.normalize("NFD", "Bäume/é1.png")
NAMED = {
    "plain": ("a/1.png", "a/1.png"),
    "with-images": ("a/1.png", "images/a/1.png"),
    "dot": ("a/1.png", "./a/1.png"),
    "dot-and-images": ("a/1.png", "./images/a/1.png"),
    "backslash": ("a/1.png", r"a\1.png"),
    "backslash-and-images": ("a/1.png", r"images\a\1.png"),
    "dot-and-backslash": ("a/1.png", r".\a\1.png"),
    "spaces": ("a/1.png", " a/1.png "),
    "suffix-upper-in-table": ("a/1.png", "a/1.PNG"),
    "suffix-upper-in-file": ("a/1.PNG", "a/1.png"),
    "composed-in-table": (DECOMPOSED, COMPOSED),
    "decomposed-in-table": (COMPOSED, DECOMPOSED),
    "decomposed-and-backslash": (COMPOSED, "images\\" + DECOMPOSED.replace("/", "\\")),
    "space-in-name": ("my folder/a b (1).png", "my folder/a b (1).png"),
    "images-inside-images": ("images/1.png", "images/1.png"),
    "images-inside-images-in-full": ("images/1.png", "images/images/1.png"),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("suffix", ["csv", "xlsx", "parquet", "tsv"])
def test_a_table_names_files_as_people_write_them(tmp_path, name, suffix):
    file, written = NAMED[name]
    dataset(tmp_path, file, "other.png")
    rows = pd.DataFrame({"path": [written, "other.png"], "species": [" oak ", "beech"], "view": ["top", "007"]})
    table = tmp_path / f"metadata.{suffix}"
    if suffix == "xlsx":
        rows.to_excel(table, index=False)
    elif suffix == "parquet":
        rows.to_parquet(table)
    else:
        rows.to_csv(table, index=False, sep=";" if suffix == "csv" else "\t")
    (tmp_path / "dataset.yaml").write_text("label: species\n")
    found = labels(tmp_path)
    assert found == {unicodedata.normalize("NFC", Path(file).name): "oak", "other.png": "beech"}
    assert sorted(Dataset(tmp_path).table()["meta.view"]) == ["007", "top"]


def metadata(folder: Path, *lines: str) -> None:
    (folder / "metadata.csv").write_text("\n".join(["path,species", *lines]) + "\n")
    (folder / "dataset.yaml").write_text("label: species\n")


def test_two_files_that_differ_in_the_case_of_the_suffix_are_named_exactly(tmp_path):
    dataset(tmp_path, "1.png", "1.PNG")
    metadata(tmp_path, "1.png,oak", "1.PNG,beech")
    assert labels(tmp_path) == {"1.png": "oak", "1.PNG": "beech"}


def test_a_suffix_that_could_mean_two_files_means_neither(tmp_path):
    dataset(tmp_path, "1.png", "1.PNG")
    metadata(tmp_path, "1.Png,oak")
    found = labels(tmp_path)  # with the row itself, which `check` lists as a file that is not there
    assert (found["1.png"], found["1.PNG"]) == (None, None)


@pytest.mark.parametrize("second", ["1.png", "./1.png", "images/1.png", "1.PNG"])
def test_one_file_in_two_rows_is_refused(tmp_path, second):
    dataset(tmp_path, "1.png")
    metadata(tmp_path, "1.png,oak", f"{second},beech")
    with pytest.raises(InputError, match="1") as error:
        labels(tmp_path)
    clear(error.value)


def refused_by_name(folder: Path) -> None:
    """Links to folders are never passed over."""
    with pytest.raises(InputError, match="a link to a folder, whose files DVC does not version") as error:
        labels(folder)
    clear(error.value)


def test_a_class_folder_that_is_a_link(tmp_path):
    dataset(tmp_path / "elsewhere", "oak/1.png")
    dataset(tmp_path / "set", "beech/2.png")
    (tmp_path / "set/images/oak").symlink_to(tmp_path / "elsewhere/images/oak")
    refused_by_name(tmp_path / "set")


def test_links_in_a_ring(tmp_path):
    dataset(tmp_path, "oak/1.png", "beech/2.png")
    (tmp_path / "images/oak/again").symlink_to(tmp_path / "images")
    (tmp_path / "images/beech/self").symlink_to(".")
    refused_by_name(tmp_path)


def test_all_images_behind_a_link(tmp_path):
    dataset(tmp_path / "elsewhere", "oak/1.png", "beech/2.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/images").symlink_to(tmp_path / "elsewhere/images")
    refused_by_name(tmp_path / "set")


def test_a_link_to_nothing_is_no_silent_loss(tmp_path):
    dataset(tmp_path, "oak/1.png")
    (tmp_path / "images/oak/2.png").symlink_to(tmp_path / "gone.png")
    assert len(Dataset(tmp_path).table()) == 2  # so that `check` can list it


def test_class_folders_in_two_unicode_forms_are_one_class(tmp_path):
    dataset(tmp_path, unicodedata.normalize("NFC", "Bäume/1.png"), unicodedata.normalize("NFD", "Bäume/2.png"))
    assert len(set(labels(tmp_path).values())) == 1


def test_spaces_around_labels_are_no_second_class(tmp_path):
    dataset(tmp_path, "1.png", "2.png", "3.png", "4.png")
    metadata(tmp_path, "1.png,oak", "2.png, oak", "3.png,oak ", "4.png,  ")
    assert labels(tmp_path) == {"1.png": "oak", "2.png": "oak", "3.png": "oak", "4.png": None}


def test_na_is_a_label(tmp_path):
    dataset(tmp_path, "1.png", "2.png", "3.png")
    metadata(tmp_path, "1.png,NA", "2.png,None", "3.png,nan")
    assert labels(tmp_path) == {"1.png": "NA", "2.png": "None", "3.png": "nan"}
