"""What an encoder reaches on the validation split, with intervals over groups."""

from __future__ import annotations

import pandas as pd

from simtrail import stages
from simtrail.evaluation.assess import features_of
from simtrail.evaluation.classifiers import knn, ridge_probe
from simtrail.evaluation.scores import Scores, with_intervals
from simtrail.evaluation.tasks import main_task
from simtrail.model.encoder import Encoder
from simtrail.params import Params
from simtrail.training.monitors import NEIGHBOURS


def validation_scores(encoder: Encoder, params: Params) -> dict[str, Scores]:
    """The scores of the looks' classifiers, val_knn and val_probe, on the validation split; {} without labels.

    They learn from the training split of the prepared images. Each accuracy has a 95 % interval over groups.
    """
    data = main_task(pd.read_parquet(stages.SPLIT))
    if data is None:
        return {}
    features = features_of(encoder, stages.packed(encoder.config.recipe), params.embed.batch_size)[data.rows]
    train, val = data.split == "train", data.split == "val"
    bank, known, queries = features[train], data.labels[train], features[val]
    said = {"val_knn": knn(bank, known, queries, NEIGHBOURS), "val_probe": ridge_probe(bank, known, queries)}
    p = params.evaluate
    truth, group, classes = data.labels[val], data.group[val], len(data.names)
    return {name: with_intervals(truth, guess, group, classes, p.bootstrap, p.seed)[0] for name, guess in said.items()}
