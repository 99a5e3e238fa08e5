"""The state of a training run, and its checkpoints: written completely or not at all, read only by the same run."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

SMOOTHED = 3  # validations


@dataclass
class TrainingState:
    """What a checkpoint contains besides the learner."""

    step: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)  # of the measures of each step of this epoch
    history: list[dict[str, float]] = field(default_factory=list)  # one row per epoch
    best: dict[str, Any] | None = None  # the highest value so far; epoch and weights of the validation that is kept
    validations_since_best: int = 0

    def add(self, measures: dict[str, torch.Tensor]) -> None:
        """Counts one step and adds its measures to the sums."""
        self.step += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in measures.items()}

    def keep_if_good(
        self, row: dict[str, float], metric: str | None, encoder: nn.Module, error: Callable[[float], float]
    ) -> None:
        """Copies the encoder's weights unless the metric is more than a standard error below the highest so far.

        So, in the end, the latest of the weights that are about as good as the best are kept: of many validations on
        few images, the highest is so by chance. For the same reason the values are means of `SMOOTHED` validations.
        `error` gives the standard error of a value. The row gets `kept`, 0 or 1. Without a metric, no copy is needed:
        the last weights are kept.
        """
        row["kept"] = 1.0
        if metric is None:
            return
        values = [earlier[metric] for earlier in [*self.history, row] if metric in earlier][-SMOOTHED:]
        value, highest = sum(values) / len(values), self.best["value"] if self.best else -math.inf
        self.validations_since_best = 0 if value > highest else self.validations_since_best + 1
        highest = max(value, highest)
        row["kept"] = float(value >= highest - error(highest))
        if row["kept"]:
            weights = {k: v.detach().cpu().clone() for k, v in encoder.state_dict().items()}
            self.best = {"value": highest, "epoch": int(row["epoch"]), "weights": weights}

    def end_epoch(self, row: dict[str, float]) -> None:
        """Adds an epoch to the history and starts new sums."""
        self.sums, self.history = {}, [*self.history, row]


class Checkpoints:
    """The last `keep` states of one training run, in a folder whose name is the key of the run.

    The key is a hash of everything that affects the result (data, split, parameters, code), so that a run never
    continues from a state with other settings.
    """

    def __init__(self, folder: Path, key: str, keep: int = 2):
        self.folder, self.keep = folder / key, keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Saves the state of a step and removes the oldest; a kill at any moment leaves only complete checkpoints.

        If the file can't be written (disk full), it warns, and training continues with the older checkpoints.
        """
        temporary = self.folder / f"{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / f"step-{step:09d}.pt")
            for old in self._files()[self.keep :]:
                old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # torch turns the OSError of a full disk into a RuntimeError
            temporary.unlink(missing_ok=True)
            warnings.warn(f"no checkpoint of step {step} in {self.folder}: {_one_line(error)}", stacklevel=2)

    def load(self) -> dict[str, Any] | None:
        """The newest readable state, on the CPU, or None; warns of files that can't be read, and removes them."""
        for file in self._files():
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
                warnings.warn(f"{file} can't be read, so an older checkpoint is used: {_one_line(error)}", stacklevel=2)
                file.unlink(missing_ok=True)
        return None

    def __bool__(self) -> bool:
        """Whether there is a state to continue from."""
        return bool(self._files())

    def finish(self) -> None:
        """Marks the run as finished; its last state stays until its results are used, as a kill may still lose them."""
        (self.folder / "finished").touch()

    @staticmethod
    def discard_finished(folder: Path) -> None:
        """Removes the checkpoints of all finished runs."""
        for marker in folder.glob("*/finished"):
            shutil.rmtree(marker.parent, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
