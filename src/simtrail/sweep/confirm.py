"""The confirmation of a search: its best settings and those of params.yaml, in full length, with several seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy.stats import ttest_ind

from simtrail.errors import TrainingError
from simtrail.evaluation.difference import paired
from simtrail.model.backbone import grids_of
from simtrail.model.encoder import Encoder
from simtrail.params import Params, Settings, changed
from simtrail.pipeline.training_run import training_run, with_features
from simtrail.sweep.space import Confirm, Space
from simtrail.sweep.validation import validation_correct
from simtrail.training.loop import Trained

PRESENT = "params.yaml"
CHANCE = 0.05  # of calling a setting better that is not, for all comparisons together


class Winner(NamedTuple):
    """The settings with the highest mean over seeds."""

    label: str  # params.yaml, or the number of its trial
    values: Settings  # of the space
    encoder: Encoder  # of the first seed
    history: list[dict[str, float]]
    params: Params
    run: str  # its MLflow run
    lines: list[str]  # for the report


class _Entrant(NamedTuple):
    """A setting with its results for each seed."""

    values: Settings
    params: Params
    first: tuple[Trained, str] | None  # what the first seed gave, and its MLflow run
    scores: list[float]
    correct: np.ndarray | None  # (N,) the fraction of seeds that are right about each validation image
    group: np.ndarray | None


def confirm(study: optuna.Study, space: Space, params: Params, parent: str) -> Winner | None:
    """Trains the best settings of a study and those of params.yaml with each seed; killed runs continue.

    None if the space has no `confirm`, or no trial has completed.
    """
    rules = space.confirm
    if rules is None or not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    entrants = {}
    for label, values in _chosen(study, rules.best).items():
        try:
            entrants[label] = _train(label, values, space, rules, params, parent)
        except TrainingError as error:
            if label == PRESENT:
                raise
            print(f"confirm {label}: left out: {error}", flush=True)
    sign = 1 if space.direction == "maximize" else -1
    best = max(entrants, key=lambda label: sign * np.mean(entrants[label].scores))
    rivals = [label for label in entrants if label != PRESENT]
    rival = max(rivals, key=lambda label: sign * np.mean(entrants[label].scores)) if rivals else PRESENT
    _, verdict = _compare(entrants[PRESENT], entrants[rival], rival, len(rivals), space)
    epochs = entrants[best].params.pretrain.epochs
    lines = ["", f"Confirmation, {epochs} epochs, {rules.seeds} seeds, {space.objective}:", ""]
    lines += ["| settings | mean | standard deviation |", "|---|---|---|"]
    for label, entrant in entrants.items():
        deviation = f"{np.std(entrant.scores, ddof=1):.4f}" if rules.seeds > 1 else ""
        lines.append(f"| {label} | {np.mean(entrant.scores):.4f} | {deviation} |")
    lines += ["", verdict]
    winner = entrants[best]
    assert winner.first
    trained, run = winner.first
    settled = with_features(winner.params, trained.features)
    return Winner(best, winner.values, trained.encoder, trained.history, settled, run, lines)


def _chosen(study: optuna.Study, count: int) -> dict[str, Settings]:
    """The present values, and those of the best trials that differ from them and from each other."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ascending = study.direction == optuna.study.StudyDirection.MINIMIZE
    chosen: dict[str, Settings] = {PRESENT: study.user_attrs["present"]}
    for trial in sorted(trials, key=lambda t: t.value or 0, reverse=not ascending):
        if len(chosen) <= count and trial.params not in chosen.values():
            chosen[f"trial {trial.number}"] = trial.params
    return chosen


def _train(label: str, values: Settings, space: Space, rules: Confirm, params: Params, parent: str) -> _Entrant:
    from simtrail.tracking.run import Trail, curve_logger, run

    metric = space.decided["pretrain.monitor.metric"]
    settings = {**space.set, **space.keys(values), "pretrain.monitor.metric": metric}
    settings |= {"pretrain.epochs": rules.epochs, "pretrain.max_steps": None} if rules.epochs else {}
    full = changed(params, settings, f"study {space.study}")
    first: tuple[Trained, str] | None = None
    scores, correct, group = [], [], None
    for number in range(rules.seeds):
        seed = params.pretrain.seed + number
        seeded = changed(full, {"pretrain.seeds": [seed]}, f"study {space.study}")
        training = training_run(seeded.pretrain, f"sweeps/{space.study}-confirm")
        name, resumed = f"confirm {label}, seed {seed}", bool(training.checkpoints)
        trail = Trail(seeded, training.prepared)
        key = f"{training.key}-{space.study}-confirm"
        with run(trail, key=key, resumed=resumed, name=name, parent=parent) as run_id:
            features = first[0].features if first else None  # only the first encoder can be registered
            trained = training.fit(on_epoch=curve_logger(run_id, space.objective), chosen=features)
        training.checkpoints.finish()
        scores.append(float(trained.history[trained.epoch - 1][space.objective]))
        print(f"{name}: {space.objective} {scores[-1]:.4g}", flush=True)
        first = first or (trained, run_id)
        if space.objective in ("val_probe", "val_knn"):
            judged = trained.encoder.with_features(grids_of(seeded.pretrain.encoder))  # those of the objective
            right, group = validation_correct(judged, seeded, space.objective)
            correct.append(right)
    return _Entrant(values, full, first, scores, np.mean(correct, 0) if correct else None, group)


def _compare(present: _Entrant, rival: _Entrant, label: str, comparisons: int, space: Space) -> tuple[bool, str]:
    """Whether the best of the other settings is better than the present ones, and a sentence about it.

    The level of the interval is raised by the number of settings that were compared (Bonferroni), because the best of
    several equal ones looks better than one.
    """
    if rival is present:
        return False, "No other setting than that of params.yaml has completed."
    level, seeds = 1 - CHANCE / comparisons, len(rival.scores)
    if rival.correct is not None and present.correct is not None and rival.group is not None:
        gain = paired(present.correct[:, None], rival.correct[:, None], rival.group, level)
        value, low, high = (float(each[0]) for each in gain)
        kind = "paired over the groups of the validation split"
    elif seeds > 1:
        value = float(np.mean(rival.scores) - np.mean(present.scores))
        test = ttest_ind(rival.scores, present.scores, equal_var=False).confidence_interval(level)
        low, high, kind = float(test.low), float(test.high), "over seeds"
    else:
        return False, f"{label} can't be compared with params.yaml: one seed gives no interval; raise confirm.seeds"
    better = low > 0 if space.direction == "maximize" else high < 0
    interval = f"{value:+.4f}, {level:.1%} interval {low:+.4f} to {high:+.4f} {kind}, {seeds} seeds each"
    if better:
        return True, f"**Confirmed**: {label} is better than params.yaml: {interval}."
    return False, f"**Not confirmed**: {label} is not better than params.yaml by more than chance: {interval}."
