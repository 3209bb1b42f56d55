"""Null lesions: a lesion moved to other places of its hemisphere, and what their maps need and leave out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from bids_lacuna import kernels
from bids_lacuna.connectome.summary import BLOCK_VOXELS
from bids_lacuna.grid import Grid
from bids_lacuna.mapping.places import FEWEST_PLACES, Places, Shape, Tissue, find_places, measure_distances
from bids_lacuna.mapping.summary import Summary

Array = np.ndarray

SMALLEST_RADIUS_MM, LARGEST_RADIUS_MM = 10.0, 20.0
"""Limits of the distance from a seed within which its map is left out."""

FARTHER_MM = 10.0
"""Width of the ring about the neighbourhood over which z may fall no more, and in which maxima are counted."""

FLAT = 0.2
"""Fraction of the whole fall of mean z over distance; z is flat where it falls by less over the next 10 mm."""

RING_MM = 2.0
"""Width of the rings in which z is averaged; one voxel if that is larger."""

SAMPLED_NULLS = 100
"""Number of null maps from which the neighbourhood is found."""

VOXEL_BYTES = 48
"""Bytes per voxel of a lesion's sums over null maps, and of T."""

SAMPLED_BLOCKS = 8
"""Number of blocks of voxels, at least, from which the neighbourhood is found."""


class TooFewPlaces(ValueError):  # noqa: N818  a fact about a lesion
    """A lesion is too large to be moved, or too unusual; the message states the number of places."""

    def __init__(self, reason: str, n_places: int) -> None:
        super().__init__(reason)
        self.n_places = n_places


@dataclass(frozen=True, eq=False)
class Connectivity:
    """A connectome's summary, prepared for null maps."""

    summary: Summary
    measures: Array
    """Shape (n_measures, n_voxels), float32: 1, and degree, absolute degree and components with mean 0 and sd 1; all
    are 0 where one of them is undefined."""
    positions: Array
    """Shape (n_voxels, 3), int32: indices of the voxels in the volume, in C order."""
    usable: Array
    """Shape (n_voxels,), boolean: where all measures are defined."""

    @classmethod
    def of(cls, summary: Summary) -> Connectivity:
        """Prepare a summary."""
        arrays = summary.arrays
        maps = np.vstack([arrays.degree, arrays.absolute_degree, arrays.components]).astype(float)
        # A component without variance is undefined everywhere: it explains nothing.
        maps[~np.isfinite(maps).any(axis=1)] = 0
        usable = np.isfinite(maps).all(axis=0)
        measures = np.zeros((1 + len(maps), len(usable)), np.float32)
        measures[0, usable] = 1
        if usable.any():
            maps = maps[:, usable] - maps[:, usable].mean(axis=1, keepdims=True)
            sd = maps.std(axis=1, keepdims=True)
            measures[1:, usable] = np.divide(maps, sd, out=np.zeros_like(maps), where=sd > 0)
        return cls(summary, measures, np.ascontiguousarray(np.argwhere(summary.grid.mask), np.int32), usable)

    @property
    def grid(self) -> Grid:
        """The connectome's grid."""
        return self.summary.grid

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.summary.arrays.covariance)

    @property
    def bytes_per_lesion(self) -> int:
        """Memory of the sums of one lesion's map and null maps, in bytes: see `null_maps`."""
        return VOXEL_BYTES * self.grid.n_voxels

    def fixed_bytes(self, n_threads: int) -> int:
        """Memory of one block of the operator, and of the tiles that threads copy from it, in bytes."""
        return 4 * self.n_cells * (BLOCK_VOXELS + n_threads * kernels.NULL_TILE)

    @cached_property
    def reach_of_cells(self) -> tuple[Array, Array]:
        """Shape (n_cells,) each: first and last index along the first axis of each cell's voxels."""
        x, cell_of = self.positions[:, 0], self.summary.arrays.cells
        lowest, highest = np.full(self.n_cells, np.iinfo(np.int32).max), np.full(self.n_cells, -1)
        np.minimum.at(lowest, cell_of, x)
        np.maximum.at(highest, cell_of, x)
        return lowest, highest

    def voxels(self, block: slice) -> tuple[Array, Array, Array]:
        """Return a block's voxels as the kernels need them: positions, cells, and whether they are usable."""
        return self.positions[block], self.summary.arrays.cells[block], self.usable[block]


