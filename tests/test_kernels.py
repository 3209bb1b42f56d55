"""Each kernel compared with the function of the same name in `reference`, which has its own tests."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from bids_lacuna import reference
from bids_lacuna.kernels import cpu as kernels

Array = np.ndarray

R_TOLERANCE = 1e-6


def signal(n_timepoints: int, n_voxels: int, seed: int = 3) -> Array:
    """Make correlated series whose standard deviations differ by up to 100."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n_timepoints, 2)) @ rng.standard_normal((2, n_voxels))
    return np.geomspace(1, 100, n_voxels) * (shared + rng.standard_normal((n_timepoints, n_voxels)))


def with_constant_voxels() -> Array:
    """Make voxels 0, 6 and 130 constant, at numbers that floats do not represent exactly."""
    timeseries = signal(19, 131)
    timeseries[:, [0, 6, 130]] = 0.1, 0, -1e5 / 3
    return timeseries


def with_broken_voxels() -> Array:
    """Put NaN and infinities at the start, in the middle and at the end of series."""
    timeseries = signal(19, 131)
    timeseries[0, 0] = timeseries[7, 1] = timeseries[18, 2] = timeseries[:, 3] = np.nan
    timeseries[0, 4] = timeseries[18, 129] = np.inf
    timeseries[7, 5] = timeseries[18, 130] = -np.inf
    timeseries[2:4, 6] = np.inf, -np.inf
    return timeseries


def with_cancelling_voxels() -> Array:
    """Let voxels 3, 6 and 9 sum to exactly 64 at every timepoint, in float32 numbers."""
    timeseries = signal(31, 13).round()
    timeseries[:, 9] = 64 - timeseries[:, 3] - timeseries[:, 6]
    return timeseries


SUBJECTS = {
    "one voxel": signal(23, 1),
    "127 voxels": signal(23, 127),
    "128 voxels": signal(23, 128),
    "129 voxels": signal(23, 129),
    "many tiles": signal(120, 777),
    "2 timepoints": signal(2, 131),
    "mean 1e4, sd 1": 1e4 + signal(61, 131) / np.geomspace(1, 100, 131),
    "amplitude 1e-20": 1e-20 * signal(29, 131),
    "amplitude 1e15": 1e15 * signal(29, 131),
    "constant voxels": with_constant_voxels(),
    "broken voxels": with_broken_voxels(),
    "cancelling voxels": with_cancelling_voxels(),
    "all constant": np.tile(np.linspace(0.1, 9, 131), (17, 1)),
    "one voxel, constant": np.full((11, 1), 0.1),
}


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> type:
    """Read the connectome as float32 and as float64."""
    return request.param


@pytest.fixture(params=SUBJECTS)
def timeseries(request: pytest.FixtureRequest, dtype: type) -> Array:
    """One connectome subject's BOLD signal, (n_timepoints, n_voxels)."""
    return SUBJECTS[request.param].astype(dtype)


def standardize(timeseries: Array) -> tuple[Array, Array, Array]:
    """Run the kernel on a subject with one BOLD run."""
    return kernels.standardize(timeseries, np.array([0, len(timeseries)]))


def make_weights(n_voxels: int) -> Array:
    """Make lesions: the first voxel, voxels 3, 6 and 9, all voxels, no voxel, and 37 overlapping ones."""
    rng = np.random.default_rng(5)
    weights = np.zeros((41, n_voxels), np.float32)
    weights[0, 0] = 1
    weights[1, [voxel for voxel in (3, 6, 9) if voxel < n_voxels]] = 0.7
    weights[2] = 0.3
    weights[4:] = rng.random((37, n_voxels)) * (rng.random((37, n_voxels)) < 0.1)
    return weights


def compressed_rows(weights: Array) -> tuple[Array, Array, Array]:
    """Convert (n_lesions, n_voxels) weights to compressed sparse rows."""
    starts = np.cumsum([0, *np.count_nonzero(weights, axis=1)])
    return starts, np.nonzero(weights)[1].astype(np.int32), weights[weights > 0]


