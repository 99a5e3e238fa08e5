from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import with_changes
from scipy.stats import binom

from simtrail.evaluation import suspects as module
from simtrail.evaluation.suspects import COLUMNS, failing, near_copies, out_of_fold, suspects, wrong_labels
from simtrail.evaluation.tasks import classify, tasks

P = with_changes({"evaluate.bootstrap": 100}).evaluate


def separable(count: int = 600, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features and class numbers; a linear probe finds every class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = 4 * np.linalg.qr(rng.normal(size=(16, 16)))[0][:classes]
    return (centres[labels] + rng.normal(size=(count, 16))).astype(np.float32), labels


def flipped(labels: np.ndarray, fraction: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The labels with a fraction of them replaced by another class, and the rows of these."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), int(fraction * len(labels)), replace=False)
    classes = labels.max() + 1
    wrong = labels.copy()
    wrong[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    return wrong, rows


def split_table(labels: np.ndarray, **columns: object) -> pd.DataFrame:
    """A split table in which blocks of two images are 60 % in train, 20 % in val and 20 % in test."""
    n = len(labels)
    split = np.array(["train", "train", "train", "val", "test"])[np.random.default_rng(1).integers(0, 5, n)]
    split[:30] = np.repeat(["train", "val", "test"], 10)
    table = {"path": [f"{i}.png" for i in range(n)], "split": split, "block": np.arange(n), "group": None}
    table |= {"label": np.array([f"species {c}" for c in labels], object), "held_out": False}
    return pd.DataFrame(table | columns)


def searched(table: pd.DataFrame, features: np.ndarray):
    main = [(task, classify(task, features, {}, P)) for task in tasks(table, [])[:1]]
    return suspects(table, features, main[0] if main else None, P)


# --- wrong labels


def test_the_rule_of_confident_learning_is_that_of_a_loop_over_images_and_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    probabilities = rng.dirichlet(np.full(5, 0.4), 300).astype(np.float32)
    probabilities[::3, :] = 0.7 * probabilities[::3, :] + 0.3 * np.eye(5)[labels[::3]]
    expected = {}
    mean = [np.mean([probabilities[i, c] for i in range(300) if labels[i] == c]) for c in range(5)]
    for i in range(300):
        own = probabilities[i, labels[i]]
        reached = [c for c in range(5) if c != labels[i] and probabilities[i, c] >= max(mean[c], own + 1e-9)]
        if reached:
            best = max(reached, key=lambda c: probabilities[i, c])
            expected[i] = (best, probabilities[i, best] - own)
    found = wrong_labels(probabilities, labels)
    assert 20 < len(expected) < 280
    assert {row.row: (row.suggested, pytest.approx(row.margin)) for row in found.itertuples()} == expected
    assert found["margin"].is_monotonic_decreasing
    assert (probabilities.argmax(1) != labels)[found["row"]].all()  # so they are never more than the probe's errors


def test_images_that_were_not_checked_are_no_suspects():
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [np.nan, np.nan]], np.float32)
    assert wrong_labels(probabilities, np.array([0, 1, 1, 0]))["row"].tolist() == [2]
    assert wrong_labels(np.full((4, 2), np.nan, np.float32), np.array([0, 1, 1, 0])).empty


@pytest.mark.parametrize("seed", range(3))
def test_planted_errors_are_found_and_have_their_true_class(seed):
    features, labels = separable(seed=seed)
    wrong, rows = flipped(labels, seed=seed)
    found = wrong_labels(out_of_fold(features, wrong, np.arange(600), 6, c=0.1), wrong)
    hits = np.isin(found["row"], rows)
    # the rule asks for at least the mean probability, which most images of a class reach, but not all: measured 0.71
    assert hits.sum() / len(rows) >= 0.6  # recall
    assert hits.mean() >= 0.95  # precision
    assert (found["suggested"] == labels[found["row"]])[hits].mean() >= 0.95


def test_clean_separable_labels_give_no_suspects():
    features, labels = separable()
    assert len(wrong_labels(out_of_fold(features, labels, np.arange(600), 6, c=0.1), labels)) <= 1


def test_a_wrong_label_of_a_whole_group_is_found_because_no_probe_learns_from_the_group_it_judges():
    features, labels = separable()
    group = np.arange(600) // 6 // 5 * 6 + np.arange(600) % 6  # five images of one class each
    features = features[[np.flatnonzero(group == g)[0] for g in group]]  # the images of a group are equal
    wrong = labels.copy()
    bad = np.flatnonzero(np.isin(group, [0, 31, 62]))
    wrong[bad] = (labels[bad] + 1) % 6
    found = wrong_labels(out_of_fold(features, wrong, group, 6, c=10.0), wrong)
    assert set(bad) <= set(found["row"])
    alone = wrong_labels(out_of_fold(features, wrong, np.arange(600), 6, c=10.0), wrong)
    assert len(set(bad) & set(alone["row"])) < len(bad)


def test_no_fold_shares_a_group_with_the_images_that_its_probe_learns_from(monkeypatch):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 60, 400)
    labels = rng.integers(0, 3, 60)[group]
    labels[rng.integers(0, 400, 20)] = 2  # some groups have images of several classes
    fits, original = [], module.fit_logistic

    def recorded(features, labels, classes, c_values, *, rows, tolerance):
        fits.append(rows)
        return original(features, labels, classes, c_values, rows=rows, tolerance=tolerance)

    monkeypatch.setattr(module, "fit_logistic", recorded)
    features = rng.normal(size=(400, 4)).astype(np.float32)
    probabilities = out_of_fold(features, labels, group, 3, c=1.0)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert len(fits) == 5
    judged = [set(range(400)) - set(rows) for rows in fits]
    assert set.union(*judged) == set(range(400))
    assert sum(map(len, judged)) == 400
    for rows, held in zip(fits, judged, strict=True):
        assert not set(group[rows]) & set(group[list(held)])
        assert len(held) == pytest.approx(80, rel=0.4)


