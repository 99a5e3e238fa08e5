"""The split into train, validation and test, with all images of a group in the same part."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from simtrail.errors import InputError
from simtrail.params import Prepare


def split_groups(manifest: pd.DataFrame, near_copies: bool = False) -> np.ndarray:
    """One integer per image, the same for images that must be in one part of the split.

    These are images of one `group`, images with the same bytes and, with `near_copies`, near copies, except those that
    a fixed split divides. If A belongs to B and B to C, all three are together.
    """
    n = len(manifest)
    links = []
    columns = [manifest["group"], manifest["sha256"]]
    if near_copies and "near_copy" in manifest:  # older manifests have none
        divided = manifest.groupby("near_copy")["split"].transform("nunique") > 1
        columns.append(manifest["near_copy"].mask(divided))
    for column in columns:
        codes, _ = pd.factorize(column)
        rows = np.flatnonzero(codes >= 0)
        first = pd.Series(rows).groupby(codes[rows]).transform("first").to_numpy()
        links.append((rows, first))
    i, j = (np.concatenate(pairs) for pairs in zip(*links, strict=True))
    if (i == j).all():
        return np.arange(n)
    from scipy.sparse import coo_array  # slow to import, and often not needed
    from scipy.sparse.csgraph import connected_components

    return connected_components(coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n)), directed=False)[1]


def assign_split(manifest: pd.DataFrame, params: Prepare, groups: np.ndarray | None = None) -> pd.Series:
    """train, val or test for each image of a manifest; `groups` are those of `split_groups`.

    Values in the `split` column are kept, and images without a value are assigned. If the column never names a part,
    such as val, this part also takes images from train. Groups are assigned class by class, so that the fractions are
    the same in every class. Their order comes from a hash of seed and group: the same data and seed always give the
    same split, and adding images moves few of the old ones. Raises InputError if the column divides a group, or if a
    part would be empty.
    """
    groups = split_groups(manifest) if groups is None else groups
    table = pd.DataFrame({"split": manifest["split"], "group": groups, "label": manifest["label"].fillna("")})
    table.index = manifest.index
    fixed = table.dropna(subset="split")
    cut = fixed.groupby("group")["split"].nunique()
    if (cut > 1).any():
        rows = manifest.loc[fixed.index[fixed["group"] == cut.idxmax()]]
        raise InputError(
            f"split column: {', '.join(rows['path'].iloc[:3])} are one group (or have the same bytes) but are in "
            f"{' and '.join(sorted(set(rows['split'])))}; put them in one part"
        )
    result = table["group"].map(fixed.groupby("group")["split"].first()).astype("object")
    fractions = {"test": params.test_fraction, "val": params.val_fraction}
    fractions = {part: fraction for part, fraction in fractions.items() if not (result == part).any()}
    unassigned = result.isna() | (result == "train") if fractions else result.isna()
    names = manifest["group"].fillna(manifest["sha256"])[unassigned].groupby(table["group"]).min()
    draws = {group: _draw(params.seed, str(name)) for group, name in names.items()}
    result[unassigned] = table.loc[unassigned, "group"].map(_parts(table.loc[unassigned], draws, fractions))
    for part in ("train", "val", "test"):
        if not (result == part).any():
            advice = (
                "lower prepare.val_fraction or test_fraction" if part == "train" else f"raise prepare.{part}_fraction"
            )
            raise InputError(
                f"the split leaves no image for {part}: {table['group'].nunique()} groups are too few; add images or "
                + advice
            )
    return result


def _parts(table: pd.DataFrame, draws: dict[int, float], fractions: dict[str, float]) -> dict[int, str]:
    """The part of each group. In each class, groups are assigned in the order of their draws; the rest is train."""
    label_of = table.groupby("group")["label"].agg(lambda labels: labels.mode().iloc[0])
    parts = {}
    for label, members in label_of.groupby(label_of):
        order = sorted(members.index, key=lambda group: draws[group])
        start, offset = 0.0, _draw(0, str(label))  # offset: rounds up for some classes, down for others
        for part, fraction in fractions.items():
            end = start + fraction * len(order)
            for group in order[int(start + offset) : int(end + offset)]:
                parts[group] = part
            start = end
    return {group: parts.get(group, "train") for group in label_of.index}


def _draw(seed: int, name: str) -> float:
    """A number from 0 to 1 that depends only on seed and name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7]) / 2**56
