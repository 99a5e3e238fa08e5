"""The image files that a user means: by folders, files, lists, tables and patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from simtrail.data import tables
from simtrail.data.reading.readers import SUFFIXES, image_of, walk
from simtrail.errors import InputError, listed

LISTS = (".txt", ".lst")  # a path per line
TABLES = tuple(suffix for suffix in tables.SUFFIXES if suffix not in LISTS)


class Source(NamedTuple):
    """An image file, and its name for the user: the path as it was given, or as the list or table has it.

    Files of two tables that have the same name there are named by their paths.
    """

    name: str
    path: Path


def image_files(given: str | Path | Sequence[str | Path]) -> list[Source]:
    """The image files that paths mean, each once, in the order of the paths.

    A path is a folder (with its subfolders, without hidden ones), an image, a list (.txt, a path per line), a table
    (.csv, .tsv, .xlsx, .parquet, with a column `path`), or a pattern such as `photos/*.jpg`. Paths in a list or table
    are relative to its folder, to images/ in it, or to the current folder. Files that are listed but do not exist are
    in the result; reading them tells. Raises InputError for a path that does not exist or has no image in it, and for a
    table without a column `path`.
    """
    given = [given] if isinstance(given, str | Path) else given
    found: dict[Path, Source] = {}
    for path in given:
        for source in _of_path(str(path)):
            found.setdefault(source.path, source)
    names = Counter(source.name for source in found.values())
    return [Source(str(s.path), s.path) if names[s.name] > 1 else s for s in found.values()]


def _of_path(text: str) -> list[Source]:
    path = Path(text)
    if path.is_dir():
        return _of_folder(path)
    suffix = path.suffix.lower()
    if suffix in LISTS + TABLES and path.is_file():
        names = _of_list(path) if suffix in LISTS else _of_table(path)
        return [Source(name, place([path.parent], name)) for name in map(str.strip, names) if name]
    if has_magic(text) and not path.exists():
        files = [Path(match) for match in sorted(glob(text, recursive=True))]  # noqa: PTH207 - takes absolute patterns
        if images := [Source(str(file), file) for file in files if file.is_file() and image_of(file) == file]:
            return images
        raise InputError(f"{text}: no image fits this pattern")
    if not path.exists():
        raise InputError(f"{text}: no such file or folder")
    return [Source(text, path)]


def _of_folder(folder: Path) -> list[Source]:
    files = (file for file in walk(folder, links=True) if image_of(file) == file)
    visible = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not visible:
        raise InputError(f"{folder}: no image in it; files must end in {', '.join(sorted(SUFFIXES))}")
    return [Source(str(file), file) for file in visible]


def _of_list(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()  # names of files may be any bytes


def _of_table(path: Path) -> list[str]:
    table = tables.load_table(path)
    names = [name.lower() for name in table.columns]
    if "path" not in names:
        raise InputError(f"{path}: no column 'path'; it has {listed(table.columns)}; name the column of the files path")
    return [row[names.index("path")] or "" for row in table.rows]


def place(folders: Sequence[Path], name: str) -> Path:
    """The file that a path in a list or table means: in one of the folders, in images/ in it, or in the current folder.

    In the first folder if it is nowhere.
    """
    path = name.replace("\\", "/")
    inside = [part for folder in folders for part in (folder / path, folder / "images" / path)]
    return next((file for file in [*inside, Path(path)] if file.exists()), inside[0])
