from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from conftest import with_changes
from torch import nn

from simtrail.augment import geometry
from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.data.recipe import Recipe
from simtrail.errors import InputError
from simtrail.model.backbone import Backbone
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.model.local import patch_contrast, patch_projections, positives
from simtrail.model.weights import load_weights
from simtrail.params import SIDE, Architecture, Head, Terms, Vit

DECOUPLED = pytest.mark.parametrize("decoupled", [False, True])
SIZE, COUNT, DIMENSIONS = 32, 9, 4  # pixels of a view's side, patches, dimensions
MODELS = {
    "test_resnet": None,
    "test_convnext": None,
    "test_efficientnet": None,
    "test_vit": None,
    "token": Vit(patch_size=8, features="token", layers=2),
    "mean": Vit(patch_size=8, features="mean", layers=2, combine="mean"),
    "both": Vit(patch_size=8, features="both"),
}


def random_numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def square(x: float, y: float, width: float, turn: float = 0.0, mirrored: bool = False, size: int = SIZE):
    """The coordinates of a view of a square part of the image, (2, size, size); NaN outside the image."""
    centres = (torch.arange(size, dtype=torch.float64) * 2 + 1) / size - 1
    u, v = torch.meshgrid(centres * (-1 if mirrored else 1), centres, indexing="xy")
    cos, sin = math.cos(turn), math.sin(turn)
    places = torch.stack([x + width / 2 * (cos * u - sin * v), y + width / 2 * (sin * u + cos * v)])
    return places.masked_fill((places.abs() > 1).any(0), torch.nan)


def positions_of(coordinates: torch.Tensor, side: int) -> torch.Tensor:
    """The positions of patches, (V, side², 3)."""
    empty = torch.zeros(len(coordinates), 1, side, side, dtype=coordinates.dtype)
    return patch_projections(nn.Sequential(), empty, coordinates).unflatten(1, (side**2, 4))[..., 1:]


def batch(images: int, seed: int = 0) -> torch.Tensor:
    """Columns of 3×3 patches of two random views of each image, some partly outside, (2·images, 9 · 7)."""
    drawn = random_numbers(2 * images, 5, seed=seed)
    views = [square(*(2 * d[:2] - 1) * 0.5, 0.7 + 0.9 * d[2], 6.28 * d[3], bool(d[4] < 0.5)) for d in drawn]
    columns = torch.cat(
        [random_numbers(2 * images, COUNT, DIMENSIONS, seed=seed + 1) - 0.5, positions_of(torch.stack(views), 3)], 2
    )
    return columns.flatten(1)


