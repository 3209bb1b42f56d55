"""The tasks that run on a Dask worker: open the analysis, map a slice, merge, save, and cut parts to send."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from dask.sizeof import sizeof
from distributed import get_worker
from filelock import FileLock

from bids_lacuna import kernels
from bids_lacuna._version import __version__
from bids_lacuna.mapping import Accumulator, Analysis, Part
from bids_lacuna.runtime.checkpoint import read_slice, save_slice
from bids_lacuna.runtime.memory import give_back_freed_memory, memory_budget, resident_bytes
from bids_lacuna.runtime.plan import BatchPlan
from bids_lacuna.weights import Rows

Array = np.ndarray

_kernel = Lock()
"""Held while kernels run in this process: each kernel uses all threads of its worker."""


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker reports to the client."""

    host: str
    n_threads: int
    """Threads of its kernels."""
    resident_bytes: int
    """Memory that its process occupies, with the kernels compiled."""
    available_bytes: int
    """Memory that its machine, container or scheduler grants, including what the process occupies."""
    limit_bytes: int | None
    """Dask's memory limit, if any."""


@dataclass(eq=False)
class WorkerState:
    """The open analysis and the current batch; it never leaves its worker."""

    analysis: Analysis
    n_threads: int
    rows: Rows | None = None
    plan: BatchPlan | None = None
    """How many connectome subjects are read ahead and added together."""
    _subjects: Generator[Any, None, None] | None = None
    _upcoming: int = 0

    def empty(self) -> Accumulator:
        """Make an accumulator of no connectome subject."""
        return self.analysis.new_accumulator(self._batch()[0])

    def map(self, first: int, stop: int) -> Accumulator:
        """Add the connectome subjects of one slice."""
        accumulator, (rows, _) = self.empty(), self._batch()
        with _kernel, kernels.threads(self.n_threads):
            for group in self._groups(first, stop):
                self.analysis.add(group, rows, accumulator)
                del group
        return accumulator

    @property
    def hashes(self) -> Mapping[str, str]:
        """The key of each row, with the SHA-256 of its weights."""
        return self._batch()[0].hashes

    def _batch(self) -> tuple[Rows, BatchPlan]:
        if self.rows is None or self.plan is None:
            raise RuntimeError("this worker has no batch yet")
        return self.rows, self.plan

    def _groups(self, first: int, stop: int) -> Iterator[list[Any]]:
        """Yield connectome subjects in groups; reading ahead continues from the slice before."""
        _, plan = self._batch()
        if self._subjects is None or first != self._upcoming:
            if self._subjects:
                self._subjects.close()
            self._subjects = self.analysis.subjects(first, plan.n_ahead, plan.keep_cached)
        self._upcoming = -1
        while group := list(islice(self._subjects, min(plan.n_together, stop - first))):
            first += len(group)
            yield group
            # Free this group before the next one is in memory.
            del group
        self._upcoming = stop


def count_bytes_of(kind: type[Accumulator]) -> None:
    """Register with Dask how much memory accumulators of a class occupy."""
    sizeof.register(kind)(lambda accumulator: int(accumulator.nbytes))


def open_analysis(
    opener: Callable[[], Analysis], version: str, n_threads: int | None
) -> tuple[WorkerState, WorkerInfo]:
    """Open the analysis on a worker.

    Raises
    ------
    ValueError
        The version or the connectome differs from the client's, or cannot be opened; the message names the host.
    """
    host = socket.gethostname()
    if version != __version__:
        raise ValueError(f"{host} has version {__version__} of bids-lacuna, the client {version}: install the same")
    try:
        analysis = opener()
    except (OSError, ValueError) as error:
        raise ValueError(f"{host} cannot open the connectome: {error}") from error
    give_back_freed_memory()
    worker = get_worker()
    n_threads = min(n_threads or worker.state.nthreads, worker.state.nthreads)
    with _kernel, _compiling_alone(host):
        analysis.prepare(n_threads)
    limit_bytes = worker.memory_manager.memory_limit
    info = WorkerInfo(host, n_threads, resident_bytes(), memory_budget().available_bytes, limit_bytes)
    return WorkerState(analysis, n_threads), info


@contextmanager
def _compiling_alone(host: str) -> Iterator[None]:
    """Let one worker per host compile: the others find its result in the cache, if there is one."""
    with ExitStack() as stack:
        # The disk may be full or read-only, or have no locks.
        with suppress(KeyError, OSError, NotImplementedError):
            stack.enter_context(FileLock(Path(os.environ["NUMBA_CACHE_DIR"]) / f"compiling-{host}.lock"))
        yield


def set_batch(
    state: WorkerState, keys: tuple[str, ...], starts: Array, pieces: Sequence[Sequence[Array]], plan: BatchPlan
) -> WorkerState:
    """Return the state with a batch: its rows, whose voxels and weights come in pieces, and the plan."""
    voxels, weights = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return replace(state, rows=Rows(keys, starts, voxels, weights), plan=plan, _subjects=None)


def map_slice(state: WorkerState, first: int, stop: int) -> Accumulator:
    """Map the batch in the connectome subjects of one slice."""
    accumulator = state.map(first, stop)
    count_bytes_of(type(accumulator))
    return accumulator


class DamagedCheckpoint(Exception):  # noqa: N818
    """A saved node cannot be read; its slices are mapped again."""


def load_sums(state: WorkerState, path: Path) -> Accumulator:
    """Read the sums that `save_sums` saved."""
    accumulator = state.empty()
    try:
        read_slice(path, state.hashes, accumulator)
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(str(error)) from error
    return accumulator


def save_sums(
    state: WorkerState, accumulator: Accumulator, folder: Path, identity: Mapping[str, str], first: int, stop: int
) -> Path:
    """Save sums from the worker that holds them."""
    return save_slice(folder, identity, state.hashes, accumulator, first, stop)


def cut(state: WorkerState, accumulator: Accumulator, index: int, n_messages: int) -> list[Part]:  # noqa: ARG001
    """Cut one of several messages out of the sums: an equal part of each block."""
    cuts = ((n, block, len(block)) for n, block in enumerate(accumulator.blocks()))
    return [
        (n, length * index // n_messages, block[length * index // n_messages : length * (index + 1) // n_messages])
        for n, block, length in cuts
    ]


def merge(state: WorkerState, accumulator: Accumulator, other: Accumulator | Sequence[Sequence[Part]]) -> Accumulator:
    """Add other connectome subjects' sums in place: from this worker, or in messages from another.

    If the worker is lost meanwhile, both halves are lost with it, so a half-finished sum is never used.
    """
    if not isinstance(other, (list, tuple)):
        whole = [(index, 0, block) for index, block in enumerate(other.blocks())]  # type: ignore[union-attr]
        other = [whole]
    with ThreadPoolExecutor(state.n_threads) as pool:
        merged = [
            pool.submit(accumulator.merge, [part])
            for message in other
            for whole in message
            for part in _split(whole, state.n_threads)
        ]
    for each in merged:
        each.result()
    return accumulator


def _split(part: Part, n: int) -> Iterator[Part]:
    """Split a part among threads."""
    index, first, numbers = part
    size = max(1, -(-len(numbers) // n))
    for start in range(0, len(numbers), size):
        yield index, first + start, numbers[start : start + size]
