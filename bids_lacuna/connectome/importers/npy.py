"""Connectomes in NumPy files: an array (n_timepoints, n_voxels) for each subject, and a mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_lacuna.connectome.arrays import read_array, read_array_header
from bids_lacuna.connectome.importers.nifti import read_grid
from bids_lacuna.connectome.importers.source import Source, SourceSubject, find_files, read_dtype, subject_name
from bids_lacuna.grid import Grid
from bids_lacuna.images import check_file

Array = np.ndarray

PATTERN = "*.npy"

NORMS = "_norms.npy"
"""How the names of files end that hold other tools' norms of the series, not series."""


@dataclass(frozen=True)
class NpyRun:
    """One NumPy file; the voxels are in C order over the mask."""

    path: Path
    origin: str
    """As `Run.origin`."""
    n_timepoints: int

    @classmethod
    def open(cls, path: Path, origin: str, grid: Grid) -> NpyRun:
        """Read a file's header, and check it against the mask.

        Raises
        ------
        ValueError
            The file is damaged, or has another shape or dtype.
        """
        check_file(path, "series")
        with _permitted(path):
            shape, dtype = read_array_header(path)
        if len(shape) != 2 or shape[1] != grid.n_voxels or shape[0] < 2 or dtype.kind not in "iuf":
            raise ValueError(
                f"{path} holds {shape} {dtype}: needed are real numbers (n_timepoints, {grid.n_voxels}), "
                "a column for each voxel of the mask in C order"
            )
        return cls(path, origin, shape[0])

    def read(self, grid: Grid) -> Array:  # noqa: ARG002  the file has the grid's voxels only
        """As `Run.read`."""
        with _permitted(self.path):
            array = read_array(self.path)
        return array.astype(read_dtype(array.dtype), order="C", copy=False)


def open_source(path: Path, mask: Path, pattern: str | None = None) -> Source:
    """Open a folder of NumPy files, each one subject's series.

    Parameters
    ----------
    mask
        NIfTI file; its voxels that are not 0 are the columns of the arrays, in C order.
    pattern
        Of the files' paths below the folder; by default all `.npy` in it. Files called `*_norms.npy` are left out.

    Raises
    ------
    FileNotFoundError
        No such folder or mask, or no file in it.
    ValueError
        A file has another shape than the mask asks for, or two have one subject's name.
    """
    grid = read_grid(mask)
    files = [file for file in find_files(path, pattern or PATTERN) if not file.name.endswith(NORMS)]
    if not files:
        raise FileNotFoundError(f"the folder {path} holds no series that match {pattern or PATTERN}")
    places = [file.relative_to(path) for file in files]
    names = [subject_name(place) for place in places]
    (most_frequent, count), *_ = Counter(names).most_common()
    if count > 1:
        twice = [place.as_posix() for place, name in zip(places, names, strict=True) if name == most_frequent]
        raise ValueError(
            f"{path} has {count} files of the subject {most_frequent} ({', '.join(twice[:3])}): "
            "join one subject's runs in one file, each demeaned, or choose files with --pattern"
        )
    subjects = (
        SourceSubject(name, (NpyRun.open(file, place.as_posix(), grid),))
        for name, file, place in zip(names, files, places, strict=True)
    )
    return Source(grid, tuple(subjects), None)


@contextmanager
def _permitted(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionError(f"the series {path} may not be read: check its permissions") from error
