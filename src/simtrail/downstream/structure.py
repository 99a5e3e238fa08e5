"""What a set of images holds, without labels: those like a query, clusters of like images, and the odd ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.preprocessing import normalize

from simtrail.errors import InputError
from simtrail.evaluation import structure as evaluation
from simtrail.evaluation.classifiers import nearest

NEIGHBOURS = 5
SEARCHED = 200_000  # images among which near copies are looked for; of more, a sample


def search(features: np.ndarray, paths: np.ndarray, queries: np.ndarray, names: np.ndarray, top: int) -> pd.DataFrame:
    """The `top` images most like each query: query, rank, path, similarity (cosine, −1 to 1).

    The search is exact. A query that is one of the images is not found itself.
    """
    rows = nearest(features, queries, min(top + 1, len(features)))
    found = []
    for query, name, near in zip(queries, names, rows, strict=True):
        near = near[paths[near] != name][:top]
        similarity = normalize(features[near]) @ normalize(query[None])[0]
        table = {"query": name, "rank": range(1, len(near) + 1), "path": paths[near], "similarity": similarity.round(4)}
        found.append(pd.DataFrame(table))
    return pd.concat(found, ignore_index=True)


def clusters(features: np.ndarray, count: int | None = None, smallest: int = 10, seed: int = 0) -> pd.DataFrame:
    """The cluster of each image: cluster (1, 2, … by size; 0: in none), and similarity to the middle of its cluster.

    With a `count`, k-means makes so many clusters. Without, HDBSCAN finds them (Campello et al. 2013): regions that are
    dense beside others, of at least `smallest` images; images between them are in none. Raises InputError if there are
    not enough images.
    """
    from sklearn.cluster import HDBSCAN, KMeans

    if len(features) < max(count or 0, 2 * smallest if count is None else 0):
        needed = f"{count} clusters" if count else f"clusters of {smallest} images; lower --smallest"
        raise InputError(f"{len(features)} images: too few for {needed}")
    x = evaluation.reduced(normalize(features), seed)
    if count:
        found = KMeans(count, n_init=4, random_state=seed).fit_predict(x)
    else:
        found = HDBSCAN(min_cluster_size=smallest, copy=True).fit_predict(x)
    order = pd.Series(found[found >= 0]).value_counts().index  # the largest first
    number = pd.Series(found).map({old: new for new, old in enumerate(order, 1)}).fillna(0).astype(int).to_numpy()
    similarity = np.zeros(len(features))
    for cluster in np.unique(number[number > 0]):
        members = normalize(features[number == cluster])
        similarity[number == cluster] = members @ normalize(members.mean(0, keepdims=True))[0]
    return pd.DataFrame({"cluster": number, "similarity": similarity.round(4)})


def duplicates(features: np.ndarray, paths: np.ndarray, sha256: np.ndarray) -> pd.DataFrame:
    """Pairs of images that may be the same, in sets: set, path, copy, kind (exact or near), angle in degrees.

    See `evaluation.structure.duplicates`. Sets are connected by pairs; the largest is 1.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(paths)
    pairs = evaluation.duplicates(features, sha256, np.arange(n), largest=SEARCHED)
    links = coo_array((np.ones(len(pairs)), (pairs["first"], pairs["second"])), (n, n))
    component = pd.Series(connected_components(links, directed=False)[1])
    order = component.value_counts(sort=True).index
    number = component.map({old: new for new, old in enumerate(order, 1)}).to_numpy()[pairs["first"]]
    table = pd.DataFrame({"set": number, "path": paths[pairs["first"]], "copy": paths[pairs["second"]]})
    table = table.assign(kind=pairs["kind"], angle=pairs["angle"].round(3))
    return table.sort_values(["set", "angle"], kind="stable", ignore_index=True)


def outliers(features: np.ndarray, paths: np.ndarray) -> pd.DataFrame:
    """All images, the oddest first: path, distance, nearest.

    `distance` is the mean cosine distance, 0 to 2, to the `NEIGHBOURS` images most like it (Ramaswamy et al. 2000;
    several, so that two copies of an odd picture are odd), `nearest` the most like one. Raises InputError for fewer
    than seven images.
    """
    if len(features) < NEIGHBOURS + 2:
        raise InputError(f"{len(features)} images: too few: at least {NEIGHBOURS + 2} are needed")
    rows = nearest(features, features, NEIGHBOURS + 1)
    itself = rows == np.arange(len(rows))[:, None]
    itself[~itself.any(1), -1] = True  # copies of it came first
    others = rows[~itself].reshape(len(rows), NEIGHBOURS)
    unit = normalize(features)
    distance = np.array([1 - float((unit[near] @ own).mean()) for own, near in zip(unit, others, strict=True)])
    table = pd.DataFrame({"path": paths, "distance": distance.round(4), "nearest": paths[others[:, 0]]})
    return table.iloc[np.argsort(-distance, kind="stable")].reset_index(drop=True)
