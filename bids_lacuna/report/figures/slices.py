"""Slices of the template, of maps and of lesions, as arrays of palette indices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil

import numpy as np

from bids_lacuna.report.figures.colours import (
    BLACK,
    GREYS,
    HATCH,
    LESION,
    N_GREYS,
    OUTLINE,
    WHITE,
    Scale,
)
from bids_lacuna.report.figures.volumes import LesionShape, Volume, fine_template

Array = np.ndarray

BOX_MM = ((-80.0, 80.0), (-109.0, 77.0), (-74.0, 86.0))
"""Extent of the drawn part of the template along x, y and z."""

OFFSET_PIXELS = 0.25
"""Position of a pixel's point: with it, no edge of a voxel at whole millimetres falls onto a point."""

FAINTEST = 0.05
"""The template is 0 outside the brain: below this it is drawn as white as the page."""

HATCH_PIXELS = 6
"""Distance between the lines of a hatching, of which a half is drawn."""

MARK_PIXELS = (6, 15)
"""Distances of the ends of a mark's lines from its middle."""

N_CACHED = 256
"""Slices of the template in memory, of up to 80 kB."""


@dataclass(frozen=True)
class Plane:
    """A slice through the drawn part of the template, from the top of the head or the forehead, left on the left."""

    axis: int
    """0 for a sagittal, 1 for a coronal, 2 for an axial slice."""
    cut: float
    """Position along that axis in mm."""
    scale: float = 1
    """Pixels per mm."""

    @property
    def drawn_axes(self) -> tuple[int, int]:
        """Axes across and up the slice."""
        across, up = (axis for axis in range(3) if axis != self.axis)
        return across, up

    @cached_property
    def points(self) -> tuple[Array, Array, Array]:
        """x, y and z in mm of the pixels, as a row, a column and a number, in the order of their axes."""
        across, up = self.drawn_axes
        coordinates = [np.full((1, 1), self.cut)] * 3
        for axis in (across, up):
            low, high = BOX_MM[axis]
            steps = np.arange(round((high - low) * self.scale))
            coordinates[axis] = low + (steps + OFFSET_PIXELS) / self.scale
        coordinates[across] = coordinates[across][np.newaxis]
        coordinates[up] = coordinates[up][::-1, np.newaxis]
        x, y, z = coordinates
        return x, y, z

    def pixel(self, point_mm: tuple[float, float, float]) -> tuple[int, int]:
        """Return the row and the column of a point."""
        across, up = self.drawn_axes
        row = np.abs(self.points[up][:, 0] - point_mm[up]).argmin()
        return int(row), int(np.abs(self.points[across][0] - point_mm[across]).argmin())


@lru_cache(maxsize=N_CACHED)
def background(plane: Plane) -> Array:
    """Return a slice of the template, interpolated linearly: shape (rows, columns)."""
    fine = fine_template()
    # Axes reversed, in the order of the memory: NumPy would copy the whole template for each slice.
    values = fine.values.T
    # The plane's own axis first: what remains is small.
    for axis in sorted(range(3), key=lambda axis: axis != plane.axis):
        voxels = fine.to_voxels[axis, axis] * plane.points[axis].ravel() + fine.to_voxels[axis, 3]
        values = _interpolate(values, 2 - axis, voxels)
    return shade(np.squeeze(values, 2 - plane.axis))


def _interpolate(values: Array, axis: int, voxels: Array) -> Array:
    """Interpolate linearly between the slices of an array, at indices along an axis."""
    last = values.shape[axis] - 1
    voxels = np.clip(voxels, 0, last)
    below = np.floor(voxels).astype(np.intp)
    low, high = (
        np.take(values, places, axis).astype(np.float32, copy=False)
        for places in (below, np.minimum(below + 1, last))
    )
    high -= low
    high *= (voxels - below).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(3)])
    return low + high


def shade(brightness: Array) -> Array:
    """Return the template's greys for its brightness from 0 to 255."""
    fractions = np.clip(brightness / 255, 0, 1)
    greys = GREYS + np.rint(fractions * (N_GREYS - 1)).astype(np.uint8)
    return np.where(fractions > FAINTEST, greys, WHITE).astype(np.uint8)


def draw_slice(plane: Plane, volume: Volume, scale: Scale, outline: LesionShape | Volume | None = None) -> Array:
    """Draw the shown voxels of a map over the template, and an outline: shape (rows, columns).

    Parameters
    ----------
    outline
        Lesion, or boolean volume of a region.
    """
    colours = scale.indices(volume.sample(plane.points, outside=np.nan))
    picture = np.where(colours, colours, background(plane))
    if outline is not None:
        inside = outline.sample(plane.points) if isinstance(outline, Volume) else _inside(plane, outline)
        if inside.any():
            picture[edge(inside, plane.scale)] = OUTLINE
    return picture


def draw_lesion_slice(plane: Plane, lesion: LesionShape, volume: Volume | None = None) -> Array:
    """Draw a lesion over the template, hatched where a map is undefined: shape (rows, columns)."""
    inside, picture = _inside(plane, lesion), background(plane).copy()
    picture[inside] = LESION
    if volume is not None:
        undefined = inside & ~np.isfinite(volume.sample(plane.points, outside=np.nan))
        rows, columns = np.nonzero(undefined)
        lines = (rows + columns) % HATCH_PIXELS < HATCH_PIXELS // 2
        picture[rows[lines], columns[lines]] = HATCH
        picture[edge(inside, plane.scale)] = LESION
    return picture


def _inside(plane: Plane, lesion: LesionShape) -> Array:
    """Return which pixels lie in a lesion: shape (rows, columns), boolean."""
    inside = lesion.mask.sample(plane.points)
    drawn = all(low <= at < high for at, (low, high) in zip(lesion.centre_mm, BOX_MM, strict=True))
    if drawn and plane.cut == lesion.centre_mm[plane.axis]:
        # A voxel smaller than the pixels may lie between their points.
        inside[plane.pixel(lesion.centre_mm)] = True
    return inside


def edge(inside: Array, thickness: float) -> Array:
    """Return the pixels around a shape, up to a thickness in pixels, rounded up."""
    grown = inside
    for _ in range(ceil(thickness)):
        grown = _grow(grown)
    return grown & ~inside


def _grow(inside: Array) -> Array:
    """Add the neighbours above, below, left and right."""
    grown = inside.copy()
    grown[1:] |= inside[:-1]
    grown[:-1] |= inside[1:]
    grown[:, 1:] |= inside[:, :-1]
    grown[:, :-1] |= inside[:, 1:]
    return grown


def mark(picture: Array, row: int, column: int) -> None:
    """Draw four short lines towards a pixel, black on white."""
    for ink, width, (first, last) in ((WHITE, 1, MARK_PIXELS), (BLACK, 0, (MARK_PIXELS[0] + 1, MARK_PIXELS[1] - 1))):
        for low, high in ((-last, -first), (first, last)):
            picture[max(0, row + low) : max(0, row + high + 1), column - width : column + width + 1] = ink
            picture[row - width : row + width + 1, max(0, column + low) : max(0, column + high + 1)] = ink
