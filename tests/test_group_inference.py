"""Permutation tests of a general linear model, compared with NumPy, SciPy, statsmodels, nilearn and by hand."""

from __future__ import annotations

import itertools
import statistics
import threading
import tracemalloc

import numpy as np
import pytest
from nilearn.mass_univariate import permuted_ols
from scipy import stats
from statsmodels.api import OLS

from bids_lacuna import reference
from bids_lacuna.group import inference
from bids_lacuna.group.inference import Inference, count_tiles, make_model, working_bytes
from bids_lacuna.group.permutations import choose_permutations
from bids_lacuna.kernels.maxima import squared_z

Array = np.ndarray


def run_test(
    maps: Array,
    tested: Array,
    covariates: Array | None = None,
    blocks: Array | None = None,
    *,
    welch: bool = False,
    n_permutations: int = 40,
    n_threads: int = 1,
) -> Inference:
    """Test with few permutations."""
    covariates = np.empty((len(tested), 0)) if covariates is None else covariates
    blocks = np.zeros(len(tested), int) if blocks is None else blocks
    permutations = choose_permutations(tested, covariates, blocks, n_permutations, 5, 0.05, welch)
    model = make_model(tested, covariates, blocks, welch)
    return inference.infer(maps, model, permutations, 0.05, n_threads=n_threads)


def make_data(
    n_patients: int = 23, n_voxels: int = 11, n_covariates: int = 2, n_blocks: int = 3
) -> tuple[Array, ...]:
    """Make maps, two groups of unequal size and variance, covariates that go with the groups, and uneven blocks."""
    rng = np.random.default_rng(n_patients)
    tested = (np.arange(n_patients) % 3 == 1).astype(float)
    covariates = rng.standard_normal((n_patients, n_covariates)) + tested[:, np.newaxis]
    blocks = np.arange(n_patients) * n_blocks // n_patients
    maps = rng.standard_normal((n_patients, n_voxels)) * (1 + 2 * tested[:, np.newaxis]) + blocks[:, np.newaxis]
    return maps + covariates.sum(axis=1, keepdims=True), tested, covariates, blocks


# fmt: off
EIGHT = np.array([
    [3,  1, 4,  1, 5],
    [2,  7, 1,  8, 2],
    [6,  0, 2,  2, 1],
    [9,  3, 1,  5, 4],
    [1,  2, 3,  5, 7],
    [4, 10, 2, -7, 0],
    [1,  6, 1,  8, 0],
    [3, -1, 9,  8, 3],
], float)
# fmt: on
"""Eight patients, five voxels."""

CASES = np.array([1, 0, 1, 1, 0, 0, 1, 0.0])


def z_of_welch(cases: Array, controls: Array) -> Array:
    """Return the z with the p of SciPy's test with unequal variances."""
    found = stats.ttest_ind(cases, controls, equal_var=False)
    return np.sign(found.statistic) * stats.norm.isf(stats.t.sf(np.abs(found.statistic), found.df))


def by_hand(labels: Array, welch: bool) -> Array:
    """Compute Student's t, or z of Welch's v, at each voxel from means and variances in one arrangement of labels.

    For Welch's v, each value's distance from a common centre is divided by its own group's standard deviation, and
    multiplied by that of the group in which it is now: in units of the controls', whose own is 1.
    """
    if welch:
        of_cases, of_controls = (EIGHT[group == CASES].var(axis=0, ddof=1) for group in (1, 0))
        ratio = np.sqrt(
            np.mean(of_cases / (of_cases + of_controls)) / np.mean(of_controls / (of_cases + of_controls))
        )
        centre = (EIGHT[CASES == 1].sum(axis=0) / ratio + EIGHT[CASES == 0].sum(axis=0)) / (4 / ratio + 4)
        units = (EIGHT - centre) / np.where(CASES == 1, ratio, 1)[:, np.newaxis]
        return z_of_welch(ratio * units[labels == 1], units[labels == 0])
    sizes = []
    for voxel in EIGHT.T:
        cases, controls = voxel[labels == 1].tolist(), voxel[labels == 0].tolist()
        difference = statistics.mean(cases) - statistics.mean(controls)
        pooled = (statistics.variance(cases) + statistics.variance(controls)) / 2
        sizes.append(difference / (pooled / 4 + pooled / 4) ** 0.5)
    return np.array(sizes)


