"""The connectome's voxel grid: the positions of its voxels, and conversion between volumes and voxel vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np

Array = np.ndarray


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

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

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
        """
        volume = np.full(self.shape, outside, dtype=values.dtype)
        volume[self.mask] = values
        return volume

    def vector(self, volume: Array) -> Array:
        """Convert a volume to a voxel vector: the inverse of `volume`."""
        return volume[self.mask]

    def __str__(self) -> str:
        """Describe the grid for people."""
        return f"{self.n_voxels} voxels in {self.extent}"

    @property
    def extent(self) -> str:
        """Describe the volume without the mask, for people."""
        sizes = " x ".join(f"{size:g}" for size in self.voxel_sizes_mm)
        origin = ", ".join(f"{x:g}" for x in self.affine[:3, 3])
        return f"a volume {self.shape} of {sizes} mm voxels from ({origin})"

    def is_same_as(self, other: Grid) -> bool:
        """Return whether another grid has the same voxels at the same positions."""
        return (
            self.shape == other.shape
            and np.allclose(self.affine, other.affine, rtol=0, atol=1e-4)
            and np.array_equal(self.mask, other.mask)
        )


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
