"""The early truth: whether an encoder is above its floors on validation after a tenth of the training, or why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import torch

from simtrail.errors import InputError
from simtrail.evaluation.tasks import small_pixels
from simtrail.model.backbone import Backbone
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.model.weights import load_weights
from simtrail.params import FEATURES, SIDE, Pretrain
from simtrail.training.features import CHOICES, WORSE
from simtrail.training.monitors import Monitor

STUCK = 0.98  # of the loss at the start: above this, almost nothing was learnt
EASY = 0.98  # of the views find their partner: then the negatives are too few or too easy
LOST = 0.05  # of the accuracy of pixels above chance: views of recipes that work keep 0.1 to 0.5, of erased images 0.03


def early_epoch(epochs: int) -> int:
    """The epoch after which it is said, from 1; 0 for fewer than ten epochs."""
    return epochs // 10


@torch.no_grad()
def floors(monitor: Monitor, config: EncoderConfig, params: Pretrain, device: torch.device) -> dict[str, float]:
    """The accuracy on validation of what has learnt nothing: the pixels, and the encoder with its first weights."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(params.seed)
        untrained = Encoder(config)
        load_weights(untrained, params.weights)
        untrained.to(device).eval()
    first = "random weights" if params.weights == "random" else "first weights"
    images, bank, queries = monitor.images, monitor.bank, monitor.queries
    pixels = [small_pixels(images.rows(rows), images.recipe.full_scale) for rows in (bank, queries)]
    of_encoder = [torch.cat([untrained(b).float() for b in monitor.batches(rows, device)]) for rows in (bank, queries)]
    return {
        "16×16 pixels": monitor.accuracies(*map(torch.from_numpy, pixels))["val_probe"],
        first: monitor.accuracies(*of_encoder)["val_probe"],
    }


def early_truth(
    row: Mapping[str, float], encoder: Encoder, monitor: Monitor, params: Pretrain, first_loss: float
) -> list[str]:
    """Lines for the log: whether the validation probe is above its floors, and why the training may fail.

    `row` is the history's row of this epoch, `first_loss` the loss of the first epoch. Without labels there are no
    floors, only reasons.
    """
    lines, below = [], False
    if monitor.labelled:
        of_floors = floors(monitor, encoder.config, params, encoder.device)
        text = ", ".join(f"{name} {value:.3f}" for name, value in of_floors.items())
        below = row["val_probe"] <= max(of_floors.values())
        verdict = (
            f"warning: val_probe {row['val_probe']:.3f} is not" if below else f"val_probe {row['val_probe']:.3f} is"
        )
        lines.append(f"{verdict} above the floors on validation ({text})" + ("; training goes on" if below else ""))
    reasons = faults(row, encoder, monitor, params)
    if below:
        reasons += [*weaknesses(row, params, first_loss), *layout(row, encoder, monitor, params)]
        if not reasons:
            lines.append("no fault was measured; it may need more epochs, or another pretrain.recipe")
    return lines + [f"{'likely reason' if below else 'warning'}: {reason}" for reason in reasons]


def faults(row: Mapping[str, float], encoder: Encoder, monitor: Monitor, params: Pretrain) -> list[str]:
    """Settings with which no encoder can be good, each known from something that was measured."""
    lines, size = [], encoder.config.view_side
    if {_map_side(branch, size, encoder.device) for branch in encoder.branches.values()} == {1}:
        lines.append(
            f"the stem leaves a map of one pixel for images of {size}×{size}; set pretrain.encoder.stem: small, or a "
            f"larger {SIDE}"
        )
    if monitor.labelled and (kept := views_keep(monitor)) < LOST:
        lines.append(
            f"the views destroy the classes: of what pixels tell about the classes of whole images, those of views "
            f"keep {kept:.0%}; look at `simtrail preview`, choose another pretrain.recipe, or weaken pretrain.augment"
        )
    if params.normalise and (reach := 2 / params.temperature) < 1:
        equal = math.log(2 * params.batch_size - 1)
        lines.append(
            f"the temperature {params.temperature:g} makes all views nearly equal: the loss is {row['loss']:.3f}, for "
            f"equal ones it is {equal:.3f}, and it can't go below {equal - reach:.3f}; set pretrain.temperature: 0.2"
        )
    return lines


def weaknesses(row: Mapping[str, float], params: Pretrain, first_loss: float) -> list[str]:
    """Settings with which an encoder may learn too little."""
    lines, equal = [], math.log(2 * params.batch_size - 1)
    if row["contrastive_top1"] > EASY:
        lines.append(
            f"the batch is too small: {row['contrastive_top1']:.0%} of the views find their partner among "
            f"{2 * params.batch_size}; raise pretrain.batch_size, or strengthen pretrain.augment"
        )
    # in the first epoch, which mostly warms up, there is nothing to compare the loss with
    if row.get("epoch") != 1 and row["loss"] > STUCK * min(equal, first_loss):
        lines.append(
            f"the learning rate: the loss is {row['loss']:.2f}, after {first_loss:.2f} in the first epoch, and it is "
            f"{equal:.2f} if nothing is learnt; try a third of pretrain.learning_rate = {params.learning_rate:g}, and "
            "three times as much"
        )
    return lines


@torch.no_grad()
def layout(row: Mapping[str, float], encoder: Encoder, monitor: Monitor, params: Pretrain) -> list[str]:
    """A line if features of an early stage, which keep where things are, tell more than those that were measured."""
    fine, device = CHOICES[-1], encoder.device
    with suppress(InputError):  # not all networks have these features
        encoder.with_features(fine)
        of_rows = [
            torch.cat([encoder.features_on([fine], batch)[0].float() for batch in monitor.batches(rows, device)])
            for rows in (monitor.bank, monitor.queries)
        ]
        value = monitor.accuracies(*of_rows)["val_probe"]
        if value > row["val_probe"] + WORSE:
            auto = params.encoder.features == "auto"
            what = "auto tries them after the training" if auto else f"set {FEATURES}: auto, which tries them"
            return [f"the features lose where things are: those of {FEATURES}: {fine} have {value:.3f}; {what}"]
    return []


def views_keep(monitor: Monitor) -> float:
    """The part of the pixels' accuracy above chance that is left if both training and validation images are views."""
    device, scale = torch.device("cpu"), monitor.images.recipe.full_scale

    def of_view(rows: np.ndarray, number: int) -> torch.Tensor:
        batches = enumerate(monitor.batches(rows, device))
        views = [monitor.two_views(batch, monitor.seed, number, i)[: len(batch)] for i, batch in batches]
        return torch.from_numpy(
            small_pixels(torch.cat(views)[:, : len(monitor.images.recipe.bands)].nan_to_num(0.5).numpy(), 1)
        )

    def whole(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(small_pixels(monitor.images.rows(rows), scale))

    of_images = monitor.accuracies(whole(monitor.bank), whole(monitor.queries))["val_probe"] - monitor.chance
    of_views = monitor.accuracies(of_view(monitor.bank, 0), of_view(monitor.queries, 1))["val_probe"] - monitor.chance
    return 1.0 if of_images <= 0.05 else max(0.0, of_views) / of_images


@torch.no_grad()
def _map_side(branch: Backbone, size: int, device: torch.device) -> int:
    """The side of the last map; of models without one, that of the image. Keeps the mode of the branch."""
    training = branch.training
    branch.eval()
    try:
        return branch.with_map(torch.zeros(1, branch.bands, size, size, device=device))[1].shape[-1]
    except (ValueError, AttributeError, NotImplementedError):
        return size
    finally:
        branch.train(training)
