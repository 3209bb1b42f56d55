"""Null lesions: their draw, their cells, and what their maps leave out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from nulls import make_connectivity, make_grid, make_shape, make_tissue, weights_on_grid
from scipy.spatial.distance import cdist

from bids_lacuna import kernels
from bids_lacuna.mapping.nulls import (
    Connectivity,
    NullLesion,
    TooFewPlaces,
    draw_sets,
    find_radius,
    make_nulls,
)
from bids_lacuna.mapping.places import FEWEST_PLACES, Shape, find_places

Array = np.ndarray


@pytest.fixture(scope="module")
def connectivity() -> Connectivity:
    """Make a summary on a grid of 4 mm."""
    return make_connectivity(make_grid())


@pytest.fixture(scope="module")
def lesion(connectivity: Connectivity) -> NullLesion:
    """Draw 113 null lesions from more places."""
    return make_nulls(make_shape(), connectivity, make_tissue(connectivity.grid), 113)


def test_draw_without_replacement() -> None:
    """Where there are enough places, each is drawn once at most, and the own place never."""
    sets = draw_sets(150, 100, np.random.default_rng(1))
    assert len(set(sets)) == len(sets) == 100
    assert 1 <= sets.min() < sets.max() <= 150


def test_draw_of_few_places() -> None:
    """Where there are too few, the urn holds each place equally often, with the observed set's own place taken."""
    sets = draw_sets(4, 14, np.random.default_rng(2))
    assert Counter(sets.tolist()) == {0: 2, 1: 3, 2: 3, 3: 3, 4: 3}


def test_observed_and_drawn_are_exchangeable() -> None:
    """Over all own places, every sequence of own and drawn places is as frequent as the same in another order."""
    rng, counts = np.random.default_rng(3), Counter[tuple[int, ...]]()
    for _ in range(9000):
        own = int(rng.integers(3))
        others = [own, *(place for place in range(3) if place != own)]
        counts[own, *(others[number] for number in draw_sets(2, 3, rng))] += 1
    # Draws of four from an urn with each place twice: 3 pairs, or a pair and two more, in each of their orders.
    pairs = [n for sequence, n in counts.items() if len(set(sequence)) == 2]
    others = [n for sequence, n in counts.items() if len(set(sequence)) == 3]
    assert len(pairs) == 3 * 6
    assert len(others) == 3 * 12
    n_sequences = 6 * 5 * 4 * 3
    for found, n_alike in ((pairs, 2 * 2), (others, 2 * 2 * 2)):
        expected = 9000 * n_alike / n_sequences
        np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(expected))


def test_nulls_are_at_drawn_places(lesion: NullLesion, connectivity: Connectivity) -> None:
    """The first seed is the lesion's own, the others are different places like its own, and each is in a set."""
    corners = list(map(tuple, lesion.corners.tolist()))
    alike = find_places(make_shape(), connectivity.grid, make_tissue(connectivity.grid)).corners
    assert corners[0] == tuple(make_shape().corner)
    assert len(set(corners)) == 1 + lesion.n_nulls == 114
    assert set(corners[1:]) < set(map(tuple, alike.tolist()))
    assert sorted(lesion.sets) == list(range(1, 114))
    assert lesion.sets.tolist() != list(range(1, 114))


def test_all_places_if_there_are_few(connectivity: Connectivity) -> None:
    """With more nulls than places, all places are nulls, and the sets repeat some."""
    tissue = make_tissue(connectivity.grid)
    n_places = len(find_places(make_shape(), connectivity.grid, tissue).corners)
    lesion = make_nulls(make_shape(), connectivity, tissue, n_places + 7)
    assert (lesion.n_nulls, len(lesion.sets)) == (n_places, n_places + 7)
    assert 0 <= lesion.sets.min() < lesion.sets.max() <= n_places
    assert max(Counter(lesion.sets.tolist()).values()) == 2


def test_random_seed(lesion: NullLesion, connectivity: Connectivity) -> None:
    """The same lesion and random seed give the same draw; another seed, place or weight gives another."""
    tissue = make_tissue(connectivity.grid)
    again = make_nulls(make_shape(), connectivity, tissue, 113)
    np.testing.assert_array_equal(again.corners, lesion.corners)
    np.testing.assert_array_equal(again.sets, lesion.sets)
    assert make_nulls(make_shape(), connectivity, tissue, 113, 1).sets.tolist() != lesion.sets.tolist()
    changed = make_shape()
    changed.weights[1, 1, 1] *= 0.999
    assert make_nulls(changed, connectivity, tissue, 113).sets.tolist() != lesion.sets.tolist()


def test_too_few_places(connectivity: Connectivity) -> None:
    """A lesion that fits in few places has no nulls, for a reason with their number."""
    large = Shape(np.array([1, 1, 1]), np.ones((6, 16, 14), np.float32))
    n_places = len(find_places(large, connectivity.grid, make_tissue(connectivity.grid)).corners)
    assert n_places < FEWEST_PLACES
    with pytest.raises(TooFewPlaces, match=f"^too large to be moved: {n_places} places like its own, 100 are needed"):
        make_nulls(large, connectivity, make_tissue(connectivity.grid), 100)