def paired(patches: torch.Tensor) -> list[tuple[int, int, int, int]]:
    """Every query and its positive, (view, patch, view, patch), by nested loops."""
    views, pairs = len(patches), []
    for i in range(views):
        j = (i + views // 2) % views
        for p in range(patches.shape[1]):
            *centre, side = patches[i, p, -3:].tolist()
            candidates = [(math.dist(centre, patches[j, q, -3:-1].tolist()), q) for q in range(patches.shape[1])
                      if patches[j, q, -1] > 0]  # fmt: skip
            if (
                side > 0
                and candidates
                and min(candidates)[0] < max(side, patches[j, min(candidates)[1], -1].item()) / 2
            ):
                pairs.append((i, p, j, min(candidates)[1]))
    return pairs


def loss_by_equation(columns: torch.Tensor, temperature: float, normalise: bool, decoupled: bool) -> float:
    patches = columns.unflatten(1, (COUNT, DIMENSIONS + 3))
    z = patches[..., :-3] / (patches[..., :-3].norm(dim=2, keepdim=True) if normalise else 1)
    images, losses = len(patches) // 2, []
    for i, p, j, q in paired(patches):
        positive, total = math.exp(float(z[i, p] @ z[j, q]) / temperature), 0.0
        for k in range(len(patches)):
            for r in range(COUNT):
                distance = math.dist(patches[i, p, -3:-1].tolist(), patches[k, r, -3:-1].tolist())
                far = distance > 2 * max(patches[i, p, -1], patches[k, r, -1])
                if patches[k, r, -1] > 0 and (k % images != i % images or far):
                    total += math.exp(float(z[i, p] @ z[k, r]) / temperature)
        losses.append(-math.log(positive / (total if decoupled else total + positive)))
    return sum(losses) / len(losses)


def loss_of(columns: torch.Tensor, **settings) -> torch.Tensor:
    return patch_contrast(columns, (1, COUNT, DIMENSIONS + 3), **{"temperature": 0.3, **settings})


@DECOUPLED
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("images", [2, 5])
def test_the_loss_equals_its_equation(images, normalise, decoupled):
    columns = batch(images)
    expected = loss_by_equation(columns, 0.3, normalise, decoupled)
    assert loss_of(columns, normalise=normalise, decoupled=decoupled).item() == pytest.approx(expected, rel=1e-12)
    assert 0 < len(paired(columns.unflatten(1, (COUNT, -1)))) < 2 * images * COUNT


def test_the_loss_of_several_branches_is_their_mean():
    one, other = batch(3), batch(3, seed=5)
    both = patch_contrast(torch.cat([one, other], 1), (2, COUNT, DIMENSIONS + 3), 0.3)
    torch.testing.assert_close(both, (loss_of(one) + loss_of(other)) / 2)


@DECOUPLED
@pytest.mark.parametrize("rows", [1, 7, 20, 4096])
def test_loss_and_gradient_do_not_depend_on_how_many_rows_are_held(rows, decoupled):
    columns, same_columns = batch(4).requires_grad_(), batch(4).requires_grad_()
    loss, expected = loss_of(columns, rows=rows, decoupled=decoupled), loss_of(same_columns, decoupled=decoupled)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(columns.grad, same_columns.grad)


@DECOUPLED
def test_the_gradient_equals_finite_differences_and_positions_have_none(decoupled):
    patches = batch(2).unflatten(1, (COUNT, -1))
    z, positions = patches[..., :-3].clone().requires_grad_(), patches[..., -3:].clone().requires_grad_()
    loss = partial(loss_of, decoupled=decoupled, rows=10)
    assert torch.autograd.gradcheck(lambda z: loss(torch.cat([z, positions.detach()], 2).flatten(1)), z)
    loss(torch.cat([z, positions], 2).flatten(1)).backward()
    assert not positions.grad.any()


@pytest.mark.parametrize("turn", [0.0, 0.4, 1.7])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_a_patch_has_the_position_and_size_of_its_pixels(turn, mirrored, side):
    size = 24
    position = positions_of(square(0.1, -0.2, 0.8, turn, mirrored, size)[None].float(), side)[0]
    centres = square(0.1, -0.2, 0.8, turn, mirrored, side).flatten(1).T  # a view of one pixel for each patch
    torch.testing.assert_close(position[:, :2].double(), centres, rtol=0, atol=1e-5)
    torch.testing.assert_close(position[:, 2], torch.full((side**2,), 0.8 / side), rtol=1e-3, atol=0)


def test_a_patch_that_shows_less_than_half_does_not_count():
    coordinates = square(0.8, 0.0, 1.0)  # its right three tenths are outside the image
    assert (positions_of(coordinates[None], 4)[0].unflatten(0, (4, 4))[..., 2] > 0).tolist() == [
        [True, True, True, False]
    ] * 4
    assert positions_of(torch.full((1, 2, 32, 32), torch.nan), 4).count_nonzero() == 0


def test_positives_of_two_known_crops_are_the_expected_patches():
    left, right = square(-0.25, 0.0, 1.0), square(0.25, 0.0, 1.0)  # half a view apart, of 4×4 patches
    shifted = positives(positions_of(torch.stack([left, right]), 4)).reshape(2, 4, 4)
    index = torch.arange(16).reshape(4, 4)
    assert shifted[0].equal(torch.cat([torch.full((4, 2), -1), 16 + index[:, :2]], 1))
    assert shifted[1].equal(torch.cat([index[:, 2:], torch.full((4, 2), -1)], 1))
    mirrored = positives(positions_of(torch.stack([left, square(-0.25, 0.0, 1.0, mirrored=True)]), 4)).reshape(2, 4, 4)
    assert mirrored[0].equal(16 + index.flip(1))
    turned = positives(positions_of(torch.stack([left, square(-0.25, 0.0, 1.0, turn=math.pi / 2)]), 4)).reshape(2, 4, 4)
    assert turned[0].equal(16 + index.rot90(-1))
    apart = positives(positions_of(torch.stack([square(-0.6, 0, 0.4), square(0.6, 0, 0.4)]), 4))
    assert (apart == -1).all()


def test_positives_of_drawn_views_show_the_same_content():
    """Measured from the images: their bands are x and y, and are averaged over the patches of a map."""
    settings = {"crop.min_area": 0.3, "rotation.degrees": 60.0, "vertical_flip.p": 0.5, "thin_plate_spline.p": 1.0}
    params = with_changes({f"pretrain.augment.geometry.{k}": v for k, v in settings.items()}).pretrain.augment.geometry
    centres = (torch.arange(48) * 2 + 1) / 48 - 1
    ramps = torch.stack(torch.meshgrid(centres, centres, indexing="xy")).repeat(40, 1, 1, 1)
    ground = Background([5.0], 255)
    coordinates = geometry.sampling_grid(ramps, params, ground, Draws((0,), 20))
    shown = nn.functional.avg_pool2d(geometry.resample(ramps, coordinates, ground), 12).flatten(2).mT
    positions = positions_of(coordinates, 4)
    indices = positives(positions)
    view, patch = (indices >= 0).nonzero().T
    positive = indices[view, patch]
    assert (positive // 16).equal((view + 20) % 40)  # of the same image, in the other view
    whole = nn.functional.max_pool2d(coordinates[:, :1].isnan().double(), 12).flatten() == 0
    clear = whole[view * 16 + patch] & whole[positive]
    distance = (shown[view, patch] - shown.flatten(0, 1)[positive]).norm(dim=1)
    assert clear.sum() > 150
    side = torch.maximum(positions[view, patch, 2], positions.flatten(0, 1)[positive, 2])
    assert (distance < side / 2 + 0.03)[clear].all()
    same_index_distance = (shown[view, patch] - shown[(view + 20) % 40, patch]).norm(dim=1)  # patch i of both views
    assert distance[clear].mean() < 0.5 * same_index_distance[clear].mean()


@pytest.mark.parametrize("rows", [1, 30, 1024])
def test_patches_are_never_paired_with_patches_of_other_images(rows):
    patches = batch(5).unflatten(1, (COUNT, -1))
    indices = positives(patches[..., -3:], rows)
    expected = torch.full((10, COUNT), -1)
    for i, p, j, q in paired(patches):
        expected[i, p] = j * COUNT + q
    assert indices.equal(expected)


def test_projections_that_agree_by_position_have_a_low_loss_only_with_the_matching_coordinates():
    positions = batch(6).unflatten(1, (COUNT, -1))[..., -3:]
    waves = 6 * random_numbers(2, 16, seed=8) - 3
    phase_of_image = random_numbers(6, 1, 16, seed=9).repeat(2, 1, 1) * 6.28
    z = torch.cat(
        [
            torch.cos(positions[..., :2] @ waves + phase_of_image),
            torch.sin(positions[..., :2] @ waves + phase_of_image),
        ],
        2,
    )
    shuffled = positions[:, torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))]
    matched, mismatched = (
        patch_contrast(torch.cat([z, used], 2).flatten(1), (1, COUNT, 35), 0.1)
        for used in (positions, torch.cat([positions[:6], shuffled[6:]]))
    )
    assert matched < 0.3 * mismatched


