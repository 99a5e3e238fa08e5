from __future__ import annotations

from math import exp, log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import with_changes
from torch import nn

from simtrail.augment.views import TwoViews
from simtrail.data.loader import TrainingData
from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.errors import InputError, TrainingError
from simtrail.training import monitors
from simtrail.training.monitors import Monitor, collapsed, kept_epoch, problems

RECIPE = Recipe(
    size=8, fit="pad", background=0, composite=True, file_dtype="uint8", file_bands=2, mask_band=None,
    bands=["a", "b"], dtype="uint8", low=[0, 0], high=[255, 255],
)  # fmt: skip
TRAIN, VAL, TEST = np.arange(8), np.arange(8, 12), np.arange(12, 16)
CLASSES = np.arange(16) % 2  # even images have only band a, odd images only band b


class Recorded(PackedImages):
    read: set[int] = set()  # noqa: RUF012

    def rows(self, indices):
        self.read = self.read | set(indices.tolist())
        return super().rows(indices)


class Pixel(nn.Module):
    """Features and projections are the values of the upper left pixel: (B, 2)."""

    device, modalities, width = torch.device("cpu"), (), 2

    def forward(self, batch):
        assert not self.training
        assert not torch.is_grad_enabled()
        return batch[:, :, 0, 0]

    project = forward


class TwoBranches(Pixel):
    """The same with two modalities: one has the values of the pixel, the other a constant value; each has a weight."""

    modalities, branches = (
        ("varied", "constant"),
        dict.fromkeys(("varied", "constant"), SimpleNamespace(feature_width=2)),
    )

    def __init__(self, weights):
        super().__init__()
        self.backbone = SimpleNamespace(scores=weights, weights=lambda parts: torch.tensor([weights] * len(parts[0])))

    def parts(self, batch):
        return [self(batch), torch.ones(len(batch), 2)]


@pytest.fixture
def packed(tmp_path):
    def make(values: np.ndarray) -> Recorded:
        images = np.broadcast_to(values.astype(np.uint8)[:, :, None, None], (*values.shape, 8, 8))
        np.save(tmp_path / "images-0000.npy", images)
        return Recorded(tmp_path, RECIPE)

    return make


@pytest.fixture
def images(packed):
    return packed(np.eye(2)[CLASSES] * 255)


def twice(batch, *seed):
    return torch.cat([batch, batch])


def swapped(batch, *seed):
    return torch.cat([batch, batch.flip(1)])


def mistaken(batch, *seed):
    return torch.cat([batch, batch.roll(1, 0)])  # the second view is another image's


def test_every_measure_equals_its_closed_form(images):
    labels = CLASSES.copy()
    labels[8] = 1  # one of four validation labels is wrong
    measures = Monitor(TrainingData(images, TRAIN, VAL, labels), swapped, 0).validate(Pixel())
    measures.pop("val_contrastive_top1")  # equal vectors: any of them may be the nearest
    assert measures == pytest.approx(
        {
            "val_alignment": 2,  # the views are orthogonal
            "val_uniformity": log((2 + 4 * exp(-4)) / 6),  # of 6 pairs, 2 are equal and 4 orthogonal
            "val_effective_rank": 2,
            "val_feature_std": 0.5,
            "val_knn": 0.75,
            "val_probe": 0.75,
        }
    )


def test_top1_finds_partners_over_several_batches(packed, monkeypatch):
    monkeypatch.setattr(monitors, "BATCH", 2)
    angles = np.linspace(0, 1.5, 16)
    distinct = packed(200 * np.stack([np.cos(angles), np.sin(angles)], 1))
    measures = Monitor(TrainingData(distinct, TRAIN, VAL, None), twice, 0).validate(Pixel())
    assert measures["val_contrastive_top1"] == 1
    assert measures["val_alignment"] == pytest.approx(0)
    measures = Monitor(TrainingData(distinct, TRAIN, VAL, None), mistaken, 0).validate(Pixel())
    assert measures["val_contrastive_top1"] == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_keeps_its_mode_even_when_a_validation_fails(images, training):
    encoder = Pixel().train(training)
    Monitor(TrainingData(images, TRAIN, VAL, None), twice, 0).validate(encoder)
    assert encoder.training is training
    encoder.project = None
    with pytest.raises(TypeError):
        Monitor(TrainingData(images, TRAIN, VAL, None), twice, 0).validate(encoder)
    assert encoder.training is training


