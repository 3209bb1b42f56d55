"""Connectomes in HDF5 with Lacuna's layout: one file or a folder of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, cast

import h5py
import numpy as np

from bids_lacuna.connectome.importers import chunks
from bids_lacuna.connectome.importers.opening import (
    check_not_being_written,
    describe_broken_links,
    explain,
    files_behind,
    open_hdf5,
)
from bids_lacuna.connectome.importers.source import Source, SourceSubject, read_dtype
from bids_lacuna.files import FileState, advise
from bids_lacuna.grid import Grid, order_voxels, tell_grids_apart
from bids_lacuna.images import LARGEST_VOLUME, check_file

Array = np.ndarray

SUFFIXES = (".h5", ".hdf5")

DAMAGE = (OSError, RuntimeError, TypeError, LookupError)
"""Exceptions that h5py raises for a damaged file, beside ValueError."""

HASH_BLOCKS = 64
"""Number of blocks of each file that the content hash reads."""

HASH_BLOCK_BYTES = 65536

CHUNK_CACHE_BYTES = 2**20
"""Bytes of HDF5's chunk cache; a larger one gains nothing, since each chunk is read once per subject."""

MOST_SUBJECTS = 10**6
"""Largest number of subjects in one file, so that a damaged header cannot ask for more."""

HDF5_BYTES = 8 * 2**20
"""Memory overhead of HDF5 and ISA-L, including the cache."""

SPACE_ALIASES = {"MNI152_1mm": "MNI152NLin6Asym", "MNI152_2mm": "MNI152NLin6Asym"}
"""What converters write for the space of FSL's templates."""


@dataclass(frozen=True, eq=False)
class Hdf5File:
    """One HDF5 file."""

    path: Path
    grid: Grid
    """Grid, equal in all files of a connectome."""
    n_subjects: int
    n_timepoints: int
    dtype: np.dtype
    """Data type for reading the file's numbers: float32 or float64."""
    order: Array | None
    """Shape (n_voxels,): index in the file of each voxel of the grid; None if the orders agree."""
    file_bytes: int
    """Bytes of memory needed to get one subject's numbers out of the file."""
    gains_from_readers: bool
    """Whether several threads read faster: each chunk holds one subject and is inflated outside HDF5's lock."""
    states: Mapping[Path, FileState]
    """State of the file, before it was opened, and of other files that hold its series, by links."""

    @classmethod
    def open(cls, path: Path) -> Hdf5File:
        """Read everything but the series.

        Raises
        ------
        ValueError
            The file is not HDF5, or has another layout.
        """
        check_file(path, "connectome file")
        try:
            check_not_being_written(path)
            state = FileState.of(path)
            with chunks.HDF5, open_hdf5(path) as file:
                return cls._from(file, path, state)
        except PermissionError as error:
            raise PermissionError(f"the connectome file {path} may not be read: check its permissions") from error
        except DAMAGE as error:
            raise ValueError(explain(error, path)) from error

    @classmethod
    def _from(cls, file: h5py.File, path: Path, state: FileState) -> Hdf5File:
        needed = ("timeseries", "mask_indices", "mask_affine")
        if broken := describe_broken_links(file, path, needed):
            raise ValueError(broken)
        missing = [name for name in needed if not isinstance(file.get(name), h5py.Dataset)]
        missing += [] if "mask_shape" in file.attrs else ["the attribute mask_shape"]
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(file)) or 'nothing'}. A connectome "
                "needs the datasets timeseries (n_subjects, n_timepoints, n_voxels), mask_indices (3, n_voxels) "
                "and mask_affine (4, 4), and the attribute mask_shape"
            )
        # Shapes are checked before values are read: a header may promise more than the file holds.
        timeseries, indices, affine = (file[name] for name in needed)
        n_voxels = timeseries.shape[-1] if timeseries.ndim == 3 else 0
        if 0 in timeseries.shape or n_voxels < 1 or indices.shape not in ((3, n_voxels), (n_voxels, 3)):
            raise ValueError(
                f"{path}: timeseries has shape {timeseries.shape} and mask_indices {indices.shape}; "
                "(n_subjects, n_timepoints, n_voxels) and (3, n_voxels) are needed, none of them 0"
            )
        if timeseries.shape[0] > MOST_SUBJECTS or timeseries.shape[1] < 2 or n_voxels > LARGEST_VOLUME:
            raise ValueError(
                f"{path}: timeseries has shape {timeseries.shape}; at most {MOST_SUBJECTS} subjects, at least two "
                f"timepoints and at most {LARGEST_VOLUME} voxels are needed"
            )
        if timeseries.dtype.kind not in "fiu" or timeseries.dtype.itemsize > 8 or indices.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: timeseries holds {timeseries.dtype} and mask_indices {indices.dtype}; "
                "real numbers of up to 8 bytes and whole numbers are needed"
            )
        shape = np.asarray(file.attrs["mask_shape"])
        if (
            shape.shape != (3,)
            or shape.dtype.kind not in "iuf"
            or not (shape >= 1).all()
            or np.prod(shape, dtype=float) > LARGEST_VOLUME
        ):
            raise ValueError(
                f"{path}: the attribute mask_shape is {shape.tolist()}; three numbers of voxels with a product "
                f"of at most {LARGEST_VOLUME} are needed"
            )
        if affine.shape != (4, 4):
            raise ValueError(f"{path}: mask_affine has shape {affine.shape}; (4, 4) is needed")
        # With three voxels, both readings fit; this one is preferred.
        columns = np.asarray(indices) if indices.shape[0] == 3 else np.asarray(indices).T
        grid, order = _grid_of(columns, shape.astype(int), np.asarray(affine), path)
        n_subjects, n_timepoints, _ = timeseries.shape
        dtype = read_dtype(timeseries.dtype)
        file_bytes = chunks.reading_bytes(timeseries, dtype)
        gains = chunks.is_inflatable(timeseries) and timeseries.chunks[0] == 1
        states = {path: state, **{other: FileState.of(other) for other in files_behind(timeseries, path)}}
        return cls(path, grid, n_subjects, n_timepoints, dtype, order, file_bytes, gains, states)

    @property
    def reading_bytes(self) -> int:
        """Bytes of memory needed to read one subject."""
        n_values = self.n_timepoints * self.grid.n_voxels
        raw, series = n_values * self.dtype.itemsize, n_values * 4
        reordering = 2 * raw if self.order is not None else 0
        return HDF5_BYTES + max(self.file_bytes, raw + series, reordering)


