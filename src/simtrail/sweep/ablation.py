"""Ablations: the same training for a grid of settings, compared on the validation split in a table and a figure."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, model_validator

from simtrail.errors import InputError, TrainingError
from simtrail.model.backbone import grids_of
from simtrail.params import Params, Pretrain, Settings, assignment, change, load_params, parse, read_yaml, value_of
from simtrail.pipeline.plan import planned
from simtrail.pipeline.training_run import TrainingRun, training_run
from simtrail.pipeline.workspace import require
from simtrail.sweep.validation import validation_scores

PRESETS = Path("sweeps/ablations")
# without the contrastive loss: its values for different temperatures, batch sizes or views are not comparable
MEASURES = {
    "val_probe": "linear probe accuracy",
    "val_knn": "kNN accuracy",
    "val_effective_rank": "effective rank",
}


class Preset(BaseModel):
    """The content of a file sweeps/ablations/NAME.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: str
    """What is compared: the title of the table and the figure."""
    source: str
    """Where the comparison comes from, such as a figure of a paper."""
    set: Settings
    """Settings of all runs, by dotted key of params.yaml."""
    vary: dict[str, dict[str, Settings]]
    """One axis or two (rows, then columns): for each name on the axis, the settings that it stands for."""

    @model_validator(mode="after")
    def _drawable(self) -> Preset:
        if len(self.vary) not in (1, 2) or not all(self.vary.values()):
            sizes = ", ".join(f"{axis}: {len(settings)}" for axis, settings in self.vary.items())
            raise ValueError(f"vary = {{{sizes}}} settings: must be one axis or two, each with at least one setting")
        return self


def ablate(name: str, assignments: list[str], seeds: int) -> None:
    """Runs every cell of a preset that has not been run yet, and writes table.csv, table.md and figure.png.

    The files go to sweeps/ablations/NAME/. Settings and history of each run are stored there in runs/KEY.json, and a
    run whose key (data, split, settings, code) is stored is not run again. The measures are computed on the validation
    split at the kept epoch. There are no MLflow runs.

    Raises InputError before the first run for settings that are not valid, and TrainingError at the end if runs failed.
    """
    source, folder = PRESETS / f"{name}.yaml", PRESETS / name
    overrides = dict(assignment(text) for text in assignments)
    preset, base = load_preset(source), planned(load_params())
    require(base, "prepare")
    cells = grid(preset, base, overrides, " --set ".join([str(source), *assignments]))
    runs = [(names, p.model_copy(update={"seeds": [p.seed + i]})) for names, p in cells.items() for i in range(seeds)]
    rows: list[dict[str, Any]] = []
    warned: set[str] = set()
    for names, params in cells.items():
        try:
            training_run(params)
        except InputError as error:
            raise InputError(f"{source}: {' × '.join(names)}: {error}") from None
    for i, (names, params) in enumerate(runs, 1):
        label = f"{i}/{len(runs)} {' × '.join(names)}" + (f", seed {params.seed}" if seeds > 1 else "")
        training = training_run(params)
        for line in sorted({*training.warnings} - warned):
            print(f"{label}: warning: {line}", flush=True)
        warned |= {*training.warnings}
        file = folder / "runs" / f"{training.key}.json"
        run_before = file.exists()
        measures: dict[str, Any] = {}
        try:
            measures = _run(training, params, base, file, label)
        except (InputError, TrainingError) as error:  # such as a batch larger than the data; other cells may still run
            print(f"{label}: failed: {error}", flush=True)
        else:
            if "val_effective_rank" not in measures:
                raise InputError("no validation images to compare the runs on; raise prepare.val_fraction")
            measure = "val_knn" if "val_knn" in measures else "val_effective_rank"
            duration = "run before" if run_before else f"{measures['seconds']:.0f} s"
            print(f"{label}: {measure} {measures[measure]:.3g} ({duration})", flush=True)
        rows.append(dict(zip(preset.vary, names, strict=True)) | {"seed": params.seed, "key": training.key} | measures)
    failed = sum("epoch" not in row for row in rows)
    if failed < len(rows):
        _report(preset, pd.DataFrame(rows), assignments, seeds, folder)
        print(f"ablate: {folder}/table.md, table.csv and figure.png")
    if failed:
        raise TrainingError(f"{failed} of {len(rows)} runs failed; the same command runs them again")


def load_preset(path: Path) -> Preset:
    """The checked preset of a file. Raises InputError that names every key with an error, or the existing presets."""
    if not path.exists():
        existing = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise InputError(f"{path}: no such preset; {path.parent} has {existing}")
    return parse(Preset, read_yaml(path.read_bytes(), path), path)


