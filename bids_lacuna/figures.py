"""Pictures of volumes on the MNI template, for the reports: mosaics, glass brains, a viewer, and tables of clusters.

Left is on the left in all of them, and written there. matplotlib and nilearn take a few hundred MB: only processes
that draw import this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from html import escape
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from nilearn import plotting
from nilearn.datasets import load_mni152_template
from nilearn.plotting.displays import OrthoProjector
from PIL import Image
from scipy.ndimage import binary_erosion, label, map_coordinates, maximum, maximum_position

from bids_lacuna.files import renamed_when_whole
from bids_lacuna.images import open_image
from bids_lacuna.lesion import read_mask

Array = np.ndarray

mpl.use("agg")

N_CUTS = 7
"""Slices of each plane in a mosaic."""

WHOLE_BRAIN_CUTS = (
    (-60.0, -42, -24, -6, 12, 30, 48),
    (-90.0, -66, -42, -18, 6, 30, 54),
    (-42.0, -24, -6, 12, 30, 48, 66),
)
"""x, y and z in mm of a map's slices: the same for all maps, so that they can be compared."""

BOX_MM = ((-80.0, 80.0), (-112.0, 80.0), (-74.0, 86.0))
"""What of the template is drawn, along x, y and z."""

PANEL_PIXELS = 186
"""Width of a slice: as wide as the widest, so that the slices of all planes stand below each other."""

LABEL_PIXELS = 22
"""Below each row of slices, for their coordinates."""

BAR_PIXELS = 120
"""Beside the slices, for the colour bar and its numbers."""

SIDE_PIXELS = 66
"""From the middle of a slice to the letter of the side."""

N_GREYS = 48
"""Of the template."""

PIXELS_PER_INCH = 110

LESION_COLOUR = "#d7191c"

OUTLINE_COLOUR = "#00ff00"
"""Of the lesion on a map: neither hot nor cold."""

ABOVE_COLOUR = "#e66101"

HIDDEN_COLOUR = (0.75, 0.75, 0.75, 1.0)
"""On the colour bar, of what is not shown."""

STRONGEST_SHARE = 0.1
"""Of a map's voxels, shown where no threshold was given."""

VMAX_QUANTILE = 0.995
"""The colours end there: a lesion's own voxels would leave all others pale."""

CLUSTER_SHARE = 0.02
"""Of a map's voxels outside the lesion, of each sign: what clusters are made of."""

N_CLUSTERS = 5
"""Of each sign, in the table."""

TITLE = re.compile("<title>.*?</title>", re.DOTALL)

FAVICON = re.compile(r'<link rel="icon".*?/>', re.DOTALL)
"""The one thing that nilearn's viewer would fetch from elsewhere."""


