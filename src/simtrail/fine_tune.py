"""Fine-tuning with few labels, beside the same network trained from scratch (arXiv 2002.05709, table 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn
from tqdm import tqdm

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.augment.geometry import move
from simtrail.data.loader import to_unit
from simtrail.data.pack import PackedImages
from simtrail.errors import InputError, TrainingError
from simtrail.evaluation.label_efficiency import draw, scored_rows
from simtrail.model.encoder import Encoder
from simtrail.params import Geometry
from simtrail.training.learner import LOW
from simtrail.training.optimisers import learning_rate

BATCH, LEAST_STEPS = 64, 200  # images per step at most; steps at least, so that a handful of images are learnt too
WARMUP, WEIGHT_DECAY = 0.1, 0.05
LOOKED_AT = 256  # images at once, where nothing is learnt


class Tuning(NamedTuple):
    """How to fine-tune."""

    epochs: int  # passes over the images; more of them each, where LEAST_STEPS asks for it
    geometry: Geometry  # how images are moved at each step; colours stay, as in the paper's appendix B.5
    precision: str  # bf16, fp16 or fp32
    learning_rate: float = 1e-3  # the highest, of the new layer; AdamW
    layer_decay: float = 0.75  # × this for every layer further down (arXiv 2106.08254, appendix A); 1: all alike
    patience: int = 10  # epochs without a better validation result before it stops


class FineTuned(NamedTuple):
    """What fine-tuning leaves."""

    model: nn.Sequential  # encoder and linear layer, in evaluation mode: images in [0, 1] → (B, classes) logits
    history: list[dict[str, float]]  # one row per epoch
    epoch: int  # the epoch that the weights are from


def fine_tune(
    encoder: Encoder,
    images: PackedImages,
    rows: np.ndarray,
    labels: np.ndarray,
    val_rows: np.ndarray,
    val_labels: np.ndarray,
    classes: int,
    tuning: Tuning,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> FineTuned:
    """A copy of the encoder under a new linear layer, all of it trained on labelled images; its epochs; the one kept.

    `labels` holds the class number, 0 … classes − 1, of each of `rows`, packed rows; cross entropy, AdamW, a short
    warm-up and a cosine. Kept are the weights with the highest accuracy on `val_rows` (of equals, the lowest cross
    entropy). Batches are of 64 images, or all where there are fewer, and always even: images left over wait for the
    next pass. The given encoder stays as it is. Raises InputError below two images or without validation images,
    TrainingError when the loss is not finite.
    """
    if len(rows) < 2 or not len(val_rows):
        raise InputError(
            f"fine-tuning: {len(rows)} labelled training and {len(val_rows)} validation images; it needs 2 and 1: "
            "label more images"
        )
    batch = min(BATCH, len(rows)) // 2 * 2
    passes = math.ceil(LEAST_STEPS / tuning.epochs / (len(rows) // batch))
    per_epoch = passes * (len(rows) // batch)
    steps, device, rng = tuning.epochs * per_epoch, encoder.device, np.random.default_rng(seed)
    targets, recipe = torch.from_numpy(labels).long().to(device), images.recipe
    background = Background(recipe.background, recipe.full_scale)
    history: list[dict[str, float]] = []
    best, kept, weights = (-1.0, 0.0), 0, {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout, where the network has it
        top = nn.Linear(encoder.width, classes)
        nn.init.zeros_(top.weight)
        nn.init.zeros_(top.bias)
        model = nn.Sequential(deepcopy(encoder), top).to(device)
        optimiser = torch.optim.AdamW(layers(model, tuning.layer_decay), fused=True)
        scaler = torch.amp.GradScaler(device.type, enabled=tuning.precision == "fp16")
        for epoch in tqdm(range(1, tuning.epochs + 1), desc="fine-tune", unit="epoch", disable=None, leave=False):
            model.train()
            total = torch.zeros((), device=device)
            order = np.concatenate([rng.permutation(len(rows))[: per_epoch // passes * batch] for _ in range(passes)])
            for step, chosen in enumerate(order.reshape(per_epoch, batch), (epoch - 1) * per_epoch):
                rate = learning_rate(step, steps, tuning.learning_rate, WARMUP)
                for group in optimiser.param_groups:
                    group["lr"] = rate * group["lr_scale"]
                views = to_unit(images.rows(rows[chosen]), recipe.full_scale, device)
                # numbers are drawn for pairs of views: half as many images are one view of each
                views = move(views, tuning.geometry, background, Draws((seed, epoch, step), batch // 2))
                with torch.autocast(device.type, LOW[tuning.precision], enabled=tuning.precision != "fp32"):
                    logits = model(views)
                loss = F.cross_entropy(logits.float(), targets[chosen])
                scaler.scale(loss).backward()
                scaler.step(optimiser)
                scaler.update()
                optimiser.zero_grad(set_to_none=True)
                total += loss.detach()
            if not math.isfinite(total):
                raise TrainingError(
                    f"fine-tuning: the loss is {total.item()} in epoch {epoch} of {tuning.epochs}, learning rate "
                    f"{rate:.3g}; lower the learning rate, or choose precision fp32"
                )
            seen = predictions(model, images, val_rows)
            row = {
                "epoch": epoch,
                "step": epoch * per_epoch,
                "loss": float(total) / per_epoch,
                "val_accuracy": float((seen.argmax(1) == val_labels).mean()),
                "val_loss": float(-np.log(np.maximum(seen[np.arange(len(seen)), val_labels], 1e-30)).mean()),
                "learning_rate": rate,
            }
            history.append(row)
            if (row["val_accuracy"], -row["val_loss"]) > best:
                best, kept = (row["val_accuracy"], -row["val_loss"]), epoch
                weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
            elif epoch - kept >= tuning.patience:
                say(f"fine-tuning stopped after epoch {epoch}: nothing better on validation in {tuning.patience}")
                break
    model.load_state_dict(weights)
    return FineTuned(model.eval(), history, kept)


@torch.no_grad()  # not inference_mode: whatever a module keeps from here must serve in training again
def predictions(model: nn.Module, images: PackedImages, rows: np.ndarray) -> np.ndarray:
    """The (N, classes) float32 probabilities of packed rows, as they are; leaves the model in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    parts = [
        model(to_unit(images.rows(rows[i : i + LOOKED_AT]), images.recipe.full_scale, device)).softmax(1).cpu()
        for i in range(0, len(rows), LOOKED_AT)
    ]
    return torch.cat(parts).numpy()


