"""The resume state: written whole or not at all, and found again only by the run that wrote it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


class ResumeState:
    """The last state of one training run, in one file named by the run's key.

    The key is a hash of all that decides the result (data, split, parameters, code), so that a changed setting never
    resumes a stale run.
    """

    def __init__(self, folder: Path, key: str):
        self.path = folder / f"{key}.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the stored state; a kill at any moment leaves the old one or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with fresh.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        finally:
            fresh.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The stored state on the CPU, or None when there is none."""
        return torch.load(self.path, map_location="cpu", weights_only=True) if self.path.exists() else None

    def discard(self) -> None:
        """Forgets the state, once the run has ended."""
        self.path.unlink(missing_ok=True)
