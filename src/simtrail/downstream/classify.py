"""Labels for many images from a few labelled ones, with what a person needs to review them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from simtrail.data import tables
from simtrail.data.sources import Source, image_files, place
from simtrail.downstream.fitting import Fitted, fit_head, next_to_label
from simtrail.downstream.head import TARGETS, Target
from simtrail.errors import InputError, listed

CHOSEN = "chosen"  # column of a table of labels: not empty for images that were chosen, not drawn at random


@dataclass(frozen=True)
class Labels:
    """Labelled images: their files, labels, and groups (of images that are never in two folds).

    `fair` is whether an image was drawn without regard to what it shows, not chosen because it was doubtful; `column`
    is the one of the labels. `table` has all columns of these rows, and `chosen`.
    """

    sources: list[Source]
    labels: np.ndarray  # strings; with the target number, numbers
    groups: np.ndarray
    fair: np.ndarray
    column: str
    table: pd.DataFrame


def read_labels(
    path: Path,
    folders: Sequence[Path] = (),
    label: str | None = None,
    group: str | None = None,
    target: Target = "class",
) -> Labels:
    """The labelled images of a table with a column `path` and a column of labels; rows without a label are left out.

    `path` is a table, or a folder with a metadata.csv, or with a folder of images for each class.
    `label` names the column of labels; without it, it is `label` or the only column besides `path` and the group. Paths
    are relative to the table's folder, to one of `folders`, or to the current folder. Without `group`, a column of
    this name, each image is a group. A value in the column `chosen` means that the image was chosen because it was
    doubtful, as by `next_to_label`: it teaches, but the promised error does not rest on it. Raises InputError for
    columns that are missing, files that do not exist and, with the `target` number, for labels that are none.
    """
    if target not in TARGETS:
        raise InputError(f"--target {target}: must be one of {', '.join(TARGETS)}")
    if path.is_dir():
        path, frame = _of_folder(path)
    else:
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
        raise InputError(
            f"{path}: {len(missing)} of its paths name no file: {listed(missing, 3)}; looked for in "
            f"{listed([str(folder) for folder in (path.parent, *folders)])}: name the folder that they are relative "
            "to, or take these rows out"
        )
    files = pd.Series([source.path.resolve() for source in sources], dtype=object)
    if repeated := [source.name for source, twice in zip(sources, files.duplicated(), strict=True) if twice]:
        raise InputError(f"{path}: {listed(repeated, 3)}: listed twice; keep one row")
    names = frame[chosen].to_numpy(dtype=str)
    if target == "number":
        numbers = pd.to_numeric(frame[chosen], errors="coerce").to_numpy(float)
        if wrong := [f"{str(name)!r}" for name, number in zip(names, numbers, strict=True) if not np.isfinite(number)]:
            raise InputError(f"{path}: column {chosen!r}: no numbers: {listed(wrong, 3)}")
        names = numbers
    fair = frame[CHOSEN].isna().to_numpy() if CHOSEN in frame else np.ones(len(frame), bool)
    alone = np.array([f"\0{i}" for i in range(len(frame))], dtype=object)  # a group of its own
    groups = alone if group is None else frame[group].where(frame[group].notna(), alone).to_numpy()
    table = frame.assign(**{CHOSEN: frame.get(CHOSEN)}).fillna("").astype(str)
    return Labels(sources, names, groups.astype(str), fair, str(chosen), table)


def _of_folder(folder: Path) -> tuple[Path, pd.DataFrame]:
    """A table in the folder, and what it says: metadata.csv or, without one, the names of the folders of images."""
    if (metadata := folder / "metadata.csv").is_file():
        table = tables.load_table(metadata)
        return metadata, pd.DataFrame(table.rows, columns=table.columns, dtype=object)
    inside = folder / "images" if (folder / "images").is_dir() else folder
    names = [source.path.relative_to(inside) for source in image_files(inside)]
    if not all(name.parent.name for name in names):
        raise InputError(f"{folder}: must have a metadata.csv, or a folder of images for each class")
    return inside / "metadata.csv", pd.DataFrame({"path": map(str, names), "label": [n.parent.name for n in names]})


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
    target: Target = "class",
) -> Classified:
    """Predictions for the images `paths` with (N, D) `features`, from a head that learns from those in `labelled`.

    `labelled` are rows; `labels`, `groups` and `fair` are theirs (see `fit_head`, which chooses the head and its
    threshold for `error`). The table has a row per image, those without a label first, the most doubtful first:

    - `path`, and the columns of `Head.predict`
    - `given`: the label, if there is one; the row is then what the head, which has learned it, says
    - `chosen`: yes for a label that is not `fair`

    `suggest` is the number of unlabelled images to choose as the next to label.
    """
    shown = np.array(paths, dtype=object)
    fitted = fit_head(
        features[labelled], labels, groups, error, seed=seed, fair=fair, target=target, paths=shown[labelled]
    )
    given, chosen = pd.Series(None, range(len(paths)), dtype=object), pd.Series(None, range(len(paths)), dtype=object)
    given.iloc[labelled] = labels
    if fair is not None:
        chosen.iloc[labelled[~fair]] = "yes"
    table = fitted.head.predict(features)
    table.insert(0, "path", shown)
    free = np.flatnonzero(given.isna())
    suggested = free[next_to_label(fitted.head.doubt(features[free]), features[free], suggest, seed)] if suggest else []
    sure = table["probability"] if "probability" in table else -table["unlike"]
    table = table.assign(given=given, **{CHOSEN: chosen}).iloc[np.lexsort((sure, given.notna()))]
    return Classified(fitted, table.reset_index(drop=True), shown[suggested].tolist())
