from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import coarse_figures, with_changes
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from PIL import Image

from simtrail.augment.views import TwoViews
from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.report.figures import charts, pictures, spectra
from simtrail.report.figures import map as maps
from simtrail.report.html import TEMPLATES
from simtrail.report.map import map_page

RNG = np.random.default_rng(0)
NAMES = [f"class {i}" for i in range(60)]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def recipe(bands: list[str], dtype: str = "uint8", size: int = 16) -> Recipe:
    n = len(bands)
    return Recipe(
        size=size, fit="pad", background=0, composite=True, file_dtype=dtype, file_bands=n, mask_band=None,
        bands=bands, dtype=dtype, low=[0] * n, high=[255] * n,
    )  # fmt: skip


def packed(folder, bands: list[str], dtype: str = "uint8", count: int = 40) -> PackedImages:
    np.save(folder / "images-0000.npy", RNG.integers(0, 256, (count, len(bands), 16, 16)).astype(dtype))
    return PackedImages(folder, recipe(bands, dtype))


@pytest.fixture
def figure_texts(tmp_path, monkeypatch):
    """The texts of the figures that a test saves to tmp_path.

    Checks that every figure is saved as PNG and SVG, is at most as wide as a page, and has no text smaller than 8
    points, in print and at the height at which a page shows it.
    """
    texts, close_figure = [], plt.close
    highest = int(re.search(r"figure img .*max-height: (\d+)rem", (TEMPLATES / "page.css").read_text())[1])

    def close(figure):
        texts.extend(text.get_text() for text in figure.findobj(plt.Text) if text.get_visible())
        assert figure.get_figwidth() <= 6.3
        shown = min(1, highest * 16 / 96 / figure.get_figheight())  # 1 rem is 16 pixels, 1 inch is 96 pixels
        assert min(text.get_fontsize() for text in figure.findobj(plt.Text) if text.get_text()) * shown >= 8
        close_figure(figure)

    monkeypatch.setattr("simtrail.report.figures.style.plt.close", close)
    with coarse_figures():
        yield texts
    files = sorted(tmp_path.glob("*.png"))
    assert files
    for file in files:
        assert Image.open(file).width <= 1260 / 4  # at a quarter of the resolution
    for file in tmp_path.glob("*.svg"):
        assert ET.parse(file).getroot().tag.endswith("svg")


def test_a_figure_has_the_same_bytes_every_time(tmp_path):
    for name in ("a.b.png", "c.png"):
        charts.explained_variance(np.array([0.8, 1.0]), tmp_path / name)
    assert (tmp_path / "a.b.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    assert (tmp_path / "a.b.svg").read_bytes() == (tmp_path / "c.svg").read_bytes()


def test_a_training_curve_draws_validations_read_from_a_file(tmp_path, figure_texts):
    history = [{"epoch": i, "loss": 1 / i, "contrastive_top1": 0.5, "val_knn": 0.4} for i in (1, 2, 3)]
    for row, missing in zip(history, (np.nan, 0, 0), strict=True):
        row |= {"val_feature_std": 0.04 + missing, "val_effective_rank": 5 + missing}
    charts.training_curve(history, 2, tmp_path / "training.png")
    assert {"kNN, validation", "epoch 2, whose weights are kept"} <= set(figure_texts)


def test_score_bars_name_their_images_and_groups(tmp_path, figure_texts):
    scores = {s + b: 0.9 for s in ("accuracy", "balanced_accuracy") for b in ("", "_low", "_high")}
    charts.score_bars({"knn": scores}, {"knn": "kNN"}, tmp_path / "scores.png", 240, 60)
    title = "Test split: 240 images of 60 groups; error bars: 95 % intervals, bootstrapped over groups"
    assert {title, "0.900"} <= set(figure_texts)


@pytest.mark.parametrize("classes", [2, 60])
def test_a_confusion_matrix_shows_at_most_forty_classes_and_says_so(tmp_path, figure_texts, classes):
    truth = np.repeat(np.arange(classes), np.arange(1, classes + 1))
    charts.confusion_matrix(truth, truth, NAMES[:classes], tmp_path / "confusion.png")
    shown = {text for text in figure_texts if text.startswith("class ")}
    assert shown == set(NAMES[:classes][-40:])
    assert any("the 40 most frequent of 60 classes" in text for text in figure_texts) == (classes == 60)


def test_similar_classes_are_neighbours_in_the_heat_map_of_angles(tmp_path, figure_texts):
    angles = np.array([[5, 60, 10, 70], [60, 5, 70, 10], [10, 70, np.nan, 60], [70, 10, 60, 5]], float)
    charts.angle_heat_map(angles, NAMES[:4], np.array([3, 3, 1, 3]), tmp_path / "angles.png")
    order = [text for text in figure_texts if text.startswith("class ")][:4]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset(NAMES[0:3:2]), frozenset(NAMES[1:4:2])}
    assert {"10", "70", "–", "mean angle, degrees", "10 images of 4 classes"} <= set(figure_texts)


