from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import with_changes
from hypothesis import given, settings
from hypothesis import strategies as st

from simtrail.data.split import assign_split, split_groups
from simtrail.errors import InputError

PREPARE = with_changes({"prepare.val_fraction": 0.2, "prepare.test_fraction": 0.2}).prepare


def manifest(n: int = 200, groups: int | None = None, classes: int = 4, split: list | None = None) -> pd.DataFrame:
    rows = np.arange(n)
    return pd.DataFrame(
        {
            "path": [f"images/{i}.png" for i in rows],
            "sha256": [f"{i:064d}" for i in rows],
            "label": [f"c{(i if groups is None else i % groups) % classes}" for i in rows],
            "group": [None if groups is None else f"g{i % groups}" for i in rows],
            "split": split or [None] * n,
        }
    ).astype("object")


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(12, 60), seed=st.integers(0, 10**6))
def test_every_group_is_in_one_part(groups, seed):
    table = manifest(groups=groups)
    split = assign_split(table, PREPARE.model_copy(update={"seed": seed}))
    assert split.groupby(table["group"]).nunique().max() == 1
    assert set(split) == {"train", "val", "test"}


def test_the_fractions_of_the_parts_hold_in_every_class():
    table = manifest(n=800)
    fractions = pd.crosstab(table["label"], assign_split(table, PREPARE), normalize="index")
    assert ((fractions["test"] - 0.2).abs() < 0.01).all()
    assert ((fractions["val"] - 0.2).abs() < 0.01).all()


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    table = manifest()
    split = assign_split(table, PREPARE)
    shuffled = table.sample(frac=1, random_state=1)
    pd.testing.assert_series_equal(assign_split(shuffled, PREPARE).sort_index(), split, check_names=False)
    assert not assign_split(table, PREPARE.model_copy(update={"seed": 1})).equals(split)


def test_adding_images_moves_few_of_the_old_ones():
    small, large = manifest(n=400), manifest(n=440)
    assert (assign_split(small, PREPARE) == assign_split(large, PREPARE)[:400]).mean() > 0.9


def test_images_with_equal_bytes_are_in_one_part_even_in_different_groups():
    table = manifest(n=60, groups=30)
    table.loc[[0, 1, 2], "sha256"] = "same"
    assert len(set(split_groups(table)[[0, 1, 2, 30, 31, 32]])) == 1
    assert assign_split(table, PREPARE)[[0, 1, 2, 30, 31, 32]].nunique() == 1


def test_a_fixed_split_is_kept_and_validation_is_drawn_from_train():
    fixed = ["test" if i % 5 == 0 else "train" for i in range(200)]
    split = assign_split(manifest(split=fixed), PREPARE)
    np.testing.assert_array_equal(split == "test", np.array(fixed) == "test")
    assert 20 <= (split == "val").sum() <= 40


def test_a_complete_fixed_split_is_used_unchanged():
    fixed = [("train", "val", "test")[i % 3] for i in range(60)]
    assert assign_split(manifest(n=60, split=fixed), PREPARE).tolist() == fixed


def test_a_fixed_split_that_divides_a_group_is_refused_and_its_images_named():
    fixed = ["test" if i < 20 else "train" for i in range(60)]
    with pytest.raises(InputError, match=r"images/.*one group.*test and train"):
        assign_split(manifest(n=60, groups=30, split=fixed), PREPARE)


def test_too_few_groups_are_refused():
    with pytest.raises(InputError, match="leaves no image for"):
        assign_split(manifest(n=8, groups=2, classes=1), PREPARE)


def test_near_copies_stay_together_except_where_a_fixed_split_divides_them():
    table = manifest(60, split=[None] * 56 + ["train", "test", "test", None])
    table["near_copy"] = pd.array([i // 3 if i < 30 else None for i in range(56)] + [90, 90, 91, 91], "Int64")
    groups = split_groups(table, near_copies=True)
    split = assign_split(table, PREPARE, groups)
    assert split[:30].groupby(table["near_copy"][:30]).nunique().max() == 1
    assert split[56:].tolist() == ["train", "test", "test", "test"]
    assert (split_groups(table) == np.arange(60)).all()
