"""Running moments held against SciPy's one-sample t, and p beyond the range of floating point."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from bids_lacuna.mapping.moments import RunningMoments
from bids_lacuna.statistics import fdr_threshold, minus_log10_p, of_sums

Array = np.ndarray

N_SUBJECTS, N_LESIONS, N_VOXELS = 23, 3, 19


def run(z: Array, seed_is_defined: Array | None = None, voxel_is_defined: Array | None = None) -> RunningMoments:
    """Add each subject's z, as the kernel would: 0 where a seed or voxel is undefined.

    Parameters
    ----------
    z : shape (n_subjects, n_lesions, n_voxels)
    seed_is_defined : shape (n_subjects, n_lesions)
    voxel_is_defined : shape (n_subjects, n_voxels)
    """
    n_subjects, n_lesions, n_voxels = z.shape
    seeds = np.ones((n_subjects, n_lesions), bool) if seed_is_defined is None else seed_is_defined
    voxels = np.ones((n_subjects, n_voxels), bool) if voxel_is_defined is None else voxel_is_defined
    moments = RunningMoments(n_lesions, n_voxels)
    for subject, seed, voxel in zip(z.astype(np.float32).astype(float), seeds, voxels, strict=True):
        subject[~np.outer(seed, voxel)] = 0
        moments.total += subject
        moments.total_of_squares += subject**2
        moments.count_subject(seed, voxel)
    return moments


@pytest.fixture
def z() -> Array:
    """Fisher z of (n_subjects, n_lesions, n_voxels), with a mean and spread of its own everywhere."""
    rng = np.random.default_rng(3)
    mean, sd = rng.normal(0, 0.5, (N_LESIONS, N_VOXELS)), rng.uniform(0.05, 0.4, (N_LESIONS, N_VOXELS))
    return rng.normal(mean, sd, (N_SUBJECTS, N_LESIONS, N_VOXELS)).astype(np.float32)


@pytest.fixture
def seed_is_defined() -> Array:
    """Lesion 1 lacks its seed in subjects 2 and 7, lesion 2 in subjects 7 and 11."""
    defined = np.ones((N_SUBJECTS, N_LESIONS), bool)
    defined[[2, 7], 1] = defined[[7, 11], 2] = False
    return defined


@pytest.fixture
def voxel_is_defined() -> Array:
    """Voxels are missing here and there, from voxel 5 in all subjects but one, from voxel 8 in all."""
    defined = np.random.default_rng(5).random((N_SUBJECTS, N_VOXELS)) < 0.9
    defined[:, 5], defined[:, 8], defined[:, 0] = False, False, True
    defined[13, 5] = True
    return defined


@pytest.mark.parametrize("seeds_vary", [False, True])
@pytest.mark.parametrize("voxels_vary", [False, True])
def test_statistics_are_scipys(
    z: Array, seed_is_defined: Array, voxel_is_defined: Array, seeds_vary: bool, voxels_vary: bool
) -> None:
    """Each voxel's z, r, t and n are those of the subjects that have its series and the lesion's seed."""
    seeds = seed_is_defined if seeds_vary else None
    voxels = voxel_is_defined if voxels_vary else None
    moments = run(z, seeds, voxels)
    z = z.astype(float)
    if seeds_vary:
        z[~seed_is_defined] = np.nan
    if voxels_vary:
        z[~np.broadcast_to(voxel_is_defined[:, np.newaxis], z.shape)] = np.nan
    for lesion in range(N_LESIONS):
        result = moments.statistics(lesion)
        for voxel in range(N_VOXELS):
            there = z[np.isfinite(z[:, lesion, voxel]), lesion, voxel]
            mean = there.mean() if len(there) else np.nan
            t = stats.ttest_1samp(there, 0).statistic if len(there) > 1 else np.nan
            assert result.n[voxel] == len(there)
            np.testing.assert_allclose(result.z[voxel], mean, rtol=1e-6)
            np.testing.assert_allclose(result.r[voxel], np.tanh(mean), rtol=1e-6)
            np.testing.assert_allclose(result.t[voxel], t, rtol=1e-6)
        assert result.n_subjects == np.isfinite(z[:, lesion, 0]).sum()
        assert (result.z.dtype, result.t.dtype, result.n.dtype) == (np.float32, np.float32, np.int32)


def test_t_far_inside_a_lesion() -> None:
    """With a mean 7000 standard deviations from 0, sums over 1000 subjects still give t to 1e-4."""
    z = np.random.default_rng(7).normal(7, 1e-3, (1000, 1, 31)).astype(np.float32)
    expected = stats.ttest_1samp(z.astype(float), 0).statistic
    np.testing.assert_allclose(run(z).statistics(0).t, expected[0], rtol=1e-4)


@pytest.mark.parametrize("value", [0, 0.1, -0.7, 7.2543287, -7.2543287])
@pytest.mark.parametrize("n_subjects", [2, 3, 37, 1000, 1746])
def test_no_spread_no_t(value: float, n_subjects: int) -> None:
    """Where z is the same in every subject, t is NaN and z is as it is, whatever the sums' rounding."""
    result = run(np.full((n_subjects, 1, 1), value)).statistics(0)
    assert math.isnan(result.t[0])
    assert result.z[0] == np.float32(value)
    assert result.n[0] == n_subjects


