"""The tasks that run on a Dask worker: open the connectome, map a slice, merge, save, and cut blocks to send."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
from bids_lacuna.connectome.connectome import Connectome, ConnectomeSubject
from bids_lacuna.mapping.functional import add_subjects, count_together
from bids_lacuna.runtime.checkpoint import read_slice, save_slice
from bids_lacuna.runtime.memory import give_back_freed_memory, memory_budget, resident_bytes
from bids_lacuna.runtime.plan import SUBJECTS_IN_MEMORY
from bids_lacuna.statistics import LesionStatistics, RunningMoments, count_subjects

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
    """The open connectome and the current batch; it never leaves its worker."""

    connectome: Connectome
    n_threads: int
    rows: tuple[Array, Array, Array] = ()  # type: ignore[assignment]
    """The batch's lesions, as from `mapping.compressed_rows`."""
    lesions: Mapping[str, str] = field(default_factory=dict)
    """The key of each row's lesion, with the SHA-256 of its weights."""
    subjects_in_memory: int = SUBJECTS_IN_MEMORY
    keep_cached: bool = True
    _subjects: Generator[ConnectomeSubject, None, None] | None = None
    _upcoming: int = 0

    @property
    def n_together(self) -> int:
        """Connectome subjects that are mapped together."""
        return count_together(self.connectome, self.subjects_in_memory)

    def no_moments(self) -> RunningMoments:
        """Make moments of no subject."""
        return RunningMoments(len(self.lesions), self.connectome.grid.n_voxels)

    def groups(self, first: int, stop: int) -> Iterator[list[ConnectomeSubject]]:
        """Yield connectome subjects in groups; reading ahead continues from the slice before."""
        if self._subjects is None or first != self._upcoming:
            if self._subjects:
                self._subjects.close()
            n_ahead = self.connectome.n_ahead(self.subjects_in_memory)
            self._subjects = self.connectome.subjects(n_ahead, self.keep_cached, first)
        self._upcoming = -1
        while group := list(islice(self._subjects, min(self.n_together, stop - first))):
            first += len(group)
            yield group
            # Free this group before the next one is in memory.
            del group
        self._upcoming = stop


@sizeof.register(RunningMoments)  # type: ignore[untyped-decorator]
def _size_of_moments(moments: RunningMoments) -> int:
    """Return the bytes that Dask counts for moments."""
    return int(moments.total.nbytes + moments.total_of_squares.nbytes + moments.n_by_voxel.nbytes)


def open_connectome(
    path: Path, name: str, space: str, content_hash: str, version: str, n_threads: int | None
) -> tuple[WorkerState, WorkerInfo]:
    """Open the connectome on a worker and compare it with the client's.

    Raises
    ------
    ValueError
        The version or the connectome differs from the client's, or cannot be opened; the message names the host.
    """
    host = socket.gethostname()
    if version != __version__:
        raise ValueError(f"{host} has version {__version__} of bids-lacuna, the client {version}: install the same")
    try:
        connectome = Connectome.open(path, name=name, space=space)
        found = connectome.content_hash
    except (OSError, ValueError) as error:
        raise ValueError(f"{host} cannot open the connectome: {error}") from error
    if found != content_hash:
        raise ValueError(f"{path} on {host} is another connectome than the client's: give all of them the same")
    give_back_freed_memory()
    worker = get_worker()
    n_threads = min(n_threads or worker.state.nthreads, worker.state.nthreads)
    # One worker per host compiles; the others find its result in the cache.
    compiling = FileLock(Path(os.environ["NUMBA_CACHE_DIR"]) / f"compiling-{host}.lock")
    with _kernel, compiling:
        kernels.compile_for(connectome.series_dtype, connectome.standardized_dtypes, n_threads)
    limit_bytes = worker.memory_manager.memory_limit
    info = WorkerInfo(host, n_threads, resident_bytes(), memory_budget().available_bytes, limit_bytes)
    return WorkerState(connectome, n_threads), info


