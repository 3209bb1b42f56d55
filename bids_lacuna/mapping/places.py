"""Places of null lesions: where a lesion fits in its hemisphere with similar coverage and tissue.

Two places are alike if they lie on one lattice of steps, on the same side, and in the same bins of coverage, grey and
white matter. The bins are fixed, so the relation is symmetric: B is among the places of a lesion at A if and only if
A is among those of the same lesion at B. Under the hypothesis of a chance place, the lesion's own place is then one
of them like any other; it would not be with a tolerance about the lesion's own fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import scipy.fft
from scipy.ndimage import distance_transform_edt

from bids_lacuna.grid import Grid
from bids_lacuna.lesion import ONE_SIDED
from bids_lacuna.weights import LesionWeights

Array = np.ndarray

STEP_MM = 4.0
"""Smallest step between places; in whole voxels, so that a lesion keeps its weights."""

COVERAGE_EDGES = (0.5, 0.75)
"""Edges between the bins of the fraction of a lesion inside the brain mask. With narrower bins, large lesions have
few places: of 40 real lesions of 9 to 356 ml, two have fewer than 100 in a whole-brain mask, but five with edges at
0.7, 0.85 and 0.95."""

TISSUE_BIN = 0.15
"""Width of the bins of the fractions of a lesion in grey and in white matter."""

FEWEST_PLACES = 100
"""Smallest number of other places for which there are null lesions."""

TIE = 1e-6
"""Fractions this far below an edge count as on it: the rounding of Fourier transforms must decide nothing."""

HALF_ROUNDING_MM = 5e-4
"""Voxels are at x = 0 up to this distance: coordinates are rounded to 1e-3 mm, as for the table of the group."""


@dataclass(frozen=True, eq=False)
class Shape:
    """A lesion's weights in their bounding box on the grid, including voxels outside the brain mask."""

    corner: Array
    """Shape (3,), int64: indices of the box's first voxel at the lesion's own place."""
    weights: Array
    """Shape (x, y, z), float32: the lesion's weights; 0 outside it."""

    @classmethod
    def of(cls, lesion: LesionWeights, shape: tuple[int, ...]) -> Shape:
        """Return the shape of a lesion whose weights are on all voxels of a volume."""
        voxels = np.stack(np.unravel_index(lesion.voxels, shape), axis=1)
        corner = voxels.min(axis=0)
        box = np.zeros(voxels.max(axis=0) + 1 - corner, np.float32)
        box[tuple((voxels - corner).T)] = lesion.weights
        return cls(corner, box)

    @property
    def offsets(self) -> Array:
        """Shape (n, 3), int64: the lesion's voxels, from the box's corner."""
        return np.argwhere(self.weights)


@dataclass(frozen=True, eq=False)
class Tissue:
    """Fractions of each voxel of a volume in grey and in white matter."""

    grey: Array
    """Shape (x, y, z), from 0 to 1."""
    white: Array
    """Shape (x, y, z), from 0 to 1."""


@dataclass(frozen=True, eq=False)
class Places:
    """The places of one lesion that are like its own."""

    corners: Array
    """Shape (n, 3), int64: index of the box's first voxel at each place, in C order; the own place is not listed."""
    step_voxels: tuple[int, int, int]
    """Step between places along each axis of the grid."""
    side: str
    """Hemisphere of all places: left, right, or both, whose places differ along y and z alone."""
    coverage: tuple[float, float]
    """Bin of the fraction of the lesion inside the brain mask."""
    grey: tuple[float, float]
    """Bin of the fraction of the lesion's weights, inside the mask, in grey matter."""
    white: tuple[float, float]
    """Bin of the fraction in white matter."""


