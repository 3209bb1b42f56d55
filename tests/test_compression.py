"""Compression to the degrees of freedom of SciPy's filters, with NumPy's correlations of the original series."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import signal
from threadpoolctl import threadpool_limits

from bids_lacuna import reference
from bids_lacuna.connectome import compression
from bids_lacuna.connectome.store import Rank
from bids_lacuna.kernels import cpu as kernels

Array = np.ndarray

Standardized = tuple[Array, Array, Array]

ROUNDING = 2e-6
"""Rounding error of correlations between series in float32."""

SHAPES = [(61, 211), (120, 2503), (211, 61)]
"""Numbers of timepoints and voxels: more voxels, several blocks of voxels, fewer voxels."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Limit BLAS to one thread, as in a build process."""
    with threadpool_limits(1, user_api="blas"):
        yield


def as_recorded(timeseries: Array) -> Array:
    """Round to float32, as in files, before NumPy correlates."""
    return timeseries.astype(np.float32).astype(float)


def white_noise(n_timepoints: int, n_voxels: int, seed: int = 3) -> Array:
    """Make noise around 1000, (n_timepoints, n_voxels), with standard deviations from 1 to 100."""
    rng = np.random.default_rng(seed)
    return as_recorded(1000 + np.geomspace(1, 100, n_voxels) * rng.standard_normal((n_timepoints, n_voxels)))


def brick_wall(n_timepoints: int, n_voxels: int, n_frequencies: int) -> Array:
    """Keep the mean and the lowest frequencies of noise; each frequency is a sine and a cosine."""
    spectrum = np.fft.rfft(white_noise(n_timepoints, n_voxels), axis=0)
    spectrum[n_frequencies + 1 :] = 0
    return as_recorded(np.fft.irfft(spectrum, n_timepoints, axis=0))


def butterworth(n_timepoints: int, n_voxels: int, seed: int = 3) -> Array:
    """Filter noise forwards and backwards, as fMRI pipelines do: 0.08 Hz at a TR of 3 s."""
    sections = signal.butter(4, 0.08, fs=1 / 3, output="sos")
    return as_recorded(signal.sosfiltfilt(sections, white_noise(n_timepoints, n_voxels, seed), axis=0))


def standardize(timeseries: Array, *lengths: int) -> Standardized:
    """Standardize a subject as a build does: float32, each run demeaned."""
    starts = np.cumsum([0, *(lengths or [len(timeseries)])])
    return kernels.standardize(timeseries.astype(np.float32), starts)


def correlations(standardized: Standardized) -> Array:
    """Correlate all pairs of voxels from stored arrays."""
    series, scale, _ = standardized
    unit = series.astype(float) * scale[:, np.newaxis]
    return unit @ unit.T


def test_constants_are_those_of_the_reference() -> None:
    """Compression and seeds agree on what is constant."""
    assert compression.CONSTANT_SEED == reference.CONSTANT_SEED


@pytest.mark.parametrize(("n_timepoints", "n_voxels"), SHAPES)
def test_a_brick_wall_leaves_its_degrees_of_freedom(n_timepoints: int, n_voxels: int) -> None:
    """Thirteen frequencies are 26 components at any tolerance, with NumPy's correlations and norms of 1."""
    timeseries = brick_wall(n_timepoints, n_voxels, n_frequencies=13)
    for tolerance in (1e-7, 1e-5):
        (series, scale, sd), bound = compression.rotate(standardize(timeseries), "auto", tolerance)
        assert series.shape == (n_voxels, 26)
        # Rounding of numbers near 1000 to float32.
        assert bound < 1e-8
        np.testing.assert_allclose(correlations((series, scale, sd)), np.corrcoef(timeseries.T), atol=ROUNDING)
        np.testing.assert_array_equal(scale, 1)
        np.testing.assert_allclose(np.linalg.norm(series, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(sd, timeseries.std(axis=0), rtol=1e-5)
        assert {array.dtype for array in (series, scale, sd)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("n_timepoints", "n_voxels"), SHAPES)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-5])
def test_a_smooth_filter_keeps_what_the_tolerance_needs(n_timepoints: int, n_voxels: int, tolerance: float) -> None:
    """Errors stay within the bound, the bound within the tolerance, and one component less exceeds it."""
    timeseries = butterworth(n_timepoints, n_voxels)
    exact = np.corrcoef(timeseries.T)
    rotated, bound = compression.rotate(standardize(timeseries), "auto", tolerance)
    n_components = rotated[0].shape[1]
    assert 2 <= n_components < min(0.75 * n_timepoints, n_voxels + 1)
    assert bound <= tolerance
    assert np.abs(correlations(rotated) - exact).max() <= bound + ROUNDING
    _, its_bound = compression.rotate(standardize(timeseries), n_components - 1, tolerance)
    assert its_bound > tolerance