def test_classes_with_fewer_than_five_groups_are_left_out():
    features, labels = separable(300, 3)
    group = np.arange(300)
    group[labels == 2] %= 4
    probabilities = out_of_fold(features, labels, group, 3, c=0.1)
    assert np.isnan(probabilities[labels == 2]).all()
    assert (probabilities[labels < 2, 2] == 0).all()
    assert (probabilities.argmax(1) == labels)[labels < 2].mean() > 0.95
    assert np.isnan(out_of_fold(features, labels, np.zeros(300, int), 3, c=0.1)).all()


def test_of_many_images_the_probes_learn_from_a_sample_with_all_classes(monkeypatch):
    monkeypatch.setattr(module, "FITTED", 60)
    labels = np.repeat([0, 1, 2], [400, 80, 5])
    drawn = module._even_sample(np.arange(5, 485), labels, np.random.default_rng(0))
    assert np.bincount(labels[drawn]).tolist() == [28, 27, 5]
    assert len(set(drawn)) == 60
    features, labels = separable()
    assert (out_of_fold(features, labels, np.arange(600), 6, c=0.1).argmax(1) == labels).mean() > 0.9


# --- near copies


def test_near_copies_in_test_name_the_first_image_in_train_and_otherwise_in_val():
    copy = pd.Series([1, None, 1, 1, 2, 2, 3, 3, 4, 4, None], dtype="Int64")
    split = np.array(["val", "train", "train", "test", "test", "val", "train", "val", "test", "test", "test"])
    pairs = near_copies(copy, split)
    assert pairs.to_numpy().tolist() == [[3, 2], [4, 5]]
    assert near_copies(pd.Series([None] * 11, dtype="Int64"), split).empty


def test_the_accuracy_without_near_copies_is_that_of_the_other_test_images():
    features, labels = separable()
    table = split_table(labels)
    table["near_copy"] = pd.array([None] * 600, "Int64")
    learnt, test = (np.flatnonzero(table["split"] == part) for part in ("train", "test"))
    result = classify(tasks(table, [])[0], features, {}, P)
    table.loc[learnt[:7], "near_copy"] = table.loc[test[:7], "near_copy"] = np.arange(7)
    rows, numbers = searched(table, features)
    near = rows[rows["kind"] == "near copy"]
    assert near["path"].tolist() == table["path"][test[:7]].tolist()
    assert near["copy_of"].tolist() == table["path"][learnt[:7]].tolist()
    different = table["label"].to_numpy()[test[:7]] != table["label"].to_numpy()[learnt[:7]]
    assert near["suggested"].notna().tolist() == different.tolist()
    correct = result.predicted["linear_probe"] == labels[test]
    without = numbers["without_near_copies"]
    assert (numbers["near_copies"], without["images"]) == (7, len(test) - 7)
    assert without["accuracy"] == pytest.approx(correct[7:].mean(), abs=1e-6)
    assert without["accuracy_low"] <= without["accuracy"] <= without["accuracy_high"]


