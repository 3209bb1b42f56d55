"""PCA compression of band-limited series.

A rotation in time preserves every correlation. Rotating a subject's series onto their principal components
concentrates the variance of all voxels in the first components, so that the others can be left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike
from scipy.fft import dct

from bids_lacuna.connectome.store import Rank

Array = np.ndarray

RANK: Rank = "auto"
"""Default rank."""

TOLERANCE = 1e-5
"""Default tolerance in r: a tenth of the error of int16."""

LEAST_SAVING = 0.1
"""Smallest fraction of the components that the rank "auto" leaves out, if any."""

SAMPLED_VOXELS = 2048
"""Voxels, or twice the timepoints if those are more, that tell whether a subject can have fewer components."""

CONSTANT_SEED = 1e-4
"""As in `reference`. A series with a smaller fraction kept is rounding noise and counts as constant."""

GROUP_LENGTH = 10
"""Number of neighbouring voxels, and then of averages, that are averaged at each step."""

BLOCK_VALUES = 2**17
"""Number of values rotated at a time. A block in float32 takes 512 KiB; blocks of 1 MiB and more would be returned to
the system each time (`memory.give_back_freed_memory`). With half of that, a rotation takes a sixth longer."""

N_BLOCKS = 6
"""Largest number of copies of a block in memory."""

N_MATRICES = 6
"""Largest number of (n_timepoints, n_timepoints) matrices in memory, including LAPACK's own."""


def rotate(
    standardized: tuple[Array, Array, Array], rank: Rank, tolerance: float
) -> tuple[tuple[Array, Array, Array], float]:
    """Rotate one subject's series onto as few components as the rank asks for, in place.

    A discrete cosine transform mixes the first principal components, so that all have values of about equal size,
    as timepoints have: in int16, the values of small principal components would be lost. Large products are in
    float32, as the series are; the bound is that of the components as they are used. Results are bit-identical
    on one machine if BLAS uses one thread.

    With the rank "auto", each subject's own series decide, so that neither the other subjects nor the number of
    processes nor an interruption matter: at least `LEAST_SAVING` of the components are left out, or none.

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
    if isinstance(rank, int):
        fewest, most = rank, n_timepoints - 1
    else:
        # The series of most unfiltered connectomes end here.
        fewest = fewest_components(series, tolerance) if rank == "auto" else n_timepoints
        most = int((1 - LEAST_SAVING) * n_timepoints)
    if fewest > most:
        return standardized, 0.0
    components = principal_components(series)
    bounds = error_bounds(*largest_tails(series, sd, components, fewest))
    # The last bound is 0: it leaves nothing out.
    n_components = rank if isinstance(rank, int) else fewest + int(np.argmax(bounds[fewest:] <= tolerance))
    if n_components > most:
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
    # Groups of groups take a ninth of what groups take.
    float32_values = (n_voxels + 2 * n_groups) * n_timepoints + N_BLOCKS * block_values
    return 4 * float32_values + 8 * N_MATRICES * n_timepoints**2


def fewest_components(series: Array, tolerance: float) -> int:
    """Return a number of components below which the bound on the error exceeds the tolerance, from some voxels.

    No other basis leaves out less of the voxels' mean variance than their principal components, and the largest
    fraction of a voxel is at least the mean. In float64: what principal components leave out is a small difference.

    Parameters
    ----------
    series : shape (n_voxels, n_timepoints)
        Series with norm 1 or 0.
    tolerance
        Largest bound on the error in r.
    """
    n_voxels, n_timepoints = series.shape
    some = series[:: max(1, n_voxels // max(SAMPLED_VOXELS, 2 * n_timepoints))]
    variances = np.linalg.eigvalsh(_covariance(some, float)).clip(0)
    if not variances.any():
        return 1
    # Ascending: the sum of the smallest 0, 1, …, n_timepoints.
    mean_tails = np.cumsum([0, *variances])[::-1] / variances.sum()
    bounds = error_bounds(mean_tails, mean_tails)
    return 1 + int(np.argmax(bounds[1:] <= tolerance))


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
    components = np.linalg.eigh(_covariance(series, series.dtype))[1][:, ::-1]
    largest = np.abs(components).argmax(axis=0, keepdims=True)
    return components * np.sign(np.take_along_axis(components, largest, axis=0))


def _covariance(series: Array, dtype: DTypeLike) -> Array:
    """Sum the products of each pair of timepoints over voxels: in a dtype in each block, in float64 over blocks."""
    n_voxels, n_timepoints = series.shape
    covariance = np.zeros((n_timepoints, n_timepoints))
    # A product with fewer rows than columns would take less time than to add it.
    for rows in _slices(n_voxels, max(n_timepoints, _block_rows(n_timepoints))):
        block = series[rows].astype(dtype, copy=False)
        covariance += block.T @ block
    return covariance


def largest_tails(series: Array, sd: Array, components: Array, fewest: int = 0) -> tuple[Array, Array]:
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
    fewest
        Number of components below which no fraction is needed.

    Returns
    -------
    of_voxels, of_seeds : shape (n_timepoints + 1,), float64
        Fractions beyond the first 0, 1, …, n_timepoints components; 1 for less than `fewest`.
    """
    of_voxels = of_seeds = _largest_tail(series, components, fewest)
    sums, norms = _sums_of_recorded(series, sd), _sums_of_groups(sd)
    while len(sums):
        lengths = np.sqrt(np.einsum("ij,ij->i", sums, sums))
        lengths[lengths <= CONSTANT_SEED * norms] = np.inf
        wider = (_sums_of_groups(sums), _sums_of_groups(norms)) if len(sums) > 1 else (sums[:0], norms[:0])
        sums /= lengths[:, np.newaxis]
        of_seeds = np.maximum(of_seeds, _largest_tail(sums, components, fewest))
        sums, norms = wider
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


