"""Pictures of maps and lesions on the MNI template: sheets of slices and glass brains.

Left is on the left in all of them, and labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_lacuna.report.figures.colours import (
    NO_SCALE,
    WHITE,
    Scale,
    minus_sign,
    one_sided_scale,
    two_sided_scale,
)
from bids_lacuna.report.figures.glass import VIEWS, draw_view, sample_on_template
from bids_lacuna.report.figures.sheets import BAR_PIXELS, Sheet, wrap
from bids_lacuna.report.figures.slices import Plane, draw_lesion_slice, draw_slice, mark
from bids_lacuna.report.figures.volumes import LesionShape, Volume

Array = np.ndarray

Point = tuple[float, float, float]

N_CUTS = 7
"""Slices per row of a mosaic."""

CLOSEST_CUTS = 2
"""Distance in mm of the slices of a small lesion."""

WHOLE_BRAIN_CUTS = (
    (-60.0, -42, -24, -6, 12, 30, 48),
    (-90.0, -66, -42, -18, 6, 30, 54),
    (-42.0, -24, -6, 12, 30, 48, 66),
)
"""x, y and z in mm of a group map's slices, the same for all maps so that they can be compared."""

CELL_PIXELS = 186
"""Width of each slice of a mosaic, that of the widest, so that the slices of all planes are aligned."""

LABEL_PIXELS = 22
"""Height of a line of text above or below slices."""

TITLE_PIXELS = 56
"""Height above a group's slices, for a title of two lines."""

LINE_PIXELS = 24
"""Height of each line of a title."""

VIEW_SCALE = 1.5
"""Pixels per mm of the slices through a point."""

GAP_PIXELS = 8
"""Distance between slices, and between rows."""

TILE_SCALE = 0.5
"""Pixels per mm of a tile."""

TILE_HEIGHT = 96
"""Pixels; the group's page shows as many of a sheet of tiles."""


SIDES = (("P", "A"), ("L", "R"), ("L", "R"))
"""Letters at the left and right of a sagittal, a coronal and an axial slice."""

GLASS_TITLE = "Whole brain: the strongest value along each line of sight"


@dataclass(frozen=True)
class Row:
    """Three orthogonal slices through a point."""

    name: str
    """Printed above the slices: "highest r outside the lesion: 0.42"."""
    point_mm: Point


@dataclass(frozen=True)
class _Panel:
    """One slice, or one view of a glass brain."""

    picture: Array
    label: str
    sides: tuple[str, str]


