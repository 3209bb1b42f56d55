"""A normative functional connectome on disk, streamed one connectome subject at a time."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path

import h5py
import numpy as np

from bids_lacuna.grid import Grid
from bids_lacuna.kernels import standardize

Array = np.ndarray

logger = logging.getLogger(__name__)

DEFAULT_SPACE = "MNI152NLin6Asym"
"""The space of GSP1000, which is what people have in HDF5; that layout has no place for the space's name."""

HDF5_SUFFIXES = (".h5", ".hdf5")

HASH_BLOCKS = 64
"""Blocks of each file that the content hash reads."""

HASH_BLOCK_BYTES = 65536

CHUNK_CACHE_BYTES = 2**20
"""HDF5's cache of chunks. Every chunk is read once for each subject, so that a larger one would gain nothing."""

HDF5_BYTES = 8 * 2**20
"""What HDF5 keeps for itself, the cache included."""

SPACE_ALIASES = {"MNI152_1mm": "MNI152NLin6Asym", "MNI152_2mm": "MNI152NLin6Asym"}
"""What converters write for the space of FSL's templates."""


@dataclass(frozen=True, eq=False)
class ConnectomeSubject:
    """One person of the connectome. A series times its `scale` has norm 1."""

    name: str
    """The file, and the subject's place in it counted from 0."""
    series: Array
    """Shape (n_voxels, n_timepoints), float32: each voxel's demeaned series."""
    scale: Array
    """Shape (n_voxels,), float32: what makes a series' norm 1; 0 where the series is constant or not finite."""
    sd: Array
    """Shape (n_voxels,), float32: standard deviation of each series as stored, in its own units."""


@dataclass(frozen=True, eq=False)
class Hdf5Part:
    """One HDF5 file in Lacuna's layout."""

    path: Path
    grid: Grid
    """Of all files of one connectome alike."""
    n_subjects: int
    n_timepoints: int
    dtype: np.dtype
    """What the file's numbers are read as: float32 or float64."""
    order: Array | None
    """Shape (n_voxels,): the file's voxel for each voxel of the grid; None where the two orders agree."""
    chunk_bytes: int
    """Of one decompressed chunk of the file; 0 where it is not chunked."""

    @classmethod
    def open(cls, path: Path) -> Hdf5Part:
        """Read everything but the series.

        Raises
        ------
        ValueError
            The file is not HDF5 or has another layout.
        """
        try:
            with h5py.File(path) as file:
                return cls._from(file, path)
        except PermissionError as error:
            raise PermissionError(f"the connectome file {path} may not be read: check its permissions") from error
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read as HDF5 ({error}): it may be truncated or something else; copy it again"
            ) from error

    @classmethod
    def _from(cls, file: h5py.File, path: Path) -> Hdf5Part:
        needed = ("timeseries", "mask_indices", "mask_affine")
        missing = [name for name in needed if not isinstance(file.get(name), h5py.Dataset)]
        missing += [] if "mask_shape" in file.attrs else ["the attribute mask_shape"]
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(file)) or 'nothing'}. A connectome "
                "needs the datasets timeseries (n_subjects, n_timepoints, n_voxels), mask_indices (3, n_voxels) "
                "and mask_affine (4, 4), and the attribute mask_shape"
            )
        timeseries = file["timeseries"]
        indices = np.asarray(file["mask_indices"])
        # With three voxels both readings fit, and this one is taken.
        indices = indices if indices.shape[:1] == (3,) else indices.T
        if timeseries.ndim != 3 or 0 in timeseries.shape or indices.shape != (3, timeseries.shape[2]):
            raise ValueError(
                f"{path}: timeseries has shape {timeseries.shape} and mask_indices {file['mask_indices'].shape}; "
                "needed are (n_subjects, n_timepoints, n_voxels) and (3, n_voxels), none of them 0"
            )
        if timeseries.dtype.kind not in "fiu" or timeseries.dtype.itemsize > 8 or indices.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: timeseries holds {timeseries.dtype} and mask_indices {indices.dtype}; "
                "needed are real numbers of up to 8 bytes and whole numbers"
            )
        shape = np.asarray(file.attrs["mask_shape"])
        if shape.shape != (3,) or shape.dtype.kind not in "iuf" or (shape <= 0).any() or np.prod(shape) > 2**31:
            raise ValueError(
                f"{path}: the attribute mask_shape is {shape.tolist()}; needed are three numbers of voxels"
            )
        grid, order = _grid_of(indices, shape.astype(int), np.asarray(file["mask_affine"]), path)
        dtype = np.result_type(timeseries.dtype.newbyteorder("="), np.float32)
        chunk_bytes = int(np.prod(timeseries.chunks or 0)) * timeseries.dtype.itemsize
        return cls(path, grid, timeseries.shape[0], timeseries.shape[1], dtype, order, chunk_bytes)

    @property
    def buffer_bytes(self) -> int:
        """As `Connectome.buffer_bytes`: HDF5 holds a chunk twice while it inflates it."""
        n_values = self.n_timepoints * self.grid.n_voxels
        raw, series = n_values * self.dtype.itemsize, n_values * 4
        reading = max(
            raw + series, raw + self.chunk_bytes, 2 * self.chunk_bytes, 2 * raw if self.order is not None else 0
        )
        return HDF5_BYTES + max(0, reading - 2 * series)

    def subjects(self) -> Iterator[ConnectomeSubject]:
        """Read and standardize one subject after another."""
        number = 0
        try:
            with h5py.File(self.path, rdcc_nbytes=CHUNK_CACHE_BYTES) as file:
                for number in range(self.n_subjects):
                    raw = np.empty(file["timeseries"].shape[1:], self.dtype)
                    file["timeseries"].read_direct(raw, np.s_[number])
                    if self.order is not None:
                        raw = np.take(raw, self.order, axis=1)
                    yield ConnectomeSubject(f"{self.path.name}[{number}]", *standardize(raw))
        except OSError as error:
            raise OSError(
                f"subject {number} of the connectome file {self.path} cannot be read ({error}): "
                "the file may be damaged; copy it again"
            ) from error


