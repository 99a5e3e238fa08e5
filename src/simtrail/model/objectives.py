"""Contrastive objectives: pure functions of the projections, in memory that grows with B·D, not with B².

Shapes: V = 2B views, D dimensions, R rows of the similarity matrix at a time. Rows i and i + B (mod 2B) of a (2B, D)
tensor are the two views of an image. Each is the partner of the other. `groups`, (B,) integers, makes all views of the
images of a group positives of each other; without it, only the two views of an image are. Further rows, B at a time,
are local views. They are compared with the first K = 2B rows, of which those of their image or group are positives, but
not with each other; the number `images` = B is then given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from simtrail.params import Terms


class Part(NamedTuple):
    """Which of the rows of the similarity matrix a process computes, where several share them."""

    number: int  # of this process
    of: int  # so many processes
    add: Callable[[torch.Tensor], Any]  # puts the sum over all processes into a tensor


def nt_xent(
    projections: torch.Tensor,
    temperature: float,
    *,
    normalise: bool = True,
    groups: torch.Tensor | None = None,
    images: int | None = None,
    rows: int = 1024,
    part: Part | None = None,
) -> torch.Tensor:
    """The NT-Xent loss, a scalar (Chen et al. 2020, arXiv 2002.05709, equation 1).

    `projections` is (2B, D) with B ≥ 2, or more with local views; other shapes raise ValueError. s(a, b) is the cosine
    similarity, or without `normalise` the dot product (Table 5). Each view i, with its partner j, contributes

        −log( exp(s(i, j)/τ) / Σ_{k ≠ i} exp(s(i, k)/τ) ).

    With `groups`, it is the mean of this over all positives j of i (Khosla et al. 2020, arXiv 2004.11362, equation 2,
    with groups in place of labels). A view is not a negative of itself, so 2B equal vectors give log(2B − 1). The loss
    is computed in float32 (float64 stays float64), also under autocast. `rows` is the number of rows of the similarity
    matrix in memory at a time; it changes the result only by rounding. With a `part`, every process that has the same
    projections computes only some of these rows, and all get the same loss and gradient.
    """
    return _mean_loss(projections, temperature, normalise, groups, images, rows, part, decoupled=False)


def dcl(
    projections: torch.Tensor,
    temperature: float,
    *,
    normalise: bool = True,
    groups: torch.Tensor | None = None,
    images: int | None = None,
    rows: int = 1024,
    part: Part | None = None,
) -> torch.Tensor:
    """The decoupled contrastive loss, a scalar (Yeh et al. 2022, arXiv 2110.06848, section 3).

    As `nt_xent`, but the sum runs over k ≠ i that are no positives of i. In its own denominator, a positive pair would
    weaken every gradient in small batches. Without groups, 2B equal vectors give log(2B − 2). Raises ValueError if all
    images are of one group.
    """
    return _mean_loss(projections, temperature, normalise, groups, images, rows, part, decoupled=True)


OBJECTIVES = {"nt_xent": nt_xent, "dcl": dcl}


def terms(
    projections: torch.Tensor,
    widths: Sequence[int],
    weights: Terms,
    objective: Callable[..., torch.Tensor],
    local: Callable[[torch.Tensor], torch.Tensor],
    groups: torch.Tensor | None = None,
    images: int | None = None,
    teacher: torch.Tensor | None = None,
    teacher_weight: float = 1.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss Σ weight · term, a scalar, and the terms whose weight is above 0, by name, without gradient.

    `projections` is (2B, Σ widths + rest). First come the projections z of the whole encoder, if `weights.whole`. Then
    come the projections z_m of each of M modalities, if intra or cross is above 0, and the features of a teacher as
    predicted, if its features `teacher` (B, T) are given. The rest, if local is above 0, are patches, from which
    `local` computes a scalar. `groups` and `images` go to the objective. With L the objective of a (2B, D) tensor,
    whose halves are the two views:

        fused = L(z),  intra = mean_m L(z_m),  cross = mean_{m ≠ n} L(first half of z_m, second half of z_n).

    The term teacher is that of `distillation`. Local views are part of it, and of fused and intra. The mean for cross
    is over all ordered pairs, so that both views of each modality are compared (as in Tian et al. 2020, arXiv
    1906.05849, eq. 6, over the full graph of views).
    """
    if groups is not None:
        objective = partial(objective, groups=groups)
    of_all_views = objective if images is None else partial(objective, images=images)
    images = images or len(projections) // 2
    heads, rest = list(projections[:, : sum(widths)].split(list(widths), 1)), projections[:, sum(widths) :]
    whole = [heads.pop(0)] if weights.whole else []
    values = {}
    if weights.fused:
        values["fused"] = of_all_views(*whole)
    if weights.intra:
        values["intra"] = torch.stack([of_all_views(z_VD) for z_VD in heads]).mean()
    if weights.cross:
        pairs = [torch.cat([a_VD[:images], b_VD[images : 2 * images]]) for a_VD, b_VD in permutations(heads, 2)]
        values["cross"] = torch.stack([objective(z_VD) for z_VD in pairs]).mean()
    if teacher is not None:
        predicted, rest = rest[:, : teacher.shape[1]], rest[:, teacher.shape[1] :]
        values["teacher"] = distillation(predicted, teacher)
    if weights.local:
        values["local"] = local(rest)
    weight = weights.model_dump() | {"teacher": teacher_weight}
    loss = torch.stack([weight[name] * value for name, value in values.items()]).sum()
    return loss, {name: value.detach() for name, value in values.items()}


