"""Spawned worker processes, prepared in one way for whoever starts them."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from multiprocessing import parent_process

from threadpoolctl import threadpool_limits

from bids_lacuna.runtime.memory import give_back_freed_memory

THREAD_VARIABLES = (
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Environment variables that BLAS libraries read when they are loaded."""


def prepare_worker(niceness: int = 0) -> None:
    """Prepare a spawned process to work for the process that started it.

    The worker leaves signals to its parent, ends when its parent ends, computes in one thread, and returns freed
    memory to the system. Call this in the worker, as or in the initializer of a process pool.

    Parameters
    ----------
    niceness
        Added to the worker's own niceness: above 0, other processes come first.
    """
    # Terminals and schedulers signal the whole group of processes; the parent decides what becomes of the work.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(niceness)
    # There is a worker for each processor; and one thread adds in the same order each time.
    os.environ |= dict.fromkeys(THREAD_VARIABLES, "1")
    threadpool_limits(1)
    give_back_freed_memory()


def _end_with_parent() -> None:
    """End this process when its parent is killed, which a pool alone would never notice."""
    parent = parent_process()
    if parent is not None:
        with suppress(OSError):
            parent.join()
        os._exit(1)