def test_only_validation_images_and_labelled_training_images_are_read(images):
    labels = CLASSES.copy()
    labels[[0, 3, 9]] = -1
    measures = Monitor(TrainingData(images, TRAIN, VAL, labels), twice, 0).validate(Pixel())
    assert images.read == {1, 2, 4, 5, 6, 7, 8, 9, 10, 11}
    assert measures["val_knn"] == measures["val_probe"] == 1  # the unlabelled query does not count


def test_at_most_bank_and_validation_images_are_measured_and_always_the_same(images, monkeypatch):
    monkeypatch.setattr(monitors, "BANK", 6)
    monkeypatch.setattr(monitors, "VALIDATION", 3)
    a, b, other = (Monitor(TrainingData(images, TRAIN, VAL, CLASSES), twice, seed) for seed in (0, 0, 3))
    assert a.validate(Pixel()) == b.validate(Pixel())
    assert len(images.read) == 9
    assert set(a.bank) | set(a.val) == images.read == set(b.bank) | set(b.val)
    assert set(other.bank) | set(other.val) != images.read


def test_few_labels_are_all_used_even_if_most_images_have_none(packed, monkeypatch):
    monkeypatch.setattr(monitors, "VALIDATION", 4)
    classes = np.arange(100) % 2
    labels = classes.copy()
    labels[40:97] = -1
    monitor = Monitor(TrainingData(packed(np.eye(2)[classes] * 255), TRAIN, np.arange(40, 100), labels), twice, 0)
    assert sorted(monitor.queries) == [97, 98, 99]
    assert len(monitor.val) == 4
    assert monitor.validate(Pixel())["val_knn"] == 1


def test_the_views_are_the_same_at_every_validation_and_no_other_draw_changes(images):
    augment = with_changes({"pretrain.augment.color.jitter.p": 1.0}).pretrain.augment
    monitor = Monitor(TrainingData(images, TRAIN, VAL, None), TwoViews(augment, RECIPE), 0)
    before = torch.get_rng_state()
    first = monitor.validate(Pixel())
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert monitor.validate(Pixel()) == first


def test_fewer_than_two_validation_images_give_no_measures(images):
    monitor = Monitor(TrainingData(images, TRAIN, VAL[:1], CLASSES), twice, 0)
    assert monitor.validate(Pixel()) == {}
    assert monitor.choose("auto") is monitor.choose("last") is None
    with pytest.raises(InputError, match=r"pretrain\.monitor\.metric = 'effective_rank': needs two validation images"):
        monitor.choose("effective_rank")


def test_the_metric_that_chooses_the_weights_is_measured(images):
    labelled = Monitor(TrainingData(images, TRAIN, VAL, CLASSES), twice, 0)
    assert labelled.choose("auto") == labelled.choose("probe") == "val_probe"
    assert labelled.choose("probe") == "val_probe"
    assert labelled.choose("effective_rank") == "val_effective_rank"
    assert labelled.choose("last") is None
    assert {"val_knn", "val_probe", "val_effective_rank"} <= set(labelled.validate(Pixel()))