def find_places(shape: Shape, grid: Grid, tissue: Tissue) -> Places:
    """List all places of a lesion that are like its own, by whole steps along the grid's axes.

    Parts of a lesion may lie outside the brain mask, and outside the volume; both reduce its coverage.

    Parameters
    ----------
    shape
        The lesion.
    grid
        The connectome's grid.
    tissue
        Grey and white matter on the grid's volume.

    Returns
    -------
    Places
        Without the lesion's own place; there may be none.
    """
    step = np.maximum(1, np.ceil(STEP_MM / grid.voxel_sizes_mm - TIE)).astype(int)
    across = int(np.abs(grid.affine[0, :3] / grid.voxel_sizes_mm).argmax())
    size = np.array(shape.weights.shape)
    first = shape.corner - step * ((shape.corner + size - 1) // step)
    axes = [np.arange(first[axis], grid.shape[axis], step[axis]) for axis in range(3)]
    side = _find_sides(shape, grid, axes)
    own = tuple((shape.corner - first) // step)
    alike = side == side[own]
    if side[own] == "both":
        alike &= np.ix_(*axes)[across] == shape.corner[across]
    total = shape.weights.sum(dtype=float)
    inside, grey, white = _sum_at_places(shape, (np.ones(grid.shape), tissue.grey, tissue.white), grid, axes)
    # The rounding of a place without any covered voxel must not pass for tissue.
    alike &= inside > TIE * total
    with np.errstate(invalid="ignore", divide="ignore"):
        coverage = _find_bins(inside / total, COVERAGE_EDGES)
        edges = tuple(np.arange(TISSUE_BIN, 1, TISSUE_BIN).round(6).tolist())
        tissues = [_find_bins(part / inside, edges) for part in (grey, white)]
    for bins in (coverage, *tissues):
        alike &= bins == bins[own]
    alike[own] = False
    corners = np.stack([axes[axis][index] for axis, index in enumerate(np.nonzero(alike))], axis=1)
    return Places(
        corners.astype(np.int64),
        tuple(step.tolist()),
        str(side[own]),
        _edges_of(coverage[own], COVERAGE_EDGES),
        *(_edges_of(bins[own], edges) for bins in tissues),
    )


def _find_sides(shape: Shape, grid: Grid, axes: list[Array]) -> Array:
    """Return the hemisphere at each place by the rule of `lesion.name_side`, for lesions moved by voxels."""
    offsets = shape.offsets
    x = nib.affines.apply_affine(grid.affine, offsets + shape.corner)[:, 0].round(3)
    order = np.argsort(x, kind="stable")
    x, weights = x[order], shape.weights[tuple(offsets.T)][order].astype(float)
    below = np.concatenate([[0], np.cumsum(weights)])
    moved = sum(grid.affine[0, axis] * (index - shape.corner[axis]) for axis, index in enumerate(np.ix_(*axes)))
    left = below[np.searchsorted(x, -moved - HALF_ROUNDING_MM, side="right")]
    right = below[-1] - below[np.searchsorted(x, -moved + HALF_ROUNDING_MM, side="left")]
    one_sided = np.maximum(left, right) >= ONE_SIDED * (left + right) - TIE * below[-1]
    one_sided &= np.abs(left - right) > TIE * below[-1]
    return np.where(one_sided, np.where(left > right, "left", "right"), "both")


def _sum_at_places(shape: Shape, volumes: Sequence[Array], grid: Grid, axes: list[Array]) -> list[Array]:
    """Sum a lesion's weights times each volume over the brain mask, at each place, by Fourier transforms."""
    sizes = zip(grid.shape, shape.weights.shape, strict=True)
    padded = [scipy.fft.next_fast_len(n + m - 1, real=True) for n, m in sizes]
    lesion = scipy.fft.rfftn(shape.weights.astype(float), padded).conj()
    # A negative corner, where the lesion begins before the volume, is at the end of the circular result.
    index = np.ix_(*axes)
    return [
        scipy.fft.irfftn(scipy.fft.rfftn(np.where(grid.mask, volume, 0.0), padded) * lesion, padded)[index]
        for volume in volumes
    ]


def _find_bins(fractions: Array, edges: tuple[float, ...]) -> Array:
    return np.searchsorted(np.array(edges) - TIE, fractions, side="right")


def _edges_of(index: int, edges: tuple[float, ...]) -> tuple[float, float]:
    all_edges = (0.0, *edges, 1.0)
    return all_edges[index], all_edges[index + 1]


def measure_distances(shape: Shape, grid: Grid, farthest_mm: float) -> tuple[Array, Array]:
    """Measure the distance of each voxel around a lesion from the lesion.

    Parameters
    ----------
    farthest_mm
        Distance up to which voxels are measured.

    Returns
    -------
    corner : shape (3,), int64
        Index of the box's first voxel, from the corner of the lesion's box.
    distances : shape (x, y, z), float32
        Distance in mm between the centres of each voxel and of the nearest one that the lesion covers; 0 inside.
    """
    pad = np.ceil(farthest_mm / grid.voxel_sizes_mm).astype(int)
    outside = np.pad(shape.weights == 0, [(n, n) for n in pad], constant_values=True)
    return -pad, distance_transform_edt(outside, sampling=grid.voxel_sizes_mm).astype(np.float32)
