from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from simtrail.evaluation import structure
from simtrail.evaluation.structure import (
    clusters,
    components_needed,
    dimensions,
    duplicates,
    explained_variance,
    map_coordinates,
    retrieval,
    retrieval_between,
    sample,
)

RNG = np.random.default_rng(0)


def overlapping(n: int, classes: int = 4, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.integers(0, classes, n)
    return (RNG.normal(size=(n, d)) + 1.5 * np.eye(d)[labels]).astype(np.float32), labels


def cosines(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    q, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, bank))
    return q @ b.T


@pytest.mark.parametrize("k", [1, 10, 500])
def test_retrieval_equals_scikit_learn_query_by_query(k, monkeypatch):
    monkeypatch.setattr(structure, "HELD", 1000)  # 8 queries at a time, of 60
    (bank, labels), (queries, query_labels) = overlapping(120), overlapping(60, 5)  # the bank has no image of class 4
    precision, average = [], []
    for similarity, label in zip(cosines(queries, bank), query_labels, strict=True):
        if label < 4:
            precision.append((labels[np.argsort(-similarity)[:k]] == label).mean())
            average.append(average_precision_score(labels == label, similarity))
    measures = retrieval(bank, labels, queries, query_labels, k)
    assert measures == pytest.approx({f"precision_at_{k}": np.mean(precision), "map": np.mean(average)}, abs=1e-6)


def test_retrieval_from_constant_features_is_chance_whatever_the_order_of_the_bank():
    labels = np.repeat([0, 1], 2000)
    measures = retrieval(np.ones((4000, 3)), labels, np.ones((1, 3)), np.array([1]))
    assert measures["map"] == pytest.approx(0.5, abs=0.05)
    assert 0 < measures["precision_at_10"] < 1


def test_retrieval_of_classes_without_an_image_is_nan():
    measures = retrieval(np.eye(2), np.array([0, 0]), np.eye(2), np.array([1, 1]))
    assert np.isnan([measures["precision_at_10"], measures["map"]]).all()


def test_retrieval_from_many_images_uses_a_seeded_sample(monkeypatch):
    (bank, labels), (queries, query_labels) = overlapping(2000), overlapping(900)
    exact = retrieval(bank, labels, queries, query_labels)
    monkeypatch.setattr(structure, "BANK", 600)
    monkeypatch.setattr(structure, "QUERIES", 300)
    sampled, same, other = (retrieval(bank, labels, queries, query_labels, seed=s) for s in (1, 1, 2))
    assert sampled["map"] == pytest.approx(exact["map"], abs=0.05)
    assert sampled == same != other


def photographed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """40 images: 3 is a copy of 1; 7 and 9 are copies of 5; 21 is almost like 20, but has another hash."""
    features, hashes = RNG.normal(size=(40, 16)).astype(np.float32), np.array([f"h{i}" for i in range(40)])
    for copy, original in ((3, 1), (7, 5), (9, 5)):
        features[copy], hashes[copy] = features[original], hashes[original]
    features[21] = features[20] + np.float32(1e-3) * RNG.normal(size=16)
    return features, hashes, np.arange(40) // 2


@pytest.mark.parametrize("chunk_size", [100, 2**22])
def test_every_pair_of_copies_and_near_copies_is_in_the_table_once(chunk_size, monkeypatch):
    monkeypatch.setattr(structure, "HELD", chunk_size)
    features, hashes, block = photographed()
    table = duplicates(features, hashes, block)
    pairs = list(table[["first", "second", "kind", "same_group"]].itertuples(index=False, name=None))
    assert pairs[:4] == [(1, 3, "exact", False), (5, 7, "exact", False), (5, 9, "exact", False), (7, 9, "exact", False)]
    assert pairs[4:] == [(20, 21, "near", True)]
    assert table["angle"][:4].tolist() == [0, 0, 0, 0]
    assert table["angle"][4] == pytest.approx(
        np.degrees(np.arccos(cosines(features[20:21], features[21:22])[0, 0])), rel=1e-3
    )


def test_near_is_less_than_a_tenth_of_the_median_angle_to_the_nearest_neighbour():
    degrees = np.array([0, 10, 20, 30, 40.5, 41.4, 60, 61.2])  # nearest: 10, 10, 10, 10, 0.9, 0.9, 1.2, 1.2
    features = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)
    table = duplicates(features, np.arange(8).astype(str), np.arange(8))
    assert table.empty  # the median is 5.6°, a tenth of it is less than 0.9°
    degrees[5] = 41
    features = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)
    assert duplicates(features, np.arange(8).astype(str), np.arange(8))["angle"].tolist() == pytest.approx(
        [0.5], abs=1e-5
    )


def test_the_number_of_pairs_is_limited_for_a_thousand_copies(monkeypatch):
    monkeypatch.setattr(structure, "PAIRS", 30)
    table = duplicates(np.ones((1000, 4)), np.full(1000, "h"), np.zeros(1000))
    assert len(table) == 30
    assert not table.duplicated(["first", "second"]).any()
    assert (table["first"] < table["second"]).all()


