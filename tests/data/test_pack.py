from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photographs, with_changes

from simtrail.data import pack as packing
from simtrail.data.dataset import Dataset
from simtrail.data.loader import batches, draws, epoch_rows
from simtrail.data.manifest import scan
from simtrail.data.reading.readers import read_image
from simtrail.data.recipe import conform, make_recipe
from simtrail.errors import InputError

PREPARE = with_changes({"prepare.size": 16}).prepare


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_BYTES", 10 * 3 * 16 * 16)  # 10 images per shard
    photographs(tmp_path / "data/images")
    dataset = Dataset(tmp_path / "data")
    manifest, _ = scan(dataset)
    recipe = make_recipe(manifest, dataset.declaration, PREPARE)
    (tmp_path / "out").mkdir()
    images = packing.pack(dataset.folder, manifest, recipe, tmp_path / "out").images
    return manifest, recipe, images, tmp_path


def test_rows_are_the_conformed_images_across_shards(packed):
    manifest, recipe, images, folder = packed
    assert len(images) == len(manifest) == 36
    order = np.array([35, 0, 9, 10, 11, 20, 3])
    expected = [conform(read_image(folder / "data" / manifest["path"][i]), recipe) for i in order]
    np.testing.assert_array_equal(images.rows(order), np.concatenate(expected))
    whole = images.rows(np.arange(36))
    np.testing.assert_array_equal(whole[order], images.rows(order))
    np.testing.assert_array_equal(images.rows(np.arange(8, 13)), whole[8:13])
    assert images.rows(np.array([], int)).shape == (0, 3, 16, 16)


def test_the_files_of_packed_images_are_not_mapped_into_memory(packed):
    images, folder = packed[2:]
    images.rows(np.arange(36))
    assert str(folder / "out") not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(("killed", "start"), [(KeyboardInterrupt, 30), (None, 0)])
def test_a_killed_packing_continues_after_its_last_part(packed, monkeypatch, killed, start):
    manifest, recipe, images, folder = packed
    seen = []

    def in_turn(function, items, *_, **__):
        for item in items:
            if killed and len(seen) == 32:
                raise killed
            seen.append(item[1])
            yield function(item)

    monkeypatch.setattr(packing, "PART", 15)
    monkeypatch.setattr(packing, "in_parallel", in_turn)
    new, state, paths = folder / "new", folder / "state", manifest["path"].tolist()
    new.mkdir()
    (state / "other").mkdir(parents=True)
    if killed:
        with pytest.raises(killed):
            packing.pack(folder / "data", manifest, recipe, new, state)
        assert not list(new.iterdir())
        assert seen == paths[:32]
        killed = None
        seen.clear()
    result = packing.pack(folder / "data", manifest, recipe, new, state)
    assert seen == paths[start:]  # behind the last part that was complete
    np.testing.assert_array_equal(result.images.rows(np.arange(36)), images.rows(np.arange(36)))
    assert not state.exists()
    assert len(result.moments) == 36


