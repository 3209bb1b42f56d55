"""PCA compression of band-limited series.

A rotation in time preserves every correlation. Rotating a subject's series onto their principal components
concentrates the variance of all voxels in the first components, so that the others can be left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.fft import dct

from bids_lacuna.connectome.store import Rank

Array = np.ndarray

TOLERANCE = 1e-5
"""Default tolerance in r: a tenth of the error of int16."""

CONSTANT_SEED = 1e-4
"""As in `reference`. A series with a smaller fraction kept is rounding noise and counts as constant."""

GROUP_LENGTH = 10
"""Number of neighbouring voxels, and then of averages, that are averaged at each step."""

BLOCK_VALUES = 2**16
"""Number of values rotated at a time. A block in float64 takes 512 KiB; blocks of 1 MiB and more would be returned to
the system each time (`memory.give_back_freed_memory`), and a rotation would take twice as long."""

N_BLOCKS = 6
"""Largest number of copies of a block in memory."""

N_MATRICES = 6
"""Largest number of (n_timepoints, n_timepoints) matrices in memory, including LAPACK's own."""


def rotate(
    standardized: tuple[Array, Array, Array], rank: Rank, tolerance: float
) -> tuple[tuple[Array, Array, Array], float]:
    """Rotate one subject's series onto as few components as the rank asks for, in place.

    A discrete cosine transform mixes the first principal components, so that all have values of about equal size,
    as timepoints have: in int16, the values of small principal components would be lost. Results are bit-identical
    on one machine if BLAS uses one thread.

    Parameters
    ----------
    standardized
        Series (n_voxels, n_timepoints), scale and sd (n_voxels,) from `kernels.standardize`. The result reuses the
        memory of the series.
    tolerance
        Largest bound on the error in r for the rank "auto": see `error_bounds`.

    Returns
    -------
    standardized
        Series (n_voxels, n_components), each with norm 1 or 0; scale; and the standard deviation of the kept part of
        each series, so that averaging commutes with compression. The input arrays themselves if nothing is left
        out.
    r_error_bound : float
        Bound on the error in r.
    """
    series, scale, sd = standardized
    n_timepoints = series.shape[1]
    if most_components(rank, n_timepoints) == n_timepoints and rank != "auto":
        return standardized, 0.0
    components = principal_components(series)
    bounds = error_bounds(*largest_tails(series, sd, components))
    # The last bound is 0: it leaves nothing out.
    n_components = rank if isinstance(rank, int) else 1 + int(np.argmax(bounds[1:] <= tolerance))
    if n_components == n_timepoints:
        return standardized, 0.0
    basis = components[:, :n_components] @ dct(np.eye(n_components), axis=0, norm="ortho")
    return _project(series, scale, sd, basis), float(bounds[n_components])


def most_components(rank: Rank, n_timepoints: int) -> int:
    """Return the largest number of components that a subject may have, before its series are read."""
    return min(rank, n_timepoints) if isinstance(rank, int) else n_timepoints


