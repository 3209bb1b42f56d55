"""One batch in one pass: its slices are mapped on the workers of a pool, and merged in the tree."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from pathlib import Path
from signal import SIGUSR1
from typing import Any

from distributed import Future

from bids_lacuna.cluster import worker
from bids_lacuna.cluster.pool import PATIENCE_S, WorkerPool
from bids_lacuna.cluster.tree import Node, choose, halves, held_at_most, lineage, subjects_of
from bids_lacuna.cluster.worker import DamagedCheckpoint
from bids_lacuna.mapping import Accumulator
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.plan import BatchPlan
from bids_lacuna.weights import Rows

logger = logging.getLogger(__name__)

BLOCK_BYTES = 64 * 2**20
"""Largest message in bytes: weights, or sums that go to another worker or to the client."""

ROWS_FRACTION = 0.875
"""Fraction of a message for the sums of rows; the rest is for what an accumulator counts beside them."""


@dataclass(frozen=True)
class Batch:
    """A batch as workers need it."""

    rows: Rows
    plan: BatchPlan
    """How many connectome subjects are read ahead and added together."""


class BatchTasks:
    """Submits the tasks of one batch to workers that have its weights; these leave the client once."""

    def __init__(self, pool: WorkerPool, batch: Batch, accumulator_bytes: int) -> None:
        self._pool = pool
        self._batch = batch
        rows_per_message = int(ROWS_FRACTION * BLOCK_BYTES * len(batch.rows) / accumulator_bytes)
        self._n_messages = ceil(len(batch.rows) / max(1, rows_per_message))
        self._states: dict[str, Future[Any]] = {}
        """Each worker's `WorkerState` with this batch, by its address."""
        self._pieces: list[list[Future[Any]]] = []

    def submit(self, address: str, task: Callable[..., Any], *args: Any, priority: int = 0) -> Future[Any]:
        """Submit a task whose first argument is the worker's state."""
        if address not in self._states:
            self._states[address] = self._send_batch(address)
        return self._pool.submit(address, task, self._states[address], *args, priority=priority)

    def forget(self, address: str) -> None:
        """Forget a worker that is lost."""
        self._states.pop(address, None)

    def cut(self, held: Held) -> Iterator[Future[Any]]:
        """Have a worker cut its sums into messages, each when the iterator advances."""
        for index in range(self._n_messages):
            yield self.submit(held.address, worker.cut, held.future, index, self._n_messages, priority=1)

    def fetch(self, held: Held, accumulator: Accumulator) -> Accumulator | None:
        """Fetch a worker's sums into an empty accumulator; return None if the worker is lost before."""
        messages = self.cut(held)
        # One is cut while another is on its way.
        under_way = deque(islice(messages, 2))
        while under_way:
            parts = self._pool.wait_for(under_way.popleft(), held.address)
            if parts is None:
                return None
            accumulator.merge(parts)
            # Free this message before the next one is in memory.
            del parts
            under_way.extend(islice(messages, 1))
        return accumulator

    def _send_batch(self, address: str) -> Future[Any]:
        if not self._states:
            self._pieces = self._scatter()
        batch = self._batch
        return self._pool.submit(
            address,
            worker.set_batch,
            self._pool.states[address],
            batch.rows.keys,
            batch.rows.starts,
            self._pieces,
            batch.plan,
        )

    def _scatter(self) -> list[list[Future[Any]]]:
        voxels, weights = self._batch.rows.voxels, self._batch.rows.weights
        size = BLOCK_BYTES // (voxels.itemsize + weights.itemsize)
        return [
            self._pool.client.scatter(
                [voxels[start : start + size], weights[start : start + size]],
                broadcast=True,
                hash=False,
                workers=list(self._pool.states),
            )
            for start in range(0, len(voxels), size)
        ]


@dataclass(frozen=True)
class Held:
    """Sums in a worker's memory."""

    future: Future[Any]
    address: str
    """The worker."""


@dataclass(frozen=True)
class Merging:
    """A merge in work."""

    future: Future[Any]
    address: str
    """The worker that will hold the sum."""
    partner: str
    """The worker that holds the other half."""