def _grid_of(indices: Array, shape: Array, affine: Array, path: Path) -> tuple[Grid, Array | None]:
    """Make the grid of a file's voxels, and where its voxel order is not C order, what brings it there."""
    if (indices < 0).any() or (indices >= shape[:, np.newaxis]).any():
        raise ValueError(f"{path}: mask_indices reach outside mask_shape {shape.tolist()}; write the file again")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"{path}: mask_affine must be a (4, 4) matrix that can be inverted, it is {affine.tolist()}")
    numbers = np.ravel_multi_index(tuple(indices.astype(np.int64)), tuple(shape))
    in_c_order = (np.diff(numbers) > 0).all()
    order = None if in_c_order else np.argsort(numbers, kind="stable")
    if order is not None and (np.diff(numbers[order]) == 0).any():
        raise ValueError(f"{path}: mask_indices name a voxel twice; write the file again")
    mask = np.zeros(tuple(shape), dtype=bool)
    mask[tuple(indices)] = True
    return Grid(mask, affine.astype(float)), order


@dataclass(frozen=True, eq=False)
class Connectome:
    """Resting-state series of many healthy people on one grid, in HDF5 files of Lacuna's layout."""

    path: Path
    name: str
    """Letters and digits; part of the names of the maps."""
    space: str
    """The template of the grid."""
    grid: Grid
    parts: tuple[Hdf5Part, ...]

    @classmethod
    def open(cls, path: str | PathLike[str], *, name: str | None = None, space: str | None = None) -> Connectome:
        """Open a connectome; no series is read yet.

        Parameters
        ----------
        path
            An HDF5 file or a folder of them. Its files may differ in their number of timepoints and in the order
            of their voxels, not in their grid.
        name
            Letters and digits; by default those of the file's or folder's name.
        space
            Name of the template that the grid is in; by default the file's attribute `space`, else
            MNI152NLin6Asym, the space of GSP1000.

        Raises
        ------
        FileNotFoundError
            No such file or folder, or no HDF5 file in it.
        ValueError
            A file has another layout, or another grid than the first, or the name or the space has other characters.
        """
        path = Path(path)
        parts = _open_parts(_hdf5_files(path))
        first = parts[0]
        # Not resolved: a link has the name that its owner gave it.
        own_name = Path(os.path.abspath(path)).name.removesuffix(path.suffix if path.is_file() else "")  # noqa: PTH100
        name = name or re.sub(r"[^A-Za-z0-9]", "", own_name) or "connectome"
        if not re.fullmatch(r"[A-Za-z0-9]+", name):
            raise ValueError(
                f"the connectome's name {name!r} becomes part of file names: use letters and digits only"
            )
        space = space or _recorded_space(first.path) or DEFAULT_SPACE
        if not re.fullmatch(r"[A-Za-z0-9+]+", space):
            raise ValueError(
                f"the connectome's space {space!r} is no BIDS name of a template, such as MNI152NLin6Asym or "
                "MNI152NLin2009cAsym: give its right name (--connectome-space)"
            )
        return cls(path, name, space, first.grid, parts)

    @property
    def n_subjects(self) -> int:
        """Number of connectome subjects."""
        return sum(part.n_subjects for part in self.parts)

    @property
    def n_timepoints(self) -> int:
        """Number of timepoints of the longest series."""
        return max(part.n_timepoints for part in self.parts)

    @property
    def buffer_bytes(self) -> int:
        """Memory that reading takes beyond two float32 subjects, the one read and the one standardized from it."""
        return max(part.buffer_bytes for part in self.parts)

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

    def subjects(self) -> Iterator[ConnectomeSubject]:
        """Iterate over the connectome subjects in order; one thread reads the next one ahead.

        Raises
        ------
        OSError
            A file cannot be read; the message names it.
        """
        with (
            closing(self._read()) as subjects,
            ThreadPoolExecutor(1, thread_name_prefix="connectome") as reader,
        ):
            ahead = reader.submit(next, subjects, None)
            while (subject := ahead.result()) is not None:
                ahead = reader.submit(next, subjects, None)
                yield subject
                del subject

    def _read(self) -> Generator[ConnectomeSubject, None, None]:
        for part in self.parts:
            logger.debug("reading %s: %d subjects of %d timepoints", part.path, part.n_subjects, part.n_timepoints)
            yield from part.subjects()


