from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from simtrail.errors import InputError
from simtrail.pipeline import workspace as ws


def test_tables_have_their_texts_and_numbers_exactly_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ws.TABLES.mkdir(parents=True)
    table = pd.DataFrame({"class": ["007", "NA", "b"], "images": [1, 2, 3], "f1": [0.1 + 0.2, np.nan, 1 / 3]})
    table.to_csv(ws.TABLES / "per_class.csv", index=False)
    (ws.TABLES / "outliers.csv").write_text("\n")
    (ws.TABLES / "dimensions.csv").write_text("column,dimension,r2,p,q,kind\n")  # no column to relate to
    suspects = pd.DataFrame(
        {"path": ["1", None], "given": ["007", "01"], "suggested": ["NA", None], "margin": [0.5, 0.1]}
    )
    suspects.to_csv(ws.TABLES / "suspects.csv", index=False)
    tables = ws.read_tables()
    pd.testing.assert_frame_equal(tables["suspects"], suspects.astype(tables["suspects"].dtypes), check_exact=True)
    assert tables["suspects"]["given"].tolist() == ["007", "01"]
    assert list(tables) == ["per_class", "suspects"]  # without the empty ones
    pd.testing.assert_frame_equal(tables["per_class"], table, check_exact=True)


@pytest.mark.parametrize("read", [ws.read_json, ws.read_table, ws.read_arrays])
def test_a_missing_file_names_the_stage_that_writes_it(tmp_path, read):
    with pytest.raises(InputError, match=r"nothing\.parquet: no such file; .* first: simtrail evaluate, or dvc"):
        read(tmp_path / "nothing.parquet", "evaluate")


def test_a_fresh_folder_is_empty(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").touch()
    ws.fresh_folder(tmp_path / "old")
    assert list((tmp_path / "old").iterdir()) == []
