"""Connectomes in NumPy files, one array (n_timepoints, n_voxels) per subject, with a mask."""

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
"""Ending of file names that hold other tools' norms of the series."""


@dataclass(frozen=True)
class NpyRun:
    """One NumPy file with voxels in C order over the mask."""

    path: Path
    origin: str
    """See `Run.origin`."""
    n_timepoints: int

    @classmethod
    def open(cls, path: Path, origin: str, grid: Grid) -> NpyRun:
        """Read a file's header and check it against the mask.

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
                f"{path} holds {shape} {dtype}: real numbers (n_timepoints, {grid.n_voxels}) are needed, "
                "with one column per voxel of the mask in C order"
            )
        return cls(path, origin, shape[0])

    def read(self, grid: Grid) -> Array:  # noqa: ARG002  the file has the grid's voxels only
        """See `Run.read`."""
        with _permitted(self.path):
            array = read_array(self.path)
        return array.astype(read_dtype(array.dtype), order="C", copy=False)


def open_source(path: Path, mask: Path, pattern: str | None = None) -> Source:
    """Open a folder of NumPy files, one per subject.

    Parameters
    ----------
    mask
        NIfTI file whose nonzero voxels are the columns of the arrays, in C order.
    pattern
        Glob pattern of the files' paths relative to the folder; by default `*.npy`. `*_norms.npy` are left out.

    Raises
    ------
    FileNotFoundError
        There is no such folder or mask, or no file in the folder.
    ValueError
        A file does not have the mask's number of voxels, or two files have the same subject name.
    """
    grid = read_grid(mask)
    files = [file for file in find_files(path, pattern or PATTERN) if not file.name.endswith(NORMS)]
    if not files:
        raise FileNotFoundError(
            f"the folder {path} has no series that match {pattern or PATTERN}: choose files with --pattern"
        )
    relative = [file.relative_to(path) for file in files]
    names = [subject_name(file) for file in relative]
    (most_frequent, count), *_ = Counter(names).most_common()
    if count > 1:
        twice = [file.as_posix() for file, name in zip(relative, names, strict=True) if name == most_frequent]
        raise ValueError(
            f"{path} has {count} files of the subject {most_frequent} ({', '.join(twice[:3])}): "
            "demean and join each subject's runs in one file, or choose files with --pattern"
        )
    subjects = (
        SourceSubject(name, (NpyRun.open(file, file.relative_to(path).as_posix(), grid),))
        for name, file in zip(names, files, strict=True)
    )
    return Source(grid, tuple(subjects), None)


@contextmanager
def _permitted(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionError(f"the series {path} may not be read: check its permissions") from error
