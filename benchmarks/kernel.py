"""The arithmetic of one connectome subject, against the bare matrix product of the same sizes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import numpy as np

from benchmarks.data import LARGE_RADII_MM, N_TIMEPOINTS, Data, Rows
from benchmarks.measure import MIN_ROUNDS, N_THREADS, Figure, medians, seconds, undisturbed
from bids_lacuna import FunctionalNetworkMapping, reference
from bids_lacuna.kernels import cpu as kernels
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.runtime.plan import Resources

Array = np.ndarray

LIMITS = {1: 1.5, 5: 1.5, 20: 1.25, 100: 1.25, 500: 1.25}
"""Lesions at once, and how many times the bare product the whole arithmetic may take."""

UNLIMITED = Resources(2**40, N_THREADS)
"""Memory for any plan."""

THREADS_REPEATS = 5
"""Calls in one measurement of threads: the system counts processor-seconds in hundredths."""

COPIED_BYTES = 2**29
"""Bytes copied to measure the memory's bandwidth: far more than any cache holds."""


def subjects_at_once(data: Data, n_lesions: int) -> int:
    """Count the connectome subjects that a job hands to `kernels.add_fisher_z` in one call."""
    return LocalPass(FunctionalNetworkMapping(data.store()), UNLIMITED).plan(n_lesions, None).n_together


class Arithmetic:
    """All that is computed of some connectome subjects and lesions, and the parts of it."""

    def __init__(self, data: Data, rows: Rows) -> None:
        self.rows = rows
        self.n_lesions, self.n_voxels = len(rows[0]) - 1, data.grid.n_voxels
        subjects = data.read_subjects(subjects_at_once(data, self.n_lesions))
        self.n_subjects = len(subjects)
        self.series = [subject.series for subject in subjects]
        self.scale = [subject.scale for subject in subjects]
        self.sd = [subject.sd for subject in subjects]
        self.sums = np.zeros((2, self.n_lesions, self.n_voxels))

    def seeds(self) -> list[Array]:
        """Average each subject's signal over the lesions."""
        return [kernels.seeds(*self.rows, *subject) for subject in zip(self.series, self.scale, self.sd, strict=True)]

    def add_fisher_z(self, seeds: list[Array]) -> None:
        """Correlate, transform, and add to both moments."""
        kernels.add_fisher_z(seeds, self.series, self.scale, *self.sums)

    def seconds(self, n_threads: int = N_THREADS) -> float:
        """Time all of it, for one subject."""
        with kernels.threads(n_threads):
            return seconds(lambda: self.add_fisher_z(self.seeds())) / self.n_subjects


def measure(data: Data) -> Iterator[Figure]:
    """Measure the kernels, and the machine's limits."""
    yield from against_sgemm(data)
    yield from large_lesions(data)
    yield from threads(data)
    yield from against_reference(data)
    yield bandwidth()


def sgemm_seconds(n_lesions: int, n_voxels: int) -> partial[float]:
    """Make a measurement of the bare product, in float32, on as many threads as the kernels have."""
    rng = np.random.default_rng(1)
    seeds = rng.standard_normal((n_lesions, N_TIMEPOINTS), dtype=np.float32)
    series = rng.standard_normal((N_TIMEPOINTS, n_voxels), dtype=np.float32)
    product = np.zeros((n_lesions, n_voxels), np.float32)
    return partial(seconds, lambda: np.dot(seeds, series, product), N_THREADS)


def against_sgemm(data: Data) -> Iterator[Figure]:
    """Compare all that follows the seeds with the product, which any way of correlating has to compute."""
    for n_lesions, limit in LIMITS.items():
        arithmetic = Arithmetic(data, data.lesion_rows(n_lesions))
        sgemm = sgemm_seconds(n_lesions, data.grid.n_voxels)
        seeds = arithmetic.seeds()

        def kernel(arithmetic: Arithmetic = arithmetic, seeds: list[Array] = seeds) -> float:
            with kernels.threads(N_THREADS):
                return seconds(partial(arithmetic.add_fisher_z, seeds)) / arithmetic.n_subjects

        took = medians({"kernel": kernel, "sgemm": sgemm}, at_least_seconds=5)
        yield Figure("kernel_over_sgemm", took["kernel"] / took["sgemm"], f"{n_lesions}", at_most=limit)
        yield Figure("kernel_milliseconds", 1000 * took["kernel"], f"{n_lesions}", note="a connectome subject")
        yield Figure("sgemm_milliseconds", 1000 * took["sgemm"], f"{n_lesions}", note="a connectome subject")
        flops = 2 * n_lesions * N_TIMEPOINTS * data.grid.n_voxels
        yield Figure("sgemm_gflops", flops / took["sgemm"] / 1e9, f"{n_lesions}")


