"""Finds near copies: images that show the same scene, resized, compressed again or with other brightness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simtrail.data.checking.appearance import SIDE

ALIKE = 0.97  # least correlation of the edges in two thumbnails of near copies
_ORDERS, _NEIGHBOURS = 12, 4


def near_copies(thumbnails: Sequence[bytes | None]) -> np.ndarray:
    """The number of its set of near copies for each image (int), and -1 for an image that has none.

    Two images are near copies if the edges in their thumbnails (differences of neighbouring pixels) have a correlation
    of at least `ALIKE`. Edges do not depend on brightness, and weigh detail more than the overall shape. Only
    neighbours in sorted lists of hashes are compared (64 signs of random projections of the edges: Charikar 2002,
    doi 10.1145/509907.509965), so that the time is that of sorting, nearly linear in the number of images.
    """
    rows = np.array([i for i, thumbnail in enumerate(thumbnails) if thumbnail is not None], int)
    result = np.full(len(thumbnails), -1)
    if len(rows) < 2:
        return result
    pixels = np.frombuffer(b"".join(thumbnails[i] or b"" for i in rows), np.uint16).reshape(-1, SIDE, SIDE)
    pairs = _pairs(_edges(pixels))
    if not len(pairs):
        return result
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(len(rows), len(rows)))
    component = connected_components(graph, directed=False)[1]
    in_pair = np.unique(pairs)
    result[rows[in_pair]] = np.unique(component[in_pair], return_inverse=True)[1]
    return result


def _edges(pixels: np.ndarray) -> np.ndarray:
    """The differences of neighbouring pixels of thumbnails (N, side, side), as vectors of length 1."""
    steps = [np.diff(pixels.astype(np.float32), axis=axis).reshape(len(pixels), -1) for axis in (1, 2)]
    vectors = np.concatenate(steps, axis=1)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return vectors


def _pairs(vectors: np.ndarray) -> np.ndarray:
    """The pairs (P, 2) of neighbours in a sorted list whose vectors are alike."""
    rng, found = np.random.default_rng(0), []
    for _ in range(_ORDERS):
        signs = vectors @ rng.normal(size=(vectors.shape[1], 64)).astype(np.float32) > 0
        order = np.argsort(np.packbits(signs, axis=1).view(">u8").ravel(), kind="stable")
        for step in range(1, _NEIGHBOURS + 1):
            first, second = order[:-step], order[step:]
            alike = np.einsum("ij,ij->i", vectors[first], vectors[second]) >= ALIKE
            found.append(np.stack([first[alike], second[alike]], 1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
