"""The plan: the value of every setting that is `auto`, chosen before training from the prepared images and the machine.

Rules choose most of them. A pilot chooses the recipe of views: short trainings, judged on the validation split. The
plan is stored with its reasons, and all later stages read it. What the features are made of is chosen after training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
import yaml

from simtrail.errors import InputError
from simtrail.model import CONFIG
from simtrail.model.backbone import is_resnet, takes_one_size
from simtrail.model.encoder import Encoder, EncoderConfig, best_device
from simtrail.params import Params, Pretrain, Settings, change, changed, shown
from simtrail.pipeline import pilot
from simtrail.pipeline import workspace as ws
from simtrail.pipeline.training_run import encoder_config, first_weights, refusal
from simtrail.training.features import Chosen
from simtrail.training.measure import bytes_per_image, step_seconds

IMAGES = {"cpu": 60_000, "cuda": 2_000_000}  # that a training sees, with repeats: 10 minutes on two old cores
TIMES = {"cpu": (4, 2, 1), "cuda": (1,)}  # as many, if that takes at most so many seconds; with longer trainings,
SECONDS = 540  # encoders are better: on 5,000 images of CIFAR-10, four times as many were worth 0.08 of accuracy
FEW = 4_000  # images: from here on, a training sees more, by the square root of their number
EPOCHS = 200  # at most: with more repeats of a hundred images, encoders have become worse on others
BANDS = 24  # images of more take longer in proportion, and are repeated less often, down to REPEATS
REPEATS = 20
SMALLEST_VIEW, SMALLEST_FIRST = 48, 32  # at the end, and in the first half: smaller ones may cost accuracy
LARGEST_BATCH = {"cpu": 64, "cuda": 512}
SMALLEST_BATCH, STEPS_PER_EPOCH = 16, 8  # unless there are fewer than 32 images
RATES = {"adamw": 0.004, "sgd": 0.12, "lars": 0.3}
SAME = 0.95  # of the pairs of images of a group have the same label, if groups are to be positives
FASTER = 0.9  # bf16 is chosen if it takes at most this fraction of the time: a tie must not depend on noise
MEMORY = 0.6  # of what is free, for the images of a step

Log = Callable[[str], None]


class Plan(NamedTuple):
    """The values of the settings that were auto, the reason for each, and what the pilot measured."""

    values: Settings
    reasons: dict[str, str]
    pilot: list[dict[str, Any]]


def planned(params: Params) -> Params:
    """The parameters with the values of the plan in place of auto; InputError where the plan stage has not run."""
    if not params.auto:
        return params
    ws.require(params, "plan")
    record = ws.read_json(ws.PLAN, "plan")
    if record["prepared"] != ws.read_json(ws.STATISTICS, "prepare")["split_hash"]:
        raise InputError(f"{ws.PLAN}: made for other images; {ws.first('plan')}")
    return changed(params, record["values"], str(ws.PLAN))


def is_planned(params: Params) -> bool:
    """Whether the plan stage has run for these parameters and the prepared images, or is not needed."""
    try:
        planned(params)
    except InputError:
        return False
    return True


def make_plan(params: Params, log: Log = lambda line: None) -> Plan:
    """The value of every setting that is auto; each is logged with its reason when it is known."""
    source = ws.prepared()
    values: Settings = {}
    reasons: dict[str, str] = {}
    images, recipe, device = len(source.pretraining_rows("train")), source.recipe, best_device()
    given = _architecture(params.pretrain.weights)
    if teacher := params.pretrain.teacher.weights:
        first_weights(teacher, "pretrain.teacher.weights")  # a wrong name is told before anything is measured

    def choose(key: str, rule: Callable[[Pretrain], tuple[Any, str]]) -> None:
        if key in params.auto:
            values[key], reasons[key] = rule(changed(params, values, "plan").pretrain)
            log(f"{key} = {shown(values[key])}: {reasons[key]}")

    choose("pretrain.encoder.model", lambda p: model(p, given, images, device))
    choose("pretrain.encoder.stem", lambda p: stem(p, given, p.view_sides[-1] or recipe.size))
    choose("pretrain.view_size", lambda p: view_size(p, encoder_config(p, source)))
    choose("pretrain.batch_size", lambda p: batch_size(images, device))
    so_far = changed(params, values, "plan").pretrain
    seconds = step_seconds(
        Encoder(encoder_config(so_far, source)).to(device).train(),
        ["bf16", "fp32"] if "pretrain.precision" in params.auto else [so_far.precision],
    )
    choose("pretrain.precision", lambda p: precision(seconds))
    speed = images_per_second(changed(params, values, "plan").pretrain, recipe.size, seconds)
    choose("pretrain.epochs", lambda p: epochs(images, len(recipe.bands), device, speed))
    if "pretrain.epochs" not in params.auto:
        usual, reason = epochs(images, len(recipe.bands), device, speed)
        log(f"pretrain.epochs = {params.pretrain.epochs}, as set; auto would be {usual}: {reason}")
    choose("pretrain.positives", lambda p: positives(p, source.table.iloc[source.pretraining_rows("train")]))
    choose("pretrain.temperature", lambda p: (0.2, "between the paper's best for ImageNet, 0.1, and for CIFAR-10, 0.5"))
    choose("pretrain.learning_rate", lambda p: (RATES[p.optimiser], f"for {p.optimiser}, per 256 images"))
    choose("pretrain.micro_batch_size", lambda p: micro_batch_size(p, encoder_config(p, source), device))
    table: list[dict[str, Any]] = []
    if (key := "pretrain.recipe") in params.auto:
        values[key], reasons[key], table = pilot.choose_recipe(changed(params, values, "plan"), log)
        log(f"{key} = {values[key]}: {reasons[key]}")
    return Plan(values, reasons, table)


def model(p: Pretrain, given: dict[str, Any] | None, images: int, device: torch.device) -> tuple[str, str]:
    """The network: that of the `given` encoder's weights, a vision transformer for its settings, or a ResNet."""
    if given:
        return given["model"], f"the network of {p.weights}"
    if p.encoder.vit is not None:
        return "vit_tiny_patch16_224", "the smallest vision transformer of timm, for the settings in vit"
    if device.type == "cpu":
        return "resnet10t", "the fastest ResNet, for a processor without GPU"
    if images < 20_000:
        return "resnet18", f"{images} images are few for a larger network"
    return "resnet50", f"the network of the paper, for {images} images on a GPU"


