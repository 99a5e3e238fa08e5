"""Fine-tuning with few labels, compared with the same network trained from scratch (arXiv 2002.05709, table 7)."""

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
from simtrail.augment.geometry import warp
from simtrail.data.loader import to_unit
from simtrail.data.pack import PackedImages
from simtrail.errors import InputError, TrainingError
from simtrail.evaluation.difference import paired
from simtrail.evaluation.label_efficiency import draw
from simtrail.evaluation.probe import C_VALUES, COARSE, best_of, fit_logistic
from simtrail.evaluation.scores import scores_with_intervals
from simtrail.evaluation.tasks import Task
from simtrail.model.encoder import Encoder
from simtrail.params import Crop, Evaluate, Geometry, HorizontalFlip, Rotation
from simtrail.training.learner import LOW
from simtrail.training.optimisers import learning_rate

BATCH, LEAST_STEPS = 32, 150  # images per step at most; steps at least, so that training with few images works too
WARMUP, WEIGHT_DECAY = 0.1, 0.05
SCRATCH_RATE = 1e-3  # the highest learning rate from scratch: random weights need larger steps
INFERENCE_BATCH = 64
LEAST = 2  # images per class, on average, in a fraction that is worth fine-tuning on
# Views nearly like the images that will be classified, which are whole and upright: those of the training would undo
# what the probe knows (Touvron et al. 2019, arXiv 1906.06423). Colours are unchanged, as in the paper's appendix B.5.
VIEWS = Geometry(
    crop=Crop(p=1.0, min_area=0.7), horizontal_flip=HorizontalFlip(p=0.0), rotation=Rotation(p=0.5, degrees=10.0)
)


class Tuning(NamedTuple):
    """How to fine-tune."""

    epochs: int  # passes over the images; with few images, several passes per epoch, for LEAST_STEPS in all
    precision: str  # bf16, fp16 or fp32
    geometry: Geometry = VIEWS  # the augmentation of each step
    learning_rate: float = 5e-4  # of AdamW, the highest in the schedule, for the new layer (arXiv 2111.06377, table 9)
    layer_decay: float = 0.75  # factor of the rate per layer downwards (arXiv 2106.08254, appendix A); 1: all equal
    patience: int = 10  # epochs without a better validation result before it stops
    probe: bool = True  # whether the new layer begins as a linear probe of the given encoder; or with zeros
    seed: int = 0


class Labelled(NamedTuple):
    """Labelled images: packed rows, and the class number of each."""

    rows: np.ndarray
    labels: np.ndarray


class FineTuned(NamedTuple):
    """The result of fine-tuning."""

    model: nn.Sequential  # encoder and linear layer, in evaluation mode: images in [0, 1] → (B, classes) logits
    history: list[dict[str, float]]  # one row per epoch
    epoch: int  # the epoch of the weights; 0: as it began