def test_the_heat_map_of_angles_leaves_out_classes_without_images(tmp_path, figure_texts):
    angles = np.full((3, 3), np.nan)
    angles[:2, :2] = [[5, 40], [40, 5]]
    charts.angle_heat_map(angles, NAMES[:3], np.array([4, 4, 0]), tmp_path / "angles.png")
    assert "class 2" not in figure_texts


def test_ways_to_draw_that_drew_the_same_images_share_a_panel(tmp_path, figure_texts):
    rows = [("knn", d, n, n / 100, n / 120, n / 90, 5) for d in ("balanced", "proportional") for n in (5, 10, 50)]
    table = pd.DataFrame(rows, columns=["classifier", "draw", "labels", "mean", "low", "high", "seeds"])
    charts.label_efficiency(table, {"knn": 0.5}, tmp_path / "labels.png")
    assert [text for text in figure_texts if "proportional" in text] == ["balanced draws, which are proportional, too"]


def test_label_efficiency_shows_every_classifier_and_draw(tmp_path, figure_texts):
    draws = [(c, d) for c in ("knn", "svc") for d in ("balanced", "proportional")]
    rows = [(c, d, n, n / (100 + len(d)), n / 120, n / 90, 5) for c, d in draws for n in (5, 10, 50)]
    table = pd.DataFrame(rows, columns=["classifier", "draw", "labels", "mean", "low", "high", "seeds"])
    charts.label_efficiency(table, {"knn": 0.5}, tmp_path / "labels.png")
    assert {"kNN", "SVC", "balanced draws", "proportional draws", "Bands: 95 % interval of the mean of 5 draws"} <= set(
        figure_texts
    )


def test_fine_tuning_is_shown_beside_training_from_scratch(tmp_path, figure_texts):
    rows = [(f, n, s, 0.5, 0.4, 0.6) for f, n in ((0.01, 6), (0.1, 58)) for s in ("pretrained", "scratch")]
    columns = ["fraction", "images", "start", "accuracy", "accuracy_low", "accuracy_high"]
    charts.fine_tune_bars(pd.DataFrame(rows, columns=columns), tmp_path / "fine_tune.png")
    assert {"1 %\n6 images", "10 %\n58 images", "from the encoder", "from scratch"} <= set(figure_texts)


def test_explained_variance_labels_the_number_of_components(tmp_path, figure_texts):
    charts.explained_variance(np.array([0.5, 0.9, 0.96, 1.0]), tmp_path / "variance.png")
    assert {"90 %: 2", "95 %: 3", "99 %: 4"} <= set(figure_texts)


@pytest.mark.parametrize("columns", [1, 5, 45])
def test_the_dimensions_with_the_highest_r2_are_shown(tmp_path, figure_texts, columns):
    pairs = [(f"column {c}", d, 0.9 if d == 7 else 0.1 * RNG.random()) for c in range(columns) for d in range(64)]
    table = pd.DataFrame(pairs, columns=["column", "dimension", "r2"]).assign(p=0.01, q=0.02)
    charts.dimension_relations(table, tmp_path / "dimensions.png")
    assert "7" in figure_texts
    assert len({text for text in figure_texts if text.isdigit()}) <= 40


