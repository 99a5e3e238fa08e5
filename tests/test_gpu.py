"""Results on a GPU equal the results on the CPU, and training resumes. Run with `pytest -m gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import with_changes

from simtrail.augment.views import TwoViews
from simtrail.data.loader import batches, epoch_rows
from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.model.objectives import OBJECTIVES
from simtrail.training.learner import Learner

pytestmark = pytest.mark.gpu
RECIPE = Recipe(
    size=32, fit="pad", background=0.5, composite=True, file_dtype="uint8", file_bands=5, mask_band=None,
    bands=["red", "green", "blue", "uv", "nir"], dtype="uint8", low=[0] * 5, high=[255] * 5,
)  # fmt: skip
EVERYTHING = {f"pretrain.augment.{a}.p": 1.0 for a in (
    "geometry.rotation", "geometry.vertical_flip", "color.grayscale", "texture.blur", "texture.sharpness",
    "texture.erasing",
)}  # fmt: skip


def learner(device: str, changes: dict) -> Learner:
    p = with_changes({"pretrain.batch_size": 16, "pretrain.precision": "fp32", **changes}).pretrain
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=RECIPE, mean=[0.5] * 5, std=[0.3] * 5)
        encoder = Encoder(config).to(device).train()
    return Learner(encoder, TwoViews(p.augment, RECIPE), p)


def batch(device: str) -> torch.Tensor:
    return torch.rand(16, 5, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_views_equal_views_on_the_cpu():
    two_views = TwoViews(with_changes(EVERYTHING).pretrain.augment, RECIPE)
    gpu = two_views(batch("cuda"), 0, 1).cpu()
    different = ((gpu - two_views(batch("cpu"), 0, 1)).abs() > 1e-3).float().mean()
    assert different < 1e-3  # rounding may move an edge by one pixel


@pytest.mark.parametrize("objective", OBJECTIVES.values())
def test_objectives_equal_objectives_on_the_cpu(objective):
    z = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", "cuda"):
        projections = z.to(device, copy=True).requires_grad_()
        loss = objective(projections, 0.1, rows=100)
        loss.backward()
        results.append((loss.cpu(), projections.grad.cpu()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_step_equals_the_loss_on_the_cpu():
    cpu, gpu = (learner(d, {}).step(batch(d), 0.001, 0, 0, 0)[0].item() for d in ("cpu", "cuda"))
    assert gpu == pytest.approx(cpu, rel=1e-3)


def test_the_losses_of_twenty_steps_are_those_on_the_cpu():
    curves = []
    for device in ("cpu", "cuda"):
        trained = learner(device, {})
        curves.append([trained.step(batch(device), 0.001, 0, 0, step)[0].item() for step in range(20)])
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.03)


@pytest.mark.parametrize("changes", [{}, EVERYTHING | {"pretrain.augment.geometry.crop.min_cover": 0.5}])
def test_reading_and_a_step_never_wait_for_the_gpu(tmp_path, changes):
    np.save(tmp_path / "images-0000.npy", np.random.default_rng(0).integers(0, 256, (64, 5, 32, 32), dtype=np.uint8))
    read = batches(PackedImages(tmp_path, RECIPE), epoch_rows(np.arange(64), 16, 0, 0), torch.device("cuda"))
    trained = learner("cuda", changes | {"pretrain.precision": "bf16"})
    for step in range(2):  # allocates
        trained.step(next(read), 0.001, 0, 0, step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile() as profile:
            trained.step(next(read), 0.001, 0, 0, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    copies = {event.key for event in profile.key_averages() if "Memcpy HtoD" in event.key}
    assert copies == {"Memcpy HtoD (Pinned -> Device)"}  # from other memory, a copy waits for the work before it


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrain.precision": "bf16", "pretrain.compile": True},
        {"pretrain.precision": "fp16", "pretrain.micro_batch_size": 8, "pretrain.gradient_checkpointing": True},
        {"pretrain.optimiser": "lars", "pretrain.learning_rate": 1.0, "pretrain.ema": 0.9, "pretrain.clip": 1.0},
    ],
    ids=["bf16 compiled", "fp16 cached", "lars ema"],
)
def test_every_way_to_train_lowers_the_loss_and_its_state_can_be_restored(changes):
    trained = learner("cuda", changes)
    losses = [trained.step(batch("cuda"), 0.002, 0, 0, 0)[0].item() for _ in range(12)]
    assert losses[-1] < losses[0]
    restored = learner("cuda", changes)
    restored.load_state_dict(trained.state_dict())
    loss, restored_loss = (x.step(batch("cuda"), 0.002, 0, 0, 1)[0].item() for x in (trained, restored))
    assert loss == pytest.approx(restored_loss, rel=1e-3)


def test_out_of_memory_suggests_a_size_that_fits():
    from simtrail.errors import InputError

    torch.cuda.set_per_process_memory_fraction(min(1.0, 3 * 2**30 / torch.cuda.get_device_properties(0).total_memory))
    try:
        images = 4096
        large = learner("cuda", {"pretrain.batch_size": images, "pretrain.encoder.stem": "small"})
        with pytest.raises(
            InputError, match=r"batch_size = 4096: out of memory .* fit: set pretrain\.micro_batch_size"
        ):
            large.step(torch.rand(images, 5, 32, 32, device="cuda"), 0.001, 0, 0, 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_linear_probe_has_the_same_coefficients_as_on_the_cpu():
    from simtrail.evaluation.probe import fit_logistic

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 2000)
    features = (rng.normal(size=(2000, 64)) + np.eye(64)[labels]).astype(np.float32)
    cpu, gpu = (
        next(fit_logistic(features, labels, 5, (0.1,), device=torch.device(device))) for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(gpu.weights, cpu.weights, atol=1e-3)
