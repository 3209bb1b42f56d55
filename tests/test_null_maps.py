"""T and similarity of lesions among their null maps, compared with `reference` and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from nulls import make_connectivity, make_grid, make_shape, make_tissue, weights_on_grid

from bids_lacuna import kernels, reference
from bids_lacuna.mapping.null_maps import NullMaps, compare_with_targets, find_percentile, map_nulls
from bids_lacuna.mapping.nulls import Connectivity, NullLesion, make_nulls

Array = np.ndarray

SHAPE = make_shape((1, 6, 5), (4, 6, 5))
"""A lesion whose places overlap, so that more than half of the null maps leave out some voxels."""


@pytest.fixture(scope="module")
def connectivity() -> Connectivity:
    """Make a summary on a grid of 4 mm."""
    return make_connectivity(make_grid())


@pytest.fixture(scope="module")
def lesions(connectivity: Connectivity) -> list[NullLesion]:
    """Draw null lesions of a lesion on the right, and of one on the left; the second fits everywhere."""
    tissue = make_tissue(connectivity.grid)
    shapes = SHAPE, make_shape((10, 3, 4), (1, 2, 1))
    return [make_nulls(shape, connectivity, tissue, 109) for shape in shapes]


@pytest.fixture(scope="module")
def maps(lesions: list[NullLesion], connectivity: Connectivity) -> list[NullMaps]:
    """Map both."""
    return map_nulls(lesions, connectivity)


@pytest.fixture(scope="module")
def z(lesions: list[NullLesion], connectivity: Connectivity) -> Array:
    """Map the first lesion and its nulls by the reference; the kernels tell what each leaves out."""
    arrays, lesion = connectivity.summary.arrays, lesions[0]
    blocks = list(arrays.operator.blocks())
    by_voxel = np.concatenate([operator for _, operator in blocks], axis=1)
    left_out = np.concatenate(
        [
            np.isnan(kernels.map_seeds(operator, lesion.seeds, lesion.neighbourhood, connectivity.voxels(block)))
            for block, operator in blocks
        ],
        axis=1,
    )
    rows = [
        reference.approximate(
            weights_on_grid(SHAPE, corner, connectivity.grid), arrays.cells, by_voxel, arrays.covariance
        )
        for corner in lesion.corners
    ]
    return np.where(left_out, np.nan, rows)


def test_t_is_that_of_the_reference(maps: list[NullMaps], z: Array) -> None:
    """T compares the approximate map with all null maps that keep a voxel, and needs half of them."""
    expected = reference.null_t(z[0], z[1:])
    np.testing.assert_array_equal(np.isnan(maps[0].t), np.isnan(expected))
    np.testing.assert_allclose(maps[0].t, expected, rtol=2e-3, atol=2e-3)
    n = np.isfinite(z[1:]).sum(axis=0)
    np.testing.assert_array_equal(maps[0].n, n)
    assert ((n > 0) & (2 * n < 109)).any()
    assert np.isfinite(expected).sum() > 1000


def test_approximation_is_whole(maps: list[NullMaps], connectivity: Connectivity) -> None:
    """The lesion's own approximate map is that of the summary, with its neighbourhood."""
    on_grid = weights_on_grid(SHAPE, SHAPE.corner, connectivity.grid)
    arrays = connectivity.summary.arrays
    by_voxel = np.concatenate([operator for _, operator in arrays.operator.blocks()], axis=1)
    expected = reference.approximate(on_grid, arrays.cells, by_voxel, arrays.covariance)
    np.testing.assert_allclose(maps[0].approximation, expected, rtol=1e-5, atol=1e-6)


def test_similarities(maps: list[NullMaps], z: Array, connectivity: Connectivity) -> None:
    """Each map's r with degree and its R² are NumPy's, over the voxels that it keeps."""
    arrays = connectivity.summary.arrays
    measures = np.array([arrays.degree, arrays.absolute_degree, *arrays.components], float)
    for row, values in enumerate(z):
        kept = np.isfinite(values)
        of_degree = np.corrcoef(values[kept], measures[0, kept])[0, 1]
        np.testing.assert_allclose(maps[0].degree_r[row], of_degree, rtol=1e-4)
        model = np.vstack([np.ones(kept.sum()), measures[:, kept]]).T
        residuals = values[kept] - model @ np.linalg.lstsq(model, values[kept], rcond=None)[0]
        np.testing.assert_allclose(maps[0].r_squared[row], 1 - residuals.var() / values[kept].var(), rtol=1e-4)
    expected = 100 * np.mean(maps[0].degree_r[1:] < maps[0].degree_r[0])
    assert maps[0].degree_percentile == pytest.approx(expected)
    assert maps[0].r_squared_percentile == pytest.approx(100 * np.mean(maps[0].r_squared[1:] < maps[0].r_squared[0]))


