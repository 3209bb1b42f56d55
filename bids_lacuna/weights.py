"""Weights of lesions on a grid, computed from their masks, and spheres as masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import pi
from typing import Literal

import nibabel as nib
import numpy as np

from bids_lacuna.grid import Grid

Array = np.ndarray
Weighting = Literal["volume", "binary"]

AXIS_ALIGNED_TOLERANCE = 1e-3
"""Largest shift of a lesion voxel, in grid voxels, for which two grids count as axis-aligned."""

EDGE_DECIMALS = 4
"""Decimals of voxel edges, in grid voxels: affines are stored as float32, and adjacent edges must meet exactly."""

PIECE_WIDTH = 0.25
"""Largest width, in grid voxels, of the pieces into which lesion voxels are cut between oblique grids."""

PIECES_AT_ONCE = 2**16
"""Pieces assigned to grid voxels at a time: each takes about 100 bytes, and a lesion may have ten million."""

SPHERE_VOXEL_MM = 0.25
"""Largest edge of the voxels of a mask of spheres, if they lie so close together that it is small."""

LARGEST_SPHERES = 2**24
"""Voxels of a mask of spheres, about, above which it has larger ones."""

VOXELS_PER_RADIUS = (4.0, 2.5)
"""Voxels of a mask of spheres along the smallest radius: wanted, and needed for a volume within 1 %."""


@dataclass(frozen=True, eq=False)
class LesionWeights:
    """The weights of a lesion on the connectome's grid."""

    voxels: Array
    """Shape (n,), int32: indices of the connectome voxels that the lesion covers, ascending."""
    weights: Array
    """Shape (n,), float32: fraction of each voxel's volume that the lesion covers, times the lesion's probability
    there; 1 with binary weighting."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of weights on a grid that one pass maps, as compressed sparse rows.

    A lesion is one source of a row.
    """

    keys: tuple[str, ...]
    """Name of each row, by which a later run recognizes it."""
    starts: Array
    """Shape (n_rows + 1,), int64: index of each row's start in `voxels` and `weights`, and of the last row's end."""
    voxels: Array
    """Shape (total,), int32: voxels of the grid, in ascending order within a row."""
    weights: Array
    """Shape (total,), float32."""

    @classmethod
    def of(cls, rows: Mapping[str, LesionWeights]) -> Rows:
        """Join rows, given by their keys."""
        starts = np.cumsum([0, *(len(row.voxels) for row in rows.values())])
        voxels = np.concatenate([row.voxels for row in rows.values()])
        return cls(tuple(rows), starts, voxels, np.concatenate([row.weights for row in rows.values()]))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each row's voxels and weights, by its key."""
        return {
            key: hashlib.sha256(self.voxels[first:stop].tobytes() + self.weights[first:stop].tobytes()).hexdigest()
            for key, (first, stop) in zip(self.keys, pairwise(self.starts.tolist()), strict=True)
        }


