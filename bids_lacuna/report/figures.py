"""Pictures of volumes on the MNI template, for the reports: mosaics, glass brains, a viewer, and tables of clusters.

Left is on the left in all of them, and written there. matplotlib and nilearn take a few hundred MB: only processes
that draw import this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from html import escape
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
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

TITLE_PIXELS = 56
"""Above a group's slices, for what they show and what they do not."""

TILE = 2
"""Edge of the squares of pixels of a slice that are one pixel of a tile."""

N_TILE_COLOURS = 32
"""Of a sheet of tiles."""

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

N_NAMES = 60
"""Lesions of a matrix whose names are written at its edges."""

N_CELLS = 800
"""Of a drawn matrix along each edge, at most: a picture has no more pixels; matplotlib takes 50 bytes for each."""

N_BINS = 20
"""Of a histogram."""

CHARACTERS = 120
"""Of a line above a matrix or histograms."""

BAR_COLOUR = "#3182bd"
"""Of histograms."""

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
    _draw_mosaic(path, lesion_cuts(lesion), _overlay(lesion), _one_colour(LESION_COLOUR))


def _overlay(lesion: LesionShape) -> Volume:
    return Volume(lesion.mask.values.astype(np.float32), lesion.mask.affine)


def _one_colour(colour: str) -> Scale:
    """Choose how a mask is drawn."""
    return Scale(ListedColormap([colour]), Normalize(0, 1), "")


def draw_binary_map(path: Path, volume: Volume, lesion: LesionShape | None) -> None:
    """Draw a mask of |t| above a threshold, and the lesion's outline."""
    _draw_mosaic(path, WHOLE_BRAIN_CUTS, volume, _one_colour(ABOVE_COLOUR), outline=lesion)


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
        Of the statistic, at the colour bar.
    title
        As for `draw_share`.
    """
    _draw_mosaic(path, WHOLE_BRAIN_CUTS, volume, _two_sided(volume, threshold, name), lesion, title)


def _two_sided(volume: Volume, threshold: float, name: str) -> Scale:
    limit = _limit(volume, threshold)
    return Scale(_colours(limit, threshold), Normalize(-limit, limit), name, threshold)


def draw_share(
    path: Path, volume: Volume, most: float, name: str, write: Callable[[float], str], title: tuple[str, str]
) -> None:
    """Draw a map of counts or shares, where it is above 0, on the template.

    Parameters
    ----------
    most
        The value at the end of the colours.
    name
        At the colour bar.
    write
        Writes the numbers there.
    title
        What the picture shows, and a sentence on what it does not; both are written above the slices.
    """
    # Without the palest colours, which would be taken for the background.
    colours = ListedColormap(mpl.colormaps["YlOrRd"](np.linspace(0.2, 1, 256)))
    scale = Scale(colours, Normalize(0, most), name, write=write)
    _draw_mosaic(path, WHOLE_BRAIN_CUTS, volume, scale, title=title)


def draw_tiles(path: Path, lesions: Sequence[LesionShape]) -> tuple[int, int]:
    """Draw small pictures of lesions below each other: each a slice along x, y and z through the lesion's centre.

    Returns
    -------
    width, height
        Of one of them, in pixels.
    """
    tiles = [_tile(lesion) for lesion in lesions]
    picture = Image.fromarray((255 * np.concatenate(tiles)).astype(np.uint8))
    with renamed_when_whole(path) as temporary:
        _with_colours(picture, N_TILE_COLOURS).save(temporary, format="png")
    height, width = tiles[0].shape[:2]
    return width, height


def _tile(lesion: LesionShape) -> Array:
    scale, overlay = _one_colour(LESION_COLOUR), _overlay(lesion)
    slices = [_slice(axis, cut, overlay, scale, None) for axis, cut in enumerate(lesion.centre_mm)]
    height = max(len(each) for each in slices)
    fine = np.concatenate(
        [np.pad(each, ((0, height - len(each)), (0, 0), (0, 0)), constant_values=1) for each in slices], axis=1
    )
    return fine.reshape(height // TILE, TILE, -1, TILE, 3).mean(axis=(1, 3))


def draw_similarity(path: Path, similarity: Array, names: Sequence[str], title: tuple[str, str]) -> None:
    """Draw a matrix of correlations, in the order given.

    Parameters
    ----------
    similarity : shape (n, n)
    names
        Of its rows and columns; they are written where there is room for them.
    title
        As for `draw_share`.
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
        axes.set_xlabel("place in the clustering's order")
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1], labels=[two_digits(tick) for tick in (-1, -0.5, 0, 0.5, 1)])
    bar.ax.set_title("r", fontsize=12, pad=10)
    _write_title(figure, title)
    _save(figure, path)


def _coarsen(matrix: Array) -> Array:
    """Average neighbours of a square matrix that are too many for a picture."""
    starts = np.arange(0, len(matrix), -(-len(matrix) // N_CELLS))
    counts = np.diff([*starts, len(matrix)])
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    return sums / np.outer(counts, counts)


def draw_distributions(
    path: Path, volumes_ml: Sequence[float], coverage_percent: Sequence[float], title: tuple[str, str]
) -> None:
    """Draw histograms of volume, on a logarithmic axis, and of coverage.

    Parameters
    ----------
    title
        As for `draw_share`.
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
    _save(figure, path)


def _write_title(figure: Figure, title: tuple[str, str]) -> None:
    first, second = title
    figure.suptitle(f"{first}\n{fill(second, CHARACTERS)}", fontsize=10, x=0.01, ha="left")


def draw_glass_brain(path: Path, volume: Volume, threshold: float, name: str) -> None:
    """Draw the strongest voxels along each line of sight through the brain."""
    scale = _two_sided(volume, threshold, name)
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
    _draw_colour_bar(bar, scale)
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
    scale: Scale,
    outline: LesionShape | None = None,
    title: tuple[str, str] | None = None,
) -> None:
    """Draw rows of slices, one row a plane, 1 mm a pixel; where the scale has a name, a colour bar beside them."""
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
        _draw_colour_bar(bar, scale)
    for line, text in enumerate(title or ()):
        weight = "normal" if line else "bold"
        figure.text(8 / whole_width, 1 - (6 + 24 * line) / whole_height, text, va="top", fontsize=11, weight=weight)
    _save(figure, path)


def _slice(axis: int, cut: float, overlay: Volume, scale: Scale, outline: LesionShape | None) -> Array:
    """Draw one slice: shape (rows, columns, 3)."""
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


def _draw_colour_bar(axes: Axes, scale: Scale) -> None:
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


def _save(figure: Figure, path: Path) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    with renamed_when_whole(path) as temporary:
        _with_colours(picture, 256).save(temporary, format="png")


def _with_colours(picture: Image.Image, n: int) -> Image.Image:
    """Reduce a picture's colours: 256 are half the bytes."""
    # Of the ways to choose them, this one keeps those of the colour bar.
    return picture.quantize(n, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
