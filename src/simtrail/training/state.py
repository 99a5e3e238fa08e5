"""The state of a training run, and its checkpoints: written completely or not at all, read only by the same run."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass
class TrainingState:
    """What a checkpoint contains besides the learner."""

    step: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)  # of the measures of each step of this epoch
    history: list[dict[str, float]] = field(default_factory=list)  # one row per epoch
    best: dict[str, Any] | None = None  # value, epoch and weights of the best validation
    validations_since_best: int = 0

    def add(self, measures: dict[str, torch.Tensor]) -> None:
        """Counts one step and adds its measures to the sums."""
        self.step += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in measures.items()}

    def keep_if_best(self, row: dict[str, float], metric: str | None, encoder: nn.Module) -> None:
        """Copies the encoder's weights if the metric of this validation is higher than ever before."""
        self.validations_since_best += 1
        if metric and (self.best is None or row[metric] > self.best["value"]):
            weights = {k: v.detach().cpu().clone() for k, v in encoder.state_dict().items()}
            self.best = {"value": row[metric], "epoch": int(row["epoch"]), "weights": weights}
            self.validations_since_best = 0

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
