"""Permutation tests of a general linear model at each voxel: arithmetic that knows no file.

The model is y = tested * effect + nuisance * rest + error at each voxel. By Freedman and Lane's method, the residuals
of the nuisance are permuted, and the whole model is fitted to each permutation (`reference.permutation_statistics` is
the definition). Nothing is fitted here: all statistics follow from products of a few fixed vectors, the functionals,
with the permuted residuals. Permuting a functional instead of the residuals turns a block of permutations into one
matrix product.

References
----------
Freedman & Lane (1983), J Bus Econ Stat 1:292; Winkler et al. (2014), NeuroImage 92:381,
doi:10.1016/j.neuroimage.2014.01.060; Phipson & Smyth (2010), doi:10.2202/1544-6115.1585.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bids_lacuna.group.permutations import Permutations
from bids_lacuna.kernels import single_threaded_blas
from bids_lacuna.kernels.maxima import largest_pooled, largest_welch

Array = np.ndarray

VOXELS = 2048
"""Voxels of a tile. Tiles are the same for any number of threads, and so are the results."""

ORDERS = 32
"""Permutations of a tile: with more, their products with the residuals leave the processor's cache."""

RANK = 1e-9
"""Fraction of the largest singular value below which a column depends on others."""

CONSTANT = 1e-20
"""Fraction of a voxel's sum of squares below which its residuals are rounding errors."""

ROUNDING = 1e-14
"""Fraction of a voxel's sum of squares below which a group's error is a rounding error."""


@dataclass(frozen=True, eq=False)
class Model:
    """A design, and the vectors from which its statistics follow."""

    nuisance: Array
    """Shape (n_patients, n): orthonormal basis of the blocks' constants and the covariates."""
    functionals: Array
    """Shape (n_patients, m): orthonormal; the first is the tested column without the nuisance. Sums within blocks are
    left out, since they are 0 in all permutations."""
    scale: float
    """Norm of the tested column without the nuisance."""
    degrees_of_freedom: int
    """Patients minus columns of the model."""
    blocks: Array
    """Shape (n_patients,), int."""
    welch: Welch | None
    """What Welch's v needs; None for the pooled t."""


@dataclass(frozen=True, eq=False)
class Welch:
    """What Welch's v needs beside the functionals; see `kernels.maxima.largest_welch`."""

    first: Array
    """Shape (n_patients,), boolean: the group with its own variance; the others have another one."""
    forms: Array
    """Shape (2, m, m): upper triangles."""
    freedom: Array
    """Shape (2,)."""
    eigenvalues: Array
    loadings: Array
    """Shape (n_columns,) both."""


@dataclass(frozen=True, eq=False)
class Inference:
    """The result of a test at each voxel; NaN where the maps do not vary."""

    t: Array
    """Shape (n_voxels,), float64: t, or v."""
    effect: Array
    """Shape (n_voxels,): coefficient of the tested column, in units of the maps."""
    partial_r: Array
    """Shape (n_voxels,): partial correlation of the tested column with the maps."""
    p: Array
    """Shape (n_voxels,): two-sided p, corrected for all voxels by the largest |t| of each permutation."""
    maxima: Array
    """Shape (n_permutations,): largest |t| over voxels in each permutation."""
    threshold: float
    """|t| above which p is at most alpha."""
    permutations: Permutations


def make_model(tested: Array, covariates: Array, blocks: Array, welch: bool = False) -> Model:
    """Prepare a design.

    Parameters
    ----------
    tested : shape (n_patients,)
        Column that is tested: a score, or 1 and 0 for two groups.
    covariates : shape (n_patients, n_covariates)
        Without constant and blocks.
    blocks : shape (n_patients,), int
        Patients are exchanged within blocks of equal numbers, each of which has its own constant; equal numbers
        everywhere where there are no blocks.
    welch
        Whether to let the two groups differ in their variance (`Welch`).

    Raises
    ------
    ValueError
        The tested column follows from the others, or no degrees of freedom are left.
    """
    blocks = np.asarray(blocks)
    constants = np.array([blocks == block for block in np.unique(blocks)], float).T
    constants /= np.linalg.norm(constants, axis=0)
    varying = _orthonormal(_scaled(_without(constants, np.asarray(covariates, float))))
    nuisance = np.hstack([constants, varying])
    degrees_of_freedom = len(tested) - nuisance.shape[1] - 1
    if degrees_of_freedom < 1:
        raise ValueError(
            f"the model has {nuisance.shape[1] + 1} columns for {len(tested)} patients: leave out covariates or "
            "blocks"
        )
    rest = _without(nuisance, np.asarray(tested, float))
    scale = float(np.linalg.norm(rest))
    if scale <= RANK * np.linalg.norm(tested - np.mean(tested)) or scale == 0:
        raise ValueError("the tested column follows from the covariates and the blocks: leave one of them out")
    functionals = np.column_stack([rest / scale, varying])
    details = None
    if welch:
        functionals, details = _prepare_welch(tested == np.max(tested), constants, nuisance, functionals[:, 0])
    return Model(nuisance, functionals, scale, degrees_of_freedom, blocks, details)


