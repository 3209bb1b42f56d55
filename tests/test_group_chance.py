"""The test of a group against chance places, compared with `reference` and by its definition."""

from __future__ import annotations

import numpy as np
import pytest
from nulls import make_connectivity, make_grid, make_shape, make_tissue

from bids_lacuna import kernels, reference
from bids_lacuna.group.chance import Chance, compare_with_chance, fewest_lesions, p_of_largest
from bids_lacuna.mapping.nulls import Connectivity, NullLesion, make_nulls

Array = np.ndarray


@pytest.fixture(scope="module")
def connectivity() -> Connectivity:
    """Make a summary on a grid of 4 mm."""
    return make_connectivity(make_grid())


@pytest.fixture(scope="module")
def lesions(connectivity: Connectivity) -> list[NullLesion]:
    """Draw 127 sets of three lesions, of which one fits everywhere on its side."""
    tissue = make_tissue(connectivity.grid)
    shapes = make_shape(), make_shape((10, 3, 4), (1, 2, 1)), make_shape((3, 9, 4), (3, 2, 2))
    return [make_nulls(shape, connectivity, tissue, 127) for shape in shapes]


@pytest.fixture(scope="module")
def chance(lesions: list[NullLesion], connectivity: Connectivity) -> Chance:
    """Test the group."""
    return compare_with_chance(lesions, connectivity)


def test_chance_is_that_of_the_reference(
    chance: Chance, lesions: list[NullLesion], connectivity: Connectivity
) -> None:
    """Effect, T and p are the reference's, for sets with one null of each lesion."""
    maps = []
    for lesion in lesions:
        z = np.concatenate(
            [
                kernels.map_seeds(operator, lesion.seeds, lesion.neighbourhood, connectivity.voxels(block))
                for block, operator in connectivity.summary.arrays.operator.blocks()
            ],
            axis=1,
        )
        maps.append(z[[0, *lesion.sets]].astype(float))
    effect, t, p = reference.chance_test(np.stack(maps, axis=1))
    np.testing.assert_array_equal(np.isnan(chance.t), np.isnan(t))
    np.testing.assert_allclose(chance.effect, effect, atol=1e-6)
    np.testing.assert_allclose(chance.t, t, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(chance.minus_log10_p, -np.log10(p), rtol=1e-5)
    assert chance.p == np.nanmin(p)
    assert (chance.n_sets, chance.n_voxels) == (127, np.isfinite(t).sum())
    assert 1000 < chance.n_voxels < connectivity.usable.sum()


def test_threads_change_no_bit(chance: Chance, lesions: list[NullLesion], connectivity: Connectivity) -> None:
    """Two threads make the bits of one."""
    with kernels.threads(2):
        again = compare_with_chance(lesions, connectivity)
    for name in ("effect", "t", "minus_log10_p"):
        assert getattr(again, name).tobytes() == getattr(chance, name).tobytes()


def test_t_leaves_the_set_at_hand_out() -> None:
    """T of each set is by the mean and the standard deviation of all others where they are defined."""
    rng = np.random.default_rng(5)
    total = rng.standard_normal((11, 600)).astype(np.float32)
    n = rng.integers(2, 5, total.shape).astype(np.uint16)
    means = np.where(n >= 3, total / n, np.nan)
    means[:, 2 * np.isfinite(means).sum(axis=0) < 11] = np.nan
    effect, t, largest = kernels.chance_t(total, n, 3)
    every: list[Array] | Array = []
    for number in range(11):
        others = np.ma.masked_invalid(np.delete(means, number, axis=0))
        every.append((means[number] - others.mean(axis=0)) / others.std(axis=0, ddof=1))
    every = np.ma.filled(every, np.nan)
    np.testing.assert_allclose(t, every[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(largest, np.nanmax(np.abs(every), axis=1), rtol=1e-6)
    assert (np.isnan(effect) == np.isnan(t)).all()
    assert 0 < np.isnan(t).sum() < 600


def test_sets_without_spread_have_no_t() -> None:
    """Where all other sets are the same, T is undefined, for the observed set as for the others."""
    total = np.full((8, 3), 0.5, np.float32)
    total[0, 1] = total[3, 2] = 0.9
    effect, t, largest = kernels.chance_t(total, np.ones(total.shape, np.uint16), 1)
    assert np.isnan(t[:2]).all()
    assert np.isfinite(t[2])
    assert np.isfinite(largest).all()
    assert effect[1] == pytest.approx(0.4)


def test_p_is_two_sided_and_never_zero() -> None:
    """P counts the sets whose largest |T| reaches |T|, and the observed one."""
    p = p_of_largest(np.array([-5.0, 5, 2, 0.5, np.nan]), np.array([1.0, 5, 2, 3]))
    np.testing.assert_array_equal(p, [2 / 5, 2 / 5, 4 / 5, 1, np.nan])
    assert p_of_largest(np.array([9.0]), np.arange(99.0) / 99).tolist() == [0.01]


def test_p_is_exact_for_chance_places() -> None:
    """If the observed set is drawn as the others are, p is at most .05 in one of twenty groups."""
    rng = np.random.default_rng(8)
    n_below = 0
    for _ in range(400):
        total = rng.standard_normal((20, 37)).astype(np.float32) @ rng.standard_normal((37, 37)).astype(np.float32)
        _, t, largest = kernels.chance_t(total, np.ones(total.shape, np.uint16), 1)
        n_below += p_of_largest(t, largest[1:]).min() <= 0.05
    # Of 20 sets, the most extreme one is the observed one in 5 %: 20 of 400, with a standard deviation of 4.4.
    assert 5 <= n_below <= 35


def test_half_of_the_lesions() -> None:
    """A mean needs half of the lesions, rounded up."""
    assert [fewest_lesions(n) for n in (1, 2, 3, 4, 30)] == [1, 1, 2, 2, 15]
