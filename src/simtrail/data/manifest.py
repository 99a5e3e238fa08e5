"""The manifest: one row per image with its identity, shape, per-band statistics, labels, and why it can't be used."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from simtrail.data.dataset import Dataset
from simtrail.data.readers import MAPPED, DecodedImage, decode, files_of, open_image

BLOCK = 2**22  # values of an image that are processed at once
_UNREADABLE = {
    **dict.fromkeys(("sha256", "dtype", "facts", "crc", "min", "max", "mean", "std", "saturated")),
    **dict.fromkeys(("bytes", "height", "width", "bands", "constant_bands"), 0),
    **dict.fromkeys(("alpha", "readable", "finite", "constant", "mask_binary"), False),
    **dict.fromkeys(("mask_cover",), np.nan),
}


def scan(dataset: Dataset, meanwhile: Callable[[], object] = lambda: None) -> tuple[pd.DataFrame, str]:
    """The manifest of a dataset, and the md5 that identifies its bytes.

    The columns are:
    - `path`, `label`, `group`, `split`, `meta.*` (see Dataset.table), `sha256`, `bytes`
    - `height`, `width`, `bands` (without alpha), `alpha`, `dtype`, `facts` (JSON of BandFacts)
    - `min`, `max`, `mean`, `std`, `saturated` (fraction of pixels at the largest value of an integer type): lists with
      one value per band, computed without the pixels that have no data
    - `crc` (one value per band, only for images read by memory map), `constant_bands` (their number)
    - `readable`, `finite`, `constant` (whether all bands are constant), `reason` (why it is unreadable, else null)
    - `mask_cover` (fraction of the image), `mask_binary` (at most two values), if a mask band is declared

    The md5 is the one that DVC gives the folder. It is computed from the bytes just read, not taken from data.dvc, so
    that it is correct even if the data has changed since. `meanwhile` is as for `in_parallel`.
    """
    table, declared = dataset.table(), dataset.declaration
    mask = declared.bands.index(declared.mask) if declared.mask and declared.bands else None
    scan_file = partial(_scan_file, dataset.folder, mask, declared.nodata)
    rows = in_parallel(scan_file, table["path"], "check", meanwhile=meanwhile)
    hashes = {path: md5 for row in rows for path, md5 in row.pop("md5").items()}
    manifest = pd.concat([table, pd.DataFrame(rows)], axis=1)
    all_files = (p.relative_to(dataset.folder).as_posix() for p in dataset.folder.rglob("*") if not p.is_dir())
    hashes |= {path: _md5(dataset.folder / path) for path in all_files if path not in hashes}
    tree = [{"md5": hashes[path], "relpath": path} for path in sorted(hashes)]
    return manifest, hashlib.md5(json.dumps(tree, sort_keys=True).encode()).hexdigest() + ".dir"


def in_parallel(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    title: str,
    *,
    threads: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[Any]:
    """function(item) for every item, in order, on all processor cores, with a progress bar on a terminal.

    It runs in several processes, because decoders in one process block each other. `threads` uses threads instead,
    which start faster and are enough if NumPy does the work. `meanwhile` is called while the others work.
    """
    items, cores = list(items), len(os.sched_getaffinity(0))
    if threads:
        pool: Executor = ThreadPoolExecutor(min(cores, 8))  # more would only wait for the disk; each holds an image
    elif (workers := min(cores, len(items) // 32)) > 1:
        # forkserver, because a plain fork would copy locks that threads of this process may hold.
        pool = ProcessPoolExecutor(workers, mp_context=get_context("forkserver"))
    else:  # few items take less time than the start of processes
        return [function(item) for item in items]
    with pool:
        results = pool.map(function, items, chunksize=max(1, min(64, len(items) // (cores * 8))))
        meanwhile()
        return list(tqdm(results, title, total=len(items), unit="image", disable=None, leave=False))


def band_crc(band: np.ndarray, crc: int = 0) -> int:
    """The CRC-32 of a band's bytes; `crc` is the CRC-32 of the rows above them."""
    return zlib.crc32(np.ascontiguousarray(band).data, crc)


def _scan_file(folder: Path, mask: int | None, nodata: float | None, relative: str) -> dict[str, Any]:
    path = folder / relative
    row: dict[str, Any] = dict(_UNREADABLE, md5={}, reason=None)
    try:
        if not os.path.lexists(path):
            raise ValueError("listed in metadata.csv, but there is no such file")
        if path.is_symlink() and not path.exists():
            raise ValueError(f"broken link to {path.readlink()}")
        if not path.stat().st_mode & 0o444:  # root can read it nevertheless, other users can't
            raise ValueError("no permission to read it; chmod +r the file")
        decoded = _read(folder, path, row)
    except PermissionError:
        return row | {"reason": "no permission to read it; chmod +r the file"}
    except (ValueError, OSError, MemoryError) as error:
        return row | {"reason": str(error) or type(error).__name__}
    image, alpha, facts = decoded
    bands = image[:-1] if alpha else image
    mapped = path.suffix.lower() in MAPPED
    statistics, crc = _statistics(bands, facts.nodata if nodata is None else nodata, mapped)
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
    }


def _read(folder: Path, path: Path, row: dict[str, Any]) -> DecodedImage:
    """The image of a path; its size and hashes are written to `row` first, so that they are known if decoding fails."""
    if path.suffix.lower() not in MAPPED:
        data = path.read_bytes()
        md5 = {path.relative_to(folder).as_posix(): hashlib.md5(data).hexdigest()}
        row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "md5": md5}
        return decode(data)
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
    return open_image(path)


def _statistics(
    image: np.ndarray, nodata: float | None, with_crc: bool
) -> tuple[dict[str, np.ndarray], list[int] | None]:
    """min, max, mean, std and saturated fraction of every band, and the CRCs, in one pass in the order of the file."""
    bands = len(image)
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
