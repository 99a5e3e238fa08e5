"""What the commands print: the result of the checks, the scores beside their floors, the registered version."""

from __future__ import annotations

from typing import Any

from simtrail.errors import counted, listed
from simtrail.evaluation.names import FEW_GROUPS, TITLES
from simtrail.pipeline.workspace import REGISTERED, REGISTRATION, REPORT, SCORES, TABLES, VALIDATION_PAGE, read_json
from simtrail.report.wording import verdict
from simtrail.tracking.pull import Registered, registered
from simtrail.tracking.store import STORE, local_database

SHOWN = 200  # rejected images that are printed; the others are on the validation page


def summary() -> None:
    """Prints the result of the last run: the probe beside its floors, the registered version, what to do next."""
    metrics, encoder = read_json(SCORES, "evaluate"), read_json(REGISTERED, "register")
    print("\n".join(score_lines(metrics)) + "\n")
    if found := _version(encoder):
        name, version, alias = encoder["name"], found.version, found.alias
        print(f"{name} version {version} is {alias or 'neither champion nor challenger'} ({found.reason})")
        print(f"  pull it      simtrail pull models:/{name}{f'@{alias}' if alias else f'/{version}'} --out encoder")
    else:
        print(f"{encoder['name']}: the registry of this project ({STORE}) does not have this encoder")
        print("  register it  simtrail register")
    print(f"  report       {REPORT}")
    print("  browse runs  simtrail ui", flush=True)


def _version(encoder: dict[str, str]) -> Registered | None:
    """The version of the encoder; for a store other than the project's own, as the last registration recorded it."""
    if local_database():
        return registered(encoder["name"], encoder["encoder_sha256"])
    last = read_json(REGISTRATION, "register") if REGISTRATION.exists() else {}
    if last.get("encoder_sha256") != encoder["encoder_sha256"]:
        return None
    return Registered(last["version"], last["alias"], last["reason"])


def warning_lines(validation: dict[str, Any]) -> list[str]:
    """One line for each check that gives a warning: what is wrong, three examples, and what to do."""
    lines = []
    for f in validation["findings"]:
        if f["severity"] == "warning" and not f["success"]:
            examples = f": {listed(f['offenders'], 3)}" if f["offenders"] else ""
            advice = f"; {f['advice']}" if f.get("advice") else ""
            lines.append(f"{f['problem']}{examples}{advice}")
    return lines


def note_lines(validation: dict[str, Any]) -> list[str]:
    """One line for each decision in reading files, with the number of files and an example."""
    return [
        f"{note} ({counted(len(paths), 'file')}, such as {paths[0]})" if paths else note
        for note, paths in validation["notes"].items()
    ]


def rejected_lines(validation: dict[str, Any]) -> str:
    """The rejected images, one per line, each with its reasons."""
    rejected = validation["rejected"]
    lines = [f"  data/{validation['dataset']}/{path}: {reason}" for path, reason in list(rejected.items())[:SHOWN]]
    if len(rejected) > SHOWN:
        lines.append(f"  … and {len(rejected) - SHOWN} more in {VALIDATION_PAGE}")
    return "\n".join(lines)


def score_lines(metrics: dict[str, Any]) -> list[str]:
    """The scores of every task beside their floors, and whether the probe beats them, as lines of text."""
    lines = [] if metrics["tasks"] else ["no labels: label-free measures of the test split"]
    for name, task in metrics["tasks"].items():
        size = f"{task['classes']} classes, {task['images']} test images"
        if task["groups"] < FEW_GROUPS:
            size += f" of {task['groups']} groups, too few for reliable intervals"
        lines += [f"{name}: {size}", f"{'':<26}{'accuracy':>9}  95 % interval   balanced"]
        lines += [_row(title, task["scores"][key]) for key, title in TITLES.items() if key in task["scores"]]
        lines.append(verdict(task))
    modalities = metrics.get("modalities", {})
    lines += [_row(f"{name} alone, linear probe", scores) for name, scores in modalities.get("alone", {}).items()]
    for pair, recall in modalities.get("retrieval", {}).items():
        back, chance = recall["recall_back_at_1"], recall["chance_at_1"]
        lines.append(f"{pair}: recall at 1 {recall['recall_at_1']:.3f}, back {back:.3f}, by chance {chance:.3f}")
    label_free = ("effective_rank", "uniformity", "alignment", "feature_std")
    lines.append(", ".join(f"{k.replace('_', ' ')} {metrics['features'][k]:.3g}" for k in label_free))
    if seeds := metrics.get("seeds"):
        each = (f"{TITLES[k]} {v['mean']:.3f} ± {v['sd']:.3f}" for k, v in seeds.items())
        lines.append(f"over {next(iter(seeds.values()))['seeds']} seeds: {', '.join(each)}")
    if suspects := _suspect_counts(metrics.get("suspects", {})):
        lines.append(f"{', '.join(suspects)}: {TABLES / 'suspects.csv'}")
    return lines


def _suspect_counts(numbers: dict[str, Any]) -> list[str]:
    """How many suspects of each kind there are, as evaluation.suspects counts them, without kinds not searched."""

    def count(key: str, thing: str, things: str) -> str:
        return f"{numbers[key]} {thing if numbers[key] == 1 else things}"

    parts = []
    if "labels" in numbers:
        parts.append(count("labels", "suspected wrong label", "suspected wrong labels"))
        if numbers["unchecked_classes"]:
            few = count("unchecked_classes", "class has", "classes have")
            parts[-1] += f" ({few} too few groups to be checked)"
    if "near_copies" in numbers:
        parts.append(count("near_copies", "test image", "test images") + " with a near copy in train or val")
        if without := numbers.get("without_near_copies"):
            parts[-1] += f" (accuracy without {without['accuracy']:.3f})"
    if "classes" in numbers:
        failing = [count("groups", "group", "groups"), count("classes", "class", "classes")]
        parts.append(" and ".join(failing) + " on which the probe fails")
    return parts


def _row(title: str, scores: dict[str, float]) -> str:
    interval = f"{scores['accuracy_low']:.3f} – {scores['accuracy_high']:.3f}"
    return f"{title:<26}{scores['accuracy']:>9.3f}  {interval}{scores['balanced_accuracy']:>11.3f}"
