from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import photographs
from PIL import Image

from simtrail import load_encoder
from simtrail.data.reading.readers import read_image
from simtrail.data.recipe import Recipe
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.model.weights import load_weights
from simtrail.params import Architecture, Head, Vit


def config(
    bands: int = 3,
    model: str = "test_resnet",
    stem: str = "standard",
    depth: int = 2,
    hidden: int = 12,
    size: int = 32,
    patch_size: int | None = None,
) -> EncoderConfig:
    recipe = Recipe(
        size=size,
        fit="pad",
        background=0,
        composite=True,
        file_dtype="uint8",
        file_bands=bands,
        mask_band=None,
        bands=[f"b{i}" for i in range(bands)],
        dtype="uint8",
        low=[0] * bands,
        high=[255] * bands,
    )
    vit = Vit(patch_size=patch_size) if patch_size else None
    return EncoderConfig(
        architecture=Architecture(model=model, width=1, stem=stem, vit=vit),
        head=Head(depth=depth, hidden=hidden, output=8, batch_norm=True),
        recipe=recipe, mean=[0.4] * bands, std=[0.2] * bands,
    )  # fmt: skip


def encoder_of(seed: int = 0, **settings) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(config(**settings)).eval()


@pytest.mark.parametrize("bands", [1, 3, 7, 408])
def test_any_number_of_bands_gives_features_and_projections(bands):
    encoder = encoder_of(bands=bands)
    batch = torch.rand(2, bands, 32, 32)
    assert encoder(batch).shape == (2, encoder.width)
    assert encoder.project(batch).shape == (2, 8)
    torch.testing.assert_close(encoder.project(batch), encoder.head(encoder(batch)))


def test_packed_images_are_reduced_to_what_the_network_sees():
    small = encoder_of()
    recipe = small.config.recipe.model_copy(update={"size": 64})
    large = Encoder(small.config.model_copy(update={"recipe": recipe, "view_size": 32})).eval()
    large.load_state_dict(small.state_dict())
    packed = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    seen = F.avg_pool2d(torch.from_numpy(packed) / 255, 2)
    torch.testing.assert_close(torch.from_numpy(large.features(iter([packed]))), small(seen))
    views = torch.rand(2, 3, 32, 32)
    assert large(views).equal(small(views))
    assert large.project(views).equal(small.project(views))
    assert large.features_on([[1]], torch.from_numpy(packed) / 255)[0].shape == (3, small.width)


def test_an_encoder_trained_on_smaller_views_sees_whole_images_in_full():
    plain = encoder_of(size=48)
    encoder = Encoder(plain.config.model_copy(update={"view_size": 32, "reduced": False})).eval()
    encoder.load_state_dict(plain.state_dict())
    packed = np.random.default_rng(0).integers(0, 256, (3, 3, 48, 48), dtype=np.uint8)
    np.testing.assert_array_equal(encoder.features(iter([packed])), plain.features(iter([packed])))
    views = torch.rand(2, 3, 32, 32)
    assert encoder.project(views).equal(plain.project(views))
    with pytest.raises(InputError, match=r"view_size, if it is set\) = 24: must be ≥ 32"):
        Encoder(encoder.config.model_copy(update={"view_size": 24}))


@pytest.mark.parametrize("fusion", ["concat", "separate"])
def test_whitening_is_part_of_a_saved_encoder_and_can_be_undone(tmp_path, fusion):
    given, images = config(bands=4), np.random.default_rng(0).integers(0, 256, (40, 4, 32, 32), dtype=np.uint8)
    if fusion == "separate":
        recipe = given.recipe.model_copy(update={"modalities": {"a": [0, 1], "b": [2, 3]}})
        architecture = given.architecture.model_copy(update={"fusion": fusion})
        given = given.model_copy(update={"recipe": recipe, "architecture": architecture})
    torch.manual_seed(0)
    encoder = Encoder(given).eval()
    plain, batch = encoder.features(iter([images])), torch.rand(2, 4, 32, 32)
    projections, width = encoder.project(batch), encoder.width
    encoder.whiten(plain)
    white = encoder.features(iter([images]))
    assert encoder.config.whitened == 10
    assert white.shape == (40, width)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(encoder.unwhitened(white), plain, atol=1e-4)
    assert encoder.project(batch).equal(projections)
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path).cpu()
    assert np.array_equal(loaded.features(iter([images])), white)
    assert np.array_equal(loaded.with_features([1]).features(iter([images])), plain)
    assert load_encoder(tmp_path, head_layers=1).cpu()(batch).shape == (2, 12)