@pytest.mark.parametrize(("welch", "precision"), [(False, 1e-12), (True, 1e-4)])
def test_eight_patients_by_hand(welch: bool, precision: float) -> None:
    """Student's t or z of Welch's v at each voxel, the largest of all 70 arrangements, and p by counting."""
    result = run_test(EIGHT, CASES, welch=welch, n_permutations=1000)
    arrangements = [np.isin(np.arange(8), chosen) * 1 for chosen in itertools.combinations(range(8), 4)]
    maxima = [np.abs(by_hand(labels, welch)).max() for labels in arrangements]
    observed = by_hand(CASES, welch)
    np.testing.assert_allclose(result.statistic, observed, rtol=precision)
    np.testing.assert_allclose(np.sort(result.maxima), np.sort(maxima), rtol=precision)
    expected_p = [np.mean([largest >= abs(t) * (1 - precision) for largest in maxima]) for t in observed]
    np.testing.assert_allclose(result.p, expected_p, rtol=1e-12)
    np.testing.assert_allclose(result.effect, EIGHT[CASES == 1].mean(axis=0) - EIGHT[CASES == 0].mean(axis=0))


def test_z_like_scipy() -> None:
    """Z of t is SciPy's within 0.1 % from 4 degrees of freedom on, far into the tails, and never larger than t."""
    t = np.array([0.01, 0.7, 2, 4, 9, 30])
    for freedom in (4, 9.5, 12, 60):
        expected = stats.norm.isf(stats.t.sf(t, freedom))
        found = np.sqrt([squared_z(value, freedom) for value in t**2])
        np.testing.assert_allclose(found, expected, rtol=1e-3 if freedom < 9 else 2e-4)
    assert squared_z(4.0, 1e9) == pytest.approx(4, rel=1e-6)
    assert squared_z(4.0, 0.2) == squared_z(4.0, 1.0)


@pytest.mark.parametrize("welch", [False, True])
def test_largest_difference_of_all(welch: bool) -> None:
    """The most extreme of 70 arrangements has p = 2/70: its mirror image, with the groups exchanged, equals it.

    With Welch's v, a mirror image has another v: values go to a group of another variance. p could then be 1/70.
    """
    result = run_test(np.arange(8.0)[:, np.newaxis] ** 2, np.repeat([0, 1.0], 4), welch=welch, n_permutations=70)
    assert result.p[0] == 2 / 70
    assert result.permutations.smallest_p == (1 if welch else 2) / 70
    # Above the 67 others and below the two largest: of 70 permutations, three may be significant at .05.
    assert result.threshold < result.statistic[0]


def test_two_groups_like_scipy() -> None:
    """Without covariates, the statistics are those of SciPy's t-tests with equal and unequal variances."""
    maps, tested, _, _ = make_data()
    cases, controls = maps[tested == 1], maps[tested == 0]
    expected = stats.ttest_ind(cases, controls).statistic
    np.testing.assert_allclose(run_test(maps, tested).statistic, expected, rtol=1e-10)
    result = run_test(maps, tested, welch=True)
    np.testing.assert_allclose(result.statistic, z_of_welch(cases, controls), rtol=1e-6)


