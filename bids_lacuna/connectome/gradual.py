"""Building a connectome store from archives that come one after another and are not kept."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bids_lacuna.connectome.build import check_folder, processes_that_fit, warn_of_bound
from bids_lacuna.connectome.compression import most_components
from bids_lacuna.connectome.exclusive import NoRoom, locked
from bids_lacuna.connectome.importers import nifti
from bids_lacuna.connectome.importers.archive import UNPACKED, PackedSubject, open_archive
from bids_lacuna.connectome.importers.source import NothingMatches, Source, natural_order
from bids_lacuna.connectome.records import hash_settings, read_all_records, remove_unrecorded
from bids_lacuna.connectome.store import (
    BUILDING,
    DESCRIPTION,
    Rank,
    Store,
    StoreDtype,
    is_subject_name,
    subject_bytes,
    this_software,
)
from bids_lacuna.connectome.workers import DamagedSource, Job, Written, outcomes, processes, submit, write_unpacked
from bids_lacuna.files import read_json_object, remove_unfinished, write_json
from bids_lacuna.grid import Grid
from bids_lacuna.text import tell_bytes_apart

logger = logging.getLogger(__name__)

UNPACKED_FRACTION = 10
"""Number of an archive's subjects for each that is unpacked at the same time: they take space beside the archive."""


@dataclass(frozen=True)
class Wanted:
    """The store to build."""

    folder: Path
    name: str
    """Letters and digits."""
    space: str
    """Template space of the archives' series."""
    grid: Grid
    dtype: StoreDtype
    rank: Rank
    rank_tolerance: float
    pattern: str
    """Glob pattern of the series' paths."""

    def describe(self) -> Store:
        """Return the store without its subjects."""
        tolerance = self.rank_tolerance if self.rank == "auto" else None
        return Store(
            self.folder, self.name, self.space, self.grid, self.dtype, self.rank, tolerance, (), (), this_software()
        )


