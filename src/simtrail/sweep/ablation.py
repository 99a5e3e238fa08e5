"""Ablations: a grid of settings through the same training, compared on the validation split in a table and a figure."""

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
from simtrail.params import Params, Pretrain, Settings, change, load_params, parse, read_yaml
from simtrail.pipeline.training_run import TrainingRun, training_run
from simtrail.pipeline.workspace import require
from simtrail.sweep.validation import validation_scores

PRESETS = Path("sweeps/ablations")
# never the contrastive loss, which other temperatures, batches or views make another quantity
MEASURES = {
    "val_probe": "linear probe accuracy",
    "val_knn": "kNN accuracy",
    "val_effective_rank": "effective rank",
}


class Preset(BaseModel):
    """A file of sweeps/ablations/."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: str
    """What is compared."""
    source: str
    """Where it comes from, such as a figure of a paper."""
    set: Settings
    """Settings of all runs."""
    vary: dict[str, dict[str, Settings]]
    """One axis or two (rows, then columns): the names of its settings, and what each of them sets."""

    @model_validator(mode="after")
    def _drawable(self) -> Preset:
        if len(self.vary) not in (1, 2) or not all(self.vary.values()):
            sizes = ", ".join(f"{axis}: {len(settings)}" for axis, settings in self.vary.items())
            raise ValueError(f"vary = {{{sizes}}} settings: must be one axis or two, of a setting at least")
        return self


def ablate(name: str, assignments: list[str], seeds: int) -> None:
    """Runs every cell of a preset that has not been run yet, and writes table.csv, table.md and figure.png.

    They go to sweeps/ablations/NAME/, with each run's settings and history in runs/KEY.json: a run whose key (data,
    split, settings, code) is there is not run again. Measures are those of the validation split at the kept epoch. No
    MLflow run is kept.

    Raises InputError before the first run for settings that can't be; TrainingError at the end if runs have failed.
    """
    source, out = PRESETS / f"{name}.yaml", PRESETS / name
    overrides = dict(_assignment(text) for text in assignments)
    preset, base = load_preset(source), load_params()
    require(base, "prepare")
    cells = grid(preset, base, overrides, " --set ".join([str(source), *assignments]))
    plan = [(n, p.model_copy(update={"seeds": [p.seed + i]})) for n, p in cells.items() for i in range(seeds)]
    rows: list[dict[str, Any]] = []
    warned: set[str] = set()
    for i, (names, params) in enumerate(plan, 1):
        label = f"{i}/{len(plan)} {' × '.join(names)}" + (f", seed {params.seed}" if seeds > 1 else "")
        try:
            training = training_run(params)
        except InputError as error:
            raise InputError(f"{source}: {' × '.join(names)}: {error}") from None
        for line in sorted({*training.warnings} - warned):
            print(f"{label}: warning: {line}", flush=True)
        warned |= {*training.warnings}
        file = out / "runs" / f"{training.key}.json"
        known = file.exists()
        measured: dict[str, Any] = {}
        try:
            measured = _run(training, params, base, file, label)
        except (InputError, TrainingError) as error:  # such as a batch larger than the data: the other cells are sound
            print(f"{label}: failed: {error}", flush=True)
        else:
            if "val_effective_rank" not in measured:
                raise InputError("no validation images to compare by; raise prepare.val_fraction")
            measure = "val_knn" if "val_knn" in measured else "val_effective_rank"
            took = "run before" if known else f"{measured['seconds']:.0f} s"
            print(f"{label}: {measure} {measured[measure]:.3g} ({took})", flush=True)
        rows.append(dict(zip(preset.vary, names, strict=True)) | {"seed": params.seed, "key": training.key} | measured)
    failed = sum("epoch" not in row for row in rows)
    if failed < len(rows):
        _report(preset, pd.DataFrame(rows), assignments, seeds, out)
        print(f"ablate: {out}/table.md, table.csv and figure.png")
    if failed:
        raise TrainingError(f"{failed} of {len(rows)} runs failed; the same command tries them again")


def load_preset(path: Path) -> Preset:
    """The checked preset of a file; InputError names each key at error, or the presets there are."""
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise InputError(f"{path}: no such preset; {path.parent} holds {known}")
    return parse(Preset, read_yaml(path.read_bytes(), path), path)


def grid(preset: Preset, params: Params, overrides: Settings, source: str) -> dict[tuple[str, ...], Pretrain]:
    """The settings of every cell by its names on the axes: the product of the axes, the last one fastest.

    Of params.yaml, the preset's `set`, `overrides` and the cell, the later wins; InputError, naming `source`, where a
    cell's settings can't be, contradict each other, or would take an override back.
    """
    cells = {}
    for names in itertools.product(*preset.vary.values()):
        chosen = [settings[name] for settings, name in zip(preset.vary.values(), names, strict=True)]
        tree = params.model_dump(by_alias=True)
        for settings in (preset.set, overrides, *chosen):
            change(tree, settings)
        cells[names] = parse(Params, tree, source).pretrain
        for key, value in itertools.chain(*(settings.items() for settings in (overrides, *chosen))):
            if (found := _at(tree, key)) != value:
                raise InputError(f"{source}: {key} = {value!r}: the cell {' × '.join(names)} makes it {found!r}")
        for key in [*preset.set, *overrides, *itertools.chain(*chosen)]:
            if key.split(".")[0] != "pretrain":
                raise InputError(f"{source}: {key}: only pretrain is varied; set it in params.yaml and run dvc repro")
    return cells


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: must be KEY=VALUE, such as pretrain.epochs=10")
    return key, read_yaml(value, f"--set {text}")


def _run(training: TrainingRun, params: Pretrain, base: Params, file: Path, label: str) -> dict[str, Any]:
    """The measures of a run at its kept epoch, those of accuracy with their 95 % intervals over groups, that epoch, and
    the seconds it took; from its file, if it has one."""
    if not file.exists():
        begun = time.monotonic()
        trained = training.fit(log=lambda line: print(f"{label}: {line}", flush=True))
        result = {"pretrain": params.model_dump(), "history": trained.history, "epoch": trained.epoch}
        result["bounds"] = {
            f"{measure}_{bound}": scores[f"accuracy_{bound}"]
            for measure, scores in validation_scores(trained.encoder, base).items()
            for bound in ("low", "high")
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".tmp")
        fresh.write_text(json.dumps({**result, "seconds": time.monotonic() - begun}, indent=2) + "\n")
        fresh.replace(file)
        shutil.rmtree(training.checkpoints.folder, ignore_errors=True)
    result = json.loads(file.read_text())
    kept = result["history"][result["epoch"] - 1]
    measures = {m: kept[m] for m in MEASURES if m in kept}
    return measures | result["bounds"] | {k: result[k] for k in ("epoch", "seconds")}


def _report(preset: Preset, table: pd.DataFrame, assignments: list[str], seeds: int, out: Path) -> None:
    from simtrail.report.figures.charts import ablation_panels

    table.to_csv(out / "table.csv", index=False)
    measures = [m for m in MEASURES if m in table]
    axes = {axis: list(settings) for axis, settings in preset.vary.items()}
    values = table[measures].to_numpy().reshape(*map(len, axes.values()), seeds, len(measures))
    means = values.mean(-2)
    deviations = values.std(-2, ddof=1) if seeds > 1 else np.full_like(means, np.nan)
    ends = np.stack([means - deviations, means + deviations], -1)
    for i, m in enumerate(measures):
        if seeds == 1 and f"{m}_low" in table:
            ends[..., i, :] = table[[f"{m}_low", f"{m}_high"]].to_numpy().reshape(*means.shape[:-1], 2)

    def cell(at: tuple[int, ...], measure: int) -> str:
        mean, deviation, (low, high) = (each[(*at, measure)] for each in (means, deviations, ends))
        if np.isnan(mean):
            return "failed"
        digits = 1 if measures[measure] == "val_effective_rank" else 3
        text = f"{mean:.{digits}f}"
        if np.isnan(low):
            return text
        return f"{text} ± {deviation:.{digits}f}" if seeds > 1 else f"{text} ({low:.{digits}f} – {high:.{digits}f})"

    repeats = "one seed, 95 % intervals over groups" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"
    note = f"Validation split, weights of the kept epoch, {repeats}"
    heads = [*axes, *(MEASURES[m] for m in measures)]
    lines = [f"# {preset.title}", "", f"After {preset.source}. {note}" + ", ".join(["", *assignments]) + ".", ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(axes) + "---:|" * len(measures)]
    for at in np.ndindex(means.shape[:-1]):
        names = [settings[i] for i, settings in zip(at, axes.values(), strict=True)]
        lines.append("| " + " | ".join([*names, *(cell(at, m) for m in range(len(measures)))]) + " |")
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    panels = {MEASURES[m]: (means[..., i], ends[..., i, :]) for i, m in enumerate(measures)}
    ablation_panels(axes, panels, preset.title, note, out / "figure.png")
