"""Maps of null lesions by the connectome's summary, and T, which compares a lesion's own map with them.

A null map shows what a lesion of this size, shape and tissue is connected to at another place. T is a description:
every place has a network of its own, so the largest |T| of one lesion tests nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_lacuna import kernels
from bids_lacuna.grid import Grid
from bids_lacuna.kernels.cpu import PIECES_PER_THREAD
from bids_lacuna.lesion import LesionData, load_lesion
from bids_lacuna.mapping.nulls import FARTHER_MM, Connectivity, NullLesion, make_nulls
from bids_lacuna.mapping.places import Shape
from bids_lacuna.mapping.summary import Summary
from bids_lacuna.mapping.tissue import load_tissue
from bids_lacuna.weights import Weighting

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class NullMaps:
    """What the null maps of one lesion say about its own map."""

    t: Array
    """Shape (n_voxels,), float32: (z - m) / s over the null maps; NaN where the lesion's own map leaves a voxel out,
    where half of the null maps do, and where s is 0."""
    approximation: Array
    """Shape (n_voxels,), float32: the lesion's own z from the summary, nowhere left out; NaN where undefined."""
    n: Array
    """Shape (n_voxels,), int32: number of null maps that keep the voxel."""
    degree_r: Array
    """Shape (1 + n_nulls,): correlation of each map with degree; the first is the lesion's own."""
    r_squared: Array
    """Shape (1 + n_nulls,): R² of each map with all measures; the first is the lesion's own."""
    maxima_nearby: float
    """Fraction of null maps whose largest z lies within 10 mm around the voxels that they leave out."""

    @property
    def degree_percentile(self) -> float:
        """Percentile of the lesion's correlation with degree among the null maps'."""
        return find_percentile(self.degree_r)

    @property
    def r_squared_percentile(self) -> float:
        """Percentile of the lesion's R² among the null maps'."""
        return find_percentile(self.r_squared)


def find_percentile(values: Array) -> float:
    """Return the percentage of the other values that are below the first; equal ones count half; NaN is no value."""
    first, others = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(first) or not others.size:
        return float("nan")
    return float(100 * (np.mean(others < first) + np.mean(others == first) / 2))


def null_lesions(
    lesion: LesionData,
    summary: Summary,
    *,
    n_nulls: int = 1000,
    random_seed: int = 0,
    tissue_maps: tuple[Path, Path] | None = None,
    n_threads: int = 1,
) -> NullMaps:
    """Compare a lesion's approximate map with those of the same lesion at other places of its hemisphere.

    Parameters
    ----------
    lesion
        A lesion, whose mask is read.
    summary
        Summary of the connectome.
    n_nulls
        Number of null lesions; all places if there are fewer.
    random_seed
        Seed of the draw, together with the lesion.
    tissue_maps
        Masks or probability maps of grey and of white matter in the connectome's space; by default nilearn's for
        MNI152.
    n_threads
        Number of threads; it changes no bit.

    Raises
    ------
    TooFewPlaces
        Fewer than 100 places are like the lesion's own.
    ValueError, OSError
        The mask or a tissue map cannot be used.
    """
    connectivity = Connectivity.of(summary)
    tissue = load_tissue(summary.grid, summary.space, tissue_maps)
    with kernels.threads(n_threads):
        nulls = make_nulls(read_shape(lesion, summary.grid), connectivity, tissue, n_nulls, random_seed)
        return map_nulls([nulls], connectivity)[0]


def read_shape(
    lesion: LesionData, grid: Grid, weighting: Weighting = "volume", threshold: float | None = None
) -> Shape:
    """Read a lesion's mask as weights on the whole volume of a grid, also outside the brain mask.

    Parameters
    ----------
    weighting, threshold
        As for `load_lesion`.

    Raises
    ------
    ValueError, OSError
        The mask cannot be used.
    """
    volume = Grid(np.ones(grid.shape, bool), grid.affine)
    loaded = load_lesion(lesion, volume, weighting=weighting, threshold=threshold, brain=grid.mask)
    return Shape.of(loaded.loaded_weights, grid.shape)


