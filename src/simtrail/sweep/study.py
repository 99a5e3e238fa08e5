"""The study: where trials are stored, how many of them count, and how a killed trial is run again."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any

import optuna
import psutil
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import InterfaceError, OperationalError

from simtrail.errors import InputError, TrainingError
from simtrail.sweep.space import FOLDER, Space

PATIENCE = 300.0  # seconds to wait for a storage that does not answer
HEARTBEAT, GRACE = 10, 60  # seconds between two heartbeats; seconds without one after which a trial counts as killed
OWNER = "process"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(name: str, space: Space, base: str, seed: int = 0, *, create: bool = False) -> optuna.Study:
    """The study of sweeps/NAME.yaml, stored in sweeps/NAME/study.db or in the database at OPTUNA_STORAGE.

    `base` identifies what all trials share: data, split, the parameters that are not searched, and code. `seed` is the
    seed of the sampler; every process needs a different one. Raises InputError if the study was started with another
    space or base.
    """
    (FOLDER / name).mkdir(exist_ok=True)
    url = os.environ.get("OPTUNA_STORAGE") or f"sqlite:///{(FOLDER / name / 'study.db').resolve()}"
    url = url.replace("postgresql://", "postgresql+psycopg2://", 1)  # the default driver of SQLAlchemy is a newer one
    storage = _PatientStorage(
        url,
        engine_kwargs={"pool_pre_ping": True} | ({"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}),
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
        heartbeat_stale_trial_callback=requeue,
    )
    if create:
        study = optuna.create_study(
            storage=storage, study_name=space.study, direction=space.direction, load_if_exists=True
        )
    else:
        try:
            study = optuna.load_study(storage=storage, study_name=space.study)
        except KeyError:
            raise InputError(f"study {space.study!r}: not in {url}; start it with: simtrail sweep {name}") from None
    _require_same_study(study, name, space, base)
    # the number of trials is part of the seed: a resumed study must not repeat its first suggestions
    study.sampler = _sampler(space, seed + len(study.get_trials(deepcopy=False)))
    study.pruner = _pruner(space)
    return study


def count_trials(study: optuna.Study) -> tuple[int, int]:
    """How many trials have ended (completed or pruned), and how many are running or waiting."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return sum(s in ENDED for s in states), sum(s in (TrialState.RUNNING, TrialState.WAITING) for s in states)


def is_surplus(study: optuna.Study, number: int, wanted: int) -> bool:
    """Whether the study has enough trials without this one: two workers may start the last trial at the same time."""
    counted = [t.number for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL]
    return sorted(counted).index(number) >= wanted


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues a killed trial again with the same parameters; it will continue from its checkpoint."""
    attributes = {"first": trial.number, **trial.user_attrs, "retried": trial.number}
    attributes.pop(OWNER, None)
    waiting = optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attributes,
        system_attrs=trial.system_attrs,
    )
    study.add_trial(waiting)


def requeue_dead(study: optuna.Study) -> int:
    """Queues running trials again if their process on this machine is gone, and marks the old ones as failed.

    Returns how many. Killed trials of other machines are detected by their heartbeat.
    """
    trials = study.get_trials(deepcopy=False)
    queued = {trial.user_attrs.get("retried") for trial in trials}
    dead = [trial for trial in trials if trial.state == TrialState.RUNNING and _is_dead(trial)]
    for trial in dead:
        if trial.number not in queued:  # a kill between requeue and tell must not queue the trial twice
            requeue(study, trial)
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    return len(dead)


def this_process() -> str:
    """The owner of a trial: host, process id and start time of this process."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _is_dead(trial: FrozenTrial) -> bool:
    """Whether the process of a running trial on this machine is gone."""
    if OWNER not in trial.user_attrs:  # a trial gets its owner right after its start: it was killed before
        start = trial.datetime_start
        return start is not None and (datetime.now() - start).total_seconds() > GRACE
    host, pid, start_time = trial.user_attrs[OWNER].split(" ")
    if host != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(start_time)) >= 2
    except psutil.NoSuchProcess:
        return True


def _require_same_study(study: optuna.Study, name: str, space: Space, base: str) -> None:
    """Stores space and base in a new study. Raises InputError if an existing study has other ones."""
    current = json.loads(space.model_dump_json(exclude={"budget": {"trials", "minutes"}, "confirm": True}))
    stored = study.user_attrs.get("space")
    if stored is None:
        study.set_user_attr("space", current)
        study.set_user_attr("base", base)
        return
    trials = len(study.get_trials(deepcopy=False))
    advice = (
        f"study {space.study!r} has {trials} trials from before this change. Only budget.trials and budget.minutes may "
        f"change; for other changes, give sweeps/{name}.yaml another `study:` name"
    )
    for key, value in current.items():
        if stored.get(key) != value:
            raise InputError(f"sweeps/{name}.yaml: {key} was {stored.get(key)!r} and is now {value!r}: {advice}")
    if study.user_attrs["base"] != base:
        raise InputError(
            f"sweeps/{name}.yaml: the prepared data, the parameters that are not searched, or the code have changed, "
            f"so that old and new trials are not comparable: {advice}"
        )


def _sampler(space: Space, seed: int) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    constructors: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
        "gp": lambda: samplers.GPSampler(seed=seed),
        "grid": lambda: samplers.GridSampler({key: axis.values or [] for key, axis in space.space.items()}, seed=0),
        "random": lambda: samplers.RandomSampler(seed=seed),
        "qmc": lambda: samplers.QMCSampler(scramble=True, seed=0),
        "cmaes": lambda: samplers.CmaEsSampler(seed=seed),
    }
    return constructors[space.sampler]()


def _pruner(space: Space) -> optuna.pruners.BasePruner:
    pruners = optuna.pruners
    constructors: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": lambda: pruners.MedianPruner(n_startup_trials=4),
        "hyperband": lambda: pruners.HyperbandPruner(max_resource=space.budget.epochs),
        "wilcoxon": lambda: pruners.WilcoxonPruner(),
        "none": lambda: pruners.NopPruner(),
    }
    return constructors[space.pruner]()


def _with_retries(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, called again every second while the database does not answer, for up to PATIENCE seconds."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return method(*args, **kwargs)
            except (StorageInternalError, OperationalError, InterfaceError) as error:
                if time.monotonic() > deadline:
                    reason = " ".join(str(error).split())[:200]
                    raise TrainingError(
                        f"the storage of the study has not answered for {PATIENCE:.0f} s: {reason}"
                    ) from None
                time.sleep(1)

    return call


class _PatientStorage(RDBStorage):
    """Optuna's database storage; every call waits for a server that does not answer."""


for _name, _method in vars(RDBStorage).items():
    if callable(_method) and not _name.startswith("__") and not isinstance(_method, staticmethod | classmethod):
        setattr(_PatientStorage, _name, _with_retries(_method))
