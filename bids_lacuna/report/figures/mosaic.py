"""Pictures of volumes on the MNI template: slices and glass brains.

Left is on the left in all of them, and labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from nilearn import plotting
from nilearn.plotting.displays import OrthoProjector
from PIL import Image
from scipy.ndimage import binary_erosion

from bids_lacuna.files import renamed_when_whole
from bids_lacuna.report.figures.colours import Scale, draw_colour_bar, minus_sign, one_colour_scale, two_sided_scale
from bids_lacuna.report.figures.png import PIXELS_PER_INCH, reduce_colours, save_figure
from bids_lacuna.report.figures.volumes import LesionShape, Volume, template

Array = np.ndarray

N_CUTS = 7
"""Slices per plane in a mosaic."""

WHOLE_BRAIN_CUTS = (
    (-60.0, -42, -24, -6, 12, 30, 48),
    (-90.0, -66, -42, -18, 6, 30, 54),
    (-42.0, -24, -6, 12, 30, 48, 66),
)
"""x, y and z in mm of a map's slices, the same for all maps so that they can be compared."""

BOX_MM = ((-80.0, 80.0), (-112.0, 80.0), (-74.0, 86.0))
"""Extent of the drawn part of the template along x, y and z."""

PANEL_PIXELS = 186
"""Width of every slice, that of the widest, so that the slices of all planes are aligned."""

LABEL_PIXELS = 22
"""Height below each row of slices, for their coordinates."""

BAR_PIXELS = 140
"""Width beside the slices, for the colour bar and its numbers."""

SIDE_PIXELS = 66
"""Distance from the middle of a slice to the letter of the side."""

N_GREYS = 48
"""Shades of grey of the template."""

TITLE_PIXELS = 56
"""Height above a group's slices, for the title."""

TILE = 2
"""Pixels of a slice along each edge of a tile's pixel."""

N_TILE_COLOURS = 32
"""Colours of a sheet of tiles."""

LESION_COLOUR = "#d7191c"

OUTLINE_COLOUR = "#00ff00"
"""Colour of the lesion's outline on a map: neither hot nor cold."""

ABOVE_COLOUR = "#e66101"


def lesion_cuts(lesion: LesionShape) -> tuple[tuple[float, ...], ...]:
    """Choose slices from one end of the lesion to the other, with its centre in the middle."""
    cuts = []
    for centre, low, high in zip(lesion.centre_mm, lesion.low_mm, lesion.high_mm, strict=True):
        half = N_CUTS // 2
        step = max(2, round(max(centre - low, high - centre) / half))
        cuts.append(tuple(round(centre) + step * number for number in range(-half, half + 1)))
    return tuple(cuts)


def draw_lesion(path: Path, lesion: LesionShape) -> None:
    """Draw a lesion on the template."""
    _draw_mosaic(path, lesion_cuts(lesion), _overlay(lesion), one_colour_scale(LESION_COLOUR))


def _overlay(lesion: LesionShape) -> Volume:
    return Volume(lesion.mask.values.astype(np.float32), lesion.mask.affine)


def draw_binary_map(path: Path, volume: Volume, lesion: LesionShape | None) -> None:
    """Draw the mask of |t| above a threshold, and the lesion's outline."""
    _draw_mosaic(path, WHOLE_BRAIN_CUTS, volume, one_colour_scale(ABOVE_COLOUR), outline=lesion)


def draw_map(
    path: Path,
    volume: Volume,
    threshold: float,
    name: str,
    lesion: LesionShape | None = None,
    title: tuple[str, str] | None = None,
) -> None:
    """Draw a map's voxels beyond a threshold on the template, and the lesion's outline.

    Parameters
    ----------
    name
        Name of the statistic, for the colour bar.
    title
        As for `draw_overlap`.
    """
    _draw_mosaic(path, WHOLE_BRAIN_CUTS, volume, two_sided_scale(volume, threshold, name), lesion, title)


