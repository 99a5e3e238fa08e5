from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import photographs

from simtrail import load_encoder
from simtrail.data.recipe import Recipe
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.model.fusion import BranchInput, Fusion, branch_bands
from simtrail.model.weights import load_weights
from simtrail.params import Architecture, Head, Terms

GROUPS = {"rgb": [0, 1, 2], "uv": [4, 3], "nir": [5, 6, 7]}  # uv: not in order
FUSIONS = pytest.mark.parametrize("fusion", ["separate", "attention"])
FUSED, ALL_TERMS = Terms(fused=1.0, intra=0.0, cross=0.0), Terms(fused=1.0, intra=0.5, cross=0.5)


def recipe(groups: dict[str, list[int]] = GROUPS, bands: int = 8) -> Recipe:
    return Recipe(
        size=32, fit="pad", background=0, composite=True, file_dtype="uint8", file_bands=bands, mask_band=None,
        bands=[f"b{i}" for i in range(bands)], modalities=groups, dtype="uint8", low=[0] * bands, high=[255] * bands,
    )  # fmt: skip


def config(
    terms: Terms | None = None, depth: int = 2, groups: dict[str, list[int]] = GROUPS, bands: int = 8, **settings
) -> EncoderConfig:
    return EncoderConfig(
        architecture=Architecture(model="test_resnet", width=1, stem="standard", vit=None, **settings),
        head=Head(depth=depth, hidden=12, output=5, batch_norm=True),
        recipe=recipe(groups, bands),
        mean=[0.1 * i for i in range(bands)],
        std=[1 + 0.1 * i for i in range(bands)],
        terms=terms or (ALL_TERMS if "fusion" in settings else FUSED),
    )


def encoder_of(seed: int = 0, head_layers: int = 0, **settings) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder(config(**settings), head_layers).eval()
    if encoder.modalities:  # attention starts with equal weights, which would hide mistakes
        for weight in encoder.backbone.scores.parameters():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(seed))
    return encoder


def images(bands: int = 8, count: int = 3) -> torch.Tensor:
    return torch.rand(count, bands, 32, 32, generator=torch.Generator().manual_seed(7))


def part(encoder: Encoder, name: str, batch: torch.Tensor) -> torch.Tensor:
    """The features of a modality by definition: from its bands, normalised, by its backbone, at unit length."""
    bands = [(batch[:, i] - 0.1 * i) / (1 + 0.1 * i) for i in GROUPS[name]]
    return F.normalize(encoder.branches[name](torch.stack(bands, 1)), dim=1)


def test_separate_puts_the_modalities_side_by_side_so_that_their_cosines_are_averaged():
    encoder, batch = encoder_of(fusion="separate"), images()
    parts = [part(encoder, name, batch) for name in GROUPS]
    torch.testing.assert_close(encoder(batch), torch.cat(parts, 1))
    cosine = F.cosine_similarity(encoder(batch)[0], encoder(batch)[1], dim=0)
    torch.testing.assert_close(cosine, torch.stack([(p[0] * p[1]).sum() for p in parts]).mean())


def test_attention_is_the_sum_of_the_modalities_weighted_by_the_softmax_of_their_scores():
    encoder, batch = encoder_of(fusion="attention"), images()
    parts = [part(encoder, name, batch) for name in GROUPS]
    for i, features in enumerate(encoder(batch)):
        scores = [
            float(score.weight[0] @ p[i] + score.bias) for score, p in zip(encoder.backbone.scores, parts, strict=True)
        ]
        weights = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        torch.testing.assert_close(features, sum(w * p[i] for w, p in zip(weights, parts, strict=True)))
    assert encoder.width == encoder.branches["uv"].width


def test_attention_starts_with_equal_weights():
    encoder = Encoder(config(fusion="attention")).eval()
    weights = encoder.backbone.weights(encoder.parts(images()))
    torch.testing.assert_close(weights, torch.full((3, 3), 1 / 3))


@FUSIONS
def test_one_modality_gives_the_features_of_its_branch_independent_of_the_other_bands(fusion):
    encoder, batch = encoder_of(fusion=fusion), images()
    other = batch.clone()
    other[:, GROUPS["uv"]] = 0.9
    torch.testing.assert_close(encoder(batch, "rgb"), part(encoder, "rgb", batch))
    assert torch.equal(encoder(batch, "rgb"), encoder(other, "rgb"))
    assert not torch.equal(encoder(batch, "uv"), encoder(other, "uv"))
    assert not torch.equal(encoder(batch), encoder(other))


