"""How much faster each kernel is than its definition in NumPy, and what caching its compiled code saves.

Run it with `make bench`. Both are timed in turn in one run, so that the ratio holds where the machine's speed drifts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

from bids_lacuna import kernels, reference

N_VOXELS, N_TIMEPOINTS, LESION_SIZE, ROUNDS = 60_000, 120, 3_000, 5

COMPILE = """
import time
from bids_lacuna import kernels
start = time.perf_counter()
kernels.compile_for("float32", ["float32"])
print(time.perf_counter() - start)
"""


def milliseconds(function: Callable[[], object]) -> float:
    """Time one call, after the threads of the call before it have gone to sleep."""
    time.sleep(0.2)
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def compare(name: str, fast: Callable[[], object], plain: Callable[[], object]) -> None:
    """Time a kernel and its definition in turn, and print a row."""
    fast_ms, plain_ms = [], []
    for _ in range(ROUNDS):
        # The kernels are called with BLAS on one thread, since they have threads of their own.
        with threadpool_limits(1, user_api="blas"):
            fast_ms.append(milliseconds(fast))
        plain_ms.append(milliseconds(plain))
    print(f"{name:28}{median(fast_ms):10.1f}{median(plain_ms):10.1f}{median(plain_ms) / median(fast_ms):10.1f}")


def main() -> None:
    """Print one row for each kernel and number of lesions, and the time to compile."""
    rng = np.random.default_rng(1)
    timeseries = (1000 + rng.standard_normal((N_TIMEPOINTS, N_VOXELS))).astype(np.float32)
    print(f"{N_VOXELS} voxels x {N_TIMEPOINTS} timepoints, medians of {ROUNDS}, on {os.cpu_count()} processors")
    print(f"{'':28}{'numba ms':>10}{'NumPy ms':>10}{'ratio':>10}")
    one_run = np.array([0, N_TIMEPOINTS])
    compare(
        "standardize", lambda: kernels.standardize(timeseries, one_run), lambda: reference.standardize(timeseries)
    )
    standardized = kernels.standardize(timeseries, one_run)
    series, scale, _ = standardized
    compare("quantize", lambda: kernels.quantize(series), lambda: reference.quantize(series))
    for n_lesions in (1, 20, 100):
        voxels = np.concatenate([rng.choice(N_VOXELS, LESION_SIZE, replace=False) for _ in range(n_lesions)])
        weights = np.zeros((n_lesions, N_VOXELS))
        weights[np.repeat(np.arange(n_lesions), LESION_SIZE), voxels] = 1
        rows = (np.arange(n_lesions + 1) * LESION_SIZE, voxels.astype(np.int32), np.ones(len(voxels), np.float32))
        sums = np.zeros((2, n_lesions, N_VOXELS))
        seeds = kernels.seeds(*rows, *standardized)
        compare(
            f"seeds, {n_lesions} lesions",
            lambda rows=rows: kernels.seeds(*rows, *standardized),
            lambda weights=weights: reference.seeds(weights, *standardized),
        )
        compare(
            f"add_fisher_z, {n_lesions} lesions",
            lambda seeds=seeds, sums=sums: kernels.add_fisher_z([seeds], [series], [scale], *sums),
            lambda seeds=seeds, sums=sums: reference.add_fisher_z([seeds], [series], [scale], *sums),
        )
    with tempfile.TemporaryDirectory() as cache:
        command, environ = [sys.executable, "-c", COMPILE], os.environ | {"NUMBA_CACHE_DIR": cache}
        cold, warm = (
            float(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
            for _ in range(2)
        )
    print(f"compiling takes {cold:.1f} s, loading what was compiled {warm:.2f} s")


if __name__ == "__main__":
    main()
