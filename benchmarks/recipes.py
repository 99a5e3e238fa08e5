"""Every recipe of views in full and in the length of the pilot: whether the pilot would choose a good one.

    python benchmarks/recipes.py SEEDS PROJECT …

PROJECT is the folder of a prepared project, such as those that benchmarks/out_of_the_box.py leaves. All settings but
the recipe are those that the plan's rules choose. Recipes that are more than CLOSE below the best with seed 0 are not
trained with other seeds. Each training adds a row to benchmarks/results/recipes.csv; rows that are there are not
computed again. At the end it prints, for each set, the choice that the pilot's measure makes and how much worse it is
in full than the best recipe, and the rank correlation of each measure of the pilot with the linear probe in full.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from simtrail.augment.views import TwoViews
from simtrail.data.loader import to_unit
from simtrail.evaluation.classifiers import knn, knn_probabilities, ridge_probe
from simtrail.evaluation.geometry import alignment, effective_rank, uniformity
from simtrail.evaluation.probe import linear_probe
from simtrail.evaluation.tasks import main_task
from simtrail.model.encoder import Encoder
from simtrail.params import Evaluate, changed, load_params
from simtrail.pipeline.pilot import STEPS, recipes_for, steps_each
from simtrail.pipeline.plan import make_plan
from simtrail.pipeline.training_run import training_run
from simtrail.pipeline.workspace import Prepared, prepared
from simtrail.training.loop import plan_steps
from simtrail.training.monitors import NEIGHBOURS

RESULTS = Path(__file__).parent / "results/recipes.csv"
KEY = ["set", "recipe", "seed", "length"]
PAIRS = 512  # images whose views are compared
CLOSE = 0.03  # of accuracy: seeds do not make up for more
COMMON = "sign"  # the recipe whose views are the same for all encoders: the mildest


def main() -> None:
    seeds, projects = range(int(sys.argv[1])), [Path(text).resolve() for text in sys.argv[2:]]
    for seed in seeds:
        for project in projects:
            os.chdir(project)
            one_set(project.name, seed)
    table = results()
    print(table.to_string(index=False))
    print(choices(table).to_string(index=False))


def one_set(name: str, seed: int) -> None:
    """Adds the rows of one set and seed."""
    source = prepared()
    names = recipes_for(source.recipe)
    for recipe in names:
        fixed = {"pretrain.recipe": recipe, "pretrain.seeds": [seed], "pretrain.encoder.features": [1]}
        params = changed(load_params(settings=[f"data.name={name}"]), fixed, "benchmark")
        params = changed(params, make_plan(params).values, "benchmark")
        images, p = len(source.pretraining_rows("train")), params.pretrain
        short = max(STEPS, steps_each(images, p, source.recipe.size, len(names)))
        full = plan_steps(images, p)[1]
        for length, steps, side in (("pilot", short, p.view_sides[0]), ("full", full, p.view_size)):
            key = dict(zip(KEY, (name, recipe, seed, length), strict=True))
            if (results()[KEY] == pd.Series(key)).all(axis=1).any() or (seed and not is_close(name, recipe)):
                continue
            settings = {"pretrain.max_steps": steps, "pretrain.view_size": side}
            p = changed(params, settings, "benchmark").pretrain
            encoder = training_run(p, "benchmark").fit(validate=length == "full").encoder
            row = key | {"steps": steps} | scores(encoder, source) | label_free(encoder, source, p.augment)
            print(row, flush=True)
            pd.concat([results(), pd.DataFrame([row])]).to_csv(RESULTS, index=False, float_format="%.4g")


def results() -> pd.DataFrame:
    return pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=KEY)


def is_close(name: str, recipe: str) -> bool:
    """Whether a recipe is close to the best of this set with seed 0."""
    table = results()
    full = table[(table["set"] == name) & (table["seed"] == 0) & (table["length"] == "full")]
    accuracy = full.set_index("recipe")["test_probe"]
    return bool(accuracy[recipe] >= accuracy.max() - CLOSE)


def scores(encoder: Encoder, source: Prepared) -> dict[str, float]:
    """The accuracy of the linear probe and of kNN on the validation and the test split."""
    task, p = main_task(source.table), Evaluate().knn
    if task is None:
        return {}
    images, rows = source.images, task.rows
    x = encoder.features(images.rows(part) for part in np.array_split(rows, len(rows) // 256 + 1))
    train, val, test = (task.split == part for part in ("train", "val", "test"))
    bank, labels, queries = x[train], task.labels[train], x[val]
    found = {
        "val_probe": float((ridge_probe(bank, labels, queries) == task.labels[val]).mean()),
        "val_knn": float((knn(bank, labels, queries, NEIGHBOURS) == task.labels[val]).mean()),
    }
    near = knn_probabilities(x[~test], task.labels[~test], x[test], p.k, p.temperature, len(task.names))
    probe = linear_probe(x, task.labels, task.split, len(task.names)).probabilities
    for kind, predicted in (("probe", probe), ("knn", near)):
        found[f"test_{kind}"] = float((predicted.argmax(1) == task.labels[test]).mean())
    return found | {"val_mean": (found["val_probe"] + found["val_knn"]) / 2}


@torch.inference_mode()
def label_free(encoder: Encoder, source: Prepared, augment: Any) -> dict[str, float]:
    """Measures of validation images without labels; higher is expected to be better for all of them."""
    rows = np.random.default_rng(0).permutation(source.pretraining_rows("val"))[:PAIRS]
    common = changed(load_params(), {"pretrain.recipe": COMMON, "pretrain.augment": {}}, "benchmark").pretrain.augment
    pairs: dict[str, list[torch.Tensor]] = {"own": [], "common": [], "projections": [], "whole": []}
    for number, part in enumerate(rows_of(rows)):
        batch = to_unit(source.images.rows(part), source.images.recipe.full_scale, encoder.device)
        pairs["whole"].append(encoder(batch))
        for kind, settings in (("own", augment), ("common", common)):
            views = TwoViews(settings, source.recipe)(batch, 0, number)
            pairs[kind].append(torch.stack(encoder(views).chunk(2), 1))
            if kind == "own":
                pairs["projections"].append(torch.stack(encoder.project(views).chunk(2), 1))
    turned = [of_turns(encoder, source, part) for part in ("train", "val")]
    own, common_pairs, z, whole = (torch.cat(pairs[kind]).float().cpu().numpy() for kind in pairs)
    return {
        "lidar": lidar(own),
        "lidar_common": lidar(common_pairs),
        "turns": float((ridge_probe(*turned[0], turned[1][0]) == turned[1][1]).mean()),
        "rankme": effective_rank(whole),
        "alpha_req": -abs(power_law(whole) - 1),
        "alignment": -alignment(z[:, 0], z[:, 1]),
        "uniformity": -(uniformity(z[:, 0]) + uniformity(z[:, 1])) / 2,
    }


def of_turns(encoder: Encoder, source: Prepared, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of images turned by 0 to 3 right angles, and the number of these: predicting it needs no labels.

    The measure of SelfAugment (Reed et al. 2021, arXiv 2009.07724).
    """
    rows = np.random.default_rng(0).permutation(source.pretraining_rows(part))[: 2 * PAIRS]
    batches = (to_unit(source.images.rows(r), source.images.recipe.full_scale, encoder.device) for r in rows_of(rows))
    features = [encoder(torch.rot90(b, turns, (2, 3))) for b in batches for turns in range(4)]
    turns = [np.full(len(r), turns) for r in rows_of(rows) for turns in range(4)]
    return torch.cat(features).float().cpu().numpy(), np.concatenate(turns)