def stem(p: Pretrain, given: dict[str, Any] | None, size: int) -> tuple[str, str]:
    """The stem: small where a standard one would leave a single pixel of the `size` × `size` that the network sees."""
    if given:
        return given["stem"], f"the stem of {p.weights}"
    side = math.ceil(size / 32)
    if not is_resnet(p.encoder.model):
        return "standard", "only ResNets have another"
    text = f"a standard stem leaves a map of {side}×{side} for images of {size} px"
    return ("small", text) if side < 2 else ("standard", text)


def view_size(p: Pretrain, config: EncoderConfig) -> tuple[list[int] | int | None, str]:
    """Half of the packed images' side, then three quarters of it, unless that leaves too little to see."""
    size, network = config.recipe.size, p.encoder.model
    if takes_one_size(network):
        return None, f"{network} takes images of one size"
    local = 2 if p.local_views else 1  # local views have half the side
    # multiples of 16: other sides have maps as large as the next one
    first = max(math.ceil(size / 32) * 16, SMALLEST_FIRST * local)
    last = max(math.ceil(3 * size / 64) * 16, SMALLEST_VIEW * local)
    if p.encoder.stem == "small" or first >= size:
        return None, f"images of {size} px have few pixels as it is"
    encoder = Encoder(config)
    last = last if last < size and not refusal(encoder, last) else size
    text = f"{last} px, at which whole images of {size} px show things about as large as views did"
    if not p.terms.local and not refusal(encoder, first):
        return [first, last], f"small views first, which cost less; then {text if last < size else f'{size} px'}"
    return (last, text) if last < size else (None, f"{network} does not take smaller views")