def _prepare_welch(first: Array, constants: Array, nuisance: Array, unit: Array) -> tuple[Array, Welch]:
    """Find the functionals from which both groups' errors follow, and how they do.

    With B an orthonormal basis of the model, B_g its rows of group g and c = B'y, the error of group g is
    y_g'y_g - 2 c'B_g'y_g + c'B_g'B_g c, and both c and B_g'y_g follow from the functionals M'y.
    """
    basis = np.column_stack([unit, nuisance])
    parts = [basis * rows[:, np.newaxis] for rows in (first, ~first)]
    invariant = np.column_stack([constants, unit])
    functionals = np.column_stack([unit, _orthonormal(_without(invariant, np.hstack(parts)))])
    coefficients = basis.T @ functionals
    forms = []
    for part in parts:
        form = 2 * coefficients.T @ (part.T @ functionals) - coefficients.T @ (part.T @ part) @ coefficients
        symmetric = (form + form.T) / 2
        forms.append(np.triu(symmetric) + np.triu(symmetric, 1))
    leverage = (basis**2).sum(axis=1)
    eigenvalues, vectors = np.linalg.eigh(parts[0].T @ parts[0])
    return functionals, Welch(
        first=np.asarray(first),
        forms=np.array(forms),
        freedom=np.array([(1 - leverage)[rows].sum() for rows in (first, ~first)]),
        eigenvalues=np.clip(eigenvalues, 0, 1),
        loadings=vectors[0] ** 2,
    )


def infer(
    maps: Array,
    model: Model,
    permutations: Permutations,
    alpha: float,
    *,
    n_threads: int = 1,
    on_tile: Callable[[], None] = lambda: None,
) -> Inference:
    """Test a model at each voxel, with p from the permutations' largest |t|.

    Parameters
    ----------
    maps : shape (n_patients, n_voxels)
        Unthresholded maps. A voxel with a NaN is undefined, and in no permutation's maximum.
    model, permutations
        From `make_model` and `choose_permutations`.
    alpha
        Level of the threshold.
    n_threads
        Threads; the results are bit-identical for any number.
    on_tile
        Called after each of `count_tiles` tiles.
    """
    n_voxels = maps.shape[1]
    t, effect, partial_r = (np.full(n_voxels, np.nan) for _ in range(3))
    squared = np.zeros(len(permutations.orders))
    starts = iter(range(0, n_voxels, VOXELS))

    def work() -> Array:
        mine = np.zeros(len(permutations.orders))
        for start in starts:
            tile = slice(start, start + VOXELS)
            residuals, total, defined = _residuals(maps[:, tile], model)
            voxels = start + np.flatnonzero(defined)
            t[voxels], effect[voxels], partial_r[voxels] = _observe(residuals, total, model)
            _update_maxima(residuals, total, model, permutations.orders, mine)
            on_tile()
        return mine

    with single_threaded_blas(), ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="test") as pool:
        helpers = [pool.submit(work) for _ in range(n_threads - 1)]
        try:
            np.maximum(squared, work(), out=squared)
            for helper in helpers:
                np.maximum(squared, helper.result(), out=squared)
        finally:
            # After an exception, and after Ctrl-C, the helpers end with their tiles.
            for _ in starts:
                pass
    maxima = _t_of(squared, model)
    return Inference(
        t,
        effect,
        partial_r,
        permutations.p(maxima, np.abs(t)),
        maxima,
        permutations.threshold(maxima, alpha),
        permutations,
    )


