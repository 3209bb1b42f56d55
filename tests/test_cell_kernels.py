"""Kernels of a connectome's summary, compared with NumPy and with `reference`."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic

from bids_lacuna import kernels, reference

Array = np.ndarray

N_VOXELS = 1231
"""Two tiles and a part of one."""


def make_subjects(dtype: str) -> list[tuple[Array, Array, Array]]:
    """Make series, scale and sd of seven subjects, in two groups; each has another constant voxel."""
    subjects = []
    for number, series in enumerate(synthetic.make_series(N_VOXELS, (11, 13, 11, 17, 11, 19, 11))):
        series[:, 3 * number] = 5
        standardized = kernels.standardize(series, np.array([0, len(series)]))
        if dtype == "int16":
            rounded, scale = kernels.quantize(standardized[0])
            standardized = rounded, scale, standardized[2]
        subjects.append(standardized)
    return subjects


def unit_series(subject: tuple[Array, Array, Array]) -> Array:
    """Return a subject's series with norm 1, or 0: shape (n_voxels, n_timepoints)."""
    series, scale, _ = subject
    return series.astype(float) * scale[:, np.newaxis]


def add_all(
    subjects: list[tuple[Array, Array, Array]], cells: list[Array], n_threads: int, group: int
) -> tuple[Array, Array]:
    """Add the products and the degree of all subjects."""
    total, degree = np.zeros((len(cells[0]), N_VOXELS), np.float32), np.zeros(N_VOXELS)
    with kernels.threads(n_threads):
        for start in range(0, len(subjects), group):
            several = slice(start, start + group)
            series, scale, _ = zip(*subjects[several], strict=True)
            kernels.add_products(cells[several], series, scale, total)
            for subject in subjects[several]:
                kernels.add_degree(subject[0], subject[1], degree)
    return total, degree


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_products_and_degree(dtype: str) -> None:
    """The sums are NumPy's products and mean correlations; neither threads nor groups of subjects change a bit."""
    subjects = make_subjects(dtype)
    rng = np.random.default_rng(1)
    # More cells than are multiplied at a time.
    cells = [rng.standard_normal((523, subject[0].shape[1])).astype(np.float32) for subject in subjects]
    total, degree = add_all(subjects, cells, 1, 4)
    expected = sum(each @ unit_series(subject).T for each, subject in zip(cells, subjects, strict=True))
    np.testing.assert_allclose(total, expected, atol=2e-5)
    mean_r = np.zeros(N_VOXELS)
    for subject in subjects:
        varies = subject[1] > 0
        r = np.corrcoef(unit_series(subject)[varies])
        np.fill_diagonal(r, 0)
        mean_r[varies] += r.sum(axis=1) / (len(r) - 1)
    np.testing.assert_allclose(degree, mean_r, atol=1e-5)
    for n_threads, group in ((2, 4), (1, 3), (2, 1)):
        other = add_all(subjects, cells, n_threads, group)
        np.testing.assert_array_equal(other[0], total)
        np.testing.assert_array_equal(other[1], degree)


def test_rows_of_a_pass_round_alike() -> None:
    """Cells in passes of a multiple of `CELLS` have the bits of one pass over all of them."""
    subjects = make_subjects("int16")
    rng = np.random.default_rng(1)
    cells = [rng.standard_normal((1100, subject[0].shape[1])).astype(np.float32) for subject in subjects]
    total, _ = add_all(subjects, cells, 1, 4)
    for start in range(0, 1100, kernels.CELLS):
        rows = slice(start, start + kernels.CELLS)
        part, _ = add_all(subjects, [each[rows] for each in cells], 1, 4)
        np.testing.assert_array_equal(part, total[rows])


def test_norms() -> None:
    """Divided by the number of voxels, the norm is the standard deviation of the mean series; 0 where constant."""
    timeseries = synthetic.make_series(13, [29])[0].astype(float)
    timeseries[:, 12] = 7
    standardized = kernels.standardize(timeseries, np.array([0, 29]))
    starts, voxels = np.array([0, 5, 12, 13]), np.arange(13, dtype=np.int32)
    seeds, norms = kernels.seeds_and_norms(starts, voxels, np.ones(13, np.float32), *standardized)
    np.testing.assert_array_equal(seeds, kernels.seeds(starts, voxels, np.ones(13, np.float32), *standardized))
    expected = [timeseries[:, first:stop].mean(axis=1).std() for first, stop in ((0, 5), (5, 12), (12, 13))]
    np.testing.assert_allclose(norms / np.diff(starts), expected, rtol=1e-5)
    assert norms[2] == 0


def test_columns() -> None:
    """The sums over cells are NumPy's; a cell without a signal adds nothing, and an undefined r makes NaN."""
    rng = np.random.default_rng(1)
    block = rng.uniform(-3, 3, (7, N_VOXELS)).astype(np.float32)
    factors = np.array([0.3, 0.1, 0, 0.2, 0.33, 0.3333333, 0.25], np.float32)
    weights = rng.uniform(1, 64, 7)
    block[3, 5] = block[2, 700] = np.nan
    used = factors > 0
    r = block[used].astype(float) * factors[used, np.newaxis]
    expected = weights[used] @ np.abs(reference.fisher_z(r)), r.sum(axis=0), (r**2).sum(axis=0)
    for n_threads in (1, 2):
        with kernels.threads(n_threads):
            sums = kernels.summarize_columns(block, factors, weights)
        for found, right in zip(sums, expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)
            assert np.flatnonzero(np.isnan(found)).tolist() == [5]
