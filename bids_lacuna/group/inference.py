"""Permutation tests of a general linear model at each voxel: arithmetic that knows no file.

The model is y = tested * effect + nuisance * rest + error at each voxel. By Freedman and Lane's method, the residuals
of the nuisance are permuted, and the whole model is fitted to each permutation (`reference.permutation_statistics` is
the definition). Nothing is fitted here: all statistics follow from products of a few fixed vectors, the functionals,
with the permuted residuals. Permuting a functional instead of the residuals turns a block of permutations into one
matrix product.

With Welch's v, groups may vary differently. A permutation would mix what varies much with what varies little: each
residual is therefore divided by its group's standard deviation, and multiplied by that of the group to which it goes,
with one ratio of both for all voxels. v has other degrees of freedom at each voxel and in each permutation: the
largest is found of the z with the same p.

References
----------
Freedman & Lane (1983), J Bus Econ Stat 1:292; Winkler et al. (2014), NeuroImage 92:381,
doi:10.1016/j.neuroimage.2014.01.060; Phipson & Smyth (2010), doi:10.2202/1544-6115.1585.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bids_lacuna.group.permutations import Permutations
from bids_lacuna.kernels import single_threaded_blas
from bids_lacuna.kernels.maxima import largest_pooled, largest_welch, welch_z

Array = np.ndarray

VOXELS = 2048
"""Voxels of a tile. Tiles are the same for any number of threads, and so are the results."""

ORDERS = 32
"""Permutations of a tile: with more, their products with the residuals leave the processor's cache."""

SAMPLED = 8 * ORDERS
"""Permutations of the sample from which the time of a test is estimated."""

RANK = 1e-9
"""Fraction of the largest singular value below which a column depends on others."""

CONSTANT = 1e-20
"""Fraction of a voxel's sum of squares below which its residuals are rounding errors."""

ROUNDING = 1e-14
"""Fraction of a voxel's sum of squares below which a group's error is a rounding error."""

LARGEST_RATIO = 100.0
"""Largest ratio of two groups' standard deviations that is accounted for: a group may not vary at all."""


@dataclass(frozen=True, eq=False)
class Model:
    """A design, and the vectors from which its statistics follow."""

    nuisance: Array
    """Shape (n_patients, n): orthonormal basis of the blocks' constants and the covariates, times `weights`."""
    weights: Array
    """Shape (n_patients,): 1 / root of the standard deviation of each patient's group; 1 for the pooled t."""
    functionals: Array
    """Shape (n_patients, m): orthonormal; the first gives the tested column's coefficient. Sums within blocks are
    left out, since they are 0 in all permutations."""
    scale: float
    """The first functional's product, divided by the coefficient."""
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
    basis: Array
    """Shape (n_patients, n_columns): orthonormal basis of the model, the tested column first."""
    ratio: float
    """Standard deviation of the first group, relative to that of the others."""
    forms: Array
    """Shape (2, m, m): upper triangles."""
    factors: Array
    freedom: Array
    """Shape (2,) both."""
    eigenvalues: Array
    loadings: Array
    """Shape (n_columns,) both."""