@pytest.mark.parametrize(
    ("fusion", "chosen"), [("concat", ["uv"]), ("concat", ["nir", "rgb"]), ("separate", ["nir", "rgb"])]
)
def test_bands_of_a_modality_that_is_not_chosen_change_nothing(fusion, chosen):
    encoder, batch = encoder_of(fusion=fusion, modalities=chosen, terms=FUSED), images()
    used = {band for name in chosen for band in GROUPS[name]}
    for band in range(8):
        other = batch.clone()
        other[:, band] = 0.9
        assert torch.equal(encoder.project(batch), encoder.project(other)) is (band not in used)


def test_concat_takes_the_chosen_bands_in_the_order_of_the_files():
    batch, encoder = images(), encoder_of(modalities=["nir", "uv"])
    assert branch_bands(encoder.config.architecture, recipe()) == {"": [3, 4, 5, 6, 7]}
    mean, std = torch.arange(3, 8).view(-1, 1, 1) * 0.1, 1 + torch.arange(3, 8).view(-1, 1, 1) * 0.1
    torch.testing.assert_close(encoder(batch), encoder.backbone((batch[:, 3:] - mean) / std))
    whole = encoder_of()
    assert whole.backbone.bands == 8  # without a choice, also bands that are in no modality
    assert encoder_of(groups={"uv": [3]}).backbone.bands == 8
    assert {name.split(".")[0] for name in whole.state_dict()} == {"backbone", "head"}
    assert "backbone.net.conv1.0.weight" in whole.state_dict()


@pytest.mark.parametrize("bands", [[0, 1, 2], [1, 2], [2, 0, 1], [0, 1, 3, 4], [3], [4, 3, 2]])
def test_a_branch_sees_only_its_bands(bands):
    selected = BranchInput(bands, "none", [0.0] * 8, [1.0] * 8)(images())
    assert torch.equal(selected, images()[:, bands])


def test_missing_bands_are_zero_after_normalisation_and_the_present_bands_compensate():
    mean, std, batch = [i / 10 for i in range(8)], [0.1 + i / 10 for i in range(8)], images()
    batch[0, [1, 4]], batch[1, [0, 1, 2, 4, 5, 6, 7]] = torch.nan, torch.nan
    bands = [0, 1, 3, 4]
    selected = BranchInput(bands, "band", mean, std)(batch).double()
    for image, result in zip(batch.double(), selected, strict=True):
        present = [b for b in bands if not image[b].isnan().any()]
        for b, plane in zip(bands, result, strict=True):
            expected = (image[b] - mean[b]) / std[b] * 4 / len(present) if b in present else torch.zeros_like(plane)
            torch.testing.assert_close(plane, expected, rtol=1e-4, atol=1e-5)
    none = BranchInput(bands, "none", mean, std)(batch)
    assert none[0, [1, 3], 0, 0].tolist() == pytest.approx([0.1, 0.4])
    assert torch.equal(none[2:], batch[2:, bands])


def test_missing_bands_are_no_part_of_a_pixels_spectrum():
    branch_input, batch = BranchInput(range(8), "pixel", [0.0] * 8, [1.0] * 8), images()
    batch[:, [2, 3, 7]] = torch.nan
    present = [0, 1, 4, 5, 6]
    without_missing = BranchInput(present, "pixel", [0.0] * 8, [1.0] * 8)(batch)
    torch.testing.assert_close(branch_input(batch)[:, present], without_missing * 8 / 5, rtol=1e-5, atol=1e-5)
    assert (branch_input(batch)[:, [2, 3, 7]] == 0).all()


@pytest.mark.parametrize("normalisation", ["band", "pixel", "none"])
def test_a_branch_with_all_bands_missing_gets_finite_values(normalisation):
    batch = images()
    batch[0] = torch.nan
    assert BranchInput(range(8), normalisation, [0.5] * 8, [1.0] * 8)(batch).isfinite().all()


def test_pixel_normalisation_keeps_only_the_shape_of_a_spectrum():
    branch_input = BranchInput([1, 3, 5, 6], "pixel", [0.0] * 8, [1.0] * 8).double()
    batch = 0.1 + 0.4 * images().double()
    spectrum = batch[0, [1, 3, 5, 6], 4, 9]
    expected = (spectrum - spectrum.mean()) / spectrum.std(correction=0)
    torch.testing.assert_close(branch_input(batch)[0, :, 4, 9], expected, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(branch_input(2 * batch + 0.05), branch_input(batch), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0])
def test_pixel_normalisation_gives_background_no_spectrum(value):
    flat = torch.full((1, 408, 8, 8), value)
    selected = BranchInput(range(408), "pixel", [0.0] * 408, [1.0] * 408)(flat)
    assert selected.abs().max() < 0.01


