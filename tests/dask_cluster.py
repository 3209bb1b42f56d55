"""A Dask cluster of real processes, to which a test adds workers, and whose workers it kills."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from distributed import Client

ROOT = Path(__file__).parents[1]

DEADLINE_S = 120.0
"""Seconds after which a test stops waiting for a process."""


def wait_until(condition: Callable[[], object], every_s: float = 0.02) -> None:
    """Wait until a condition holds; fail after `DEADLINE_S`."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened within {DEADLINE_S:.0f} s"
        time.sleep(every_s)


class Cluster:
    """A scheduler and workers of one thread, each in its own process."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.file = folder / "scheduler.json"
        self.folder = folder
        self.scheduler = self.start("scheduler", "--port", "0", "--scheduler-file", str(self.file), *options)
        self.workers: list[subprocess.Popen[str]] = []
        wait_until(lambda: self.file.exists() or self.scheduler.poll() is not None)
        assert self.scheduler.poll() is None
        self.client = Client(scheduler_file=str(self.file), set_as_default=False)

    def start(
        self, kind: str, *options: str, cwd: Path | None = None, prefix: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start one of Dask's processes."""
        command = [*prefix, sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *options]
        environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return subprocess.Popen(
            command,
            cwd=cwd or self.folder,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def add_worker(self, cwd: Path | None = None, prefix: Sequence[str] = ()) -> None:
        """Start a worker, without waiting until it has joined."""
        options = ("--no-nanny", "--nthreads", "1", "--memory-limit", "0", "--death-timeout", "60")
        started = self.start("worker", self.client.scheduler.address, *options, cwd=cwd, prefix=prefix)
        self.workers.append(started)

    def have(self, n_workers: int) -> Client:
        """Start or kill workers until there are so many, and return the client."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) > n_workers:
            self.workers[-1].kill()
            self.workers.pop().wait()
        while len(self.workers) < n_workers:
            self.add_worker()
        wait_until(lambda: len(self.client.nthreads()) == n_workers)
        return self.client

    def kill_one(self) -> None:
        """Kill the oldest worker."""
        worker = self.workers.pop(0)
        worker.kill()
        worker.wait()

    def stop(self) -> None:
        """End all processes."""
        with suppress(Exception):
            self.client.close(timeout=1)
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@contextmanager
def started(folder: Path, *options: str) -> Iterator[Cluster]:
    """Start a cluster, and stop it after the block."""
    cluster = Cluster(folder, *options)
    try:
        yield cluster
    finally:
        cluster.stop()
