"""Ways in for data: the demo, any folder of images, and what data.dvc names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml
from tqdm import tqdm

from simtrail.data.dataset import Dataset, missing_data
from simtrail.data.readers import SUFFIXES, image_of
from simtrail.errors import InputError

DATA = Path("data")


def demo() -> None:
    """Generates data/demo, unless it is there."""
    from simtrail.data.demo import generate

    if (DATA / "demo").exists():
        print("data/demo is there already")
        return
    DATA.mkdir(exist_ok=True)
    generate(DATA / "demo")
    print("data/demo: generated 12 species × 40 specimens × 2 views")


def fetch(name: str) -> None:
    """Brings data/`name` when it is missing: from the DVC remote where one is set, else the demo is generated."""
    if (DATA / name).exists():
        return
    if subprocess.run(_dvc("remote", "default"), capture_output=True, check=False).returncode == 0:
        if subprocess.run(_dvc("pull", "data.dvc"), check=False).returncode or not (DATA / name).exists():
            raise InputError(f"data/{name}: `dvc pull data.dvc` did not bring it; see its message above")
    elif name == "demo":
        demo()
    else:
        raise InputError(missing_data(DATA / name))


def add(source: Path, name: str, label: str | None, group: str | None, link: bool) -> tuple[int, list[str]]:
    """Copies (or hard-links) a folder of images to data/`name` and versions it with DVC.

    Linked, the source, DVC's cache and data/ share their bytes, and the files become read-only, as DVC wants its cache.
    Returns the number of images, and a line for every file left out. Takes images/**, metadata.csv and dataset.yaml;
    without an images/ folder in `source`, every image file in it. Nothing is left behind when it fails.
    """
    target = DATA / name
    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    if target.exists():
        raise InputError(f"{target} exists already; choose another --name, or remove that folder to replace it")
    if Path("data.dvc").exists() and not DATA.exists():
        raise InputError(
            "data.dvc names data that is not here, and would lose it: bring it first with `simtrail data fetch` "
            "(or, to start afresh, remove data.dvc)"
        )
    building = Path(".simtrail") / f"add-{os.getpid()}"
    shutil.rmtree(building, ignore_errors=True)
    try:
        count, left_out = _gather(source, building, link)
        _declare(building, label, group)
        if count == 0:
            raise InputError(f"{source}: no image in it; files must end in {', '.join(sorted(SUFFIXES))}")
        dataset = Dataset(building)
        try:
            dataset.table()
        except InputError as error:  # name the user's file, not the copy that is about to go
            raise InputError(str(error).replace(str(building), str(source))) from None
        DATA.mkdir(exist_ok=True)
        building.replace(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    if link:  # or DVC would put copies in the place of the links
        subprocess.run(_dvc("config", "--local", "cache.type", "hardlink,copy"), check=True)
    if subprocess.run(_dvc("add", "--quiet", str(DATA)), check=False).returncode:
        raise InputError(f"{target} is in place, but `dvc add data` failed; mend what it says above and run it again")
    return count, left_out


def _gather(source: Path, building: Path, link: bool) -> tuple[int, list[str]]:
    shaped = (source / "images").is_dir()
    put: Callable[[Path, Path], object] = os.link if link else shutil.copyfile
    left_out, count = [], 0
    files = [
        p
        for p in sorted(source.rglob("*"))
        if not p.is_dir() and not any(x.startswith(".") for x in p.relative_to(source).parts)
    ]
    for path in tqdm(files, "data add", unit="file", disable=None, leave=False):
        relative = path.relative_to(source)
        if relative.as_posix() in ("metadata.csv", "dataset.yaml"):
            to = building / relative
        elif image_of(path) and (not shaped or relative.parts[0] == "images"):
            to = building / relative if shaped else building / "images" / relative
            count += image_of(path) == path  # the data of an ENVI image are no second one
        else:
            left_out.append(f"{path}: {'outside images/' if image_of(path) else 'not an image'}")
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            put(path, to)
        except OSError as error:
            if link and error.errno == 18:  # EXDEV
                raise InputError(
                    f"{path}: is on another disk than this project, where no link can lead; leave out --link"
                ) from None
            if to.parent == building:
                raise InputError(f"{path}: {error.strerror}") from None
            count -= image_of(path) == path
            reason = f"broken link to {path.readlink()}" if path.is_symlink() else error.strerror
            left_out.append(f"{path}: {reason}")
    sheet = building / "metadata.csv"
    if sheet.exists():
        _point_into_images(sheet, shaped)
    return count, left_out


def _point_into_images(sheet: Path, shaped: bool) -> None:
    try:
        meta = pd.read_csv(sheet, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        return  # reading the table says what is wrong, and where
    if "path" in meta:
        path = meta["path"].str.replace("\\", "/").str.removeprefix("./")
        meta["path"] = path.where(path.eq("") | (path.str.startswith("images/") & shaped), "images/" + path)
        meta.to_csv(sheet, index=False, lineterminator="\n")


def _declare(building: Path, label: str | None, group: str | None) -> None:
    chosen = {key: value for key, value in (("label", label), ("group", group)) if value}
    if chosen:
        card = building / "dataset.yaml"
        tree = yaml.safe_load(card.read_text(encoding="utf-8")) if card.exists() else {}
        building.mkdir(parents=True, exist_ok=True)
        card.write_text(
            yaml.safe_dump({**(tree or {}), **chosen}, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def _dvc(*words: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *words]
