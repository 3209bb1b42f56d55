"""The reference compared with NumPy, SciPy and nilearn: no expected value comes from our own code."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
import synthetic
from nilearn.maskers import NiftiMapsMasker, NiftiMasker
from scipy import stats

from bids_lacuna import reference

Array = np.ndarray

N_VOXELS = 41


def unequal_series(n_voxels: int = N_VOXELS) -> list[Array]:
    """Make series whose standard deviations differ by a factor of 1000, so that z-scored means are wrong."""
    gain = np.geomspace(0.1, 100, n_voxels)[np.random.default_rng(5).permutation(n_voxels)]
    return [gain * timeseries.astype(float) for timeseries in synthetic.make_series(n_voxels)]


@pytest.fixture
def weights() -> Array:
    """Make three lesions: whole voxels, fractions of voxels, and a single voxel."""
    weights = np.zeros((3, N_VOXELS))
    weights[0, 3:11] = 1
    weights[1, [2, 19, 23, 40]] = 0.2, 1, 0.7, 0.05
    weights[2, 17] = 0.3
    return weights


def fisher_z_by_numpy(weights: Array, timeseries: Array) -> Array:
    """Average, correlate, clip and transform with NumPy's own functions."""
    seeds = [np.average(timeseries, axis=1, weights=w) for w in weights]
    r = np.corrcoef(np.vstack([seeds, timeseries.T]))[: len(weights), len(weights) :]
    return np.arctanh(np.clip(r, -(1 - 1e-6), 1 - 1e-6))


@pytest.mark.parametrize(("n_timepoints", "n_voxels", "n_seeds"), [(2, 5, 1), (7, 1, 3), (53, 31, 4)])
def test_correlate_is_pearson(n_timepoints: int, n_voxels: int, n_seeds: int) -> None:
    """Correlations equal NumPy's for any shape, and for a signal that is small relative to its mean."""
    rng = np.random.default_rng(7)
    timeseries = 1e4 + rng.standard_normal((n_timepoints, n_voxels))
    seeds = rng.standard_normal((n_seeds, n_timepoints)) - 300
    expected = np.corrcoef(np.vstack([seeds, timeseries.T]))[:n_seeds, n_seeds:]
    np.testing.assert_allclose(reference.correlate(seeds, timeseries), expected, atol=1e-11)


def test_correlate_leaves_undefined_correlations_nan() -> None:
    """Constant and non-finite voxels and seeds have NaN in their column and row, and nowhere else."""
    rng = np.random.default_rng(11)
    timeseries, seeds = rng.standard_normal((13, 7)), rng.standard_normal((4, 13))
    timeseries[:, 1] = 5.3
    timeseries[4, 2] = np.nan
    timeseries[6, 5] = -np.inf
    seeds[3] = 0.1
    undefined = np.zeros((4, 7), bool)
    undefined[:, [1, 2, 5]] = undefined[3] = True
    r = reference.correlate(seeds, timeseries)
    np.testing.assert_array_equal(np.isnan(r), undefined)
    expected = np.corrcoef(np.vstack([seeds[:3], timeseries.T[[0, 3, 4, 6]]]))[:3, 3:]
    np.testing.assert_allclose(r[:3][:, [0, 3, 4, 6]], expected, atol=1e-14)


def test_correlate_never_leaves_minus_one_to_one() -> None:
    """Rounding takes no correlation beyond ±1."""
    timeseries = np.random.default_rng(13).standard_normal((37, 200))
    r = reference.correlate(np.vstack([timeseries.T, -timeseries.T]), timeseries)
    assert np.abs(r).max() <= 1


def test_standardize_keeps_the_standard_deviation() -> None:
    """The series are demeaned with norm 1; their standard deviation equals NumPy's."""
    timeseries = unequal_series()[0]
    series, scale, sd = reference.standardize(timeseries)
    np.testing.assert_allclose(
        series * timeseries.std(axis=0)[:, np.newaxis] * np.sqrt(23), (timeseries - timeseries.mean(0)).T, atol=1e-9
    )
    np.testing.assert_array_equal(scale, 1)
    np.testing.assert_allclose(sd, timeseries.std(axis=0), rtol=1e-11)


def test_standardize_demeans_each_run() -> None:
    """Two runs equal NumPy's result for each alone, joined; a voxel that is constant in one of them stays."""
    timeseries = unequal_series()[0]
    timeseries[:9, 5], timeseries[:9, 6], timeseries[9:, 6] = 3, 1, 2
    series, scale, sd = reference.standardize(timeseries, np.array([0, 9, 23]))
    defined = np.arange(N_VOXELS) != 6
    joined = np.concatenate([run - run.mean(axis=0) for run in (timeseries[:9], timeseries[9:])])[:, defined]
    np.testing.assert_array_equal(scale, defined)
    np.testing.assert_allclose(series[defined], (joined / np.linalg.norm(joined, axis=0)).T, atol=1e-11)
    np.testing.assert_allclose(sd[defined], joined.std(axis=0), rtol=1e-11)


