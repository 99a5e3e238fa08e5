"""How reports say things: numbers, intervals, names of classifiers, and whether an encoder beats its floors."""

from __future__ import annotations

from typing import Any

import pandas as pd

from simtrail.evaluation.scores import TITLES
from simtrail.evaluation.tasks import beats_floors


def verdict(task: dict[str, Any]) -> str:
    """One sentence: whether the linear probe of a task (of metrics.json) beats every floor.

    It does where the 95 % interval of the difference on the same test images lies above 0.
    """
    closest = min(task["gains"], key=lambda name: task["gains"][name]["low"])
    gain = task["gains"][closest]
    floor = f"{title(closest).removeprefix('floor: ')}, {interval(task['scores'][closest], 'accuracy')}"
    by = f"by {number(gain['value'])} (95 % interval {number(gain['low'])} – {number(gain['high'])})"
    if beats_floors(task["gains"]):
        return f"It beats every floor; the closest of them, {floor}, {by}."
    if gain["value"] <= 0:
        return f"It does not beat its floor, {floor}: nothing here shows that this encoder is of use for it."
    return (
        f"It is above its floor, {floor}, {by}, but that interval includes 0: the difference may be chance, or there "
        "are too few test groups to tell."
    )


def interval(scores: dict[str, float], score: str) -> str:
    """A score with its 95 % interval, as `0.881 (0.851 – 0.907)`; a dash where there is none."""
    if scores.get(score) is None:
        return "–"
    value, low, high = (scores.get(score + bound) for bound in ("", "_low", "_high"))
    return number(value) if low is None else f"{number(value)} ({number(low)} – {number(high)})"


def number(value: Any) -> str:
    """A value as tables show it: three decimals, whole numbers without decimals, a dash for a missing value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value or value is pd.NA:
        return "–"
    return f"{value:.3f}".replace("-", "−") if isinstance(value, float) else str(value)


def title(name: str) -> str:
    """The name of a classifier or floor as people read it: `linear probe`, `floor: random weights`."""
    return TITLES.get(name, name.replace("_", " "))
