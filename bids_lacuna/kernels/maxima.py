"""Numba kernels for permutation tests: the largest statistic over a tile of voxels in each permutation.

The linear part, a product of permuted functionals and residuals, is a matrix product of BLAS. What follows would take
as long in NumPy, which reads and writes the tile once for each step.
"""

from __future__ import annotations

import numpy as np

from bids_lacuna.kernels.compiled import cached_njit

Array = np.ndarray

ORDERED = {"contract", "nnan", "nsz"}
"""Flags with which the compiler vectorizes a maximum: there is no NaN here, and the sign of 0 makes no difference."""


@cached_njit(nogil=True, error_model="numpy", fastmath=ORDERED)
def largest_pooled(values: Array, total: Array, largest: Array) -> None:
    """Update each permutation's largest squared partial correlation.

    Parameters
    ----------
    values : shape (n_functionals, n_permutations, n_voxels), float64
        Products of orthonormal functionals with the permuted residuals; the first functional is the tested one.
    total : shape (n_voxels,), float64
        Sum of squares of the residuals; infinite where a voxel does not count.
    largest : shape (n_permutations,), float64
        Updated in place.
    """
    n_functionals, n_permutations, n_voxels = values.shape
    rest = np.empty(n_voxels)
    for permutation in range(n_permutations):
        for v in range(n_voxels):
            rest[v] = total[v]
        for k in range(1, n_functionals):
            row = values[k, permutation]
            for v in range(n_voxels):
                rest[v] -= row[v] * row[v]
        row = values[0, permutation]
        best = largest[permutation]
        for v in range(n_voxels):
            squared = row[v] * row[v] / rest[v]
            if squared > best:
                best = squared
        largest[permutation] = best


@cached_njit(nogil=True, error_model="numpy", fastmath=ORDERED)
def largest_welch(
    values: Array,
    first: Array,
    total: Array,
    forms: Array,
    freedom: Array,
    eigenvalues: Array,
    loadings: Array,
    smallest: float,
    largest: Array,
) -> None:
    """Update each permutation's largest squared v.

    Parameters
    ----------
    values, total, largest
        As in `largest_pooled`.
    first : shape (n_permutations, n_voxels), float64
        Sum of squares of the permuted residuals in the first group.
    forms : shape (2, n_functionals, n_functionals), float64
        Each group's sum of squares that the model explains, as a quadratic form of the values; the upper triangle is
        read, with both terms of a product in it.
    freedom : shape (2,), float64
        Each group's degrees of freedom: the trace of its part of the residual-forming matrix.
    eigenvalues, loadings : shape (n,), float64
        Of the first group's cross-product of the model's orthonormal basis: eigenvalues, and the squared elements of
        the eigenvectors that belong to the tested column.
    smallest
        Least fraction of a voxel's sum of squares that an error may have, so that rounding does not make it negative.
    """
    n_functionals, n_permutations, n_voxels = values.shape
    error_1, error_2, variance = np.empty(n_voxels), np.empty(n_voxels), np.empty(n_voxels)
    for permutation in range(n_permutations):
        squares = first[permutation]
        for v in range(n_voxels):
            error_1[v] = squares[v]
            error_2[v] = total[v] - squares[v]
            variance[v] = 0.0
        for k in range(n_functionals):
            row = values[k, permutation]
            for j in range(k, n_functionals):
                other = values[j, permutation]
                form_1, form_2 = forms[0, k, j], forms[1, k, j]
                for v in range(n_voxels):
                    product = row[v] * other[v]
                    error_1[v] -= form_1 * product
                    error_2[v] -= form_2 * product
        for v in range(n_voxels):
            least = smallest * total[v]
            error_1[v] = max(error_1[v], least) / freedom[0]
            error_2[v] = max(error_2[v], least) / freedom[1]
        for i in range(len(eigenvalues)):
            share, loading = eigenvalues[i], loadings[i]
            for v in range(n_voxels):
                both = share * error_2[v] + (1 - share) * error_1[v]
                variance[v] += loading * error_1[v] * error_2[v] / both
        row = values[0, permutation]
        best = largest[permutation]
        for v in range(n_voxels):
            squared = row[v] * row[v] / variance[v]
            if squared > best:
                best = squared
        largest[permutation] = best
