"""The stages, one per verb: read, call, write. The only place that knows where artifacts lie."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
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
REGISTRATION = ROOT / "register/registration.json"


def check() -> None:
    """Manifest and validation of the dataset; InputError lists every offending file, unless they are quarantined."""
    params = load_params()
    from simtrail.data.checks import validate
    from simtrail.data.manifest import scan
    from simtrail.data.page import validation_page

    _fresh(MANIFEST.parent)
    dataset = Dataset(Path("data") / params.data.name)
    declared = dataset.declaration
    manifest, md5 = scan(dataset)
    findings, rejected = validate(
        manifest,
        params.check,
        bands=len(declared.bands) if declared.bands else None,
        labelled=declared.label is not None or bool(manifest["label"].notna().any()),
        grouped=declared.group is not None,
    )
    manifest["rejected"] = manifest["path"].map(rejected)
    manifest.to_parquet(MANIFEST)
    reasons = pd.DataFrame({"path": list(rejected), "reason": list(rejected.values())}, dtype="object")
    reasons.to_csv(QUARANTINE, index=False)
    result: dict[str, Any] = {
        "dataset": params.data.name,
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
            _say(f"check: warning: not so: {finding.title}: {_some(finding.offenders)}")
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
    from simtrail.data.pack import pack, statistics
    from simtrail.data.recipe import make_recipe
    from simtrail.data.split import assign, split_groups

    _fresh(PACKED)
    manifest = _read(pd.read_parquet, MANIFEST, "check")
    manifest = manifest[manifest["rejected"].isna()].reset_index(drop=True)
    dataset = Dataset(Path("data") / params.data.name)
    recipe = make_recipe(manifest, dataset.declaration, params.prepare)
    split = assign(manifest, params.prepare)
    images = pack(dataset.folder, manifest, recipe, PACKED)
    meta = [c for c in manifest if c in ("path", "sha256", "label", "group") or c.startswith("meta.")]
    table = manifest[meta].assign(split=split, block=split_groups(manifest))
    table.to_parquet(SPLIT)
    counts = split.value_counts().to_dict()
    _write_json(
        STATISTICS,
        {
            "data_md5": _read_json(VALIDATION, "check")["data_md5"],
            "split_hash": hashlib.sha256(table[["sha256", "split"]].to_csv(index=False).encode()).hexdigest()[:16],
            "images": counts,
            "recipe": recipe.model_dump(),
            **statistics(images, np.flatnonzero(split == "train")),
        },
    )
    parts = ", ".join(f"{counts[part]} {part}" for part in ("train", "val", "test"))
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

    facts, table = _read_json(STATISTICS, "prepare"), _read(pd.read_parquet, SPLIT, "prepare")
    recipe = Recipe.model_validate(facts["recipe"])
    config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=recipe, mean=facts["mean"], std=facts["std"])
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
    images, views = _packed(recipe), TwoViews(p.augment, recipe)
    train, val = (np.flatnonzero(table["split"] == part) for part in ("train", "val"))
    checkpoints = Checkpoints(_root() / ".simtrail" / group, key, p.checkpoint.keep)
    p, labels = p.model_copy(update={"weights": weights.place}), pd.factorize(table["label"])[0]
    learn = partial(fit, images, train, val, config, p, labels=labels, checkpoints=checkpoints)
    warnings = [*views.ineffective(), *_without_effect(p)]
    return Training(key, origin, facts["data_md5"], weights.stamp, images, train, views, warnings, checkpoints, learn)


def pretrain() -> None:
    """The encoder, trained by SimCLR on the training split, and its history; one MLflow run, resumed after a kill.

    In several processes (torchrun) the first keeps the run and writes; the others only compute.
    """
    params = load_params()
    from simtrail.evaluation.figures import training_curve, view_grid
    from simtrail.training.distributed import processes, rank

    ready = training(params.pretrain)
    with processes():
        if rank() > 0:
            ready.fit()
            return
        from simtrail.tracking.registry import encoder_hash
        from simtrail.tracking.run import Trail, curves, log_result, run, tag_encoder

        _fresh(ENCODER)
        for line in ready.warnings:
            _say(f"pretrain: warning: {line}")
        trail, resumed = Trail(params, ready.data_md5), bool(ready.checkpoints)
        with run(trail, key=ready.key, resumed=resumed, system_metrics=True) as run_id:
            view_grid(ready.images, ready.rows[:6], ready.views, params.pretrain.seed, ENCODER / "views.png")
            trained = ready.fit(on_epoch=curves(run_id), say=lambda line: _say(f"pretrain: {line}"))
            trained.encoder.save(ENCODER)
            pd.DataFrame(trained.history).to_csv(HISTORY, index=False)
            training_curve(trained.history, trained.epoch, ENCODER / "training.png")
            tag_encoder(encoder_hash(ENCODER), ready.first_weights)
            log_result({"kept_epoch": trained.epoch}, [*sorted(ENCODER.glob("*.png")), ENCODER / "config.json"])
        ready.checkpoints.finish()
    last = trained.history[-1]
    _say(
        f"pretrain: {last['epoch']} epochs, {last['step']} steps, last loss {last['loss']:.3f}; "
        f"the weights kept are of epoch {trained.epoch}"
    )


def preview(images: int, seed: int) -> None:
    """A picture of training images and their views under the present settings: artifacts/preview/views.png."""
    params = load_params()
    from simtrail.augment.views import TwoViews
    from simtrail.data.recipe import Recipe
    from simtrail.evaluation.figures import view_grid

    facts, table = _read_json(STATISTICS, "prepare"), _read(pd.read_parquet, SPLIT, "prepare")
    recipe = Recipe.model_validate(facts["recipe"])
    views = TwoViews(params.pretrain.augment, recipe)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(table["split"] == "train"))[:images]
    _fresh(PREVIEW.parent)
    view_grid(_packed(recipe), rows, views, seed, PREVIEW)
    for line in views.ineffective():
        _say(f"preview: warning: {line}")
    _say(f"preview: {len(rows)} images and two pairs of views each: {PREVIEW}")


def embed() -> None:
    """The features of every usable image, with its split and labels, in the order of the split."""
    params = load_params()
    from simtrail.model.encoder import Encoder
    from simtrail.training.state import Checkpoints

    encoder = Encoder.load(ENCODER)
    Checkpoints.discard_finished(_root() / ".simtrail")  # the pipeline has gone on: the encoder is safe
    table = _read(pd.read_parquet, SPLIT, "prepare")
    features = features_of(encoder, params.embed.batch_size)
    _fresh(EMBEDDINGS.parent)
    table.assign(vector=list(features)).to_parquet(EMBEDDINGS)
    _say(f"embed: {len(features)} images × {features.shape[1]} features")


def features_of(encoder: Encoder, batch_size: int) -> np.ndarray:
    """The features of every prepared image, in the order of the split."""
    images = _packed(encoder.config.recipe)
    starts = range(0, len(images), batch_size)
    return encoder.features(images.rows(np.arange(i, min(i + batch_size, len(images)))) for i in starts)


def evaluate() -> None:
    """Scores with intervals and floors, label-free measures and figures, from frozen features; logged to the run."""
    params = load_params()
    from simtrail.model.encoder import Encoder
    from simtrail.tracking.registry import encoder_hash
    from simtrail.tracking.run import Trail, log_result, run

    _fresh(METRICS.parent)
    features = np.stack(_read(pd.read_parquet, EMBEDDINGS, "embed")["vector"].to_list())
    facts = _read_json(STATISTICS, "prepare")
    metrics = assess(Encoder.load(ENCODER), features, params, FIGURES)
    _write_json(METRICS, metrics)
    with run(Trail(params, facts["data_md5"]), encoder=encoder_hash(ENCODER)):
        log_result(_flat(metrics), [METRICS, VALIDATION, PAGE, *sorted(FIGURES.glob("*.png"))])
    _say("\n".join(_table(metrics)))


def assess(encoder: Encoder, features: np.ndarray, params: Params, folder: Path) -> dict[str, Any]:
    """The metrics of the test split from an encoder's features of every image, their figures written to a folder."""
    import torch

    from simtrail.evaluation import figures, report
    from simtrail.evaluation.scores import TITLES
    from simtrail.model.encoder import Encoder

    table = _read(pd.read_parquet, SPLIT, "prepare")
    test = (table["split"] == "test").to_numpy()
    images = _packed(encoder.config.recipe)

    def pixels() -> np.ndarray:
        chunks = np.array_split(np.arange(len(images)), max(1, len(images) // 256))
        return np.concatenate([report.small_pixels(images.rows(rows), images.recipe.full_scale) for rows in chunks])

    def random_features() -> np.ndarray:
        with torch.random.fork_rng([]):
            torch.manual_seed(params.evaluate.seed)
            untrained = Encoder(encoder.config).to(encoder.device)
        return features_of(untrained, params.embed.batch_size)

    metrics: dict[str, Any] = report.label_free(features[test], params.evaluate.seed)
    data = report.labelled(table, table["block"].to_numpy())
    if data is None:
        _say("evaluate: no two classes are labelled: label-free measures only")
    else:
        scores, predictions = report.classify(features, pixels, random_features, data, params.evaluate)
        metrics |= scores
        in_test = data.split == "test"
        groups = len(np.unique(data.group[in_test]))
        figures.score_bars(scores, TITLES, folder / "scores.png", int(in_test.sum()), groups)
        figures.confusion_matrix(
            data.labels[in_test], predictions["linear_probe"], data.names, folder / "confusion.png"
        )
    labels = table["label"].fillna("(no label)").to_numpy(dtype=str)[test].tolist() if data else None
    figures.embedding_map(features[test], labels, params.evaluate.seed, folder / "map.png")
    return metrics


def register() -> None:
    """The encoder in the MLflow registry, with its numbers and lineage, and its alias through the gate."""
    params = load_params()
    metrics = _read_json(METRICS, "evaluate")
    result = enrol(params, ENCODER, pd.read_csv(HISTORY).to_dict("records"), metrics)
    _fresh(REGISTRATION.parent)
    _write_json(REGISTRATION, result)
    _say(f"register: {result['name']} version {result['version']} is {result['alias']}: {result['reason']}")


def enrol(params: Params, folder: Path, history: list[dict[str, float]], metrics: dict[str, Any]) -> dict[str, Any]:
    """The registered version of the encoder in a folder, made of the prepared images with these parameters."""
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
    )


def summary() -> None:
    """Prints the result of the last run: the probe beside its floors, the registered version, what to do next."""
    metrics = _read_json(METRICS, "evaluate")
    version = _read_json(REGISTRATION, "register")
    _say("\n".join(_table(metrics)))
    _say(f"\n{version['name']} version {version['version']} is {version['alias']} ({version['reason']})")
    _say(f"  pull it      simtrail pull models:/{version['name']}@{version['alias']} --out encoder")
    _say("  browse runs  make ui")


def _table(metrics: dict[str, Any]) -> list[str]:
    from simtrail.evaluation.scores import TITLES

    lines = [f"{'test split':<26}{'accuracy':>9}  95 % interval   balanced"]
    for name, title in TITLES.items():
        if s := metrics.get(name):
            interval = f"{s['accuracy_low']:.3f} – {s['accuracy_high']:.3f}"
            lines.append(f"{title:<26}{s['accuracy']:>9.3f}  {interval}{s['balanced_accuracy']:>11.3f}")
    if len(lines) == 1:
        lines = ["no labels: label-free measures of the test split"]
    free = ", ".join(f"{k.replace('_', ' ')} {metrics[k]:.3g}" for k in ("effective_rank", "uniformity", "feature_std"))
    return [*lines, free]


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


def _packed(recipe: Any) -> Any:
    from simtrail.data.pack import PackedImages

    images = PackedImages(PACKED, recipe)
    if not len(images):
        raise InputError(f"{PACKED}: no packed images; run the prepare stage first: dvc repro prepare")
    return images


def _fresh(folder: Path) -> None:
    """An empty folder in place of what an earlier run left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


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
    """The metrics as MLflow shows them, one section per classifier; of the intervals, those of the accuracy."""
    rows: dict[str, float] = {}
    for name, value in metrics.items():
        scores = (
            {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {f"features/{name}": value}
        )
        rows |= {k: v for k, v in scores.items() if not k.endswith(("_low", "_high")) or "/accuracy_" in k}
    return rows


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
