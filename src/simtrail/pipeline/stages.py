"""The stages, one per verb: read, call, write. Their `settings` are texts KEY=VALUE that replace parameters."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simtrail.data.dataset import Dataset, missing_data
from simtrail.errors import InputError, counted, listed
from simtrail.params import Params, load_params
from simtrail.pipeline import workspace as ws
from simtrail.pipeline.summary import note_lines, rejected_lines, score_lines, warning_lines

if TYPE_CHECKING:
    from simtrail.data.pack import PackedImages
    from simtrail.pipeline.training_run import TrainingRun
    from simtrail.training.features import Chosen

echo = partial(print, flush=True)


def settings(settings: Sequence[str] = ()) -> None:
    """Writes the parameters that decide each stage's result, defaults included, on which its DVC stage depends."""
    params = load_params(settings=settings)
    ws.fresh_folder(ws.SETTINGS)
    if not (folder := Path("data", params.data.name)).is_dir():
        echo(f"settings: warning: {missing_data(folder)}")
    for stage in ws.DECIDING:
        ws.write_json(ws.SETTINGS / f"{stage}.json", ws.settings(params, stage))
    echo(f"settings: the parameters of every stage, defaults included: {ws.SETTINGS}")


def check(settings: Sequence[str] = ()) -> None:
    """Writes the manifest and the validation of the dataset; InputError lists all bad images, unless quarantined."""
    params = load_params(settings=settings)
    from simtrail.data.checking.checks import load_library, validate
    from simtrail.data.manifest import scan
    from simtrail.report.validation import validation_page

    ws.fresh_folder(ws.MANIFEST.parent)
    dataset, name = Dataset(Path("data") / params.data.name), params.data.name
    manifest, md5 = scan(dataset, params.check.max_side, meanwhile=load_library)  # which takes seconds
    findings, rejected = validate(manifest, params.check, dataset.declaration)
    if params.check.near_duplicates == "ignore":
        manifest["near_copy"] = pd.NA
    manifest["rejected"] = manifest["path"].map(rejected)
    manifest.to_parquet(ws.MANIFEST)
    reasons = pd.DataFrame({"path": list(rejected), "reason": list(rejected.values())}, dtype="object")
    reasons.to_csv(ws.QUARANTINE, index=False)
    result: dict[str, Any] = {
        "dataset": name,
        "settings": ws.settings(params, "check"),
        "data_md5": md5,
        "images": len(manifest),
        "on_fail": params.check.on_fail,
        "success": not rejected,
        "findings": [f.as_dict() for f in findings],
        "rejected": rejected,
        "other_files": [
            p for p in dataset.files()[1] if p not in (dataset.sheet and dataset.sheet.name, "dataset.yaml")
        ],
        "notes": {note: [] for note in dataset.notes} | _notes(manifest),
    }
    ws.write_json(ws.VALIDATION, result)
    ws.VALIDATION_PAGE.write_text(validation_page(result, manifest), encoding="utf-8")
    if others := result["other_files"]:
        echo(f"check: {len(others)} files are not images and are left out, such as {others[0]}")
    for line in note_lines(result):
        echo(f"check: note: {line}")
    if unused := dataset.unused_labels(manifest):
        echo(f"check: warning: {unused}")
    for line in warning_lines(result):
        echo(f"check: warning: {line}")
    if rejected and (params.check.on_fail == "error" or len(rejected) == len(manifest)):
        raise InputError(
            f"{len(rejected)} of {len(manifest)} images can't be used:\n{rejected_lines(result)}\n"
            "repair or remove them, or set check.on_fail: quarantine to continue without them; the whole result: "
            f"{ws.VALIDATION_PAGE}"
        )
    if rejected:
        echo(f"check: quarantined {len(rejected)} of {len(manifest)} images:\n{rejected_lines(result)}")
    echo(f"check: {len(manifest) - len(rejected)} images can be used; {ws.VALIDATION_PAGE}")