@pytest.mark.parametrize(("n_timepoints", "n_kept"), [(60, 54), (59, 53), (61, 54)])
@pytest.mark.parametrize("more", [0, 1])
def test_a_tenth_of_the_components_is_left_out_or_none(n_timepoints: int, n_kept: int, more: int) -> None:
    """A mixture of as many sources as nine tenths of the timepoints is compressed, one of more is left as it is."""
    rng = np.random.default_rng(7)
    timeseries = as_recorded(rng.standard_normal((n_timepoints, n_kept + more)) @ rng.random((n_kept + more, 2503)))
    given = standardize(timeseries)
    rotated, _ = compression.rotate(given, "auto", 1e-5)
    assert rotated[0].shape[1] == (n_timepoints if more else n_kept)


@pytest.mark.parametrize("lengths", [(61,), (13, 29, 19)])
def test_white_noise_is_left_as_it_is(lengths: tuple[int, ...]) -> None:
    """Each demeaned run loses one degree of freedom; noise has all others, which a sample of voxels tells."""
    given = standardize(white_noise(61, 211), *lengths)
    assert compression.fewest_components(given[0], 1e-5) == 61 - len(lengths)
    rotated, bound = compression.rotate(given, "auto", 1e-5)
    assert rotated is given
    assert bound == 0


@pytest.mark.parametrize("make", [brick_wall, butterworth])
@pytest.mark.parametrize("n_sampled", [61, 150, 2503])
def test_a_sample_of_voxels_never_needs_more_than_all(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Array], n_sampled: int
) -> None:
    """The number of components below which a sample exceeds the tolerance is at most the one that all voxels need."""
    monkeypatch.setattr(compression, "SAMPLED_VOXELS", n_sampled)
    given = standardize(make(61, 2503, 13))
    for tolerance in (1e-2, 1e-4, 1e-5, 1e-6):
        fewest = compression.fewest_components(given[0], tolerance)
        components = compression.principal_components(given[0])
        bounds = compression.error_bounds(*compression.largest_tails(given[0], given[2], components))
        needed = 1 + int(np.argmax(bounds[1:] <= tolerance))
        assert needed - 6 <= fewest <= needed


@pytest.mark.parametrize(("which", "tolerance"), [("full", 1e-5), (61, 1e-5), (62, 1e-5), ("auto", 1e-30)], ids=str)
def test_nothing_is_rotated_if_nothing_is_left_out(which: Rank, tolerance: float) -> None:
    """With as many components as timepoints, the input arrays are returned bit-identical."""
    given = standardize(white_noise(61, 211))
    before = [array.copy() for array in given]
    found, bound = compression.rotate(given, which, tolerance)
    assert bound == 0
    for ours, same, expected in zip(found, given, before, strict=True):
        assert ours is same
        np.testing.assert_array_equal(ours, expected)


def test_the_result_reuses_the_memory_of_the_series() -> None:
    """Nothing as large as the series is allocated, and the peak stays below the plan."""
    for n_timepoints, n_voxels in (*SHAPES, (509, 101)):
        given = standardize(brick_wall(n_timepoints, n_voxels, n_frequencies=13))
        tracemalloc.start()
        rotated, _ = compression.rotate(given, "auto", 1e-5)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert np.shares_memory(rotated[0], given[0])
        assert rotated[0].flags.c_contiguous
        assert given[0].nbytes + peak <= compression.rotation_bytes(n_timepoints, n_voxels)
    # One BOLD run of GSP1000: a third more than the series themselves; reading them needs twice their size.
    assert compression.rotation_bytes(120, 286_000) < 1.35 * 4 * 120 * 286_000


def test_results_are_bit_identical() -> None:
    """Results depend neither on chance nor on memory addresses."""
    first, second = (compression.rotate(standardize(butterworth(120, 2503)), "auto", 1e-5)[0] for _ in range(2))
    for ours, expected in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_constant_voxels_stay_constant() -> None:
    """Constant and broken voxels stay 0 in series, scale and sd; all others have NumPy's correlations."""
    timeseries = brick_wall(61, 211, n_frequencies=7)
    timeseries[:, [0, 20, 210]] = 0.1, 0, -1e5 / 3
    timeseries[7, 3] = np.nan
    defined = np.setdiff1d(np.arange(211), [0, 3, 20, 210])
    rotated, _ = compression.rotate(standardize(timeseries), "auto", 1e-5)
    assert rotated[0].shape == (211, 14)
    for array in rotated:
        np.testing.assert_array_equal(array.reshape(211, -1).any(axis=1), np.isin(np.arange(211), defined))
    r = correlations(rotated)[np.ix_(defined, defined)]
    np.testing.assert_allclose(r, np.corrcoef(timeseries[:, defined].T), atol=ROUNDING)


