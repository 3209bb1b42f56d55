"""A normative functional connectome on disk, streamed one connectome subject at a time."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.connectome.importers import hdf5
from bids_lacuna.connectome.store import Store, is_store, subject_bytes
from bids_lacuna.files import forget
from bids_lacuna.grid import Grid
from bids_lacuna.runtime.plan import SUBJECTS_IN_MEMORY
from bids_lacuna.spaces import DEFAULT_SPACE

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class ConnectomeSubject:
    """One person of the connectome. A series times its `scale` has norm 1."""

    name: str
    """In a store its own; in HDF5, which has none, its number."""
    series: Array
    """Shape (n_voxels, n_timepoints), float32 or int16: each voxel's demeaned series."""
    scale: Array
    """Shape (n_voxels,), float32: what makes a series' norm 1; 0 where the series is constant or not finite."""
    sd: Array
    """Shape (n_voxels,), float32: standard deviation of each series as stored first, in its own units."""


@dataclass(frozen=True, eq=False)
class Connectome:
    """Resting-state series of many healthy people on one grid, in a store or in HDF5 files of Lacuna's layout."""

    path: Path
    name: str
    """Letters and digits; part of the names of the maps."""
    space: str
    """The template of the grid."""
    recordings: Store | hdf5.Hdf5Source
    """What the series are read from."""

    @classmethod
    def open(cls, path: str | PathLike[str], *, name: str | None = None, space: str | None = None) -> Connectome:
        """Open a connectome; no series is read yet.

        Parameters
        ----------
        path
            A store, as `bids-lacuna-connectome build` makes it; or an HDF5 file or a folder of them. HDF5 files may
            differ in their number of timepoints and in the order of their voxels, not in their grid.
        name
            Letters and digits; by default the store's, or those of the file's or folder's name.
        space
            Name of the template that the grid is in; by default the store's or the HDF5 file's attribute `space`,
            else MNI152NLin6Asym, the space of GSP1000.

        Raises
        ------
        FileNotFoundError
            No such file or folder, no HDF5 file in it, or a store that is not finished.
        ValueError
            A file is damaged or has another layout, or another grid than the first, or the name or the space has
            other characters.
        """
        path = Path(path)
        recordings: Store | hdf5.Hdf5Source
        if is_store(path):
            recordings = Store.open(path)
            own_name = recordings.name
        else:
            recordings = hdf5.open_source(path)
            # Not resolved: a link has the name that its owner gave it.
            own_name = Path(os.path.abspath(path)).name  # noqa: PTH100
            own_name = own_name.removesuffix(path.suffix if path.is_file() else "")
        name = name or re.sub(r"[^A-Za-z0-9]", "", own_name) or "connectome"
        if not re.fullmatch(r"[A-Za-z0-9]+", name):
            raise ValueError(
                f"the connectome's name {name!r} becomes part of file names: use letters and digits only"
            )
        space = space or recordings.space or DEFAULT_SPACE
        if not re.fullmatch(r"[A-Za-z0-9+]+", space):
            raise ValueError(
                f"the connectome's space {space!r} is no BIDS name of a template, such as MNI152NLin6Asym or "
                "MNI152NLin2009cAsym: give its right name (--connectome-space)"
            )
        return cls(path, name, space, recordings)

    def first(self, n_subjects: int) -> Connectome:
        """Give the connectome of the first subjects only, for a try."""
        recordings: Any = self.recordings
        return replace(self, recordings=replace(recordings, subjects=recordings.subjects[:n_subjects]))

    @property
    def grid(self) -> Grid:
        """The voxels that have a series."""
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
        """Length of the longest series as it is mapped: `n_timepoints`, or fewer where a store was built so."""
        return self.recordings.n_components

    @property
    def series_dtype(self) -> np.dtype:
        """Of `ConnectomeSubject.series`: int16 or float32."""
        return np.dtype(self.recordings.series_dtype)

    @property
    def standardized_dtypes(self) -> frozenset[np.dtype]:
        """Of the numbers that have to be standardized when they are read: none where the connectome is a store."""
        return self.recordings.standardized_dtypes

    @property
    def subject_bytes(self) -> int:
        """Memory that one of `subjects` takes at most."""
        return subject_bytes(self.n_components, self.grid.n_voxels, self.recordings.series_dtype)

    @property
    def n_readers(self) -> int:
        """Subjects that are read at the same time."""
        return self.recordings.n_readers

    def n_ahead(self, n_in_memory: int) -> int:
        """Choose how many of the subjects in memory are read ahead: a third, or as many as are read at a time."""
        return max(n_in_memory // 3, self.n_readers)

    @property
    def streaming_bytes(self) -> int:
        """Memory that `SUBJECTS_IN_MEMORY` of `subjects` take at most, of which `n_readers` are being read."""
        n_waiting = SUBJECTS_IN_MEMORY - self.n_readers
        return self.n_readers * self.recordings.reading_bytes + n_waiting * self.subject_bytes

    @property
    def content_hash(self) -> str:
        """SHA-256 that tells this connectome from others of the same name."""
        return self.recordings.content_hash

    @cached_property
    def n_bytes(self) -> int:
        """Of all that `subjects` reads, on disk; raises OSError where a file is gone."""
        # Each kind of recordings knows its own kind of subject.
        recordings: Any = self.recordings
        files = {file for subject in recordings.subjects for file in recordings.files_of(subject)}
        return sum(file.stat().st_size for file in files)

    def subjects(
        self, n_ahead: int = 1, keep_cached: bool = True, first: int = 0
    ) -> Generator[ConnectomeSubject, None, None]:
        """Iterate over the connectome subjects in order; threads read the next ones ahead.

        Parameters
        ----------
        n_ahead
            How many are read, or being read, before they are asked for.
        keep_cached
            Whether the files may stay in the system's page cache for the next pass.
        first
            The subject to begin with, counted from 0.

        Raises
        ------
        OSError
            A file cannot be read; the message names it.
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
            finally:
                readers.shutdown(cancel_futures=True)

    def _read(self, subject: Any, keep_cached: bool) -> ConnectomeSubject:
        # Each kind of recordings reads its own kind of subject.
        recordings: Any = self.recordings
        arrays = recordings.read(subject)
        if not keep_cached:
            forget(recordings.files_of(subject))
        return ConnectomeSubject(subject.name, *arrays)
