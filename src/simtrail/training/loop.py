"""SimCLR: the training loop, top to bottom (Chen et al. 2020, arXiv 2002.05709, algorithm 1)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from simtrail.augment.views import TwoViews
from simtrail.data.loader import epoch_batches
from simtrail.data.pack import PackedImages
from simtrail.errors import InputError, TrainingError
from simtrail.model.encoder import Encoder, EncoderConfig, best_device, load_weights
from simtrail.params import Pretrain
from simtrail.training.distributed import from_first, rank, world
from simtrail.training.learner import Learner
from simtrail.training.monitors import Monitor, concerns
from simtrail.training.optimisers import learning_rate, peak_rate
from simtrail.training.state import Checkpoints

Row = dict[str, float]


class Trained(NamedTuple):
    """What a training run leaves."""

    encoder: Encoder  # in evaluation mode
    history: list[Row]  # one row per epoch
    epoch: int  # the epoch that the encoder's weights are from


def fit(
    images: PackedImages,
    train_rows: np.ndarray,
    val_rows: np.ndarray,
    config: EncoderConfig,
    params: Pretrain,
    *,
    labels: np.ndarray | None = None,
    checkpoints: Checkpoints | None = None,
    on_look: Callable[[Encoder], Row] = lambda encoder: {},
    on_epoch: Callable[[list[Row]], None] = lambda history: None,
    say: Callable[[str], None] = lambda line: None,
) -> Trained:
    """The trained encoder, one history row per epoch, and the epoch that the encoder is from.

    Trains on `train_rows` of the packed images and on nothing else; looks at `val_rows` every few epochs, with `labels`
    (class number of every packed row, −1 for none) where there are any, and keeps the weights that did best there.
    The loss is made of `params.terms`, and the encoder keeps the projection heads that they train. After an
    interruption the same call goes on from the last checkpoint and ends with the same weights. `on_look` is
    given the encoder at each look and returns further measures for the history, `on_epoch` is given the history so far
    after each epoch, `say` each remark. In several processes, the first alone writes.

    Raises InputError for settings that the images or the memory don't allow, TrainingError when the loss is not finite.
    """
    per_epoch, steps = _plan(len(train_rows), params)
    epochs, device, peak = math.ceil(steps / per_epoch), best_device(), peak_rate(params)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(params.seed)  # on the CPU, so that a GPU starts from the same weights
        encoder = Encoder(config.model_copy(update={"terms": params.terms}))
        for line in load_weights(encoder, params.weights):
            say(line)
        views = TwoViews(params.augment, config.recipe, coordinates=params.terms.local > 0)
        learner = Learner(encoder.to(device).train(), views, params)
        monitor = Monitor(images, train_rows, val_rows, labels, views, params.seed)
        metric = monitor.choose(params.monitor.metric)

        # what a checkpoint holds beside the learner; sums are of loss, top-1 and terms, over the epoch so far
        at: dict[str, Any] = {"step": 0, "sums": {}, "history": [], "best": None, "looks_since_best": 0}
        saver = _Saver(checkpoints, learner, at)
        saver.restore()
        if rank() == 0:
            millions = sum(w.numel() for w in encoder.parameters()) / 1e6
            where = f"{world()} processes on {device.type}" if world() > 1 else device.type
            begin = f"goes on from step {at['step']} of" if at["step"] else "trains for"
            say(f"{config.architecture.model}, {millions:.1f} M weights, {where}; {begin} {steps} steps")
        watch = _Watch(steps, saver)
        bar = tqdm(total=steps, initial=at["step"], desc="pretrain", unit="step", disable=True if rank() else None)
        for epoch in range(len(at["history"]), epochs):
            if metric and params.monitor.patience and at["looks_since_best"] >= params.monitor.patience:
                say(f"stopped after epoch {epoch}: {metric} did not rise in {at['looks_since_best']} looks")
                break
            begun, first = time.perf_counter(), at["step"]
            batches = epoch_batches(
                images, train_rows, params.batch_size, params.seed, epoch, device,
                skip=first - epoch * per_epoch, shard=(rank(), world()),
            )  # fmt: skip
            for batch in batches:
                rate = learning_rate(at["step"], steps, peak, params.warmup)
                loss, told = learner.step(batch, rate, params.seed, epoch, at["step"])
                sums = {name: at["sums"].get(name, 0.0) + value for name, value in {"loss": loss, **told}.items()}
                at |= {"step": at["step"] + 1, "sums": sums}
                watch.follow(loss, at["step"], rate)
                bar.update()
                if at["step"] == steps:
                    break
                if at["step"] % per_epoch and saver.due(params.checkpoint):
                    watch.catch_up()
                    saver.save()

            watch.catch_up()
            row = {
                "epoch": epoch + 1,
                "step": at["step"],
                **{name: float(total) / (at["step"] - epoch * per_epoch) for name, total in at["sums"].items()},
                "learning_rate": learning_rate(at["step"] - 1, steps, peak, params.warmup),
                "images_per_second": (at["step"] - first) * params.batch_size / (time.perf_counter() - begun),
            }
            if (epoch + 1) % params.monitor.every == 0 or at["step"] == steps:
                row |= from_first({**monitor.look(learner.kept), **on_look(learner.kept)} if rank() == 0 else {})
                encoder.train()  # on_look may have left it otherwise
                for line in concerns(row, encoder):
                    say(f"epoch {epoch + 1}: {line}")
                at["looks_since_best"] += 1
                if metric and (at["best"] is None or row[metric] > at["best"]["value"]):
                    weights = {k: v.detach().cpu().clone() for k, v in learner.kept.state_dict().items()}
                    at["best"] = {"value": row[metric], "epoch": epoch + 1, "weights": weights}
                    at["looks_since_best"] = 0
            at |= {"sums": {}, "history": [*at["history"], row]}
            bar.set_postfix(epoch=f"{epoch + 1}/{epochs}", loss=f"{row['loss']:.3f}")
            if at["step"] == steps or saver.due(params.checkpoint):
                saver.save()
            if rank() == 0:
                on_epoch(at["history"])
                if bar.disable and any(key.startswith("val_") for key in row):  # off a terminal, looks say how it goes
                    seen = ", ".join(f"{key} {row[key]:.3f}" for key in ("val_probe", "val_knn") if key in row)
                    left = (steps - at["step"]) * (time.perf_counter() - begun) / (at["step"] - first)
                    left_over = f"; {tqdm.format_interval(left)} left" if left else ""
                    say(f"epoch {epoch + 1} of {epochs}: loss {row['loss']:.3f}{seen and ', ' + seen}{left_over}")
        bar.close()
        if at["best"]:
            learner.kept.load_state_dict(at["best"]["weights"])
        return Trained(learner.kept.eval(), at["history"], at["best"]["epoch"] if at["best"] else len(at["history"]))


def _plan(images: int, params: Pretrain) -> tuple[int, int]:
    """Steps per epoch, and in all."""
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


class _Saver:
    """Writes and reads checkpoints; in several processes the first does, for all."""

    def __init__(self, checkpoints: Checkpoints | None, learner: Learner, at: dict[str, Any]):
        self.checkpoints, self.learner, self.at = checkpoints, learner, at
        self.step, self.time = 0, time.monotonic()

    def due(self, params: Any) -> bool:
        """Whether enough steps or minutes have passed."""
        steps, seconds = self.at["step"] - self.step, time.monotonic() - self.time
        return bool(params.every_steps and steps >= params.every_steps) or seconds > 60 * params.every_minutes

    def save(self) -> None:
        self.step, self.time = self.at["step"], time.monotonic()
        if self.checkpoints is not None and rank() == 0:
            state = {"learner": self.learner.state_dict(), "at": self.at, "rng": torch.get_rng_state()}
            self.checkpoints.save(self.step, state)

    def restore(self) -> None:
        state = from_first(self.checkpoints.load() if self.checkpoints is not None and rank() == 0 else None)
        if state:
            self.learner.load_state_dict(state["learner"])
            self.at |= state["at"]
            self.at["sums"] = {name: total.to(self.learner.device) for name, total in self.at["sums"].items()}
            torch.set_rng_state(state["rng"])
            self.step = self.at["step"]


class _Watch:
    """Stops at the first loss that is not finite. On a GPU, one step late: reading at once would make it wait."""

    def __init__(self, steps: int, saver: _Saver):
        self.steps, self.saver = steps, saver
        self.last: tuple[torch.Tensor, int, float] | None = None
        self.copied: torch.cuda.Event | None = None

    def follow(self, loss: torch.Tensor, step: int, rate: float) -> None:
        self.catch_up()
        self.last = loss.to("cpu", non_blocking=True), step, rate
        if loss.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def catch_up(self) -> None:
        if self.last is None:
            return
        if self.copied:
            self.copied.synchronize()
        loss, step, rate = self.last
        if not math.isfinite(loss):
            left = (
                f"the checkpoint of step {self.saver.step} is kept" if self.saver.step else "no checkpoint was made yet"
            )
            raise TrainingError(
                f"the loss is {loss.item()} at step {step} of {self.steps}, learning rate {rate:.3g}; {left}; "
                "lower pretrain.learning_rate, set pretrain.clip, or choose pretrain.precision: fp32"
            )