def test_pixel_normalisation_is_within_a_branch():
    groups = {"rgb": [0, 1, 2], "nir": [5, 6, 7]}
    encoder = encoder_of(fusion="separate", normalisation="pixel", groups=groups)
    batch, other = images(), images()
    other[:, 5:] *= 0.3
    assert torch.equal(encoder(batch, "rgb"), encoder(other, "rgb"))


@FUSIONS
@pytest.mark.parametrize("terms", [FUSED, ALL_TERMS, Terms(fused=1.0, intra=1.0, cross=0.0)])
@pytest.mark.parametrize("depth", [0, 2])
def test_projections_are_side_by_side_with_the_fused_ones_first(fusion, terms, depth):
    encoder, batch = encoder_of(fusion=fusion, terms=terms, depth=depth), images()
    heads = encoder.projections(batch).split(encoder.projection_widths, 1)
    assert len(heads) == (4 if terms.intra else 1)
    torch.testing.assert_close(heads[0], encoder.head(encoder(batch)))
    for head, name, z in zip(encoder.heads, GROUPS, heads[1:], strict=False):
        torch.testing.assert_close(z, head(part(encoder, name, batch)))
    assert torch.equal(encoder.project(batch), heads[0])


def test_without_a_fused_term_there_is_no_fused_head_and_modalities_represent_the_image():
    encoder, batch = encoder_of(fusion="separate", terms=Terms(fused=0.0, intra=0.0, cross=1.0)), images()
    assert not list(encoder.head.parameters())
    heads = [head(part(encoder, name, batch)) for head, name in zip(encoder.heads, GROUPS, strict=True)]
    torch.testing.assert_close(encoder.projections(batch), torch.cat(heads, 1))
    torch.testing.assert_close(encoder.project(batch), torch.cat([F.normalize(z, dim=1) for z in heads], 1))
    with pytest.raises(InputError, match="head_layers = 1: must be from 0 to 0"):
        Encoder(encoder.config, head_layers=1)


@FUSIONS
def test_a_saved_and_loaded_encoder_gives_the_same_features_and_projections(tmp_path, fusion):
    encoder, batch = encoder_of(fusion=fusion), images()
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path).cpu()
    assert torch.equal(loaded(batch), encoder(batch))
    assert torch.equal(loaded.projections(batch), encoder.projections(batch))
    assert torch.equal(loaded(batch, "nir"), encoder(batch, "nir"))


def test_an_encoder_saved_before_there_were_modalities_is_read():
    encoder = encoder_of()
    tree = encoder.config.model_dump(exclude={"terms": True, "architecture": {"modalities", "fusion", "normalisation"}})
    assert EncoderConfig.model_validate(tree) == encoder.config