@dataclass(frozen=True, eq=False)
class NullLesion:
    """A lesion with its null lesions, ready to be mapped."""

    places: Places
    """All places like the lesion's own."""
    corners: Array
    """Shape (1 + n_nulls, 3), int64: corner of the lesion's box at its own place, and at those of its nulls."""
    sets: Array
    """Shape (n,), int64: seed in each of the requested number of sets: 0 is the own place, 1 the first null."""
    seeds: tuple[Array, Array, Array, Array]
    """Cells, in compressed sparse rows, and what makes them a correlation: see `kernels.add_null_maps`."""
    neighbourhood: tuple[Array, Array, Array]
    """What each map leaves out: see `kernels.add_null_maps`."""
    radius_mm: float
    """Distance from the seed within which maps are left out."""
    profile: tuple[float, Array]
    """Width of the rings in mm, and the mean z over null maps in each ring around the seed, from the nearest on."""
    distances: tuple[Array, Array]
    """Distances from the lesion, in a box: see `measure_distances`."""
    random_seed: tuple[int, int]
    """Seed of the draw: the user's, and a number from the lesion's hash."""

    @property
    def n_nulls(self) -> int:
        """Number of null lesions."""
        return len(self.corners) - 1

    @property
    def n_bytes(self) -> int:
        """Memory that it occupies, in bytes."""
        arrays = (*self.seeds, *self.neighbourhood, self.corners, self.sets, self.distances[1], self.places.corners)
        return sum(array.nbytes for array in arrays)

    def distance(self, seed: int, position: Array) -> float:
        """Return the distance in mm of a voxel from a seed; infinite if it is far away."""
        corner, distances = self.distances
        index = tuple(position - self.corners[seed] - corner)
        inside = all(0 <= i < n for i, n in zip(index, distances.shape, strict=True))
        return float(distances[index]) if inside else math.inf


def make_nulls(
    shape: Shape, connectivity: Connectivity, tissue: Tissue, n_nulls: int, random_seed: int = 0
) -> NullLesion:
    """Draw the null lesions of a lesion, and prepare their maps.

    Parameters
    ----------
    shape
        The lesion on the connectome's volume.
    connectivity
        The connectome's summary.
    tissue
        Grey and white matter on the connectome's volume.
    n_nulls
        Number of null lesions; if there are fewer places, all of them.
    random_seed
        Chosen by the user; the lesion's shape and place decide the rest of the draw.

    Raises
    ------
    TooFewPlaces
        There are fewer than `FEWEST_PLACES` other places, or the summary has no signal at the lesion's own place.
    """
    places = find_places(shape, connectivity.grid, tissue)
    if len(places.corners) < FEWEST_PLACES:
        raise TooFewPlaces(
            f"too large to be moved: {len(places.corners)} places like its own, {FEWEST_PLACES} are needed",
            len(places.corners),
        )
    content = shape.corner.astype(np.int64).tobytes() + shape.weights.tobytes()
    entropy = random_seed, int(hashlib.sha256(content).hexdigest()[:16], 16)
    sets = draw_sets(len(places.corners), n_nulls, np.random.default_rng(entropy))
    # All places if they are few; sets then repeat some.
    drawn = np.unique(sets) if len(places.corners) > n_nulls else np.arange(1, 1 + len(places.corners))
    chosen = np.concatenate([[0], drawn])
    corners = np.concatenate([shape.corner[np.newaxis], places.corners])[chosen]
    seeds = weigh_cells(shape, corners, connectivity)
    if not seeds[3].all():
        raise TooFewPlaces(
            "the connectome's summary has no signal at some of its places: use a connectome that covers them",
            len(places.corners),
        )
    sets = np.searchsorted(chosen, sets)
    distances = measure_distances(shape, connectivity.grid, LARGEST_RADIUS_MM + FARTHER_MM)
    profile = measure_profile(corners, seeds, distances, sets[:SAMPLED_NULLS], connectivity)
    radius_mm = find_radius(*profile)
    near = leave_out(corners, seeds, distances, radius_mm, connectivity)
    return NullLesion(places, corners, sets, seeds, near, radius_mm, profile, distances, entropy)