def test_without_a_head_the_projections_are_the_features():
    encoder = encoder_of(depth=0)
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder.project(batch), encoder(batch))


def test_images_are_normalised_by_the_stored_statistics():
    encoder = Encoder(config()).eval()
    batch = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder(batch), encoder.backbone((batch - 0.4) / 0.2))


@pytest.mark.parametrize(
    ("model", "patch_size"),
    [("test_resnet", None), ("test_convnext", None), ("test_efficientnet", None), ("test_vit", 8)],
)
def test_a_saved_and_loaded_encoder_gives_the_same_features_and_projections(tmp_path, model, patch_size):
    encoder = encoder_of(model=model, patch_size=patch_size)
    encoder.save(tmp_path)
    loaded, batch = load_encoder(tmp_path).cpu(), torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(batch), encoder(batch))
    assert torch.equal(loaded.project(batch), encoder.project(batch))


def test_features_can_be_taken_from_a_layer_of_the_head(tmp_path):
    encoder = encoder_of(depth=3)
    encoder.save(tmp_path)
    batch = torch.rand(2, 3, 32, 32)
    for layers, width in enumerate([encoder.width, 12, 12, 8]):
        loaded = load_encoder(tmp_path, head_layers=layers).cpu()
        assert loaded.width == width
        expected = encoder(batch)
        for layer in list(encoder.head)[:layers]:
            expected = layer(expected)
        torch.testing.assert_close(loaded(batch), expected)
        torch.testing.assert_close(loaded.project(batch), encoder.project(batch))
        assert loaded.embed(np.zeros((2, 3, 9, 9), np.uint8)).shape == (2, width)
    for layers in (4, -1):
        with pytest.raises(InputError, match=rf"head_layers = {layers}: must be from 0 to 3"):
            load_encoder(tmp_path, head_layers=layers)


def test_random_weights_stay_unchanged():
    encoder, same = encoder_of(), encoder_of()
    assert load_weights(encoder, "random") == []
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), same.parameters(), strict=True))


def test_weights_of_a_folder_give_its_features_and_projections(tmp_path):
    source, target = encoder_of(), encoder_of(seed=1)
    source.save(tmp_path)
    assert load_weights(target, str(tmp_path)) == []
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(target.project(batch), source.project(batch))


def test_a_different_head_keeps_its_random_weights_and_is_named(tmp_path):
    source, target = encoder_of(), encoder_of(seed=1, depth=3)
    source.save(tmp_path)
    before = [p.clone() for p in target.head.parameters()]
    assert load_weights(target, str(tmp_path)) == ["head stays random: the weights have a different one, or none"]
    assert all(torch.equal(a, b) for a, b in zip(before, target.head.parameters(), strict=True))
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(target(batch), source(batch))


def test_weights_for_other_bands_give_the_same_features_for_a_grey_image(tmp_path):
    source, target = encoder_of(), encoder_of(seed=1, bands=7)
    source.save(tmp_path)
    assert load_weights(target, str(tmp_path)) == [
        "net.conv1.0.weight adapted from 3 to 7 bands",
        "filters of bands: b0 ← b0, b1 ← b1, b2 ← b2, b3 ← b0 (by number), b4 ← b1 (by number) and 2 more",
    ]
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(target(grey.repeat(1, 7, 1, 1)), source(grey.repeat(1, 3, 1, 1)))


def test_weights_of_a_vision_transformer_fit_other_sizes(tmp_path):
    encoder_of(model="test_vit", patch_size=8).save(tmp_path)
    assert load_weights(encoder_of(model="test_vit", patch_size=16, size=64), str(tmp_path)) == []


