"""The arithmetic of a group, compared with NumPy and SciPy."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from grouped import common_vectors, make_maps, write_group

from bids_lacuna.grid import Grid
from bids_lacuna.group.sums import correlate_maps, find_outliers, find_side, order_by_similarity
from bids_lacuna.weights import LesionWeights


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
    ],
)
def test_outliers_are_below_the_lower_fence(fisher_z: list[float], outliers: list[int]) -> None:
    """A lesion is an outlier if it resembles the mean much less than most; two or three clusters have no outlier."""
    assert np.flatnonzero(find_outliers(np.tanh(fisher_z))).tolist() == outliers


@pytest.mark.parametrize(
    ("x", "shares", "where"),
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
def test_sides_are_those_of_the_world(x: list[int], shares: list[float], where: str) -> None:
    """A lesion is left if x is negative, whatever the storage order; the midline counts for neither side."""
    grid = Grid(np.ones(synthetic.SHAPE, bool), synthetic.RADIOLOGICAL)
    voxels = np.ravel_multi_index((x, [1] * len(x), [2] * len(x)), synthetic.SHAPE)
    assert find_side(LesionWeights(voxels, np.array(shares, np.float32)), grid) == where


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
