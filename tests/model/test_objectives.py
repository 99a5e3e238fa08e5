from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from simtrail.model.objectives import OBJECTIVES, Part, contrastive_top1, dcl, nt_xent, terms
from simtrail.params import Terms

BOTH = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
NO_PATCHES = None  # never called
NORMALISE = pytest.mark.parametrize("normalise", [True, False])


def views(images: int, dimensions: int = 5) -> torch.Tensor:
    return torch.randn(2 * images, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(images))


def loss_by_equation(objective, z: torch.Tensor, temperature: float, normalise: bool) -> float:
    """The equations of arXiv 2002.05709 (1) and 2110.06848 with nested loops."""
    rows = [[float(x) for x in row] for row in z]
    count, images = len(rows), len(rows) // 2

    def similarity(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b) if normalise else 1)

    total = 0.0
    for i in range(count):
        j = (i + images) % count
        keys = [k for k in range(count) if k != i and not (k == j and objective is dcl)]
        denominator = sum(math.exp(similarity(rows[i], rows[k]) / temperature) for k in keys)
        total -= math.log(math.exp(similarity(rows[i], rows[j]) / temperature) / denominator)
    return total / count


def dense(objective, z: torch.Tensor, temperature: float, normalise: bool) -> torch.Tensor:
    """The same loss from the whole matrix at once, with the gradient computed by autograd."""
    z = F.normalize(z, dim=1) if normalise else z
    logits, partner = z @ z.T / temperature, torch.eye(len(z)).roll(len(z) // 2, 0).bool()
    left_out = torch.eye(len(z)).bool() | (partner if objective is dcl else False)
    return (logits.masked_fill(left_out, -torch.inf).logsumexp(1) - logits[partner]).mean()


@BOTH
@NORMALISE
@pytest.mark.parametrize("images", [2, 3, 8])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_the_loss_equals_its_equation(objective, normalise, images, temperature):
    expected = loss_by_equation(objective, views(images), temperature, normalise)
    assert objective(views(images), temperature, normalise=normalise).item() == pytest.approx(expected, rel=1e-12)


@BOTH
@NORMALISE
@pytest.mark.parametrize("rows", [1, 3, 7, 10, 13, 20, 64])
def test_loss_and_gradient_do_not_depend_on_how_many_rows_are_held(objective, normalise, rows):
    z, same_z = views(10).requires_grad_(), views(10).requires_grad_()
    loss, expected = objective(z, 0.3, normalise=normalise, rows=rows), dense(objective, same_z, 0.3, normalise)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(z.grad, same_z.grad)


@BOTH
@NORMALISE
def test_the_gradient_equals_finite_differences(objective, normalise):
    z = views(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: objective(z, 0.3, normalise=normalise, rows=4), z)


@BOTH
def test_the_gradient_is_scaled_with_the_loss_and_flows_back_to_earlier_operations(objective):
    z, w = views(4), torch.ones(5, dtype=torch.float64, requires_grad=True)
    (once,) = torch.autograd.grad(objective(z * w, 0.3), w)
    (scaled,) = torch.autograd.grad(1024 * objective(z * w, 0.3), w)
    (expected,) = torch.autograd.grad(dense(objective, z * w, 0.3, normalise=True), w)
    torch.testing.assert_close(once, expected)
    torch.testing.assert_close(scaled, 1024 * once)


@BOTH
def test_a_second_derivative_raises_an_error(objective):
    z = views(3).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(objective(z, 0.3), z, create_graph=True)


@pytest.mark.parametrize("images", [2, 7, 64])
def test_equal_vectors_give_the_log_of_the_number_of_other_views(images):
    equal = torch.ones(2 * images, 3, dtype=torch.float64)
    assert nt_xent(equal, 0.1).item() == pytest.approx(math.log(2 * images - 1), rel=1e-12)
    assert dcl(equal, 0.1).item() == pytest.approx(math.log(2 * images - 2), rel=1e-12)


@BOTH
@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_float32_is_exact_enough_at_extreme_temperatures(objective, temperature):
    z = views(32, 16)
    torch.testing.assert_close(objective(z.float(), temperature).double(), objective(z, temperature), rtol=1e-5, atol=0)


@BOTH
def test_length_does_not_matter_unless_normalise_is_off(objective):
    z = views(4)
    scaled = z * torch.arange(1, 9)[:, None]
    torch.testing.assert_close(objective(z, 0.2), objective(scaled, 0.2))
    assert objective(z, 0.2, normalise=False) != objective(scaled, 0.2, normalise=False)


@BOTH
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(objective, half):
    z = views(8, 16).to(half).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(z, 0.05)
    loss.backward()
    assert (loss.dtype, z.grad.dtype) == (torch.float32, half)
    torch.testing.assert_close(loss.double(), objective(z.double(), 0.05), rtol=1e-5, atol=0)


@BOTH
def test_without_gradients_the_loss_is_the_same_and_has_none(objective):
    z = views(4).requires_grad_()
    with torch.no_grad():
        loss = objective(z, 0.2)
    assert not loss.requires_grad
    assert not objective(z.detach(), 0.2).requires_grad
    assert loss == objective(z, 0.2)


@pytest.mark.parametrize("function", [lambda z: nt_xent(z, 0.1), lambda z: dcl(z, 0.1), contrastive_top1])
@pytest.mark.parametrize("shape", [(2, 4), (5, 4), (4,)])
def test_shapes_without_two_views_of_two_images_are_refused(function, shape):
    with pytest.raises(ValueError, match="must be"):
        function(torch.zeros(shape))


@pytest.mark.parametrize("rows", [1, 4, 1024])
def test_top1_is_the_fraction_of_views_whose_partner_is_the_most_similar(rows):
    a, b, c = torch.eye(3)
    assert contrastive_top1(torch.stack([a, b, c, a, b, c]), rows=rows) == 1
    assert contrastive_top1(torch.stack([a, a + 0.1 * b, b, b + 0.1 * a]), rows=rows) == 0
    assert contrastive_top1(torch.stack([a, b, c, a, b + 2 * c, c]), rows=rows) == pytest.approx(5 / 6)


def test_top1_depends_on_the_angle_and_not_on_the_length():
    a, b, _ = torch.eye(3)
    assert contrastive_top1(torch.stack([a, 100 * b + 20 * a, a, b])) == 1


@BOTH
@pytest.mark.parametrize(
    "weights", [(1.0, 0.5, 0.25), (1.0, 0.0, 0.0), (0.0, 0.0, 2.0), (0.0, 1.0, 1.0), (3.0, 0.0, 1.0)]
)
def test_the_terms_equal_their_definition(objective, weights):
    """Nested loops over images, views and three modalities, with the pairs that are partners in each term."""
    images, chosen = 4, Terms(**dict(zip(("fused", "intra", "cross"), weights, strict=True)))
    fused, *modalities = z = [views(images, 5).roll(i, 0) * (i + 1) - i for i in range(4)]
    tau = 0.4

    def loss_of(first: torch.Tensor, second: torch.Tensor) -> float:
        """The loss when image i's partners are its view 1 in `first` and its view 2 in `second`."""
        rows = [first[i] for i in range(images)] + [second[images + i] for i in range(images)]
        return loss_by_equation(objective, torch.stack(rows), tau, True)

    cross = [(loss_of(m, n) + loss_of(n, m)) / 2 for i, m in enumerate(modalities) for n in modalities[i + 1 :]]
    expected = {
        "fused": loss_of(fused, fused),
        "intra": sum(loss_of(m, m) for m in modalities) / 3,
        "cross": sum(cross) / 3,
    }
    expected = {name: value for name, value in expected.items() if getattr(chosen, name)}
    heads = z[not chosen.fused : 4 if chosen.intra or chosen.cross else 1]
    loss, values = terms(torch.cat(heads, 1), [5] * len(heads), chosen, partial(objective, temperature=tau), NO_PATCHES)
    assert {name: value.item() for name, value in values.items()} == pytest.approx(expected, rel=1e-12)
    assert loss.item() == pytest.approx(sum(getattr(chosen, k) * v for k, v in expected.items()), rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "trained"),
    [((1.0, 0.0, 0.0), "f"), ((0.0, 1.0, 0.0), "mn"), ((0.0, 0.0, 1.0), "mn"), ((0.1, 0.2, 0.0), "fmn")],
)
def test_a_term_gives_a_gradient_only_to_its_projections(weights, trained):
    chosen = Terms(**dict(zip(("fused", "intra", "cross"), weights, strict=True)))
    z = {name: views(3 + i, 5)[:6].requires_grad_() for i, name in enumerate("fmn")}
    heads = [z[name] for name in trained]
    loss, _ = terms(torch.cat(heads, 1), [5] * len(heads), chosen, partial(nt_xent, temperature=0.3), NO_PATCHES)
    loss.backward()
    assert [name for name in "fmn" if z[name].grad is not None and z[name].grad.abs().sum() > 0] == list(trained)