def test_a_map_that_is_constant_in_each_image_is_not_the_best():
    views = torch.stack([square(0, 0, 1.6), square(0.5, 0, 1.0)]).repeat_interleave(2, 0)
    positions = positions_of(views, 4)
    constant = torch.eye(2, dtype=torch.float64).repeat(2, 1)[:, None].expand(4, 16, 2)
    local = torch.cat([constant, positions[..., :2]], 2)
    losses = [
        patch_contrast(torch.cat([z, positions], 2).flatten(1), (1, 16, z.shape[2] + 3), 0.1) for z in (constant, local)
    ]
    assert losses[1] < losses[0]


@DECOUPLED
@pytest.mark.parametrize("case", ["crops that do not overlap", "nothing but background", "only one image is shown"])
def test_without_any_pair_the_loss_and_its_gradient_are_0(case, decoupled):
    patches = batch(2).unflatten(1, (COUNT, -1)).float()
    if case == "crops that do not overlap":
        patches[:2, :, -3:-1] = 3.0
    elif case == "nothing but background":
        patches[..., -3:] = 0
    else:
        patches[[1, 3], :, -3:] = 0
    columns = patches.flatten(1).requires_grad_()
    loss = loss_of(columns, decoupled=decoupled)
    loss.backward()
    assert loss == 0
    assert columns.grad.abs().max() == 0


