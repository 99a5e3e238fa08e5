"""Checks for problems of kinds, not of single files: how images look, near copies, names of classes, odd labels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from simtrail.data.checking.expectation import Expectation, between, in_set
from simtrail.params import Check

DARK, BRIGHT = 0.05, 0.95  # on a scale from 0 to 1: 99 % of the pixels are below, or above
BLURRED = 0.25  # of the usual sharpness of the dataset: what is sharp depends on what is shown
SIZE = 10  # times longer or shorter than the usual image
DOMINANT = 0.9  # fraction of all labelled images in one class
_MISSING = {"na", "n/a", "nan", "null", "none", "unknown", "?", "-", "--", "missing", "#n/a", "tbd"}
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?|\d\d?[./-]\d\d?[./-]\d{2,4}|\d\d?-[A-Za-z]{3}(-\d+)?|[A-Za-z]{3}-\d\d")


def image_checks(images: pd.DataFrame, readable: pd.DataFrame, params: Check) -> list[Expectation]:
    """Expectations about the look, the size and the near copies of images; all of them warnings."""
    sharpness, side = readable["sharpness"].median(), np.sqrt(readable["height"] * readable["width"])
    table = readable.assign(
        relative_sharpness=readable["sharpness"] / sharpness if sharpness else np.nan,
        relative_side=side / side.median(),
    )
    # fmt: off
    checks = [
        Expectation("no image is almost black", "{n} image{s} {have} almost only black pixels",
                    table, *between("brightest", DARK, None), advice="look at them; remove failed exposures"),
        Expectation("no image is almost white", "{n} image{s} {have} almost only white pixels",
                    table, *between("darkest", None, BRIGHT), advice="look at them; remove failed exposures"),
        Expectation("no image is blurred",
                    f"{{n}} image{{s}} {{have}} less than {BLURRED:.0%} of the usual sharpness",
                    table, *between("relative_sharpness", BLURRED, None), advice="look at them; remove blurred images"),
        Expectation(f"no image is {SIZE} times larger or smaller than usual",
                    f"{{n}} image{{s}} {{have}} more than {SIZE} times, or less than 1/{SIZE} of, the usual side",
                    table, *between("relative_side", 1 / SIZE, SIZE),
                    advice="check that they show the same kind of thing; cut or remove thumbnails and overviews"),
        Expectation("no two bands of an image are equal", "{n} image{s} {have} bands that are copies of each other",
                    table, *in_set("equal_bands", [0]),
                    advice="a grey image saved as colour, or a band saved twice; prepare.bands lists the bands to use"),
        Expectation("no two paths differ only in upper and lower case",
                    "{n} paths differ from another only in upper and lower case",
                    images.assign(alike=images["path"].str.lower().duplicated(keep=False)), *in_set("alike", [False]),
                    advice="rename them: on Windows and macOS they are one file"),
    ]
    # fmt: on
    return checks + (_near_copy_checks(table, params) if params.near_duplicates != "ignore" else [])


def _near_copy_checks(readable: pd.DataFrame, params: Check) -> list[Expectation]:
    near = readable[readable["near_copy"].notna()]
    if len(near):
        near = near[near.groupby("near_copy")["sha256"].transform("nunique") > 1]  # exact copies have their own check
    across = near.groupby("near_copy")["split"].transform("nunique") if len(near) else near["split"]
    labels = near.groupby("near_copy")["label"].transform("nunique") if len(near) else near["label"]
    table = readable.assign(
        is_near=readable.index.isin(near.index),
        across=across.reindex(readable.index).fillna(0).astype(int),
        labels=labels.reindex(readable.index).fillna(0).astype(int),
    )
    kept = (
        "they are kept in one part of the split, except where a fixed split divides them"
        if params.near_duplicates == "group"
        else "remove them, or set check.near_duplicates: group to keep them in one part of the split"
    )
    # fmt: off
    return [
        Expectation("no image has a near copy", "{n} images {have} a near copy (resized, edited, or the same scene)",
                    table, *in_set("is_near", [False]), advice=kept),
        Expectation("no near copies are in several parts of the fixed split",
                    "{n} images {have} a near copy in another part of the fixed split",
                    table, *between("across", None, 1), advice="correct the split column, or scores are too high"),
        Expectation("no near copies have different labels", "{n} images {have} a near copy under another label",
                    table, *between("labels", None, 1), advice="look at them; one of the labels may be wrong"),
    ]
    # fmt: on


def class_checks(images: pd.DataFrame) -> list[Expectation]:
    """Expectations about the names and sizes of classes; all of them warnings."""
    counts = images["label"].value_counts().rename_axis("class").reset_index(name="images")
    names = counts["class"].astype(str)
    plain = names.map(_plain)
    alike = counts.assign(plain=plain, alike=plain.duplicated(keep=False)).sort_values(["plain", "class"])
    numeric = pd.to_numeric(names, errors="coerce")
    many = len(names) > 100 or bool((numeric % 1 != 0).any())  # measurements or identifiers, not a few numbered classes
    is_number = numeric.notna() & (numeric.notna().all() and many)
    table = counts.assign(
        missing=names.str.lower().isin(_MISSING),
        odd=is_number | names.map(lambda name: bool(_DATE.fullmatch(name))),
        fraction=counts["images"] / max(counts["images"].sum(), 1),
    )
    # fmt: off
    return [
        Expectation("no two class names are almost the same",
                    "{n} class names differ only in case, spaces, hyphens or underscores",
                    alike, *in_set("alike", [False]), advice="if they mean one class, write them in one way"),
        Expectation("no class name means a missing label", "no label is usually meant by {n} class name{s}",
                    table, *in_set("missing", [False]), advice="leave the label empty if it is unknown"),
        Expectation("class names are not measurements or dates", "{n} class name{s} of numbers or dates",
                    table, *in_set("odd", [False]),
                    advice="check the label column: it may be the wrong one, or a spreadsheet has changed the names"),
        Expectation(f"no class holds {DOMINANT:.0%} of the images",
                    f"{{n}} class holds more than {DOMINANT:.0%} of the images",
                    table, *between("fraction", None, DOMINANT),
                    advice="accuracy means little then: read the balanced accuracy, and collect more of the others"),
    ]
    # fmt: on


def _plain(name: Any) -> str:
    """A class name without what people write in different ways: case, spaces, hyphens, underscores, full stops."""
    return re.sub(r"[\s_.-]+", "", str(name)).casefold()
