"""The arithmetic of a group, compared with NumPy and SciPy."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from grouped import common_vectors, make_maps, write_group
from scipy.cluster.hierarchy import leaves_list, linkage

from bids_lacuna.grid import Grid
from bids_lacuna.group import sums
from bids_lacuna.group.sums import GroupSums, correlate_maps, find_outliers, find_peak, find_side, order_by_similarity
from bids_lacuna.weights import LesionWeights

Array = np.ndarray


def test_blocks_change_nothing(tmp_path: Path) -> None:
    """Blocks of one, two, three or all lesions give the same correlations."""
    maps = make_maps()
    group = write_group(tmp_path, maps)
    paths = [tmp_path / "out" / lesion.maps["r"] for lesion in group.lesions]
    vectors = common_vectors(maps)
    common = np.isfinite(np.stack([lesion["r"] for lesion in maps])).all(axis=0)
    for n in (1, 2, 3, 5, 99):
        similarity, with_mean = correlate_maps(paths, common, block_bytes=n * 4 * vectors.shape[1])
        np.testing.assert_allclose(similarity, np.corrcoef(vectors), atol=1e-6)
        np.testing.assert_array_equal(similarity, similarity.T)
        expected = [np.corrcoef(vector, vectors.mean(axis=0))[0, 1] for vector in vectors]
        np.testing.assert_allclose(with_mean, expected, atol=1e-6)


def write_vectors(folder: Path, vectors: Array) -> list[Path]:
    """Write each vector as a map."""
    paths = [folder / f"{number}.nii" for number in range(len(vectors))]
    for path, vector in zip(paths, vectors, strict=True):
        nib.save(nib.Nifti1Image(vector.astype(np.float32)[:, None, None], np.eye(4)), path)
    return paths


@pytest.mark.parametrize("seed", range(4))
def test_correlations_stay_between_minus_1_and_1(tmp_path: Path, seed: int) -> None:
    """Rounding leads to no correlation beyond 1 or -1, and to exactly 1 on the diagonal."""
    rng = np.random.default_rng(seed)
    everywhere = np.ones((101, 1, 1), bool)
    patterns = rng.standard_normal((10, 101))
    opposites = write_vectors(tmp_path, np.concatenate([patterns, -3 * patterns]))
    similarity, _ = correlate_maps(opposites, everywhere, block_bytes=1)
    np.testing.assert_allclose(np.diag(similarity, 10), -1, atol=1e-6)
    np.testing.assert_array_equal(np.diag(similarity), 1)
    assert np.abs(similarity).max() == 1
    multiples = write_vectors(tmp_path, patterns[0] * rng.uniform(1, 9, (7, 1)))
    _, with_mean = correlate_maps(multiples, everywhere)
    np.testing.assert_allclose(with_mean, 1, atol=1e-6)
    assert with_mean.max() <= 1


def test_each_read_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar ends at its total: each block's maps, and those after it."""
    counts = []

    class Counter:
        def __init__(self, total: int, *_: object, **__: object) -> None:
            counts.append([total, 0])

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self) -> None:
            counts[-1][1] += 1

    monkeypatch.setattr(sums, "Progress", Counter)
    paths = write_vectors(tmp_path, np.random.default_rng(3).standard_normal((7, 11)))
    correlate_maps(paths, np.ones((11, 1, 1), bool), block_bytes=3 * 4 * 11)
    assert counts == [[7 + 4 + 1, 7 + 4 + 1]]


@pytest.mark.parametrize("threshold", [1.0, 2.5])
def test_a_threshold_is_exceeded_strictly(threshold: float) -> None:
    """A lesion counts above or below a threshold if its t exceeds it, not if t equals it."""
    up, down = np.nextafter(np.float32(threshold), np.float32(9)), np.nextafter(np.float32(threshold), np.float32(0))
    t = np.array([up, threshold, down, 0, np.nan, -down, -threshold, -up], np.float32).reshape(1, 2, 4)
    group_sums = GroupSums(t.shape, (threshold,))
    weights = LesionWeights(np.array([1, 6]), np.array([0.25, 0.75], np.float32))
    for _ in range(3):
        group_sums.add(weights, {"r": t, "z": t, "t": t})
    assert group_sums.above[threshold].ravel().tolist() == [3, 0, 0, 0, 0, 0, 0, 0]
    assert group_sums.below[threshold].ravel().tolist() == [0, 0, 0, 0, 0, 0, 0, 3]
    assert group_sums.n_t.ravel().tolist() == [3, 3, 3, 3, 0, 3, 3, 3]
    assert group_sums.lesions.ravel().tolist() == [0, 0.75, 0, 0, 0, 0, 2.25, 0]
    np.testing.assert_array_equal(group_sums.mean["z"].values, t)