def test_stars_mark_significant_relations(tmp_path, monkeypatch):
    stars = []
    monkeypatch.setattr("simtrail.report.figures.style.plt.close", lambda f: stars.extend(f.axes[0].get_lines()))
    q = {("a", 0): 0.05, ("a", 1): 0.051, ("b", 0): np.nan, ("b", 1): 0.001}
    table = pd.DataFrame([(*pair, 0.5, 0.01, value) for pair, value in q.items()])
    table.columns = ["column", "dimension", "r2", "p", "q"]
    charts.dimension_relations(table, tmp_path / "dimensions.png")
    assert sorted((int(*star.get_xdata()), int(*star.get_ydata())) for star in stars) == [(0, 0), (1, 1)]


def test_classes_are_listed_with_their_number_of_images_best_first(tmp_path, figure_texts):
    table = pd.DataFrame({"class": NAMES, "images": range(1, 61), "f1": np.linspace(1, 0, 60)})
    charts.per_class_bars(table.assign(f1_low=0.0, f1_high=1.0), tmp_path / "per_class.png")
    shown = [text for text in figure_texts if text.startswith("class ")]
    assert len(shown) == 40
    assert (shown[0], shown[-1]) == ("class 59 (60)", "class 20 (21)")


def test_the_calibration_error_is_the_mean_gap_of_the_bins(tmp_path, figure_texts):
    confidence, correct = np.repeat([0.65, 0.95], [30, 10]), np.repeat([1, 0, 1], [15, 15, 10])
    charts.reliability(confidence, correct, tmp_path / "reliability.png")
    assert f"Expected calibration error {(30 * 0.15 + 10 * 0.05) / 40:.3f}" in figure_texts


@pytest.mark.parametrize("second_axis", [{}, {"crop": ["without", "small", "large"]}])
def test_an_ablation_shows_intervals_and_an_accuracy_axis_up_to_one(tmp_path, monkeypatch, second_axis):
    figures = []
    monkeypatch.setattr("simtrail.report.figures.style.plt.close", figures.append)
    means = np.linspace(0.3, 0.97, 9).reshape(3, 3)[:, : 3 if second_axis else 1].squeeze()
    means.flat[1] = np.nan  # failed
    bounds = np.stack([means - 0.04, np.minimum(means + 0.04, 1)], -1)
    measures = {"accuracy": (means, bounds), "rank": (means * 40, bounds * np.nan)}
    charts.ablation_panels({"colour": ["0", "½", "1"], **second_axis}, measures, "Title", "A note.", tmp_path / "a.png")
    accuracy, rank = figures[0].axes[:2]
    values = {text.get_text().split("\n")[0] for text in accuracy.texts}
    assert {"failed", "0.300"} <= values
    if second_axis:
        assert "0.300\n0.260–0.340" in {text.get_text() for text in accuracy.texts}
        return
    assert accuracy.get_xlim() == (0, 1)
    error_bar = accuracy.findobj(LineCollection)[0].get_segments()[0]
    np.testing.assert_allclose(error_bar[:, 0], [0.26, 0.34])
    assert rank.get_xlim()[1] > np.nanmax(40 * means)


@pytest.mark.parametrize(
    ("bands", "shown"),
    [
        (["grey"], [0, 0, 0]),
        (["a", "b"], [0, 1, 0]),
        (["a", "b", "c", "d"], [0, 1, 2]),
        (["uv", "blue", "green", "red"], [3, 2, 1]),
    ],
)
def test_images_with_any_number_of_bands_can_be_displayed(bands, shown):
    images = RNG.integers(0, 256, (3, len(bands), 16, 16), dtype=np.uint8)
    np.testing.assert_allclose(pictures.rgb(images, recipe(bands)), images[:, shown].transpose(0, 2, 3, 1) / 255)


