from __future__ import annotations

import torch
from conftest import rgb_config

from simtrail.model.encoder import Encoder
from simtrail.training.measure import bytes_per_image, step_seconds

TINY = {"pretrain.encoder.model": "test_resnet"}


def test_measuring_a_step_changes_nothing_and_every_precision_takes_some_time():
    encoder = Encoder(rgb_config(TINY)).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    seconds = step_seconds(encoder, ["bf16", "fp32"], images=2)
    assert all(0 < value < 10 for value in seconds.values())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(weight.grad is None for weight in encoder.parameters())


def test_memory_grows_with_the_images_and_counts_at_least_the_maps():
    encoder = Encoder(rgb_config(TINY, 64)).train()
    small, large = (bytes_per_image(encoder, "fp32", images) for images in (2, 8))
    assert abs(small - large) < 0.5 * large
    assert large > bytes_per_image(encoder, "bf16", 8) > 0
    assert large > 3 * bytes_per_image(Encoder(rgb_config(TINY)).train(), "fp32", 8)
