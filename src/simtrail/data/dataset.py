"""A dataset on disk: the folder data/<name> with images/**, and optionally a table metadata.* and dataset.yaml."""

from __future__ import annotations

import math
import re
import unicodedata
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from simtrail.data import tables
from simtrail.data.reading.decoded import BandFacts, Choices, Reading
from simtrail.data.reading.readers import SUFFIXES, image_of, walk
from simtrail.errors import InputError, listed
from simtrail.params import parse, read_yaml
from simtrail.schema import Field, model_validator

if TYPE_CHECKING:
    import pandas as pd  # slow to import

SPLITS = ("train", "val", "test")
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_KNOWN = {"path", "split"}  # columns with a meaning, whose names may have capital letters
_LABELS = ("label", "labels", "class", "species", "category", "taxon", "genus")


class Declaration(Choices):
    """The contents of dataset.yaml; every key is optional."""

    modality: Literal["grey", "rgb", "multispectral", "hyperspectral"] | None = None
    bands: list[str] | None = Field(None, min_length=1)
    wavelengths: list[float | None] | None = None  # nm, one per band
    modalities: dict[str, list[str]] | None = None  # group (rgb, uv, …) → names of its bands
    mask: str | None = None  # the band that is 0 on the background
    nodata: float | None = None  # the value of pixels without data, which are background
    scale: float | None = Field(None, gt=0)  # the value that means reflectance 1; instead of gains in the files
    label: str | None = None  # column of metadata.csv
    group: str | None = None  # column of metadata.csv; all images of a group are in the same part of a split

    @model_validator(mode="after")
    def _consistent(self) -> Declaration:
        if self.wavelengths is not None and len(self.wavelengths) != len(self.bands or ()):
            raise ValueError(
                f"wavelengths: {len(self.wavelengths)} values for {len(self.bands or ())} bands; give one per band"
            )
        if invalid_nm := [nm for nm in self.wavelengths or [] if nm is not None and not 0 < nm < math.inf]:
            raise ValueError(f"wavelengths: {invalid_nm[0]}: must be > 0 nm, or null for a band without one")
        if self.mask is not None and self.mask not in (self.bands or ()):
            raise ValueError(
                f"mask = {self.mask!r}: must be one of bands: {', '.join(self.bands or ['none declared'])}"
            )
        if invalid := [name for name in self.modalities or {} if not re.fullmatch(r"[\w. -]+", name)]:
            raise ValueError(f"modalities: {invalid[0]!r}: a name has only letters, digits, '_', '-', '.' and spaces")
        repeated = [name for i, name in enumerate(self.bands or []) if name in (self.bands or [])[:i]]
        if repeated:
            raise ValueError(f"bands: {repeated[0]!r} is listed twice; give every band a different name")
        return self

    @property
    def reading(self) -> Reading:
        """How the files are read."""
        return Reading(**{key: getattr(self, key) for key in Choices.model_fields}, count=len(self.bands or ()) or None)

    def completed(self, facts: BandFacts) -> Declaration:
        """This declaration, completed with the facts in the files for keys that dataset.yaml does not set."""
        values = {"bands": facts.names, "wavelengths": facts.wavelengths, "nodata": facts.nodata, "scale": facts.scale}
        return self.model_copy(update={key: value for key, value in values.items() if getattr(self, key) is None})


