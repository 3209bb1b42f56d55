"""Spawned worker processes, each a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pytest
from program import wait_until

from bids_lacuna.runtime.processes import prepare_worker

NICENESS = 3


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    """Start a pool with one prepared worker."""
    with ProcessPoolExecutor(1, get_context("spawn"), partial(prepare_worker, NICENESS)) as pool:
        yield pool


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_are_left_to_the_parent(worker: ProcessPoolExecutor, number: int) -> None:
    """A worker continues to work after signals that terminals and schedulers send to groups of processes."""
    pid = worker.submit(os.getpid).result()
    os.kill(pid, number)
    time.sleep(0.1)
    assert worker.submit(os.getpid).result() == pid


def test_the_worker_is_nice(worker: ProcessPoolExecutor) -> None:
    """The worker's niceness is its parent's and what was asked for."""
    assert worker.submit(os.nice, 0).result() == min(os.nice(0) + NICENESS, 19)


LOAD_BLAS = """
import sys
from threadpoolctl import threadpool_info
assert "numpy" in sys.modules
assert "scipy" not in sys.modules
import scipy.linalg
assert all(pool["num_threads"] == 1 for pool in threadpool_info())
"""
"""A function of this module would have the worker import SciPy to find it, before the worker is prepared."""


def test_blas_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS computes in one thread, whether it is loaded before (NumPy's) or after (SciPy's) the preparation."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    with ProcessPoolExecutor(1, get_context("spawn"), prepare_worker) as pool:
        pool.submit(exec, LOAD_BLAS).result()


def grow_by_freed_arrays() -> int:
    """Allocate and free many arrays of 8 MiB; return by how many bytes the process has grown."""
    process = psutil.Process()
    # glibc adapts its limit for memory that it keeps to the first large block that is freed.
    np.ones(2**20)
    before = process.memory_info().rss
    arrays = [np.ones(2**20) for _ in range(20)]
    last = np.ones(2**16)
    arrays.clear()
    after = process.memory_info().rss
    del last
    return after - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has the setting")
def test_freed_memory_returns_to_the_system(worker: ProcessPoolExecutor) -> None:
    """Arrays of 160 MiB in all leave the process as large as before when they are freed."""
    assert worker.submit(grow_by_freed_arrays).result() < 8 * 2**20


KEEP_A_WORKER_BUSY = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bids_lacuna.runtime.processes import prepare_worker

with ProcessPoolExecutor(1, get_context("spawn"), prepare_worker) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""


def test_the_worker_ends_with_its_parent() -> None:
    """When the parent is killed, its worker ends in the midst of its work."""
    with subprocess.Popen([sys.executable, "-c", KEEP_A_WORKER_BUSY], stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    try:
        # Where nobody collects orphans, as in some containers, a process that has ended stays a zombie.
        with suppress(psutil.NoSuchProcess):
            wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 0.05)
    finally:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


IN_THIS_PROCESS = """
import logging, os
from bids_lacuna.runtime.processes import prepare_worker, start_pool
logging.basicConfig(format="%(message)s")
if __name__ == "__main__":
    with start_pool(2, prepare_worker) as pool:
        assert pool.submit(os.getpid).result() == os.getpid()
"""

WITHOUT_SHARED_MEMORY = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
"""Runs a command where /dev/shm is read-only, as in some containers and jobs."""


def test_without_shared_memory_one_process_works(tmp_path: Path) -> None:
    """Where locks cannot be shared between processes, tasks run in this process, and a warning tells the cause."""
    script = tmp_path / "script.py"
    script.write_text(IN_THIS_PROCESS)
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        WITHOUT_SHARED_MEMORY,
        "sh",
        sys.executable,
        script,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "there is no shared memory for worker processes ([Errno 30]" in done.stderr
    assert "working in this process alone" in done.stderr
