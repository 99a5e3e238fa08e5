"""Contrastive objectives: pure functions of the projections, in memory that grows with B·D, not with B².

Shapes: V = 2B views, D dimensions, R rows of the similarity matrix at a time. Rows i and i + B (mod 2B) of a (2B, D)
tensor are the two views of an image. Each is the partner of the other. `groups`, (B,) integers, makes all views of the
images of a group positives of each other; without it, only the two views of an image are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F

from simtrail.params import Terms


def nt_xent(
    projections: torch.Tensor,
    temperature: float,
    *,
    normalise: bool = True,
    groups: torch.Tensor | None = None,
    rows: int = 1024,
) -> torch.Tensor:
    """The NT-Xent loss, a scalar (Chen et al. 2020, arXiv 2002.05709, equation 1).

    `projections` is (2B, D) with B ≥ 2; other shapes raise ValueError. s(a, b) is the cosine similarity, or without
    `normalise` the dot product (Table 5). Each of the 2B views i, with its partner j, contributes

        −log( exp(s(i, j)/τ) / Σ_{k ≠ i} exp(s(i, k)/τ) ).

    With `groups`, it is the mean of this over all positives j of i (Khosla et al. 2020, arXiv 2004.11362, equation 2,
    with groups in place of labels). A view is not a negative of itself, so 2B equal vectors give log(2B − 1). The loss
    is computed in float32 (float64 stays float64), also under autocast. `rows` is the number of rows of the similarity
    matrix in memory at a time; it changes the result only by rounding.
    """
    return _mean_loss(projections, temperature, normalise, groups, rows, decoupled=False)


def dcl(
    projections: torch.Tensor,
    temperature: float,
    *,
    normalise: bool = True,
    groups: torch.Tensor | None = None,
    rows: int = 1024,
) -> torch.Tensor:
    """The decoupled contrastive loss, a scalar (Yeh et al. 2022, arXiv 2110.06848, section 3).

    As `nt_xent`, but the sum runs over k ≠ i that are no positives of i. In its own denominator, a positive pair would
    weaken every gradient in small batches. Without groups, 2B equal vectors give log(2B − 2). Raises ValueError if all
    images are of one group.
    """
    return _mean_loss(projections, temperature, normalise, groups, rows, decoupled=True)


OBJECTIVES = {"nt_xent": nt_xent, "dcl": dcl}


def terms(
    projections: torch.Tensor,
    widths: Sequence[int],
    weights: Terms,
    objective: Callable[..., torch.Tensor],
    local: Callable[[torch.Tensor], torch.Tensor],
    groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss Σ weight · term, a scalar, and the terms whose weight is above 0, by name, without gradient.

    `projections` is (2B, Σ widths + rest). First come the projections z of the whole encoder, if `weights.whole`. Then
    come the projections z_m of each of M modalities, if intra or cross is above 0. The rest, if local is above 0, are
    patches, from which `local` computes a scalar. `groups` goes to the objective. With L the objective of a (2B, D)
    tensor, whose halves are the two views:

        fused = L(z),  intra = mean_m L(z_m),  cross = mean_{m ≠ n} L(first half of z_m, second half of z_n).

    The mean for cross is over all ordered pairs, so that both views of each modality are compared (as in Tian et al.
    2020, arXiv 1906.05849, eq. 6, over the full graph of views).
    """
    if groups is not None:
        objective = partial(objective, groups=groups)
    heads, rest = list(projections[:, : sum(widths)].split(list(widths), 1)), projections[:, sum(widths) :]
    whole = [heads.pop(0)] if weights.whole else []
    values = {}
    if weights.fused:
        values["fused"] = objective(*whole)
    if weights.intra:
        values["intra"] = torch.stack([objective(z_VD) for z_VD in heads]).mean()
    if weights.cross:
        images = len(projections) // 2
        pairs = [torch.cat([a_VD[:images], b_VD[images:]]) for a_VD, b_VD in permutations(heads, 2)]
        values["cross"] = torch.stack([objective(z_VD) for z_VD in pairs]).mean()
    if weights.local:
        values["local"] = local(rest)
    loss = torch.stack([getattr(weights, name) * value for name, value in values.items()]).sum()
    return loss, {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def contrastive_top1(
    projections: torch.Tensor, *, groups: torch.Tensor | None = None, rows: int = 1024
) -> torch.Tensor:
    """The fraction of views whose most similar other view, by cosine, is a positive, a scalar in [0, 1].

    `projections` is (2B, D), B ≥ 2; `groups` and `rows` are as in `nt_xent`.
    """
    z_VD = _prepared(projections, normalise=True)
    group_B = torch.arange(len(z_VD) // 2, device=z_VD.device) if groups is None else groups
    group_V = group_B.repeat(2)
    correct = [group_V[s_RV.argmax(1)] == group_V[piece] for piece, s_RV in _similarities(z_VD, (0,), rows)]
    return torch.cat(correct).float().mean()


def _prepared(projections: torch.Tensor, normalise: bool) -> torch.Tensor:
    if projections.ndim != 2 or len(projections) % 2 or len(projections) < 4:
        raise ValueError(f"projections of shape {tuple(projections.shape)}: must be (2B, D) with B ≥ 2")
    z_VD = projections.to(torch.promote_types(projections.dtype, torch.float32))
    return F.normalize(z_VD, dim=1) if normalise else z_VD


def _mean_loss(
    projections: torch.Tensor,
    temperature: float,
    normalise: bool,
    groups: torch.Tensor | None,
    rows: int,
    decoupled: bool,
) -> torch.Tensor:
    with torch.autocast(projections.device.type, enabled=False):
        z_VD = _prepared(projections, normalise) * temperature**-0.5  # so that dot products are s/τ
        images = len(z_VD) // 2
        if groups is None:
            return _Contrast.apply(z_VD, None, (0, images, -images) if decoupled else (0,), rows)
        if decoupled and bool((groups == groups[0]).all()):
            raise ValueError("all images are of one group: the decoupled loss has no negatives")
        return _Contrast.apply(z_VD, groups.repeat(2), None if decoupled else (0,), rows)


def _similarities(
    z_VD: torch.Tensor, left_out: tuple[int, ...] | None, rows: int, group_V: torch.Tensor | None = None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The matrix z zᵀ in (R, V) pieces, each after the slice of its rows.

    It is −∞ on the diagonals `left_out`, or, if this is None, where both are of one group.
    """
    for start in range(0, len(z_VD), rows):
        piece = slice(start, start + rows)
        s_RV = z_VD[piece] @ z_VD.T
        if left_out is None:
            assert group_V is not None
            s_RV.masked_fill_(group_V[piece, None] == group_V, -torch.inf)
        for offset in left_out or ():
            s_RV.diagonal(start + offset).fill_(-torch.inf)
        yield piece, s_RV


def _mean_positives(z_VD: torch.Tensor, group_V: torch.Tensor | None) -> torch.Tensor:
    """For each view the mean of its positives, (V, D)."""
    if group_V is None:
        return z_VD.roll(len(z_VD) // 2, 0)
    _, number_V, count_G = group_V.unique(return_inverse=True, return_counts=True)
    sum_GD = z_VD.new_zeros(len(count_G), z_VD.shape[1]).index_add_(0, number_V, z_VD)
    return (sum_GD[number_V] - z_VD) / (count_G[number_V, None] - 1)


class _Contrast(torch.autograd.Function):
    """mean_i( log Σ_k exp(z_i·z_k) − z_i·m_i ); m_i is the mean of the positives of i, k is not `left_out`.

    With P the softmax over k, the gradient is ( (P + Pᵀ) z − 2 m ) / V, because every view is a query in its own row
    and a key in all other rows, and because all views of a group have as many positives. The loss is a scalar, so the
    gradient is known before backward, up to a factor. Therefore each piece is computed only once.
    """

    @staticmethod
    def forward(
        ctx: Any, z_VD: torch.Tensor, group_V: torch.Tensor | None, left_out: tuple[int, ...] | None, rows: int
    ) -> torch.Tensor:
        mean_VD = _mean_positives(z_VD, group_V)
        loss_V = -(z_VD * mean_VD).sum(1)
        grad_VD = mean_VD.mul_(-2)
        for piece, s_RV in _similarities(z_VD, left_out, rows, group_V):
            largest_R1 = s_RV.amax(1, keepdim=True)
            e_RV = s_RV.sub_(largest_R1).exp_()
            sum_R1 = e_RV.sum(1, keepdim=True)
            loss_V[piece] += (largest_R1 + sum_R1.log()).squeeze(1)
            if ctx.needs_input_grad[0]:
                grad_VD[piece] += e_RV @ z_VD / sum_R1
                grad_VD.addmm_(e_RV.T, z_VD[piece] / sum_R1)
        ctx.save_for_backward(grad_VD.div_(len(z_VD)))
        return loss_V.mean()

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if torch.is_grad_enabled():  # with create_graph=True, autograd would treat this gradient as a constant
            raise RuntimeError("contrastive objectives have no second derivative")
        (grad_VD,) = ctx.saved_tensors
        return grad_VD * factor, None, None, None
