"""The Dask workers that can map a connectome, as they come and go."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from threading import Event
from typing import Any

from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin
from distributed.comm.core import CommClosedError

from bids_lacuna._version import __version__
from bids_lacuna.cluster.worker import WorkerInfo, open_analysis
from bids_lacuna.files import read_json_object
from bids_lacuna.mapping import Analysis, NoWorker, PassStopped

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Seconds between looks for new and lost workers."""

WRITING_S = 30.0
"""Seconds to wait for the rest of a scheduler file."""

PATIENCE_S = 300.0
"""Seconds that a run waits while there is no worker."""

NOTICE_S = 10.0
"""Seconds after which a client has noticed that its scheduler is gone."""

GONE = "the Dask scheduler is gone"


@contextmanager
def connect(scheduler: str | None, n_workers: int | None, n_threads: int) -> Iterator[Client]:
    """Connect to a Dask cluster, or start one on this machine.

    Parameters
    ----------
    scheduler
        Its address, or the path of its scheduler file.
    n_workers
        Worker processes of a cluster on this machine, used without a scheduler.
    n_threads
        Threads of all workers of this machine's cluster together.

    Raises
    ------
    PassStopped
        No scheduler answers, or workers cannot start on this machine.
    """
    with _quiet():
        if scheduler is None:
            cluster = _start_cluster(n_workers, n_threads)
            target: dict[str, Any] = {"address": cluster}
        else:
            cluster = None
            target = {"address": scheduler if "://" in scheduler else _await_address(_await_file(scheduler))}
        try:
            client = Client(**target, set_as_default=False)
        except (OSError, ValueError) as error:
            raise PassStopped(f"no Dask scheduler answers at {scheduler} ({error})") from error
        try:
            if cluster is not None:
                client.register_plugin(_IgnoreInterrupt())
            logger.info("Dask dashboard: %s", client.dashboard_link)
            yield client
        finally:
            with suppress(Exception):
                client.close(timeout=2)
            if cluster is not None:
                cluster.close()