def test_a_subject_without_signal() -> None:
    """If every voxel is constant, one component of zeros is kept."""
    rotated, bound = compression.rotate(standardize(np.ones((61, 211))), "auto", 1e-5)
    assert rotated[0].shape == (211, 1)
    assert not any(array.any() for array in rotated)
    assert bound == 0


def test_the_bound_can_be_reached() -> None:
    """Two series that differ only in the part left out become equal: r was cos 2a, the bound is 1 - cos 2a."""
    angle = 0.3
    first, second = np.cos(angle) * np.array([1, -1, 0, 0]), np.sin(angle) * np.array([0, 0, 1, -1])
    timeseries = np.stack([first + second, first - second, first], axis=1)
    exact = np.corrcoef(timeseries.T)[0, 1]
    assert exact == pytest.approx(np.cos(2 * angle))
    given = standardize(timeseries)
    components = compression.principal_components(given[0])
    of_voxels, _ = compression.largest_tails(given[0], given[2], components)
    rotated, _ = compression.rotate(given, 1, 1)
    assert correlations(rotated)[0, 1] == pytest.approx(1, abs=1e-6)
    assert compression.error_bounds(of_voxels, of_voxels)[1] == pytest.approx(1 - exact, abs=1e-6)


def test_seeds_may_have_larger_tails_than_voxels() -> None:
    """If neighbours cancel except for a common part, their average decides: by hand, for 10 and 100 voxels."""
    wave, weak = np.cos(np.pi * np.arange(60)), np.cos(np.pi / 3 * np.arange(60))
    timeseries = np.outer(wave, np.ones(200)) + 0.01 * weak[:, np.newaxis]
    timeseries[:, 1:100:2] = -wave[:, np.newaxis] + 0.01 * weak[:, np.newaxis]
    # In recorded units, a quiet voxel does not cancel a loud one.
    timeseries[:, 100] *= 7
    series, scale, sd = standardize(timeseries)
    rest = np.random.default_rng(11).standard_normal((60, 58))
    components = np.linalg.qr(np.column_stack([wave, weak, rest]))[0]
    of_voxels, of_seeds = compression.largest_tails(series, sd, components)
    fraction = 0.01**2 * (weak @ weak) / (timeseries[:, 0] @ timeseries[:, 0])
    assert of_voxels[:3] == pytest.approx([1, fraction, 0], abs=1e-6)
    assert of_seeds[:3] == pytest.approx([1, 1, 0], abs=1e-6)
    (rotated, _, _), _ = compression.rotate((series, scale, sd), "auto", 1e-3)
    assert rotated.shape == (200, 2)


def test_seeds_of_many_neighbours_count() -> None:
    """Voxels that cancel only over 100 neighbours, not over 10, have a seed of what they have in common."""
    wave, weak = np.cos(np.pi * np.arange(60)), np.cos(np.pi / 3 * np.arange(60))
    signs = np.repeat([1, -1] * 5, 10)
    timeseries = np.outer(wave, signs) + 0.01 * weak[:, np.newaxis]
    series, _, sd = standardize(timeseries)
    rest = np.random.default_rng(11).standard_normal((60, 58))
    components = np.linalg.qr(np.column_stack([wave, weak, rest]))[0]
    of_voxels, of_seeds = compression.largest_tails(series, sd, components)
    assert of_voxels[1] < 1e-4
    assert of_seeds[:3] == pytest.approx([1, 1, 0], abs=1e-6)


def make_lesions(n_voxels: int) -> Array:
    """Make lesion weights: single voxels, neighbours, scattered voxels, and fractions of them."""
    rng = np.random.default_rng(7)
    weights = np.zeros((60, n_voxels))
    for number, lesion in enumerate(weights):
        size = min(n_voxels, 3 ** (number % 8))
        start = rng.integers(n_voxels - size + 1)
        voxels = rng.permutation(n_voxels)[:size] if number % 3 == 0 else np.arange(start, start + size)
        lesion[voxels] = rng.random(size) if number % 2 else 1
    return weights


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-5])
def test_the_bound_holds_for_lesions(tolerance: float) -> None:
    """For lesions of all kinds, r differs from NumPy's correlation of the recorded average by at most the bound."""
    timeseries = butterworth(120, 2503, seed=5)
    weights = make_lesions(2503)
    exact = reference.correlate(weights @ timeseries.T, timeseries)
    rotated, bound = compression.rotate(standardize(timeseries), "auto", tolerance)
    series, scale, sd = (array.astype(float) for array in rotated)
    r = reference.seeds(weights, series, scale, sd) @ series.T
    assert np.abs(r - exact).max() <= bound + ROUNDING