def fine_tune(
    encoder: Encoder,
    images: PackedImages,
    train: Labelled,
    val: Labelled,
    classes: int,
    tuning: Tuning,
    log: Callable[[str], None] = lambda line: None,
) -> FineTuned:
    """A copy of the encoder with a new linear layer; both are trained on labelled images.

    Labels are class numbers 0 … classes − 1. The layer begins as a linear probe of the frozen encoder, so that the
    first steps don't spoil its features (Kumar et al. 2022, arXiv 2202.10054). Minimises the cross entropy with AdamW,
    a short warm-up and a cosine schedule. The result has the weights of the epoch with the highest accuracy on `val`
    (of equals, the lowest cross entropy), but those of the probe unless they are worse by more than one standard error:
    of few validation images, the best of many epochs is mostly chance. A batch has 32 images, or all images if there
    are fewer; the number is always even. A pass leaves out the images that do not fill a batch. The given encoder does
    not change. Raises InputError for fewer than two training images or no validation image, TrainingError if the loss
    is not finite.
    """
    if len(train.rows) < 2 or not len(val.rows):
        raise InputError(
            f"fine-tuning: {len(train.rows)} labelled training and {len(val.rows)} validation images: must be "
            "at least 2 and 1; label more images"
        )
    device, rng = encoder.device, np.random.default_rng(tuning.seed)
    history: list[dict[str, float]] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(tuning.seed)  # for dropout, if the network has it
        linear = nn.Linear(encoder.width, classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        model = nn.Sequential(deepcopy(encoder), linear).to(device)
        if tuning.probe:
            _fit(linear, encoder, images, train, val)
        trainer = _Trainer(model, encoder.config.size, images, train, tuning)
        row, began = _validation(model, images, val)
        best, best_epoch, weights = _score(row) if tuning.probe else (-1.0, 0.0), 0, _copy(model)
        right, before = began, weights
        for epoch in tqdm(range(1, tuning.epochs + 1), desc="fine-tune", unit="epoch", disable=None, leave=False):
            row = trainer.epoch(epoch, rng)
            of_epoch, now = _validation(model, images, val)
            history.append(row | of_epoch)
            if _score(of_epoch) > best:
                best, best_epoch, weights, right = _score(of_epoch), epoch, _copy(model), now
            elif epoch - best_epoch >= tuning.patience:
                log(f"fine-tuning stopped after epoch {epoch}: no better validation result in {tuning.patience} epochs")
                break
    if tuning.probe and not _is_better(right, began):
        best_epoch, weights = 0, before
    model.load_state_dict(weights)
    return FineTuned(model.eval(), history, best_epoch)


class _Trainer:
    """Trains the model, one epoch at a time."""

    def __init__(self, model: nn.Sequential, size: int, images: PackedImages, train: Labelled, tuning: Tuning):
        self.model, self.size, self.images, self.train, self.tuning = model, size, images, train, tuning
        self.batch = min(BATCH, len(train.rows)) // 2 * 2
        steps_per_pass = len(train.rows) // self.batch
        self.passes = math.ceil(LEAST_STEPS / tuning.epochs / steps_per_pass)
        self.per_epoch = self.passes * steps_per_pass
        self.device = next(model.parameters()).device
        self.targets = torch.from_numpy(train.labels).long().to(self.device)
        self.background = Background(images.recipe.background, images.recipe.full_scale)
        self.optimiser = torch.optim.AdamW(layers(model, tuning.layer_decay), fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=tuning.precision == "fp16")

    def epoch(self, epoch: int, rng: np.random.Generator) -> dict[str, float]:
        """Trains for one epoch, counted from 1, and returns its row of the history."""
        tuning, n = self.tuning, len(self.train.rows)
        self.model.train()
        total = torch.zeros((), device=self.device)
        order = np.concatenate([rng.permutation(n)[: n // self.batch * self.batch] for _ in range(self.passes)])
        for step, chosen in enumerate(order.reshape(self.per_epoch, self.batch), (epoch - 1) * self.per_epoch):
            rate = learning_rate(step, tuning.epochs * self.per_epoch, tuning.learning_rate, WARMUP)
            for group in self.optimiser.param_groups:
                group["lr"] = rate * group["lr_scale"]
            views = to_unit(self.images.rows(self.train.rows[chosen]), self.images.recipe.full_scale, self.device)
            # Draws makes numbers for two views of each image; here an image has one view: half as many images
            draws = Draws((tuning.seed, epoch, step), self.batch // 2)
            views = warp(views, tuning.geometry, self.background, draws, self.size)
            with torch.autocast(self.device.type, LOW[tuning.precision], enabled=tuning.precision != "fp32"):
                logits = self.model(views)
            loss = F.cross_entropy(logits.float(), self.targets[chosen])
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self.optimiser.zero_grad(set_to_none=True)
            total += loss.detach()
        if not math.isfinite(total):
            raise TrainingError(
                f"fine-tuning: the loss is {total.item()} in epoch {epoch} of {tuning.epochs}, learning rate "
                f"{rate:.3g}; lower the learning rate, or choose precision fp32"
            )
        return {
            "epoch": epoch,
            "step": epoch * self.per_epoch,
            "loss": float(total) / self.per_epoch,
            "learning_rate": rate,
        }


def _fit(linear: nn.Linear, encoder: Encoder, images: PackedImages, train: Labelled, val: Labelled) -> None:
    """Gives the layer the weights of a linear probe on the training images, with the C that is best on `val`."""
    x, queries = (
        encoder.features(images.rows(part) for part in np.array_split(rows, len(rows) // INFERENCE_BATCH + 1))
        for rows in (train.rows, val.rows)
    )
    if not np.isfinite(x).all():
        raise InputError("features: the encoder gives values that are not finite; train it again, with fp32")
    fits = fit_logistic(x, train.labels, linear.out_features, C_VALUES, tolerance=COARSE)
    _, fit = best_of(fits, queries, val.labels)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(fit.weights.T))
        linear.bias.copy_(torch.from_numpy(fit.bias))


def _validation(model: nn.Module, images: PackedImages, val: Labelled) -> tuple[dict[str, float], np.ndarray]:
    """Accuracy and cross entropy on labelled images, and which are classified right; sets evaluation mode."""
    predicted = probabilities(model, images, val.rows)
    of_true_class, right = predicted[np.arange(len(val.labels)), val.labels], predicted.argmax(1) == val.labels
    loss = float(-np.log(np.maximum(of_true_class, 1e-30)).mean())
    return {"val_accuracy": float(right.mean()), "val_loss": loss}, right


def _score(validation: dict[str, float]) -> tuple[float, float]:
    return validation["val_accuracy"], -validation["val_loss"]


def _is_better(right: np.ndarray, before: np.ndarray) -> bool:
    """Whether more images are right than before, by more than one standard error of the paired difference."""
    gained, lost = (right & ~before).sum(), (before & ~right).sum()
    return bool(gained - lost > math.sqrt(gained + lost))


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()  # not inference_mode: tensors that a module stores here must be usable in training again
def probabilities(model: nn.Module, images: PackedImages, rows: np.ndarray) -> np.ndarray:
    """The (N, classes) float32 probabilities of packed rows without augmentation; sets the model to evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    starts = range(0, len(rows), INFERENCE_BATCH)
    batches = (images.rows(rows[i : i + INFERENCE_BATCH]) for i in starts)
    parts = [model(to_unit(batch, images.recipe.full_scale, device)).softmax(1).cpu() for batch in batches]
    return torch.cat(parts).numpy()


def layers(model: nn.Sequential, layer_decay: float) -> list[dict[str, Any]]:
    """The trained weights in groups for an optimiser; `lr_scale` is layer_decay^(layers above in the backbone).

    Layers above the backbone (or above the backbones of several modalities) have `lr_scale` 1. Vectors (biases and
    weights of normalisation layers) have no weight decay.
    """
    encoder: Any
    encoder, linear = model
    nets = [branch.net for branch in encoder.branches.values()]
    in_nets = {id(w) for net in nets for w in net.parameters()}
    fusion = [w for w in encoder.backbone.parameters() if id(w) not in in_nets]
    above = [*fusion, *encoder.head[: encoder.head_layers].parameters(), *linear.parameters()]
    groups = [
        {"params": [w for w in above if w.ndim > 1], "weight_decay": WEIGHT_DECAY, "lr_scale": 1.0},
        {"params": [w for w in above if w.ndim <= 1], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    below = [group for net in nets for group in param_groups_layer_decay(net, WEIGHT_DECAY, layer_decay=layer_decay)]
    return [*below, *groups]


def few_label_table(
    encoder: Encoder, images: PackedImages, task: Task, p: Evaluate, tuning: Tuning, log: Callable[[str], None]
) -> pd.DataFrame:
    """The table of `compare_few_labels` with 95 % intervals, bootstrapped over groups.

    The columns accuracy_low and accuracy_high are those of each accuracy. gain, gain_low and gain_high are those of the
    difference that the encoder makes: its accuracy minus that from scratch, on the same test images; NaN from scratch.
    """
    table, test_probabilities = compare_few_labels(encoder, images, task, p.fine_tune.fractions, tuning, log)
    truth, group, classes = task.labels[task.test], task.group[task.test], len(task.names)
    predicted = {key: each.argmax(1) for key, each in test_probabilities.items()}
    rows = []
    for (fraction, start), numbers in predicted.items():
        scores = scores_with_intervals(truth, numbers, group, classes, p.bootstrap, p.seed)[0]
        row = {key: scores[key] for key in ("accuracy_low", "accuracy_high")}
        if start == "pretrained":
            scratch, own = ((each == truth)[:, None] for each in (predicted[fraction, "scratch"], numbers))
            gain = (float(part[0]) for part in paired(scratch, own, group))
            row |= dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True))
        rows.append(row)
    return pd.concat([table, pd.DataFrame(rows)], axis=1)


def compare_few_labels(
    encoder: Encoder,
    images: PackedImages,
    task: Task,
    fractions: Sequence[float],
    tuning: Tuning,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[pd.DataFrame, dict[tuple[float, str], np.ndarray]]:
    """Test accuracy after fine-tuning on fractions of the labels, in (0, 1], from the encoder and from scratch.

    The table has a row per fraction and start: fraction, images (labelled, for training), val_images, start
    ('pretrained' or 'scratch'), accuracy, kept_epoch. The dict has the (test images, classes) probabilities of each
    fraction and start, in the order of the task.

    Fractions with fewer than `LEAST` images per class are left out, except the largest: nothing can be learned from
    them. Each draw is stratified, with at least one image of every class. Validation uses the same fraction, because
    its labels count as labels too. The larger draws contain the smaller ones. Both starts use the same images and
    schedule; from scratch, the learning rate is `SCRATCH_RATE` in all layers, and the new layer begins with zeros.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(tuning.seed)
        scratch = Encoder(encoder.config, encoder.head_layers).to(encoder.device)
    from_scratch = tuning._replace(learning_rate=SCRATCH_RATE, layer_decay=1.0, probe=False)
    starts = {"pretrained": (encoder, tuning), "scratch": (scratch, from_scratch)}
    split_rows = {part: np.flatnonzero(task.split == part) for part in ("train", "val", "test")}
    rows, test_probabilities = [], {}
    enough = LEAST * len(task.names) / len(split_rows["train"])
    for fraction in fractions:
        if fraction < min(enough, max(fractions)):
            log(f"fine-tuning on {fraction:.0%} of the labels is left out: fewer than {LEAST} images per class")
            continue
        train, val = (_drawn(task, split_rows[part], fraction, tuning.seed) for part in ("train", "val"))
        for start, (start_encoder, start_tuning) in starts.items():
            tuned = fine_tune(start_encoder, images, train, val, len(task.names), start_tuning, log)
            test_rows = split_rows["test"]
            predicted = test_probabilities[fraction, start] = probabilities(tuned.model, images, task.rows[test_rows])
            row = {
                "fraction": fraction,
                "images": len(train.rows),
                "val_images": len(val.rows),
                "start": start,
                "accuracy": float((predicted.argmax(1) == task.labels[test_rows]).mean()),
                "kept_epoch": tuned.epoch,
            }
            log(f"{start}, {len(train.rows)} labels: accuracy {row['accuracy']:.3f} (epoch {tuned.epoch} kept)")
            rows.append(row)
    return pd.DataFrame(rows), test_probabilities


def _drawn(task: Task, rows: np.ndarray, fraction: float, seed: int) -> Labelled:
    drawn = rows[draw(task.labels[rows], round(fraction * len(rows)), "proportional", seed)]
    return Labelled(task.rows[drawn], task.labels[drawn])