class GradualBuild:
    """A store that is being built, from one archive after another; created by `building`."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._store = wanted.describe()
        self._settings = hash_settings(self._store)
        self._recorded = read_all_records(self._store, self._settings)
        self._wanted_subjects: set[str] = set()
        remove_unfinished(wanted.folder)
        remove_unfinished(wanted.folder / BUILDING)
        for path in (wanted.folder / BUILDING).glob(f"{UNPACKED}*"):
            shutil.rmtree(path)
        remove_unrecorded(wanted.folder, self._recorded)

    def has(self, checksum: str) -> bool:
        """Return whether all subjects of an archive are in the store, by the archive's checksum."""
        record = self._record(checksum)
        if not record.exists():
            return False
        held = read_json_object(record)
        if held["pattern"] != self._wanted.pattern:
            raise FileExistsError(
                f"{self._wanted.folder} was begun with --pattern {held['pattern']}: give the same one, or name a new "
                "folder"
            )
        if not set(held["subjects"]) <= set(self._recorded):
            return False
        self._wanted_subjects.update(held["subjects"])
        return True

    def add(self, archive: Path, checksum: str, n_processes: int, available_bytes: int) -> None:
        """Convert the subjects of an archive that are not in the store yet.

        Parameters
        ----------
        checksum
            Names the archive once it is gone.
        n_processes
            Number of subjects to read at the same time, at most.
        available_bytes
            Memory that all processes may use together.

        Raises
        ------
        NothingMatches
            The archive has no series that matches the pattern.
        DamagedSource
            Some subjects cannot be read; all others were written.
        ValueError
            The archive is damaged, or has a subject of another archive.
        NoRoom
            The disk is too small.
        MemoryError
            A process was killed.
        OSError
            The store cannot be written.
        """
        subjects = open_archive(archive, self._wanted.pattern)
        missing = [packed for packed in subjects if not self._is_recorded(packed)]
        if not subjects:
            raise NothingMatches(
                f"no file in {archive} matches {self._wanted.pattern}: name the series with --pattern, or leave this "
                "archive out with --files"
            )
        if missing:
            self._convert(missing, min(n_processes, max(1, len(subjects) // UNPACKED_FRACTION)), available_bytes)
        names = [packed.name for packed in subjects]
        self._wanted_subjects.update(names)
        write_json(self._record(checksum), {"pattern": self._wanted.pattern, "subjects": names})
        logger.info("%s: %d subjects, %d in the store by now", archive.name, len(subjects), len(self._recorded))

    def finish(self) -> Store:
        """Describe the store, which completes it.

        Subjects of archives for which neither `has` nor `add` was called since, as after a command with other
        archives, are removed.

        Raises
        ------
        ValueError
            No subject has a signal, or two subjects have the same name but for its case.
        OSError
            The store cannot be written.
        """
        wanted = {name: record for name, record in self._recorded.items() if name in self._wanted_subjects}
        remove_unrecorded(self._wanted.folder, wanted)
        recorded = sorted(wanted.values(), key=lambda record: natural_order(Path(record[0].runs[0].source)))
        names = [stored.name.lower() for stored, _ in recorded]
        if twin := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two subjects are called {twin}, but for the case of its letters: use build instead")
        sources = {origin: n_bytes for _, signature in recorded for origin, _, n_bytes, _ in signature}
        store = replace(
            self._store,
            subjects=tuple(stored for stored, _ in recorded),
            sources=tuple({"path": origin, "bytes": n_bytes} for origin, n_bytes in sources.items()),
        )
        for subject in store.subjects:
            store.check_files(subject)
        if not any(map(store.has_signal, store.subjects)):
            raise ValueError(f"none of the {len(store.subjects)} subjects has a signal in any voxel")
        store.save()
        shutil.rmtree(store.path / BUILDING, ignore_errors=True)
        warn_of_bound(store, self._wanted.rank_tolerance)
        return store

    def _convert(self, missing: list[PackedSubject], n_processes: int, available_bytes: int) -> None:
        """Write and record subjects."""
        probe = self._open_largest(missing)
        n_processes = min(n_processes, len(missing))
        job = Job(
            probe,
            self._wanted.folder,
            self._wanted.dtype,
            self._wanted.rank,
            self._wanted.rank_tolerance,
            self._settings,
        )
        damaged = {}
        with processes(job, processes_that_fit(probe, n_processes, available_bytes, job.rank)) as pool:
            for outcome in outcomes(submit(pool, write_unpacked, missing)):
                if not isinstance(outcome, Written):
                    damaged[outcome.name] = outcome.reason
        self._recorded = read_all_records(self._store, self._settings)
        if damaged:
            name, reason = min(damaged.items())
            raise DamagedSource(
                f"{len(damaged)} of {len(missing)} subjects of {missing[0].archive} cannot be read, the first: "
                f"sub-{name}: {reason}. All others were written: leave this archive out with --files, or fetch "
                "without --build, unpack the archives, and use build without the damaged subjects"
            )

    def _open_largest(self, missing: list[PackedSubject]) -> Source:
        """Open the subject with most bytes, and check that there is room for as many such subjects."""
        largest = max(missing, key=lambda packed: packed.n_bytes)
        with largest.unpacked(self._wanted.folder / BUILDING) as folder:
            source = nifti.open_folder(folder, self._wanted.grid, largest.pattern)
        n_components = most_components(self._wanted.rank, source.n_components)
        needed = len(missing) * subject_bytes(n_components, self._wanted.grid.n_voxels, self._wanted.dtype)
        free = shutil.disk_usage(self._wanted.folder).free
        if needed > free:
            needed_words, free_words = tell_bytes_apart(needed, free)
            raise NoRoom(
                f"the subjects of {largest.archive} need {needed_words} in the store, the disk of "
                f"{self._wanted.folder} has {free_words} free: free some space, and rerun the same command to resume"
            )
        return source

    def _is_recorded(self, packed: PackedSubject) -> bool:
        """Return whether a subject was written from the same files; raise ValueError if from others."""
        if not is_subject_name(packed.name):
            raise ValueError(f"a subject of {packed.archive} is called {packed.name!r}: use letters and digits only")
        if packed.name not in self._recorded:
            return False
        _, signature = self._recorded[packed.name]
        files = [[member.path, member.n_bytes] for member in packed.members]
        if files != [[origin, n_bytes] for origin, _, n_bytes, _ in signature]:
            raise ValueError(
                f"sub-{packed.name} is in {packed.archive} and in another archive, whose series must be joined: "
                "fetch the archives without --build, unpack them, and use build"
            )
        return True

    def _record(self, checksum: str) -> Path:
        return self._wanted.folder / BUILDING / f"archive-{checksum}.json"


@contextmanager
def building(wanted: Wanted) -> Iterator[GradualBuild]:
    """Build a store, or complete an unfinished one, until the block ends.

    Raises
    ------
    FileExistsError
        The folder holds something else, a finished store, or an unfinished store with other settings; or another
        process is building there.
    NoPlace
        The folder cannot be created.
    """
    check_folder(wanted.folder)
    with locked(wanted.folder, BUILDING, "the store"):
        if (wanted.folder / DESCRIPTION).exists():
            raise FileExistsError(f"{wanted.folder} holds a finished store: name a new folder, or remove it first")
        yield GradualBuild(wanted)
