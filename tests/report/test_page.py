from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from simtrail.params import load_params
from simtrail.report.card import model_card
from simtrail.report.html import LARGEST_SVG
from simtrail.report.page import LARGEST_MAP, report_page
from simtrail.report.wording import interval, verdict

SECTIONS = ("data", "training", "knows", "labels", "unseen", "geometry", "pictures", "fails", "suspects", "lineage")
SECTIONS += ("limits",)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="500" height="300"><circle r="{}" cx="200" cy="100"/></svg>'


def scores_of(value: float, half_width: float = 0.03) -> dict[str, float]:
    scores = {}
    for name in ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "top5"):
        scores |= {name: value, f"{name}_low": value - half_width, f"{name}_high": value + half_width}
    return scores


def gain(value: float, half_width: float = 0.04) -> dict[str, float]:
    return {"value": value, "low": value - half_width, "high": value + half_width}


def task(probe: float = 0.881, random: float = 0.612, **more: object) -> dict:
    scores = {
        "linear_probe": scores_of(probe) | {"calibration_error": 0.041},
        "knn": scores_of(0.8),
        "random_encoder": scores_of(random),
        "majority": scores_of(0.1),
    }
    geometry = {"angle_within": 31.2, "angle_between": 64.7, "silhouette": 0.31, "precision_at_10": 0.8, "map": 0.7}
    geometry |= {"ari": 0.52, "nmi": 0.66}
    gains = {floor: gain(probe - scores[floor]["accuracy"]) for floor in ("random_encoder", "majority")}
    sizes = {"classes": 12, "images": 240, "groups": 60, "unknown": 0}
    return sizes | {"scores": scores, "gains": gains, "geometry": geometry} | more


def tables() -> dict[str, pd.DataFrame]:
    classes = [f"Morpho {name}" for name in ("achilles", "<b>helenor</b>", "menelaus", "deidamia")] * 8
    f1 = [0.2 + 0.02 * i for i in range(32)]
    per_class = {"task": "species", "class": classes, "images": 20, "precision": f1, "recall": f1, "f1": f1}
    bounds = {"f1_low": [v - 0.1 for v in f1], "f1_high": [v + 0.1 for v in f1]}
    path = "drawer 17/Morpho helenor/specimen 00031 dorsal ultraviolet.tif"
    return {
        "per_class": pd.DataFrame(per_class | bounds),
        "label_efficiency": pd.DataFrame(
            {"classifier": ["linear_probe"], "draw": ["balanced"], "labels": [12], "mean": [0.5], "low": [0.45]}
            | {"high": [0.55], "seeds": [5]}
        ),
        "fine_tune": pd.DataFrame(
            {"fraction": [0.1, 0.1], "images": [58, 58], "start": ["pretrained", "scratch"], "accuracy": [0.7, 0.4]}
            | {"accuracy_low": [0.6, 0.3], "accuracy_high": [0.8, 0.5]}
        ),
        "dimensions": pd.DataFrame({"column": ["sex"], "dimension": [7], "r2": [0.4], "p": [1e-9], "q": [0.02]}),
        "outliers": pd.DataFrame({"path": [path], "label": ["Morpho helenor"], "angle": [81.2], "limit": [64.0]}),
        "duplicates": pd.DataFrame(
            {"first": [path], "second": [path], "angle": [0.3], "kind": ["near"], "same_group": [True]}
        ),
        "suspects": pd.DataFrame(
            {"path": [path, None], "kind": ["label", "class"], "given": ["Morpho <b>helenor</b>", "Morpho deidamia"]}
            | {"suggested": ["Morpho menelaus", None], "copy_of": [None, None], "margin": [0.93, 0.25], "reason": "why"}
        ),
    }