def test_quantize_rounds_to_the_largest_value() -> None:
    """By hand: the largest value becomes ±32767, the others in proportion; the scale is one over the norm."""
    series = np.array([[0.5, -0.25, 0.125], [0, 0, 0], [-3, 1, 2]])
    rounded, scale = reference.quantize(series)
    assert rounded.tolist() == [[32767, -16384, 8192], [0, 0, 0], [-32767, 10922, 21845]]
    norm = math.sqrt(32767**2 + 16384**2 + 8192**2)
    assert scale[0] == pytest.approx(1 / norm, rel=1e-12)
    assert scale[1] == 0


def test_seeds_average_the_series_as_stored(weights: Array) -> None:
    """A seed is the weighted mean of the stored signals: loud voxels count more than quiet ones."""
    timeseries = unequal_series()[1]
    by_hand = np.array([sum(w[v] * timeseries[:, v] for v in range(N_VOXELS)) / w.sum() for w in weights])
    by_hand -= by_hand.mean(axis=1, keepdims=True)
    by_hand /= np.sqrt((by_hand**2).sum(axis=1, keepdims=True))
    seeds = reference.seeds(weights, *reference.standardize(timeseries))
    np.testing.assert_allclose(seeds, by_hand, atol=1e-11)
    z_scored = weights[0] @ stats.zscore(timeseries).T
    assert np.corrcoef(z_scored, seeds[0])[0, 1] < 0.99


def test_seeds_use_the_defined_voxels_of_a_lesion(weights: Array) -> None:
    """A lesion's seed ignores constant and broken voxels."""
    timeseries = unequal_series()[1]
    timeseries[5, 19], timeseries[:, 23] = np.inf, 7
    expected = 0.2 * timeseries[:, 2] + 0.05 * timeseries[:, 40]
    seed = reference.seeds(weights, *reference.standardize(timeseries))[1]
    np.testing.assert_allclose(seed, (expected - expected.mean()) / (expected.std() * np.sqrt(23)), atol=1e-11)


def test_constant_seeds_are_zero() -> None:
    """A lesion in constant voxels, one whose voxels cancel, and one without voxels have no seed."""
    timeseries = np.random.default_rng(17).standard_normal((29, 5)).astype(np.float32)
    timeseries[:, 0] = 3
    timeseries[:, 2] = 8 - timeseries[:, 1].round(3)
    timeseries[:, 1] = 8 - timeseries[:, 2]
    weights = np.array([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0.5, 0, 0]])
    seeds = reference.seeds(weights, *reference.standardize(timeseries))
    np.testing.assert_array_equal(seeds.any(axis=1), [False, False, False, True])


def test_maps_are_scipys_statistics_of_numpys_correlations(weights: Array) -> None:
    """r, z and t are tanh of the mean, the mean, and the one-sample t of Fisher's z over unequally long subjects."""
    connectome = unequal_series()
    assert len({len(timeseries) for timeseries in connectome}) > 2
    z = np.array([fisher_z_by_numpy(weights, timeseries) for timeseries in connectome])
    maps = reference.map_lesions(weights, connectome)
    np.testing.assert_allclose(maps["z"], z.mean(axis=0), atol=1e-10)
    np.testing.assert_allclose(maps["r"], np.tanh(z.mean(axis=0)), atol=1e-10)
    np.testing.assert_array_equal(maps["n"], 5)
    itself = np.zeros(maps["t"].shape, bool)
    itself[2, 17] = True
    np.testing.assert_allclose(maps["t"][~itself], stats.ttest_1samp(z[:, ~itself], 0).statistic, rtol=1e-7)


def test_one_voxel_lesion_at_itself(weights: Array) -> None:
    """A voxel's correlation with itself has the limit's z, arctanh(1 - 1e-6) = 7.2543, and no t."""
    maps = reference.map_lesions(weights, unequal_series())
    assert maps["z"][2, 17] == pytest.approx(7.2543, abs=5e-5)
    assert maps["r"][2, 17] == pytest.approx(1 - 1e-6, abs=1e-12)
    assert math.isnan(maps["t"][2, 17])


