"""Where a result comes from: a registered version, a run, the folder of a pulled encoder, or a file made with one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simtrail.data.vectors import about
from simtrail.errors import InputError
from simtrail.model import HEAD_CONFIG, WEIGHTS
from simtrail.tracking.pull import ENCODER_TAG, HEAD_TAG, REASON_TAG, TRAIL, URI, encoder_hash, fetch
from simtrail.tracking.store import local_database, open_store

TAGS = {  # of a run → name in the trail
    "simtrail.first_weights": "first weights",
    "simtrail.teacher": "teacher",
    "dvc.experiment": "DVC experiment",
    "mlflow.parentRunId": "parent run",
}


def trace(what: str) -> dict[str, Any]:
    """The origin of a result, from the result back to data, code and environment, as nested dicts.

    `what` is models:/NAME@ALIAS, models:/NAME/VERSION, the folder of a pulled encoder, a file that `simtrail embed`
    wrote, the folder of `simtrail classify` or `finetune`, or the id of an MLflow run. A folder or file of another
    machine is traced as far as itself tells. Raises InputError for anything else.
    """
    path = Path(what)
    if what.startswith("models:/"):
        folder = fetch(what)  # first: it refuses what the registry does not have
        return {"model": what, **_registered(what), **_trail(folder)}
    if (path / WEIGHTS).is_file():
        return {"folder": what, "encoder_sha256": encoder_hash(path), **_trail(path)}
    if made := _made_with(path):
        made = {key: value for key, value in made.items() if key not in ("recipe", "images")}  # long
        return {"file": what, "made": made, **_of_encoder(made["encoder_sha256"], made["model"])}
    return {"run": what, **_run(what)}


def lines(tree: dict[str, Any], indent: int = 0) -> Iterator[str]:
    """The trail as text: a line per entry, nested by spaces."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{'  ' * indent}{name}"
            yield from lines(value, indent + 1)
        elif value not in (None, "", []):
            value = ", ".join(map(str, value)) if isinstance(value, list) else value
            value = f"{value:.4g}" if isinstance(value, float) else value
            yield f"{'  ' * indent}{name}: {value}"


def parents(run_id: str) -> dict[str, str]:
    """What a run started from or belongs to."""
    tags = open_store().get_run(run_id).data.tags
    return {name: tags[tag] for tag, name in TAGS.items() if tag in tags}


def _trail(folder: Path) -> dict[str, Any]:
    if (folder / TRAIL).is_file():
        return json.loads((folder / TRAIL).read_text(encoding="utf-8"))
    if (folder / HEAD_CONFIG).is_file() and "parent_sha256" in (made := _learned(folder / HEAD_CONFIG)):
        parent = _of_encoder(made.pop("parent_sha256"), made.pop("model"))
        return {"labels": made.get("labels"), "learned": made["learned"], "encoder": parent}  # as if registered
    return {"note": f"no {TRAIL}: an encoder of an earlier version; its model card and its run tell"}


def _of_encoder(sha256: str, uri: str) -> dict[str, Any]:
    """The trail of an encoder, if the registry here has it, or if it is a folder that still has it."""
    known = _by_hash(sha256, uri)
    if not known and (Path(uri) / WEIGHTS).is_file() and encoder_hash(Path(uri)) == sha256:
        known = uri
    return {"model": uri} | (trace(known) if known else {"note": "the registry here does not have it"})


def _registered(uri: str) -> dict[str, Any]:
    client = open_store()
    found = URI.fullmatch(uri)
    if not found:
        return {}
    name, number, alias = found.groups()
    version = client.get_model_version(name, number) if number else client.get_model_version_by_alias(name, alias)
    return {"version": int(version.version), "aliases": list(version.aliases), "why": version.tags.get(REASON_TAG)}


def _by_hash(sha256: str, uri: str) -> str | None:
    """The URI of the registered version with this encoder; of several, that of the model in a URI."""
    if (database := local_database()) is not None and not database.exists():
        return None
    named = URI.fullmatch(uri)
    models = open_store().search_registered_models()
    for model in sorted(models, key=lambda model: not named or model.name != named[1]):
        for version in open_store().search_model_versions(f"name = '{model.name}'"):
            if version.tags.get(ENCODER_TAG) == sha256 and HEAD_TAG not in version.tags:
                return f"models:/{model.name}/{version.version}"
    return None


def _made_with(path: Path) -> dict[str, Any] | None:
    """What a file of features, or the folder of a classifier, says of the encoder that it was made with."""
    if (path / HEAD_CONFIG).is_file():
        return _learned(path / HEAD_CONFIG)
    found = about(path)
    return found if "encoder_sha256" in found else None


def _learned(head: Path) -> dict[str, Any]:
    """What the file of a head says of its encoder, and of what it learned."""
    tree = json.loads(head.read_text(encoding="utf-8"))
    learned = {key: tree[key] for key in ("target", "kind", "names", "error") if key in tree}
    return tree.get("about", {}) | {"learned": learned | {"labelled images": len(tree.get("labelled", []))}}


def _run(run_id: str) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    try:
        run = open_store().get_run(run_id)
    except MlflowException:
        raise InputError(
            f"{run_id}: must be models:/NAME@champion, models:/NAME/VERSION, the folder of a pulled encoder, a file of "
            "simtrail embed, the folder of simtrail classify or finetune, or the id of a run"
        ) from None
    tags = run.data.tags
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "code": {"commit": tags.get("mlflow.source.git.commit"), "uncommitted changes": tags.get("git.dirty")},
        "data": {"md5": tags.get("simtrail.data_md5"), "split hash": tags.get("simtrail.split_hash")},
        "parents": parents(run_id),
        "parameters": dict(sorted(run.data.params.items())),
    }
