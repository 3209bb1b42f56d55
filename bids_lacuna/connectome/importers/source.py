"""What every importer gives: the subjects of somebody's connectome, each with the runs that it was recorded in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bids_lacuna.grid import Grid
from bids_lacuna.kernels.cpu import standardize

Array = np.ndarray

VALUE_BYTES = 24
"""Of each voxel and timepoint while a subject is read: three copies of a float64. Most sources need a third of it."""


class NothingMatches(LookupError):  # noqa: N818  a fact about the source, not a defect of the program
    """The source has no series of the kind that was asked for; the message says what it has."""


class Run(Protocol):
    """One recording of a connectome subject; nothing of it is in memory until it is read."""

    @property
    def path(self) -> Path:
        """The file that holds it."""

    @property
    def origin(self) -> str:
        """The file's path below the source, and the place in the file where it holds several runs."""

    @property
    def n_timepoints(self) -> int:
        """Length of the series."""

    def read(self, grid: Grid) -> Array:
        """Read the BOLD signal as stored.

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
    """One person of somebody's connectome."""

    name: str
    """Letters and digits."""
    runs: tuple[Run, ...]
    """In the order that they are joined in."""

    @property
    def n_timepoints(self) -> int:
        """Timepoints of all runs together."""
        return sum(run.n_timepoints for run in self.runs)


@dataclass(frozen=True, eq=False)
class Source:
    """Somebody's connectome as an importer found it: headers were read, series were not."""

    grid: Grid
    """Of all runs alike."""
    subjects: tuple[SourceSubject, ...]
    space: str | None
    """The template that the files themselves name, if they do."""

    @property
    def n_components(self) -> int:
        """Length of the longest series as it is mapped: here all its timepoints."""
        return max(subject.n_timepoints for subject in self.subjects)

    @property
    def reading_bytes(self) -> int:
        """Memory that reading one subject takes at most."""
        return self.n_components * self.grid.n_voxels * VALUE_BYTES

    def files_of(self, subject: SourceSubject) -> list[Path]:
        """List what `read` reads; a file may hold other subjects too."""
        return [run.path for run in subject.runs]

    def read(self, subject: SourceSubject) -> tuple[Array, Array, Array]:
        """Read one subject's runs, demean each, and join them: `kernels.standardize`.

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


def read_dtype(stored: np.dtype) -> np.dtype:
    """Choose what stored numbers are read as: float32, or float64 where float32 would lose digits."""
    return np.result_type(stored.newbyteorder("="), np.float32)


def subject_name(place: Path) -> str:
    """Name the subject of a file by its path below the source.

    It is the first `sub-<label>`, else the letters and digits of the whole path: files without a label are subjects
    of their own.
    """
    entity = re.search(r"(?:^|[/_])sub-([A-Za-z0-9]+)(?=[/_.]|$)", place.as_posix())
    return (
        entity[1] if entity else re.sub(r"[^A-Za-z0-9]", "", place.as_posix().removesuffix("".join(place.suffixes)))
    )


def natural_order(path: Path) -> list[str | int]:
    """Sort run-2 before run-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.as_posix())]


def group_by_subject(named: Iterable[tuple[str, Run]]) -> tuple[SourceSubject, ...]:
    """Put all runs of one name together, in the order that they come in."""
    runs: dict[str, list[Run]] = {}
    for name, run in named:
        runs.setdefault(name, []).append(run)
    return tuple(SourceSubject(name, tuple(its_runs)) for name, its_runs in runs.items())


def find_files(folder: Path, pattern: str) -> list[Path]:
    """List the files below a folder that match a pattern, in natural order; hidden ones are left out.

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
    found = (path for path in folder.glob(pattern) if not path.name.startswith("."))
    return sorted(found, key=lambda path: natural_order(path.relative_to(folder)))


def check_folders(folder: Path, depth: int) -> None:
    """Raise PermissionError where a folder may not be searched: glob would pass over it without a word."""
    try:
        with os.scandir(folder) as entries:
            below = [Path(entry) for entry in entries if depth > 1 and entry.is_dir() and entry.name[0] != "."]
    except PermissionError as error:
        raise PermissionError(f"the folder {folder} may not be searched: check its permissions") from error
    for path in below:
        check_folders(path, depth - 1)
