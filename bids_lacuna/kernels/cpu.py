"""Numba kernels for each connectome subject: arrays and numbers in, arrays out.

Each kernel computes what the function of the same name in `reference` defines. Compiled code is cached: the first
calls of a process then take 0.3 s and 45 MiB instead of 7 to 10 s and 102 to 118 MiB.

The compiled functions release the GIL and run in Python threads. Numba's own threads (`parallel=True`) take 1.5 times
as long to compile, and their fixed partitions of the work wait for each other on a busy machine.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  numba's np.dot calls this BLAS; once loaded, its threads can be limited

from bids_lacuna.kernels.blas import single_threaded_blas
from bids_lacuna.kernels.compiled import cached_njit

Array = np.ndarray
Arrays = tuple[np.ndarray, ...]

R_LIMIT = 1 - 1e-6
"""As in `reference`."""

Z_LIMIT = np.float32(math.atanh(R_LIMIT))
"""Fisher z of a clipped correlation, computed in float64: float32 has few numbers between R_LIMIT and 1."""

R_ABOVE_LIMIT = np.float32(1 - 2.0**-20)
"""The smallest float32 above R_LIMIT: its Fisher z is above Z_LIMIT and is clipped to it."""

EXPONENT_SHIFT = np.int32(23)
"""Position of the lowest bit of a float32's exponent."""

HALF_EXPONENT = np.int32(1 << 22)
"""One half in units of a float32's exponent."""

CONSTANT_SEED = 1e-4
"""As in `reference`."""

INT16_MAX = 32767.0
"""As in `reference`."""

CONTRACT = {"contract"}
"""The only `fastmath` flag in use: a product and a sum may be rounded once instead of twice. NaN is preserved."""

STRIP = 128
"""Number of voxels standardized at a time."""

TILE = 512
"""Number of voxels whose z are in cache at a time; smaller tiles read the sums of many lesions in short pieces."""

LESIONS = 512
"""Number of lesions whose z are in cache at a time: 4 MB for a group of subjects in a tile."""

FEWEST_LESIONS = 8
"""Smallest number of rows in a product of seeds and series; the last are 0. OpenBLAS adds the terms of small products
in another order, so that a lesion alone and the same lesion in a batch would differ in the last bit."""

ROWS = 512
"""Number of voxels whose series are in cache while seeds are summed."""

GROUP = 4
"""Largest number of connectome subjects in one call of `add_fisher_z`."""

PIECES_PER_THREAD = 8
"""Number of pieces of work per thread: other threads take over from a thread that is held up."""


@cached_njit(nogil=True, error_model="numpy")
def standardize(timeseries: Array, run_starts: Array) -> tuple[Array, Array, Array]:
    """Demean each BOLD run of each voxel's series, divide the whole by its norm, and make the array voxel-major.

    Uses only the calling thread, which reads ahead, and releases the GIL.

    Parameters
    ----------
    timeseries : shape (n_timepoints, n_voxels), float32 or float64
        BOLD signal of one connectome subject, as stored, one run after another.
    run_starts : shape (n_runs + 1,), int64
        Start of each run, and the end of the last one.

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
    for start in range(0, n_voxels, STRIP):
        stop = min(start + STRIP, n_voxels)
        squares = np.zeros(stop - start)
        varies = np.zeros(stop - start, dtype=np.bool_)
        means = np.zeros((len(run_starts) - 1, stop - start))
        for run in range(len(means)):
            demean(timeseries[run_starts[run] : run_starts[run + 1], start:stop], means[run], squares, varies)
        for v in range(stop - start):
            norm = math.sqrt(squares[v])
            # A NaN or infinity in a run propagates to its mean and its squares.
            if varies[v] and math.isfinite(norm) and norm > 0:
                scale[start + v] = 1
                sd[start + v] = norm / math.sqrt(n_timepoints)
                for run in range(len(means)):
                    for t in range(run_starts[run], run_starts[run + 1]):
                        series[start + v, t] = (timeseries[t, start + v] - means[run, v]) / norm
    return series, scale, sd


@cached_njit(nogil=True, error_model="numpy")
def demean(run: Array, mean: Array, squares: Array, varies: Array) -> None:
    """Compute each voxel's mean over a run; add the squares about it to `squares`, and update `varies`."""
    low, high = run[0].copy(), run[0].copy()
    for t in range(len(run)):
        for v in range(len(mean)):
            mean[v] += run[t, v]
            low[v] = min(low[v], run[t, v])
            high[v] = max(high[v], run[t, v])
    for v in range(len(mean)):
        mean[v] /= len(run)
        varies[v] |= high[v] > low[v]
    for t in range(len(run)):
        for v in range(len(mean)):
            squares[v] += (run[t, v] - mean[v]) ** 2


