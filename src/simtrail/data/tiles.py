"""Large images, such as slides, scenes and scans, cut into square tiles of their own resolution."""

from __future__ import annotations

import numpy as np
import pandas as pd

Corners = list[tuple[int, int]]


def corners(height: int, width: int, size: int) -> Corners:
    """The top left corners (row, column) of the fewest square tiles that cover an image, row by row.

    They are evenly spaced, so that the first and the last touch the borders; neighbours overlap where `size` does not
    divide a side. A side shorter than `size` has one tile, which begins at 0.
    """

    def starts(side: int) -> list[int]:
        # in whole numbers, so that every machine cuts at the same pixels
        count, room = -(-side // size), max(0, side - size)
        return [room * i // max(1, count - 1) for i in range(count)]

    return [(top, left) for top in starts(height) for left in starts(width)]


def cut(plane: np.ndarray, background: np.ndarray, size: int) -> np.ndarray:
    """The tiles (T, size, size) of a band (H, W); a side shorter than a tile is padded with the background."""
    height, width = plane.shape
    rows, columns = max(0, size - height), max(0, size - width)
    if rows or columns:
        sides = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
        plane = np.pad(plane, sides, constant_values=background.item())
    return np.stack([plane[top : top + size, left : left + size] for top, left in corners(height, width, size)])


def table_of_tiles(table: pd.DataFrame, tiles: pd.DataFrame) -> pd.DataFrame:
    """A row per tile, from a row per image: `tiles` has the row of each tile's image, and the tile's top and left.

    The path of a tile is that of the image with its corner, such as `images/a.tif#64,0` for row 64 and column 0. Tiles
    of an image without a group have the image as group.
    """
    result = table.iloc[tiles["image"]].reset_index(drop=True)
    corner = tiles["top"].astype(str) + "," + tiles["left"].astype(str)
    return result.assign(group=result["group"].fillna(result["path"]), path=result["path"] + "#" + corner.to_numpy())