@pytest.mark.parametrize(
    ("lesion", "voxel", "subjects"),
    [(1, 5, [0, 1, 2, 3, 4]), (1, 6, [1, 2, 4]), (2, 5, [0, 1, 2, 3]), (2, 6, [1, 2])],
)
def test_undefined_series_leave_their_subject_out(
    weights: Array, lesion: int, voxel: int, subjects: list[int]
) -> None:
    """A voxel that is undefined in two subjects and a seed in one have the statistics of the others."""
    whole = unequal_series()
    connectome = [timeseries.copy() for timeseries in whole]
    connectome[0][:, 6], connectome[3][2, 6], connectome[4][:, 17] = 1, np.nan, -2.5
    maps = reference.map_lesions(weights, connectome)
    z = np.array([fisher_z_by_numpy(weights, whole[subject])[lesion, voxel] for subject in subjects])
    assert maps["n"][lesion, voxel] == len(subjects)
    assert maps["z"][lesion, voxel] == pytest.approx(z.mean(), abs=1e-10)
    assert maps["t"][lesion, voxel] == pytest.approx(stats.ttest_1samp(z, 0).statistic, rel=1e-7)


def test_undefined_statistics_are_nan(weights: Array) -> None:
    """With one subject, r is defined and t is not; with none, neither is."""
    timeseries = unequal_series()[2]
    timeseries[:, 3] = 0
    maps = reference.map_lesions(weights, [timeseries])
    defined = np.arange(N_VOXELS) != 3
    for name in ("r", "z"):
        np.testing.assert_array_equal(np.isfinite(maps[name]), np.tile(defined, (3, 1)))
    np.testing.assert_array_equal(maps["n"], np.tile(defined, (3, 1)))
    assert np.isnan(maps["t"]).all()


@pytest.mark.parametrize("affine", [synthetic.RADIOLOGICAL, synthetic.OBLIQUE], ids=["radiological", "oblique"])
def test_nilearn_finds_the_same_correlations(affine: Array) -> None:
    """Nilearn's seed-to-voxel correlation equals our r for lesions of whole voxels and of fractions."""
    mask = synthetic.make_mask()
    n_voxels = np.count_nonzero(mask)
    timeseries = unequal_series(n_voxels)[3]
    volume = np.zeros((*mask.shape, len(timeseries)))
    volume[mask] = timeseries.T
    bold, brain = nib.Nifti1Image(volume, affine), nib.Nifti1Image(mask.astype(np.uint8), affine)
    fractions = np.zeros((2, *mask.shape))
    fractions[0][synthetic.box((1, 2, 3), (3, 2, 4)) > 0] = 1
    fractions[1, 2:4, 1:5, 6:9] = np.random.default_rng(19).random((2, 4, 3))
    fractions *= mask
    voxels = NiftiMasker(mask_img=brain, standardize="zscore_sample").fit_transform(bold)
    r = reference.map_lesions(fractions[:, mask], [timeseries])["r"]
    for lesion, our_r in zip(fractions, r, strict=True):
        # One map's least-squares fit is its weighted mean up to a constant factor.
        seed = NiftiMapsMasker(
            nib.Nifti1Image(lesion[..., np.newaxis], affine), mask_img=brain, standardize="zscore_sample"
        ).fit_transform(bold)
        np.testing.assert_allclose(our_r, seed[:, 0] @ voxels / (len(timeseries) - 1), atol=1e-6)


CELLS = np.random.default_rng(23).permutation(np.arange(N_VOXELS) % 7)
"""Seven cells of five and six voxels each."""


def with_silent_voxels() -> list[Array]:
    """Make a subject without a signal in a voxel, one without in a whole cell, and a voxel that is silent in all."""
    connectome = unequal_series()
    connectome[1][:, np.flatnonzero(CELLS == 2)[0]] = 3
    connectome[3][:, CELLS == 4] = 0.1
    for timeseries in connectome:
        timeseries[:, 11] = 2
    return connectome


def test_covariances_of_cells() -> None:
    """Each covariance is NumPy's, in each subject that has both signals, divided by its mean sd of cells."""
    connectome = with_silent_voxels()
    by_voxel, by_cell = reference.cell_covariances(CELLS, connectome)
    silent = np.flatnonzero(CELLS == 2)[0], np.flatnonzero(CELLS == 4)[1]
    for cell, voxel in ((0, 0), (4, 3), (1, silent[0]), (2, silent[1]), (4, silent[1])):
        with_voxel, with_cell = [], []
        for timeseries in connectome:
            means = np.array([timeseries[:, each == CELLS].mean(axis=1) for each in range(7)])
            sd = np.array([0 if np.ptp(mean) < 1e-9 else mean.std() for mean in means])
            g = sd[sd > 0].mean()
            if sd[cell] and np.ptp(timeseries[:, voxel]):
                covariance = np.cov(means[cell], timeseries[:, voxel], ddof=0)[0, 1]
                with_voxel.append(covariance / g / timeseries[:, voxel].std())
            if sd[cell]:
                with_cell.append(np.cov(means[cell], means[0], ddof=0)[0, 1] / g**2)
        assert by_voxel[cell, voxel] == pytest.approx(np.mean(with_voxel), abs=1e-9)
        assert by_cell[cell, 0] == by_cell[0, cell] == pytest.approx(np.mean(with_cell), abs=1e-9)
    assert np.isnan(by_voxel[:, 11]).all()
    assert np.isfinite(np.delete(by_voxel, 11, axis=1)).all()