def draw_sets(n_places: int, n_sets: int, rng: np.random.Generator) -> Array:
    """Draw one place for each of some sets, so that the own place and the sets' are exchangeable.

    Places are drawn without replacement, and without the own place. Where there are more sets than places, each place
    lies in the urn several times, and the own place once less.

    Parameters
    ----------
    n_places
        Number of other places.

    Returns
    -------
    shape (n_sets,), int64
        0 for the own place, 1 for the first of the others.
    """
    copies = math.ceil((n_sets + 1) / (n_places + 1))
    urn = np.repeat(np.arange(n_places + 1), copies)[1:]
    return rng.permutation(urn)[:n_sets]


def weigh_cells(shape: Shape, corners: Array, connectivity: Connectivity) -> tuple[Array, Array, Array, Array]:
    """Sum a lesion's weights in each cell, at each of some places.

    Parameters
    ----------
    corners : shape (n_seeds, 3)
        Corner of the lesion's box at each place.

    Returns
    -------
    starts, cells, weights, scale
        As for `kernels.add_null_maps`; the scale is 0 where a seed has no signal.
    """
    grid, cell_of = connectivity.grid, connectivity.summary.arrays.cells
    offsets = shape.offsets
    values = shape.weights[tuple(offsets.T)].astype(float)
    pieces = []
    for corner in corners:
        voxels = offsets + corner
        inside = np.all((voxels >= 0) & (voxels < grid.shape), axis=1)
        indices = grid.voxel_indices[tuple(voxels[inside].T)]
        masked = indices >= 0
        sums = np.bincount(cell_of[indices[masked]], values[inside][masked])
        pieces.append((touched := np.flatnonzero(sums), sums[touched]))
    starts = np.concatenate([[0], np.cumsum([len(cells) for cells, _ in pieces])]).astype(np.int64)
    cells = np.concatenate([cells for cells, _ in pieces]).astype(np.int32)
    weights = np.concatenate([sums for _, sums in pieces]).astype(np.float32)
    variances = kernels.variances(starts, cells, weights, connectivity.summary.arrays.covariance)
    scale = np.where(variances > 0, 1 / np.sqrt(np.where(variances > 0, variances, 1)), 0)
    return starts, cells, weights, scale.astype(np.float32)