def test_sixteen_bit_images_are_stretched_together():
    dark = RNG.integers(1000, 2000, (8, 3, 16, 16)).astype(np.uint16)
    dark[0, 0, 0, 0] = 65535  # one hot pixel
    shown = pictures.rgb(dark, recipe(["red", "green", "blue"], "uint16"))
    assert (shown.min(), shown.max()) == (0, 1)
    assert 0.45 < shown.mean() < 0.55
    dark[:4] //= 2
    shown = pictures.rgb(dark, recipe(["red", "green", "blue"], "uint16"))
    assert shown[:4].mean() < shown[4:].mean() / 2
    constant = np.full((2, 3, 16, 16), 65535, np.uint16)
    assert pictures.rgb(constant, recipe(["red", "green", "blue"], "uint16")).min() == 1


def test_thumbnails_are_averaged_and_never_enlarged(tmp_path):
    images = packed(tmp_path, ["red", "green", "blue", "uv"], count=70)
    assert np.array_equal(
        pictures.thumbnails(images, np.arange(70)), images.rows(np.arange(70))[:, :3].transpose(0, 2, 3, 1)
    )
    small = pictures.thumbnails(images, np.array([5, 3]), 4)
    assert small.shape == (2, 4, 4, 3)
    assert small[1].mean() == pytest.approx(images.rows(np.array([3]))[:, :3].mean(), abs=8)


def with_wavelengths(nm: list[float | None], names: list[str] | None = None) -> Recipe:
    return recipe(names or [f"band{i}" for i in range(len(nm))], "uint16").model_copy(update={"wavelengths": nm})


@pytest.mark.parametrize(
    ("nm", "shown"),
    [
        ([400, 450, 500, 550, 600, 650, None], [5, 3, 1]),
        ([900, 460, 700, 540, 640], [4, 3, 1]),
        ([1000, 1100, 1200, 1300, 1400, 1500], [4, 2, 0]),  # only infrared
        ([500, 900, 1000], [2, 1, 0]),
        ([None, None, 500, 550], [0, 1, 2]),
    ],
)
def test_visible_bands_are_displayed_in_their_colours(nm, shown):
    assert pictures.display_bands(with_wavelengths(nm)) == shown


def band_names(figure_texts: list[str]) -> set[str]:
    """The names of bands beside the rows of views."""
    return {name for text in figure_texts if text.count("\n") == 2 for name in text.split("\n")}