def test_targets(z: Array, lesions: list[NullLesion], connectivity: Connectivity) -> None:
    """Each map's r with targets, and the targets' mean over each place, are NumPy's where both are defined."""
    rng, n_voxels = np.random.default_rng(5), connectivity.grid.n_voxels
    targets = np.float32([rng.standard_normal(n_voxels), 1e4 + rng.uniform(size=n_voxels)])
    targets[1, connectivity.positions[:, 2] > 5] = np.nan
    r, damage = compare_with_targets(lesions[0], SHAPE, list(targets), connectivity)
    assert r.shape == damage.shape == (2, len(z))
    for row, values in enumerate(z):
        weights = weights_on_grid(SHAPE, lesions[0].corners[row], connectivity.grid)
        for number, target in enumerate(targets.astype(float)):
            kept = np.isfinite(values) & np.isfinite(target)
            assert r[number, row] == pytest.approx(np.corrcoef(values[kept], target[kept])[0, 1], abs=2e-5)
            inside = np.isfinite(target) & (weights > 0)
            if inside.any():
                expected = np.average(target[inside], weights=weights[inside])
                assert damage[number, row] == pytest.approx(expected, rel=1e-7)
            else:
                assert np.isnan(damage[number, row])
    with kernels.threads(2):
        again = compare_with_targets(lesions[0], SHAPE, list(targets), connectivity)
    assert again[0].tobytes() == r.tobytes()
    assert np.isfinite(damage[0]).all()
    assert 0 < np.isnan(damage[1]).sum() < len(z)


def test_component_without_variance(connectivity: Connectivity, lesions: list[NullLesion]) -> None:
    """A component that is undefined everywhere explains nothing, and leaves no voxel out."""
    arrays = connectivity.summary.arrays
    components = arrays.components.copy()
    arrays.components[2] = np.nan
    without = Connectivity.of(connectivity.summary)
    arrays.components[:] = components
    np.testing.assert_array_equal(without.usable, connectivity.usable)
    assert not without.measures[5].any()
    assert np.isfinite(map_nulls(lesions[1:], without)[0].r_squared).all()


def test_maxima_nearby(maps: list[NullMaps], z: Array, lesions: list[NullLesion], connectivity: Connectivity) -> None:
    """The fraction of null maps whose largest z lies within 10 mm of what they leave out."""
    voxels = np.argwhere(connectivity.grid.mask)
    distances = [lesions[0].distance(row, voxels[np.nanargmax(z[row])]) for row in range(1, len(z))]
    assert maps[0].maxima_nearby == pytest.approx(np.mean(np.array(distances) <= lesions[0].radius_mm + 10))


def test_threads_and_batches_change_no_bit(
    maps: list[NullMaps], lesions: list[NullLesion], connectivity: Connectivity
) -> None:
    """One lesion alone, on two threads, has the bits that it has with another lesion on one thread."""
    with kernels.threads(2):
        alone = map_nulls(lesions[1:], connectivity)[0]
    for name in ("t", "approximation", "n", "degree_r", "r_squared"):
        assert getattr(alone, name).tobytes() == getattr(maps[1], name).tobytes()
    assert alone.maxima_nearby == maps[1].maxima_nearby


def test_percentile_of_ties() -> None:
    """Values that are equal to the first count half."""
    assert find_percentile(np.array([3.0, 1, 2, 3, 4])) == 62.5


def test_percentile_without_values() -> None:
    """Undefined values are none of the others, and an undefined first one has no percentile."""
    assert find_percentile(np.array([3.0, np.nan, 2, 4])) == 50
    assert np.isnan(find_percentile(np.array([np.nan, 1, 2])))
    assert np.isnan(find_percentile(np.array([1, np.nan])))
