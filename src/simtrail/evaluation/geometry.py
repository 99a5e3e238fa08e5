"""Label-free measures of embeddings: (N, D) arrays, or tensors on any device; computed in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

Vectors = np.ndarray | torch.Tensor

ROWS = 8192  # processed at a time: 32 MiB of float64 at 512 dimensions


def effective_rank(vectors: Vectors) -> float:
    """exp of the entropy of the normalised singular values, 1 to min(N, D) (RankMe, arXiv 2210.02885, eq. 1)."""
    triangle = None  # R of the rows so far: it has the same singular values
    for part in parts(vectors):
        triangle = torch.linalg.qr(part if triangle is None else torch.cat([triangle, part]), mode="r").R
    values = torch.linalg.svdvals(triangle)
    p = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(p).sum().exp())


def uniformity(vectors: Vectors, seed: int = 0, largest: int = 8192) -> float:
    """The log of the mean of exp(−2 d²) over all pairs of images; ≤ 0, lower is more uniform.

    d is the distance of the two images on the unit sphere (arXiv 2005.10242, eq. 2). With more than `largest` images,
    all pairs of a seeded sample.
    """
    if len(vectors) > largest:
        vectors = vectors[np.random.default_rng(seed).choice(len(vectors), largest, replace=False)]
    z_ND = unit(vectors)
    n = len(z_ND)
    total = torch.zeros((), dtype=z_ND.dtype, device=z_ND.device)
    for start in range(0, n, 512):
        cosine = z_ND[start : start + 512] @ z_ND[start:].T  # above the diagonal: each pair once
        total += cosine.mul_(4).sub_(4).exp_().triu_(1).sum()  # −2 d² = 4 cos − 4
    return float((total / (n * (n - 1) / 2)).log())


def alignment(first: Vectors, second: Vectors) -> float:
    """The mean squared distance between the two views of an image on the unit sphere, 0 to 4; lower is closer.

    Row i of `first` and row i of `second` are the views of image i (arXiv 2005.10242, eq. 1, α = 2).
    """
    pairs = zip(parts(first), parts(second), strict=True)
    return float(sum((unit(a) - unit(b)).square().sum() for a, b in pairs) / len(first))


def feature_std(vectors: Vectors) -> float:
    """The standard deviation of unit-length features, averaged over dimensions; 0 is collapse, 1/√D is isotropic."""
    origin = unit(vectors[:1])  # the deviations are from the first vector: collapsed features give exactly 0
    total, squares = torch.zeros_like(origin[0]), torch.zeros_like(origin[0])
    for part in parts(vectors):
        shifted = unit(part) - origin
        total += shifted.sum(0)
        squares += shifted.square().sum(0)
    n = len(vectors)
    return float((squares / n - (total / n).square()).clamp_min(0).sqrt().mean())


def unit(vectors: Vectors, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The vectors at unit length, on their device; a zero vector stays zero."""
    return F.normalize(tensor(vectors, dtype), dim=1, eps=1e-12)


def parts(vectors: Vectors, dtype: torch.dtype = torch.float64) -> Iterator[torch.Tensor]:
    """The vectors as tensors of `ROWS` rows, one after another, so that memory holds no second copy of all of them."""
    for start in range(0, len(vectors), ROWS):
        yield tensor(vectors[start : start + ROWS], dtype)


def tensor(vectors: Vectors, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The vectors as a tensor, on their device (arrays: on the CPU); copied only if necessary."""
    if isinstance(vectors, np.ndarray):
        vectors = torch.from_numpy(np.require(vectors, requirements="W"))
    return vectors.to(dtype)
