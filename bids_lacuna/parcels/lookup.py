"""Points of one space looked up in the voxels of an image in another, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from bids_lacuna.transforms import TransformChain

if TYPE_CHECKING:
    from bids_lacuna.transforms.resampling import VoxelFinder

Array = np.ndarray

BLOCK = 8
"""Edge, in voxels, of the blocks that are cut into pieces at a time."""


def make_finder(chain: TransformChain | None, affine: Array, shape: tuple[int, ...]) -> VoxelFinder:
    """Make what looks points up in an image: see `VoxelFinder`."""
    # SimpleITK takes time to import, and few atlases need it.
    from bids_lacuna.transforms.resampling import VoxelFinder

    return VoxelFinder(chain, affine, shape)


def count_pieces(affine: Array, width_mm: float) -> Array:
    """Return into how many pieces of at most this width a voxel is cut along each axis."""
    return np.ceil(nib.affines.voxel_sizes(affine) / width_mm - 1e-6).astype(int)


def blocks_of(shape: Sequence[int]) -> Iterator[tuple[Array, tuple[slice, ...]]]:
    """Divide a volume into blocks: the first voxel of each, and its region."""
    for start in product(*(range(0, n, BLOCK) for n in shape)):
        yield np.array(start), tuple(slice(a, min(a + BLOCK, n)) for a, n in zip(start, shape, strict=True))


def shift(affine: Array, voxel: Sequence[int] | Array) -> Array:
    """Return the affine of a box that begins at a voxel."""
    moved = affine.copy()
    moved[:3, 3] = nib.affines.apply_affine(affine, voxel)
    return moved