def test_a_near_copy_does_not_hide_a_wrong_label_that_it_shares():
    features, labels = separable()
    wrong = labels.copy()
    pairs = np.arange(0, 60, 2)
    features[pairs + 1], labels[pairs + 1] = features[pairs], labels[pairs]
    wrong[pairs] = wrong[pairs + 1] = (labels[pairs] + 2) % 6
    copy = np.full(600, -1)
    copy[pairs] = copy[pairs + 1] = pairs
    table = split_table(wrong, near_copy=pd.array(np.where(copy < 0, None, copy), "Int64"))
    groups = module._fold_groups(table)
    assert (groups[pairs] == groups[pairs + 1]).all()
    assert len(set(groups)) == 600 - len(pairs)
    assert (module._fold_groups(table.drop(columns="near_copy")) == np.arange(600)).all()
    chained = split_table(wrong[:30], block=np.arange(30) // 2, near_copy=pd.array([None, 1, 1] + [None] * 27, "Int64"))
    assert np.bincount(module._fold_groups(chained)).tolist() == [4] + [2] * 13


# --- groups and classes


def test_failing_groups_are_those_of_a_plain_holm_procedure():
    rng = np.random.default_rng(0)
    group = np.array([f"g{i}" for i in rng.integers(0, 40, 800)], object)
    classes = np.array([f"c{i}" for i in rng.integers(0, 6, 800)], object)
    correct = rng.random(800) < 0.9
    correct[(group == "g3") | (group == "g17")] &= rng.random(((group == "g3") | (group == "g17")).sum()) < 0.4
    correct[(classes == "c2")] &= rng.random((classes == "c2").sum()) < 0.75
    group[:50] = None
    tests = []
    for kind, names in (("group", group), ("class", classes)):
        for name in sorted({n for n in names if n is not None}):
            hits = correct[names == name]
            tests.append((binom.cdf(hits.sum(), len(hits), correct.mean()), kind, name, len(hits), hits.sum()))
    expected, largest = [], 0.0
    for i, (p, kind, name, images, hits) in enumerate(sorted(tests)):
        largest = max(largest, p * (len(tests) - i))
        if largest > 0.05:
            break
        expected.append([kind, name, images, hits, pytest.approx(largest)])
    found = failing(correct, {"group": group, "class": classes})
    assert len(expected) >= 2
    assert found.to_numpy().tolist() == expected
    assert (found["correct"] / found["images"] < correct.mean()).all()


def test_groups_of_equal_accuracy_are_rarely_listed():
    """Holm's correction bounds the probability of any false group: 5 % of the 100 draws, and three deviations more."""
    rng = np.random.default_rng(0)
    listed = [
        len(failing(rng.random(300) < 0.8, {"class": rng.integers(0, 10, 300).astype(str).astype(object)})) > 0
        for _ in range(100)
    ]
    assert sum(listed) <= 5 + 3 * np.sqrt(100 * 0.05 * 0.95)


@pytest.mark.parametrize("value", [True, False])
def test_without_any_difference_no_group_is_listed(value):
    names = np.array(["a", "b", "b", None], object)
    assert failing(np.full(4, value), {"group": names, "class": np.full(4, "x", object)}).empty
    assert failing(np.full(4, value), {"group": np.full(4, None), "class": np.full(4, "x", object)}).empty


# --- all of them


def test_the_table_has_every_kind_with_names_of_files_and_classes():
    features, labels = separable()
    wrong, rows = flipped(labels)
    table = split_table(wrong, group=np.array([f"s{i}" for i in np.arange(600) // 4], object))
    table["split"] = np.repeat(["train", "val", "test"], 200)
    table["near_copy"] = pd.array([7] + [None] * 598 + [7], "Int64")
    lost = np.arange(500, 520)
    features[lost] = features[np.random.default_rng(0).permutation(400)[:20]]
    table.loc[lost, "group"] = "s lost"
    found, numbers = searched(table, features)
    assert list(found) == COLUMNS
    assert found["kind"].drop_duplicates().tolist() == ["label", "near copy", "group"]
    by_path = found[found["kind"] == "label"].set_index("path")
    hits = [f"{row}.png" for row in rows if f"{row}.png" in by_path.index and row not in lost]
    assert (by_path.loc[hits, "given"] == [f"species {wrong[int(p[:-4])]}" for p in hits]).all()
    assert (by_path.loc[hits, "suggested"] == [f"species {labels[int(p[:-4])]}" for p in hits]).mean() > 0.9
    assert by_path["margin"].between(0, 1).all()
    assert found.loc[found["kind"] == "near copy", ["path", "copy_of"]].to_numpy().tolist() == [["599.png", "0.png"]]
    assert found.loc[found["kind"] == "group", "given"].tolist() == ["s lost"]
    assert found["margin"].iloc[-1] > 0.5
    assert "of 20 test images right" in found["reason"].iloc[-1]
    assert {name: numbers[name] for name in ("labels", "near_copies", "groups", "classes", "unchecked_classes")} == {
        "labels": len(by_path), "near_copies": 1, "groups": 1, "classes": 0, "unchecked_classes": 0
    }  # fmt: skip
    assert 0.8 < numbers["probe_accuracy"] < 0.97


def test_all_labelled_images_are_checked_also_those_of_classes_held_out_of_pretraining():
    features, labels = separable()
    wrong, rows = flipped(labels)
    table = split_table(wrong)
    table["held_out"] = table["label"].isin(["species 4", "species 5"])
    table.loc[rows[:10], "label"] = None
    found, numbers = searched(table, features)
    paths = set(found.loc[found["kind"] == "label", "path"])
    assert not paths & {f"{row}.png" for row in rows[:10]}
    assert len(paths & {f"{row}.png" for row in rows[10:]}) >= 10
    assert "species 5" in set(found["suggested"])
    assert "near_copies" not in numbers  # not searched, which is not the same as none


def test_without_labels_only_near_copies_are_searched():
    features, labels = separable(60)
    table = split_table(labels, label=None)
    assert suspects(table, features, None, P)[1] == {}
    assert suspects(table, features, None, P)[0].empty
    table["near_copy"] = pd.array([3] + [None] * 28 + [3] + [None] * 30, "Int64")
    found, numbers = suspects(table, features, None, P)
    assert found[["path", "kind", "copy_of"]].to_numpy().tolist() == [["29.png", "near copy", "0.png"]]
    assert numbers == {"near_copies": 1}
