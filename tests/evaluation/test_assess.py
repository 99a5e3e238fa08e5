from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import with_changes

from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.errors import InputError
from simtrail.evaluation import assess as module
from simtrail.evaluation.assess import Embedded, assess, by_modality, features_of, over_seeds
from simtrail.model.encoder import Encoder, EncoderConfig

LABELS = np.arange(60) % 3
TABLE = pd.DataFrame(
    {
        "path": [f"images/{i}.png" for i in range(60)],
        "split": np.array(["train", "train", "train", "val", "test"])[(np.arange(60) // 3) % 5],
        "label": LABELS.astype(str),
        "block": np.arange(60) // 2,
        "held_out": False,
    }
)
PARAMS = with_changes({"pretrain.encoder.model": "test_resnet", "evaluate.bootstrap": 100})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of three classes, which differ in their brightest band."""
    recipe = Recipe(
        size=32, fit="pad", background=0.5, composite=True, file_dtype="uint8", file_bands=3, mask_band=None,
        bands=["red", "green", "blue"], dtype="uint8", low=[0] * 3, high=[255] * 3,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 130, (60, 3, 32, 32), dtype=np.uint8)
    pixels[np.arange(60), LABELS] += 80
    folder = tmp_path_factory.mktemp("packed")
    np.save(folder / "images-0000.npy", pixels)
    return PackedImages(folder, recipe)


def encoder(images, seed: int = 1) -> Encoder:
    torch.manual_seed(seed)
    p = PARAMS.pretrain
    config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=images.recipe, mean=[0.35] * 3, std=[0.2] * 3)
    return Encoder(config).eval()


def assessed(images, features=None, **changes):
    net, p = encoder(images), with_changes({"evaluate.bootstrap": 100, **changes})
    features = features_of(net, images) if features is None else features
    return assess(Embedded(net, images, TABLE, features), p.pretrain.augment, p.evaluate)


def test_scores_and_label_free_measures_are_computed_and_reproducible(images):
    first, again = assessed(images), assessed(images)
    assert first.metrics == again.metrics
    task = first.metrics["tasks"]["label"]
    assert (task["classes"], task["images"], task["unknown"]) == (3, 12, 0)
    assert task["scores"]["raw_pixels"]["accuracy"] == 1
    assert first.metrics["features"]["alignment"] > 0


def test_the_probe_learns_from_views_only_if_set(images):
    assert "probe_augmented" not in assessed(images, **{"evaluate.probe_views": 0}).results[0].scores
    result = assessed(images, **{"evaluate.probe_views": 3}).results[0]
    assert result.scores["probe_augmented"] != result.scores["linear_probe"]


def test_the_error_for_a_feature_that_is_not_finite_names_the_image(images):
    features = features_of(encoder(images), images)
    features[17, 3] = np.nan
    with pytest.raises(InputError, match=r"row 17 \(images/17\.png\): not finite \(1 of 60 rows\)"):
        assessed(images, features)


def test_a_pretrained_floor_starts_from_the_named_model(images, monkeypatch):
    loaded = []

    def load(net: Encoder, weights: str) -> list[str]:
        loaded.append((net.config.architecture.model, weights))
        return []

    monkeypatch.setattr(module, "load_weights", load)
    result = assessed(images, **{"evaluate.pretrained": "resnet18", "evaluate.probe_views": 0}).results[0]
    assert loaded == [("resnet18", "pretrained")]
    assert "pretrained" in result.scores
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"evaluate\.pretrained = 'resnet99'"):
        assessed(images, **{"evaluate.pretrained": "resnet99"})


def test_the_first_weights_are_a_floor_unless_they_are_random(images, tmp_path):
    net = encoder(images)
    net.save(tmp_path)
    embedded = Embedded(net, images, TABLE, features_of(net, images))
    params = with_changes({"evaluate.probe_views": 0})
    scores = assess(embedded, params.pretrain.augment, params.evaluate, first_weights=str(tmp_path)).results[0].scores
    assert scores["first_weights"] == scores["linear_probe"]
    assert scores["random_encoder"] != scores["linear_probe"]


def test_the_features_of_a_teacher_are_compared_but_are_no_floor(images):
    net, params = encoder(images), with_changes({"evaluate.probe_views": 0})
    features = features_of(net, images)
    embedded = Embedded(net, images, TABLE, features)
    result = assess(embedded, params.pretrain.augment, params.evaluate, teacher=features).results[0]
    assert result.scores["teacher"] == result.scores["linear_probe"]
    assert "random_encoder" in result.gains
    assert "teacher" not in result.gains


def test_floors_are_whitened_as_the_features_are_but_geometry_is_measured_without(images):
    net = encoder(images)
    plain = assessed(images, **{"evaluate.probe_views": 0})
    torch.manual_seed(PARAMS.evaluate.seed)
    untrained = encoder(images, PARAMS.evaluate.seed)  # that of the floor
    embedded = Embedded(untrained, images, TABLE, features_of(untrained, images))
    untrained.whiten(embedded.features[TABLE["split"] == "train"])
    params = with_changes({"evaluate.probe_views": 0, "evaluate.bootstrap": 100})
    white = assess(
        Embedded(untrained, images, TABLE, features_of(untrained, images)), params.pretrain.augment, params.evaluate
    )
    scores = white.results[0].scores
    assert scores["random_encoder"] == scores["linear_probe"]
    net.whiten(features_of(net, images)[TABLE["split"] == "train"])
    again = assess(Embedded(net, images, TABLE, features_of(net, images)), params.pretrain.augment, params.evaluate)
    assert again.metrics["features"] == pytest.approx(plain.metrics["features"], rel=1e-3)


def test_scores_over_seeds_have_mean_and_standard_deviation(images):
    first = assessed(images)
    encoders = [encoder(images, seed) for seed in (2, 3)]
    summary = over_seeds(first, encoders, images, PARAMS.evaluate)
    assessments = [first] + [
        assess(Embedded(net, images, TABLE, features_of(net, images)), PARAMS.pretrain.augment, PARAMS.evaluate)
        for net in encoders
    ]
    values = [assessment.results[0].scores["knn"]["accuracy"] for assessment in assessments]
    assert summary["knn"] == pytest.approx({"mean": np.mean(values), "sd": np.std(values, ddof=1), "seeds": 3})


def test_each_modality_is_scored_separately_and_searched_in_the_other(images):
    recipe = images.recipe.model_copy(update={"modalities": {"vis": [0, 1], "uv": [2]}})
    terms = {"fused": 1.0, "intra": 0.0, "cross": 1.0}
    settings = {"pretrain.encoder.model": "test_resnet", "pretrain.encoder.fusion": "separate", "pretrain.terms": terms}
    p, scale = with_changes(settings).pretrain, {"mean": [0.35] * 3, "std": [0.2] * 3}
    torch.manual_seed(0)
    config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=recipe, terms=p.terms, **scale)
    assessment, features = assessed(images), np.zeros((60, 1), np.float32)
    scores = by_modality(assessment, Embedded(Encoder(config).eval(), images, TABLE, features), PARAMS.evaluate)
    assert set(scores["alone"]) == {"vis", "uv"}
    assert scores["alone"]["vis"]["accuracy"] > scores["alone"]["uv"]["accuracy"]  # uv shows only one of three classes
    assert scores["retrieval"]["vis to uv"]["chance_at_1"] == pytest.approx(1 / 12)
    assert by_modality(assessment, Embedded(encoder(images), images, TABLE, features), PARAMS.evaluate) == {}