@FUSIONS
def test_images_are_embedded_by_one_modality(tmp_path, fusion):
    groups = {"warm": [0, 1], "cold": [2]}
    encoder = encoder_of(fusion=fusion, groups=groups, bands=3)
    photographs(tmp_path, classes=1, each=3)
    table = encoder.embed(tmp_path, modality="cold")
    assert table.shape == (3, encoder.branches["cold"].width)
    assert np.linalg.norm(table, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert not np.allclose(table, encoder.embed(tmp_path, modality="warm"))
    assert encoder.features(iter(()), "cold").shape == (0, table.shape[1])


def test_aligned_features_are_the_projections_that_the_cross_term_compares():
    encoder = encoder_of(fusion="separate", terms=Terms(fused=1.0, intra=0.0, cross=1.0))
    name, batch = encoder.modalities[1], images()
    packed = (batch.numpy() * 255).astype(np.uint8)
    expected = encoder.heads[1](encoder(torch.from_numpy(packed).float() / 255, name)).detach().numpy()
    np.testing.assert_allclose(encoder.features(iter([packed]), name, aligned=True), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="aligned: the encoder was trained without a cross-modal term"):
        encoder_of(fusion="separate", terms=FUSED).features(iter([packed]), name, aligned=True)


def test_the_only_modality_of_an_encoder_needs_no_branch():
    encoder, batch = encoder_of(modalities=["uv"]), images()
    assert torch.equal(encoder(batch, "uv"), encoder(batch))
    packed = (batch * 255).numpy().astype(np.uint8)
    assert np.array_equal(encoder.features(iter([packed]), "uv"), encoder.features(iter([packed])))


@pytest.mark.parametrize(
    ("settings", "modality", "message"),
    [
        ({}, "uv", "modality = 'uv': the encoder was trained on all its bands together; train with "
                   "pretrain.encoder.fusion: separate or attention, or pretrain.encoder.modalities: [uv]"),
        ({"modalities": ["rgb", "nir"]}, "uv", "modality = 'uv': must be one of rgb, nir"),
        ({"fusion": "separate"}, "uvv", "modality = 'uvv': must be one of rgb, uv, nir"),
        ({"groups": {}}, "uv", "modality = 'uv': the images have no modalities; leave it out"),
        ({"fusion": "attention", "head_layers": 1}, "uv", "load the encoder with head_layers = 0, not 1"),
    ],
)  # fmt: skip
def test_a_modality_without_features_is_refused_before_any_image_is_read(settings, modality, message):
    encoder = encoder_of(**settings)
    with pytest.raises(InputError) as error:
        encoder.features(iter(()), modality)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": ["uvv"]}, "pretrain.encoder.modalities: 'uvv': must be one of rgb, uv, nir"),
        ({"modalities": ["uv"], "groups": {}},
         "pretrain.encoder.modalities: 'uv': dataset.yaml declares no modalities; set null"),
        ({"fusion": "separate", "groups": {}},
         "pretrain.encoder.fusion = 'separate': needs two or more modalities, not none"),
        ({"fusion": "attention", "modalities": ["uv"]},
         "pretrain.encoder.fusion = 'attention': needs two or more modalities, not uv; "
         "declare modalities in dataset.yaml"),
        ({"fusion": "separate", "normalisation": "pixel"},
         "pretrain.encoder.normalisation = 'pixel': needs three bands or more, because two would only show which is "
         "brighter; uv has 2"),
        ({"normalisation": "pixel", "bands": 1, "groups": {}}, "an image has 1; set band or none"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_images_are_refused_by_key(settings, message):
    with pytest.raises(InputError) as error:
        encoder_of(**settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@FUSIONS
def test_weights_go_to_the_branch_of_the_same_modality(tmp_path, fusion):
    source, batch = encoder_of(fusion=fusion), images()
    source.save(tmp_path)
    target = encoder_of(seed=1, fusion=fusion)
    assert load_weights(target, str(tmp_path)) == []
    assert torch.equal(target.projections(batch), source.projections(batch))
    two = encoder_of(seed=1, fusion="separate", modalities=["uv", "nir"])
    assert load_weights(two, str(tmp_path)) == ["head stays random: the weights have a different one, or none"]
    assert torch.equal(two(batch, "uv"), source(batch, "uv"))
    one = encoder_of(seed=1, modalities=["nir"])
    load_weights(one, str(tmp_path))
    torch.testing.assert_close(F.normalize(one(batch), dim=1), source(batch, "nir"))
    with pytest.raises(InputError, match=rf"has a branch for each of rgb, uv, nir; name .*fusion: {fusion}"):
        load_weights(encoder_of(), str(tmp_path))


def test_a_branch_without_counterpart_stays_random_and_every_branch_takes_the_weights_of_a_single_one(tmp_path):
    encoder_of(fusion="separate", modalities=["rgb", "uv"]).save(tmp_path / "two")
    lines = load_weights(encoder_of(seed=1, fusion="separate"), str(tmp_path / "two"))
    assert lines == [
        "nir: stays random: the weights have no such modality",
        "head stays random: the weights have a different one, or none",
        "head of nir stays random: the weights have a different one, or none",
    ]
    encoder_of().save(tmp_path / "one")
    lines = load_weights(encoder_of(seed=1, fusion="attention"), str(tmp_path / "one"))
    assert "uv: net.conv1.0.weight adapted from 8 to 2 bands" in lines
    assert "score of uv stays random: the weights have a different one, or none" in lines


def test_timms_weights_go_to_every_branch(monkeypatch):
    timm_weights = Encoder(config(groups={}, bands=3)).backbone.net.state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(timm_weights))
    encoder = encoder_of(fusion="separate")
    assert load_weights(encoder, "pretrained") == [
        "uv: net.conv1.0.weight adapted from 3 to 2 bands",
        "uv: filters of bands: b4 ← red + blue (by number), b3 ← green (by number)",
    ]
    assert torch.equal(encoder.branches["nir"].net.state_dict()["conv1.0.weight"], timm_weights["conv1.0.weight"])


def test_features_on_grids_are_those_of_the_branches_side_by_side():
    torch.manual_seed(0)
    architecture = Architecture(model="test_resnet", fusion="separate", features=[1, 2])
    fusion, images = Fusion(architecture, [2, 1], 64).eval(), (torch.rand(3, 2, 64, 64), torch.rand(3, 1, 64, 64))
    parts = [branch.features(x) for branch, x in zip(fusion.branches, images, strict=True)]
    expected = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], 1)
    assert torch.allclose(fusion.features(*images), expected)
    assert torch.allclose(fusion.features_on([[1, 2]], *images)[0], expected)
    assert expected.shape[1] == fusion.feature_width
    with pytest.raises(InputError, match=r"must be \[1\] with pretrain.encoder.fusion: attention"):
        Fusion(architecture.model_copy(update={"fusion": "attention"}), [2, 1], 64)