def count_tiles(n_voxels: int) -> int:
    """Return the number of tiles of a test."""
    return -(-n_voxels // VOXELS)


def working_bytes(n_patients: int, n_voxels: int, n_permutations: int, n_functionals: int, n_threads: int) -> int:
    """Return the bytes that a test occupies beside the maps: its results, permutations, and each thread's tile."""
    results = 4 * 8 * n_voxels + 8 * n_permutations * (n_patients + 3 + n_threads)
    products = (n_functionals + 1) * ORDERS * (n_patients + VOXELS)
    return results + 8 * n_threads * (4 * n_patients * VOXELS + products + 8 * VOXELS)


def _update_maxima(residuals: Array, total: Array, model: Model, orders: Array, largest: Array) -> None:
    """Update each permutation's largest squared statistic with a tile of voxels, of |r| or of v."""
    if not len(total):
        return
    n_functionals, n_voxels = model.functionals.shape[1], len(total)
    squares = residuals**2 if model.welch else residuals
    products = np.empty((n_functionals * ORDERS, n_voxels))
    firsts = np.empty((ORDERS if model.welch else 0, n_voxels))
    for start in range(0, len(orders), ORDERS):
        block = orders[start : start + ORDERS]
        n = len(block)
        permuted = np.ascontiguousarray(model.functionals.T)[:, block].reshape(n_functionals * n, -1)
        values = np.matmul(permuted, residuals, out=products[: n_functionals * n]).reshape(n_functionals, n, n_voxels)
        if model.welch is None:
            largest_pooled(values, total, largest[start : start + n])
            continue
        welch = model.welch
        first = np.matmul(welch.first[block].astype(float), squares, out=firsts[:n])
        largest_welch(
            values,
            first,
            total,
            welch.forms,
            welch.freedom,
            welch.eigenvalues,
            welch.loadings,
            ROUNDING,
            largest[start : start + n],
        )


def _residuals(maps: Array, model: Model) -> tuple[Array, Array, Array]:
    """Remove the nuisance from a tile of maps.

    Returns
    -------
    residuals : shape (n_patients, n_defined), float64
    total : shape (n_defined,)
        Their sums of squares.
    defined : shape (n_tile,), boolean
        Voxels where no map is NaN, and the maps vary beyond the nuisance.
    """
    values = maps.astype(float)
    defined = np.isfinite(values).all(axis=0)
    values[:, ~defined] = 0
    residuals = _without(model.nuisance, values)
    total = np.einsum("ij,ij->j", residuals, residuals)
    defined &= total > CONSTANT * np.einsum("ij,ij->j", values, values)
    return np.ascontiguousarray(residuals[:, defined]), total[defined], defined


def _observe(residuals: Array, total: Array, model: Model) -> tuple[Array, Array, Array]:
    """Compute the observed statistic, the coefficient and the partial correlation at each voxel of a tile."""
    values = model.functionals.T @ residuals
    rest = total - (values[1:] ** 2).sum(axis=0) if model.welch is None else total
    partial_r = np.clip(values[0] / np.sqrt(rest), -1, 1)
    if model.welch is None:
        statistic = np.sign(partial_r) * _t_of(partial_r**2, model)
    else:
        statistic = values[0] / np.sqrt(_welch_variance(values, residuals, total, model.welch))
    return statistic, values[0] / model.scale, partial_r


def _t_of(squared: Array, model: Model) -> Array:
    """Turn what `_update_maxima` collects into |t|, or |v|."""
    if model.welch is not None:
        return np.sqrt(squared)
    with np.errstate(divide="ignore"):
        return np.sqrt(model.degrees_of_freedom * squared / np.maximum(1 - squared, 0))


def _welch_variance(values: Array, residuals: Array, total: Array, welch: Welch) -> Array:
    """Compute the squared standard error of the first functional's product, as `largest_welch` does."""
    first = welch.first.astype(float) @ residuals**2
    explained = np.einsum("gkj,kv,jv->gv", welch.forms, values, values)
    errors = np.maximum(np.array([first, total - first]) - explained, ROUNDING * total)
    errors /= welch.freedom[:, np.newaxis]
    variance = np.zeros(len(total))
    for share, loading in zip(welch.eigenvalues, welch.loadings, strict=True):
        variance += loading * errors[0] * errors[1] / (share * errors[1] + (1 - share) * errors[0])
    return variance


def _without(basis: Array, columns: Array) -> Array:
    """Subtract from columns what an orthonormal basis explains; twice, so that rounding leaves nothing."""
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    return columns


def _scaled(columns: Array) -> Array:
    """Scale columns to norm 1, so that their units do not decide about the rank; those that are 0 stay."""
    norms = np.linalg.norm(columns, axis=0)
    return np.divide(columns, norms, out=np.zeros_like(columns), where=norms > 0)


def _orthonormal(columns: Array) -> Array:
    """Return an orthonormal basis of columns: shape (n_patients, rank)."""
    if not columns.size:
        return columns[:, :0]
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, singular > RANK * max(singular[0], RANK)]