def facts(**changes: object) -> dict:
    checks = {"dataset": "demo", "data_md5": "78aadef7.dir", "images": 960, "on_fail": "error", "success": True}
    finding = {"title": "every class has 5 images or more", "severity": "warning", "success": False, "offenders": ["x"]}
    recipe = {"bands": ["red", "green", "blue"], "size": 64, "file_bands": 3, "file_dtype": "uint8", "fit": "pad"}
    recipe["background"] = [1.0, 0.524, 0.5]
    features = {"effective_rank": 76.7, "uniformity": -1.32, "feature_std": 0.027, "components_90": 41}
    return {
        "name": "resnet10t 11-22",
        "created": "2026-11-22T03:51:00",
        "params": load_params(ROOT / "params.yaml").model_dump(by_alias=True),
        "validation": checks | {"findings": [finding], "rejected": {}},
        "statistics": {"data_md5": "78aadef7.dir", "split_hash": "3430364f", "recipe": recipe}
        | {"images": {"train": 576, "val": 144, "test": 240}},
        "history": [{"epoch": 1, "step": 9, "loss": 4.5}, {"epoch": 40, "step": 360, "loss": 1.25}],
        "metrics": {
            "features": features,
            "suspects": {"labels": 1, "unchecked_classes": 0, "probe_accuracy": 0.87, "groups": 0, "classes": 1},
            "tasks": {"species": task(labels_needed={"linear_probe": 210, "knn": None}), "sex": task(unknown=3)}
            | {"species (unseen)": task()},
        },
        "tables": tables(),
        "stamps": {"weights": "random", "teacher": None},
        "lineage": {"commit": "32f0553", "dirty": True, "run_id": "316f0c", "run_url": "http://127.0.0.1:5000/#/x"}
        | {"versions": {"torch": "2.15.0"}},
    } | changes


def unlabelled() -> dict:
    features = {"effective_rank": 76.7, "uniformity": -1.32, "feature_std": 0.027}
    return facts(metrics={"features": features, "tasks": {}}, tables={})


@pytest.fixture
def folder(tmp_path) -> Path:
    figures = tmp_path / "evaluate/figures"
    figures.mkdir(parents=True)
    (tmp_path / "pretrain").mkdir()
    picture = Image.new("RGB", (900, 300), "teal")
    for name in ("scores-species", "label_efficiency", "map", "class_examples-1", "class_examples-2"):
        picture.save(figures / f"{name}.png")
    (figures / "map.svg").write_text(SVG.format(80))
    picture.save(tmp_path / "pretrain/training.png")
    return tmp_path