def add_subjects(weights: Array, subjects: list[Array], n_threads: int) -> tuple[Array, Array]:
    """Run the three kernels over some connectome subjects."""
    total, squares = np.zeros((2, *weights.shape))
    with kernels.threads(n_threads):
        for start in range(0, len(subjects), kernels.GROUP):
            group = [standardize(timeseries) for timeseries in subjects[start : start + kernels.GROUP]]
            seeds = [kernels.seeds(*compressed_rows(weights), *standardized) for standardized in group]
            series, scale, _ = zip(*group, strict=True)
            kernels.add_fisher_z(seeds, series, scale, total, squares)
    return total, squares


def test_constants_are_those_of_the_reference() -> None:
    """Both modules have the same limits."""
    assert kernels.INT16_MAX == reference.INT16_MAX
    assert kernels.R_LIMIT == reference.R_LIMIT
    assert kernels.CONSTANT_SEED == reference.CONSTANT_SEED
    assert float(kernels.Z_LIMIT) == pytest.approx(math.log((2 - 1e-6) / 1e-6) / 2, rel=1e-7)


def test_standardize(timeseries: Array) -> None:
    """Series, scale and standard deviation equal the reference's, and are exactly 0 where it is 0."""
    series, scale, sd = standardize(timeseries)
    expected_series, expected_scale, expected_sd = reference.standardize(timeseries)
    assert {array.dtype for array in (series, scale, sd)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_allclose(series, expected_series, atol=2e-7)
    np.testing.assert_array_equal(series.any(axis=1), expected_scale > 0)
    np.testing.assert_allclose(sd, expected_sd, rtol=1e-6)


@pytest.mark.parametrize("lengths", [(19,), (7, 12), (1, 2, 16)])
@pytest.mark.parametrize("subject", ["constant voxels", "broken voxels"])
def test_standardize_runs(subject: str, lengths: tuple[int, ...], dtype: type) -> None:
    """Each run is demeaned: series, scale and sd equal the reference's, also if one run is constant."""
    timeseries = SUBJECTS[subject].astype(dtype)
    starts = np.cumsum([0, *lengths])
    timeseries[: lengths[0], 11] = 0.1
    timeseries[:, 12] = np.repeat(0.1 + np.arange(len(lengths)), lengths)
    timeseries[starts[-2] :, 13] += 1e3
    series, scale, sd = kernels.standardize(timeseries, starts)
    expected_series, expected_scale, expected_sd = reference.standardize(timeseries, starts)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_allclose(series, expected_series, atol=2e-7)
    np.testing.assert_allclose(sd, expected_sd, rtol=1e-6)
    assert scale[11:14].tolist() == [len(lengths) > 1, 0, 1]


def test_quantize(timeseries: Array) -> None:
    """Rounded series and scales equal the reference's except for ties; scaled, they have norm 1."""
    series, scale, _ = standardize(timeseries)
    rounded, its_scale = kernels.quantize(series)
    expected, expected_scale = reference.quantize(series.astype(float))
    assert (rounded.dtype, its_scale.dtype) == (np.int16, np.float32)
    assert np.abs(rounded.astype(int) - expected).max() <= 1
    np.testing.assert_allclose(its_scale, expected_scale, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rounded.astype(float), axis=1) * its_scale, scale, atol=1e-6)


@pytest.mark.parametrize("n_lesions", [1, 41])
def test_rounded_series(timeseries: Array, n_lesions: int) -> None:
    """For int16 series, seeds and sums equal the reference's on the same numbers."""
    weights = make_weights(timeseries.shape[1])[:n_lesions]
    series, _, sd = standardize(timeseries)
    series, scale = kernels.quantize(series)
    seeds = kernels.seeds(*compressed_rows(weights), series, scale, sd)
    exact = (series.astype(float), scale.astype(float), sd.astype(float))
    expected_seeds = reference.seeds(weights.astype(float), *exact)
    np.testing.assert_array_equal(seeds.any(axis=1), expected_seeds.any(axis=1))
    np.testing.assert_allclose(seeds, expected_seeds, atol=R_TOLERANCE)
    total, squares, expected, expected_squares = np.zeros((4, *weights.shape))
    with threadpool_limits(1, user_api="blas"):
        kernels.add_fisher_z([seeds], [series], [scale], total, squares)
    reference.add_fisher_z([expected_seeds], exact[:1], exact[1:2], expected, expected_squares)
    np.testing.assert_allclose(np.tanh(total), np.tanh(expected), atol=R_TOLERANCE)
    np.testing.assert_allclose(squares, total**2, rtol=1e-12)


