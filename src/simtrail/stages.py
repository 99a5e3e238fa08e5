"""The stages, one per verb: read, call, write. The only place that knows where artifacts lie."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from simtrail.data.dataset import Dataset
from simtrail.errors import InputError
from simtrail.params import Params, Pretrain, load_params

if TYPE_CHECKING:
    from simtrail.augment.views import TwoViews
    from simtrail.data.pack import PackedImages
    from simtrail.evaluation.tasks import Task
    from simtrail.model.encoder import Encoder
    from simtrail.training.loop import Trained
    from simtrail.training.state import Checkpoints

ROOT = Path("artifacts")
MANIFEST, VALIDATION, PAGE = (
    ROOT / "check/manifest.parquet",
    ROOT / "check/validation.json",
    ROOT / "check/validation.html",
)
QUARANTINE = ROOT / "check/quarantine.csv"
PACKED, SPLIT, STATISTICS = ROOT / "prepare", ROOT / "prepare/split.parquet", ROOT / "prepare/statistics.json"
ENCODER, HISTORY = ROOT / "pretrain", ROOT / "pretrain/history.csv"
PREVIEW = ROOT / "preview/views.png"
EMBEDDINGS = ROOT / "embed/embeddings.parquet"
METRICS, FIGURES = ROOT / "evaluate/metrics.json", ROOT / "evaluate/figures"
REPORT, CARD = ROOT / "report/report.html", ROOT / "report/model_card.md"
REGISTRATION = ROOT / "register/registration.json"
TRAINED = ROOT / "pretrain/seeds/settings.json"
SETTINGS = {  # what decides a stage's result, as in dvc.yaml, and the file that tells what it was made with
    "check": (VALIDATION, ("data", "check")),
    "prepare": (STATISTICS, ("data", "prepare", "evaluate.held_out_classes")),
    "pretrain": (TRAINED, ("pretrain",)),
}


def check() -> None:
    """Manifest and validation of the dataset; InputError lists every offending file, unless they are quarantined."""
    params = load_params()
    from simtrail.data.checks import validate
    from simtrail.data.manifest import scan
    from simtrail.data.page import validation_page
    from simtrail.data.readers import BandFacts

    _fresh(MANIFEST.parent)
    dataset = Dataset(Path("data") / params.data.name)
    declared = dataset.declaration
    manifest, md5 = scan(dataset)
    usual = manifest["facts"].mode()
    findings, rejected = validate(
        manifest,
        params.check,
        declared=declared.completed(BandFacts.model_validate_json(usual.iloc[0])) if len(usual) else declared,
        labelled=declared.label is not None or bool(manifest["label"].notna().any()),
        grouped=declared.group is not None,
    )
    manifest["rejected"] = manifest["path"].map(rejected)
    manifest.to_parquet(MANIFEST)
    reasons = pd.DataFrame({"path": list(rejected), "reason": list(rejected.values())}, dtype="object")
    reasons.to_csv(QUARANTINE, index=False)
    result: dict[str, Any] = {
        "dataset": params.data.name,
        "settings": _settings(params, "check"),
        "data_md5": md5,
        "images": len(manifest),
        "on_fail": params.check.on_fail,
        "success": not rejected,
        "findings": [f.as_dict() for f in findings],
        "rejected": rejected,
    }
    _write_json(VALIDATION, result)
    usable = manifest[manifest["rejected"].isna()]
    others = [p for p in dataset.files()[1] if p not in ("metadata.csv", "dataset.yaml")]
    PAGE.write_text(validation_page(result, manifest, others), encoding="utf-8")

    if others:
        _say(f"check: {len(others)} files are no images and are not looked at, such as {others[0]}")
    for finding in findings:
        if finding.severity == "warning" and not finding.success:
            _say(f"check: warning: found false: {finding.title!r}: {_some(finding.offenders)}")
    if rejected:
        shown = [f"  data/{params.data.name}/{path}: {reason}" for path, reason in list(rejected.items())[:200]]
        if len(rejected) > len(shown):
            shown.append(f"  … and {len(rejected) - len(shown)} more in {PAGE}")
        listing = "\n".join(shown)
        if params.check.on_fail == "error" or len(rejected) == len(manifest):
            raise InputError(
                f"{len(rejected)} of {len(manifest)} images can't be used:\n{listing}\n"
                f"mend or remove them, or set check.on_fail: quarantine to go on without them; the whole result: {PAGE}"
            )
        _say(f"check: quarantined {len(rejected)} of {len(manifest)} images:\n{listing}")
    _say(f"check: {len(usable)} images can be used; {PAGE}")


def prepare() -> None:
    """Packed arrays of all usable images, their split, and the statistics of the training part."""
    params = load_params()
    from simtrail.data.pack import pack, sample_pixels, statistics
    from simtrail.data.readers import BandFacts
    from simtrail.data.recipe import make_recipe
    from simtrail.data.split import assign, split_groups

    demand(params, "check")
    checks = _read_json(VALIDATION, "check")
    if not checks["success"] and checks["on_fail"] == "error":
        raise InputError(
            f"{VALIDATION}: the check failed; mend the images, or set check.on_fail: quarantine, and check"
        )
    manifest = _read(pd.read_parquet, MANIFEST, "check")
    manifest = manifest[manifest["rejected"].isna()].reset_index(drop=True)
    dataset = Dataset(Path("data") / params.data.name)
    split = assign(manifest, params.prepare)
    held_out = manifest["label"].isin(_known_classes(params.evaluate.held_out_classes, manifest["label"]))
    learnt = manifest["path"][(split == "train") & ~held_out].to_list()
    sample = partial(sample_pixels, dataset.folder, learnt, params.prepare.seed)
    recipe = make_recipe(manifest, dataset.declaration, params.prepare, sample)
    good = BandFacts.model_validate_json(manifest["facts"].iloc[0]).good or [True] * recipe.file_bands
    if asked := [i + 1 for i in recipe.chosen if not good[i]]:
        _say(f"prepare: warning: prepare.bands: the files mark bands as bad: {_some([str(i) for i in asked])}")
    if recipe.cut and not recipe.masked:
        _say("prepare: warning: prepare.mask = 'crop': no effect: no mask band or value without data is declared")
    _fresh(PACKED)  # only now: what can't be is refused before an earlier result is removed
    images, moments = pack(dataset.folder, manifest, recipe, PACKED)
    meta = [c for c in manifest if c in ("path", "sha256", "label", "group") or c.startswith("meta.")]
    table = manifest[meta].assign(split=split, block=split_groups(manifest), held_out=held_out)
    table.to_parquet(SPLIT)
    counts = split.value_counts().to_dict()
    _write_json(
        STATISTICS,
        {
            "settings": _settings(params, "prepare"),
            "data_md5": checks["data_md5"],
            "split_hash": hashlib.sha256(
                table[["sha256", "split", "held_out"]].to_csv(index=False).encode()
            ).hexdigest()[:16],
            "images": counts,
            "recipe": recipe.model_dump(),
            **statistics(moments[(split == "train") & ~held_out]),
        },
    )
    parts = ", ".join(f"{counts[part]} {part}" for part in ("train", "val", "test"))
    if held_out.any():
        parts += f"; {held_out.sum()} of classes that pretraining never sees"
    _say(f"prepare: {len(images)} images of {len(recipe.bands)} bands at {recipe.size} px: {parts}")


class Training(NamedTuple):
    """A training run on the prepared images, ready to start."""

    key: str  # identifies all that decides the result: the data and their split, settings, first weights, code
    origin: str  # the same without the settings
    data_md5: str
    first_weights: str  # random, pretrained, or the sha256 of an encoder
    images: PackedImages
    rows: np.ndarray  # of the training split
    views: TwoViews
    warnings: list[str]  # settings without effect
    checkpoints: Checkpoints
    fit: Callable[..., Trained]  # takes on_epoch and say


def training(p: Pretrain, group: str = "") -> Training:
    """The training run that these settings make of the prepared images; InputError where there are none.

    Runs of a `group` have checkpoints of their own, which no other runs with these settings find.
    """
    import torch

    from simtrail.augment.views import TwoViews
    from simtrail.data.recipe import Recipe
    from simtrail.model.encoder import Encoder, EncoderConfig
    from simtrail.training.loop import fit
    from simtrail.training.state import Checkpoints

    p = p.each_seed()[0]
    facts, table = _read_json(STATISTICS, "prepare"), _read(pd.read_parquet, SPLIT, "prepare")
    recipe = Recipe.model_validate(facts["recipe"])
    config = EncoderConfig(
        architecture=p.encoder, head=p.head, recipe=recipe, mean=facts["mean"], std=facts["std"], terms=p.terms
    )
    weights = _local(p.weights)
    data, looks = (
        ("data/loader.py", "data/pack.py", "data/recipe.py"),
        ("evaluation/classifiers.py", "evaluation/geometry.py"),
    )
    code = _code_hash("augment", *data, *looks, "model", "training")
    settings = p.model_dump(exclude={"checkpoint"})  # how often it is saved changes nothing
    key, origin = (
        hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        for parts in ([facts, settings, weights.stamp, code], [facts, weights.stamp, code])
    )
    with torch.random.fork_rng([]):
        Encoder(config)  # what can't be built is refused before anything is begun or replaced
    images, views = packed(recipe), TwoViews(p.augment, recipe)
    train, val = (np.flatnonzero((table["split"] == part) & ~table["held_out"]) for part in ("train", "val"))
    checkpoints = Checkpoints(_root() / ".simtrail" / group, key, p.checkpoint.keep)
    p, labels = p.model_copy(update={"weights": weights.place}), pd.factorize(table["label"])[0]
    learn = partial(fit, images, train, val, config, p, labels=labels, checkpoints=checkpoints)
    warnings = [*views.ineffective(), *_without_effect(p)]
    return Training(key, origin, facts["data_md5"], weights.stamp, images, train, views, warnings, checkpoints, learn)


def pretrain() -> None:
    """The encoder, trained by SimCLR on the training split, and its history, for each seed: the first goes on through
    the pipeline. One MLflow run each, resumed after a kill.

    In several processes (torchrun) the first keeps the runs and writes; the others only compute.
    """
    params = load_params()
    demand(params, "prepare")
    from simtrail.training.distributed import processes, rank

    ready = [
        training(p) for p in params.pretrain.each_seed()
    ]  # what can't be built is refused before a file is touched
    with processes():
        if rank() > 0:
            for run in ready:
                run.fit()
            return
        _fresh(ENCODER)
        TRAINED.parent.mkdir()
        _write_json(TRAINED, _settings(params, "pretrain"))
        for p, run in zip(params.pretrain.each_seed(), ready, strict=True):
            first = run is ready[0]
            _train(
                params if first else params.model_copy(update={"pretrain": p}),
                run,
                ENCODER if first else ENCODER / f"seeds/{p.seed}",
            )


def _train(params: Params, ready: Training, folder: Path) -> None:
    """One training run, its encoder and pictures written to a folder."""
    from simtrail.evaluation.figures.charts import training_curve
    from simtrail.evaluation.figures.pictures import view_grid
    from simtrail.tracking.registry import encoder_hash
    from simtrail.tracking.run import Trail, curves, log_result, run, tag_encoder

    for line in ready.warnings:
        _say(f"pretrain: warning: {line}")
    folder.mkdir(exist_ok=True)
    trail, resumed = Trail(params, ready.data_md5), bool(ready.checkpoints)
    with run(trail, key=ready.key, resumed=resumed, system_metrics=True) as run_id:
        view_grid(ready.images, ready.rows[:4], ready.views, params.pretrain.seed, folder / "views.png")
        trained = ready.fit(on_epoch=curves(run_id), say=lambda line: _say(f"pretrain: {line}"))
        trained.encoder.save(folder)
        pd.DataFrame(trained.history).to_csv(folder / HISTORY.name, index=False)
        training_curve(trained.history, trained.epoch, folder / "training.png")
        tag_encoder(encoder_hash(folder), ready.first_weights)
        log_result({"kept_epoch": trained.epoch}, [*sorted(folder.glob("*.png")), folder / "config.json"])
    ready.checkpoints.finish()
    last = trained.history[-1]
    _say(
        f"pretrain: seed {params.pretrain.seed}: {last['epoch']} epochs, {last['step']} steps, last loss "
        f"{last['loss']:.3f}; the weights kept are of epoch {trained.epoch}"
    )


def preview(images: int, seed: int) -> None:
    """A picture of training images and their views under the present settings: artifacts/preview/views.png."""
    params = load_params()
    demand(params, "prepare")
    from simtrail.augment.views import TwoViews
    from simtrail.data.recipe import Recipe
    from simtrail.evaluation.figures.pictures import view_grid

    facts, table = _read_json(STATISTICS, "prepare"), _read(pd.read_parquet, SPLIT, "prepare")
    recipe = Recipe.model_validate(facts["recipe"])
    views = TwoViews(params.pretrain.augment, recipe)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero((table["split"] == "train") & ~table["held_out"]))[
        :images
    ]
    _fresh(PREVIEW.parent)
    view_grid(packed(recipe), rows, views, seed, PREVIEW)
    for line in views.ineffective():
        _say(f"preview: warning: {line}")
    _say(f"preview: {len(rows)} images and two pairs of views each: {PREVIEW}")


def embed() -> None:
    """The features of every usable image, with its split and labels, in the order of the split."""
    params = load_params()
    demand(params, "prepare", "pretrain")
    from simtrail.evaluation.assess import features_of
    from simtrail.model.encoder import Encoder
    from simtrail.training.state import Checkpoints

    encoder = Encoder.load(ENCODER)
    Checkpoints.discard_finished(_root() / ".simtrail")  # the pipeline has gone on: the encoder is safe
    table = _read(pd.read_parquet, SPLIT, "prepare")
    features = features_of(encoder, packed(encoder.config.recipe), params.embed.batch_size)
    _fresh(EMBEDDINGS.parent)
    table.assign(vector=list(features)).to_parquet(EMBEDDINGS)
    _say(f"embed: {len(features)} images × {features.shape[1]} features")


def evaluate() -> None:
    """Scores with intervals and floors, label-free measures, tables and figures; logged to the run."""
    params = load_params()
    demand(params, "prepare", "pretrain")
    from simtrail.evaluation import assess, evidence
    from simtrail.evaluation.figures.charts import fine_tune_bars
    from simtrail.model.encoder import Encoder

    p, folder = params.evaluate, METRICS.parent
    encoder, table = Encoder.load(ENCODER), _read(pd.read_parquet, SPLIT, "prepare")
    features = np.stack(_read(pd.read_parquet, EMBEDDINGS, "embed")["vector"].to_list())
    images = packed(encoder.config.recipe)
    _fresh(folder)
    _say("evaluate: classifiers and floors")
    found = assess.assess(encoder, images, table, features, params.pretrain.augment, p)
    if not found.tasks:
        _say("evaluate: no two classes are labelled: label-free measures only")
    _say("evaluate: geometry, tables, pictures")
    evidence.gather(found, encoder, images, table, features, p, folder)
    if found.tasks and p.fine_tune.fractions:
        few = _fine_tuned(encoder, images, found.tasks[0], len(table), params)
        few.to_csv(folder / "tables/fine_tune.csv", index=False)
        fine_tune_bars(few, FIGURES / "fine_tune.png")
    if others := [ENCODER / f"seeds/{seed}" for seed in params.pretrain.seeds[1:]]:
        found.metrics["seeds"] = assess.over_seeds(found, (Encoder.load(other) for other in others), images, p)
    if own := assess.by_modality(found, encoder, images, np.flatnonzero(table["split"] == "test"), p):
        found.metrics["modalities"] = own
    _write_json(METRICS, found.metrics)
    files = [METRICS, VALIDATION, PAGE, *sorted(folder.glob("*.parquet")), folder / "map.html"]
    files += [*sorted((folder / "tables").iterdir()), *sorted(FIGURES.glob("*.png"))]
    log_evaluation(params, ENCODER, found.metrics, files)
    _say("\n".join(score_lines(found.metrics)))


def log_evaluation(params: Params, encoder: Path, metrics: dict[str, Any], files: list[Path]) -> None:
    """Logs metrics, and files such as metrics.json and predictions.parquet, to the run of the encoder in a folder."""
    from simtrail.tracking.registry import encoder_hash
    from simtrail.tracking.run import Trail, log_result, run, tag_run

    facts = _read_json(STATISTICS, "prepare")
    with run(Trail(params, facts["data_md5"]), encoder=encoder_hash(encoder)) as run_id:
        tag_run(run_id, "simtrail.split_hash", facts["split_hash"])
        log_result(_flat(metrics), files)


def _fine_tuned(encoder: Encoder, images: PackedImages, task: Task, count: int, params: Params) -> pd.DataFrame:
    """Accuracies after fine-tuning with shares of the labels, and from scratch, with intervals over groups."""
    from simtrail.evaluation.scores import with_intervals
    from simtrail.fine_tune import Tuning, compare_few_labels

    p = params.evaluate
    labels, split = np.full(count, -1), np.full(count, "", dtype="<U5")
    labels[task.rows], split[task.rows] = task.labels, task.split
    classes, precision = len(task.names), params.pretrain.precision
    tuning = Tuning(p.fine_tune.epochs, params.pretrain.augment.geometry, precision)
    table, shares = compare_few_labels(
        encoder, images, split, labels, classes, p.fine_tune.fractions, tuning, p.seed, lambda t: _say(f"evaluate: {t}")
    )
    truth, group = task.labels[task.test], task.group[task.test]
    scores = [with_intervals(truth, said.argmax(1), group, classes, p.bootstrap, p.seed)[0] for said in shares.values()]
    return table.assign(**{key: [score[key] for score in scores] for key in ("accuracy_low", "accuracy_high")})


def report() -> None:
    """The report of the run as one HTML page, and the card of its model; logged to the run."""
    params = load_params()
    demand(params, *SETTINGS)
    from simtrail.evaluation.page import model_card, report_page
    from simtrail.tracking.registry import encoder_hash
    from simtrail.tracking.run import Trail, log_result, run

    metrics = _read_json(METRICS, "evaluate")
    history = _read(pd.read_csv, HISTORY, "pretrain").to_dict("records")
    _fresh(REPORT.parent)
    with run(Trail(params, _read_json(STATISTICS, "prepare")["data_md5"]), encoder=encoder_hash(ENCODER)) as run_id:
        told = _facts(params, ENCODER, history, metrics, run_id)
        REPORT.write_text(report_page(told, ROOT), encoding="utf-8")
        CARD.write_text(model_card(told), encoding="utf-8")
        log_result({}, [REPORT, CARD])
    _say(f"report: {REPORT} and {CARD.name}")


def _facts(
    params: Params, encoder: Path, history: list[dict[str, float]], metrics: dict[str, Any], run_id: str
) -> dict[str, Any]:
    """What report and card tell."""
    from simtrail.tracking.registry import encoder_hash
    from simtrail.tracking.run import lineage

    tables = sorted((METRICS.parent / "tables").glob("*.csv")) if encoder == ENCODER else []
    return {
        "name": params.register_.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "params": params.model_dump(by_alias=True),
        "validation": _read_json(VALIDATION, "check"),
        "statistics": _read_json(STATISTICS, "prepare"),
        "history": history,
        "metrics": metrics,
        "tables": {file.stem: pd.read_csv(file) for file in tables if file.stat().st_size > 1},
        "lineage": lineage(run_id) | {"encoder_sha256": encoder_hash(encoder)},
    }


def register() -> None:
    """The encoder in the MLflow registry, with its numbers and lineage, and its alias through the gate."""
    params = load_params()
    demand(params, *SETTINGS)
    from simtrail.evaluation.page import beats_floors, verdict

    metrics = _read_json(METRICS, "evaluate")
    result = enrol(params, ENCODER, pd.read_csv(HISTORY).to_dict("records"), metrics)
    _fresh(REGISTRATION.parent)
    _write_json(REGISTRATION, result)
    _say(f"register: {result['name']} version {result['version']} is {result['alias']}: {result['reason']}")
    for name, task in list(metrics["tasks"].items())[:1]:
        if not beats_floors(task):
            _say(f"register: warning: {name}: {verdict(task)}")


def enrol(params: Params, folder: Path, history: list[dict[str, float]], metrics: dict[str, Any]) -> dict[str, Any]:
    """The registered version of the encoder in a folder, made of the prepared images with these parameters."""
    from simtrail.evaluation.page import model_card
    from simtrail.tracking.registry import register as register_version
    from simtrail.tracking.run import Trail

    flat = _flat(metrics)
    facts = _read_json(STATISTICS, "prepare")
    checks = _read_json(VALIDATION, "check")
    warnings = sum(not f["success"] for f in checks["findings"] if f["severity"] == "warning")
    verdict = "passed" if checks["success"] else f"{len(checks['rejected'])} images quarantined"
    manifest = pd.read_parquet(MANIFEST, columns=["dtype", "bands", "alpha", "rejected"])
    usual = manifest[manifest["rejected"].isna()].mode().iloc[0]
    return register_version(
        Trail(params, facts["data_md5"]),
        folder,
        history,
        flat,
        comparable=f"{facts['split_hash']}-{params.hash('evaluate', 'prepare')}",
        deciding="linear_probe/accuracy" if "linear_probe/accuracy" in flat else "features/effective_rank",
        checks=f"{verdict}, {warnings} warnings",
        signature=(np.dtype(usual["dtype"]), int(usual["bands"]) + int(usual["alpha"])),
        card=lambda run_id: model_card(_facts(params, folder, history, metrics, run_id)),
    )


def summary() -> None:
    """Prints the result of the last run: the probe beside its floors, the registered version, what to do next."""
    metrics = _read_json(METRICS, "evaluate")
    version = _read_json(REGISTRATION, "register")
    _say("\n".join(score_lines(metrics)))
    _say(f"\n{version['name']} version {version['version']} is {version['alias']} ({version['reason']})")
    _say(f"  report       {REPORT}")
    _say(f"  pull it      simtrail pull models:/{version['name']}@{version['alias']} --out encoder")
    _say("  browse runs  make ui")


def score_lines(metrics: dict[str, Any]) -> list[str]:
    """The scores of every task beside their floors, as lines of text."""
    from simtrail.evaluation.scores import FEW_GROUPS, TITLES

    lines = [] if metrics["tasks"] else ["no labels: label-free measures of the test split"]
    for task, told in metrics["tasks"].items():
        size = f"{told['classes']} classes, {told['images']} test images"
        if told["groups"] < FEW_GROUPS:
            size += f" of {told['groups']} groups, too few for the intervals to be trusted"
        lines += [f"{task}: {size}", f"{'':<26}{'accuracy':>9}  95 % interval   balanced"]
        for name, title in TITLES.items():
            if s := told["scores"].get(name):
                interval = f"{s['accuracy_low']:.3f} – {s['accuracy_high']:.3f}"
                lines.append(f"{title:<26}{s['accuracy']:>9.3f}  {interval}{s['balanced_accuracy']:>11.3f}")
    own = metrics.get("modalities", {})
    for name, s in own.get("alone", {}).items():
        bounds = f"{s['accuracy_low']:.3f} – {s['accuracy_high']:.3f}"
        lines.append(
            f"{name + ' alone, linear probe':<26}{s['accuracy']:>9.3f}  {bounds}{s['balanced_accuracy']:>11.3f}"
        )
    for pair, found in own.get("retrieval", {}).items():
        back, chance = found["recall_back_at_1"], found["chance_at_1"]
        lines.append(f"{pair}: recall at 1 {found['recall_at_1']:.3f}, back {back:.3f}, by chance {chance:.3f}")
    free = ("effective_rank", "uniformity", "alignment", "feature_std")
    lines.append(", ".join(f"{k.replace('_', ' ')} {metrics['features'][k]:.3g}" for k in free))
    if seeds := metrics.get("seeds"):
        each = (f"{TITLES[k]} {v['mean']:.3f} ± {v['sd']:.3f}" for k, v in seeds.items())
        lines.append(f"over {next(iter(seeds.values()))['seeds']} seeds: {', '.join(each)}")
    return lines


def _root() -> Path:
    """Where the project lies; what outlives a run is kept there, also when DVC works in another folder."""
    from simtrail.tracking.store import project_root

    return project_root() or Path()


class _Weights(NamedTuple):
    place: str  # random, pretrained, or a folder
    stamp: str  # identifies them: a name may come to mean other weights


def _local(weights: str) -> _Weights:
    """First weights as the training core takes them: a model of the registry is fetched."""
    if weights in ("random", "pretrained"):
        return _Weights(weights, weights)
    folder = Path(weights)
    if weights.startswith("models:/"):
        from simtrail.tracking.registry import fetch

        folder = fetch(weights)
    from simtrail.model.encoder import CONFIG, WEIGHTS

    files = [folder / WEIGHTS, folder / CONFIG]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(
            f"pretrain.weights = {weights!r}: must be random, pretrained, models:/NAME@ALIAS, or the folder of an "
            f"encoder; {missing[0]}: no such file"
        )
    return _Weights(str(folder), hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())


def _without_effect(p: Any) -> list[str]:
    """One line for each setting of `pretrain` that the others leave without effect."""
    lines = []
    if p.head.depth < 2 and p.head.batch_norm:
        lines.append(f"head.hidden, head.batch_norm: no effect: a head of depth {p.head.depth} has no hidden layer")
    if p.head.depth == 0:
        lines.append("head.output: no effect: without a head, the features are the projections")
    if p.optimiser == "lars" and p.learning_rate < 0.05:
        lines.append(f"learning_rate = {p.learning_rate}: next to no effect with LARS, which needs 0.3 to 5")
    if p.monitor.metric == "last" and p.monitor.patience:
        lines.append(f"monitor.patience = {p.monitor.patience}: no effect: monitor.metric is last")
    return [f"pretrain.{line}" for line in lines]


def _known_classes(names: list[str], labels: pd.Series) -> list[str]:
    """The names, each of which must be a class."""
    known = sorted(labels.dropna().unique())
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise InputError(
                f"evaluate.held_out_classes: {name!r}: no such class; "
                + (f"did you mean {near[0]}?" if near else "no image has a label")
            )
    return names


def packed(recipe: Any) -> Any:
    """The prepared images; InputError where there are none."""
    from simtrail.data.pack import PackedImages

    images = PackedImages(PACKED, recipe)
    if not len(images):
        raise InputError(f"{PACKED}: no packed images; run the prepare stage first: dvc repro prepare")
    return images


def _fresh(folder: Path) -> None:
    """An empty folder in place of what an earlier run left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _settings(params: Params, stage: str) -> dict[str, Any]:
    """What decides a stage's result, dotted key → value."""
    sections = tuple(f"{section}." for section in SETTINGS[stage][1])
    return {key: value for key, value in params.flat().items() if f"{key}.".startswith(sections)}