def test_averaging_commutes_with_compression() -> None:
    """Even with 5 components of noise, seeds are NumPy's averages projected onto the first 5 singular vectors."""
    timeseries = white_noise(61, 211)
    timeseries -= timeseries.mean(axis=0)
    weights = make_lesions(211)
    directions = np.linalg.svd(timeseries / np.linalg.norm(timeseries, axis=0))[0][:, :5]
    kept = weights @ timeseries.T @ directions
    kept_voxels = timeseries.T @ directions
    rotated, bound = compression.rotate(standardize(timeseries), 5, 1e-5)
    assert bound > 0.5
    series, scale, sd = (array.astype(float) for array in rotated)
    r = reference.seeds(weights, series, scale, sd) @ series.T
    expected = (kept / np.linalg.norm(kept, axis=1, keepdims=True)) @ (
        kept_voxels / np.linalg.norm(kept_voxels, axis=1, keepdims=True)
    ).T
    np.testing.assert_allclose(r, expected, atol=1e-5)
    np.testing.assert_allclose(sd, np.linalg.norm(kept_voxels, axis=1) / np.sqrt(61), rtol=1e-4)


def test_a_voxel_that_is_left_out_is_constant() -> None:
    """A voxel with nothing in the kept components has no correlation, instead of that of rounding errors."""
    timeseries = np.zeros((12, 21))
    timeseries[:, :20] = np.cos(np.pi * np.arange(12))[:, np.newaxis]
    timeseries[:, 20] = np.cos(np.pi / 3 * np.arange(12))
    rotated, bound = compression.rotate(standardize(timeseries), 1, 1e-5)
    assert rotated[1].tolist() == [1] * 20 + [0]
    assert not rotated[0][20].any()
    assert rotated[2][20] == 0
    assert bound == pytest.approx(2)


@pytest.mark.parametrize("filtered", [False, True])
def test_rounding_to_int16(filtered: bool) -> None:
    """As in time, int16 has errors below 1e-4 in r, also if few components have most of the variance."""
    timeseries = brick_wall(120, 2000, n_frequencies=29) if filtered else white_noise(120, 2000)
    timeseries = (timeseries - 1000) / np.geomspace(1, 100, 2000)
    # A common signal of all voxels, 30 times as large as their own, and a movement.
    timeseries += 30 * brick_wall(120, 1, n_frequencies=29)
    if not filtered:
        timeseries[60, :500] += 50
    timeseries = as_recorded(timeseries)
    (series, _, _), bound = compression.rotate(standardize(timeseries), "auto", 1e-5)
    rounded, scale = kernels.quantize(series)
    assert series.shape[1] == (58 if filtered else 120)
    assert bound < 1e-8
    r = correlations((rounded, scale, scale))
    assert np.abs(r - np.corrcoef(timeseries.T)).max() < 1e-4
    np.testing.assert_allclose(np.diag(r), 1, atol=1e-6)


def test_rounding_over_a_hundred_subjects() -> None:
    """As in time, int16 changes the mean z over 100 subjects by less than 5e-6 for any lesion."""
    rng = np.random.default_rng(13)
    weights = np.zeros((3, 500))
    weights[0, 7], weights[1, 11:31], weights[2, 100:400] = 1, 1, rng.random(300)
    error = np.zeros((3, 500))
    for _ in range(100):
        timeseries = (rng.standard_normal((120, 4)) @ rng.standard_normal((4, 500))) + rng.standard_normal((120, 500))
        series, scale, sd = reference.standardize(timeseries)
        error += reference.fisher_z(reference.seeds(weights, series, scale, sd) @ series.T)
        (series, _, sd), _ = compression.rotate(standardize(timeseries), "auto", 1e-5)
        rounded, scale = kernels.quantize(series)
        series = rounded * scale[:, np.newaxis].astype(float)
        error -= reference.fisher_z(reference.seeds(weights, series, np.ones(500), sd) @ series.T)
    error = np.abs(error) / 100
    itself = np.zeros((3, 500), bool)
    itself[0, 7] = True
    assert error[~itself].max() < 5e-6
    np.testing.assert_allclose(error[itself], 0, atol=1e-6)
