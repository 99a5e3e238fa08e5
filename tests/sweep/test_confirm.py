from __future__ import annotations

import numpy as np
import optuna
from conftest import with_changes

from simtrail.sweep.confirm import _chosen, _compare, _Entrant
from simtrail.sweep.space import Space

RNG = np.random.default_rng(1)
GROUP = np.arange(200) // 2


def space(objective: str = "val_probe", direction: str = "maximize") -> Space:
    budget = {"trials": 2, "epochs": 1}
    tree = {"study": "s", "objective": objective, "direction": direction, "budget": budget, "sampler": "tpe"}
    return Space(**tree, pruner="none", space={"pretrain.clip": {"choices": [1.0, 2.0]}})


def entrant(scores: list[float], correct: np.ndarray | None = None) -> _Entrant:
    return _Entrant({}, with_changes({}), None, scores, correct, GROUP)


def right(share: float) -> np.ndarray:
    return (RNG.random((3, 200)) < share).mean(0)


def test_a_clearly_better_setting_is_confirmed_and_an_equal_or_worse_one_is_not():
    present = entrant([0.5] * 3, right(0.5))
    confirmed, text = _compare(present, entrant([0.8] * 3, right(0.8)), "trial 4", 1, space())
    assert confirmed
    assert text.startswith("**Confirmed**: trial 4 is better than params.yaml: +0.")
    assert "95.0% interval +0." in text
    for share in (0.5, 0.2):
        confirmed, text = _compare(present, entrant([share] * 3, right(share)), "trial 4", 1, space())
        assert not confirmed
        assert text.startswith("**Not confirmed**")
    assert not _compare(present, entrant([0.5] * 3, present.correct), "trial 4", 1, space())[0]


def test_of_many_equal_settings_the_best_is_rarely_confirmed():
    confirmed = 0
    for _ in range(60):
        present, rivals = right(0.7), [right(0.7) for _ in range(5)]
        best = max(rivals, key=np.mean)
        rival = entrant([0.0], best)
        confirmed += _compare(entrant([0.0], present), rival, "trial 1", len(rivals), space())[0]
    assert confirmed <= 6  # of 60; without the correction for five comparisons about 10


def test_without_accuracies_the_interval_is_over_seeds():
    objective = space("val_effective_rank")
    assert _compare(entrant([10.0, 10.2, 9.9]), entrant([14.0, 14.3, 13.8]), "trial 1", 1, objective)[0]
    assert not _compare(entrant([10.0, 12.0, 9.0]), entrant([10.5, 12.5, 9.4]), "trial 1", 1, objective)[0]
    confirmed, text = _compare(entrant([10.0]), entrant([14.0]), "trial 1", 1, objective)
    assert not confirmed
    assert "raise confirm.seeds" in text


def test_the_best_trials_that_differ_from_params_yaml_are_chosen_once():
    study = optuna.create_study(direction="maximize")
    distribution = {"x": optuna.distributions.CategoricalDistribution([1, 2, 3, 4])}
    for x, value in ((1, 0.5), (2, 0.9), (2, 0.95), (3, 0.7), (4, 0.1)):
        study.add_trial(optuna.create_trial(value=value, params={"x": x}, distributions=distribution))
    study.set_user_attr("present", {"x": 1})
    assert _chosen(study, 2) == {"params.yaml": {"x": 1}, "trial 2": {"x": 2}, "trial 3": {"x": 3}}