def grid(preset: Preset, params: Params, overrides: Settings, source: str) -> dict[tuple[str, ...], Pretrain]:
    """The settings of every cell, by its names on the axes: the product of the axes; the last axis changes fastest.

    Later settings replace earlier ones, in this order: params.yaml, `set` of the preset, `overrides`, the cell. Raises
    InputError that names `source` if settings of a cell are not valid, contradict each other, or replace an override.
    """
    cells = {}
    for names in itertools.product(*preset.vary.values()):
        varied = [settings[name] for settings, name in zip(preset.vary.values(), names, strict=True)]
        tree = params.tree
        for settings in (preset.set, overrides, *varied):
            change(tree, settings)
        cells[names] = parse(Params, tree, source).pretrain
        for key, value in itertools.chain(*(settings.items() for settings in (overrides, *varied))):
            if (result := value_of(tree, key)) != value:
                raise InputError(f"{source}: {key} = {value!r}: the cell {' × '.join(names)} sets it to {result!r}")
        for key in [*preset.set, *overrides, *itertools.chain(*varied)]:
            if key.split(".")[0] != "pretrain":
                raise InputError(f"{source}: {key}: only pretrain is varied; set it in params.yaml and run dvc repro")
    return cells


def _run(training: TrainingRun, params: Pretrain, base: Params, file: Path, label: str) -> dict[str, Any]:
    """The measures of a run at its kept epoch, 95 % intervals of accuracies over groups, that epoch, and its seconds.

    If the run's `file` exists, they are read from it; else the run is trained and the file is written.
    """
    if not file.exists():
        start = time.monotonic()
        trained = training.fit(log=lambda line: print(f"{label}: {line}", flush=True))
        encoder = trained.encoder.with_features(grids_of(params.encoder))  # those of the history
        result = {"pretrain": params.model_dump(), "history": trained.history, "epoch": trained.epoch}
        result["bounds"] = {
            f"{measure}_{bound}": scores[f"accuracy_{bound}"]
            for measure, scores in validation_scores(encoder, base).items()
            for bound in ("low", "high")
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps({**result, "seconds": time.monotonic() - start}, indent=2) + "\n")
        temporary.replace(file)
        shutil.rmtree(training.checkpoints.folder, ignore_errors=True)
    result = json.loads(file.read_text())
    kept = result["history"][result["epoch"] - 1]
    measures = {m: kept[m] for m in MEASURES if m in kept}
    return measures | result["bounds"] | {k: result[k] for k in ("epoch", "seconds")}


def _report(preset: Preset, table: pd.DataFrame, assignments: list[str], seeds: int, folder: Path) -> None:
    """Writes table.csv with a row for every run, and table.md and figure.png with an entry for every cell."""
    from simtrail.report.figures.charts import ablation_panels

    table.to_csv(folder / "table.csv", index=False)
    measures = [m for m in MEASURES if m in table]
    axes = {axis: list(settings) for axis, settings in preset.vary.items()}
    values = table[measures].to_numpy().reshape(*map(len, axes.values()), seeds, len(measures))
    means = values.mean(-2)
    deviations = values.std(-2, ddof=1) if seeds > 1 else np.full_like(means, np.nan)
    bounds = np.stack([means - deviations, means + deviations], -1)  # (…, measures, low and high)
    for i, m in enumerate(measures):
        if seeds == 1 and f"{m}_low" in table:
            bounds[..., i, :] = table[[f"{m}_low", f"{m}_high"]].to_numpy().reshape(*means.shape[:-1], 2)

    def entry(index: tuple[int, ...], measure: int) -> str:
        mean, deviation, (low, high) = (array[(*index, measure)] for array in (means, deviations, bounds))
        if np.isnan(mean):
            return "failed"
        digits = 1 if measures[measure] == "val_effective_rank" else 3
        text = f"{mean:.{digits}f}"
        if np.isnan(low):
            return text
        return f"{text} ± {deviation:.{digits}f}" if seeds > 1 else f"{text} ({low:.{digits}f} – {high:.{digits}f})"

    repeats = "one seed, 95 % intervals over groups" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"
    note = f"Validation split, weights of the kept epoch, {repeats}"
    columns = [*axes, *(MEASURES[m] for m in measures)]
    lines = [f"# {preset.title}", "", f"Source: {preset.source}. {note}" + ", ".join(["", *assignments]) + ".", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(axes) + "---:|" * len(measures)]
    for index in np.ndindex(means.shape[:-1]):
        names = [settings[i] for i, settings in zip(index, axes.values(), strict=True)]
        lines.append("| " + " | ".join([*names, *(entry(index, m) for m in range(len(measures)))]) + " |")
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    panels = {MEASURES[m]: (means[..., i], bounds[..., i, :]) for i, m in enumerate(measures)}
    ablation_panels(axes, panels, preset.title, note, folder / "figure.png")
