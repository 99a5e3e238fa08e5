"""Label-free measures of an embedding."""

from __future__ import annotations

import numpy as np


def effective_rank(features: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values, 1 to min(N, D) (RankMe, arXiv 2210.02885, eq. 1)."""
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    p = values / max(values.sum(), 1e-300)
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def uniformity(features: np.ndarray, seed: int = 0, pairs: int = 1_000_000) -> float:
    """log of the mean of exp(−2 d²) over pairs of distinct images, d their distance on the unit sphere; ≤ 0, lower is
    more uniform (arXiv 2005.10242, eq. 2). Beyond `pairs` pairs, over a seeded sample of that many."""
    z = features.astype(np.float64)
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    n = len(z)
    if n * (n - 1) // 2 <= pairs:
        i, j = np.triu_indices(n, 1)
    else:
        rng = np.random.default_rng(seed)
        i = rng.integers(0, n, pairs)
        j = (i + rng.integers(1, n, pairs)) % n
    cosine = np.concatenate(
        [(z[a] * z[b]).sum(1) for a, b in zip(np.array_split(i, 64), np.array_split(j, 64), strict=True)]
    )
    return float(np.log(np.exp(-2 * (2 - 2 * cosine)).mean()))


def feature_std(features: np.ndarray) -> float:
    """The mean over dimensions of the standard deviation of unit-length features; 0 is collapse, 1/√D isotropic."""
    z = features.astype(np.float64)
    return float((z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)).std(0).mean())
