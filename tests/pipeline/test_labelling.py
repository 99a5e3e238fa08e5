from __future__ import annotations

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from pipeline.test_use import run

from simtrail.downstream.fitting import fit_head
from simtrail.downstream.head import Head
from simtrail.model.encoder import Encoder
from simtrail.tracking.pull import encoder_hash

PATHS = [f"photos/class{c}/{i}.png" for c in range(3) for i in range(8)]


def test_classify_labels_the_images_of_a_folder_and_makes_a_page_to_review_them(folder):
    paths = [f"photos/class{c}/{i}.png" for c in range(3) for i in range(8)]
    pd.DataFrame({"path": paths, "label": [p[7:13] for p in paths]}).to_csv("labels.csv", index=False)
    result = run("classify", "encoder", "labels.csv", "photos", "--error", "0.2", "--suggest", "4")
    assert result.exit_code == 3
    assert "24 labelled images of 3 classes: accuracy" in result.output
    assert re.search(r"of 12 unlabelled images get a label.*at most 20% of the 12 get a wrong one", result.output)
    table = pd.read_csv("classified/predictions.csv")
    assert len(table) == 36
    assert table["given"].notna().sum() == 24
    page = (folder / "classified/sheet.html").read_text()
    assert page.count('class="big"') == 12 + 4
    suggested = pd.read_csv("classified/suggested.csv")
    assert [*suggested] == ["path", "label", "chosen"]
    assert (suggested["chosen"] == "yes").sum() == suggested["label"].isna().sum() == 4
    assert len(suggested) == 28
    head = Head.load(folder / "classified")
    assert head.about["encoder_sha256"] == encoder_hash(folder / "encoder")
    features = pd.read_parquet("classified/features.parquet").set_index("path")["vector"]
    row = table.iloc[0]
    p = head.probabilities(np.stack([features[row["path"]]]))
    assert head.names[int(p.argmax())] == row["predicted"]
    assert abs(p.max() - row["probability"]) < 1e-4
    suggested.fillna({"label": "class1"}).to_csv("classified/suggested.csv", index=False)
    refused = str(run("classify", "encoder", "labels.csv", "photos", "--error", "0.2").exception)
    assert "classified/suggested.csv: has 4 labels that labels.csv has not; use it instead, or remove it" in refused
    second = run("classify", "encoder", "classified/suggested.csv", "photos", "--error", "0.2")
    assert pd.read_csv("classified/suggested.csv")["label"].notna().sum() == 28
    assert "28 labelled images" in second.output
    assert "in cross-validation of the 24 that nobody chose" in second.output
    assert "as far as the 24 labelled images that nobody chose are a fair sample" in second.output
    assert (pd.read_csv("classified/predictions.csv")["chosen"] == "yes").sum() == 4


def test_a_second_round_of_labels_computes_no_features_again(folder, monkeypatch):
    paths = [f"photos/class{c}/{i}.png" for c in range(3) for i in range(6)]
    labels = pd.DataFrame({"path": paths, "label": [p[7:13] for p in paths]})
    labels.iloc[::2].to_csv("labels.csv", index=False)
    first = run("classify", "encoder", "labels.csv", "photos")
    assert (
        "an error of 5% needs labelled images of at least 19 groups, drawn at random; use no prediction yet"
        in first.output
    )
    monkeypatch.setattr(Encoder, "stream", lambda *_: pytest.fail("features are there"))
    labels.to_csv("labels.csv", index=False)
    assert "18 labelled images" in run("classify", "encoder", "labels.csv", "photos").output


def test_where_all_images_are_labelled_nothing_is_left_to_predict(folder):
    assert (
        "all images have a label: nothing is left to predict"
        in run("classify", "encoder", "photos", "photos", "--error", "0.4").output
    )


def test_tags_are_learned_and_written_on_the_page(folder, monkeypatch):
    tags = [f"{path[7:13]};{'even' if int(path[14]) % 2 == 0 else 'odd'}" for path in PATHS]
    pd.DataFrame({"path": PATHS, "seen": tags}).to_csv("labels.csv", index=False)
    monkeypatch.setattr("simtrail.downstream.classify.fit_head", partial(fit_head, kinds=("knn",)))  # the fastest
    result = run("classify", "encoder", "labels.csv", "photos", "--error", "0.2", "--target", "tags")
    assert "24 labelled images with 5 tags: accuracy of all decisions about tags" in result.output
    table = pd.read_csv("classified/predictions.csv")
    assert {"unsure", "probability of class0", "probability of odd"} <= set(table)
    page = (folder / "classified/sheet.html").read_text()
    assert page.count('aria-label="tags"') >= 12
    assert '"seen": label' in page
    plain = pd.DataFrame({"path": PATHS, "seen": [path[7:13] for path in PATHS]})
    plain.to_csv("labels.csv", index=False)
    result = run("classify", "encoder", "labels.csv", "photos", "--target", "tags", "--suggest", "3")
    assert "warning: no label names several tags, or none (-); is it --target class?" in result.output


def test_numbers_are_learned_with_an_interval(folder):
    numbers = [10 * int(path[12]) + int(path[14]) / 10 for path in PATHS]
    pd.DataFrame({"path": PATHS, "mm": numbers}).to_csv("labels.csv", index=False)
    result = run(
        "classify", "encoder", "labels.csv", "photos", "--error", "0.2", "--target", "number", "--suggest", "3"
    )
    assert re.search(r"24 labelled images: R² 0\.\d+ in cross-validation", result.output)
    assert re.search(r"the number is within ± [\d.]+ of the predicted one for 80% of images", result.output)
    table = pd.read_csv("classified/predictions.csv")
    assert (table["low"] < table["predicted"]).all()
    assert (table["predicted"] < table["high"]).all()
    assert Head.load(folder / "classified").names == ["mm"]
    assert (folder / "classified/sheet.html").read_text().count('aria-label="number"') == 12 + 3
    assert len(pd.read_csv("classified/suggested.csv")) == 27


def test_labels_that_can_not_be_learned_are_named_with_their_table(folder):
    pd.DataFrame({"path": PATHS, "kind": "one"}).to_csv("labels.csv", index=False)
    refused = str(run("classify", "encoder", "labels.csv", "photos").exception)
    assert refused.startswith("labels.csv, column 'kind': only one: a classifier needs two classes")


def test_labels_that_are_too_few_to_fine_tune_leave_no_folder(folder):
    pd.DataFrame({"path": PATHS[:6], "kind": ["a", "b"] * 3}).to_csv("labels.csv", index=False)
    refused = str(run("finetune", "encoder", "labels.csv", "-o", "tuned").exception)
    assert refused.startswith("labels.csv, column 'kind': images of 6 groups: fine-tuning needs at least 10")
    assert not (folder / "tuned").exists()


def test_a_misspelt_folder_is_named_before_the_labels(folder):
    pd.DataFrame({"path": ["a.png"], "label": ["x"]}).to_csv("labels.csv", index=False)
    assert "photo: no such file or folder" in str(run("classify", "encoder", "labels.csv", "photo").exception)