def map_nulls(lesions: Sequence[NullLesion], connectivity: Connectivity) -> list[NullMaps]:
    """Map lesions and their nulls, reading the connectome's summary once.

    Parameters
    ----------
    lesions
        Lesions from `make_nulls`; their number decides the memory needed.
    """
    n_voxels = connectivity.grid.n_voxels
    running = [_Running.of(lesion, n_voxels, len(connectivity.measures)) for lesion in lesions]
    for block, operator in connectivity.summary.arrays.operator.blocks():
        for lesion, sums in zip(lesions, running, strict=True):
            sums.add(lesion, operator, block, connectivity)
    x = connectivity.measures.astype(float)
    of_measures = x @ x.T
    return [sums.finish(lesion, of_measures, connectivity) for lesion, sums in zip(lesions, running, strict=True)]


@dataclass(eq=False)
class _Running:
    """Sums over the null maps of one lesion."""

    n: Array
    total: Array
    squares: Array
    own_z: Array
    own_kept: Array
    products: Array
    left_out: Array
    peak: Array
    peak_voxel: Array

    @classmethod
    def of(cls, lesion: NullLesion, n_voxels: int, n_measures: int) -> _Running:
        n_seeds = len(lesion.corners)
        return cls(
            np.zeros(n_voxels, np.int32),
            np.zeros(n_voxels),
            np.zeros(n_voxels),
            np.zeros(n_voxels, np.float32),
            np.zeros(n_voxels, bool),
            np.zeros((n_seeds, 1 + n_measures)),
            np.zeros((n_seeds, n_measures, n_measures)),
            np.full(n_seeds, -np.inf, np.float32),
            np.zeros(n_seeds, np.int64),
        )

    def add(self, lesion: NullLesion, operator: Array, block: slice, connectivity: Connectivity) -> None:
        """Add a block of voxels."""
        products, left_out, peak, peak_voxel = kernels.add_null_maps(
            operator,
            lesion.seeds,
            lesion.neighbourhood,
            connectivity.voxels(block),
            connectivity.measures[:, block],
            (self.n[block], self.total[block], self.squares[block]),
            (self.own_z[block], self.own_kept[block]),
        )
        self.products += products
        self.left_out += left_out
        higher = peak > self.peak
        self.peak[higher], self.peak_voxel[higher] = peak[higher], block.start + peak_voxel[higher]

    def finish(self, lesion: NullLesion, of_measures: Array, connectivity: Connectivity) -> NullMaps:
        """Compute T and the similarities."""
        enough = self.own_kept & (2 * self.n >= lesion.n_nulls) & (self.n >= 2)
        mean = np.divide(self.total, self.n, where=enough, out=np.full(len(self.n), np.nan))
        variance = np.divide(
            self.squares - self.n * mean**2, self.n - 1, where=enough, out=np.full(len(self.n), np.nan)
        )
        # Below the rounding of float32, all null maps are the same.
        sd = np.sqrt(np.where(variance > (np.finfo(np.float32).eps * mean) ** 2, variance, np.nan))
        t = (self.own_z - mean) / sd
        degree_r, r_squared = compare_maps(self.products, self.left_out, of_measures)
        farthest = lesion.radius_mm + FARTHER_MM
        nearby = [
            lesion.distance(seed, connectivity.positions[self.peak_voxel[seed]]) <= farthest
            for seed in range(1, len(self.peak))
        ]
        return NullMaps(t.astype(np.float32), self.own_z, self.n, degree_r, r_squared, float(np.mean(nearby)))


