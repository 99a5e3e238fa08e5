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

BANK = 20_000  # images ranked for a query, and clustered
QUERIES = 2_000
NEIGHBOURS = 5  # of each image looked at for near duplicates
PAIRS = 1_000  # duplicates told
FEW = 20  # different numbers that still make categories
HELD = 2**20  # numbers of a chunk: 8 MiB of float64
MAPPED = 50_000  # images on a map; more take UMAP many minutes


def retrieval(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    k: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """`precision_at_<k>` and `map`, 0 to 1: how far images of a query's class lead the ranking of features by cosine.

    The share of the first k that are of the query's class (k cut to the number of features), and the mean average
    precision of the whole ranking; means over the queries whose class has an image, NaN without any. At most `QUERIES`
    seeded queries, and a seeded sample of `BANK` features. Of equal cosines, a seeded order decides.
    """
    rng = np.random.default_rng(seed)
    bank = rng.permutation(len(features))[:BANK]  # of a few images too: ties must not follow the order of the classes
    asked = rng.permutation(np.flatnonzero(np.isin(query_labels, labels[bank])))[:QUERIES]
    bank_ND, queries_QD = unit(features[bank], torch.float32), unit(queries[asked], torch.float32)
    classes_N, wanted_Q = torch.tensor(labels[bank]), torch.tensor(query_labels[asked])
    rank_N = torch.arange(1, len(bank) + 1, dtype=torch.float64)
    precision, average = [], []
    rows = max(1, HELD // len(bank))
    for chunk, wanted in zip(queries_QD.split(rows), wanted_Q.split(rows), strict=True):
        order = (chunk @ bank_ND.T).argsort(dim=1, descending=True, stable=True)
        hit = (classes_N[order] == wanted[:, None]).double()
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
    """Recalls, 0 to 1: how often an image's embedding in one modality is near to its embedding in another.

    Keys: `recall_at_<k>`, `recall_back_at_<k>`, `chance_at_<k>`. Row i of `first` and of `second`, (N, D), is the same
    image; it counts for recall at k where it is among the k of `second` nearest by cosine to its row of `first`, for
    `recall_back` the other way round. Given `classes`, numbers of classes or of specimens, any image of the same class
    counts; without, only the image itself. Chance is that of k images drawn at random: k / N, or by the hypergeometric
    distribution. At most `BANK` images are searched and `QUERIES` are queries, both seeded samples. Ties are broken at
    random, so that collapsed embeddings are at chance.
    """
    from scipy.stats import hypergeom

    rng = np.random.default_rng(seed)
    bank = rng.permutation(len(first))[:BANK]
    queries = torch.from_numpy(
        rng.permutation(len(bank))[:QUERIES]
    )  # another random order than the bank's, which breaks ties
    _, group, size = np.unique(bank if classes is None else classes[bank], return_inverse=True, return_counts=True)
    group_N, n = torch.from_numpy(group), len(bank)
    z, back = unit(first[bank], torch.float32), unit(second[bank], torch.float32)
    recalls = {f"chance_at_{k}": float(hypergeom.sf(0, n, size[group[queries]], min(k, n)).mean()) for k in ks}
    for name, queries_ND, bank_ND in (("recall", z, back), ("recall_back", back, z)):
        hits = [
            group_N[(queries_ND[part] @ bank_ND.T).topk(min(max(ks), n)).indices] == group_N[part, None]
            for part in queries.split(max(1, HELD // n))
        ]
        recalls |= {f"{name}_at_{k}": float(torch.cat(hits)[:, :k].any(1).double().mean()) for k in ks}
    return recalls


def duplicates(
    features: np.ndarray, sha256: np.ndarray, block: np.ndarray, *, largest: int = 50_000, seed: int = 0
) -> pd.DataFrame:
    """first < second (rows), angle (degrees), kind and same_group of the pairs that may be one image, nearest first.

    `sha256` and `block` hold each image's hash and group number. 'exact' pairs have equal hashes. Of the images with
    different hashes (one of each; beyond `largest`, a seeded sample), 'near' pairs are those at less than a tenth of
    the median angle to the nearest neighbour, sought among each image's `NEIGHBOURS` nearest. At most `PAIRS` pairs.
    """
    hashes = pd.Series(np.asarray(sha256))
    copies = hashes[hashes.duplicated(keep=False)]
    sets = copies.groupby(copies).indices.values()
    pairs = list(islice(chain.from_iterable(combinations(copies.index[at], 2) for at in sets), PAIRS))
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    angle = _angle(unit(features[first]), unit(features[second]))
    exact = pd.DataFrame({"first": first, "second": second, "angle": angle, "kind": "exact"})

    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~hashes.duplicated()))[:largest]
    z_ND = unit(features[rows], torch.float32)
    k, done = min(NEIGHBOURS, len(rows) - 1), 0
    nearest, angle = np.empty((len(rows), k), np.int64), np.empty((len(rows), k))
    for places, degrees in _nearest(z_ND, k):  # copied: small results that stay would pin what is freed around them
        here = slice(done, done := done + len(places))
        nearest[here], angle[here] = places, degrees
    limit = np.median(angle[:, 0]) / 10 if len(rows) > 1 else 0.0
    image, neighbour = np.nonzero(angle < limit)
    ends = np.sort(np.stack([rows[image], rows[nearest[image, neighbour]]]), axis=0)
    near = pd.DataFrame({"first": ends[0], "second": ends[1], "angle": angle[image, neighbour], "kind": "near"})

    table = pd.concat([exact, near.drop_duplicates(["first", "second"])])
    table = table.sort_values(["angle", "first", "second"], ignore_index=True).head(PAIRS)
    return table.assign(same_group=block[table["first"]] == block[table["second"]])


def clusters(features: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """`ari` and `nmi`, ≤ 1: how k-means on unit-length features agrees with the classes, told only their number.

    Adjusted Rand index and normalised mutual information; 0 is chance for the first. Beyond `BANK` images, a seeded
    sample.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    rows = np.random.default_rng(seed).permutation(len(features))[:BANK]
    truth = labels[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than classes: a low score says so
        means = KMeans(len(np.unique(truth)), n_init=10, random_state=seed)
        found = means.fit_predict(unit(features[rows], torch.float32).numpy())
    return {
        "ari": float(adjusted_rand_score(truth, found)),
        "nmi": float(normalized_mutual_info_score(truth, found)),
    }


def explained_variance(features: np.ndarray) -> np.ndarray:
    """(D,) shares of the variance explained by the first 1, 2, … D principal components, rising to 1.

    All 1 for constant features: nothing is left to explain.
    """
    d = features.shape[1]
    total_D, scatter_DD = np.zeros(d), np.zeros((d, d))
    for start in range(0, len(features), max(1, HELD // d)):
        # About the first image rather than the mean: one pass, and constant features give exactly 0.
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
    """column, dimension, r2 (0 to 1), p, q and kind: how each embedding dimension depends on each metadata column.

    `columns` holds a row per image; images without a value are left out of their column. A 'numeric' column (numbers
    with more than `FEW` different values) has the squared correlation of Pearson and the p of Spearman's; any other is
    'categorical': between its groups' sum of squares over the total, and the p of Kruskal and Wallis, by chi-squared.
    q is p by Benjamini and Hochberg over all dimensions and columns. A constant dimension has r2 0 and p 1. Left out
    are columns with one value, and texts with more than half as many values as images.
    p takes images for independent evidence, as images of one specimen are not: then r2 says more.
    """
    from scipy import stats

    tested: list[tuple[str, str, Any, Any]] = []
    sharing: dict[bytes, list[int]] = {}  # the tested columns by the images that have a value: one ranking serves them
    for name in columns:
        column = columns[name].replace([np.inf, -np.inf], np.nan)
        known = column.notna().to_numpy()
        spans = _spans(column[known])
        if spans:
            sharing.setdefault(known.tobytes(), []).append(len(tested))
            tested.append((str(name), *spans))
    d = features.shape[1]
    r2, p = np.empty((2, len(tested), d))
    for mask, sharers in sharing.items():
        rows = np.flatnonzero(np.frombuffer(mask, dtype=bool))
        n = len(rows)
        step = max(1, HELD // n)
        for start in range(0, d, step):
            part = slice(start, start + step)
            x_ND = features[rows, part].astype(np.float64)
            ranks_ND = stats.rankdata(x_ND, axis=0)
            for i in sharers:
                _, kind, of_values, of_ranks = tested[i]
                r2[i, part], share = _explained(x_ND, of_values), _explained(ranks_ND, of_ranks)
                # Both tests follow from R² between ranks: Kruskal and Wallis's H, corrected for ties, is (n − 1) R²,
                # Spearman's t² is (n − 2) R² / (1 − R²).
                if kind == "categorical":
                    p[i, part] = stats.chi2.sf((n - 1) * share, of_values.shape[0] - 1)
                else:
                    p[i, part] = stats.f.sf((n - 2) * share / np.maximum(1 - share, 1e-300), 1, n - 2)
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
    """The rows laid out, and their (n, 2) UMAP coordinates by cosine distance (McInnes et al. 2018, arXiv 1802.03426).

    All rows up to 50,000, of more a seeded sample in their order. Distances on a map mislead: measure in the features.
    """
    rows = sample(len(features), MAPPED, seed)
    if len(rows) < 4:  # too few for neighbourhoods
        return rows, np.stack([np.arange(len(rows)), np.zeros(len(rows))], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "n_jobs overridden by random_state": that is the point of a seed
        from umap import UMAP

        layout = UMAP(n_neighbors=min(15, len(rows) - 1), metric="cosine", random_state=seed)
        return rows, layout.fit_transform(features[rows])


def sample(count: int, largest: int, seed: int) -> np.ndarray:
    """The numbers 0 … count − 1, or a sorted random `largest` of them."""
    if count <= largest:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, largest, replace=False))


def _spans(column: pd.Series) -> tuple[str, Any, Any] | None:
    """The column's kind, and orthonormal rows (K, N) that span what it can explain of values, and of ranks."""
    from scipy import sparse, stats

    codes, values = pd.factorize(column)
    number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if number and len(values) > FEW:
        x_N = column.to_numpy(dtype=np.float64)
        return "numeric", *((y - y.mean())[None] / np.linalg.norm(y - y.mean()) for y in (x_N, stats.rankdata(x_N)))
    if len(values) < 2 or (not number and len(values) > len(codes) / 2):
        return None
    members = sparse.csr_array((1 / np.sqrt(np.bincount(codes))[codes], (codes, np.arange(len(codes)))))
    return "categorical", members, members


def _explained(x_ND: np.ndarray, span_KN: Any) -> np.ndarray:
    """(D,) R² of each dimension on orthonormal rows; 0 for constant dimensions."""
    centred = x_ND - x_ND.mean(0)
    share = np.square(span_KN @ centred).sum(0) / np.maximum(np.square(centred).sum(0), 1e-300)
    return np.where(np.ptp(x_ND, axis=0) > 0, share.clip(0, 1), 0.0)


def _nearest(z_ND: torch.Tensor, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The k nearest others of each vector, nearest first, and the angles to them in degrees; chunk by chunk."""
    rows = max(1, HELD // len(z_ND))
    held = z_ND.new_empty(rows, len(z_ND))  # one for all: among small results that stay, freed ones would pile up
    for start in range(0, len(z_ND), rows):
        chunk = z_ND[start : start + rows]
        cosine = torch.mm(chunk, z_ND.T, out=held[: len(chunk)])
        cosine[:, start:].fill_diagonal_(-2)  # itself
        nearest = cosine.topk(k, dim=1).indices
        yield nearest.numpy(), _angle(chunk[:, None], z_ND[nearest])


def _angle(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Degrees between unit vectors by their distance, 2 sin(angle / 2): exact for small angles, as arccosine is not."""
    return (first.double() - second.double()).norm(dim=-1).div(2).clamp(max=1).asin().mul(2).rad2deg().numpy()
