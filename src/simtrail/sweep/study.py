"""The study: where trials are kept, how many count, and how one that was killed is tried again."""

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

PATIENCE = 300.0  # seconds that a storage may be away
HEARTBEAT, GRACE = 10, 60  # seconds between signs of life, and without one until a trial counts as killed
OWNER = "process"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(name: str, space: Space, base: str, seed: int = 0, *, create: bool = False) -> optuna.Study:
    """The study of sweeps/NAME.yaml, in sweeps/NAME/study.db or where OPTUNA_STORAGE says.

    `base` identifies what all trials share: data, split, the parameters not searched, code. `seed` is the sampler's:
    each of several processes needs its own. Raises InputError where the study was begun with another space or base.
    """
    (FOLDER / name).mkdir(exist_ok=True)
    url = os.environ.get("OPTUNA_STORAGE") or f"sqlite:///{(FOLDER / name / 'study.db').resolve()}"
    url = url.replace("postgresql://", "postgresql+psycopg2://", 1)  # SQLAlchemy's own choice is a newer driver
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
            raise InputError(f"study {space.study!r}: not in {url}; start it with make sweep NAME={name}") from None
    _agree(study, name, space, base)
    study.sampler = _sampler(space, seed + len(study.get_trials(deepcopy=False)))
    study.pruner = _pruner(space)
    return study


def count_trials(study: optuna.Study) -> tuple[int, int]:
    """How many trials have ended (completed or pruned), and how many run or wait."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return sum(s in ENDED for s in states), sum(s in (TrialState.RUNNING, TrialState.WAITING) for s in states)


def is_surplus(study: optuna.Study, number: int, wanted: int) -> bool:
    """Whether a trial is one more than wanted: two workers may have begun the last one together."""
    valid = [t.number for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL]
    return sorted(valid).index(number) >= wanted


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues a killed trial with the same parameters; it goes on from its checkpoint."""
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
    """Fails the running trials whose process on this machine is gone and queues them again; returns how many.

    Those of other machines are found by their heartbeat.
    """
    trials = study.get_trials(deepcopy=False)
    queued = {trial.user_attrs.get("retried") for trial in trials}
    dead = [trial for trial in trials if trial.state == TrialState.RUNNING and _gone(trial)]
    for trial in dead:
        if trial.number not in queued:  # a kill between these two steps must not queue it twice
            requeue(study, trial)
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    return len(dead)


def this_process() -> str:
    """Host, process and when it began: what owns a trial."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _gone(trial: FrozenTrial) -> bool:
    if OWNER not in trial.user_attrs:  # it is noted at once: killed before
        begun = trial.datetime_start
        return begun is not None and (datetime.now() - begun).total_seconds() > GRACE
    host, pid, begun = trial.user_attrs[OWNER].split(" ")
    if host != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(begun)) >= 2
    except psutil.NoSuchProcess:
        return True


def _agree(study: optuna.Study, name: str, space: Space, base: str) -> None:
    """Notes what the study is about, or says what has changed since."""
    now = json.loads(space.model_dump_json(exclude={"budget": {"trials", "minutes"}}))
    noted = study.user_attrs.get("space")
    if noted is None:
        study.set_user_attr("space", now)
        study.set_user_attr("base", base)
        return
    trials = len(study.get_trials(deepcopy=False))
    advice = (
        f"{trials} trials of study {space.study!r} were made with it. budget.trials and budget.minutes may change; "
        f"for all else, give sweeps/{name}.yaml another `study:` name"
    )
    for key, value in now.items():
        if noted.get(key) != value:
            raise InputError(f"sweeps/{name}.yaml: {key} was {noted.get(key)!r} and is now {value!r}: {advice}")
    if study.user_attrs["base"] != base:
        raise InputError(
            f"sweeps/{name}.yaml: the prepared data, the parameters that are not searched, or the code have changed, "
            f"and trials are no longer comparable: {advice}"
        )


def _sampler(space: Space, seed: int) -> optuna.samplers.BaseSampler:
    """Seeded by the number of trials too, so that a study that goes on does not repeat its first suggestions."""
    samplers = optuna.samplers
    makers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
        "gp": lambda: samplers.GPSampler(seed=seed),
        "grid": lambda: samplers.GridSampler({key: axis.values or [] for key, axis in space.space.items()}, seed=0),
        "random": lambda: samplers.RandomSampler(seed=seed),
        "qmc": lambda: samplers.QMCSampler(scramble=True, seed=0),
        "cmaes": lambda: samplers.CmaEsSampler(seed=seed),
    }
    return makers[space.sampler]()


def _pruner(space: Space) -> optuna.pruners.BasePruner:
    pruners = optuna.pruners
    makers: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": lambda: pruners.MedianPruner(n_startup_trials=4),
        "hyperband": lambda: pruners.HyperbandPruner(max_resource=space.budget.epochs),
        "wilcoxon": lambda: pruners.WilcoxonPruner(),
        "none": lambda: pruners.NopPruner(),
    }
    return makers[space.pruner]()


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
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
                        f"the study's storage has not answered for {PATIENCE:.0f} s: {reason}"
                    ) from None
                time.sleep(1)

    return call


class _PatientStorage(RDBStorage):
    """Optuna's database storage that waits for a server that is away, in every call."""


for _name, _method in vars(RDBStorage).items():
    if callable(_method) and not _name.startswith("__") and not isinstance(_method, staticmethod | classmethod):
        setattr(_PatientStorage, _name, _patient(_method))
