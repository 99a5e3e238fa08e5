"""SimCLR on CIFAR-10: accuracy of kNN and of a linear probe over the seconds of training, compared with their floors.

    python benchmarks/cifar10.py DATA

DATA is a folder with train/CLASS/* and test/CLASS/*, or an archive of one. Needs none of the MLOps packages.

Trains only on training images, without their labels. At every validation, cosine-weighted 10-NN and ridge regression
classify all test images from frozen features; the classifiers are fitted on the same training images. The test accuracy
chooses nothing: the weights of the last epoch are used. Seconds include training and compilation, but no validation.
Prints a table; writes the curve to benchmarks/results/cifar10-<cpu|gpu>.csv and .png.
"""

from __future__ import annotations

import math
import resource
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import typer

from simtrail.data.dataset import Declaration
from simtrail.data.loader import TrainingData
from simtrail.data.pack import PackedImages, statistics
from simtrail.data.reading.readers import SUFFIXES, read_image
from simtrail.data.recipe import make_recipe
from simtrail.evaluation.classifiers import knn, ridge_probe
from simtrail.evaluation.tasks import small_pixels
from simtrail.model.encoder import Encoder, EncoderConfig, best_device
from simtrail.params import Params, Prepare, Pretrain, changed, load_params
from simtrail.training.loop import Row, fit

ROOT, DEVICE = Path(__file__).parent.parent, best_device()
NEIGHBOURS, GOALS = 10, (0.80, 0.85, 0.88, 0.90)
COLUMNS = ["features", "epoch", "seconds", "loss", "knn", "linear", "images_per_second", "peak_mb"]

# Augmentation and temperature of the paper for CIFAR-10 (arXiv 2002.05709, appendix B.9)
PAPER = {
    "prepare.size": 32,
    "pretrain.temperature": 0.5,
    "pretrain.monitor.metric": "last",
    "pretrain.augment.geometry.crop.min_area": 0.08,
    "pretrain.augment.geometry.rotation.p": 0.0,
    "pretrain.augment.color.strength": 0.5,
    "pretrain.augment.color.grayscale.p": 0.2,
    "pretrain.augment.texture.blur.p": 0.0,
}
DEFAULTS: dict[str, tuple[int, dict[str, Any]]] = {
    # the accuracies increase within about ten minutes on two cores
    "cpu": (
        5_000,
        {
            "pretrain.encoder.model": "resnet10t",
            "pretrain.epochs": 20,
            "pretrain.batch_size": 128,
            "pretrain.precision": "fp32",  # on maps this small, oneDNN's bf16 is several times slower
            "pretrain.monitor.every": 2,
        },
    ),
    # as in github.com/dkobak/simclr-cifar10, where 10-NN reaches 0.903 in 500 epochs, in 99 minutes on an A100
    "cuda": (
        50_000,
        {
            "pretrain.encoder.model": "resnet18",
            "pretrain.encoder.stem": "small",
            "pretrain.head.hidden": 1024,
            "pretrain.head.batch_norm": False,
            "pretrain.epochs": 500,
            "pretrain.batch_size": 512,
            "pretrain.precision": "bf16",
            "pretrain.optimiser": "sgd",
            "pretrain.learning_rate": 0.03,
            "pretrain.weight_decay": 5e-4,
            "pretrain.warmup": 0.0,
            "pretrain.augment.geometry.crop.min_area": 0.2,
            "pretrain.augment.color.grayscale.p": 0.1,
            "pretrain.compile": True,
            "pretrain.monitor.every": 10,
        },
    ),
}
IMAGES, SETTINGS = DEFAULTS[DEVICE.type]


class Pictures(NamedTuple):
    """Packed images and the class number of each; the first `train` images are for training, the others for testing."""

    packed: PackedImages
    labels: np.ndarray
    train: int


class TimeUp(Exception):
    """Ends a training run early."""


def settings(changes: dict[str, Any]) -> Params:
    """The parameters of the project's params.yaml, with PAPER, SETTINGS and further dotted keys changed."""
    return changed(load_params(ROOT / "params.yaml"), PAPER | SETTINGS | changes, "benchmarks/cifar10.py")


def read(data: Path, images: int, prepare: Prepare, folder: Path) -> Pictures:
    """The given number of training images, equally many of every class, and all test images, packed in a folder."""
    if data.is_file():
        shutil.unpack_archive(data, folder / "files", filter="data")
        data = folder / "files"
    files = [(path, *path.parts[-3:-1]) for path in sorted(data.rglob("*")) if path.suffix in SUFFIXES]
    table = pd.DataFrame(files, columns=["path", "split", "label"])
    train, test = (table[table["split"] == part] for part in ("train", "test"))
    if not images <= len(train) or test.empty:
        raise typer.BadParameter(
            f"{images} of {len(train)} training and {len(test)} test images in {data}: must be at most the number of "
            "training images, with at least one test image"
        )
    rank = train.sample(frac=1, random_state=0).groupby("label").cumcount()  # in its class: the classes take turns
    table = pd.concat([train.loc[rank.sort_values(kind="stable").index[:images]], test])
    with ThreadPoolExecutor() as pool:
        np.save(folder / "images-0000.npy", np.stack(list(pool.map(read_image, table["path"]))))
    recipe = make_recipe(
        pd.DataFrame({"bands": [3], "dtype": ["uint8"], "min": [[0] * 3], "max": [[255] * 3], "facts": ["{}"]}),
        Declaration(),
        prepare,
    )
    return Pictures(PackedImages(folder, recipe), np.unique(table["label"], return_inverse=True)[1], images)