def test_standardize_takes_any_memory_layout() -> None:
    """Reordered voxels in another memory layout yield the same series."""
    timeseries = signal(23, 150).astype(np.float32)
    order = np.random.default_rng(7).permutation(150)
    for ours, expected in zip(standardize(timeseries[:, order]), standardize(timeseries), strict=True):
        np.testing.assert_array_equal(ours, expected[order])


@pytest.mark.parametrize("n_lesions", [1, 41])
def test_seeds(timeseries: Array, n_lesions: int) -> None:
    """Every seed equals the reference's and is exactly 0 where it is 0."""
    weights = make_weights(timeseries.shape[1])[:n_lesions]
    seeds = kernels.seeds(*compressed_rows(weights), *standardize(timeseries))
    expected = reference.seeds(weights.astype(float), *reference.standardize(timeseries))
    np.testing.assert_array_equal(seeds.any(axis=1), expected.any(axis=1))
    np.testing.assert_allclose(seeds, expected, atol=R_TOLERANCE)


@pytest.mark.parametrize(
    ("subject", "has_seed"),
    [
        ("constant voxels", [False, True, True, False]),
        ("cancelling voxels", [True, False, True, False]),
        ("broken voxels", [False, True, True, False]),
        ("all constant", [False, False, False, False]),
    ],
)
def test_constant_seeds(subject: str, has_seed: list[bool], dtype: type) -> None:
    """A lesion in constant voxels, one whose voxels cancel and one without voxels have no seed."""
    timeseries = SUBJECTS[subject].astype(dtype)
    weights = make_weights(timeseries.shape[1])[:4]
    seeds = kernels.seeds(*compressed_rows(weights), *standardize(timeseries))
    np.testing.assert_array_equal(seeds.any(axis=1), has_seed)


@pytest.mark.parametrize("n_lesions", [1, 41])
def test_add_fisher_z(timeseries: Array, n_lesions: int) -> None:
    """The sums equal the reference's to 1e-6 in r; a constant seed or voxel adds nothing."""
    weights = make_weights(timeseries.shape[1])[:n_lesions]
    total, squares = add_subjects(weights, [timeseries], n_threads=2)
    series, scale, sd = reference.standardize(timeseries)
    seeds = reference.seeds(weights.astype(float), series, scale, sd)
    expected, expected_squares = np.zeros((2, *weights.shape))
    reference.add_fisher_z([seeds], [series], [scale], expected, expected_squares)
    np.testing.assert_allclose(np.tanh(total), np.tanh(expected), atol=R_TOLERANCE)
    np.testing.assert_allclose(squares, total**2, rtol=1e-12)
    np.testing.assert_array_equal(total[~seeds.any(axis=1)], 0)
    np.testing.assert_array_equal(total[:, scale == 0], 0)


def test_add_fisher_z_accumulates() -> None:
    """Subjects of unequal length accumulate to the reference's sums."""
    subjects = [signal(n, 131, seed=n).astype(np.float32) for n in (11, 29, 17)]
    weights = make_weights(131)
    expected = np.zeros((2, *weights.shape))
    for timeseries in subjects:
        standardized = reference.standardize(timeseries)
        seeds = reference.seeds(weights.astype(float), *standardized)
        reference.add_fisher_z([seeds], standardized[:1], standardized[1:2], *expected)
    away = np.abs(expected[1]) < 10
    ours = np.array(add_subjects(weights, subjects, n_threads=1))
    np.testing.assert_allclose(ours[:, away], expected[:, away], atol=1e-4)
    assert away.mean() > 0.9