@pytest.mark.parametrize(("fused", "intra"), [(1.0, 0.0), (1.0, 2.0), (0.0, 2.0), (0.0, 0.0)])
def test_the_local_term_is_computed_from_the_columns_after_the_projections_of_images(fused, intra):
    chosen = Terms(fused=fused, intra=intra, cross=0.0, local=0.5)
    heads = [views(4, 5)] * (chosen.whole + (2 if intra else 0))
    columns = views(4, 7)
    loss, values = terms(
        torch.cat([*heads, columns], 1), [5] * len(heads), chosen, partial(nt_xent, temperature=0.3),
        lambda rest: 100 * (rest - columns).abs().max() + rest.sum(),
    )  # fmt: skip
    assert values["local"].item() == pytest.approx(columns.sum().item())
    assert set(values) == {"local"} | {name for name in ("fused", "intra") if getattr(chosen, name)}
    assert loss.item() == pytest.approx(sum(getattr(chosen, k) * v.item() for k, v in values.items()))


def test_the_cross_term_is_low_only_if_the_modalities_of_an_image_agree():
    one, weights = views(16, 8)[:16].repeat(2, 1), Terms(fused=0.0, intra=0.0, cross=1.0)
    shifted = one.roll(1, 0)  # both views agree with the views of the next image
    agree, differ = (
        terms(torch.cat([one, other], 1), [8, 8], weights, partial(nt_xent, temperature=0.2), NO_PATCHES)[0]
        for other in (one, shifted)
    )
    assert agree < 0.5 * differ


