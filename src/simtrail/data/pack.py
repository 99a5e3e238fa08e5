"""Packing: every image is decoded and conformed once and stored in shards, of which training reads single rows."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from simtrail.data.manifest import band_crc, in_parallel
from simtrail.data.reading.decoded import Reading
from simtrail.data.reading.readers import decode, open_image, take_bands
from simtrail.data.recipe import Border, Recipe, conform, conform_bands
from simtrail.data.tiles import corners
from simtrail.errors import InputError

SHARD_BYTES = 512 * 2**20
PART = 20_000  # files that are packed before a kill can no longer lose them
SAMPLED, PIXELS = 256, 64  # number of images and of pixels per image in the sample for choosing bands
BORDERS, POINTS = 64, 16  # number of images, and of points at each of their sides, that show what borders are like


class PackedImages:
    """The shards of one `prepare`, as one array of shape (N, bands, size, size) that stays on disk.

    Rows are read from the files, not from a memory map: of a million images, a process would come to hold them all.
    """

    def __init__(self, folder: Path, recipe: Recipe):
        self.recipe = recipe
        shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("images-*.npy"))]
        self._shape: tuple[int, ...] = shards[0].shape[1:] if shards else (0, 0, 0)
        self._dtype: np.dtype = shards[0].dtype if shards else np.dtype(np.uint8)
        self._size = math.prod(self._shape) * self._dtype.itemsize
        self._files = [Path(shard.filename).open("rb", buffering=0) for shard in shards]  # noqa: SIM115 - read later
        self._offsets = [int(shard.offset) for shard in shards]
        self._starts = np.cumsum([0] + [len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """A copy of the given rows, in the given order, in their packed type."""
        indices = np.asarray(indices)
        result = np.empty((len(indices), *self._shape), self._dtype)
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        # where a run of rows begins, which are beside one another in a file
        begin = np.flatnonzero((np.diff(indices, prepend=-2) != 1) | (np.diff(shard, prepend=-1) != 0))
        for first, last in pairwise([*begin, len(indices)]):
            number, size = int(shard[first]), int(last - first) * self._size
            place = self._offsets[number] + int(indices[first] - self._starts[number]) * self._size
            if os.preadv(self._files[number].fileno(), [result[first:last].data.cast("B")], place) != size:
                raise InputError(f"{self._files[number].name}: is incomplete; run the prepare stage again")
        return result


class Packing(NamedTuple):
    images: PackedImages
    moments: np.ndarray  # (N, 2, bands): mean of each band of each image, and mean of its squares, on the 0 to 1 scale
    tiles: pd.DataFrame  # for each packed image the row of its file in the manifest, and its top and left in the file
    blank: int  # number of tiles that were left out, because they are only background


def pack(
    folder: Path, manifest: pd.DataFrame, recipe: Recipe, out: Path, unfinished: Path | None = None, code: str = ""
) -> Packing:
    """Packs a dataset folder into `out`/images-*.npy, in manifest order.

    With `fit: tile` a file has a row per tile, without tiles of only background. Until the end the shards are in a
    folder in `unfinished` (default: in `out`): after a kill, the next call for the same files, recipe and `code`, a
    hash, continues behind the last `PART` files that are complete. Raises InputError if a file has changed since the
    manifest was made.
    """
    unfinished = unfinished or out / "unfinished"
    made_from = manifest[["path", "sha256"]].to_csv(index=False) + recipe.model_dump_json() + code
    work = unfinished / hashlib.sha256(made_from.encode(errors="surrogateescape")).hexdigest()[:16]
    for other in set(unfinished.glob("*")) - {work}:
        shutil.rmtree(other)
    work.mkdir(parents=True, exist_ok=True)
    _open.cache_clear()  # the shards of an earlier call had the same names, but are deleted
    shape = (len(recipe.bands), recipe.size, recipe.size)
    rows = max(1, SHARD_BYTES // (int(np.prod(shape)) * np.dtype(recipe.dtype).itemsize))
    tiles = _tiles(manifest, recipe)
    parts = [np.load(path) for path in sorted(work.glob("moments-*.npy"))]  # of an earlier process
    for number, start in enumerate(range(0, len(tiles), rows) if not parts else ()):
        count = min(rows, len(tiles) - start)
        np.lib.format.open_memmap(_shard(work, number), "w+", recipe.dtype, (count, *shape)).flush()
    firsts = np.searchsorted(tiles["image"], np.arange(len(manifest))).tolist()
    items = list(zip(firsts, manifest["path"], manifest["sha256"], manifest["crc"], strict=True))
    mapped = bool(manifest["crc"].notna().all())
    pack_one = partial(_pack_one, folder, work, recipe, rows)
    remaining = items[len(parts) * PART :]
    advice = "run the check stage again: simtrail check, or dvc repro check"
    packed = in_parallel(pack_one, remaining, "prepare", lambda item: f"{folder / item[1]}: damaged", threads=mapped)
    with closing(packed):  # an error must not wait for the rest
        while results := list(islice(packed, PART)):
            if errors := [error for error in results if isinstance(error, str)]:
                raise InputError("\n".join([*errors[:20], advice]))
            parts.append(np.concatenate(results))
            np.save(work / "part.npy", parts[-1])
            (work / "part.npy").rename(work / f"moments-{len(parts):05d}.npy")
    _open.cache_clear()
    moments, images = np.concatenate(parts), PackedImages(work, recipe)
    for path in work.glob("moments-*.npy"):  # from here on, a kill must begin again: shards are rewritten and moved
        path.unlink()
    kept = np.flatnonzero(~np.isnan(moments).any((1, 2)))
    if len(kept) < len(tiles):
        _without_blank(images, kept, rows, work)
    for shard in work.glob("images-*.npy"):
        shutil.move(shard, out / shard.name)
    shutil.rmtree(unfinished)
    tiles = tiles.iloc[kept].reset_index(drop=True)
    return Packing(PackedImages(out, recipe), moments[kept], tiles, len(moments) - len(kept))


def _tiles(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """For each image to pack: the row of its file in the manifest, and its top and left in the file."""
    sides = zip(manifest["height"], manifest["width"], strict=True)
    of_file = [corners(*side, recipe.size) if recipe.fit == "tile" else [(0, 0)] for side in sides]
    rows = [(row, *corner) for row, found in enumerate(of_file) for corner in found]
    return pd.DataFrame(rows, columns=["image", "top", "left"])


def _without_blank(images: PackedImages, kept: np.ndarray, rows: int, out: Path) -> None:
    """Writes the shards again, with only the kept rows."""
    new = [out / f"kept-{number:04d}.npy" for number in range(-(-len(kept) // rows))]
    for number, path in enumerate(new):
        np.save(path, images.rows(kept[number * rows : (number + 1) * rows]))
    for old in out.glob("images-*.npy"):
        old.unlink()
    for number, path in enumerate(new):
        path.rename(_shard(out, number))


def statistics(moments: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of every band on the 0 to 1 scale, over images with these moments (N, 2, bands)."""
    mean, squares = moments.mean(0)
    std = np.sqrt(np.maximum(squares - mean**2, 0))
    return {"mean": mean.tolist(), "std": np.where(std > 1e-6, std, 1.0).tolist()}  # 1: constant bands become 0


