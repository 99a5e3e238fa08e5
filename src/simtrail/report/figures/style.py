"""Settings of all figures: colours, markers, sizes, and saving as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's colours, which can be distinguished with any colour vision; with more than seven classes, use markers
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
GREY = "#A0A0A0"
WIDTH = 6.3  # inches, 16 cm: the text width of a printed page, so that font sizes in points are right in print
POINTS = 2000  # with more points, a scatter plot is stored as pixels in the SVG
plt.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "figure.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "simtrail",
    }
)


def mark(i: int) -> tuple[str, str]:
    """The colour and marker of the i-th class of a scatter plot: 49 different ones."""
    return COLOURS[i % 7], MARKERS[i // 7 % 7]


def shorten(text: str, longest: int = 26) -> str:
    """The text with at most `longest` characters: cut and ended by an ellipsis where it is longer."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def save(figure: Figure, path: Path, vector: bool = True) -> None:
    """Saves a figure as `path` (PNG, 200 dpi), the same bytes every time, and closes it.

    With `vector` there is also an SVG beside it: not for figures of photographs, which have no more pixels in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, metadata={"Software": None})
    if vector:
        figure.set_layout_engine("none")  # keeps the layout of the PNG, which takes longer to find than to draw
        figure.savefig(path.with_suffix(".svg"), dpi=200, metadata={"Date": None})
    plt.close(figure)