def prepare(settings: Sequence[str] = ()) -> None:
    """Packs all usable images into arrays, splits them, and computes the statistics of the training split."""
    params = load_params(settings=settings)
    from simtrail.data.pack import pack, sample_pixels, statistics, usual_border
    from simtrail.data.recipe import levels, make_recipe, needs_border, without_effect
    from simtrail.data.split import assign_split, split_groups
    from simtrail.data.tiles import table_of_tiles

    ws.require(params, "check")
    validation = ws.read_json(ws.VALIDATION, "check")
    if not validation["success"] and validation["on_fail"] == "error":
        raise InputError(
            f"{ws.VALIDATION}: the check failed; repair the images, or set check.on_fail: quarantine, then run check "
            "again: simtrail check, or dvc repro check"
        )
    manifest = ws.read_table(ws.MANIFEST, "check")
    manifest = manifest[manifest["rejected"].isna()].reset_index(drop=True)
    dataset = Dataset(Path("data") / params.data.name)
    blocks = split_groups(manifest, near_copies=params.check.near_duplicates == "group")
    split = assign_split(manifest, params.prepare, blocks)
    held_out = manifest["label"].isin(_known_classes(params.evaluate.held_out_classes, manifest["label"]))
    pretraining = (split == "train") & ~held_out
    paths, reading = manifest["path"][pretraining].to_list(), dataset.declaration.reading
    source = (dataset.folder, paths, params.prepare.seed, reading)
    ask = needs_border(manifest, dataset.declaration, params.prepare)
    border = usual_border(*source, params.prepare.size) if ask else None
    recipe = make_recipe(manifest, dataset.declaration, params.prepare, partial(sample_pixels, *source), border)
    if params.prepare.background == "auto":
        echo(f"prepare: background {levels(recipe.background)}, {recipe.origin}")
    for line in without_effect(recipe, manifest["facts"].iloc[0]):
        echo(f"prepare: warning: {line}")
    ws.fresh_folder(ws.PACKED)  # only now: an error in the settings must not remove an earlier result
    unfinished = ws.project_folder() / ".simtrail/prepare"
    packed = pack(dataset.folder, manifest, recipe, ws.PACKED, unfinished, ws.code_hash("data"))
    table = _split_table(manifest, split, blocks, held_out)
    if recipe.fit == "tile":
        table = table_of_tiles(table, packed.tiles)
        pretraining = (table["split"] == "train") & ~table["held_out"]
        if small := int((manifest[["height", "width"]].min(axis=1) < recipe.size).sum()):
            echo(f"prepare: warning: {small} images are smaller than a tile of {recipe.size} px: padded")
        echo(f"prepare: {len(manifest)} images cut into tiles; {packed.blank} tiles of only background left out")
    table.to_parquet(ws.SPLIT)
    counts = table["split"].value_counts().to_dict()
    ws.write_json(
        ws.STATISTICS,
        {
            "settings": ws.settings(params, "prepare"),
            "data_md5": validation["data_md5"],
            "split_hash": _split_hash(table),
            "images": counts,
            "recipe": recipe.model_dump(),
            **statistics(packed.moments[pretraining]),
        },
    )
    parts = ", ".join(f"{counts[part]} {part}" for part in ("train", "val", "test"))
    if held_out.any():
        parts += f"; {table['held_out'].sum()} of classes that pretraining never sees"
    longest = manifest[["height", "width"]].max(axis=1).median()
    if recipe.fit != "tile" and longest < recipe.size:
        echo(f"prepare: images are enlarged: the longer side of half of them has at most {longest:.0f} px")
    what = "tiles" if recipe.fit == "tile" else "images"
    echo(f"prepare: {len(table)} {what} of {counted(len(recipe.bands), 'band')} at {recipe.size} px: {parts}")


