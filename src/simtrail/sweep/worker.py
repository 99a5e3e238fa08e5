"""A worker: a separate process that runs one trial after another, and loads code and images only once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from simtrail.errors import InputError, OutOfMemory, TrainingError
from simtrail.params import FEATURES, WHITEN, Params, load_params
from simtrail.pipeline.plan import planned
from simtrail.pipeline.training_run import TrainingRun, training_run
from simtrail.sweep.space import Space, load_space, suggest, trial_settings
from simtrail.sweep.study import OWNER, count_trials, is_surplus, open_study, this_process
from simtrail.training.features import Chosen
from simtrail.training.loop import Trained

UNUSED = Chosen({FEATURES: [1], WHITEN: False}, "a trial")  # its encoder is not used: to choose would take seconds
MEASURES = ("val_probe", "val_knn", "val_effective_rank", "val_alignment", "val_uniformity", "val_feature_std")


class _Surplus(Exception):
    """The study has enough trials without this one."""


def run_trials(name: str, trials: int, number: int, parent: int, deadline: float | None, settings: list[str]) -> None:
    """Runs trials until `trials` have ended, the deadline has passed, or the parent process is gone."""
    params = planned(load_params(settings=settings))
    space = load_space(name, params)
    seed = 10**6 * trial_settings(params, space, {}).seed + 1000 * number
    study = open_study(name, space, study_base(params, space), seed)
    while os.getppid() == parent and (deadline is None or time.time() < deadline):
        ended, unfinished = count_trials(study)
        if ended >= trials:
            return
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if ended + unfinished >= trials and not waiting:
            optuna.storages.fail_stale_trials(study)  # trials of machines that no longer answer
            time.sleep(0.5)
            continue
        study.optimize(lambda trial: _run_trial(trial, params, space, trials, parent), n_trials=1, catch=(_Surplus,))
        _keep_best(study)


def study_base(params: Params, space: Space) -> str:
    """Identifies what all trials of a study share: data, split, code, and the settings that are not searched."""
    pretrain = trial_settings(params, space, {})
    fixed = {k: v for k, v in _flat(pretrain.model_dump(exclude={"checkpoint"})).items() if k not in space.searched}
    return hashlib.sha256(json.dumps([training_run(pretrain).origin, fixed]).encode()).hexdigest()[:16]


@dataclass
class _EpochReporter:
    """Reports every epoch of a trial to MLflow and Optuna; called with the history so far."""

    trial: optuna.Trial
    space: Space
    parent: int  # process id
    log_curves: Callable[[list[dict[str, float]]], None]
    last_reported: int = -1  # epoch whose value Optuna has
    seconds: float = 0.0  # spent on reporting

    def __call__(self, history: list[dict[str, float]]) -> None:
        """Raises TrialPruned if the pruner ends the trial; ends this process if the parent process is gone."""
        start = time.monotonic()
        self.log_curves(history)
        for row in history:  # not only the last row: a killed trial starts again with the history of its checkpoint
            if self.space.objective in row and row["epoch"] > self.last_reported:
                self.last_reported = int(row["epoch"])
                self.trial.report(row[self.space.objective], self.last_reported)
        epoch = int(history[-1]["epoch"])
        self.trial.set_user_attr("epoch", epoch)
        prune = epoch == self.last_reported < self.space.budget.epochs and self.trial.should_prune()
        self.seconds += time.monotonic() - start
        if os.getppid() != self.parent:
            os.kill(os.getpid(), signal.SIGTERM)  # nobody would read the result
        if prune:
            raise optuna.TrialPruned


def _run_trial(trial: optuna.Trial, params: Params, space: Space, trials: int, parent: int) -> float:
    """Trains with the values of a trial, in its own MLflow run, and returns the objective at the epoch that is kept.

    Raises _Surplus if the study has its `trials` without this one, and TrialPruned if the trial ends early.
    """
    from simtrail.tracking.run import Trail, curve_logger, log_result, run

    start = time.monotonic()
    trial.set_user_attr(OWNER, this_process())
    if is_surplus(trial.study, trial.number, trials):
        raise _Surplus
    pretrain = trial_settings(params, space, suggest(trial, space))
    group = f"{space.study}-{trial.user_attrs.get('first', trial.number)}"  # the same when a killed trial runs again
    training = training_run(pretrain, f"sweeps/{group}")
    trail = Trail(params.model_copy(update={"pretrain": pretrain}), training.prepared)
    title = f"trial {trial.number}" + (" (params.yaml)" if trial.params == trial.study.user_attrs["present"] else "")
    with run(
        trail,
        key=f"{training.key}-{group}",
        resumed=bool(training.checkpoints),
        name=title,
        parent=trial.study.user_attrs.get("parent"),
        cut_short=(optuna.TrialPruned,),
    ) as run_id:
        reporter = _EpochReporter(trial, space, parent, curve_logger(run_id, space.objective))
        trial.set_user_attr("run", run_id)
        trial.set_user_attr("seconds_to_start", time.monotonic() - start)
        trained = _fit(trial, training, reporter)
        kept = trained.history[trained.epoch - 1]
        value = kept[space.objective]
        log_result({"kept_epoch": trained.epoch}, [])
        for measure in MEASURES:
            if measure in kept:
                trial.set_user_attr(measure, kept[measure])
    training.checkpoints.finish()
    trial.set_user_attr("checkpoints", str(training.checkpoints.folder.parent))
    return value


def _fit(trial: optuna.Trial, training: TrainingRun, reporter: _EpochReporter) -> Trained:
    """Trains with the settings of a trial.

    Raises TrialPruned if the trial is pruned, runs out of memory, diverges, or has settings that the images don't
    allow, such as a batch larger than their number; and removes its checkpoints.
    """
    try:
        return training.fit(
            on_epoch=reporter,
            log=lambda line: print(f"trial {trial.number}: {line}", flush=True),
            chosen=UNUSED,
        )
    except (OutOfMemory, TrainingError, InputError) as error:
        # pruned, not failed: the sampler must learn to avoid such values
        reasons = {OutOfMemory: "out of memory", TrainingError: "loss not finite", InputError: "not possible"}
        trial.set_user_attr("ended", reasons[type(error)])
        print(f"trial {trial.number}: {error}", flush=True)
        _remove_checkpoints(training)
        raise optuna.TrialPruned from None
    except optuna.TrialPruned:
        _remove_checkpoints(training)
        raise
    finally:
        trial.set_user_attr("seconds_logging", reporter.seconds)


def _keep_best(study: optuna.Study) -> None:
    """Removes the checkpoints of all completed trials except the best, whose encoder will be registered."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for trial in completed:
        if trial.number != study.best_trial.number:
            shutil.rmtree(trial.user_attrs["checkpoints"], ignore_errors=True)


def _remove_checkpoints(training: TrainingRun) -> None:
    shutil.rmtree(training.checkpoints.folder.parent, ignore_errors=True)


def _flat(tree: dict[str, Any], prefix: str = "pretrain.") -> dict[str, Any]:
    """The values of a nested dict by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


if __name__ == "__main__":
    try:
        run_trials(**json.loads(sys.argv[1]))
    except (InputError, TrainingError) as error:
        sys.exit(f"error: {error}")