def bounds(affine: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the lowest and highest coordinates of a volume, at the outer edges of its voxels."""
    corners = nib.affines.apply_affine(affine, list(product(*[(-0.5, n - 0.5) for n in shape])))
    return corners.min(axis=0), corners.max(axis=0)


def weigh(lesion: Array, affine: Array, grid: Grid) -> tuple[Array, Array]:
    """Compute the fraction of each grid voxel's volume that a lesion covers, times the lesion voxels' weights.

    The result is exact between axis-aligned grids, for any order, direction and size of their axes. Between oblique
    grids, lesion voxels are cut into pieces at most a quarter of a grid voxel wide, and the volume of each piece is
    assigned to the voxel that contains its centre. A weight may then exceed 1 by the volume of a few pieces, since
    the total volume is conserved in both cases.

    Parameters
    ----------
    lesion : shape (x, y, z), boolean, or real numbers from 0 to 1
    affine : shape (4, 4)
        Affine from the lesion's voxel indices to positions in mm.
    grid
        Grid of the connectome; its brain mask is not applied.

    Returns
    -------
    corner : shape (3,)
        Indices of the box's first voxel in the grid.
    weights : shape (x, y, z), float64
        Weights of a box of grid voxels; the lesion covers none outside it. An axis has length 0 if the lesion lies
        outside the grid.
    """
    to_grid = grid.to_voxels @ affine
    low, high = bounds(to_grid, lesion.shape)
    corner, end = (np.clip(edge, 0, grid.shape).astype(int) for edge in (np.floor(low), np.ceil(high) + 1))
    to_box = to_grid.copy()
    to_box[:3, 3] -= corner
    axis_of = find_axes(to_grid, lesion.shape)
    if axis_of is not None:
        return corner, _weigh_aligned(lesion, to_box, axis_of, end - corner)
    return corner, _weigh_oblique(lesion, to_box, end - corner)


def find_axes(to_grid: Array, shape: tuple[int, ...]) -> Array | None:
    """Return which axis of a volume each axis of a grid is parallel to; None between oblique grids.

    Parameters
    ----------
    to_grid : shape (4, 4)
        Affine from the volume's voxel indices to the grid's.
    shape
        Voxels of the volume along each axis.
    """
    axis_of = np.abs(to_grid[:3, :3]).argmax(axis=1)
    shear = to_grid[:3, :3].copy()
    shear[range(3), axis_of] = 0
    shift = np.abs(shear) @ np.array(shape)
    return axis_of if set(axis_of) == {0, 1, 2} and shift.max() < AXIS_ALIGNED_TOLERANCE else None


def _weigh_aligned(lesion: Array, to_box: Array, axis_of: Array, shape: Array) -> Array:
    """Multiply the lesion by the overlaps of lesion voxels with grid voxels, along one axis after another."""
    centre = (np.array(lesion.shape) - 1) / 2
    overlaps = []
    for axis, lesion_axis in enumerate(axis_of):
        # Any shear below the tolerance is taken at the lesion's centre.
        offset = to_box[axis, 3] + to_box[axis, :3] @ centre - to_box[axis, lesion_axis] * centre[lesion_axis]
        edges = offset + to_box[axis, lesion_axis] * (np.arange(lesion.shape[lesion_axis] + 1) - 0.5)
        edges = edges.round(EDGE_DECIMALS)
        low, high = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
        grid_low = np.arange(shape[axis])[:, np.newaxis] - 0.5
        overlaps.append(np.maximum(np.minimum(high, grid_low + 1) - np.maximum(low, grid_low), 0))
    along_x, along_y, along_z = overlaps
    # One plane at a time: the whole lesion in float64 would take eight times the memory of its mask.
    planes = lesion.transpose(axis_of).transpose(2, 0, 1)
    flat = np.stack([along_x @ plane.astype(float) @ along_y.T for plane in planes])
    return np.tensordot(along_z, flat, axes=1).transpose(1, 2, 0)


def _weigh_oblique(lesion: Array, to_box: Array, shape: Array) -> Array:
    """Add each piece's volume, times its voxel's weight, to the grid voxel that contains its centre."""
    n_pieces = np.ceil(np.linalg.norm(to_box[:3, :3], axis=0) / PIECE_WIDTH).astype(int)
    piece_volume = abs(np.linalg.det(to_box[:3, :3])) / n_pieces.prod()
    cuts = (np.indices(n_pieces).reshape(3, -1).T + 0.5) / n_pieces - 0.5
    within_voxel = cuts @ to_box[:3, :3].T
    counts = np.zeros(shape.prod())
    indices = np.flatnonzero(lesion)
    weights = lesion.ravel()[indices]
    at_a_time = max(1, PIECES_AT_ONCE // len(cuts))
    for start in range(0, len(indices), at_a_time):
        voxels = np.stack(np.unravel_index(indices[start : start + at_a_time], lesion.shape), axis=1)
        centres = nib.affines.apply_affine(to_box, voxels)[:, np.newaxis] + within_voxel
        nearest = np.rint(centres.reshape(-1, 3)).astype(np.int64)
        inside = np.all((nearest >= 0) & (nearest < shape), axis=1)
        targets = np.ravel_multi_index(tuple(nearest[inside].T), tuple(shape))
        piece_weights = np.repeat(weights[start : start + at_a_time], len(cuts))[inside]
        counts += np.bincount(targets, piece_weights, minlength=len(counts))
    return (counts * piece_volume).reshape(shape)


def make_spheres(centres_mm: Array, radii_mm: Array) -> tuple[Array, Array]:
    """Make a mask of spheres, in which what several of them share is contained once.

    Each sphere has the voxels nearest to its centre whose number fits its volume best.

    Parameters
    ----------
    centres_mm : shape (n, 3)
    radii_mm : shape (n,)

    Returns
    -------
    mask : shape (x, y, z), boolean
    affine : shape (4, 4)
        Affine from the mask's voxel indices to positions in mm.

    Raises
    ------
    ValueError
        A number is not finite, a radius is not positive, or small spheres lie too far apart for one mask.
    """
    if not (np.isfinite(centres_mm).all() and np.isfinite(radii_mm).all() and (radii_mm > 0).all()):
        raise ValueError("a sphere needs finite x, y, z and a radius above 0, all in mm: correct these numbers")
    low, high = (centres_mm - radii_mm[:, None]).min(axis=0), (centres_mm + radii_mm[:, None]).max(axis=0)
    wanted, needed = (float(radii_mm.min()) / n for n in VOXELS_PER_RADIUS)
    edge = max(min(SPHERE_VOXEL_MM, wanted), float(np.cbrt((high - low).prod() / LARGEST_SPHERES)))
    if edge > needed:
        span = " x ".join(f"{length:.0f}" for length in high - low)
        raise ValueError(
            f"spheres of one seed, with radii from {radii_mm.min():g} mm, span {span} mm, too far for a mask "
            f"with voxels of {needed:.2g} mm: give them different labels, or larger radii"
        )
    mask = np.zeros(np.ceil((high - low) / edge).astype(int) + 2, dtype=bool)
    affine = nib.affines.from_matvec(np.diag([edge] * 3), low - edge / 2)
    for centre, radius in zip((centres_mm - affine[:3, 3]) / edge, radii_mm / edge, strict=True):
        _add_sphere(mask, centre, radius)
    return mask, affine


def _add_sphere(mask: Array, centre: Array, radius: float) -> None:
    """Add a sphere to a mask, all lengths in voxels."""
    first, end = np.floor(centre - radius).astype(int), np.ceil(centre + radius).astype(int) + 1
    box = tuple(map(slice, np.maximum(first, 0), np.minimum(end, mask.shape)))
    distances = np.sqrt(sum(np.square(index - x) for index, x in zip(np.ogrid[box], centre, strict=True)))
    inside = distances < radius - 1
    border = np.flatnonzero(~inside & (distances < radius + 1))
    n_left = round(4 / 3 * pi * radius**3) - int(np.count_nonzero(inside))
    # A stable order: the same coordinates give the same mask.
    nearest = border[np.argsort(distances.ravel()[border], kind="stable")[:n_left]]
    inside.ravel()[nearest] = True
    mask[box] |= inside
