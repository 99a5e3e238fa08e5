"""The manifest: one row per image with its identity, shape, per-band statistics, labels, and why it can't be used."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from simtrail.data.checking.appearance import NO_APPEARANCE, appearance
from simtrail.data.checking.near_copies import near_copies
from simtrail.data.dataset import Dataset
from simtrail.data.reading.decoded import DecodedImage, Reading
from simtrail.data.reading.readers import MAPPED, decode, files_of, open_image

BLOCK = 2**22  # values of an image that are processed at once
_UNREADABLE = {
    **dict.fromkeys(("sha256", "dtype", "facts", "crc", "min", "max", "mean", "std", "saturated")),
    **dict.fromkeys(("bytes", "height", "width", "bands", "constant_bands", "equal_bands"), 0),
    **dict.fromkeys(("alpha", "readable", "finite", "constant", "mask_binary", "empty"), False),
    **dict.fromkeys(("mask_cover",), np.nan),
    **NO_APPEARANCE,
}


def scan(
    dataset: Dataset, max_side: int | None = None, meanwhile: Callable[[], object] = lambda: None
) -> tuple[pd.DataFrame, str]:
    """The manifest of a dataset, and the md5 that identifies its bytes.

    Large images with a side above `max_side` are not decoded; see `open_image`.

    The columns are:
    - `path`, `label`, `group`, `split`, `meta.*` (see Dataset.table), `sha256`, `bytes`
    - `height`, `width`, `bands` (without alpha), `alpha`, `dtype`, `facts` (JSON of BandFacts)
    - `min`, `max`, `mean`, `std`, `saturated` (fraction of pixels at the largest value of an integer type): lists with
      one value per band, computed without the pixels that have no data
    - `crc` (one value per band, only for images read by memory map), `constant_bands` (their number)
    - `readable`, `finite`, `constant` (whether all bands are constant), `reason` (why it is unreadable, else null)
    - `empty` (whether every pixel is transparent, outside the mask or without data), `notes` (decisions in reading it)
    - `darkest`, `brightest`, `sharpness`: see `appearance`; `equal_bands` (number of bands equal to an earlier one)
    - `near_copy` (number of its set of near copies, or null)
    - `mask_cover` (fraction of the image), `mask_binary` (at most two values), if a mask band is declared

    The md5 is the one that DVC gives the folder. It is computed from the bytes just read, not taken from data.dvc, so
    that it is correct even if the data has changed since. `meanwhile` is as for `in_parallel`.
    """
    table, declared = dataset.table(), dataset.declaration
    mask = declared.bands.index(declared.mask) if declared.mask and declared.bands else None
    scan_file = partial(_scan_file, dataset.folder, mask, declared.nodata, declared.reading, max_side)
    columns: dict[str, list[Any]] = {}
    hashes: dict[str, str] = {}
    for row in in_parallel(scan_file, table["path"], "check", _crashed, meanwhile=meanwhile):
        hashes |= row.pop("md5")
        row["facts"] = row["facts"] and sys.intern(row["facts"])  # one text for all files, not one for each
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    manifest = pd.concat([table, pd.DataFrame(columns)], axis=1)
    del columns  # the lists of a million rows
    sets = pd.Series(near_copies(manifest.pop("thumbnail").to_list()), manifest.index, "Int64")
    manifest["near_copy"] = sets.mask(sets < 0)
    return manifest, data_md5(dataset.folder, hashes)


def data_md5(folder: Path, known: Mapping[str, str] = {}) -> str:
    """The md5 that DVC gives a folder; `known` are md5s of files in it, which are then not read."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    hashes = {**known, **{path: _md5(folder / path) for path in files if path not in known}}
    tree = [{"md5": hashes[path], "relpath": path} for path in sorted(hashes)]
    return hashlib.md5(json.dumps(tree, sort_keys=True).encode()).hexdigest() + ".dir"


def file_sha256(path: Path) -> str | None:
    """The sha256 of an image's files, as in the manifest; None if one is missing."""
    sha256 = hashlib.sha256()
    for part in files_of(path):
        if not part.is_file():
            return None
        with part.open("rb") as file:
            while chunk := file.read(2**22):
                sha256.update(chunk)
    return sha256.hexdigest()