@dataclass(frozen=True)
class Hdf5Run:
    """One subject's series in an HDF5 file."""

    file: Hdf5File
    index: int
    """Index of the subject in the file."""

    @property
    def path(self) -> Path:
        """See `Run.path`."""
        return self.file.path

    @property
    def origin(self) -> str:
        """See `Run.origin`."""
        return f"{self.path.name}[{self.index}]"

    @property
    def n_timepoints(self) -> int:
        """See `Run.n_timepoints`."""
        return self.file.n_timepoints

    def read(self, grid: Grid) -> Array:  # noqa: ARG002  the file has the grid's voxels only
        """See `Run.read`."""
        try:
            with chunks.HDF5, open_hdf5(self.path, rdcc_nbytes=CHUNK_CACHE_BYTES) as stored:
                timeseries = chunks.read_subject(stored["timeseries"], self.index, self.file.dtype)
        except (*DAMAGE, ValueError) as error:
            advice = advise(error, "the file may be damaged; copy it again")
            raise OSError(
                f"subject {self.index} of the connectome file {self.path} cannot be read ({error}): {advice}"
            ) from error
        order = self.file.order
        return timeseries if order is None else np.take(timeseries, order, axis=1)


@dataclass(frozen=True, eq=False)
class Hdf5Source(Source):
    """A connectome in HDF5, which can be mapped without building a store."""

    files: tuple[Hdf5File, ...]
    """The connectome's files in order."""

    series_dtype: ClassVar[Literal["float32"]] = "float32"
    """Data type of the series that `read` returns."""

    @property
    def n_readers(self) -> int:
        """Number of subjects read at the same time: inflating a subject takes several times as long as mapping it."""
        return 2 if any(file.gains_from_readers for file in self.files) else 1

    @property
    def standardized_dtypes(self) -> frozenset[np.dtype]:
        """Data types that `read` standardizes."""
        return frozenset(file.dtype for file in self.files)

    @property
    def reading_bytes(self) -> int:
        """Bytes of memory needed to read one subject, at most."""
        return max(file.reading_bytes for file in self.files)

    def files_of(self, subject: SourceSubject) -> list[Path]:
        """Return the files that `read` reads; they may hold other subjects, too."""
        return [path for run in subject.runs for path in cast("Hdf5Run", run).file.states]

    @cached_property
    def states(self) -> dict[Path, FileState]:
        """State of each file of the connectome before it was opened."""
        return {path: state for file in self.files for path, state in file.states.items()}

    @cached_property
    def content_hash(self) -> str:
        """Hash that distinguishes this connectome from others of the same name, without reading all of it.

        SHA-256 over each file's size and 64 evenly spaced blocks of 64 KiB, in the order of the files; a file that
        holds another one's series follows that one. Files of up to 4 MiB are read completely.
        """
        return _hash_blocks(self.states)

    def remember_content(self) -> None:
        """Compute the content hash now, for `has_same_content`."""
        _ = self.content_hash

    def has_same_content(self, path: Path) -> bool:  # noqa: ARG002  the hash is one for all files
        """Return whether a file still has its content, up to what the remembered hash shows; raises OSError."""
        return _hash_blocks(self.states) == vars(self).get("content_hash")


