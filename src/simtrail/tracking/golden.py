"""Golden images: made by a rule, with the features that an encoder gave for them when it was registered.

    python -m simtrail.tracking.golden FOLDER

prints how far the features of today are from these. A registered encoder runs this with the code that it carries.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from simtrail.data.recipe import Recipe
from simtrail.model import GOLDEN, MANIFEST
from simtrail.model.encoder import Encoder

IMAGES = 4
STEPS = 2**12  # different values that the rule gives


def golden_images(recipe: Recipe) -> np.ndarray:
    """Images (4, C, H, W) as files have them, higher than wide, of the recipe's type and range; no two are equal.

    Only whole numbers decide the pattern, so that every machine makes the same one.
    """
    height, width = recipe.size + recipe.size // 4, recipe.size
    low, high = np.zeros(recipe.file_bands), np.ones(recipe.file_bands)
    low[recipe.read_bands], high[recipe.read_bands] = recipe.low, recipe.high
    dtype = np.dtype(recipe.file_dtype)
    whole = dtype.kind in "ui"
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    inside = (x + y) % (height // 2) > height // 8
    images = np.zeros((IMAGES, recipe.file_bands + recipe.alpha, height, width), dtype)
    for i, image in enumerate(images):
        for band in range(recipe.file_bands):
            pattern = x * x * (1 + i) + y * y * (2 + band % 5) + x * y * (i % 3) + 97 * band + 571 * i
            value = low[band] + pattern * 256 // (height * width) * 16 % STEPS * (high - low)[band] / (STEPS - 1)
            image[band] = np.rint(value) if whole else value
        if recipe.mask_band is not None:
            image[recipe.mask_band] = inside
        if recipe.alpha:
            image[-1] = inside * (np.iinfo(dtype).max if whole else 1)
    return images


def seal(encoder: Encoder, folder: Path) -> None:
    """Writes golden.safetensors, and files.json with the sha256 of every other file in the folder of an encoder."""
    features = np.ascontiguousarray(golden_features(encoder))  # safetensors writes the memory as it lies
    save_file({"features": features}, folder / GOLDEN)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    (folder / GOLDEN).chmod(0o644)  # safetensors makes it unreadable for others
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")


def golden_features(encoder: Encoder) -> np.ndarray:
    """The features of the golden images, on the CPU."""
    device = encoder.device
    try:
        return encoder.to("cpu").embed(golden_images(encoder.config.recipe)).to_numpy()
    finally:
        encoder.to(device)


def difference(folder: Path) -> float:
    """The largest difference of a golden feature of today from the stored one, as a fraction of the largest feature."""
    expected = load_file(folder / GOLDEN)["features"]
    return float(np.abs(golden_features(Encoder.load(folder)) - expected).max() / np.abs(expected).max())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    print(json.dumps({"difference": difference(Path(sys.argv[1])), "torch": torch.__version__}))
