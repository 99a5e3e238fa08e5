"""The wording of reports: numbers, intervals, names of classifiers, and whether an encoder beats its floors."""

from __future__ import annotations

from typing import Any

from simtrail.evaluation.names import TITLES, beats_floors


def verdict(task: dict[str, Any]) -> str:
    """A text that says whether the linear probe of a task (of scores.json) beats every floor.

    It beats a floor if the 95 % interval of their difference on the same test images is above 0.
    """
    closest = min(task["gains"], key=lambda name: task["gains"][name]["low"])
    gain = task["gains"][closest]
    name, score = title(closest).removeprefix("floor: "), interval(task["scores"][closest], "accuracy")
    difference = f"{number(gain['value'])} (95 % interval {number(gain['low'])} – {number(gain['high'])})"
    if beats_floors(task["gains"]):
        return (
            f"The accuracy is above every floor. The closest floor is {name} with {score}: the difference is "
            f"{difference}."
        )
    if task["scores"][closest]["accuracy"] == 1:
        return (
            f"The floor {name} already classifies every test image rightly: this task is too easy to show what the "
            "encoder is worth."
        )
    if gain["value"] <= 0:
        return (
            f"The accuracy is not above the floor {name} with {score}: these results do not show that the encoder is "
            "useful for this task."
        )
    return (
        f"The accuracy is above the floor {name} with {score}, but the interval of the difference includes 0: "
        f"{difference}. The difference may be due to chance, or there may be too few test groups to show it."
    )


def interval(scores: dict[str, float], score: str) -> str:
    """A score with its 95 % interval, as `0.881 (0.851 – 0.907)`; a dash without a score."""
    if scores.get(score) is None:
        return "–"
    value, low, high = (scores.get(score + bound) for bound in ("", "_low", "_high"))
    return number(value) if low is None else f"{number(value)} ({number(low)} – {number(high)})"


def number(value: Any) -> str:
    """A value as tables show it: three decimals, whole numbers without decimals, a dash for a missing value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_missing(value):
        return "–"
    return f"{value:.3f}".replace("-", "−") if isinstance(value, float) else str(value)


def _is_missing(value: Any) -> bool:
    """Whether a value is None, NaN or NA of pandas, which takes long to import."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # a comparison of NA is neither true nor false
        return True


def title(name: str) -> str:
    """The name of a classifier or floor for readers: `linear probe`, `floor: random weights`."""
    return TITLES.get(name, name.replace("_", " "))
