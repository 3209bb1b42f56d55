"""Connectomes in HDF5, in Lacuna's layout: one file, or a folder of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import h5py
import numpy as np

from bids_lacuna.connectome.importers import chunks
from bids_lacuna.connectome.importers.source import Source, SourceSubject, read_dtype
from bids_lacuna.grid import Grid, order_voxels
from bids_lacuna.images import LARGEST_VOLUME, check_file

Array = np.ndarray

SUFFIXES = (".h5", ".hdf5")

DAMAGE = (OSError, RuntimeError, TypeError, LookupError)
"""What h5py raises for a damaged file, beside ValueError."""

HASH_BLOCKS = 64
"""Blocks of each file that the content hash reads."""

HASH_BLOCK_BYTES = 65536

CHUNK_CACHE_BYTES = 2**20
"""HDF5's cache of chunks. Every chunk is read once for each subject, so that a larger one would gain nothing."""

MOST_SUBJECTS = 10**6
"""Of one file: a header must not decide how many are listed."""

HDF5_BYTES = 8 * 2**20
"""What HDF5 and ISA-L keep for themselves, the cache included."""

SPACE_ALIASES = {"MNI152_1mm": "MNI152NLin6Asym", "MNI152_2mm": "MNI152NLin6Asym"}
"""What converters write for the space of FSL's templates."""


@dataclass(frozen=True, eq=False)
class Part:
    """One HDF5 file."""

    path: Path
    grid: Grid
    """Of all files of one connectome alike."""
    n_subjects: int
    n_timepoints: int
    dtype: np.dtype
    """What the file's numbers are read as: float32 or float64."""
    order: Array | None
    """Shape (n_voxels,): the file's voxel for each voxel of the grid; None where the two orders agree."""
    file_bytes: int
    """Memory that it takes to get one subject's numbers out of the file."""
    gains_from_readers: bool
    """Whether several threads read faster: chunks are inflated here, not under HDF5's lock, and hold one subject."""

    @classmethod
    def open(cls, path: Path) -> Part:
        """Read everything but the series.

        Raises
        ------
        ValueError
            The file is not HDF5 or has another layout.
        """
        check_file(path, "connectome file")
        try:
            with chunks.HDF5, h5py.File(path) as file:
                return cls._from(file, path)
        except PermissionError as error:
            raise PermissionError(f"the connectome file {path} may not be read: check its permissions") from error
        except DAMAGE as error:
            raise ValueError(
                f"{path} cannot be read as HDF5 ({error}): it may be truncated or something else; copy it again"
            ) from error

    @classmethod
    def _from(cls, file: h5py.File, path: Path) -> Part:
        needed = ("timeseries", "mask_indices", "mask_affine")
        missing = [name for name in needed if not isinstance(file.get(name), h5py.Dataset)]
        missing += [] if "mask_shape" in file.attrs else ["the attribute mask_shape"]
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(file)) or 'nothing'}. A connectome "
                "needs the datasets timeseries (n_subjects, n_timepoints, n_voxels), mask_indices (3, n_voxels) "
                "and mask_affine (4, 4), and the attribute mask_shape"
            )
        # Shapes first, and values when it is known how many: a file may tell of more than it holds.
        timeseries, indices, affine = (file[name] for name in needed)
        n_voxels = timeseries.shape[-1] if timeseries.ndim == 3 else 0
        if 0 in timeseries.shape or n_voxels < 1 or indices.shape not in ((3, n_voxels), (n_voxels, 3)):
            raise ValueError(
                f"{path}: timeseries has shape {timeseries.shape} and mask_indices {indices.shape}; "
                "needed are (n_subjects, n_timepoints, n_voxels) and (3, n_voxels), none of them 0"
            )
        if timeseries.shape[0] > MOST_SUBJECTS or timeseries.shape[1] < 2 or n_voxels > LARGEST_VOLUME:
            raise ValueError(
                f"{path}: timeseries has shape {timeseries.shape}; needed are at most {MOST_SUBJECTS} subjects, two "
                f"timepoints at least, and at most {LARGEST_VOLUME} voxels"
            )
        if timeseries.dtype.kind not in "fiu" or timeseries.dtype.itemsize > 8 or indices.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: timeseries holds {timeseries.dtype} and mask_indices {indices.dtype}; "
                "needed are real numbers of up to 8 bytes and whole numbers"
            )
        shape = np.asarray(file.attrs["mask_shape"])
        if (
            shape.shape != (3,)
            or shape.dtype.kind not in "iuf"
            or not (shape >= 1).all()
            or np.prod(shape, dtype=float) > LARGEST_VOLUME
        ):
            raise ValueError(
                f"{path}: the attribute mask_shape is {shape.tolist()}; needed are three numbers of voxels, of at "
                f"most {LARGEST_VOLUME} together"
            )
        if affine.shape != (4, 4):
            raise ValueError(f"{path}: mask_affine has shape {affine.shape}; needed is (4, 4)")
        # With three voxels both readings fit, and this one is taken.
        places = np.asarray(indices) if indices.shape[0] == 3 else np.asarray(indices).T
        grid, order = _grid_of(places, shape.astype(int), np.asarray(affine), path)
        n_subjects, n_timepoints, _ = timeseries.shape
        dtype = read_dtype(timeseries.dtype)
        file_bytes = chunks.reading_bytes(timeseries, dtype)
        gains = chunks.is_inflatable(timeseries) and timeseries.chunks[0] == 1
        return cls(path, grid, n_subjects, n_timepoints, dtype, order, file_bytes, gains)

    @property
    def reading_bytes(self) -> int:
        """Memory that reading one subject takes."""
        n_values = self.n_timepoints * self.grid.n_voxels
        raw, series = n_values * self.dtype.itemsize, n_values * 4
        reordering = 2 * raw if self.order is not None else 0
        return HDF5_BYTES + max(self.file_bytes, raw + series, reordering)


