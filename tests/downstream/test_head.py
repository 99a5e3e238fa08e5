from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from conftest import blobs

from simtrail.downstream.fitting import fit_head
from simtrail.downstream.head import Head, probabilities
from simtrail.errors import InputError


@pytest.mark.parametrize("kind", ["linear", "svc", "knn"])
def test_each_kind_learns_saves_and_loads(kind, tmp_path):
    x, y = blobs(200, spread=0.7)
    fitted = fit_head(x[:120], y[:120], np.arange(120), 0.05, (kind,))
    assert fitted.head.kind == kind
    assert fitted.score > 0.8
    p = fitted.head.probabilities(x[120:])
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert (np.array(fitted.head.names)[p.argmax(1)] == y[120:]).mean() > 0.8
    fitted.head.save(tmp_path)
    again = Head.load(tmp_path)
    np.testing.assert_array_equal(again.probabilities(x[120:]), p)
    assert vars(again).keys() == vars(fitted.head).keys()
    assert (again.threshold, again.names, again.error) == (fitted.head.threshold, fitted.head.names, 0.05)
    dataclasses.replace(fitted.head, threshold=np.inf).save(tmp_path)
    assert "Infinity" not in (tmp_path / "head.json").read_text()  # which is no JSON
    assert Head.load(tmp_path).threshold == np.inf
    (tmp_path / "head.json").write_text("{")
    with pytest.raises(InputError, match="no head, or a damaged one"):
        Head.load(tmp_path)


def test_evidence_is_the_nearest_of_other_images_and_unlike_is_a_rank():
    bank = np.eye(8, dtype=np.float32)[[0, 0, 1, 1, 2, 2]] + 0.05 * np.random.default_rng(0).random((6, 8))
    groups = np.arange(6)
    queries = np.stack([np.eye(8)[1], np.eye(8)[7]]).astype(np.float32)
    labels = np.array(list("aabbcc"))
    head = fit_head(bank.astype(np.float32), labels, groups, kinds=("knn",), paths=list("uvwxyz")).head
    rows, unlike = head.evidence(queries)
    assert set(rows[0, :2]) == {2, 3}
    assert rows.shape == (2, 3)
    assert unlike[0] < 0.9
    assert unlike[1] == 1
    table = head.predict(queries)
    assert set(table.loc[0, ["nearest_1", "nearest_2"]]) == {"w", "x"}
    assert table["unlike"].tolist() == [round(unlike[0], 3), 1]
    assert not table.loc[1, "use"]


def test_tags_are_named_and_those_in_doubt_are_listed_apart():
    weights = np.array([[4, 0, -4], [0, 0.2, 0]], np.float32)
    head = Head("linear", 1, ["a", "b", "c"], {"weights": weights, "bias": np.zeros(3)}, threshold=0.8, target="tags")
    table = head.predict(np.array([[1, 1], [-1, 40]], np.float32))
    assert table["predicted"].tolist() == ["a", "b;c"]
    assert table["unsure"].tolist() == ["b", ""]
    assert table["use"].tolist() == [False, True]
    assert table.loc[0, "probability of a"] == round(float(1 / (1 + np.exp(-4))), 4)
    np.testing.assert_allclose(head.probabilities(np.array([[0, 0]], np.float32)), 0.5)
    assert Head("linear", 1, ["a"], {"weights": weights[:, 2:], "bias": np.zeros(1)}, target="tags").predict(
        np.ones((1, 2), np.float32)
    )["predicted"].tolist() == ["-"]


def test_neighbours_vote_for_tags_and_numbers():
    bank = np.array([[1, 0], [1, 0.01], [0, 1]], np.float32)
    arrays = {"bank": bank, "labels": np.array([[1, 0], [1, 1], [0, 1]], np.float32)}
    tags = Head("knn", 2, ["a", "b"], arrays, target="tags")
    np.testing.assert_allclose(probabilities(tags.scores(bank[:1]), "tags", 1), [[1, 0.5]], atol=1e-3)
    number = Head("knn", 2, ["mm"], {"bank": bank, "labels": np.array([[10], [12], [90]], np.float32)}, target="number")
    np.testing.assert_allclose(number.predict(bank[:1])["predicted"], 11, atol=0.01)


def test_a_head_of_an_earlier_version_predicts_classes(tmp_path):
    x, y = blobs(60)
    fit_head(x, y, np.arange(60)).head.save(tmp_path)
    tree = json.loads((tmp_path / "head.json").read_text())
    del tree["target"], tree["labelled"]
    (tmp_path / "head.json").write_text(json.dumps(tree))
    assert [*Head.load(tmp_path).predict(x)] == ["predicted", "probability", "use", "second", "second_probability"]
