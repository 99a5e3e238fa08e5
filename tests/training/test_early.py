from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import rgb_config, rgb_recipe, with_changes

from simtrail.augment.views import TwoViews
from simtrail.data.loader import TrainingData
from simtrail.data.pack import PackedImages
from simtrail.training import loop
from simtrail.training.early import early_epoch, views_keep
from simtrail.training.monitors import Monitor

TINY = {
    "pretrain.encoder.model": "test_resnet",
    "pretrain.encoder.stem": "small",
    "pretrain.batch_size": 16,
    "pretrain.epochs": 10,
    "pretrain.precision": "fp32",
    "pretrain.monitor.every": 100,
    "pretrain.recipe": "sign",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TrainingData:
    """96 training and 48 validation images of three classes, which pixels tell apart."""
    folder: Path = tmp_path_factory.mktemp("early")
    rng, labels = np.random.default_rng(0), np.arange(144) % 3
    images = rng.integers(60, 120, (144, 3, 32, 32), dtype=np.uint8)
    images[np.arange(144), labels] += 100
    np.save(folder / "images-0000.npy", images)
    return TrainingData(PackedImages(folder, rgb_recipe()), np.arange(96), np.arange(96, 144), labels)


def said(data: TrainingData, **changes: object) -> str:
    """The lines that a training logs about its first epoch of ten."""
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    p, lines = with_changes(TINY | settings).pretrain, []

    def stop(history: object) -> None:
        raise StopIteration

    with pytest.raises(StopIteration):
        loop.fit(data, rgb_config(TINY | settings), p, log=lines.append, on_epoch=stop)
    return "\n".join(line for line in lines if line.startswith("epoch 1:"))


def test_a_sound_training_is_compared_with_its_floors_and_has_no_warning(data):
    text = said(data)
    assert "the floors on validation (16×16 pixels 1.000, random weights" in text
    assert "the views destroy" not in text
    assert "the stem" not in text
    assert "the temperature" not in text
    assert "the learning rate" not in text  # nothing was before this epoch


def test_the_term_of_a_teacher_is_no_part_of_the_loss_that_is_judged(data):
    taught = data._replace(teacher=np.random.default_rng(0).normal(size=(144, 5)).astype(np.float32))
    text = said(taught, pretrain__temperature=50.0, pretrain__teacher__weights="those of the test")
    assert "the temperature 50 makes all views nearly equal: the loss is 3.4" in text


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"pretrain__encoder__stem": "standard"}, "the stem leaves a map of one pixel for images of 32×32"),
        ({"pretrain__temperature": 50.0}, "the temperature 50 makes all views nearly equal: the loss is 3.4"),
        (
            {"pretrain__augment__color__jitter__brightness": 1.0, "pretrain__augment__geometry__crop__min_area": 0.001}
            | {"pretrain__augment__texture__erasing__p": 1.0, "pretrain__augment__texture__erasing__max_area": 0.9}
            | {"pretrain__augment__color__grayscale__p": 1.0, "pretrain__augment__color__strength": 1.0},
            "the views destroy the classes",
        ),
    ],
)
def test_a_bad_setting_is_named_after_a_tenth_of_the_training(data, setting, named):
    assert named in said(data, **setting)


@pytest.mark.parametrize(("features", "advice"), [("auto", "auto tries them after"), ([1], "features: auto, which")])
def test_features_that_lose_where_things_are_are_named(data, monkeypatch, features, advice):
    images, labels = data.images.rows(np.arange(144)).copy(), np.arange(144) % 3
    images[:] = np.random.default_rng(0).integers(60, 120, images.shape, dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):  # the same patch, at another place
        image[:, 4:8, 4 + 10 * label : 8 + 10 * label] = 240
    monkeypatch.setattr(PackedImages, "rows", lambda self, rows: images[rows])
    text = said(data, pretrain__encoder__features=features)
    assert "the features lose where things are: those of pretrain.encoder.features: [0, 0, 0, 8] have 1.000" in text
    assert advice in text


def test_without_labels_only_what_can_be_known_is_said(data):
    unlabelled = data._replace(labels=None)
    assert said(unlabelled) == ""
    assert "the temperature 50" in said(unlabelled, pretrain__temperature=50.0)


def test_it_comes_after_a_tenth_of_the_epochs_and_not_in_short_trainings():
    assert [early_epoch(epochs) for epochs in (1, 9, 10, 25, 400)] == [0, 0, 1, 2, 40]


def test_unchanged_views_keep_what_pixels_tell_and_erased_views_almost_nothing(data):
    off = {f"pretrain.augment.{g}.strength": 0.0 for g in ("geometry", "color", "texture")}
    erased = {"pretrain.augment.texture.erasing.p": 1.0, "pretrain.augment.texture.erasing.max_area": 0.9}
    erased |= {"pretrain.augment.color.grayscale.p": 1.0}

    def keep(changes: dict[str, object]) -> float:
        views = TwoViews(with_changes(changes).pretrain.augment, rgb_recipe())
        return views_keep(Monitor(data, views, 0))

    assert keep(off) == pytest.approx(1)
    assert keep(erased) < 0.3
