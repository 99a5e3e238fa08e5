"""SimCLR: the training loop, top to bottom (Chen et al. 2020, arXiv 2002.05709, algorithm 1)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from simtrail.augment.views import TwoViews
from simtrail.data.loader import epoch_batches
from simtrail.data.pack import PackedImages
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder, EncoderConfig, best_device
from simtrail.model.objectives import contrastive_top1, nt_xent
from simtrail.model.projector import projection_head
from simtrail.params import Pretrain
from simtrail.training.schedule import adamw, learning_rate
from simtrail.training.state import ResumeState

Row = dict[str, float]
SAVE_SECONDS = 30  # at the end of an epoch, no more often than this


def fit(
    images: PackedImages,
    train_rows: np.ndarray,
    config: EncoderConfig,
    params: Pretrain,
    state: ResumeState | None = None,
    on_epoch: Callable[[list[Row]], None] = lambda history: None,
) -> tuple[Encoder, list[Row]]:
    """The trained encoder, in evaluation mode, and one history row per epoch.

    Reads `train_rows` of the packed images and nothing else. `on_epoch` is given the history so far after each epoch,
    and after an interruption the same call goes on from the last saved state, makes the same rows again where need be,
    and ends with the same weights. Raises InputError for settings the images don't allow, FloatingPointError when the
    loss is not finite.
    """
    per_epoch = len(train_rows) // params.batch_size
    if per_epoch == 0:
        raise InputError(
            f"pretrain.batch_size = {params.batch_size}: must be ≤ {len(train_rows)}, the number of training images"
        )
    steps = min(per_epoch * params.epochs, params.max_steps or sys.maxsize)
    epochs = math.ceil(steps / per_epoch)
    peak = params.learning_rate * params.batch_size / 256

    device = best_device()
    with torch.random.fork_rng([]):
        torch.manual_seed(params.seed)  # on the CPU, so that a GPU starts from the same weights
        encoder = Encoder(config)
        head = projection_head(encoder.width, params.hidden, params.projection)
    encoder.to(device).train()
    head.to(device).train()
    optimiser = adamw([encoder, head], params.weight_decay)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bf16")
    two_views = TwoViews(params.augment, config.recipe)

    history: list[Row] = []
    if state and (saved := state.load()):
        encoder.load_state_dict(saved["encoder"])
        head.load_state_dict(saved["head"])
        optimiser.load_state_dict(saved["optimiser"])
        history = saved["history"]
    step = int(history[-1]["step"]) if history else 0

    saved_at = time.monotonic()
    bar = tqdm(total=steps, initial=step, desc="pretrain", unit="step", disable=None, leave=False)
    for epoch in range(len(history), epochs):
        start, first = time.perf_counter(), step
        loss_sum = top1_sum = torch.zeros((), device=device)
        for batch in epoch_batches(images, train_rows, params.batch_size, params.seed, epoch, device):
            if step == steps:
                break
            rate = learning_rate(step, steps, peak, params.warmup)
            for group in optimiser.param_groups:
                group["lr"] = rate
            views = two_views(batch, params.seed, epoch, step)
            with autocast:
                projections = head(encoder(views))
            loss = nt_xent(projections.float(), params.temperature)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            step += 1
            loss_sum = loss_sum + loss.detach()
            top1_sum = top1_sum + contrastive_top1(projections.detach())
            bar.update()

        n, seconds = step - first, time.perf_counter() - start
        row = {
            "epoch": epoch + 1,
            "step": step,
            "loss": loss_sum.item() / n,
            "contrastive_top1": top1_sum.item() / n,
            "learning_rate": rate,
            "images_per_second": n * params.batch_size / seconds,
        }
        if not math.isfinite(row["loss"]):
            raise FloatingPointError(
                f"loss is {row['loss']} in epoch {epoch + 1} (steps {first + 1} to {step}, learning rate {rate:.3g}); "
                f"nothing was saved since the loss was last finite; lower pretrain.learning_rate"
            )
        history.append(row)
        bar.set_postfix(epoch=f"{epoch + 1}/{epochs}", loss=f"{row['loss']:.3f}")
        if state and (step == steps or time.monotonic() - saved_at > SAVE_SECONDS):
            state.save(
                {
                    "encoder": encoder.state_dict(),
                    "head": head.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "history": history,
                }
            )
            saved_at = time.monotonic()
        on_epoch(history)
    bar.close()
    return encoder.eval(), history