def sample_pixels(
    folder: Path,
    paths: Sequence[str],
    seed: int,
    reading: Reading,
    mask_band: int | None,
    nodata: float | None,
    data_bands: list[int],
) -> np.ndarray:
    """Seeded random pixels (P, C), float64 in the files' units: up to `PIXELS` from each of up to `SAMPLED` images.

    Transparent pixels are left out, and so are pixels outside the mask, and pixels that have `nodata` in all of
    `data_bands`. Raises InputError for a file that can no longer be read, and if no pixel is left.
    """
    rng = np.random.default_rng(seed)
    pixels = []
    for path in rng.permutation(np.array(paths, dtype=object))[:SAMPLED]:
        image, alpha = _opened(folder / path, reading)
        covers = [image[i] > 0 for i in ([-1] if alpha else []) + ([] if mask_band is None else [mask_band])]
        inside = np.logical_and.reduce(covers) if covers else np.ones(image.shape[1:], bool)
        if not inside.any():
            continue
        # whole rows: so that few pages of a line-interleaved file are read
        rows = np.unique(rng.choice(np.flatnonzero(inside.any(1)), 8))
        values = image[: len(image) - alpha, rows][:, inside[rows]].T.astype(np.float64)
        if nodata is not None:
            data = values[:, data_bands]
            values = values[~(np.isnan(data) if np.isnan(nodata) else data == nodata).all(1)]
        pixels.append(rng.permutation(values)[:PIXELS])
    if not sum(map(len, pixels)):
        raise InputError("prepare.mask: no pixel of a training image is inside the mask; repair masks, or set ignore")
    return np.concatenate(pixels)


