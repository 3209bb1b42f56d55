"""The result of every importer: a source of connectome subjects with their BOLD runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bids_lacuna.files import reached_once
from bids_lacuna.grid import Grid
from bids_lacuna.kernels.cpu import standardize

Array = np.ndarray

VALUE_BYTES = 24
"""Bytes per voxel and timepoint while a subject is read: three copies in float64; most sources need a third."""

MOST_SHOWN = 8
"""Largest number of timepoints that a message lists."""


class NothingMatches(LookupError):  # noqa: N818  a fact about the source, not a defect of the program
    """The source has no series of the requested kind; the message says what it has."""


class Run(Protocol):
    """One BOLD run of a connectome subject, read on demand."""

    @property
    def path(self) -> Path:
        """The run's file."""

    @property
    def origin(self) -> str:
        """The file's path relative to the source, with the index within the file if it holds several runs."""

    @property
    def n_timepoints(self) -> int:
        """Length of the run."""

    def read(self, grid: Grid) -> Array:
        """Read the BOLD signal in stored units.

        Returns
        -------
        shape (n_timepoints, n_voxels), float32 or float64
            Voxels in C order over the grid's mask.

        Raises
        ------
        OSError, ValueError
            The file is damaged; the message names it.
        """


@dataclass(frozen=True)
class SourceSubject:
    """One subject of a source."""

    name: str
    """Letters and digits."""
    runs: tuple[Run, ...]
    """BOLD runs in the order in which they are joined."""

    @property
    def n_timepoints(self) -> int:
        """Timepoints of all runs together."""
        return sum(run.n_timepoints for run in self.runs)


@dataclass(frozen=True, eq=False)
class Source:
    """A connectome opened by an importer, which has read headers but no series."""

    grid: Grid
    """Grid of all runs."""
    subjects: tuple[SourceSubject, ...]
    space: str | None
    """Template space that the files name, if they do."""

    @property
    def n_components(self) -> int:
        """Length of the longest series as mapped: all its timepoints."""
        return max(subject.n_timepoints for subject in self.subjects)

    @property
    def reading_bytes(self) -> int:
        """Bytes of memory needed to read one subject, at most."""
        return self.n_components * self.grid.n_voxels * VALUE_BYTES

    def files_of(self, subject: SourceSubject) -> list[Path]:
        """Return the files that `read` reads; they may hold other subjects, too."""
        return [run.path for run in subject.runs]

    def read(self, subject: SourceSubject) -> tuple[Array, Array, Array]:
        """Read one subject's runs, demean each and join them: `kernels.standardize`.

        Returns
        -------
        series : shape (n_voxels, n_timepoints), float32
        scale, sd : shape (n_voxels,), float32
        """
        runs = []
        for run in subject.runs:
            timeseries = run.read(self.grid)
            expected = (run.n_timepoints, self.grid.n_voxels)
            if timeseries.shape != expected:
                raise ValueError(
                    f"{run.path} has changed since it was opened: it had {expected} values, now {timeseries.shape}"
                )
            runs.append(timeseries)
        starts = np.cumsum([0, *(len(timeseries) for timeseries in runs)])
        joined = runs[0] if len(runs) == 1 else np.concatenate(runs)
        del runs, timeseries
        return standardize(joined, starts)

    def explain_no_signal(self, subject: SourceSubject) -> str:
        """Read a subject without a signal again, and explain why it has none.

        Raises
        ------
        OSError, ValueError
            A file is damaged.
        """
        for run in subject.runs:
            is_finite = np.isfinite(run.read(self.grid))
            lost = np.flatnonzero(~is_finite.any(axis=1))
            if len(lost):
                shown = ", ".join(map(str, lost[:MOST_SHOWN])) + (", …" if len(lost) > MOST_SHOWN else "")
                return (
                    f"in {run.origin}, no voxel has a finite value at {len(lost)} of {run.n_timepoints} timepoints "
                    f"({shown}, counted from 0); leave such timepoints out of the file, or interpolate them"
                )
            if not is_finite.all(axis=0).any():
                return f"in {run.origin}, each voxel's series has values that are not finite"
        return "each voxel's series is constant"


def read_dtype(stored: np.dtype) -> np.dtype:
    """Return the dtype for reading stored numbers: float32, or float64 where float32 would lose digits."""
    return np.result_type(stored.newbyteorder("="), np.float32)


def subject_name(path: Path) -> str:
    """Return the subject's name for a file's path relative to the source.

    The name is the first `sub-<label>`, or else the letters and digits of the whole path: each file without a label
    is a subject.
    """
    entity = re.search(r"(?:^|[/_])sub-([A-Za-z0-9]+)(?=[/_.]|$)", path.as_posix())
    return entity[1] if entity else re.sub(r"[^A-Za-z0-9]", "", path.as_posix().removesuffix("".join(path.suffixes)))


def natural_order(path: Path) -> list[str | int]:
    """Return a sort key that puts run-2 before run-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.as_posix())]


def group_by_subject(named: Iterable[tuple[str, Run]]) -> tuple[SourceSubject, ...]:
    """Group runs by subject name, in the order given."""
    runs: dict[str, list[Run]] = {}
    for name, run in named:
        runs.setdefault(name, []).append(run)
    return tuple(SourceSubject(name, tuple(its_runs)) for name, its_runs in runs.items())


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder that match a pattern, in natural order, without hidden files.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    PermissionError
        A folder may not be searched.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: name the folder that holds the series")
    check_folders(folder, len(Path(pattern).parts))
    found = [path for path in folder.glob(pattern) if not path.name.startswith(".")]
    once = reached_once(found, lambda path: path)
    return sorted(once, key=lambda path: natural_order(path.relative_to(folder)))


def check_folders(folder: Path, depth: int, seen: set[tuple[int, int, int]] | None = None) -> None:
    """Raise PermissionError if a folder may not be searched: glob would skip it silently.

    Parameters
    ----------
    depth
        Number of levels to look at.
    seen
        Device, inode and depth of the folders that were looked at: links may lead to one folder many times.
    """
    seen = set() if seen is None else seen
    status = folder.stat()
    if (status.st_dev, status.st_ino, depth) in seen:
        return
    seen.add((status.st_dev, status.st_ino, depth))
    try:
        with os.scandir(folder) as entries:
            below = [Path(entry) for entry in entries if depth > 1 and entry.is_dir() and entry.name[0] != "."]
    except PermissionError as error:
        raise PermissionError(f"the folder {folder} may not be searched: check its permissions") from error
    for path in below:
        check_folders(path, depth - 1, seen)