def test_timms_weights_are_taken_over_and_the_head_stays_random(monkeypatch):
    timm_weights = encoder_of(seed=5).backbone.net.state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(timm_weights))
    encoder, before = encoder_of(), encoder_of().head.state_dict()
    assert load_weights(encoder, "pretrained") == []
    assert all(torch.equal(v, timm_weights[k]) for k, v in encoder.backbone.net.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in encoder.head.state_dict().items())


@pytest.mark.parametrize(("key", "required"), [("model", "resnet10t"), ("stem", "small")])
def test_weights_of_another_architecture_are_refused_by_key(tmp_path, key, required):
    encoder_of(**{key: required}).save(tmp_path)
    with pytest.raises(
        InputError, match=rf"pretrain\.encoder\.{key} = .*: must be '{required}' with pretrain\.weights = "
    ):
        load_weights(encoder_of(), str(tmp_path))


def test_weights_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"pretrain\.weights = 'pretraned': must be random, pretrained, "):
        load_weights(encoder_of(), "pretraned")
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_weights(encoder_of(), str(tmp_path))


def test_files_folders_and_arrays_give_the_same_features_for_any_batch_size(tmp_path):
    photographs(tmp_path / "images", classes=2, each=3)
    encoder = encoder_of()
    table = encoder.embed(tmp_path / "images")
    assert table.shape == (6, encoder.width)
    assert table.index.name == "path"
    again = encoder.embed([str(p) for p in table.index], batch_size=2)
    np.testing.assert_allclose(table, again, rtol=1e-4, atol=1e-5)
    arrays = np.stack([read_image(p) for p in table.index])
    np.testing.assert_allclose(table, encoder.embed(arrays), rtol=1e-4, atol=1e-5)


def test_what_to_do_with_images_of_pillow_is_said_and_works():
    encoder, images = encoder_of(), [Image.new("RGB", (40, 40), colour) for colour in ("red", "green")]
    with pytest.raises(InputError, match="2 of 2 are of type Image; give paths, or one array") as error:
        encoder.embed(images)
    advice = str(error.value).split("images of PIL ")[1]
    assert encoder.embed(eval(advice, {"np": np, "images": images})).shape == (2, encoder.width)


def test_features_of_a_large_image_are_the_mean_over_its_tiles_that_show_anything(tmp_path):
    tiled = config().model_copy(update={"recipe": config().recipe.model_copy(update={"fit": "tile", "size": 32})})
    encoder = Encoder(tiled).eval()
    images = np.random.default_rng(0).integers(1, 255, (5, 3, 32, 96), dtype=np.uint8)
    images[1, :, :, 64:] = 0
    images[2] = 0
    tiles = images.reshape(5, 3, 32, 3, 32).transpose(0, 3, 1, 2, 4)
    every = [encoder.features(iter([image])) for image in tiles]
    expected = [every[0].mean(0), every[1][:2].mean(0), *(features.mean(0) for features in every[2:])]
    np.testing.assert_allclose(encoder.embed(images, batch_size=4), expected, rtol=1e-4, atol=1e-5)


def test_every_file_that_cannot_be_embedded_is_named(tmp_path):
    photographs(tmp_path, classes=1, each=2)
    (tmp_path / "class0/bad.png").write_bytes(b"")
    encoder = Encoder(config())
    with pytest.raises(InputError, match=r"bad\.png: empty file"):
        encoder.embed(tmp_path)
    with pytest.raises(InputError, match=r"gone\.png: .*No such file"):
        encoder.embed([tmp_path / "gone.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in it"):
        encoder.embed(tmp_path / "empty")
    with pytest.raises(InputError, match="with 5 bands"):
        Encoder(config(5)).embed(np.zeros((1, 3, 8, 8), np.uint8))


@pytest.mark.parametrize("damage", ["cut", "no config", "other shape", "not json"])
def test_a_damaged_encoder_is_refused_by_name(tmp_path, damage):
    Encoder(config()).save(tmp_path)
    weights, config_file = tmp_path / "encoder.safetensors", tmp_path / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "no config":
        config_file.unlink()
    elif damage == "not json":
        config_file.write_text("{")
    else:
        config_file.write_text(config(model="resnet18").model_dump_json())
    with pytest.raises(InputError, match=str(tmp_path)):
        load_encoder(tmp_path)
