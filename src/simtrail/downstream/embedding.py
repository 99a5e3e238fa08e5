"""The features of any number of image files in a file: memory stays flat, and a killed run goes on where it was."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from simtrail.data.sources import Source
from simtrail.data.vectors import KEY, about_file
from simtrail.data.vectors import about as about_of
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder

BATCH, PART = 64, 16  # images per batch; batches per part, the most that a kill loses
FORMATS = "must end in .parquet, .npy or .csv, or be a folder, for TensorBoard's projector"


def embed_files(
    encoder: Encoder,
    sources: Sequence[Source],
    out: Path,
    origin: dict[str, str],
    modality: str | None = None,
    strict: bool = False,
) -> pd.DataFrame:
    """Writes the features of image files to `out`; returns the files that could not be read: path, reason.

    `out` is a .parquet file (columns `path` and `vector`), a .npy array (with the paths beside it, in .paths.csv), a
    .csv table (`path`, `0` … `width − 1`), or a folder with the two files that TensorBoard's projector takes. `origin`
    says where the encoder comes from; it is stored with how images are prepared and which images these were: in a
    .parquet file itself, else in a .json file beside it. Rejected files are also in .rejected.csv beside it.

    A run that was killed continues: finished parts are in a folder beside `out`, until the file is complete. If `out`
    is complete already, with this encoder and the same files, by their sizes and times, nothing is computed. Raises
    InputError for an unknown format, if no file can be read and, with `strict`, for the first one that can't.
    """
    check_format(out)
    about = {
        **origin,
        "modality": modality or "",
        "images": _fingerprint(sources),
        "recipe": encoder.config.recipe.model_dump_json(),
        "simtrail": version("simtrail"),
    }
    listing = _beside(out, ".rejected.csv")
    if about_of(out) == about:  # an earlier run was complete
        rejected = _rejected([pd.read_csv(listing)] if listing.exists() else [])
        if strict and len(rejected):
            raise InputError(_refusal(*rejected.iloc[0]))
        return rejected
    parts = _parts_folder(out, about)
    size = BATCH * PART
    done = len(list(parts.glob("*.parquet"))) * size
    items = [source.path for source in sources[done:]]
    found = zip(sources[done:], encoder.stream(items, BATCH, modality), strict=True)
    bar = tqdm(found, "embed", len(sources), initial=done, unit="image", disable=None, leave=False)
    rows = _strictly(bar) if strict else iter(bar)
    while part := list(islice(rows, size)):
        _write_part(parts, done // size, part)
        done += len(part)
    rejected = _rejected([table.select(["path", "reason"]).to_pandas().dropna() for table in _tables(parts)])
    if len(rejected) == len(sources):
        shutil.rmtree(parts)
        reasons = "; ".join(f"{row.path}: {row.reason}" for row in rejected.head(3).itertuples())
        raise InputError(f"none of {len(sources)} files can be used, such as {reasons}")
    if strict and len(rejected):  # by an earlier run without --strict
        raise InputError(_refusal(*rejected.iloc[0]))
    whole = parts / "whole"  # moved when complete, so that `out` is never half a file
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    WRITERS[out.suffix.lower()](whole / out.name, parts, about, encoder.width)
    listing.unlink(missing_ok=True)
    if len(rejected):
        rejected.to_csv(whole / listing.name, index=False)
    for file in [path for path in whole.rglob("*") if path.is_file()]:
        place = out.parent / file.relative_to(whole)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
    shutil.rmtree(parts)
    return rejected


def _strictly(found: Iterable[tuple[Source, np.ndarray | str]]) -> Iterator[tuple[Source, np.ndarray | str]]:
    for source, features in found:
        if isinstance(features, str):
            raise InputError(_refusal(source.name, features))
        yield source, features


def _refusal(name: str, reason: str) -> str:
    return f"{name}: {reason}; without --strict, such files are listed and left out"


def check_format(out: Path) -> None:
    """Raises InputError if `embed_files` does not know the format of a file."""
    if out.suffix.lower() not in WRITERS:
        raise InputError(f"{out}: {FORMATS}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: no such folder: {out.parent}; make it first")


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.stem + suffix)


def _parts_folder(out: Path, about: dict[str, str]) -> Path:
    """The folder of finished parts; those of another encoder, of other files or settings are removed."""
    folder = out.with_name(f"{out.name}.parts")
    job = folder / "job.json"
    if not job.exists() or json.loads(job.read_text()) != about:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        job.write_text(json.dumps(about))
    return folder


def _write_part(folder: Path, number: int, part: list[tuple[Source, np.ndarray | str]]) -> None:
    """A part is complete if it has its name: it is written under another one first."""
    table = pa.table(
        {
            "path": [source.name for source, _ in part],
            "vector": pa.array([None if isinstance(f, str) else f for _, f in part], pa.list_(pa.float32())),
            "reason": pa.array([f if isinstance(f, str) else None for _, f in part], pa.string()),
        }
    )
    pq.write_table(table, folder / "unfinished")
    (folder / "unfinished").rename(folder / f"{number:06d}.parquet")


def _fingerprint(sources: Sequence[Source]) -> str:
    """Identifies files by their names, sizes and times of change."""
    stats = ((source.name, source.path.stat() if source.path.exists() else None) for source in sources)
    lines = (f"{name}:{stat.st_size}:{stat.st_mtime_ns}" if stat else name for name, stat in stats)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _rejected(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(columns=["path", "reason"]), *parts], ignore_index=True)


def _tables(parts: Path) -> Iterator[pa.Table]:
    return (pq.read_table(path) for path in sorted(parts.glob("*.parquet")))


def _rows(parts: Path, width: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Paths and features (N, width) of the images of each part that could be read."""
    for table in _tables(parts):
        good = table.filter(table["reason"].is_null())
        yield good["path"].to_pylist(), good["vector"].combine_chunks().values.to_numpy().reshape(-1, width)


