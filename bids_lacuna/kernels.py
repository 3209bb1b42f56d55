"""The arithmetic that every connectome subject costs, in numba: arrays and numbers in, arrays out.

Each function is the fast twin of the function of the same name in `reference`, which defines it. Compiled code is
cached: the first call of a process then takes 0.2 s and 46 MB, not 5.9 s and 123 MB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  numba's np.dot calls this BLAS; loaded, its threads can be limited
from numba import njit, prange

Array = np.ndarray

R_LIMIT = 1 - 1e-6
"""As in `reference`."""

Z_LIMIT = np.float32(math.atanh(R_LIMIT))
"""What a clipped correlation becomes: computed in float64, for float32 has few numbers between R_LIMIT and 1."""

CONSTANT_SEED = 1e-6
"""As in `reference`."""

TILE = 128
"""Voxels whose z are in cache at one time, for every lesion of the batch."""


@njit(nogil=True, error_model="numpy", cache=True)
def standardize(timeseries: Array) -> tuple[Array, Array, Array]:
    """Demean each voxel's series, divide it by its norm, and turn the array voxel-major.

    Runs on one thread without the GIL: it belongs to the thread that reads ahead.

    Parameters
    ----------
    timeseries : shape (n_timepoints, n_voxels), float32 or float64
        BOLD signal of one connectome subject, as stored.

    Returns
    -------
    series : shape (n_voxels, n_timepoints), float32
    scale, sd : shape (n_voxels,), float32
        All three are 0 where a series is constant or not finite.
    """
    n_timepoints, n_voxels = timeseries.shape
    series = np.zeros((n_voxels, n_timepoints), dtype=np.float32)
    scale = np.zeros(n_voxels, dtype=np.float32)
    sd = np.zeros(n_voxels, dtype=np.float32)
    for start in range(0, n_voxels, TILE):
        tile = timeseries[:, start : start + TILE]
        mean = np.zeros(tile.shape[1])
        low = tile[0].copy()
        high = tile[0].copy()
        for t in range(n_timepoints):
            for v in range(tile.shape[1]):
                mean[v] += tile[t, v]
                low[v] = min(low[v], tile[t, v])
                high[v] = max(high[v], tile[t, v])
        mean /= n_timepoints
        squares = np.zeros(tile.shape[1])
        for t in range(n_timepoints):
            for v in range(tile.shape[1]):
                squares[v] += (tile[t, v] - mean[v]) ** 2
        for v in range(tile.shape[1]):
            norm = math.sqrt(squares[v])
            # A NaN or an infinity anywhere in a series shows in its mean.
            if high[v] > low[v] and math.isfinite(mean[v]) and norm > 0:
                scale[start + v] = 1
                sd[start + v] = norm / math.sqrt(n_timepoints)
                for t in range(n_timepoints):
                    series[start + v, t] = (tile[t, v] - mean[v]) / norm
    return series, scale, sd


@njit(nogil=True, parallel=True, error_model="numpy", cache=True)
def seeds(starts: Array, voxels: Array, weights: Array, series: Array, scale: Array, sd: Array) -> Array:
    """Average the connectome subject's signal over each lesion.

    Parameters
    ----------
    starts : shape (n_lesions + 1,), int64
        Where each lesion's part of `voxels` and `weights` begins and ends (compressed sparse rows).
    voxels, weights : shape (total number of the lesions' voxels,), int32 and float32
        The voxels that each lesion covers, and what share of them.
    series : shape (n_voxels, n_timepoints)
    scale, sd : shape (n_voxels,)
        As from `standardize`.

    Returns
    -------
    shape (n_lesions, n_timepoints), float32
        Each lesion's seed, demeaned, with norm 1; 0 where the seed is constant.
    """
    n_lesions = len(starts) - 1
    n_timepoints = series.shape[1]
    unit_seeds = np.zeros((n_lesions, n_timepoints), dtype=np.float32)
    for lesion in prange(n_lesions):
        seed = np.zeros(n_timepoints)
        largest_norm = 0.0
        for i in range(starts[lesion], starts[lesion + 1]):
            voxel = voxels[i]
            norm = np.float64(weights[i]) * sd[voxel]
            largest_norm += norm
            to_stored_units = norm * scale[voxel]
            for t in range(n_timepoints):
                seed[t] += to_stored_units * series[voxel, t]
        seed -= seed.mean()
        norm = math.sqrt((seed**2).sum())
        if norm > CONSTANT_SEED * largest_norm:
            unit_seeds[lesion] = (seed / norm).astype(np.float32)
    return unit_seeds


@njit(nogil=True, parallel=True, error_model="numpy", cache=True)
def add_fisher_z(seeds: Array, series: Array, scale: Array, total: Array, total_of_squares: Array) -> None:
    """Add one connectome subject's Fisher z, and its square, to the running sums, in place.

    Each tile of voxels is correlated, clipped, transformed and added while it is in cache. A voxel's sums are
    added to by one thread at a time in the order of calls, so that a run repeats bit by bit on one machine
    whatever the number of threads. BLAS must be held to one thread by the caller.

    Parameters
    ----------
    seeds : shape (n_lesions, n_timepoints), float32
        Of norm 1, or 0 where constant: as from `seeds`.
    series : shape (n_voxels, n_timepoints), float32
    scale : shape (n_voxels,), float32
        As from `standardize`. A constant seed or voxel has r = 0, and adds nothing.
    total, total_of_squares : shape (n_lesions, n_voxels), float64
        Sums of z and of z² over connectome subjects.
    """
    n_lesions = len(seeds)
    n_voxels = len(series)
    n_tiles = (n_voxels + TILE - 1) // TILE
    for tile in prange(n_tiles):
        start = tile * TILE
        stop = min(start + TILE, n_voxels)
        r = np.dot(seeds, series[start:stop].T)
        for lesion in range(n_lesions):
            for v in range(start, stop):
                z = np.float64(fisher_z(r[lesion, v - start] * scale[v]))
                total[lesion, v] += z
                total_of_squares[lesion, v] += z * z


@njit(nogil=True, error_model="numpy", cache=True)
def fisher_z(r: np.float32) -> np.float32:
    """Fisher's z of one correlation clipped to ±R_LIMIT."""
    if r > R_LIMIT:
        return Z_LIMIT
    if r < -R_LIMIT:
        return -Z_LIMIT
    return np.float32(math.atanh(r))


@contextmanager
def threads(n_threads: int) -> Iterator[None]:
    """Run the kernels on at most n_threads threads: fewer where numba was started with fewer."""
    before = numba.get_num_threads()
    launched = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(max(1, min(n_threads, launched)))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def compile_all() -> None:
    """Compile every kernel, or load it from the cache, so that its memory is there to be measured."""
    series, scale, sd = standardize(np.eye(3, 2, dtype=np.float32))
    unit_seeds = seeds(np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.float32), series, scale, sd)
    add_fisher_z(unit_seeds, series, scale, np.zeros((1, 2)), np.zeros((1, 2)))
