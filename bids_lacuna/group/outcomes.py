"""Tests of single numbers of each patient, such as the similarity with a target network, by the test of the maps.

The design and the permutations are those of the maps; columns of numbers take the place of voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bids_lacuna.group.inference import Model, infer
from bids_lacuna.group.permutations import Permutations

Array = np.ndarray

MEASURES = {
    "r": "R",
    "r_outside": "ROutsideLesion",
    "damage": "DamageScore",
}
"""What is tested of each target network, and its key in sidecars."""


@dataclass(frozen=True)
class Outcome:
    """The test of one number of each patient; NaN where it is unknown in a patient, or does not vary."""

    target: str
    """Name of the target network."""
    measure: str
    """One of `MEASURES`."""
    effect: float
    """Coefficient of the tested column, in units of the measure: the difference of two groups, adjusted."""
    partial_r: float
    """Partial correlation of the tested column with the measure."""
    statistic: float
    """t, or z of Welch's v."""
    p: float
    """Two-sided p of this measure alone."""
    p_corrected: float
    """Two-sided p, corrected for all outcomes by the largest |statistic| of each permutation."""


def infer_outcomes(
    columns: Mapping[tuple[str, str], Array], model: Model, permutations: Permutations, alpha: float
) -> tuple[Outcome, ...]:
    """Test numbers of each patient.

    Parameters
    ----------
    columns
        By target and measure: shape (n_patients,).
    model, permutations, alpha
        As in `infer`. Each column has its own ratio of the groups' variances.
    """
    results = [infer(column[:, np.newaxis], model, permutations, alpha) for column in columns.values()]
    if not results:
        return ()
    maxima = np.max([result.maxima for result in results], axis=0)
    return tuple(
        Outcome(
            *name,
            effect=float(result.effect[0]),
            partial_r=float(result.partial_r[0]),
            statistic=float(result.statistic[0]),
            p=float(result.p[0]),
            p_corrected=float(permutations.p(maxima, np.abs(result.statistic))[0]),
        )
        for name, result in zip(columns, results, strict=True)
    )


def list_columns(
    names: Sequence[str], relations: Sequence[Mapping[str, Mapping[str, object]]]
) -> dict[tuple[str, str], Array]:
    """Return the numbers of each patient and target, by target and measure; those that no patient has are left out.

    Parameters
    ----------
    names
        Names of the targets.
    relations
        Of each patient's lesion, by the targets' names, as in sidecars.
    """
    columns = {}
    for name in names:
        for measure, key in MEASURES.items():
            numbers = [relation.get(name, {}).get(key) for relation in relations]
            values = np.array([number if isinstance(number, int | float) else np.nan for number in numbers], float)
            if np.isfinite(values).any():
                columns[name, measure] = values
    return columns
