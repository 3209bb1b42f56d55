"""Fewer numbers for series that vary in fewer ways than they have timepoints, as filtered ones do.

A rotation in time leaves every correlation as it is. One onto a subject's principal components puts the variance of
all its voxels into the first of them, and the others can be left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from scipy.fft import dct

Array = np.ndarray

Rank = Literal["full", "auto"] | int
"""How many components are kept: all timepoints, as they are; as many as a tolerance needs; or a number."""

TOLERANCE = 1e-5
"""In r, unless another is given: a tenth of what int16 may be off by."""

CONSTANT_SEED = 1e-4
"""As in `reference`. A series of which less is kept than this is rounding, and constant too."""

RUN_LENGTH = 10
"""Neighbours that are averaged, and then as many of these averages, until all voxels are in one."""

BLOCK_VALUES = 2**16
"""Series are rotated some voxels at a time: copies in float64 take 512 KiB each. Those of 1 MiB and more would go
back to the system each time (`plan.give_back_freed_memory`), and a rotation would take twice as long."""

N_BLOCKS = 6
"""Copies of a block at one time."""

N_MATRICES = 6
"""Matrices of (n_timepoints, n_timepoints) at one time, LAPACK's own included."""


def rotate(
    standardized: tuple[Array, Array, Array], rank: Rank, tolerance: float
) -> tuple[tuple[Array, Array, Array], float]:
    """Bring one subject's series into as few components as a rank says, in place.

    The first principal components are mixed by a discrete cosine transform, so that values are about equally large
    in each, as they are in time: those of principal components are not, and in int16 the small ones would be lost.
    The same series give the same bits on one machine while BLAS has one thread.

    Parameters
    ----------
    standardized
        Series (n_voxels, n_timepoints), scale and sd (n_voxels,), as from `kernels.standardize`. The series' memory
        is that of the result.
    tolerance
        With the rank "auto", how large the bound on the error in r may be: see `error_bounds`.

    Returns
    -------
    standardized
        Series (n_voxels, n_components), each with norm 1 or 0; scale; and the standard deviation of what is kept of
        each series, so that the average of several is what is kept of their average. The very arrays that were
        given, where nothing would be left out.
    r_error_bound : float
        Of what is left out.
    """
    series, scale, sd = standardized
    n_timepoints = series.shape[1]
    if most_components(rank, n_timepoints) == n_timepoints and rank != "auto":
        return standardized, 0.0
    components = principal_components(series)
    bounds = error_bounds(*largest_tails(series, sd, components))
    # The last bound, with nothing left out, is 0.
    n_components = rank if isinstance(rank, int) else 1 + int(np.argmax(bounds[1:] <= tolerance))
    if n_components == n_timepoints:
        return standardized, 0.0
    basis = components[:, :n_components] @ dct(np.eye(n_components), axis=0, norm="ortho")
    return _project(series, scale, sd, basis), float(bounds[n_components])


def most_components(rank: Rank, n_timepoints: int) -> int:
    """Tell how many components a subject may be stored in, before its series are read."""
    return min(rank, n_timepoints) if isinstance(rank, int) else n_timepoints


