"""Contrastive objectives: pure functions of the projections, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def nt_xent(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """The NT-Xent loss, a scalar (Chen et al. 2020, arXiv 2002.05709, equation 1).

    `projections` is (2B, D); rows i and i + B are the two views of image i. With s(a, b) the cosine similarity, each of
    the 2B views i with its partner j contributes

        −log( exp(s(i, j)/τ) / Σ_{k ≠ i} exp(s(i, k)/τ) ).

    The diagonal is masked because a view is no negative of itself. 2B equal vectors give log(2B − 1).
    """
    if projections.ndim != 2 or len(projections) % 2 or len(projections) < 4:
        raise ValueError(f"projections of shape {tuple(projections.shape)}: must be (2B, D) with B ≥ 2")
    dtype = torch.promote_types(projections.dtype, torch.float32)  # float64 stays, so that the tests can use it
    z_VD = F.normalize(projections.to(dtype), dim=1)  # V = 2B views
    logits_VV = (z_VD @ z_VD.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits_VV, partners(len(z_VD), z_VD.device))


def contrastive_top1(projections: torch.Tensor) -> torch.Tensor:
    """The share of views whose most similar other view is their partner, a scalar in [0, 1]."""
    z_VD = F.normalize(projections.float(), dim=1)
    nearest = (z_VD @ z_VD.T).fill_diagonal_(-torch.inf).argmax(1)
    return (nearest == partners(len(z_VD), z_VD.device)).float().mean()


def partners(views: int, device: torch.device) -> torch.Tensor:
    """For each of 2B rows, the row of the same image's other view."""
    return torch.arange(views, device=device).roll(views // 2)