def compare_with_targets(
    lesion: NullLesion, shape: Shape, targets: Sequence[Array], connectivity: Connectivity
) -> tuple[Array, Array]:
    """Compare a lesion and its nulls with target networks, by approximate maps for all of them alike.

    Each map leaves out its seed's neighbourhood, as for T.

    Parameters
    ----------
    lesion, shape
        A lesion from `make_nulls`, and its shape.
    targets
        Each of shape (n_voxels,); NaN where undefined.

    Returns
    -------
    r : shape (n_targets, 1 + n_nulls)
        Spatial correlation of each map with each target; the first is the lesion's own.
    damage : shape (n_targets, 1 + n_nulls)
        Mean of each target over the lesion at each place, weighted by its weights inside the brain mask.
    """
    defined = np.isfinite(targets)
    # With mean 0 and sd 1, float32 is enough for the sums over a tile.
    scaled = np.array(targets, float) - np.nanmean(targets, axis=1, keepdims=True)
    scaled = np.where(defined, scaled / np.nanstd(scaled, axis=1, keepdims=True), 0).astype(np.float32)
    sums = np.zeros((6, len(lesion.corners), len(targets)))
    with kernels.single_threaded_blas():
        for block, operator in connectivity.summary.arrays.operator.blocks():
            voxels = connectivity.voxels(block)
            sums += _add_block(operator, lesion, voxels, defined[:, block].astype(np.float32), scaled[:, block])
    n, sum_z, sum_x, squares_z, squares_x, product = sums.transpose(0, 2, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        variation = (squares_z - sum_z**2 / n) * (squares_x - sum_x**2 / n)
        r = (product - sum_z * sum_x / n) / np.sqrt(np.where(variation > 0, variation, np.nan))
    return r, measure_damage(shape, lesion.corners, targets, connectivity.grid)


def _add_block(
    operator: Array, lesion: NullLesion, voxels: tuple[Array, Array, Array], defined: Array, targets: Array
) -> Array:
    """Sum, over a block of voxels, what the correlation of each map with each target needs.

    Returns
    -------
    shape (6, n_seeds, n_targets), float64
        Sums of 1, z, x, z², x² and z x for each map's z and each target's x, where both are defined.
    """
    n_tiles = math.ceil(operator.shape[1] / kernels.NULL_TILE)
    sums = np.zeros((n_tiles, 6, len(lesion.corners), len(targets)))

    def work(first: int, last: int) -> None:
        for number in range(first, last):
            tile = slice(number * kernels.NULL_TILE, (number + 1) * kernels.NULL_TILE)
            of_tile = voxels[0][tile], voxels[1][tile], voxels[2][tile]
            z = kernels.map_seeds(operator[:, tile], lesion.seeds, lesion.neighbourhood, of_tile)
            kept = np.isfinite(z)
            z[~kept] = 0
            ones, d, x = kept.astype(np.float32), defined[:, tile].T, targets[:, tile].T
            sums[number] = ones @ d, z @ d, ones @ x, z**2 @ d, ones @ x**2, z @ x

    kernels.distribute(work, n_tiles, PIECES_PER_THREAD)
    return sums.sum(axis=0)


def measure_damage(shape: Shape, corners: Array, targets: Sequence[Array], grid: Grid) -> Array:
    """Average targets over a lesion at some places, with its weights: shape (n_targets, n_places)."""
    offsets, defined = shape.offsets, np.isfinite(targets)
    values = np.where(defined, targets, 0)
    weights = shape.weights[tuple(offsets.T)].astype(float)
    damage = np.full((len(targets), len(corners)), np.nan)
    for place, corner in enumerate(corners):
        voxels = offsets + corner
        inside = np.all((voxels >= 0) & (voxels < grid.shape), axis=1)
        indices = grid.voxel_indices[tuple(voxels[inside].T)]
        masked = indices[indices >= 0]
        of_masked = weights[inside][indices >= 0]
        total = (defined[:, masked] * of_masked).sum(axis=1)
        sums = (values[:, masked] * of_masked).sum(axis=1)
        np.divide(sums, total, out=damage[:, place], where=total > 0)
    return damage


def compare_maps(products: Array, left_out: Array, of_measures: Array) -> tuple[Array, Array]:
    """Return the correlation of maps with degree, and R² of their joint fit by all measures.

    Parameters
    ----------
    products, left_out
        Sums over each map's voxels, and over those that it leaves out: see `kernels.add_null_maps`.
    of_measures : shape (n_measures, n_measures)
        Sums of products of measures over all usable voxels.

    Returns
    -------
    degree_r, r_squared : shape (n_maps,)
        NaN for a map that does not vary.
    """
    below = np.tril(left_out, -1)
    gram = of_measures - (left_out + below.transpose(0, 2, 1))
    squares, with_measures = products[:, 0], products[:, 1:]
    n, sums = gram[:, 0, 0], with_measures[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        variation = squares - sums**2 / n
        covariance = with_measures[:, 1] - sums * gram[:, 1, 0] / n
        degree_r = covariance / np.sqrt(variation * (gram[:, 1, 1] - gram[:, 1, 0] ** 2 / n))
        # Measures may depend on each other, on small grids and with fewer components.
        fit = np.linalg.pinv(gram, hermitian=True) @ with_measures[:, :, np.newaxis]
        explained = np.sum(fit[:, :, 0] * with_measures, axis=1)
        r_squared = 1 - (squares - explained) / variation
    return degree_r, r_squared
