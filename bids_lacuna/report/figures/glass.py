"""Glass brains: the strongest value along each line of sight, over the outline of the template."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from bids_lacuna.report.figures.colours import N_INKS, WHITE, Scale
from bids_lacuna.report.figures.slices import FAINTEST, Plane, edge
from bids_lacuna.report.figures.volumes import Volume, template

Array = np.ndarray

FAINT, SOFT = 1, N_INKS // 2
"""Inks of the inside and of the outline of the brain."""


@dataclass(frozen=True)
class View:
    """A direction from which a brain is seen."""

    name: str
    axis: int
    half: int = 0
    """-1 for the left half, 1 for the right half, 0 for both."""
    sides: tuple[str, str] = ("L", "R")
    """Letters at the left and right."""


VIEWS = (
    View("left half, from the left", 0, -1, ("A", "P")),
    View("from the back", 1),
    View("right half, from the right", 0, 1, ("P", "A")),
    View("from above", 2),
)


def sample_on_template(volume: Volume) -> Volume:
    """Return a map's values at the voxels of the template at 2 mm, and 0 where they are undefined."""
    grid = template()
    points = [grid.affine[axis, axis] * steps + grid.affine[axis, 3] for axis, steps in enumerate(_steps(grid))]
    values = volume.sample(points, outside=0)
    return Volume(np.where(np.isfinite(values), values, 0), grid.affine)


def _steps(grid: Volume) -> list[Array]:
    return list(np.ogrid[tuple(map(slice, grid.values.shape))])


def draw_view(view: View, on_template: Volume, scale: Scale) -> Array:
    """Draw a map as seen from one direction, a pixel per mm.

    Parameters
    ----------
    on_template
        From `sample_on_template`.

    Returns
    -------
    shape (rows, columns)
        Palette indices.
    """
    values = on_template.values[_half(view.half)]
    highest, lowest = values.max(axis=view.axis), values.min(axis=view.axis)
    strongest = np.where(highest >= -lowest, highest, lowest)
    colours = scale.indices(_to_pixels(view, strongest))
    return np.where(colours, colours, _empty(view))


def _half(half: int) -> tuple[slice, ...]:
    x = template().affine[0, 0] * np.arange(template().values.shape[0]) + template().affine[0, 3]
    chosen = np.flatnonzero(half * x > 0) if half else np.arange(len(x))
    return (slice(int(chosen[0]), int(chosen[-1]) + 1),)


def _to_pixels(view: View, flat: Array) -> Array:
    """Return the nearest values of a projection at the pixels of a view."""
    plane = Plane(view.axis, 0)
    across, up = plane.drawn_axes
    affine = template().affine
    indices = []
    for axis, n in ((across, flat.shape[0]), (up, flat.shape[1])):
        voxels = np.rint((plane.points[axis].ravel() - affine[axis, 3]) / affine[axis, axis]).astype(int)
        indices.append(np.clip(voxels, 0, n - 1))
    picture = flat.T[np.ix_(indices[1], indices[0])]
    # From the left, the forehead is on the left.
    return picture[:, ::-1] if view.half < 0 else picture


@cache
def _empty(view: View) -> Array:
    """Return the brain without a map."""
    inside = _to_pixels(view, template().values[_half(view.half)].max(axis=view.axis) > FAINTEST)
    picture = np.where(inside, FAINT, WHITE).astype(np.uint8)
    picture[edge(inside, 1)] = SOFT
    return picture