class Page(HTMLParser):
    """The parts of a page: (tag, attributes) of every element, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def sections(self) -> tuple[str, ...]:
        return tuple(a["id"] for a in self.all("h2"))


def test_the_page_loads_nothing_from_the_network(folder):
    page = Page(report_page(facts(), folder))
    links = [a[key] for _, a in page.elements for key in ("src", "href") if key in a]
    assert len(links) > 15
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not page.all("script")
    assert not page.all("link")


def test_every_figure_is_embedded_and_has_a_description(folder):
    pictures = Page(report_page(facts(), folder)).all("img")
    assert len(pictures) == 6
    for picture in pictures:
        mime, _, encoded = picture["src"].partition(";base64,")
        content = base64.b64decode(encoded, validate=True)
        if mime == "data:image/png":
            Image.open(io.BytesIO(content)).verify()
        else:
            assert content.startswith(b"<svg")
        assert len(picture["alt"]) > 20


def test_a_figure_is_embedded_as_svg_unless_the_svg_is_big(folder):
    def map_type() -> str:
        return next(p["src"] for p in Page(report_page(facts(), folder)).all("img") if "Map of" in p["alt"])[:14]

    assert map_type() == "data:image/svg"
    (folder / "evaluate/figures/map.svg").write_text(SVG.format("8" * LARGEST_SVG))
    assert map_type() == "data:image/png"


def test_the_table_of_contents_lists_every_section_in_order(folder):
    page = Page(report_page(facts(), folder))
    assert page.sections() == SECTIONS
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in SECTIONS]


def test_the_report_of_a_run_without_labels_has_no_sections_about_labels(folder):
    page = Page(report_page(unlabelled(), folder / "nothing"))
    assert page.sections() == ("data", "training", "geometry", "lineage", "limits")
    assert "No labels: effective rank 76.700" in " ".join(page.text.split())
    assert "accuracy" not in page.text


def test_the_headline_says_that_the_difference_to_every_floor_is_significant(folder):
    text = report_page(facts(), folder)
    assert "accuracy <strong>0.881 (0.851 – 0.911)</strong> on 240 test images of 60 groups" in text
    closest = "random weights with 0.612 (0.582 – 0.642): the difference is 0.269 (95 % interval 0.229 – 0.309)"
    assert f"The accuracy is above every floor. The closest floor is {closest}." in " ".join(text.split())


@pytest.mark.parametrize(
    ("floor", "verdict_text"),
    [
        (0.85, "The accuracy is above the floor random weights"),
        (0.9, "is not above the floor random weights"),
        (0.881, "is not above"),
        (1.0, "The floor random weights already classifies every test image rightly"),
    ],
)
def test_a_floor_that_is_not_beaten_is_named_in_headline_limits_and_card(folder, floor, verdict_text):
    values = facts(metrics={"features": {"effective_rank": 5.0}, "tasks": {"species": task(random=floor)}})
    for text in (report_page(values, folder), model_card(values)):
        assert verdict_text in text
        assert "The accuracy is above every floor" not in text
        assert "species: the results do not show that the encoder beats its floors" in text


def test_a_floor_with_an_uncertain_difference_is_named_even_if_another_floor_is_higher():
    uncertain = task(gains={"random_encoder": gain(0.269), "majority": gain(0.7, half_width=0.8)})
    assert "The accuracy is above the floor majority class" in verdict(uncertain)


def test_names_given_by_the_user_are_escaped(folder):
    text = report_page(facts(name="<script>alert(1)</script>"), folder)
    assert "<script>" not in text
    assert "&lt;b&gt;helenor&lt;/b&gt;" in text


def test_long_tables_show_their_first_rows_and_name_the_file_with_all_rows(folder):
    text = report_page(facts(), folder)
    assert "and 12 more rows in <code>evaluate/tables/per_class.csv</code>" in text
    worst = text[text.index('id="fails"') :]
    assert worst.index("0.200 (") < worst.index("0.220 (")
    assert "0.300 (" not in worst


def test_scores_have_three_decimals_and_their_interval_and_missing_scores_are_a_dash():
    assert interval({"f1": 0.8806, "f1_low": 0.851, "f1_high": 0.9069}, "f1") == "0.881 (0.851 – 0.907)"
    assert interval({"f1": 0.5}, "f1") == "0.500"
    assert interval({"f1": None}, "f1") == interval({}, "f1") == "–"


def test_a_small_map_is_embedded_and_a_big_map_is_linked(folder):
    path = folder / "evaluate/map.html"
    path.write_text('<p class="a">map</p>')
    assert Page(report_page(facts(), folder)).all("iframe")[0]["srcdoc"] == '<p class="a">map</p>'
    path.write_text(" " * (LARGEST_MAP + 1))
    page = Page(report_page(facts(), folder))
    assert not page.all("iframe")
    assert {"href": "../evaluate/map.html"} in page.all("a")


def test_the_card_shows_how_to_load_the_model_its_training_data_and_its_scores():
    card = model_card(facts())
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        *("## Model details", "## Intended use", "## Training data", "## Training procedure", "## Evaluation"),
        *("## Limits", "## Lineage"),
    ]
    assert 'simtrail.load_encoder("models:/simtrail-encoder@champion")' in card
    assert "input: 3-band uint8 images of any size, resized to 64 × 64 px (pad, background 1, 0.52, 0.5)" in card
    assert "| linear probe | 0.881 (0.851 – 0.911) |" in card
    assert "split 3430364f: 576 train, 144 val, 240 test" in card
    assert "only 60" not in card
    values = facts()
    for sides, text in ((48, "; trained on square views of 48 px;"), ([32, 48], " views of 32, then 48 px;")):
        values["params"]["pretrain"]["view_size"] = sides
        assert text in model_card(values)
    assert "Accuracy" not in model_card(unlabelled())


def test_the_card_states_the_license_as_hubs_read_it():
    values = facts()
    assert "license" not in model_card(values)
    values["params"]["register"]["license"] = "mit"
    front = yaml.safe_load(model_card(values).split("---")[1])
    assert front["license"] == "mit"
    assert front["library_name"] == "simtrail"


def test_page_and_card_list_the_wavelengths_of_all_bands_and_every_augmentation_strength(folder):
    values = facts()
    values["statistics"]["recipe"] |= {"bands": ["band1", "uv", "x"], "wavelengths": [667.5, 365.0, None]}
    for text in (report_page(values, folder), model_card(values)):
        assert "band1 (667.5 nm), uv (365 nm), x" in text
        assert re.search(r"geometry [\d.]+, spectral [\d.]+, colour [\d.]+, texture", text)
    values["statistics"]["recipe"] |= {"bands": ["b"] * 408, "wavelengths": []}
    assert "<summary>408 bands</summary>b, b" in report_page(values, folder)


def test_recall_between_modalities_names_the_query_and_the_retrieved_modality(folder):
    values = facts()
    values["metrics"]["modalities"] = {"retrieval": {"rgb to uv": {"recall_at_1": 0.25}}}
    explanation = "the fraction of test images whose uv features are among the k nearest to their rgb features"
    assert explanation in report_page(values, folder)


def test_the_standard_deviation_over_training_seeds_is_shown_and_is_then_no_limit(folder):
    assert "the variation of the scores between seeds is not known" in report_page(facts(), folder)
    values = facts()
    values["params"]["pretrain"]["seeds"] = [0, 1, 2]
    values["metrics"]["seeds"] = {"linear_probe": {"mean": 0.87, "sd": 0.0123, "seeds": 3}}
    text = report_page(values, folder)
    assert "<td>0.870 ± 0.012 (standard deviation over 3 seeds)</td>" in text
    assert "the variation of the scores between seeds is not known" not in text


def test_page_and_card_say_what_is_wrong_with_the_data(folder):
    values = facts()
    (finding,) = values["validation"]["findings"]
    for text in (report_page(values, folder), model_card(values)):
        assert "expected: every class has 5 images or more" in text
    finding["problem"] = "1 of the classes has fewer than 5 images"
    for text in (report_page(values, folder), model_card(values)):
        assert "1 of the classes has fewer than 5 images" in text
        assert "every class has 5 images or more" not in text


def test_limits_name_few_groups_missing_groups_and_images_left_out(folder):
    tasks = {"a": task(groups=12), "b": task(groups=240), "c": task(unknown=2), "d": task(groups=4, images=4)}
    values = facts(metrics={"features": {"effective_rank": 5.0}, "tasks": tasks})
    values["validation"] |= {"success": False, "rejected": {"x.png": "can't be read"}}
    for text in (report_page(values, folder), model_card(values)):
        assert "a: only 12 test groups" in text
        assert "b: every test image counts as a separate group" in text
        assert "d: every test image counts as a separate group" in text
        assert "d: only 4 test groups" in text
        assert "c: 2 test images are not scored: their classes have no training image" in text
        assert "1 of 960 images failed the checks" in text


def test_suspects_are_counted_and_the_page_says_what_to_do(folder):
    text = " ".join(Page(report_page(facts(), folder)).text.split())
    assert "1 suspected wrong label: a linear probe" in text
    assert "This probe gives 87 % of the images the label that they have" in text
    assert "Not checked" not in text
    assert "near copy in train or val" not in text
    assert "0 groups and 1 class on which the linear probe fails" in text
    assert "correct it in metadata.csv (or move the image to the folder of its class) and run again" in text
    assert "a suspicion is not a proof" in text
    values = facts()
    accuracy = {"accuracy": 0.871, "accuracy_low": 0.84, "accuracy_high": 0.9}
    values["metrics"]["suspects"] |= {"unchecked_classes": 2, "near_copies": 3}
    values["metrics"]["suspects"]["without_near_copies"] = {"images": 237, **accuracy}
    text = " ".join(Page(report_page(values, folder)).text.split())
    assert "Not checked: 2 classes with too few groups (fewer than five)." in text
    assert (
        "3 test images with a near copy in train or val. Accuracy of the linear probe on all test images: 0.881" in text
    )
    assert "on the 237 without a near copy: 0.871 (0.840 – 0.900)" in text


def test_every_kind_of_suspect_has_a_table_of_the_columns_that_it_has(folder):
    text = report_page(facts(), folder)
    part = text[text.index('id="suspects"') : text.index('id="lineage"')]
    headings = [re.findall(r"<th.*?>(.*?)</th>", row) for row in part.split("<table>")[1:]]
    assert headings == [["path", "given", "suggested", "margin", "reason"], ["given", "margin", "reason"]]
    assert "Test images with a near copy in train or val; " not in part


def test_without_suspects_there_is_nothing_to_do(folder):
    none = {"labels": 0, "unchecked_classes": 0, "probe_accuracy": None, "near_copies": 0, "groups": 0, "classes": 0}
    values = facts()
    values["metrics"]["suspects"], values["tables"] = none, {}
    text = Page(report_page(values, folder)).text
    assert "0 suspected wrong labels" in text
    assert "0 test images with a near copy in train or val." in text
    assert "What to do" not in text


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="chromium is missing from PATH: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_whole_page_at_the_width_of_a_desktop_and_of_a_phone(folder, width):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    (folder / "report").mkdir()
    (folder / "report/report.html").write_text(report_page(facts(), folder))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.context.set_offline(True)
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((folder / "report/report.html").as_uri())
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        browser.close()
    assert errors == []