def run(pictures: Pictures, params: Pretrain, minutes: float = math.inf) -> pd.DataFrame:
    """One row for the pixels, one for the encoder before training, and one for each validation.

    Ends at the first validation after this many minutes, including the time of validations.
    """
    packed, labels, train = pictures
    all_rows = np.arange(len(packed))

    def accuracy(features: np.ndarray) -> Row:
        bank, queries = torch.from_numpy(features).to(DEVICE).split([train, len(features) - train])
        predictions = {
            "knn": knn(bank, labels[:train], queries, NEIGHBOURS),
            "linear": ridge_probe(bank, labels[:train], queries),
        }
        return {name: float((predicted == labels[train:]).mean()) for name, predicted in predictions.items()}

    def embedded(encoder: Encoder) -> Row:
        return accuracy(encoder.features(map(packed.rows, np.array_split(all_rows, math.ceil(len(packed) / 500)))))

    pixels = packed.rows(all_rows[:train]) / 255
    scale = statistics(np.stack([pixels.mean((2, 3)), np.square(pixels).mean((2, 3))], 1))
    config = EncoderConfig(architecture=params.encoder, head=params.head, recipe=packed.recipe, **scale)
    torch.manual_seed(params.seed)  # as `fit` does: it will start from the same weights
    rows: list[dict[str, Any]] = [
        {"features": "16×16 pixels"} | accuracy(small_pixels(packed.rows(all_rows), packed.recipe.full_scale)),
        {"features": "random weights", "epoch": 0, "seconds": 0.0} | embedded(Encoder(config).to(DEVICE)),
    ]
    start, validation_time = time.perf_counter(), 0.0

    def on_validation(encoder: Encoder) -> Row:
        nonlocal validation_time
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        row = {"seconds": now - start - validation_time, "peak_mb": peak_megabytes()} | embedded(encoder)
        validation_time += time.perf_counter() - now
        return row

    def on_epoch(history: list[Row]) -> None:
        if "seconds" not in history[-1]:
            return
        rows.append({"features": "SimCLR"} | history[-1])
        print("epoch {epoch}, {seconds:.0f} s: kNN {knn:.4f}, linear {linear:.4f}".format(**history[-1]), flush=True)
        if time.perf_counter() - start > 60 * minutes:
            raise TimeUp

    with suppress(TimeUp):
        data = TrainingData(packed, all_rows[:train], all_rows[:0])
        fit(data, config, params, on_validation=on_validation, on_epoch=on_epoch)
    return pd.DataFrame(rows, columns=COLUMNS).convert_dtypes()


def peak_megabytes() -> float:
    """The peak memory so far: allocated GPU memory, or resident memory of the process."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def picture(curve: pd.DataFrame, title: str, path: Path) -> None:
    """Draws the accuracies over the minutes of training, and the floors as horizontal lines."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    pixels, untrained = curve.iloc[0], curve.iloc[1]
    for name, label, colour in (("linear", "linear probe", "#E69F00"), ("knn", "10-NN", "#0072B2")):
        axis.plot(curve["seconds"][1:] / 60, curve[name][1:], "o-", color=colour, label=label, markersize=4)
        for floor, style in ((untrained, "--"), (pixels, ":")):
            axis.axhline(floor[name], color=colour, linestyle=style, label=f"{label}: {floor['features']}")
    axis.set(xlabel="minutes of training", ylabel="test accuracy", title=title)
    figure.legend(frameon=False, loc="outside right center")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def summary(curve: pd.DataFrame) -> str:
    """A text: the last row of each type of features, speed, memory, and the seconds to each kNN accuracy in GOALS."""
    last = curve.groupby("features", sort=False).tail(1)
    first_times = [curve.loc[curve["knn"] >= goal, "seconds"].min() for goal in GOALS]
    times = ", ".join(f"{goal:.0%}: {s:.0f}" for goal, s in zip(GOALS, first_times, strict=True) if pd.notna(s))
    return "\n".join(
        [
            last[["features", "epoch", "knn", "linear"]].to_string(index=False, na_rep=""),
            f"{curve['images_per_second'].median():.0f} images/s, {curve['peak_mb'].max():.0f} MB at most",
            f"seconds of training to kNN accuracy: {times or 'none reached'}",
        ]
    )


def main(
    data: Annotated[Path, typer.Argument(exists=True, help="Folder or archive with train/CLASS/* and test/CLASS/*.")],
    images: Annotated[int, typer.Option(help="Number of training images.")] = IMAGES,
    epochs: Annotated[int, typer.Option(help="Number of passes over them.")] = SETTINGS["pretrain.epochs"],
    batch_size: Annotated[int, typer.Option(help="Number of images per step.")] = SETTINGS["pretrain.batch_size"],
    model: Annotated[str, typer.Option(help="Any model of timm.")] = SETTINGS["pretrain.encoder.model"],
    minutes: Annotated[float, typer.Option(help="End at the first validation after this many minutes.")] = math.inf,
) -> None:
    changes = {"pretrain.encoder.model": model, "pretrain.epochs": epochs, "pretrain.batch_size": batch_size}
    params = settings(changes)
    with tempfile.TemporaryDirectory() as folder:
        curve = run(read(data, images, params.prepare, Path(folder)), params.pretrain, minutes)
    path = ROOT / f"benchmarks/results/cifar10-{'gpu' if DEVICE.type == 'cuda' else 'cpu'}"
    curve.round(4).to_csv(path.with_suffix(".csv"), index=False)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    picture(curve, f"CIFAR-10, {images} images, {model}, {device}", path.with_suffix(".png"))
    print(summary(curve))


if __name__ == "__main__":
    typer.run(main)
