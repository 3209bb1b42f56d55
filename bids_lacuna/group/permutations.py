"""Permutations of patients: how many differ, and which of them a test uses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

SYMMETRIC = 1e-9
"""Largest difference, relative to the range, of scores that are mirror images of each other."""


class TooFewPermutations(ValueError):  # noqa: N818  a fact about the design, not a defect of the program
    """No p can be as small as alpha, however large the effect; the message has both numbers."""


@dataclass(frozen=True, eq=False)
class Permutations:
    """The permutations of a test."""

    orders: Array
    """Shape (n, n_patients), int: in permutation k, the residual of patient i goes to row `orders[k, i]`; without
    covariates, patient i gets the label of patient `orders[k, i]`."""
    n_distinct: int
    """Number of permutations that differ in their statistics, with the observed one."""
    exhaustive: bool
    """Whether `orders` has all of them, the observed one included; else they were drawn, and it is left out."""
    smallest_p: float
    """Smallest p that any data could reach."""

    def p(self, maxima: Array, sizes: Array) -> Array:
        """Compute p of statistics, corrected for all voxels.

        Parameters
        ----------
        maxima : shape (n,)
            Largest |t| over voxels in each permutation.
        sizes : any shape
            |t|; values equal within `TIE` count as exceedances.

        Returns
        -------
        shape of `sizes`
            (b + 1) / (n + 1) where the observed order was left out, b / n where it is one of the permutations; NaN
            where |t| is NaN.
        """
        ascending = np.sort(maxima)
        n_below = np.searchsorted(ascending, np.asarray(sizes) * (1 - TIE), side="left")
        n_reached = len(maxima) - n_below
        p = n_reached / len(maxima) if self.exhaustive else (n_reached + 1) / (len(maxima) + 1)
        return np.where(np.isnan(sizes), np.nan, p)

    def threshold(self, maxima: Array, alpha: float) -> float:
        """Return the value above which |t| is significant at alpha."""
        n = len(maxima) + (not self.exhaustive)
        # Rounding keeps 0.05 * 40 from being 1.9999999999999998.
        n_allowed = math.floor(round(alpha * n, 9)) - (not self.exhaustive)
        descending = np.sort(maxima)[::-1]
        return float(descending[n_allowed]) / (1 - TIE) if n_allowed < len(descending) else 0.0


TIE = 1e-5
"""Relative difference up to which two statistics are equal: rounding must not decide about a permutation."""


def choose_permutations(
    tested: Array,
    nuisance: Array,
    blocks: Array,
    n_permutations: int,
    random_seed: int,
    alpha: float,
    welch: bool = False,
) -> Permutations:
    """Enumerate all distinct permutations if they are not more than asked for, or else draw that many.

    Where the nuisance is constant within blocks, permutations are distinct that rearrange the tested column, since
    the statistics depend on nothing else; else, those that order the rows differently. They are drawn without
    replacement, and without the observed one.

    Parameters
    ----------
    tested : shape (n_patients,)
        Column that is tested.
    nuisance : shape (n_patients, n_columns)
        Covariates; a constant, and one for each block, make no difference.
    blocks : shape (n_patients,), int
        Rows are exchanged within blocks of equal numbers.
    n_permutations
        Number asked for.
    random_seed
        Seed of the draws: the same seed gives the same permutations.
    alpha
        Level of the test.
    welch
        Whether groups have their own variances: an arrangement and its mirror image then differ in |t|.

    Raises
    ------
    TooFewPermutations
        The smallest p that is possible is above alpha.
    """
    rows = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    by_label = all(np.ptp(nuisance[block], axis=0).max(initial=0) == 0 for block in rows)
    codes = np.unique(tested, return_inverse=True)[1].reshape(-1) if by_label else np.arange(len(tested))
    n_distinct = math.prod(_count(codes[block]) for block in rows)
    exhaustive = n_distinct <= n_permutations
    if exhaustive:
        mirrored = by_label and not welch and _is_symmetric(tested, rows)
        smallest_p = (2 if mirrored else 1) / n_distinct
    else:
        smallest_p = 1 / (n_permutations + 1)
    if smallest_p > alpha:
        what = f"all {n_distinct} distinct permutations" if exhaustive else f"{n_permutations} permutations"
        raise TooFewPermutations(
            f"with {what}, no p can be below {smallest_p:.3g}, and alpha is {alpha:g}: "
            + ("more patients, or fewer blocks, are needed" if exhaustive else "ask for more permutations")
        )
    orders = _enumerate(codes, rows) if exhaustive else _draw(codes, rows, n_permutations, random_seed)
    return Permutations(orders, n_distinct, exhaustive, smallest_p)


def _count(codes: Array) -> int:
    """Count the distinct arrangements of some codes."""
    return math.factorial(len(codes)) // math.prod(math.factorial(int(n)) for n in np.bincount(codes))


def _is_symmetric(tested: Array, rows: list[Array]) -> bool:
    """Return whether the mirror image of the tested column is one of its rearrangements: its |t| are the same."""
    centred = np.concatenate([np.sort(tested[block]) - tested[block].mean() for block in rows])
    mirrored = np.concatenate([-np.sort(tested[block])[::-1] + tested[block].mean() for block in rows])
    return bool(np.abs(centred - mirrored).max() <= SYMMETRIC * np.ptp(tested))


def _enumerate(codes: Array, rows: list[Array]) -> Array:
    """List all distinct permutations: shape (n_distinct, n_patients)."""
    orders = []
    for arrangement in itertools.product(*(_arrangements(codes[block]) for block in rows)):
        order = np.empty(len(codes), int)
        for block, arranged in zip(rows, arrangement, strict=True):
            # The rows of each code go, in their order, to the places of that code.
            order[block[np.argsort(arranged, kind="stable")]] = block[np.argsort(codes[block], kind="stable")]
        orders.append(order)
    return np.array(orders)


def _arrangements(codes: Array) -> Iterator[tuple[int, ...]]:
    """Yield the distinct arrangements of some codes, in lexicographic order."""
    current = sorted(codes.tolist())
    while True:
        yield tuple(current)
        falling = next((i for i in reversed(range(len(current) - 1)) if current[i] < current[i + 1]), None)
        if falling is None:
            return
        larger = next(i for i in reversed(range(len(current))) if current[i] > current[falling])
        current[falling], current[larger] = current[larger], current[falling]
        current[falling + 1 :] = current[:falling:-1]


def _draw(codes: Array, rows: list[Array], n: int, random_seed: int) -> Array:
    """Draw distinct permutations other than the observed one: shape (n, n_patients)."""
    rng = np.random.default_rng(random_seed)
    codes = codes.astype(np.min_scalar_type(len(codes)))
    seen = {codes.tobytes()}
    orders: list[Array] = []
    while len(orders) < n:
        keys = rng.random((n, len(codes)))
        drawn = np.empty(keys.shape, int)
        for block in rows:
            drawn[:, block] = block[np.argsort(keys[:, block], axis=1, kind="stable")]
        for order, arranged in zip(drawn, codes[drawn], strict=True):
            if len(orders) < n and (key := arranged.tobytes()) not in seen:
                seen.add(key)
                orders.append(order)
    return np.array(orders)
