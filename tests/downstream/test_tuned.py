from __future__ import annotations

import numpy as np
import pytest
from conftest import photographs, rgb_config

from simtrail.downstream.head import Head
from simtrail.downstream.tuned import pack_images, tune
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An encoder, the packed images of three classes, their labels and paths."""
    folder = tmp_path_factory.mktemp("tuned")
    encoder = Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).eval()
    photographs(folder / "photos", each=10)
    paths = sorted((folder / "photos").rglob("*.png"))
    (folder / "packed").mkdir()
    images, errors = pack_images(paths, encoder, folder / "packed")
    assert not errors
    return encoder, images, np.array([path.parent.name for path in paths]), paths


def test_a_fine_tuned_encoder_is_tested_on_groups_that_neither_side_learned_from(made, monkeypatch):
    monkeypatch.setattr("simtrail.downstream.fine_tune.LEAST_STEPS", 10)
    encoder, images, labels, paths = made
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    names = [str(path) for path in paths]
    groups = np.arange(30) // 2
    result = tune(encoder, images, labels, groups, names, 2, 0.4)
    assert (result.test["tuned"] == result.test["truth"]).mean() > 0.8
    learned = {names.index(path) // 2 for path in result.head.labelled}
    tested = {names.index(path) // 2 for path in result.test["path"]}
    assert len(tested) == 3
    assert not learned & tested
    assert result.epoch in (0, 1, 2)
    assert all((before[name] == value).all() for name, value in encoder.state_dict().items())
    table = result.head.predict(result.encoder.embed(paths).to_numpy())
    again = table["predicted"][[names.index(path) for path in result.test["path"]]]
    assert again.tolist() == result.test["tuned"].tolist()
    assert set(table["nearest_1"]) <= set(result.head.labelled)
    assert np.isfinite(result.head.threshold) == (1 / (len(tested) + 1) <= 0.4)
    assert isinstance(result.head, Head)


def test_what_can_not_be_fine_tuned_is_refused(made, tmp_path):
    encoder, images, labels, paths = made
    names = [str(path) for path in paths]
    with pytest.raises(InputError, match="images of 3 groups: fine-tuning needs at least 10"):
        tune(encoder, images, labels, np.arange(30) // 10, names, 1, 0.1)
    (tmp_path / "bad.png").write_bytes(b"damaged")
    assert list(pack_images([paths[0], tmp_path / "bad.png"], encoder, tmp_path)[1]) == [1]
    tiles = encoder.config.model_copy(update={"recipe": encoder.config.recipe.model_copy(update={"fit": "tile"})})
    with pytest.raises(InputError, match="cuts images into tiles"):
        pack_images(paths, Encoder(tiles), tmp_path)