@cached_njit(nogil=True, error_model="numpy")
def quantize(series: Array) -> tuple[Array, Array]:
    """Round each voxel's series to int16, scaled so that the largest value is ±32767.

    Parameters
    ----------
    series : shape (n_voxels, n_timepoints), float32
        From `standardize`.

    Returns
    -------
    rounded : shape (n_voxels, n_timepoints), int16
    scale : shape (n_voxels,), float32
        Factor that makes the norm of a rounded series 1; 0 where the series is 0.
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


def seeds(starts: Array, voxels: Array, weights: Array, series: Array, scale: Array, sd: Array) -> Array:
    """Average the connectome subject's signal over each lesion.

    Each thread sums some of the lesions, block by block of voxels, so that voxels common to many lesions are read
    from memory once. A seed is summed in the order of its voxels whatever the number of threads, which `threads`
    sets.

    Parameters
    ----------
    starts : shape (n_lesions + 1,), int64
        Start of each lesion in `voxels` and `weights`, and the end of the last one (compressed sparse rows).
    voxels, weights : shape (total number of the lesions' voxels,), int32 and float32
        Indices of the voxels that each lesion covers, ascending, and the fraction covered.
    series : shape (n_voxels, n_timepoints), float32 or int16
    scale, sd : shape (n_voxels,)
        From `standardize`, or series and scale from `quantize`.

    Returns
    -------
    shape (n_lesions, n_timepoints), float32
        Each lesion's seed with norm 1; 0 where the seed is constant.
    """
    return seeds_and_norms(starts, voxels, weights, series, scale, sd)[0]


def seeds_and_norms(
    starts: Array, voxels: Array, weights: Array, series: Array, scale: Array, sd: Array
) -> tuple[Array, Array]:
    """Return the seeds, and the norm of each lesion's weighted sum of series with norms `sd`.

    Parameters
    ----------
    starts, voxels, weights, series, scale, sd
        As for `seeds`.

    Returns
    -------
    seeds : shape (n_lesions, n_timepoints), float32
        As from `seeds`.
    norms : shape (n_lesions,), float64
        Divided by the sum of its weights, the standard deviation of a lesion's mean series in recorded units; 0
        where the seed is constant.
    """
    unit_seeds = np.zeros((len(starts) - 1, series.shape[1]), dtype=np.float32)
    norms = np.zeros(len(unit_seeds))

    def work(first: int, last: int) -> None:
        rows = slice(first, last)
        sum_seeds(starts[first : last + 1], voxels, weights, series, scale, sd, unit_seeds[rows], norms[rows])

    # One piece per thread: each piece reads the voxels that its lesions have in common.
    distribute(work, len(unit_seeds), 1)
    return unit_seeds, norms


@cached_njit(nogil=True, error_model="numpy")
def sum_seeds(
    starts: Array,
    voxels: Array,
    weights: Array,
    series: Array,
    scale: Array,
    sd: Array,
    unit_seeds: Array,
    norms: Array,
) -> None:
    """Compute one thread's seeds."""
    n_lesions, n_timepoints = unit_seeds.shape
    means = np.zeros((n_lesions, n_timepoints))
    largest_norm = np.zeros(n_lesions)
    upcoming = starts.copy()
    for block_end in range(ROWS, len(series) + ROWS, ROWS):
        for lesion in range(n_lesions):
            first = upcoming[lesion]
            last = first
            while last < starts[lesion + 1] and voxels[last] < block_end:
                last += 1
            upcoming[lesion] = last
            if last > first:
                largest_norm[lesion] += add_weighted_rows(
                    means[lesion], voxels[first:last], weights[first:last], series, scale, sd
                )
    for lesion in range(n_lesions):
        squares = 0.0
        for t in range(n_timepoints):
            squares += means[lesion, t] ** 2
        norm = math.sqrt(squares)
        if norm > CONSTANT_SEED * largest_norm[lesion]:
            norms[lesion] = norm
            for t in range(n_timepoints):
                unit_seeds[lesion, t] = means[lesion, t] / norm


@cached_njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def add_weighted_rows(total: Array, voxels: Array, weights: Array, series: Array, scale: Array, sd: Array) -> float:
    """Add some voxels' weighted series in original units to a seed; return the sum of their norms.

    Four rows at a time are added in float32; the sum is added to the float64 `total` at the end.
    """
    n_timepoints = series.shape[1]
    partial = np.zeros(n_timepoints, dtype=np.float32)
    norms = 0.0
    picked = np.zeros(4, dtype=np.int32)
    factor = np.zeros(4, dtype=np.float32)
    for start in range(0, len(voxels), 4):
        for i in range(4):
            # Beyond the last voxel, the weight is 0.
            weight = weights[start + i] if start + i < len(voxels) else np.float32(0)
            picked[i] = voxels[min(start + i, len(voxels) - 1)]
            norm = weight * sd[picked[i]]
            norms += norm
            factor[i] = norm * scale[picked[i]]
        a, b, c, d = series[picked[0]], series[picked[1]], series[picked[2]], series[picked[3]]
        for t in range(n_timepoints):
            partial[t] += (
                factor[0] * np.float32(a[t])
                + factor[1] * np.float32(b[t])
                + factor[2] * np.float32(c[t])
                + factor[3] * np.float32(d[t])
            )
    for t in range(n_timepoints):
        total[t] += partial[t]
    return norms


def add_fisher_z(
    seeds: Sequence[Array], series: Sequence[Array], scale: Sequence[Array], total: Array, total_of_squares: Array
) -> None:
    """Add some connectome subjects' Fisher z, and its square, to the running sums, in place.

    Each tile of voxels is correlated, clipped, transformed and added while it is in cache. One thread at a time adds
    to a voxel's sums, in the order of subjects, so that results are bit-identical on one machine whatever the number
    of threads, which `threads` sets, and of lesions.

    Parameters
    ----------
    seeds : up to `GROUP` arrays of shape (n_lesions, n_timepoints), float32
        Seeds of each subject from `seeds`, with norm 1, or 0 where constant.
    series : arrays of shape (n_voxels, n_timepoints), float32 or int16
    scale : arrays of shape (n_voxels,), float32
        From `standardize` or `quantize`. A constant seed or voxel has r = 0 and adds nothing.
    total, total_of_squares : shape (n_lesions, n_voxels), float64
        Sums of z and of z² over connectome subjects, read and written once per call.
    """
    group = complete_group([_pad_seeds(each) for each in seeds], series, scale)

    def work(first: int, last: int) -> None:
        add_tiles(*group, total, total_of_squares, first, last)

    distribute(work, math.ceil(total.shape[1] / TILE), PIECES_PER_THREAD)


def complete_group(
    seeds: Sequence[Array], series: Sequence[Array], scale: Sequence[Array]
) -> tuple[Arrays, Arrays, Arrays]:
    """Add arrays without rows for absent subjects: tuples of one length have one type, which is compiled once."""
    absent = GROUP - len(series)
    return (
        (*seeds, *[np.empty((0, 0), np.float32)] * absent),
        (*series, *[np.empty((0, 0), series[0].dtype)] * absent),
        (*scale, *[np.empty(0, np.float32)] * absent),
    )


def _pad_seeds(seeds: Array) -> Array:
    """Add seeds of 0, if the last group of up to `LESIONS` seeds would be a small one."""
    n_missing = max(0, FEWEST_LESIONS - len(seeds) % LESIONS) if len(seeds) % LESIONS else 0
    return np.pad(seeds, ((0, n_missing), (0, 0))) if n_missing else seeds


@cached_njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def add_tiles(
    seeds: Arrays,
    series: Arrays,
    scale: Arrays,
    total: Array,
    total_of_squares: Array,
    first: int,
    last: int,
) -> None:
    """Add some tiles of `add_fisher_z`; absent subjects come last, with arrays without rows."""
    n_lesions, n_voxels = total.shape
    # Absent subjects keep z = 0 and add nothing.
    z = np.zeros((GROUP, min(len(seeds[0]), LESIONS), TILE), dtype=np.float32)
    for tile in range(first, last):
        start, stop = tile * TILE, min((tile + 1) * TILE, n_voxels)
        for first_lesion in range(0, n_lesions, LESIONS):
            last_lesion = min(first_lesion + LESIONS, n_lesions)
            for subject in range(GROUP):
                if len(series[subject]) > 0:
                    rows = as_float32(series[subject][start:stop], TILE)
                    some = seeds[subject][first_lesion : first_lesion + LESIONS]
                    np.dot(some, rows.T, z[subject][: len(some)])
            for row in range(last_lesion - first_lesion):
                for subject in range(GROUP):
                    if len(series[subject]) > 0:
                        scale_to_fisher_z(z[subject, row, : stop - start], scale[subject][start:stop])
                sums = total[first_lesion + row, start:stop], total_of_squares[first_lesion + row, start:stop]
                add_z(z[0, row], z[1, row], z[2, row], z[3, row], *sums)


@cached_njit(nogil=True, error_model="numpy")
def as_float32(series: Array, n_rows: int) -> Array:
    """Convert some voxels' series to float32, and add rows of 0 up to a number of rows."""
    rows = np.empty((n_rows, series.shape[1]), dtype=np.float32)
    # One flat loop: loops over rows are too short for wide vector instructions.
    flat, flat_rows = series.reshape(-1), rows.reshape(-1)
    for i in range(len(flat)):
        flat_rows[i] = np.float32(flat[i])
    for i in range(len(flat), len(flat_rows)):
        flat_rows[i] = np.float32(0)
    return rows


@cached_njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def scale_to_fisher_z(products: Array, scale: Array) -> None:
    """Convert a lesion's products with some voxels' series to Fisher z, in place."""
    for v in range(len(products)):
        products[v] = fisher_z(products[v] * scale[v])


@cached_njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def add_z(a: Array, b: Array, c: Array, d: Array, total: Array, total_of_squares: Array) -> None:
    """Add the z of one lesion in a tile to its sums, in the order of the four subjects.

    Four arrays instead of the columns of one: the compiler then knows that each is contiguous.
    """
    for v in range(len(total)):
        z_a, z_b, z_c, z_d = np.float64(a[v]), np.float64(b[v]), np.float64(c[v]), np.float64(d[v])
        total[v] = total[v] + z_a + z_b + z_c + z_d
        total_of_squares[v] = total_of_squares[v] + z_a * z_a + z_b * z_b + z_c * z_c + z_d * z_d


@cached_njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def fisher_z(r: np.float32) -> np.float32:
    """Compute Fisher's z of one correlation clipped to ±R_LIMIT, to 3e-7, without branches, for vectorization.

    z = log(q) / 2 with q = (1 + r) / (1 - r) = 2^n m. The bits of a float32, read as an integer, approximate its
    logarithm: the difference between those of 1 + r and 1 - r, rounded, is n, which leaves m within a factor of 1.51
    of 1. log(m) / 2 is an odd power series in s = (m - 1) / (m + 1), |s| < 0.21; five terms are exact to 4e-9.
    """
    r = np.float32(min(max(r, -R_ABOVE_LIMIT), R_ABOVE_LIMIT))
    above = np.float32(np.float32(1) + r)
    below = np.float32(np.float32(1) - r)
    below_bits = below.view(np.int32)
    n = np.int32(np.int32(np.int32(above.view(np.int32) - below_bits) + HALF_EXPONENT) >> EXPONENT_SHIFT)
    below = np.int32(below_bits + np.int32(n << EXPONENT_SHIFT)).view(np.float32)
    s = (above - below) / (above + below)
    s2 = s * s
    series = np.float32(1 / 3) + s2 * (np.float32(1 / 5) + s2 * (np.float32(1 / 7) + s2 * np.float32(1 / 9)))
    z = np.float32(n) * np.float32(math.log(2) / 2) + (s + s * (s2 * series))
    return np.float32(min(max(z, -Z_LIMIT), Z_LIMIT))


class _Helpers(threading.local):
    """The threads that help the thread which has called `threads`."""

    pool: ThreadPoolExecutor | None = None


_helpers = _Helpers()


@contextmanager
def threads(n_threads: int) -> Iterator[None]:
    """Run this thread's `seeds` and `add_fisher_z` on some threads, each with single-threaded BLAS."""
    before = _helpers.pool
    with (
        ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="kernel") as pool,
        single_threaded_blas(),
    ):
        _helpers.pool = pool if n_threads > 1 else None
        try:
            yield
        finally:
            _helpers.pool = before