@dataclass(frozen=True, eq=False)
class Inference:
    """The result of a test at each voxel; NaN where the maps do not vary."""

    statistic: Array
    """Shape (n_voxels,), float64: t; or z of Welch's v, by its degrees of freedom at each voxel."""
    effect: Array
    """Shape (n_voxels,): coefficient of the tested column, in units of the maps."""
    partial_r: Array
    """Shape (n_voxels,): partial correlation of the tested column with the maps."""
    p: Array
    """Shape (n_voxels,): two-sided p, corrected for all voxels by the largest |statistic| of each permutation."""
    maxima: Array
    """Shape (n_permutations,): largest |statistic| over voxels in each permutation."""
    threshold: float
    """|statistic| above which p is at most alpha."""
    permutations: Permutations
    variance_ratio: float | None
    """Variance of the first group relative to the others', over all voxels, where each group has its own."""


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
        Whether to let the two groups differ in their variance (`Welch`); `infer` finds how much they do.

    Raises
    ------
    ValueError
        The tested column follows from the others, or no degrees of freedom are left.
    """
    blocks = np.asarray(blocks)
    constants = _constants(blocks)
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
    if welch:
        basis = np.column_stack([rest / scale, nuisance])
        return _make_welch(basis, tested == np.max(tested), scale, degrees_of_freedom, blocks, ratio=1)
    functionals = np.column_stack([rest / scale, varying])
    return Model(nuisance, np.ones(len(tested)), functionals, scale, degrees_of_freedom, blocks, None)


def _make_welch(
    basis: Array, first: Array, scale: float, degrees_of_freedom: int, blocks: Array, ratio: float
) -> Model:
    """Find the functionals from which the effect and both groups' errors follow, and how they do.

    With B the basis, B_g its rows of group g and c = B'y, group g's error is y_g'y_g - 2 c'B_g'y_g + c'B_g'B_g c.
    Both c and B_g'y_g follow from the functionals' products with u, where u are permuted residuals in units of
    their groups' standard deviations, and y is u times the standard deviation of the group to which each went.

    Parameters
    ----------
    basis : shape (n_patients, n_columns)
        Orthonormal basis of the model; the first column is the tested one without the nuisance, divided by `scale`.
    ratio
        Standard deviation of the first group, relative to that of the others.
    """
    spread = np.where(first, ratio, 1.0)
    constants = _constants(blocks)
    unit = _without(constants, spread * basis[:, 0])
    norm = float(np.linalg.norm(unit))
    unit /= norm
    parts = [basis * rows[:, np.newaxis] for rows in (first, ~first)]
    functionals = np.column_stack(
        [unit, _orthonormal(_without(np.column_stack([constants, unit]), np.hstack(parts)))]
    )
    scaled = spread[:, np.newaxis] * functionals
    coefficients = basis.T @ scaled
    forms = []
    for part, variance in zip(parts, (ratio**2, 1), strict=True):
        form = 2 * coefficients.T @ (part.T @ scaled) - coefficients.T @ (part.T @ part) @ coefficients
        symmetric = (form + form.T) / (2 * variance)
        forms.append(np.triu(symmetric) + np.triu(symmetric, 1))
    leverage = (basis**2).sum(axis=1)
    freedom = np.array([(1 - leverage)[rows].sum() for rows in (first, ~first)])
    eigenvalues, vectors = np.linalg.eigh(parts[0].T @ parts[0])
    welch = Welch(
        first=np.asarray(first),
        basis=basis,
        ratio=ratio,
        forms=np.array(forms),
        factors=np.array([ratio**2, 1]) / freedom,
        freedom=freedom,
        eigenvalues=np.clip(eigenvalues, 0, 1),
        loadings=vectors[0] ** 2 / norm**2,
    )
    weights = 1 / np.sqrt(spread)
    nuisance = _orthonormal(weights[:, np.newaxis] * basis[:, 1:])
    return Model(nuisance, weights, functionals, scale / norm, degrees_of_freedom, blocks, welch)


def infer(
    maps: Array,
    model: Model,
    permutations: Permutations,
    alpha: float,
    *,
    n_threads: int = 1,
    on_tile: Callable[[], None] = lambda: None,
) -> Inference:
    """Test a model at each voxel, with p from the permutations' largest |t|, or |z|.

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
    if model.welch is not None:
        model = _give_ratio(model, model.welch, maps)
    statistic, effect, partial_r = (np.full(n_voxels, np.nan) for _ in range(3))
    squared = np.zeros(len(permutations.orders))
    starts = iter(range(0, n_voxels, VOXELS))

    def work() -> Array:
        mine = np.zeros(len(permutations.orders))
        for start in starts:
            tile = slice(start, start + VOXELS)
            residuals, total, defined = _residuals(maps[:, tile], model)
            voxels = start + np.flatnonzero(defined)
            statistic[voxels], effect[voxels], partial_r[voxels] = _observe(residuals, total, model)
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
    maxima = _root_of(squared, model)
    return Inference(
        statistic,
        effect,
        partial_r,
        permutations.p(maxima, np.abs(statistic)),
        maxima,
        permutations.threshold(maxima, alpha),
        permutations,
        model.welch.ratio**2 if model.welch else None,
    )


def count_tiles(n_voxels: int) -> int:
    """Return the number of tiles of a test."""
    return -(-n_voxels // VOXELS)


def estimate_seconds(model: Model, n_voxels: int, n_permutations: int, n_threads: int) -> float:
    """Estimate how long a test takes from a tile of noise and a few permutations."""
    rng = np.random.default_rng(0)
    n_patients = len(model.blocks)
    maps = rng.standard_normal((n_patients, VOXELS))
    orders = rng.permuted(np.tile(np.arange(n_patients), (SAMPLED, 1)), axis=1)
    sample = Permutations(orders, SAMPLED, exhaustive=False, smallest_p=0)
    # The first call compiles the kernels, or reads them from disk.
    infer(maps[:, :1], model, sample, alpha=0.5)
    began = time.perf_counter()
    infer(maps, model, sample, alpha=0.5)
    seconds = time.perf_counter() - began
    return seconds * n_voxels / VOXELS * n_permutations / SAMPLED / n_threads


def working_bytes(n_patients: int, n_voxels: int, n_permutations: int, n_functionals: int, n_threads: int) -> int:
    """Return the bytes that a test occupies beside the maps: its results, permutations, and each thread's tile."""
    results = 4 * 8 * n_voxels + 8 * n_permutations * (n_patients + 3 + n_threads)
    products = (n_functionals + 1) * ORDERS * (n_patients + VOXELS)
    return results + 8 * n_threads * (4 * n_patients * VOXELS + products + 8 * VOXELS)


def _update_maxima(residuals: Array, total: Array, model: Model, orders: Array, largest: Array) -> None:
    """Update each permutation's largest squared r, or z of Welch's v, with a tile of voxels."""
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
            welch.factors,
            welch.freedom,
            welch.eigenvalues,
            welch.loadings,
            ROUNDING,
            largest[start : start + n],
        )


