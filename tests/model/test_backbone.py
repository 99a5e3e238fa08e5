from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from simtrail.errors import InputError
from simtrail.model.backbone import Backbone
from simtrail.model.first_layer import by_number
from simtrail.model.weights import pretrained_weights
from simtrail.params import Architecture, Vit


def architecture(model: str = "test_resnet", width: int = 1, stem: str = "standard", **vit) -> Architecture:
    return Architecture(model=model, width=width, stem=stem, vit=Vit(**vit) if vit else None)


def backbone(model: str = "test_resnet", *, bands: int = 3, size: int = 32, **settings) -> Backbone:
    torch.manual_seed(0)
    return Backbone(architecture(model, **settings), bands, size).eval()


@pytest.mark.parametrize("bands", [1, 3, 7, 408])
@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"])
def test_every_family_of_models_gives_one_vector_per_image_for_any_number_of_bands(model, bands):
    net = backbone(model, bands=bands)
    assert net(torch.rand(2, bands, 32, 32)).shape == (2, net.width)


def test_the_width_is_the_width_of_the_features_not_num_features_of_the_model():
    net = backbone("mobilenetv3_small_050")
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, net.width) == (2, 1024)
    assert net.net.num_features != net.width


def test_models_with_a_fixed_image_size_are_built_for_the_size_of_the_images():
    assert backbone("swin_tiny_patch4_window7_224", size=64)(torch.rand(1, 3, 64, 64)).shape == (1, 768)


@pytest.mark.parametrize(("width", "millions"), [(1, 24), (2, 94), (4, 375)])
def test_resnet50_has_the_parameter_counts_of_the_paper(width, millions):
    with torch.device("meta"):
        net = Backbone(architecture("resnet50", width), 3, 224)
    assert net.width == 2048 * width
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize("model", ["test_resnet", "resnet18", "resnetblur18", "resnest14d"])
def test_a_wide_resnet_is_the_resnet_with_all_channels_doubled(model):
    with torch.device("meta"):
        one, two = (Backbone(architecture(model, width), 3, 32) for width in (1, 2))
    shapes = [{k: v.shape for k, v in net.named_parameters() if v.ndim == 4} for net in (one, two)]
    assert shapes[0].keys() == shapes[1].keys()
    for name, narrow in shapes[0].items():
        wide = shapes[1][name]
        assert wide[2:] == narrow[2:]
        assert wide[0] == 2 * narrow[0]
        assert wide[1] == narrow[1] * (1 if narrow[1] == 3 else 2)


@pytest.mark.parametrize("model", ["resnet18", "resnet10t"])
def test_the_small_stem_keeps_the_resolution(model):
    net = backbone(model, stem="small", bands=5, size=16)
    assert net.net.conv1.kernel_size == (3, 3)
    assert net.net.conv1.stride == (1, 1)
    assert isinstance(net.net.maxpool, nn.Identity)
    assert net.net.forward_features(torch.rand(1, 5, 32, 32)).shape[-1] == 4


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"model": "resnt18"}, 32, r"pretrain\.encoder\.model = 'resnt18': not a model of timm; did you mean resnet18"),
        ({"model": "zzzz"}, 32, r"pretrain\.encoder\.model = 'zzzz': not a model of timm; timm\.list_models"),
        ({"model": "test_convnext", "width": 2}, 32, r"pretrain\.encoder\.width = 2: must be 1 with 'test_convnext'"),
        ({"model": "test_convnext", "stem": "small"}, 32, r"pretrain\.encoder\.stem = 'small': must be standard with"),
        ({"model": "test_resnet"}, 16, r"if it is set\) = 16: must be ≥ 32 .* or use pretrain\.encoder\.stem: small"),
        ({"model": "test_convnext"}, 16, r"if it is set\) = 16: must be ≥ 32"),
        ({"model": "test_resnet", "layers": 1}, 32, r"pretrain\.encoder\.vit: has no effect .* set it to null"),
        (
            {"model": "test_vit"},
            40,
            r"if it is set\) = 40: must be a multiple of 16, .*; or set pretrain\.encoder\.vit\.patch",
        ),
        ({"model": "test_vit", "layers": 9}, 32, r"pretrain\.encoder\.vit\.layers = 9: must be ≤ 6"),
        ({"model": "test_vit3", "features": "both"}, 32, r"pretrain\.encoder\.vit\.features = 'both': must be mean"),
        (
            {"model": "mixer_s16_224"},
            40,
            r"if it is set\) = 40: must be a multiple of 16, the patch size of 'mixer_s16_224'",
        ),
        ({"model": "hrnet_w18_small"}, 40, r"'hrnet_w18_small': can't take images of 3 bands and 40×40 pixels \("),
    ],
)
def test_impossible_settings_are_refused_by_key(settings, size, message):
    with pytest.raises(InputError, match=message) as error:
        backbone(**settings, size=size)
    assert "\n" not in str(error.value)


