"""Fine-tunes an encoder on labelled images, beside a head on its frozen features: was it worth it?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from simtrail.data.pack import PackedImages
from simtrail.data.stream import conformed
from simtrail.downstream.fine_tune import Labelled, Tuning, fine_tune
from simtrail.downstream.fitting import calibration, fit_head, threshold_for, usual_similarities
from simtrail.downstream.head import Head, softmax
from simtrail.errors import InputError
from simtrail.evaluation.assess import features_of
from simtrail.evaluation.difference import RESAMPLES, Difference, paired
from simtrail.evaluation.scores import Scores, scores_with_intervals
from simtrail.model.encoder import Encoder
from simtrail.training.measure import step_seconds

FOLDS = 5  # of the groups: one tests, one validates, three train
FEWEST = 10  # groups


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned encoder with its head, and the comparison with a head on the frozen encoder."""

    encoder: Encoder
    head: Head
    history: list[dict[str, float]]
    epoch: int  # of the weights
    test: pd.DataFrame  # path, truth, frozen, tuned: the predictions for the test images
    frozen: str  # the kind of the head on frozen features
    scores: Scores  # of the fine-tuned encoder on the test images
    difference: Difference  # of the accuracies, fine-tuned minus frozen, on the test images


def pack_images(paths: Sequence[Path], encoder: Encoder, folder: Path) -> tuple[PackedImages, dict[int, str]]:
    """The images as the encoder takes them, packed into a folder, and why some can't be read, by position.

    Rows of images that can't be read are empty. Raises InputError for encoders that cut images into tiles.
    """
    recipe = encoder.config.recipe
    if recipe.fit == "tile":
        raise InputError("fine-tuning: the encoder cuts images into tiles, whose labels are not known")
    shape = (len(paths), len(recipe.bands), recipe.size, recipe.size)
    packed = np.lib.format.open_memmap(folder / "images-0000.npy", "w+", recipe.dtype, shape)
    errors = {}
    for i, found in enumerate(conformed(paths, recipe)):
        if isinstance(found, str):
            errors[i] = found
        else:
            packed[i] = found[0]
    packed.flush()
    return PackedImages(folder, recipe), errors


def tune(
    encoder: Encoder,
    images: PackedImages,
    labels: np.ndarray,
    groups: np.ndarray,
    paths: Sequence[str],
    epochs: int,
    error: float,
    seed: int = 0,
) -> Tuned:
    """Fine-tunes a copy of the encoder on three fifths of the groups of the packed `images`.

    `labels`, `groups` and `paths` are those of the images. The weights are those of the epoch with the best accuracy on
    the fourth fifth. The last one tests the result, and a head on frozen features that learned from the other four; it
    also decides the threshold for `error`. Raises InputError for fewer than ten groups, or fewer than two classes.
    """
    names, y = np.unique(labels.astype(str), return_inverse=True)
    train, val, test = _split(y, np.unique(groups, return_inverse=True)[1], seed)
    known = np.concatenate([train, val])
    features = features_of(encoder, images)
    frozen = fit_head(features[known], labels[known], groups[known], error, seed=seed).head
    seconds = step_seconds(deepcopy(encoder), ["fp32", "bf16"], images=8)
    tuning = Tuning(epochs, min(seconds, key=lambda name: seconds[name]), seed=seed)
    found = fine_tune(encoder, images, Labelled(train, y[train]), Labelled(val, y[val]), len(names), tuning, print)
    net, linear = found.model[0], found.model[1]
    assert isinstance(net, Encoder)
    assert isinstance(linear, torch.nn.Linear)
    tuned = features_of(net, images)
    arrays = {
        "weights": linear.weight.detach().cpu().numpy().T,
        "bias": linear.bias.detach().cpu().numpy(),
        "seen": tuned[train],
        "usual": usual_similarities(tuned[train], groups[train]),
    }
    logits = tuned @ arrays["weights"] + arrays["bias"]
    heat = calibration(logits[val], y[val])
    p, right = softmax(logits[test] / heat), logits[test].argmax(1) == y[test]
    threshold = threshold_for(p.max(1), right, groups[test], error)
    shown = np.array(paths, dtype=object)
    head = Head("linear", 0.0, [*map(str, names)], arrays, heat, threshold, error, labelled=[*shown[train]])
    before = np.array(frozen.names, dtype=object)[frozen.probabilities(features[test]).argmax(1)]
    table = pd.DataFrame(
        {"path": shown[test], "truth": names[y[test]], "frozen": before, "tuned": names[logits[test].argmax(1)]}
    )
    was, now = ((table[column] == table["truth"]).to_numpy()[:, None] for column in ("frozen", "tuned"))
    group = np.unique(groups[test], return_inverse=True)[1]
    scores, _ = scores_with_intervals(y[test], logits[test].argmax(1), group, len(names), RESAMPLES, seed)
    return Tuned(net, head, found.history, found.epoch, table, frozen.kind, scores, paired(was, now, group))


def _split(labels: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows for training, validation and test; no group is in two of them."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    if len(np.unique(groups)) < FEWEST:
        raise InputError(
            f"labels: images of {len(np.unique(groups))} groups: fine-tuning needs at least {FEWEST}; label images of "
            "more groups, or use simtrail classify"
        )
    kind = StratifiedGroupKFold if np.bincount(labels).max() >= FOLDS else GroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer groups than folds
        folds = [held for _, held in kind(FOLDS, shuffle=True, random_state=seed).split(labels, labels, groups)]
    return np.sort(np.concatenate(folds[2:])), folds[1], folds[0]
