"""Small summaries of made-up connectomes for null lesions, without files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import synthetic

from bids_lacuna.grid import Grid
from bids_lacuna.mapping.cells import assign_cells
from bids_lacuna.mapping.nulls import Connectivity
from bids_lacuna.mapping.places import Shape, Tissue
from bids_lacuna.mapping.summary import Summary

Array = np.ndarray

SHAPE = (16, 19, 17)
"""A volume of more voxels than two blocks, with space for a hundred places on each side."""

BLOCK = 2048


@dataclass
class Operator:
    """Covariances in memory, in blocks as on disk."""

    by_voxel: Array

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Return the blocks, one after another."""
        for start in range(0, self.by_voxel.shape[1], BLOCK):
            block = slice(start, min(start + BLOCK, self.by_voxel.shape[1]))
            yield block, self.by_voxel[:, block]


def make_grid(shape: tuple[int, int, int] = SHAPE, size_mm: float = 4) -> Grid:
    """Make a grid whose brain is most of the volume, with x = 0 between two voxels or in one."""
    affine = np.diag([-size_mm, size_mm, size_mm, 1.0])
    affine[:3, 3] = size_mm * (np.array(shape) - 1) / 2 * [1, -1, -1]
    return Grid(synthetic.make_mask(shape=shape), affine)


def make_tissue(grid: Grid, seed: int = 3) -> Tissue:
    """Make tissue that is mostly, but not everywhere, half grey and half white."""
    rng = np.random.default_rng(seed)
    grey = np.clip(0.5 + 0.3 * rng.standard_normal(grid.shape), 0, 1)
    return Tissue(grey, 1 - grey)


def make_connectivity(grid: Grid, n_undefined: int = 5) -> Connectivity:
    """Make a connectome's summary: cells covary, and voxels follow their cell; some voxels are undefined."""
    rng = np.random.default_rng(7)
    cells = assign_cells(grid, 8)
    series = rng.standard_normal((cells.max() + 1, 60)) + rng.standard_normal(60)
    voxels = series[cells] + rng.standard_normal((grid.n_voxels, 60))
    voxels /= np.linalg.norm(voxels, axis=1, keepdims=True)
    by_voxel = (series @ voxels.T).astype(np.float32)
    degree = voxels @ voxels.sum(axis=0) / grid.n_voxels
    by_voxel[:, :n_undefined], degree[:n_undefined] = np.nan, np.nan
    arrays = SimpleNamespace(
        cells=cells,
        covariance=(series @ series.T).astype(np.float32),
        operator=Operator(by_voxel),
        degree=degree.astype(np.float32),
        absolute_degree=np.abs(degree + 0.01 * rng.standard_normal(len(degree))).astype(np.float32),
        components=rng.standard_normal((3, len(degree))).astype(np.float32),
    )
    return Connectivity.of(Summary(cast("Any", arrays), grid, "MNI152NLin6Asym"))


def make_shape(corner: tuple[int, int, int] = (3, 6, 7), size: tuple[int, int, int] = (2, 3, 3)) -> Shape:
    """Make a lesion with unequal weights, one of whose corners is not lesioned."""
    weights = np.random.default_rng(11).uniform(0.2, 1, size).astype(np.float32)
    weights[0, 0, 0] = 0
    return Shape(np.array(corner), weights)


def weights_on_grid(shape: Shape, corner: Array, grid: Grid) -> Array:
    """Return a lesion's weights at a place, one voxel after another: shape (n_voxels,)."""
    volume = np.zeros(grid.shape)
    for offset in np.ndindex(*shape.weights.shape):
        voxel = tuple(corner + offset)
        if all(0 <= i < n for i, n in zip(voxel, grid.shape, strict=True)):
            volume[voxel] = shape.weights[offset]
    return grid.vector(volume)
