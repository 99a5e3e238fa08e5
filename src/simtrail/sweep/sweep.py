"""`make sweep`: workers that try trials until the budget is spent, watched, and replaced when they die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table

from simtrail.errors import InputError, TrainingError
from simtrail.params import Params, load_params
from simtrail.pipeline.training_run import training_run
from simtrail.pipeline.workspace import require
from simtrail.sweep.result import register_best, report
from simtrail.sweep.space import FOLDER, Space, current_values, load_space
from simtrail.sweep.study import count_trials, open_study, requeue_dead
from simtrail.sweep.worker import study_base

DEATHS = 5  # of workers in a row, without a trial that ended in between, that are too many


def sweep(name: str, trials: int | None, workers: int | None, join: bool) -> None:
    """Runs the study of sweeps/NAME.yaml to its budget, reports it, and registers the best encoder through the gate.

    Goes on where an earlier call was ended. `join` only adds this machine's workers to a study that another one runs
    (OPTUNA_STORAGE). Raises InputError before any trial for a space at fault, TrainingError when workers keep dying.
    """
    params = load_params()
    space = load_space(name, params)
    if trials:
        space = space.model_copy(update={"budget": space.budget.model_copy(update={"trials": trials})})
    if space.sampler == "grid" and space.budget.trials > (
        cells := prod(len(a.values or []) for a in space.space.values())
    ):
        raise InputError(f"sweeps/{name}.yaml: budget.trials = {space.budget.trials}: the grid has {cells} cells")
    base = study_base(params, space)
    require(params, "prepare")
    if join:
        _supervise(open_study(name, space, base), name, space, workers)
        return
    from simtrail.tracking.run import Trail, run

    ready = training_run(params.pretrain)
    for line in ready.warnings:
        print(f"sweep: warning: {line}", flush=True)
    trail = Trail(params, ready.data_md5)
    with run(trail, key=f"sweep {space.study} {base}", resumed=True, name=f"sweep {space.study}") as parent:
        study = open_study(name, space, base, create=True)
        study.set_user_attr("parent", parent)
        _enqueue_present(study, params, space)
        requeue_dead(study)
        _supervise(study, name, space, workers)
        report(study, name, space, params)
    print(register_best(study, name, space, params, parent))
    print(f"apply it to params.yaml: simtrail apply {name}; the study: {FOLDER / name / 'report.md'}")


def _enqueue_present(study: optuna.Study, params: Params, space: Space) -> None:
    """Trial 0 is what params.yaml has, with which the best is compared; in a grid it has its turn anyway."""
    if "present" not in study.user_attrs:
        study.set_user_attr("present", current_values(params, space))
    if space.sampler != "grid" and not study.get_trials(deepcopy=False):
        study.enqueue_trial(study.user_attrs["present"])


def _supervise(study: optuna.Study, name: str, space: Space, count: int | None) -> None:
    """Keeps the workers going until the budget is spent."""
    gpus = torch.cuda.device_count()
    count = count or max(1, gpus)
    deadline = time.time() + 60 * space.budget.minutes if space.budget.minutes else None
    jobs: dict[int, subprocess.Popen[bytes]] = {}
    deaths, ended = 0, count_trials(study)[0]
    try:
        with _display(study, space, count) as show:
            while count_trials(study)[0] < space.budget.trials and (deadline is None or time.time() < deadline or jobs):
                for number in range(count):
                    job = jobs.get(number)
                    if job and job.poll():
                        deaths += 1
                        requeue_dead(study)
                    if job is None or job.poll():
                        jobs[number] = _start(name, space, number, count, gpus, deadline)
                if count_trials(study)[0] > ended:
                    deaths, ended = 0, count_trials(study)[0]
                if deaths >= DEATHS:
                    last = (FOLDER / name / "worker-0.log").read_text(errors="replace").strip().splitlines()[-1:]
                    raise TrainingError(
                        f"workers died {deaths} times in a row; see {FOLDER / name}/worker-*.log: {last}"
                    )
                if all(job.poll() == 0 for job in jobs.values()):
                    break
                show()
                time.sleep(0.5)
            show()
    finally:
        for job in jobs.values():
            job.terminate()
        for job in jobs.values():
            try:
                job.wait(30)
            except subprocess.TimeoutExpired:
                job.kill()


def _start(
    name: str, space: Space, number: int, count: int, gpus: int, deadline: float | None
) -> subprocess.Popen[bytes]:
    """A worker, on the GPU that is its turn, or with its share of the processors."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(str(i) for i in range(gpus))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % gpus]
    else:
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // count))
    task = {"name": name, "trials": space.budget.trials, "number": number, "parent": os.getpid(), "deadline": deadline}
    with Path(FOLDER, name, f"worker-{number}.log").open("ab") as log:
        command = [sys.executable, "-m", "simtrail.sweep.worker", json.dumps(task)]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@contextmanager
def _display(study: optuna.Study, space: Space, workers: int) -> Iterator[Callable[[], None]]:
    """A function that shows the trials: a live table on a terminal, else a line for each that has ended."""
    console, begun = Console(), time.time()
    told = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield lambda: live.update(_table(study, space, workers, begun, len(told)))
        return

    def lines() -> None:
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in told:
                told.add(trial.number)
                print(f"{_describe(trial)}; {_progress(study, space, workers, begun)}", flush=True)

    yield lines


def _table(study: optuna.Study, space: Space, workers: int, begun: float, before: int) -> Table:
    table = Table(title=f"{space.study}: {_progress(study, space, workers, begun)}", title_justify="left")
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


def _progress(study: optuna.Study, space: Space, workers: int, begun: float) -> str:
    ended, best = count_trials(study)[0], _best(study)
    done = [t for t in study.get_trials(deepcopy=False) if t.duration and t.datetime_start.timestamp() > begun]  # type: ignore[union-attr]
    text = f"{ended}/{space.budget.trials}" + (f", best {best.value:.4g} (trial {best.number})" if best else "")
    if done and ended < space.budget.trials:
        mean = sum(t.duration.total_seconds() for t in done if t.duration) / len(done)
        text += f", about {mean * (space.budget.trials - ended) / workers / 60:.0f} min left"
    return text


def _describe(trial: FrozenTrial) -> str:
    parameters = ", ".join(f"{key.removeprefix('pretrain.')} {_number(value)}" for key, value in trial.params.items())
    value = f" {trial.value:.4g}" if trial.value is not None else ""
    return f"trial {trial.number} ({parameters}): {_state(trial)}{value}"


def _state(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        return str(trial.user_attrs.get("ended", f"pruned after epoch {trial.user_attrs.get('epoch')}"))
    return {"COMPLETE": "completed", "FAIL": "killed, tried again"}.get(trial.state.name, trial.state.name.lower())


def _best(study: optuna.Study) -> FrozenTrial | None:
    return study.best_trial if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) else None


def _number(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
