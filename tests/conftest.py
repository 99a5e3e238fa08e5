"""What several test files need. Slow imports are in functions: the process that only starts others needs none."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from PIL import Image

if TYPE_CHECKING:
    from simtrail.data.recipe import Recipe
    from simtrail.model.encoder import EncoderConfig
    from simtrail.params import Params

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
ROOT = Path(__file__).parent.parent
FIXED = {
    "prepare.background": 0.0,
    "pretrain.encoder.model": "resnet10t",
    "pretrain.encoder.stem": "standard",
    "pretrain.encoder.features": [1],
    "pretrain.temperature": 0.2,
    "pretrain.epochs": 40,
    "pretrain.batch_size": 64,
    "pretrain.micro_batch_size": None,
    "pretrain.learning_rate": 0.004,
    "pretrain.precision": "bf16",
    "pretrain.recipe": None,
    "pretrain.positives": "view",
    "pretrain.view_size": None,
}
DATASETS = ROOT.parent / "shared" / "datasets"


def pytest_collection_modifyitems(items):
    import torch

    # the slowest file starts first, in parallel with the others
    items.sort(key=lambda item: item.path.name != "test_stages.py")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _no_outer_settings(monkeypatch):
    import torch

    # with tiny tensors, more threads only wait for each other; UMAP's library sets its number of threads itself
    torch.set_num_threads(1)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _stores_are_copies(tmp_path_factory):
    """MLflow creates a database once in each worker; further stores are copies, whose paths are then updated."""
    from simtrail.tracking import store

    create, folder = store._create, tmp_path_factory.mktemp("store")

    def copy(database: Path, _: Path) -> None:
        if not (folder / "mlflow.db").exists():
            create(folder / "mlflow.db", folder)
        shutil.copy(folder / "mlflow.db", database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_create", copy)
        yield


@contextmanager
def coarse_figures():
    """Figures are drawn with a quarter of their resolution and without a layout, which cost most of the time."""
    from matplotlib.figure import Figure

    savefig = Figure.savefig

    def coarse(figure: Figure, path: Path, **options: object) -> None:
        figure.set_layout_engine("none")
        savefig(figure, path, **{**options, "dpi": 50})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", coarse)
        yield


@pytest.fixture
def params() -> Params:
    return with_changes({})


def changed(changes: dict[str, object]) -> dict:
    """The tree of the project's params.yaml with dotted keys changed; nothing is auto unless the changes say so."""
    from simtrail.params import change

    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    change(tree, FIXED | changes)
    return tree


def with_changes(changes: dict[str, object]) -> Params:
    from simtrail.params import Params, parse

    return parse(Params, changed(changes), "params.yaml")


def photographs(folder: Path, classes: int = 3, each: int = 12, size: tuple[int, int] = (24, 20)) -> None:
    """Writes class folders with RGB PNG images: no two are equal, and the classes are easy to distinguish."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True, exist_ok=True)
        for i in range(each):
            image = rng.integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
            image[..., c % 3] += 120
            Image.fromarray(image).save(folder / f"class{c}" / f"{i}.png")


def blobs(n: int, classes: int = 3, spread: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 8) around a centre for each class, and the names of the classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 8))
    y = rng.integers(0, classes, n)
    return (centres[y] + spread * rng.normal(size=(n, 8))).astype(np.float32), np.array([f"c{i}" for i in y])


def rgb_recipe(size: int = 32) -> Recipe:
    from simtrail.data.recipe import Recipe

    return Recipe(
        size=size,
        fit="pad",
        background=[0.0],
        composite=False,
        file_dtype="uint8",
        file_bands=3,
        mask_band=None,
        bands=["red", "green", "blue"],
        dtype="uint8",
        low=[0.0] * 3,
        high=[255.0] * 3,
    )


def rgb_config(changes: dict[str, object], size: int = 32) -> EncoderConfig:
    from simtrail.model.encoder import EncoderConfig

    p = with_changes(changes).pretrain
    return EncoderConfig(
        architecture=p.encoder, head=p.head, recipe=rgb_recipe(size), mean=[0.5] * 3, std=[0.2] * 3, terms=p.terms
    )
