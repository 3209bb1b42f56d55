"""Colours of pictures: the palette that all sheets of slices share, and the scales of maps.

A picture of slices is an array of palette indices from the first slice to the PNG file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bids_lacuna.report.figures.volumes import Volume

Array = np.ndarray

N_INKS = 16
"""Palette indices of text, from white (0) to black."""

WHITE, BLACK = 0, N_INKS - 1

N_GREYS = 48
"""Shades of grey of the template. Few make small files."""

GREYS = N_INKS
"""Palette index of the template's darkest grey."""

LESION, HATCH, OUTLINE, HIDDEN = range(GREYS + N_GREYS, GREYS + N_GREYS + 4)
"""Palette indices of the lesion, of the hatching where the connectome does not cover it, of outlines on a map
(green: neither hot nor cold), and of values on the colour bar that are not shown."""

FIRST_COLOUR = HIDDEN + 1
"""Palette index of a scale's first colour."""

N_COLOURS = 2 * ((256 - FIRST_COLOUR) // 2)
"""Colours of a scale."""

VMAX_QUANTILE = 0.995
"""Quantile at which the colours end: a lesion's own voxels would leave all others pale."""

HOT = ("ffffcc", "ffeda0", "fed976", "feb24c", "fd8d3c", "fc4e2a", "e31a1c", "bd0026", "800026")
"""ColorBrewer's YlOrRd."""

COLD = ("f7fbff", "deebf7", "c6dbef", "9ecae1", "6baed6", "4292c6", "2171b5", "08519c", "08306b")
"""ColorBrewer's Blues."""

ABOVE_COLOUR, BELOW_COLOUR = "e66101", "2171b5"
"""Colours of a binary map where the statistic is positive and where it is negative."""


def minus_sign(number: str) -> str:
    """Replace the hyphen of a negative number with a minus sign."""
    return number.replace("-", "\N{MINUS SIGN}")


def two_digits(value: float) -> str:
    """Return a number with two significant digits."""
    return minus_sign(f"{value:.2g}")


def blend(anchors: Sequence[str], places: Array) -> Array:
    """Return colours between equally spaced ones.

    Parameters
    ----------
    anchors
        Colours in hexadecimal digits: "ffffcc".
    places : shape (n,)
        From 0, the first anchor, to 1, the last.

    Returns
    -------
    shape (n, 3), uint8
        Red, green and blue.
    """
    known = np.array([list(bytes.fromhex(anchor)) for anchor in anchors], float)
    along = np.linspace(0, 1, len(known))
    channels = [np.interp(places, along, channel) for channel in known.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


@dataclass(frozen=True)
class Scale:
    """The colours of a map's values."""

    colours: Array
    """Shape (n, 3), uint8: from the lowest value to the highest."""
    limit: float
    """The value at which the colours end; on a two-sided scale its negative, too."""
    name: str
    """Title of the colour bar; "" for no bar."""
    threshold: float = 0
    """Voxels with a greater absolute value are shown."""
    two_sided: bool = False
    """Whether half of the colours are those of values below minus the threshold."""
    tick_label: Callable[[float], str] = two_digits
    """Formats the numbers of the colour bar."""
    ticks: Sequence[float] = ()
    """Numbers of the colour bar of a scale from 0; those of a two-sided one follow from the threshold."""

    def indices(self, values: Array) -> Array:
        """Return the palette index of each value, and 0 for values that are not shown."""
        n = len(self.colours) // 2 if self.two_sided else len(self.colours)
        strength = np.abs(values) if self.two_sided else values
        with np.errstate(invalid="ignore"):
            level = np.minimum((strength - self.threshold) * (n / (self.limit - self.threshold)), n - 1)
            shown = strength > self.threshold
        # The cast of NaN, which is not shown, is undefined.
        level = np.where(shown, level, 0).astype(np.uint8)
        if self.two_sided:
            level = np.where(values < 0, n - 1 - level, n + level)
        return np.where(shown, FIRST_COLOUR + level, 0).astype(np.uint8)


NO_SCALE = Scale(np.zeros((0, 3), np.uint8), 1, "")
"""Scale of a picture that shows no map."""


def two_colour_scale() -> Scale:
    """Return the scale of a mask of -1 and 1: a colour of each sign, without a bar."""
    colours = [blend([colour, colour], np.zeros(1)) for colour in (BELOW_COLOUR, ABOVE_COLOUR)]
    return Scale(np.concatenate(colours), 1, "", two_sided=True)


def one_sided_scale(ticks: Sequence[float], name: str, tick_label: Callable[[float], str]) -> Scale:
    """Return the scale of counts or fractions above 0; `ticks` ends at the end of the colours."""
    # Without the palest colours, which look like the background.
    colours = blend(HOT, np.linspace(0.2, 1, N_COLOURS))
    return Scale(colours, ticks[-1], name, tick_label=tick_label, ticks=ticks)


def two_sided_scale(volume: Volume, threshold: float, name: str) -> Scale:
    """Return the scale of a map with positive and negative values."""
    return Scale(two_sided_colours(N_COLOURS // 2), colour_limit(volume, threshold), name, threshold, two_sided=True)


def two_sided_colours(n: int) -> Array:
    """Return the colours of a map with positive and negative values.

    They darken from the threshold, so that the strongest voxels are visible on white.

    Parameters
    ----------
    n
        Colours of each sign.

    Returns
    -------
    shape (2 n, 3), uint8
        From the strongest negative value to the threshold, then from the threshold to the strongest positive value.
    """
    strength = np.linspace(0, 1, n)
    return np.concatenate([blend(COLD, 0.35 + 0.65 * strength)[::-1], blend(HOT, 0.25 + 0.75 * strength)])


def colour_limit(volume: Volume, threshold: float) -> float:
    """Choose the value at which a map's colours end, on both sides of 0."""
    sizes = np.abs(volume.defined)
    high = float(np.quantile(sizes, VMAX_QUANTILE)) if sizes.size else 1.0
    # Where a threshold exceeds nearly all voxels, the others still need colours.
    return max(high, 1.25 * threshold, 1e-6)


def palette(scale: Scale) -> Array:
    """Return the colours of a picture: shape (n, 3), uint8."""
    inks, greys = (np.repeat(ramp[:, np.newaxis], 3, axis=1) for ramp in (_inks(), _greys()))
    marks = [list(bytes.fromhex(colour)) for colour in ("d7191c", "ffffff", "00ff00", "bfbfbf")]
    return np.concatenate([inks, greys, np.array(marks), scale.colours]).astype(np.uint8)


def _inks() -> Array:
    return np.linspace(255, 0, N_INKS).round()


def _greys() -> Array:
    return np.linspace(0.15 * 255, 0.9 * 255, N_GREYS).round()


def two_sided_ticks(high: float, threshold: float) -> list[float]:
    """Choose the numbers of a two-sided colour bar; those of both thresholds would overlap near 0."""
    between = (threshold + high) / 2
    lower = [-high, -between, -threshold]
    return [*lower[: 3 if 2 * threshold > high / 6 else 2], threshold, between, high]
