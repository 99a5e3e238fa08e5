from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import rgb_config
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
            "net.safetensors",
            r"pretrain\.teacher\.model: not set; name the network of pretrain\.teacher\.weights = '.*net",
        ),
    ],
)
def test_a_teacher_that_can_not_be_made_is_refused_with_its_key(images, trained, tmp_path, weights, message):
    teacher = Teacher(weights=weights if weights == "random" else str(tmp_path / weights))
    with pytest.raises(InputError, match=message):
        teacher_features(teacher, rgb_config({}), images, ROWS, print)


def test_weights_of_another_network_are_refused_with_the_key_of_the_teacher(images, trained, tmp_path):
    teacher = Teacher(weights=str(tmp_path / "net.safetensors"), model="resnet18")
    with pytest.raises(InputError, match=r"^pretrain\.teacher\.weights = "):
        teacher_features(teacher, rgb_config({}), images, ROWS, print)