def set_batch(
    state: WorkerState,
    starts: Array,
    pieces: Sequence[Sequence[Array]],
    lesions: Mapping[str, str],
    subjects_in_memory: int,
    keep_cached: bool,
) -> WorkerState:
    """Return the state with a batch: where each lesion's weights begin, and all weights in pieces."""
    voxels, fractions = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return replace(
        state,
        rows=(starts, voxels, fractions),
        lesions=lesions,
        subjects_in_memory=subjects_in_memory,
        keep_cached=keep_cached,
        _subjects=None,
    )


def map_slice(state: WorkerState, first: int, stop: int) -> RunningMoments:
    """Map the batch in the connectome subjects of one slice."""
    moments = state.no_moments()
    with _kernel, kernels.threads(state.n_threads):
        for group in state.groups(first, stop):
            add_subjects(group, state.rows, moments)
            del group
    return moments


class DamagedCheckpoint(Exception):  # noqa: N818
    """A saved node cannot be read; its slices are mapped again."""


def load_moments(state: WorkerState, path: Path) -> RunningMoments:
    """Read the moments that `save_moments` saved."""
    moments = state.no_moments()
    try:
        read_slice(path, state.lesions, moments)
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(str(error)) from error
    return moments


def save_moments(
    state: WorkerState, moments: RunningMoments, folder: Path, dependencies: Mapping[str, str], first: int, stop: int
) -> Path:
    """Save moments from the worker that holds them."""
    return save_slice(folder, dependencies, state.lesions, moments, first, stop)


def cut(moments: RunningMoments, start: int, stop: int) -> tuple[Any, ...]:
    """Cut one block out of both sums, laid out by lesion and voxel; the first block carries the counts, too."""
    sums = (moments.total.reshape(-1)[start:stop], moments.total_of_squares.reshape(-1)[start:stop])
    return (*sums, moments.n_by_voxel, moments.left_out) if start == 0 else sums


def merge(
    state: WorkerState, moments: RunningMoments, other: RunningMoments | Sequence[tuple[Any, ...]]
) -> RunningMoments:
    """Add other connectome subjects' moments in place: from this worker, or in blocks from another.

    If the worker is lost meanwhile, both halves are lost with it, so a half-finished sum is never used.
    """
    total, squares = moments.total.reshape(-1), moments.total_of_squares.reshape(-1)
    blocks = [cut(other, 0, total.size)] if isinstance(other, RunningMoments) else other
    start, added = 0, []
    with ThreadPoolExecutor(state.n_threads) as pool:
        for block in blocks:
            for ours, theirs in zip((total, squares), block, strict=False):
                size = -(-len(theirs) // state.n_threads)
                for first in range(0, len(theirs), size):
                    part = ours[start + first : start + min(first + size, len(theirs))]
                    added.append(pool.submit(np.add, part, theirs[first : first + size], out=part))
            start += len(block[0])
    for each in added:
        each.result()
    moments.n_by_voxel += blocks[0][2]
    moments.left_out += blocks[0][3]
    return moments


def finish(state: WorkerState, moments: RunningMoments, first: int, stop: int) -> tuple[Array, Array]:
    """Make the z and t of some lesions: (n_lesions, n_voxels) float32 each."""
    with ThreadPoolExecutor(state.n_threads) as pool:
        statistics = list(pool.map(moments.lesion, range(first, stop)))
    return np.stack([each.z for each in statistics]), np.stack([each.t for each in statistics])


def counts(state: WorkerState, moments: RunningMoments) -> tuple[Array, list[tuple[Array, Array]]]:  # noqa: ARG001
    """Return what `statistics.count_subjects` counts."""
    return moments.n_by_voxel, moments.left_out


@dataclass(frozen=True, eq=False)
class FinishedMoments:
    """A batch's statistics, made on a worker."""

    z: Array
    """Shape (n_lesions, n_voxels), float32; as t."""
    t: Array
    n_by_voxel: Array
    left_out: list[tuple[Array, Array]]
    """As in `RunningMoments`."""

    def n(self, lesion: int) -> Array:
        """Count the subjects of one lesion at each voxel."""
        return count_subjects(lesion, self.n_by_voxel, self.left_out)

    def lesion(self, lesion: int) -> LesionStatistics:
        """Return one lesion's statistics."""
        return LesionStatistics(self.z[lesion], self.t[lesion], self.n(lesion))
