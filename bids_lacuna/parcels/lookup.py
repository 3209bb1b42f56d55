"""Volumes in blocks, and their voxels in pieces, which are looked up in the voxels of another image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import nibabel as nib
import numpy as np

Array = np.ndarray

BLOCK = 8
"""Edge, in voxels, of the blocks that are cut into pieces at a time."""


def count_pieces(affine: Array, width_mm: float) -> Array:
    """Return into how many pieces of at most this width a voxel is cut along each axis."""
    return np.ceil(nib.affines.voxel_sizes(affine) / width_mm - 1e-6).astype(int)


def blocks_of(shape: Sequence[int]) -> Iterator[tuple[Array, tuple[slice, ...]]]:
    """Divide a volume into blocks: the first voxel of each, and its region."""
    for start in product(*(range(0, n, BLOCK) for n in shape)):
        yield np.array(start), tuple(slice(a, min(a + BLOCK, n)) for a, n in zip(start, shape, strict=True))
