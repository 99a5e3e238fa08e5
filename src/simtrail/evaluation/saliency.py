"""Where an encoder looks: how far the embedding turns when a part of the image is hidden."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from simtrail.model.encoder import Encoder


def occlusion(
    encoder: Encoder, images: np.ndarray, *, patch: int | None = None, stride: int | None = None, batch_size: int = 64
) -> np.ndarray:
    """(B, H, W) float64 degrees: the angle by which the features turn when a square around a pixel is hidden.

    `images` are packed rows (B, C, H, W). A square of side `patch` (an eighth of the width) moves by `stride` (half of
    that) over the image; a pixel's value is the mean over the squares that cover it (Zeiler and Fergus 2014, arXiv
    1311.2901, section 4.2, with the angle in place of a class's probability). The square is filled with the median of
    the image's outermost pixels, band by band: what surrounds the object, in cut-outs the background itself.
    """
    height, width = images.shape[-2:]
    patch = patch or max(1, width // 8)
    stride = stride or max(1, patch // 2)
    places = [(y, x) for y in _starts(height, patch, stride) for x in _starts(width, patch, stride)]
    maps = np.zeros((len(images), height, width))
    covered = np.zeros((height, width))
    for y, x in places:
        covered[y : y + patch, x : x + patch] += 1
    for image, turned in zip(images, maps, strict=True):
        features = encoder.features(_hidden(image, places, patch, batch_size))
        for (y, x), angle in zip(places, _angles(features[0], features[1:]), strict=True):
            turned[y : y + patch, x : x + patch] += angle
    return maps / covered


def _hidden(image: np.ndarray, places: list[tuple[int, int]], patch: int, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of the image as it is, then with a square hidden at every place."""
    edge = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
    fill = np.median(edge, 1).astype(image.dtype)[:, None, None]
    yield image[None]
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        batch = np.repeat(image[None], len(part), 0)
        for copy, (y, x) in zip(batch, part, strict=True):
            copy[:, y : y + patch, x : x + patch] = fill
        yield batch


def _angles(of: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Degrees between one vector and others, accurate near zero, where the arc cosine is not (Kahan 2006, § 12)."""
    a, b = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (np.float64(of), np.float64(to)))
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def _starts(length: int, patch: int, stride: int) -> list[int]:
    """Where squares begin, the last at the far edge."""
    return [*range(0, length - patch, stride), length - patch]