def test_fisher_z() -> None:
    """Below the limit, Fisher's z equals NumPy's arctanh of the same float32 to 4e-7, and is odd."""
    r = np.concatenate([np.linspace(0, 0.99, 1013), 1 - np.geomspace(1.1e-6, 0.01, 1013)]).astype(np.float32)
    ours = np.array([kernels.fisher_z(value) for value in r])
    np.testing.assert_allclose(ours, np.arctanh(r.astype(float)), rtol=0, atol=4e-7)
    np.testing.assert_array_equal([kernels.fisher_z(-value) for value in r], -ours)


@pytest.mark.parametrize("r", [1 - 5e-7, 1, 1 + 1e-7, 1.01])
def test_fisher_z_clips(r: float) -> None:
    """At and beyond ±1, z is that of the limit."""
    assert kernels.fisher_z(np.float32(r)) == pytest.approx(7.2543286, abs=5e-7)
    assert kernels.fisher_z(np.float32(-r)) == pytest.approx(-7.2543286, abs=5e-7)


def test_sums_are_bit_identical() -> None:
    """One thread, two threads and a repetition give the same bits."""
    subjects = [signal(n, 1031, seed=n).astype(np.float32) for n in (29, 17, 23)]
    weights = make_weights(1031)
    first = add_subjects(weights, subjects, n_threads=1)
    for n_threads in (1, 2, 2):
        for ours, expected in zip(add_subjects(weights, subjects, n_threads), first, strict=True):
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("n_voxels", [521, 1031])
def test_sums_do_not_depend_on_other_lesions(n_voxels: int) -> None:
    """A lesion has the same bits alone, with another, in a batch, and beyond the last full group of lesions."""
    subjects = [signal(n, n_voxels, seed=n).astype(np.float32) for n in (83, 64, 200)]
    weights = np.tile(make_weights(n_voxels), (13, 1))[: kernels.LESIONS + 3]
    whole = np.array(add_subjects(weights, subjects, n_threads=1))
    for rows in (slice(0, 1), slice(1, 3), slice(0, 9), slice(509, 514)):
        np.testing.assert_array_equal(add_subjects(weights[rows], subjects, n_threads=1), whole[:, rows])


def blas_threads() -> set[int]:
    """Return the numbers of threads that BLAS libraries may use."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_threads_are_released() -> None:
    """The kernels use the requested number of threads, which end afterwards; BLAS has one thread meanwhile."""

    def fail() -> None:
        raise ZeroDivisionError

    before = blas_threads()
    with kernels.threads(3):
        assert blas_threads() == {1}
        # Each waits for the other two: a pool starts no thread while another is idle.
        together = threading.Barrier(3)
        kernels.distribute(lambda *_: together.wait(60), 3, 1)
        assert {"kernel_0", "kernel_1"} == {each.name for each in threading.enumerate() if "kernel" in each.name}
    with pytest.raises(ZeroDivisionError), kernels.threads(2):
        fail()
    assert blas_threads() == before
    assert not [each for each in threading.enumerate() if "kernel" in each.name]


def test_two_blocks_at_once_keep_their_threads() -> None:
    """The end of another thread's block takes neither helpers nor single-threaded BLAS from ours."""
    begun, ours_begun = threading.Event(), threading.Event()
    results: list[list[np.ndarray]] = []
    subjects = [SUBJECTS["many tiles"]] * 3
    weights = np.eye(5, 777)

    def other() -> None:
        with kernels.threads(2):
            begun.set()
            assert ours_begun.wait(60)
            results.append(list(add_subjects(weights, subjects, n_threads=2)))

    before = blas_threads()
    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(60)
    with kernels.threads(3):
        ours_begun.set()
        thread.join(60)
        assert blas_threads() == {1}
        results.append(list(add_subjects(weights, subjects, n_threads=3)))
        together = threading.Barrier(3)
        kernels.distribute(lambda *_: together.wait(60), 3, 1)
    assert blas_threads() == before
    expected = list(add_subjects(weights, subjects, n_threads=1))
    assert len(results) == 2
    for found in results:
        for ours, alone in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, alone)
