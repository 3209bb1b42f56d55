"""Damage of regions: the volume of a lesion in each region of an atlas, counted between mask and atlas themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from bids_lacuna import transforms
from bids_lacuna.grid import Grid, shift
from bids_lacuna.images import open_image
from bids_lacuna.lesion import LesionData
from bids_lacuna.lesion_masks import check_header, read_mask
from bids_lacuna.parcels.atlas import Atlas
from bids_lacuna.parcels.lookup import blocks_of, count_pieces
from bids_lacuna.transforms import TransformChain
from bids_lacuna.weights import find_axes, weigh

Array = np.ndarray

PIECE_MM = 0.25
"""Largest width of the pieces of a mask's voxel that are looked up in an atlas through transforms."""

TRANSFORMED_PIECE_MM = 0.5
"""Largest width of the pieces of the connectome's voxels that are looked up both in a mask through transforms, and in
an atlas."""


@dataclass(frozen=True, eq=False)
class LesionedVolumes:
    """The volume of a lesion in the regions of an atlas."""

    of_regions_mm3: Array
    """Shape (n_regions + 1,): in each region, and last of all outside; they add up to the lesion's volume."""

    @property
    def fractions(self) -> Array:
        """Fraction of the lesion in each region and outside: they add up to 1."""
        return self.of_regions_mm3 / self.of_regions_mm3.sum()


@dataclass(frozen=True, eq=False)
class DamageCounter:
    """Counts lesions in an atlas; what lesions share is made once."""

    atlas: Atlas
    grid: Grid
    """Grid of the connectome, on whose voxels a lesion and an atlas meet that both come through transforms."""
    chain: TransformChain | None = None
    """Transforms from the atlas' space to the connectome's."""

    def count(self, lesion: LesionData, threshold: float | None = None) -> LesionedVolumes:
        """Count a lesion.

        The mask is weighed on the atlas' voxels as on a connectome's, which is exact between axis-aligned grids.
        Otherwise, and through transforms of the atlas, the mask's voxels are cut into pieces, which are looked up in
        the atlas. Through transforms of the mask, the pieces are those of the connectome's voxels.

        Parameters
        ----------
        threshold
            Smallest probability that counts; None for binary masks.

        Raises
        ------
        ValueError, OSError
            The mask cannot be read: see `load_lesion`.
        """
        image = open_image(lesion.mask, "mask") if isinstance(lesion.mask, Path) else lesion.mask
        check_header(image)
        corner, box = read_mask(image, threshold)
        affine = shift(image.affine, corner)
        if lesion.transform:
            volumes = self._meet(lesion.transform, box, affine)
        elif self.chain or find_axes(np.linalg.inv(self.atlas.affine) @ affine, box.shape) is None:
            volumes = self._cut(box, affine)
        else:
            volumes = self._weigh(box, affine)
        return LesionedVolumes(volumes)

    @cached_property
    def _finder(self) -> transforms.resampling.VoxelFinder:
        return transforms.resampling.VoxelFinder(self.chain, self.atlas.affine, self.atlas.shape)

    def _weigh(self, box: Array, affine: Array) -> Array:
        """Weigh a mask on the atlas' voxels."""
        grid = Grid(np.broadcast_to(np.True_, self.atlas.shape), self.atlas.affine)
        corner, weights = weigh(box, affine, grid)
        covered = np.nonzero(weights)
        voxels = np.ravel_multi_index(tuple(np.add(covered, corner[:, np.newaxis])), self.atlas.shape)
        whole_mm3 = box.sum(dtype=float) * abs(np.linalg.det(affine[:3, :3]))
        return self._add_up(voxels, weights[covered] * self.atlas.voxel_volume_mm3, whole_mm3)

    def _cut(self, box: Array, affine: Array) -> Array:
        """Cut the voxels of a mask, and look each piece up in the atlas."""
        in_atlas, n_pieces = self._finder.within(affine), count_pieces(affine, PIECE_MM)
        volume_mm3 = abs(np.linalg.det(affine[:3, :3])) / prod(n_pieces.tolist())
        counts = np.zeros(prod(self.atlas.shape))
        for corner, block in blocks_of(box.shape):
            values = box[block].reshape(-1)
            if values.any():
                found = in_atlas.find(corner, box[block].shape, n_pieces)
                self._count(counts, found, np.broadcast_to(values[:, np.newaxis], found.shape))
        whole_mm3 = box.sum(dtype=float) * abs(np.linalg.det(affine[:3, :3]))
        voxels = np.flatnonzero(counts)
        return self._add_up(voxels, counts[voxels] * volume_mm3, whole_mm3)

    def _meet(self, chain: TransformChain, box: Array, affine: Array) -> Array:
        """Cut the connectome's voxels, and look each piece up in the mask and in the atlas."""
        finder = transforms.resampling.VoxelFinder(chain, affine, box.shape)
        first, shape = finder.find_box(self.grid)
        in_mask, in_atlas = finder.within(self.grid.affine), self._finder.within(self.grid.affine)
        n_pieces = count_pieces(self.grid.affine, TRANSFORMED_PIECE_MM)
        volume_mm3 = self.grid.voxel_volume_mm3 / prod(n_pieces.tolist())
        # The last element stands for what is outside the mask.
        of_mask = np.append(box.reshape(-1), 0).astype(float)
        counts, n_lesioned = np.zeros(prod(self.atlas.shape)), 0.0
        for corner, block in blocks_of(shape.tolist()):
            n_voxels = [part.stop - part.start for part in block]
            values = of_mask[in_mask.find(first + corner, n_voxels, n_pieces)]
            if values.any():
                n_lesioned += values.sum()
                self._count(counts, in_atlas.find(first + corner, n_voxels, n_pieces), values)
        voxels = np.flatnonzero(counts)
        return self._add_up(voxels, counts[voxels] * volume_mm3, n_lesioned * volume_mm3)

    def _count(self, counts: Array, found: Array, values: Array) -> None:
        """Add the values of pieces to the voxels of the atlas in which they lie."""
        counted = (found >= 0) & (values > 0)
        voxels = found[counted]
        if len(voxels):
            # The pieces of a block lie close together: to count them there takes a fifth of the time of np.add.at.
            first = voxels.min()
            nearby = np.bincount(voxels - first, values[counted])
            counts[first : first + len(nearby)] += nearby

    def _add_up(self, voxels: Array, volumes_mm3: Array, whole_mm3: float) -> Array:
        """Add up the volumes of a lesion in voxels of the atlas by region; the rest is outside."""
        of_regions = self.atlas.weights[voxels].T @ volumes_mm3
        return np.append(of_regions, max(0.0, whole_mm3 - of_regions.sum()))
