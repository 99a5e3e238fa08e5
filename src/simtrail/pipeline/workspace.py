"""The workspace: where artifacts are, how they are read and written, and with which settings they were made."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

from simtrail.errors import InputError
from simtrail.params import Params, load_params, shown

if TYPE_CHECKING:  # slow to import
    import numpy as np
    import pandas as pd

    from simtrail.data.pack import PackedImages
    from simtrail.data.recipe import Recipe

ROOT = Path("artifacts")
MANIFEST, QUARANTINE = ROOT / "check/manifest.parquet", ROOT / "check/quarantine.csv"
VALIDATION, VALIDATION_PAGE = ROOT / "check/validation.json", ROOT / "check/validation.html"
PACKED, SPLIT, STATISTICS = ROOT / "prepare", ROOT / "prepare/split.parquet", ROOT / "prepare/statistics.json"
PLAN = ROOT / "plan/plan.json"
CHOSEN = ROOT / "pretrain/chosen/chosen.json"  # after training, what the features are made of
ENCODER, HISTORY = ROOT / "pretrain", ROOT / "pretrain/history.csv"
SEEDS, TRAINING_SETTINGS = ROOT / "pretrain/seeds", ROOT / "pretrain/seeds/settings.json"
PREVIEW = ROOT / "preview/views.png"
EMBEDDINGS = ROOT / "embed/embeddings.parquet"
EVALUATION, SCORES, TABLES = ROOT / "evaluate", ROOT / "evaluate/scores.json", ROOT / "evaluate/tables"
PLOTS, HEADLINE = ROOT / "evaluate/plots", Path("metrics.json")
PREDICTIONS, MAP_POINTS = ROOT / "evaluate/predictions.parquet", ROOT / "evaluate/umap.parquet"
EVIDENCE = ROOT / "evaluate/evidence.npz"
FIGURES, MAP_PAGE = ROOT / "evaluate/figures", ROOT / "evaluate/map.html"
REPORT, CARD = ROOT / "report/report.html", ROOT / "report/model_card.md"
REGISTRATION = ROOT / "register/registration.json"  # of this machine's registry; DVC does not know it
REGISTERED = ROOT / "register/encoder.json"  # the same on every machine
SETTINGS = ROOT / "settings"
DECIDING = {  # stage → the sections and keys that decide its result
    "check": ("data", "check"),
    "prepare": ("data", "prepare", "evaluate.held_out_classes"),
    "plan": ("pretrain",),
    "pretrain": ("pretrain",),
    "embed": ("embed",),
    "evaluate": ("evaluate", "pretrain.augment", "pretrain.monitor.metric"),
    "report": ("data", "check", "prepare", "pretrain", "embed", "evaluate", "register"),
    "register": ("register",),
}
HOW_OFTEN = "pretrain.checkpoint."  # how often a run is saved does not change its result
RECORDS = {"check": VALIDATION, "prepare": STATISTICS, "pretrain": TRAINING_SETTINGS}  # with the settings they had
# columns of tables that hold text, also where a class is called 007 or NA
TEXTS = ["task", "class", "label", "column", "kind", "classifier", "draw", "score", "start", "band", "group", "path"]
TEXTS += ["first", "second", "splits", "given", "suggested", "copy_of", "reason"]


class Prepared(NamedTuple):
    """What the prepare stage has made."""

    statistics: dict[str, Any]
    table: pd.DataFrame  # split.parquet: one row per packed image
    recipe: Recipe
    images: PackedImages

    def pretraining_rows(self, part: str) -> np.ndarray:
        """The rows of a split without the classes that are held out of pretraining."""
        import numpy as np

        return np.flatnonzero((self.table["split"] == part) & ~self.table["held_out"])


def prepared() -> Prepared:
    """The prepared images with their split and statistics; InputError where the prepare stage has not run."""
    from simtrail.data.pack import PackedImages
    from simtrail.data.recipe import Recipe

    statistics, table = read_json(STATISTICS, "prepare"), read_table(SPLIT, "prepare")
    recipe = Recipe.model_validate(statistics["recipe"])
    images = PackedImages(PACKED, recipe)
    if not len(images):
        raise InputError(f"{PACKED}: no packed images; {first('prepare')}")
    return Prepared(statistics, table, recipe, images)


def require(params: Params, *stages: str) -> None:
    """InputError where one of the stages last ran with other settings than params.yaml has now."""
    for stage in stages:
        record = PLAN if stage == "plan" else RECORDS[stage]
        recorded, now = read_json(record, stage), settings(params, stage)
        then = recorded if stage == "pretrain" else recorded.get("settings", {})
        changed = [k for k in {**now, **then} if then.get(k) != now.get(k) and not k.startswith(HOW_OFTEN)]
        if changed:
            key, more = changed[0], f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            in_file = settings(load_params(), stage)
            given = [
                f" --set {quote(f'{k}={shown(now[k])}')}" for k in changed if k in now and in_file.get(k) != now[k]
            ]
            advice = (
                f"simtrail {stage}{''.join(given)} and the stages after it with the same --set"
                if given and stage in ("check", "prepare")  # the others may have their values from the plan
                else f"simtrail {stage} and the stages after it, or dvc repro"
            )
            raise InputError(
                f"{ROOT / stage}: made with {key} = {then.get(key)!r}{more}, not {now.get(key)!r}; run {advice}"
            )


def settings(params: Params, stage: str) -> dict[str, Any]:
    """The parameters that decide a stage's result, dotted key → value."""
    sections = tuple(f"{section}." for section in DECIDING[stage])
    flat = params.flat().items()
    return {key: value for key, value in flat if f"{key}.".startswith(sections) and not key.startswith(HOW_OFTEN)}


