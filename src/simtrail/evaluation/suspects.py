"""Suspected errors in the data: wrong labels, near copies of learnt images in test, groups on which the probe fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from simtrail.evaluation.probe import fit_logistic
from simtrail.evaluation.scores import scores_with_intervals
from simtrail.evaluation.tasks import Result, Task
from simtrail.params import Evaluate

FOLDS = 5
FITTED = 20_000  # images that the probe of a fold learns from at most
TOLERANCE = 3e-4  # of its fit: gives nearly the same suspects as a third of it, in half the time
LEVEL = 0.05  # of all tests of groups and classes together
COLUMNS = ["path", "kind", "given", "suggested", "copy_of", "margin", "reason"]


def suspects(
    table: pd.DataFrame, features: np.ndarray, main: tuple[Task, Result] | None, p: Evaluate
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The suspects, a row each, and their numbers.

    `table` is the split table, `features` are the (N, D) features of its rows, `main` is the main task with its result,
    None without labels. Columns, empty where they do not apply:

    - `path`: the image; `copy_of`: its near copy in train or val
    - `kind`: 'label', 'near copy', 'group' or 'class', in this order
    - `given`: the label, or the name of the group or class
    - `suggested`: a more probable label, or the label of the near copy if it is another one
    - `margin`, 0 to 1: of a label, by how much the suggested label is more probable; of a group or class, by how much
      its accuracy is below that of all test images
    - `reason`: in words

    Numbers: `labels`, `unchecked_classes`, `probe_accuracy` (out of fold), `groups`, `classes`; with a column near_copy
    also `near_copies` and, if there are any, `without_near_copies`: images, and the linear probe's accuracy on the test
    images without near copies, with its interval.
    """
    found = []
    if main and table["label"].nunique() > 1:
        found.append(_labels(table, features, main[1].c, p.seed))
    if "near_copy" in table:
        found.append(_near_copies(table, main, p))
    if main:
        found.append(_failing(table, *main))
    numbers = {name: number for _, part in found for name, number in part.items()}
    parts = pd.concat([part for part, _ in found], ignore_index=True) if found else pd.DataFrame()
    return parts.reindex(columns=COLUMNS), numbers


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, group: np.ndarray, classes: int, c: float, seed: int = 0
) -> np.ndarray:
    """The (N, classes) class probabilities of each image by a linear probe that learnt from none of its group.

    Five folds of whole groups; `c` is the probe's inverse regularisation strength. `labels` are class numbers, `group`
    a number for each image. A class with fewer than five groups is left out, because not every fold would have one: its
    images have NaN in all classes. Each probe learns from at most `FITTED` images; of more, the largest classes lose
    some. Raises TrainingError if a fit does not converge.
    """
    rng = np.random.default_rng(seed)
    probabilities = np.full((len(labels), classes), np.nan, np.float32)
    pairs = pd.DataFrame({"label": labels, "group": group}).drop_duplicates()
    kept = np.flatnonzero(np.bincount(pairs["label"], minlength=classes) >= FOLDS)
    if len(kept) < 2:
        return probabilities
    rows, number = np.flatnonzero(np.isin(labels, kept)), np.searchsorted(kept, labels)
    fold = _folds(labels[rows], group[rows], rng)
    for k in range(FOLDS):
        learnt = _even_sample(rows[fold != k], labels, rng)
        held = rows[fold == k]
        held = held[np.isin(labels[held], labels[learnt])]  # groups of several classes may leave a class to one fold
        if len(held):
            probe = next(fit_logistic(features, number, len(kept), (c,), rows=learnt, tolerance=TOLERANCE))
            probabilities[held] = 0
            probabilities[np.ix_(held, kept)] = probe.probabilities(features[held])
    return probabilities


