from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import rgb_config, with_changes
from safetensors.torch import save_file

from simtrail.data.pack import PackedImages
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder
from simtrail.model.teacher import teacher_features
from simtrail.params import Teacher

ROWS = np.array([5, 1, 3, 0])


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "images-0000.npy", random)
    return PackedImages(tmp_path, rgb_config({}).recipe)


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(3)
    encoder = Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).eval()
    encoder.save(tmp_path / "trained")
    save_file({k: v.contiguous() for k, v in encoder.backbone.net.state_dict().items()}, tmp_path / "net.safetensors")
    return encoder


@pytest.mark.parametrize(("weights", "model"), [("trained", None), ("net.safetensors", "test_resnet")])
def test_features_are_those_of_the_trained_encoder_standardised_over_the_rows(
    images, trained, tmp_path, weights, model
):
    lines = []
    teacher = Teacher(weights=str(tmp_path / weights), model=model)
    features = teacher_features(teacher, rgb_config({}), images, ROWS, lines.append)
    plain = trained.features(iter([images.rows(ROWS)])).astype(np.float64)
    varies = plain.std(0) > 1e-6
    expected = np.where(varies, (plain - plain.mean(0)) / np.where(varies, plain.std(0), 1), 0)
    np.testing.assert_allclose(features[ROWS], expected, atol=1e-3)
    assert not features[[2, 4]].any()
    assert all(line.startswith("teacher: ") for line in lines)
    assert lines[-1] == f"teacher: {plain.shape[1]} features of 4 images"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("random", r"pretrain\.teacher\.weights = 'random': teaches nothing; set null, or trained weights"),
        (
            "net.pth",
            r"pretrain\.teacher\.model = null: does not say of which network .* = 'net\.pth' are; set it to the",
        ),
        (
            "pretrained",
            r"pretrain\.teacher\.model = null: does not say of which network .* = 'pretrained' are; set it to",
        ),
    ],
)
def test_a_teacher_that_can_not_be_made_is_refused_before_any_stage(weights, message):
    with pytest.raises(InputError, match=message):
        with_changes({"pretrain.teacher.weights": weights})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet18", r"^pretrain\.teacher\.weights = .*than pretrain\.teacher\.model"),
        ("resnet1", r"^pretrain\.teacher\.model = 'resnet1': not a model"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_with_the_key_of_the_teacher(images, trained, tmp_path, model, message):
    teacher = Teacher(weights=str(tmp_path / "net.safetensors"), model=model)
    with pytest.raises(InputError, match=message):
        teacher_features(teacher, rgb_config({}), images, ROWS, print)