def plan(settings: Sequence[str] = ()) -> None:
    """Chooses the value of every parameter that is `auto`, by rules, measurements and a pilot; writes the plan."""
    params = load_params(settings=settings)
    ws.require(params, "prepare")
    from simtrail.pipeline.plan import make_plan, write

    write(make_plan(params, log=lambda line: echo(f"plan: {line}")), params)
    echo(f"plan: {len(params.auto)} settings were auto: {ws.PLAN}")


def pretrain(settings: Sequence[str] = ()) -> None:
    """Trains an encoder by SimCLR on the training split for each seed; writes it and its history.

    The later stages use the encoder of the first seed. Each training has one MLflow run, which it resumes after a kill.
    In several processes (torchrun) only the first logs and writes files.
    """
    params = load_params(settings=settings)
    ws.require(params, "prepare")
    from simtrail.pipeline.plan import is_planned, planned, write_features
    from simtrail.pipeline.training_run import training_run
    from simtrail.training.distributed import processes, rank

    if "WORLD_SIZE" not in os.environ and not is_planned(params):  # with DVC, the plan stage has run before
        plan(settings)
    pilot = [row["run"] for row in ws.read_json(ws.PLAN, "plan")["pilot"]] if params.auto else []
    params = planned(params)
    runs = [training_run(p) for p in params.pretrain.each_seed()]  # all errors in settings come before any file
    with processes():
        if rank() > 0:
            for ready in runs:
                ready.fit()
            return
        ws.fresh_folder(ws.ENCODER)
        ws.SEEDS.mkdir()
        ws.write_json(ws.TRAINING_SETTINGS, ws.settings(params, "pretrain"))
        chosen = _train(params, runs[0], ws.ENCODER, pilot)
        write_features(chosen)
        for p, ready in list(zip(params.pretrain.each_seed(), runs, strict=True))[1:]:
            _train(params.model_copy(update={"pretrain": p}), ready, ws.SEEDS / str(p.seed), pilot, chosen)


def preview(images: int, seed: int, recipe: str | None = None, settings: Sequence[str] = ()) -> None:
    """Draws training images and their views with the present settings or a recipe: artifacts/preview/views.png."""
    params = load_params(settings=[*settings, *([f"pretrain.recipe={recipe}"] if recipe else [])])
    ws.require(params, "prepare")
    from simtrail.pipeline.plan import is_planned, planned

    if "pretrain.recipe" in params.auto or is_planned(params):
        params = planned(params)
    from simtrail.augment.views import TwoViews
    from simtrail.pipeline.training_run import without_effect
    from simtrail.report.figures.pictures import view_grid

    source = ws.prepared()
    views = TwoViews(params.pretrain.augment, source.recipe, params.pretrain.view_sides[-1])
    rows = np.random.default_rng(seed).permutation(source.pretraining_rows("train"))[:images]
    ws.fresh_folder(ws.PREVIEW.parent)
    view_grid(source.images, rows, views, seed, ws.PREVIEW)
    for line in without_effect(views, params.pretrain.recipe):
        echo(f"preview: warning: {line}")
    name = f" of the recipe {params.pretrain.recipe}" if params.pretrain.recipe else ""
    echo(f"preview{name}: {len(rows)} images and two pairs of views each: {ws.PREVIEW}")


def embed(settings: Sequence[str] = ()) -> None:
    """Computes the features of every usable image, in the order of the split table."""
    params = _of_encoder(settings, "prepare", "pretrain")
    from simtrail.evaluation.assess import features_of
    from simtrail.model.encoder import Encoder
    from simtrail.training.state import Checkpoints

    encoder, source = Encoder.load(ws.ENCODER), ws.prepared()
    Checkpoints.discard_finished(ws.project_folder() / ".simtrail")  # the encoder is now in the pipeline's results
    features = features_of(encoder, source.images, params.embed.batch_size)
    ws.fresh_folder(ws.EMBEDDINGS.parent)
    source.table.assign(vector=list(features)).to_parquet(ws.EMBEDDINGS)
    echo(f"embed: {len(features)} images × {features.shape[1]} features")


