"""The pass over the connectome on a Dask cluster: slices of connectome subjects, merged in a fixed tree.

A slice's moments are a task on one worker. Slices depend on the connectome alone, and the tree in which their moments
are added depends on the number of slices alone: which worker does what changes no bit of the result. Each task names
its worker, so that moments stay where they were made: to a worker that has the other half, they go in blocks; to the
client go finished maps alone. What a worker held that is lost is made again, or read from its checkpoints.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from signal import SIG_IGN, SIGINT, SIGUSR1, signal
from threading import Event, Lock
from typing import Any

import numpy as np
from dask.sizeof import sizeof
from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin, get_worker
from filelock import FileLock

from bids_lacuna import kernels
from bids_lacuna._version import __version__
from bids_lacuna.connectome.connectome import Connectome, ConnectomeSubject
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping.functional import (
    FunctionalNetworkMapping,
    MappingStopped,
    NoWorker,
    add_subjects,
    compressed_rows,
    count_together,
    weight_hashes,
)
from bids_lacuna.runtime.checkpoint import Checkpoints, read_slice, save_slice
from bids_lacuna.runtime.memory import give_back_freed_memory, memory_budget, resident_bytes
from bids_lacuna.runtime.plan import MOMENT_BYTES, SUBJECTS_IN_MEMORY, BatchPlan, plan_batches
from bids_lacuna.runtime.signals import signals_held
from bids_lacuna.statistics import LesionStatistics, RunningMoments, count_subjects

logger = logging.getLogger(__name__)

Array = np.ndarray
Slice = tuple[int, int]
"""A node of the tree: its first slice, and the one after its last."""

SLICES = 32
"""That a connectome is divided into, as far as `LEAST_SUBJECTS` and `MOST_SUBJECTS` allow it."""

LEAST_SUBJECTS, MOST_SUBJECTS = 8, 128
"""Connectome subjects of a slice. A merge costs what mapping one to five of them does."""

BLOCK_BYTES = 64 * 2**20
"""Of a message at most: of weights, of moments that go to another worker, or of finished maps."""

FINISHED_BYTES = 8
"""Of each voxel and lesion where the maps are written: z and t, float32."""

WEIGHT_BYTES = 2
"""Of each voxel and lesion, for the weights that each worker has of a batch."""

SHARE_OF_LIMIT = 0.6
"""Of a Dask worker's own memory limit: beyond it, Dask writes to its disk what the worker holds."""

POLL_S = 0.5
"""How often workers are looked for that came or went."""

PATIENCE_S = 300.0
"""How long a run waits for a worker when there is none."""

GONE = "the Dask scheduler is gone"

_kernel = Lock()
"""A process's kernels run one at a time: each takes all threads of its worker."""


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself."""

    host: str
    n_threads: int
    """Of its kernels."""
    resident_bytes: int
    """What it occupies, with the kernels compiled."""
    available_bytes: int
    """What its machine, container or scheduler leaves it, including what it occupies."""
    limit_bytes: int | None
    """Its memory limit within Dask, if it has one."""


@dataclass(eq=False)
class Station:
    """What a worker keeps of a run, and of the batch in work; it never leaves the worker."""

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
        """Give connectome subjects in groups; read ahead were those that follow the slice before."""
        if self._subjects is None or first != self._upcoming:
            if self._subjects:
                self._subjects.close()
            n_ahead = self.connectome.n_ahead(self.subjects_in_memory)
            self._subjects = self.connectome.subjects(n_ahead, self.keep_cached, first)
        self._upcoming = -1
        while group := list(islice(self._subjects, min(self.n_together, stop - first))):
            first += len(group)
            yield group
            # Before the next ones are in memory.
            del group
        self._upcoming = stop


@sizeof.register(RunningMoments)  # type: ignore[untyped-decorator]
def _size_of_moments(moments: RunningMoments) -> int:
    """Tell Dask what moments occupy."""
    return int(moments.total.nbytes + moments.total_of_squares.nbytes + moments.n_by_voxel.nbytes)


def open_station(
    path: Path, name: str, space: str, content_hash: str, version: str, n_threads: int | None
) -> tuple[Station, Facts]:
    """Open the connectome on a worker, and make sure that it is the client's; the message of errors has the host."""
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
    # Of a host's workers one compiles, where it was not done before.
    compiling = FileLock(Path(os.environ["NUMBA_CACHE_DIR"]) / f"compiling-{host}.lock")
    with _kernel, compiling:
        kernels.compile_for(connectome.series_dtype, connectome.standardized_dtypes, n_threads)
    limit_bytes = worker.memory_manager.memory_limit
    facts = Facts(host, n_threads, resident_bytes(), memory_budget().available_bytes, limit_bytes)
    return Station(connectome, n_threads), facts


