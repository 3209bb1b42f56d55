"""A pass over the connectome on a Dask cluster: slices of connectome subjects, merged in a fixed tree.

One task maps one slice on one worker. The slices depend on the connectome alone, and the tree in which their sums
are added depends on the number of slices alone, so the result is bit-identical for any number of workers. Each task
names its worker, so sums stay on the worker that made them. They go in blocks to a worker that holds the other
half; only the sum of all goes to the client. What a lost worker held is mapped again, or read from its checkpoints.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from distributed import Client

from bids_lacuna.cluster.pool import WorkerPool, reporting_a_lost_scheduler
from bids_lacuna.cluster.reduction import BLOCK_BYTES, Batch, Reduction
from bids_lacuna.cluster.tree import divide, held_at_most
from bids_lacuna.cluster.worker import WorkerInfo
from bids_lacuna.mapping import Accumulator, Analysis, NoWorker, PassStopped
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.memory import give_back_freed_memory, resident_bytes
from bids_lacuna.runtime.plan import BatchPlan, BatchSize, Resources, plan_batches
from bids_lacuna.runtime.signals import signals_held
from bids_lacuna.weights import Rows

logger = logging.getLogger(__name__)

LIMIT_FRACTION = 0.6
"""Fraction of a Dask worker's memory limit that is used: beyond it, Dask moves results to disk."""


class ClusterPass:
    """Passes over the connectome on a Dask cluster; see `mapping.analysis.Pass`."""

    def __init__(
        self, analysis: Analysis, client: Client, resources: Resources, n_threads: int | None = None
    ) -> None:
        """Prepare passes.

        Parameters
        ----------
        resources
            Memory and threads of the client's process.
        n_threads
            Kernel threads per worker, at most; by default, the threads that the worker was started with.
        """
        self.analysis = analysis
        self.resources = resources
        self.pool = WorkerPool(client, analysis, n_threads)
        self._slices = divide(analysis.n_subjects)

    def plan(self, n_rows: int, batch_size: BatchSize = "auto", keep_results: bool = False) -> BatchPlan:
        """Plan batches that fit the memory of each host with all of its workers.

        Raises
        ------
        NoWorker
            No worker can open the connectome.
        MemoryError
            Not even one row fits.
        PassStopped
            No scheduler or no worker answers.
        """
        give_back_freed_memory()
        with reporting_a_lost_scheduler(self.pool.client):
            self.pool.wait_for_workers()
        here = socket.gethostname()
        hosts: dict[str, list[WorkerInfo]] = {here: []}
        for info in self.pool.infos.values():
            hosts.setdefault(info.host, []).append(info)
        plans = [
            self._plan_host(workers, n_rows, batch_size, keep_results, has_client=host == here)
            for host, workers in hosts.items()
        ]
        logger.info(
            "Dask workers: %d on %d hosts, %d threads in all; slices of the connectome: %d",
            len(self.pool.infos),
            len({info.host for info in self.pool.infos.values()}),
            sum(info.n_threads for info in self.pool.infos.values()),
            len(self._slices),
        )
        tightest = min(plans, key=lambda plan: plan.batch_size)
        least = min(plans, key=lambda plan: plan.n_ahead + plan.n_together)
        return replace(
            tightest,
            n_ahead=least.n_ahead,
            n_together=least.n_together,
            keep_cached=all(plan.keep_cached for plan in plans),
        )

    def _plan_host(
        self,
        workers: Sequence[WorkerInfo],
        n_rows: int,
        batch_size: BatchSize,
        keep_results: bool = False,
        has_client: bool = False,
    ) -> BatchPlan:
        """Plan for one host: its workers share its memory with each other, and with the client if that is there."""
        n, footprint = len(workers), self.analysis.footprint(n_rows)
        n_accumulators = n * held_at_most(len(self._slices)) + has_client
        occupied = sum(info.resident_bytes for info in workers)
        if has_client:
            # The client receives the result in messages.
            occupied += resident_bytes() + BLOCK_BYTES
        # All workers of a host share its free memory.
        available = [occupied + info.available_bytes - info.resident_bytes for info in workers]
        available += [self.resources.available_bytes] if has_client else []
        limits = [info.limit_bytes for info in workers if info.limit_bytes]
        available += [int(LIMIT_FRACTION * min(limits)) * n] if limits else []
        return plan_batches(
            n_rows,
            replace(
                footprint,
                accumulator_bytes=n_accumulators * footprint.accumulator_bytes,
                row_bytes=(n + has_client) * footprint.row_bytes,
                subject_bytes=n * footprint.subject_bytes,
                reading_bytes=n * footprint.reading_bytes,
            ),
            Resources(
                min(available),
                sum(info.n_threads for info in workers),
                self.resources.reserved_bytes * has_client,
            ),
            batch_size=batch_size,
            keep_results=keep_results and has_client,
            occupied_bytes=occupied,
        )

    def fitting_now(self, plan: BatchPlan) -> int:
        """Return the planned batch size: the free memory of many machines is not measured again."""
        return plan.batch_size

    def _can_hold(self, n_rows: int, address: str) -> bool:
        """Return whether a worker's memory holds a batch."""
        try:
            return self._plan_host([self.pool.infos[address]], n_rows, n_rows).batch_size == n_rows
        except MemoryError:
            return False

    def run(
        self,
        rows: Rows,
        plan: BatchPlan,
        checkpoints: Checkpoints | None = None,
        on_subject: Callable[[], None] = lambda: None,
    ) -> Accumulator:
        """Add all connectome subjects, split across the workers."""
        with (
            signals_held(checkpoints is not None) as signals,
            reporting_a_lost_scheduler(self.pool.client),
        ):
            if not self.pool.states:
                # The reason that left them out of the batch before may not apply to this one.
                self.pool.reasons.clear()
                try:
                    self.pool.wait_for_workers()
                except NoWorker as error:
                    raise PassStopped(str(error)) from error
            reduction = Reduction(
                self.pool,
                Batch(rows, plan),
                self._slices,
                partial(self.analysis.new_accumulator, rows),
                partial(self._can_hold, len(rows)),
                checkpoints,
                on_subject,
            )
            accumulator = reduction.run(signals)
        if accumulator is None:
            # The signal's own handler did not end the process, but the pass is not complete.
            raise KeyboardInterrupt
        return accumulator