def code_hash(*parts: str) -> str:
    """A hash of the source code of the given modules and subpackages."""
    package = Path(__file__).parents[1]
    files = sorted(
        f for part in parts for f in ([package / part] if part.endswith(".py") else (package / part).rglob("*.py"))
    )
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()


def project_folder() -> Path:
    """The project's folder, also if DVC works in a copy of it; files that must survive a run are kept there."""
    from simtrail.tracking.store import project_root

    return project_root() or Path()


def fresh_folder(folder: Path) -> None:
    """Makes an empty folder; removes what an earlier run left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def read_table(path: Path, stage: str) -> pd.DataFrame:
    """The table of a parquet or CSV file that a stage writes; InputError where that stage has not run."""
    import pandas as pd

    from_csv = partial(pd.read_csv, float_precision="round_trip")
    return _read(from_csv if path.suffix == ".csv" else pd.read_parquet, path, stage)


def read_arrays(path: Path, stage: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that a stage writes; InputError where that stage has not run."""
    import numpy as np

    with _read(np.load, path, stage) as file:
        return dict(file)


def read_tables() -> dict[str, pd.DataFrame]:
    """The tables of the evaluation by name, without those that are empty; numbers exactly as they were written."""
    import pandas as pd

    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "float_precision": "round_trip"}
    tables = {
        file.stem: pd.read_csv(file, dtype=dict.fromkeys(TEXTS, str), **options)
        for file in sorted(TABLES.glob("*.csv"))
        if file.stat().st_size > 1
    }
    return {name: table for name, table in tables.items() if len(table)}


def read_json(path: Path, stage: str) -> Any:
    """The content of a JSON file that a stage writes; InputError where that stage has not run."""
    return json.loads(_read(Path.read_text, path, stage))


def write_json(path: Path, tree: Any) -> None:
    """Writes an indented JSON file."""
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(reader: Any, path: Path, stage: str) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {first(stage)}") from None


def first(stage: str) -> str:
    """The advice to run a stage."""
    return f"run the {stage} stage first: simtrail {stage}, or dvc repro {stage}"
