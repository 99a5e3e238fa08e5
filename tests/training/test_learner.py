from __future__ import annotations

import pytest
import torch
from conftest import with_changes

from simtrail.augment.views import TwoViews
from simtrail.data.recipe import Recipe
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.training.learner import Learner

EVERYTHING = {
    f"pretrain.augment.{name}.p": 1.0
    for name in (
        "geometry.crop", "geometry.horizontal_flip", "geometry.vertical_flip", "geometry.rotation",
        "geometry.perspective", "geometry.thin_plate_spline", "color.jitter", "color.grayscale", "color.posterize",
        "texture.blur", "texture.sharpness", "texture.erasing",
    )
}  # fmt: skip
RESNET = {"pretrain.encoder.model": "resnet10t"}
VIT = {
    "pretrain.encoder.model": "vit_tiny_patch16_224",
    "pretrain.encoder.vit": {"patch_size": 8, "features": "both", "layers": 2},
}


def learner(changes: dict, bands: int = 3, batch_size: int = 4) -> tuple[Learner, torch.Tensor]:
    p = with_changes({"pretrain.batch_size": batch_size, "pretrain.precision": "fp32", **changes}).pretrain
    names = ["red", "green", "blue", *[f"band{i}" for i in range(4, bands + 1)]]
    recipe = Recipe(
        size=32, fit="pad", background=0.5, composite=True, file_dtype="uint16", file_bands=bands, mask_band=None,
        bands=names, dtype="uint16", low=[0] * bands, high=[65535] * bands,
    )  # fmt: skip
    torch.manual_seed(0)
    config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=recipe, mean=[0.5] * bands, std=[0.3] * bands)
    batch = torch.rand(batch_size, bands, 32, 32, generator=torch.Generator().manual_seed(1))
    return Learner(Encoder(config).train(), TwoViews(p.augment, recipe), p), batch


@pytest.mark.parametrize("bands", [7, 408])
@pytest.mark.parametrize("model", [RESNET, VIT], ids=["resnet", "vit"])
def test_many_bands_go_through_every_augmentation_and_the_encoder(bands, model):
    mine, batch = learner({**EVERYTHING, **model}, bands)
    before = [w.clone() for w in mine.encoder.parameters()]
    loss, top1 = mine.step(batch, 0.001, 0, 0, 0)
    assert torch.isfinite(loss)
    assert 0 <= top1 <= 1
    changed = [not torch.equal(a, b) for a, b in zip(before, mine.encoder.parameters(), strict=True)]
    assert changed[0]  # the first layer has a gradient
    assert changed[-1]


def test_the_gradient_is_clipped():
    mine, batch = learner({"pretrain.clip": 1e-3, "pretrain.optimiser": "sgd", "pretrain.weight_decay": 0.0})
    before = [w.clone() for w in mine.encoder.parameters()]
    mine.step(batch, 1.0, 0, 0, 0)
    moved = sum(((a - b) ** 2).sum() for a, b in zip(before, mine.encoder.parameters(), strict=True)).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=0.01)


def test_the_moving_average_decays_as_stated():
    mine, batch = learner({"pretrain.ema": 0.75})
    seen = []
    for step in range(3):
        mine.step(batch, 0.01, 0, 0, step)
        seen.append(mine.encoder.head[0][0].weight.detach().clone())
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    torch.testing.assert_close(mine.kept.head[0][0].weight, expected)


def test_gradient_checkpointing_changes_nothing_and_is_refused_where_there_is_none():
    plain, batch = learner(RESNET)
    saving, _ = learner({**RESNET, "pretrain.gradient_checkpointing": True})
    for step in range(2):
        assert plain.step(batch, 0.01, 0, 0, step)[0] == pytest.approx(saving.step(batch, 0.01, 0, 0, step)[0].item())
    with pytest.raises(InputError, match=r"pretrain\.gradient_checkpointing: not offered by pit_ti_224"):
        learner({"pretrain.encoder.model": "pit_ti_224", "pretrain.gradient_checkpointing": True})


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_losses():
    plain, batch = learner(RESNET)
    compiled, _ = learner({**RESNET, "pretrain.compile": True})
    for step in range(3):
        loss = plain.step(batch, 0.001, 0, 0, step)[0].item()
        assert compiled.step(batch, 0.001, 0, 0, step)[0].item() == pytest.approx(loss, rel=1e-2)
