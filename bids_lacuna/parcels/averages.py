"""Means of maps over the regions of an atlas, weighted by the volume of each voxel in each region."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from scipy import sparse

from bids_lacuna import transforms
from bids_lacuna.grid import Grid, shift
from bids_lacuna.parcels.atlas import Atlas
from bids_lacuna.parcels.lookup import blocks_of
from bids_lacuna.transforms import TransformChain
from bids_lacuna.weights import weigh

Array = np.ndarray

LEAST_WEIGHT = 1e-6
"""Smaller fractions of a voxel are rounding."""

N_PIECES = 4
"""Pieces of a grid voxel along each axis that are looked up in an atlas through transforms: a quarter of a voxel, as
between oblique grids."""


@dataclass(frozen=True, eq=False)
class Averages:
    """What the regions of an atlas, and last of all what is outside, have of a map; shapes (n_regions + 1,)."""

    means: Array
    """NaN for a region without a defined voxel."""
    n_voxels: Array
    """Defined voxels of the map that lie in the region, at least in part."""
    covered_mm3: Array
    """Volume of the region in these voxels."""


@dataclass(frozen=True, eq=False)
class PlacedAtlas:
    """The regions of an atlas as weights on a grid."""

    voxels: Array
    """Shape (n,), int32: a voxel of the grid's mask for each weight."""
    regions: Array
    """Shape (n,), int32: number of the region in `Atlas.regions`; what is outside has the next number."""
    weights: Array
    """Shape (n,), float64: fraction of the voxel's volume in the region, times the probability of the region."""
    volumes_mm3: Array
    """Volume of each region in the space of the grid, also outside its mask: shape (n_regions,)."""
    voxel_volume_mm3: float

    def average(self, values: Array) -> Averages:
        """Average the values of the grid's voxels, shape (n_voxels,), over the regions; NaN counts nowhere."""
        of_pairs = values[self.voxels]
        defined = np.isfinite(of_pairs)
        regions, weights = self.regions[defined], self.weights[defined]
        n = len(self.volumes_mm3) + 1
        sums = np.bincount(regions, weights * of_pairs[defined], n)
        covered = np.bincount(regions, weights, n)
        means = np.divide(sums, covered, out=np.full(n, np.nan), where=covered > 0)
        return Averages(means, np.bincount(regions, minlength=n), covered * self.voxel_volume_mm3)

    def strongest(self, n_voxels: int) -> Array:
        """Return the number of the region with the largest weight in each voxel: shape (n_voxels,)."""
        strongest = np.empty(n_voxels, np.int32)
        # Of several assignments to one voxel, the last stays.
        order = np.argsort(self.weights, kind="stable")
        strongest[self.voxels[order]] = self.regions[order]
        return strongest


def place_atlas(atlas: Atlas, grid: Grid, chain: TransformChain | None = None) -> PlacedAtlas:
    """Compute the fraction of each voxel of a grid's mask in each region of an atlas.

    Without transforms, each region is weighed as lesions are: exact between axis-aligned grids. Through transforms,
    grid voxels are cut into pieces, and each piece is looked up in the atlas' voxels.

    Parameters
    ----------
    chain
        Transforms from the atlas' space to the grid's.
    """
    if chain:
        weights = _weigh_through(atlas, grid, chain)
        volumes = np.asarray(weights.sum(axis=0)).ravel() * grid.voxel_volume_mm3
    else:
        weights, volumes = _weigh_regions(atlas, grid), atlas.volumes_mm3
    inside = weights[np.flatnonzero(grid.mask)]
    rest = 1 - np.asarray(inside.sum(axis=1)).ravel()
    rest[rest < LEAST_WEIGHT] = 0
    pairs = sparse.hstack([inside, sparse.csr_matrix(rest[:, np.newaxis])]).tocoo()
    kept = pairs.data >= LEAST_WEIGHT
    voxels, regions = pairs.row[kept].astype(np.int32), pairs.col[kept].astype(np.int32)
    return PlacedAtlas(voxels, regions, pairs.data[kept], volumes, grid.voxel_volume_mm3)


def _weigh_regions(atlas: Atlas, grid: Grid) -> sparse.csr_matrix:
    """Weigh one region after another: weights of all voxels of the grid's volume, in C order."""
    by_region = atlas.weights.tocsc()
    rows, columns, data = [], [], []
    for number, (start, stop) in enumerate(zip(by_region.indptr, by_region.indptr[1:], strict=False)):
        if start == stop:
            continue
        where = np.stack(np.unravel_index(by_region.indices[start:stop], atlas.shape))
        low = where.min(axis=1)
        box = np.zeros(where.max(axis=1) - low + 1, np.float32 if atlas.is_probabilistic else bool)
        box[tuple(where - low[:, np.newaxis])] = by_region.data[start:stop]
        corner, weights = weigh(box, shift(atlas.affine, low), grid)
        inside = np.nonzero(weights >= LEAST_WEIGHT)
        rows.append(np.ravel_multi_index(tuple(np.add(inside, corner[:, np.newaxis])), grid.shape))
        columns.append(np.full(len(rows[-1]), number))
        data.append(weights[inside])
    triplets = (np.concatenate(data), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_matrix(triplets, shape=(grid.mask.size, len(atlas.regions)))


def _weigh_through(atlas: Atlas, grid: Grid, chain: TransformChain) -> sparse.csr_matrix:
    """Look the pieces of all voxels of the grid's volume up in the atlas, block by block."""
    finder = transforms.resampling.VoxelFinder(chain, atlas.affine, atlas.shape).within(grid.affine)
    n_pieces = np.full(3, N_PIECES)
    numbers = np.arange(grid.mask.size).reshape(grid.shape)
    rows, columns, data = [], [], []
    for corner, block in blocks_of(grid.shape):
        in_block = numbers[block]
        found = finder.find(corner, in_block.shape, n_pieces)
        row, piece = np.nonzero(found >= 0)
        counts = sparse.csr_matrix(
            (np.ones(len(row), np.float32), (row, found[row, piece])), (len(found), prod(atlas.shape))
        )
        weights = (counts @ atlas.weights).tocoo()
        rows.append(in_block.reshape(-1)[weights.row])
        columns.append(weights.col)
        data.append(weights.data / found.shape[1])
    triplets = (np.concatenate(data).astype(float), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_matrix(triplets, shape=(grid.mask.size, len(atlas.regions)))