@DECOUPLED
def test_float32_is_exact_enough_also_under_autocast(decoupled):
    columns = batch(6)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(columns.float(), temperature=0.05, decoupled=decoupled)
    torch.testing.assert_close(
        loss.double(), loss_of(columns, temperature=0.05, decoupled=decoupled), rtol=1e-5, atol=0
    )


def architecture(name: str, **settings) -> Architecture:
    vit = MODELS.get(name)
    return Architecture(model="test_vit" if vit else name, width=1, vit=vit, **{"stem": "standard", **settings})


def encoder_of(name: str, terms: Terms, size: int = 64, depth: int = 2, seed: int = 0, **settings) -> Encoder:
    recipe = Recipe(
        size=size, fit="pad", background=0, composite=True, file_dtype="uint8", file_bands=5, mask_band=None,
        bands=[f"b{i}" for i in range(5)], modalities={"rgb": [0, 1, 2], "uv": [3, 4]}, dtype="uint8",
        low=[0] * 5, high=[255] * 5,
    )  # fmt: skip
    torch.manual_seed(seed)
    head = Head(depth=depth, hidden=12, output=6, batch_norm=True)
    shape = architecture(name, **settings)
    return Encoder(
        EncoderConfig(architecture=shape, head=head, recipe=recipe, mean=[0.4] * 5, std=[0.2] * 5, terms=terms)
    ).eval()


@pytest.mark.parametrize("model", MODELS)
def test_one_pass_gives_the_features_and_the_map_they_are_computed_from(model):
    torch.manual_seed(0)
    backbone = Backbone(architecture(model), 3, 64).eval()
    images = torch.rand(2, 3, 64, 64)
    features, feature_map = backbone.with_map(images)
    torch.testing.assert_close(features, backbone(images))
    assert feature_map.shape[2:] == ((8, 8) if MODELS[model] else (4, 4) if model == "test_vit" else (2, 2))
    if model in ("test_resnet", "test_efficientnet"):
        torch.testing.assert_close(feature_map.mean((2, 3)), features)
    elif model == "both":
        torch.testing.assert_close(feature_map.mean((2, 3)), features.chunk(2, 1)[1])
    elif model != "test_vit":
        assert feature_map.isfinite().all()


