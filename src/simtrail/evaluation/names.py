"""The names of classifiers, floors, tasks and bands in results; quick to import, for commands that only read them."""

from __future__ import annotations

TITLES = {
    "linear_probe": "linear probe",
    "probe_augmented": "linear probe on views",
    "knn": "kNN",
    "svc": "SVC",
    "raw_pixels": "floor: 16×16 pixels",
    "random_encoder": "floor: random weights",
    "first_weights": "floor: first weights",
    "pretrained": "floor: pretrained",
    "majority": "floor: majority class",
    "teacher": "teacher's features",
}
FLOORS = tuple(name for name, title in TITLES.items() if title.startswith("floor: "))
UNSEEN = " (unseen)"  # ends the name of the task of the held-out classes
FEW_GROUPS = 30  # with fewer groups, a percentile interval is itself uncertain


def beats_floors(gains: dict[str, dict[str, float]]) -> bool:
    """Whether the linear probe is more accurate than every floor: all intervals of its gains are above 0."""
    return all(gain["low"] > 0 for gain in gains.values())


def band_title(name: str, nm: float | None) -> str:
    """A band's name with its wavelength in nm, if this is known: 'band19 (667.5 nm)'."""
    return name if nm is None else f"{name} ({round(nm, 1):g} nm)"