@pytest.mark.parametrize("n", [1, 2, 50])
def test_collapsed_features_have_no_near_copies(n):
    assert duplicates(np.ones((n, 4)), np.arange(n).astype(str), np.arange(n)).empty


def test_near_copies_among_many_images_are_searched_in_a_seeded_sample():
    features, hashes, block = photographed()
    kinds = [set(duplicates(features, hashes, block, largest=20, seed=s)["kind"]) for s in range(8)]
    assert all("exact" in of_seed for of_seed in kinds)  # the hashes of all images are compared
    assert 0 < sum("near" in of_seed for of_seed in kinds) < 8


def test_clusters_find_separate_classes_whatever_the_length_of_the_vectors():
    labels = np.arange(90) % 3
    features = (RNG.normal(size=(90, 5)) / 9 + np.eye(5)[labels]) * RNG.uniform(1, 99, (90, 1))
    assert clusters(features, labels * 2, 0) == pytest.approx({"ari": 1, "nmi": 1})  # classes 1 and 3 have no image
    assert clusters(RNG.normal(size=(90, 5)), labels, 0)["ari"] == pytest.approx(0, abs=0.1)


def test_clusters_of_constant_features_and_of_two_images():
    assert clusters(np.ones((20, 4)), np.arange(20) % 2, 0) == pytest.approx({"ari": 0, "nmi": 0})
    assert clusters(np.eye(2), np.array([0, 1]), 0) == pytest.approx({"ari": 1, "nmi": 1})


@pytest.mark.parametrize("chunk_size", [64, 2**22])
def test_components_equal_scikit_learn(chunk_size, monkeypatch):
    monkeypatch.setattr(structure, "HELD", chunk_size)
    features = (RNG.normal(size=(100, 6)) * [9, 5, 3, 1, 1, 0.1] + 1000).astype(np.float32)
    expected = PCA().fit(features.astype(np.float64)).explained_variance_ratio_.cumsum()
    np.testing.assert_allclose(explained_variance(features), expected, rtol=1e-9)


def test_components_of_two_images_and_of_constant_features():
    assert explained_variance(np.array([[1.0, 2, 3], [3, 2, 1]])).tolist() == pytest.approx([1, 1, 1])
    assert explained_variance(np.full((9, 3), 0.1)).tolist() == [1, 1, 1]


def test_components_needed_is_the_smallest_number_that_explains_the_fraction():
    cumulative = np.array([0.5, 0.9, 0.97, 1.0])
    assert [components_needed(cumulative, fraction) for fraction in (0.3, 0.5, 0.51, 0.9, 0.95, 1)] == [
        1,
        1,
        2,
        2,
        3,
        4,
    ]


def measured() -> tuple[np.ndarray, pd.DataFrame]:
    n = 80
    genus, size = RNG.choice(["a", "b", "c"], n), RNG.normal(size=n)
    features = RNG.normal(size=(n, 5)).round(1)  # with ties
    features[:, 1] += genus == "b"
    features[:, 2] += size
    columns = pd.DataFrame({"genus": genus, "size": size.round(2), "year": RNG.integers(2000, 2004, n)})
    columns.loc[RNG.choice(n, 20, replace=False), "size"] = np.nan
    columns.loc[:9, "genus"] = None
    return features, columns


@pytest.mark.parametrize("chunk_size", [200, 2**22])
def test_dimensions_equal_scipy_column_by_column(chunk_size, monkeypatch):
    monkeypatch.setattr(structure, "HELD", chunk_size)
    features, columns = measured()
    table = dimensions(features, columns)
    assert table["column"].tolist() == ["genus"] * 5 + ["size"] * 5 + ["year"] * 5
    assert table["dimension"].tolist() == [*range(5)] * 3
    for row in table.itertuples():
        has_value = columns[row.column].notna().to_numpy()
        x, y = features[has_value, row.dimension], columns.loc[has_value, row.column].to_numpy()
        if row.kind == "numeric":
            r2, p = np.corrcoef(x, y)[0, 1] ** 2, stats.spearmanr(x, y).pvalue
        else:
            parts = [x[y == value] for value in np.unique(y)]
            r2 = sum(len(part) * (part.mean() - x.mean()) ** 2 for part in parts) / ((x - x.mean()) ** 2).sum()
            p = stats.kruskal(*parts).pvalue
        assert (row.r2, row.p) == pytest.approx((r2, p))
    assert table["q"].tolist() == pytest.approx(stats.false_discovery_control(table["p"]).tolist())
    assert dict(table.drop_duplicates("column")[["column", "kind"]].values) == {
        "genus": "categorical", "size": "numeric", "year": "categorical",
    }  # fmt: skip


def test_the_dimension_that_depends_on_a_column_is_found():
    features, columns = measured()
    table = dimensions(np.tile(features, (9, 1)), pd.concat([columns] * 9))
    best = table.loc[table.groupby("column")["r2"].idxmax()].set_index("column")
    assert best.loc["genus", "dimension"] == 1
    assert best.loc["size", "dimension"] == 2
    assert (best.loc[["genus", "size"], "q"] < 1e-6).all()


