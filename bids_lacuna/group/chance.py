"""A group of lesions against chance: the mean map compared with sets of null lesions, one for each lesion.

The hypothesis is that these lesions lie at chance places of their hemispheres. A set of null lesions is then a group
like the observed one, so the largest |T| of the sets gives p, corrected for all voxels. It says that these places are
more connected to a region than chance places are, not that the region has to do with a symptom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_lacuna import kernels
from bids_lacuna.mapping.nulls import Connectivity, NullLesion

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Chance:
    """The mean approximate z-map of a group against that of its sets of null lesions."""

    effect: Array
    """Shape (n_voxels,), float32: mean z over the lesions, minus the mean over the sets."""
    t: Array
    """Shape (n_voxels,), float32: the same in standard deviations of the sets; both are NaN where too few lesions or
    sets are defined."""
    minus_log10_p: Array
    """Shape (n_voxels,), float32: of the two-sided p, corrected for all voxels by the largest |T|; NaN where T is."""
    p: float
    """Smallest p of all voxels."""
    n_sets: int
    """Number of sets of null lesions."""
    n_voxels: int
    """Number of voxels that are tested."""


def compare_with_chance(lesions: Sequence[NullLesion], connectivity: Connectivity) -> Chance:
    """Test the mean map of a group against its sets of null lesions.

    A voxel in the neighbourhood of a lesion is left out for this lesion, and a mean needs half of the lesions.

    Parameters
    ----------
    lesions
        Lesions from `make_nulls`, with equally many sets.
    connectivity
        The connectome's summary.
    """
    n_voxels, n_sets = connectivity.grid.n_voxels, len(lesions[0].sets)
    effect, t = np.full((2, n_voxels), np.nan)
    largest = np.zeros(1 + n_sets)
    sets = [np.concatenate([[0], lesion.sets]).astype(np.int32) for lesion in lesions]
    for block, operator in connectivity.summary.arrays.operator.blocks():
        total = np.zeros((1 + n_sets, operator.shape[1]), np.float32)
        n = np.zeros(total.shape, np.uint16)
        for lesion, of_lesion in zip(lesions, sets, strict=True):
            voxels = connectivity.voxels(block)
            kernels.add_to_sets(operator, lesion.seeds, lesion.neighbourhood, voxels, of_lesion, total, n)
        effect[block], t[block], highest = kernels.chance_t(total, n, fewest_lesions(len(lesions)))
        largest = np.maximum(largest, highest)
    p = p_of_largest(t, largest[1:])
    defined = np.isfinite(t)
    return Chance(
        effect.astype(np.float32),
        t.astype(np.float32),
        -np.log10(p).astype(np.float32),
        float(p[defined].min(initial=1)),
        n_sets,
        int(defined.sum()),
    )


def fewest_lesions(n_lesions: int) -> int:
    """Return the number of lesions that a mean needs: half of them."""
    return (n_lesions + 1) // 2


def p_of_largest(t: Array, largest: Array) -> Array:
    """Return the two-sided p of T by the largest |T| of each set: (b + 1) / (n + 1).

    Parameters
    ----------
    t : shape (n_voxels,)
    largest : shape (n,)

    Returns
    -------
    shape (n_voxels,)
        NaN where T is.
    """
    n_reached = len(largest) - np.searchsorted(np.sort(largest), np.abs(t), side="left")
    return np.where(np.isfinite(t), (n_reached + 1) / (len(largest) + 1), np.nan)