def tokens(net: Backbone, x: torch.Tensor) -> list[torch.Tensor]:
    """The normalised tokens, class first, after every block of a vision transformer, computed block by block."""
    vit, layers = net.net, []
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    for block in vit.blocks:
        x = block(x)
        layers.append(vit.fc_norm(vit.norm(x)))
    return layers


def test_features_of_a_vision_transformer_come_from_its_last_layers():
    x = torch.rand(2, 3, 32, 32)
    net = backbone("vit_tiny_patch16_224", patch_size=8, features="both", layers=3)
    assert net.net.patch_embed.grid_size == (4, 4)
    last = tokens(net, x)[-3:]
    both = [torch.cat([layer[:, 0], layer[:, 1:].mean(1)], 1) for layer in last]
    torch.testing.assert_close(net(x), torch.cat(both, 1))
    for settings, expected in [
        ({"features": "token"}, last[-1][:, 0]),
        ({"features": "mean", "layers": 2}, torch.cat([layer[:, 1:].mean(1) for layer in last[1:]], 1)),
        ({"features": "token", "layers": 3, "combine": "mean"}, sum(layer[:, 0] for layer in last) / 3),
    ]:
        other = backbone("vit_tiny_patch16_224", patch_size=8, **settings)
        torch.testing.assert_close(other(x), expected)
        assert other.width == expected.shape[1]


def test_by_default_a_vision_transformer_gives_what_timm_gives():
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(backbone("test_vit")(x), backbone("test_vit").net(x))
    torch.testing.assert_close(backbone("test_vit", features="token")(x), backbone("test_vit")(x))


@pytest.mark.parametrize("settings", [{}, {"features": "mean", "layers": 2}])
@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_vit3"])
def test_every_parameter_gets_a_gradient_with_and_without_gradient_checkpointing(model, settings):
    net = backbone(model, **(settings if "vit" in model else {})).train()
    for checkpointing in (False, True):
        net.net.set_grad_checkpointing(checkpointing)
        net.zero_grad()
        net(torch.rand(2, 3, 32, 32)).sum().backward()
        assert [k for k, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("new", [1, 2, 3, 6, 7, 408])
@pytest.mark.parametrize("old", [1, 3, 4])
def test_adapted_filters_give_the_same_response_to_a_grey_image(old, new):
    filters = torch.randn(5, old, 3, 3, dtype=torch.float64)
    grey = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    before = nn.functional.conv2d(grey.expand(-1, old, -1, -1), filters)
    adapted = torch.einsum("oihw,ib->obhw", filters, by_number(old, new))
    after = nn.functional.conv2d(grey.expand(-1, new, -1, -1), adapted)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"])
def test_weights_for_other_bands_are_taken_over_and_only_the_first_layer_is_adapted(model):
    torch.manual_seed(1)
    source, target = Backbone(architecture(model), 3, 32).eval(), backbone(model, bands=6)
    (line,) = target.adopt(source.state_dict())
    assert line.endswith("adapted from 3 to 6 bands")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(target(x.repeat(1, 2, 1, 1)), source(x))
    assert target.adopt(target.state_dict()) == []


def test_a_vision_transformer_takes_over_weights_for_other_image_and_patch_sizes():
    source = backbone("test_vit", size=32, patch_size=8)
    assert backbone("test_vit", size=32, patch_size=16).adopt(source.state_dict()) == []
    finer = backbone("test_vit", size=64, patch_size=8)
    assert finer.adopt(source.state_dict()) == []
    grids = [n.net.pos_embed[:, -n.net.patch_embed.num_patches :] for n in (source, finer)]
    small, large = (g.detach().unflatten(1, (s, s)).permute(0, 3, 1, 2) for g, s in zip(grids, (4, 8), strict=True))
    expected = nn.functional.interpolate(small, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(large, expected)


@pytest.fixture
def checkpoint(monkeypatch):
    """Replaces the download of timm: gives the weights, with classifier, of a ResNet-18 or a tiny ViT."""

    def download(hub_id, *_, **__):
        torch.manual_seed(3)
        return timm.create_model("test_vit" if "vit" in str(hub_id) else "resnet18").state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)


def test_pretrained_weights_come_from_timm_and_fit_any_number_of_bands(checkpoint):
    net = backbone("resnet18", bands=6)
    assert net.adopt(pretrained_weights(architecture("resnet18"), 32)) == ["net.conv1.weight adapted from 3 to 6 bands"]
    torch.manual_seed(3)
    original = timm.create_model("resnet18").eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net(x.repeat(1, 2, 1, 1)), original.forward_head(original.forward_features(x), True))


