from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import photographs
from torch import nn

from simtrail import load_encoder
from simtrail.data.readers import read_image
from simtrail.data.recipe import Recipe
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder, EncoderConfig


def config(bands: int = 3, model: str = "resnet10t", stem: str = "standard") -> EncoderConfig:
    recipe = Recipe(
        size=32, fit="pad", background=0, composite=True, file_dtype="uint8", file_bands=bands, mask_band=None,
        bands=[f"b{i}" for i in range(bands)], dtype="uint8", low=[0] * bands, high=[255] * bands,
    )  # fmt: skip
    return EncoderConfig(model=model, stem=stem, recipe=recipe, mean=[0.4] * bands, std=[0.2] * bands)


@pytest.mark.parametrize("bands", [1, 3, 7, 408])
def test_any_band_count_gives_features(bands):
    encoder = Encoder(config(bands)).eval()
    assert encoder(torch.rand(2, bands, 32, 32)).shape == (2, encoder.width)


def test_the_small_stem_keeps_the_resolution():
    encoder = Encoder(config(model="resnet18", stem="small"))
    assert encoder.backbone.conv1.kernel_size == (3, 3)
    assert isinstance(encoder.backbone.maxpool, nn.Identity)
    assert encoder.backbone.forward_features(torch.rand(1, 3, 32, 32)).shape[-1] == 4


def test_images_too_small_for_the_standard_stem_are_refused():
    small = config().model_copy(update={"recipe": config().recipe.model_copy(update={"size": 16})})
    with pytest.raises(InputError, match=r"prepare\.size = 16: must be ≥ 32"):
        Encoder(small)


@pytest.mark.parametrize(("model", "stem", "key"), [("vgg16", "standard", "model"), ("resnet10t", "small", "stem")])
def test_what_is_not_possible_is_refused_by_key(model, stem, key):
    with pytest.raises(InputError, match=rf"pretrain\.{key} = "):
        Encoder(config(model=model, stem=stem))


def test_images_are_normalised_by_the_stored_statistics():
    encoder = Encoder(config()).eval()
    batch = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder(batch), encoder.backbone((batch - 0.4) / 0.2))


def test_saved_and_loaded_it_gives_the_same_features(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(config()).eval()
    encoder.save(tmp_path)
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_encoder(tmp_path).cpu()(batch), encoder(batch))


def test_files_folders_and_arrays_embed_alike_whatever_the_batch_size(tmp_path):
    photographs(tmp_path / "images", classes=2, each=3)
    torch.manual_seed(0)
    encoder = Encoder(config()).eval()
    table = encoder.embed(tmp_path / "images")
    assert table.shape == (6, encoder.width)
    assert table.index.name == "path"
    again = encoder.embed([str(p) for p in table.index], batch_size=2)
    np.testing.assert_allclose(table, again, rtol=1e-4, atol=1e-5)
    arrays = np.stack([read_image(p) for p in table.index])
    np.testing.assert_allclose(table, encoder.embed(arrays), rtol=1e-4, atol=1e-5)


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
    weights, card = tmp_path / "encoder.safetensors", tmp_path / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "no config":
        card.unlink()
    elif damage == "not json":
        card.write_text("{")
    else:
        card.write_text(json.dumps({**json.loads(card.read_text()), "model": "resnet18"}))
    with pytest.raises(InputError, match=str(tmp_path)):
        load_encoder(tmp_path)