def evaluate(settings: Sequence[str] = ()) -> None:
    """Measures the encoder on the test split: scores with intervals, floors, tables, evidence; logged to the run."""
    params = _of_encoder(settings, "prepare", "pretrain")
    from simtrail.downstream.fine_tune import Tuning, few_label_table
    from simtrail.evaluation.assess import Embedded, assess, by_modality, over_seeds
    from simtrail.evaluation.evidence import gather
    from simtrail.model.encoder import Encoder
    from simtrail.model.teacher import teacher_features
    from simtrail.pipeline.headline import headline, write_plots
    from simtrail.pipeline.registration import log_evaluation
    from simtrail.training.monitors import kept_epoch

    p, source, encoder = params.evaluate, ws.prepared(), Encoder.load(ws.ENCODER)
    features = np.stack(ws.read_table(ws.EMBEDDINGS, "embed")["vector"].to_list())
    history = ws.read_table(ws.HISTORY, "pretrain").to_dict("records")
    embedded = Embedded(encoder, source.images, source.table, features)
    ws.fresh_folder(ws.EVALUATION)

    def log(line: str) -> None:
        echo(f"evaluate: {line}")

    first = _used(params.pretrain.weights, encoder.config.first_weights, "pretrain.weights")
    teacher, features_of_teacher = params.pretrain.teacher, None
    if teacher.weights:
        location = _used(teacher.weights, encoder.config.teacher, "pretrain.teacher.weights")
        frozen, rows = teacher.model_copy(update={"weights": location}), np.arange(len(source.table))
        features_of_teacher = teacher_features(frozen, encoder.config, source.images, rows, log)
    assessment = assess(embedded, params.pretrain.augment, p, log, first, features_of_teacher)
    if not assessment.tasks:
        log("no labels of two classes or more: label-free measures only")
    evidence = gather(assessment, embedded, p, log)
    if assessment.tasks and p.fine_tune.fractions:
        tuning = Tuning(p.fine_tune.epochs, params.pretrain.precision, seed=p.seed)
        log("fine-tuning on few labels, and the same network from random weights")
        evidence.tables["fine_tune"] = few_label_table(encoder, source.images, assessment.tasks[0], p, tuning, log)
    if seeds := params.pretrain.seeds[1:]:
        log(f"encoders of {len(seeds)} further seeds")
        others = (Encoder.load(ws.SEEDS / str(seed)) for seed in seeds)  # one at a time in memory
        assessment.metrics["seeds"] = over_seeds(assessment, others, source.images, p)
    if modalities := by_modality(assessment, embedded, p):
        assessment.metrics["modalities"] = modalities
    evidence.save(ws.EVALUATION)
    ws.write_json(ws.SCORES, assessment.metrics)
    write_plots(history, evidence.tables, evidence.predictions, ws.PLOTS)
    kept = kept_epoch(history, params.pretrain.monitor.metric)
    ws.write_json(ws.HEADLINE, headline(assessment.metrics, history, kept))
    files = [ws.SCORES, ws.VALIDATION, *sorted(ws.EVALUATION.glob("*.parquet")), *sorted(ws.TABLES.iterdir())]
    log_evaluation(params, ws.ENCODER, assessment.metrics, files)
    echo("\n".join(score_lines(assessment.metrics)))


