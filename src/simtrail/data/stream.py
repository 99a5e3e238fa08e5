"""Images as the network takes them, read ahead by threads, a bounded number at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from simtrail.data.reading.readers import open_image
from simtrail.data.recipe import Recipe, conform

THREADS = 4  # that read
AHEAD, HELD = 256, 2**28  # images that wait for the network at most, and their bytes


def conformed(
    items: Sequence[Path] | Sequence[np.ndarray],
    recipe: Recipe,
    modality: str | None = None,
    max_side: int | None = None,
) -> Iterator[np.ndarray | str]:
    """For each path, or array (C, H, W), in order: the recipe's array (T, bands, size, size), or why there is none.

    T is 1 or, with `fit: tile`, the number of tiles, without those of only background. Large files with a side above
    `max_side` are not decoded.
    """
    bytes_each = len(recipe.bands) * recipe.size**2 * np.dtype(recipe.dtype).itemsize
    ahead = max(THREADS, min(AHEAD, HELD // bytes_each))
    if recipe.fit == "tile":  # an image has any number of them
        ahead = THREADS
    waiting: deque[Future[np.ndarray | str]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            waiting.append(pool.submit(_conformed, item, recipe, modality, max_side))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _conformed(item: Path | np.ndarray, recipe: Recipe, modality: str | None, max_side: int | None) -> np.ndarray | str:
    try:
        if isinstance(item, Path):
            decoded = open_image(item, recipe.reading, recipe.needed, max_side)
            if modality is None:
                recipe.require_same_units(decoded.facts)
            squares = conform(decoded.image, recipe, modality)
        else:
            squares = conform(item, recipe, modality)
    except (ValueError, OSError) as error:
        return str(getattr(error, "strerror", None) or error)  # without the number of a system error
    blank = recipe.blank(squares)
    return squares if blank.all() else squares[~blank]