def usual_border(folder: Path, paths: Sequence[str], seed: int, reading: Reading, needed: int) -> Border:
    """What up to `BORDERS` images show at their borders: the median of the medians of each of them.

    `needed` as in `open_image`. Raises InputError for a file that can no longer be read.
    """
    inner = np.zeros((POINTS, POINTS), bool)
    inner[1:-1, 1:-1] = True
    medians, opaque = [], []
    for path in np.random.default_rng(seed).permutation(np.array(paths, dtype=object))[:BORDERS]:
        image, alpha = _opened(folder / path, reading, needed)
        # of few whole rows: so that few pages of a line-interleaved file are read
        rows, columns = (np.linspace(0, side - 1, POINTS).round().astype(int) for side in image.shape[1:])
        points = np.nan_to_num(image[:, rows][:, :, columns][:, ~inner].astype(np.float64))
        shown = points[-1] > 0 if alpha else np.ones(points.shape[1], bool)
        opaque.append(shown.mean())
        if shown.any():
            medians.append(np.median(points[: len(points) - alpha, shown], 1))
    usual = np.median(medians, 0) if medians else np.zeros(len(points) - alpha)
    return Border(usual, bool(np.mean(opaque) >= 0.5))


def _opened(path: Path, reading: Reading, needed: int | None = None) -> tuple[np.ndarray, bool]:
    """An image, and whether its last band is alpha."""
    try:
        return open_image(path, reading, needed)[:2]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; run the check stage again: simtrail check, or dvc repro check") from None


def _pack_one(
    folder: Path, out: Path, recipe: Recipe, rows: int, item: tuple[int, str, str, np.ndarray | None]
) -> np.ndarray | str:
    """Packs an image into the shards, from a row on; returns its moments (T, 2, bands), or an error message.

    Those of a tile of only background are NaN.
    """
    first, path, sha256, crc = item
    changed = f"{folder / path}: changed since it was checked"
    try:
        if crc is None:
            data = (folder / path).read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                return changed
            packed = conform(decode(data, recipe.reading, recipe.needed).image, recipe)
        else:  # too large to read completely: only the needed bands are checked
            needed = recipe.read_bands + ([] if recipe.mask_band is None else [recipe.mask_band])
            image = open_image(folder / path, recipe.reading).image
            bands = take_bands(image, needed) if len(image) == len(crc) else np.empty((0, 0))
            if [band_crc(band) for band in bands] != [crc[i] for i in needed]:
                return changed
            mask = None if recipe.mask_band is None else bands[-1]
            packed = conform_bands(bands[: len(recipe.read_bands)], mask, None, recipe)
    except OSError as error:
        return f"{folder / path}: {error.strerror or error}"
    except ValueError as error:
        return f"{folder / path}: {error}"
    for number, square in enumerate(packed, first):
        _open(_shard(out, number // rows))[number % rows] = square
    moments = np.array([_moments(square, recipe) for square in packed])
    moments[recipe.blank(packed)] = np.nan
    return moments


def _moments(square: np.ndarray, recipe: Recipe) -> np.ndarray:
    unit = (band / recipe.full_scale for band in square)  # float64, one band at a time to save memory
    return np.array([(x.mean(), np.square(x).mean()) for x in unit]).T


def _shard(out: Path, number: int) -> Path:
    return out / f"images-{number:04d}.npy"


@cache
def _open(shard: Path) -> np.ndarray:
    return np.lib.format.open_memmap(shard, "r+")