def brief(
    station: Station,
    starts: Array,
    pieces: Sequence[Sequence[Array]],
    lesions: Mapping[str, str],
    subjects_in_memory: int,
    keep_cached: bool,
) -> Station:
    """Give a worker the batch: where each lesion's weights begin, and all weights in pieces of voxels and shares."""
    voxels, shares = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return replace(
        station,
        rows=(starts, voxels, shares),
        lesions=lesions,
        subjects_in_memory=subjects_in_memory,
        keep_cached=keep_cached,
        _subjects=None,
    )


def map_slice(station: Station, first: int, stop: int) -> RunningMoments:
    """Map the batch in some connectome subjects."""
    moments = station.no_moments()
    with _kernel, kernels.threads(station.n_threads):
        for group in station.groups(first, stop):
            add_subjects(group, station.rows, moments)
            del group
    return moments


def load_slice(station: Station, path: Path) -> RunningMoments:
    """Read what `keep_slice` has saved."""
    moments = station.no_moments()
    try:
        read_slice(path, station.lesions, moments)
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(str(error)) from error
    return moments


class DamagedCheckpoint(Exception):  # noqa: N818
    """Saved moments cannot be used, and are made again."""


def keep_slice(
    station: Station, moments: RunningMoments, folder: Path, dependencies: Mapping[str, str], first: int, stop: int
) -> Path:
    """Save moments from where they are."""
    return save_slice(folder, dependencies, station.lesions, moments, first, stop)


def cut(moments: RunningMoments, start: int, stop: int) -> tuple[Any, ...]:
    """Cut a block out of both sums, laid out by lesion and voxel, for another worker; the first has the counts."""
    sums = (moments.total.reshape(-1)[start:stop], moments.total_of_squares.reshape(-1)[start:stop])
    return (*sums, moments.n_by_voxel, moments.left_out) if start == 0 else sums


