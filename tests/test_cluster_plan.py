"""The plan of a Dask cluster's memory, on made-up workers: who holds what, and who shares which memory."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import dask
import pytest

from bids_lacuna.cluster import ClusterPass
from bids_lacuna.cluster.tree import divide, held_at_most
from bids_lacuna.cluster.worker import WorkerInfo
from bids_lacuna.runtime.plan import BatchPlan, BatchSize, Footprint, Resources

FOOTPRINT = Footprint(
    accumulator_bytes=1009,
    row_bytes=13,
    kept_bytes=17,
    result_bytes=19,
    subject_bytes=23,
    reading_bytes=29,
    n_readers=1,
    group=8,
    connectome_bytes=31,
)
"""Primes, so that each term shows in the sum."""

N_SUBJECTS = 83
"""Eleven slices: a worker may hold six accumulators."""

GIB = 2**30


@dataclass
class Planned:
    """An analysis of which only the memory is asked for."""

    n_subjects: int = N_SUBJECTS

    def footprint(self, n_rows: int) -> Footprint:  # noqa: ARG002
        """Return the made-up footprint."""
        return FOOTPRINT

    def opener(self) -> None:
        """Return nothing: no worker opens it."""


def info(host: str = "elsewhere", n_bytes: int = GIB, limit_bytes: int | None = None) -> WorkerInfo:
    """Make a worker that occupies 100 MiB."""
    return WorkerInfo(host, 2, 100 * 2**20, n_bytes, limit_bytes)


def plan(workers: Sequence[WorkerInfo], n_rows: int = 7, batch_size: BatchSize = None) -> BatchPlan:
    """Plan for some workers, with more memory for the client than they need."""
    addresses = {f"tcp://10.0.0.{number}:1": worker for number, worker in enumerate(workers)}
    client = SimpleNamespace(status="running", nthreads=lambda: addresses)
    cluster = ClusterPass(Planned(), client, Resources(2**50, 2))  # type: ignore[arg-type]
    cluster.pool.infos, cluster.pool.states = dict(addresses), dict.fromkeys(addresses)
    return cluster.plan(n_rows, batch_size)


def test_workers_and_client_hold_accumulators() -> None:
    """Each row costs each worker of a host six accumulators and its weights, and the client one of both."""
    assert held_at_most(len(divide(N_SUBJECTS))) == 6
    here = socket.gethostname()
    for n_workers in (1, 2, 3):
        assert plan([info()] * n_workers, n_rows=10**9).bytes_per_row == n_workers * (6 * 1009 + 13)
        assert plan([info(here)] * n_workers, n_rows=10**9).bytes_per_row == n_workers * (6 * 1009 + 13) + 1009 + 13


def test_workers_of_a_host_share_its_memory() -> None:
    """Two workers on one host map half as many rows at once as two on two hosts."""
    apart = plan([info("one"), info("two")], n_rows=10**9)
    together = plan([info("one"), info("one")], n_rows=10**9)
    assert together.batch_size == pytest.approx(apart.batch_size / 2, rel=0.02)


def test_the_tightest_host_decides() -> None:
    """A batch fits each host."""
    alone = plan([info("one", GIB // 2)], n_rows=10**9)
    assert plan([info("one", GIB // 2), info("two")], n_rows=10**9).batch_size == alone.batch_size


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_batch_stays_below_dask_s_own_limit(n_workers: int) -> None:
    """A plan uses a worker's memory limit up to where Dask begins to write results to disk, and no further."""
    spilling_at = dask.config.get("distributed.worker.memory.target")
    planned = plan([info(n_bytes=2**50, limit_bytes=GIB)] * n_workers, n_rows=10**9)
    assert planned.peak_bytes <= spilling_at * GIB * n_workers < planned.peak_bytes + 2 * planned.bytes_per_row
