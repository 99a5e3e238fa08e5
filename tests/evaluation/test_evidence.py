from __future__ import annotations

import pandas as pd

from simtrail.evaluation.evidence import metadata


def test_metadata_starts_with_the_label_and_leaves_out_split_and_group():
    table = pd.DataFrame(
        {
            "label": ["a", "b", None],
            "group": ["s1", "s1", "s2"],
            "meta.specimen": ["s1", "s1", "s2"],
            "meta.split": ["train", "val", "test"],
            "meta.length": ["1.5", None, "3"],
            "meta.note": ["7", "eight", "9"],
            "meta.species": ["a", "b", None],
        }
    ).astype("object")
    columns = metadata(table)
    assert list(columns) == ["species", "length", "note"]
    assert columns["length"].sum() == 4.5
    assert columns["note"].tolist() == ["7", "eight", "9"]
    assert list(metadata(table.drop(columns="meta.species"))) == ["label", "length", "note"]
