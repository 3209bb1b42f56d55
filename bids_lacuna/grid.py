"""The connectome's voxel grid: the positions of its voxels, and conversion between volumes and voxel vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np

Array = np.ndarray

SAME_PLACE = 2e-3
"""Largest difference between equal grids, as a fraction of a voxel: of the origin, and of a step along each axis.
Affines are stored in float32 and as quaternions, whose rounding is largest for rotations by 180°."""

DISAGREEMENT = 0.5
"""Largest distance between a voxel's positions by the two affines of a header, as a fraction of a voxel, without a
warning."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A brain mask in world coordinates, with its voxels in C order."""

    mask: Array
    """Shape (x, y, z), boolean: voxels with a time series."""
    affine: Array
    """Shape (4, 4): from voxel indices to millimetres."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the volume."""
        return self.mask.shape

    @cached_property
    def n_voxels(self) -> int:
        """Number of voxels inside the mask: the length of a voxel vector."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def voxel_indices(self) -> Array:
        """Shape (x, y, z), int32: index of each voxel in a voxel vector; -1 outside the mask."""
        return self.volume(np.arange(self.n_voxels, dtype=np.int32), outside=-1)

    @cached_property
    def _indices_in_file(self) -> Array:
        """Shape (n_voxels,): index of each voxel of a voxel vector in a volume in Fortran order."""
        return np.ravel_multi_index(np.nonzero(self.mask), self.shape, order="F")

    @cached_property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @cached_property
    def to_voxels(self) -> Array:
        """Shape (4, 4): from millimetres to voxel indices."""
        return np.linalg.inv(self.affine)

    @property
    def voxel_sizes_mm(self) -> Array:
        """Shape (3,): edge lengths of one voxel in mm."""
        return nib.affines.voxel_sizes(self.affine)

    def volume(self, values: Array, outside: float = np.nan) -> Array:
        """Convert a voxel vector to a volume.

        Parameters
        ----------
        values : shape (n_voxels,)
            One value for each voxel of the mask.
        outside
            Value of the voxels outside the mask.

        Returns
        -------
        shape (x, y, z), of the values' dtype
            In Fortran order, as in a NIfTI file.
        """
        volume = np.full(self.mask.size, outside, dtype=values.dtype)
        volume[self._indices_in_file] = values
        return volume.reshape(self.shape, order="F")

    def vector(self, volume: Array) -> Array:
        """Convert a volume to a voxel vector: the inverse of `volume`."""
        return volume[self.mask]

    def __str__(self) -> str:
        """Describe the grid for people."""
        return f"{self.n_voxels} voxels in {self.extent}"

    @property
    def extent(self) -> str:
        """Describe the volume without the mask, for people."""
        return self.describe_extent()

    def describe_extent(self, n_digits: int = 6) -> str:
        """Describe the volume without the mask, for people, with so many digits of each number."""
        sizes = " x ".join(f"{size:.{n_digits}g}" for size in self.voxel_sizes_mm)
        origin = ", ".join(f"{x:.{n_digits}g}" for x in self.affine[:3, 3])
        return f"a volume {self.shape} of {sizes} mm voxels from ({origin})"

    def describe_affine(self, n_digits: int = 6) -> str:
        """Describe the volume by its affine, for people."""
        rows = "; ".join(" ".join(f"{x:.{n_digits}g}" for x in row) for row in self.affine[:3])
        return f"a volume {self.shape} with the affine ({rows})"

    def is_same_as(self, other: Grid) -> bool:
        """Return whether another grid has the same voxels at the same positions."""
        return self.lies_as(other) and np.array_equal(self.mask, other.mask)

    def lies_as(self, other: Grid) -> bool:
        """Return whether another grid has the same volume at the same position, whatever the masks."""
        return self.shape == other.shape and is_same_place(self.affine, other.affine)


def is_same_place(affine: Array, other: Array) -> bool:
    """Return whether two affines place voxels at the same positions, apart from rounding."""
    try:
        return bool(np.abs(np.linalg.solve(affine, other) - np.eye(4)).max() <= SAME_PLACE)
    # A singular affine gives no positions.
    except np.linalg.LinAlgError:
        return False


def tell_grids_apart(grid: Grid, other: Grid) -> tuple[str, str]:
    """Describe two grids that differ, so that the descriptions differ."""
    for describe in (Grid.describe_extent, Grid.describe_affine):
        for n_digits in range(6, 18):
            words = describe(grid, n_digits), describe(other, n_digits)
            if words[0] != words[1]:
                return words
    ours, theirs = np.count_nonzero(grid.mask & ~other.mask), np.count_nonzero(other.mask & ~grid.mask)
    return f"{grid}, {ours} of them its own", f"{other}, {theirs} of them its own"


def order_voxels(indices: Array, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
    """Make a mask from voxels listed in any order, and the permutation that sorts them in C order.

    Parameters
    ----------
    indices : shape (3, n_voxels), integer
        Voxel indices within `shape`.
    shape
        Shape of the volume.

    Returns
    -------
    mask : shape `shape`, boolean
    order : shape (n_voxels,), or None
        Index in the list of each voxel of the mask; None if the list is in C order.

    Raises
    ------
    ValueError
        A voxel is listed twice.
    """
    numbers = np.ravel_multi_index(tuple(indices.astype(np.int64)), shape)
    order = None if (np.diff(numbers) > 0).all() else np.argsort(numbers, kind="stable")
    if order is not None and (np.diff(numbers[order]) == 0).any():
        raise ValueError("a voxel is listed twice")
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(indices)] = True
    return mask, order


def shift(affine: Array, voxel: Sequence[int] | Array) -> Array:
    """Return the affine of a box that begins at a voxel."""
    moved = affine.copy()
    moved[:3, 3] = nib.affines.apply_affine(affine, voxel)
    return moved
