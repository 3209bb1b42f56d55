"""Worker processes of a build: each reads, writes and records one subject at a time."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from bids_lacuna.connectome.compression import rotate
from bids_lacuna.connectome.importers import nifti
from bids_lacuna.connectome.importers.archive import PackedSubject
from bids_lacuna.connectome.importers.source import Source, SourceSubject
from bids_lacuna.connectome.records import read_signature, stored_runs, write_record
from bids_lacuna.connectome.store import BUILDING, Rank, Store, StoredSubject, StoreDtype, write_subject
from bids_lacuna.files import FileState, check_unchanged
from bids_lacuna.runtime.processes import prepare_worker, start_pool
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.text import format_bytes

logger = logging.getLogger(__name__)

Array = np.ndarray
T = TypeVar("T")

GRACE_S = 1.0
"""Seconds from the loss of a worker to the error, in which SIGTERM may reach this process, too."""

N_LOGGED_STEPS = 10
"""Number of times that progress is logged, for readers of a log file instead of the bar."""


class DamagedSource(ValueError):  # noqa: N818  a fact about the source, not a defect of the program
    """Some subjects cannot be read; all others were written. The build can be resumed once they are repaired."""


@dataclass(frozen=True, eq=False)
class Job:
    """The part of a build that every worker process knows."""

    source: Source
    folder: Path
    dtype: StoreDtype
    rank: Rank
    rank_tolerance: float
    settings: str
    """From `records.hash_settings`."""


@dataclass(frozen=True, eq=False)
class _Read:
    """A subject that was read."""

    standardized: tuple[Array, Array, Array]
    """Series, scale and sd, from `compression.rotate`."""
    r_error_bound: float
    no_signal: str
    """Why no voxel has a signal; "" if one has."""
    signature: list[Any]
    """From `records.read_signature`."""


@dataclass(frozen=True)
class Written:
    """A subject that was written."""

    name: str
    stored: StoredSubject
    no_signal: str
    """Why no voxel has a signal; "" if one has."""


@dataclass(frozen=True)
class Damage:
    """A subject that cannot be read, and why."""

    name: str
    reason: str


Outcome = Future[Written | Damage]
"""What a worker process makes of a subject."""


def write_subjects(
    job: Job, wanted: Store, recorded: Mapping[str, StoredSubject], n_processes: int, show_progress: bool
) -> dict[str, StoredSubject]:
    """Write the subjects that are not recorded yet.

    Raises
    ------
    DamagedSource
        Some subjects cannot be read; all others were written.
    MemoryError
        A worker process was killed.
    """
    indices = [i for i, subject in enumerate(job.source.subjects) if subject.name not in recorded]
    n_bytes = {subject.name: wanted.bytes_of(recorded.get(subject.name, subject)) for subject in wanted.subjects}
    logger.info(
        "writing %d of %d subjects to %s, %s in total%s; processes: %d",
        len(indices),
        len(n_bytes),
        job.folder,
        format_bytes(sum(n_bytes.values())),
        " at most" if job.rank == "auto" else "",
        n_processes,
    )
    n_recorded = sum(n_bytes[name] for name in recorded)
    written, damaged = {}, {}
    with (
        Progress(
            sum(n_bytes.values()), "building", "B", initial=n_recorded, shown=show_progress, in_bytes=True
        ) as progress,
        processes(job, n_processes) as pool,
    ):
        futures = submit(pool, _write_subject, indices)
        for n_done, outcome in enumerate(outcomes(futures), start=1):
            if isinstance(outcome, Written):
                # The rank "auto" may store fewer components than planned.
                planned, n_bytes[outcome.name] = n_bytes[outcome.name], wanted.bytes_of(outcome.stored)
                progress.change_total(n_bytes[outcome.name] - planned)
            progress.update(n_bytes[outcome.name])
            if isinstance(outcome, Damage):
                damaged[outcome.name] = outcome.reason
                continue
            written[outcome.name] = outcome.stored
            if n_done * N_LOGGED_STEPS // len(futures) > (n_done - 1) * N_LOGGED_STEPS // len(futures):
                logger.info("%d of %d subjects", len(recorded) + n_done, len(n_bytes))
    if damaged:
        _refuse(damaged, len(n_bytes))
    return written


def outcomes(futures: Iterable[Outcome]) -> Iterator[Written | Damage]:
    """Yield and log what becomes of subjects, as their processes end; raise MemoryError if a process was killed."""
    try:
        for future in as_completed(futures):
            outcome = future.result()
            if isinstance(outcome, Damage):
                logger.error("sub-%s: %s", outcome.name, outcome.reason)
            elif outcome.no_signal:
                logger.warning(
                    "sub-%s has no signal in any voxel (%s): no map will include this subject",
                    outcome.name,
                    outcome.no_signal,
                )
            yield outcome
    except BrokenProcessPool as error:
        # A scheduler that ends all processes may signal this one last; SIGTERM is then the reason to report.
        time.sleep(GRACE_S)
        raise MemoryError(
            "a process of the build was killed, most likely for lack of memory, or could not start: rerun the "
            "same command with a smaller --nprocs to resume"
        ) from error


def _refuse(damaged: Mapping[str, str], n_subjects: int) -> NoReturn:
    name, reason = min(damaged.items())
    raise DamagedSource(
        f"{len(damaged)} of {n_subjects} subjects cannot be read, the first: sub-{name}: {reason}. All others were "
        "written: repair the damaged files and rerun the same command to resume"
    )


@contextmanager
def processes(job: Job, n_processes: int) -> Iterator[Executor]:
    """Start worker processes that know the job; if the block fails, pending subjects are cancelled."""
    pool = start_pool(n_processes, _start_process, job)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def submit(pool: Executor, write: Callable[[T], Written | Damage], subjects: Iterable[T]) -> list[Outcome]:
    """Give subjects to worker processes."""
    # Workers inherit this: they must ignore Ctrl-C while they start, too.
    with _ignoring_interrupts():
        return [pool.submit(write, subject) for subject in subjects]


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in the main thread, the only one that may handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_job: Job
"""The job of this worker process."""


def _start_process(job: Job) -> None:
    global _job
    _job = job
    prepare_worker()


def _write_subject(index: int) -> Written | Damage:
    """Read, write and record one subject of the source."""
    subject = _job.source.subjects[index]
    read = _read(_job.source, subject)
    return read if isinstance(read, Damage) else _write(subject, read)


def write_unpacked(packed: PackedSubject) -> Written | Damage:
    """Unpack, read, write and record one subject of an archive; its files are removed before it is written."""
    with packed.unpacked(_job.folder / BUILDING) as folder:
        try:
            source = nifti.open_folder(folder, _job.source.grid, packed.pattern)
            (subject,) = source.subjects
            read = _read(source, subject)
        except (OSError, ValueError) as error:
            read = Damage(packed.name, str(error))
        if isinstance(read, Damage):
            return replace(read, reason=read.reason.replace(str(folder), str(packed.archive)))
    return _write(subject, read)


def _read(source: Source, subject: SourceSubject) -> _Read | Damage:
    """Read one subject of a source, and reduce its components."""
    try:
        signature = read_signature(subject)
        states = {path: FileState.of(path) for path in source.files_of(subject)}
        standardized = source.read(subject)
        no_signal = "" if standardized[1].any() else source.explain_no_signal(subject)
        check_unchanged(states)
    except (OSError, ValueError) as error:
        return Damage(subject.name, str(error))
    standardized, r_error_bound = rotate(standardized, _job.rank, _job.rank_tolerance)
    return _Read(standardized, r_error_bound, no_signal, signature)


def _write(subject: SourceSubject, read: _Read) -> Written:
    """Write and record one subject that has been read."""
    sha256 = write_subject(_job.folder, subject.name, read.standardized, _job.dtype)
    n_components = read.standardized[0].shape[1]
    stored = StoredSubject(
        subject.name, subject.n_timepoints, n_components, read.r_error_bound, stored_runs(subject), sha256
    )
    write_record(_job.folder, stored, read.signature, _job.settings)
    return Written(stored.name, stored, read.no_signal)