def distillation(predicted: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 minus the cosine similarity of what is predicted for a view and the teacher's features of its image, the mean.

    `predicted` is (V, T), B rows at a time, and `teacher` (B, T); in float32. A term of Ranzinger et al. 2024 (arXiv
    2312.06709, section 3.3).
    """
    with torch.autocast(predicted.device.type, enabled=False):
        wide = predicted.to(torch.promote_types(predicted.dtype, torch.float32)).unflatten(0, (-1, len(teacher)))
        return 1 - F.cosine_similarity(wide, teacher.to(wide.dtype), dim=2).mean()


@torch.no_grad()
def contrastive_top1(
    projections: torch.Tensor, *, groups: torch.Tensor | None = None, rows: int = 1024, part: Part | None = None
) -> torch.Tensor:
    """The fraction of views whose most similar other view, by cosine, is a positive, a scalar in [0, 1].

    `projections` is (2B, D), B ≥ 2; `groups`, `rows` and `part` are as in `nt_xent`.
    """
    z_VD = _prepared(projections, normalise=True)
    group_B = torch.arange(len(z_VD) // 2, device=z_VD.device) if groups is None else groups
    group_V = group_B.repeat(2)
    correct = z_VD.new_zeros(len(z_VD))
    for piece, s_RV in _similarities(z_VD, (0,), rows, part=part):
        correct[piece] = (group_V[s_RV.argmax(1)] == group_V[piece]).to(correct.dtype)
    if part:
        part.add(correct)
    return correct.mean()


def _prepared(projections: torch.Tensor, normalise: bool, images: int | None = None) -> torch.Tensor:
    of_image = 2 if images is None else len(projections) // max(1, images)
    if projections.ndim != 2 or of_image < 2 or len(projections) % (images or 2) or len(projections) < 2 * of_image:
        raise ValueError(f"projections of shape {tuple(projections.shape)}: must be (2B, D) with B ≥ 2")
    z_VD = projections.to(torch.promote_types(projections.dtype, torch.float32))
    return F.normalize(z_VD, dim=1) if normalise else z_VD


def _mean_loss(
    projections: torch.Tensor,
    temperature: float,
    normalise: bool,
    groups: torch.Tensor | None,
    images: int | None,
    rows: int,
    part: Part | None,
    decoupled: bool,
) -> torch.Tensor:
    with torch.autocast(projections.device.type, enabled=False):
        z_VD = _prepared(projections, normalise, images) * temperature**-0.5  # so that dot products are s/τ
        images = images or len(z_VD) // 2
        if groups is None and len(z_VD) == 2 * images:
            return _Contrast.apply(z_VD, None, 2 * images, (0, images, -images) if decoupled else (0,), rows, part)
        group_B = torch.arange(images, device=z_VD.device) if groups is None else groups
        if decoupled and bool((group_B == group_B[0]).all()):
            raise ValueError("all images are of one group: the decoupled loss has no negatives")
        group_V = group_B.repeat(len(z_VD) // images)
        return _Contrast.apply(z_VD, group_V, 2 * images, None if decoupled else (0,), rows, part)


def _similarities(
    z_VD: torch.Tensor,
    left_out: tuple[int, ...] | None,
    rows: int,
    keys: int | None = None,
    group_V: torch.Tensor | None = None,
    part: Part | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The similarities of all rows of z to the first `keys` of them in (R, K) pieces, each after the slice of its rows.

    With a `part`, only some of the rows. Similarities are −∞ on the diagonals `left_out`, or, if this is None, where
    both are of one group.
    """
    keys = len(z_VD) if keys is None else keys
    number, count = (part.number, part.of) if part else (0, 1)
    rows = min(rows, -(-len(z_VD) // count))
    for start in range(number * rows, len(z_VD), count * rows):
        piece = slice(start, start + rows)
        s_RK = z_VD[piece] @ z_VD[:keys].T
        if left_out is None:
            assert group_V is not None
            s_RK.masked_fill_(group_V[piece, None] == group_V[:keys], -torch.inf)
        for offset in left_out or ():
            if start + offset < keys:  # local views are no keys
                s_RK.diagonal(start + offset).fill_(-torch.inf)
        yield piece, s_RK


def _mean_positives(z_VD: torch.Tensor, group_V: torch.Tensor | None, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row the mean of its positives, and the sum of the rows of which it is one, each divided by their number.

    Both are (V, D), and the same without local views: the two halves of a group then have as many positives.
    """
    if group_V is None:
        partner_VD = z_VD.roll(len(z_VD) // 2, 0)
        return partner_VD, partner_VD
    _, number_V = group_V.unique(return_inverse=True)
    number_K, number_L = number_V.split([keys, len(z_VD) - keys])
    z_KD, z_LD = z_VD.split([keys, len(z_VD) - keys])
    zeros_GD = z_VD.new_zeros(int(number_V.max()) + 1, z_VD.shape[1])
    sum_GD, local_GD = (zeros_GD.index_add(0, number, z) for number, z in ((number_K, z_KD), (number_L, z_LD)))
    count_G1 = number_K.bincount(minlength=len(zeros_GD))[:, None]
    others_KD = (sum_GD[number_K] - z_KD) / (count_G1[number_K] - 1)
    mean_VD = torch.cat([others_KD, (sum_GD / count_G1)[number_L]])
    return mean_VD, torch.cat([others_KD + (local_GD / count_G1)[number_K], torch.zeros_like(z_LD)])


class _Contrast(torch.autograd.Function):
    """mean_i( log Σ_k exp(z_i·z_k) − z_i·m_i ); m_i is the mean of the positives of i, k is a key that is not left out.

    With P the softmax over k, and n_k the sum of the rows of which k is a positive, each divided by the number of its
    positives, the gradient is ( P z + Pᵀ z − m − n ) / V, because a key is in all rows. The loss is a scalar, so the
    gradient is known before backward, up to a factor. Therefore each piece is computed only once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z_VD: torch.Tensor,
        group_V: torch.Tensor | None,
        keys: int,
        left_out: tuple[int, ...] | None,
        rows: int,
        part: Part | None,
    ) -> torch.Tensor:
        mean_VD, of_which_VD = _mean_positives(z_VD, group_V, keys)
        loss_V = -(z_VD * mean_VD).sum(1)
        grad_VD = (mean_VD + of_which_VD).neg_()
        if part and part.number:  # what all have counts once
            loss_V, grad_VD = torch.zeros_like(loss_V), torch.zeros_like(grad_VD)
        for piece, s_RK in _similarities(z_VD, left_out, rows, keys, group_V, part):
            largest_R1 = s_RK.amax(1, keepdim=True)
            e_RK = s_RK.sub_(largest_R1).exp_()
            sum_R1 = e_RK.sum(1, keepdim=True)
            loss_V[piece] += (largest_R1 + sum_R1.log()).squeeze(1)
            if ctx.needs_input_grad[0]:
                grad_VD[piece] += e_RK @ z_VD[:keys] / sum_R1
                grad_VD[:keys].addmm_(e_RK.T, z_VD[piece] / sum_R1)
        if part:
            part.add(loss_V)
            part.add(grad_VD)
        ctx.save_for_backward(grad_VD.div_(len(z_VD)))
        return loss_V.mean()

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None, None]:
        if torch.is_grad_enabled():  # with create_graph=True, autograd would treat this gradient as a constant
            raise RuntimeError("contrastive objectives have no second derivative")
        (grad_VD,) = ctx.saved_tensors
        return grad_VD * factor, None, None, None, None, None
