"""A dataset on disk: the folder data/<name> with images/**, and optionally metadata.csv and dataset.yaml."""

from __future__ import annotations

import math
import re
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simtrail.data.readers import SUFFIXES, BandFacts, image_of
from simtrail.errors import InputError
from simtrail.params import parse

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


class Declaration(BaseModel):
    """The contents of dataset.yaml; every key is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    modality: Literal["grey", "rgb", "multispectral", "hyperspectral"] | None = None
    bands: list[str] | None = Field(None, min_length=1)
    wavelengths: list[float | None] | None = None  # nm, one per band
    modalities: dict[str, list[str]] | None = None  # group (rgb, uv, …) → names of its bands
    mask: str | None = None  # the band that is 0 on the background
    nodata: float | None = None  # the value of pixels without data, which are background
    scale: float | None = Field(None, gt=0)  # the value that means reflectance 1
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
        tree = yaml.safe_load(yaml_file.read_text(encoding="utf-8")) if yaml_file.exists() else {}
        self.declaration = parse(Declaration, tree, yaml_file)

    def files(self) -> tuple[list[str], list[str]]:
        """The image files under images/, and all other files: two sorted lists of paths relative to the folder.

        An ENVI image is listed by its header; its data file is in neither list.
        """
        images: list[str] = []
        other_files: list[str] = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_dir():
                continue
            relative = path.relative_to(self.folder).as_posix()
            image = image_of(path) if relative.startswith("images/") else None
            if image in (None, path):
                (images if image else other_files).append(relative)
        return images, other_files

    def table(self) -> pd.DataFrame:
        """One row per image: `path`, `label`, `group`, `split` (null if unknown), then `meta.*` as in metadata.csv.

        The rows are all image files, and all rows of metadata.csv, even if their file does not exist. Without
        metadata.csv, the label is the name of the first folder below images/, or of the first folder below
        images/train, images/val and images/test if the images are stored by a fixed split.
        """
        images, _ = self.files()
        sheet = self.folder / "metadata.csv"
        table = self._from_metadata(sheet, images) if sheet.exists() else self._from_folders(images)
        if table.empty:
            raise InputError(
                f"{self.folder}/images: no image; it must hold files ending in {', '.join(sorted(SUFFIXES))}"
            )
        return table.sort_values("path", ignore_index=True)

    def _from_folders(self, images: list[str]) -> pd.DataFrame:
        import pandas as pd

        parts = [path.split("/")[1:] for path in images]
        fixed = bool(parts) and all(len(names) > 1 and names[0].lower() in _SPLIT_FOLDERS for names in parts)
        if fixed and len({names[0] for names in parts}) < 2:
            fixed = False  # a single folder named train is not a split
        split = [_SPLIT_FOLDERS[names[0].lower()] if fixed else None for names in parts]
        below_split = [names[fixed:] for names in parts]
        label = [names[0] if len(names) > 1 else None for names in below_split]
        for column in ("label", "group"):
            if value := getattr(self.declaration, column):
                raise InputError(
                    f"{self.folder}/dataset.yaml: {column} = {value!r}: there is no metadata.csv with this column"
                )
        return pd.DataFrame({"path": images, "label": label, "group": None, "split": split}, dtype="object")

    def _from_metadata(self, sheet: Path, images: list[str]) -> pd.DataFrame:
        import pandas as pd

        try:
            meta = pd.read_csv(sheet, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise InputError(f"{sheet}: not a comma-separated UTF-8 table: {' '.join(str(error).split())}") from None
        for column in ("path", self.declaration.label, self.declaration.group):
            if column is not None and column not in meta:
                key = next((k for k in ("label", "group") if getattr(self.declaration, k) == column), None)
                asked = f", which dataset.yaml names as {key}" if key else ""
                raise InputError(f"{sheet}: no column {column!r}{asked}; it has {', '.join(map(str, meta.columns))}")
        meta["path"] = [self._image_path(path) for path in meta["path"]]
        if meta["path"].isna().any():
            raise InputError(f"{sheet}: row {meta['path'].isna().idxmax() + 2}: the path is empty")
        repeated = meta["path"][meta["path"].duplicated()]
        if len(repeated):
            raise InputError(
                f"{sheet}: row {repeated.index[0] + 2}: path {repeated.iloc[0]!r} is listed twice; keep one row"
            )
        table = pd.DataFrame({"path": meta["path"]})
        for column in ("label", "group"):
            name = getattr(self.declaration, column)
            table[column] = meta[name] if name else None
        table["split"] = meta.get("split")
        invalid = table[table["split"].notna() & ~table["split"].isin(SPLITS)]
        if len(invalid):
            raise InputError(
                f"{sheet}: row {invalid.index[0] + 2}: split = {invalid['split'].iloc[0]!r}: "
                "must be train, val, test or empty"
            )
        table = table.join(meta.drop(columns="path").add_prefix("meta."))
        unlisted = sorted(set(images) - set(meta["path"]))
        return pd.concat([table, pd.DataFrame({"path": unlisted})], ignore_index=True).astype("object")

    def _image_path(self, path: Any) -> Any:
        """The path in a row; for the data file of an ENVI image, the path of its header."""
        image = image_of(self.folder / path) if isinstance(path, str) else None
        return image.relative_to(self.folder).as_posix() if image else path


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
