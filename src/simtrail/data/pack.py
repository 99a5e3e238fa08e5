"""Packing: every image decoded and conformed once, into shards that are read by memory map."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from simtrail.data.manifest import band_crc, in_processes
from simtrail.data.readers import decode, open_image, take
from simtrail.data.recipe import Recipe, conform, conform_bands
from simtrail.errors import InputError

SHARD_BYTES = 512 * 2**20
BLOCK = 2**22  # values looked at at once
SAMPLED, PIXELS = 256, 64  # images, and pixels of each, that bands are chosen by


class PackedImages:
    """The shards of one `prepare`, as one array of shape (N, bands, size, size) that stays on disk."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.recipe = recipe
        self.shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("images-*.npy"))]
        self._starts = np.cumsum([0] + [len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """A copy of the given rows, in the given order, in their packed type."""
        if len(self.shards) == 1:
            return self.shards[0][indices]
        result = np.empty((len(indices), *self.shards[0].shape[1:]), self.shards[0].dtype)
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(shard):
            here = shard == number
            result[here] = self.shards[number][indices[here] - self._starts[number]]
        return result


def pack(folder: Path, manifest: pd.DataFrame, recipe: Recipe, out: Path) -> PackedImages:
    """The packed images of a dataset folder, one row per manifest row, written to `out`/images-*.npy.

    Raises InputError when a file's bytes are no longer those the manifest records.
    """
    _open.cache_clear()  # shards of an earlier call are files that are gone, though their names are the same
    shape = (len(recipe.bands), recipe.size, recipe.size)
    rows = max(1, SHARD_BYTES // (int(np.prod(shape)) * np.dtype(recipe.dtype).itemsize))
    for number, start in enumerate(range(0, len(manifest), rows)):
        count = min(rows, len(manifest) - start)
        np.lib.format.open_memmap(_shard(out, number), "w+", recipe.dtype, (count, *shape)).flush()
    items = list(zip(range(len(manifest)), manifest["path"], manifest["sha256"], manifest["crc"], strict=True))
    faults = in_processes(partial(_pack_one, folder, out, recipe, rows), items, "prepare")
    if changed := [fault for fault in faults if fault]:
        raise InputError("\n".join(changed[:20]) + "\nrun the check stage again: dvc repro check")
    return PackedImages(out, recipe)


def statistics(images: PackedImages, rows: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of every band over the given images, on the 0 to 1 scale, in float64."""
    recipe = images.recipe
    total, squares = np.zeros((2, len(recipe.bands)))
    at_once = max(1, BLOCK // (len(recipe.bands) * recipe.size**2))
    for start in range(0, len(rows), at_once):
        values = images.rows(rows[start : start + at_once]).astype(np.float64) / recipe.full_scale
        total += values.mean((2, 3)).sum(0)
        squares += np.einsum("nchw,nchw->c", values, values) / recipe.size**2
    mean = total / len(rows)
    std = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
    return {"mean": mean.tolist(), "std": np.where(std > 1e-6, std, 1.0).tolist()}  # a constant band stays at zero


def sample_pixels(folder: Path, paths: Sequence[str], seed: int) -> np.ndarray:
    """(P, C) float64 values, in the files' own units, of `PIXELS` seeded pixels in each of `SAMPLED` seeded images."""
    rng = np.random.default_rng(seed)
    pixels = []
    for path in rng.permutation(np.array(paths, dtype=object))[:SAMPLED]:
        image, alpha, _ = open_image(folder / path)
        _, height, width = image.shape
        rows = np.unique(rng.integers(0, height, 8))  # of whole rows: in a line-interleaved file few pages are read
        at = rng.choice(len(rows) * width, min(PIXELS, len(rows) * width), replace=False)
        pixels.append(image[: len(image) - alpha, rows].reshape(len(image) - alpha, -1)[:, at].T.astype(np.float64))
    return np.concatenate(pixels)


def _pack_one(
    folder: Path, out: Path, recipe: Recipe, rows: int, item: tuple[int, str, str, np.ndarray | None]
) -> str | None:
    number, path, sha256, crc = item
    try:
        if crc is None:
            data = (folder / path).read_bytes()
            image, same = decode(data).image, hashlib.sha256(data).hexdigest() == sha256
            packed = conform(image, recipe) if same else None
        else:  # too large to read whole: the bands that are needed are looked at
            needed = recipe.read + ([] if recipe.mask_band is None else [recipe.mask_band])
            bands = take(open_image(folder / path).image, needed)
            same = [band_crc(band) for band in bands] == [crc[i] for i in needed]
            mask = None if recipe.mask_band is None else bands[-1]
            packed = conform_bands(bands[: len(recipe.read)], mask, None, recipe) if same else None
    except OSError as fault:
        return f"{folder / path}: {fault.strerror or fault}"
    except (ValueError, IndexError):
        packed = None
    if packed is None:
        return f"{folder / path}: changed since it was checked"
    _open(_shard(out, number // rows))[number % rows] = packed
    return None


def _shard(out: Path, number: int) -> Path:
    return out / f"images-{number:04d}.npy"


@cache
def _open(shard: Path) -> np.ndarray:
    return np.lib.format.open_memmap(shard, "r+")
