"""Numba kernels for the summary of a connectome: products of cells' series with voxels' series, and degree.

Each kernel computes what the function of the same name in `reference` defines. Tiles have the same sizes whatever the
number of threads, and one thread at a time adds to a voxel's sums, in the order of subjects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from bids_lacuna.kernels.compiled import cached_njit
from bids_lacuna.kernels.cpu import (
    CONTRACT,
    GROUP,
    PIECES_PER_THREAD,
    TILE,
    as_float32,
    complete_group,
    distribute,
    fisher_z,
    seeds_and_norms,
    standardize,
    threads,
)

Array = np.ndarray
Arrays = tuple[np.ndarray, ...]

CELLS = 512
"""Number of cells whose products are in cache at a time. Passes over a multiple of it round alike."""


def add_products(cells: Sequence[Array], series: Sequence[Array], scale: Sequence[Array], total: Array) -> None:
    """Add some connectome subjects' products of cells' and voxels' series to the running sums, in place.

    Parameters
    ----------
    cells : up to `GROUP` arrays of shape (n_cells, n_timepoints), float32
        Series of each subject's cells; 0 where constant.
    series : arrays of shape (n_voxels, n_timepoints), float32 or int16
    scale : arrays of shape (n_voxels,), float32
        From `standardize` or `quantize`. A constant voxel adds nothing.
    total : shape (n_cells, n_voxels), float32
        Sums over connectome subjects, read and written once per call.
    """
    group = complete_group(cells, series, scale)

    def work(first: int, last: int) -> None:
        add_product_tiles(*group, total, first, last)

    distribute(work, math.ceil(total.shape[1] / TILE), PIECES_PER_THREAD)


@cached_njit(nogil=True, error_model="numpy")
def add_product_tiles(cells: Arrays, series: Arrays, scale: Arrays, total: Array, first: int, last: int) -> None:
    """Add some tiles of `add_products`; absent subjects come last, with arrays without rows."""
    n_cells, n_voxels = total.shape
    # Absent subjects keep products of 0 and add nothing.
    products = np.zeros((GROUP, min(n_cells, CELLS), TILE), dtype=np.float32)
    for tile in range(first, last):
        start, stop = tile * TILE, min((tile + 1) * TILE, n_voxels)
        if stop - start < TILE:
            products = np.zeros((GROUP, min(n_cells, CELLS), stop - start), dtype=np.float32)
        for first_cell in range(0, n_cells, CELLS):
            last_cell = min(first_cell + CELLS, n_cells)
            for subject in range(GROUP):
                if len(series[subject]) > 0:
                    rows = as_float32(series[subject][start:stop], stop - start)
                    np.dot(cells[subject][first_cell:last_cell], rows.T, products[subject][: last_cell - first_cell])
            for row in range(last_cell - first_cell):
                sums = total[first_cell + row, start:stop]
                for subject in range(GROUP):
                    if len(series[subject]) > 0:
                        add_scaled(products[subject, row], scale[subject][start:stop], sums)


@cached_njit(nogil=True, error_model="numpy")
def add_scaled(products: Array, scale: Array, total: Array) -> None:
    """Add one cell's products with some voxels' series to its sums."""
    for v in range(len(total)):
        total[v] += products[v] * scale[v]


def add_degree(series: Array, scale: Array, total: Array) -> None:
    """Add one connectome subject's degree, the mean r of each voxel with all others, to the running sums, in place.

    Parameters
    ----------
    series : shape (n_voxels, n_timepoints), float32 or int16
    scale : shape (n_voxels,), float32
        From `standardize` or `quantize`. A constant voxel is none of the others, and adds nothing.
    total : shape (n_voxels,), float64
    """
    n_tiles = math.ceil(len(series) / TILE)
    sums = np.zeros((n_tiles, series.shape[1]))

    def add_series(first: int, last: int) -> None:
        sum_series(series, scale, sums, first, last)

    distribute(add_series, n_tiles, PIECES_PER_THREAD)
    of_all, n_others = sums.sum(axis=0), max(1, int(np.count_nonzero(scale)) - 1)

    def work(first: int, last: int) -> None:
        add_mean_r(series, scale, of_all, n_others, total, first, last)

    distribute(work, n_tiles, PIECES_PER_THREAD)


@cached_njit(nogil=True, error_model="numpy")
def sum_series(series: Array, scale: Array, sums: Array, first: int, last: int) -> None:
    """Sum the voxels' unit series in each of some tiles."""
    for tile in range(first, last):
        for v in range(tile * TILE, min((tile + 1) * TILE, len(series))):
            if scale[v] > 0:
                for t in range(series.shape[1]):
                    sums[tile, t] += np.float64(series[v, t]) * np.float64(scale[v])


