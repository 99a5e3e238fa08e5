from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import photographs, with_changes

from simtrail.data.dataset import Dataset
from simtrail.data.manifest import scan
from simtrail.data.pack import pack, statistics
from simtrail.data.recipe import make_recipe
from simtrail.errors import InputError
from simtrail.model.encoder import EncoderConfig
from simtrail.training import loop
from simtrail.training.schedule import adamw, learning_rate
from simtrail.training.state import ResumeState

TINY = {
    "prepare.size": 32,
    "pretrain.model": "resnet10t",
    "pretrain.hidden": 32,
    "pretrain.projection": 16,
    "pretrain.batch_size": 8,
    "pretrain.learning_rate": 0.004,
    "pretrain.epochs": 3,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    photographs(folder / "data/images", each=8)
    dataset = Dataset(folder / "data")
    manifest, _ = scan(dataset)
    recipe = make_recipe(manifest, dataset.declaration, with_changes(TINY).prepare)
    (folder / "packed").mkdir()
    images = pack(dataset.folder, manifest, recipe, folder / "packed")
    rows = np.arange(0, 24)
    return images, rows, EncoderConfig(model="resnet10t", stem="standard", recipe=recipe, **statistics(images, rows))


def fit(prepared, changes=None, **kwargs):
    images, rows, config = prepared
    return loop.fit(images, rows, config, with_changes({**TINY, **(changes or {})}).pretrain, **kwargs)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns_and_its_history_has_every_epoch_once(prepared):
    encoder, history = fit(prepared, {"pretrain.epochs": 12})
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert [row["step"] for row in history] == [3 * i for i in range(1, 13)]
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    assert not encoder.training


def test_the_same_seed_gives_the_same_weights_and_another_does_not(prepared):
    first, _ = fit(prepared)
    assert same(first, fit(prepared)[0])
    assert not same(first, fit(prepared, {"pretrain.seed": 1})[0])


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(prepared, tmp_path, monkeypatch, epoch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    state = ResumeState(tmp_path, "key")

    def interrupt(history):
        if len(history) == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(prepared, state=state, on_epoch=interrupt)
    seen = []
    resumed, history = fit(prepared, state=state, on_epoch=lambda history: seen.append(len(history)))
    assert seen == list(range(epoch + 1, 4))
    undisturbed, expected = fit(prepared)
    assert same(resumed, undisturbed)
    assert [row["loss"] for row in history] == [row["loss"] for row in expected]


def test_max_steps_ends_the_run_and_the_schedule_with_it(prepared):
    _, history = fit(prepared, {"pretrain.max_steps": 4, "pretrain.warmup": 0.0})
    assert [row["step"] for row in history] == [3, 4]
    assert history[-1]["learning_rate"] == pytest.approx(learning_rate(3, 4, 0.004 * 8 / 256, 0.0))


def test_a_batch_larger_than_the_data_is_refused_by_key(prepared):
    with pytest.raises(InputError, match=r"pretrain\.batch_size = 64: must be ≤ 24"):
        fit(prepared, {"pretrain.batch_size": 64})


def test_a_loss_that_is_not_finite_stops_the_run_with_numbers(prepared, monkeypatch):
    monkeypatch.setattr(loop, "nt_xent", lambda z, t: z.sum() * torch.nan)
    with pytest.raises(FloatingPointError, match=r"loss is nan in epoch 1 \(steps 1 to 3, learning rate"):
        fit(prepared)


def test_only_the_training_rows_are_read(prepared, monkeypatch):
    images, rows, config = prepared
    read = []
    monkeypatch.setattr(images, "rows", lambda i, inner=images.rows: read.append(i) or inner(i))
    loop.fit(images, rows[:16], config, with_changes(TINY).pretrain)
    assert set(np.concatenate(read)) == set(range(16))


def test_the_learning_rate_rises_and_falls_as_stated():
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert learning_rate(0, 1, 1.0, 0.0) == 1


def test_biases_and_normalisation_are_not_decayed():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    decayed, exempt = adamw([module], 0.1).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 2)]
    assert decayed["weight_decay"] == 0.1
    assert len(exempt["params"]) == 3
    assert exempt["weight_decay"] == 0


def test_a_state_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    state = ResumeState(tmp_path, "k")
    assert state.load() is None
    state.save({"x": 1})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        state.save({"x": 2})
    assert state.load() == {"x": 1}
    assert len(list(tmp_path.iterdir())) == 1
    assert ResumeState(tmp_path, "other").load() is None
