from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Metric, Param, RunTag
from typer.testing import CliRunner

from simtrail.cli import app
from simtrail.errors import InputError
from simtrail.evaluation.scores import scores_with_intervals
from simtrail.report.comparison import compare
from simtrail.tracking.evaluated import find
from simtrail.tracking.store import open_store

IMAGES, EACH = 120, 4
TRUTH = np.repeat(["a", "b", "c"], IMAGES // 3)


def predictions(accuracy: float, images: range = range(IMAGES), seed: int = 0) -> pd.DataFrame:
    """Predictions in random order, with about this accuracy of the probe; a higher one keeps all correct images."""
    correct = np.random.default_rng(seed).random(IMAGES) < accuracy
    rows = {"task": "species", "path": [f"{i}.png" for i in images], "sha256": [f"{i:064d}" for i in images]}
    rows |= {"block": np.arange(len(images)) // EACH, "truth": TRUTH[: len(images)]}
    rows["linear_probe"] = np.where(correct, TRUTH, "a")[: len(images)]
    return pd.DataFrame(rows | {"majority": "a"}).sample(frac=1, random_state=round(100 * accuracy))


def metrics(table: pd.DataFrame) -> dict:
    def codes(column: str) -> np.ndarray:
        return table[column].map({"a": 0, "b": 1, "c": 2}).to_numpy()

    block = table["block"].to_numpy()
    scores = {
        c: scores_with_intervals(codes("truth"), codes(c), block, 3, 100, 0)[0] for c in ("linear_probe", "majority")
    }
    features = {"effective_rank": 12.5, "uniformity": -1.5}
    return {
        "features": features,
        "tasks": {"species": {"classes": 3, "images": len(table), "groups": 30, "scores": scores}},
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with the runs base, better, moved (other images, settings and split), 2 × twin, bare, free."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "dvc.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        base = log("base", predictions(0.7))
        log("better", predictions(0.95), temperature="0.1", losses=[4.0, 2.0])
        log("moved", predictions(0.8, range(50, 150)), k="20", split="s2", md5="m2")
        for _ in range(2):
            log("twin", predictions(0.7))
        log("bare", None)
        log("free", None, {"features": {"effective_rank": 30.0}, "tasks": {}})
        client = open_store()
        client.create_registered_model("butterfly")
        version = client.create_model_version("butterfly", "file:///nowhere", base)
        client.set_registered_model_alias("butterfly", "champion", version.version)
    return folder


def log(
    name: str,
    table: pd.DataFrame | None,
    tree: dict | None = None,
    *,
    temperature: str = "0.2",
    k: str = "10",
    split: str = "s1",
    md5: str = "m1",
    losses: list[float] | None = None,
    file_name: str = "scores.json",
) -> str:
    client = open_store()
    run_id = client.create_run("0", run_name=name).info.run_id
    params = {"pretrain.temperature": temperature, "evaluate.knn.k": k, "pretrain.seeds": "[0]"}
    tags = {"simtrail.data_md5": md5, "simtrail.split_hash": split}
    client.log_batch(
        run_id,
        [Metric("curves/loss", loss, 0, i + 1) for i, loss in enumerate(losses or [4.5, 3.0])],
        [Param(key, value) for key, value in params.items()],
        [RunTag(key, value) for key, value in tags.items()],
    )
    if table is not None:
        file = Path("predictions.parquet")
        table.to_parquet(file)
        client.log_artifact(run_id, str(file))
    if tree or table is not None:
        client.log_text(run_id, json.dumps(tree or metrics(table)), file_name)
    return run_id


@pytest.fixture(autouse=True)
def _in_project(project, monkeypatch):
    monkeypatch.chdir(project)


def comparison(*names: str, folder: Path) -> tuple[str, str]:
    """The text for the terminal, and the page."""
    text = compare(list(names), folder)
    return text, (folder / "compare.html").read_text()


def line(text: str, classifier: str, letter: str) -> str:
    after = text[text.index(classifier) :].splitlines()
    return next(row for row in after if re.search(rf"(^| ){letter} \d", row))


def test_the_difference_on_the_same_images_is_paired_in_any_order_of_images(tmp_path):
    text, page = comparison("base", "better", folder=tmp_path)
    base, better = predictions(0.7), predictions(0.95)
    gain = (better["linear_probe"] == better["truth"]).mean() - (base["linear_probe"] == base["truth"]).mean()
    probe = line(text, "linear probe", "B")
    assert f"{gain:+.3f} (+0." in probe
    assert probe.endswith("  significant")
    assert f"<strong>{gain:+.3f} (+0." in page
    assert "test images of" not in text + page


def test_the_difference_between_equal_floors_is_zero(tmp_path):
    text, page = comparison("base", "better", folder=tmp_path)
    assert line(text, "floor: majority class", "B").endswith("+0.000 (+0.000 – +0.000)  not significant")
    assert "<strong>+0.000" not in page


def test_each_accuracy_is_shown_with_the_interval_of_its_evaluation(tmp_path):
    text, page = comparison("base", "better", folder=tmp_path)
    scores = metrics(predictions(0.7))["tasks"]["species"]["scores"]["linear_probe"]
    shown = "{accuracy:.3f} ({accuracy_low:.3f} – {accuracy_high:.3f})".format(**scores)
    assert shown in line(text, "linear probe", "A")
    assert shown in page


def test_terminal_and_page_warn_of_different_images_data_split_and_settings(tmp_path):
    text, page = comparison("base", "moved", folder=tmp_path)
    for output in (text, page):
        assert "species: B and A have different test images (100 and 120)" in output
        assert "B and A differ in the data version (DVC md5): m2 and m1" in output
        assert "B and A differ in the split: s2 and s1" in output
        assert "B and A differ in the settings of prepare or evaluate: evaluate.knn.k" in output


def test_a_corrected_label_gives_a_warning_and_the_images_stay_paired(tmp_path):
    table = predictions(0.7)
    table.loc[table["path"] == "3.png", "truth"] = "b"
    text, _ = comparison("base", log("corrected", table), folder=tmp_path)
    assert "species: the labels of 1 test images differ between B and A" in text


def test_the_page_lists_only_parameters_that_differ(tmp_path):
    _, page = comparison("base", "better", "moved", folder=tmp_path)
    assert "<tr><td>pretrain.temperature</td><td>0.2</td><td>0.1</td><td>0.2</td></tr>" in page
    assert "<tr><td>evaluate.knn.k</td><td>10</td><td>10</td><td>20</td></tr>" in page
    assert "pretrain.seeds" not in page


def test_the_training_curves_are_embedded_in_the_page(tmp_path):
    _, page = comparison("base", "better", folder=tmp_path)
    assert 'src="data:image/svg+xml;base64,' in page
    assert "http://" not in page


def test_runs_without_labels_are_compared_by_measures_that_need_none(tmp_path):
    text, page = comparison("free", "base", folder=tmp_path)
    assert "12.500" in page
    assert "30.000" in page
    assert "exceed" not in text


def test_a_run_is_found_by_its_id_the_beginning_of_its_id_its_name_and_its_version():
    client = open_store()
    base = find(client, "base").info.run_id
    for name in (base, base[:12], "models:/butterfly/1", "models:/butterfly@champion"):
        assert find(client, name).info.run_id == base


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["base"], "compare: 1 runs given: name 2 to 26"),
        (["base", "basis"], "basis: no such run; give a run's id"),
        (["base", 'it\'s "so"'], "no such run"),
        (
            ["base", "twin"],
            r"twin: matches several runs: [0-9a-f]{8} \(twin\), [0-9a-f]{8} \(twin\); give the id of one",
        ),
        (["base", "bare"], "bare: run [0-9a-f]{8} has no evaluation"),
        (
            ["base", "models:/butterfly@champion"],
            "models:/butterfly@champion: is run [0-9a-f]{8}, which is given already",
        ),
        (["base", "models:/butterfly/7"], "models:/butterfly/7: .*not found"),
        (["base", "models:/butterfly"], "models:/butterfly: must look like models:/NAME/VERSION"),
    ],
)
def test_the_error_for_a_run_that_can_t_be_compared_says_what_to_do(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        compare(names, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_table_and_writes_the_page(tmp_path):
    result = CliRunner().invoke(app, ["compare", "base", "better"])
    assert result.exit_code == 0
    assert "artifacts/compare/compare.html" in result.output
    assert Path("artifacts/compare/compare.html").exists()
    assert CliRunner().invoke(app, ["compare"]).exit_code == 2


def test_runs_of_earlier_versions_can_be_compared(tmp_path):
    log("earlier", predictions(0.95), file_name="metrics.json")
    assert line(comparison("base", "earlier", folder=tmp_path)[0], "linear probe", "B").endswith("  significant")


def test_a_run_is_found_by_the_experiment_of_dvc_that_made_it():
    client = open_store()
    run_id = log("another name", predictions(0.8))
    client.set_tag(run_id, "dvc.experiment", "moon-base")
    assert find(client, "moon-base").info.run_id == run_id