GROUPS = [[0, 0, 1, 1, 2], [3, 7, 3, 3, 9], [0, 1, 2, 3, 4]]


def loss_of_groups(z: torch.Tensor, groups: list[int], temperature: float, decoupled: bool) -> torch.Tensor:
    """Equation 2 of arXiv 2004.11362, one pair at a time; decoupled: without positives in the denominator.

    Rows after the first two of each image are local views, which are no keys.
    """
    z, group = F.normalize(z, dim=1), groups * (len(z) // len(groups))
    terms_of_views = []
    for i in range(len(z)):
        others = [k for k in range(2 * len(groups)) if k != i]
        positives = [j for j in others if group[j] == group[i]]
        keys = [k for k in others if not (decoupled and k in positives)]
        denominator = torch.stack([(z[i] @ z[k] / temperature).exp() for k in keys]).sum()
        each = [-((z[i] @ z[j] / temperature).exp() / denominator).log() for j in positives]
        terms_of_views.append(torch.stack(each).mean())
    return torch.stack(terms_of_views).mean()


@BOTH
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("rows", [3, 1024])
def test_loss_and_gradient_of_groups_equal_their_equation(objective, groups, rows):
    z, same_z = views(5).requires_grad_(), views(5).requires_grad_()
    loss = objective(z, 0.3, groups=torch.tensor(groups), rows=rows)
    expected = loss_of_groups(same_z, groups, 0.3, objective is dcl)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(z.grad, same_z.grad)
    assert torch.autograd.gradcheck(lambda z: objective(z, 0.3, groups=torch.tensor(groups), rows=rows), z)


@BOTH
@pytest.mark.parametrize("groups", [GROUPS[0], None])
@pytest.mark.parametrize("count", [2, 3, 20])  # the last one: more processes than rows
@pytest.mark.parametrize("local", [0, 2])
def test_the_parts_of_several_processes_sum_to_the_whole(objective, groups, count, local):
    z = torch.randn(5 * (2 + local), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(local))
    settings = {"groups": None if groups is None else torch.tensor(groups), "images": 5, "rows": 3}
    whole, parts, added = z.clone().requires_grad_(), z.clone().requires_grad_(), []
    loss = objective(whole, 0.3, **settings)
    of_parts = [objective(parts, 0.3, **settings, part=Part(i, count, added.append)) for i in range(count)]
    torch.testing.assert_close(torch.stack(of_parts).sum(), loss)
    loss.backward()
    torch.stack(of_parts).sum().backward()
    torch.testing.assert_close(parts.grad, whole.grad)
    assert [len(each) for each in added] == 2 * count * [len(z)]  # losses and gradients of rows, for the sum of all
    two = z[:10]
    right = [contrastive_top1(two, part=Part(i, count, added.append)) for i in range(count)]
    torch.testing.assert_close(torch.stack(right).sum(), contrastive_top1(two))


@BOTH
@pytest.mark.parametrize("groups", [*GROUPS, None])
@pytest.mark.parametrize("local", [1, 3])
@pytest.mark.parametrize("rows", [3, 7, 1024])
def test_loss_and_gradient_of_local_views_equal_their_equation(objective, groups, local, rows):
    count = 5 * (2 + local)
    z = torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(local)).requires_grad_()
    same_z = z.detach().clone().requires_grad_()
    settings = {"groups": None if groups is None else torch.tensor(groups), "images": 5, "rows": rows}
    loss = objective(z, 0.3, **settings)
    expected = loss_of_groups(same_z, groups or list(range(5)), 0.3, objective is dcl)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(z.grad, same_z.grad)


