"""Null lesions of 100 ml at 2 mm, against the bare sparse product of their weights with the summary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from scipy import sparse

from benchmarks.data import BRAIN_CENTRE_MM, Data, ball_image
from benchmarks.measure import N_THREADS, Figure, medians, seconds
from bids_lacuna import LesionData, Summary, kernels
from bids_lacuna.mapping.cells import assign_cells
from bids_lacuna.mapping.null_maps import map_nulls, read_shape
from bids_lacuna.mapping.nulls import Connectivity, NullLesion, make_nulls
from bids_lacuna.mapping.places import Tissue

Array = np.ndarray

N_NULLS, N_LESIONS = 1000, 40

RADIUS_MM = 28.8
"""100 ml."""

BLOCK = 2048
"""Voxels in a block of the operator."""


@dataclass(frozen=True)
class SameBlock:
    """An operator whose blocks are all the same random numbers."""

    columns: Array
    voxels: tuple[slice, ...]

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Return the blocks."""
        for voxels in self.voxels:
            yield voxels, self.columns[:, : voxels.stop - voxels.start]


def measure(data: Data) -> Iterator[Figure]:
    """Measure the maps of one lesion's nulls in a block of voxels in the middle of the brain."""
    grid = data.grid
    cells = assign_cells(grid, 8)
    n_cells, n_blocks = int(cells.max()) + 1, math.ceil(grid.n_voxels / BLOCK)
    columns = np.random.default_rng(1).standard_normal((n_cells, BLOCK), dtype=np.float32)
    every = tuple(slice(i * BLOCK, min((i + 1) * BLOCK, grid.n_voxels)) for i in range(n_blocks))
    all_blocks = connectivity_of(data, cells, SameBlock(columns, every))
    half = np.full(grid.shape, 0.5)
    shape = read_shape(LesionData.from_nifti(ball_image(np.array(BRAIN_CENTRE_MM) - [36, 0, 0], RADIUS_MM, 2)), grid)
    with kernels.threads(N_THREADS):
        drawn: list[NullLesion] = []
        draw = seconds(lambda: drawn.append(make_nulls(shape, all_blocks, Tissue(half, half), N_NULLS)))
    lesion = drawn[0]
    one_block = connectivity_of(data, cells, SameBlock(columns, every[n_blocks // 2 : n_blocks // 2 + 1]))
    starts, touched, weights = lesion.seeds[:3]
    matrix = sparse.csr_matrix((weights, touched, starts), (len(lesion.corners), n_cells))

    def mapped(n_threads: int) -> float:
        with kernels.threads(n_threads):
            return seconds(partial(map_nulls, [lesion], one_block))

    took = medians(
        {
            "one": partial(mapped, 1),
            "all": partial(mapped, N_THREADS),
            "bare": partial(seconds, lambda: matrix @ columns),
        }
    )
    note = f"{len(touched) / len(lesion.corners):.0f} cells of {n_cells} each; one thread"
    yield Figure("nulls_over_sparse_product", took["one"] / took["bare"], at_most=1.25, note=note)
    minutes = N_LESIONS * (draw + n_blocks * took["all"]) / 60
    yield Figure("nulls_minutes", minutes, f"{N_LESIONS}", at_most=5, note=f"{N_NULLS} nulls of 100 ml each, at 2 mm")


def connectivity_of(data: Data, cells: Array, operator: SameBlock) -> Connectivity:
    """Make a summary of random numbers."""
    maps = np.random.default_rng(2).standard_normal((5, data.grid.n_voxels)).astype(np.float32)
    arrays = SimpleNamespace(
        cells=cells,
        covariance=np.eye(int(cells.max()) + 1, dtype=np.float32),
        operator=operator,
        degree=maps[0],
        absolute_degree=maps[1],
        components=maps[2:],
    )
    return Connectivity.of(Summary(cast("Any", arrays), data.grid, "MNI152NLin6Asym"))
