"""The model card in Markdown, and the values that both the card and the report of a run show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from simtrail.data.recipe import levels
from simtrail.evaluation.names import FEW_GROUPS, FLOORS, UNSEEN, band_title, beats_floors
from simtrail.report.html import render
from simtrail.report.wording import interval, number, title, verdict

MAIN = "linear_probe"  # fixed in advance, because choosing the best classifier would use the test split
SCORES = ("accuracy", "balanced_accuracy", "precision", "f1", "top5", "calibration_error")  # macro recall is the second


def model_card(facts: dict[str, Any]) -> str:
    """The model card in Markdown, after Mitchell et al. 2019 (arXiv 1810.03993); `facts` as for report_page."""
    return render("card.md.j2", **facts, **content(facts))


def content(facts: dict[str, Any]) -> dict[str, Any]:
    """The values that the report and the model card both show; `facts` as for report_page."""
    tasks, recipe = facts["metrics"]["tasks"], facts["statistics"]["recipe"]
    wavelengths = recipe.get("wavelengths") or [None] * len(recipe["bands"])
    return {
        "background": levels(recipe["background"]),
        "bands": [band_title(*band) for band in zip(recipe["bands"], wavelengths, strict=True)],
        "tasks": tasks,
        "seen_tasks": {name: task for name, task in tasks.items() if not name.endswith(UNSEEN)},
        "unseen_tasks": {name: task for name, task in tasks.items() if name.endswith(UNSEEN)},
        "seeds": {
            title(name): f"{number(s['mean'])} ± {number(s['sd'])} (standard deviation over {s['seeds']} seeds)"
            for name, s in facts["metrics"].get("seeds", {}).items()
        },
        "main": next(iter(tasks), None),
        "score_names": [
            s for s in SCORES if any(s in row for task in tasks.values() for row in task["scores"].values())
        ],
        "failed_checks": [f for f in facts["validation"]["findings"] if not f["success"]],
        "terms": [f"{w:g} × {name}" for name, w in facts["params"]["pretrain"]["terms"].items() if w],
        "limits": limits(facts),
        "parameters": dict(pd.json_normalize(facts["params"]).to_dict("records")[0]),
        "floors": FLOORS,
        "probe": MAIN,
        "interval": interval,
        "number": number,
        "title": title,
        "verdict": verdict,
        "weights": _named(facts["params"]["pretrain"]["weights"], facts["stamps"]["weights"]),
        "teacher": _named(facts["params"]["pretrain"]["teacher"]["weights"], facts["stamps"]["teacher"]),
    }


def _named(name: str | None, stamp: str | None) -> str | None:
    """The name of weights, with the start of their sha256 if they have one: a name may come to mean others."""
    return f"{name} (sha256 {stamp[:16]})" if stamp and stamp != name else name


def head_card(name: str, head: Any, encoder: dict[str, str], labels: dict[str, Any], lines: Sequence[str]) -> str:
    """The model card, in Markdown, of a head on an encoder; `lines` say how good it is."""
    return render("head.md.j2", name=name, head=head, encoder=encoder, labels=labels, lines=lines)


def limits(facts: dict[str, Any]) -> list[str]:
    """One sentence for each limit of the results, such as too few test groups; `facts` as for report_page."""
    tasks, checks, params = facts["metrics"]["tasks"], facts["validation"], facts["params"]
    lines = []
    for name, task in tasks.items():
        if not beats_floors(task["gains"]):
            lines.append(f"{name}: the results do not show that the encoder beats its floors.")
        if task["groups"] == task["images"]:
            lines.append(
                f"{name}: every test image counts as a separate group. If several images show the same specimen, the "
                "intervals are too narrow and the scores too high: declare a group column."
            )
        if task["groups"] < FEW_GROUPS:
            lines.append(f"{name}: only {task['groups']} test groups, too few for reliable intervals.")
        if task.get("unknown"):
            lines.append(f"{name}: {task['unknown']} test images are not scored: their classes have no training image.")
    if not tasks:
        lines.append("No labels: the measures describe how the features are distributed, not whether they are useful.")
    else:
        lines.append(
            "The intervals apply to other test groups of the same kind, but not to other cameras, places or years."
        )
    if len(seeds := params["pretrain"]["seeds"]) == 1:
        lines.append(f"One training run (seed {seeds[0]}): the variation of the scores between seeds is not known.")
    if checks["rejected"]:
        lines.append(f"{len(checks['rejected'])} of {checks['images']} images failed the checks and were left out.")
    if facts["lineage"].get("dirty"):
        lines.append("The code had uncommitted changes; they are stored with the run as git.diff.")
    return [
        *lines,
        "Choosing a model by these test scores makes them slightly too high; choose models by the validation split.",
    ]
