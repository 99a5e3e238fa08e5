"""Brings data into data/: the generated demo, any folder of images, or data from the DVC remote."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml
from tqdm import tqdm

from simtrail.data import tables
from simtrail.data.dataset import Dataset, has_remote, missing_data
from simtrail.data.reading.readers import SUFFIXES, image_of, walk
from simtrail.errors import InputError, counted
from simtrail.params import NAME, PATTERNS

DATA = Path("data")
DEMO = "a64e02d17c473c2ffd5766776a34390d.dir"  # md5 of a data/ that has only the demo, which can be made at any time


def demo() -> None:
    """Generates data/demo, unless it already exists."""
    from simtrail.data.demo import generate

    if (DATA / "demo").exists():
        print("data/demo already exists")
        return
    DATA.mkdir(exist_ok=True)
    generate(DATA / "demo")
    print("data/demo: generated 12 species × 40 specimens × 2 views")


def fetch(name: str) -> None:
    """Brings data/`name` from the DVC remote, if it is missing. Without a remote, the demo is generated.

    Raises InputError if the data can't be brought.
    """
    if (DATA / name).exists():
        return
    if subprocess.run(_dvc("remote", "default"), capture_output=True, check=False).returncode == 0:
        if subprocess.run(_dvc("pull", "data.dvc"), check=False).returncode or not (DATA / name).exists():
            raise InputError(f"data/{name}: `dvc pull data.dvc` did not bring it; see DVC's message above")
    elif name == "demo":
        demo()
    else:
        _keep_the_record()
        raise InputError(missing_data(DATA / name))


class LeftOut(NamedTuple):
    """A file that is not taken."""

    kind: str
    path: Path
    reason: str


class Added(NamedTuple):
    """What `add` has taken and left out."""

    images: Counter[str]  # number of images by suffix
    left_out: list[LeftOut]
    notes: list[str]  # decisions in reading the table


def add(source: Path, name: str, label: str | None, group: str | None, link: bool) -> Added:
    """Copies (or hard-links) a folder of images to data/`name` and versions it with DVC.

    Takes images/**, the table metadata.* and dataset.yaml; without an images/ folder in `source`, every image file in
    it. Links to folders are followed. With `link`, the source, DVC's cache and data/ share the same bytes, and the
    files become read-only, as DVC requires for its cache. If an error stops the copying, no files are left behind.
    """
    target = DATA / name
    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    if not re.fullmatch(NAME, name):
        raise InputError(f"--name {name!r}: must not be empty, and must have {PATTERNS[NAME]}")
    if (label or group) and not any(map(tables.is_table, source.iterdir())):
        raise InputError(
            f"--label and --group name columns of {source / 'metadata.csv'}, which does not exist; with class folders, "
            "leave them out"
        )
    if target.exists():
        raise InputError(f"{target} already exists; choose another --name, or remove that folder to replace it")
    if not any((folder / ".dvc").is_dir() for folder in (Path.cwd(), *Path.cwd().parents)):
        raise InputError(
            f"{Path.cwd()}: not a DVC project; run the command in the project's folder, or start a project: "
            "simtrail init FOLDER"
        )
    _keep_the_record()
    building = Path(".simtrail") / f"add-{os.getpid()}"
    shutil.rmtree(building, ignore_errors=True)
    notes: list[str] = []
    try:
        images, left_out = _copy_dataset(source, building, link)
        _declare(building, label, group)
        if not images:
            kinds = f"; it has {_kinds(left_out)}" if left_out else ""
            raise InputError(f"{source}: no image in it; files must end in {', '.join(sorted(SUFFIXES))}{kinds}")
        dataset = Dataset(building)
        try:
            if dataset.sheet:
                table = dataset.table()  # needs seconds of imports, and finds nothing wrong in folders
                unused = dataset.unused_labels(table) or ""
                notes = [note.replace(str(building), str(target)) for note in (*dataset.notes, unused) if note]
        except InputError as error:  # name the user's file, not the copy, which is deleted below
            message = str(error).replace(str(building), str(source))
            for option, value in (("label", label), ("group", group)):
                if value:
                    message = message.replace(f"which dataset.yaml names as {option}", f"which --{option} names")
            raise InputError(message) from None
        DATA.mkdir(exist_ok=True)
        building.replace(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    if link:  # otherwise DVC would replace the links by copies
        subprocess.run(_dvc("config", "--local", "cache.type", "hardlink,copy"), check=True)
    _version(target)
    return Added(images, left_out, notes)


def add_lines(name: str, added: Added) -> list[str]:
    """What was taken and left out, by kind and number, and then each file that was left out, up to 50."""
    types = ", ".join(f"{count} {suffix}" for suffix, count in added.images.most_common())
    lines = [f"data/{name}: {added.images.total()} images: {types}"]
    if added.left_out:
        n = len(added.left_out)
        lines.append(f"left out: {counted(n, 'file')}: {_kinds(added.left_out)}")
        lines += [f"  {file.path}: {file.reason}" for file in added.left_out[:50]]
        if len(added.left_out) > 50:
            lines.append(f"  … and {len(added.left_out) - 50} more")
    return lines + [f"note: {note}" for note in added.notes]


def _kinds(left_out: list[LeftOut]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(file.kind for file in left_out).most_common())


def _version(target: Path) -> None:
    """Records data/ in data.dvc."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:  # in this process: DVC's command line takes a second longer to start
            repo.add(str(DATA))
    except DvcException as error:
        raise InputError(
            f"{target} is complete, but DVC could not record it: {error}; solve that, then run: dvc add data"
        ) from None


def _keep_the_record() -> None:
    """InputError if data.dvc records data that was never here: with new data, the record would be lost."""
    if not Path("data.dvc").exists():
        return
    md5 = yaml.safe_load(Path("data.dvc").read_text(encoding="utf-8"))["outs"][0].get("md5", DEMO)
    cached = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
    if md5 == DEMO or cached.exists():
        return
    cache = subprocess.run(_dvc("cache", "dir"), capture_output=True, text=True, check=False).stdout.strip()
    if not Path(cache, "files/md5", md5[:2], md5[2:]).exists():
        bring = "`dvc pull data.dvc`" if has_remote() else "`dvc remote add` and `dvc pull data.dvc`"
        raise InputError(
            "data.dvc records data that is missing here, and would lose that record; first bring the data with "
            f"{bring}, or remove data.dvc to start without it"
        )


def _copy_dataset(source: Path, building: Path, link: bool) -> tuple[Counter[str], list[LeftOut]]:
    """Copies or links the files of a dataset into `building`; returns what `add` returns."""
    has_images_folder = (source / "images").is_dir()
    copy: Callable[[Path, Path], object] = os.link if link else shutil.copyfile
    left_out, images = [], Counter[str]()
    for path in tqdm(list(walk(source, links=True)), "data add", unit="file", disable=None, leave=False):
        relative = path.relative_to(source)
        image = image_of(path)
        if relative.parent == Path() and (relative.name == "dataset.yaml" or tables.is_table(relative)):
            target = building / relative
        elif any(part.startswith(".") for part in relative.parts):
            left_out.append(LeftOut("hidden", path, "its name, or that of its folder, begins with a dot"))
            continue
        elif path.is_dir():
            left_out.append(LeftOut("link", path, "a link to a folder that contains it"))
            continue
        elif image and (not has_images_folder or relative.parts[0] == "images"):
            target = building / relative if has_images_folder else building / "images" / relative
            images[image.suffix.lower()] += image == path  # the data file of an ENVI image is not a second image
        else:
            left_out.append(LeftOut("image", path, "outside images/") if image else _not_an_image(path))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy(path.resolve() if link else path, target)
        except OSError as error:
            if link and error.errno == 18:  # EXDEV
                raise InputError(
                    f"{path}: is on another disk than this project, so it can't be linked; leave out --link"
                ) from None
            if target.parent == building:
                raise InputError(f"{path}: {error.strerror}") from None
            if image == path:
                images[image.suffix.lower()] -= 1
            reason = f"broken link to {path.readlink()}" if path.is_symlink() else str(error.strerror)
            left_out.append(LeftOut("unreadable", path, reason))
    return +images, left_out


_KINDS = {  # kind of a file that is not read: its suffixes, and what can be done
    "camera raw": (".cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .pef .srw", "export it as TIFF or JPEG"),
    "microscope": (".czi .nd2 .lif .lsm .oib .oif .vsi .svs .ndpi .mrxs .scn", "export it as OME-TIFF"),
    "medical or astronomical": (".dcm .nii .nrrd .mha .fits .fit", "convert it to TIFF"),
    "video": (".mp4 .mov .avi .mkv .mts .webm .m4v", "extract its frames"),
    "archive": (".zip .tar .gz .bz2 .xz .7z .rar .tgz", "unpack it"),
    "table": (
        " ".join(set(tables.SUFFIXES) - {".txt"}),
        "not read; to use a table, name it metadata, with a column path",
    ),
    "drawing or document": (".svg .pdf .psd .ai .eps .doc .docx .ppt .pptx", "export its image as PNG or TIFF"),
    "sidecar": (".xmp .aae .thm .tfw .jgw .pgw .wld .prj .xml .ovr .msk .enp .json .yaml .yml", "not an image"),
}


def _not_an_image(path: Path) -> LeftOut:
    for kind, (suffixes, reason) in _KINDS.items():
        if path.suffix.lower() in suffixes.split():
            return LeftOut(kind, path, reason)
    return LeftOut("other", path, "not an image")


def _declare(building: Path, label: str | None, group: str | None) -> None:
    """Writes the label and group columns into dataset.yaml."""
    columns = {key: value for key, value in (("label", label), ("group", group)) if value}
    if columns:
        declaration = building / "dataset.yaml"
        tree = yaml.safe_load(declaration.read_text(encoding="utf-8")) if declaration.exists() else {}
        building.mkdir(parents=True, exist_ok=True)
        declaration.write_text(
            yaml.safe_dump({**(tree or {}), **columns}, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def _dvc(*words: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *words]
