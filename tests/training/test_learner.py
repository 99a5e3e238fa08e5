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
RESNET = {"pretrain.encoder.model": "test_resnet"}
VIT = {
    "pretrain.encoder.model": "vit_tiny_patch16_224",
    "pretrain.encoder.vit": {"patch_size": 8, "features": "both", "layers": 2},
}


def learner(changes: dict, bands: int = 3, batch_size: int = 4, size: int = 32) -> tuple[Learner, torch.Tensor]:
    p = with_changes({"pretrain.batch_size": batch_size, "pretrain.precision": "fp32", **changes}).pretrain
    names = ["red", "green", "blue", *[f"band{i}" for i in range(4, bands + 1)]]
    recipe = Recipe(
        size=size, fit="pad", background=0.5, composite=True, file_dtype="uint16", file_bands=bands, mask_band=None,
        bands=names, dtype="uint16", low=[0] * bands, high=[65535] * bands,
        modalities={"rgb": [0, 1, 2], "rest": list(range(3, bands))} if bands > 3 else {},
    )  # fmt: skip
    torch.manual_seed(0)
    settings = {"mean": [0.5] * bands, "std": [0.3] * bands, "terms": p.terms}
    config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=recipe, view_size=p.view_size, **settings)
    batch = torch.rand(batch_size, bands, size, size, generator=torch.Generator().manual_seed(1))
    return Learner(Encoder(config).train(), TwoViews(p.augment, recipe, coordinates=p.terms.local > 0), p), batch


@pytest.mark.parametrize("bands", [7, 408])
@pytest.mark.parametrize("model", [RESNET, VIT], ids=["resnet", "vit"])
def test_many_bands_work_with_every_augmentation_and_the_encoder(bands, model):
    trained, batch = learner({**EVERYTHING, **model}, bands)
    before = [w.clone() for w in trained.encoder.parameters()]
    loss, measures = trained.step(batch, 0.001, 0, 0, 0)
    assert torch.isfinite(loss)
    assert set(measures) == {"contrastive_top1", "gradient_norm"}
    assert 0 <= measures["contrastive_top1"] <= 1
    changed = [not torch.equal(a, b) for a, b in zip(before, trained.encoder.parameters(), strict=True)]
    assert changed[0]  # the first layer has a gradient
    assert changed[-1]


def test_the_gradient_is_clipped():
    trained, batch = learner({"pretrain.clip": 1e-3, "pretrain.optimiser": "sgd", "pretrain.weight_decay": 0.0})
    before = [w.clone() for w in trained.encoder.parameters()]
    _, measures = trained.step(batch, 1.0, 0, 0, 0)
    moved = sum(((a - b) ** 2).sum() for a, b in zip(before, trained.encoder.parameters(), strict=True)).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=0.01)
    plain, _ = learner({"pretrain.optimiser": "sgd", "pretrain.weight_decay": 0.0})
    _, of_plain = plain.step(batch, 1.0, 0, 0, 0)
    distance = sum(((a - b) ** 2).sum() for a, b in zip(before, plain.encoder.parameters(), strict=True)).sqrt()
    assert of_plain["gradient_norm"].item() == pytest.approx(distance.item(), rel=1e-3)  # the step of SGD at rate 1
    assert measures["gradient_norm"].item() == pytest.approx(distance.item(), rel=1e-3)  # before clipping


def test_the_moving_average_decays_as_documented():
    trained, batch = learner({"pretrain.ema": 0.75})
    weights = []
    for step in range(3):
        trained.step(batch, 0.01, 0, 0, step)
        weights.append(trained.encoder.head[0][0].weight.detach().clone())
    expected = 0.75 * (0.75 * weights[0] + 0.25 * weights[1]) + 0.25 * weights[2]
    torch.testing.assert_close(trained.kept.head[0][0].weight, expected)


def test_gradient_checkpointing_changes_nothing_and_is_refused_if_the_model_has_none():
    plain, batch = learner(RESNET)
    checkpointed, _ = learner({**RESNET, "pretrain.gradient_checkpointing": True})
    for step in range(2):
        assert plain.step(batch, 0.01, 0, 0, step)[0] == pytest.approx(
            checkpointed.step(batch, 0.01, 0, 0, step)[0].item()
        )
    with pytest.raises(InputError, match=r"pretrain\.gradient_checkpointing: not offered by pit_ti_224"):
        learner({"pretrain.encoder.model": "pit_ti_224", "pretrain.gradient_checkpointing": True})


FUSED = {
    "pretrain.encoder.model": "test_resnet",
    "pretrain.encoder.fusion": "separate",
    "pretrain.terms": {"fused": 1.0, "intra": 0.5, "cross": 0.5},
}