@dataclass(frozen=True)
class Hdf5Run:
    """One subject's series in an HDF5 file."""

    part: Part
    number: int
    """Of the subject in the file, counted from 0."""

    @property
    def path(self) -> Path:
        """As `Run.path`."""
        return self.part.path

    @property
    def origin(self) -> str:
        """As `Run.origin`."""
        return f"{self.path.name}[{self.number}]"

    @property
    def n_timepoints(self) -> int:
        """As `Run.n_timepoints`."""
        return self.part.n_timepoints

    def read(self, grid: Grid) -> Array:  # noqa: ARG002  the file has the grid's voxels only
        """As `Run.read`."""
        part = self.part
        try:
            with chunks.HDF5, h5py.File(part.path, rdcc_nbytes=CHUNK_CACHE_BYTES) as file:
                timeseries = chunks.read_subject(file["timeseries"], self.number, part.dtype)
        except (*DAMAGE, ValueError) as error:
            raise OSError(
                f"subject {self.number} of the connectome file {part.path} cannot be read ({error}): "
                "the file may be damaged; copy it again"
            ) from error
        return timeseries if part.order is None else np.take(timeseries, part.order, axis=1)


@dataclass(frozen=True, eq=False)
class Hdf5Source(Source):
    """A connectome in HDF5, which may also be used as it is."""

    parts: tuple[Part, ...]
    """Its files, in order."""

    series_dtype: ClassVar[Literal["float32"]] = "float32"
    """Of the series as `read` gives them."""

    @property
    def n_readers(self) -> int:
        """Subjects that are read at a time: to inflate one takes a thread several times as long as to map it."""
        return 2 if any(part.gains_from_readers for part in self.parts) else 1

    @property
    def standardized_dtypes(self) -> frozenset[np.dtype]:
        """Of numbers that `read` standardizes."""
        return frozenset(part.dtype for part in self.parts)

    @property
    def reading_bytes(self) -> int:
        """Memory that reading one subject takes at most."""
        return max(part.reading_bytes for part in self.parts)

    @cached_property
    def content_hash(self) -> str:
        """Tell this connectome from others of the same name, without reading all of it.

        SHA-256 over each file's size and 64 blocks of 64 KiB spread evenly over it, in the order of the files.
        Files of up to 4 MiB are read whole.
        """
        digest = hashlib.sha256()
        for part in self.parts:
            size = part.path.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            step = max(HASH_BLOCK_BYTES, size // HASH_BLOCKS)
            with part.path.open("rb") as file:
                for start in range(0, size, step):
                    file.seek(start)
                    digest.update(file.read(HASH_BLOCK_BYTES))
        return digest.hexdigest()


def open_source(path: Path) -> Hdf5Source:
    """Open one HDF5 file, or all that lie in a folder.

    The subjects, which have no names there, are numbered from 0001. Files may differ in their number of timepoints
    and in the order of their voxels, not in their grid.

    Raises
    ------
    FileNotFoundError
        No such file or folder, or no HDF5 file in it.
    ValueError
        A file has another layout, or another grid than the first.
    """
    parts = _open_parts(_list_files(path))
    runs = [Hdf5Run(part, number) for part in parts for number in range(part.n_subjects)]
    subjects = tuple(SourceSubject(f"{number:04d}", (run,)) for number, run in enumerate(runs, start=1))
    return Hdf5Source(parts[0].grid, subjects, _recorded_space(parts[0].path), parts)


def _grid_of(indices: Array, shape: Array, affine: Array, path: Path) -> tuple[Grid, Array | None]:
    """Make the grid of a file's voxels, and where its voxel order is not C order, what brings it there."""
    if (indices < 0).any() or (indices >= shape[:, np.newaxis]).any():
        raise ValueError(f"{path}: mask_indices reach outside mask_shape {shape.tolist()}; write the file again")
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"{path}: mask_affine must be a (4, 4) matrix that can be inverted, it is {affine.tolist()}")
    try:
        mask, order = order_voxels(indices, tuple(shape))
    except ValueError as error:
        raise ValueError(f"{path}: in mask_indices {error}; write the file again") from error
    return Grid(mask, affine.astype(float)), order


def _open_parts(files: Sequence[Path]) -> tuple[Part, ...]:
    """Open files of one grid. A thousand of them share one mask and one order, which would be gigabytes otherwise."""
    first = Part.open(files[0])
    parts = [first]
    for file in files[1:]:
        part = Part.open(file)
        if not part.grid.is_same_as(first.grid):
            raise ValueError(
                f"the connectome's files have different grids: {first.path.name} has {first.grid}, "
                f"{part.path.name} has {part.grid}; keep files of one grid in one folder"
            )
        order = part.order
        if order is not None and first.order is not None and np.array_equal(order, first.order):
            order = first.order
        parts.append(replace(part, grid=first.grid, order=order))
    return tuple(parts)


def _list_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no connectome at {path}: name an HDF5 file, or a folder of them, and see that it is mounted"
        )
    files = sorted(
        file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise FileNotFoundError(
            f"the connectome folder {path} holds no HDF5 file (*.h5, *.hdf5), and is no store; what else you have "
            "becomes a store with `bids-lacuna-connectome build`"
        )
    return files


def _recorded_space(path: Path) -> str | None:
    with chunks.HDF5, h5py.File(path) as file:
        space = file.attrs.get("space")
    space = space.item() if isinstance(space, np.ndarray) and space.size == 1 else space
    space = space.decode() if isinstance(space, bytes) else space
    return SPACE_ALIASES.get(space, space) if isinstance(space, str) else None