def test_a_packing_that_is_killed_while_it_moves_its_files_begins_again(packed, monkeypatch):
    manifest, recipe, images, folder = packed
    new, state, moved = folder / "new", folder / "state", []
    new.mkdir()

    def move(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(shutil.copy(source, target))
        source.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(packing.shutil, "move", move)
        with pytest.raises(KeyboardInterrupt):
            packing.pack(folder / "data", manifest, recipe, new, state)
    shutil.rmtree(new)  # as the stage does
    new.mkdir()
    result = packing.pack(folder / "data", manifest, recipe, new, state)
    np.testing.assert_array_equal(result.images.rows(np.arange(36)), images.rows(np.arange(36)))


def test_an_incomplete_shard_is_named(packed):
    images, folder = packed[2:]
    shard = folder / "out/images-0002.npy"
    os.truncate(shard, shard.stat().st_size - 1)
    images.rows(np.arange(29))
    with pytest.raises(InputError, match=r"images-0002\.npy: is incomplete; run the prepare stage again"):
        images.rows(np.arange(30))


def test_packing_again_in_the_same_process_fills_the_new_files(packed, monkeypatch):
    manifest, recipe, images, folder = packed
    monkeypatch.setattr(packing, "in_parallel", lambda function, items, *_, **__: (function(item) for item in items))
    for _ in range(2):
        shutil.rmtree(folder / "out")
        (folder / "out").mkdir()
        again = packing.pack(folder / "data", manifest, recipe, folder / "out").images
        np.testing.assert_array_equal(again.rows(np.arange(36)), images.rows(np.arange(36)))


def test_statistics_are_those_of_the_pixels_of_only_the_given_rows(packed):
    manifest, recipe, images, folder = packed
    rows = np.array([1, 5, 12, 33])
    values = images.rows(rows).astype(np.float64) / 255
    packed = packing.pack(folder / "data", manifest, recipe, folder / "out")
    result = packing.statistics(packed.moments[rows])
    np.testing.assert_allclose(result["mean"], values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(result["std"], values.std((0, 2, 3)), rtol=1e-9)


def test_an_image_that_does_not_fit_is_not_reported_as_changed(packed):
    manifest, recipe, _, folder = packed
    other = recipe.model_copy(update={"file_bands": 5})
    with pytest.raises(InputError, match=r"class0/.*with 5 bands") as error:
        packing.pack(folder / "data", manifest, other, folder / "out")
    assert "changed since" not in str(error.value)


def test_a_file_changed_since_the_check_is_refused_and_named(packed):
    manifest, recipe, _, folder = packed
    (folder / "data" / manifest["path"][4]).write_bytes(b"changed")
    with pytest.raises(InputError, match=r"class0/.*changed since it was checked"):
        packing.pack(folder / "data", manifest, recipe, folder / "out")


def test_an_epoch_is_a_seeded_order_of_full_batches_of_the_given_rows(packed):
    _, _, images, _ = packed
    rows = np.arange(0, 36, 2)

    def epoch(seed, number):
        return torch.cat(list(batches(images, epoch_rows(rows, 4, seed, number), torch.device("cpu"))))

    first = epoch(0, 0)
    assert first.shape == (16, 3, 16, 16)
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, epoch(0, 0))
    assert not torch.equal(first, epoch(0, 1))
    assert not torch.equal(first, epoch(1, 0))
    allowed = {image.tobytes() for image in images.rows(rows)}
    drawn = [(image * 255).round().to(torch.uint8).numpy().tobytes() for image in first]
    assert set(drawn) <= allowed
    assert len(set(drawn)) == 16


def test_images_of_a_group_are_drawn_in_pairs_and_with_others_in_every_epoch():
    group = np.repeat(np.arange(12), [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6])
    rows = np.arange(3, 40)
    pairs = []
    for epoch in range(8):
        order = epoch_rows(rows, 1, 0, epoch, group).ravel()
        assert sorted(order) == rows.tolist()
        assert order.tolist() == epoch_rows(rows, 1, 0, epoch, group).ravel().tolist()
        together = {tuple(sorted(two)) for two in pairwise(order.tolist()) if group[two[0]] == group[two[1]]}
        assert len(together) >= sum(np.bincount(group[rows]) // 2)
        pairs.append(together)
    assert len(set.union(*pairs)) > 2 * len(pairs[0])
    assert epoch_rows(rows, 5, 0, 0, group).shape == (7, 5)


@pytest.mark.parametrize(
    "weight",
    [
        np.repeat([1.0, 5.0, 0.0], [20, 10, 10]),
        np.repeat([1.0, 1000.0], [38, 2]),  # more draws than batches
        np.repeat([0.0, 1.0], [32, 8]),  # just enough for a batch
        np.random.default_rng(0).random(40),
    ],
)
def test_images_are_drawn_in_proportion_to_their_weights_and_none_twice_in_a_batch(weight):
    rows = np.arange(3, 43)
    of_row = np.concatenate([np.ones(3), weight])
    counts = np.zeros(43)
    for epoch in range(400):
        drawn = epoch_rows(rows, 8, 0, epoch, weight=of_row)
        assert drawn.shape == (5, 8)
        assert np.array_equal(drawn, epoch_rows(rows, 8, 0, epoch, weight=of_row))
        assert all(len(set(batch)) == 8 for batch in drawn.tolist())
        counts += np.bincount(drawn.ravel(), minlength=43)
    expected = draws(weight, 5, 8)
    assert expected.sum() == pytest.approx(40)
    assert expected.max() <= 5
    uncapped = (expected < 5) & (weight > 0)
    ratio = expected[uncapped] / weight[uncapped]
    np.testing.assert_allclose(ratio, ratio.mean() if len(ratio) else [])
    assert np.abs(counts[3:] / 400 - expected).max() < 0.1
    assert not counts[:3].any()
    assert not counts[3:][weight == 0].any()


def test_every_pair_of_images_can_meet_in_a_batch_when_images_are_drawn_by_weight():
    met = np.zeros((12, 12), bool)
    for epoch in range(300):
        for batch in epoch_rows(np.arange(12), 4, 0, epoch, weight=np.repeat([1.0, 2.0], 6)):
            met[np.ix_(batch, batch)] = True
    assert met.all()
