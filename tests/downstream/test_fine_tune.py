from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import with_changes

from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.downstream import fine_tune as module
from simtrail.downstream.fine_tune import (
    Labelled,
    Tuning,
    compare_few_labels,
    few_label_table,
    fine_tune,
    layers,
    probabilities,
)
from simtrail.errors import InputError, TrainingError
from simtrail.evaluation.probe import C_VALUES, fit_logistic
from simtrail.evaluation.tasks import Task, main_task
from simtrail.model.encoder import Encoder, EncoderConfig

TRAIN, VAL, TEST = np.arange(0, 18), np.arange(18, 27), np.arange(27, 45)
LABELS = np.arange(45) % 3
PARAMS = with_changes({"prepare.size": 32, "pretrain.encoder.model": "test_resnet"}).pretrain
TUNING = Tuning(2, "fp32", learning_rate=3e-3)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of three classes, which differ in their brightest band."""
    recipe = Recipe(
        size=32, fit="pad", background=0.5, composite=True, file_dtype="uint8", file_bands=3, mask_band=None,
        bands=["red", "green", "blue"], dtype="uint8", low=[0] * 3, high=[255] * 3,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 130, (45, 3, 32, 32), dtype=np.uint8)
    pixels[np.arange(45), LABELS] += 80
    folder = tmp_path_factory.mktemp("packed")
    np.save(folder / "images-0000.npy", pixels)
    return PackedImages(folder, recipe)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(module, "LEAST_STEPS", 4)


def encoder(images, seed: int = 1, head_layers: int = 0) -> Encoder:
    torch.manual_seed(seed)
    config = EncoderConfig(
        architecture=PARAMS.encoder, head=PARAMS.head, recipe=images.recipe, mean=[0.35] * 3, std=[0.2] * 3
    )
    return Encoder(config, head_layers).eval()


def labelled(rows: np.ndarray) -> Labelled:
    return Labelled(rows, LABELS[rows])


def tune(images, tuning: Tuning = TUNING, rows=TRAIN, start: Encoder | None = None, seed: int = 0, **kwargs):
    start, tuning = start or encoder(images), tuning._replace(seed=seed)
    return fine_tune(start, images, labelled(rows), labelled(VAL), 3, tuning, **kwargs)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_it_learns_to_distinguish_the_classes(images):
    tuned = tune(images, TUNING._replace(epochs=12))
    predicted = probabilities(tuned.model, images, TEST)
    assert predicted.shape == (18, 3)
    assert predicted.sum(1) == pytest.approx(np.ones(18), abs=1e-5)
    assert (predicted.argmax(1) == LABELS[TEST]).mean() > 0.8
    assert not tuned.model.training


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])  # slow without a GPU
def test_the_first_loss_of_low_precision_is_close_to_float32(images, precision):
    low, exact = (tune(images, TUNING._replace(precision=p), rows=TRAIN[:6]) for p in (precision, "fp32"))
    assert low.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], rel=0.05)


def test_it_begins_as_a_linear_probe_and_is_never_worse_on_validation_images(images):
    start = encoder(images)
    as_began = tune(images, TUNING._replace(learning_rate=3.0, epochs=3), start=start)  # destroys the network
    assert as_began.epoch == 0
    assert same(weights(start), weights(as_began.model[0]))
    x, queries = (start.features(iter([images.rows(rows)])) for rows in (TRAIN, VAL))
    fits = [next(fit_logistic(x, LABELS[TRAIN], 3, (c,), tolerance=1e-5)) for c in C_VALUES]
    best = max((fit.probabilities(queries).argmax(1) == LABELS[VAL]).sum() for fit in fits)
    assert (probabilities(as_began.model, images, VAL).argmax(1) == LABELS[VAL]).sum() == best


def test_the_given_encoder_stays_unchanged(images):
    start = encoder(images)
    before = weights(start)
    tuned = tune(images, TUNING._replace(probe=False), start=start)
    assert same(before, weights(start))
    assert not start.training
    assert not same(before, weights(tuned.model[0]))


def test_the_same_seed_gives_the_same_result_and_another_does_not(images):
    tuning = TUNING._replace(probe=False)
    first = tune(images, tuning)
    torch.rand(7)  # other random draws have no influence
    again, other = tune(images, tuning), tune(images, tuning, seed=1)
    assert same(weights(first.model), weights(again.model))
    assert first.history == again.history
    assert not same(weights(first.model), weights(other.model))


def test_with_few_images_an_epoch_has_several_passes(images):
    few = tune(images, rows=TRAIN[:6], tuning=TUNING._replace(epochs=3))
    assert [row["step"] for row in few.history] == [2, 4, 6]  # one step per pass; LEAST_STEPS is 4
    many = tune(images, tuning=TUNING._replace(epochs=1))
    assert many.history[0]["step"] == 4


def test_one_image_of_each_class_is_enough(images):
    tuned = tune(images, rows=TRAIN[:3])
    assert all(np.isfinite(row["loss"]) for row in tuned.history)


def test_one_training_image_or_no_validation_image_raises_an_error(images):
    with pytest.raises(InputError, match="1 labelled training and 9 validation images"):
        tune(images, rows=TRAIN[:1])
    with pytest.raises(InputError, match="18 labelled training and 0 validation images"):
        fine_tune(encoder(images), images, labelled(TRAIN), labelled(VAL[:0]), 3, TUNING)


def test_lower_layers_learn_more_slowly(images):
    model = torch.nn.Sequential(encoder(images, head_layers=1), torch.nn.Linear(4, 3))
    names = {id(weight): name for name, weight in model.named_parameters()}
    scales = {names[id(w)]: group["lr_scale"] for group in layers(model, 0.5) for w in group["params"]}
    assert scales["0.backbone.net.conv1.0.weight"] == 0.5**4
    assert scales["0.backbone.net.layer4.0.conv1.weight"] == 1
    assert scales["0.head.0.0.weight"] == scales["1.weight"] == scales["1.bias"] == 1
    assert {name for name in names.values() if name not in scales} == {
        name for name in names.values() if name.startswith("0.head") and not name.startswith("0.head.0")
    }
    assert {group["lr_scale"] for group in layers(model, 1.0)} == {1.0}


@pytest.mark.parametrize("fusion", ["separate", "attention"])
def test_the_branch_of_every_modality_learns_and_the_fusion_has_the_rate_of_the_new_layer(images, fusion):
    torch.manual_seed(0)
    architecture = PARAMS.encoder.model_copy(update={"fusion": fusion})
    recipe = images.recipe.model_copy(update={"modalities": {"warm": [0], "cold": [1, 2]}})
    config = EncoderConfig(architecture=architecture, head=PARAMS.head, recipe=recipe, mean=[0.35] * 3, std=[0.2] * 3)
    model = torch.nn.Sequential(Encoder(config), torch.nn.Linear(4, 3))
    names = {id(weight): name for name, weight in model.named_parameters()}
    scales = {names[id(w)]: group["lr_scale"] for group in layers(model, 0.5) for w in group["params"]}
    for branch in range(2):
        assert scales[f"0.backbone.branches.{branch}.net.conv1.0.weight"] == 0.5**4
        assert scales[f"0.backbone.branches.{branch}.net.layer4.0.conv1.weight"] == 1
    assert scales["1.weight"] == scales.get("0.backbone.scores.1.weight", 1) == 1
    assert {name for name in names.values() if name not in scales} == {n for n in names.values() if ".head." in n}
    start = Encoder(config).eval()
    before = weights(start)
    after = weights(tune(images, TUNING._replace(probe=False), start=start).model[0])
    for branch in range(2):
        name = f"backbone.branches.{branch}.net.conv1.0.weight"
        assert not torch.equal(before[name], after[name])


def test_layers_with_a_lower_rate_change_less(images):
    start = encoder(images)
    tuned = tune(images, TUNING._replace(epochs=1, layer_decay=1e-6, probe=False), start=start)
    before, after = weights(start), weights(tuned.model[0])
    lowest, highest = "backbone.net.conv1.0.weight", "backbone.net.layer4.0.conv1.weight"
    assert (before[lowest] - after[lowest]).abs().max() < 1e-6 < (before[highest] - after[highest]).abs().max()


def test_the_weights_with_the_best_validation_result_are_kept_and_training_stops_early(images, monkeypatch):
    lines, of_epochs = [], []
    correct = iter([1, 3, 6, 6, 5, 6, 4])

    def probabilities_in_turn(model, images, rows):
        of_epochs.append(weights(model))
        probabilities = np.full((9, 3), 0.2, np.float32)
        n = next(correct)
        probabilities[np.arange(9), (LABELS[VAL] + (np.arange(9) >= n)) % 3] = 0.6
        return probabilities

    monkeypatch.setattr(module, "probabilities", probabilities_in_turn)
    tuned = tune(images, TUNING._replace(epochs=20, patience=3), log=lines.append)
    assert (tuned.epoch, len(tuned.history)) == (2, 5)  # the first of equals
    assert same(weights(tuned.model), of_epochs[2])  # the first is before the training
    assert lines == ["fine-tuning stopped after epoch 5: no better validation result in 3 epochs"]


@pytest.mark.parametrize(("right", "kept"), [([4, 5, 5], 0), ([4, 5, 6], 2), ([4, 3, 4], 0)])
def test_the_probe_is_kept_unless_an_epoch_is_better_by_more_than_a_standard_error(images, monkeypatch, right, kept):
    correct = iter(right)

    def probabilities_in_turn(model, images, rows):
        hit = np.arange(9) < next(correct)
        return np.where((np.arange(3) == LABELS[VAL][:, None]) == hit[:, None], 0.6, 0.2).astype(np.float32)

    monkeypatch.setattr(module, "probabilities", probabilities_in_turn)
    assert tune(images).epoch == kept
    correct = iter(right)
    assert tune(images, TUNING._replace(probe=False)).epoch == (right[1:].index(max(right[1:])) + 1)


def test_of_equal_accuracies_the_lower_cross_entropy_is_kept(images, monkeypatch):
    confidence = iter([0.1, 0.5, 0.9, 0.7])

    def probabilities_in_turn(model, images, rows):
        p = next(confidence)
        probabilities = np.full((9, 3), (1 - p) / 2, np.float32)
        probabilities[np.arange(9), LABELS[VAL]] = p
        return probabilities

    monkeypatch.setattr(module, "probabilities", probabilities_in_turn)
    assert tune(images, TUNING._replace(epochs=3)).epoch == 2


def test_the_error_for_a_loss_that_is_not_finite_has_epoch_and_rate(images):
    start = encoder(images)
    with torch.no_grad():
        start.backbone.net.conv1[0].weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 1 of 2, learning rate"):
        tune(images, TUNING._replace(probe=False), start=start)
    with pytest.raises(InputError, match="features: the encoder gives values that are not finite"):
        tune(images, start=start)


def test_images_are_warped_but_their_colours_never_change(images, monkeypatch):
    off = {"strength": 0.0, "horizontal_flip.p": 0.0, "vertical_flip.p": 0.0}
    identity = with_changes({f"pretrain.augment.geometry.{k}": v for k, v in off.items()}).pretrain.augment.geometry
    inputs, forward = [], Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x: inputs.append(x) or forward(self, x))
    tune(images, TUNING._replace(epochs=1, geometry=identity, probe=False), rows=TRAIN[:4])
    originals = torch.from_numpy(images.rows(TRAIN[:4])).float() / 255
    assert all(min((view - image).abs().max() for image in originals) < 1e-4 for view in inputs[1])
    inputs.clear()
    tune(images, TUNING._replace(epochs=1, probe=False), rows=TRAIN[:4])
    assert not any(torch.equal(view, image) for view in inputs[1] for image in originals)  # inputs[0]: validation


def task_of(labels: list[str | None]) -> Task:
    """The main task of the images with these labels."""
    split = np.repeat(["train", "val", "test"], [18, 9, 18])
    return main_task(pd.DataFrame({"label": labels, "split": split, "block": np.arange(45), "held_out": False}))


def compare(images, **changes):
    arguments = {"fractions": [0.2, 0.4, 1.0], "tuning": TUNING._replace(seed=3), **changes}
    return compare_few_labels(encoder(images), images, task_of([str(c) for c in LABELS]), **arguments)


def test_the_comparison_has_a_row_and_probabilities_for_each_fraction_and_start(images):
    table, probabilities = compare(images)
    assert table[["fraction", "images", "val_images", "start"]].to_numpy().tolist() == [
        [0.4, 7, 4, "pretrained"],
        [0.4, 7, 4, "scratch"],
        [1.0, 18, 9, "pretrained"],
        [1.0, 18, 9, "scratch"],
    ]
    for row in table.itertuples():
        of_row = probabilities[row.fraction, row.start]
        assert (of_row.argmax(1) == LABELS[TEST]).mean() == row.accuracy
        assert 0 <= row.kept_epoch <= 2


def test_a_fraction_with_about_one_image_per_class_is_left_out_unless_it_is_the_only_one(images):
    lines = []
    table, _ = compare(images, fractions=[0.3, 0.4], log=lines.append)
    assert set(table["fraction"]) == {0.4}
    assert lines[0] == "fine-tuning on 30% of the labels is left out: fewer than 2 images per class"
    assert set(compare(images, fractions=[0.1, 0.3])[0]["fraction"]) == {0.3}


def test_scratch_starts_from_seeded_random_weights_with_one_rate_for_all_layers(images, monkeypatch):
    starts = []
    original = module.fine_tune
    monkeypatch.setattr(module, "fine_tune", lambda e, *rest: starts.append((e, rest[4])) or original(e, *rest))
    compare(images, fractions=[0.2])
    assert same(weights(starts[0][0]), weights(encoder(images)))
    assert same(weights(starts[1][0]), weights(encoder(images, seed=3)))
    assert [tuning.layer_decay for _, tuning in starts] == [TUNING.layer_decay, 1.0]
    assert [tuning.probe for _, tuning in starts] == [True, False]
    assert [tuning.learning_rate for _, tuning in starts] == [TUNING.learning_rate, module.SCRATCH_RATE]


def test_unlabelled_images_and_classes_without_training_image_are_not_used(images, monkeypatch):
    labels = [str(c) for c in LABELS]
    labels[0] = labels[1] = labels[20] = labels[30] = None
    labels[40] = "only in test"
    used = []
    original = module.fine_tune
    monkeypatch.setattr(module, "fine_tune", lambda e, i, *rest: used.append(rest) or original(e, i, *rest))
    _, test_probabilities = compare_few_labels(encoder(images), images, task_of(labels), [1.0], TUNING)
    train, val, *_ = used[0]
    assert set(train.rows) == set(range(2, 18))
    assert set(val.rows) == set(range(18, 27)) - {20}
    assert test_probabilities[1.0, "scratch"].shape == (16, 3)


def test_the_table_has_intervals_of_each_accuracy_and_of_what_the_encoder_gains(images):
    settings = with_changes({"evaluate.fine_tune.fractions": [1.0], "evaluate.bootstrap": 100}).evaluate
    task = task_of([str(c) for c in LABELS])
    table = few_label_table(encoder(images), images, task, settings, TUNING, lambda line: None)
    assert table["start"].tolist() == ["pretrained", "scratch"]
    assert (table["accuracy_low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["accuracy_high"]).all()
    pretrained, scratch = table.to_dict("records")
    assert pretrained["gain"] == pytest.approx(pretrained["accuracy"] - scratch["accuracy"])
    assert pretrained["gain_low"] <= pretrained["gain"] <= pretrained["gain_high"]
    assert math.isnan(scratch["gain"])