def _open_parts(files: Sequence[Path]) -> tuple[Hdf5Part, ...]:
    """Open files of one grid. A thousand of them share one mask and one order, which would be gigabytes otherwise."""
    first = Hdf5Part.open(files[0])
    parts = [first]
    for file in files[1:]:
        part = Hdf5Part.open(file)
        if not part.grid.is_same_as(first.grid):
            raise ValueError(
                f"the connectome's files have different grids: {first.path.name} has {_describe(first.grid)}, "
                f"{part.path.name} has {_describe(part.grid)}; keep files of one grid in one folder"
            )
        order = part.order
        if order is not None and first.order is not None and np.array_equal(order, first.order):
            order = first.order
        parts.append(replace(part, grid=first.grid, order=order))
    return tuple(parts)


def _hdf5_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no connectome at {path}: name an HDF5 file, or a folder of them, and see that it is mounted"
        )
    files = sorted(file for file in path.iterdir() if file.suffix in HDF5_SUFFIXES and not file.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"the connectome folder {path} holds no HDF5 file (*.h5, *.hdf5)")
    return files


def _recorded_space(path: Path) -> str | None:
    with h5py.File(path) as file:
        space = file.attrs.get("space")
    space = space.item() if isinstance(space, np.ndarray) and space.size == 1 else space
    space = space.decode() if isinstance(space, bytes) else space
    return SPACE_ALIASES.get(space, space) if isinstance(space, str) else None


def _describe(grid: Grid) -> str:
    sizes = " x ".join(f"{size:g}" for size in grid.voxel_sizes_mm)
    origin = ", ".join(f"{x:g}" for x in grid.affine[:3, 3])
    return f"{grid.n_voxels} voxels of {sizes} mm in a volume {grid.shape} from ({origin})"