def test_a_map_without_values_has_no_peak() -> None:
    """The peak of a map is its value farthest from 0, and NaN if no value is defined."""
    grid = Grid(np.ones(synthetic.SHAPE, bool), synthetic.RADIOLOGICAL)
    values = np.full(synthetic.SHAPE, np.nan, np.float32)
    assert np.isnan(list(find_peak("t", values, grid).values())).all()
    values[1, 2, 3], values[3, 2, 1] = -3, 2
    assert find_peak("t", values, grid) == {"peak_t": -3, "peak_t_x": 4, "peak_t_y": -4, "peak_t_z": -8}


def test_order_is_by_average_linkage() -> None:
    """The order is SciPy's for average linkage, where single and complete linkage give other orders."""
    similarity = np.corrcoef(np.random.default_rng(3).standard_normal((13, 17)))
    distances = (1 - similarity)[np.triu_indices(13, 1)]
    orders = {
        method: leaves_list(linkage(distances, method)).tolist() for method in ("average", "single", "complete")
    }
    assert orders["average"] not in (orders["single"], orders["complete"])
    assert order_by_similarity(similarity).tolist() == orders["average"]


def test_one_lesion_is_in_order() -> None:
    """A group of one needs no clustering."""
    assert order_by_similarity(np.ones((1, 1))).tolist() == [0]


@pytest.mark.parametrize(
    ("fisher_z", "outliers"),
    [
        # Quartiles 1.025 and 1.275: the fence is at 1.025 - 1.5 x 0.25 = 0.65.
        ([1, 1.1, 0.64, 1.2, 1.3, 1.4], [2]),
        ([1, 1.1, 0.66, 1.2, 1.3, 1.4], []),
        ([1, 1.1, 1.2, 1.3, 1.4, 3], []),
        ([0.1, 0.2, 0.1, 1.4, 1.5, 1.4], []),
        ([0.1, 1.4], []),
        ([0.1, 1.3, 1.4], []),
        ([0.7], []),
        ([7.0, 7.0], []),
        ([6, 6, 6, 6, 3], [4]),
        ([np.inf, np.inf, np.inf, 2], [3]),
    ],
)
def test_outliers_are_below_the_lower_fence(fisher_z: list[float], outliers: list[int]) -> None:
    """A lesion is an outlier if it resembles the mean much less than most; two or three clusters have no outlier."""
    assert np.flatnonzero(find_outliers(np.tanh(fisher_z))).tolist() == outliers


@pytest.mark.parametrize(
    ("x", "weights", "where"),
    [
        ([0, 1], [1, 1], "right"),
        ([3, 4], [1, 1], "left"),
        ([2, 3], [1, 0.1], "left"),
        ([2], [1], "both"),
        ([1, 3], [0.05, 0.96], "left"),
        ([1, 3], [0.06, 0.94], "both"),
        ([1, 3], [1, 1], "both"),
    ],
)
def test_sides_are_those_of_the_world(x: list[int], weights: list[float], where: str) -> None:
    """A lesion is left if x is negative, whatever the storage order; the midline counts for neither side."""
    grid = Grid(np.ones(synthetic.SHAPE, bool), synthetic.RADIOLOGICAL)
    voxels = np.ravel_multi_index((x, [1] * len(x), [2] * len(x)), synthetic.SHAPE)
    assert find_side(LesionWeights(voxels, np.array(weights, np.float32)), grid) == where


def test_rounding_of_the_midline_counts_for_no_side() -> None:
    """A lesion at x = 5.6e-17 mm lies on the midline."""
    grid = Grid(np.ones(synthetic.SHAPE, bool), np.diag([0.1, 1, 1, 1]) + np.array([[0, 0, 0, -0.3]] + [[0] * 4] * 3))
    voxels = np.ravel_multi_index(([3], [1], [2]), synthetic.SHAPE)
    assert nib.affines.apply_affine(grid.affine, (3, 1, 2))[0] > 0
    assert find_side(LesionWeights(voxels, np.ones(1, np.float32)), grid) == "both"


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """The second of two blocks of 30 maps is read after the first one is freed."""
    shape = (20, 30, 25)
    values = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "map.nii")
    correlate_maps([tmp_path / "map.nii"] * 2, np.ones(shape, bool))
    tracemalloc.start()
    correlate_maps([tmp_path / "map.nii"] * 60, np.ones(shape, bool), block_bytes=30 * values.nbytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 46 * values.nbytes < peak < 60 * values.nbytes


def test_memory_does_not_grow_with_the_group(tmp_path: Path) -> None:
    """With blocks of two maps, four more lesions take less than half a map more."""
    shape = (20, 30, 25)
    path = tmp_path / "map.nii"
    values = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    peaks = []
    # The first correlation is not counted: its imports stay in memory.
    for n in (2, 18, 22):
        tracemalloc.start()
        correlate_maps([path] * n, np.ones(shape, bool), block_bytes=2 * values.nbytes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 2 * values.nbytes < peaks[1]
    assert peaks[2] - peaks[1] < values.nbytes / 2
