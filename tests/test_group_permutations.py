"""Permutations of patients: counted, enumerated and drawn."""

from __future__ import annotations

import itertools
from math import comb, factorial

import numpy as np
import pytest

from bids_lacuna.group.permutations import TooFewPermutations, choose_permutations

Array = np.ndarray

NO_COVARIATES = np.empty((8, 0))


def labels_of(orders: Array, tested: Array) -> set[tuple[float, ...]]:
    """Return the labels that each permutation gives to the patients."""
    return {tuple(tested[order]) for order in orders}


def test_all_arrangements_of_four_against_four() -> None:
    """All 70 are enumerated, each once, and p cannot be below 2/70, since the groups may be exchanged."""
    tested = np.array([1, 0, 0, 1, 1, 0, 1, 0.0])
    chosen = choose_permutations(tested, NO_COVARIATES, np.zeros(8, int), 1000, 0, 0.05)
    expected = set(itertools.permutations(tested))
    assert chosen.orders.shape == (70, 8)
    assert labels_of(chosen.orders, tested) == expected
    assert (chosen.exhaustive, chosen.n_distinct, chosen.smallest_p) == (True, 70, 2 / 70)
    np.testing.assert_array_equal(np.sort(chosen.orders, axis=1), np.tile(np.arange(8), (70, 1)))


def test_blocks_are_not_crossed() -> None:
    """Blocks of 3 against 3 and 2 against 2, with rows in any order, have exactly 20 x 6 arrangements."""
    tested = np.array([1, 1, 0, 1, 0, 0, 0, 1, 0, 1.0])
    blocks = np.array([7, 7, 3, 7, 7, 3, 7, 3, 7, 3])
    constant_within = np.where(blocks == 7, 5.0, 2)[:, np.newaxis]
    chosen = choose_permutations(tested, constant_within, blocks, 120, 0, 0.05)
    assert (chosen.exhaustive, chosen.n_distinct, len(chosen.orders)) == (True, 120, 120)
    assert len(labels_of(chosen.orders, tested)) == 120
    np.testing.assert_array_equal(blocks[chosen.orders], np.tile(blocks, (120, 1)))


def test_a_covariate_that_varies_makes_orders_of_rows_distinct() -> None:
    """With it, the statistics depend on who gets which residual, and a block of n rows has n! orders."""
    tested, blocks = np.array([1, 1, 0, 0, 0, 1.0]), np.array([0, 0, 0, 1, 1, 1])
    covariate = np.array([[1, 2, 3, 1, 1, 1.0]]).T
    chosen = choose_permutations(tested, covariate, blocks, 36, 0, 0.05)
    assert (chosen.exhaustive, chosen.n_distinct) == (True, factorial(3) ** 2)
    assert len({tuple(order) for order in chosen.orders}) == 36
    assert chosen.smallest_p == 1 / 36


def test_scores_with_ties() -> None:
    """Equal scores may be exchanged without a new arrangement; a lopsided score has no mirror image."""
    tested = np.array([1, 1, 1, 2, 2, 9, 9.0])
    chosen = choose_permutations(tested, np.ones((7, 1)), np.zeros(7, int), 10_000, 0, 0.05)
    assert chosen.n_distinct == factorial(7) // (factorial(3) * 2 * 2)
    assert labels_of(chosen.orders, tested) == set(itertools.permutations(tested))
    assert chosen.smallest_p == 1 / chosen.n_distinct
    symmetric = choose_permutations(
        tested := np.array([-3, -1, 0, 1, 3.0]), np.ones((5, 1)), np.zeros(5), 999, 0, 0.05
    )
    assert symmetric.smallest_p == 2 / 120, tested


def test_draws_are_distinct_and_leave_out_the_observed_arrangement() -> None:
    """All arrangements but the observed one can be drawn; blocks hold, and one seed gives one set of draws."""
    tested, blocks, none = np.repeat([0, 1.0], 4), np.tile([0, 1], 4), NO_COVARIATES
    chosen = choose_permutations(tested, none, np.zeros(8), comb(8, 4) - 1, 1, 0.05)
    assert labels_of(chosen.orders, tested) == set(itertools.permutations(tested)) - {tuple(tested)}
    n = comb(4, 2) * comb(4, 2) - 1
    drawn = choose_permutations(tested, none, blocks, n, 1, 0.05)
    assert len(labels_of(drawn.orders, tested) - {tuple(tested)}) == n
    assert not drawn.exhaustive
    np.testing.assert_array_equal(blocks[drawn.orders], np.tile(blocks, (n, 1)))
    again = choose_permutations(tested, none, blocks, n, 1, 0.05)
    np.testing.assert_array_equal(drawn.orders, again.orders)
    other = choose_permutations(tested, none, blocks, n, 2, 0.05)
    assert (drawn.orders != other.orders).any()


def test_draws_are_uniform() -> None:
    """Each patient gets each place equally often, by a chi-square of 81 degrees of freedom."""
    tested = np.arange(10.0)
    orders = choose_permutations(tested, np.ones((10, 1)), np.zeros(10), 5000, 3, 0.05).orders
    counts = np.array([np.bincount(places, minlength=10) for places in orders.T])
    assert 40 < ((counts - 500) ** 2 / 500).sum() < 140


@pytest.mark.parametrize(
    ("n_asked", "alpha", "numbers"),
    [(1000, 0.02, ("70 distinct", "0.0286", "0.02")), (15, 0.05, ("15 permutations", "0.0625", "0.05"))],
)
def test_too_few_for_alpha(n_asked: int, alpha: float, numbers: tuple[str, ...]) -> None:
    """A test that cannot reach alpha is refused with both numbers, and what to do."""
    with pytest.raises(TooFewPermutations) as error:
        choose_permutations(np.repeat([0, 1.0], 4), NO_COVARIATES, np.zeros(8), n_asked, 0, alpha)
    assert all(number in str(error.value) for number in numbers)


def test_p_and_threshold_by_counting() -> None:
    """The p counts exceedances, with those equal within 1e-5; |t| above the threshold has p of at most alpha."""
    maxima = np.array([5, 1, 4, 2, 3.0])
    drawn = choose_permutations(np.arange(8.0), NO_COVARIATES, np.zeros(8), 20, 0, 0.05)
    sizes = np.array([0.5, 3, 3 * (1 - 9e-6), 3 * (1 + 9e-6), 3.001, 5, 6, np.nan])
    np.testing.assert_allclose(drawn.p(maxima, sizes), [1, 4 / 6, 4 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, np.nan])
    every = choose_permutations(np.repeat([0, 1.0], 4), NO_COVARIATES, np.zeros(8), 1000, 0, 0.05)
    np.testing.assert_allclose(every.p(maxima, sizes), [1, 3 / 5, 3 / 5, 3 / 5, 2 / 5, 1 / 5, 0, np.nan])
    for chosen in (drawn, every):
        for alpha in (0.2, 1 / 3, 0.4, 0.6, 0.99):
            threshold = chosen.threshold(maxima, alpha)
            above, below = chosen.p(maxima, np.array([threshold * (1 + 1e-9), threshold * (1 - 1e-9)]))
            assert above <= alpha + 1e-12 < below or (threshold == 0 and above <= alpha)
