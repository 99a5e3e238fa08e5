from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simtrail.data.area import area_means, pixel_centres, shrunk


def oracle(image: np.ndarray, left: float, top: float, width: float, height: float) -> np.ndarray:
    """The mean of an image (C, S, S) over a rectangle in pixels, one pixel at a time, in float64."""
    size, total = image.shape[-1], np.zeros(len(image))
    for y in range(int(np.floor(top)), int(np.ceil(top + height))):
        for x in range(int(np.floor(left)), int(np.ceil(left + width))):
            across = min(left + width, x + 1) - max(left, x)
            down = min(top + height, y + 1) - max(top, y)
            pixel = image[:, np.clip(y, 0, size - 1), np.clip(x, 0, size - 1)]
            total += across * down * pixel.astype(np.float64)
    return total / (width * height)


@pytest.mark.parametrize(("size", "new"), [(16, 8), (24, 8), (20, 8), (13, 12)])
def test_means_over_rectangles_equal_the_oracle(size, new):
    images = torch.rand(3, 2, size, size)
    side = torch.empty(3, 2, 1, 1).uniform_(2 / size, 2 / new)
    centres = torch.empty(3, 2, new, new).uniform_(-1, 1)
    means = area_means(images, centres, side)
    for n in range(3):
        width, height = (side[n, :, 0, 0].double() * size / 2).tolist()
        for i, j in np.ndindex(new, new):
            x, y = ((centres[n, :, i, j].double() + 1) * size / 2).tolist()
            expected = oracle(images[n].numpy(), x - width / 2, y - height / 2, width, height)
            np.testing.assert_allclose(means[n, :, i, j], expected, atol=2e-5)


def test_a_side_shorter_than_a_pixel_gives_bilinear_interpolation():
    images, centres = torch.rand(2, 3, 16, 16), torch.empty(2, 2, 8, 8).uniform_(-1, 1)
    bilinear = F.grid_sample(images, centres.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    assert torch.allclose(area_means(images, centres, torch.full((2, 2, 1, 1), 0.01)), bilinear, atol=1e-5)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_image_shrunk_by_a_whole_number_has_the_means_of_blocks(times):
    images = torch.rand(2, 3, 8 * times, 8 * times)
    assert torch.allclose(shrunk(images, 8), F.avg_pool2d(images, times), atol=1e-6)


def test_a_shrunk_image_keeps_its_mean_and_its_size_if_it_has_it():
    images = torch.rand(2, 3, 20, 20)
    assert torch.allclose(shrunk(images, 12).mean((2, 3)), images.mean((2, 3)), atol=1e-5)
    assert shrunk(images, 20) is images


def test_a_gradient_goes_through():
    images = torch.rand(1, 1, 6, 6, requires_grad=True)
    shrunk(images, 4).sum().backward()
    assert images.grad is not None
    assert images.grad.sum() == pytest.approx(16)


def test_pixel_centres_run_from_edge_to_edge():
    x, y = pixel_centres(4, torch.device("cpu"))
    assert x[0].tolist() == y[:, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