@pytest.mark.parametrize("labels", [None, np.full(16, -1), np.zeros(16, int), np.where(np.arange(16) < 9, CLASSES, -1)])
def test_without_two_classes_in_both_splits_no_measure_needs_labels(images, labels):
    monitor = Monitor(TrainingData(images, TRAIN, VAL, labels), twice, 0)
    assert monitor.choose("auto") is None
    assert not {"val_knn", "val_probe"} & set(monitor.validate(Pixel()))
    for metric in ("knn", "probe"):
        with pytest.raises(InputError, match=rf"pretrain\.monitor\.metric = '{metric}': needs two labelled classes"):
            monitor.choose(metric)


def test_collapse_is_a_tenth_of_the_standard_deviation_of_isotropic_features():
    assert collapsed(0.0, 512)
    assert collapsed(0.0099, 100)
    assert not collapsed(0.0101, 100)


@pytest.mark.parametrize("weights", [[], [0.985, 0.015]])
def test_each_modality_is_measured_and_a_constant_one_is_named(images, weights):
    encoder = TwoBranches(weights)
    measures = Monitor(TrainingData(images, TRAIN, VAL, None), twice, 0).validate(encoder)
    assert measures["val_feature_std_varied"] == pytest.approx(0.5)
    assert measures["val_feature_std_constant"] == 0
    weight_measures = {name: value for name, value in measures.items() if name.startswith("val_weight_")}
    assert weight_measures == pytest.approx(
        dict(zip(("val_weight_varied", "val_weight_constant"), weights, strict=False))
    )
    assert problems(measures, encoder) == [
        "the features of constant collapse: standard deviation 0",
        *["attention ignores constant: its mean weight is 0.015" for _ in weights[:1]],
    ]
    assert problems({}, encoder) == []


def test_the_kept_epoch_of_a_history_is_the_last_that_was_kept():
    nan = float("nan")  # as a history read from CSV has it, where there was no validation
    history = [{"epoch": n, "kept": kept, "val_probe": 0.5} for n, kept in enumerate((nan, 1.0, 0.0, 1.0, nan, 0.0), 1)]
    assert kept_epoch(history, "auto") == 4


@pytest.mark.parametrize(
    ("metric", "epoch"), [("probe", 2), ("knn", 3), ("auto", 2), ("effective_rank", 4), ("last", 4)]
)
def test_the_kept_epoch_of_a_history_of_an_earlier_version_is_the_first_with_the_best_value(metric, epoch):
    nan = float("nan")
    history = [
        {"epoch": 1, "val_probe": nan, "val_knn": nan, "val_effective_rank": nan},
        {"epoch": 2, "val_probe": 0.9, "val_knn": 0.2, "val_effective_rank": 3.0},
        {"epoch": 3, "val_probe": 0.9, "val_knn": 0.4, "val_effective_rank": 2.0},
        {"epoch": 4, "val_probe": 0.1, "val_knn": 0.3, "val_effective_rank": 5.0},
    ]
    assert kept_epoch(history, metric) == epoch
    assert kept_epoch([{"epoch": 1, "val_effective_rank": 5.0}, {"epoch": 2, "val_effective_rank": 4.0}], "auto") == 1
    assert kept_epoch([{"epoch": 1}, {"epoch": 2}], "auto") == 2


def test_only_accuracies_have_a_standard_error(images):
    monitor = Monitor(TrainingData(images, TRAIN, VAL, CLASSES), twice, 0)
    assert monitor.standard_error("val_knn", 0.2) == pytest.approx((0.2 * 0.8 / len(monitor.queries)) ** 0.5)
    assert monitor.standard_error("val_effective_rank", 0.2) == monitor.standard_error(None, 0.2) == 0


def test_features_that_are_not_finite_end_the_training_with_advice(images):
    encoder = Pixel().eval()
    encoder.forward = lambda batch: batch[:, :, 0, 0] * torch.nan
    monitor = Monitor(TrainingData(images, TRAIN, VAL, CLASSES), twice, 0)
    with pytest.raises(TrainingError, match=r"the features are not finite at a validation; lower pretrain\.learning"):
        monitor.validate(encoder)