@dataclass(frozen=True)
class _Strip:
    """Panels beside each other."""

    panels: Sequence[_Panel]
    cell_width: int = 0
    """Pixels of each panel's cell; 0 for the panel's own width and a gap."""
    title: str = ""

    @property
    def widths(self) -> list[int]:
        """Pixels of each panel's cell."""
        return [self.cell_width or panel.picture.shape[1] + GAP_PIXELS for panel in self.panels]

    @property
    def slices_height(self) -> int:
        """Pixels of the tallest panel."""
        return max(len(panel.picture) for panel in self.panels)

    @property
    def height(self) -> int:
        """Pixels, with the title and the labels."""
        return self.slices_height + LABEL_PIXELS + (LABEL_PIXELS + GAP_PIXELS if self.title else 0)

    def paste(self, sheet: Sheet, top: int) -> None:
        """Put the panels onto a sheet, with their labels."""
        if self.title:
            sheet.write(self.title, GAP_PIXELS, top + GAP_PIXELS, bold=True)
            top += LABEL_PIXELS + GAP_PIXELS
        left = 0
        for panel, width in zip(self.panels, self.widths, strict=True):
            rows, columns = panel.picture.shape
            first_row = top + (self.slices_height - rows) // 2
            first_column = left + (width - columns) // 2
            sheet.paste(panel.picture, first_column, first_row)
            for letter, column, anchor in zip(panel.sides, (2, columns - 2), ("la", "ra"), strict=True):
                sheet.write(letter, first_column + column, first_row + 1, anchor, bold=True)
            sheet.write(panel.label, first_column + columns // 2, top + self.slices_height + 2, "ma")
            left += width


def lesion_cuts(lesion: LesionShape) -> tuple[float, ...]:
    """Choose axial slices from one end of the lesion to the other, with its centre in the middle."""
    centre, low, high = lesion.centre_mm[2], lesion.low_mm[2], lesion.high_mm[2]
    n_beside = N_CUTS // 2
    below = np.linspace(min(low, centre - CLOSEST_CUTS * n_beside), centre, n_beside + 1)
    above = np.linspace(centre, max(high, centre + CLOSEST_CUTS * n_beside), n_beside + 1)
    return (*np.rint(below[:-1]).tolist(), centre, *np.rint(above[1:]).tolist())


def draw_lesion(path: Path, lesion: LesionShape, volume: Volume | None = None) -> None:
    """Draw axial slices of a lesion on the template, hatched where a map is undefined."""
    planes = [Plane(2, cut) for cut in lesion_cuts(lesion)]
    panels = [_panel(plane, draw_lesion_slice(plane, lesion, volume)) for plane in planes]
    _draw(path, [_Strip(panels, CELL_PIXELS)], NO_SCALE)


def draw_views(
    path: Path, volume: Volume, scale: Scale, rows: Sequence[Row], outline: LesionShape | None = None
) -> None:
    """Draw three orthogonal slices of a map through each of some points, and its glass brain.

    A mask, whose scale has no name, has no strongest values, and so no glass brain.

    Parameters
    ----------
    rows
        The points, marked in the slices.
    outline
        Lesion whose outline is drawn.
    """
    strips = []
    for row in rows:
        planes = [Plane(axis, cut, VIEW_SCALE) for axis, cut in enumerate(row.point_mm)]
        pictures = [draw_slice(plane, volume, scale, outline) for plane in planes]
        for plane, picture in zip(planes, pictures, strict=True):
            mark(picture, *plane.pixel(row.point_mm))
        panels = [_panel(plane, picture) for plane, picture in zip(planes, pictures, strict=True)]
        strips.append(_Strip(panels, title=row.name))
    if scale.name:
        on_template = sample_on_template(volume)
        glass = [_Panel(draw_view(view, on_template, scale), view.name, view.sides) for view in VIEWS]
        strips.append(_Strip(glass, title=GLASS_TITLE))
    _draw(path, strips, scale)


def draw_map(
    path: Path,
    volume: Volume,
    threshold: float,
    name: str,
    title: tuple[str, str],
    outline: Volume | None = None,
) -> None:
    """Draw a map's voxels beyond a threshold on slices of the whole template.

    Parameters
    ----------
    name
        Name of the statistic, for the colour bar.
    title
        As for `draw_overlap`.
    outline
        Boolean volume of a region whose outline is drawn.
    """
    _draw_whole_brain(path, volume, two_sided_scale(volume, threshold, name), title, outline)


def draw_overlap(
    path: Path,
    volume: Volume,
    ticks: Sequence[float],
    name: str,
    tick_label: Callable[[float], str],
    title: tuple[str, str],
) -> None:
    """Draw the voxels above 0 of a map of counts or fractions on slices of the whole template.

    Parameters
    ----------
    ticks
        Numbers on the colour bar, from 0 to the end of the colours.
    name
        Title of the colour bar.
    tick_label
        Formats the numbers of the colour bar.
    title
        What the picture shows, and a sentence about what it does not show; both are printed above the slices.
    """
    _draw_whole_brain(path, volume, one_sided_scale(ticks, name, tick_label), title)


def _draw_whole_brain(
    path: Path, volume: Volume, scale: Scale, title: tuple[str, str], outline: Volume | None = None
) -> None:
    strips = []
    for axis, cuts in enumerate(WHOLE_BRAIN_CUTS):
        planes = [Plane(axis, cut) for cut in cuts]
        panels = [_panel(plane, draw_slice(plane, volume, scale, outline)) for plane in planes]
        strips.append(_Strip(panels, CELL_PIXELS))
    _draw(path, strips, scale, title)


def _panel(plane: Plane, picture: Array) -> _Panel:
    return _Panel(picture, f"{'xyz'[plane.axis]} = {minus_sign(str(round(plane.cut)))}", SIDES[plane.axis])


def _draw(path: Path, strips: Sequence[_Strip], scale: Scale, title: Sequence[str] = ()) -> None:
    """Draw strips one below the other, with a colour bar if the scale has a name."""
    width = max(sum(strip.widths) for strip in strips)
    whole_width = width + (BAR_PIXELS if scale.name else 0)
    lines = [
        (line, not number)
        for number, text in enumerate(title)
        for line in wrap(text, whole_width - 2 * GAP_PIXELS, bold=not number)
    ]
    top = TITLE_PIXELS + LINE_PIXELS * max(0, len(lines) - 2) if title else 0
    sheet = Sheet(whole_width, top + sum(strip.height for strip in strips))
    for number, (line, bold) in enumerate(lines):
        sheet.write(line, GAP_PIXELS, 6 + LINE_PIXELS * number, bold=bold)
    for strip in strips:
        strip.paste(sheet, top)
        top += strip.height
    if scale.name:
        sheet.draw_colour_bar(scale, width + 24)
    sheet.save(path, scale)


def draw_tiles(path: Path, lesions: Sequence[LesionShape]) -> tuple[int, int]:
    """Draw small pictures of lesions, one below the other, each with three slices through the lesion's centre.

    Returns
    -------
    width, height
        Pixels of one of them.
    """
    tiles = [_tile(lesion) for lesion in lesions]
    height, width = tiles[0].shape
    sheet = Sheet(width, height * len(tiles))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, 0, number * height)
    sheet.save(path, NO_SCALE)
    return width, height


def _tile(lesion: LesionShape) -> Array:
    """Draw the slices in cells of the same width."""
    planes = [Plane(axis, cut, TILE_SCALE) for axis, cut in enumerate(lesion.centre_mm)]
    slices = [draw_lesion_slice(plane, lesion) for plane in planes]
    width = round(CELL_PIXELS * TILE_SCALE)
    tile = np.full((TILE_HEIGHT, 3 * width), WHITE, np.uint8)
    for number, each in enumerate(slices):
        left = number * width + (width - each.shape[1]) // 2
        tile[: len(each), left : left + each.shape[1]] = each
    return tile
