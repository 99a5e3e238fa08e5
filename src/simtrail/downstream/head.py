"""What a few labelled images taught: classes, tags or numbers from features, and where the answer is not sure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from simtrail.errors import InputError
from simtrail.evaluation.classifiers import knn_probabilities, nearest
from simtrail.model import HEAD, HEAD_CONFIG

Kind = Literal["linear", "svc", "knn"]
Target = Literal["class", "tags", "number"]  # what a label is: one class, several or no tags, or a number
KINDS: tuple[Kind, ...] = get_args(Kind)
TARGETS: tuple[Target, ...] = get_args(Target)
SEPARATOR, NO_TAG = ";", "-"  # of tags in a label; the label of an image without any
KNN_TEMPERATURE = 0.07
ROWS = 2_000  # images that are compared with all others at a time
SMALLEST = 1e-6  # probability of a class without votes
UNLIKE = 0.95  # above it, an image is unlike everything labelled
NEAREST = 3  # labelled images that are shown as evidence


@dataclass(frozen=True)
class Head:
    """Predictions from features (N, D)."""

    kind: Kind
    strength: float  # C of linear and svc, k of knn
    names: list[str]  # of the classes or tags, or of the number
    arrays: dict[str, np.ndarray]
    temperature: float = 1.0  # that divides the scores, so that probabilities are calibrated
    threshold: float = 0.0  # predictions with a lower probability are not to be used; of a number: half its interval
    error: float = 1.0  # the promised rate of wrong predictions, see `threshold_for`
    about: dict[str, str] = field(default_factory=dict)  # where the encoder comes from
    target: Target = "class"
    labelled: list[str] = field(default_factory=list)  # paths of the images that it learned from, if they are known

    def scores(self, features: np.ndarray) -> np.ndarray:
        """The (N, classes or tags) logits, margins, or logarithms of votes; of numbers their (N, 1) values."""
        a = self.arrays
        if self.kind == "linear":
            return features @ a["weights"] + a["bias"]
        if self.kind == "svc":
            return kernel(features, a["bank"], float(a["width"][0])) @ a["weights"] + a["bias"]
        k = min(int(self.strength), len(a["bank"]))
        if self.target == "class":
            votes = knn_probabilities(a["bank"], a["labels"], features, k, KNN_TEMPERATURE, len(self.names))
            return np.log(np.maximum(votes, SMALLEST))
        means = _neighbours_mean(a["bank"], a["labels"], features, k)
        if self.target == "number":
            return means
        votes = means.clip(SMALLEST, 1 - SMALLEST)
        return np.log(votes / (1 - votes))

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """The (N, classes or tags) calibrated probabilities."""
        return probabilities(self._in_parts(features), self.target, self.temperature)

    def predict(self, features: np.ndarray) -> pd.DataFrame:
        """A row per image, with these columns:

        - of a class: `predicted`, `probability`: the most probable class; `use`: whether the prediction may be used, so
          that at most `error` of all images get a wrong label, and is not `UNLIKE` everything labelled; `second`,
          `second_probability`: the next class
        - of tags: `predicted`: those that an image has, with `;` between them, or `-`; `probability`: of the least
          certain decision; `use`: whether all decisions are certain; `unsure`: the tags that are not decided; and a
          column for the probability of each tag. At most `error` of all decisions are used and wrong
        - of a number: `predicted`, `low`, `high`: the interval has the number in at least 1 − `error` of all images
        - `nearest_1` … `nearest_3`: the labelled images most like it; `unlike`, 0 to 1: see `evidence`
        """
        scores = self._in_parts(features)
        table = {"class": self._classes, "tags": self._tags, "number": self._numbers}[self.target](scores)
        if not self.labelled:
            return table
        rows, unlike = self.evidence(features)
        if "use" in table:
            table["use"] &= unlike <= UNLIKE  # it may be of a class that nobody has labelled
        paths = np.array(self.labelled, dtype=object)
        near = {f"nearest_{i + 1}": paths[rows[:, i]] for i in range(rows.shape[1])}
        return table.assign(unlike=unlike.round(3), **near)

    def doubt(self, features: np.ndarray) -> np.ndarray:
        """How little is known of each image, (N,), 0 to 1.

        1 − the difference of its two largest probabilities; for tags the mean of 1 − |2p − 1|; for numbers `unlike`.
        """
        if self.target == "number":
            return self.evidence(features)[1]
        p = self.probabilities(features)
        if self.target == "tags":
            return 1 - np.abs(2 * p - 1).mean(1)
        two = np.sort(p, 1)[:, -2:]
        return 1 - (two[:, 1] - two[:, 0])

    def evidence(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows (N, k) of the labelled images nearest to each image, and how unlike all of these it is (N,), 0 to 1.

        Unlike is the fraction of the labelled images that are nearer to a labelled image of another group than the
        image is to its nearest one, by the cosine of features: 0.99 means that the image is unlike anything labelled.
        """
        seen, usual = self.arrays["seen"], self.arrays["usual"]
        rows = nearest(seen, features, min(NEAREST, len(seen)))
        closest = (unit(features) * unit(seen)[rows[:, 0]]).sum(1)
        return rows, 1 - np.searchsorted(usual, closest, side="right") / len(usual)

    def save(self, folder: Path) -> None:
        """Writes head.safetensors and head.json."""
        save_file({name: np.ascontiguousarray(values) for name, values in self.arrays.items()}, folder / HEAD)
        (folder / HEAD).chmod(0o644)  # safetensors makes it unreadable for others
        tree = {name: value for name, value in vars(self).items() if name != "arrays"}
        tree["threshold"] = self.threshold if math.isfinite(self.threshold) else None  # JSON has no infinity
        (folder / HEAD_CONFIG).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Head:
        """The head saved in a folder. Raises InputError if there is none."""
        try:
            tree = json.loads((folder / HEAD_CONFIG).read_text(encoding="utf-8"))
            threshold = math.inf if tree["threshold"] is None else tree["threshold"]
            return cls(arrays=load_file(folder / HEAD), **tree | {"threshold": threshold})
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{folder}: no head, or a damaged one: {' '.join(str(error).split())[:200]}") from None

    def _in_parts(self, features: np.ndarray) -> np.ndarray:
        parts = np.array_split(features, len(features) // ROWS + 1)  # for kernels with many images
        return np.concatenate([self.scores(part) for part in parts])

    def _classes(self, scores: np.ndarray) -> pd.DataFrame:
        p, names = probabilities(scores, self.target, self.temperature), np.array(self.names, dtype=object)
        order = np.argsort(-p, 1, kind="stable")
        sure = np.take_along_axis(p, order, 1)
        return pd.DataFrame(
            {
                "predicted": names[order[:, 0]],
                "probability": sure[:, 0].round(4),
                "use": sure[:, 0] >= self.threshold,
                "second": names[order[:, 1]],
                "second_probability": sure[:, 1].round(4),
            }
        )

    def _tags(self, scores: np.ndarray) -> pd.DataFrame:
        p, names = probabilities(scores, self.target, self.temperature), np.array(self.names, dtype=object)
        sure = np.maximum(p, 1 - p)
        known = sure >= self.threshold
        return pd.DataFrame(
            {
                "predicted": [SEPARATOR.join(names[has]) or NO_TAG for has in (p >= 0.5) & known],
                "probability": sure.min(1).round(4),
                "use": known.all(1),
                "unsure": [SEPARATOR.join(names[row]) for row in ~known],
                **{f"probability of {name}": p[:, i].round(4) for i, name in enumerate(names)},
            }
        )

    def _numbers(self, scores: np.ndarray) -> pd.DataFrame:
        values, half = scores[:, 0].astype(np.float64), self.threshold
        table = pd.DataFrame({"predicted": values, "low": values - half, "high": values + half})
        return table.map(lambda value: float(f"{value:.6g}"))


def probabilities(scores: np.ndarray, target: Target, temperature: float) -> np.ndarray:
    """Of classes, that exclude one another, or of tags, that do not; both (N, names)."""
    logits = scores / temperature
    return softmax(logits) if target == "class" else 1 / (1 + np.exp(-logits.clip(-50, 50)))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities that are proportional to the exponentials of the scores of a row."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def kernel(features: np.ndarray, bank: np.ndarray, width: float) -> np.ndarray:
    """exp(−d² / width) for features and a bank at unit length: no image is so far away that all others are alike."""
    return np.exp(-np.maximum(2 - 2 * unit(features) @ bank.T, 0) / width)


def unit(features: np.ndarray) -> np.ndarray:
    """The features at unit length; those of length 0 stay."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def _neighbours_mean(bank: np.ndarray, values: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    """The mean (N, K) of the values (M, K) of the k nearest, with the weights of `knn_probabilities`."""
    rows = nearest(bank, features, k)
    cosine = np.einsum("nd,nkd->nk", unit(features), unit(bank)[rows])
    return np.einsum("nk,nkc->nc", softmax(cosine / KNN_TEMPERATURE), values[rows])