def test_a_cell_without_a_signal_adds_nothing() -> None:
    """A cell that is silent in all subjects has covariances of 0, and leaves those of the others as they are."""
    connectome = unequal_series()
    for timeseries in connectome:
        timeseries[:, CELLS == 6] = 5
    by_voxel, by_cell = reference.cell_covariances(CELLS, connectome)
    heard = CELLS != 6
    others = reference.cell_covariances(CELLS[heard], [timeseries[:, heard] for timeseries in connectome])
    np.testing.assert_allclose(by_voxel[:6, heard], others[0], atol=1e-12)
    np.testing.assert_allclose(by_cell[:6, :6], others[1], atol=1e-12)
    assert not by_voxel[6, heard].any()
    assert not by_cell[6].any()
    assert not by_cell[:, 6].any()


def test_degree() -> None:
    """Degree is the mean over subjects of the mean off the diagonal of NumPy's voxels x voxels correlations."""
    connectome = with_silent_voxels()
    each = []
    for timeseries in connectome:
        with np.errstate(invalid="ignore"):
            r = np.corrcoef(timeseries.T)
        np.fill_diagonal(r, np.nan)
        constant = np.ptp(timeseries, axis=0) == 0
        r[constant] = r[:, constant] = np.nan
        each.append([np.mean(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in r])
    n = np.isfinite(each).sum(axis=0)
    assert set(n) == {0, 4, 5}
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(reference.degree(connectome), np.nansum(each, axis=0) / n, atol=1e-9)


def test_absolute_degree_and_components() -> None:
    """Both are NumPy's, of the cells' correlations: the mean |z|, and eigenvectors of the voxels' covariances."""
    connectome = with_silent_voxels()
    by_voxel, by_cell = reference.cell_covariances(CELLS, connectome)
    counts = np.bincount(CELLS)
    r = np.array([by_voxel[cell] / math.sqrt(by_cell[cell, cell]) for cell in range(7)])
    of_all = np.repeat(np.abs(np.arctanh(np.clip(r, -1 + 1e-6, 1 - 1e-6))), counts, axis=0).mean(axis=0)
    np.testing.assert_allclose(reference.absolute_degree(by_voxel, by_cell, counts), of_all, rtol=1e-9)
    degree = reference.degree(connectome)
    components, fractions = reference.principal_components(by_voxel, by_cell, degree)
    heard = np.arange(N_VOXELS) != 11
    values, vectors = np.linalg.eigh(np.cov(r[:, heard].T))
    np.testing.assert_allclose(fractions, values[:-4:-1] / values.sum(), rtol=1e-9)
    for number in range(3):
        vector = vectors[:, -1 - number]
        sign = np.sign(np.corrcoef(vector, degree[heard])[0, 1])
        np.testing.assert_allclose(components[number, heard], sign * vector, atol=1e-9)
        assert np.isnan(components[number, 11])


def test_approximation_of_whole_cells_in_one_subject() -> None:
    """In one subject, a lesion of whole cells, each with a weight, has the exact map of its seed."""
    timeseries = unequal_series()[2]
    of_cells = np.array([0, 0.5, 0, 1, 0, 0.25, 0])
    weights = of_cells[CELLS]
    by_voxel, by_cell = reference.cell_covariances(CELLS, [timeseries])
    exact = reference.map_lesions(weights[np.newaxis], [timeseries])["z"][0]
    np.testing.assert_allclose(reference.approximate(weights, CELLS, by_voxel, by_cell), exact, atol=1e-9)


def test_approximation_over_subjects() -> None:
    """Over subjects, it is the z of the ratio of mean covariances to the root of the mean variance of the seed."""
    connectome = unequal_series()
    weights = np.random.default_rng(29).random(N_VOXELS) * (CELLS < 3)
    of_cells = [weights[cell == CELLS].sum() for cell in range(7)]
    covariances, variances = [], []
    for timeseries in connectome:
        means = np.array([timeseries[:, cell == CELLS].mean(axis=1) for cell in range(7)])
        g = means.std(axis=1).mean()
        seed = of_cells @ means
        unit = (timeseries - timeseries.mean(axis=0)) / timeseries.std(axis=0)
        covariances.append((seed - seed.mean()) @ unit / len(seed) / g)
        variances.append(seed.var() / g**2)
    expected = np.arctanh(np.mean(covariances, axis=0) / math.sqrt(np.mean(variances)))
    found = reference.approximate(weights, CELLS, *reference.cell_covariances(CELLS, connectome))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.isnan(
        reference.approximate(np.zeros(N_VOXELS), CELLS, *reference.cell_covariances(CELLS, connectome))
    ).all()
