from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

SCRIPT = """
import json, sys
import torch
from conftest import with_changes
from simtrail.augment.views import TwoViews
from simtrail.data.recipe import Recipe
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.training.distributed import processes, rank, world
from simtrail.training.learner import Learner

changes = json.loads(sys.argv[1])
p = with_changes({"pretrain.precision": "fp32", "pretrain.batch_size": 8, **changes}).pretrain
recipe = Recipe(
    size=32, fit="pad", background=0, composite=True, file_dtype="uint8", file_bands=3, mask_band=None,
    bands=["red", "green", "blue"], modalities={"rg": [0, 1], "b": [2]}, dtype="uint8", low=[0] * 3, high=[255] * 3,
)
batch = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
teacher = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)) if p.teacher.weights else None
torch.set_num_threads(1)


def train():
    torch.manual_seed(0)
    settings = {"mean": [0.5] * 3, "std": [0.3] * 3, "terms": p.terms, "teacher_width": 0 if teacher is None else 5}
    sides = {"view_size": p.view_size, "reduced": False}
    config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=recipe, **sides, **settings)
    encoder = Encoder(config).train()
    learner = Learner(encoder, TwoViews(p.augment, recipe, config.view_side, coordinates=p.terms.local > 0), p)
    size = len(batch) // world()
    part = batch[rank() * size : (rank() + 1) * size]
    groups = torch.arange(len(batch)) // 2 if p.positives == "group" else None
    loss, _, projections = learner._gradient(part, (0, 0, 0), groups, teacher)
    grads = {k: w.grad.clone() for k, w in encoder.named_parameters()}
    buffers = {k: b.clone() for k, b in encoder.named_buffers()}
    later = [learner.step(part, 0.001, 0, 0, step, groups=groups, teacher=teacher)[0].item() for step in (1, 2)]
    return {"loss": loss.item(), "projections": projections, "grads": grads, "buffers": buffers, "later": later}


single = train()
with processes():
    together = train()
    if rank() == 0:
        torch.save([world(), single, together], sys.argv[2])
"""


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"pretrain.optimiser": "sgd"}, id="resnet", marks=pytest.mark.slow),
        pytest.param(  # timm's own batch normalisation
            {"pretrain.encoder.model": "test_efficientnet", "pretrain.optimiser": "lars"},
            id="efficientnet",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "pretrain.encoder.model": "test_convnext",
                "pretrain.head.batch_norm": False,
                "pretrain.micro_batch_size": 2,
                "pretrain.positives": "group",
                "pretrain.teacher.weights": "those of the test",
            },
            id="cached",
            marks=pytest.mark.slow,
        ),
        pytest.param(  # without a fused head, nothing may wait for its gradient
            {
                "pretrain.encoder.fusion": "separate",
                "pretrain.terms": {"fused": 0.0, "intra": 1.0, "cross": 1.0},
                "pretrain.optimiser": "sgd",
            },
            id="separate",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"pretrain.encoder.fusion": "attention", "pretrain.local_views": 2, "pretrain.optimiser": "sgd"},
            id="attention",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "pretrain.encoder.model": "test_resnet",
                "pretrain.encoder.stem": "small",
                "pretrain.terms": {"fused": 0.0, "intra": 0.0, "cross": 0.0, "local": 1.0},
                "pretrain.view_size": 16,
                "pretrain.optimiser": "sgd",
            },
            id="local",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_with_half_a_batch_each_equal_one_with_the_whole_batch(tmp_path, changes):
    script, out = tmp_path / "script.py", tmp_path / "out.pt"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", script, json.dumps(changes), out]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=env, check=True, capture_output=True)
    world, one, two = torch.load(out, weights_only=True)
    assert world == 2
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    torch.testing.assert_close(two["projections"], one["projections"], atol=1e-5, rtol=1e-5)
    for group in ("grads", "buffers"):
        for name, expected in one[group].items():
            error = (two[group][name] - expected).abs().max() / expected.abs().max().clamp(min=1)
            assert error < 1e-5, f"{name} {error:.2g}"
    assert two["later"] == pytest.approx(one["later"], abs=1e-4)
