"""A pass on a Dask cluster of this machine: the cost of dividing it into tasks and of merging them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.data import Data
from benchmarks.job import job_seconds, load_rows
from benchmarks.kernel import UNLIMITED
from benchmarks.measure import N_THREADS, Figure, medians
from bids_lacuna import FunctionalNetworkMapping, LesionData
from bids_lacuna.cluster import ClusterPass, connect, tree, worker

if TYPE_CHECKING:
    from distributed import Future

N_LESIONS = 100

N_SUBJECTS = 128

SLICE_SUBJECTS = 32
"""Connectome subjects of a slice, as in a connectome of 1,000."""


def make_statistics(results: list[LesionData]) -> None:
    """Make the statistics behind the maps."""
    for lesion in results:
        _ = lesion.results[FunctionalNetworkMapping.name].statistics


def measure(data: Data) -> Iterator[Figure]:
    """Compare two workers of one thread, and one worker of two threads, with one process of two threads."""
    masks = data.masks(N_LESIONS)
    store = data.store(N_SUBJECTS)
    before, tree.LEAST_SUBJECTS = tree.LEAST_SUBJECTS, SLICE_SUBJECTS
    try:
        with (
            connect(None, N_THREADS, N_THREADS) as many,
            connect(None, 1, N_THREADS) as one,
        ):
            found = medians(
                {
                    "alone": partial(job_seconds, store, masks, make_statistics),
                    "many": partial(job_seconds, store, masks, make_statistics, client=many),
                    "one": partial(job_seconds, store, masks, make_statistics, client=one),
                },
                rounds=2,
            )
    finally:
        tree.LEAST_SUBJECTS = before
    note = f"{N_LESIONS} lesions, {N_SUBJECTS} subjects in slices of {SLICE_SUBJECTS}; with the transfer of the sums"
    yield Figure("workers_over_process", found["many"] / found["alone"], f"{N_THREADS}x1", at_most=1.2, note=note)
    yield Figure("workers_over_process", found["one"] / found["alone"], f"1x{N_THREADS}", note=note)
    yield from tasks(data)


def tasks(data: Data) -> Iterator[Figure]:
    """Measure a task's overhead beside its mapping: the round trip to the worker, and one merge."""
    analysis = FunctionalNetworkMapping(data.store(SLICE_SUBJECTS))
    rows = load_rows(analysis, data.masks(N_LESIONS))
    with connect(None, 1, N_THREADS) as client:
        pass_ = ClusterPass(analysis, client, UNLIMITED)
        plan, pool = pass_.plan(N_LESIONS, None), pass_.pool
        ((address, opened),) = pool.states.items()
        submit = partial(pool.submit, address)
        pieces = [[rows.voxels, rows.weights]]
        state = submit(worker.set_batch, opened, rows.keys, rows.starts, pieces, plan)
        map_one = partial(submit, worker.map_slice, state, 0, SLICE_SUBJECTS)
        held = [map_one(), map_one()]

        def timed(begin: Callable[[], Future[Any]]) -> float:
            start = time.perf_counter()
            done = begin()
            while not done.done():
                pool.pause()
            return time.perf_counter() - start

        found = medians(
            {
                "map": partial(timed, map_one),
                "merge": partial(timed, partial(submit, worker.merge, state, *held)),
                "nothing": partial(timed, partial(submit, len, ())),
            }
        )
    case, note = f"{N_LESIONS}", f"of a slice's {SLICE_SUBJECTS} subjects mapped on {N_THREADS} threads"
    yield Figure("task_overhead", (found["merge"] + found["nothing"]) / found["map"], case, at_most=0.05, note=note)
    yield Figure("merge_in_subjects", SLICE_SUBJECTS * found["merge"] / found["map"], case, note="mapped meanwhile")
    yield Figure("map_slice_seconds", found["map"], case)
    yield Figure("merge_seconds", found["merge"], case, note="of two slices' sums on one worker")
    yield Figure("task_seconds", found["nothing"], case, note="to the worker and back")
