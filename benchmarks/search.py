"""Exact search beside approximate indexes: time to build, time of a query, and recall of the ten nearest.

    python benchmarks/search.py FEATURES.npy [COUNT …]     needs usearch, hnswlib and faiss-cpu

Features of more images than the file has are made from two real ones each, half-way, with noise. Times are seconds with
all cores; queries are other images, asked one at a time and 100 at a time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from simtrail.evaluation.classifiers import nearest

K, QUERIES = 10, 100


def many(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many vectors at unit length, the first of them real."""
    first, second = rng.integers(0, len(features), (2, count))
    mixed = (features[first] + features[second]) / 2 + 0.1 * features.std() * rng.normal(size=(count, 1))
    mixed[: min(count, len(features))] = features[:count]
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def usearch(bank: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from usearch.index import Index

    index = Index(ndim=bank.shape[1], metric="ip", dtype="f32")
    index.add(np.arange(len(bank)), bank)
    return lambda queries: np.atleast_2d(index.search(queries, K).keys)


def hnswlib(bank: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    import hnswlib

    index = hnswlib.Index("ip", bank.shape[1])
    index.init_index(len(bank), ef_construction=200, M=16)
    index.add_items(bank)
    index.set_ef(64)
    return lambda queries: index.knn_query(queries, K)[0]


def faiss(bank: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    import faiss

    index = faiss.IndexHNSWFlat(bank.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.add(bank)
    index.hnsw.efSearch = 64
    return lambda queries: index.search(queries, K)[1]


def exact(bank: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    stored = torch.from_numpy(bank)
    return lambda queries: nearest(stored, torch.from_numpy(queries), K)


def rows(features: np.ndarray, counts: list[int]) -> Iterator[str]:
    for count in counts:
        rng = np.random.default_rng(0)
        bank, queries = many(features, count, rng), many(features, QUERIES + len(features), rng)[len(features) :]
        truth = exact(bank)(queries)
        for index in (exact, usearch, hnswlib, faiss):
            start = time.perf_counter()
            ask = index(bank)
            built = time.perf_counter() - start
            start = time.perf_counter()
            single = [ask(query[None]) for query in queries[:20]]
            one = (time.perf_counter() - start) / len(single)
            start = time.perf_counter()
            found = ask(queries)
            hundred = time.perf_counter() - start
            recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)])
            yield f"| {count:,} | {index.__name__} | {built:.1f} | {one:.4f} | {hundred:.2f} | {recall:.3f} |"


if __name__ == "__main__":
    print("| vectors | index | build | one query | 100 queries | recall |\n|---|---|---|---|---|---|", flush=True)
    for row in rows(np.load(sys.argv[1]), [int(count) for count in sys.argv[2:]] or [10_000, 100_000, 1_000_000]):
        print(row, flush=True)