def measure_profile(
    corners: Array,
    seeds: tuple[Array, Array, Array, Array],
    distances: tuple[Array, Array],
    sample: Array,
    connectivity: Connectivity,
) -> tuple[float, Array]:
    """Average the z of some null maps over rings around their seeds, in a sample of the voxels.

    Returns
    -------
    width_mm
        Width of a ring.
    mean_z : shape (n_rings,)
        Mean z at distances up to `width_mm`, and so on; NaN in a ring without voxels.
    """
    some = np.unique(sample[sample > 0])
    chosen = _select(seeds, some)
    width_mm = max(RING_MM, float(connectivity.grid.voxel_sizes_mm.max()))
    n_rings = math.ceil((LARGEST_RADIUS_MM + FARTHER_MM) / width_mm)
    n, total = np.zeros(n_rings), np.zeros(n_rings)
    n_some, nowhere = len(some), np.array([np.iinfo(np.int32).max, -1], np.int32)
    nothing = np.zeros((n_some, 3), np.int32), np.zeros((0, 0, 0), bool), np.tile(nowhere, (n_some, 1))
    step = max(1, math.ceil(connectivity.grid.n_voxels / BLOCK_VOXELS) // SAMPLED_BLOCKS)
    # Not as a list: each block stays in memory for as long as something refers to it.
    for block, operator in islice(connectivity.summary.arrays.operator.blocks(), 0, None, step):
        z = kernels.map_seeds(operator, chosen, nothing, connectivity.voxels(block))
        for row, seed in enumerate(some):
            index = connectivity.positions[block] - corners[seed] - distances[0]
            inside = np.all((index >= 0) & (index < distances[1].shape), axis=1)
            distance = distances[1][tuple(index[inside].T)]
            values = z[row, inside]
            rings = np.ceil(distance / width_mm - 1e-4).astype(int)
            known = (rings > 0) & (rings <= n_rings) & np.isfinite(values)
            n += np.bincount(rings[known] - 1, minlength=n_rings)
            total += np.bincount(rings[known] - 1, values[known], minlength=n_rings)
    return width_mm, np.divide(total, n, out=np.full(n_rings, np.nan), where=n > 0)


def find_radius(width_mm: float, mean_z: Array) -> float:
    """Return the distance from a seed from which mean z is flat, in whole rings, between 10 and 20 mm.

    It is flat where it falls, over the next 10 mm, by less than a fifth of its whole fall. Without voxels at these
    distances, 10 mm is left out.

    Parameters
    ----------
    width_mm, mean_z
        From `measure_profile`.
    """
    ahead = math.ceil(FARTHER_MM / width_mm - 1e-4)
    whole = mean_z[0] - np.nanmin(mean_z) if np.isfinite(mean_z).any() else np.nan
    first = math.ceil(SMALLEST_RADIUS_MM / width_mm - 1e-4)
    for ring in range(first, math.floor(LARGEST_RADIUS_MM / width_mm + 1e-4) + 1):
        fall = mean_z[ring] - mean_z[ring + ahead] if ring + ahead < len(mean_z) else np.nan
        if not fall > FLAT * whole:
            return max(SMALLEST_RADIUS_MM, ring * width_mm) if ring > first else SMALLEST_RADIUS_MM
    return LARGEST_RADIUS_MM


def leave_out(
    corners: Array,
    seeds: tuple[Array, Array, Array, Array],
    distances: tuple[Array, Array],
    radius_mm: float,
    connectivity: Connectivity,
) -> tuple[Array, Array, Array]:
    """Describe what the map of each seed leaves out, as for `kernels.add_null_maps`."""
    starts, cells = seeds[:2]
    inside = distances[1] <= radius_mm
    filled = np.argwhere(inside)
    low, high = filled.min(axis=0), filled.max(axis=0) + 1
    near = np.ascontiguousarray(inside[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
    first_corner = (corners + distances[0] + low).astype(np.int32)
    lowest, highest = connectivity.reach_of_cells
    reach = np.stack(
        [
            np.minimum(np.minimum.reduceat(lowest[cells], starts[:-1]), first_corner[:, 0]),
            np.maximum(np.maximum.reduceat(highest[cells], starts[:-1]), first_corner[:, 0] + near.shape[0] - 1),
        ],
        axis=1,
    )
    return first_corner, near, np.ascontiguousarray(reach, np.int32)


def _select(seeds: tuple[Array, Array, Array, Array], chosen: Array) -> tuple[Array, Array, Array, Array]:
    """Return some of the seeds."""
    starts, cells, weights, scale = seeds
    sizes = np.diff(starts)[chosen]
    entries = np.concatenate([np.arange(starts[seed], starts[seed + 1]) for seed in chosen])
    return np.concatenate([[0], np.cumsum(sizes)]), cells[entries], weights[entries], scale[chosen]