def test_columns_with_one_value_or_a_different_text_for_almost_every_image_are_left_out():
    columns = pd.DataFrame({
        "path": [f"{i}.png" for i in range(40)], "one": "x", "none": None, "nan": np.nan,
        "flag": np.arange(40) % 2 == 0, "number": np.arange(40.0), "infinite": [np.inf, 1.0] * 20,
        "when": pd.date_range("2020", periods=40).repeat(10)[:40], "kind": pd.Categorical(["u", "v"] * 20),
    })  # fmt: skip
    table = dimensions(RNG.normal(size=(40, 3)), columns)
    assert table["column"].unique().tolist() == ["flag", "number", "when", "kind"]
    assert dimensions(RNG.normal(size=(40, 3)), columns[["path", "one"]]).empty


def test_a_perfect_relation_and_a_constant_dimension_have_finite_numbers():
    y = np.arange(30.0)
    features = np.stack([2 * y + 1, np.full(30, 0.1)], 1)
    table = dimensions(features, pd.DataFrame({"y": y, "half": y < 15}))
    assert table["r2"].tolist() == pytest.approx([1, 0, 0.75, 0], abs=1e-2)
    assert table["p"].tolist()[1::2] == [1, 1]
    assert table["p"][0] < 1e-100
    two = dimensions(np.array([[1.0, 5], [2, 5]]), pd.DataFrame({"n": [3, 4]}))
    assert two["r2"].tolist() == pytest.approx([1, 0])
    assert np.isfinite(table[["r2", "p", "q"]].to_numpy()).all()


@pytest.mark.parametrize("images", [1, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 16, 40))])  # UMAP
def test_map_coordinates_are_seeded_and_exist_for_any_number_of_images(images):
    features = RNG.normal(size=(images, 8))
    rows, points = map_coordinates(features, 0)
    assert rows.tolist() == list(range(images))
    assert points.shape == (images, 2)
    assert np.isfinite(points).all()
    assert np.array_equal(map_coordinates(features, 0)[1], points)


def test_a_map_of_many_images_has_a_seeded_sample():
    rows = sample(100, 10, 3)
    assert len(set(rows)) == 10
    assert np.array_equal(rows, np.sort(rows))
    assert np.array_equal(rows, sample(100, 10, 3))
    assert not np.array_equal(rows, sample(100, 10, 4))


def test_identical_embeddings_have_recall_one():
    z = RNG.normal(size=(300, 16))
    measures = retrieval_between(z, 3 * z)
    assert {measures[f"{name}_at_{k}"] for name in ("recall", "recall_back") for k in (1, 5, 10)} == {1}
    assert [measures[f"chance_at_{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 300, 5 / 300, 10 / 300])


@pytest.mark.parametrize("collapsed", [False, True])
def test_random_and_collapsed_embeddings_are_at_chance(collapsed, monkeypatch):
    monkeypatch.setattr(structure, "QUERIES", 1500)
    z, other = RNG.normal(size=(2, 2000, 8))
    measures = retrieval_between(z * 0 + 1 if collapsed else z, other * 0 + 1 if collapsed else other, ks=(1, 100))
    assert measures["chance_at_100"] == pytest.approx(0.05)
    for name in ("recall", "recall_back"):
        assert measures[f"{name}_at_100"] == pytest.approx(0.05, abs=0.02)
        assert measures[f"{name}_at_1"] < 0.01


def test_recall_equals_a_plain_loop_in_both_directions_and_with_classes(monkeypatch):
    monkeypatch.setattr(structure, "HELD", 100)
    first = RNG.normal(size=(40, 6))
    second = first + RNG.normal(size=(40, 6))
    specimens = RNG.integers(0, 12, 40) * 3
    for classes in (None, specimens):
        numbers = np.arange(40) if classes is None else classes
        measures = retrieval_between(first, second, classes, ks=(1, 4))
        for name, queries, bank in (("recall", first, second), ("recall_back", second, first)):
            hits = []
            for i in range(40):
                cosines = [a @ queries[i] / np.linalg.norm(a) for a in bank]
                hits.append([numbers[j] == numbers[i] for j in np.argsort(cosines)[::-1][:4]])
            assert measures[f"{name}_at_1"] == pytest.approx(np.mean([h[0] for h in hits]))
            assert measures[f"{name}_at_4"] == pytest.approx(np.mean([any(h) for h in hits]))
        miss = [comb(40 - m, 4) / comb(40, 4) for m in [(numbers == number).sum() for number in numbers]]
        assert measures["chance_at_4"] == pytest.approx(1 - np.mean(miss))


def test_recall_is_one_if_k_is_more_than_the_images():
    z, other = RNG.normal(size=(2, 4, 3))
    measures = retrieval_between(z, other, ks=(10,))
    assert measures == {"chance_at_10": 1, "recall_at_10": 1, "recall_back_at_10": 1}
