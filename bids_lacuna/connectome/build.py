"""Make a store of somebody's connectome: subject by subject, in several processes, and on from where it stopped."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from threadpoolctl import threadpool_limits

from bids_lacuna.connectome.compression import TOLERANCE, Rank, most_components, rotate, rotation_bytes
from bids_lacuna.connectome.importers.source import Source, SourceSubject
from bids_lacuna.connectome.store import (
    BUILDING,
    DESCRIPTION,
    Store,
    StoredRun,
    StoredSubject,
    StoreDtype,
    array_path,
    is_store,
    is_subject_name,
    this_software,
    write_subject,
)
from bids_lacuna.files import read_json_object, remove_unfinished, write_json
from bids_lacuna.runtime.memory import give_back_freed_memory
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.text import format_bytes

logger = logging.getLogger(__name__)

PROCESS_BYTES = 200 * 2**20
"""What the interpreter and the libraries of one process occupy."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks answers."""

GRACE_S = 1.0
"""Between a process that was killed and the signal that may end this one, too."""

LOGGED_SHARES = 10
"""Progress is logged as often in all, for those who read a file instead of watching the bar."""


class DamagedSource(ValueError):  # noqa: N818  a fact about the source, not a defect of the program
    """Some subjects cannot be read; all others are written, and the build can go on once these are mended."""


class NoPlace(OSError):  # noqa: N818  a fact about the disk, not a defect of the program
    """The store's folder cannot be made."""


class NoRoom(OSError):  # noqa: N818  a fact about the disk, not a defect of the program
    """The disk lacks room for the store; the message has both numbers."""


@dataclass(frozen=True, eq=False)
class _Job:
    """What every process of a build knows."""

    source: Source
    folder: Path
    dtype: StoreDtype
    rank: Rank
    rank_tolerance: float
    settings: str
    """Hash of what all files of the store depend on: dtype, rank and grid."""


def build_store(
    source: Source,
    root: Path,
    folder: Path,
    *,
    name: str,
    space: str,
    dtype: StoreDtype = "int16",
    rank: Rank = "full",
    rank_tolerance: float = TOLERANCE,
    n_processes: int = 1,
    show_progress: bool = True,
) -> Store:
    """Write a store, or what is missing of it.

    Each subject is written under temporary names and renamed, then recorded; the description comes last. A build
    that was killed goes on from its records, and ends with the bytes that it would have had. Each process has one
    subject in memory. Processes are started afresh: a script that calls this needs `if __name__ == "__main__":`.

    Parameters
    ----------
    source
        As an importer opened it.
    root
        Folder of the source; its files are recorded by their paths below it.
    folder
        Of the store: new, empty, or with an unfinished build of the same source.
    name
        Of the connectome: letters and digits.
    space
        Name of the template that the source is in.
    dtype
        Of the series.
    rank
        How many components each subject's series are stored in: one for each timepoint, as they are ("full"); as
        few as `rank_tolerance` allows ("auto"); or a number, where there are more timepoints.
    rank_tolerance
        In r: the largest bound on the error ("auto"), or the one above which there is a warning (a number). See
        `rank.error_bounds`.
    n_processes
        How many subjects are read at once.
    show_progress
        A bar with bytes and time left, where stderr is a terminal.

    Returns
    -------
    Store
        Finished. One that was finished before is only opened.

    Raises
    ------
    FileExistsError
        The folder holds something else, or another process is building there.
    NoPlace
        The folder cannot be made.
    NoRoom
        The disk lacks room; nothing is written.
    DamagedSource
        Subjects cannot be read; all others are written.
    ValueError
        Two subjects have one name.
    MemoryError
        A process was killed from outside.
    OSError
        The store cannot be written.
    """
    _check_names(source)
    wanted = _describe(source, root, folder, name, space, dtype, rank, rank_tolerance)
    check_folder(folder)
    if (folder / DESCRIPTION).exists():
        return _take_finished(wanted)
    job = _Job(source, folder, dtype, rank, rank_tolerance, _hash_settings(wanted))
    with _locked(folder):
        if (folder / DESCRIPTION).exists():
            return _take_finished(wanted)
        recorded = _read_records(job, wanted)
        remove_unfinished(folder)
        remove_unfinished(folder / BUILDING)
        _remove_unrecorded(folder, recorded)
        _check_room(wanted, recorded)
        recorded |= _write_subjects(job, wanted, recorded, n_processes, show_progress)
        store = replace(wanted, subjects=tuple(recorded[subject.name] for subject in source.subjects))
        for subject in store.subjects:
            store.check_files(subject)
        store.save()
        # Network file systems keep the name of a file that is open, such as the lock.
        shutil.rmtree(folder / BUILDING, ignore_errors=True)
    _warn_of_bound(store, rank_tolerance)
    return store


def check_folder(folder: Path) -> None:
    """Raise FileExistsError where a folder holds something else than a store, finished or not."""
    if folder.exists() and not is_store(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} is there already, and is no connectome store: name a new folder for the store"
        )


