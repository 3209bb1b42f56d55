"""Many lesions in batches that fit the memory, with a callback after each batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from bids_lacuna.images import unpacked_bytes
from bids_lacuna.kernels import single_threaded_blas
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping import LesionAnalysis, LocalPass, NoResults, Pass, PassStopped
from bids_lacuna.quality import LOW_COVERAGE
from bids_lacuna.runtime.checkpoint import Checkpoints, subdivide
from bids_lacuna.runtime.logs import log_failure
from bids_lacuna.runtime.memory import find_resources
from bids_lacuna.runtime.plan import BatchPlan, BatchSize
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.text import percent
from bids_lacuna.weights import Rows

logger = logging.getLogger(__name__)

T = TypeVar("T")

Strategy = Literal["vectorized", "sequential"]
Callback = Callable[[list[LesionData]], Any]

LOADED_AT_ONCE = 4
"""Largest number of lesions that are loaded at once: each needs memory beside its weights, and Python's lock."""

SMALL_MASK_BYTES = 2**21
"""Largest size of masks, without compression, that are loaded one after another. Two thirds of the time of a mask at
2 mm need Python's lock: two threads took a fifth longer than one, and a quarter more processor time."""


class Observer(Protocol):
    """What is told of each batch, beside the callback that gets its results."""

    def on_started(self, lesions: Sequence[LesionData]) -> None:
        """Hear of a batch's lesions before their masks are read."""

    def on_failed(self, lesions: Sequence[LesionData]) -> None:
        """Hear of the lesions of a batch that could not be loaded, before the others are mapped."""

    def on_finished(self, lesions: Sequence[LesionData]) -> None:
        """Hear of all lesions of a batch once it is over."""


class Unobserved:
    """Observer that does nothing."""

    def on_started(self, lesions: Sequence[LesionData]) -> None:
        """Do nothing."""

    on_failed = on_finished = on_started


