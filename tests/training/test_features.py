from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from simtrail.errors import InputError
from simtrail.params import FEATURES, WHITEN
from simtrail.training import features
from simtrail.training.features import CHOICES, Judge, choose_features

CLASSES = np.arange(60) % 3
GRIDS, BOTH = {FEATURES: "auto", WHITEN: False}, {FEATURES: "auto", WHITEN: "auto"}  # what is to be chosen


class Images(SimpleNamespace):
    """What a Monitor has: images that are only their numbers, the first half for training, the rest for validation."""

    def __init__(self, labels=CLASSES, block=None, labelled=True):
        bank, queries = np.split(np.arange(len(labels)), 2)
        block = np.arange(len(labels)) if block is None else block
        super().__init__(bank=bank, queries=queries, labels=labels, block=block, labelled=labelled)

    def batches(self, rows, device):
        yield from torch.from_numpy(rows).split(16)


class Given:
    """An encoder whose features are given for each choice; other choices are not possible."""

    device = torch.device("cpu")

    def __init__(self, *of_choices, widths=(1, 2, 3, 4, 5)):
        self.given = dict(zip(map(str, CHOICES), of_choices, strict=False))
        self.widths = dict(zip(map(str, CHOICES), widths, strict=True))

    def with_features(self, choice):
        if str(choice) not in self.given:
            raise InputError("not possible")
        return SimpleNamespace(width=self.widths[str(choice)])

    def features_on(self, choices, batch):
        return [torch.from_numpy(self.given[str(choice)])[batch] for choice in choices]


def useful(share, seed=0):
    """Features that tell the class of a share of the images, and are noise for the others."""
    rng = np.random.default_rng(seed)
    told = np.eye(3)[CLASSES] + 0.05 * rng.normal(size=(60, 3))
    return np.where(rng.random((60, 1)) < share, told, rng.normal(size=(60, 3)))


def test_features_that_are_clearly_better_are_chosen():
    chosen = choose_features(Given(useful(0), useful(0.3), useful(1)), Images(), GRIDS)
    assert chosen.values == {FEATURES: [1, 2, 3]}
    assert chosen.reason.startswith("accuracy of probe and kNN on training and validation images in folds: [1, 2, 3] 1")
    assert chosen.reason.count(";") == 2


def test_of_features_that_are_about_as_good_the_simplest_are_chosen(monkeypatch):
    nearly, best = useful(1), useful(1)
    nearly[0] = nearly[1]  # one of 60 images is mistaken for another
    for worse, features_chosen in ((0.02, [1]), (0.01, [1, 2, 3])):
        monkeypatch.setattr(features, "WORSE", worse)
        assert choose_features(Given(nearly, useful(0), best), Images(), GRIDS).values == {FEATURES: features_chosen}


def test_features_that_are_better_are_chosen_also_where_few_groups_make_that_uncertain():
    better = useful(0.7)
    groups = Images(block=np.arange(60) // 20)  # nothing is significant with three
    assert choose_features(Given(useful(0.5), useful(0), better), groups, GRIDS).values == {FEATURES: [1, 2, 3]}


def test_of_features_that_are_about_as_good_the_narrowest_are_chosen_whatever_their_order():
    given = Given(useful(1), useful(1), useful(1), widths=(1280, 1280, 1128, 1640, 2048))  # those of EfficientNet-Lite0
    assert choose_features(given, Images(), GRIDS).values == {FEATURES: [1, 2, 3]}


def test_narrow_features_that_are_whitened_come_before_wide_ones_that_are_not(monkeypatch):
    monkeypatch.setattr(features, "whitened", lambda given, rows: torch.from_numpy(useful(1)))
    chosen = choose_features(Given(useful(0), useful(1)), Images(), BOTH)
    assert chosen.values == {FEATURES: [1], WHITEN: True}


def test_without_labels_or_another_possible_choice_they_are_the_mean_of_the_last_map():
    first = {FEATURES: [1], WHITEN: False}
    assert choose_features(Given(useful(0), useful(1)), Images(labelled=False), BOTH).values == first
    chosen = choose_features(Given(useful(0)), Images(), GRIDS)
    assert chosen.values == {FEATURES: [1]}
    assert chosen.line.startswith("pretrain.encoder.features = [1]: the only possible")


@pytest.mark.parametrize("noise", [0.05, 20.0])
def test_features_are_whitened_if_that_is_clearly_better(noise):
    """Where noise in two directions is stronger than all else, kNN knows nothing without."""
    given = np.concatenate([useful(1), noise * np.random.default_rng(0).normal(size=(60, 2))], 1)
    chosen = choose_features(Given(given, given), Images(), BOTH)
    assert chosen.values == {FEATURES: [1], WHITEN: noise > 1}
    assert chosen.reason.count("whitened") == 2
    assert chosen.reasons == {FEATURES: chosen.reason, WHITEN: f"chosen with {FEATURES}"}
    given_grids = choose_features(Given(given), Images(), {FEATURES: [1], WHITEN: "auto"})
    assert given_grids.values == {WHITEN: noise > 1}


@pytest.mark.parametrize("few", [0, 1000])
def test_images_are_judged_by_what_is_learnt_from_others_and_none_of_their_block(monkeypatch, few):
    monkeypatch.setattr(features, "FEW", few)
    rng = np.random.default_rng(0)
    random_labels, block = np.repeat(rng.integers(0, 2, 30), 2), np.arange(60) // 2
    copies = torch.from_numpy(np.repeat(rng.normal(size=(30, 3)), 2, 0))
    judge = Judge(Images(random_labels, block))
    assert sorted(judge.block) == sorted(block if few else block[30:])
    # if the copy of an image were learnt, kNN would know the random label
    assert judge.hits(copies)[:, 1].mean() < 0.8
    assert judge.hits(torch.eye(2)[random_labels]).all()
    for bank, queries in judge.parts:
        assert not set(block[bank]) & set(block[queries])