@pytest.mark.parametrize("bands", [["grey"], ["a", "b"], ["red", "green", "blue", "uv1", "uv2"], NAMES[:7], NAMES[:9]])
def test_views_of_up_to_nine_bands_are_drawn_in_all_bands(tmp_path, figure_texts, bands):
    images = packed(tmp_path, bands)
    views = TwoViews(with_changes({}).pretrain.augment, images.recipe, images.recipe.size // 2)
    pictures.view_grid(images, np.arange(6), views, 0, tmp_path / "views.png")
    assert band_names(figure_texts) == (set(bands) if len(bands) > 3 else set())
    assert any(text.startswith(f"All {len(bands)} bands;") for text in figure_texts) == (len(bands) > 3)


@pytest.mark.parametrize(
    ("nm", "names"),
    [
        (np.linspace(400, 1000, 25).tolist(), {"650 nm", "550 nm", "450 nm", "900 nm", "725 nm", "500 nm"}),
        ([None] * 25, {"band0", "band1", "band2", "band7", "band14", "band21"}),
    ],
)
def test_views_of_more_bands_are_drawn_in_six_and_say_so(tmp_path, figure_texts, nm, names):
    many_bands = with_wavelengths(nm)
    packed(tmp_path, many_bands.bands, "uint16")
    views = TwoViews(with_changes({}).pretrain.augment, many_bands)
    pictures.view_grid(PackedImages(tmp_path, many_bands), np.array([3]), views, 0, tmp_path / "views.png")
    assert band_names(figure_texts) == names
    assert any(text.startswith("6 of 25 bands;") for text in figure_texts)


class FixedViews:
    """The views that `make` returns for a batch (B, C, S, S), twice: (2 B, C, S, S)."""

    def __init__(self, make):
        self.make = make

    def __call__(self, batch, *seed):
        return torch.cat([self.make(batch.clone()), self.make(batch.clone())])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_images_look_the_same_with_any_views(tmp_path, monkeypatch, dtype):
    figures = []
    monkeypatch.setattr("simtrail.report.figures.style.plt.close", figures.append)
    images = packed(tmp_path, ["red", "green", "blue", "uv1", "uv2", "uv3"], dtype)
    for make in (lambda batch: batch / 2, lambda batch: batch**0 - batch):
        pictures.view_grid(images, np.arange(2), FixedViews(make), 0, tmp_path / "views.png")
    dim, inverted = ([picture.get_array() for picture in figure.axes[0].images] for figure in figures)
    assert all(np.array_equal(a, b) for a, b in zip(dim[::5], inverted[::5], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(dim[1::5], inverted[1::5], strict=True))


def test_a_view_names_the_bands_that_it_leaves_out(tmp_path, figure_texts):
    def leave_out(batch):
        batch[:, 1:5] = torch.nan
        return batch

    images = packed(tmp_path, ["red", "green", "blue", "uv1", "uv2", "uv3", "nir"])
    pictures.view_grid(images, np.arange(3), FixedViews(leave_out), 0, tmp_path / "views.png")
    texts = [" ".join(text.split()) for text in figure_texts]
    assert texts.count("no green, blue") == texts.count("no uv1, uv2") == 4 * 3
    assert "left out" not in texts


def test_a_view_that_leaves_out_all_bands_of_a_row_says_so(tmp_path, figure_texts):
    def leave_out(batch):
        batch[:, 3:] = torch.nan
        return batch

    images = packed(tmp_path, ["red", "green", "blue", "uv1", "uv2"])
    pictures.view_grid(images, np.arange(3), FixedViews(leave_out), 0, tmp_path / "views.png")
    assert figure_texts.count("left out") == 4 * 3
    assert not any(text.startswith("no ") for text in figure_texts)


@pytest.mark.parametrize("count", [1, 45])
def test_suspects_have_the_end_of_their_path_their_label_and_the_suggested_one(tmp_path, figure_texts, count):
    captions = [("images/drawer 17/00031.png", "Polyommatus icarus", "→ Polyommatus icarus")] * (count - 1) + [
        ("a.png", "no label", "near copy")
    ]
    images = packed(tmp_path, ["red", "green", "blue"])
    pictures.suspects(images, np.arange(count) % 40, captions, tmp_path / "suspects.png")
    assert {"a.png", "no label", "near copy"} <= set(figure_texts)
    assert figure_texts.count("→ Polyommatus icar…") == count - 1
    assert figure_texts.count("…rawer 17/00031.png") == count - 1


def test_examples_of_many_classes_take_several_figures(tmp_path, figure_texts):
    examples = {n: {"nearest": np.array([0, 1]), "farthest": np.arange(5), "others": np.array([9])} for n in NAMES[:12]}
    examples["class 3"] = dict.fromkeys(("nearest", "farthest", "others"), np.array([], int))
    images = packed(tmp_path, ["red", "green", "blue"])
    labels = [*["same"] * 9, *["Polyommatus icarus"] * 31]
    paths = pictures.class_examples(images, examples, labels, tmp_path / "ex.png")
    assert [p.name for p in paths] == ["ex-1.png", "ex-2.png"]
    assert "Polyomm…\nicarus" in figure_texts


def test_neighbours_are_marked_by_signs_as_well_as_colours(tmp_path, figure_texts):
    labels = ["a", "a", "b", "", *["a"] * 36]
    images = packed(tmp_path, ["grey"])
    pictures.neighbours(images, np.array([0, 3]), np.array([[1, 2, 3], [1, 2, 4]]), labels, tmp_path / "neighbours.png")
    assert (figure_texts.count("✓"), figure_texts.count("✗"), figure_texts.count("no label")) == (1, 1, 2)


def test_the_saliency_scale_is_in_degrees(tmp_path, figure_texts):
    maps_BHW = RNG.random((4, 16, 16))
    pictures.saliency_grid(RNG.random((4, 16, 16, 3)), maps_BHW, NAMES[:4], tmp_path / "saliency.png")
    assert any("in degrees, when a small square around a pixel is hidden" in text for text in figure_texts)


@pytest.mark.parametrize("labels", [None, ["a"] * 50, [f"class {i % 35}" for i in range(50)]])
def test_the_map_names_the_most_frequent_classes(tmp_path, figure_texts, labels):
    maps.static_map(RNG.normal(size=(50, 2)), labels, None, tmp_path / "map.png")
    assert any("7 other classes" in text for text in figure_texts) == (labels is not None and len(set(labels)) == 35)


def test_thumbnails_on_the_map_do_not_cover_each_other(tmp_path, figure_texts):
    requested = []

    def thumbnails(rows):
        requested.extend(rows)
        return np.zeros((len(rows), 8, 8, 3), np.uint8)

    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), -1).reshape(-1, 2)
    maps.static_map(np.repeat(grid, 3, 0), ["a"] * 75, thumbnails, tmp_path / "map.png")
    assert requested == list(range(0, 75, 3))  # one of three equal points


