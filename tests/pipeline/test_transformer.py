from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from conftest import photographs, rgb_config
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks as rules

from simtrail.errors import InputError
from simtrail.model.encoder import Encoder
from simtrail.pipeline.transformer import EncoderTransformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer")
    Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).save(folder / "encoder")
    photographs(folder / "photos")
    return folder


@pytest.fixture
def transformer(folder):
    return EncoderTransformer(str(folder / "encoder"))


@pytest.mark.parametrize(
    "check",
    [
        rules.check_estimator_repr,
        rules.check_estimator_tags_renamed,
        rules.check_get_params_invariance,
        rules.check_mixin_order,
        rules.check_no_attributes_set_in_init,
        rules.check_set_params,
        rules.check_valid_tag_types,
    ],
)
def test_the_rules_of_scikit_learn_that_do_not_need_tables_of_numbers(check, transformer):
    check("EncoderTransformer", transformer)


def test_paths_and_arrays_in_any_form_give_the_features_of_the_encoder(folder, transformer):
    paths = [str(path) for path in sorted((folder / "photos").rglob("*.png"))]
    expected = Encoder.load(folder / "encoder").embed(paths).to_numpy()
    for form in (paths, np.array(paths), np.array(paths, dtype=object)[:, None], pd.DataFrame({"path": paths})):
        np.testing.assert_array_equal(transformer.transform(form), expected)
    images = np.random.default_rng(0).integers(0, 255, (3, 3, 20, 24), dtype=np.uint8)
    features = transformer.fit_transform(images)
    assert features.shape == (3, len(transformer.get_feature_names_out()))
    with pytest.raises(InputError, match=r"array of shape \(3, 3\)"):
        transformer.transform(np.zeros((3, 3)))


def test_it_is_cloned_and_pickled_by_its_parameters(folder, transformer):
    images = np.random.default_rng(0).integers(0, 255, (2, 3, 20, 24), dtype=np.uint8)
    expected = transformer.fit(images).transform(images)
    stored = pickle.dumps(transformer)
    assert len(stored) < 1000
    for other in (pickle.loads(stored), clone(transformer)):
        assert other.get_params() == transformer.get_params()
        np.testing.assert_array_equal(other.transform(images), expected)


def test_a_wrong_uri_or_modality_is_an_error_of_fit(folder):
    with pytest.raises(InputError, match="no such file"):
        EncoderTransformer(str(folder / "none")).fit([])
    with pytest.raises(InputError, match="modality = 'uv'"):
        EncoderTransformer(str(folder / "encoder"), modality="uv").fit([])


def test_pipelines_are_searched_and_cross_validated(folder, transformer):
    paths = np.array([str(path) for path in sorted((folder / "photos").rglob("*.png"))])
    labels = np.array([path.split("/")[-2] for path in paths])
    pipeline = make_pipeline(transformer, LogisticRegression(max_iter=2000))
    search = GridSearchCV(
        pipeline, {"logisticregression__C": [0.1, 10], "encodertransformer__batch_size": [8, 64]}, cv=3
    )
    assert search.fit(paths, labels).best_score_ > 0.5
    assert cross_val_score(pipeline, paths, labels, cv=3).mean() > 0.5