def _residuals(maps: Array, model: Model) -> tuple[Array, Array, Array]:
    """Remove the nuisance from a tile of maps; what is left is in units of each group's standard deviation.

    Returns
    -------
    residuals : shape (n_patients, n_defined), float64
    total : shape (n_defined,)
        Their sums of squares.
    defined : shape (n_tile,), boolean
        Voxels where no map is NaN, and the maps vary beyond the nuisance.
    """
    weights = model.weights[:, np.newaxis]
    values = maps * weights
    defined = np.isfinite(values).all(axis=0)
    values[:, ~defined] = 0
    residuals = _without(model.nuisance, values) * weights
    total = np.einsum("ij,ij->j", residuals, residuals)
    defined &= total > CONSTANT * np.einsum("ij,ij->j", values, values)
    return np.ascontiguousarray(residuals[:, defined]), total[defined], defined


def _observe(residuals: Array, total: Array, model: Model) -> tuple[Array, Array, Array]:
    """Compute the observed statistic, the coefficient and the partial correlation at each voxel of a tile."""
    values = model.functionals.T @ residuals
    if model.welch is None:
        partial_r = np.clip(values[0] / np.sqrt(total - (values[1:] ** 2).sum(axis=0)), -1, 1)
        squared = partial_r**2
    else:
        welch = model.welch
        variances = _group_variances(values, residuals, total, welch)
        variance = np.zeros(len(total))
        for share, loading in zip(welch.eigenvalues, welch.loadings, strict=True):
            variance += loading * variances[0] * variances[1] / (share * variances[1] + (1 - share) * variances[0])
        squared = values[0] ** 2 / variance
        squared = welch_z(squared, *variances, variance, welch.freedom, welch.eigenvalues, welch.loadings)
        rest = welch.loadings.sum() * (welch.freedom @ variances)
        partial_r = values[0] / np.sqrt(values[0] ** 2 + rest)
    return np.sign(values[0]) * _root_of(squared, model), values[0] / model.scale, partial_r


def _root_of(squared: Array, model: Model) -> Array:
    """Turn what `_update_maxima` collects into |t|, or |z|."""
    if model.welch is not None:
        return np.sqrt(squared)
    with np.errstate(divide="ignore"):
        return np.sqrt(model.degrees_of_freedom * squared / np.maximum(1 - squared, 0))


def _group_variances(values: Array, residuals: Array, total: Array, welch: Welch) -> Array:
    """Estimate both groups' variances at each voxel, as `largest_welch` does: shape (2, n_voxels)."""
    first = welch.first.astype(float) @ residuals**2
    explained = np.einsum("gkj,kv,jv->gv", welch.forms, values, values)
    errors = np.maximum(np.array([first, total - first]) - explained, ROUNDING * total)
    return errors * welch.factors[:, np.newaxis]


def _give_ratio(model: Model, welch: Welch, maps: Array) -> Model:
    """Give a model the ratio of the groups' standard deviations: one for all voxels, each in units of its own."""
    sums = np.zeros(2)
    for start in range(0, maps.shape[1], VOXELS):
        residuals, total, _ = _residuals(maps[:, start : start + VOXELS], model)
        variances = _group_variances(model.functionals.T @ residuals, residuals, total, welch)
        sums += (variances / (welch.freedom @ variances)).sum(axis=1)
    if not sums.all():
        return model
    ratio = float(np.clip(np.sqrt(sums[0] / sums[1]), 1 / LARGEST_RATIO, LARGEST_RATIO))
    # The first functional's product is the tested column's in a model of equal variances.
    return _make_welch(welch.basis, welch.first, model.scale, model.degrees_of_freedom, model.blocks, ratio)


def _without(basis: Array, columns: Array) -> Array:
    """Subtract from columns what an orthonormal basis explains; twice, so that rounding leaves nothing."""
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    return columns


def _constants(blocks: Array) -> Array:
    """Return a constant for each block, of norm 1: shape (n_patients, n_blocks)."""
    constants = np.array([blocks == block for block in np.unique(blocks)], float).T
    return constants / np.linalg.norm(constants, axis=0)


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