COLUMNS = pd.DataFrame(
    {
        "genus": [f"g{i % 40} </script>" for i in range(60)],
        "length": [None, np.inf, *np.linspace(0, 9, 58)],
        "n": range(60),
    }
)


def page(path, points: np.ndarray | None = None) -> str:
    thumbnails = np.full((60, 6, 6, 3), 200, np.uint8)
    points = RNG.normal(size=(60, 2)) if points is None else points
    map_page(points, thumbnails.__getitem__, COLUMNS, path, "A <map>")
    return path.read_text(encoding="utf-8")


def test_the_page_contains_all_its_data(tmp_path):
    text = page(tmp_path / "a" / "map.html")
    assert "A &lt;map&gt;" in text
    assert not re.search(r"https?://|<link|src=", text)
    data = json.loads(re.search(r"const data = (\{.*?\}), atlas", text)[1])
    assert list(data["columns"]) == ["genus", "length", "n"]
    genus, length = data["columns"]["genus"], data["columns"]["length"]
    assert (len(genus["names"]), genus["others"], min(genus["codes"])) == (28, 12, -1)
    assert length["numbers"][:3] == [None, None, 0]
    assert np.ptp(data["points"], axis=0).max() == 1


def test_with_too_many_points_the_page_shows_a_sample_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("simtrail.report.map.PAGE_POINTS", 20)
    assert "a random sample of 20 of 60 images" in page(tmp_path / "map.html")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="chromium is missing from PATH: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_points_can_be_inspected_filtered_and_zoomed(tmp_path, width):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    page(tmp_path / "map.html")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_context(viewport={"width": width, "height": 800}, has_touch=width == 390).new_page()
        errors: list[str] = []
        tab.on("console", lambda message: errors.append(message.text))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto((tmp_path / "map.html").as_uri())
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= width
        on_screen = "(b => toPixels(7).map((v, i) => v + [b.left, b.top][i]))(canvas.getBoundingClientRect())"
        position = tab.evaluate(on_screen)
        tab.touchscreen.tap(*position) if width == 390 else tab.mouse.move(*position)
        assert "genus g7 </script>" in tab.locator("#tip").inner_text()
        tab.locator("#legend button").first.click()
        assert tab.evaluate("chosen") == 0
        tab.select_option("#by", "length")
        assert tab.locator("#legend .ends").inner_text().split() == ["0", "9"]
        tab.evaluate("zoom(4, 100, 100)")
        assert tab.evaluate("view.k") == 4
        tab.click("#reset")
        assert tab.evaluate("view.k") == 1
        if width == 1280:  # a loop around image 7
            tab.select_option("#by", "n")
            x, y = tab.evaluate(on_screen)
            tab.keyboard.down("Shift")
            for i, (dx, dy) in enumerate([(-9, -9), (9, -9), (9, 9), (-9, 9)]):
                tab.mouse.move(x + dx, y + dy)
                if i == 0:
                    tab.mouse.down()
            tab.mouse.up()
            tab.keyboard.up("Shift")
            assert 7 in tab.evaluate("picked")
            with tab.expect_download() as download:
                tab.click("#save")
            assert '"7"' in download.value.path().read_text().splitlines()
        assert errors == []
        browser.close()