@cached_njit(nogil=True, error_model="numpy")
def add_mean_r(
    series: Array, scale: Array, of_all: Array, n_others: int, total: Array, first: int, last: int
) -> None:
    """Add the mean r with all others to the voxels of some tiles; `of_all` is the sum of all unit series."""
    for v in range(first * TILE, min(last * TILE, len(series))):
        if scale[v] > 0:
            product = 0.0
            for t in range(series.shape[1]):
                product += np.float64(series[v, t]) * of_all[t]
            total[v] += (product * np.float64(scale[v]) - 1) / n_others


def summarize_columns(block: Array, factors: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Sum over cells, at each voxel, what absolute degree and the variance of r are computed from.

    Parameters
    ----------
    block : shape (n_cells, n_voxels), float32
        Some voxels' columns of the operator.
    factors : shape (n_cells,), float32
        What makes a row r: 1 / sqrt of the cell's variance; 0 for a cell without a signal, which adds nothing.
    weights : shape (n_cells,), float64
        Weight of each cell in the mean of |z|.

    Returns
    -------
    absolute_z, r, r_squared : shape (n_voxels,), float64
        Weighted sum of |z|, sum of r and sum of r². NaN where r with any cell is undefined.
    """
    sums = np.zeros((3, block.shape[1]))

    def work(first: int, last: int) -> None:
        voxels = slice(first * TILE, last * TILE)
        add_columns(block[:, voxels], factors, weights, sums[:, voxels])

    distribute(work, math.ceil(block.shape[1] / TILE), PIECES_PER_THREAD)
    return sums[0], sums[1], sums[2]


@cached_njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def add_columns(block: Array, factors: Array, weights: Array, sums: Array) -> None:
    """Add the cells of some voxels' columns."""
    for c in range(len(block)):
        if factors[c] > 0:
            for v in range(block.shape[1]):
                r = block[c, v] * factors[c]
                sums[0, v] += weights[c] * abs(np.float64(fisher_z(r))) if r == r else np.nan
                sums[1, v] += np.float64(r)
                sums[2, v] += np.float64(r) * np.float64(r)


def compile_for_cells(series_dtype: np.dtype, standardized_dtypes: Iterable[np.dtype], n_threads: int = 1) -> None:
    """Compile the kernels that a summary needs, or load them from the cache: parameters as for `compile_for`."""
    for dtype in standardized_dtypes:
        standardize(np.eye(3, 2, dtype=dtype), np.array([0, 3]))
    # Enough work for BLAS to allocate every thread's buffers now: later, memory may be short.
    n_voxels, n_cells = 2 * TILE * n_threads, 128
    series, ones = np.eye(n_voxels, n_cells, dtype=series_dtype), np.ones(n_voxels, np.float32)
    starts, voxels = np.arange(n_cells + 1), np.arange(n_cells, dtype=np.int32)
    with threads(n_threads):
        cells, _ = seeds_and_norms(starts, voxels, ones[:n_cells], series, ones, ones)
        total = np.zeros((n_cells, n_voxels), np.float32)
        add_products([cells], [series], [ones], total)
        add_products([cells], [cells], [ones[:n_cells]], np.zeros((n_cells, n_cells), np.float32))
        add_degree(series, ones, np.zeros(n_voxels))
        # As where it is mapped into memory.
        total.flags.writeable = False
        summarize_columns(total, ones[:n_cells], np.ones(n_cells))
