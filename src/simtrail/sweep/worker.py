"""A worker: tries one trial after another in a process of its own, with code and images loaded once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from typing import Any

import optuna
from optuna.trial import TrialState

from simtrail.errors import InputError, OutOfMemory, TrainingError
from simtrail.params import Params, load_params
from simtrail.pipeline.training_run import TrainingRun, training_run
from simtrail.sweep.space import Space, load_space, suggest, trial_settings
from simtrail.sweep.study import OWNER, count_trials, is_surplus, open_study, this_process

MEASURES = ("val_probe", "val_knn", "val_effective_rank", "val_alignment", "val_uniformity", "val_feature_std")


class _Surplus(Exception):
    """One trial more than wanted."""


def run_trials(name: str, trials: int, number: int, parent: int, deadline: float | None) -> None:
    """Tries trials until so many have ended, the deadline has passed, or the parent process is gone."""
    params = load_params()
    space = load_space(name, params)
    seed = 10**6 * trial_settings(params, space, {}).seed + 1000 * number
    study = open_study(name, space, study_base(params, space), seed)
    while os.getppid() == parent and (deadline is None or time.time() < deadline):
        ended, begun = count_trials(study)
        if ended >= trials:
            return
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if ended + begun >= trials and not waiting:
            optuna.storages.fail_stale_trials(study)  # of machines that are gone
            time.sleep(0.5)
            continue
        study.optimize(lambda trial: _try(trial, params, space, name, trials, parent), n_trials=1, catch=(_Surplus,))
        _keep_best(study)


def study_base(params: Params, space: Space) -> str:
    """Identifies all that the trials of a study share: data, split, code, and the settings that are not searched."""
    pretrain = trial_settings(params, space, {})
    fixed = {k: v for k, v in _flat(pretrain.model_dump(exclude={"checkpoint"})).items() if k not in space.space}
    return hashlib.sha256(json.dumps([training_run(pretrain).origin, fixed]).encode()).hexdigest()[:16]


def _try(trial: optuna.Trial, params: Params, space: Space, name: str, wanted: int, parent: int) -> float:
    from simtrail.tracking.run import Trail, curve_logger, log_result, run

    begun = time.monotonic()
    trial.set_user_attr(OWNER, this_process())
    if is_surplus(trial.study, trial.number, wanted):
        raise _Surplus
    pretrain = trial_settings(params, space, suggest(trial, space))
    group = f"{space.study}-{trial.user_attrs.get('first', trial.number)}"  # the same when it is tried again
    ready = training_run(pretrain, f"sweeps/{group}")
    trail = Trail(params.model_copy(update={"pretrain": pretrain}), ready.data_md5)
    title = f"trial {trial.number}" + (" (params.yaml)" if trial.params == trial.study.user_attrs["present"] else "")
    told, logging = -1, 0.0

    def look(history: list[dict[str, float]]) -> None:
        nonlocal told, logging
        looked = time.monotonic()
        log(history)
        for row in history:  # all of them, where a killed trial goes on
            if space.objective in row and row["epoch"] > told:
                told = int(row["epoch"])
                trial.report(row[space.objective], told)
        trial.set_user_attr("epoch", int(history[-1]["epoch"]))
        prune = int(history[-1]["epoch"]) == told < space.budget.epochs and trial.should_prune()
        logging += time.monotonic() - looked
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)  # nobody would read the result
        if prune:
            raise optuna.TrialPruned

    with run(
        trail,
        key=f"{ready.key}-{group}",
        resumed=bool(ready.checkpoints),
        name=title,
        parent=trial.study.user_attrs.get("parent"),
        cut_short=(optuna.TrialPruned,),
    ) as run_id:
        log = curve_logger(run_id, space.objective)
        trial.set_user_attr("run", run_id)
        trial.set_user_attr("seconds_to_start", time.monotonic() - begun)
        try:
            trained = ready.fit(on_epoch=look, log=lambda line: print(f"trial {trial.number}: {line}", flush=True))
        except (OutOfMemory, TrainingError) as error:
            # counts as a bad trial: the sampler is to keep away from there
            trial.set_user_attr("ended", "out of memory" if isinstance(error, OutOfMemory) else "loss not finite")
            print(f"trial {trial.number}: {error}", flush=True)
            _forget(ready)
            raise optuna.TrialPruned from None
        except optuna.TrialPruned:
            _forget(ready)
            raise
        finally:
            trial.set_user_attr("seconds_logging", logging)
        kept = trained.history[trained.epoch - 1]
        value = kept[space.objective]
        log_result({"kept_epoch": trained.epoch}, [])
        for measure in MEASURES:
            if measure in kept:
                trial.set_user_attr(measure, kept[measure])
    ready.checkpoints.finish()
    trial.set_user_attr("checkpoints", str(ready.checkpoints.folder.parent))
    return value


def _keep_best(study: optuna.Study) -> None:
    """Drops the last checkpoints of trials that are beaten; the best one's is the encoder that is registered."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for trial in done:
        if trial.number != study.best_trial.number:
            shutil.rmtree(trial.user_attrs["checkpoints"], ignore_errors=True)


def _forget(ready: TrainingRun) -> None:
    shutil.rmtree(ready.checkpoints.folder.parent, ignore_errors=True)


def _flat(tree: dict[str, Any], prefix: str = "pretrain.") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


if __name__ == "__main__":
    try:
        run_trials(**json.loads(sys.argv[1]))
    except (InputError, TrainingError) as error:
        sys.exit(f"error: {error}")
