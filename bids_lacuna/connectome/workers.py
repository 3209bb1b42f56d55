"""The processes of a build: each reads one subject at a time, writes it, and records it."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bids_lacuna.connectome.compression import Rank, rotate
from bids_lacuna.connectome.importers.source import Source
from bids_lacuna.connectome.records import read_signature, stored_runs, write_record
from bids_lacuna.connectome.store import Store, StoredSubject, StoreDtype, write_subject
from bids_lacuna.runtime.processes import prepare_worker
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.text import format_bytes

logger = logging.getLogger(__name__)

GRACE_S = 1.0
"""Between a process that was killed and the signal that may end this one, too."""

LOGGED_SHARES = 10
"""Progress is logged as often in all, for those who read a file instead of watching the bar."""


class DamagedSource(ValueError):  # noqa: N818  a fact about the source, not a defect of the program
    """Some subjects cannot be read; all others are written, and the build can go on once these are mended."""


@dataclass(frozen=True, eq=False)
class Job:
    """What every process of a build knows."""

    source: Source
    folder: Path
    dtype: StoreDtype
    rank: Rank
    rank_tolerance: float
    settings: str
    """Hash of what all files of the store depend on: dtype, rank and grid."""


@dataclass(frozen=True)
class _Written:
    """A subject that was written."""

    name: str
    stored: StoredSubject
    has_signal: bool
    """In any voxel."""


@dataclass(frozen=True)
class _Damage:
    """Why a subject cannot be read."""

    name: str
    reason: str


def write_subjects(
    job: Job, wanted: Store, recorded: Mapping[str, StoredSubject], n_processes: int, show_progress: bool
) -> dict[str, StoredSubject]:
    """Write the subjects that are not recorded yet."""
    places = [place for place, subject in enumerate(job.source.subjects) if subject.name not in recorded]
    n_bytes = {subject.name: wanted.bytes_of(recorded.get(subject.name, subject)) for subject in wanted.subjects}
    logger.info(
        "to write to %s: %d of %d subjects, of %s in all%s; processes: %d",
        job.folder,
        len(places),
        len(n_bytes),
        format_bytes(sum(n_bytes.values())),
        " at most" if job.rank == "auto" else "",
        n_processes,
    )
    written, damaged = {}, {}
    with (
        Progress(
            sum(n_bytes.values()),
            "building",
            "B",
            initial=sum(n_bytes[name] for name in recorded),
            shown=show_progress,
            in_bytes=True,
        ) as progress,
        _processes(job, n_processes) as pool,
    ):
        # Processes that are just starting must not answer Ctrl-C: they take this over.
        with _ignoring_interrupts():
            futures: list[Future[_Written | _Damage]] = [pool.submit(_write_subject, place) for place in places]
        try:
            for n_done, future in enumerate(as_completed(futures), start=1):
                outcome = future.result()
                if isinstance(outcome, _Written):
                    # Fewer than planned, where the rank "auto" left components out.
                    planned, n_bytes[outcome.name] = n_bytes[outcome.name], wanted.bytes_of(outcome.stored)
                    progress.change_total(n_bytes[outcome.name] - planned)
                progress.update(n_bytes[outcome.name])
                if isinstance(outcome, _Damage):
                    damaged[outcome.name] = outcome.reason
                    logger.error("sub-%s: %s", outcome.name, outcome.reason)
                    continue
                written[outcome.name] = outcome.stored
                if not outcome.has_signal:
                    logger.warning(
                        "sub-%s has no signal in any voxel, since each series is constant or has a value that is not "
                        "finite: it will count in no map",
                        outcome.name,
                    )
                if n_done * LOGGED_SHARES // len(futures) > (n_done - 1) * LOGGED_SHARES // len(futures):
                    logger.info("%d of %d subjects", len(recorded) + n_done, len(n_bytes))
        except BrokenProcessPool as error:
            # Where a scheduler ends them all, this process may be told last: it ends for that reason then.
            time.sleep(GRACE_S)
            raise MemoryError(
                "a process of the build was killed, most likely since the memory ran out, or could not start: run "
                "the same command with a smaller --nprocs, it goes on from where it stopped"
            ) from error
    if damaged:
        _refuse(damaged, len(n_bytes))
    return written


def _refuse(damaged: Mapping[str, str], n_subjects: int) -> NoReturn:
    name, reason = min(damaged.items())
    raise DamagedSource(
        f"{len(damaged)} of {n_subjects} subjects cannot be read, the first: sub-{name}: {reason}. All others are "
        "written: mend what is damaged, and run the same command again"
    )


@contextmanager
def _processes(job: Job, n_processes: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes that know the job; what was not begun when the block fails is not begun any more."""
    pool = ProcessPoolExecutor(
        n_processes, multiprocessing.get_context("spawn"), initializer=_start_process, initargs=(job,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, where signals may be set: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_job: Job
"""Of a process of a build."""


def _start_process(job: Job) -> None:
    global _job
    _job = job
    prepare_worker()


def _write_subject(place: int) -> _Written | _Damage:
    """Read one subject of the source, write it, and record it."""
    subject = _job.source.subjects[place]
    try:
        signature = read_signature(subject)
        standardized = _job.source.read(subject)
    except (OSError, ValueError) as error:
        return _Damage(subject.name, str(error))
    standardized, r_error_bound = rotate(standardized, _job.rank, _job.rank_tolerance)
    sha256 = write_subject(_job.folder, subject.name, standardized, _job.dtype)
    n_components = standardized[0].shape[1]
    stored = StoredSubject(
        subject.name, subject.n_timepoints, n_components, r_error_bound, stored_runs(subject), sha256
    )
    write_record(_job.folder, stored, signature, _job.settings)
    return _Written(stored.name, stored, has_signal=bool(standardized[1].any()))
