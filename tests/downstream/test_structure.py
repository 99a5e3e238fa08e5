from __future__ import annotations

import numpy as np
import pytest
from conftest import blobs

from simtrail.downstream.structure import clusters, outliers, search
from simtrail.errors import InputError

PATHS = np.array([f"{i}.png" for i in range(120)], dtype=object)


def test_search_finds_the_images_with_the_highest_cosine_but_not_the_query_itself():
    x, _ = blobs(120)
    table = search(x, PATHS, x[[7, 3]] * 5, PATHS[[7, 3]], 4)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for query, rows in table.groupby("query"):
        i = int(query.removesuffix(".png"))
        order = [j for j in np.argsort(-unit @ unit[i]) if j != i][:4]
        assert rows["path"].to_list() == PATHS[order].tolist()
        np.testing.assert_allclose(rows["similarity"], (unit @ unit[i])[order], atol=1e-4)
    assert table["rank"].to_list() == [1, 2, 3, 4] * 2
    other = search(x, PATHS, x[[7]], np.array(["elsewhere.png"]), 2)
    assert other["path"][0] == "7.png"
    assert len(search(x[:3], PATHS[:3], x[[0]], PATHS[[0]], 10)) == 2


def test_clusters_are_those_of_the_images_the_largest_first():
    x, y = blobs(120, classes=4, spread=0.05)
    for found in (clusters(x, 4), clusters(x, smallest=10)):
        number = found["cluster"].to_numpy()
        for name in np.unique(y):
            assert len(set(number[y == name])) == 1
        sizes = np.bincount(number)[1:5]
        assert (np.diff(sizes) <= 0).all()
        assert (found["similarity"] > 0.9).all()
    noise = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    number = clusters(np.concatenate([x, noise]))["cluster"].to_numpy()
    assert (number[120:] == 0).mean() > 0.5
    assert (number[:120] > 0).all()
    assert set(clusters(x, 4)["cluster"]) == {1, 2, 3, 4}
    with pytest.raises(InputError, match="3 images: too few for 4 clusters"):
        clusters(x[:3], 4)
    with pytest.raises(InputError, match=r"12 images: too few for clusters of 10 images; lower --smallest"):
        clusters(x[:12])


def test_odd_images_come_first_even_two_copies_of_one():
    x, _ = blobs(120, classes=2, spread=0.1)
    odd = np.zeros(8, np.float32)
    odd[0] = 5
    x[[40, 41]] = odd
    table = outliers(x, PATHS)
    assert set(table["path"][:2]) == {"40.png", "41.png"}
    assert len(table) == 120
    assert table["distance"].is_monotonic_decreasing
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    row = table.iloc[5]
    i = int(row["path"].removesuffix(".png"))
    distances = np.sort(np.delete(1 - unit @ unit[i], i))
    assert abs(distances[:5].mean() - row["distance"]) < 1e-4
    with pytest.raises(InputError, match="6 images: too few"):
        outliers(x[:6], PATHS[:6])


def test_copies_of_one_image_are_no_outliers():
    x = np.repeat(np.eye(8, dtype=np.float32)[:2], 10, 0)
    assert (outliers(x, PATHS[:20])["distance"] < 1e-6).all()