@dataclass(eq=False)
class Nodes:
    """Which worker maps, merges or holds which node of the tree."""

    held: dict[Node, Held] = field(default_factory=dict)
    mapping: dict[str, tuple[Node, Future[Any]]] = field(default_factory=dict)
    """The node that each worker maps, or reads from a checkpoint."""
    merging: dict[Node, Merging] = field(default_factory=dict)
    last: dict[str, Node] = field(default_factory=dict)
    """The node that each worker made last."""

    def done(self) -> set[Node]:
        """Return the nodes whose subjects are all mapped."""
        return {*self.held, *self.merging}

    def taken(self) -> set[Node]:
        """Return the nodes that are done or in work."""
        return {*self.done(), *(node for node, _ in self.mapping.values())}

    @property
    def is_idle(self) -> bool:
        """Whether no worker maps or merges."""
        return not (self.mapping or self.merging)

    def load(self, address: str) -> int:
        """Count the accumulators in a worker's memory, with those that are on their way to it."""
        ends = [(merging.address, merging.partner) for merging in self.merging.values()]
        return (
            sum(held.address == address for held in self.held.values())
            + (address in self.mapping)
            + sum(2 if address == target else address == partner for target, partner in ends)
        )

    def near(self, address: str) -> list[Node]:
        """Return the nodes that a worker holds or merges; if none, the node that it made last."""
        near = [node for node, held in self.held.items() if held.address == address]
        near += [node for node, merging in self.merging.items() if merging.address == address]
        return near if near or address not in self.last else [self.last[address]]

    def take_finished(self) -> Iterator[tuple[Node, Future[Any], str]]:
        """Remove what is no longer in work, and yield each node with its result and its worker."""
        for address, (node, future) in list(self.mapping.items()):
            if future.done():
                del self.mapping[address]
                self.last[address] = node
                yield node, future, address
        for node, merging in list(self.merging.items()):
            if merging.future.done() and self.merging.pop(node, None):
                yield node, merging.future, merging.address

    def forget(self, address: str) -> None:
        """Forget what a lost worker held and did."""
        self.mapping.pop(address, None)
        self.held = {node: held for node, held in self.held.items() if held.address != address}
        self.merging = {
            node: merging
            for node, merging in self.merging.items()
            if address not in (merging.address, merging.partner)
        }


class NodeCheckpoints:
    """The nodes of the tree that are saved or being saved."""

    def __init__(
        self, checkpoints: Checkpoints | None, rows: Mapping[str, str], slices: Sequence[tuple[int, int]]
    ) -> None:
        self._checkpoints = checkpoints
        self._rows = rows
        self._slices = slices
        self._saving: dict[Node, Future[Any]] = {}
        self.saved: dict[Node, Path] = self._find_saved()

    def _find_saved(self) -> dict[Node, Path]:
        """Find the nodes that an earlier run has saved."""
        if self._checkpoints is None:
            return {}
        starts = {first: number for number, (first, _) in enumerate(self._slices)}
        stops = {stop: number + 1 for number, (_, stop) in enumerate(self._slices)}
        saved = {
            (starts[first], stops[stop]): path
            for (first, stop), path in self._checkpoints.slices(self._rows).items()
            if first in starts and stop in stops
        }
        if saved:
            logger.info("resuming from %d saved slices in %s", len(saved), self._checkpoints.folder)
        return saved

    @property
    def are_kept(self) -> bool:
        """Whether there is a folder for checkpoints that works."""
        return self._checkpoints is not None

    @property
    def is_saving(self) -> bool:
        """Whether any node is being saved."""
        return bool(self._saving)

    def holds_back(self, node: Node) -> bool:
        """Return whether a node must not be merged yet, since it is being saved."""
        return node in self._saving

    def save(self, held: Mapping[Node, Held], tasks: BatchTasks, signals: set[int]) -> None:
        """Have workers save what they hold, if a signal asks for it or a checkpoint is due."""
        if self._checkpoints is None or not (signals or self._checkpoints.is_due):
            return
        self._checkpoints.restart_interval()
        if not signals - {SIGUSR1}:
            signals.discard(SIGUSR1)
        for node in held.keys() - self.saved.keys() - self._saving.keys():
            self._saving[node] = tasks.submit(
                held[node].address,
                worker.save_sums,
                held[node].future,
                self._checkpoints.folder,
                self._checkpoints.identity,
                *subjects_of(node, self._slices),
                priority=1,
            )

    def collect(self) -> None:
        """Record the nodes that have been saved by now."""
        for node, future in list(self._saving.items()):
            if future.done():
                del self._saving[node]
                self._record(node, future)

    def _record(self, node: Node, future: Future[Any]) -> None:
        if future.status == "error":
            logger.warning("no checkpoint is kept (%s): choose another folder with -w", future.exception())
            self._checkpoints = None
        elif future.status == "finished":
            first, stop = subjects_of(node, self._slices)
            logger.info(
                "saved the sums of %d lesions in connectome subjects %d to %d", len(self._rows), first + 1, stop
            )
            self.saved[node] = future.result(timeout=PATIENCE_S)
            # The sum replaces its parts.
            for part in [part for part in self.saved if part != node and node[0] <= part[0] and part[1] <= node[1]]:
                self.saved.pop(part).unlink(missing_ok=True)

    def discard(self, node: Node, error: Exception) -> None:
        """Forget a saved node that cannot be read."""
        logger.warning("%s cannot be used (%s)", self.saved.pop(node), error)

    def keep_only(self, held: Mapping[Node, Held]) -> None:
        """Forget the nodes whose worker was lost while it saved them."""
        self._saving = {node: future for node, future in self._saving.items() if node in held}


