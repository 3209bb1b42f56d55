"""Leave-one-out: how well the effect map of all other patients tells the label of each one. Arithmetic alone.

Each patient's map is correlated with the effect map that is fitted without that patient. Both follow from the maps'
cross-products, so that the loop over patients is repeated for each permutation of the labels without reading a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bids_lacuna.group.permutations import Permutations
from bids_lacuna.kernels import single_threaded_blas

Array = np.ndarray

Measure = Literal["AUC", "r"]
"""Area under the receiver operating characteristic, for two groups, or Pearson's r with a score."""

VOXELS = 8192
"""Voxels whose cross-products are added at a time."""

LEVERAGE = 1e-9
"""A patient whom the nuisance fits this closely to exactly contributes nothing to any effect."""

EQUAL = 1e-9
"""Difference up to which accuracies are equal."""


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How well a prediction agrees with the labels, and what permuted labels lead to."""

    value: float
    """AUC or r, over all patients."""
    chance: float
    """Mean over permutations of the labels: below .5 or 0, since a patient's label and the mean of the other labels
    go in opposite directions."""
    p: float
    """One-sided, from the permutations of the labels."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result of leaving out one patient at a time."""

    measure: Measure
    similarity: Array
    """Shape (n_patients,): correlation of each map with the effect map of the others."""
    maps: Accuracy
    """Accuracy of the similarity."""
    baseline: Accuracy | None
    """Accuracy of least squares on the simple predictors, in the same folds; None without predictors."""
    difference: Accuracy | None
    """The maps' accuracy minus the baseline's; None without predictors."""
    n_permutations: int


def cross_products(maps: Array) -> Array:
    """Multiply each map with each other after subtracting its mean over voxels: shape (n_patients, n_patients).

    Parameters
    ----------
    maps : shape (n_patients, n_voxels)
        Without NaN.
    """
    means = maps.mean(axis=1, keepdims=True, dtype=float)
    products = np.zeros((len(maps), len(maps)))
    with single_threaded_blas():
        for start in range(0, maps.shape[1], VOXELS):
            centred = maps[:, start : start + VOXELS] - means
            products += centred @ centred.T
    return products


def leave_one_out(labels: Array, nuisance: Array, products: Array) -> Array:
    """Correlate each map with the effect map of all other patients.

    Without patient i, the residuals of the labels are those of all patients, x, plus d_i times row i of the
    nuisance's hat matrix H, with d_i = x_i / (1 - H_ii), and 0 for patient i. `reference.leave_one_out` is the
    definition.

    Parameters
    ----------
    labels : shape (n_permutations, n_patients)
        Tested column, in each permutation.
    nuisance : shape (n_patients, n)
        Orthonormal basis.
    products : shape (n_patients, n_patients)
        From `cross_products`.

    Returns
    -------
    shape (n_permutations, n_patients)
        Pearson r over voxels; 0 where a map, or the effect map, does not vary.
    """
    forming = nuisance @ nuisance.T - np.eye(len(nuisance))
    residuals = -labels @ forming
    weights = residuals @ products
    free = -np.diag(forming)
    deleted = np.divide(residuals, free, out=np.zeros_like(residuals), where=free > LEVERAGE)
    adjusted = forming @ products
    covariance = weights + deleted * np.diag(adjusted)
    squares = (
        (weights * residuals).sum(axis=1, keepdims=True)
        + 2 * deleted * (weights @ forming)
        + deleted**2 * np.einsum("ij,ij->i", adjusted, forming)
    )
    norms = np.sqrt(np.maximum(squares, 0) * np.diag(products))
    return np.divide(covariance, norms, out=np.zeros_like(norms), where=norms > 0)


def leave_one_out_baseline(labels: Array, predictors: Array) -> Array:
    """Predict each label by least squares on the other patients.

    Parameters
    ----------
    labels : shape (n_permutations, n_patients)
    predictors : shape (n_patients, n)
        Without the constant, which is added.

    Returns
    -------
    shape (n_permutations, n_patients)
    """
    design = np.column_stack([np.ones(len(predictors)), predictors])
    hat = design @ np.linalg.pinv(design)
    free = 1 - np.diag(hat)
    errors = labels - labels @ hat
    return labels - np.divide(errors, free, out=np.zeros_like(errors), where=free > LEVERAGE)


def measure_accuracy(predictions: Array, labels: Array, measure: Measure) -> Array:
    """Compare predictions with labels: shape (n_permutations,).

    Parameters
    ----------
    predictions, labels : shape (n_permutations, n_patients)
        For the AUC, the larger label is that of the cases.
    """
    if measure == "r":
        centred = [values - values.mean(axis=1, keepdims=True) for values in (predictions, labels)]
        norms = np.prod([np.linalg.norm(values, axis=1) for values in centred], axis=0)
        sums = (centred[0] * centred[1]).sum(axis=1)
        return np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)
    areas = []
    for values, are_cases in zip(predictions, labels == labels.max(), strict=True):
        differences = values[are_cases][:, np.newaxis] - values[~are_cases]
        areas.append(((differences > 0) + (differences == 0) / 2).mean())
    return np.array(areas)


def predict(
    products: Array,
    tested: Array,
    nuisance: Array,
    permutations: Permutations,
    measure: Measure,
    predictors: Array | None = None,
) -> Prediction:
    """Leave out one patient at a time, with the observed labels and with each permutation of them.

    Parameters
    ----------
    products
        From `cross_products`.
    tested : shape (n_patients,)
        Label or score.
    nuisance : shape (n_patients, n)
        Orthonormal basis of covariates and blocks, which adjust the effect map.
    permutations
        Permutations of the labels, chosen without covariates.
    measure
        AUC for two groups, r for a score.
    predictors : shape (n_patients, n)
        Simple predictors for the baseline.
    """
    labels = np.vstack([tested, tested[permutations.orders]])
    similarity = leave_one_out(labels, nuisance, products)
    accuracies = measure_accuracy(similarity, labels, measure)
    baseline = difference = None
    if predictors is not None:
        simple = measure_accuracy(leave_one_out_baseline(labels, predictors), labels, measure)
        baseline = _compare(simple, permutations)
        difference = _compare(accuracies - simple, permutations)
    n_permutations = len(permutations.orders)
    return Prediction(
        measure, similarity[0], _compare(accuracies, permutations), baseline, difference, n_permutations
    )


def _compare(accuracies: Array, permutations: Permutations) -> Accuracy:
    """Compare the observed accuracy, which comes first, with those of permuted labels."""
    value, permuted = accuracies[0], accuracies[1:]
    n_reached = int((permuted >= value - EQUAL).sum())
    observed = 0 if permutations.exhaustive else 1
    return Accuracy(float(value), float(permuted.mean()), (n_reached + observed) / (len(permuted) + observed))