def _write_parquet(out: Path, parts: Path, about: dict[str, str], width: int) -> None:
    schema = pa.schema([("path", pa.string()), ("vector", pa.list_(pa.float32()))], metadata={KEY: json.dumps(about)})
    with pq.ParquetWriter(out, schema) as writer:
        for table in _tables(parts):
            good = table.filter(table["reason"].is_null()).select(["path", "vector"])
            writer.write_table(good.cast(schema))


def _write_npy(out: Path, parts: Path, about: dict[str, str], width: int) -> None:
    count = sum(len(names) for names, _ in _rows(parts, width))
    start = 0
    array = np.lib.format.open_memmap(out, "w+", np.float32, (count, width))
    with _beside(out, ".paths.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path"])
        for names, features in _rows(parts, width):
            array[start : start + len(names)] = features
            writer.writerows([name] for name in names)
            start += len(names)
    array.flush()
    _write_about(out, about)


def _write_csv(out: Path, parts: Path, about: dict[str, str], width: int) -> None:
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *range(width)])
        for names, features in _rows(parts, width):
            writer.writerows([name, *row] for name, row in zip(names, features.astype(str), strict=True))
    _write_about(out, about)


def _write_projector(out: Path, parts: Path, about: dict[str, str], width: int) -> None:
    out.mkdir()
    with (out / "tensors.tsv").open("w") as vectors, (out / "metadata.tsv").open("w", encoding="utf-8") as paths:
        for names, features in _rows(parts, width):
            np.savetxt(vectors, features, "%.9g", "\t")
            paths.writelines(f"{name}\n" for name in names)
    _write_about(out, about)


def _write_about(out: Path, about: dict[str, str]) -> None:
    about_file(out).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


WRITERS = {".parquet": _write_parquet, ".npy": _write_npy, ".csv": _write_csv, "": _write_projector}
