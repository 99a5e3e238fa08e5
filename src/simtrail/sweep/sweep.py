"""`make sweep`: starts workers that run trials until the budget is used up, and replaces workers that die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table

from simtrail.errors import InputError, TrainingError
from simtrail.params import Params, load_params
from simtrail.pipeline.plan import planned
from simtrail.pipeline.training_run import training_run
from simtrail.pipeline.workspace import require
from simtrail.sweep.confirm import PRESENT, confirm
from simtrail.sweep.result import register_best, report
from simtrail.sweep.space import FOLDER, Space, current_values, load_space
from simtrail.sweep.study import count_trials, open_study, requeue_dead
from simtrail.sweep.worker import study_base

DEATHS = 5  # the sweep gives up after this many deaths of workers without a trial that ended in between


def sweep(name: str, trials: int | None, workers: int | None, join: bool, settings: list[str]) -> None:
    """Runs the study of sweeps/NAME.yaml up to its budget, writes its report and registers the best encoder.

    Continues where an earlier call was interrupted. `join` only adds workers of this machine to a study that another
    machine runs (OPTUNA_STORAGE). The encoder becomes champion only if it passes the gate of `register`. Raises
    InputError before any trial for errors in the space, and TrainingError if workers die again and again.
    """
    params = planned(load_params(settings=settings))
    space = load_space(name, params)
    if trials:
        space = space.model_copy(update={"budget": space.budget.model_copy(update={"trials": trials})})
    if space.sampler == "grid" and space.budget.trials > (
        cells := prod(len(a.values or []) for a in space.space.values())
    ):
        raise InputError(
            f"sweeps/{name}.yaml: budget.trials = {space.budget.trials}: must be ≤ {cells}, the cells of the grid"
        )
    base = study_base(params, space)
    require(params, "prepare")
    if join:
        _supervise(open_study(name, space, base), name, space, workers, settings)
        return
    from simtrail.tracking.run import Trail, run

    training = training_run(params.pretrain)
    for line in training.warnings:
        print(f"sweep: warning: {line}", flush=True)
    trail = Trail(params, training.prepared)
    of_study = partial(run, trail, key=f"sweep {space.study} {base}", resumed=True, name=f"sweep {space.study}")
    with of_study() as parent:
        study = open_study(name, space, base, create=True)
        study.set_user_attr("parent", parent)
        _enqueue_present(study, params, space)
        requeue_dead(study)
        _supervise(study, name, space, workers, settings)
    winner = confirm(study, space, params, parent)  # its runs are below that of the study, and active themselves
    with of_study():
        report(study, name, space, params, winner)
    print(register_best(study, name, space, params, parent, winner))
    if not winner or winner.label != PRESENT:
        print(f"to write the best values into params.yaml: simtrail apply {name}")
    print(f"report: {FOLDER / name / 'report.md'}")


def _enqueue_present(study: optuna.Study, params: Params, space: Space) -> None:
    """Queues the values of params.yaml as trial 0, for comparison with the best; a grid includes them anyway."""
    if "present" not in study.user_attrs:
        study.set_user_attr("present", current_values(params, space))
    if space.sampler != "grid" and not study.get_trials(deepcopy=False):
        study.enqueue_trial(study.user_attrs["present"])


def _supervise(study: optuna.Study, name: str, space: Space, count: int | None, settings: list[str]) -> None:
    """Starts workers, and replaces those that die, until the budget is used up."""
    gpus = torch.cuda.device_count()
    count = count or max(1, gpus)
    deadline = time.time() + 60 * space.budget.minutes if space.budget.minutes else None
    task: dict[str, Any] = {"name": name, "trials": space.budget.trials, "parent": os.getpid()}
    task |= {"deadline": deadline, "settings": settings}
    processes: dict[int, subprocess.Popen[bytes]] = {}
    deaths, ended = 0, count_trials(study)[0]
    try:
        with _display(study, space, count) as show:
            while count_trials(study)[0] < space.budget.trials and (
                deadline is None or time.time() < deadline or processes
            ):
                for number in range(count):
                    process = processes.get(number)
                    if process and process.poll():
                        deaths += 1
                        requeue_dead(study)
                    if process is None or process.poll():
                        processes[number] = _start(task | {"number": number}, count, gpus)
                if count_trials(study)[0] > ended:
                    deaths, ended = 0, count_trials(study)[0]
                if deaths >= DEATHS:
                    end = (FOLDER / name / "worker-0.log").read_text(errors="replace").strip().splitlines()[-1:]
                    raise TrainingError(
                        f"workers died {deaths} times in a row; see {FOLDER / name}/worker-*.log: {end}"
                    )
                if all(process.poll() == 0 for process in processes.values()):
                    break
                show()
                time.sleep(0.5)
            show()
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _start(task: dict[str, Any], count: int, gpus: int) -> subprocess.Popen[bytes]:
    """Starts a worker with the arguments of `run_trials`.

    It gets one GPU (the workers take turns), or an equal part of the processor cores.
    """
    environment, number = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, task["number"]
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(str(i) for i in range(gpus))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % gpus]
    else:
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // count))
    with Path(FOLDER, task["name"], f"worker-{number}.log").open("ab") as log:
        command = [sys.executable, "-m", "simtrail.sweep.worker", json.dumps(task)]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@contextmanager
def _display(study: optuna.Study, space: Space, workers: int) -> Iterator[Callable[[], None]]:
    """A function that shows the trials: a live table on a terminal, else one line for each trial that has ended."""
    console, start = Console(), time.time()
    shown = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield lambda: live.update(_table(study, space, workers, start))
        return

    def print_ended() -> None:
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in shown:
                shown.add(trial.number)
                print(f"{_describe(trial)}; {_progress(study, space, workers, start)}", flush=True)

    yield print_ended


def _table(study: optuna.Study, space: Space, workers: int, start: float) -> Table:
    """The last 25 trials, the best one in bold."""
    table = Table(title=f"{space.study}: {_progress(study, space, workers, start)}", title_justify="left")
    for column in ("trial", "state", "epoch", space.objective, *(key.removeprefix("pretrain.") for key in space.space)):
        table.add_column(column)
    trials = study.get_trials(deepcopy=False)
    best = _best(study)
    for trial in trials[-25:]:
        value = trial.value if trial.value is not None else max(trial.intermediate_values.values(), default=None)
        cells = [str(trial.number), _state(trial), str(trial.user_attrs.get("epoch", "")), _number(value)]
        cells += [_number(trial.params.get(key)) for key in space.space]
        table.add_row(*cells, style="bold" if best is not None and trial.number == best.number else None)
    return table


def _progress(study: optuna.Study, space: Space, workers: int, start: float) -> str:
    """How many trials have ended, the best value, and the minutes left, estimated from trials since `start`."""
    ended, best = count_trials(study)[0], _best(study)
    recent = [t for t in study.get_trials(deepcopy=False) if t.duration and t.datetime_start.timestamp() > start]  # type: ignore[union-attr]
    text = f"{ended}/{space.budget.trials}" + (f", best {best.value:.4g} (trial {best.number})" if best else "")
    if recent and ended < space.budget.trials:
        mean = sum(t.duration.total_seconds() for t in recent if t.duration) / len(recent)
        text += f", about {mean * (space.budget.trials - ended) / workers / 60:.0f} min left"
    return text


def _describe(trial: FrozenTrial) -> str:
    parameters = ", ".join(f"{key.removeprefix('pretrain.')} {_number(value)}" for key, value in trial.params.items())
    value = f" {trial.value:.4g}" if trial.value is not None else ""
    return f"trial {trial.number} ({parameters}): {_state(trial)}{value}"


def _state(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        return str(trial.user_attrs.get("ended", f"pruned after epoch {trial.user_attrs.get('epoch')}"))
    return {"COMPLETE": "completed", "FAIL": "killed, will run again"}.get(trial.state.name, trial.state.name.lower())


def _best(study: optuna.Study) -> FrozenTrial | None:
    return study.best_trial if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) else None


def _number(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