def draw_overlap(
    path: Path,
    volume: Volume,
    ticks: Sequence[float],
    name: str,
    tick_label: Callable[[float], str],
    title: tuple[str, str],
) -> None:
    """Draw the voxels above 0 of a map of counts or fractions on the template.

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
    # Without the palest colours, which look like the background.
    colours = ListedColormap(mpl.colormaps["YlOrRd"](np.linspace(0.2, 1, 256)))
    scale = Scale(colours, Normalize(0, ticks[-1]), name, tick_label=tick_label, ticks=ticks)
    _draw_mosaic(path, WHOLE_BRAIN_CUTS, volume, scale, title=title)


def draw_tiles(path: Path, lesions: Sequence[LesionShape]) -> tuple[int, int]:
    """Draw small pictures of lesions, one below the other, each with three slices through the lesion's centre.

    Returns
    -------
    width, height
        Pixels of one of them.
    """
    tiles = [_tile(lesion) for lesion in lesions]
    picture = Image.fromarray((255 * np.concatenate(tiles)).astype(np.uint8))
    with renamed_when_whole(path) as temporary:
        reduce_colours(picture, N_TILE_COLOURS).save(temporary, format="png")
    height, width = tiles[0].shape[:2]
    return width, height


def _tile(lesion: LesionShape) -> Array:
    scale, overlay = one_colour_scale(LESION_COLOUR), _overlay(lesion)
    slices = [_slice(axis, cut, overlay, scale, None) for axis, cut in enumerate(lesion.centre_mm)]
    height = max(len(each) for each in slices)
    fine = np.concatenate(
        [np.pad(each, ((0, height - len(each)), (0, 0), (0, 0)), constant_values=1) for each in slices], axis=1
    )
    return fine.reshape(height // TILE, TILE, -1, TILE, 3).mean(axis=(1, 3))


def draw_glass_brain(path: Path, volume: Volume, threshold: float, name: str) -> None:
    """Draw the strongest voxel along each line of sight through the brain."""
    scale = two_sided_scale(volume, threshold, name)
    display = _glass_brain()
    figure = display.frame_axes.figure
    display.add_overlay(
        volume.image(),
        threshold=threshold,
        cmap=scale.colours,
        vmin=scale.limits.vmin,
        vmax=scale.limits.vmax,
        interpolation="nearest",
    )
    bar = figure.add_axes((0.925, 0.1, 0.014, 0.72))
    draw_colour_bar(bar, scale)
    save_figure(figure, path)
    bar.remove()
    for view in display.axes.values():
        for image in list(view.ax.images):
            image.remove()


@cache
def _glass_brain() -> OrthoProjector:
    """Draw an empty glass brain, to be reused: its thousand strokes take ten times as long as a map in it."""
    figure = Figure(figsize=(12.6, 3.5), dpi=PIXELS_PER_INCH, facecolor="white")
    return plotting.plot_glass_brain(
        None, figure=figure, axes=(0, 0, 0.9, 1), display_mode="lyrz", plot_abs=False, colorbar=False
    )


def _draw_mosaic(
    path: Path,
    cuts: Sequence[Sequence[float]],
    overlay: Volume,
    scale: Scale,
    outline: LesionShape | None = None,
    title: tuple[str, str] | None = None,
) -> None:
    """Draw rows of slices, a row per plane and a pixel per mm, with a colour bar if the scale has a name."""
    rows = [
        np.concatenate([_slice(axis, cut, overlay, scale, outline) for cut in row_cuts], axis=1)
        for axis, row_cuts in enumerate(cuts)
    ]
    picture = np.concatenate([np.pad(row, ((0, LABEL_PIXELS), (0, 0), (0, 0)), constant_values=1) for row in rows])
    height, width = picture.shape[:2]
    whole_width = width + (BAR_PIXELS if scale.name else 0)
    whole_height = height + (TITLE_PIXELS if title else 0)
    figure = Figure(
        (whole_width / PIXELS_PER_INCH, whole_height / PIXELS_PER_INCH), dpi=PIXELS_PER_INCH, facecolor="white"
    )
    axes = figure.add_axes((0, 0, width / whole_width, height / whole_height))
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.set_axis_off()
    top = 0
    for axis, (row, row_cuts) in enumerate(zip(rows, cuts, strict=True)):
        _write_coordinates(axes, axis, row_cuts, top, top + row.shape[0], width / len(row_cuts))
        top += row.shape[0] + LABEL_PIXELS
    if scale.name:
        bar = figure.add_axes(((width + 24) / whole_width, 0.22, 18 / whole_width, 0.56))
        draw_colour_bar(bar, scale)
    for line, text in enumerate(title or ()):
        weight = "normal" if line else "bold"
        figure.text(8 / whole_width, 1 - (6 + 24 * line) / whole_height, text, va="top", fontsize=11, weight=weight)
    save_figure(figure, path)


def _slice(axis: int, cut: float, overlay: Volume, scale: Scale, outline: LesionShape | None) -> Array:
    """Return one slice as RGB: shape (rows, columns, 3)."""
    points, picture = _plane(axis, cut), _background(axis, cut).copy()
    values = overlay.sample(points)
    shown = np.isfinite(values) & (np.abs(values) > scale.threshold)
    if shown.any():
        picture[shown] = scale.colours(scale.limits(values[shown]))[:, :3]
    if outline is not None:
        inside = outline.mask.sample(points)
        picture[inside & ~binary_erosion(inside)] = mpl.colors.to_rgb(OUTLINE_COLOUR)
    return picture


@lru_cache(maxsize=sum(map(len, WHOLE_BRAIN_CUTS)))
def _background(axis: int, cut: float) -> Array:
    grey = np.clip(template().interpolate(_plane(axis, cut)), 0, 1)
    # The template is 0 outside the brain: white, like the page. Few greys make small files.
    shades = np.where(grey > 0.05, 0.15 + 0.75 * np.round(grey * N_GREYS) / N_GREYS, 1.0)
    return np.repeat(shades[..., np.newaxis], 3, axis=-1).astype(np.float32)


def _plane(axis: int, cut: float) -> Array:
    """Return the points of a slice in mm: shape (rows, columns, 3), from the top of the head or the forehead."""
    across, up = [other for other in range(3) if other != axis]
    middle = sum(BOX_MM[across]) / 2
    columns = np.arange(middle - PANEL_PIXELS / 2, middle + PANEL_PIXELS / 2)
    rows = np.arange(BOX_MM[up][1], BOX_MM[up][0], -1.0)
    points = np.empty((len(rows), len(columns), 3), np.float32)
    points[..., axis], points[..., across], points[..., up] = cut, columns, rows[:, np.newaxis]
    return points


def _write_coordinates(
    axes: Axes, axis: int, cuts: Sequence[float], top: float, bottom: float, panel_width: float
) -> None:
    for number, cut in enumerate(cuts):
        middle = (number + 0.5) * panel_width
        axes.text(
            middle, bottom + 2, f"{'xyz'[axis]} = {minus_sign(f'{cut:.0f}')}", ha="center", va="top", fontsize=11
        )
        if axis > 0:
            for letter, side in (("L", -1), ("R", 1)):
                axes.text(
                    middle + side * SIDE_PIXELS, top + 4, letter, ha="center", va="top", fontsize=11, weight="bold"
                )
