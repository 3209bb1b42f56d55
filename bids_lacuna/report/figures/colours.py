"""Colour scales of maps, and colour bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize

from bids_lacuna.report.figures.volumes import Volume

# Draw without a window, whatever the user's settings are.
mpl.use("agg")

Array = np.ndarray

HIDDEN_COLOUR = (0.75, 0.75, 0.75, 1.0)
"""RGBA on the colour bar of values that are not shown."""

VMAX_QUANTILE = 0.995
"""Quantile at which the colours end: a lesion's own voxels would leave all others pale."""


def minus_sign(number: str) -> str:
    """Replace the hyphen of a negative number with a minus sign."""
    return number.replace("-", "\N{MINUS SIGN}")


def two_digits(value: float) -> str:
    """Return a number with two significant digits."""
    return minus_sign(f"{value:.2g}")


@dataclass(frozen=True)
class Scale:
    """The colours of a map's values."""

    colours: Colormap
    limits: Normalize
    """The values at both ends of the colours: from 0 or symmetric around it."""
    name: str
    """Title of the colour bar; "" for no bar."""
    threshold: float = 0
    """Voxels with a greater absolute value are shown."""
    tick_label: Callable[[float], str] = two_digits
    """Formats the numbers of the colour bar."""
    ticks: Sequence[float] = ()
    """Numbers of the colour bar of a scale from 0; those of a symmetric one follow from the threshold."""


def one_colour_scale(colour: str) -> Scale:
    """Return the scale of a mask: a single colour without a bar."""
    return Scale(ListedColormap([colour]), Normalize(0, 1), "")


def two_sided_scale(volume: Volume, threshold: float, name: str) -> Scale:
    """Return the scale of a map with positive and negative values."""
    limit = colour_limit(volume, threshold)
    return Scale(two_sided_colours(limit, threshold), Normalize(-limit, limit), name, threshold)


def colour_limit(volume: Volume, threshold: float) -> float:
    """Choose the value at which a map's colours end, on both sides of 0."""
    sizes = np.abs(volume.values[np.isfinite(volume.values)])
    high = float(np.quantile(sizes, VMAX_QUANTILE)) if sizes.size else 1.0
    # Where a threshold exceeds nearly all voxels, the others still need colours.
    return max(high, 1.25 * threshold, 1e-6)


def two_sided_colours(limit: float, threshold: float) -> ListedColormap:
    """Return a map's colours, which darken from the threshold, so that the strongest voxels are visible on white."""
    values = np.linspace(-limit, limit, 256)
    strength = np.clip((np.abs(values) - threshold) / (limit - threshold), 0, 1)
    colours = np.where(
        values[:, np.newaxis] < 0,
        mpl.colormaps["Blues"](0.35 + 0.65 * strength),
        mpl.colormaps["YlOrRd"](0.25 + 0.75 * strength),
    )
    colours[np.abs(values) < threshold] = HIDDEN_COLOUR
    return ListedColormap(colours)


def draw_colour_bar(axes: Axes, scale: Scale) -> None:
    """Draw the colour bar, with a line at each threshold."""
    low, high, threshold = scale.limits.vmin or 0, scale.limits.vmax or 0, scale.threshold
    bar = axes.figure.colorbar(ScalarMappable(scale.limits, scale.colours), cax=axes, extend="both" if low else None)
    ticks = _two_sided_ticks(high, threshold) if low else list(scale.ticks)
    for edge in (-threshold, threshold) if low else ():
        axes.axhline(edge, color="black", linewidth=2)
    bar.set_ticks(ticks, labels=[scale.tick_label(tick) for tick in ticks])
    axes.tick_params(labelsize=11)
    axes.set_title(scale.name, fontsize=12, pad=16)


def _two_sided_ticks(high: float, threshold: float) -> list[float]:
    between = (threshold + high) / 2
    wanted = [-high, -between, -threshold, threshold, between, high]
    # Numbers that are closer than this would overlap.
    gap = high / 6
    ticks = [-threshold, threshold] if 2 * threshold > gap else [threshold]
    return sorted(ticks + [tick for tick in wanted if all(abs(tick - other) > gap for other in ticks)])