def layers(model: nn.Sequential, layer_decay: float) -> list[dict[str, Any]]:
    """The weights that learn, in groups for an optimiser; `lr_scale` is layer_decay^(layers above in the backbone).

    What lies above the backbone, or the backbones of several modalities, has 1; vectors (biases and normalisation
    layers) are not decayed.
    """
    encoder: Any
    encoder, top = model
    nets = [branch.net for branch in encoder.branches.values()]
    inside = {id(w) for net in nets for w in net.parameters()}
    fusing = [w for w in encoder.backbone.parameters() if id(w) not in inside]
    above = [*fusing, *encoder.head[: encoder.head_layers].parameters(), *top.parameters()]
    groups = [
        {"params": [w for w in above if w.ndim > 1], "weight_decay": WEIGHT_DECAY, "lr_scale": 1.0},
        {"params": [w for w in above if w.ndim <= 1], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    below = [group for net in nets for group in param_groups_layer_decay(net, WEIGHT_DECAY, layer_decay=layer_decay)]
    return [*below, *groups]


def compare_few_labels(
    encoder: Encoder,
    images: PackedImages,
    split: np.ndarray,
    labels: np.ndarray,
    classes: int,
    fractions: Sequence[float],
    tuning: Tuning,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[pd.DataFrame, dict[tuple[float, str], np.ndarray]]:
    """Test accuracy after fine-tuning on shares of the labels, from the encoder and from random weights.

    `split` and `labels` (class number, −1 for none) belong to the packed rows; `fractions` lie in (0, 1]. The table has
    a row per fraction and start: fraction, images (labelled, for training), val_images, start ('pretrained' or
    'scratch'), accuracy (of the test images whose class is among the training images), kept_epoch. The dict has the
    (test images, classes) probabilities of each fraction and start, in the order of the rows of `split`.

    Each draw is stratified, with an image of every class, and validation is cut to the same fraction: many validation
    labels would be labels too. The larger draws hold the smaller ones. Both starts see the same images, schedule and
    learning rate; from scratch no layer learns more slowly than another.
    """
    rows = scored_rows(labels, split)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        scratch = Encoder(encoder.config, encoder.head_layers).to(encoder.device)
    starts = {"pretrained": (encoder, tuning), "scratch": (scratch, tuning._replace(layer_decay=1.0))}
    table, probabilities = [], {}
    for fraction in fractions:
        train, val = (
            some[draw(labels[some], round(fraction * len(some)), "proportional", seed)]
            for some in (rows["train"], rows["val"])
        )
        for start, (first, how) in starts.items():
            tuned = fine_tune(first, images, train, labels[train], val, labels[val], classes, how, seed, say)
            found = probabilities[fraction, start] = predictions(tuned.model, images, rows["test"])
            row = {
                "fraction": fraction,
                "images": len(train),
                "val_images": len(val),
                "start": start,
                "accuracy": float((found.argmax(1) == labels[rows["test"]]).mean()),
                "kept_epoch": tuned.epoch,
            }
            say(f"{start}, {len(train)} labels: accuracy {row['accuracy']:.3f} (epoch {tuned.epoch} kept)")
            table.append(row)
    return pd.DataFrame(table), probabilities
