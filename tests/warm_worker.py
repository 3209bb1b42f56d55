"""One worker process for all builds of a test session: starting one takes a second, a build of little data none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bids_lacuna.connectome import workers


class WarmWorker:
    """Starts the process for the first build, and gives every build a pool that leaves the process running."""

    def __init__(self) -> None:
        self.executor: ProcessPoolExecutor | None = None
        self.start = workers.processes

    @contextmanager
    def processes(self, job: workers.Job, n_processes: int) -> Iterator[Any]:
        """Replace `workers.processes`; a build with several processes has its own."""
        if n_processes > 1:
            with self.start(job, n_processes) as pool:
                yield pool
            return
        pool = _Pool(self, job)
        try:
            yield pool
        finally:
            for future in pool.futures:
                future.cancel()
            wait(pool.futures)

    def submit(self, *task: Any) -> Future[Any]:
        """Run a task in the process."""
        if self.executor is None:
            self.executor = ProcessPoolExecutor(1, get_context("spawn"))
        return self.executor.submit(*task)

    def stop(self) -> None:
        """End the process."""
        if self.executor is not None:
            self.executor.shutdown()


class _Pool:
    """A build's pool."""

    def __init__(self, worker: WarmWorker, job: workers.Job) -> None:
        self.worker = worker
        self.job = job
        self.futures: list[Future[Any]] = []

    def submit(self, function: Callable[[int], Any], index: int) -> Future[Any]:
        """Have one subject written."""
        circumstances = Path.cwd(), os.geteuid()
        self.futures.append(self.worker.submit(_in_job, self.job, circumstances, function, index))
        return self.futures[-1]


def _in_job(job: workers.Job, circumstances: tuple[Path, int], function: Callable[[int], Any], index: int) -> Any:
    """Do what a new worker of this job would do, in the folder and as the user of its parent."""
    workers._job = job
    folder, user = circumstances
    os.chdir(folder)
    before = os.geteuid()
    if user != before:
        os.seteuid(user)
    try:
        return function(index)
    finally:
        if user != before:
            os.seteuid(before)
