"""The arithmetic that every connectome subject costs, in numba: arrays and numbers in, arrays out.

Each function is the fast twin of the function of the same name in `reference`, which defines it. Compiled code is
cached: the first call of a process then takes 0.2 s and 46 MB, not 5.9 s and 123 MB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
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

R_ABOVE_LIMIT = np.float32(1 - 2.0**-20)
"""The smallest float32 above R_LIMIT: its Fisher z is above Z_LIMIT, which is what it is clipped to."""

SQRT_HALF_BITS = np.int32(0x3F3504F3)
"""The bits of the float32 that is next to the square root of 1/2."""

CONSTANT_SEED = 1e-4
"""As in `reference`."""

INT16_MAX = 32767.0
"""As in `reference`."""

TILE = 128
"""Voxels whose z are in cache at one time, for every lesion of the batch."""


@njit(nogil=True, error_model="numpy", cache=True)
def standardize(timeseries: Array, run_starts: Array) -> tuple[Array, Array, Array]:
    """Demean each run of each voxel's series, divide the whole by its norm, and turn the array voxel-major.

    Runs on one thread without the GIL: it belongs to the thread that reads ahead.

    Parameters
    ----------
    timeseries : shape (n_timepoints, n_voxels), float32 or float64
        BOLD signal of one connectome subject, as stored, one run after another.
    run_starts : shape (n_runs + 1,), int64
        Where each run begins, and where the last one ends.

    Returns
    -------
    series : shape (n_voxels, n_timepoints), float32
    scale, sd : shape (n_voxels,), float32
        All three are 0 where a series is constant in every run, or not finite.
    """
    n_timepoints, n_voxels = timeseries.shape
    series = np.zeros((n_voxels, n_timepoints), dtype=np.float32)
    scale = np.zeros(n_voxels, dtype=np.float32)
    sd = np.zeros(n_voxels, dtype=np.float32)
    n_runs = len(run_starts) - 1
    for start in range(0, n_voxels, TILE):
        tile = timeseries[:, start : start + TILE]
        mean = np.zeros((n_runs, tile.shape[1]))
        squares = np.zeros(tile.shape[1])
        varies = np.zeros(tile.shape[1], dtype=np.bool_)
        for run in range(n_runs):
            low = tile[run_starts[run]].copy()
            high = tile[run_starts[run]].copy()
            for t in range(run_starts[run], run_starts[run + 1]):
                for v in range(tile.shape[1]):
                    mean[run, v] += tile[t, v]
                    low[v] = min(low[v], tile[t, v])
                    high[v] = max(high[v], tile[t, v])
            mean[run] /= run_starts[run + 1] - run_starts[run]
            varies |= high > low
            for t in range(run_starts[run], run_starts[run + 1]):
                for v in range(tile.shape[1]):
                    squares[v] += (tile[t, v] - mean[run, v]) ** 2
        for v in range(tile.shape[1]):
            norm = math.sqrt(squares[v])
            # A NaN or an infinity anywhere in a run shows in its mean.
            if varies[v] and math.isfinite(mean[:, v].sum()) and norm > 0:
                scale[start + v] = 1
                sd[start + v] = norm / math.sqrt(n_timepoints)
                for run in range(n_runs):
                    for t in range(run_starts[run], run_starts[run + 1]):
                        series[start + v, t] = (tile[t, v] - mean[run, v]) / norm
    return series, scale, sd


@njit(nogil=True, error_model="numpy", cache=True)
def quantize(series: Array) -> tuple[Array, Array]:
    """Round each voxel's series to int16, its largest value to ±32767.

    Parameters
    ----------
    series : shape (n_voxels, n_timepoints), float32
        As from `standardize`.

    Returns
    -------
    rounded : shape (n_voxels, n_timepoints), int16
    scale : shape (n_voxels,), float32
        What makes the norm of a rounded series 1; 0 where the series is 0.
    """
    n_voxels, n_timepoints = series.shape
    rounded = np.zeros((n_voxels, n_timepoints), dtype=np.int16)
    scale = np.zeros(n_voxels, dtype=np.float32)
    for voxel in range(n_voxels):
        peak = np.float32(0)
        for t in range(n_timepoints):
            peak = max(peak, abs(series[voxel, t]))
        if peak > 0:
            squares = 0.0
            for t in range(n_timepoints):
                value = np.rint(series[voxel, t] * (INT16_MAX / peak))
                rounded[voxel, t] = np.int16(value)
                squares += value**2
            scale[voxel] = 1 / math.sqrt(squares)
    return rounded, scale


@njit(nogil=True, parallel=True, error_model="numpy", cache=True)
def seeds(starts: Array, voxels: Array, weights: Array, series: Array, scale: Array, sd: Array) -> Array:
    """Average the connectome subject's signal over each lesion.

    Parameters
    ----------
    starts : shape (n_lesions + 1,), int64
        Where each lesion's part of `voxels` and `weights` begins and ends (compressed sparse rows).
    voxels, weights : shape (total number of the lesions' voxels,), int32 and float32
        The voxels that each lesion covers, and what share of them.
    series : shape (n_voxels, n_timepoints), float32 or int16
    scale, sd : shape (n_voxels,)
        As from `standardize`; or series and scale as from `quantize`.

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
    series : shape (n_voxels, n_timepoints), float32 or int16
    scale : shape (n_voxels,), float32
        As from `standardize` or `quantize`. A constant seed or voxel has r = 0, and adds nothing.
    total, total_of_squares : shape (n_lesions, n_voxels), float64
        Sums of z and of z² over connectome subjects.
    """
    n_voxels = len(series)
    n_tiles = (n_voxels + TILE - 1) // TILE
    for tile in prange(n_tiles):
        voxels = slice(tile * TILE, min((tile + 1) * TILE, n_voxels))
        z = np.dot(seeds, series[voxels].astype(np.float32).T)
        tile_scale = scale[voxels]
        for lesion in range(len(seeds)):
            lesion_z = z[lesion]
            lesion_total = total[lesion, voxels]
            lesion_total_of_squares = total_of_squares[lesion, voxels]
            # Two loops: only the first is float32 throughout, and takes as many voxels at a time as fit a register.
            for v in range(len(lesion_z)):
                lesion_z[v] = fisher_z(lesion_z[v] * tile_scale[v])
            for v in range(len(lesion_z)):
                lesion_total[v] += np.float64(lesion_z[v])
                lesion_total_of_squares[v] += np.float64(lesion_z[v]) ** 2


@njit(nogil=True, error_model="numpy", cache=True)
def fisher_z(r: np.float32) -> np.float32:
    """Fisher's z of one correlation clipped to ±R_LIMIT, to 6e-7, without a branch so that it vectorizes.

    z = log(q) / 2 with q = (1 + r) / (1 - r). With q = 2^n m and m within a square root of 2 of 1, log(m) / 2 is the
    odd series of s = (m - 1) / (m + 1), |s| < 0.172, of which five terms leave 3e-10.
    """
    one = np.float32(1)
    r = min(max(r, -R_ABOVE_LIMIT), R_ABOVE_LIMIT)
    q = np.float32((one + r) / (one - r))
    n = np.int32(np.int32(q.view(np.int32) - SQRT_HALF_BITS) >> np.int32(23))
    power = np.int32(np.int32(n + np.int32(127)) << np.int32(23)).view(np.float32)
    s = ((one + r) - power * (one - r)) / ((one + r) + power * (one - r))
    s2 = s * s
    series = np.float32(1 / 7) + s2 * np.float32(1 / 9)
    series = one + s2 * (np.float32(1 / 3) + s2 * (np.float32(1 / 5) + s2 * series))
    z = np.float32(n) * np.float32(math.log(2) / 2) + s * series
    return np.float32(min(max(z, -Z_LIMIT), Z_LIMIT))


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


def compile_for(series_dtype: np.dtype, standardized_dtypes: Iterable[np.dtype]) -> None:
    """Compile what a run needs, or load it from the cache, so that its memory is there to be measured.

    Parameters
    ----------
    series_dtype
        Of the series that are mapped: int16 or float32.
    standardized_dtypes
        Of the numbers that are standardized while they are read.
    """
    for dtype in standardized_dtypes:
        standardize(np.eye(3, 2, dtype=dtype), np.array([0, 3]))
    series, ones = np.eye(2, 3, dtype=series_dtype), np.ones(2, np.float32)
    unit_seeds = seeds(np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.float32), series, ones, ones)
    add_fisher_z(unit_seeds, series, ones, np.zeros((1, 2)), np.zeros((1, 2)))
