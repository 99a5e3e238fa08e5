"""Finds near copies: images that show the same scene, resized, compressed again or with other brightness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from simtrail.data.checking.appearance import SIDE

ALIKE = 0.97  # least correlation of the edges in two thumbnails of near copies
_ORDERS, _NEIGHBOURS, _BITS = 12, 4, 64
_DIFFERENT = 16  # bits of two hashes, at most: those of near copies differ in 5, and hardly ever in more than 16
_AT_ONCE = 20_000  # thumbnails whose edges are in memory


def near_copies(thumbnails: Sequence[bytes | None]) -> np.ndarray:
    """The number of its set of near copies for each image (int), and -1 for an image that has none.

    Two images are near copies if the edges in their thumbnails (differences of neighbouring pixels) have a correlation
    of at least `ALIKE`. Edges do not depend on brightness, and weigh detail more than the overall shape. Only
    neighbours in sorted lists of hashes are compared (64 signs of random projections of the edges: Charikar 2002,
    doi 10.1145/509907.509965), and of these only those with similar hashes: the time is that of sorting, nearly linear
    in the number of images.
    """
    rows = np.array([i for i, thumbnail in enumerate(thumbnails) if thumbnail is not None], int)
    result = np.full(len(thumbnails), -1)
    if len(rows) < 2:
        return result
    pixels = np.frombuffer(b"".join(thumbnails[i] or b"" for i in rows), np.uint16).reshape(-1, SIDE, SIDE)
    pairs = _pairs(pixels)
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


def _pairs(pixels: np.ndarray) -> np.ndarray:
    """The pairs (P, 2) of neighbours in a sorted list of hashes whose edges are alike."""
    candidates = []
    for hashes in _hashes(pixels).T:
        order = np.argsort(hashes, kind="stable")
        for step in range(1, _NEIGHBOURS + 1):
            pair = np.stack([order[:-step], order[step:]], 1)
            candidates.append(pair[np.bitwise_count(hashes[pair[:, 0]] ^ hashes[pair[:, 1]]) <= _DIFFERENT])
    pairs = np.unique(np.sort(np.concatenate(candidates), axis=1), axis=0)
    alike = [
        np.einsum("ij,ij->i", _edges(pixels[part[:, 0]]), _edges(pixels[part[:, 1]])) >= ALIKE for part in _parts(pairs)
    ]
    return pairs[np.concatenate(alike)] if alike else pairs


def _hashes(pixels: np.ndarray) -> np.ndarray:
    """The hashes (N, orders) of the edges of thumbnails, as unsigned integers."""
    rng, width = np.random.default_rng(0), 2 * SIDE * (SIDE - 1)
    directions = [rng.normal(size=(width, _BITS)).astype(np.float32) for _ in range(_ORDERS)]
    parts = []
    for part in _parts(pixels):
        edges = _edges(part)
        bits = [np.packbits(edges @ each > 0, axis=1).view(">u8").ravel().astype(np.uint64) for each in directions]
        parts.append(np.stack(bits, 1))
    return np.concatenate(parts)


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))
