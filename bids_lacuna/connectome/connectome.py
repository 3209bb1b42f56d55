"""Normative functional connectome on disk, streamed one subject at a time."""

from __future__ import annotations

import os
import re
import shlex
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.connectome.importers import hdf5
from bids_lacuna.connectome.store import Store, is_store, subject_bytes
from bids_lacuna.files import ChangedMeanwhile, FileState, check_unchanged, forget, is_searchable
from bids_lacuna.grid import Grid
from bids_lacuna.spaces import DEFAULT_SPACE, check_template

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class ConnectomeSubject:
    """One connectome subject in memory. Each series times its `scale` has norm 1."""

    name: str
    """The store's name of the subject; in HDF5, which has no names, a number."""
    series: Array
    """Shape (n_voxels, n_timepoints), float32 or int16: each voxel's demeaned series."""
    scale: Array
    """Shape (n_voxels,), float32: factor to norm 1; 0 where the series is constant or not finite."""
    sd: Array
    """Shape (n_voxels,), float32: standard deviation of each series as recorded, in its own units."""


@dataclass(frozen=True, eq=False)
class Connectome:
    """Resting-state series of many healthy people on one grid, in a store or in HDF5 files of Lacuna's layout."""

    path: Path
    name: str
    """Letters and digits; part of the maps' file names."""
    space: str
    """Template space of the grid."""
    recordings: Store | hdf5.Hdf5Source
    """Source of the series."""

    @classmethod
    def open(cls, path: str | PathLike[str], *, name: str | None = None, space: str | None = None) -> Connectome:
        """Open a connectome; series are not read yet.

        Parameters
        ----------
        path
            Store built by `bids-lacuna-connectome build`, HDF5 file, or folder of HDF5 files. HDF5 files may have
            different numbers of timepoints and orders of voxels, but need the same grid.
        name
            Letters and digits; by default the store's name, or the letters and digits of the file's or folder's name.
        space
            Name of the grid's template space, if the files do not record it; by default what a store or the HDF5
            attribute `space` records, or else MNI152NLin6Asym, the space of GSP1000.

        Raises
        ------
        PermissionError
            The folder may not be searched.
        FileNotFoundError
            There is no such file or folder, it has no HDF5 file, or the store is unfinished.
        ValueError
            A file is damaged, has another layout or has another grid than the first file, the name or the space has
            invalid characters, or the space is not what the files record, ambiguous or a participant's own.
        """
        path = Path(path)
        recordings: Store | hdf5.Hdf5Source
        _check_searchable(path)
        if is_store(path):
            recordings = Store.open(path)
            own_name = recordings.name
        else:
            recordings = hdf5.open_source(path)
            recordings.remember_content()
            # Not resolved: a link keeps the name that its owner chose.
            own_name = Path(os.path.abspath(path)).name  # noqa: PTH100
            own_name = own_name.removesuffix(path.suffix if path.is_file() else "")
        name = name or re.sub(r"[^A-Za-z0-9]", "", own_name) or "connectome"
        if not re.fullmatch(r"[A-Za-z0-9]+", name):
            raise ValueError(
                f"the connectome's name {name!r} becomes part of file names: use letters and digits only"
            )
        return cls(path, name, _choose_space(path, space, recordings.space), recordings)

    def first(self, n_subjects: int) -> Connectome:
        """Return the connectome restricted to the first subjects, for a trial run."""
        recordings: Any = self.recordings
        return replace(self, recordings=replace(recordings, subjects=recordings.subjects[:n_subjects]))

    @property
    def grid(self) -> Grid:
        """Grid whose mask holds the voxels that have a series."""
        return self.recordings.grid

    @property
    def n_subjects(self) -> int:
        """Number of connectome subjects."""
        return len(self.recordings.subjects)

    @property
    def n_timepoints(self) -> int:
        """Number of timepoints of the longest series."""
        return max(subject.n_timepoints for subject in self.recordings.subjects)

    @property
    def n_components(self) -> int:
        """Length of the longest series as mapped: `n_timepoints`, or fewer in a compressed store."""
        return self.recordings.n_components

    @property
    def series_dtype(self) -> np.dtype:
        """Data type of `ConnectomeSubject.series`: int16 or float32."""
        return np.dtype(self.recordings.series_dtype)

    @property
    def standardized_dtypes(self) -> frozenset[np.dtype]:
        """Data types that are standardized on reading: none for a store."""
        return self.recordings.standardized_dtypes

    @property
    def subject_bytes(self) -> int:
        """Bytes of memory of one of `subjects`, at most."""
        return subject_bytes(self.n_components, self.grid.n_voxels, self.recordings.series_dtype)

    @property
    def n_readers(self) -> int:
        """Number of subjects read at the same time."""
        return self.recordings.n_readers

    @property
    def reading_bytes(self) -> int:
        """Memory that reading one connectome subject takes, at most."""
        return self.recordings.reading_bytes

    @property
    def content_hash(self) -> str:
        """SHA-256 that distinguishes this connectome from others of the same name."""
        return self.recordings.content_hash

    @cached_property
    def n_bytes(self) -> int:
        """Bytes on disk of all that `subjects` reads; raises OSError if a file is missing."""
        # Store and Hdf5Source have subjects of different types.
        recordings: Any = self.recordings
        files = {file for subject in recordings.subjects for file in recordings.files_of(subject)}
        return sum(file.stat().st_size for file in files)

    def subjects(
        self, n_ahead: int = 1, keep_cached: bool = True, first: int = 0
    ) -> Generator[ConnectomeSubject, None, None]:
        """Iterate over the subjects in order, while threads read the next ones ahead.

        Parameters
        ----------
        n_ahead
            Number of subjects that are read before they are requested.
        keep_cached
            Whether the files stay in the system's page cache for the next pass.
        first
            Index of the first subject.

        Raises
        ------
        OSError
            A file cannot be read, or has changed since the connectome was opened; the message names it. Each file is
            checked once it is read, and all again after the last subject.
        """
        waiting = iter(self.recordings.subjects[first:])
        with ThreadPoolExecutor(self.recordings.n_readers, thread_name_prefix="connectome") as readers:
            ahead = deque(readers.submit(self._read, subject, keep_cached) for subject in islice(waiting, n_ahead))
            try:
                while ahead:
                    subject = ahead.popleft().result()
                    ahead.extend(readers.submit(self._read, next_one, keep_cached) for next_one in islice(waiting, 1))
                    yield subject
                    del subject
                self._check_content(*self.recordings.subjects[first:])
            finally:
                readers.shutdown(cancel_futures=True)

    def _read(self, subject: Any, keep_cached: bool) -> ConnectomeSubject:
        # Store and Hdf5Source have subjects of different types.
        recordings: Any = self.recordings
        try:
            arrays = recordings.read(subject)
        except OSError:
            # A file that was replaced may look damaged.
            self._check_content(subject)
            raise
        if self._check_content(subject):
            # What was read may be other content, which was restored in the meantime.
            arrays = recordings.read(subject)
            check_unchanged({file: recordings.states[file] for file in recordings.files_of(subject)})
        if not keep_cached:
            forget(recordings.files_of(subject))
        return ConnectomeSubject(subject.name, *arrays)

    def _check_content(self, *subjects: Any) -> bool:
        """Raise ChangedMeanwhile if files of these subjects have other content than when the connectome was opened.

        Returns
        -------
        bool
            Whether a file was written anew with the same content.
        """
        recordings: Any = self.recordings
        files = dict.fromkeys(file for subject in subjects for file in recordings.files_of(subject))
        before = {file: recordings.states[file] for file in files}
        for file, state in before.items():
            try:
                check_unchanged({file: state})
            except ChangedMeanwhile as changed:
                try:
                    now = FileState.of(file)
                    is_same = recordings.has_same_content(file)
                except OSError:
                    is_same = False
                if not is_same:
                    raise changed from None
                recordings.states[file] = now
        return any(recordings.states[file] != state for file, state in before.items())


