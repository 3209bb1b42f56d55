"""The loop of a pass, on made-up workers of unequal speed that stall and are lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bids_lacuna.cluster import worker
from bids_lacuna.cluster.reduction import Batch, Reduction
from bids_lacuna.cluster.tree import divide, held_at_most
from bids_lacuna.runtime.plan import BatchPlan
from bids_lacuna.weights import Rows

Array = np.ndarray

SECONDS: dict[Callable[..., Any], float] = {worker.map_slice: 8, worker.merge: 1, worker.set_batch: 0.5}
"""Time that a task takes on the fastest worker; other tasks take none."""

STALL_S = 200.0
"""Time that a worker does nothing, now and then."""

N_SUBJECTS = 251


class Counts:
    """An accumulator that counts each connectome subject."""

    def __init__(self, first: int = 0, stop: int = 0) -> None:
        self.counts = np.zeros(N_SUBJECTS, int)
        self.counts[first:stop] = 1
        self.nbytes = self.counts.nbytes

    def merge(self, parts: Iterable[tuple[int, int, Array]]) -> None:
        """Add parts of other counts."""
        for _, first, numbers in parts:
            self.counts[first : first + len(numbers)] += numbers


@dataclass(eq=False)
class Task:
    """A made-up future: its result is there once its worker has had the time."""

    pool: Workers
    address: str
    ends_at: float
    value: Callable[[], Any]

    @property
    def status(self) -> str:
        """The status as Dask names it."""
        if self.address not in self.pool.states:
            return "lost"
        return "finished" if self.pool.now >= self.ends_at else "pending"

    def done(self) -> bool:
        """Return whether the task has ended, or its worker is lost."""
        return self.status != "pending"


@dataclass(eq=False)
class Workers:
    """A made-up pool: each worker does one task after another."""

    n: int
    seed: int
    lost_at: dict[str, float] = field(default_factory=dict)
    """When workers are lost."""
    now: float = 0.0
    is_empty: bool = False
    most_held: Counter[str] = field(default_factory=Counter)
    """The most accumulators that each worker had at a time."""
    n_mapped: int = 0

    def __post_init__(self) -> None:
        """Draw each worker's speed."""
        self._random = random.Random(self.seed)
        self.states: dict[str, None] = dict.fromkeys(f"worker {number}" for number in range(self.n))
        self._speed = {address: self._random.uniform(0.2, 1) for address in self.states}
        self._free_at = dict.fromkeys(self.states, 0.0)
        self.client = self
        self.reduction: Reduction | None = None

    def scatter(self, data: list[Any], **_: Any) -> list[Any]:
        """Send weights in no time."""
        return data

    def submit(self, address: str, task: Callable[..., Any], *args: Any, priority: int = 0) -> Task:  # noqa: ARG002
        """Begin a task once its worker has ended the tasks before, and what the task takes is there."""
        messages = [message for each in args if isinstance(each, list) for message in each]
        needed = [each.ends_at for each in (*args, *messages) if isinstance(each, Task)]
        begins_at = max(self.now, self._free_at[address], *needed, 0)
        seconds = SECONDS.get(task, 0) / self._speed[address] + STALL_S * (self._random.random() < 0.02)
        self._free_at[address] = begins_at + seconds
        self.n_mapped += task is worker.map_slice
        return Task(self, address, begins_at + seconds, lambda: self._result_of(task, *args[1:]))

    def _result_of(self, task: Callable[..., Any], *args: Any) -> Any:
        if task is worker.map_slice:
            return Counts(*args)
        if task is worker.cut:
            whole = args[0].value()
            return [(0, 0, whole.counts)] if args[1] == 0 else []
        ours, theirs = args
        total = ours.value()
        total.merge([(0, 0, theirs.value().counts)] if isinstance(theirs, Task) else theirs[0].value())
        return total

    def pause(self) -> None:
        """Count what workers have, and let time pass until one of them has ended a task, or is lost."""
        nodes = self.reduction._nodes
        held = Counter(each.address for each in nodes.held.values())
        held.update(list(nodes.mapping))
        for merging in nodes.merging.values():
            held.update([merging.address, merging.partner])
            # The half that arrives.
            held[merging.address] += merging.address != merging.partner
        self.most_held |= held
        coming = [at for at in (*self._free_at.values(), *self.lost_at.values()) if at > self.now]
        self.now = min(coming, default=self.now)

    def poll(self) -> set[str]:
        """Lose the workers whose time has come."""
        lost = {address for address, at in self.lost_at.items() if at <= self.now and address in self.states}
        for address in lost:
            del self.states[address], self._free_at[address]
        return lost

    def wait_for(self, future: Task, address: str) -> Any:
        """Return the result of a worker that is there."""
        self.now = max(self.now, future.ends_at)
        return future.value() if address in self.states else None

    def check_patience(self, idle_since: float) -> None:
        """Wait for ever."""


def run(pool: Workers) -> Array:
    """Run a pass, and return how often each connectome subject was counted."""
    rows = Rows(("lesion",), np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.float32))
    plan = BatchPlan(1, 1, 1, 0, 0, 1, 2, True, 0)
    reported: list[None] = []
    pool.reduction = Reduction(
        pool,  # type: ignore[arg-type]
        Batch(rows, plan),
        divide(N_SUBJECTS),
        Counts,  # type: ignore[arg-type]
        lambda address: address in pool.states,
        None,
        lambda: reported.append(None),
    )
    accumulator = pool.reduction.run(set())
    assert len(reported) == N_SUBJECTS
    return accumulator.counts  # type: ignore[union-attr]


MOST = held_at_most(len(divide(N_SUBJECTS)))
"""Accumulators that a worker is planned to hold."""


@pytest.mark.parametrize("n_workers", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("seed", range(12, 22))
def test_a_worker_holds_what_the_plan_allows(n_workers: int, seed: int) -> None:
    """However unequal the workers, and though some stall, none has more accumulators than it was planned to hold."""
    pool = Workers(n_workers, seed)
    assert (run(pool) == 1).all()
    assert pool.n_mapped == len(divide(N_SUBJECTS))
    assert max(pool.most_held.values()) <= MOST


@pytest.mark.parametrize(("n_workers", "n_lost"), [(3, 2), (6, 2), (6, 5)])
@pytest.mark.parametrize("seed", range(12, 22))
def test_lost_workers_change_neither_result_nor_plan(n_workers: int, n_lost: int, seed: int) -> None:
    """When workers are lost, each connectome subject still counts once, and the others keep to the plan."""
    times = random.Random(seed).sample(range(10, 200), n_lost)
    pool = Workers(n_workers, seed, {f"worker {number}": float(at) for number, at in enumerate(times)})
    assert (run(pool) == 1).all()
    assert max(pool.most_held.values()) <= MOST
