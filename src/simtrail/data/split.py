"""Train, validation and test, with all images of one group on one side."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from simtrail.errors import InputError
from simtrail.params import Prepare


def split_groups(manifest: pd.DataFrame) -> np.ndarray:
    """One integer per image, shared by images of one `group` or with the same bytes, directly or through others."""
    n = len(manifest)
    links = []
    for column in ("group", "sha256"):
        codes, _ = pd.factorize(manifest[column])
        rows = np.flatnonzero(codes >= 0)
        first = pd.Series(rows).groupby(codes[rows]).transform("first").to_numpy()
        links.append((rows, first))
    i, j = (np.concatenate(ends) for ends in zip(*links, strict=True))
    if (i == j).all():
        return np.arange(n)
    from scipy.sparse import coo_array  # half the time that a small dataset takes
    from scipy.sparse.csgraph import connected_components

    return connected_components(coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n)), directed=False)[1]


def assign_split(manifest: pd.DataFrame, params: Prepare) -> pd.Series:
    """train, val or test for each image of a manifest.

    A fixed `split` column rules where it is filled; a part that it never names is dealt from its train images and from
    those it leaves empty. Groups are dealt class by class, so that every class has its share in each part, in
    an order drawn from a hash of seed and group: the same data and seed always give the same split, and adding images
    moves few of the old ones. Raises InputError when a fixed split cuts a group, or a part would be empty.
    """
    table = pd.DataFrame(
        {"split": manifest["split"], "group": split_groups(manifest), "label": manifest["label"].fillna("")}
    )
    table.index = manifest.index
    fixed = table.dropna(subset="split")
    cut = fixed.groupby("group")["split"].nunique()
    if (cut > 1).any():
        rows = manifest.loc[fixed.index[fixed["group"] == cut.idxmax()]]
        raise InputError(
            f"split column: {', '.join(rows['path'].iloc[:3])} are one group (or the same bytes) but stand in "
            f"{' and '.join(sorted(set(rows['split'])))}; put them in one"
        )
    result = table["group"].map(fixed.groupby("group")["split"].first()).astype("object")
    shares = {"test": params.test_fraction, "val": params.val_fraction}
    shares = {part: share for part, share in shares.items() if not (result == part).any()}
    free = result.isna() | (result == "train") if shares else result.isna()
    names = manifest["group"].fillna(manifest["sha256"])[free].groupby(table["group"]).min()
    draws = {group: _draw(params.seed, str(name)) for group, name in names.items()}
    result[free] = table.loc[free, "group"].map(_deal(table.loc[free], draws, shares))
    for part in ("train", "val", "test"):
        if not (result == part).any():
            raise InputError(
                f"the split leaves no image for {part}: {table['group'].nunique()} groups are too few; "
                f"add images or change prepare.{part}_fraction"
            )
    return result


def _deal(table: pd.DataFrame, draws: dict[int, float], shares: dict[str, float]) -> dict[int, str]:
    label_of = table.groupby("group")["label"].agg(lambda labels: labels.mode().iloc[0])
    parts = {}
    for label, groups in label_of.groupby(label_of):
        order = sorted(groups.index, key=lambda g: draws[g])
        start, offset = 0.0, _draw(0, str(label))  # offset: rounding goes up for some classes, down for others
        for part, share in shares.items():
            end = start + share * len(order)
            for g in order[int(start + offset) : int(end + offset)]:
                parts[g] = part
            start = end
    return {g: parts.get(g, "train") for g in label_of.index}


def _draw(seed: int, name: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7]) / 2**56