def opener_of(connectome: Connectome) -> Callable[[], Connectome]:
    """Return a small function that opens the same connectome in another process, on any machine.

    The function raises ValueError or OSError if the data there are missing or differ.
    """
    return partial(_open_same, connectome.path.absolute(), connectome.name, connectome.space, connectome.content_hash)


def _open_same(path: Path, name: str, space: str, content_hash: str) -> Connectome:
    connectome = Connectome.open(path, name=name, space=space)
    if connectome.content_hash != content_hash:
        raise ValueError(f"{path} is another connectome than the client's: give all machines the same one")
    return connectome


def _choose_space(path: Path, given: str | None, recorded: str | None) -> str:
    """Return a connectome's space: the recorded one, or the given one if none is recorded.

    Raises
    ------
    ValueError
        The space cannot be a connectome's, or what is given contradicts what is recorded.
    """
    wrong = f"correct it with `bids-lacuna-connectome rename-space {shlex.quote(str(path))} SPACE`"
    if not is_store(path):
        wrong = "give another with --connectome-space"
        if recorded and _describe_unusable(recorded):
            recorded = given or recorded
    space = given or recorded or DEFAULT_SPACE
    if problem := _describe_unusable(space):
        raise ValueError(f"the connectome {path} cannot be in space {space!r}: {problem}; if it is recorded, {wrong}")
    if recorded and space != recorded:
        if not is_store(path):
            wrong = f"build a store with --space {space}"
        raise ValueError(
            f"the connectome {path} records the space {recorded}, but --connectome-space names {space}: leave the "
            f"option out, since it moves no voxel; if the record is wrong, {wrong}"
        )
    return space


def _describe_unusable(space: str) -> str:
    """Describe why a connectome cannot be in a space; empty if it can."""
    if not re.fullmatch(r"[A-Za-z0-9+]+", space):
        return "it is not a BIDS name of a template such as MNI152NLin6Asym or MNI152NLin2009cAsym"
    try:
        check_template(space)
    except ValueError as error:
        return str(error)
    return ""


def _check_searchable(path: Path) -> None:
    """Raise an error for a folder whose files may not be opened, or that lies in such a folder."""
    try:
        # A store need not be listed.
        allowed = not path.is_dir() or is_store(path) or is_searchable(path)
    except PermissionError:
        allowed = False
    if not allowed:
        raise PermissionError(
            f"the connectome {path} may not be searched: check its permissions, and those of the folders above it"
        )