def rows_of(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, len(rows) // 128 + 1)


def lidar(views: np.ndarray, noise: float = 1e-4) -> float:
    """The effective rank of what distinguishes images, 1 to D, from (N, Q, D) features of Q views of N images.

    It is that of S_w^(−1/2) S_b S_w^(−1/2), where S_b is the covariance of the means of images, and S_w the mean
    covariance of the views of an image, plus `noise` times the identity (LiDAR, arXiv 2312.04000, section 3).
    """
    z_NQD = views.astype(np.float64)
    rows, width = len(views) * views.shape[1], views.shape[2]
    if width > rows:  # in the space of the views: the other directions have no variance
        z_NQD = z_NQD @ np.linalg.qr(z_NQD.reshape(rows, width).T)[0]
    means_ND = z_NQD.mean(1)
    between_ND = means_ND - means_ND.mean(0)
    within_MD = (z_NQD - means_ND[:, None]).reshape(-1, z_NQD.shape[2])
    within_DD = within_MD.T @ within_MD / (len(z_NQD) * (z_NQD.shape[1] - 1)) + noise * np.eye(z_NQD.shape[2])
    values, vectors = np.linalg.eigh(within_DD)
    white_ND = between_ND @ (vectors / np.sqrt(values)) @ vectors.T / np.sqrt(len(means_ND) - 1)
    spectrum = np.linalg.svd(white_ND, compute_uv=False) ** 2
    p = torch.from_numpy(spectrum / spectrum.sum())
    return float(torch.special.entr(p).sum().exp())


def power_law(vectors: np.ndarray) -> float:
    """The exponent α of the eigenvalues of the covariance, λ_j ∝ j^−α (α-ReQ, Agrawal et al. 2022)."""
    values = np.linalg.svd(vectors.astype(np.float64) - vectors.mean(0), compute_uv=False) ** 2
    values = values[values > values[0] * 1e-10]
    last = min(len(values), 100)
    number = np.arange(1, last + 1)
    use = number >= min(3, last - 1)  # the first ones do not follow the law
    return float(-np.polyfit(np.log(number[use]), np.log(values[:last][use]), 1)[0])


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """For each measure of the pilot: points below the best recipe in full, and the mean rank correlation."""
    measures = [name for name in table.columns if name not in [*KEY, "steps"] and not name.startswith("test")]
    full = table[table["length"] == "full"].groupby(["set", "recipe"])["test_probe"].mean()
    pilot = table[table["length"] == "pilot"].groupby(["set", "recipe"])[measures].first()
    rows = []
    for measure in measures:
        row: dict[str, Any] = {"measure": measure}
        correlations = []
        for name, accuracy in full.groupby("set"):
            values = pilot.loc[accuracy.index, measure]
            if values.isna().any() or len(values) < 2:
                continue
            row[str(name)] = 100 * (accuracy.max() - accuracy[values.idxmax()])
            correlations.append(values.corr(accuracy, method="spearman"))
        rows.append(row | {"rank correlation": float(np.mean(correlations)) if correlations else np.nan})
    return pd.DataFrame(rows).round(2)


if __name__ == "__main__":
    main()
