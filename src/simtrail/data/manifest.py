"""The manifest: one row per image with its identity, shape, per-band statistics, labels, and why it can't be used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from simtrail.data.dataset import Dataset
from simtrail.data.readers import decode

_UNREAD = {
    **dict.fromkeys(("sha256", "md5", "dtype")),
    **dict.fromkeys(("bytes", "height", "width", "bands"), 0),
    **dict.fromkeys(("alpha", "readable", "finite", "constant"), False),
    **dict.fromkeys(("min", "max", "mean", "std")),
}


def scan(dataset: Dataset) -> tuple[pd.DataFrame, str]:
    """The manifest of a dataset, and the md5 that identifies its bytes.

    Columns: `path`, `label`, `group`, `split`, `meta.*` (see Dataset.table), `sha256`, `md5`, `bytes`, `height`,
    `width`, `bands` (without alpha), `alpha`, `dtype`, lists `min`, `max`, `mean`, `std` with one value per band,
    `readable`, `finite`, `constant` (one value everywhere), `reason` (why it is unreadable, else null). The md5 is the
    one that DVC gives the folder, computed from the bytes just read, so that it is true whoever calls.
    """
    table = dataset.table()
    rows = in_processes(partial(_scan_file, dataset.folder), table["path"], "check")
    manifest = pd.concat([table, pd.DataFrame(rows)], axis=1)
    others = {path: _md5(dataset.folder / path) for path in dataset.files()[1]}
    hashes = others | {p: h for p, h in zip(manifest["path"], manifest["md5"], strict=True) if h}
    tree = [{"md5": hashes[path], "relpath": path} for path in sorted(hashes)]
    return manifest, hashlib.md5(json.dumps(tree, sort_keys=True).encode()).hexdigest() + ".dir"


def in_processes(function: Callable[[Any], Any], items: Iterable[Any], title: str) -> list[Any]:
    """function(item) for every item, in order, spread over the processor's cores, with a progress bar on a terminal."""
    items = list(items)
    workers = min(len(os.sched_getaffinity(0)), max(1, len(items) // 32))
    if workers == 1:  # few: processes would take longer to start
        return [function(item) for item in items]
    chunk = max(1, min(64, len(items) // (workers * 8)))
    # A server of clean forks: a plain fork would copy locks that threads of this process may hold.
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        done = pool.map(function, items, chunksize=chunk)
        return list(tqdm(done, title, total=len(items), unit="image", disable=None, leave=False))


def _scan_file(folder: Path, relative: str) -> dict[str, Any]:
    path = folder / relative
    row: dict[str, Any] = dict(_UNREAD, reason=None)
    try:
        if not os.path.lexists(path):
            raise ValueError("listed in metadata.csv, but there is no such file")
        if path.is_symlink() and not path.exists():
            raise ValueError(f"broken link to {path.readlink()}")
        if not path.stat().st_mode & 0o444:  # root reads it all the same; nobody else will
            raise ValueError("no permission to read it; chmod +r the file")
        data = path.read_bytes()
        row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}
        image, alpha = decode(data)
    except PermissionError:
        return row | {"reason": "no permission to read it; chmod +r the file"}
    except (ValueError, OSError, MemoryError) as fault:
        return row | {"reason": str(fault) or type(fault).__name__}
    bands = image[:-1] if alpha else image
    statistics = np.array([_statistics(band) for band in bands]).T
    return row | {
        "height": image.shape[1],
        "width": image.shape[2],
        "bands": len(bands),
        "alpha": alpha,
        "dtype": str(image.dtype),
        **{name: values.tolist() for name, values in zip(("min", "max", "mean", "std"), statistics, strict=True)},
        "readable": True,
        "finite": bool(np.isfinite(statistics).all()),
        "constant": bool((statistics[0] == statistics[1]).all()),
    }


def _statistics(band: np.ndarray) -> tuple[float, float, float, float]:
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are findings here, not faults
        return (
            float(band.min()),
            float(band.max()),
            float(band.mean(dtype=np.float64)),
            float(band.std(dtype=np.float64)),
        )


def _md5(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except OSError:
        return ""