def demand(params: Params, *stages: str) -> None:
    """InputError where one of these stages was last run with other settings, which would pass for the present ones."""
    for stage in stages:
        told, now = _read_json(SETTINGS[stage][0], stage), _settings(params, stage)
        made = told if stage == "pretrain" else told.get("settings", {})
        often = "pretrain.checkpoint."  # how often a run is saved changes nothing
        others = [k for k in {**now, **made} if made.get(k) != now.get(k) and not k.startswith(often)]
        if others:
            key, more = others[0], f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise InputError(
                f"{ROOT / stage}: made with {key} = {made.get(key)!r}{more}, not {now.get(key)!r}; run "
                f"simtrail {stage} and what follows, or dvc repro"
            )


def _read(reader: Any, path: Path, stage: str) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the {stage} stage first: dvc repro {stage}") from None


def _read_json(path: Path, stage: str) -> Any:
    return json.loads(_read(Path.read_text, path, stage))


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics as MLflow shows them: a section per classifier of the main task, and per other task; of the
    intervals, those of the accuracy."""
    rows = {f"features/{name}": value for name, value in metrics["features"].items()}
    for name, scores in metrics.get("modalities", {}).get("alone", {}).items():
        rows[f"modalities/{name} alone"] = scores["accuracy"]
    for pair, found in metrics.get("modalities", {}).get("retrieval", {}).items():
        rows |= {f"modalities/{pair} {name}": value for name, value in found.items()}
    for number, (task, told) in enumerate(metrics["tasks"].items()):
        under = re.sub(r"[^\w. -]", "", f"{task} ") if number else ""
        rows |= {f"{under}geometry/{name}": value for name, value in told.get("geometry", {}).items()}
        for name, scores in told["scores"].items():
            rows |= {
                f"{under}{name}/{k}": v
                for k, v in scores.items()
                if not k.endswith(("_low", "_high")) or k.startswith("accuracy_")
            }
    return {name: value for name, value in rows.items() if value is not None}


def _code_hash(*parts: str) -> str:
    """Identifies the source text of the given modules and subpackages."""
    package = Path(__file__).parent
    files = sorted(
        f for part in parts for f in ([package / part] if part.endswith(".py") else (package / part).rglob("*.py"))
    )
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _say(text: str) -> None:
    print(text, flush=True)
