"""Many lesions in batches that fit the memory, with a callback after each one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import ceil
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from threadpoolctl import threadpool_limits

from bids_lacuna import kernels
from bids_lacuna.lesion import LOW_COVERAGE, LesionData
from bids_lacuna.mapping.functional import FunctionalNetworkMapping, MappingStopped, lesion_keys
from bids_lacuna.runtime.checkpoint import Checkpoints, subdivide
from bids_lacuna.runtime.logs import log_failure
from bids_lacuna.runtime.memory import available_cpus, give_back_freed_memory, memory_budget, resident_bytes
from bids_lacuna.runtime.plan import BatchPlan, plan_batches
from bids_lacuna.runtime.progress import Progress

logger = logging.getLogger(__name__)

T = TypeVar("T")

Strategy = Literal["vectorized", "sequential"]
BatchSize = int | Literal["auto"] | None
Callback = Callable[[list[LesionData]], Any]

LOADED_AT_ONCE = 4
"""Lesions at most: each takes memory beside its weights until it is loaded, and Python runs one thread at a time."""


def plan_run(
    analysis: FunctionalNetworkMapping,
    n_lesions: int,
    lesion_batch_size: BatchSize,
    available_bytes: int,
    n_threads: int,
    keep_results: bool = False,
    reserved_bytes: int = 0,
) -> BatchPlan:
    """Plan the batches of a run, from the memory that this process occupies now with its kernels compiled.

    Parameters
    ----------
    analysis, n_lesions, lesion_batch_size
        As for `batch_process`.
    available_bytes
        What the process may occupy in all.
    n_threads
        Threads of the kernels.
    keep_results
        Whether the results of all lesions stay in memory until the end.
    reserved_bytes
        What other processes of the run may occupy.

    Raises
    ------
    MemoryError
        Not one lesion fits; the message has both numbers.
    """
    give_back_freed_memory()
    connectome = analysis.connectome
    logger.info("loading the kernels; the first run compiles them, in up to half a minute")
    kernels.compile_for(connectome.series_dtype, connectome.standardized_dtypes, n_threads)
    n_voxels, n_components = connectome.grid.n_voxels, connectome.n_components
    return plan_batches(
        n_lesions,
        n_components,
        n_voxels,
        available_bytes,
        n_threads,
        lesion_batch_size=lesion_batch_size,
        volume_voxels=connectome.grid.mask.size,
        keep_results=keep_results,
        base_bytes=resident_bytes() + reserved_bytes,
        streaming_bytes=connectome.streaming_bytes,
        subject_bytes=connectome.subject_bytes,
    )


def batch_process(
    lesions: Sequence[LesionData],
    analysis: FunctionalNetworkMapping,
    *,
    strategy: Strategy = "vectorized",
    lesion_batch_size: BatchSize = "auto",
    batch_result_callback: Callback | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    checkpoint_minutes: float = 10,
    show_progress: bool = True,
    available_bytes: int | None = None,
    n_threads: int | None = None,
    client: Any = None,
) -> list[LesionData]:
    """Map many lesions, a batch at a time, in memory that does not grow with their number.

    Parameters
    ----------
    lesions
        Their masks are read when their batch comes.
    analysis
        What is computed of each lesion.
    strategy
        "vectorized": batches of `lesion_batch_size`, each in one pass over the connectome. "sequential": batches
        of one lesion.
    lesion_batch_size
        "auto": as many as the memory holds, in batches of equal size. A number: that many. None: all at once.
        Batches that the memory does not hold are made smaller, with a warning.
    batch_result_callback
        Called after each batch with the list of its mapped lesions; what it returns is ignored. Once it has
        returned, the maps are released. If it raises, its batch's lesions fail with that reason. Without it, the
        results of all lesions are kept and returned.
    checkpoint_dir
        A folder of this run's own. There the moments of the batch in work are saved now and then and when the process
        is told to end (SIGINT, SIGTERM); called again with the same lesions, it goes on from there. It is left empty
        by a run that ends well.
    checkpoint_minutes
        How often they are saved.
    show_progress
        One bar over lesions x connectome subjects, where stderr is a terminal.
    available_bytes
        What the process may occupy in all; by default what the machine, the container or the scheduler leaves it.
    n_threads
        Threads of the kernels; by default all processors that the process may use, on a cluster those that each
        worker was started with.
    client
        A `distributed.Client`: the passes over the connectome are made on its workers, which open the connectome by
        its path. Maps are the same to the bit whatever their number, and to rounding those made without a cluster.

    Returns
    -------
    list of LesionData
        One for every input, in order. One that failed has `error` set and no results; it stops no other.

    Raises
    ------
    ValueError
        An argument has an unknown value.
    MemoryError
        Not one lesion fits the memory; the message has both numbers.
    MappingStopped
        The cluster is out of reach; called again, it goes on from the checkpoints.
    """
    if strategy not in ("vectorized", "sequential"):
        raise ValueError(f"strategy is {strategy!r}: it must be 'vectorized' or 'sequential'")
    for place, lesion in enumerate(lesions):
        if not isinstance(lesion, LesionData):
            raise TypeError(
                f"lesions[{place}] is a {type(lesion).__name__}: make it with LesionData.from_nifti(path)"
            )
    make_plan: Callable[..., BatchPlan] = partial(plan_run, analysis)
    if client is not None:
        # Here, not at the top: without a client nothing of Dask is needed.
        from bids_lacuna.cluster import ClusterMapping

        analysis = ClusterMapping(analysis, client, n_threads)
        make_plan = analysis.plan_run
    n_threads = available_cpus() if n_threads is None else n_threads
    plan = make_plan(
        len(lesions),
        1 if strategy == "sequential" else lesion_batch_size,
        memory_budget().available_bytes if available_bytes is None else available_bytes,
        n_threads,
        keep_results=batch_result_callback is None,
    )
    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = Checkpoints(Path(checkpoint_dir), 60 * checkpoint_minutes, analysis.dependencies)
    return process_batches(
        lesions,
        analysis,
        plan,
        n_threads,
        batch_result_callback=batch_result_callback,
        checkpoints=checkpoints,
        show_progress=show_progress,
    )


def process_batches(
    lesions: Sequence[LesionData],
    analysis: FunctionalNetworkMapping,
    plan: BatchPlan,
    n_threads: int,
    *,
    batch_result_callback: Callback | None = None,
    checkpoints: Checkpoints | None = None,
    on_outcomes: Callable[[Sequence[LesionData]], Any] = lambda _: None,
    stop_on_first_crash: bool = False,
    show_progress: bool = True,
) -> list[LesionData]:
    """Map lesions in batches that were planned before: what `batch_process` does once it has its plan.

    Parameters
    ----------
    plan
        As from `plan_run`.
    checkpoints
        Where moments are saved within a pass; batches are those of the run that is taken up there.
    on_outcomes
        Called with the lesions of a batch that could not be loaded, before the others are mapped; and with all of
        its lesions once it is over.
    stop_on_first_crash
        Begin nothing new once a lesion has failed: its batch is not mapped if it could not be loaded, and no other
        batch is.
    lesions, analysis, n_threads, batch_result_callback, show_progress
        As for `batch_process`.

    Returns
    -------
    list of LesionData
        One for every input, in order; without those that were not begun because of `stop_on_first_crash`.
    """
    keys = lesion_keys(lesions)
    places = {key: place for place, key in enumerate(keys)}
    waiting = checkpoints.divide(keys, plan.batch_size) if checkpoints else subdivide([keys], plan.batch_size)
    processed: dict[str, LesionData] = {}
    n_subjects = analysis.connectome.n_subjects
    if lesions:
        logger.info(
            "lesions: %d; passes over %d connectome subjects: %d, of up to %d lesions each",
            len(lesions),
            n_subjects,
            len(waiting),
            max(map(len, waiting)),
        )
    with Progress(len(lesions) * n_subjects, "mapping", "lesion-subject", shown=show_progress) as progress:
        number = 0
        while waiting:
            if number and len(waiting[0]) > (fits := analysis.fitting_now(plan)):
                waiting = subdivide(waiting, fits)
                logger.warning("less memory is free than before: batches of up to %d lesions are mapped", fits)
            batch = [replace(lesions[places[key]], batch=number + 1, error=None, results={}) for key in waiting[0]]
            if checkpoints:
                checkpoints.begin(waiting)
            progress.describe(f"mapping batch {number + 1} of {number + len(waiting)}")
            outcomes = _process_batch(
                batch,
                analysis,
                plan,
                n_threads,
                batch_result_callback,
                checkpoints,
                on_outcomes,
                stop_on_first_crash,
                progress.update,
            )
            if outcomes is None:
                half = ceil(len(batch) / 2)
                waiting = subdivide(waiting, half)
                logger.warning("the memory ran out: batches of up to %d lesions are mapped", half)
                progress.update(len(processed) * n_subjects - progress.n)
                continue
            number += 1
            begun = {
                key: lesion for key, lesion in zip(waiting.pop(0), outcomes, strict=True) if lesion.batch is not None
            }
            processed |= begun
            on_outcomes(list(begun.values()))
            progress.update(len(processed) * n_subjects - progress.n)
            n_batches = number + len(waiting)
            logger.info("batch %d of %d: %d of %d lesions", number, n_batches, len(processed), len(lesions))
            if stop_on_first_crash and any(lesion.error for lesion in begun.values()):
                break
        else:
            if checkpoints:
                checkpoints.end()
    return [processed[key] for key in keys if key in processed]


def _process_batch(
    batch: list[LesionData],
    analysis: FunctionalNetworkMapping,
    plan: BatchPlan,
    n_threads: int,
    callback: Callback | None,
    checkpoints: Checkpoints | None,
    on_outcomes: Callable[[Sequence[LesionData]], Any],
    stop_on_first_crash: bool,
    advance: Callable[[int], Any],
) -> list[LesionData] | None:
    """Load, map and hand over one batch; what fails is written on the lesions that it concerns.

    Returns
    -------
    list of LesionData or None
        None where the memory ran out for several lesions, fewer of which may fit it.
    """
    batch = load_lesions(batch, analysis, n_threads)
    loaded = [lesion for lesion in batch if not lesion.error]
    if failed := [lesion for lesion in batch if lesion.error]:
        on_outcomes(failed)
        if stop_on_first_crash:
            return [lesion if lesion.error else replace(lesion, weights=None, batch=None) for lesion in batch]
    _warn_of_low_coverage(loaded)
    if not loaded:
        return batch
    passing = (MappingStopped, *([MemoryError] if len(loaded) > 1 else []))
    try:
        mapped = _isolate(partial(_map, loaded, analysis, plan, n_threads, checkpoints, advance), loaded, passing)
    except MemoryError:
        return None
    if mapped is None:
        for lesion in loaded:
            lesion.weights = None
        return batch
    for lesion in mapped:
        if lesion.error:
            log_failure(logger, [lesion.name], lesion.error)
    usable = [lesion for lesion in mapped if not lesion.error]
    _isolate(partial(_hand_over, usable, analysis.name, callback), usable)
    finished = iter(mapped)
    return [lesion if lesion.error else next(finished) for lesion in batch]


def _map(
    loaded: list[LesionData],
    analysis: FunctionalNetworkMapping,
    plan: BatchPlan,
    n_threads: int,
    checkpoints: Checkpoints | None,
    advance: Callable[[int], Any],
) -> list[LesionData]:
    """Map one batch within its plan."""
    return analysis.map_batch(
        loaded,
        n_threads,
        plan.subjects_in_memory,
        # A connectome that doesn't fit beside the run leaves the page cache before its next pass anyway.
        keep_cached=analysis.connectome.n_bytes <= plan.available_bytes - plan.peak_bytes,
        checkpoints=checkpoints,
        on_subject=lambda: advance(len(loaded)),
    )


def load_lesions(lesions: list[LesionData], analysis: FunctionalNetworkMapping, n_threads: int) -> list[LesionData]:
    """Load lesions, several at a time; one that cannot be loaded has its reason."""
    with (
        # A lesion's matrices are so small that BLAS's threads would wait for each other.
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(max(1, min(n_threads, LOADED_AT_ONCE)), thread_name_prefix="lesion") as pool,
    ):
        loads = [pool.submit(analysis.load, lesion) for lesion in lesions]
        try:
            return [_isolate(load.result, [lesion]) or lesion for load, lesion in zip(loads, lesions, strict=True)]
        finally:
            # After Ctrl-C, those that wait need not be loaded.
            pool.shutdown(cancel_futures=True)


def _hand_over(mapped: Sequence[LesionData], analysis_name: str, callback: Callback | None) -> None:
    """Give a batch's results to the callback, if there are any, and release them; without one, keep them."""
    all_maps = [lesion.results[analysis_name] for lesion in mapped]
    if callback is None:
        for maps in all_maps:
            maps.keep()
        return
    try:
        if mapped:
            callback(list(mapped))
    finally:
        for lesion, maps in zip(mapped, all_maps, strict=True):
            maps.release()
            lesion.results = {}


def _isolate(
    work: Callable[[], T], lesions: Sequence[LesionData], passing: tuple[type[Exception], ...] = ()
) -> T | None:
    """Do some work for lesions; if it raises, but for `passing`, they fail with its reason and all else goes on."""
    try:
        return work()
    except passing:
        raise
    except Exception as error:
        reason = describe(error)
        for lesion in lesions:
            lesion.error = reason
        log_failure(logger, [lesion.name for lesion in lesions], reason)
        return None


def describe(error: Exception) -> str:
    """Put an exception into words: the sentences of our own errors as they are, others with their kind."""
    if isinstance(error, (ValueError, OSError, MemoryError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _warn_of_low_coverage(lesions: Sequence[LesionData]) -> None:
    for lesion in lesions:
        if lesion.coverage is not None and lesion.coverage < LOW_COVERAGE:
            logger.warning(
                "%s: only %.0f %% of the lesion lies inside the connectome's mask; its map describes that part",
                lesion.name,
                100 * lesion.coverage,
            )
