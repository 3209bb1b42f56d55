"""What stands beside a test: sensitivity, its conjunction with the test, and where patients are lesioned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_lacuna.group.cohort import GroupLesion
from bids_lacuna.group.contrast import GroupTest
from bids_lacuna.group.summary import load_mask, read_lesion_map
from bids_lacuna.provenance import Provenance

Array = np.ndarray

LESIONED = 0.1
"""Fraction of lesioned patients above which a voxel is marked: a seed's own signal leaks into a contrast there."""

SENSITIVE = 0.75
"""Default of the smallest sensitivity in a conjunction."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How many of the cases have a strong connection with a voxel, and where the test agrees."""

    threshold: float
    """Threshold of |t| of each map."""
    smallest: float
    """Smallest sensitivity in the conjunction."""
    above: Array
    """Shape (n_voxels,): fraction of the cases with t above the threshold."""
    below: Array
    """Shape (n_voxels,): fraction of the cases with t below its negative."""
    conjunction: Array
    """Shape (n_voxels,): the fraction where it is large enough and the test significant with its sign, negative for
    `below`; else 0."""


def measure_sensitivity(
    test: GroupTest,
    lesions: Sequence[GroupLesion],
    provenance: Provenance,
    maps_dir: Path,
    thresholds: Sequence[float],
    smallest: float = SENSITIVE,
) -> list[Sensitivity]:
    """Count the cases with t above and below each threshold.

    Parameters
    ----------
    test
        Result of a test of two groups; a score has no cases, and the list is empty.
    lesions
        Lesions of the design's patients, in its order.
    provenance
        Settings of their maps.
    maps_dir
        Root of the dataset with the maps.
    thresholds
        Thresholds of |t|.
    smallest
        Smallest sensitivity in a conjunction.

    Raises
    ------
    OSError, ValueError
        A t-map cannot be used.
    """
    if not test.design.levels or not thresholds:
        return []
    cases = [lesion for lesion, is_case in zip(lesions, test.design.tested, strict=True) if is_case]
    counts = np.zeros((2, len(thresholds), len(test.result.statistic)))
    for lesion in cases:
        t = read_lesion_map(maps_dir / lesion.maps["t"], provenance.grid)[test.voxels]
        for number, threshold in enumerate(thresholds):
            counts[0, number] += t > threshold
            counts[1, number] += t < -threshold
    found = []
    significant = test.result.p <= test.question.alpha
    for threshold, above, below in zip(thresholds, *(counts / len(cases)), strict=True):
        conjunction = np.where(significant & (test.result.statistic > 0) & (above >= smallest), above, 0.0)
        conjunction -= np.where(significant & (test.result.statistic < 0) & (below >= smallest), below, 0.0)
        found.append(Sensitivity(threshold, smallest, above, below, conjunction))
    return found


def measure_lesioned(
    test: GroupTest, lesions: Sequence[GroupLesion], provenance: Provenance, maps_dir: Path
) -> Array:
    """Compute the fraction of the patients who are lesioned in each voxel of a test: shape (n_voxels,).

    A lesion counts as the fraction of the voxel that it covers.

    Raises
    ------
    OSError, ValueError
        A mask cannot be used.
    """
    total = np.zeros(test.voxels.size)
    for lesion in lesions:
        weights = load_mask(lesion, maps_dir, provenance).loaded_weights
        total[weights.voxels] += weights.weights
    return total.reshape(test.voxels.shape)[test.voxels] / len(lesions)
