"""Charts of a group: the similarity matrix and histograms; those of a test: its design and its prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
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


@contextmanager
def _chart(path: Path, size: tuple[float, float], title: tuple[str, str]) -> Iterator[Figure]:
    """Make a figure of a size in inches, and write it with its title once the block has drawn it."""
    figure = Figure(size, dpi=PIXELS_PER_INCH, facecolor="white", layout="constrained")
    yield figure
    first, second = title
    figure.suptitle(f"{first}\n{fill(second, CHARACTERS)}", fontsize=10, x=0.01, ha="left")
    save_figure(figure, path)


def _label_counts(axes: Axes, counted: str) -> None:
    """Label the vertical axis as a count, with whole numbers."""
    axes.set_ylabel(counted)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


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
    with _chart(path, (9, 8.2), title) as figure:
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
    with _chart(path, (9, 4), title) as figure:
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
            _label_counts(axes, "lesions")
            axes.spines[["top", "right"]].set_visible(False)


def draw_design(path: Path, columns: Mapping[str, Sequence[float]], title: tuple[str, str]) -> None:
    """Draw a model's matrix, one row for each patient: each column from its smallest (black) to its largest value.

    Parameters
    ----------
    columns
        Values of the patients, by name; a constant is white.
    title
        As for `draw_overlap`.
    """
    with _chart(path, (9, 4.5), title) as figure:
        axes = figure.add_subplot()
        matrix = np.array(list(columns.values()), float)
        low, spread = matrix.min(axis=1, keepdims=True), np.ptp(matrix, axis=1, keepdims=True)
        shades = np.divide(matrix - low, spread, out=np.ones_like(matrix), where=spread > 0)
        axes.imshow(shades.T, cmap="gray", norm=Normalize(0, 1), aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(columns)), labels=list(columns), rotation=20, ha="right")
        _label_counts(axes, "patients")


def draw_prediction(
    path: Path,
    similarity: Sequence[float],
    tested: Sequence[float],
    levels: Sequence[str],
    labels: tuple[str, str],
    title: tuple[str, str],
) -> None:
    """Draw each patient's similarity with the effect map of the others, by group or against the score.

    Parameters
    ----------
    similarity, tested
        Values of the patients.
    levels
        Names of the cases and of the others; none for a score.
    labels
        Names of the tested column and of the similarity, for the axes.
    title
        As for `draw_overlap`.
    """
    with _chart(path, (9, 4.5), title) as figure:
        axes = figure.add_subplot()
        places = np.asarray(tested, float)
        if levels:
            # Side by side in the order of the values, so that equal ones do not hide each other.
            spread = np.linspace(-0.2, 0.2, len(places))
            places = places + spread[np.argsort(np.argsort(similarity))]
            axes.set_xticks([0, 1], labels=[levels[1], levels[0]])
            axes.set_xlim(-0.5, 1.5)
            for group in (0, 1):
                middle = float(np.median(np.asarray(similarity)[np.asarray(tested) == group]))
                axes.plot([group - 0.25, group + 0.25], [middle, middle], color="black")
        axes.plot(places, similarity, "o", color=BAR_COLOUR, markersize=5)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.spines[["top", "right"]].set_visible(False)


def draw_tested(
    path: Path, tested: Sequence[float], levels: Sequence[str], column: str, title: tuple[str, str]
) -> None:
    """Draw how many patients there are in each group, or the histogram of a score.

    Parameters
    ----------
    tested, levels
        As in `draw_prediction`.
    column
        Name of the tested column.
    title
        As for `draw_overlap`.
    """
    with _chart(path, (9, 3.5), title) as figure:
        axes = figure.add_subplot()
        if levels:
            counts = [sum(value == group for value in tested) for group in (0, 1)]
            axes.bar([0, 1], counts, width=0.5, color=BAR_COLOUR)
            axes.set_xticks([0, 1], labels=[f"{level} ({n})" for level, n in zip(levels[::-1], counts, strict=True)])
        else:
            axes.hist(tested, N_BINS, color=BAR_COLOUR, edgecolor="white")
        axes.set_xlabel(column)
        _label_counts(axes, "patients")
        axes.spines[["top", "right"]].set_visible(False)