def wrong_labels(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """The images whose label may be wrong, the most suspicious first: row, suggested, margin.

    Confident learning (Northcutt, Jiang and Chuang 2021, arXiv 1911.00068, section 3.1): an image is suspect if its
    probability of another class reaches the mean probability of that class over the images labelled so, and exceeds
    that of its own label. `suggested` is the most probable such class, `margin`, 0 to 1, the difference of the two
    probabilities. `probabilities` are out of fold, (N, classes); rows of NaN are left out. `labels` are class numbers.
    """
    # a few lines of our own, because cleanlab, the library of the authors, has the licence AGPL
    every = np.arange(len(labels))
    own = probabilities[every, labels]
    checked = ~np.isnan(own)
    counts = np.bincount(labels[checked], minlength=probabilities.shape[1])
    sums = np.bincount(labels[checked], own[checked], minlength=probabilities.shape[1])
    reached = np.divide(sums, counts, out=np.full(len(counts), np.inf), where=counts > 0)
    other = np.where(probabilities >= reached, probabilities, 0)
    other[every, labels] = 0
    suggested = other.argmax(1)
    margin = other[every, suggested] - own
    rows = np.flatnonzero(margin > 0)  # not where it is NaN
    rows = rows[np.argsort(-margin[rows], kind="stable")]
    return pd.DataFrame({"row": rows, "suggested": suggested[rows], "margin": margin[rows]})


def near_copies(near_copy: pd.Series, split: np.ndarray) -> pd.DataFrame:
    """The test images with a near copy in train or val, which the encoder or the probe learnt from: row, copy_of.

    Images with the same number in `near_copy` are near copies of one another; null: none. `copy_of` is the row of the
    first one in train or, without one there, in val. `split` is train, val or test for every row.
    """
    copies = pd.DataFrame({"number": pd.factorize(near_copy)[0], "split": split, "row": np.arange(len(split))})
    copies = copies[copies["number"] >= 0]
    # sorted, train comes before val
    learnt = copies[copies["split"] != "test"].sort_values(["split", "row"]).drop_duplicates("number")
    pairs = copies[copies["split"] == "test"].merge(learnt, on="number", suffixes=("", "_learnt"))
    pairs = pairs[["row", "row_learnt"]].rename(columns={"row_learnt": "copy_of"})
    return pairs.sort_values("row", ignore_index=True)


def failing(correct: np.ndarray, names: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The groups on which a classifier fails beyond chance, the least likely first: kind, name, images, correct, p.

    `names` holds, for each kind of group, the name of every image's group, null for none; `correct` is whether the
    prediction of each image is right. `images` and `correct` are numbers of images of the group. p is the probability
    of at most as many right ones by the binomial distribution with the overall accuracy, adjusted by Holm (1979) over
    all groups of all kinds; groups with p ≤ 0.05 are listed. The test takes images as independent. Images of one
    specimen are not, so that a class of few specimens is listed too easily.
    """
    from scipy.stats import binom

    counts = [
        pd.Series(correct).groupby(pd.Series(group, dtype=object)).agg(["size", "sum"]).assign(kind=kind)
        for kind, group in names.items()
    ]
    table = pd.concat(counts).rename_axis("name").reset_index().rename(columns={"size": "images", "sum": "correct"})
    table["p"] = binom.cdf(table["correct"].to_numpy(int), table["images"].to_numpy(int), correct.mean())
    table = table.sort_values(["p", "kind", "name"], ignore_index=True)
    table["p"] = (table["p"] * np.arange(len(table), 0, -1)).cummax().clip(upper=1)
    return table.loc[table["p"] <= LEVEL, ["kind", "name", "images", "correct", "p"]]


def _labels(table: pd.DataFrame, features: np.ndarray, c: float, seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The suspected wrong labels among all labelled images, also of classes held out of pretraining."""
    rows = np.flatnonzero(table["label"].notna())
    names, labels = np.unique(table["label"].iloc[rows].to_numpy(dtype=str), return_inverse=True)
    probabilities = out_of_fold(features[rows], labels, _fold_groups(table.iloc[rows]), len(names), c, seed)
    checked = ~np.isnan(probabilities).any(1)
    found = wrong_labels(probabilities, labels)
    row, suggested = found["row"].to_numpy(), found["suggested"].to_numpy()
    pairs = zip(probabilities[row, suggested], probabilities[row, labels[row]], strict=True)
    columns = {
        "path": table["path"].to_numpy()[rows[row]],
        "given": names[labels[row]].astype(object),
        "suggested": names[suggested].astype(object),
        "margin": found["margin"].to_numpy(np.float64).round(4),
        "reason": [f"probability {new:.2f} of the suggested label, {old:.2f} of the given one" for new, old in pairs],
    }
    accuracy = (probabilities[checked].argmax(1) == labels[checked]).mean() if checked.any() else None
    return pd.DataFrame(columns).assign(kind="label"), {
        "labels": len(row),
        "unchecked_classes": len(names) - len(np.unique(labels[checked])),
        "probe_accuracy": accuracy if accuracy is None else float(accuracy),
    }


def _near_copies(
    table: pd.DataFrame, main: tuple[Task, Result] | None, p: Evaluate
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The test images with a near copy in train or val, and the linear probe's accuracy without them."""
    pairs = near_copies(table["near_copy"], table["split"].to_numpy(dtype=str))
    row, of = pairs["row"].to_numpy(), pairs["copy_of"].to_numpy()
    path, label = table["path"].to_numpy(), table["label"].to_numpy(dtype=object)
    columns = {
        "path": path[row],
        "given": label[row],
        "suggested": np.where(table["label"].notna().to_numpy()[of] & (label[row] != label[of]), label[of], None),
        "copy_of": path[of],
        "reason": [f"in test, with a near copy in {split}" for split in table["split"].iloc[of]],
    }
    numbers: dict[str, Any] = {"near_copies": len(row)}
    if main and len(row):
        task, result = main
        keep = ~np.isin(task.rows[task.test], row)
        if keep.any():
            truth, group = task.labels[task.test][keep], task.group[task.test][keep]
            predicted = result.predicted["linear_probe"][keep]
            scores, _ = scores_with_intervals(truth, predicted, group, len(task.names), p.bootstrap, p.seed)
            accuracy = {name: scores[name] for name in ("accuracy", "accuracy_low", "accuracy_high")}
            numbers["without_near_copies"] = {"images": int(keep.sum()), **accuracy}
    return pd.DataFrame(columns).assign(kind="near copy"), numbers


def _failing(table: pd.DataFrame, task: Task, result: Result) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The groups, if the dataset has any, and the classes on whose test images the linear probe fails."""
    truth = task.labels[task.test]
    correct = result.predicted["linear_probe"] == truth
    names = {"group": table["group"].to_numpy(dtype=object)[task.rows[task.test]]} if "group" in table else {}
    found = failing(correct, {**names, "class": np.array(task.names, dtype=object)[truth]})
    columns = {
        "kind": found["kind"],
        "given": found["name"],
        "margin": (correct.mean() - found["correct"] / found["images"]).round(4),
        "reason": [
            f"{row.correct} of {row.images} test images right, {correct.mean():.3f} of all; p = {row.p:.1g}"
            for row in found.itertuples()
        ],
    }
    numbers = {"groups": int((found["kind"] == "group").sum()), "classes": int((found["kind"] == "class").sum())}
    return pd.DataFrame(columns), numbers


def _fold_groups(table: pd.DataFrame) -> np.ndarray:
    """A number for each image, the same within a block and for near copies, which may share a wrong label."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    block = pd.factorize(table["block"])[0]
    copy = pd.factorize(table["near_copy"])[0] if "near_copy" in table else np.full(len(table), -1)
    linked, first = copy >= 0, len(block)  # the graph has a node for each block and, from `first` on, for each copy
    links = coo_array(
        (np.ones(linked.sum(), bool), (block[linked], first + copy[linked])), shape=(2 * first, 2 * first)
    )
    return connected_components(links, directed=False)[1][block]


def _folds(labels: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The fold of each image; the groups of each class, by their first image, are dealt out evenly."""
    # scikit-learn's StratifiedGroupKFold is the same in spirit, but takes six seconds for 30,000 groups of 334 classes
    _, first, index = np.unique(group, return_index=True, return_inverse=True)
    fold = np.empty(len(first), int)
    fold[np.lexsort((rng.permutation(len(first)), labels[first]))] = np.arange(len(first)) % FOLDS
    return fold[index]


def _even_sample(rows: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most `FITTED` of the rows, sorted: only classes with more images than the others lose some."""
    drawn = rng.permutation(rows)
    rank = pd.Series(drawn).groupby(labels[drawn]).cumcount().to_numpy()
    return np.sort(drawn[np.argsort(rank, kind="stable")[:FITTED]])