def test_a_small_stem_stays_random_with_pretrained_weights_and_is_named(checkpoint):
    small = architecture("resnet18", stem="small")
    net = Backbone(small, 3, 32)
    before = net.net.conv1.weight.clone()
    assert net.adopt(pretrained_weights(small, 32)) == [
        "net.conv1.weight stays random: its shape is 64×3×3×3, but 64×3×7×7 in the weights"
    ]
    assert torch.equal(net.net.conv1.weight, before)


def test_pretrained_weights_of_a_vision_transformer_fit_other_image_and_patch_sizes(checkpoint):
    fine = architecture("test_vit", patch_size=8)
    assert Backbone(fine, 3, 32).adopt(pretrained_weights(fine, 32)) == []


def test_missing_pretrained_weights_are_an_error_that_names_the_model(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    with pytest.raises(InputError, match=r"pretrain\.weights = 'pretrained'.*'resnet18' \(no route to host\); check"):
        pretrained_weights(architecture("resnet18"), 32)
    with pytest.raises(InputError, match=r"pretrain\.weights = 'pretrained'.*'eca_vovnet39b'.*No pretrained"):
        pretrained_weights(architecture("eca_vovnet39b"), 32)
    with pytest.raises(InputError, match=r"pretrain\.weights = 'pretrained': needs pretrain\.encoder\.width: 1"):
        pretrained_weights(architecture("resnet18", width=2), 32)


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_features_are_the_means_of_maps_on_grids_each_at_unit_length(model):
    net, images = backbone(model, size=64), torch.rand(2, 3, 64, 64)
    maps = net.net.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    expected = []
    for stage, grid in ((-1, 1), (-2, 2)):
        part, side = maps[stage], maps[stage].shape[-1] // grid
        tiles = [
            part[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side].mean((2, 3))
            for i in range(grid)
            for j in range(grid)
        ]
        vector = torch.stack(tiles, 2).flatten(1)
        expected.append(vector / vector.norm(dim=1, keepdim=True))
    assert torch.allclose(net.features_on([[1, 2]], images)[0], torch.cat(expected, 1), atol=1e-5)
    assert torch.equal(net.features_on([[1]], images)[0], net(images))


def test_more_features_do_not_change_the_weights_or_what_the_head_gets():
    torch.manual_seed(0)
    plain, more = (Backbone(Architecture(model="test_resnet", features=f), 3, 64).eval() for f in ([1], [0, 2, 3]))
    more.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(plain(images), more(images))
    assert (plain.width, plain.feature_width) == (more.width, plain.width)
    assert more.features(images).shape == (2, more.feature_width)
    assert torch.allclose(more.features(images).norm(dim=1), torch.tensor(2**0.5))


@pytest.mark.parametrize(
    ("model", "features", "message"),
    [
        (
            "test_vit",
            [1, 2],
            r"must be \[1\] with 'test_vit', which has no maps of several stages",
        ),
        ("test_resnet", [1] * 9, r"must have at most 5 grids, one for each stage of 'test_resnet'"),
        ("test_resnet", [3], r"grid 1 must be ≤ 1, the side of its map for images of 32 pixels"),
    ],
)
def test_features_that_a_model_does_not_have_are_an_error(model, features, message):
    with pytest.raises(InputError, match=message):
        Backbone(Architecture(model=model, features=features), 3, 32)
