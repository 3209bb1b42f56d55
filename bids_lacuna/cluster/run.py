"""A pass over the connectome on a Dask cluster: slices of connectome subjects, merged in a fixed tree.

One task maps one slice on one worker. The slices depend on the connectome alone, and the tree in which their moments
are added depends on the number of slices alone, so the result is bit-identical for any number of workers. Each task
names its worker, so moments stay on the worker that made them. They go in blocks to a worker that holds the other
half; only finished maps go to the client. What a lost worker held is mapped again, or read from its checkpoints.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from distributed import Client

from bids_lacuna.cluster.pool import WorkerPool, reporting_a_lost_scheduler
from bids_lacuna.cluster.reduction import FINISHED_BYTES, Batch, Reduction
from bids_lacuna.cluster.tree import divide, held_at_most
from bids_lacuna.cluster.worker import WorkerInfo
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping.functional import (
    FunctionalNetworkMapping,
    MappingStopped,
    NoWorker,
    compressed_rows,
    weight_hashes,
)
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.memory import give_back_freed_memory, resident_bytes
from bids_lacuna.runtime.plan import MOMENT_BYTES, SUBJECTS_IN_MEMORY, BatchPlan, plan_batches
from bids_lacuna.runtime.signals import signals_held

logger = logging.getLogger(__name__)

SENT_WEIGHT_BYTES = 2
"""Bytes per voxel and lesion for a worker's copy of the batch's weights."""

LIMIT_FRACTION = 0.6
"""Fraction of a Dask worker's memory limit that is used: beyond it, Dask moves results to disk."""


class ClusterMapping(FunctionalNetworkMapping):
    """An analysis whose passes run on a Dask cluster."""

    def __init__(self, analysis: FunctionalNetworkMapping, client: Client, n_threads: int | None = None) -> None:
        """Send an analysis to a Dask cluster.

        Parameters
        ----------
        n_threads
            Kernel threads per worker, at most; by default, the threads that the worker was started with.
        """
        super().__init__(
            analysis.connectome,
            compute_t_map=analysis.compute_t_map,
            t_threshold=analysis.t_thresholds or None,
            weighting=analysis.weighting,
            lesion_threshold=analysis.lesion_threshold,
        )
        self.pool = WorkerPool(client, analysis.connectome, n_threads)

    def plan_run(
        self,
        n_lesions: int,
        lesion_batch_size: Any,
        available_bytes: int,
        n_threads: int,  # noqa: ARG002  each worker has its own
        keep_results: bool = False,
        reserved_bytes: int = 0,
    ) -> BatchPlan:
        """Plan batches that fit the memory of each host with all of its workers; see `batch.plan_run`.

        Raises
        ------
        NoWorker
            No worker can open the connectome.
        MemoryError
            Not even one lesion fits.
        MappingStopped
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
            len(self.pool.infos),
            len({info.host for info in self.pool.infos.values()}),
            sum(info.n_threads for info in self.pool.infos.values()),
            len(divide(self.connectome.n_subjects)),
        )
        tightest = min(plans, key=lambda plan: plan.batch_size)
        return replace(tightest, subjects_in_memory=min(plan.subjects_in_memory for plan in plans))

    def _plan_host(
        self,
        workers: Sequence[WorkerInfo],
        n_lesions: int,
        lesion_batch_size: Any,
        own_bytes: tuple[int, int] | None = None,
        keep_results: bool = False,
    ) -> BatchPlan:
        """Plan for one host; `own_bytes`, on the client's host, are what the client occupies and may occupy."""
        connectome, n = self.connectome, len(workers)
        occupied = sum(info.resident_bytes for info in workers) + (own_bytes[0] if own_bytes else 0)
        # All workers of a host share its free memory.
        available = [occupied + info.available_bytes - info.resident_bytes for info in workers]
        available += [own_bytes[1]] if own_bytes else []
        limits = [info.limit_bytes for info in workers if info.limit_bytes]
        available += [int(LIMIT_FRACTION * min(limits)) * n] if limits else []
        n_held = held_at_most(len(divide(connectome.n_subjects)))
        return plan_batches(
            n_lesions,
            connectome.n_components * max(1, n),
            connectome.grid.n_voxels,
            min(available),
            sum(info.n_threads for info in workers),
            lesion_batch_size=lesion_batch_size,
            volume_voxels=connectome.grid.mask.size,
            keep_results=keep_results,
            base_bytes=occupied,
            streaming_bytes=n * connectome.streaming_bytes,
            subject_bytes=n * connectome.subject_bytes,
            moment_bytes=n * (n_held * MOMENT_BYTES + SENT_WEIGHT_BYTES) + (FINISHED_BYTES if own_bytes else 0),
        )

    def fitting_now(self, plan: BatchPlan) -> int:
        """Return the planned batch size: the free memory of many machines is not measured again."""
        return plan.batch_size

    def _can_hold(self, batch: Batch, address: str) -> bool:
        """Return whether a worker's memory holds a batch."""
        n_lesions = len(batch.lesions)
        try:
            return self._plan_host([self.pool.infos[address]], n_lesions, n_lesions).batch_size == n_lesions
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
        """Map loaded lesions in one pass over the connectome, split across all workers."""
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
                    raise MappingStopped(str(error)) from error
            rows = compressed_rows([lesion.weights for lesion in lesions if lesion.weights])
            n_voxels = self.connectome.grid.n_voxels
            batch = Batch(rows, weight_hashes(lesions), n_voxels, subjects_in_memory, keep_cached)
            slices = divide(self.connectome.n_subjects)
            reduction = Reduction(self.pool, batch, slices, partial(self._can_hold, batch), checkpoints, on_subject)
            moments = reduction.run(signals)
        if moments is None:
            # The signal's own handler did not end the process, but the pass is not complete.
            raise KeyboardInterrupt
        return [self.attach_results(lesion, moments, row) for row, lesion in enumerate(lesions)]