def distribute(work: Callable[[int, int], None], n: int, pieces_per_thread: int) -> None:
    """Distribute the work on `range(n)` over the threads; `work` gets the start and end of each piece."""
    pool = _helpers.pool
    n_helpers = pool._max_workers if pool else 0
    n_pieces = max(1, min(n, pieces_per_thread * (n_helpers + 1)))
    ends = [n * piece // n_pieces for piece in range(n_pieces + 1)]
    waiting = pairwise(ends)

    def take() -> None:
        for first, last in waiting:
            work(first, last)

    helpers = [pool.submit(take) for _ in range(min(n_helpers, n_pieces - 1))] if pool else []
    take()
    for helper in helpers:
        helper.result()


def compile_for(series_dtype: np.dtype, standardized_dtypes: Iterable[np.dtype], n_threads: int = 1) -> None:
    """Compile the kernels that a run needs, or load them from the cache, so that their memory can be measured.

    Parameters
    ----------
    series_dtype
        Data type of the mapped series: int16 or float32.
    standardized_dtypes
        Data types that are standardized on reading.
    n_threads
        Number of threads that will run the kernels.
    """
    for dtype in standardized_dtypes:
        standardize(np.eye(3, 2, dtype=dtype), np.array([0, 3]))
    # Enough work for BLAS to allocate every thread's buffers now: later, memory may be short.
    n_voxels, n_lesions = 2 * TILE * n_threads, 128
    series, ones = np.eye(n_voxels, n_lesions, dtype=series_dtype), np.ones(n_voxels, np.float32)
    starts, voxels = np.arange(n_lesions + 1), np.arange(n_lesions, dtype=np.int32)
    with threads(n_threads):
        unit_seeds = seeds(starts, voxels, ones[:n_lesions], series, ones, ones)
        add_fisher_z([unit_seeds], [series], [ones], np.zeros((n_lesions, n_voxels)), np.zeros((n_lesions, n_voxels)))