def batch_process(
    lesions: Sequence[LesionData],
    analysis: LesionAnalysis,
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
        Each mask is read when its batch begins.
    analysis
        The analysis of each lesion.
    strategy
        "vectorized": batches of `lesion_batch_size`, each in one pass over the connectome. "sequential": batches
        of one lesion.
    lesion_batch_size
        "auto": as many as fit the memory, in batches of equal size. A number: that many. None: all at once.
        Oversized batches are split, with a warning.
    batch_result_callback
        Called after each batch with the list of its mapped lesions; its return value is ignored. Once it returns,
        the maps are released. If it raises, its batch's lesions fail with that reason. Without it, the results of
        all lesions are kept and returned.
    checkpoint_dir
        A folder of this run's own. The sums of the current batch are saved there now and then, and when the process
        is told to end (SIGINT, SIGTERM, SIGHUP, SIGUSR2, SIGXCPU); called again with the same lesions, it resumes
        from them. A run that ends well leaves the folder empty.
    checkpoint_minutes
        Minutes between checkpoints.
    show_progress
        Show one bar over lesions x connectome subjects where stderr is a terminal.
    available_bytes
        Memory that the process may occupy in total; by default, what the machine, the container or the scheduler
        leaves it.
    n_threads
        Threads of the kernels; by default all processors that the process may use, and on a Dask cluster the threads
        that each worker was started with.
    client
        A `distributed.Client`: the passes over the connectome run on its workers, which open the connectome by its
        path. Maps are bit-identical for any number of workers, and equal to rounding to those made without Dask.

    Returns
    -------
    list of LesionData
        One for every input, in order. A lesion that failed has its `error` and no results; it stops no other.

    Raises
    ------
    ValueError
        An argument has an unknown value.
    MemoryError
        Not one lesion fits the memory; the message has both numbers.
    PassStopped
        The Dask cluster is out of reach; call again to resume from the checkpoints.
    """
    if strategy not in ("vectorized", "sequential"):
        raise ValueError(f"strategy is {strategy!r}: it must be 'vectorized' or 'sequential'")
    for index, lesion in enumerate(lesions):
        if not isinstance(lesion, LesionData):
            raise TypeError(
                f"lesions[{index}] is a {type(lesion).__name__}: make it with LesionData.from_nifti(path)"
            )
    if unnamed := [lesion.name for lesion in lesions if not lesion.metadata.get("space")]:
        logger.warning(
            "lesions without a space in their metadata: %d, such as %s: their masks are taken to be in the "
            'connectome\'s; give metadata={"space": "MNI152NLin2009cAsym"} or another name',
            len(unnamed),
            unnamed[0],
        )
    resources = find_resources(n_threads=n_threads)
    if available_bytes is not None:
        resources = replace(resources, available_bytes=available_bytes, source="available_bytes")
    pass_: Pass = LocalPass(analysis, resources)
    if client is not None:
        # Dask is an optional dependency.
        from bids_lacuna.cluster import ClusterPass

        pass_ = ClusterPass(analysis, client, resources, n_threads)
    plan = pass_.plan(
        len(lesions), 1 if strategy == "sequential" else lesion_batch_size, keep_results=batch_result_callback is None
    )
    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = Checkpoints(Path(checkpoint_dir), 60 * checkpoint_minutes, analysis.identity)
    return process_batches(
        lesions,
        analysis,
        pass_,
        plan,
        batch_result_callback=batch_result_callback,
        checkpoints=checkpoints,
        show_progress=show_progress,
    )


def process_batches(
    lesions: Sequence[LesionData],
    analysis: LesionAnalysis,
    pass_: Pass,
    plan: BatchPlan,
    *,
    batch_result_callback: Callback | None = None,
    checkpoints: Checkpoints | None = None,
    observer: Observer | None = None,
    stop_on_first_crash: bool = False,
    show_progress: bool = True,
) -> list[LesionData]:
    """Map lesions in batches that were planned before: what `batch_process` does once it has its plan.

    Parameters
    ----------
    pass_, plan
        What takes each batch through the connectome, and its plan.
    checkpoints
        Where sums are saved within a pass; batches are those of the run that is resumed from there.
    observer
        Is told of each batch.
    stop_on_first_crash
        Begin nothing new once a lesion has failed: its batch is not mapped if it could not be loaded, and no other
        batch is.
    lesions, analysis, batch_result_callback, show_progress
        As for `batch_process`.

    Returns
    -------
    list of LesionData
        One for every input, in order; without those that were not begun because of `stop_on_first_crash`.
    """
    keyed = dict(zip(lesion_keys(lesions), lesions, strict=True))
    keys, size = list(keyed), plan.batch_size
    waiting = checkpoints.divide(keys, size) if checkpoints else subdivide([keys], size)
    processed: dict[str, LesionData] = {}
    n_subjects = analysis.n_subjects
    if lesions:
        words = "lesions: %d; passes over %d connectome subjects: %d, with up to %d lesions each"
        logger.info(words, len(lesions), n_subjects, len(waiting), max(map(len, waiting)))
    with Progress(len(lesions) * n_subjects, "mapping", "lesion-subject", shown=show_progress) as progress:
        told = observer or Unobserved()
        batches = _Batches(
            analysis, pass_, plan, batch_result_callback, checkpoints, told, stop_on_first_crash, progress.update
        )
        number = 0
        while waiting:
            if number and len(waiting[0]) > (fits := pass_.fitting_now(plan)):
                waiting = subdivide(waiting, fits)
                logger.warning("less memory is free than before: using batches of up to %d lesions", fits)
            if checkpoints:
                checkpoints.begin(waiting)
            progress.describe(f"mapping batch {number + 1} of {number + len(waiting)}")
            batch = {key: replace(keyed[key], batch=number + 1, error=None, results={}) for key in waiting[0]}
            begun = batches.process(batch)
            processed |= begun or {}
            progress.update(len(processed) * n_subjects - progress.n)
            if begun is None:
                half = ceil(len(batch) / 2)
                waiting = subdivide(waiting, half)
                logger.warning("the memory ran out: using batches of up to %d lesions", half)
                continue
            number += 1
            waiting.pop(0)
            n_batches = number + len(waiting)
            logger.info("batch %d of %d: %d of %d lesions", number, n_batches, len(processed), len(lesions))
            if stop_on_first_crash and any(lesion.error for lesion in begun.values()):
                break
        else:
            if checkpoints:
                checkpoints.end()
    return [processed[key] for key in keyed if key in processed]


def lesion_keys(lesions: Sequence[LesionData]) -> list[str]:
    """Name lesions so that a later run recognizes them: the mask's path, and a number where it comes again."""
    seen = Counter[str]()
    keys = []
    for lesion in lesions:
        key = str(lesion.mask.absolute()) if isinstance(lesion.mask, Path) else lesion.name
        seen[key] += 1
        keys.append(key if seen[key] == 1 else f"{key} ({seen[key]})")
    return keys


@dataclass(frozen=True)
class _Batches:
    """Processes one batch after another; a failure is recorded on the lesions that it concerns."""

    analysis: LesionAnalysis
    pass_: Pass
    plan: BatchPlan
    callback: Callback | None
    checkpoints: Checkpoints | None
    observer: Observer
    stop_on_first_crash: bool
    advance: Callable[[int], Any]

    def process(self, batch: dict[str, LesionData]) -> dict[str, LesionData] | None:
        """Load, map and hand over one batch.

        Returns
        -------
        dict or None
            The lesions that were begun, by their keys; None where the memory ran out for several lesions, fewer of
            which may fit it.
        """
        self.observer.on_started(list(batch.values()))
        loaded = load_lesions(list(batch.values()), self.analysis, self.pass_.resources.n_threads)
        batch = dict(zip(batch, loaded, strict=True))
        failed = {key: lesion for key, lesion in batch.items() if lesion.error}
        if failed:
            self.observer.on_failed(list(failed.values()))
            if self.stop_on_first_crash:
                self.observer.on_finished(list(failed.values()))
                return failed
        usable = {key: lesion for key, lesion in batch.items() if key not in failed}
        _warn_of_masks(list(usable.values()))
        if usable:
            passing = (PassStopped, *([MemoryError] if len(usable) > 1 else []))
            try:
                mapped = _isolate(partial(self._map, usable), list(usable.values()), passing)
            except MemoryError:
                return None
            if mapped is not None:
                batch |= mapped
                usable = {key: lesion for key, lesion in mapped.items() if not lesion.error}
                results = list(usable.values())
                _isolate(partial(_hand_over, results, self.analysis.name, self.callback), results)
        for lesion in batch.values():
            lesion.weights = lesion.outside = None
        self.observer.on_finished(list(batch.values()))
        return batch

    def _map(self, loaded: Mapping[str, LesionData]) -> dict[str, LesionData]:
        """Map loaded lesions in the connectome."""
        rows = Rows.of({key: self.analysis.row(lesion) for key, lesion in loaded.items()})
        accumulator = self.pass_.run(rows, self.plan, self.checkpoints, lambda: self.advance(len(loaded)))
        mapped = {}
        for row, (key, lesion) in enumerate(loaded.items()):
            try:
                results = {self.analysis.name: self.analysis.results(lesion, accumulator, row)}
                mapped[key] = replace(lesion, results=results)
            except NoResults as error:
                mapped[key] = replace(lesion, weights=None, outside=None, error=str(error))
                log_failure(logger, [lesion.name], str(error))
        return mapped


def load_lesions(lesions: list[LesionData], analysis: LesionAnalysis, n_threads: int) -> list[LesionData]:
    """Load lesions, large masks several at a time; one that cannot be loaded gets its reason."""
    n_loaders = _n_loaders(lesions, n_threads)
    # A lesion's matrices are so small that BLAS's threads would wait for each other.
    with single_threaded_blas():
        if n_loaders == 1:
            # A thread would wait for this one's lock, and this one for the thread's, with each mask.
            return [_isolate(partial(analysis.load, lesion), [lesion]) or lesion for lesion in lesions]
        with ThreadPoolExecutor(n_loaders, thread_name_prefix="lesion") as pool:
            loads = [pool.submit(analysis.load, lesion) for lesion in lesions]
            try:
                results = [load.result for load in loads]
                return [_isolate(result, [lesion]) or lesion for result, lesion in zip(results, lesions, strict=True)]
            finally:
                # After Ctrl-C, those that wait need not be loaded.
                pool.shutdown(cancel_futures=True)


def _n_loaders(lesions: Sequence[LesionData], n_threads: int) -> int:
    """Return the number of threads that load lesions, by the size of the first mask."""
    first = lesions[0].mask
    # What is wrong with a file is reported when it is loaded.
    with suppress(OSError):
        if isinstance(first, Path) and unpacked_bytes(first) <= SMALL_MASK_BYTES:
            return 1
    return max(1, min(n_threads, LOADED_AT_ONCE))


def _hand_over(mapped: Sequence[LesionData], analysis_name: str, callback: Callback | None) -> None:
    """Pass a batch's results to the callback, if there are any, and release them; without a callback, keep them."""
    all_results = [lesion.results[analysis_name] for lesion in mapped]
    if callback is None:
        for results in all_results:
            results.keep()
        return
    try:
        if mapped:
            callback(list(mapped))
    finally:
        for lesion, results in zip(mapped, all_results, strict=True):
            results.release()
            lesion.results = {}


def _isolate(
    work: Callable[[], T], lesions: Sequence[LesionData], passing: tuple[type[Exception], ...] = ()
) -> T | None:
    """Do some work for lesions; an exception other than `passing` fails them with its reason, and no others."""
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
    """Describe an exception: our own errors by their sentence, others with their type as well."""
    if isinstance(error, (ValueError, OSError, MemoryError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _warn_of_masks(lesions: Sequence[LesionData]) -> None:
    """Warn of masks that a person should look at."""
    for lesion in lesions:
        if lesion.facts and lesion.facts.remarks:
            logger.warning("%s: look at the mask: %s", lesion.name, "; ".join(lesion.facts.remarks))
        if lesion.coverage is not None and lesion.coverage < LOW_COVERAGE:
            logger.warning(
                "%s: only %s of the lesion lies inside the connectome's mask; its map describes that part",
                lesion.name,
                percent(lesion.coverage),
            )