def rotation_bytes(n_timepoints: int, n_voxels: int) -> int:
    """Return the bytes of memory that `rotate` needs, including its input."""
    n_groups = -(-n_voxels // GROUP_LENGTH)
    block_values = n_timepoints * _block_rows(n_timepoints)
    float64_values = n_groups * n_timepoints + N_BLOCKS * block_values + N_MATRICES * n_timepoints**2
    return 4 * n_voxels * n_timepoints + 8 * float64_values


def principal_components(series: Array) -> Array:
    """Compute the principal components of the series in time, by descending variance.

    Parameters
    ----------
    series : shape (n_voxels, n_timepoints)

    Returns
    -------
    shape (n_timepoints, n_timepoints), float64
        Orthonormal columns; the largest value of each is positive.
    """
    covariance = np.zeros((series.shape[1], series.shape[1]))
    for rows in _blocks(*series.shape):
        block = series[rows].astype(float)
        covariance += block.T @ block
    components = np.linalg.eigh(covariance)[1][:, ::-1]
    largest = np.abs(components).argmax(axis=0, keepdims=True)
    return components * np.sign(np.take_along_axis(components, largest, axis=0))


def largest_tails(series: Array, sd: Array, components: Array) -> tuple[Array, Array]:
    """Find the largest fraction of a voxel's and of a seed's variance beyond the first components.

    The seeds tried are single voxels and the averages over every 10, 100, 1000, … consecutive voxels, up to all
    voxels, in recorded units. Where voxels cancel, the fraction of their average may exceed that of each voxel. A
    lesion whose voxels cancel more than in all of these averages could have a larger fraction still.

    Parameters
    ----------
    series : shape (n_voxels, n_timepoints)
        Series with norm 1 or 0.
    sd : shape (n_voxels,)
        Standard deviations of the series as recorded.
    components : shape (n_timepoints, n_timepoints)
        Orthonormal columns.

    Returns
    -------
    of_voxels, of_seeds : shape (n_timepoints + 1,), float64
        Fractions beyond the first 0, 1, …, n_timepoints components, summed in float64 from the last component.
    """
    of_voxels = _largest_tail(series, components, np.zeros(len(series)))
    sums, norms = _sums_of_recorded(series, sd), _sums_of_groups(sd.astype(float))
    of_seeds = np.maximum(of_voxels, _largest_tail(sums, components, CONSTANT_SEED * norms))
    while len(sums) > 1:
        sums, norms = _sums_of_groups(sums), _sums_of_groups(norms)
        of_seeds = np.maximum(of_seeds, _largest_tail(sums, components, CONSTANT_SEED * norms))
    return of_voxels, of_seeds


def error_bounds(voxel_tail: Array, seed_tail: Array) -> Array:
    """Bound the error in the correlation of a seed with a voxel if a fraction of each variance is left out.

    The parts left out contribute at most √(ε_voxel ε_seed) to r; normalizing the kept parts adds at most
    1 - √((1 - ε_voxel)(1 - ε_seed)). The sum is 1 - cos(a + b), where a and b are the angles between each series and
    its kept part, sin² a = ε_voxel and sin² b = ε_seed. The bound is tight: two series that differ only in the sign
    of the part left out have r = cos 2a before and r = 1 after.

    Parameters
    ----------
    voxel_tail, seed_tail
        ε_voxel and ε_seed in [0, 1], any shape.
    """
    return np.sqrt(voxel_tail * seed_tail) + 1 - np.sqrt((1 - voxel_tail) * (1 - seed_tail))


def _largest_tail(series: Array, components: Array, smallest_norm: Array) -> Array:
    """Find the largest fraction of variance beyond the first components among series above a given norm."""
    largest = np.zeros(series.shape[1] + 1)
    for rows in _blocks(*series.shape):
        energy = (series[rows].astype(float) @ components) ** 2
        tail = np.cumsum(energy[:, ::-1], axis=1)[:, ::-1]
        tail = tail[tail[:, 0] > smallest_norm[rows] ** 2]
        largest[:-1] = np.maximum(largest[:-1], (tail / tail[:, :1]).max(axis=0, initial=0))
    return largest


def _sums_of_recorded(series: Array, sd: Array) -> Array:
    """Sum the series of every GROUP_LENGTH consecutive voxels in recorded units, in float64."""
    n_voxels, n_timepoints = series.shape
    sums = np.empty((-(-n_voxels // GROUP_LENGTH), n_timepoints))
    for rows in _blocks(n_voxels, n_timepoints):
        # All blocks but the last are multiples of GROUP_LENGTH.
        groups = slice(rows.start // GROUP_LENGTH, -(-rows.stop // GROUP_LENGTH))
        sums[groups] = _sums_of_groups(series[rows] * sd[rows, np.newaxis].astype(float))
    return sums


def _sums_of_groups(values: Array) -> Array:
    """Sum every GROUP_LENGTH consecutive rows."""
    return np.add.reduceat(values, np.arange(0, len(values), GROUP_LENGTH))


def _project(series: Array, scale: Array, sd: Array, basis: Array) -> tuple[Array, Array, Array]:
    """Project series onto an orthonormal basis (n_timepoints, n_components), in place."""
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
    """Return the number of voxels in a block, a multiple of GROUP_LENGTH."""
    return GROUP_LENGTH * max(1, BLOCK_VALUES // (GROUP_LENGTH * n_timepoints))


def _blocks(n_voxels: int, n_timepoints: int) -> Iterator[slice]:
    n_rows = _block_rows(n_timepoints)
    for start in range(0, n_voxels, n_rows):
        yield slice(start, min(start + n_rows, n_voxels))