def batch_size(images: int, device: torch.device) -> tuple[int, str]:
    """The largest power of two that still gives several steps per epoch."""
    largest = LARGEST_BATCH[device.type]
    size = min(largest, max(SMALLEST_BATCH, 2 ** int(math.log2(max(2, images / STEPS_PER_EPOCH)))))
    if images < 2 * SMALLEST_BATCH:
        return max(2, images // 2), f"half of {images} images, which are very few"
    if size == largest:
        return size, f"the usual on a {_name(device)}; {images // size} steps per epoch"
    return size, f"{images // size} steps per epoch of {images} images"


def images_per_second(p: Pretrain, size: int, seconds: dict[str, float]) -> float:
    """The speed of a training with views of several sizes, from the seconds per image in each precision at the last."""
    pixels = np.square([side or size for side in p.view_sides])
    local = p.local_views / 2 / 4  # a local view, beside two whole ones, has half of their side
    return float(pixels[-1] / pixels.mean() / (1 + local) / seconds[p.precision])


def epochs(images: int, bands: int, device: torch.device, speed: float = 0.0) -> tuple[int, str]:
    """As many epochs as make a budget of images, more if `speed`, in images per second, allows it.

    The budget grows with the square root of a large set.
    """

    def count(times: int, bands: int = bands) -> int:
        repeats = times * IMAGES[device.type] * max(1.0, math.sqrt(images / FEW)) / max(1, images)
        return min(EPOCHS, max(1, round(repeats)), max(REPEATS, round(repeats * BANDS / bands)))

    times = next(n for n in TIMES[device.type] if n == 1 or count(n) * images <= SECONDS * speed)
    of_bands = f" of {bands} bands" if count(times) < count(times, BANDS) else ""
    fast = f", at {speed:.0f} images/s as measured" if count(times) > count(1) else ""
    return count(times), f"{count(times) * images:,} images in all, for {images}{of_bands} on a {_name(device)}{fast}"


def positives(p: Pretrain, train: pd.DataFrame) -> tuple[str, str]:
    """Groups where their images show the same; as labels tell, of which the training sees nothing else."""
    if p.sampling != "uniform":
        return "view", f"sampling: {p.sampling} draws single images"
    grouped = train[train["group"].notna()]
    sizes = grouped["group"].value_counts()
    if not (sizes > 1).any():
        return "view", "no two training images are of one group"
    if p.objective == "dcl" and sizes.iloc[0] >= p.batch_size:
        return "view", f"the {sizes.iloc[0]} images of the largest group would leave a batch without negatives"
    # a file counts once: tiles of one image have its label, whatever they show
    labelled = grouped[grouped["label"].notna()].drop_duplicates(["group", "sha256"])
    of_class = labelled.groupby(["group", "label"]).size()
    pairs, same = (float((n * (n - 1)).sum()) for n in (labelled["group"].value_counts(), of_class))
    if not pairs:
        return "view", "no labels tell whether the images of a group show the same"
    text = f"{same / pairs:.0%} of the pairs of images of a group have the same label"
    return ("group" if same / pairs >= SAME else "view"), text


def precision(seconds: dict[str, float]) -> tuple[str, str]:
    """bf16 if it is clearly faster here than fp32, in seconds per image."""
    speed = f"measured: {1 / seconds['bf16']:.0f} images/s with bf16, {1 / seconds['fp32']:.0f} with fp32"
    return ("bf16" if seconds["bf16"] <= FASTER * seconds["fp32"] else "fp32"), speed


def micro_batch_size(p: Pretrain, config: EncoderConfig, device: torch.device) -> tuple[int | None, str]:
    """The largest half, quarter, … of a batch that fits in memory; None: the whole batch does."""
    each = bytes_per_image(Encoder(config).to(device).train(), p.precision, p.local_views)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    size = p.batch_size
    while size > 2 and size % 2 == 0 and size * each > MEMORY * free:
        size //= 2
    text = f"a batch needs about {p.batch_size * each / 2**30:.1f} of {free / 2**30:.0f} GiB"
    return (None if size == p.batch_size else size), text


def write(plan: Plan, params: Params) -> None:
    """Writes the plan, with the settings that it was made for."""
    prepared = ws.read_json(ws.STATISTICS, "prepare")["split_hash"]
    _write(ws.PLAN, {"settings": ws.settings(params, "plan"), "prepared": prepared, **plan._asdict()})


def write_features(chosen: Chosen | None) -> None:
    """Writes the values that the training chose for what the features are made of; none if they were not auto."""
    values, reasons = (chosen.values, chosen.reasons) if chosen else ({}, {})
    _write(ws.CHOSEN, {"values": values, "reasons": reasons})


def chosen(params: Params) -> Params:
    """The planned parameters with the values that the training chose in place of auto."""
    if "auto" not in (params.pretrain.encoder.features, params.pretrain.whiten):
        return params
    return changed(params, ws.read_json(ws.CHOSEN, "pretrain")["values"], str(ws.CHOSEN))


def _write(path: Path, record: dict[str, Any]) -> None:
    """Writes values with their reasons, and beside them the values alone as params.yaml, for `dvc params diff`."""
    ws.fresh_folder(path.parent)
    tree: dict[str, Any] = {}
    change(tree, record["values"])
    (path.parent / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    ws.write_json(path, record)


def _architecture(weights: str) -> dict[str, Any] | None:
    """The architecture of the encoder whose weights training starts from; None if it is not an encoder of simtrail."""
    location = first_weights(weights).location
    if not Path(location).is_dir():
        return None
    return json.loads((Path(location) / CONFIG).read_text(encoding="utf-8"))["architecture"]


def _name(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "processor"
