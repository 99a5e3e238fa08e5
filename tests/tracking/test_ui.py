"""What a user sees in the MLflow UI, in headless Chromium; SCREENSHOTS names a folder in which to keep screenshots."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from pipeline.test_stages import run_pipeline

from simtrail.tracking.store import VIEW, open_store

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is missing from PATH: apt-get install chromium"),
]
EPOCHS, METRICS = 3, ("linear_probe/accuracy", "curves/loss")
SPACE = {
    "study": "tiny",
    "objective": "val_probe",
    "direction": "maximize",
    "budget": {"trials": 4, "minutes": None, "epochs": 2},
    "sampler": "tpe",
    "pruner": "hyperband",  # prunes from the second trial on
    "set": {"pretrain.monitor.every": 1},
    "space": {
        "pretrain.temperature": {"low": 0.05, "high": 1.0, "log": True},
        "pretrain.batch_size": {"powers_of_two": [16, 32]},
        "pretrain.augment.color.strength": {"low": 0.0, "high": 1.0},
    },
}
STATUS_ICONS = {
    "FINISHED": "M11.53 6.53",
    "KILLED": "M6.94 8",
}  # the icon's SVG path: a tick, a cross
FLAGS = [  # in addition to playwright's: headless, empty profile
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no lookup of other machines
]
# State after a click on "Model training" and after closing the assistant: otherwise MLflow shows its GenAI pages.
LOCAL_STORAGE = """
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return run_pipeline(tmp_path_factory.mktemp("ui") / "a project", pretrain__epochs=EPOCHS)


@pytest.fixture(scope="module")
def site(project, tmp_path_factory):
    """The address of the UI, which is started in the way that users start it."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "ui.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "simtrail", "ui", "--port", str(port)],
            cwd=project,
            env={k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "DVC_ROOT")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group, to end the server with its workers
        )
    try:
        deadline = time.monotonic() + 180
        while not is_up(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/#"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def is_up(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture(scope="module")
def page(site):
    playwright.expect.set_options(timeout=60_000)  # the two cores may be busy
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1600, "height": 1100})
        context.set_default_timeout(60_000)
        context.add_init_script(LOCAL_STORAGE)
        yield context.new_page()
        browser.close()


@pytest.fixture(scope="module")
def screenshot(page, tmp_path_factory):
    """A function that saves a screenshot of the page under a name."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")).resolve()
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str) -> None:
        page.mouse.move(0, 0)  # away from the charts, which show tools under the mouse
        page.wait_for_timeout(3000)  # until all is drawn; the network is never idle, because the page refreshes itself
        page.screenshot(path=folder / f"{name}.png")

    yield save
    print(f"\nscreenshots: {folder}")


@pytest.fixture
def version(project, monkeypatch):
    monkeypatch.chdir(project)
    return open_store().get_model_version_by_alias("small", "champion")


def expect_texts(page, *texts: str) -> None:
    for text in texts:
        playwright.expect(page.get_by_text(text).first).to_be_visible()


def test_the_runs_table_shows_the_run_and_the_selected_metrics(page, site, screenshot):
    page.goto(f"{site}/experiments/1/runs")
    expect_texts(page, "1 matching run", "resnet10t", "demo (")
    screenshot("runs")
    page.get_by_role("button", name="Columns").click()
    for name in METRICS:
        page.get_by_placeholder("Search columns").fill(name)
        page.get_by_test_id("column-selector-tree").get_by_text(name, exact=True).first.click()
    page.keyboard.press("Escape")
    header = page.get_by_role("columnheader")
    for name in METRICS:
        playwright.expect(header.filter(has_text=name).first).to_be_visible()
    screenshot("runs-metrics")


def test_the_run_page_shows_parameters_metrics_and_lineage(page, site, screenshot, version):
    page.goto(f"{site}/experiments/1/runs/{version.run_id}")
    expect_texts(page, "Finished", "pretrain.encoder.model", *METRICS, "data_md5", "small")
    screenshot("run")


def test_the_model_metrics_tab_draws_the_loss_of_every_epoch(page, site, screenshot, version):
    page.goto(f"{site}/experiments/1/runs/{version.run_id}/model-metrics")
    playwright.expect(page.locator(".js-plotly-plot").first).to_be_visible()
    screenshot("run-metrics")
    page.get_by_placeholder("Search metric charts").fill("curves/loss")
    points = page.locator(".js-plotly-plot .scatterlayer .points path")
    playwright.expect(points).to_have_count(EPOCHS)
    expect_texts(page, "loss")
    screenshot("run-metrics-loss")


def test_the_version_page_shows_numbers_alias_and_lineage(page, site, screenshot, version):
    page.goto(f"{site}/models/small/versions/1")
    expect_texts(page, "linear probe accuracy", "95 % interval", "champion", "Source Run")
    screenshot("version")
    for tag in ("data_md5", "git_commit", "encoder_sha256"):
        row = page.get_by_role("row").filter(has=page.get_by_text(tag, exact=True))
        playwright.expect(row).to_contain_text(version.tags[tag])
    page.get_by_text("git_commit", exact=True).scroll_into_view_if_needed()
    screenshot("version-tags")


@pytest.fixture(scope="module")
def study(project, site):
    """The run of a sweep in that project, and the runs of its trials by start time; the last module fixture."""
    (project / "sweeps").mkdir()
    (project / "sweeps/tiny.yaml").write_text(yaml.safe_dump(SPACE))
    subprocess.run([sys.executable, "-m", "simtrail", "sweep", "tiny"], cwd=project, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        runs = open_store().search_runs(["1"], order_by=["attributes.start_time ASC"])
    parent = next(run for run in runs if run.info.run_name == "sweep tiny")
    return parent, [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def test_the_runs_table_shows_the_trials_below_their_sweep_with_their_states(page, site, screenshot, study):
    parent, trials = study
    assert {trial.info.status for trial in trials} == {"FINISHED", "KILLED"}
    page.goto(f"{site}/experiments/1/runs?viewStateShareKey={VIEW}")
    row = page.get_by_role("row")
    trial_rows = {run.info.run_name: row.filter(has=page.get_by_text(run.info.run_name, exact=True)) for run in trials}
    parent_row = row.filter(has=page.get_by_text(parent.info.run_name, exact=True))
    playwright.expect(parent_row).to_be_visible()
    for trial_row in trial_rows.values():
        playwright.expect(trial_row).to_have_count(0)
    parent_row.get_by_role("button").first.click()
    for trial in trials:
        icon = trial_rows[trial.info.run_name].locator("[col-id=runDateAndNestInfo] svg path").first
        playwright.expect(icon).to_have_attribute("d", re.compile(f"^{STATUS_ICONS[trial.info.status]}"))
    screenshot("sweep")


def test_the_compare_view_draws_trials_over_searched_parameters_and_objective(page, site, screenshot, study):
    trials = study[1]
    ids = json.dumps([trial.info.run_id for trial in trials])
    page.goto(f"{site}/compare-runs?runs={quote(ids)}&experiments={quote(json.dumps(['1']))}")
    expect_texts(page, "Comparing 4 Runs", "Parallel Coordinates Plot", *(trial.info.run_name for trial in trials))
    playwright.expect(page.locator(".parcoords .axis-title")).to_have_text([*sorted(SPACE["space"]), "objective"])
    screenshot("sweep-compare")
    values = [trial.data.metrics["objective"] for trial in trials]
    bounds = page.locator(".parcoords .y-axis").last.locator(".axis-extent-text")
    # a missing value would be drawn above
    playwright.expect(bounds).to_have_text([f"{max(values):.5f}", f"{min(values):.5f}"])