class Dataset:
    """A dataset folder, with its declaration and the table of its images."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise InputError(missing_data(folder))
        self.folder = folder
        yaml_file = folder / "dataset.yaml"
        tree = read_yaml(yaml_file.read_bytes(), yaml_file) if yaml_file.exists() else {}
        self.declaration = parse(Declaration, tree, yaml_file)
        self.notes: list[str] = []  # decisions in reading the table

    @property
    def sheet(self) -> Path | None:
        """The table of the images, metadata.csv or another format; None if there is none."""
        sheets = sorted(path for path in self.folder.iterdir() if tables.is_table(path))
        if len(sheets) > 1:
            names = " and ".join(path.name for path in sheets)
            raise InputError(f"{self.folder}: has {names}, of which only one can be the table; remove the others")
        return sheets[0] if sheets else None

    def files(self) -> tuple[list[str], list[str]]:
        """The image files under images/, and all other files: two sorted lists of paths relative to the folder.

        An ENVI image is listed by its header; its data file is in neither list. Hidden files are no images. Raises
        InputError for a link to a folder, because DVC does not version its files.
        """
        images: list[str] = []
        other_files: list[str] = []
        for path in walk(self.folder):
            if path.is_dir():
                raise InputError(
                    f"{path}: a link to a folder, whose files DVC does not version; replace it by a copy of the folder"
                )
            relative = path.relative_to(self.folder).as_posix()
            hidden = "/." in relative  # such as ._a.jpg of a Mac, or .ipynb_checkpoints
            image = image_of(path) if relative.startswith("images/") and not hidden else None
            if image in (None, path):
                (images if image else other_files).append(relative)
        return images, other_files

    def table(self) -> pd.DataFrame:
        """One row per image: `path`, `label`, `group`, `split` (null if unknown), then `meta.*` as in the table.

        The rows are all image files, and all rows of metadata.csv, even if their file does not exist. Without
        metadata.csv, the label is the name of the first folder below images/, or of the first folder below
        images/train, images/val and images/test if the images are stored by a fixed split.
        """
        images, _ = self.files()
        table = self._from_metadata(self.sheet, images) if self.sheet else self._from_folders(images)
        if table.empty:
            raise InputError(
                f"{self.folder}/images: no image; it must hold files ending in {', '.join(sorted(SUFFIXES))}"
            )
        return table.sort_values("path", ignore_index=True)

    def unused_labels(self, table: pd.DataFrame) -> str | None:
        """What to do to use the labels of a dataset that has a table and declares none; None if there are none."""
        if self.sheet is None or self.declaration.label:
            return None
        columns = [name for name in table if name.startswith("meta.") and name != "meta.split"]
        columns = [name for name in columns if 2 <= table[name].nunique() <= len(table) / 2]
        columns = [name.removeprefix("meta.") for name in columns if name != f"meta.{self.declaration.group}"]
        folders = {path.split("/")[1] for path in table["path"] if path.count("/") > 1}
        if not columns:
            found = "class folders are not labels if there is a table" if len(folders) > 1 else None
            return found and f"{found}: add a column with the labels to {self.sheet}, or remove it"
        usual = next((name for name in columns if name.lower() in _LABELS), columns[0])
        folder_note = "; the class folders are not used either" if len(folders) > 1 else ""
        return (
            f"no labels are used: {self.sheet.name} has the column{'s' * (len(columns) > 1)} {listed(columns)}"
            f"{folder_note}; to use one: echo 'label: {usual}' >> {self.folder}/dataset.yaml"
        )

    def _from_folders(self, images: list[str]) -> pd.DataFrame:
        import pandas as pd

        parts = [path.split("/")[1:] for path in images]
        fixed = bool(parts) and all(len(names) > 1 and names[0].lower() in _SPLIT_FOLDERS for names in parts)
        if fixed and len({names[0] for names in parts}) < 2:
            fixed = False  # a single folder named train is not a split
        split = [_SPLIT_FOLDERS[names[0].lower()] if fixed else None for names in parts]
        below_split = [names[fixed:] for names in parts]
        label = [_name(names[0]) if len(names) > 1 else None for names in below_split]
        for column in ("label", "group"):
            if value := getattr(self.declaration, column):
                raise InputError(
                    f"{self.folder}/dataset.yaml: {column} = {value!r}: there is no metadata.csv with this column"
                )
        return pd.DataFrame({"path": images, "label": label, "group": None, "split": split}, dtype="object")

    def _from_metadata(self, sheet: Path, images: list[str]) -> pd.DataFrame:
        import pandas as pd

        read = tables.load_table(sheet)
        self.notes.extend(f"{sheet.name}: {note}" for note in read.notes)
        lower = [name.lower() for name in read.columns]
        columns = [
            low if low in _KNOWN and lower.count(low) == 1 else name
            for name, low in zip(read.columns, lower, strict=True)
        ]
        meta = pd.DataFrame(read.rows, columns=columns, dtype=object)
        for column in ("path", self.declaration.label, self.declaration.group):
            if column is not None and column not in meta:
                key = next((k for k in ("label", "group") if getattr(self.declaration, k) == column), None)
                asked = f", which dataset.yaml names as {key}" if key else ""
                name = "; name the column of the file names path" if column == "path" else ""
                raise InputError(f"{sheet}: no column {column!r}{asked}; it has {', '.join(columns)}{name}")
        if meta["path"].isna().any():
            raise InputError(f"{sheet}: row {read.numbers[meta['path'].isna().idxmax()]}: the path is empty")
        for number, path in zip(read.numbers, meta["path"], strict=True):
            if path.startswith("/") or ".." in path.replace("\\", "/").split("/"):
                raise InputError(f"{sheet}: row {number}: path {path!r}: must be relative to images/, and not leave it")
        find = _Finder(self.folder, images)
        meta["path"] = [find(path) for path in meta["path"]]
        repeated = meta["path"][meta["path"].duplicated()]
        if len(repeated):
            number = read.numbers[repeated.index[0]]
            raise InputError(f"{sheet}: row {number}: path {repeated.iloc[0]!r} is listed twice; keep one row")
        if missing := [path for path in meta["path"] if path not in find.images and not (self.folder / path).is_file()]:
            self.notes.append(f"{sheet.name}: {len(missing)} of {len(meta)} paths name no image: {listed(missing, 3)}")
        table = pd.DataFrame({"path": meta["path"]})
        for column in ("label", "group"):
            name = getattr(self.declaration, column)
            table[column] = [value and _name(value) for value in meta[name]] if name else None
        split = meta["split"].to_list() if "split" in meta else [None] * len(meta)
        table["split"] = [value and _SPLIT_FOLDERS.get(value.lower(), "") for value in split]
        invalid = table.index[table["split"] == ""]
        if len(invalid):
            raise InputError(
                f"{sheet}: row {read.numbers[invalid[0]]}: split = {split[invalid[0]]!r}: "
                "must be train, val, test or empty"
            )
        table = table.join(meta.drop(columns="path").add_prefix("meta."))
        unlisted = sorted(set(images) - set(meta["path"]))
        return pd.concat([table, pd.DataFrame({"path": unlisted})], ignore_index=True).astype("object")


class _Finder:
    """Finds the image file that a path in a table means."""

    def __init__(self, folder: Path, images: list[str]):
        self.folder, self.images = folder, set(images)
        self.alike: dict[str, list[str]] = {}
        for image in images:
            self.alike.setdefault(_alike(image), []).append(image)

    def __call__(self, path: str) -> str:
        """The path of the image, relative to the folder; `path` may be relative to images/.

        Windows separators, the two Unicode forms of accented letters, and upper or lower case of the suffix make no
        difference if only one file fits. The data file of an ENVI image means its header. A path without a file is
        returned as it is.
        """
        path = path.replace("\\", "/").removeprefix("./")
        choices = [path, f"images/{path}"]
        for choice in choices:
            if choice in self.images:
                return choice
        for choice in choices:
            if len(found := self.alike.get(_alike(choice), [])) == 1:
                return found[0]
        for choice in choices:
            if (self.folder / choice).is_file() and (image := image_of(self.folder / choice)):
                return image.relative_to(self.folder).as_posix()
        return path if path.startswith("images/") else choices[1]


def _alike(path: str) -> str:
    """The same text for paths whose names look the same: in Unicode form NFC, with the suffix in lower case."""
    stem, dot, suffix = unicodedata.normalize("NFC", path).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"


def _name(text: str) -> str:
    """A label or group: in Unicode form NFC, as names that look the same must be one, without spaces at the ends."""
    return unicodedata.normalize("NFC", text).strip()


def has_remote() -> bool:
    """Whether the project has a default DVC remote."""
    config = ConfigParser()
    config.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    return config.has_option("core", "remote")


def missing_data(folder: Path) -> str:
    """The message for a dataset that does not exist, with the commands that bring it."""
    ways = [f"`simtrail data add PATH --name {folder.name}`"]
    if has_remote():
        ways.insert(0, "`simtrail data fetch` (from the DVC remote)")
    elif folder.name == "demo":
        ways = ["`simtrail data fetch`, which generates the demo data"]
    present = sorted(p.name for p in folder.parent.glob("*") if p.is_dir()) if folder.parent.is_dir() else []
    others = f", or set data.name in params.yaml to one of: {', '.join(present)}" if present else ""
    return f"{folder}: no such folder; bring it with {' or '.join(ways)}{others}"
