"""Building a connectome store: subject by subject, in several processes, resumable."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bids_lacuna.connectome.compression import RANK, TOLERANCE, most_components, rotation_bytes
from bids_lacuna.connectome.exclusive import NoRoom, locked
from bids_lacuna.connectome.importers.source import Source, SourceSubject
from bids_lacuna.connectome.records import hash_settings, read_records, remove_unrecorded, stored_runs
from bids_lacuna.connectome.store import (
    BUILDING,
    DESCRIPTION,
    Rank,
    Store,
    StoredRun,
    StoredSubject,
    StoreDtype,
    is_store,
    is_subject_name,
    this_software,
)
from bids_lacuna.connectome.workers import Job, write_subjects
from bids_lacuna.files import remove_unfinished
from bids_lacuna.text import format_bytes, tell_bytes_apart

logger = logging.getLogger(__name__)

PROCESS_BYTES = 200 * 2**20
"""Memory of one process's interpreter and libraries, in bytes."""


def build_store(
    source: Source,
    root: Path,
    folder: Path,
    *,
    name: str,
    space: str,
    dtype: StoreDtype = "int16",
    rank: Rank = RANK,
    rank_tolerance: float = TOLERANCE,
    n_processes: int = 1,
    show_progress: bool = True,
) -> Store:
    """Build a connectome store, or complete an unfinished one.

    Each subject is written under temporary names, renamed and then recorded; the description is written last. A
    build that was killed resumes from its records and produces the same bytes as an uninterrupted one. Each process
    holds one subject in memory. Processes are spawned: a script that calls this function needs
    `if __name__ == "__main__":`.

    Parameters
    ----------
    source
        Connectome opened by an importer.
    root
        Folder of the source; the store records its files by their paths relative to this folder.
    folder
        Folder of the store: new, empty, or with an unfinished build of the same source.
    name
        Name of the connectome, letters and digits.
    space
        Name of the template space of the source.
    dtype
        Data type of the stored series.
    rank
        Number of components stored per subject: all timepoints ("full"), as few as `rank_tolerance` allows where that
        saves a tenth ("auto", see `compression.rotate`), or at most this number.
    rank_tolerance
        Difference in r. With the rank "auto": largest bound on the error. With a number of components: a warning is
        logged where the bound exceeds it. See `compression.error_bounds`.
    n_processes
        Number of subjects read at the same time.
    show_progress
        Whether to show a progress bar with bytes and remaining time, if stderr is a terminal.

    Returns
    -------
    Store
        The finished store. A store that was finished before is opened unchanged.

    Raises
    ------
    FileExistsError
        The folder holds something else, or another process is building there.
    NoPlace
        The folder cannot be created.
    NoRoom
        The disk is too small; nothing was written.
    DamagedSource
        Some subjects cannot be read; all others were written.
    ValueError
        Two subjects have the same name, or no subject has a signal.
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
    job = Job(source, folder, dtype, rank, rank_tolerance, hash_settings(wanted))
    with locked(folder, BUILDING, "the store"):
        if (folder / DESCRIPTION).exists():
            return _take_finished(wanted)
        recorded = read_records(source, wanted, job.settings)
        remove_unfinished(folder)
        remove_unfinished(folder / BUILDING)
        remove_unrecorded(folder, recorded)
        _check_room(wanted, recorded)
        recorded |= write_subjects(job, wanted, recorded, n_processes, show_progress)
        store = replace(wanted, subjects=tuple(recorded[subject.name] for subject in source.subjects))
        for subject in store.subjects:
            store.check_files(subject)
        _check_signal(store, source)
        store.save()
        # Network file systems keep a file that is still open, such as the lock.
        shutil.rmtree(folder / BUILDING, ignore_errors=True)
    warn_of_bound(store, rank_tolerance)
    return store


def check_folder(folder: Path) -> None:
    """Raise FileExistsError if a folder holds anything other than a finished or unfinished store."""
    if folder.exists() and not is_store(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not a connectome store: name a new folder for the store")


def processes_that_fit(source: Source, n_processes: int, available_bytes: int, rank: Rank = RANK) -> int:
    """Reduce a number of processes to what fits in memory, at least one; a reduction is logged as a warning.

    Parameters
    ----------
    available_bytes
        Memory that all processes may use together.
    rank
        As in `build_store`.
    """
    subject_bytes = source.reading_bytes
    if rank != "full":
        n_timepoints = max(subject.n_timepoints for subject in source.subjects)
        subject_bytes = max(subject_bytes, rotation_bytes(n_timepoints, source.grid.n_voxels))
    each = PROCESS_BYTES + subject_bytes
    fitting = max(1, min(n_processes, available_bytes // each))
    if fitting < n_processes:
        logger.warning(
            "processes: %d instead of %d, since each may need %s and %s are available",
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
            raise ValueError(f"the subject of {path} is called {subject.name!r}: use letters and digits only")
        # On macOS and Windows, sub-a and sub-A are the same file.
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
                raise ValueError(f"the name of {run.path!r} is not valid UTF-8: rename the file") from error


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
    """Describe the store to build, at its largest possible size and without the subjects' hashes."""
    subjects = tuple(
        StoredSubject(
            subject.name,
            subject.n_timepoints,
            most_components(rank, subject.n_timepoints),
            0.0,
            stored_runs(subject),
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


def _take_finished(wanted: Store) -> Store:
    """Open the finished store in the folder if it is the one that this build would produce."""
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
            f"{wanted.path} holds a finished store that differs in {' and '.join(differences)}: name a new folder, "
            "or remove the finished store first"
        )
    shutil.rmtree(wanted.path / BUILDING, ignore_errors=True)
    logger.info(
        "%s is already finished: nothing to do; if the source files have new content under the same names and sizes, "
        "remove the store first",
        wanted.path,
    )
    return there


def _outline(store: Store) -> list[tuple[str, tuple[StoredRun, ...]]]:
    return [(subject.name, subject.runs) for subject in store.subjects]


def warn_of_bound(store: Store, tolerance: float) -> None:
    """Log a warning if a number of components leaves out more than the tolerance."""
    bounds = {subject.name: subject.r_error_bound for subject in store.subjects}
    n_above = sum(bound > tolerance for bound in bounds.values())
    if n_above:
        worst = max(bounds, key=bounds.__getitem__)
        logger.warning(
            "rank %s: in %d of %d subjects the bound on the error in r is above %g, at most %.2g in sub-%s; "
            "use more components or --rank auto to leave less out",
            store.rank,
            n_above,
            len(bounds),
            tolerance,
            bounds[worst],
            worst,
        )


def _check_room(wanted: Store, recorded: Mapping[str, StoredSubject]) -> None:
    """Raise NoRoom if the build would fill the disk; the rank "auto" counts as full rank."""
    needed = sum(wanted.bytes_of(subject) for subject in wanted.subjects if subject.name not in recorded)
    free = shutil.disk_usage(wanted.path).free
    if needed > free:
        needed_words, free_words = tell_bytes_apart(needed, free)
        raise NoRoom(
            f"the store needs {needed_words} more, the disk of {wanted.path} has {free_words} free: "
            "free some space, or name a folder on another disk"
        )


def _check_signal(store: Store, source: Source) -> None:
    """Raise ValueError if no subject has a signal: there would be no map."""
    if not any(map(store.has_signal, store.subjects)):
        first = source.subjects[0]
        raise ValueError(
            f"none of the {len(store.subjects)} subjects has a signal in any voxel, the first: sub-{first.name}: "
            f"{source.explain_no_signal(first)}. Repair the files and rerun the same command"
        )