def large_lesions(data: Data) -> Iterator[Figure]:
    """Compare the seeds of large, overlapping lesions with what follows them."""
    rows = data.lesion_rows(500, LARGE_RADII_MM)
    arithmetic = Arithmetic(data, rows)
    seeds = arithmetic.seeds()
    with kernels.threads(N_THREADS):
        took = medians(
            {
                "seeds": partial(seconds, arithmetic.seeds),
                "correlation": partial(seconds, partial(arithmetic.add_fisher_z, seeds)),
            }
        )
    yield Figure("seeds_over_correlation", took["seeds"] / took["correlation"], at_most=0.25)
    note = f"500 lesions of {len(rows[1]) / 500:.0f} voxels on average"
    yield Figure("seeds_milliseconds", 1000 * took["seeds"] / arithmetic.n_subjects, note=note)


def threads(data: Data) -> Iterator[Figure]:
    """Compare two threads with one."""
    arithmetic = Arithmetic(data, data.lesion_rows(100))

    def several(n_threads: int) -> None:
        with kernels.threads(n_threads):
            for _ in range(THREADS_REPEATS):
                arithmetic.add_fisher_z(arithmetic.seeds())

    several(2)
    rounds = [(undisturbed(partial(several, 1)), undisturbed(partial(several, 2))) for _ in range(MIN_ROUNDS)]
    speedup = median(one.seconds / two.seconds for one, two in rounds)
    others = max(timed.others for both in rounds for timed in both)
    note = f"others had up to {100 * others:.0f} % of the processors"
    yield Figure("speedup_2_threads", speedup, at_least=1.8, note=note)
    for case, times in zip(("1", "2"), zip(*rounds, strict=True), strict=True):
        used = median(timed.processors for timed in times)
        yield Figure("processors_used", used, case, note="processor-seconds over wall")


def against_reference(data: Data) -> Iterator[Figure]:
    """Compare with the definition in NumPy, which is in float64 and written to be read."""
    n_lesions = 20
    arithmetic = Arithmetic(data, data.lesion_rows(n_lesions))
    starts, voxels, row_weights = arithmetic.rows
    weights = np.zeros((n_lesions, arithmetic.n_voxels))
    weights[np.repeat(np.arange(n_lesions), np.diff(starts)), voxels] = row_weights
    series, scale, sd = arithmetic.series[0], arithmetic.scale[0], arithmetic.sd[0]

    def define() -> None:
        seeds = reference.seeds(weights, series, scale, sd)
        reference.add_fisher_z([seeds], [series], [scale], *arithmetic.sums)

    took = medians({"kernel": arithmetic.seconds, "reference": partial(seconds, define, N_THREADS)}, rounds=3)
    yield Figure("reference_over_kernel", took["reference"] / took["kernel"], "20")


def bandwidth() -> Figure:
    """Measure how fast memory is copied, each byte read once and written once."""
    source, target = np.ones(COPIED_BYTES, np.uint8), np.zeros(COPIED_BYTES, np.uint8)
    parts = [slice(i * COPIED_BYTES // N_THREADS, (i + 1) * COPIED_BYTES // N_THREADS) for i in range(N_THREADS)]
    with ThreadPoolExecutor(N_THREADS) as pool:

        def copy() -> None:
            list(pool.map(np.copyto, (target[part] for part in parts), (source[part] for part in parts)))

        took = medians({"copy": partial(seconds, copy)})["copy"]
    return Figure("memory_gigabytes_per_second", 2 * COPIED_BYTES / took / 1e9, note="read and written by a copy")
