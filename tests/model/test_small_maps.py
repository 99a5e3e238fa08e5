from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from simtrail.model.small_maps import small_map, with_small_maps


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((2, 2), 3, (1, 1), (1, 1)),
        ((4, 3), 3, (2, 2), (1, 1)),
        ((1, 2), 1, (1, 1), (0, 0)),
        ((7, 9), 7, (4, 2), (3, 1)),
    ],
)
def test_the_products_are_the_convolution_and_its_gradients(size, kernel, stride, padding):
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    found, expected = small_map(x, weight, bias, stride, padding), F.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, (x, weight, bias), slope) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_network_has_the_same_weights_and_results_and_uses_products_only_in_training(monkeypatch):
    torch.manual_seed(0)
    plain, net = (timm.create_model("resnet10t", num_classes=0).eval() for _ in range(2))
    net.load_state_dict(plain.state_dict())
    with_small_maps(net)
    images, used = torch.rand(4, 3, 64, 64), []
    original = small_map
    monkeypatch.setattr(
        "simtrail.model.small_maps.small_map", lambda x, *rest: used.append(x.shape) or original(x, *rest)
    )
    assert net(images).equal(plain(images))
    assert not used
    torch.testing.assert_close(net.train()(images), plain.train()(images), rtol=1e-4, atol=1e-4)
    assert {shape[2:] for shape in used} == {(4, 4), (2, 2)}
    assert net.state_dict().keys() == plain.state_dict().keys()


def test_under_autocast_the_products_are_in_bf16_and_weights_get_float32_gradients(monkeypatch):
    torch.manual_seed(0)
    used = []
    monkeypatch.setattr(
        "simtrail.model.small_maps.small_map", lambda x, *rest: used.append(x.dtype) or small_map(x, *rest)
    )
    net = torch.nn.Conv2d(5, 4, 3, padding=1)
    with_small_maps(net)
    x = torch.randn(6, 5, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert used == [y.dtype] == [torch.bfloat16]
    y.float().square().sum().backward()
    expected = F.conv2d(x, net.weight, net.bias, padding=1)
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)
    slope = torch.autograd.grad(expected.square().sum(), net.weight)[0]
    assert net.weight.grad.dtype == torch.float32
    torch.testing.assert_close(net.weight.grad, slope, rtol=0.05, atol=0.02 * float(slope.abs().max()))
