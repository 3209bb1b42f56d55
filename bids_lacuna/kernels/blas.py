"""The number of threads of BLAS, which the whole process has in common."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


class _ProcessLimit:
    """One thread per BLAS call in the whole process, from the first of several blocks until the last one ends.

    A thread of its own sets and restores the limit: threadpoolctl lets only one living thread change it (3.8), and
    the block that ends last may be on another thread than the one that began first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_blocks = 0
        self._keeper: threading.Thread | None = None
        self._over = threading.Event()

    def __enter__(self) -> None:
        """Set the limit for the first block."""
        with self._lock:
            if not self._n_blocks:
                is_set, self._over = threading.Event(), threading.Event()
                self._keeper = threading.Thread(
                    target=self._keep, args=(is_set, self._over), name="blas", daemon=True
                )
                self._keeper.start()
                is_set.wait()
            self._n_blocks += 1

    def __exit__(self, *_: object) -> None:
        """Restore the original numbers of threads after the last block."""
        with self._lock:
            self._n_blocks -= 1
            if self._keeper is not None and not self._n_blocks:
                self._over.set()
                self._keeper.join()

    @staticmethod
    def _keep(is_set: threading.Event, over: threading.Event) -> None:
        try:
            with threadpool_limits(1, user_api="blas"):
                is_set.set()
                over.wait()
        finally:
            is_set.set()


_process_limit = _ProcessLimit()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread until the block ends; blocks may overlap on several threads.

    With limits of their own, the first block to end would lift the limit for the others, and the last one would
    restore the limit of another block instead of the original number of threads.
    """
    # A BLAS built on OpenMP has a limit for each calling thread.
    with _process_limit, threadpool_limits(1, user_api="blas"):
        yield