def rotation_bytes(n_timepoints: int, n_voxels: int) -> int:
    """Memory that `rotate` takes, the series that it is given included."""
    n_runs = -(-n_voxels // RUN_LENGTH)
    block_values = n_timepoints * _block_rows(n_timepoints)
    float64_values = n_runs * n_timepoints + N_BLOCKS * block_values + N_MATRICES * n_timepoints**2
    return 4 * n_voxels * n_timepoints + 8 * float64_values


def principal_components(series: Array) -> Array:
    """Find the directions in time that the series vary in, those with most variance first.

    Parameters
    ----------
    series : shape (n_voxels, n_timepoints)

    Returns
    -------
    shape (n_timepoints, n_timepoints), float64
        Orthonormal; a column each, whose largest value is positive.
    """
    covariance = np.zeros((series.shape[1], series.shape[1]))
    for rows in _blocks(*series.shape):
        block = series[rows].astype(float)
        covariance += block.T @ block
    components = np.linalg.eigh(covariance)[1][:, ::-1]
    largest = np.abs(components).argmax(axis=0, keepdims=True)
    return components * np.sign(np.take_along_axis(components, largest, axis=0))


def largest_tails(series: Array, sd: Array, components: Array) -> tuple[Array, Array]:
    """Find the largest share of a voxel's, and of a seed's, variance that lies beyond the first components.

    The seeds that are tried are the single voxels, and the averages over every 10, 100, 1000, … neighbours in the
    order of the voxels up to all of them, in the units that the series were recorded in. Where voxels cancel, the
    average may have a larger share there than any of them. A lesion whose voxels cancel more than in all of these
    averages could have a larger one still.

    Parameters
    ----------
    series : shape (n_voxels, n_timepoints)
        With norm 1 or 0.
    sd : shape (n_voxels,)
        Their standard deviations as recorded.
    components : shape (n_timepoints, n_timepoints)
        Orthonormal, a column each.

    Returns
    -------
    of_voxels, of_seeds : shape (n_timepoints + 1,), float64
        Beyond the first 0, 1, …, n_timepoints components, summed in float64 from the last one on.
    """
    of_voxels = _largest_tail(series, components, np.zeros(len(series)))
    sums, norms = _sums_of_recorded(series, sd), _sums_of_runs(sd.astype(float))
    of_seeds = np.maximum(of_voxels, _largest_tail(sums, components, CONSTANT_SEED * norms))
    while len(sums) > 1:
        sums, norms = _sums_of_runs(sums), _sums_of_runs(norms)
        of_seeds = np.maximum(of_seeds, _largest_tail(sums, components, CONSTANT_SEED * norms))
    return of_voxels, of_seeds


def error_bounds(voxel_tail: Array, seed_tail: Array) -> Array:
    """Bound the error in the correlation of a seed with a voxel, when a share of each one's variance is left out.

    What is left out of both takes at most √(ε_voxel ε_seed) from r; what is kept has norm 1 again, which adds at most
    1 - √((1 - ε_voxel)(1 - ε_seed)). Together that is 1 - cos(a + b), where a and b are the angles between each
    series and what is kept of it, sin² a = ε_voxel and sin² b = ε_seed, and it can be reached: two series that
    differ only in what is left out, by opposite signs, had r = cos 2a and get r = 1.

    Parameters
    ----------
    voxel_tail, seed_tail
        ε_voxel and ε_seed in [0, 1], of any shape.
    """
    return np.sqrt(voxel_tail * seed_tail) + 1 - np.sqrt((1 - voxel_tail) * (1 - seed_tail))


def _largest_tail(series: Array, components: Array, smallest_norm: Array) -> Array:
    """Find the largest share of variance beyond the first components, of all series with more than a given norm."""
    largest = np.zeros(series.shape[1] + 1)
    for rows in _blocks(*series.shape):
        energy = (series[rows].astype(float) @ components) ** 2
        tail = np.cumsum(energy[:, ::-1], axis=1)[:, ::-1]
        tail = tail[tail[:, 0] > smallest_norm[rows] ** 2]
        largest[:-1] = np.maximum(largest[:-1], (tail / tail[:, :1]).max(axis=0, initial=0))
    return largest


def _sums_of_recorded(series: Array, sd: Array) -> Array:
    """Add up the series of every run of neighbours as they were recorded: (n_runs, n_timepoints), float64."""
    n_voxels, n_timepoints = series.shape
    sums = np.empty((-(-n_voxels // RUN_LENGTH), n_timepoints))
    for rows in _blocks(n_voxels, n_timepoints):
        # A block is whole runs, but for the last one.
        runs = slice(rows.start // RUN_LENGTH, -(-rows.stop // RUN_LENGTH))
        sums[runs] = _sums_of_runs(series[rows] * sd[rows, np.newaxis].astype(float))
    return sums


def _sums_of_runs(values: Array) -> Array:
    """Add up every RUN_LENGTH rows."""
    return np.add.reduceat(values, np.arange(0, len(values), RUN_LENGTH))


def _project(series: Array, scale: Array, sd: Array, basis: Array) -> tuple[Array, Array, Array]:
    """Bring series into an orthonormal basis (n_timepoints, n_components), row by row into their own memory."""
    n_voxels, n_components = len(series), basis.shape[1]
    projected = series.reshape(-1)[: n_voxels * n_components].reshape(n_voxels, n_components)
    norm = np.empty(n_voxels)
    for rows in _blocks(*series.shape):
        block = series[rows].astype(float) @ basis
        kept = np.linalg.norm(block, axis=1)
        block[kept < CONSTANT_SEED] = kept[kept < CONSTANT_SEED] = 0
        projected[rows] = block / np.where(kept > 0, kept, 1)[:, np.newaxis]
        norm[rows] = kept
    return projected, np.where(norm > 0, scale, 0).astype(np.float32), (sd * norm).astype(np.float32)


def _block_rows(n_timepoints: int) -> int:
    """Voxels of a block: whole runs."""
    return RUN_LENGTH * max(1, BLOCK_VALUES // (RUN_LENGTH * n_timepoints))


def _blocks(n_voxels: int, n_timepoints: int) -> Iterator[slice]:
    n_rows = _block_rows(n_timepoints)
    for start in range(0, n_voxels, n_rows):
        yield slice(start, min(start + n_rows, n_voxels))