def _start_cluster(n_workers: int | None, n_threads: int) -> LocalCluster:
    """Start worker processes on this machine."""
    try:
        # Dask's own error for a lock that cannot be made does not name the cause.
        get_context("spawn").Lock()
    except (OSError, ImportError) as error:
        raise PassStopped(
            f"Dask's workers need shared memory, which this machine does not provide ({error}): make /dev/shm "
            "writable, or leave out --dask-workers, since one process uses all processors as well"
        ) from error
    # The plan bounds the memory of all workers together; a limit per worker would only get in its way.
    return LocalCluster(
        n_workers=n_workers,
        threads_per_worker=max(1, n_threads // (n_workers or 1)),
        memory_limit=0,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    )


def _await_file(path: str) -> Path:
    """Wait until a scheduler has begun to write its file; Dask would wait for ever."""
    deadline = time.monotonic() + PATIENCE_S
    while not Path(path).exists():
        if re.fullmatch(r"[^/]+:\d+", path) or time.monotonic() > deadline:
            raise PassStopped(f"there is no scheduler file {path}; an address is written as tcp://host:8786")
        time.sleep(POLL_S)
    return Path(path)


def _await_address(path: Path) -> str:
    """Wait until a scheduler has written all of its file, and return its address."""
    deadline = time.monotonic() + WRITING_S
    while True:
        try:
            return str(read_json_object(path)["address"])
        except (KeyError, OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise PassStopped(
                    f"the scheduler file {path} has no scheduler's address ({error}): start the scheduler anew"
                ) from error
        time.sleep(POLL_S)


class _IgnoreInterrupt(WorkerPlugin):
    """Ignore Ctrl-C on this machine's workers: the terminal sends it to them, too, and they have to save first."""

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        """Ignore SIGINT."""
        signal(SIGINT, SIG_IGN)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's log of each lost connection: this package reports the consequence in one sentence."""
    # Dask gives several of its loggers levels of their own.
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("distributed", "tornado")]
    theirs = [logging.getLogger(name) for name in names]
    before = [each.level for each in theirs]
    for each in theirs:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in zip(theirs, before, strict=True):
            each.setLevel(level)


@contextmanager
def reporting_a_lost_scheduler(client: Client) -> Iterator[None]:
    """Raise PassStopped in place of any error that occurs after the scheduler is gone."""
    try:
        yield
    except PassStopped:
        raise
    except Exception as error:
        # The client notices that the scheduler is gone a moment after the first message that fails.
        deadline = time.monotonic() + NOTICE_S
        while isinstance(error, CommClosedError) and client.status == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        if client.status != "running":
            raise PassStopped(GONE) from error
        raise


class WorkerPool:
    """The workers that have opened the connectome."""

    def __init__(self, client: Client, analysis: Analysis, n_threads: int | None) -> None:
        self.client = client
        self.states: dict[str, Future[Any]] = {}
        """Each worker's `WorkerState`, by the worker's address."""
        self.infos: dict[str, WorkerInfo] = {}
        self.reasons: dict[str, str] = {}
        """Why a worker is left out, by its address."""
        self._joining: dict[str, tuple[Future[Any], Future[Any], Future[Any]]] = {}
        """The task that opens the analysis, and both parts of its result."""
        self._polled_at = 0.0
        self._present: set[str] = set()
        self._lost: set[str] = set()
        """Workers that are lost, and not reported yet."""
        self._something_done = Event()
        self._open = partial(open_analysis, analysis.opener(), __version__, n_threads)

    def submit(self, address: str, task: Callable[..., Any], *args: Any, priority: int = 0) -> Future[Any]:
        """Submit a task to one worker and no other."""
        future = self.client.submit(
            task, *args, workers=[address], allow_other_workers=False, pure=False, priority=priority
        )
        future.add_done_callback(lambda _: self._something_done.set())
        return future

    def pause(self) -> None:
        """Wait until a task is done, for up to `POLL_S`."""
        self._something_done.wait(POLL_S)
        self._something_done.clear()

    @property
    def is_empty(self) -> bool:
        """Whether no worker can map, and none is opening the connectome."""
        return not (self.states or self._joining)

    def poll(self) -> set[str]:
        """Look for new workers, and return the addresses of lost ones."""
        if self.client.status != "running":
            raise PassStopped(GONE)
        if time.monotonic() - self._polled_at >= POLL_S:
            self._polled_at = time.monotonic()
            self._present = set(self.client.nthreads())
            for address in self._present - {*self.states, *self._joining, *self.reasons}:
                opened = self.submit(address, self._open)
                self._joining[address] = (
                    opened,
                    self.submit(address, _first_of, opened),
                    self.submit(address, _second_of, opened),
                )
        for address, (opened, state, info) in list(self._joining.items()):
            # What depends on a task that the scheduler could not even unpickle is never done.
            if info.done() or opened.status == "error" or address not in self._present:
                del self._joining[address]
                self._add(address, state, opened if opened.status == "error" else info)
        for address in self.states.keys() - self._present:
            logger.warning("the Dask worker %s on %s is lost", address, self.infos[address].host)
            self._remove(address)
            self._lost.add(address)
        lost, self._lost = self._lost, set()
        return lost

    def wait_for(self, future: Future[Any], address: str) -> Any:
        """Wait for the result of a worker's task; return None if the worker is lost, which `poll` still reports."""
        # Future.result with a timeout would begin a transfer that takes longer anew each time.
        transfer = asyncio.run_coroutine_threadsafe(
            self.client.gather(future, asynchronous=True),
            self.client.loop.asyncio_loop,  # type: ignore[union-attr]
        )
        transfer.add_done_callback(lambda _: self._something_done.set())
        while address in self.states:
            self.pause()
            self._lost = self.poll()
            if transfer.done():
                with suppress(CancelledError):
                    return transfer.result()
        transfer.cancel()
        return None

    def _add(self, address: str, state: Future[Any], info: Future[Any]) -> None:
        if info.status == "finished":
            self.states[address], self.infos[address] = state, info.result(timeout=PATIENCE_S)
        elif info.status == "error":
            self.leave_out(address, " ".join(str(info.exception()).split()))

    def check_patience(self, idle_since: float) -> None:
        """Raise PassStopped if the pool has been empty for `PATIENCE_S`; `idle_since` is a monotonic time."""
        if self.is_empty and time.monotonic() - idle_since > PATIENCE_S:
            why = next(iter(self.reasons.values()), "all are lost")
            raise PassStopped(f"no Dask worker is left ({why}), and none has come in {PATIENCE_S:.0f} s")

    def leave_out(self, address: str, reason: str) -> None:
        """Use a worker no more."""
        logger.warning("the Dask worker %s is left out: %s", address, reason)
        self._remove(address)
        self.reasons[address] = reason

    def _remove(self, address: str) -> None:
        self.states.pop(address, None)
        self.infos.pop(address, None)

    def wait_for_workers(self) -> None:
        """Wait until all present workers have answered, and at least one can map.

        Raises
        ------
        NoWorker
            None of the present workers can map.
        PassStopped
            No worker is present.
        """
        deadline = time.monotonic() + PATIENCE_S
        self._polled_at = 0.0
        self.poll()
        while self._joining or not self.states:
            if not self._joining and self.reasons:
                raise NoWorker(f"no Dask worker can map: {next(iter(self.reasons.values()))}")
            if time.monotonic() > deadline and not self._joining:
                raise PassStopped(f"no Dask worker has come within {PATIENCE_S:.0f} s")
            self.pause()
            self.poll()


def _first_of(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _second_of(pair: tuple[Any, Any]) -> Any:
    return pair[1]
