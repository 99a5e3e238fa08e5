"""How an image looks, in a few numbers: a thumbnail to find near copies, brightness, sharpness."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

SIDE = 16  # of the thumbnail
_SAMPLED = 16 * SIDE  # pixels per side that are read, evenly spaced
_MOST_BANDS = 8
NO_APPEARANCE = {"thumbnail": None, "darkest": np.nan, "brightest": np.nan, "sharpness": np.nan}


def appearance(image: np.ndarray, mask: int | None = None) -> dict[str, Any]:
    """Facts about the grey image of an image (C, H, W), the mean of its bands (of eight at most), without the mask.

    - `thumbnail`: 16 × 16 uint16 as bytes, from the darkest to the brightest pixel; None if all pixels are equal
    - `darkest`, `brightest`: the 1 and 99 % quantiles, on a scale from 0 to 1, of 8-bit images; else NaN
    - `sharpness`: the standard deviation of differences between neighbours in an image of 64 × 64 pixels, divided by
      the standard deviation of its pixels; NaN for a constant image
    """
    bands = [i for i in range(len(image)) if i != mask]
    bands = bands[:: -(-len(bands) // _MOST_BANDS)]
    rows, columns = (np.linspace(0, n - 1, min(n, _SAMPLED)).round().astype(int) for n in image.shape[1:])
    with np.errstate(invalid="ignore", over="ignore"):
        grey = np.nan_to_num(
            sum(image[band][np.ix_(rows, columns)].astype(np.float32) for band in bands) / len(bands),
            posinf=0,
            neginf=0,
        )
        facts = dict(NO_APPEARANCE)
        if image.dtype == np.uint8:
            darkest, brightest = np.quantile(grey, (0.01, 0.99)) / 255
            facts |= {"darkest": float(darkest), "brightest": float(brightest)}
        span = float(np.ptp(grey))
        if 0 < span < np.inf:
            picture = Image.fromarray((grey - grey.min()) / np.float32(span))
            thumbnail, medium = (np.asarray(picture.resize((n, n), Image.Resampling.BOX)) for n in (SIDE, 4 * SIDE))
            facts["thumbnail"] = np.rint(thumbnail * 65535).astype(np.uint16).tobytes()
            steps = np.concatenate([np.diff(medium, axis=axis).ravel() for axis in (0, 1)])
            facts["sharpness"] = float(steps.std() / medium.std())
    return facts
