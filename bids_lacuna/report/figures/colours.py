"""How the values of a map become colours, and the bar that explains them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize

from bids_lacuna.report.figures.volumes import Volume

# Without a window, whatever the user's settings are.
mpl.use("agg")

Array = np.ndarray

HIDDEN_COLOUR = (0.75, 0.75, 0.75, 1.0)
"""On the colour bar, of what is not shown."""

VMAX_QUANTILE = 0.995
"""The colours end there: a lesion's own voxels would leave all others pale."""


def minus_sign(number: str) -> str:
    """Write a number with a minus, not a hyphen."""
    return number.replace("-", "\N{MINUS SIGN}")


def two_digits(value: float) -> str:
    """Write a number at a colour bar."""
    return minus_sign(f"{value:.2g}")


@dataclass(frozen=True)
class Scale:
    """How the values of a map become colours."""

    colours: Colormap
    limits: Normalize
    """The values at the ends of the colours; from 0 on, or as far below it as above."""
    name: str
    """Above the colour bar; "" where no bar is needed."""
    threshold: float = 0
    """Voxels whose size is above it are shown."""
    write: Callable[[float], str] = two_digits
    """Writes the numbers at the colour bar."""


def one_colour_scale(colour: str) -> Scale:
    """Choose how a mask is drawn."""
    return Scale(ListedColormap([colour]), Normalize(0, 1), "")


def two_sided_scale(volume: Volume, threshold: float, name: str) -> Scale:
    """Choose how a map of positive and negative values is drawn."""
    limit = colour_limit(volume, threshold)
    return Scale(two_sided_colours(limit, threshold), Normalize(-limit, limit), name, threshold)


def colour_limit(volume: Volume, threshold: float) -> float:
    """Choose the value at the end of a map's colours; they end at minus that value on the other side."""
    sizes = np.abs(volume.values[np.isfinite(volume.values)])
    high = float(np.quantile(sizes, VMAX_QUANTILE)) if sizes.size else 1.0
    # A threshold beyond nearly all voxels still needs colours for the others.
    return max(high, 1.25 * threshold, 1e-6)


def two_sided_colours(limit: float, threshold: float) -> ListedColormap:
    """Choose a map's colours: they darken from the threshold on, so that the strongest voxels show on white, too."""
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
    """Draw the colours, and the threshold's line and number, on both sides where there are two."""
    low, high, threshold = scale.limits.vmin or 0, scale.limits.vmax or 0, scale.threshold
    bar = axes.figure.colorbar(ScalarMappable(scale.limits, scale.colours), cax=axes, extend="both" if low else None)
    ticks = _two_sided_ticks(high, threshold) if low else np.linspace(0, high, 5).tolist()
    for edge in (-threshold, threshold) if low else ():
        axes.axhline(edge, color="black", linewidth=2)
    bar.set_ticks(ticks, labels=[scale.write(tick) for tick in ticks])
    axes.tick_params(labelsize=11)
    axes.set_title(scale.name, fontsize=12, pad=16)


def _two_sided_ticks(high: float, threshold: float) -> list[float]:
    between = (threshold + high) / 2
    wanted = [-high, -between, -threshold, threshold, between, high]
    # Numbers closer to each other than this would overlap.
    gap = high / 6
    ticks = [-threshold, threshold] if 2 * threshold > gap else [threshold]
    return sorted(ticks + [tick for tick in wanted if all(abs(tick - other) > gap for other in ticks)])
