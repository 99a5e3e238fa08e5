from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import with_changes

from simtrail.errors import InputError
from simtrail.params import Register
from simtrail.tracking.gate import Evaluated, decide, refuse_significant_without_labels

N = 200


def evaluated(right: int, **changes: object) -> Evaluated:
    """An evaluation of N images, each of its own group, of which the probe knows the first `right`."""
    numbers = np.arange(N)
    table = pd.DataFrame({"sha256": [f"{i:03}" for i in numbers], "path": "a", "block": numbers, "truth": "moth"})
    table["linear_probe"] = np.where(numbers < right, "moth", "bee")
    params = {key: str(value) for key, value in with_changes({}).flat().items()}
    return replace(Evaluated("md5", "split", params, 10.0, table), **changes)


def test_a_higher_accuracy_passes_and_the_doubt_is_spelled_out():
    passes, reason = decide(evaluated(102), evaluated(100), "3", Register())
    assert passes
    assert reason == (
        "accuracy of the linear probe 0.510 against 0.500 of version 3: +0.010 (95 % interval +0.000 – +0.025), "
        "but this may be chance"
    )
    passes, reason = decide(evaluated(120), evaluated(100), "3", Register())
    assert passes
    assert reason.endswith(", significantly higher")
    assert not decide(evaluated(100), evaluated(100), "3", Register())[0]


def test_the_gate_can_ask_for_significance_and_for_a_margin():
    significant = Register(gate="significant")
    assert decide(evaluated(120), evaluated(100), "3", significant)[0]
    passes, reason = decide(evaluated(102), evaluated(100), "3", significant)
    assert not passes
    assert reason.endswith(", not significantly higher")
    passes, reason = decide(evaluated(120), evaluated(100), "3", Register(margin=0.2))
    assert not passes
    assert reason.endswith(", not more than register.margin = 0.2")
    passes, reason = decide(evaluated(120), evaluated(100), "3", Register(gate="significant", margin=0.09))
    assert not passes
    assert reason.endswith(", not significantly more than register.margin = 0.09")


@pytest.mark.parametrize("key", ["prepare.size", "prepare.bands", "evaluate.fine_tune.fractions", "evaluate.knn.k"])
def test_settings_that_do_not_touch_the_deciding_score_leave_versions_comparable(key):
    other = evaluated(120)
    assert decide(replace(other, params=other.params | {key: "other"}), evaluated(100), "3", Register())[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data_md5": "0123456789"}, "the data version is 01234567, not md5"),
        ({"params": {"data.name": "moths"}, "data_md5": "0"}, "data.name = moths, not demo"),
        ({"params": {"evaluate.held_out_classes": "['bee']"}}, "evaluate.held_out_classes = ['bee'], not []"),
        ({"params": {"evaluate.balanced": "True"}}, "evaluate.balanced = true, not false"),
        ({"predictions": None}, "one of them was evaluated without labels"),
        ({"drop": 0, "params": {"prepare.seed": "1"}}, "other test images (prepare.seed = 1, not 0)"),
        ({"drop": 0}, "other test images"),
        ({"column": "truth"}, "the labels of 200 test images"),
        ({"column": "block"}, "the groups of the test images"),
    ],
)
def test_the_reason_names_the_first_difference_that_makes_scores_incomparable(changes, expected):
    new = evaluated(200)
    assert new.predictions is not None
    table = new.predictions
    if "drop" in changes:
        table = table.drop(changes.pop("drop"))
    if "column" in changes:
        table = table.assign(**{changes.pop("column"): "other"})
    changes = {"predictions": table} | changes | {"params": new.params | changes.get("params", {})}
    passes, reason = decide(replace(new, **changes), evaluated(100), "3", Register())
    assert not passes
    assert reason == f"not comparable with champion version 3: {expected}"


def test_without_labels_the_effective_rank_decides():
    new, champion = evaluated(0, predictions=None, effective_rank=12.0), evaluated(0, predictions=None)
    assert decide(new, champion, "1", Register()) == (True, "effective rank 12.0 against 10.0 of version 1")
    passes, reason = decide(new, champion, "1", Register(margin=3))
    assert not passes
    assert reason == "effective rank 12.0 against 10.0 of version 1: not more than register.margin = 3"
    assert "other test images" in decide(replace(new, split_hash="other"), champion, "1", Register())[1]
    with pytest.raises(InputError, match=r"register\.gate = 'significant': without labels"):
        refuse_significant_without_labels(new, Register(gate="significant"))
