"""Labels for many images from a few labelled ones, with what a person needs to review them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from simtrail.data import tables
from simtrail.data.sources import Source, place
from simtrail.downstream.head import Fitted, evidence, fit_head, next_to_label
from simtrail.errors import InputError, listed

CHOSEN = "chosen"  # column of a table of labels: not empty for images that were chosen, not drawn at random
NEAREST = 3  # labelled images that are shown as evidence


@dataclass(frozen=True)
class Labels:
    """Labelled images: their files, labels, and groups (of images that are never in two folds).

    `fair` is whether an image was drawn without regard to what it shows, not chosen because it was doubtful.
    """

    sources: list[Source]
    labels: np.ndarray
    groups: np.ndarray
    fair: np.ndarray


def read_labels(path: Path, folders: Sequence[Path] = (), label: str | None = None, group: str | None = None) -> Labels:
    """The labelled images of a table with a column `path` and a column of labels; rows without a label are left out.

    `label` names the column of labels; without it, it is `label` or the only column besides `path` and the group. Paths
    are relative to the table's folder, to one of `folders`, or to the current folder. Without `group`, a column of
    this name, each image is a group. A value in the column `chosen` means that the image was chosen because it was
    doubtful, as by `next_to_label`: it teaches, but the promised error does not rest on it. Raises InputError for
    columns that are missing and files that do not exist.
    """
    table = tables.load_table(path)
    frame = pd.DataFrame(table.rows, columns=table.columns, dtype=object)
    frame = frame.rename(columns={name: "path" for name in frame if name.lower() == "path"})
    others = [name for name in frame if name not in ("path", CHOSEN, group)]
    chosen = label or ("label" if "label" in others else others[0] if len(others) == 1 else None)
    for column, option in (("path", ""), (chosen, "--label"), (group, "--group")):
        if column is None and option == "--label":
            raise InputError(f"{path}: which column has the labels? --label {' or '.join(others) or 'COLUMN'}")
        if column is not None and column not in frame:
            raise InputError(f"{path}: no column {column!r}{f' ({option})' * bool(option)}; it has {listed([*frame])}")
    frame = frame[frame[chosen].notna()]
    sources = [Source(name, place([path.parent, *folders], name)) for name in frame["path"].fillna("")]
    if missing := [source.name for source in sources if not source.path.is_file()]:
        raise InputError(f"{path}: {len(missing)} of its paths name no file: {listed(missing, 3)}")
    if repeated := [name for name, twice in zip(frame["path"], frame["path"].duplicated(), strict=True) if twice]:
        raise InputError(f"{path}: {listed(repeated, 3)}: listed twice; keep one row")
    names = frame[chosen].to_numpy(dtype=str)
    fair = frame[CHOSEN].isna().to_numpy() if CHOSEN in frame else np.ones(len(frame), bool)
    alone = np.array([f"\0{i}" for i in range(len(frame))], dtype=object)  # a group of its own
    groups = alone if group is None else frame[group].where(frame[group].notna(), alone).to_numpy()
    return Labels(sources, names, groups.astype(str), fair)


@dataclass(frozen=True)
class Classified:
    """A head, and what it says of images."""

    fitted: Fitted
    table: pd.DataFrame  # see `classify`
    suggested: list[str]  # paths of the images to label next


def classify(
    paths: Sequence[str] | np.ndarray,
    features: np.ndarray,
    labelled: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    error: float = 0.05,
    suggest: int = 0,
    seed: int = 0,
    fair: np.ndarray | None = None,
) -> Classified:
    """Predictions for the images `paths` with (N, D) `features`, from a head that learns from those in `labelled`.

    `labelled` are rows; `labels`, `groups` and `fair` are theirs (see `fit_head`, which chooses the head and its
    threshold for `error`). The table has a row per image, those without a label first, the most doubtful first:

    - `path`; `predicted`, `probability`: the most probable class; `second`, `second_probability`: the next
    - `use`: whether the prediction may be used, so that at most `error` of all images get a wrong label
    - `nearest_1` … `nearest_3`: the labelled images most like it; `unlike`, 0 to 1: see `evidence`
    - `given`: the label, if there is one; the row is then what the head, which has learned it, says
    - `chosen`: yes for a label that is not `fair`

    `suggest` is the number of unlabelled images to choose as the next to label.
    """
    fitted = fit_head(features[labelled], labels, groups, error, seed=seed, fair=fair)
    head, names = fitted.head, np.array(fitted.head.names, dtype=object)
    probabilities = head.probabilities(features)
    order = np.argsort(-probabilities, 1, kind="stable")
    sure = np.take_along_axis(probabilities, order, 1)
    near, unlike = evidence(features, features[labelled], groups, NEAREST)
    shown = np.array(paths, dtype=object)
    given = pd.Series(None, range(len(paths)), dtype=object)
    given.iloc[labelled] = labels
    chosen = pd.Series(None, range(len(paths)), dtype=object)
    if fair is not None:
        chosen.iloc[labelled[~fair]] = "yes"
    table = pd.DataFrame(
        {
            "path": shown,
            "predicted": names[order[:, 0]],
            "probability": sure[:, 0].round(4),
            "use": sure[:, 0] >= head.threshold,
            "second": names[order[:, 1]],
            "second_probability": sure[:, 1].round(4),
            "unlike": unlike.round(3),
            **{f"nearest_{i + 1}": shown[labelled][near[:, i]] for i in range(near.shape[1])},
            "given": given,
            CHOSEN: chosen,
        }
    )
    free = np.flatnonzero(given.isna())
    suggested = free[next_to_label(probabilities[free], features[free], suggest, seed)] if suggest else []
    table = table.assign(known=given.notna()).sort_values(["known", "probability"], kind="stable")
    return Classified(fitted, table.drop(columns="known").reset_index(drop=True), shown[suggested].tolist())