@BOTH
def test_without_local_views_the_number_of_images_changes_nothing(objective):
    assert objective(views(6), 0.2, images=6) == objective(views(6), 0.2)
    with pytest.raises(ValueError, match="must be"):
        objective(views(6), 0.2, images=5)


@BOTH
def test_groups_of_one_image_give_the_loss_of_views(objective):
    torch.testing.assert_close(objective(views(6), 0.2, groups=torch.arange(6)), objective(views(6), 0.2))


def test_the_decoupled_loss_of_one_group_is_refused():
    with pytest.raises(ValueError, match="no negatives"):
        dcl(views(3), 0.2, groups=torch.zeros(3))


def test_groups_reach_the_terms_of_images():
    z, groups = views(5, 10), torch.tensor(GROUPS[0])
    weights = Terms(fused=0, intra=1, cross=1)
    loss, _ = terms(z, [5, 5], weights, partial(nt_xent, temperature=0.2), NO_PATCHES, groups)
    a, b = z.split(5, 1)
    pairs = [torch.cat([a[:5], b[5:]]), torch.cat([b[:5], a[5:]])]
    halves = [sum(nt_xent(x, 0.2, groups=groups) for x in two) / 2 for two in ((a, b), pairs)]
    torch.testing.assert_close(loss, sum(halves))


def test_local_views_are_part_of_the_terms_but_not_of_cross():
    z = torch.randn(15, 10, dtype=torch.float64)
    weights = Terms(fused=0, intra=1, cross=1)
    loss, values = terms(z, [5, 5], weights, partial(nt_xent, temperature=0.2), NO_PATCHES, images=5)
    _, of_two = terms(z[:10], [5, 5], weights, partial(nt_xent, temperature=0.2), NO_PATCHES)
    torch.testing.assert_close(values["cross"], of_two["cross"])
    torch.testing.assert_close(values["intra"], sum(nt_xent(x, 0.2, images=5) for x in z.split(5, 1)) / 2)
    torch.testing.assert_close(loss, values["cross"] + values["intra"])


def test_the_term_of_a_teacher_and_its_gradient_equal_their_equation():
    z = torch.randn(15, 4 + 3 + 2, dtype=torch.float64, requires_grad=True)  # three views of five images
    same_z, teacher = z.detach().clone().requires_grad_(), torch.randn(5, 3, dtype=torch.float64)
    objective, weights = partial(nt_xent, temperature=0.2), Terms(local=0.5)
    loss, values = terms(
        z, [4], weights, objective, lambda rest: rest.sum(), images=5, teacher=teacher, teacher_weight=3
    )
    cosines = []
    for view in range(15):
        a, b = same_z[view, 4:7], teacher[view % 5]
        cosines.append((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())
    of_teacher = 1 - sum(cosines) / 15
    expected = nt_xent(same_z[:, :4], 0.2, images=5) + 3 * of_teacher + 0.5 * same_z[:, 7:].sum()
    torch.testing.assert_close(values["teacher"], of_teacher.detach())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(z.grad, same_z.grad)


def test_top1_counts_any_view_of_the_group():
    a, b, c = torch.eye(3)
    z = torch.stack([a, a + 0.1 * b, c, b, b + 0.1 * a, c])  # each of the first two images is nearest to itself turned
    assert contrastive_top1(z) == pytest.approx(1 / 3)
    assert contrastive_top1(z, groups=torch.tensor([5, 5, 1])) == 1
