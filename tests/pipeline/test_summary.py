from __future__ import annotations

import pytest

from simtrail.pipeline.summary import score_lines

FEATURES = dict.fromkeys(("effective_rank", "uniformity", "alignment", "feature_std"), 1.0)
FAILING = {"groups": 0, "classes": 1}
MANY = {"labels": 12, "unchecked_classes": 1, "near_copies": 3, "without_near_copies": {"accuracy": 0.8712}}
ONE = {"labels": 1, "unchecked_classes": 0, "near_copies": 0}


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        (
            MANY | FAILING,
            "12 suspected wrong labels (1 class has too few groups to be checked), "
            "3 test images with a near copy in train or val (accuracy without 0.871), "
            "0 groups and 1 class on which the probe fails",
        ),
        (
            ONE | FAILING,
            "1 suspected wrong label, 0 test images with a near copy in train or val, "
            "0 groups and 1 class on which the probe fails",
        ),
        ({"near_copies": 1}, "1 test image with a near copy in train or val"),
    ],
)
def test_one_line_counts_the_suspects_and_names_their_table(numbers, line):
    lines = score_lines({"tasks": {}, "features": FEATURES, "suspects": numbers})
    assert lines[-1] == f"{line}: artifacts/evaluate/tables/suspects.csv"


def test_the_lines_say_whether_the_probe_beats_the_floors():
    row = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "balanced_accuracy": 0.5}
    task = {"classes": 2, "images": 90, "groups": 90, "scores": {"linear_probe": row, "raw_pixels": row}}
    gains = {"raw_pixels": {"value": 0.0, "low": -0.1, "high": 0.1}}
    lines = score_lines({"tasks": {"species": task | {"gains": gains}}, "features": FEATURES})
    assert "do not show that the encoder is useful for this task" in lines[-2]


@pytest.mark.parametrize("metrics", [{}, {"suspects": {}}])
def test_where_nothing_was_searched_no_line_is_printed(metrics):
    assert "suspects" not in score_lines({"tasks": {}, "features": FEATURES, **metrics})[-1]
