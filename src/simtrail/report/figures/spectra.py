"""Figures about bands: their importance to an encoder, and the mean spectra of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from simtrail.report.figures.style import COLOURS, GREY, WIDTH, save, shorten

CLASSES = 16  # with more panels, each would be too small
POINTS = 24  # more bands than this are drawn as lines, and not all of them are named
MEASURES = {"angle": "angle by which features\nturn when hidden, degrees", "drop": "loss of accuracy\nwhen permuted"}


def importance_bars(bands: pd.DataFrame, modalities: pd.DataFrame | None, path: Path) -> None:
    """Draws how much the features and the probe's accuracy depend on each modality (above) and band (below).

    The bars have 95 % intervals and the order of the tables. The tables have the columns group, angle, angle_low,
    angle_high of bands.occlusion and, with labels, drop, drop_low, drop_high of bands.permutation.
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
        row[0].set_yticks(range(len(table)), [shorten(str(group)) for group in table["group"]])
        row[0].set(ylabel=title, ylim=(middle + length / 2, middle - length / 2))
    for axis, measure in zip(axes[-1], measures, strict=True):
        axis.set_xlabel(MEASURES[measure])
    figure.align_ylabels()
    figure.suptitle("Test split; error bars: 95 % intervals, bootstrapped over groups")
    save(figure, path)


def spectra(
    table: pd.DataFrame, wavelengths: Sequence[float | None] | None, path: Path, quantity: str = "pixel value"
) -> None:
    """Draws a panel per class, of the 16 with most images: its mean ± one standard deviation over images in each band.

    Each panel also shows, in grey, the mean of all classes of the table, with equal weights. `table` is the result of
    bands.mean_spectra. If every band has a wavelength (nm), spectra are lines over the wavelength. Otherwise the bands
    are named in their order, and up to 24 bands are drawn as points. `quantity` names what the means are of.
    """
    bands = list(dict.fromkeys(table["band"]))
    nm = [w for w in wavelengths or [] if w is not None]
    by_wavelength = len(nm) == len(bands)
    x = np.array(nm) if by_wavelength else np.arange(len(bands), dtype=float)
    order = np.argsort(x, kind="stable")
    sizes = table.groupby("class", sort=False)["images"].first()
    shown = sizes.sort_values(ascending=False, kind="stable").index[:CLASSES]
    means, deviations = (
        table.pivot(index="class", columns="band", values=v)[bands].iloc[:, order] for v in ("mean", "sd")
    )
    columns = len(shown) if len(shown) < 4 else int(np.ceil(np.sqrt(len(shown))))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 1 + max(2.4 / rows, 1.35) * rows), sharex=True, sharey=True, squeeze=False
    )  # fmt: skip
    markers: dict[str, Any] = {"marker": "o" if len(bands) <= POINTS else "", "markersize": 3}
    label = "mean ± one standard deviation over images"
    for axis, name in zip(axes.flat, shown, strict=False):
        if len(sizes) > 1:
            axis.plot(x[order], means.mean(), color=GREY, linewidth=1, label=f"mean of all {len(sizes)} classes")
        mean, sd = means.loc[name].to_numpy(), np.nan_to_num(deviations.loc[name].to_numpy())
        if by_wavelength or len(bands) > POINTS:
            axis.fill_between(x[order], mean - sd, mean + sd, color=COLOURS[0], alpha=0.25, linewidth=0)
            axis.plot(x[order], mean, color=COLOURS[0], linewidth=1.2, label=label, **markers)
        else:
            axis.errorbar(x, mean, sd, color=COLOURS[0], linestyle="", elinewidth=1, capsize=2, label=label, **markers)
        axis.set_title(f"{shorten(str(name), 96 // columns - 6)}\n{sizes[name]} images", fontsize=8)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis in axes.flat[len(shown) - columns : len(shown)]:  # the lowest panel of each column
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("wavelength, nm" if by_wavelength else "band")
    if not by_wavelength:
        step = -(-len(bands) // (POINTS // columns))
        axes[0, 0].set_xticks(x[::step], [shorten(band, 14) for band in bands[::step]])
        for axis in axes.flat:
            axis.tick_params(axis="x", rotation=90)
    figure.supylabel(quantity, fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncol=2, loc="outside lower center")
    which = (
        f"{CLASSES} of {len(sizes)} classes, those with most images"
        if len(sizes) > CLASSES
        else f"all {len(sizes)} classes"
    )
    figure.suptitle(f"Mean spectra of {which}" if len(sizes) > 1 else "Mean spectrum")
    save(figure, path)


def _bars(axis: Axes, table: pd.DataFrame, measure: str, colour: str) -> None:
    value, low, high = (table[measure + bound].to_numpy() for bound in ("", "_low", "_high"))
    errors = np.maximum([value - low, high - value], 0)  # a percentile interval may not contain the value
    style: dict[str, Any] = {"color": colour, "height": 0.7, "capsize": 2, "ecolor": "#404040"}
    axis.barh(range(len(table)), value, xerr=errors, **style)
    axis.axvline(0, color="black", linewidth=0.8)