def report(settings: Sequence[str] = ()) -> None:
    """Draws everything that people look at: figures, map, pages and the model card; logged to the run."""
    params = _of_encoder(settings, *ws.RECORDS)
    from simtrail.pipeline.registration import facts
    from simtrail.report.card import model_card
    from simtrail.report.drawing import Evaluation, draw
    from simtrail.report.page import report_page
    from simtrail.report.validation import validation_page
    from simtrail.tracking.pull import encoder_hash
    from simtrail.tracking.run import Trail, log_result, run
    from simtrail.training.monitors import kept_epoch

    source, metrics = ws.prepared(), ws.read_json(ws.SCORES, "evaluate")
    predictions, points = ws.read_table(ws.PREDICTIONS, "evaluate"), ws.read_table(ws.MAP_POINTS, "evaluate")
    arrays = ws.read_arrays(ws.EVIDENCE, "evaluate")
    history = ws.read_table(ws.HISTORY, "pretrain").to_dict("records")
    for folder in (ws.FIGURES, ws.REPORT.parent):
        ws.fresh_folder(folder)
    page = validation_page(ws.read_json(ws.VALIDATION, "check"), ws.read_table(ws.MANIFEST, "check"))
    ws.VALIDATION_PAGE.write_text(page, encoding="utf-8")
    _draw_views(params, source.images, source.pretraining_rows("train"), ws.ENCODER)
    _draw_curve(history, kept_epoch(history, params.pretrain.monitor.metric), ws.ENCODER)
    evaluation = Evaluation(metrics, ws.read_tables(), predictions, points, arrays, source.images, source.table)
    draw(evaluation, params.evaluate.seed, ws.FIGURES, ws.MAP_PAGE)
    with run(Trail(params, source.statistics), encoder=encoder_hash(ws.ENCODER)) as run_id:
        content = facts(params, ws.ENCODER, history, metrics, run_id)
        ws.REPORT.write_text(report_page(content, ws.ROOT), encoding="utf-8")
        ws.CARD.write_text(model_card(content), encoding="utf-8")
        log_result({}, [ws.REPORT, ws.CARD, ws.VALIDATION_PAGE, ws.MAP_PAGE, *sorted(ws.FIGURES.glob("*.png"))])
    echo(f"report: {ws.REPORT} and {ws.CARD.name}")


def register(settings: Sequence[str] = ()) -> None:
    """Registers the encoder in MLflow with its metrics and lineage; it becomes champion only if it is the best."""
    params = _of_encoder(settings, *ws.RECORDS)
    from simtrail.evaluation.names import beats_floors
    from simtrail.pipeline.registration import register_encoder
    from simtrail.report.wording import verdict
    from simtrail.tracking.gate import INCOMPARABLE

    metrics, history = ws.read_json(ws.SCORES, "evaluate"), ws.read_table(ws.HISTORY, "pretrain").to_dict("records")
    predictions = ws.read_table(ws.PREDICTIONS, "evaluate")
    version = register_encoder(params, ws.ENCODER, history, metrics, predictions)
    ws.fresh_folder(ws.REGISTRATION.parent)
    ws.write_json(ws.REGISTRATION, version)
    ws.write_json(ws.REGISTERED, {key: version[key] for key in ("name", "encoder_sha256")})
    echo(f"register: {version['name']} version {version['version']} is {version['alias']}: {version['reason']}")
    if version["reason"].startswith(INCOMPARABLE):
        echo("register: another register.name has a champion of its own; you can also set the alias in the MLflow UI")
    for name, task in list(metrics["tasks"].items())[:1]:
        if not beats_floors(task["gains"]):
            echo(f"register: warning: linear probe of {name}: {verdict(task)}")


def _of_encoder(settings: Sequence[str], *stages: str) -> Params:
    """The parameters with what the plan and the training chose in place of auto, with which the stages have run."""
    from simtrail.pipeline.plan import chosen, planned

    params = planned(load_params(settings=settings))
    ws.require(params, *stages)
    return chosen(params)


def _notes(manifest: pd.DataFrame) -> dict[str, list[str]]:
    """Each decision in reading files, with the paths of these files."""
    notes = manifest[["path", "notes"]].explode("notes").dropna()
    return {str(note): group["path"].to_list() for note, group in notes.groupby("notes")}


