from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import with_changes

from simtrail.errors import InputError
from simtrail.evaluation.probe import Views
from simtrail.evaluation.tasks import classify, main_task, small_pixels, tasks

RNG = np.random.default_rng(0)
SPLITS = ["train", "train", "train", "val", "test"]
FEW_RESAMPLES = {"evaluate.bootstrap": 100}


def table(labels: list[str | None], split: list[str], **more: object) -> pd.DataFrame:
    frame = pd.DataFrame({"label": pd.Series(labels, dtype="object"), "split": split, "block": range(len(labels))})
    return frame.assign(**more)


def test_unlabelled_images_are_left_out_and_unlabelled_sets_have_no_task():
    task = main_task(table(["a", None, "b", "a", "b"], ["train", "train", "train", "val", "test"]))
    assert task is not None
    assert task.rows.tolist() == [0, 2, 3, 4]
    assert task.names == ["a", "b"]
    assert task.name == "label"
    assert main_task(table([None] * 3, ["train", "val", "test"])) is None
    assert main_task(table(["a"] * 3, ["train", "val", "test"])) is None
    with pytest.raises(InputError, match="the test split has no labelled image of a class with training images"):
        main_task(table(["a", "b", "a", None], ["train", "train", "val", "test"]))


def test_test_images_of_a_class_without_training_image_are_counted_but_not_scored():
    task = main_task(table(["a", "b", "a", "b", "c", "c"], ["train", "train", "val", "test", "test", "val"]))
    assert task is not None
    assert (task.names, task.unknown, task.rows.tolist()) == (["a", "b"], 1, [0, 1, 2, 3])


def test_other_columns_are_tasks_too_and_the_error_names_a_wrong_column():
    frame = table(["a", "b"] * 5, SPLITS * 2, **{"meta.sex": ["f", "m", "f", "m", "f"] * 2, "meta.place": "here"})
    frame["meta.genus"] = frame["label"]
    all_tasks = tasks(frame, ["sex", "genus"])
    assert [task.name for task in all_tasks] == ["genus", "sex"]
    with pytest.raises(InputError, match=r"evaluate.labels: 'sexx': no such column in metadata.csv; it has sex, place"):
        tasks(frame, ["sexx"])
    with pytest.raises(InputError, match=r"evaluate.labels: 'place': needs two classes"):
        tasks(frame, ["place"])


def test_held_out_classes_are_a_separate_task():
    labels = ["a", "b", "c", "d"] * 10
    frame = table(labels, [part for part in SPLITS for _ in range(8)], held_out=[name in "cd" for name in labels])
    main, unseen = tasks(frame, [])
    assert (main.names, unseen.names) == (["a", "b"], ["c", "d"])
    assert (main.name, unseen.name) == ("label", "label (unseen)")
    assert not set(main.rows) & set(unseen.rows)
    frame["held_out"] = frame["label"] == "c"
    with pytest.raises(InputError, match="held_out_classes: needs two classes"):
        tasks(frame, [])


def test_every_classifier_and_floor_is_scored():
    labels = np.arange(300) % 3
    split = np.array(SPLITS)[(np.arange(300) // 3) % 5]
    features = (RNG.normal(size=(300, 10)) + 4 * np.eye(10)[labels]).astype(np.float32)
    task = main_task(table([f"c{x}" for x in labels], split.tolist()))
    assert task is not None
    noise = RNG.normal(size=(300, 5)).astype(np.float32)
    not_test = np.flatnonzero(split != "test")
    views = Views(features[not_test], not_test)
    floors = {"raw_pixels": noise, "random_encoder": noise}
    result = classify(task, features, floors, with_changes(FEW_RESAMPLES).evaluate, views)
    names = ["linear_probe", "probe_augmented", "knn", "svc", "raw_pixels", "random_encoder", "majority"]
    assert list(result.scores) == names
    assert all(result.scores[name]["accuracy"] > 0.95 for name in names[:4])
    assert result.scores["raw_pixels"]["accuracy"] < 0.6
    assert result.scores["majority"]["accuracy"] == pytest.approx(1 / 3)
    gain = result.gains["majority"]
    assert gain["value"] == pytest.approx(result.scores["linear_probe"]["accuracy"] - 1 / 3)
    assert list(result.gains) == names[4:]
    assert 0.4 < gain["low"] < gain["value"] < gain["high"] < 0.9
    assert all(len(p) == (split == "test").sum() for p in result.predicted.values())
    assert result.per_class["class"].tolist() == ["c0", "c1", "c2"]


@pytest.mark.parametrize(("classes", "each"), [(40, 2), (200, 5)])
def test_many_classes_of_few_images_are_scored(classes, each):
    labels = np.arange(classes * each) % classes
    split = np.array(SPLITS)[RNG.permutation(len(labels)) % 5]
    features = (np.eye(classes)[labels] + RNG.normal(size=(len(labels), classes)) * 0.05).astype(np.float32)
    task = main_task(table([f"{x:04}" for x in labels], split.tolist()))
    assert task is not None
    result = classify(task, features, {}, with_changes(FEW_RESAMPLES).evaluate)
    assert result.scores["knn"]["accuracy"] > 0.9


def test_small_pixels_are_means_of_blocks():
    images = RNG.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    small = small_pixels(images, 255).reshape(2, 3, 16, 16)
    assert small[1, 2, 3, 4] == pytest.approx(images[1, 2, 6:8, 8:10].mean() / 255)
