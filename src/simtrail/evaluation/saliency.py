"""Occlusion maps: by which angle the embedding turns when a part of the image is hidden."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from simtrail.model.encoder import Encoder


def occlusion(
    encoder: Encoder, images: np.ndarray, *, patch: int | None = None, stride: int | None = None, batch_size: int = 64
) -> np.ndarray:
    """(B, H, W) float64 degrees: the angle by which the features turn when a square around a pixel is hidden.

    `images` are packed images (B, C, H, W). A square of side `patch` (default: an eighth of the width) moves over the
    image in steps of `stride` (default: half of `patch`). A pixel's value is the mean over the squares that cover it
    (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2, with the angle instead of the probability of a class). The
    square is filled with the median of the image's outermost pixels, separately for each band: the surroundings of the
    object, or the background of a cut-out.
    """
    height, width = images.shape[-2:]
    patch = patch or max(1, width // 8)
    stride = stride or max(1, patch // 2)
    positions = [(y, x) for y in _starts(height, patch, stride) for x in _starts(width, patch, stride)]
    maps = np.zeros((len(images), height, width))
    covered = np.zeros((height, width))
    for y, x in positions:
        covered[y : y + patch, x : x + patch] += 1
    for image, angles in zip(images, maps, strict=True):
        features = encoder.features(_hidden(image, positions, patch, batch_size))
        for (y, x), angle in zip(positions, _angles(features[0], features[1:]), strict=True):
            angles[y : y + patch, x : x + patch] += angle
    return maps / covered


def _hidden(image: np.ndarray, positions: list[tuple[int, int]], patch: int, batch_size: int) -> Iterator[np.ndarray]:
    """The unchanged image, then batches of its copies with a square hidden at each position."""
    edge = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
    fill = np.median(edge, 1).astype(image.dtype)[:, None, None]
    yield image[None]
    for start in range(0, len(positions), batch_size):
        corners = positions[start : start + batch_size]
        batch = np.repeat(image[None], len(corners), 0)
        for copy, (y, x) in zip(batch, corners, strict=True):
            copy[:, y : y + patch, x : x + patch] = fill
        yield batch


def _angles(first: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Degrees between one vector and others; unlike the arccosine, accurate near zero (Kahan 2006, § 12)."""
    vectors = (np.float64(first), np.float64(others))
    a, b = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in vectors)
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def _starts(length: int, patch: int, stride: int) -> list[int]:
    """The first pixels of the squares along one axis; the last square ends at the edge of the image."""
    return [*range(0, length - patch, stride), length - patch]
