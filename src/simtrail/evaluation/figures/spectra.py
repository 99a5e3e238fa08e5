"""Figures of what bands tell: their importance to an encoder, and the mean spectra of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from simtrail.evaluation.figures.style import COLOURS, MARKERS, WIDTH, cut, write

CLASSES = 8  # more lines can't be told apart
POINTS = 24  # more bands than these are drawn as lines, and not all named
MEASURES = {"angle": "turn of the features\nwhen hidden, degrees", "drop": "loss of accuracy\nwhen permuted"}


def importance_bars(bands: pd.DataFrame, modalities: pd.DataFrame | None, path: Path) -> None:
    """How much an encoder's features and a probe's accuracy depend on each modality, above, and band, below, with 95 %
    intervals, in the order of the tables.

    The tables have the columns group, angle, angle_low, angle_high of bands.occlusion and, where there are labels,
    drop, drop_low, drop_high of bands.permutation.
    """
    tables = {"modality": modalities, "band": bands}
    shown = {title: table for title, table in tables.items() if table is not None and len(table)}
    measures = [measure for measure in MEASURES if measure in bands]
    lengths = [max(len(table), 2) + 0.8 for table in shown.values()]
    figure, axes = plt.subplots(
        len(shown), len(measures), figsize=(WIDTH, 1.1 + 0.2 * sum(lengths)), sharex="col", sharey="row",
        squeeze=False, height_ratios=lengths,
    )  # fmt: skip
    for row, (title, table), length in zip(axes, shown.items(), lengths, strict=True):
        colour, middle = COLOURS[title == "modality"], (len(table) - 1) / 2
        for axis, measure in zip(row, measures, strict=True):
            _bars(axis, table, measure, colour)
        row[0].set_yticks(range(len(table)), [cut(str(group)) for group in table["group"]])
        row[0].set(ylabel=title, ylim=(middle + length / 2, middle - length / 2))
    for axis, measure in zip(axes[-1], measures, strict=True):
        axis.set_xlabel(MEASURES[measure])
    figure.align_ylabels()
    figure.suptitle("Test split; whiskers span 95 % of bootstraps over groups")
    write(figure, path)


def spectra(
    table: pd.DataFrame, wavelengths: Sequence[float | None] | None, path: Path, quantity: str = "pixel value"
) -> None:
    """The mean ± one standard deviation over images of each class in each band; the 8 classes with most images.

    `table` is that of bands.mean_spectra. Where every band has a wavelength (nm), lines over it; otherwise the bands by
    name in their order, up to 24 as points. `quantity` is what the means are of.
    """
    bands = list(dict.fromkeys(table["band"]))
    nm = [w for w in wavelengths or [] if w is not None]
    known = len(nm) == len(bands)
    x = np.array(nm) if known else np.arange(len(bands), dtype=float)
    order = np.argsort(x, kind="stable")
    draw = _curve if known or len(bands) > POINTS else _points
    sizes = table.groupby("class", sort=False)["images"].first()
    shown = sizes.sort_values(ascending=False, kind="stable").index[:CLASSES]
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6))
    ends = []
    for i, name in enumerate(shown):
        part = table[table["class"] == name].set_index("band").loc[bands].iloc[order]
        mean, sd = part["mean"].to_numpy(), np.nan_to_num(part["sd"].to_numpy())
        draw(axis, x[order], mean, sd, i, len(shown))
        ends.append((float(mean[-1]), f"{cut(str(name), 22)} ({sizes[name]})", COLOURS[i]))
    axis.set(xlabel="wavelength, nm" if known else "band", ylabel=f"{quantity}, mean ± sd over images")
    if not known:
        step = -(-len(bands) // POINTS)
        wide = sum(len(cut(band)) + 2 for band in bands) > 75
        axis.set_xticks(x[::step], [cut(band) for band in bands[::step]], rotation=90 if wide else 0)
    axis.margins(x=0.02)
    _name_ends(axis, ends)
    most = f"the {CLASSES} with most images of {len(sizes)} classes" if len(sizes) > CLASSES else "classes"
    figure.suptitle(f"Mean spectra of {most}; in brackets their images")
    write(figure, path)


def _bars(axis: Axes, table: pd.DataFrame, measure: str, colour: str) -> None:
    value, low, high = (table[measure + bound].to_numpy() for bound in ("", "_low", "_high"))
    errors = np.maximum([value - low, high - value], 0)  # a percentile interval need not hold the value
    style: dict[str, Any] = {"color": colour, "height": 0.7, "capsize": 2, "ecolor": "#404040"}
    axis.barh(range(len(table)), value, xerr=errors, **style)
    axis.axvline(0, color="black", linewidth=0.8)


def _curve(axis: Axes, x: np.ndarray, mean: np.ndarray, sd: np.ndarray, i: int, classes: int) -> None:
    axis.fill_between(x, mean - sd, mean + sd, color=COLOURS[i], alpha=min(0.15, 0.6 / classes), linewidth=0)
    axis.plot(x, mean, color=COLOURS[i], linewidth=1.4)


def _points(axis: Axes, x: np.ndarray, mean: np.ndarray, sd: np.ndarray, i: int, classes: int) -> None:
    """Side by side within a band: the whiskers of classes must not hide each other."""
    x = x + 0.6 * ((i + 0.5) / classes - 0.5)
    axis.plot(x, mean, color=COLOURS[i], linewidth=0.6, alpha=0.5)
    style: dict[str, Any] = {"color": COLOURS[i], "marker": (*MARKERS, "*")[i], "markersize": 4, "capsize": 2}
    axis.errorbar(x, mean, sd, linestyle="", elinewidth=0.9, **style)


def _name_ends(axis: Axes, ends: list[tuple[float, str, str]]) -> None:
    """The names of lines, (last value, name, colour), at their right ends, moved as little as keeps them apart."""
    from scipy.optimize import isotonic_regression

    ends = sorted(ends)
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    apart = 0.065 * (high - low) * np.arange(len(ends))
    places = isotonic_regression([end for end, _, _ in ends] - apart).x + apart
    for (end, name, colour), y in zip(ends, places, strict=True):
        line = {"arrowstyle": "-", "color": colour, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0, "linewidth": 0.9}
        axis.annotate(
            name, (right, end), (1.05, (y - low) / (high - low)), textcoords="axes fraction", va="center", fontsize=8,
            annotation_clip=False, arrowprops=line,
        )  # fmt: skip
    axis.set(xlim=(left, right), ylim=(low, high))
