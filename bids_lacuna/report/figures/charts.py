"""Charts of a group: the similarity matrix and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from bids_lacuna.report.figures.colours import two_digits
from bids_lacuna.report.figures.png import PIXELS_PER_INCH, save_figure

Array = np.ndarray

N_NAMES = 60
"""Largest number of lesions whose names are printed beside a matrix."""

N_CELLS = 800
"""Largest number of drawn cells along a matrix's edge, about one per pixel; matplotlib needs 50 bytes for each."""

N_BINS = 20
"""Bins of a histogram."""

CHARACTERS = 120
"""Characters per line of a chart's title."""

BAR_COLOUR = "#3182bd"
"""Colour of histograms."""


def draw_similarity(path: Path, similarity: Array, names: Sequence[str], title: tuple[str, str]) -> None:
    """Draw a matrix of correlations in the given order.

    Parameters
    ----------
    similarity : shape (n, n)
    names
        Names of the rows and columns, printed if there is room for them.
    title
        As for `draw_overlap`.
    """
    figure = Figure((9, 8.2), dpi=PIXELS_PER_INCH, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    n = len(names)
    edges = (0.5, n + 0.5)
    image = axes.imshow(_coarsen(similarity), cmap="RdBu_r", norm=Normalize(-1, 1), extent=(*edges, *edges[::-1]))
    if n <= N_NAMES:
        axes.set_xticks(range(1, n + 1), labels=names, rotation=90, fontsize=7)
        axes.set_yticks(range(1, n + 1), labels=names, fontsize=7)
    else:
        axes.set_xlabel("clustering order")
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1], labels=[two_digits(tick) for tick in (-1, -0.5, 0, 0.5, 1)])
    bar.ax.set_title("r", fontsize=12, pad=10)
    _write_title(figure, title)
    save_figure(figure, path)


def _coarsen(matrix: Array) -> Array:
    """Average neighbouring cells of a square matrix that has too many for a picture."""
    starts = np.arange(0, len(matrix), -(-len(matrix) // N_CELLS))
    counts = np.diff([*starts, len(matrix)])
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    return sums / np.outer(counts, counts)


def draw_distributions(
    path: Path, volumes_ml: Sequence[float], coverage_percent: Sequence[float], title: tuple[str, str]
) -> None:
    """Draw histograms of volume (logarithmic axis) and coverage.

    Parameters
    ----------
    title
        As for `draw_overlap`.
    """
    figure = Figure((9, 4), dpi=PIXELS_PER_INCH, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = min(volumes_ml), max(volumes_ml)
    left.hist(volumes_ml, np.geomspace(low / 1.1, high * 1.1, N_BINS + 1), color=BAR_COLOUR, edgecolor="white")
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("volume (mL)")
    right.hist(coverage_percent, np.linspace(0, 100, N_BINS + 1), color=BAR_COLOUR, edgecolor="white")
    right.set_xlabel("coverage (%)")
    for axes in (left, right):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("lesions")
        axes.spines[["top", "right"]].set_visible(False)
    _write_title(figure, title)
    save_figure(figure, path)


def _write_title(figure: Figure, title: tuple[str, str]) -> None:
    first, second = title
    figure.suptitle(f"{first}\n{fill(second, CHARACTERS)}", fontsize=10, x=0.01, ha="left")
