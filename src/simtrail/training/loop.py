"""SimCLR: the training loop, top to bottom (Chen et al. 2020, arXiv 2002.05709, algorithm 1)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from simtrail.augment.views import TwoViews
from simtrail.data.loader import TrainingData, batches, draws, epoch_rows, on_device
from simtrail.errors import InputError, TrainingError, counted
from simtrail.model.encoder import Encoder, EncoderConfig, best_device
from simtrail.model.weights import load_weights
from simtrail.params import FEATURES, WHITEN, Checkpoint, Pretrain, Settings
from simtrail.training.distributed import from_first, rank, world
from simtrail.training.early import early_epoch, early_truth
from simtrail.training.features import Chosen, choose_features
from simtrail.training.learner import Learner
from simtrail.training.machine import ready_for
from simtrail.training.measure import check_memory
from simtrail.training.monitors import Monitor, problems
from simtrail.training.optimisers import learning_rate, peak_rate
from simtrail.training.state import Checkpoints, TrainingState

Row = dict[str, float]


class Trained(NamedTuple):
    """The result of a training run."""

    encoder: Encoder  # in evaluation mode
    history: list[Row]  # one row per epoch
    epoch: int  # the epoch that the encoder's weights are from
    features: Chosen | None = None  # what they are made of, if that was auto


def fit(
    data: TrainingData,
    config: EncoderConfig,
    params: Pretrain,
    *,
    checkpoints: Checkpoints | None = None,
    validate: bool = True,
    chosen: Chosen | None = None,
    on_validation: Callable[[Encoder], Row] = lambda encoder: {},
    on_epoch: Callable[[list[Row]], None] = lambda history: None,
    log: Callable[[str], None] = lambda line: None,
) -> Trained:
    """The trained encoder, one history row per epoch, and the epoch that the encoder is from.

    It trains only on the training rows of the data. Every few epochs it validates, with labels if there are any, and it
    keeps the latest weights that are not clearly worse than the best; it does neither without `validate`, for a
    training that is judged in another way. The loss is the weighted sum of `params.terms` and of the term of a teacher,
    and the encoder keeps the projection heads that they train. With `validate`, what the features are made of,
    if that is auto, is `chosen` or chosen at the end. After an interruption, the same call continues from the last
    checkpoint and ends with the same weights. `on_validation` gets the encoder at each validation and returns more
    measures for the history. `on_epoch` gets the history so far after each epoch, and `log` gets one line of text for
    each event. In several processes, only the first one writes.

    Raises InputError for settings that the images or the memory don't allow, TrainingError when the loss is not finite.
    """
    per_epoch, steps = plan_steps(len(data.train), params)
    epochs, device, peak = math.ceil(steps / per_epoch), best_device(), peak_rate(params)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), ready_for(device):
        torch.manual_seed(params.seed)  # the encoder is built on the CPU, so that a GPU starts from the same weights
        width = 0 if data.teacher is None else data.teacher.shape[1]
        encoder = Encoder(config.model_copy(update={"terms": params.terms, "teacher_width": width}))
        for line in load_weights(encoder, params.weights):
            log(line)
        views = TwoViews(params.augment, config.recipe, config.view_side, coordinates=params.terms.local > 0)
        learner = Learner(encoder.to(device).train(), views, params)
        monitor = Monitor(data, views, params.seed)
        metric = monitor.choose(params.monitor.metric) if validate else None

        state = TrainingState()
        saver = _Saver(checkpoints, learner, state)
        saver.restore()
        if rank() == 0:
            millions = sum(w.numel() for w in encoder.parameters()) / 1e6
            processes = f"{world()} processes on {device.type}" if world() > 1 else device.type
            action = (
                f"resumes after step {state.step} of {steps}" if state.step else f"trains for {counted(steps, 'step')}"
            )
            log(f"{config.architecture.model}, {millions:.1f} M weights, {processes}; {action}")
            if data.weight is not None:
                times = draws(data.weight[data.train], per_epoch, params.batch_size)
                log(f"sampling: an image is drawn {times.min():.2g} to {times.max():.2g} times per epoch")
        sides = _sides(params.view_sides, config.view_side, steps)
        if state.step < steps and sides[state.step] < sides[-1]:
            check_memory(encoder, params)  # of the largest views, before hours with smaller ones
        early, every = early_epoch(epochs), params.monitor.every
        validated = (
            {e for e in range(epochs) if (e + 1) % every == 0 or e + 1 in (early, epochs)} if validate else set()
        )
        finite, clock = _FiniteLoss(steps, saver), _Clock(sides**2, validated, state.step)
        bar = tqdm(total=steps, initial=state.step, desc="pretrain", unit="step", disable=True if rank() else None)
        for epoch in range(len(state.history), epochs):
            if metric and params.monitor.patience and state.validations_since_best >= params.monitor.patience:
                log(f"stopped after epoch {epoch}: {metric} did not rise in {state.validations_since_best} validations")
                break
            start, first_step, so_far = time.perf_counter(), state.step, _so_far(epoch, epochs, state.history)
            rows = epoch_rows(data.train, params.batch_size, params.seed, epoch, data.group, data.weight)
            rows = rows[first_step - epoch * per_epoch :]
            read = _Timed(batches(data.images, rows, device, shard=(rank(), world())))
            for rows_of_batch, batch in zip(rows, read, strict=True):
                rate = learning_rate(state.step, steps, peak, params.warmup)
                groups, teacher = (
                    None if values is None else on_device(torch.from_numpy(values[rows_of_batch]), device)
                    for values in (data.group, data.teacher)
                )
                seed = (params.seed, epoch, state.step)
                learner.show(int(sides[state.step]))
                loss, measures = learner.step(batch, rate, *seed, groups=groups, teacher=teacher)
                state.add({"loss": loss, **measures})
                finite.check(loss, state.step, rate)
                if not bar.disable:
                    speed = _speed((state.step - first_step) * params.batch_size, start, read.seconds)
                    bar.set_postfix_str(f"{so_far}, {_speed_text(speed)}", refresh=False)
                bar.update()
                if state.step == steps:
                    break
                if state.step % per_epoch and saver.due(params.checkpoint):
                    finite.check_last()
                    saver.save()

            finite.check_last()
            row = {
                "epoch": epoch + 1,
                "step": state.step,
                **{name: float(total) / (state.step - epoch * per_epoch) for name, total in state.sums.items()},
                "learning_rate": learning_rate(state.step - 1, steps, peak, params.warmup),
                **_speed((state.step - first_step) * params.batch_size, start, read.seconds),
            }
            if epoch in validated:
                clock.validates()
                kept = learner.kept
                row |= from_first({**monitor.validate(kept), **on_validation(kept)} if rank() == 0 else {})
                encoder.train()  # on_validation may have changed the mode
                # after one epoch, features are still much like those of random weights, which nearly point in one way
                lines = problems(row, encoder) if epoch or state.step == steps else []
                if epoch + 1 == early and rank() == 0:
                    first = state.history[0] if state.history else row
                    now, at_first = (r.get("loss_fused", r["loss"]) for r in (row, first))  # without other terms
                    lines += early_truth(row | {"loss": now}, kept, monitor, params, at_first)
                for line in lines:
                    log(f"epoch {epoch + 1}: {line}")
                state.keep_if_good(row, metric, learner.kept, partial(monitor.standard_error, metric))
                if sides[state.step - 1] < sides[-1]:
                    state.validations_since_best = 0  # patience begins with the largest views, which teach more
                clock.has_validated()
            state.end_epoch(row)
            if state.step == steps or saver.due(params.checkpoint):
                saver.save()
            if rank() == 0:
                on_epoch(state.history)
                if bar.disable and (epoch == 0 or any(key.startswith("val_") for key in row)):  # no terminal
                    seconds_left = clock.seconds_left(epoch, state.step)
                    time_left = f"; {tqdm.format_interval(seconds_left)} left" if seconds_left else ""
                    log(f"{_so_far(epoch, epochs, state.history)}, {_speed_text(row)}{time_left}")
        bar.close()
        if state.best:
            learner.kept.load_state_dict(state.best["weights"])
        kept = learner.kept.eval()
        if validate and rank() == 0:
            made: Settings = {FEATURES: config.architecture.features, WHITEN: params.whiten}
            if "auto" in made.values():
                if chosen is None:
                    chosen = choose_features(kept, monitor, made)
                    log(chosen.line)
                made |= chosen.values
                kept = kept.with_features(made[FEATURES])
            if made[WHITEN]:
                with torch.no_grad():
                    kept.whiten(monitor.features(kept, monitor.train))
        return Trained(kept, state.history, state.best["epoch"] if state.best else len(state.history), chosen)


def plan_steps(images: int, params: Pretrain) -> tuple[int, int]:
    """Steps per epoch, and steps in total."""
    if params.batch_size > images:
        raise InputError(
            f"pretrain.batch_size = {params.batch_size}: must be ≤ {images}, the number of training images"
        )
    if params.batch_size % world():
        raise InputError(
            f"pretrain.batch_size = {params.batch_size}: must be a multiple of {world()}, the number of processes"
        )
    per_epoch = images // params.batch_size
    return per_epoch, min(per_epoch * params.epochs, params.max_steps or sys.maxsize)


def _sides(given: Sequence[int | None], usual: int, steps: int) -> np.ndarray:
    """The side of the views in each step: the given ones, each for an equal part of all steps; None is the usual."""
    return np.array([side or usual for side in given])[np.arange(steps) * len(given) // steps]


class _Clock:
    """Estimates the time that is left: that of steps as the pixels of their views, validations one by one."""

    def __init__(self, pixels: np.ndarray, validated: set[int], step: int):
        self.pixels, self.validated, self.first = pixels, validated, step
        self.began, self.validating, self.validations = time.perf_counter(), 0.0, 0

    def validates(self) -> None:
        self.validating -= time.perf_counter()

    def has_validated(self) -> None:
        self.validating += time.perf_counter()
        self.validations += 1

    def seconds_left(self, epoch: int, step: int) -> float:
        """The seconds after this epoch and so many steps."""
        training = time.perf_counter() - self.began - self.validating
        each = self.validating / max(1, self.validations)
        of_steps = training * self.pixels[step:].sum() / self.pixels[self.first : step].sum()
        return float(of_steps + each * sum(e > epoch for e in self.validated))


class _Timed:
    """Iterates over batches, and measures the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[torch.Tensor]):
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            start = time.perf_counter()
            batch = next(self.batches, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def _speed(images: int, start: float, waited: float) -> Row:
    """Images per second since `start`, and the share of this time spent waiting for data."""
    seconds = time.perf_counter() - start
    return {"images_per_second": images / seconds, "waiting": waited / seconds}


def _speed_text(speed: Row) -> str:
    return f"{speed['images_per_second']:.0f} images/s, {speed['waiting']:.0%} waiting for data"


def _so_far(epoch: int, epochs: int, history: list[Row]) -> str:
    """The epoch, the last loss, and the scores of the last validation."""
    parts = [f"epoch {epoch + 1} of {epochs}"]
    if history:
        parts[0] += f": loss {history[-1]['loss']:.3f}"
        latest = {key: row[key] for row in history for key in ("val_probe", "val_knn") if key in row}
        parts += [f"{key} {value:.3f}" for key, value in latest.items()]
    return ", ".join(parts)


class _Saver:
    """Writes and reads checkpoints; in several processes, only the first one does, for all of them."""

    def __init__(self, checkpoints: Checkpoints | None, learner: Learner, state: TrainingState):
        self.checkpoints, self.learner, self.state = checkpoints, learner, state
        self.step, self.time = 0, time.monotonic()

    def due(self, params: Checkpoint) -> bool:
        """Whether enough steps or minutes have passed since the last checkpoint."""
        steps, seconds = self.state.step - self.step, time.monotonic() - self.time
        return bool(params.every_steps and steps >= params.every_steps) or seconds > 60 * params.every_minutes

    def save(self) -> None:
        self.step, self.time = self.state.step, time.monotonic()
        if self.checkpoints is not None and rank() == 0:
            learner, rng = self.learner.state_dict(), torch.get_rng_state()
            self.checkpoints.save(self.step, {"learner": learner, "state": vars(self.state), "rng": rng})

    def restore(self) -> None:
        saved = from_first(self.checkpoints.load() if self.checkpoints is not None and rank() == 0 else None)
        if saved:
            self.learner.load_state_dict(saved["learner"])
            vars(self.state).update(saved["state"])
            self.state.sums = {name: total.to(self.learner.device) for name, total in self.state.sums.items()}
            torch.set_rng_state(saved["rng"])
            self.step = self.state.step


class _FiniteLoss:
    """Stops at the first loss that is not finite; on a GPU one step late, so that it need not wait for the loss."""

    def __init__(self, steps: int, saver: _Saver):
        self.steps, self.saver = steps, saver
        self.last: tuple[torch.Tensor, int, float] | None = None
        self.copied: torch.cuda.Event | None = None

    def check(self, loss: torch.Tensor, step: int, rate: float) -> None:
        self.check_last()
        self.last = loss.to("cpu", non_blocking=True), step, rate
        if loss.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def check_last(self) -> None:
        if self.last is None:
            return
        if self.copied:
            self.copied.synchronize()
        loss, step, rate = self.last
        if not math.isfinite(loss):
            saved = self.saver.step
            checkpoint = f"the checkpoint of step {saved} is kept" if saved else "there is no checkpoint yet"
            raise TrainingError(
                f"the loss is {loss.item()} at step {step} of {self.steps}, learning rate {rate:.3g}; {checkpoint}; "
                "lower pretrain.learning_rate, set pretrain.clip, or choose pretrain.precision: fp32"
            )