class Reduction:
    """The state of a pass: which worker maps, holds or merges which node of the tree."""

    def __init__(
        self,
        pool: WorkerPool,
        batch: Batch,
        slices: Sequence[tuple[int, int]],
        empty: Callable[[], Accumulator],
        can_hold: Callable[[str], bool],
        checkpoints: Checkpoints | None,
        on_subject: Callable[[], None],
    ) -> None:
        """Prepare a pass.

        Parameters
        ----------
        slices
            As from `tree.divide`.
        empty
            Makes an accumulator of no connectome subject, for the result.
        can_hold
            Returns whether the memory of the worker at an address holds the batch.
        on_subject
            Called once for each connectome subject.
        """
        self._pool = pool
        self._batch = batch
        self._slices = slices
        self._empty = empty
        self._can_hold = can_hold
        self._on_subject = on_subject
        self._root: Node = (0, len(slices))
        self._tasks = BatchTasks(pool, batch, empty().nbytes)
        self._checkpoints = NodeCheckpoints(checkpoints, batch.rows.hashes, slices)
        self._nodes = Nodes()
        self._n_reported = 0

    def run(self, signals: set[int]) -> Accumulator | None:
        """Run the pass; return None if a signal ended it.

        Parameters
        ----------
        signals
            Signals received, as from `signals_held`: each has all sums saved, and each but SIGUSR1 ends the pass.
        """
        idle_since = time.monotonic()
        while True:
            for address in self._pool.poll():
                self._forget(address)
            self._collect()
            self._checkpoints.save(self._nodes.held, self._tasks, signals)
            if signals - {SIGUSR1}:
                if not (self._nodes.mapping or self._nodes.merging or self._checkpoints.is_saving):
                    return None
            else:
                self._merge_pairs()
                if self._root in self._nodes.held and not self._checkpoints.is_saving:
                    finished = self._tasks.fetch(self._nodes.held[self._root], self._empty())
                    # A signal that came meanwhile has the sum saved first.
                    if finished is not None and not (self._checkpoints.are_kept and signals - {SIGUSR1}):
                        return finished
                    continue
                self._assign()
            if not self._pool.is_empty:
                idle_since = time.monotonic()
            self._pool.check_patience(idle_since)
            self._pool.pause()

    def _assign(self) -> None:
        """Give each idle worker a slice to map, or a saved node to read."""
        for address in [address for address in self._pool.states if address not in self._nodes.mapping]:
            if not self._can_hold(address):
                n_lesions = len(self._batch.rows)
                self._pool.leave_out(address, f"its memory does not hold the {n_lesions} lesions of this batch")
                continue
            # Room for the slice and for a merge. Those in work make room, so there is something to wait for.
            if self._nodes.load(address) + 2 > held_at_most(len(self._slices)) and not self._nodes.is_idle:
                continue
            node = choose(self._nodes.near(address), self._root, self._nodes.taken(), self._checkpoints.saved)
            if node is None:
                continue
            if node in self._checkpoints.saved:
                future = self._tasks.submit(address, worker.load_sums, self._checkpoints.saved[node])
            else:
                future = self._tasks.submit(address, worker.map_slice, *subjects_of(node, self._slices))
            self._nodes.mapping[address] = node, future

    def _collect(self) -> None:
        """Take over the results of finished tasks."""
        for node, future, address in self._nodes.take_finished():
            self._hold(node, future, address)
        self._checkpoints.collect()
        done = (subjects_of(node, self._slices) for node in self._nodes.done())
        n_done = sum(stop - first for first, stop in done)
        while self._n_reported < n_done:
            self._n_reported += 1
            self._on_subject()

    def _hold(self, node: Node, future: Future[Any], address: str) -> None:
        if future.status == "finished":
            self._nodes.held[node] = Held(future, address)
        elif future.status == "error":
            error = future.exception()
            if isinstance(error, DamagedCheckpoint):
                self._checkpoints.discard(node, error)
            elif isinstance(error, MemoryError):
                raise error
            else:
                self._forget(address)
                self._pool.leave_out(address, f"{type(error).__name__}: {error}")
                if self._pool.is_empty:
                    raise error
        else:
            self._forget(address)

    def _forget(self, address: str) -> None:
        """Forget what a lost worker held and did."""
        self._tasks.forget(address)
        self._nodes.forget(address)
        self._checkpoints.keep_only(self._nodes.held)

    def _merge_pairs(self) -> None:
        """Begin to merge each pair of halves that are both there."""
        for node in list(self._nodes.held):
            if node == self._root or node not in self._nodes.held:
                continue
            above = lineage(node, self._root)[0]
            pair = halves(above)
            if all(half in self._nodes.held and not self._checkpoints.holds_back(half) for half in pair):
                self._merge(above, *(self._nodes.held.pop(half) for half in pair))

    def _merge(self, node: Node, *pair: Held) -> None:
        # On the worker that holds less. A sum of two numbers does not depend on their order.
        ours, theirs = sorted(pair, key=lambda half: self._nodes.load(half.address))
        other: Any = theirs.future
        if theirs.address != ours.address:
            other = list(self._tasks.cut(theirs))
        future = self._tasks.submit(ours.address, worker.merge, ours.future, other, priority=1)
        self._nodes.merging[node] = Merging(future, ours.address, theirs.address)
