"""The gate of the registry: whether a version may replace the champion, and why."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from simtrail.errors import InputError
from simtrail.evaluation.difference import correct, paired
from simtrail.params import Register
from simtrail.tracking.evaluated import EvaluatedRun, sorted_images

DECIDING = ("evaluate.held_out_classes", "evaluate.balanced")  # parameters that change the meaning of the score
SPLITTING = ("prepare.seed", "prepare.test_fraction", "prepare.val_fraction", "check.on_fail")
PROBE = "linear_probe"
INCOMPARABLE = "not comparable"  # the reason starts with it


@dataclass(frozen=True)
class Evaluated:
    """What decides about an encoder: where and how it was evaluated, and the result."""

    data_md5: str
    split_hash: str
    params: dict[str, str]  # by dotted key
    effective_rank: float
    predictions: pd.DataFrame | None  # of the test images of the main task; None without labels

    @classmethod
    def of_run(cls, run: EvaluatedRun) -> Evaluated:
        """The evaluation that an MLflow run has logged."""
        md5, split_hash = (run.tags.get(f"simtrail.{name}", "") for name in ("data_md5", "split_hash"))
        task = next(iter(run.metrics["tasks"]), None)
        rank = run.metrics["features"]["effective_rank"]
        return cls(md5, split_hash, run.params, rank, run.test_images(task) if task else None)


def decide(new: Evaluated, champion: Evaluated, version: str, p: Register) -> tuple[bool, str]:
    """Whether the new encoder replaces the champion, and the reason in words.

    They are compared only on the same data version, test images and labels, and with the same settings that decide the
    score. Accuracies are compared by the paired bootstrap interval over groups (evaluation.difference.paired).
    """
    if difference := _incomparable(new, champion):
        return False, f"{INCOMPARABLE} with champion version {version}: {difference}"
    required = f"more than register.margin = {p.margin:g}" if p.margin else "higher"
    if new.predictions is None or champion.predictions is None:
        passes = new.effective_rank - champion.effective_rank > p.margin
        text = f"effective rank {new.effective_rank:.1f} against {champion.effective_rank:.1f} of version {version}"
        return passes, text if passes else f"{text}: not {required}"
    x, y = (sorted_images(table) for table in (champion.predictions, new.predictions))
    before, now = correct(x, [PROBE]), correct(y, [PROBE])
    value, low, high = (float(part[0]) for part in paired(before, now, x["block"].to_numpy()))
    text = (
        f"accuracy of the linear probe {now.mean():.3f} against {before.mean():.3f} of version {version}: {value:+.3f} "
        f"(95 % interval {low:+.3f} – {high:+.3f})"
    )
    if value <= p.margin:
        return False, f"{text}, not {required}"
    if low > p.margin:
        return True, f"{text}, significantly {required}"
    passes = p.gate == "higher"
    return passes, f"{text}, {'but this may be chance' if passes else f'not significantly {required}'}"


def _incomparable(new: Evaluated, champion: Evaluated) -> str | None:
    """The first difference that makes the scores incomparable, in words; None without one."""

    def differing(keys: tuple[str, ...]) -> str | None:
        changed = (k for k in keys if k in champion.params and new.params.get(k) != champion.params[k])
        return next((f"{k} = {_yaml(new.params.get(k))}, not {_yaml(champion.params[k])}" for k in changed), None)

    if new.data_md5 != champion.data_md5:
        name = differing(("data.name",))
        return name or f"the data version is {new.data_md5[:8]}, not {champion.data_md5[:8]}"
    if setting := differing(DECIDING):
        return setting
    if (new.predictions is None) != (champion.predictions is None):
        return "one of them was evaluated without labels"
    other_split = f"other test images{f' ({key})' if (key := differing(SPLITTING)) else ''}"
    if new.predictions is None or champion.predictions is None:
        return other_split if new.split_hash != champion.split_hash else None
    x, y = sorted_images(new.predictions), sorted_images(champion.predictions)
    if not x["sha256"].equals(y["sha256"]):
        return other_split
    if not x["truth"].equals(y["truth"]):
        return f"the labels of {int((x['truth'] != y['truth']).sum())} test images"
    return None if x["block"].equals(y["block"]) else "the groups of the test images"


def _yaml(value: str | None) -> str:
    """A value as in params.yaml, from a parameter of MLflow."""
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))


def refuse_significant_without_labels(new: Evaluated, p: Register) -> None:
    """InputError if the gate needs an interval that does not exist."""
    if new.predictions is None and p.gate == "significant":
        raise InputError(
            "register.gate = 'significant': without labels there is no interval of the effective rank; set higher"
        )