def importance(groups: list[str], *measures: str) -> pd.DataFrame:
    table = pd.DataFrame({"group": groups})
    return table.assign(
        **{m + bound: 0.1 + shift for m in measures for bound, shift in (("", 0), ("_low", -0.2), ("_high", 0.1))}
    )


@pytest.mark.parametrize(("bands", "modalities"), [(6, ["rgb", "uv"]), (24, ["visible"]), (1, None)])
def test_importance_bars_show_every_band_and_modality_with_both_measures(tmp_path, figure_texts, bands, modalities):
    groups = [f"{400 + 25 * i}–{424 + 25 * i} nm" for i in range(bands)]
    of_modalities = importance(modalities, "angle", "drop") if modalities else None
    spectra.importance_bars(importance(groups, "angle", "drop"), of_modalities, tmp_path / "bands.png")
    assert {*groups, *(modalities or []), *spectra.MEASURES.values()} <= set(figure_texts)


def test_importance_without_labels_is_only_the_angle(tmp_path, figure_texts):
    spectra.importance_bars(importance(["red", "uv"], "angle"), None, tmp_path / "bands.png")
    assert spectra.MEASURES["angle"] in figure_texts
    assert spectra.MEASURES["drop"] not in figure_texts


def class_spectra(classes: int, bands: int) -> pd.DataFrame:
    names = [f"class {c}" for c in range(classes) for _ in range(bands)]
    table = pd.DataFrame({"class": names, "band": [f"b{i}" for i in range(bands)] * classes})
    table["images"] = [classes - c for c in range(classes) for _ in range(bands)]
    return table.assign(mean=RNG.random(len(table)), sd=0.1)


@pytest.mark.parametrize(
    ("classes", "bands", "has_wavelengths"),
    [(1, 6, False), (8, 6, True), (16, 9, False), (18, 408, True), (3, 60, False)],
)
def test_spectra_have_panels_for_the_sixteen_classes_with_most_images(
    tmp_path, figure_texts, classes, bands, has_wavelengths
):
    nm = np.linspace(400, 1000, bands).tolist() if has_wavelengths else [400.0, *[None] * (bands - 1)]
    spectra.spectra(class_spectra(classes, bands), nm, tmp_path / "spectra.png", "reflectance")
    panels = [text for text in figure_texts if text.startswith("class ")]
    assert panels == [f"class {c}\n{classes - c} images" for c in range(min(classes, 16))]
    assert ("wavelength, nm" in figure_texts) == has_wavelengths
    assert ("b0" in figure_texts) == (not has_wavelengths)
    assert ("Mean spectra of 16 of 18 classes, those with most images" in figure_texts) == (classes == 18)
    assert (f"mean of all {classes} classes" in figure_texts) == (classes > 1)
    assert "reflectance" in figure_texts


def test_spectra_are_sorted_by_wavelength_and_drawn_over_the_mean_of_all_classes(tmp_path, monkeypatch):
    panels = []
    monkeypatch.setattr("simtrail.report.figures.style.plt.close", lambda figure: panels.extend(figure.axes))
    table = class_spectra(18, 3)
    spectra.spectra(table, [620.0, 540.0, 460.0], tmp_path / "spectra.png")
    means = table["mean"].to_numpy().reshape(18, 3)[:, ::-1]
    for panel, class_mean in zip(panels, means[:16], strict=True):
        mean_of_all, line = panel.get_lines()
        assert line.get_xdata().tolist() == mean_of_all.get_xdata().tolist() == [460, 540, 620]
        assert line.get_ydata().tolist() == class_mean.tolist()
        np.testing.assert_allclose(mean_of_all.get_ydata(), means.mean(0))