def merge(
    station: Station, moments: RunningMoments, other: RunningMoments | Sequence[tuple[Any, ...]]
) -> RunningMoments:
    """Add the moments of other connectome subjects, from here or in blocks from another worker, in place.

    A worker that is lost in between loses both: nothing that is half added is ever seen.
    """
    total, squares = moments.total.reshape(-1), moments.total_of_squares.reshape(-1)
    blocks = [cut(other, 0, total.size)] if isinstance(other, RunningMoments) else other
    start, added = 0, []
    with ThreadPoolExecutor(station.n_threads) as pool:
        for block in blocks:
            for ours, theirs in zip((total, squares), block, strict=False):
                share = -(-len(theirs) // station.n_threads)
                for first in range(0, len(theirs), share):
                    mine = ours[start + first : start + min(first + share, len(theirs))]
                    added.append(pool.submit(np.add, mine, theirs[first : first + share], out=mine))
            start += len(block[0])
    for each in added:
        each.result()
    moments.n_by_voxel += blocks[0][2]
    moments.left_out += blocks[0][3]
    return moments


def finish(station: Station, moments: RunningMoments, first: int, stop: int) -> tuple[Array, Array]:
    """Make some lesions' z and t: (n_lesions, n_voxels) float32 each."""
    with ThreadPoolExecutor(station.n_threads) as pool:
        statistics = list(pool.map(moments.lesion, range(first, stop)))
    return np.stack([each.z for each in statistics]), np.stack([each.t for each in statistics])


def counts(moments: RunningMoments) -> tuple[Array, list[tuple[Array, Array]]]:
    """Give what `statistics.count_subjects` counts."""
    return moments.n_by_voxel, moments.left_out


@dataclass(frozen=True, eq=False)
class FinishedMoments:
    """A batch's statistics, as they come from the worker that has made them."""

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
        """Give one lesion's statistics."""
        return LesionStatistics(self.z[lesion], self.t[lesion], self.n(lesion))


def divide(n_subjects: int) -> list[tuple[int, int]]:
    """Divide a connectome into slices: the first subject of each, counted from 0, and the one after its last."""
    size = min(max(-(-n_subjects // SLICES), LEAST_SUBJECTS), MOST_SUBJECTS)
    size += -size % kernels.GROUP
    return [(first, min(first + size, n_subjects)) for first in range(0, n_subjects, size)]


def halves(node: Slice) -> tuple[Slice, Slice]:
    """Give the two nodes that a node is merged from: the first has a power of two of slices."""
    first, stop = node
    middle = first + (1 << ((stop - first - 1).bit_length() - 1))
    return (first, middle), (middle, stop)


def lineage(node: Slice, root: Slice) -> list[Slice]:
    """List the nodes that a node is a part of, the smallest first, down from the root."""
    above = []
    while root != node:
        above.append(root)
        left, right = halves(root)
        root = left if node[1] <= left[1] else right
    return above[::-1]


def held_at_most(n_slices: int) -> int:
    """Count the moments that a worker may have: of one node of each level, of the slice in work, and of a merge."""
    return (n_slices - 1).bit_length() + 2


@contextmanager
def connecting(scheduler: str | None, n_workers: int | None, n_threads: int) -> Iterator[Client]:
    """Connect to a cluster, or start one on this machine.

    Parameters
    ----------
    scheduler
        Its address, or the path of its scheduler file.
    n_workers
        Of a cluster of this machine, where there is no scheduler: processes.
    n_threads
        Of all of its workers together.

    Raises
    ------
    MappingStopped
        No scheduler answers.
    """
    with _quiet():
        if scheduler is None:
            # The plan bounds the memory of all workers together: Dask need not watch over each one's.
            cluster = LocalCluster(
                n_workers=n_workers,
                threads_per_worker=max(1, n_threads // (n_workers or 1)),
                memory_limit=0,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
            )
            target: dict[str, Any] = {"address": cluster}
        else:
            cluster = None
            target = {"address": scheduler} if "://" in scheduler else {"scheduler_file": _await_file(scheduler)}
        try:
            client = Client(**target, set_as_default=False)
        except (OSError, ValueError) as error:
            raise MappingStopped(f"no Dask scheduler answers at {scheduler} ({error})") from error
        try:
            if cluster is not None:
                client.register_plugin(_HeedNoInterrupt())
            logger.info("Dask dashboard: %s", client.dashboard_link)
            yield client
        finally:
            with suppress(Exception):
                client.close(timeout=2)
            if cluster is not None:
                cluster.close()


def _await_file(path: str) -> str:
    """Wait until a scheduler has written its file; Dask would wait for ever."""
    deadline = time.monotonic() + PATIENCE_S
    while not Path(path).exists():
        if re.fullmatch(r"[^/]+:\d+", path) or time.monotonic() > deadline:
            raise MappingStopped(f"there is no scheduler file {path}; an address is written as tcp://host:8786")
        time.sleep(POLL_S)
    return path


class _HeedNoInterrupt(WorkerPlugin):
    """Ctrl-C reaches workers of a terminal's own cluster, too, which have to save what they hold when it comes."""

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        """Do what the class says."""
        signal(SIGINT, SIG_IGN)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask from logging each connection that is lost: what that means is told in a sentence."""
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


class Crew:
    """The workers that can map a connectome, as they come and go."""

    def __init__(self, client: Client, connectome: Connectome, n_threads: int | None) -> None:
        self.client = client
        self.stations: dict[str, Future[Any]] = {}
        """By the worker's address."""
        self.facts: dict[str, Facts] = {}
        self.reasons: dict[str, str] = {}
        """Of those that are left out, why."""
        self._joining: dict[str, tuple[Future[Any], Future[Any]]] = {}
        self._looked_at = 0.0
        self._present: set[str] = set()
        self._news = Event()
        self._open = partial(
            open_station,
            connectome.path.absolute(),
            connectome.name,
            connectome.space,
            connectome.content_hash,
            __version__,
            n_threads,
        )

    def submit(self, address: str, task: Callable[..., Any], *args: Any, priority: int = 0) -> Future[Any]:
        """Have one worker, and no other, do something."""
        future = self.client.submit(
            task, *args, workers=[address], allow_other_workers=False, pure=False, priority=priority
        )
        future.add_done_callback(lambda _: self._news.set())
        return future

    def pause(self) -> None:
        """Wait until something is done, for a short while."""
        self._news.wait(POLL_S)
        self._news.clear()

    @property
    def is_growing(self) -> bool:
        """Whether workers are opening the connectome."""
        return bool(self._joining)

    def muster(self) -> set[str]:
        """Look for workers that have come; tell which are lost."""
        if self.client.status != "running":
            raise MappingStopped(GONE)
        if time.monotonic() - self._looked_at >= POLL_S:
            self._looked_at = time.monotonic()
            self._present = set(self.client.nthreads())
            for address in self._present - {*self.stations, *self._joining, *self.reasons}:
                opened = self.submit(address, self._open)
                self._joining[address] = (
                    self.submit(address, _first_of, opened),
                    self.submit(address, _second_of, opened),
                )
        for address, (station, facts) in list(self._joining.items()):
            if facts.done() or address not in self._present:
                del self._joining[address]
                self._enlist(address, station, facts)
        lost = self.stations.keys() - self._present
        for address in lost:
            logger.warning("the Dask worker %s on %s is lost", address, self.facts[address].host)
            self.dismiss(address)
        return lost

    def _enlist(self, address: str, station: Future[Any], facts: Future[Any]) -> None:
        if facts.status == "finished":
            self.stations[address], self.facts[address] = station, facts.result(timeout=PATIENCE_S)
        elif facts.status == "error":
            self.leave_out(address, str(facts.exception()))

    def leave_out(self, address: str, reason: str) -> None:
        """Do without a worker from now on."""
        logger.warning("the Dask worker %s is left out: %s", address, reason)
        self.dismiss(address)
        self.reasons[address] = reason

    def dismiss(self, address: str) -> None:
        """Forget a worker."""
        self.stations.pop(address, None)
        self.facts.pop(address, None)

    def gather(self) -> None:
        """Wait until all workers that are there have answered, and one of them can map.

        Raises
        ------
        NoWorker
            None can.
        MappingStopped
            None is there.
        """
        deadline = time.monotonic() + PATIENCE_S
        self._looked_at = 0.0
        self.muster()
        while self._joining or not self.stations:
            if not self._joining and self.reasons:
                raise NoWorker(f"no Dask worker can map: {next(iter(self.reasons.values()))}")
            if time.monotonic() > deadline and not self._joining:
                raise MappingStopped(f"no Dask worker has come within {PATIENCE_S:.0f} s")
            self.pause()
            self.muster()


def _first_of(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _second_of(pair: tuple[Any, Any]) -> Any:
    return pair[1]


class ClusterMapping(FunctionalNetworkMapping):
    """The same analysis, with its passes on a Dask cluster."""

    def __init__(self, analysis: FunctionalNetworkMapping, client: Client, n_threads: int | None = None) -> None:
        """Take an analysis to a cluster.

        Parameters
        ----------
        n_threads
            Of each worker's kernels at most; by default those that the worker was started with.
        """
        super().__init__(
            analysis.connectome,
            compute_t_map=analysis.compute_t_map,
            t_threshold=analysis.t_thresholds or None,
            weighting=analysis.weighting,
            lesion_threshold=analysis.lesion_threshold,
        )
        self.crew = Crew(client, analysis.connectome, n_threads)

    def plan_run(
        self,
        n_lesions: int,
        lesion_batch_size: Any,
        available_bytes: int,
        n_threads: int,  # noqa: ARG002  each worker has its own
        keep_results: bool = False,
        reserved_bytes: int = 0,
    ) -> BatchPlan:
        """Plan batches that fit the memory of each host, with all of its workers: as `batch.plan_run`.

        Raises
        ------
        NoWorker
            No worker can open the connectome.
        MemoryError
            Not one lesion fits.
        MappingStopped
            No scheduler or no worker answers.
        """
        give_back_freed_memory()
        with _telling_that_the_scheduler_is_gone(self.crew.client):
            self.crew.gather()
        here = socket.gethostname()
        hosts: dict[str, list[Facts]] = {here: []}
        for facts in self.crew.facts.values():
            hosts.setdefault(facts.host, []).append(facts)
        plans = [
            self._plan_host(
                workers,
                n_lesions,
                lesion_batch_size,
                own_bytes=(resident_bytes() + reserved_bytes, available_bytes) if host == here else None,
                keep_results=keep_results and host == here,
            )
            for host, workers in hosts.items()
        ]
        logger.info(
            "Dask workers: %d on %d hosts, %d threads in all; slices of the connectome: %d",
            len(self.crew.facts),
            len({facts.host for facts in self.crew.facts.values()}),
            sum(facts.n_threads for facts in self.crew.facts.values()),
            len(divide(self.connectome.n_subjects)),
        )
        tightest = min(plans, key=lambda plan: plan.batch_size)
        return replace(tightest, subjects_in_memory=min(plan.subjects_in_memory for plan in plans))

    def _plan_host(
        self,
        workers: Sequence[Facts],
        n_lesions: int,
        lesion_batch_size: Any,
        own_bytes: tuple[int, int] | None = None,
        keep_results: bool = False,
    ) -> BatchPlan:
        """Plan for one host; its `own_bytes` are what the client there occupies, and what it may occupy."""
        connectome, n = self.connectome, len(workers)
        occupied = sum(facts.resident_bytes for facts in workers) + (own_bytes[0] if own_bytes else 0)
        # What is free is there once for all of them.
        available = [occupied + facts.available_bytes - facts.resident_bytes for facts in workers]
        available += [own_bytes[1]] if own_bytes else []
        limits = [facts.limit_bytes for facts in workers if facts.limit_bytes]
        available += [int(SHARE_OF_LIMIT * min(limits)) * n] if limits else []
        n_held = held_at_most(len(divide(connectome.n_subjects)))
        return plan_batches(
            n_lesions,
            connectome.n_components * max(1, n),
            connectome.grid.n_voxels,
            min(available),
            sum(facts.n_threads for facts in workers),
            lesion_batch_size=lesion_batch_size,
            volume_voxels=connectome.grid.mask.size,
            keep_results=keep_results,
            base_bytes=occupied,
            streaming_bytes=n * connectome.streaming_bytes,
            subject_bytes=n * connectome.subject_bytes,
            moment_bytes=n * (n_held * MOMENT_BYTES + WEIGHT_BYTES) + (FINISHED_BYTES if own_bytes else 0),
        )

    def fitting_now(self, plan: BatchPlan) -> int:
        """Keep to the plan: what becomes free or not on many machines is not asked again."""
        return plan.batch_size

    def can_hold(self, facts: Facts, n_lesions: int) -> bool:
        """Tell whether a worker's memory holds a batch."""
        try:
            return self._plan_host([facts], n_lesions, n_lesions).batch_size == n_lesions
        except MemoryError:
            return False

    def map_batch(
        self,
        lesions: Sequence[LesionData],
        n_threads: int,  # noqa: ARG002  each worker has its own
        subjects_in_memory: int = SUBJECTS_IN_MEMORY,
        keep_cached: bool = True,
        checkpoints: Checkpoints | None = None,
        on_subject: Callable[[], None] = lambda: None,
    ) -> list[LesionData]:
        """Map loaded lesions in one pass over the connectome, on all workers together."""
        with (
            signals_held(checkpoints is not None) as signals,
            _telling_that_the_scheduler_is_gone(self.crew.client),
        ):
            if not self.crew.stations:
                # What kept them from the batch before need not keep them from this one.
                self.crew.reasons.clear()
                try:
                    self.crew.gather()
                except NoWorker as error:
                    raise MappingStopped(str(error)) from error
            moments = _Pass(self, lesions, subjects_in_memory, keep_cached, checkpoints, on_subject, signals).run()
        if moments is None:
            # A signal's own handler has let the process go on; the pass has not.
            raise KeyboardInterrupt
        return [self.attach_results(lesion, moments, row) for row, lesion in enumerate(lesions)]


@contextmanager
def _telling_that_the_scheduler_is_gone(client: Client) -> Iterator[None]:
    """Whatever fails when there is no scheduler, fails since there is none."""
    try:
        yield
    except MappingStopped:
        raise
    except Exception as error:
        if client.status != "running":
            raise MappingStopped(GONE) from error
        raise


@dataclass(frozen=True)
class _Merging:
    future: Future[Any]
    address: str
    """Where the sum will be."""
    partner: str
    """Where the other half comes from."""


class _Pass:
    """One batch on its way through the connectome."""

    def __init__(
        self,
        analysis: ClusterMapping,
        lesions: Sequence[LesionData],
        subjects_in_memory: int,
        keep_cached: bool,
        checkpoints: Checkpoints | None,
        on_subject: Callable[[], None],
        signals: set[int],
    ) -> None:
        self._analysis = analysis
        self._crew = analysis.crew
        self._rows = compressed_rows([lesion.weights for lesion in lesions if lesion.weights])
        self._lesions = weight_hashes(lesions)
        self._options = (subjects_in_memory, keep_cached)
        self._checkpoints = checkpoints
        self._on_subject = on_subject
        self._signals = signals
        self._slices = divide(analysis.connectome.n_subjects)
        self._root: Slice = (0, len(self._slices))
        self._pieces: list[list[Future[Any]]] = []
        self._stations: dict[str, Future[Any]] = {}
        """Of this batch."""
        self._held: dict[Slice, tuple[Future[Any], str]] = {}
        """Moments, and the worker that has them."""
        self._mapping: dict[str, tuple[Slice, Future[Any]]] = {}
        """What each worker is making, or reading from a checkpoint."""
        self._merging: dict[Slice, _Merging] = {}
        self._saving: dict[Slice, Future[Any]] = {}
        self._saved: dict[Slice, Path] = self._find_saved()
        self._wanted: set[Slice] = set()
        """To be saved."""
        self._last: dict[str, Slice] = {}
        """What each worker has made last: the next one is looked for nearby."""
        self._told = 0

    def run(self) -> FinishedMoments | None:
        """Map; None where a signal has ended it."""
        idle_since = time.monotonic()
        while True:
            for address in self._crew.muster():
                self._forget(address)
            self._collect()
            ending = self._signals - {SIGUSR1}
            self._save(at_once=bool(self._signals))
            if ending and not (self._mapping or self._merging or self._saving or self._wanted):
                return None
            if not ending:
                self._merge_pairs()
                if self._root in self._held and not self._saving:
                    finished = self._fetch()
                    # A signal that came meanwhile has the sum saved first.
                    if finished is not None and not (self._checkpoints and self._signals - {SIGUSR1}):
                        return finished
                    continue
                self._assign()
            if self._crew.stations or self._crew.is_growing:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > PATIENCE_S:
                why = next(iter(self._crew.reasons.values()), "all are lost")
                raise MappingStopped(f"no Dask worker is left ({why}), and none has come in {PATIENCE_S:.0f} s")
            self._crew.pause()

    def _station(self, address: str) -> Future[Any]:
        """Give a worker's station with this batch's weights, which leave the client once."""
        if address not in self._stations:
            if not self._stations:
                self._pieces = self._scatter()
            self._stations[address] = self._crew.submit(
                address,
                brief,
                self._crew.stations[address],
                self._rows[0],
                self._pieces,
                self._lesions,
                *self._options,
            )
        return self._stations[address]

    def _scatter(self) -> list[list[Future[Any]]]:
        _, voxels, shares = self._rows
        size = BLOCK_BYTES // (voxels.itemsize + shares.itemsize)
        return [
            self._crew.client.scatter(
                [voxels[start : start + size], shares[start : start + size]],
                broadcast=True,
                hash=False,
                workers=list(self._crew.stations),
            )
            for start in range(0, len(voxels), size)
        ]

    def _subjects(self, node: Slice) -> tuple[int, int]:
        """Give the first connectome subject of a node, and the one after its last."""
        return self._slices[node[0]][0], self._slices[node[1] - 1][1]

    def _find_saved(self) -> dict[Slice, Path]:
        """Find the nodes that were saved by an earlier run."""
        if self._checkpoints is None:
            return {}
        starts = {first: number for number, (first, _) in enumerate(self._slices)}
        stops = {stop: number + 1 for number, (_, stop) in enumerate(self._slices)}
        saved = {
            (starts[first], stops[stop]): path
            for (first, stop), path in self._checkpoints.slices(self._lesions).items()
            if first in starts and stop in stops
        }
        if saved:
            logger.info("going on from %d saved slices in %s", len(saved), self._checkpoints.folder)
        return saved

    def _assign(self) -> None:
        """Give each idle worker a slice to map, or a saved node to read."""
        n_lesions = len(self._lesions)
        for address in list(self._crew.stations.keys() - self._mapping.keys()):
            if not self._analysis.can_hold(self._crew.facts[address], n_lesions):
                self._crew.leave_out(address, f"its memory does not hold the {n_lesions} lesions of this batch")
                continue
            node = self._choose(address)
            if node is None:
                continue
            task = (load_slice, self._saved[node]) if node in self._saved else (map_slice, *self._subjects(node))
            self._mapping[address] = (node, self._crew.submit(address, task[0], self._station(address), *task[1:]))

    def _choose(self, address: str) -> Slice | None:
        """Choose what a worker does next: what can be merged soonest with what it has, far from where others are."""
        last = self._last.get(address)
        taken = {*self._held, *self._merging, *(node for node, _ in self._mapping.values())}
        for above in lineage(last, self._root) if last else [self._root]:
            if node := _largest_free(above, taken):
                while node not in self._saved and node[1] - node[0] > 1:
                    node = halves(node)[0]
                return node
        return None

    def _collect(self) -> None:
        """Take note of what is done."""
        for address, (node, future) in list(self._mapping.items()):
            if future.done():
                del self._mapping[address]
                self._last[address] = node
                self._hold(node, future, address)
        for node, merging in list(self._merging.items()):
            if merging.future.done():
                del self._merging[node]
                self._hold(node, merging.future, merging.address)
        for node, future in list(self._saving.items()):
            if future.done():
                del self._saving[node]
                self._note_saved(node, future)
        done = {*self._held, *self._merging}
        n_done = sum(stop - first for first, stop in map(self._subjects, done))
        while self._told < n_done:
            self._told += 1
            self._on_subject()

    def _hold(self, node: Slice, future: Future[Any], address: str) -> None:
        if future.status == "finished":
            self._held[node] = future, address
        elif future.status == "error":
            error = future.exception()
            if isinstance(error, DamagedCheckpoint):
                logger.warning("%s cannot be used (%s)", self._saved.pop(node), error)
            elif isinstance(error, MemoryError):
                raise error
            else:
                self._forget(address)
                self._crew.leave_out(address, f"{type(error).__name__}: {error}")
                if not (self._crew.stations or self._crew.is_growing):
                    raise error
        else:
            self._forget(address)

    def _forget(self, address: str) -> None:
        """Give up what a worker held and did."""
        self._stations.pop(address, None)
        self._mapping.pop(address, None)
        self._held = {node: held for node, held in self._held.items() if held[1] != address}
        self._merging = {
            node: merging
            for node, merging in self._merging.items()
            if address not in (merging.address, merging.partner)
        }
        self._saving = {node: future for node, future in self._saving.items() if node in self._held}
        self._wanted &= self._held.keys()

    def _merge_pairs(self) -> None:
        """Begin to merge the nodes whose other half is there, too."""
        for node in list(self._held):
            if node == self._root or node not in self._held:
                continue
            above = lineage(node, self._root)[0]
            pair = halves(above)
            if all(half in self._held and half not in self._saving and half not in self._wanted for half in pair):
                self._merge(above, *(self._held.pop(half) for half in pair))

    def _merge(self, node: Slice, *pair: tuple[Future[Any], str]) -> None:
        # Where less is held. Which of two numbers is added to the other changes nothing.
        n_held = Counter(address for _, address in self._held.values())
        (ours, address), (theirs, partner) = sorted(pair, key=lambda half: n_held[half[1]])
        other: Any = theirs
        if partner != address:
            n_sums = len(self._lesions) * self._analysis.connectome.grid.n_voxels
            size = BLOCK_BYTES // MOMENT_BYTES
            other = [
                self._crew.submit(partner, cut, theirs, start, min(start + size, n_sums), priority=1)
                for start in range(0, n_sums, size)
            ]
        future = self._crew.submit(address, merge, self._station(address), ours, other, priority=1)
        self._merging[node] = _Merging(future, address, partner)

    def _save(self, at_once: bool) -> None:
        """Have workers save what they hold, when it is time; none of it is merged meanwhile."""
        if self._checkpoints is None:
            return
        ending = self._signals - {SIGUSR1}
        if at_once or self._checkpoints.is_due:
            self._checkpoints.wait_again()
            self._wanted |= self._held.keys() - self._saved.keys() - self._saving.keys()
            if not ending:
                self._signals.discard(SIGUSR1)
        for node in self._wanted & self._held.keys():
            future, address = self._held[node]
            self._saving[node] = self._crew.submit(
                address,
                keep_slice,
                self._station(address),
                future,
                self._checkpoints.folder,
                self._checkpoints.dependencies,
                *self._subjects(node),
                priority=1,
            )
        self._wanted.clear()

    def _note_saved(self, node: Slice, future: Future[Any]) -> None:
        if future.status == "error":
            logger.warning("no checkpoint is kept (%s): choose another folder with -w", future.exception())
            self._checkpoints = None
        elif future.status == "finished":
            first, stop = self._subjects(node)
            logger.info(
                "saved the moments of %d lesions in connectome subjects %d to %d", len(self._lesions), first + 1, stop
            )
            self._saved[node] = future.result(timeout=PATIENCE_S)
            # The sum takes the place of its parts.
            for part in [part for part in self._saved if part != node and node[0] <= part[0] and part[1] <= node[1]]:
                self._saved.pop(part).unlink(missing_ok=True)

    def _fetch(self) -> FinishedMoments | None:
        """Bring the finished maps here; None where their worker is lost before."""
        root, address = self._held[self._root]
        n_voxels = self._analysis.connectome.grid.n_voxels
        n_lesions = len(self._lesions)
        z, t = (np.empty((n_lesions, n_voxels), np.float32) for _ in range(2))
        size = max(1, BLOCK_BYTES // (FINISHED_BYTES * n_voxels))
        ends = [(first, min(first + size, n_lesions)) for first in range(0, n_lesions, size)]
        blocks = (self._crew.submit(address, finish, self._station(address), root, *each) for each in ends)
        # One is made while another is on its way.
        under_way = deque(islice(blocks, 2))
        for first, stop in ends:
            block = self._result(under_way.popleft(), address)
            if block is None:
                return None
            z[first:stop], t[first:stop] = block
            under_way.extend(islice(blocks, 1))
        counted = self._result(self._crew.submit(address, counts, root), address)
        return None if counted is None else FinishedMoments(z, t, *counted)

    def _result(self, future: Future[Any], address: str) -> Any:
        """Wait for something from a worker; None where the worker is lost."""
        while address in self._crew.stations:
            self._crew.pause()
            for lost in self._crew.muster():
                self._forget(lost)
            if future.status == "error":
                raise future.exception()
            with suppress(TimeoutError, CancelledError):
                return future.result(timeout=POLL_S)
        return None


def _largest_free(node: Slice, taken: set[Slice]) -> Slice | None:
    """Find the largest part of a node of which nothing is taken; the first of several."""
    if any(first <= node[0] and node[1] <= stop for first, stop in taken):
        return None
    if not any(node[0] <= first and stop <= node[1] for first, stop in taken):
        return node
    free = [found for half in halves(node) if (found := _largest_free(half, taken))]
    return max(free, key=lambda found: found[1] - found[0], default=None)