def _hash_blocks(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        step = max(HASH_BLOCK_BYTES, size // HASH_BLOCKS)
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(HASH_BLOCK_BYTES))
    return digest.hexdigest()


def open_source(path: Path) -> Hdf5Source:
    """Open one HDF5 file, or all files in a folder.

    The files have no names of subjects: subjects are numbered from 0001. Files may have different numbers of
    timepoints and orders of voxels, but need the same grid.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder, or the folder has no HDF5 file.
    ValueError
        A file has another layout, or another grid than the first file.
    """
    files = _open_files(_list_files(path))
    runs = [Hdf5Run(file, index) for file in files for index in range(file.n_subjects)]
    subjects = tuple(SourceSubject(f"{number:04d}", (run,)) for number, run in enumerate(runs, start=1))
    return Hdf5Source(files[0].grid, subjects, _recorded_space(files[0].path), files)


def _grid_of(indices: Array, shape: Array, affine: Array, path: Path) -> tuple[Grid, Array | None]:
    """Return the grid of a file's voxels, and the permutation to C order unless that is their order."""
    if (indices < 0).any() or (indices >= shape[:, np.newaxis]).any():
        raise ValueError(f"{path}: mask_indices are outside mask_shape {shape.tolist()}; write the file again")
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"{path}: mask_affine must be an invertible (4, 4) matrix, but is {affine.tolist()}")
    try:
        mask, order = order_voxels(indices, tuple(shape))
    except ValueError as error:
        raise ValueError(f"{path}: in mask_indices {error}; write the file again") from error
    return Grid(mask, affine.astype(float)), order


def _open_files(paths: Sequence[Path]) -> tuple[Hdf5File, ...]:
    """Open files of one grid, sharing mask and order in memory: a thousand copies would take gigabytes."""
    first = Hdf5File.open(paths[0])
    files = [first]
    for path in paths[1:]:
        file = Hdf5File.open(path)
        if not file.grid.is_same_as(first.grid):
            ours, theirs = tell_grids_apart(first.grid, file.grid)
            raise ValueError(
                f"the connectome's files have different grids: {first.path.name} has {ours}, "
                f"{file.path.name} has {theirs}; keep files of one grid in one folder"
            )
        order = file.order
        if order is not None and first.order is not None and np.array_equal(order, first.order):
            order = first.order
        files.append(replace(file, grid=first.grid, order=order))
    return tuple(files)


def _list_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no connectome at {path}: name an HDF5 file or a folder of them, and check that it is mounted"
        )
    files = sorted(
        file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise FileNotFoundError(
            f"the connectome folder {path} holds no HDF5 file (*.h5, *.hdf5) and is not a store: convert "
            "other layouts to a store with `bids-lacuna-connectome build`"
        )
    return files


def _recorded_space(path: Path) -> str | None:
    with chunks.HDF5, open_hdf5(path) as file:
        space = file.attrs.get("space")
    space = space.item() if isinstance(space, np.ndarray) and space.size == 1 else space
    space = space.decode() if isinstance(space, bytes) else space
    return SPACE_ALIASES.get(space, space) if isinstance(space, str) else None
