from __future__ import annotations

import time

import torch
from conftest import rgb_config

from simtrail.model.encoder import Encoder
from simtrail.training import measure
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


def test_a_precision_that_is_hopelessly_slow_is_measured_only_on_few_images(monkeypatch):
    passes = []

    def one_pass(encoder, precision, images, local_views=0):
        passes.append((precision, images))
        time.sleep(0.1 if precision == "bf16" else 0)

    monkeypatch.setattr(measure, "_passes", one_pass)
    seconds = step_seconds(Encoder(rgb_config(TINY)), ["bf16", "fp32"], images=10)
    assert seconds["bf16"] > seconds["fp32"]
    assert {images for precision, images in passes if precision == "bf16"} == {measure.FEW}
    assert passes.count(("fp32", 10)) == 1 + measure.REPEATS  # the first one only allocates


def test_the_first_pass_of_a_size_does_not_count(monkeypatch):
    sizes = set()

    def one_pass(encoder, precision, images, local_views=0):
        time.sleep(0.001 if (precision, images) in sizes else 0.2)  # allocates and compiles
        sizes.add((precision, images))

    monkeypatch.setattr(measure, "_passes", one_pass)
    seconds = step_seconds(Encoder(rgb_config(TINY)), ["bf16", "fp32"], images=10)
    assert max(seconds.values()) * 10 < 0.1
