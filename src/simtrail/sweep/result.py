"""The result of a study: table, figures and report; registers the best encoder; writes its values into params.yaml."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState
from ruamel.yaml import YAML
from scipy.stats import spearmanr

from simtrail.errors import InputError
from simtrail.evaluation.assess import Embedded, assess, features_of
from simtrail.evaluation.evidence import predictions
from simtrail.model.backbone import grids_of
from simtrail.params import Params
from simtrail.pipeline.registration import log_evaluation, register_encoder
from simtrail.pipeline.summary import score_lines
from simtrail.pipeline.training_run import training_run, with_features
from simtrail.pipeline.workspace import prepared
from simtrail.sweep.confirm import PRESENT, Winner
from simtrail.sweep.space import FOLDER, Space, trial_settings
from simtrail.sweep.validation import validation_scores
from simtrail.sweep.worker import MEASURES

TOP, END = 3, 0.1  # the best trials, and how near to the end of a range they must be, for a line about it
RANKED = 10  # the rank correlation of fewer trials says almost nothing
SECONDS = ("seconds_to_start", "seconds_logging")
LABEL_FREE = ("val_effective_rank", "val_alignment", "val_uniformity", "val_feature_std")
FIGURES = {
    "history": "optimization_history",
    "importance": "param_importances",
    "slice": "slice",
    "contour": "contour",
    "parallel": "parallel_coordinate",
    "pruning": "intermediate_values",
    "timeline": "timeline",
}


def report(study: optuna.Study, name: str, space: Space, params: Params, winner: Winner | None) -> None:
    """Writes best.yaml, trials.csv, figures and report.md to sweeps/NAME/, and logs them to the active MLflow run.

    `winner` is that of the confirmation, if the space has one.
    """
    from simtrail.tracking.run import log_result

    folder = FOLDER / name
    trials = study.get_trials(deepcopy=False)
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    completed = [t for t in trials if t.state == TrialState.COMPLETE]
    rows = [
        {"trial": t.number, "state": t.state.name.lower(), space.objective: t.value, **t.params}
        | {k: t.user_attrs[k] for k in ("epoch", "ended", *MEASURES, *SECONDS, "run") if k in t.user_attrs}
        | {
            "seconds": t.duration.total_seconds() if t.duration else None,
            "present": t.params == study.user_attrs["present"],
        }
        for t in ended
    ]
    table = pd.DataFrame(rows)
    table.to_csv(folder / "trials.csv", index=False)
    if not completed:
        raise InputError(f"study {space.study!r}: no trial has completed; see {folder}/worker-*.log")
    best = study.best_trial
    with (folder / "best.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(space.keys(winner.values if winner else best.params), file)
    figures = _figures(study, folder)
    text = _report_text(study, table, space, params) + "\n".join([*(winner.lines if winner else []), ""])
    (folder / "report.md").write_text(text, encoding="utf-8")
    files = [folder / "best.yaml", folder / "trials.csv", folder / "report.md", FOLDER / f"{name}.yaml", *figures]
    log_result({"objective": float(best.value or 0), "trials": len(ended)}, files)
    print(text)


def register_best(
    study: optuna.Study, name: str, space: Space, params: Params, parent: str, winner: Winner | None
) -> str:
    """Tests the winner, or the encoder of the best trial, once on the test split, and registers it.

    Returns its scores and version, or why it is not registered. The version becomes champion only if it passes the
    gate, else challenger.
    """
    from simtrail.tracking.pull import encoder_hash
    from simtrail.tracking.run import ENCODER, Trail, log_chosen, tag_run

    if winner and winner.label == PRESENT:
        return "nothing is registered: no setting has a higher mean than that of params.yaml"
    if winner and winner.params.pretrain.epochs < params.pretrain.epochs:
        return (
            f"nothing is registered: confirm.epochs = {winner.params.pretrain.epochs} is less than pretrain.epochs = "
            f"{params.pretrain.epochs}; to train the winner: simtrail apply {name}, then dvc repro"
        )
    folder = FOLDER / name / "encoder"
    if winner:
        encoder, history, best_params, run_id = winner.encoder, winner.history, winner.params, winner.run
    else:
        encoder, history, best_params = _best_encoder(study, space, params)
        run_id = study.best_trial.user_attrs["run"]
    encoder.save(folder)
    source = prepared()
    features = features_of(encoder, source.images, params.embed.batch_size)
    embedded = Embedded(encoder, source.images, source.table, features)
    assessment = assess(embedded, best_params.pretrain.augment, params.evaluate)
    metrics, files = assessment.metrics, [folder.parent / "scores.json", folder.parent / "predictions.parquet"]
    files[0].write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    table = predictions(assessment, source.table)
    table.to_parquet(files[1])
    log_chosen(Trail(best_params, source.statistics), run_id)
    tag_run(run_id, ENCODER, encoder_hash(folder))
    log_evaluation(best_params, folder, metrics, files)  # for `simtrail compare`
    version = register_encoder(best_params, folder, history, metrics, table)
    tag_run(parent, "simtrail.winner", f"{version['name']} version {version['version']}")
    lines = "\n".join(score_lines(metrics))
    return f"{lines}\n{version['name']} version {version['version']} is {version['alias']}: {version['reason']}"


def _best_encoder(study: optuna.Study, space: Space, params: Params) -> tuple[Any, list[dict[str, float]], Params]:
    """The encoder of the best trial, its history and its parameters, read from the last checkpoint of the trial."""
    best = study.best_trial
    pretrain = trial_settings(params, space, best.params)
    group = f"sweeps/{space.study}-{best.user_attrs.get('first', best.number)}"
    trained = training_run(pretrain, group).fit()
    settled = with_features(params.model_copy(update={"pretrain": pretrain}), trained.features)
    return trained.encoder, trained.history, settled


def _report_text(study: optuna.Study, table: pd.DataFrame, space: Space, params: Params) -> str:
    best = study.best_trial
    lines = [
        f"# Study {space.study}",
        "",
        f"{len(table)} trials ended, {(table['state'] == 'pruned').sum()} of them before their last epoch.",
    ]
    lines += [
        "",
        f"Best {space.objective}: **{best.value:.4g}** (trial {best.number}){_interval(study, space, params)}",
    ]
    baseline = table[table["present"] & (table["state"] == "complete")]
    if len(baseline):
        number, value = baseline["trial"].iloc[0], float(baseline[space.objective].iloc[0])
        lines += [f"params.yaml before the sweep: {value:.4g} (trial {number}); gain {study.best_value - value:+.4g}"]
    else:
        lines += ["params.yaml before the sweep: its trial did not complete"]
    lines += ["", "| parameter | best | params.yaml |", "|---|---|---|"]
    flat = params.flat()
    present = study.user_attrs["present"]
    lines += [f"| {key} | {value} | {present.get(key, flat.get(key))} |" for key, value in best.params.items()]
    lines += ["", *_ends(study, space)]
    accuracy = next((m for m in ("val_probe", "val_knn") if m in table), None)
    completed = table[table["state"] == "complete"]
    if accuracy and len(completed) >= RANKED:
        lines += ["", f"Spearman's rank correlation with {accuracy}, over {len(completed)} completed trials:", ""]
        lines += [
            f"- {m}: {spearmanr(completed[m], completed[accuracy]).statistic:+.2f}"
            for m in LABEL_FREE
            if completed[m].nunique() > 1
        ]
    return "\n".join(lines) + "\n"


def _ends(study: optuna.Study, space: Space) -> list[str]:
    """One line for each range at whose end the three best trials lie: better values may be outside."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ascending = study.direction == optuna.study.StudyDirection.MINIMIZE
    best = sorted(trials, key=lambda t: t.value or 0, reverse=not ascending)[:TOP]
    lines = []
    for name, axis in space.space.items():
        values = [t.params[name] for t in best if name in t.params]
        low, high = (axis.powers_of_two or (None, None)) if axis.low is None else (axis.low, axis.high)
        if low is None or high is None or len(values) < TOP or len(trials) < RANKED:
            continue
        scale = np.log if axis.log or axis.powers_of_two else np.asarray
        place = [float((scale(v) - scale(low)) / (scale(high) - scale(low))) for v in values]
        if min(place) >= 1 - END or max(place) <= END:
            end = "upper" if min(place) >= 1 - END else "lower"
            lines.append(f"- {name}: the best values lie at the {end} end of {low} to {high}; extend it")
    return lines


