from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import with_changes
from torch import nn

from simtrail.training.optimisers import Lars, learning_rate, make_optimiser, peak_rate


def pretrain(**changes):
    return with_changes({f"pretrain.{key}": value for key, value in changes.items()}).pretrain


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_the_learning_rate_rises_and_falls_as_documented():
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert learning_rate(0, 1, 1.0, 0.0) == 1


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 4), ("sqrt", 2)])
def test_the_peak_grows_with_the_batch_from_256_images(scaling, factor):
    for batch_size, ratio in [(256, 1), (1024, factor), (16, 1 / factor**2)]:
        params = pretrain(learning_rate=0.3, learning_rate_scaling=scaling, batch_size=batch_size)
        assert peak_rate(params) == pytest.approx(0.3 * ratio)


@pytest.mark.parametrize(
    ("name", "optimiser_class", "momentum"),
    [("adamw", torch.optim.AdamW, None), ("sgd", torch.optim.SGD, 0.9), ("lars", Lars, 0.9)],
)
def test_the_optimiser_decays_everything_except_biases_and_normalisation(name, optimiser_class, momentum):
    modules = [network(), nn.Linear(3, 4)]
    optimiser = make_optimiser(modules, pretrain(optimiser=name, weight_decay=0.1))
    assert type(optimiser) is optimiser_class
    decayed, exempt = optimiser.param_groups
    assert [tuple(w.shape) for w in decayed["params"]] == [(3, 2), (4, 3)]
    assert [tuple(w.shape) for w in exempt["params"]] == [(3,), (3,), (3,), (4,)]
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0)
    for group in optimiser.param_groups:
        assert group["lr"] == 0
        assert group.get("momentum") == momentum


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_biases_and_normalisation_stay_unchanged_without_a_gradient(name):
    module = network()
    optimiser = make_optimiser([module], pretrain(optimiser=name, weight_decay=0.5))
    before = copy.deepcopy(module)
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    optimiser.step()
    changed = [not torch.equal(*pair) for pair in zip(module.parameters(), before.parameters(), strict=True)]
    assert changed == [True, False, False, False]


def lars_step(w, v, g, lr, decay, adapt):
    """One step of SimCLR's published lars_optimizer.py on lists of numbers."""
    g = [gi + decay * wi for gi, wi in zip(g, w, strict=True)]
    w_norm, g_norm = math.hypot(*w), math.hypot(*g)
    ratio = 0.001 * w_norm / g_norm if adapt and w_norm > 0 and g_norm > 0 else 1
    v = [0.9 * vi + lr * ratio * gi for vi, gi in zip(v, g, strict=True)]
    return [wi - vi for wi, vi in zip(w, v, strict=True)], v


def test_lars_takes_the_steps_of_the_published_code():
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(4, 3, dtype=torch.float64, generator=generator), torch.zeros(2, 2, dtype=torch.float64)]
    vectors = [torch.randn(5, dtype=torch.float64, generator=generator)]
    constant = torch.randn(2, 3, dtype=torch.float64, generator=generator)  # no decay and no gradient: ‖g‖ = 0
    frozen = torch.ones(2, 2, dtype=torch.float64)
    optimiser = Lars(
        [
            {"params": [*matrices, frozen], "weight_decay": 0.01},
            {"params": vectors, "adapt": False},
            {"params": [constant]},
        ],
        lr=0.0,
    )
    tensors = [*matrices, *vectors, constant]
    settings = [(0.01, True), (0.01, True), (0.0, False), (0.0, True)]
    expected = [(w.flatten().tolist(), [0.0] * w.numel()) for w in tensors]
    for lr in (0.5, 3.0, 0.1):
        for i, (w, (decay, adapt)) in enumerate(zip(tensors, settings, strict=True)):
            w.grad = torch.randn(w.shape, dtype=w.dtype, generator=generator) * (w is not constant)
            expected[i] = lars_step(*expected[i], w.grad.flatten().tolist(), lr, decay, adapt)
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
        for w, (values, _) in zip(tensors, expected, strict=True):
            torch.testing.assert_close(w.flatten(), torch.tensor(values, dtype=w.dtype), rtol=1e-12, atol=1e-15)
    assert torch.equal(frozen, torch.ones_like(frozen)), "a weight without a gradient stays unchanged"


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_a_restored_optimiser_continues_identically(name):
    module = network()
    optimiser = make_optimiser([module], pretrain(optimiser=name))

    def step(module, optimiser, seed):
        for group in optimiser.param_groups:
            group["lr"] = 0.1 / (1 + seed)
        optimiser.zero_grad()
        module(torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))).pow(3).sum().backward()
        optimiser.step()

    step(module, optimiser, 0)
    other = copy.deepcopy(module)
    restored = make_optimiser([other], pretrain(optimiser=name))
    restored.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for seed in (1, 2):
        step(module, optimiser, seed)
        step(other, restored, seed)
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), other.parameters(), strict=True))
