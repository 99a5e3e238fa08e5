"""One dataset on disk: data/<name>/images/**, and, where there is more to say, metadata.csv and dataset.yaml."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simtrail.data.readers import SUFFIXES, BandFacts, image_of
from simtrail.errors import InputError
from simtrail.params import parse

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
    """What dataset.yaml says; every key is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    modality: Literal["grey", "rgb", "multispectral", "hyperspectral"] | None = None
    bands: list[str] | None = Field(None, min_length=1)
    wavelengths: list[float | None] | None = None  # nm, one per band
    modalities: dict[str, list[str]] | None = None  # names of the bands that belong together: rgb, uv, …
    mask: str | None = None  # the band that is 0 on the background
    nodata: float | None = None  # the value of pixels without data: background
    scale: float | None = Field(None, gt=0)  # the value that stands for reflectance 1
    label: str | None = None  # column of metadata.csv
    group: str | None = None  # column of metadata.csv, kept on one side of every split

    @model_validator(mode="after")
    def _consistent(self) -> Declaration:
        if self.wavelengths is not None and len(self.wavelengths) != len(self.bands or ()):
            raise ValueError(
                f"wavelengths: {len(self.wavelengths)} values for {len(self.bands or ())} bands; give one per band"
            )
        if wrong := [nm for nm in self.wavelengths or [] if nm is not None and not 0 < nm < math.inf]:
            raise ValueError(f"wavelengths: {wrong[0]}: must be > 0 nm, or null for a band without one")
        if self.mask is not None and self.mask not in (self.bands or ()):
            raise ValueError(
                f"mask = {self.mask!r}: must be one of bands: {', '.join(self.bands or ['none declared'])}"
            )
        if odd := [name for name in self.modalities or {} if not re.fullmatch(r"[\w. -]+", name)]:
            raise ValueError(f"modalities: {odd[0]!r}: a name has letters, digits, '_', '-', '.' and spaces alone")
        twice = [name for i, name in enumerate(self.bands or []) if name in (self.bands or [])[:i]]
        if twice:
            raise ValueError(f"bands: {twice[0]!r} stands there twice; every band needs a name of its own")
        return self

    def completed(self, facts: BandFacts) -> Declaration:
        """This declaration, with what the files say of their bands where dataset.yaml says nothing."""
        said = {"bands": facts.names, "wavelengths": facts.wavelengths, "nodata": facts.nodata, "scale": facts.scale}
        return self.model_copy(update={key: value for key, value in said.items() if getattr(self, key) is None})


class Dataset:
    """A dataset folder: its declaration, and the table of images that it ought to hold."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise InputError(missing_data(folder))
        self.folder = folder
        card = folder / "dataset.yaml"
        tree = yaml.safe_load(card.read_text(encoding="utf-8")) if card.exists() else {}
        self.declaration = parse(Declaration, tree, card)

    def files(self) -> tuple[list[str], list[str]]:
        """Paths relative to the folder, sorted, of the image files under images/ and of all other files.

        An ENVI image is its header; the data beside it are neither.
        """
        images: list[str] = []
        others: list[str] = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_dir():
                continue
            relative = path.relative_to(self.folder).as_posix()
            image = image_of(path) if relative.startswith("images/") else None
            if image in (None, path):
                (images if image else others).append(relative)
        return images, others

    def table(self) -> pd.DataFrame:
        """One row per image: `path`, `label`, `group`, `split` (null where unknown), then `meta.*` as in metadata.csv.

        Holds every image file, and every row of metadata.csv whether its file exists or not. Without metadata.csv the
        first folder below images/ is the label, after a fixed split's train/, val/ or test/ if there is one.
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
        parts = [path.split("/")[1:] for path in images]
        fixed = bool(parts) and all(len(p) > 1 and p[0].lower() in _SPLIT_FOLDERS for p in parts)
        if fixed and len({p[0] for p in parts}) < 2:
            fixed = False  # a lone folder named train is a folder, not a split
        split = [_SPLIT_FOLDERS[p[0].lower()] if fixed else None for p in parts]
        rest = [p[fixed:] for p in parts]
        label = [p[0] if len(p) > 1 else None for p in rest]
        for column in ("label", "group"):
            if value := getattr(self.declaration, column):
                raise InputError(
                    f"{self.folder}/dataset.yaml: {column} = {value!r}: there is no metadata.csv to hold that column"
                )
        return pd.DataFrame({"path": images, "label": label, "group": None, "split": split}, dtype="object")

    def _from_metadata(self, sheet: Path, images: list[str]) -> pd.DataFrame:
        try:
            meta = pd.read_csv(sheet, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise InputError(f"{sheet}: not a comma-separated UTF-8 table: {' '.join(str(error).split())}") from None
        for column in ("path", self.declaration.label, self.declaration.group):
            if column is not None and column not in meta:
                raise InputError(f"{sheet}: no column {column!r}; it has {', '.join(map(str, meta.columns))}")
        meta["path"] = [self._image(path) for path in meta["path"]]
        if meta["path"].isna().any():
            raise InputError(f"{sheet}: row {meta['path'].isna().idxmax() + 2}: the path is empty")
        repeated = meta["path"][meta["path"].duplicated()]
        if len(repeated):
            raise InputError(
                f"{sheet}: row {repeated.index[0] + 2}: path {repeated.iloc[0]!r} stands there twice; keep one row"
            )
        table = pd.DataFrame({"path": meta["path"]})
        for column in ("label", "group"):
            name = getattr(self.declaration, column)
            table[column] = meta[name] if name else None
        table["split"] = meta.get("split")
        wrong = table[table["split"].notna() & ~table["split"].isin(SPLITS)]
        if len(wrong):
            raise InputError(
                f"{sheet}: row {wrong.index[0] + 2}: split = {wrong['split'].iloc[0]!r}: "
                "must be train, val, test or empty"
            )
        table = table.join(meta.drop(columns="path").add_prefix("meta."))
        unlisted = sorted(set(images) - set(meta["path"]))
        return pd.concat([table, pd.DataFrame({"path": unlisted})], ignore_index=True).astype("object")

    def _image(self, path: Any) -> Any:
        """The path as listed; of the data of an ENVI image, its header's."""
        image = image_of(self.folder / path) if isinstance(path, str) else None
        return image.relative_to(self.folder).as_posix() if image else path


def missing_data(folder: Path) -> str:
    """The message for a dataset that is not there: what was sought, and each command that brings one."""
    if folder.name == "demo":
        return f"{folder}: no such folder; `simtrail data fetch` makes the demo data (or pulls what data.dvc names)"
    present = sorted(p.name for p in folder.parent.glob("*") if p.is_dir()) if folder.parent.is_dir() else []
    return (
        f"{folder}: no such folder; bring it with `simtrail data fetch` (from the DVC remote) or "
        f"`simtrail data add PATH --name {folder.name}`"
        + (f", or set data.name in params.yaml to one of: {', '.join(present)}" if present else "")
    )