def test_each_term_is_reported_and_the_loss_is_their_weighted_sum():
    trained, batch = learner(FUSED, bands=6)
    loss, measures = trained.step(batch, 0.001, 0, 0, 0)
    assert set(measures) == {"contrastive_top1", "gradient_norm", "loss_fused", "loss_intra", "loss_cross"}
    assert loss == pytest.approx(measures["loss_fused"] + 0.5 * measures["loss_intra"] + 0.5 * measures["loss_cross"])


@pytest.mark.parametrize(
    ("fusion", "terms"),
    [("separate", (1.0, 0.0, 0.0)), ("separate", (0.0, 1.0, 0.0)), ("separate", (0.0, 0.0, 1.0)),
     ("separate", (1.0, 1.0, 1.0)), ("attention", (1.0, 0.0, 0.0)), ("attention", (1.0, 0.5, 0.5))],
)  # fmt: skip
def test_every_weight_of_the_encoder_gets_a_gradient_from_the_terms(fusion, terms):
    named = dict(zip(("fused", "intra", "cross"), terms, strict=True))
    trained, batch = learner(
        {**FUSED, "pretrain.encoder.fusion": fusion, "pretrain.terms": named}, bands=6, batch_size=8
    )
    trained._gradient(batch, (0, 0, 0))
    assert [name for name, w in trained.encoder.named_parameters() if w.grad is None] == []
    for branch in trained.encoder.branches.values():
        assert branch.net.conv1[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("fusion", ["separate", "attention"])
@pytest.mark.parametrize("micro", [2, 4])
def test_cached_gradients_of_modalities_equal_the_gradients_of_the_whole_batch(fusion, micro):
    changes = {**FUSED, "pretrain.encoder.model": "test_convnext", "pretrain.head.batch_norm": False}
    changes |= {"pretrain.encoder.fusion": fusion}
    results = []
    for settings in (changes, {**changes, "pretrain.micro_batch_size": micro}):
        trained, batch = learner(settings, bands=6, batch_size=8)
        loss, measures, _ = trained._gradient(batch, (0, 0, 0))
        results.append((loss, measures, {name: w.grad for name, w in trained.encoder.named_parameters()}))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


def test_checkpointing_averaging_and_clipping_work_with_branches():
    changes = {"pretrain.gradient_checkpointing": True, "pretrain.ema": 0.5, "pretrain.clip": 1.0}
    plain, batch = learner({**FUSED, **RESNET}, bands=6)
    trained, _ = learner({**FUSED, **RESNET, **changes}, bands=6)
    assert trained.step(batch, 0.01, 0, 0, 0)[0] == pytest.approx(plain.step(batch, 0.01, 0, 0, 0)[0].item())
    assert all(branch.net.grad_checkpointing for branch in trained.encoder.branches.values())
    assert trained.kept.branches["rgb"] is not trained.encoder.branches["rgb"]
    trained.step(batch, 0.01, 0, 0, 1)
    assert not torch.equal(trained.kept.eval()(batch), trained.encoder.eval()(batch))


LOCAL = {"fused": 1.0, "intra": 0.0, "cross": 0.0, "local": 0.5}
SMALL = {"pretrain.encoder.model": "test_convnext", "pretrain.head.hidden": 32, "pretrain.head.output": 16}


@pytest.mark.parametrize("model", [RESNET, SMALL, VIT], ids=["resnet", "convnext", "vit"])
@pytest.mark.parametrize("objective", ["nt_xent", "dcl"])
@pytest.mark.parametrize("fused", [1.0, 0.0])
def test_the_local_term_is_reported_with_other_terms_and_trains_every_weight(model, objective, fused):
    changes = {**EVERYTHING, **model, "pretrain.terms": LOCAL | {"fused": fused}, "pretrain.objective": objective}
    trained, batch = learner(changes, size=64)
    trained._gradient(batch, (0, 0, 0))
    assert [name for name, w in trained.encoder.named_parameters() if w.grad is None] == []
    assert trained.encoder.local_heads[0][0][0].weight.grad.any()
    before = trained.encoder.local_heads[0][0][0].weight.clone()
    loss, measures = trained.step(batch, 0.001, 0, 0, 0)
    assert loss > 0
    assert not before.equal(trained.encoder.local_heads[0][0][0].weight)
    assert set(measures) == {"contrastive_top1", "gradient_norm", *(["loss_fused", "loss_local"] if fused else [])}
    if fused:
        assert loss == pytest.approx(measures["loss_fused"] + 0.5 * measures["loss_local"])


def test_the_local_term_falls_when_it_is_the_only_term():
    changes = {**SMALL, "pretrain.terms": LOCAL | {"fused": 0.0}, "pretrain.optimiser": "sgd"}
    trained, batch = learner(changes, size=64, batch_size=8)
    losses = [trained.step(batch, 0.05, 0, 0, 0)[0].item() for _ in range(12)]  # the same views each time
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_without_a_pair_of_patches_the_local_term_is_0_and_no_weight_changes(precision):
    changes = {**RESNET, "pretrain.terms": LOCAL | {"fused": 0.0}, "pretrain.precision": precision}
    trained, batch = learner({**changes, "pretrain.weight_decay": 0.0}, size=64)
    before = [w.clone() for w in trained.encoder.parameters()]
    loss, _ = trained.step(torch.full_like(batch, 0.5), 0.1, 0, 0, 0)  # only background
    assert loss == 0
    assert all(torch.equal(a, b) for a, b in zip(before, trained.encoder.parameters(), strict=True))


@pytest.mark.parametrize("fusion", ["concat", "separate", "attention"])
@pytest.mark.parametrize("micro", [2, 4])
def test_cached_gradients_of_patches_equal_the_gradients_of_the_whole_batch(fusion, micro):
    terms = LOCAL if fusion == "concat" else LOCAL | {"intra": 0.5, "cross": 0.5}
    changes = {**SMALL, "pretrain.encoder.fusion": fusion, "pretrain.terms": terms, "pretrain.head.batch_norm": False}
    results = []
    for settings in (changes, {**changes, "pretrain.micro_batch_size": micro}):
        trained, batch = learner(settings, bands=6, batch_size=8, size=64)
        loss, measures, _ = trained._gradient(batch, (0, 0, 0))
        results.append((loss, measures, {name: w.grad for name, w in trained.encoder.named_parameters()}))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


def test_checkpointing_and_averaging_work_with_a_local_term():
    changes = {**VIT, "pretrain.terms": LOCAL, "pretrain.encoder.model": "test_vit"}
    plain, batch = learner(changes, size=64)
    trained, _ = learner({**changes, "pretrain.gradient_checkpointing": True, "pretrain.ema": 0.5}, size=64)
    for step in range(2):
        assert trained.step(batch, 0.01, 0, 0, step)[0] == pytest.approx(plain.step(batch, 0.01, 0, 0, step)[0].item())
    assert trained.kept.local_heads[0][0][0].weight is not trained.encoder.local_heads[0][0][0].weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain.terms.local": -1.0}, "pretrain.terms.local = -1.0: must be ≥ 0"),
        ({"pretrain.terms.cross": 1.0}, "pretrain.terms.cross = 1.0: needs pretrain.encoder.fusion: separate or atten"),
        ({"pretrain.terms.intra": 0.5}, "pretrain.terms.intra = 0.5: needs pretrain.encoder.fusion: separate or atten"),
        ({"pretrain.terms.fused": 0.0}, "pretrain.terms: fused, intra, cross and local are 0: at least one must"),
        ({"pretrain.terms.cross": -1.0}, "pretrain.terms.cross = -1.0: must be ≥ 0"),
        (
            {"pretrain.terms.fused": 0.0, "pretrain.terms.cross": 1.0, "pretrain.encoder.fusion": "attention"},
            "pretrain.terms.fused = 0.0: must be > 0 with pretrain.encoder.fusion: attention, because only",
        ),
        ({"pretrain.encoder.modalities": []}, "pretrain.encoder.modalities = []: must"),
    ],
)  # fmt: skip
def test_terms_without_anything_to_compare_or_train_are_refused_by_key(changes, message):
    with pytest.raises(InputError) as error:
        with_changes(changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_losses():
    plain, batch = learner(RESNET)
    compiled, _ = learner({**RESNET, "pretrain.compile": True})
    for step in range(3):
        loss = plain.step(batch, 0.001, 0, 0, step)[0].item()
        assert compiled.step(batch, 0.001, 0, 0, step)[0].item() == pytest.approx(loss, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("model", [RESNET, {**VIT, "pretrain.encoder.model": "test_vit"}], ids=["resnet", "vit"])
def test_a_compiled_encoder_gives_the_same_local_losses(model):
    plain, batch = learner({**model, "pretrain.terms": LOCAL}, size=64)
    compiled, _ = learner({**model, "pretrain.terms": LOCAL, "pretrain.compile": True}, size=64)
    for step in range(2):
        loss = plain.step(batch, 0.001, 0, 0, step)[0].item()
        assert compiled.step(batch, 0.001, 0, 0, step)[0].item() == pytest.approx(loss, rel=1e-2)


@pytest.mark.slow
def test_compiled_branches_give_the_same_losses():
    plain, batch = learner({**FUSED, **RESNET, "pretrain.encoder.fusion": "attention"}, bands=6)
    compiled, _ = learner(
        {**FUSED, **RESNET, "pretrain.encoder.fusion": "attention", "pretrain.compile": True}, bands=6
    )
    for step in range(3):
        loss = plain.step(batch, 0.001, 0, 0, step)[0].item()
        assert compiled.step(batch, 0.001, 0, 0, step)[0].item() == pytest.approx(loss, rel=1e-2)
