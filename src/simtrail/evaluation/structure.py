"""The structure of an embedding: retrieval, duplicates, clusters, components, a map, relations to metadata."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain, combinations, islice
from typing import Any

import numpy as np
import pandas as pd
import torch

from simtrail.evaluation.geometry import unit

BANK = 20_000  # images that are ranked for a query, or clustered, at most
QUERIES = 2_000
NEIGHBOURS = 5  # of each image that are compared with it for near duplicates
PAIRS = 1_000  # duplicates in the table at most
COMPONENTS = 64  # in which clusters are looked for: as good as in thousands of dimensions, in a twentieth of the time
FEW = 20  # a numeric column with at most this many different values is categorical
HELD = 2**20  # numbers in a chunk: 8 MiB of float64
MAPPED = 50_000  # images on a map at most: with more, UMAP takes many minutes


def retrieval(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    k: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """`precision_at_<k>` and `map`, 0 to 1: whether features of a query's class come first when ranked by cosine.

    `precision_at_<k>` is the fraction of the first k features (at most all) with the query's class. `map` is the mean
    average precision of the whole ranking. Both are means over the queries whose class is among the features; NaN
    without such a query. At most `QUERIES` queries and `BANK` features are used, both seeded samples. A seeded random
    order decides between equal cosines.
    """
    rng = np.random.default_rng(seed)
    bank = rng.permutation(len(features))[:BANK]  # shuffled at any size: ties must not follow the order of the classes
    query_rows = rng.permutation(np.flatnonzero(np.isin(query_labels, labels[bank])))[:QUERIES]
    bank_ND, queries_QD = unit(features[bank], torch.float32), unit(queries[query_rows], torch.float32)
    classes_N, classes_Q = torch.tensor(labels[bank]), torch.tensor(query_labels[query_rows])
    rank_N = torch.arange(1, len(bank) + 1, dtype=torch.float64)
    precision, average = [], []
    rows = max(1, HELD // len(bank))
    for chunk, classes in zip(queries_QD.split(rows), classes_Q.split(rows), strict=True):
        order = (chunk @ bank_ND.T).argsort(dim=1, descending=True, stable=True)
        hit = (classes_N[order] == classes[:, None]).double()
        precision.append(hit[:, :k].mean(1))
        average.append((hit * hit.cumsum(1) / rank_N).sum(1) / hit.sum(1))
    return {f"precision_at_{k}": float(torch.cat(precision).mean()), "map": float(torch.cat(average).mean())}


def retrieval_between(
    first: np.ndarray,
    second: np.ndarray,
    classes: np.ndarray | None = None,
    ks: tuple[int, ...] = (1, 5, 10),
    seed: int = 0,
) -> dict[str, float]:
    """Recalls, 0 to 1: how often an image's embedding in one modality is near its embedding in another modality.

    Keys: `recall_at_<k>`, `recall_back_at_<k>`, `chance_at_<k>`. Row i of `first` and row i of `second`, (N, D), are
    the same image. It is a hit for `recall` if row i of `second` is among the k rows of `second` nearest by cosine to
    row i of `first`; `recall_back` exchanges `first` and `second`. With `classes`, (N,) numbers of classes or
    specimens, any image of the same class is a hit. Chance is the recall of k images drawn at random: k / N, with
    `classes` from the hypergeometric distribution. At most `BANK` images are searched and at most `QUERIES` are
    queries, both seeded samples. Ties are broken at random, so that collapsed embeddings are at chance.
    """
    from scipy.stats import hypergeom

    rng = np.random.default_rng(seed)
    bank = rng.permutation(len(first))[:BANK]
    # a second, independent random order, because the order of the bank decides between equal cosines
    queries = torch.from_numpy(rng.permutation(len(bank))[:QUERIES])
    _, group, size = np.unique(bank if classes is None else classes[bank], return_inverse=True, return_counts=True)
    group_N, n = torch.from_numpy(group), len(bank)
    z_first, z_second = unit(first[bank], torch.float32), unit(second[bank], torch.float32)
    recalls = {f"chance_at_{k}": float(hypergeom.sf(0, n, size[group[queries]], min(k, n)).mean()) for k in ks}
    for name, queries_ND, bank_ND in (("recall", z_first, z_second), ("recall_back", z_second, z_first)):
        hits = [
            group_N[(queries_ND[part] @ bank_ND.T).topk(min(max(ks), n)).indices] == group_N[part, None]
            for part in queries.split(max(1, HELD // n))
        ]
        recalls |= {f"{name}_at_{k}": float(torch.cat(hits)[:, :k].any(1).double().mean()) for k in ks}
    return recalls


def duplicates(
    features: np.ndarray, sha256: np.ndarray, block: np.ndarray, *, largest: int = 50_000, seed: int = 0
) -> pd.DataFrame:
    """Pairs of rows that may be the same image, the nearest first: first < second, angle, kind, same_group.

    `sha256` and `block` are the hash and the group number of each image; angles are in degrees. 'exact' pairs have
    equal hashes. 'near' pairs have different hashes, and their angle is less than a tenth of the median angle to the
    nearest neighbour. They are searched among the `NEIGHBOURS` nearest of each image; of images with equal hashes one
    is used, and of more than `largest` images a seeded sample. At most `PAIRS` pairs.
    """
    hashes = pd.Series(np.asarray(sha256))
    copies = hashes[hashes.duplicated(keep=False)]
    sets = copies.groupby(copies).indices.values()
    pairs = list(islice(chain.from_iterable(combinations(copies.index[rows], 2) for rows in sets), PAIRS))
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    angle = _angle(unit(features[first]), unit(features[second]))
    exact = pd.DataFrame({"first": first, "second": second, "angle": angle, "kind": "exact"})

    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~hashes.duplicated()))[:largest]
    z_ND = unit(features[rows], torch.float32)
    k, done = min(NEIGHBOURS, len(rows) - 1), 0
    nearest, angle = np.empty((len(rows), k), np.int64), np.empty((len(rows), k))
    for neighbours, degrees in _nearest(z_ND, k):  # copied into arrays: small tensors kept here would fragment memory
        part = slice(done, done := done + len(neighbours))
        nearest[part], angle[part] = neighbours, degrees
    limit = np.median(angle[:, 0]) / 10 if len(rows) > 1 else 0.0
    image, neighbour = np.nonzero(angle < limit)
    first, second = np.sort(np.stack([rows[image], rows[nearest[image, neighbour]]]), axis=0)
    near = pd.DataFrame({"first": first, "second": second, "angle": angle[image, neighbour], "kind": "near"})

    table = pd.concat([exact, near.drop_duplicates(["first", "second"])])
    table = table.sort_values(["angle", "first", "second"], ignore_index=True).head(PAIRS)
    return table.assign(same_group=block[table["first"]] == block[table["second"]])


def clusters(features: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """`ari` and `nmi`, ≤ 1: the agreement of k-means clusters of unit-length features with the classes.

    k is the number of classes; clusters are looked for in the first `COMPONENTS` principal components. Adjusted Rand
    index (0 is chance) and normalised mutual information. With more than `BANK` images, a seeded sample is clustered.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    rows = np.random.default_rng(seed).permutation(len(features))[:BANK]
    truth = labels[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than classes: the score is low
        means = KMeans(len(np.unique(truth)), n_init=10, random_state=seed)
        predicted = means.fit_predict(reduced(unit(features[rows], torch.float32).numpy(), seed))
    return {
        "ari": float(adjusted_rand_score(truth, predicted)),
        "nmi": float(normalized_mutual_info_score(truth, predicted)),
    }


def reduced(x: np.ndarray, seed: int) -> np.ndarray:
    """The rows (N, D) in their first `COMPONENTS` principal components, in which clusters are looked for.

    Unchanged where there are no more dimensions or rows than these.
    """
    from sklearn.decomposition import PCA

    if min(x.shape) <= COMPONENTS:
        return x
    return PCA(COMPONENTS, svd_solver="randomized", random_state=seed).fit_transform(x)


def explained_variance(features: np.ndarray) -> np.ndarray:
    """The (D,) fractions of the variance that the first 1, 2, … D principal components explain, rising to 1.

    All 1 for constant features, which have no variance.
    """
    d = features.shape[1]
    total_D, scatter_DD = np.zeros(d), np.zeros((d, d))
    for start in range(0, len(features), max(1, HELD // d)):
        # centred at the first image, not at the mean: this needs only one pass, and constant features give exactly 0
        shifted = features[start : start + max(1, HELD // d)].astype(np.float64) - features[0]
        total_D += shifted.sum(0)
        scatter_DD += shifted.T @ shifted
    scatter_DD -= np.outer(total_D, total_D) / len(features)
    explained = np.linalg.eigvalsh(scatter_DD)[::-1].clip(0).cumsum()
    return explained / explained[-1] if explained[-1] > 0 else np.ones(d)


def components_needed(explained: np.ndarray, fraction: float) -> int:
    """The number of principal components that explain at least this fraction of the variance, 0 to 1."""
    return int(np.searchsorted(explained, fraction)) + 1


def dimensions(features: np.ndarray, columns: pd.DataFrame) -> pd.DataFrame:
    """How each embedding dimension depends on each metadata column: column, dimension, r2 (0 to 1), p, q, kind.

    `columns` has a row per image; an image without a value is left out for that column. For a 'numeric' column (numbers
    with more than `FEW` different values), r2 is the squared Pearson correlation, and p is from Spearman's test. Any
    other column is 'categorical': r2 is the sum of squares between its groups over the total, and p is from the
    Kruskal–Wallis test, by chi-squared. q is p adjusted over all dimensions and columns by Benjamini and Hochberg. A
    constant dimension has r2 0 and p 1. Columns with only one value are left out, and so are text columns with more
    than half as many values as images. p assumes that images are independent. Images of one specimen are not: for
    these, rely on r2.
    """
    from scipy import stats

    tested: list[tuple[str, str, Any, Any]] = []
    by_mask: dict[bytes, list[int]] = {}  # columns with values for the same images: the ranks are computed only once
    for name in columns:
        column = columns[name].replace([np.inf, -np.inf], np.nan)
        has_value = column.notna().to_numpy()
        predictors = _predictors(column[has_value])
        if predictors:
            by_mask.setdefault(has_value.tobytes(), []).append(len(tested))
            tested.append((str(name), *predictors))
    d = features.shape[1]
    r2, p = np.empty((2, len(tested), d))
    for mask, indices in by_mask.items():
        rows = np.flatnonzero(np.frombuffer(mask, dtype=bool))
        n = len(rows)
        step = max(1, HELD // n)
        for start in range(0, d, step):
            part = slice(start, start + step)
            x_ND = features[rows, part].astype(np.float64)
            ranks_ND = stats.rankdata(x_ND, axis=0)
            for i in indices:
                _, kind, of_values, of_ranks = tested[i]
                r2[i, part], r2_ranks = _explained(x_ND, of_values), _explained(ranks_ND, of_ranks)
                # both tests follow from R² of the ranks: H of Kruskal and Wallis, corrected for ties, is (n − 1) R²,
                # and t² of Spearman is (n − 2) R² / (1 − R²)
                if kind == "categorical":
                    p[i, part] = stats.chi2.sf((n - 1) * r2_ranks, of_values.shape[0] - 1)
                else:
                    p[i, part] = stats.f.sf((n - 2) * r2_ranks / np.maximum(1 - r2_ranks, 1e-300), 1, n - 2)
    return pd.DataFrame(
        {
            "column": np.repeat(np.array([name for name, *_ in tested], dtype=object), d),
            "dimension": np.tile(np.arange(d), len(tested)),
            "r2": r2.ravel(),
            "p": p.ravel(),
            "q": stats.false_discovery_control(p, axis=None).ravel() if tested else p.ravel(),
            "kind": np.repeat(np.array([kind for _, kind, *_ in tested], dtype=object), d),
        }
    )


def map_coordinates(features: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows on the map, and their (n, 2) UMAP coordinates (McInnes et al. 2018, arXiv 1802.03426).

    UMAP gets the exact neighbours by cosine. With more than 50,000 rows, a seeded sample in ascending order. Distances
    on a map mislead: measure distances between features instead.
    """
    rows = sample(len(features), MAPPED, seed)
    if len(rows) < 4:  # too few for neighbourhoods
        return rows, np.stack([np.arange(len(rows)), np.zeros(len(rows))], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "n_jobs overridden by random_state": a seed needs this
        from umap import UMAP

        chosen, k = features[rows].astype(np.float32), min(15, len(rows) - 1)
        found = [*_nearest(unit(chosen, torch.float32), k - 1)]
        # UMAP's own search would compile for many seconds first; an image counts as its own first neighbour
        near = np.column_stack([np.arange(len(rows)), np.concatenate([neighbours for neighbours, _ in found])])
        distance = np.pad(1 - np.cos(np.deg2rad(np.concatenate([d for _, d in found]))), ((0, 0), (1, 0)))
        known = (near, distance.astype(np.float32), None)
        layout = UMAP(n_neighbors=k, metric="cosine", random_state=seed, precomputed_knn=known)
        return rows, layout.fit_transform(chosen)


def sample(count: int, largest: int, seed: int) -> np.ndarray:
    """The numbers 0 … count − 1, or `largest` random ones of them, sorted."""
    if count <= largest:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, largest, replace=False))


def _predictors(column: pd.Series) -> tuple[str, Any, Any] | None:
    """The column's kind, and its orthonormal predictors (K, N), for values and for ranks; None if it is left out."""
    from scipy import sparse, stats

    codes, values = pd.factorize(column)
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if numeric and len(values) > FEW:
        x_N = column.to_numpy(dtype=np.float64)
        return "numeric", *((y - y.mean())[None] / np.linalg.norm(y - y.mean()) for y in (x_N, stats.rankdata(x_N)))
    if len(values) < 2 or (not numeric and len(values) > len(codes) / 2):
        return None
    members = sparse.csr_array((1 / np.sqrt(np.bincount(codes))[codes], (codes, np.arange(len(codes)))))
    return "categorical", members, members


def _explained(x_ND: np.ndarray, predictors_KN: Any) -> np.ndarray:
    """The (D,) R² of each dimension on orthonormal predictors; 0 for constant dimensions."""
    centred = x_ND - x_ND.mean(0)
    r2 = np.square(predictors_KN @ centred).sum(0) / np.maximum(np.square(centred).sum(0), 1e-300)
    return np.where(np.ptp(x_ND, axis=0) > 0, r2.clip(0, 1), 0.0)


def _nearest(z_ND: torch.Tensor, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The k nearest other vectors of each vector, the nearest first, and their angles in degrees; chunk by chunk."""
    rows = max(1, HELD // len(z_ND))
    buffer = z_ND.new_empty(rows, len(z_ND))  # reused by every chunk: new ones would fragment memory
    for start in range(0, len(z_ND), rows):
        chunk = z_ND[start : start + rows]
        cosine = torch.mm(chunk, z_ND.T, out=buffer[: len(chunk)])
        cosine[:, start:].fill_diagonal_(-2)  # a vector is not its own neighbour
        nearest = cosine.topk(k, dim=1).indices
        yield nearest.numpy(), _angle(chunk[:, None], z_ND[nearest])


def _angle(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Degrees between unit vectors, from their distance 2 sin(angle / 2): exact for small angles, unlike arccosine."""
    return (first.double() - second.double()).norm(dim=-1).div(2).clamp(max=1).asin().mul(2).rad2deg().numpy()