DESIGNS = {
    "two groups": (True, 0, 1),
    "two groups, covariates": (True, 2, 1),
    "two groups, covariates, blocks": (True, 2, 3),
    "score, covariate": (False, 1, 1),
    "score, blocks": (False, 0, 3),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_statistics_of_statsmodels(design: str) -> None:
    """t, coefficient and partial correlation are those of statsmodels' least squares, with Welch the latter two."""
    has_groups, n_covariates, n_blocks = DESIGNS[design]
    maps, tested, covariates, blocks = make_data(31, 7, n_covariates, n_blocks)
    if not has_groups:
        tested = np.exp(0.3 * np.arange(31) % 7) + tested
    dummies = np.array([blocks == block for block in range(n_blocks)], float).T
    result = run_test(maps, tested, covariates * 1e4, blocks)
    welch = run_test(maps, tested, covariates * 1e4, blocks, welch=True) if has_groups else result
    for voxel, values in enumerate(maps.T):
        fit = OLS(values, np.column_stack([tested, covariates, dummies])).fit()
        np.testing.assert_allclose(result.statistic[voxel], fit.tvalues[0], rtol=1e-6)
        np.testing.assert_allclose(result.effect[voxel], fit.params[0], rtol=1e-6)
        partial_r = fit.tvalues[0] / np.sqrt(fit.tvalues[0] ** 2 + fit.df_resid)
        np.testing.assert_allclose(result.partial_r[voxel], partial_r, rtol=1e-6)
        if has_groups:
            np.testing.assert_allclose(welch.effect[voxel], fit.params[0], rtol=1e-6)
            np.testing.assert_allclose(welch.partial_r[voxel], partial_r, rtol=1e-6)


@pytest.mark.parametrize("welch", [False, True])
@pytest.mark.parametrize(("n_covariates", "n_blocks"), [(0, 1), (3, 1), (0, 3), (2, 2)])
def test_permutations_by_definition(welch: bool, n_covariates: int, n_blocks: int) -> None:
    """The largest |t|, or |z| of v, of each permutation is that of a least-squares fit to permuted residuals."""
    maps, tested, covariates, blocks = make_data(23, 11, n_covariates, n_blocks)
    result = run_test(maps, tested, covariates, blocks, welch=welch)
    nuisance = np.column_stack([covariates, *(blocks == block for block in range(n_blocks))])
    groups = tested == 1 if welch else None
    orders = np.vstack([np.arange(23), result.permutations.orders])
    observed, *permuted = reference.permutation_statistics(maps, tested, nuisance, orders, groups)
    precision = 1e-6 if welch else 1e-9
    np.testing.assert_allclose(result.statistic, observed, rtol=precision)
    np.testing.assert_allclose(result.maxima, np.abs(permuted).max(axis=1), rtol=precision)


def test_covariates_alone_by_nilearn() -> None:
    """The t are those of nilearn's permuted_ols, and p as well, within the error of 2,000 permutations each."""
    maps, tested, covariates, _ = make_data(24, 13)
    maps[tested == 1, :3] += np.array([4, 6, 9])
    result = run_test(maps, tested, covariates, n_permutations=2000)
    theirs = permuted_ols(
        tested, maps, covariates, n_perm=2000, two_sided_test=True, random_state=1, output_type="dict", verbose=0
    )
    np.testing.assert_allclose(result.statistic, theirs["t"][0], rtol=1e-6)
    p = 10 ** -theirs["logp_max_t"][0]
    assert p.min() < 0.05 < p.max()
    np.testing.assert_array_less(np.abs(result.p - p), 4 * np.sqrt(2 * p * (1 - p) / 2000) + 2e-3)


def test_nuisance_makes_no_difference() -> None:
    """Adding blocks' means and multiples of covariates to the maps changes neither t nor p, nor do units."""
    maps, tested, covariates, blocks = make_data()
    before = run_test(maps, tested, covariates, blocks)
    more = maps + 100 * blocks[:, np.newaxis] - 3 * covariates[:, :1]
    after = run_test(more, 7 * tested - 3, covariates * [1e-6, 1e6], blocks)
    np.testing.assert_allclose(after.statistic, before.statistic, rtol=1e-8)
    np.testing.assert_array_equal(after.p, before.p)


@pytest.mark.parametrize("welch", [False, True])
def test_threads_change_no_bit(welch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, two and five threads give the same bits, over several tiles of which the last is not full."""
    monkeypatch.setattr(inference, "VOXELS", 64)
    maps, tested, covariates, blocks = make_data(23, 331)
    once, *others = (
        run_test(maps.astype(np.float32), tested, covariates, blocks, welch=welch, n_threads=n) for n in (1, 2, 5)
    )
    for other in others:
        for name in ("statistic", "effect", "partial_r", "p", "maxima"):
            np.testing.assert_array_equal(getattr(other, name), getattr(once, name))
    assert count_tiles(331) == 6


def test_groups_that_vary_alike() -> None:
    """With one variance in both groups, the ratio is near 1; threefold deviations make it 9."""
    rng = np.random.default_rng(3)
    maps, tested = rng.standard_normal((60, 500)), np.repeat([1.0, 0], [15, 45])
    for factor in (1, 3):
        maps[tested == 1] *= factor
        found = run_test(maps + 7, tested, welch=True).variance_ratio
        assert found == pytest.approx(factor**2, rel=0.1)
    assert run_test(maps, tested).variance_ratio is None


def test_a_group_that_does_not_vary() -> None:
    """A group without any variance leaves all statistics defined."""
    maps, tested, _, _ = make_data()
    maps[tested == 1] = 3.5
    result = run_test(maps, tested, welch=True)
    assert np.isfinite(result.statistic).all()
    assert np.isfinite(result.maxima).all()
    assert result.variance_ratio == pytest.approx(1e-4)


def test_undefined_voxels() -> None:
    """A voxel with a NaN, and one that the nuisance explains, are NaN, and change no other voxel's p."""
    maps, tested, covariates, blocks = make_data()
    alone = run_test(maps, tested, covariates, blocks)
    undefined = np.column_stack([maps[:, 0], np.full(23, 1 / 3), covariates[:, 0], blocks * 1e3])
    undefined[4, 0] = np.nan
    together = run_test(np.hstack([undefined, maps]), tested, covariates, blocks)
    for name in ("statistic", "effect", "partial_r", "p"):
        assert np.isnan(getattr(together, name)[:4]).all()
        np.testing.assert_allclose(getattr(together, name)[4:], getattr(alone, name), rtol=1e-12)
    np.testing.assert_allclose(together.maxima, alone.maxima, rtol=1e-12)


def test_no_voxel_at_all() -> None:
    """Without a defined voxel, no |t| is largest, and nothing is significant."""
    result = run_test(np.ones((8, 3)), CASES)
    assert np.isnan(result.statistic).all()
    assert not result.maxima.any()


def test_columns_that_follow_from_others() -> None:
    """A tested column within the nuisance, or as many columns as patients, is refused."""
    _, tested, covariates, blocks = make_data()
    with pytest.raises(ValueError, match="the tested column follows from the covariates"):
        make_model(tested, np.column_stack([covariates, 2 * tested + 3 * covariates[:, 0]]), blocks)
    with pytest.raises(ValueError, match="the model has 23 columns for 23 patients"):
        make_model(tested, np.random.default_rng(1).standard_normal((23, 19)), blocks)


@pytest.mark.parametrize("welch", [False, True])
def test_estimated_time(welch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a tile and of 256 permutations, here 3 s, is extended to all, and divided by the threads."""
    _, tested, covariates, blocks = make_data()
    monkeypatch.setattr(inference.time, "perf_counter", itertools.count(step=3).__next__)
    model = make_model(tested, covariates, blocks, welch)
    assert inference.estimate_seconds(model, 10 * inference.VOXELS, 2560, 4) == pytest.approx(75)


def test_memory_is_as_stated() -> None:
    """The peak of a test stays below its stated memory, and above a third of it."""
    maps, tested, covariates, blocks = make_data(23, 60_000)
    maps = maps.astype(np.float32)
    permutations = choose_permutations(tested, covariates, blocks, 500, 5, 0.05)
    model = make_model(tested, covariates, blocks, welch=True)
    inference.infer(maps[:, :10], model, permutations, 0.05)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    inference.infer(maps, model, permutations, 0.05, n_threads=2)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    stated = working_bytes(23, 60_000, 500, model.functionals.shape[1], 2)
    assert stated / 3 < peak <= stated


def test_an_interruption_ends_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C, each thread finishes its tile, and begins no other."""
    monkeypatch.setattr(inference, "VOXELS", 8)
    maps, tested, covariates, blocks = make_data(23, 4000)
    permutations = choose_permutations(tested, covariates, blocks, 40, 5, 0.05)
    calls = []

    def interrupt() -> None:
        calls.append(1)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    model = make_model(tested, covariates, blocks)
    with pytest.raises(KeyboardInterrupt):
        inference.infer(maps, model, permutations, 0.05, n_threads=3, on_tile=interrupt)
    assert 0 < len(calls) < count_tiles(4000)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test_")]