def _largest_tail(series: Array, components: Array, fewest: int) -> Array:
    """Find the largest fraction of variance beyond the first components among series with norm 1 or 0."""
    n_timepoints = series.shape[1]
    largest = np.zeros(n_timepoints - fewest)
    beyond = components[:, fewest:][:, ::-1].T.astype(series.dtype)
    for rows in _blocks(*series.shape):
        energy = beyond @ series[rows].T
        energy *= energy
        # Along voxels, which are contiguous here, sums are faster than NumPy's cumsum.
        for smaller, larger in pairwise(energy):
            larger += smaller
        np.maximum(largest, energy.max(axis=1, initial=0), out=largest)
    return np.concatenate([np.ones(fewest), largest[::-1].clip(0, 1), [0]])


def _sums_of_recorded(series: Array, sd: Array) -> Array:
    """Sum the series of every GROUP_LENGTH consecutive voxels in recorded units."""
    n_voxels, n_timepoints = series.shape
    sums = np.empty((-(-n_voxels // GROUP_LENGTH), n_timepoints), series.dtype)
    n_groups = n_voxels // GROUP_LENGTH
    whole = slice(0, n_groups * GROUP_LENGTH)
    factors = sd[whole].reshape(n_groups, 1, GROUP_LENGTH)
    np.matmul(factors, series[whole].reshape(-1, GROUP_LENGTH, n_timepoints), out=sums[:n_groups, np.newaxis])
    if n_voxels > whole.stop:
        sums[-1] = sd[whole.stop :] @ series[whole.stop :]
    return sums


def _sums_of_groups(values: Array) -> Array:
    """Sum every GROUP_LENGTH consecutive rows."""
    return np.add.reduceat(values, np.arange(0, len(values), GROUP_LENGTH))


def _project(series: Array, scale: Array, sd: Array, basis: Array) -> tuple[Array, Array, Array]:
    """Project series onto an orthonormal basis (n_timepoints, n_components), in place."""
    n_voxels, n_components = len(series), basis.shape[1]
    projected = series.reshape(-1)[: n_voxels * n_components].reshape(n_voxels, n_components)
    norm, basis = np.empty(n_voxels), basis.astype(series.dtype)
    for rows in _blocks(*series.shape):
        block = series[rows] @ basis
        kept = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=float))
        kept[kept < CONSTANT_SEED] = 0
        block *= np.divide(1, kept, where=kept > 0, out=np.zeros_like(kept))[:, np.newaxis].astype(block.dtype)
        projected[rows] = block
        norm[rows] = kept
    return projected, np.where(norm > 0, scale, 0).astype(np.float32), (sd * norm).astype(np.float32)


def _block_rows(n_timepoints: int) -> int:
    """Return the number of voxels in a block."""
    return max(1, BLOCK_VALUES // n_timepoints)


def _blocks(n_voxels: int, n_timepoints: int) -> Iterator[slice]:
    return _slices(n_voxels, _block_rows(n_timepoints))


def _slices(n: int, n_in_each: int) -> Iterator[slice]:
    for start in range(0, n, n_in_each):
        yield slice(start, min(start + n_in_each, n))