def in_parallel(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    title: str,
    crashed: Callable[[Any], Any],
    *,
    threads: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
) -> Generator[Any, None, None]:
    """Yields function(item) for every item, in order, on all processor cores, with a progress bar on a terminal.

    It runs in several processes, because decoders in one process block each other; an item that kills its process, as
    a damaged file can, has the result `crashed(item)`. `threads` uses threads instead, which start faster and are
    enough if NumPy does the work. `meanwhile` is called while the others work.
    """
    items, cores = list(items), len(os.sched_getaffinity(0))
    bar = partial(tqdm, desc=title, total=len(items), unit="image", disable=None, leave=False)
    if threads:
        with ThreadPoolExecutor(min(cores, 8)) as pool:  # more would only wait for the disk; each holds an image
            results = pool.map(function, items)
            meanwhile()
            try:
                yield from bar(results)
            except GeneratorExit:
                pool.shutdown(cancel_futures=True)
                raise
    elif (workers := min(cores, len(items) // 32)) <= 1:  # few items take less time than the start of processes
        yield from map(function, items)
    else:
        yield from bar(_in_processes(function, items, crashed, workers, meanwhile))


def _in_processes(
    function: Callable[[Any], Any],
    items: list[Any],
    crashed: Callable[[Any], Any],
    workers: int,
    meanwhile: Callable[[], object],
) -> Iterator[Any]:
    done, one_by_one = 0, False
    while done < len(items):
        # forkserver, because a plain fork would copy locks that threads of this process may hold
        with ProcessPoolExecutor(1 if one_by_one else workers, mp_context=get_context("forkserver")) as pool:
            chunk = 1 if one_by_one else max(1, min(64, len(items) // (workers * 8)))
            results = pool.map(function, items[done:], chunksize=chunk)
            meanwhile()
            try:
                for result in results:
                    done += 1
                    yield result
            except BrokenProcessPool:
                if one_by_one:  # so it was the next item
                    yield crashed(items[done])
                    done += 1
                one_by_one = not one_by_one
            except GeneratorExit:  # the caller has found an error
                pool.shutdown(cancel_futures=True)
                raise


def band_crc(band: np.ndarray, crc: int = 0) -> int:
    """The CRC-32 of a band's bytes; `crc` is the CRC-32 of the rows above them."""
    return zlib.crc32(np.ascontiguousarray(band).data, crc)


def _scan_file(
    folder: Path, mask: int | None, nodata: float | None, reading: Reading, max_side: int | None, relative: str
) -> dict[str, Any]:
    path = folder / relative
    row: dict[str, Any] = dict(_UNREADABLE, md5={}, reason=None, notes=[])
    try:
        if not os.path.lexists(path):
            raise ValueError("listed in the table, but there is no such file")
        if path.is_symlink() and not path.exists():
            raise ValueError(f"broken link to {path.readlink()}")
        if not path.stat().st_mode & 0o444:  # root can read it nevertheless, other users can't
            raise ValueError("no permission to read it; chmod +r the file")
        image, alpha, facts, notes = _read(folder, path, row, reading, max_side)
    except PermissionError:
        return row | {"reason": "no permission to read it; chmod +r the file"}
    except (ValueError, OSError, MemoryError) as error:
        return row | {"reason": str(error) or type(error).__name__}
    bands = image[:-1] if alpha else image
    mapped = path.suffix.lower() in MAPPED
    missing = facts.nodata if nodata is None else nodata
    statistics, crc = _statistics(bands, missing, mapped)
    if mask is not None and mask < len(bands):
        row |= {"mask_cover": float((bands[mask] > 0).mean()), "mask_binary": len(np.unique(bands[mask])) <= 2}
    varies, good = statistics["min"] < statistics["max"], np.ones(len(bands), bool)
    if facts.good and len(facts.good) == len(bands):
        good = np.array(facts.good)
        statistics["saturated"][~good] = 0  # saturated bad bands are not reported
    checked = good & (np.arange(len(bands)) != (-1 if mask is None else mask))
    return row | {
        "height": image.shape[1],
        "width": image.shape[2],
        "bands": len(bands),
        "alpha": alpha,
        "dtype": str(image.dtype.newbyteorder("=")),
        "facts": facts.model_dump_json(),
        **{name: values.tolist() for name, values in statistics.items()},
        "crc": crc,
        "constant_bands": int((~varies & checked).sum()),
        "readable": True,
        "finite": bool(np.isfinite([statistics[name] for name in ("min", "max", "mean", "std")]).all()),
        "constant": not varies.any(),
        "equal_bands": 0 if reading.grey_as_rgb else _equal_bands(bands, statistics),
        "empty": _is_empty(image, alpha, mask),
        "notes": list(notes),
        **appearance(bands, None if mask is None or mask >= len(bands) else mask),
    }


def _equal_bands(image: np.ndarray, statistics: dict[str, np.ndarray]) -> int:
    """The number of bands that vary and are equal to an earlier band; only bands of equal statistics are compared."""
    first: dict[tuple[float, ...], int] = {}
    keys = zip(*(statistics[name].tolist() for name in ("min", "max", "mean", "std")), strict=True)
    earlier = [(first.setdefault(key, i), i) for i, key in enumerate(keys) if key[0] < key[1]]
    return sum(i != j and np.array_equal(image[i], image[j]) for i, j in earlier)


def _crashed(relative: str) -> dict[str, Any]:
    return dict(_UNREADABLE, md5={}, reason="damaged: the decoder crashed; repair or remove the file", notes=[])


def _is_empty(image: np.ndarray, alpha: bool, mask: int | None) -> bool:
    """Whether no pixel is inside the alpha channel and the mask."""
    covers = ([image[-1]] if alpha else []) + ([image[mask]] if mask is not None and mask < len(image) - alpha else [])
    if len(covers) < 2:
        return bool(covers) and not covers[0].any()
    return not ((covers[0] > 0) & (covers[1] > 0)).any()


def _read(folder: Path, path: Path, row: dict[str, Any], reading: Reading, max_side: int | None) -> DecodedImage:
    """The image of a path; its size and hashes are written to `row` first, so that they are known if decoding fails."""
    if path.suffix.lower() not in MAPPED:
        data = path.read_bytes()
        md5 = {path.relative_to(folder).as_posix(): hashlib.md5(data).hexdigest()}
        row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "md5": md5}
        return decode(data, reading, max_side=max_side)
    sha256 = hashlib.sha256()
    for part in files_of(path):
        md5_of_part = hashlib.md5()
        with part.open("rb") as file:
            while chunk := file.read(2**22):
                sha256.update(chunk)
                md5_of_part.update(chunk)
        row["bytes"] += part.stat().st_size
        row["md5"] = {**row["md5"], part.relative_to(folder).as_posix(): md5_of_part.hexdigest()}
    row["sha256"] = sha256.hexdigest()
    return open_image(path, reading, max_side=max_side)


def _statistics(
    image: np.ndarray, nodata: float | None, with_crc: bool
) -> tuple[dict[str, np.ndarray], list[int] | None]:
    """min, max, mean, std and saturated fraction of every band, and the CRCs, in one pass in the order of the file."""
    bands = len(image)
    if image.dtype == np.uint8 and not with_crc:
        return _statistics_of_counts(image, nodata), None
    low, high = np.full(bands, np.inf), np.full(bands, -np.inf)
    count, total, squares, saturated = np.zeros((4, bands))
    crc = [0] * bands
    # sums relative to the first pixel keep more digits
    origin = np.nan_to_num(image[:, 0, 0].astype(np.float64), posinf=0, neginf=0)
    top = np.iinfo(image.dtype).max if image.dtype.kind in "ui" else None
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # NaN and Inf are reported, not errors
        for span, block in _blocks(image):
            if with_crc:
                for i, band in zip(range(bands)[span], block, strict=True):
                    crc[i] = band_crc(band, crc[i])
            x = block.reshape(len(block), -1)
            if nodata is None:
                low[span], high[span] = np.minimum(low[span], x.min(1)), np.maximum(high[span], x.max(1))
                n_valid: Any = x.shape[1]
            else:
                valid = ~(np.isnan(x) if np.isnan(nodata) else x == nodata)
                low[span] = np.minimum(low[span], np.where(valid, x, np.inf).min(1))
                high[span] = np.maximum(high[span], np.where(valid, x, -np.inf).max(1))
                n_valid = valid.sum(1)
            shifted = x - origin[span, None]
            if nodata is not None:
                shifted[~valid] = 0
            count[span] += n_valid
            total[span] += shifted.sum(1)
            squares[span] += np.einsum("cp,cp->c", shifted, shifted)
            if top is not None:
                saturated[span] += ((x == top) if nodata is None else (x == top) & valid).sum(1)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        result = {"min": low, "max": high, "mean": mean + origin, "std": std, "saturated": saturated / count}
    empty = count == 0  # bands without any data: constant at nodata
    for name in ("min", "max", "mean"):
        result[name][empty] = nodata
    for name in ("std", "saturated"):
        result[name][empty] = 0
    return result, crc if with_crc else None


def _statistics_of_counts(image: np.ndarray, nodata: float | None) -> dict[str, np.ndarray]:
    """What `_statistics` returns, of 8-bit bands, from the number of pixels with each value: several times faster."""
    counts = np.zeros((len(image), 256), np.int64)
    for span, block in _blocks(image):
        counts[span] += [Image.fromarray(band).histogram() for band in block]
    values = np.arange(256.0)
    if nodata is not None:
        counts[:, values == nodata] = 0
    n = counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = counts @ values / n
        std = np.sqrt((counts * np.square(values - mean[:, None])).sum(1) / n)
        saturated = counts[:, -1] / n
    low, high = (counts > 0).argmax(1).astype(float), 255.0 - (counts[:, ::-1] > 0).argmax(1)
    result = {"min": low, "max": high, "mean": mean, "std": std, "saturated": saturated}
    for name, values in result.items():  # bands without any data: constant at nodata
        values[n == 0] = nodata if name in ("min", "max", "mean") else 0
    return result


def _blocks(image: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Contiguous pieces (C', H', W') of an image, in the order of the file, each with the slice of its bands.

    A piece has at most `BLOCK` values, if possible.
    """
    axis = int(np.argmax(np.abs(image.strides))) if image.size else 0
    step = max(1, BLOCK * image.shape[axis] // image.size)
    if axis == 2:  # the rows must stay in order, for the CRC
        axis, step = 1, max(1, BLOCK * image.shape[1] // image.size)
    for start in range(0, image.shape[axis], step):
        span = slice(start, start + step)
        yield (
            (span, np.ascontiguousarray(image[span]))
            if axis == 0
            else (slice(None), np.ascontiguousarray(image[:, span]))
        )


def _md5(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except OSError:
        return ""