def _interval(study: optuna.Study, space: Space, params: Params) -> str:
    """The 95 % interval of the best value over groups of the validation split, as a text; empty without labels."""
    if space.objective not in ("val_probe", "val_knn"):
        return ""
    of_objective = grids_of(trial_settings(params, space, study.best_trial.params).encoder)
    encoder = _best_encoder(study, space, params)[0].with_features(of_objective)
    scores = validation_scores(encoder, params).get(space.objective)
    if not scores:
        return ""
    text = f", 95 % interval {scores['accuracy_low']:.3f} – {scores['accuracy_high']:.3f} over the validation groups"
    if abs(scores["accuracy"] - study.best_value) > 0.002:  # the best value is of the same weights and should agree
        text += f" (measured again, on classes with training images: {scores['accuracy']:.4g})"
    return text


def _figures(study: optuna.Study, folder: Path) -> list[Path]:
    """Draws the figures of Optuna that have enough completed trials, and returns their paths."""
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as draw

    paths = []
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    renamed, parameters = _short_names(completed, study.direction), len(study.best_trial.params)
    for name, function in FIGURES.items():
        by_parameter = name in ("importance", "contour", "parallel", "slice")
        if (by_parameter and len(completed) < 3) or (name == "contour" and parameters < 2):
            continue  # these figures show nothing with fewer trials or parameters
        with warnings.catch_warnings(), plt.style.context("default"):
            warnings.simplefilter("ignore")
            figure = np.ravel(getattr(draw, f"plot_{function}")(renamed if by_parameter else study))[0].figure
        side = 2.6 * parameters
        if name in ("contour", "slice"):
            figure.set_size_inches(side + 1, side if name == "contour" else 3.4)
        if name == "contour":  # Optuna labels the axes of every panel, and they would overlap
            for axis in figure.axes[: parameters**2]:
                axis.label_outer()
                axis.tick_params(which="both", labelsize=7)
                axis.tick_params(axis="x", which="both", rotation=60)
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        paths.append(folder / f"{name}.png")
    return paths


def _short_names(trials: list[optuna.trial.FrozenTrial], direction: optuna.study.StudyDirection) -> optuna.Study:
    """A study of the same trials, in which the names of the parameters are short enough for an axis."""
    study = optuna.create_study(direction=direction)

    def shortened(values: dict[str, Any]) -> dict[str, Any]:
        return {".\n".join(key.split(".")[-2:]).removeprefix("pretrain.\n"): value for key, value in values.items()}

    for trial in trials:
        study.add_trial(
            optuna.create_trial(
                value=trial.value, params=shortened(trial.params), distributions=shortened(trial.distributions)
            )
        )
    return study