def _train(
    params: Params, ready: TrainingRun, folder: Path, pilot: list[str], chosen: Chosen | None = None
) -> Chosen | None:
    """Trains one encoder and writes it, its history and its pictures to a folder; logged to its run.

    The runs of the `pilot` are shown below this run, if they are not yet below that of another seed.
    Returns what the features are made of, if that was auto: `chosen`, or else the choice of this training.
    """
    from simtrail.pipeline.training_run import with_features
    from simtrail.tracking.pull import encoder_hash
    from simtrail.tracking.run import Trail, adopt, curve_logger, log_chosen, log_result, run, run_name, tag_encoder

    for line in ready.warnings:
        echo(f"pretrain: warning: {line}")
    folder.mkdir(exist_ok=True)
    trail, resumed = Trail(params, ready.prepared), bool(ready.checkpoints)
    name = None if folder == ws.ENCODER else f"{run_name(params)}, seed {params.pretrain.seed}"
    with run(trail, key=ready.key, resumed=resumed, system_metrics=True, name=name) as run_id:
        _draw_views(params, ready.data.images, ready.data.train, folder)
        trained = ready.fit(on_epoch=curve_logger(run_id), log=lambda line: echo(f"pretrain: {line}"), chosen=chosen)
        if trained.features:
            log_chosen(Trail(with_features(params, trained.features), ready.prepared), run_id)
        trained.encoder.save(folder)
        pd.DataFrame(trained.history).to_csv(folder / ws.HISTORY.name, index=False)
        _draw_curve(trained.history, trained.epoch, folder)
        tag_encoder(encoder_hash(folder), ready.first_weights, trained.encoder.config.teacher)
        files = [*sorted(folder.glob("*.png")), folder / "config.json"]
        adopt(pilot, run_id)
        log_result({"kept_epoch": trained.epoch}, [*files, *([ws.PLAN] if ws.PLAN.exists() else [])])
    ready.checkpoints.finish()
    last = trained.history[-1]
    epochs, steps = counted(int(last["epoch"]), "epoch"), counted(int(last["step"]), "step")
    echo(
        f"pretrain: seed {params.pretrain.seed}: {epochs}, {steps}, last loss {last['loss']:.3f}; the weights kept are "
        f"of epoch {trained.epoch}"
    )
    return trained.features


def _used(weights: str, recorded: str | None, key: str) -> str:
    """Where the weights of a setting lie, which the training used; InputError if these were other ones."""
    from simtrail.pipeline.training_run import first_weights

    found = first_weights(weights, key)
    if recorded not in (None, found.stamp):
        raise InputError(
            f"{key} = {weights!r}: now other weights than those that the training used; train again (simtrail "
            "pretrain), or name these weights"
        )
    return found.location


def _draw_views(params: Params, images: PackedImages, rows: np.ndarray, folder: Path) -> None:
    from simtrail.augment.views import TwoViews
    from simtrail.report.figures.pictures import view_grid

    views = TwoViews(params.pretrain.augment, images.recipe, params.pretrain.view_sides[-1])
    view_grid(images, rows[:4], views, params.pretrain.seed, folder / "views.png")


def _draw_curve(history: list[dict[str, float]], kept_epoch: int, folder: Path) -> None:
    from simtrail.report.figures.charts import training_curve

    training_curve(history, kept_epoch, folder / "training.png")


def _split_table(manifest: pd.DataFrame, split: pd.Series, blocks: np.ndarray, held_out: pd.Series) -> pd.DataFrame:
    """A row per image: its identity, labels and metadata, split, block of images never split apart, held out or not."""
    columns = [c for c in manifest if c in ("path", "sha256", "label", "group", "near_copy") or c.startswith("meta.")]
    return manifest[columns].assign(split=split, block=blocks, held_out=held_out)


def _split_hash(table: pd.DataFrame) -> str:
    """Sixteen hex digits that identify which images are in which part."""
    return hashlib.sha256(table[["sha256", "split", "held_out"]].to_csv(index=False).encode()).hexdigest()[:16]


def _known_classes(names: list[str], labels: pd.Series) -> list[str]:
    """The names, each of which must be a class."""
    known = sorted(labels.dropna().unique())
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"the classes are {listed(known)}"
            raise InputError(
                f"evaluate.held_out_classes: {name!r}: no such class; " + (hint if known else "no image has a label")
            )
    return names