def test_one_subject_has_no_t(z: Array) -> None:
    """With n = 1, r and z are that subject's and t is NaN."""
    result = run(z[:1]).statistics(2)
    np.testing.assert_array_equal(result.z, z[0, 2])
    np.testing.assert_allclose(result.r, np.tanh(z[0, 2]), rtol=1e-6)
    assert np.isnan(result.t).all()
    np.testing.assert_array_equal(result.n, 1)


def test_no_subject_has_nothing(z: Array) -> None:
    """With n = 0, everything is NaN, before the first subject and where every subject lacks the seed."""
    no_seed = run(z, np.zeros((N_SUBJECTS, N_LESIONS), bool)).statistics(1)
    for result in (RunningMoments(N_LESIONS, N_VOXELS).statistics(1), no_seed):
        assert np.isnan([result.z, result.r, result.t]).all()
        np.testing.assert_array_equal(result.n, 0)
        assert result.n_subjects == 0


def test_asking_changes_nothing(z: Array, seed_is_defined: Array, voxel_is_defined: Array) -> None:
    """Statistics can be asked for between two subjects and again at the end."""
    moments = run(z[:11], seed_is_defined[:11], voxel_is_defined[:11])
    first, again = moments.statistics(1), moments.statistics(1)
    for name in ("z", "t", "n"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


@pytest.mark.parametrize("split", [0, 1, 3, 8, 22, 23])
def test_merged_moments_are_those_of_one_pass(
    z: Array, seed_is_defined: Array, voxel_is_defined: Array, split: int
) -> None:
    """Two parts of the connectome add up to the whole, wherever it is cut, in either order."""
    whole = run(z, seed_is_defined, voxel_is_defined)
    for first, second in ((slice(split), slice(split, None)), (slice(split, None), slice(split))):
        merged = run(z[first], seed_is_defined[first], voxel_is_defined[first])
        blocks = run(z[second], seed_is_defined[second], voxel_is_defined[second]).blocks()
        merged.merge((index, 0, block) for index, block in enumerate(blocks))
        for lesion in range(N_LESIONS):
            ours, expected = merged.statistics(lesion), whole.statistics(lesion)
            np.testing.assert_allclose(ours.z, expected.z, rtol=1e-6)
            np.testing.assert_allclose(ours.t, expected.t, rtol=1e-6)
            np.testing.assert_array_equal(ours.n, expected.n)


def log10_p_by_integration(t: float, df: int) -> float:
    """Integrate the density's tail in units of the density at t, which never underflow."""
    at_t = stats.t.logpdf(t, df)
    width = (df + t**2) / ((df + 1) * t)
    tail, _ = integrate.quad(
        lambda u: np.exp(stats.t.logpdf(t + u * width, df) - at_t), 0, np.inf, epsabs=0, epsrel=1e-9
    )
    return (np.log(2 * tail * width) + at_t) / np.log(10)


@pytest.mark.parametrize("df", [1, 2, 7, 30, 999, 1745])
@pytest.mark.parametrize("t", [0.03, 1, 5.26, 20, 37, 60, 100, 300, 1000])
def test_p_is_the_tail_of_t(t: float, df: int) -> None:
    """-log10 of the two-sided p is the integral of t's density, also where p itself is far too small for a float."""
    ours = minus_log10_p(np.array([t, -t], np.float32), np.array([df + 1, df + 1], np.int32))
    np.testing.assert_allclose(ours, -log10_p_by_integration(float(np.float32(t)), df), rtol=1e-6)


def test_p_is_scipys_for_each_voxels_own_degrees_of_freedom() -> None:
    """Ordinary p are those of SciPy's one-sample test; p is 1 at t = 0, NaN where t is NaN."""
    rng = np.random.default_rng(11)
    n = np.array([2, 3, 19, 40, 1000])
    tests = [stats.ttest_1samp(rng.normal(0.3, 1, size), 0) for size in n]
    t = np.array([test.statistic for test in tests], np.float32)
    ours = minus_log10_p(np.append(t, [0, np.nan]).astype(np.float32), np.append(n, [29, 1]))
    np.testing.assert_allclose(ours[:5], [-np.log10(test.pvalue) for test in tests], rtol=1e-5)
    assert ours[5] == 0
    assert not np.signbit(ours[5])
    assert math.isnan(ours[6])


@pytest.mark.parametrize("n_found", [1, 30, 200])
def test_fdr_threshold_is_scipys(n_found: int) -> None:
    """Exactly the voxels at or above the threshold have a q under 0.05 in SciPy, NaN or not around them."""
    rng = np.random.default_rng(n_found)
    t = rng.standard_t(36, 503).astype(np.float32)
    t[:n_found] = rng.choice([-1, 1], n_found) * rng.uniform(6, 9, n_found)
    t[rng.random(503) < 0.2], t[0] = np.nan, -7.3
    defined = np.isfinite(t)
    q = stats.false_discovery_control(2 * stats.t.sf(np.abs(t[defined].astype(float)), 36))
    threshold = fdr_threshold(t, np.full(503, 37))
    np.testing.assert_array_equal(np.abs(t[defined]) >= threshold, q <= 0.05)
    assert n_found * 0.7 < (q <= 0.05).sum() < 503 * 0.7


def test_fdr_threshold_counts_each_voxels_subjects() -> None:
    """A t over few subjects has a larger p: it is kept only where its own degrees of freedom allow it."""
    t, n = np.array([4.1, 4.2, 5.3, np.nan], np.float32), np.array([1000, 4, 1000, 1])
    q = stats.false_discovery_control(2 * stats.t.sf(t[:3].astype(float), n[:3] - 1))
    assert (q <= 0.02).tolist() == [True, False, True]
    assert fdr_threshold(t, n, q=0.02) == pytest.approx(4.1)


@pytest.mark.parametrize("t", [[np.nan, np.nan], [0, 0], [0.2, -1.1, np.nan], []])
def test_fdr_threshold_where_nothing_is_kept(t: list[float]) -> None:
    """No voxel kept, none defined or none at all: NaN."""
    assert math.isnan(fdr_threshold(np.array(t, np.float32), np.full(len(t), 31)))


def test_fdr_threshold_of_huge_t() -> None:
    """Voxels whose p underflows are kept."""
    assert fdr_threshold(np.array([900, -70, 0.1], np.float32), np.full(3, 1000)) == 70


def benjamini_hochberg(t: Array, n: Array, q: float) -> float:
    """Rank the p of all voxels, as the procedure is written down."""
    defined = np.isfinite(t)
    sizes = np.abs(t[defined])
    p = 10.0 ** -minus_log10_p(sizes, n[defined]).astype(float)
    ranked = np.sort(p)
    below = np.flatnonzero(ranked <= q * np.arange(1, len(p) + 1) / len(p))
    return float(sizes[p <= ranked[below[-1]]].min()) if len(below) else math.nan


def awkward_t(kind: str, df: int, n_voxels: int, rng: np.random.Generator) -> Array:
    """Draw t of which many are equal, near the limits of float32, or with a p just beside its own limit."""
    t = rng.standard_t(df, n_voxels)
    match kind:
        case "effect":
            t = t * 3
        case "ties":
            t = np.round(2 * t, 1)
        case "wide":
            t = t * 10.0 ** rng.uniform(-30, 30, n_voxels)
        case "limits":
            t = rng.choice([0, 1e-45, 3.4e38, 2, np.inf, np.nan, -37.5, 38.6, 1e19], n_voxels)
        case "edge":
            p = 0.05 * (np.arange(n_voxels) + 1 + rng.choice([-0.6, -1e-6, 0, 1e-6, 0.6], n_voxels)) / n_voxels
            t = stats.t.isf(np.clip(p, 1e-300, 1) / 2, df)
        case "neighbours":
            t = (rng.integers(-40, 40, n_voxels) + np.float32(stats.t.isf(0.0125, df)).view(np.int32)).astype(
                np.int32
            )
            t = t.view(np.float32)
    t[rng.random(n_voxels) < 0.1] = np.nan
    return t.astype(np.float32)


@pytest.mark.parametrize("varies", [False, True], ids=["one n", "n varies"])
@pytest.mark.parametrize("kind", ["null", "effect", "ties", "wide", "limits", "edge", "neighbours"])
def test_fdr_threshold_is_that_of_all_ranked_p(kind: str, varies: bool) -> None:
    """The threshold is bit-identical to that of the procedure with the p of every voxel, whatever the map."""
    rng = np.random.default_rng(len(kind) + varies)
    thresholds = []
    for n_voxels in [1, 2, 3, *[10] * 10, *[300] * 20, 20_000]:
        df, q = int(rng.choice([1, 3, 29, 999, 50_000])), float(rng.choice([0.05, 0.05, 0.5, 1, 1e-6]))
        t = awkward_t(kind, df, n_voxels, rng)
        n = rng.integers(2, df + 3, n_voxels) if varies else np.full(n_voxels, df + 1)
        thresholds.append(fdr_threshold(t, n.astype(np.int32), q))
        np.testing.assert_equal(thresholds[-1], benjamini_hochberg(t, n, q))
    assert np.isfinite(thresholds).any()


def test_fdr_threshold_of_many_voxels_is_scipys() -> None:
    """Among 20,000 voxels with several n, exactly those that SciPy accepts have a p at or below the threshold's."""
    rng = np.random.default_rng(7)
    n = rng.choice([12, 37, 38, 40], 20_000)
    t = (2 * rng.standard_t(n - 1)).astype(np.float32)
    p = 2 * stats.t.sf(np.abs(t.astype(float)), n - 1)
    kept = stats.false_discovery_control(p) <= 0.05
    assert 0.1 < kept.mean() < 0.9
    assert fdr_threshold(t, n) == np.abs(t[kept]).min()


@pytest.mark.parametrize("n_voxels", [8191, 8192, 16_385])
def test_statistics_of_many_voxels_are_numpys(n_voxels: int) -> None:
    """Mean and t of a map that is computed in blocks are NumPy's of the whole, to the bit."""
    rng = np.random.default_rng(n_voxels)
    z, n = rng.normal(0.2, 1, (7, n_voxels)), rng.integers(0, 8, n_voxels).astype(np.int32)
    total, squares = z.sum(axis=0), (z**2).sum(axis=0)
    found = of_sums(total, squares, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        variance = (squares - total * mean) / (n - 1)
        t = np.where(variance > 0, mean / np.sqrt(variance / n), np.nan)
    np.testing.assert_array_equal(found.z, mean.astype(np.float32))
    np.testing.assert_array_equal(found.t, t.astype(np.float32))