def test_cells_of_seeds(lesion: NullLesion, connectivity: Connectivity) -> None:
    """A seed has the sum of its weights in each cell, inside the mask, and the scale that makes it a correlation."""
    starts, cells, weights, scale = lesion.seeds
    arrays = connectivity.summary.arrays
    for seed in range(0, len(lesion.corners), 9):
        on_grid = weights_on_grid(make_shape(), lesion.corners[seed], connectivity.grid)
        expected = np.bincount(arrays.cells, on_grid, minlength=connectivity.n_cells)
        entries = slice(starts[seed], starts[seed + 1])
        assert cells[entries].tolist() == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose(weights[entries], expected[cells[entries]], rtol=1e-6)
        np.testing.assert_allclose(scale[seed], 1 / np.sqrt(expected @ arrays.covariance @ expected), rtol=1e-5)


def left_out(lesion: NullLesion, seed: int, connectivity: Connectivity) -> Array:
    """Find the voxels that a map leaves out: near the lesion's voxels, inside the mask or not, or in its cells."""
    affine, mask = connectivity.grid.affine, connectivity.grid.mask
    to_mm = affine[:3, :3]
    of_lesion = (make_shape().offsets + lesion.corners[seed]) @ to_mm.T
    near = cdist(np.argwhere(mask) @ to_mm.T, of_lesion).min(axis=1) <= lesion.radius_mm + 1e-4
    cells = connectivity.summary.arrays.cells
    touched = np.unique(cells[weights_on_grid(make_shape(), lesion.corners[seed], connectivity.grid) > 0])
    return near | np.isin(cells, touched) | ~connectivity.usable


def test_neighbourhood_is_left_out(lesion: NullLesion, connectivity: Connectivity) -> None:
    """Each map leaves out the voxels of its seed's cells, those within the radius, and the undefined ones."""
    for block, operator in connectivity.summary.arrays.operator.blocks():
        z = kernels.map_seeds(operator, lesion.seeds, lesion.neighbourhood, connectivity.voxels(block))
        for seed in range(0, len(lesion.corners), 9):
            expected = left_out(lesion, seed, connectivity)[block]
            np.testing.assert_array_equal(np.isnan(z[seed]), expected)


def test_distance_from_a_seed(lesion: NullLesion, connectivity: Connectivity) -> None:
    """The distance of a voxel is that from the nearest voxel of the lesion at this place; far away it is infinite."""
    to_mm = connectivity.grid.affine[:3, :3]
    of_lesion = (make_shape().offsets + lesion.corners[5]) @ to_mm.T
    voxels = np.argwhere(connectivity.grid.mask)[::101]
    expected = cdist(voxels @ to_mm.T, of_lesion).min(axis=1)
    found = np.array([lesion.distance(5, voxel) for voxel in voxels])
    near = expected <= 30
    np.testing.assert_allclose(found[near], expected[near], rtol=1e-6)
    assert (found[~near] >= 30).all()


def test_profile_is_the_mean_of_rings(lesion: NullLesion, connectivity: Connectivity) -> None:
    """Mean z over null maps in rings around their seeds falls with distance, in steps of a voxel."""
    width_mm, mean_z = lesion.profile
    assert (width_mm, len(mean_z)) == (4, 8)
    z = np.concatenate(
        [
            kernels.map_seeds(
                operator,
                lesion.seeds,
                (np.zeros((114, 3), np.int32), np.zeros((0, 0, 0), bool), np.tile(np.int32([[999, -1]]), (114, 1))),
                connectivity.voxels(block),
            )
            for block, operator in connectivity.summary.arrays.operator.blocks()
        ],
        axis=1,
    )
    to_mm, voxels = connectivity.grid.affine[:3, :3], np.argwhere(connectivity.grid.mask)
    rings: list[list[float]] = [[] for _ in mean_z]
    for seed in np.sort(lesion.sets[:100]):
        distance = cdist(voxels @ to_mm.T, (make_shape().offsets + lesion.corners[seed]) @ to_mm.T).min(axis=1)
        for ring, values in enumerate(rings):
            inside = (distance > 4 * ring + 1e-3) & (distance <= 4 * ring + 4 + 1e-3) & connectivity.usable
            values += z[seed, inside].tolist()
    np.testing.assert_allclose(mean_z, [np.mean(values) for values in rings], rtol=1e-5)


@pytest.mark.parametrize(
    ("length_mm", "expected"),
    [(1, 10), (4, 10), (8, 12), (10, 14), (40, 20)],
)
def test_radius_of_exponential_falls(length_mm: float, expected: float) -> None:
    """The radius is where an exponential falls by less than a fifth of its whole fall over the next 10 mm."""
    middles = np.arange(1, 31, 2)
    assert find_radius(2, np.exp(-middles / length_mm)) == expected


def test_radius_without_voxels() -> None:
    """Where no voxel is far enough, or none at all, 10 mm are left out."""
    assert find_radius(4, np.array([0.9, 0.5, *[np.nan] * 6])) == 10
    assert find_radius(2, np.full(15, np.nan)) == 10
