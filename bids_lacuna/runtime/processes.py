"""Spawned worker processes, prepared in one way for whoever starts them."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context, parent_process
from typing import Any

from threadpoolctl import threadpool_limits

from bids_lacuna.runtime.memory import give_back_freed_memory

logger = logging.getLogger(__name__)

THREAD_VARIABLES = (
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Environment variables that BLAS libraries read when they are loaded."""


def start_pool(n_workers: int, initializer: Callable[..., None], *arguments: Any) -> Executor:
    """Make a pool of spawned processes, or of one thread where the system has no shared memory for their locks.

    Parameters
    ----------
    initializer, arguments
        Called in each process before its first task; it calls `prepare_worker`.
    """
    try:
        # Not forked: a fork would share the locks and the memory of this process.
        return ProcessPoolExecutor(n_workers, get_context("spawn"), initializer, arguments)
    # Without semaphores, an import fails; containers and jobs may have no /dev/shm, or one that is full.
    except (OSError, ImportError, NotImplementedError) as error:
        logger.warning(
            "there is no shared memory for worker processes (%s): working in this process alone; make /dev/shm "
            "writable for more speed",
            error,
        )
        return ThreadPoolExecutor(1, "worker", initializer, arguments)


def prepare_worker(niceness: int = 0) -> None:
    """Prepare a spawned process to work for the process that started it.

    The worker leaves signals to its parent, ends when its parent ends, computes in one thread, and returns freed
    memory to the system. Call this in the worker, as or in the initializer of a process pool.

    Parameters
    ----------
    niceness
        Added to the worker's own niceness: above 0, other processes come first.
    """
    if parent_process() is None:
        # A thread in place of a process: see `start_pool`.
        threadpool_limits(1)
        return
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