@pytest.mark.parametrize("model", ["test_vit", "both", "swin_tiny_patch4_window7_224"])
def test_positions_in_the_map_have_the_same_order_as_in_the_image(model):
    """A change in one corner of the image changes the map most in the same corner."""
    torch.manual_seed(0)
    size = 224 if "swin" in model else 64
    backbone = Backbone(architecture(model), 3, size).eval()
    images = torch.rand(1, 3, size, size).repeat(3, 1, 1, 1)
    images[1, :, : size // 8, -(size // 8) :] = 0
    images[2, :, -(size // 8) :, : size // 8] = 0
    with torch.no_grad():
        _, feature_map = backbone.with_map(images)
    change = (feature_map[1:] - feature_map[:1]).norm(dim=1)
    last = change.shape[1] - 1
    assert [divmod(int(m.argmax()), change.shape[2]) for m in change] == [(0, last), (last, 0)]


LOCAL = {"fused": 1.0, "intra": 0.0, "cross": 0.0, "local": 0.5}


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "both"])
@pytest.mark.parametrize("fusion", ["concat", "separate", "attention"])
@pytest.mark.parametrize("depth", [0, 2])
def test_patches_of_each_branch_come_after_the_projections_of_images(model, fusion, depth):
    terms = Terms(**LOCAL | ({"intra": 1.0} if fusion != "concat" else {}))
    encoder = encoder_of(model, terms, depth=depth, fusion=fusion)
    images, coordinates = torch.rand(4, 5, 64, 64), square(0, 0, 1.5, size=64).float().expand(4, 2, 64, 64)
    columns = encoder.projections(torch.cat([images, coordinates], 1))
    vectors, rest = columns.tensor_split([sum(encoder.projection_widths)], 1)
    torch.testing.assert_close(vectors[:, : encoder.projection_widths[0]], encoder.head(encoder(images)))
    branches, count, width = encoder.local_shape
    assert (branches, count) == (1 if fusion == "concat" else 2, 64 if model == "both" else 4)
    for index, (branch, patches) in enumerate(
        zip(encoder.branches.values(), rest.unflatten(1, encoder.local_shape).unbind(1), strict=True)
    ):
        of_map = branch.with_map(encoder.inputs[index](images))[1].flatten(2)
        for p in range(count):
            torch.testing.assert_close(patches[:, p, :-3], encoder.local_heads[index](of_map[:, :, p]))
        torch.testing.assert_close(patches[..., -3:], positions_of(coordinates, math.isqrt(count)))
    assert width == (6 if depth else of_map.shape[1]) + 3


def test_coordinates_change_no_features_and_projections_of_images_do_not_need_them():
    encoder = encoder_of("test_resnet", Terms(**LOCAL))
    images, coordinates = torch.rand(4, 5, 64, 64), torch.full((4, 2, 64, 64), torch.nan)
    with_coordinates = torch.cat([images, coordinates], 1)
    assert encoder(with_coordinates).equal(encoder(images))
    assert encoder.project(with_coordinates).equal(encoder.project(images))
    torch.testing.assert_close(encoder.joined(encoder.projections(with_coordinates)), encoder.project(images))


def test_with_only_the_local_term_the_features_represent_the_image():
    encoder, images = encoder_of("test_convnext", Terms(fused=0, intra=0, cross=0, local=1)), torch.rand(4, 5, 64, 64)
    assert not len(encoder.head)
    assert encoder.project(images).equal(encoder(images))
    assert encoder.projection_widths == [encoder.width]


def test_local_heads_are_saved_and_taken_over_and_stay_random_without_a_counterpart(tmp_path):
    encoder = encoder_of("test_resnet", Terms(**LOCAL), fusion="separate")
    encoder.save(tmp_path)
    batch = torch.cat([torch.rand(2, 5, 64, 64), square(0, 0, 1.5, size=64).float().expand(2, 2, 64, 64)], 1)
    assert Encoder.load(tmp_path).cpu().projections(batch).equal(encoder.projections(batch))
    again = encoder_of("test_resnet", Terms(**LOCAL), fusion="separate", seed=1)
    assert load_weights(again, str(tmp_path)) == []
    assert again.projections(batch).equal(encoder.projections(batch))
    plain = encoder_of("test_resnet", Terms(fused=1, intra=0, cross=0), fusion="separate", seed=1)
    assert load_weights(plain, str(tmp_path)) == []
    plain.save(tmp_path / "plain")
    lines = load_weights(again, str(tmp_path / "plain"))
    assert lines == [
        f"local head of {name} stays random: the weights have a different one, or none" for name in ("rgb", "uv")
    ]


def test_without_the_local_term_an_encoder_has_no_local_head():
    encoder = encoder_of("test_resnet", Terms(fused=1, intra=0, cross=0))
    assert encoder.local_shape == (0, 0, 0)
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"backbone", "head"}


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("test_resnet", 32, "'test_resnet' gives 1×1 for images of 32×32 pixels; raise " + SIDE + " to 64; "
                            "or set pretrain.encoder.stem: small"),
        ("test_convnext", 32, "'test_convnext' gives 1×1 for images of 32×32 pixels; raise " + SIDE + " to 64"),
        ("pixels", 4, "'test_vit' gives 4×4 for images of 4×4 pixels; raise pretrain.encoder.vit.patch_size"),
        ("coat_tiny", 64, "'coat_tiny' gives none (its last features are not a map); choose another "
                          "pretrain.encoder.model, or set 0"),
    ],
)  # fmt: skip
def test_a_model_without_a_map_of_patches_is_refused_by_key(model, size, message, monkeypatch):
    monkeypatch.setitem(MODELS, "pixels", Vit(patch_size=1))
    with pytest.raises(InputError) as error:
        encoder_of(model, Terms(**LOCAL), size=size)
    assert str(error.value) == f"pretrain.terms.local = 0.5: needs a map of patches; {message}"


def test_a_small_stem_gives_a_map_to_small_images():
    assert encoder_of("resnet10t", Terms(**LOCAL), size=32, stem="small").local_shape[1] == 16