def processes_that_fit(source: Source, n_processes: int, available_bytes: int, rank: Rank = "full") -> int:
    """Lower a number of processes to what the memory holds, at least one; a warning says so.

    Parameters
    ----------
    available_bytes
        What all processes together may occupy.
    rank
        As `build_store` is given.
    """
    subject_bytes = source.reading_bytes
    if rank != "full":
        n_timepoints = max(subject.n_timepoints for subject in source.subjects)
        subject_bytes = max(subject_bytes, rotation_bytes(n_timepoints, source.grid.n_voxels))
    each = PROCESS_BYTES + subject_bytes
    fitting = max(1, min(n_processes, available_bytes // each))
    if fitting < n_processes:
        logger.warning(
            "processes: %d instead of %d, since each may need %s of the %s that are available",
            fitting,
            n_processes,
            format_bytes(each),
            format_bytes(available_bytes),
        )
    return fitting


def _check_names(source: Source) -> None:
    seen: dict[str, SourceSubject] = {}
    for subject in source.subjects:
        path = subject.runs[0].path
        if not is_subject_name(subject.name):
            raise ValueError(f"the subject of {path} is called {subject.name!r}: letters and digits are needed")
        # On disks of macOS and Windows, sub-a and sub-A are one file.
        twin = seen.setdefault(subject.name.lower(), subject)
        if twin is not subject:
            raise ValueError(
                f"two subjects are called {twin.name} and {subject.name} ({twin.runs[0].path}, {path}): "
                "rename one of them"
            )
        for run in subject.runs:
            try:
                run.origin.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"the name of {run.path!r} is not in UTF-8: rename the file") from error


def _describe(
    source: Source,
    root: Path,
    folder: Path,
    name: str,
    space: str,
    dtype: StoreDtype,
    rank: Rank,
    rank_tolerance: float,
) -> Store:
    """Describe the store that the build makes, but for its subjects' hashes, and at its largest."""
    subjects = tuple(
        StoredSubject(
            subject.name,
            subject.n_timepoints,
            most_components(rank, subject.n_timepoints),
            0.0,
            _stored_runs(subject),
            {},
        )
        for subject in source.subjects
    )
    files = dict.fromkeys(run.path for subject in source.subjects for run in subject.runs)
    sources = tuple(
        {"path": path.absolute().relative_to(root.absolute()).as_posix(), "bytes": path.stat().st_size}
        for path in files
    )
    deciding_tolerance = rank_tolerance if rank == "auto" else None
    return Store(
        folder, name, space, source.grid, dtype, rank, deciding_tolerance, subjects, sources, this_software()
    )


def _stored_runs(subject: SourceSubject) -> tuple[StoredRun, ...]:
    return tuple(StoredRun(run.origin, run.n_timepoints) for run in subject.runs)


def _take_finished(wanted: Store) -> Store:
    """Open the store that is there, if it is the one that would be made."""
    there = Store.open(wanted.path)
    differences = [
        kind
        for kind, ours, theirs in (
            ("name", wanted.name, there.name),
            ("space", wanted.space, there.space),
            ("dtype", wanted.series_dtype, there.series_dtype),
            ("rank", (wanted.rank, wanted.rank_tolerance), (there.rank, there.rank_tolerance)),
            ("grid", True, wanted.grid.is_same_as(there.grid)),
            ("subjects", _outline(wanted), _outline(there)),
            ("source files", wanted.sources, there.sources),
        )
        if ours != theirs
    ]
    if differences:
        raise FileExistsError(
            f"{wanted.path} holds a finished store that differs in {' and '.join(differences)}: name a new folder "
            "for this one, or remove that one first"
        )
    shutil.rmtree(wanted.path / BUILDING, ignore_errors=True)
    logger.info(
        "%s is finished already, nothing is done; to make it anew, of files that have the same names and sizes but "
        "other numbers, remove it first",
        wanted.path,
    )
    return there


def _outline(store: Store) -> list[tuple[str, tuple[StoredRun, ...]]]:
    return [(subject.name, subject.runs) for subject in store.subjects]


def _warn_of_bound(store: Store, tolerance: float) -> None:
    """Tell where a number of components leaves out more than is tolerated."""
    bounds = {subject.name: subject.r_error_bound for subject in store.subjects}
    n_above = sum(bound > tolerance for bound in bounds.values())
    if n_above:
        worst = max(bounds, key=bounds.__getitem__)
        logger.warning(
            "rank %s: in %d of %d subjects the bound on the error in r is above %g, the largest is %.2g, of sub-%s; "
            "more components, or the rank auto, leave less out",
            store.rank,
            n_above,
            len(bounds),
            tolerance,
            bounds[worst],
            worst,
        )


def _hash_settings(store: Store) -> str:
    """Hash what all files of the store depend on: dtype, rank and grid."""
    grid = store.grid
    parts = (
        store.series_dtype.encode(),
        f"{store.rank} {store.rank_tolerance}".encode(),
        str(grid.shape).encode(),
        np.packbits(grid.mask),
        grid.affine.astype("<f8"),
    )
    return hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest()


def _signature(subject: SourceSubject) -> list[Any]:
    """Say what a subject is read from, so that a file that was mended is read again."""
    status = [run.path.stat() for run in subject.runs]
    return [
        [run.origin, run.n_timepoints, file.st_size, file.st_mtime_ns]
        for run, file in zip(subject.runs, status, strict=True)
    ]


def _record_path(folder: Path, name: str) -> Path:
    return folder / BUILDING / f"sub-{name}.json"


def _read_records(job: _Job, wanted: Store) -> dict[str, StoredSubject]:
    """Read which subjects an earlier build has written, and their sources have not changed since.

    Raises
    ------
    FileExistsError
        It was a build of something else.
    """
    recorded = {}
    subjects = {subject.name: subject for subject in job.source.subjects}
    for path in sorted((job.folder / BUILDING).glob("sub-*.json")):
        try:
            record = read_json_object(path)
            runs = tuple(StoredRun(**run) for run in record["subject"]["runs"])
            stored = StoredSubject(**{**record["subject"], "runs": runs})
            settings, signature = record["settings"], record["signature"]
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is no record of a subject (%r): the subject is written again", path, error)
            continue
        subject = subjects.get(stored.name)
        if settings != job.settings or subject is None:
            raise FileExistsError(
                f"{job.folder} holds an unfinished store of other subjects, another grid, another dtype or another "
                "rank: name a new folder, or remove that one"
            )
        if signature == _signature(subject) and wanted.has_files_of(stored):
            recorded[stored.name] = stored
    return recorded


def _check_room(wanted: Store, recorded: Mapping[str, StoredSubject]) -> None:
    """Refuse a build that would fill the disk; with the rank "auto", as if every component were kept."""
    needed = sum(wanted.bytes_of(subject) for subject in wanted.subjects if subject.name not in recorded)
    free = shutil.disk_usage(wanted.path).free
    if needed > free:
        raise NoRoom(
            f"the store needs {format_bytes(needed)} more, the disk of {wanted.path} has {format_bytes(free)} free: "
            "make room, or name a folder on another disk"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other builds out of the folder; the system lets go of it when the process ends, however it ends.

    A build that has written nothing leaves nothing behind.
    """
    was_there = folder.exists()
    try:
        (folder / BUILDING).mkdir(parents=True, exist_ok=True)
        file = (folder / BUILDING / "lock").open("w")
    except OSError as error:
        raise NoPlace(f"the store {folder} cannot be made ({error.strerror}): name another place") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(
                f"another process is building the store {folder}: wait for it, or stop it"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("the file system of %s has no locks: see that no second build is writing there", folder)
        try:
            yield
        finally:
            if {path.name for path in folder.glob("**/*")} == {BUILDING, "lock"}:
                shutil.rmtree(folder / BUILDING if was_there else folder, ignore_errors=True)


def _remove_unrecorded(folder: Path, recorded: Mapping[str, StoredSubject]) -> None:
    """Remove files of subjects that were not finished."""
    keep = {array_path(folder, name, kind) for name in recorded for kind in ("timeseries", "scale")}
    for path in set(folder.glob("sub-*.npy")) - keep:
        path.unlink()
    for path in set((folder / BUILDING).glob("sub-*.json")) - {_record_path(folder, name) for name in recorded}:
        path.unlink()


def _write_subjects(
    job: _Job, wanted: Store, recorded: Mapping[str, StoredSubject], n_processes: int, show_progress: bool
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
def _processes(job: _Job, n_processes: int) -> Iterator[ProcessPoolExecutor]:
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


_job: _Job
"""Of a process of a build."""


def _start_process(job: _Job) -> None:
    global _job
    _job = job
    # Ctrl-C goes to the whole group; the process that started this one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    give_back_freed_memory()
    # There is a process for each processor; and one thread adds in the same order each time.
    threadpool_limits(1, user_api="blas")


def _end_with_parent() -> None:
    """End this process when the one that started it is killed, which the pool alone would never notice."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        with suppress(OSError):
            connection.wait([parent.sentinel])
        os._exit(1)


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


def _write_subject(place: int) -> _Written | _Damage:
    """Read one subject of the source, write it, and record it."""
    subject = _job.source.subjects[place]
    try:
        signature = _signature(subject)
        standardized = _job.source.read(subject)
    except (OSError, ValueError) as error:
        return _Damage(subject.name, str(error))
    standardized, r_error_bound = rotate(standardized, _job.rank, _job.rank_tolerance)
    sha256 = write_subject(_job.folder, subject.name, standardized, _job.dtype)
    n_components = standardized[0].shape[1]
    stored = StoredSubject(
        subject.name, subject.n_timepoints, n_components, r_error_bound, _stored_runs(subject), sha256
    )
    write_json(
        _record_path(_job.folder, subject.name),
        {"subject": asdict(stored), "signature": signature, "settings": _job.settings},
    )
    return _Written(stored.name, stored, has_signal=bool(standardized[1].any()))