@dataclass(frozen=True)
class Volume:
    """A volume in world coordinates."""

    values: Array
    """Shape (x, y, z)."""
    affine: Array
    """Shape (4, 4): voxel indices to millimetres."""

    @cached_property
    def _to_voxels(self) -> Array:
        return np.linalg.inv(self.affine)

    def sample(self, points_mm: Array, outside: float = 0) -> Array:
        """Read the values of the voxels that hold some points.

        Parameters
        ----------
        points_mm : shape (..., 3)
        outside
            What points outside the volume get.

        Returns
        -------
        shape (...)
        """
        places = np.rint(nib.affines.apply_affine(self._to_voxels, points_mm)).astype(np.intp)
        inside = ((places >= 0) & (places < self.values.shape)).all(axis=-1)
        values = np.full(inside.shape, outside, self.values.dtype)
        values[inside] = self.values[tuple(places[inside].T)]
        return values

    def interpolate(self, points_mm: Array) -> Array:
        """Interpolate the values at points: linearly, 0 outside."""
        places = np.moveaxis(nib.affines.apply_affine(self._to_voxels, points_mm), -1, 0)
        return map_coordinates(self.values, places, order=1)

    def holds(self, lesion: LesionShape) -> Array:
        """Tell which voxels' centres lie in a lesion: shape (x, y, z), boolean."""
        points = nib.affines.apply_affine(self.affine, np.moveaxis(np.indices(self.values.shape), 0, -1))
        return lesion.mask.sample(points)

    def at(self, point_mm: Sequence[float]) -> float:
        """Read the value of the voxel that holds one point."""
        return float(self.sample(np.array(point_mm)[np.newaxis], outside=np.nan)[0])

    def image(self) -> nib.Nifti1Image:
        """Make an image of it, undefined values 0: nilearn would warn of each one."""
        values = np.nan_to_num(self.values, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
        return nib.Nifti1Image(values, self.affine)


@dataclass(frozen=True)
class LesionShape:
    """Where a lesion lies."""

    mask: Volume
    """Boolean: the smallest box with the whole lesion in it."""
    centre_mm: tuple[float, float, float]
    """The voxel of the lesion that is nearest to its centre of mass."""
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    """How far its voxels' centres reach."""
    left_share: float
    """Of its volume at either side of x = 0, that at negative x; a half where all of it is at 0."""


@dataclass(frozen=True)
class Cluster:
    """A row of the table of clusters: voxels that touch, and the strongest of them."""

    place_mm: tuple[float, float, float]
    """Of its strongest voxel."""
    value: float
    size_mm3: float


@dataclass(frozen=True)
class MapFacts:
    """What a picture of a map shows, in numbers."""

    threshold: float
    """Voxels whose size is above it are shown."""
    n_above: int
    n_below: int
    """Voxels below minus the threshold."""
    n_defined: int
    maximum: float
    """NaN where no voxel is defined."""
    minimum: float
    maximum_mm: tuple[float, float, float]
    minimum_mm: tuple[float, float, float]


def read_map(path: Path) -> Volume:
    """Read a map or a mask that the program wrote; raises OSError where it cannot be read."""
    image = open_image(path, "map")
    return Volume(np.asarray(image.dataobj, np.float32), image.affine)


def read_lesion(path: Path, threshold: float | None = None) -> LesionShape:
    """Read a lesion mask and tell where the lesion lies.

    Parameters
    ----------
    threshold
        As in `load_lesion`: the probability from which on a voxel counts.

    Raises
    ------
    OSError, ValueError
        As `lesion.read_mask`.
    """
    image = open_image(path, "mask")
    corner, weights = read_mask(image, threshold)
    box = weights > 0
    affine = image.affine @ nib.affines.from_matvec(np.eye(3), corner)
    points = nib.affines.apply_affine(affine, np.argwhere(box))
    centre = points[np.argmin(np.sum((points - points.mean(axis=0)) ** 2, axis=1))]
    x = points[:, 0].round(3)
    left, right = (float(weights[box][there].sum()) for there in (x < 0, x > 0))
    return LesionShape(
        Volume(box, affine),
        _triple(centre),
        _triple(points.min(axis=0)),
        _triple(points.max(axis=0)),
        left / (left + right) if left + right else 0.5,
    )


def _triple(point: Iterable[float]) -> tuple[float, float, float]:
    x, y, z = (float(coordinate) for coordinate in point)
    return x, y, z


def strongest_share_threshold(volume: Volume) -> float:
    """Find the size that the strongest tenth of a map's voxels are above, to two digits; NaN of an undefined map."""
    sizes = np.abs(volume.values[np.isfinite(volume.values)])
    if not sizes.size:
        return float("nan")
    return float(f"{np.quantile(sizes, 1 - STRONGEST_SHARE):.2g}")


def measure_map(volume: Volume, threshold: float) -> MapFacts:
    """Find a map's extremes, and count what is beyond its threshold."""
    defined = np.isfinite(volume.values)
    values = volume.values
    if not defined.any():
        nowhere = (float("nan"),) * 3
        return MapFacts(threshold, 0, 0, 0, float("nan"), float("nan"), nowhere, nowhere)
    places = [np.unravel_index(find(values), values.shape) for find in (np.nanargmax, np.nanargmin)]
    high_mm, low_mm = (_triple(nib.affines.apply_affine(volume.affine, place)) for place in places)
    return MapFacts(
        threshold,
        int((values > threshold).sum()),
        int((values < -threshold).sum()),
        int(defined.sum()),
        float(values[places[0]]),
        float(values[places[1]]),
        high_mm,
        low_mm,
    )


def find_clusters(volume: Volume, lesion: LesionShape | None) -> tuple[list[Cluster], list[Cluster]]:
    """List the strongest clusters of each sign outside the lesion.

    A cluster is made of voxels whose faces touch and that are among the 2 % that are highest, or lowest, outside the
    lesion: of a large connectome nearly all voxels are beyond any usual threshold, and are one cluster. The rows are
    those of nilearn's `get_clusters_table` without further peaks, for which it takes seconds.

    Returns
    -------
    positive, negative
        The strongest first.
    """
    outside = np.isfinite(volume.values)
    if lesion is not None:
        outside &= ~volume.holds(lesion)
    positive, negative = (
        _strongest_clusters(Volume(np.where(outside, sign * volume.values, np.nan), volume.affine))
        for sign in (1, -1)
    )
    return positive, [replace(cluster, value=-cluster.value) for cluster in negative]


def _strongest_clusters(volume: Volume) -> list[Cluster]:
    defined = volume.values[np.isfinite(volume.values)]
    threshold = max(0.0, float(np.quantile(defined, 1 - CLUSTER_SHARE))) if defined.size else 0.0
    values = np.nan_to_num(volume.values)
    labels, n = label(values > threshold)
    numbers = np.arange(1, n + 1)
    voxels = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    peaks = maximum(values, labels, numbers)
    strongest = numbers[np.argsort(-peaks, kind="stable")[:N_CLUSTERS]]
    voxel_mm3 = abs(np.linalg.det(volume.affine[:3, :3]))
    return [
        Cluster(
            _triple(nib.affines.apply_affine(volume.affine, place)),
            float(values[place]),
            float(voxels[number - 1] * voxel_mm3),
        )
        for number, place in zip(strongest, maximum_position(values, labels, strongest), strict=True)
    ]


@cache
def _template() -> Volume:
    image = load_mni152_template(resolution=2)
    return Volume(np.asarray(image.dataobj, np.float32), image.affine)


def lesion_cuts(lesion: LesionShape) -> tuple[tuple[float, ...], ...]:
    """Choose slices through the lesion, its centre in the middle, that reach to both of its ends."""
    cuts = []
    for centre, low, high in zip(lesion.centre_mm, lesion.low_mm, lesion.high_mm, strict=True):
        half = N_CUTS // 2
        step = max(2, round(max(centre - low, high - centre) / half))
        cuts.append(tuple(round(centre) + step * number for number in range(-half, half + 1)))
    return tuple(cuts)


def draw_lesion(path: Path, lesion: LesionShape) -> None:
    """Draw a lesion on the template."""
    colours = ListedColormap([LESION_COLOUR])
    _draw_mosaic(
        path, lesion_cuts(lesion), Volume(lesion.mask.values.astype(np.float32), lesion.mask.affine), colours
    )


def draw_binary_map(path: Path, volume: Volume, lesion: LesionShape | None) -> None:
    """Draw a mask of |t| above a threshold, and the lesion's outline."""
    _draw_mosaic(path, WHOLE_BRAIN_CUTS, volume, ListedColormap([ABOVE_COLOUR]), outline=lesion)


def draw_map(path: Path, volume: Volume, threshold: float, name: str, lesion: LesionShape | None) -> None:
    """Draw a map's voxels beyond a threshold on the template, and the lesion's outline.

    Parameters
    ----------
    name
        Of the statistic, at the colour bar.
    """
    limit = _limit(volume, threshold)
    colours, limits = _colours(limit, threshold), Normalize(-limit, limit)
    _draw_mosaic(path, WHOLE_BRAIN_CUTS, volume, colours, limits, threshold, name, lesion)


def draw_glass_brain(path: Path, volume: Volume, threshold: float, name: str) -> None:
    """Draw the strongest voxels along each line of sight through the brain."""
    limit = _limit(volume, threshold)
    colours = _colours(limit, threshold)
    display = _glass_brain()
    figure = display.frame_axes.figure
    display.add_overlay(
        volume.image(),
        threshold=threshold,
        cmap=colours,
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )
    bar = figure.add_axes((0.925, 0.1, 0.014, 0.72))
    _draw_colour_bar(bar, colours, Normalize(-limit, limit), threshold, name)
    _save(figure, path)
    bar.remove()
    for view in display.axes.values():
        for image in list(view.ax.images):
            image.remove()


@cache
def _glass_brain() -> OrthoProjector:
    """Draw the empty glass brain: its thousand strokes take ten times as long as a map in it."""
    figure = Figure(figsize=(12.6, 3.5), dpi=PIXELS_PER_INCH, facecolor="white")
    return plotting.plot_glass_brain(
        None, figure=figure, axes=(0, 0, 0.9, 1), display_mode="lyrz", plot_abs=False, colorbar=False
    )


def write_viewer(path: Path, volume: Volume, threshold: float, title: str, lesion: LesionShape | None) -> None:
    """Write nilearn's interactive viewer of a map as a page of its own, which fetches nothing from anywhere.

    It opens where the lesion is, if that is known.
    """
    template, limit = _template(), _limit(volume, threshold)
    view = plotting.view_img(
        volume.image(),
        bg_img=nib.Nifti1Image(template.values, template.affine),
        threshold=threshold,
        vmax=limit,
        cut_coords=lesion.centre_mm if lesion else (0, 0, 0),
        cmap=_colours(limit, threshold),
        black_bg=False,
        resampling_interpolation="nearest",
        opacity=0.9,
    )
    page = TITLE.sub(f"<title>{escape(title)}</title>", FAVICON.sub("", view.get_standalone()), count=1)
    with renamed_when_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _limit(volume: Volume, threshold: float) -> float:
    """Choose the value at the end of a map's colours; they end at minus that value on the other side."""
    sizes = np.abs(volume.values[np.isfinite(volume.values)])
    high = float(np.quantile(sizes, VMAX_QUANTILE)) if sizes.size else 1.0
    # A threshold beyond nearly all voxels still needs colours for the others.
    return max(high, 1.25 * threshold, 1e-6)


def _colours(limit: float, threshold: float) -> ListedColormap:
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


def _draw_mosaic(
    path: Path,
    cuts: Sequence[Sequence[float]],
    overlay: Volume,
    colours: Colormap,
    limits: Normalize | None = None,
    threshold: float = 0,
    name: str = "",
    outline: LesionShape | None = None,
) -> None:
    """Draw rows of slices, one row a plane, 1 mm a pixel; with limits, a colour bar beside them."""
    rows = [
        np.concatenate([_slice(axis, cut, overlay, colours, limits, threshold, outline) for cut in row_cuts], axis=1)
        for axis, row_cuts in enumerate(cuts)
    ]
    picture = np.concatenate([np.pad(row, ((0, LABEL_PIXELS), (0, 0), (0, 0)), constant_values=1) for row in rows])
    height, width = picture.shape[:2]
    whole_width = width + (BAR_PIXELS if limits else 0)
    figure = Figure((whole_width / PIXELS_PER_INCH, height / PIXELS_PER_INCH), dpi=PIXELS_PER_INCH, facecolor="white")
    axes = figure.add_axes((0, 0, width / whole_width, 1))
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.set_axis_off()
    top = 0
    for axis, (row, row_cuts) in enumerate(zip(rows, cuts, strict=True)):
        _write_coordinates(axes, axis, row_cuts, top, top + row.shape[0], width / len(row_cuts))
        top += row.shape[0] + LABEL_PIXELS
    if limits:
        bar = figure.add_axes(((width + 24) / whole_width, 0.22, 18 / whole_width, 0.56))
        _draw_colour_bar(bar, colours, limits, threshold, name)
    _save(figure, path)


def _slice(
    axis: int,
    cut: float,
    overlay: Volume,
    colours: Colormap,
    limits: Normalize | None,
    threshold: float,
    outline: LesionShape | None,
) -> Array:
    """Draw one slice: shape (rows, columns, 3)."""
    points, picture = _plane(axis, cut), _background(axis, cut).copy()
    values = overlay.sample(points)
    shown = np.isfinite(values) & ((np.abs(values) > threshold) if limits else (values > 0))
    if shown.any():
        picture[shown] = colours(limits(values[shown]) if limits else np.zeros(shown.sum()))[:, :3]
    if outline is not None:
        inside = outline.mask.sample(points)
        picture[inside & ~binary_erosion(inside)] = mpl.colors.to_rgb(OUTLINE_COLOUR)
    return picture


@lru_cache(maxsize=sum(map(len, WHOLE_BRAIN_CUTS)))
def _background(axis: int, cut: float) -> Array:
    grey = np.clip(_template().interpolate(_plane(axis, cut)), 0, 1)
    # Of the template, 0 is outside the brain: white, as the page is. Few greys make small files.
    shades = np.where(grey > 0.05, 0.15 + 0.75 * np.round(grey * N_GREYS) / N_GREYS, 1.0)
    return np.repeat(shades[..., np.newaxis], 3, axis=-1).astype(np.float32)


def _plane(axis: int, cut: float) -> Array:
    """Give the points of a slice in mm: shape (rows, columns, 3), the top of the head or the forehead first."""
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


def minus_sign(number: str) -> str:
    """Write a number with a minus, not a hyphen."""
    return number.replace("-", "\N{MINUS SIGN}")


def _draw_colour_bar(axes: Axes, colours: Colormap, limits: Normalize, threshold: float, name: str) -> None:
    """Draw the colours, and the threshold's line and number on both sides."""
    low, high = limits.vmin or 0, limits.vmax or 0
    bar = axes.figure.colorbar(ScalarMappable(limits, colours), cax=axes, extend="both")
    for edge in (-threshold, threshold):
        axes.axhline(edge, color="black", linewidth=2)
    between = [(edge + sign * threshold) / 2 for edge, sign in ((low, -1), (high, 1))]
    wanted = [low, between[0], -threshold, threshold, between[1], high]
    # Numbers closer to each other than this would overlap.
    gap = (high - low) / 12
    ticks = [-threshold, threshold] if 2 * threshold > gap else [threshold]
    ticks += [tick for tick in wanted if all(abs(tick - other) > gap for other in ticks)]
    bar.set_ticks(sorted(ticks), labels=[minus_sign(f"{tick:.2g}") for tick in sorted(ticks)])
    axes.tick_params(labelsize=11)
    axes.set_title(name, fontsize=12, pad=16)


def _save(figure: Figure, path: Path) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    # 256 colours are half the bytes; of the ways to choose them, this one keeps those of the colour bar.
    few_colours = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    with renamed_when_whole(path) as temporary:
        few_colours.save(temporary, format="png")
