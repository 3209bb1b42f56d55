"""A mask as weights on a grid."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Literal

import nibabel as nib
import numpy as np

from bids_lacuna.grid import Grid

Array = np.ndarray
Weighting = Literal["volume", "binary"]

AXIS_ALIGNED_TOLERANCE = 1e-3
"""Two grids count as axis-aligned when no lesion voxel is moved by more than this share of a grid voxel."""

EDGE_DECIMALS = 4
"""Voxel edges are rounded to 1e-4 grid voxels: affines come as float32, and edges that meet must meet exactly."""

PIECE_WIDTH = 0.25
"""Between oblique grids, a lesion voxel is cut into pieces at most this share of a grid voxel wide."""

PIECES_AT_ONCE = 2**16
"""Of a lesion's voxels together: a piece takes about 100 bytes while it is placed, and there may be ten million."""


@dataclass(frozen=True, eq=False)
class LesionWeights:
    """A lesion on the connectome's grid."""

    voxels: Array
    """Shape (n,), int32: the connectome voxels that the lesion covers."""
    weights: Array
    """Shape (n,), float32: the fraction of each voxel's volume that the lesion covers."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of weights on a grid, one after another (compressed sparse rows): what one pass maps.

    A lesion is one source of a row.
    """

    keys: tuple[str, ...]
    """A name for each row, by which a later run recognizes it."""
    starts: Array
    """Shape (n_rows + 1,), int64: where each row begins in `voxels` and `weights`, and where the last one ends."""
    voxels: Array
    """Shape (total,), int32: voxels of the grid, in ascending order within a row."""
    weights: Array
    """Shape (total,), float32."""

    @classmethod
    def of(cls, rows: Mapping[str, LesionWeights]) -> Rows:
        """Lay rows one after another, by their keys."""
        starts = np.cumsum([0, *(len(row.voxels) for row in rows.values())])
        voxels = np.concatenate([row.voxels for row in rows.values()])
        return cls(tuple(rows), starts, voxels, np.concatenate([row.weights for row in rows.values()]))

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.keys)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each row's voxels and weights, by its key."""
        return {
            key: hashlib.sha256(self.voxels[first:stop].tobytes() + self.weights[first:stop].tobytes()).hexdigest()
            for key, (first, stop) in zip(self.keys, pairwise(self.starts.tolist()), strict=True)
        }


def bounds(affine: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Tell the lowest and the highest coordinates that a volume reaches, to its voxels' outer edges."""
    corners = nib.affines.apply_affine(affine, list(product(*[(-0.5, n - 0.5) for n in shape])))
    return corners.min(axis=0), corners.max(axis=0)


def weigh(lesion: Array, affine: Array, grid: Grid) -> tuple[Array, Array]:
    """Compute the share of each grid voxel's volume that a lesion covers, times what the lesion's voxels weigh.

    Exact between axis-aligned grids, whatever their axes' order, direction and voxel sizes. Between oblique
    grids, lesion voxels are cut into pieces of at most a quarter of a grid voxel, and each piece's volume goes
    to the voxel that holds its centre; a share may then exceed 1 by what a few pieces hold, since the volume is
    conserved in either case.

    Parameters
    ----------
    lesion : shape (x, y, z), boolean, or real numbers from 0 to 1
    affine : shape (4, 4)
        The lesion's voxel indices to millimetres.
    grid
        The connectome's; its brain mask is not applied here.

    Returns
    -------
    corner : shape (3,)
        The grid voxel that the box begins at.
    shares : shape (x, y, z), float64
        Of a box of grid voxels; beyond it the lesion covers none. Of length 0 where the lesion is outside the grid.
    """
    to_grid = np.linalg.inv(grid.affine) @ affine
    low, high = bounds(to_grid, lesion.shape)
    corner, end = (np.clip(edge, 0, grid.shape).astype(int) for edge in (np.floor(low), np.ceil(high) + 1))
    to_box = to_grid.copy()
    to_box[:3, 3] -= corner
    axis_of = np.abs(to_grid[:3, :3]).argmax(axis=1)
    shear = to_grid[:3, :3].copy()
    shear[range(3), axis_of] = 0
    shift = np.abs(shear) @ np.array(lesion.shape)
    if set(axis_of) == {0, 1, 2} and shift.max() < AXIS_ALIGNED_TOLERANCE:
        return corner, _weigh_aligned(lesion, to_box, axis_of, end - corner)
    return corner, _weigh_oblique(lesion, to_box, end - corner)


def _weigh_aligned(lesion: Array, to_box: Array, axis_of: Array, shape: Array) -> Array:
    """Apply the overlap of lesion-voxel edges with grid-voxel edges along each axis in turn."""
    centre = (np.array(lesion.shape) - 1) / 2
    overlaps = []
    for axis, lesion_axis in enumerate(axis_of):
        # Any shear below the tolerance is taken at the lesion's centre.
        offset = to_box[axis, 3] + to_box[axis, :3] @ centre - to_box[axis, lesion_axis] * centre[lesion_axis]
        edges = offset + to_box[axis, lesion_axis] * (np.arange(lesion.shape[lesion_axis] + 1) - 0.5)
        edges = edges.round(EDGE_DECIMALS)
        low, high = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
        grid_low = np.arange(shape[axis])[:, np.newaxis] - 0.5
        overlaps.append(np.clip(np.minimum(high, grid_low + 1) - np.maximum(low, grid_low), 0, None))
    along_x, along_y, along_z = overlaps
    # Plane by plane: the whole lesion in float64 would take eight times the memory of its mask.
    planes = np.moveaxis(lesion.transpose(axis_of), 2, 0)
    flat = np.stack([along_x @ plane.astype(float) @ along_y.T for plane in planes])
    return np.moveaxis(np.tensordot(along_z, flat, axes=1), 0, 2)


def _weigh_oblique(lesion: Array, to_box: Array, shape: Array) -> Array:
    """Give each piece's volume, times its voxel's weight, to the grid voxel that holds its centre."""
    n_pieces = np.ceil(np.linalg.norm(to_box[:3, :3], axis=0) / PIECE_WIDTH).astype(int)
    piece_volume = abs(np.linalg.det(to_box[:3, :3])) / n_pieces.prod()
    cuts = (np.indices(n_pieces).reshape(3, -1).T + 0.5) / n_pieces - 0.5
    within_voxel = cuts @ to_box[:3, :3].T
    counts = np.zeros(shape.prod())
    places = np.flatnonzero(lesion)
    weights = lesion.ravel()[places]
    at_a_time = max(1, PIECES_AT_ONCE // len(cuts))
    for start in range(0, len(places), at_a_time):
        voxels = np.stack(np.unravel_index(places[start : start + at_a_time], lesion.shape), axis=1)
        centres = nib.affines.apply_affine(to_box, voxels)[:, np.newaxis] + within_voxel
        nearest = np.rint(centres.reshape(-1, 3)).astype(np.int64)
        inside = np.all((nearest >= 0) & (nearest < shape), axis=1)
        numbers = np.ravel_multi_index(tuple(nearest[inside].T), tuple(shape))
        piece_weights = np.repeat(weights[start : start + at_a_time], len(cuts))[inside]
        counts += np.bincount(numbers, piece_weights, minlength=len(counts))
    return (counts * piece_volume).reshape(shape)
