"""Files of a connectome's summary: what the connectome is like as a whole, for approximate maps and for similarity.

```
summary.json            connectome, cell size, checksums; written last, so that a summary with it is complete
cells.npy               (n_voxels,) int32: cell of each voxel
operator.npy            (n_blocks, n_cells, 2048) float32: covariances of cells and voxels, in blocks of 2048 voxels
covariance.npy          (n_cells, n_cells) float32: covariances of cells
degree.npy, absolute_degree.npy     (n_voxels,) float32
components.npy          (3, n_voxels) float32: first principal components
```

What the numbers are is defined in `reference`. The folder is `summary` within the store, whose content hash does not
include it, or a folder beside a store that is read-only.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.connectome.arrays import array_header, read_array
from bids_lacuna.files import hash_file, read_json_object, renamed_when_whole, write_json

Array = np.ndarray

FOLDER = "summary"
"""Folder of the summary within a store."""

DESCRIPTION = "summary.json"

LAYOUT_VERSION = 1
"""Version of the layout, for when it changes."""

BLOCK_VOXELS = 2048
"""Voxels per block of the operator. A tile of null maps needs some voxels of many cells, which lie together so."""

REMEDY = "remove the folder of the summary, and run `bids-lacuna-connectome summarize` again"
"""Advice about a damaged summary, for error messages."""

N_COMPONENTS = 3

SMALL = ("cells", "degree", "absolute_degree", "components")
"""Arrays that are read and compared with their checksums when a summary is opened."""

ARRAYS = (*SMALL, "covariance", "operator")


@dataclass(frozen=True)
class SummaryRecord:
    """What a summary is made from."""

    connectome_name: str
    connectome_hash: str
    """Content hash of the connectome."""
    n_subjects: int
    """Number of connectome subjects."""
    n_voxels: int
    n_cells: int
    cell_size_mm: float
    """Edge of the cubes."""
    variance_fractions: tuple[float, ...]
    """Fraction of the variance of each principal component."""
    software: Mapping[str, str]
    """Name and version of the program."""
    sha256: Mapping[str, str]
    """SHA-256 of each array's file."""

    @property
    def content_hash(self) -> str:
        """SHA-256 that distinguishes this summary from others of the same connectome."""
        return hashlib.sha256(bytes.fromhex("".join(self.sha256[name] for name in ARRAYS))).hexdigest()


@dataclass(frozen=True, eq=False)
class Operator:
    """The covariances of all cells with all voxels, in blocks of voxels, of which at most one is mapped into memory.

    C(c, v) is the mean over connectome subjects of cov(c, v) / (g · sd(v)), where g is the subject's mean standard
    deviation of cells, and the subjects are those with a signal in both. It is 0 for a cell without a signal in any
    subject, and NaN where else no subject has a signal in both.
    """

    path: Path
    n_cells: int
    n_voxels: int

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return math.ceil(self.n_voxels / BLOCK_VOXELS)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of the file; the last block is filled up with 0."""
        return self.n_blocks, self.n_cells, BLOCK_VOXELS

    @cached_property
    def header(self) -> bytes:
        """Bytes of the file before the numbers."""
        return array_header(self.stored_shape, np.dtype("<f4"))

    @property
    def n_bytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + 4 * math.prod(self.stored_shape)

    def voxels(self, index: int) -> slice:
        """Return the voxels of one block."""
        return slice(index * BLOCK_VOXELS, min((index + 1) * BLOCK_VOXELS, self.n_voxels))

    def block(self, index: int) -> Array:
        """Map one block into memory.

        Returns
        -------
        shape (n_cells, up to `BLOCK_VOXELS`), float32
            Columns of the voxels `voxels(index)`, read-only.
        """
        columns = np.memmap(self.path, "<f4", "r", self._offset(index), self.stored_shape[1:])
        voxels = self.voxels(index)
        return columns[:, : voxels.stop - voxels.start].view(np.ndarray)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Map the blocks into memory, one after another, each with its voxels."""
        for index in range(self.n_blocks):
            yield self.voxels(index), self.block(index)

    def create(self) -> None:
        """Create the file, with numbers of 0."""
        with self.path.open("wb") as file:
            file.write(self.header)
            file.truncate(self.n_bytes)

    def write_rows(self, index: int, first: int, rows: Array) -> None:
        """Write the columns of one block for some cells: shape (n, up to `BLOCK_VOXELS`), float32."""
        padded = np.zeros((len(rows), BLOCK_VOXELS), "<f4")
        padded[:, : rows.shape[1]] = rows
        with self.path.open("r+b") as file:
            file.seek(self._offset(index) + 4 * BLOCK_VOXELS * first)
            file.write(padded.data)

    def sync(self) -> None:
        """Wait until the file is on the disk."""
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())

    def _offset(self, index: int) -> int:
        return len(self.header) + 4 * BLOCK_VOXELS * self.n_cells * index


@dataclass(frozen=True, eq=False)
class SummaryArrays:
    """An open summary."""

    folder: Path
    record: SummaryRecord
    cells: Array
    """Shape (n_voxels,), int32: cell of each voxel."""
    degree: Array
    """Shape (n_voxels,), float32: mean r of each voxel with all others; NaN where undefined, as in all maps."""
    absolute_degree: Array
    """Shape (n_voxels,), float32: mean |z| of each voxel with all cells, each weighted by its voxels."""
    components: Array
    """Shape (3, n_voxels), float32: first principal components of the cells' r, with norm 1."""
    covariance: Array
    """Shape (n_cells, n_cells), float32, memory-mapped: S, the mean over connectome subjects of cov(c, c') / g²."""
    operator: Operator
    """Covariances of cells and voxels, in blocks of voxels."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays on disk."""
        return sum(array_path(self.folder, name).stat().st_size for name in ARRAYS)


def has_summary(folder: Path) -> bool:
    """Return whether a folder holds a finished summary."""
    return (folder / DESCRIPTION).exists()


def array_path(folder: Path, name: str) -> Path:
    """Return the path of one array."""
    return folder / f"{name}.npy"


def write_array(folder: Path, name: str, array: Array) -> None:
    """Write one array atomically."""
    with renamed_when_whole(array_path(folder, name)) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def finish_summary(folder: Path, record: SummaryRecord) -> None:
    """Write the description, with the checksums of the arrays, which completes the summary."""
    sha256 = {name: hash_file(array_path(folder, name)) for name in ARRAYS}
    content = asdict(record) | {"sha256": sha256}
    write_json(folder / DESCRIPTION, {"layout_version": LAYOUT_VERSION, **content})


def read_record(folder: Path) -> SummaryRecord:
    """Read the description of a summary.

    Raises
    ------
    FileNotFoundError
        There is no summary, or it is unfinished.
    ValueError
        The description is damaged, or of another layout.
    OSError
        It cannot be read.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise FileNotFoundError(
            f"there is no summary of the connectome in {folder}: make one with `bids-lacuna-connectome summarize`"
        )
    description = read_json_object(path)
    if description.get("layout_version", LAYOUT_VERSION) != LAYOUT_VERSION:
        raise ValueError(
            f"the summary {folder} has layout {description['layout_version']}, this program reads layout "
            f"{LAYOUT_VERSION}: use a newer version of bids-lacuna"
        )
    try:
        return _read_record(description)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} does not describe a connectome's summary ({error!r}): {REMEDY}") from error


def open_summary(folder: Path, connectome_hash: str) -> SummaryArrays:
    """Open a summary; covariances are not read yet.

    Parameters
    ----------
    connectome_hash
        Content hash of the connectome that it must be the summary of.

    Raises
    ------
    FileNotFoundError
        There is no summary, or it is unfinished.
    ValueError
        It is of another connectome, or damaged.
    OSError
        A file cannot be read.
    """
    record = read_record(folder)
    if record.connectome_hash != connectome_hash:
        raise ValueError(
            f"the summary {folder} is of another connectome ({record.connectome_name}, "
            f"{record.connectome_hash[:8]}) than this one ({connectome_hash[:8]}): {REMEDY}, or name the right one "
            "with --connectome-summary"
        )
    small = {name: _read_small(folder, name, record) for name in SMALL}
    if small["cells"].min(initial=0) < 0 or small["cells"].max(initial=0) >= record.n_cells:
        raise ValueError(f"{array_path(folder, 'cells')} has other cells than {record.n_cells}: {REMEDY}")
    operator = Operator(array_path(folder, "operator"), record.n_cells, record.n_voxels)
    with operator.path.open("rb") as file:
        header = file.read(len(operator.header))
    n_bytes = operator.path.stat().st_size
    if header != operator.header or n_bytes != operator.n_bytes:
        raise ValueError(f"{operator.path} has {n_bytes} bytes instead of {operator.n_bytes}: {REMEDY}")
    covariance = _map_covariance(array_path(folder, "covariance"), record.n_cells)
    return SummaryArrays(folder, record, **small, covariance=covariance, operator=operator)


def verify_summary(folder: Path, connectome_hash: str) -> tuple[str, ...]:
    """Read a whole summary, and check it against its description.

    Returns
    -------
    tuple of str
        One sentence per problem; empty if there is none.
    """
    try:
        record = open_summary(folder, connectome_hash).record
        hashes = {name: hash_file(array_path(folder, name)) for name in ARRAYS}
    except (OSError, ValueError) as error:
        return (str(error),)
    return tuple(
        f"{array_path(folder, name)} has another checksum than when it was made: {REMEDY}"
        for name, found in hashes.items()
        if found != record.sha256[name]
    )


def _read_record(description: Mapping[str, Any]) -> SummaryRecord:
    record = SummaryRecord(
        str(description["connectome_name"]),
        bytes.fromhex(description["connectome_hash"]).hex(),
        int(description["n_subjects"]),
        int(description["n_voxels"]),
        int(description["n_cells"]),
        float(description["cell_size_mm"]),
        tuple(map(float, description["variance_fractions"])),
        {key: str(description["software"][key]) for key in ("name", "version")},
        {name: bytes.fromhex(description["sha256"][name]).hex() for name in ARRAYS},
    )
    if len(record.variance_fractions) != N_COMPONENTS or not 0 < record.n_cells <= record.n_voxels:
        raise ValueError(f"{record.n_cells} cells of {record.n_voxels} voxels")
    return record


def _read_small(folder: Path, name: str, record: SummaryRecord) -> Array:
    path = array_path(folder, name)
    array = read_array(path)
    shape = (N_COMPONENTS, record.n_voxels) if name == "components" else (record.n_voxels,)
    if array.shape != shape or array.dtype != (np.int32 if name == "cells" else np.float32):
        raise ValueError(f"{path} holds {array.shape} {array.dtype} instead of {shape}: {REMEDY}")
    if hash_file(path) != record.sha256[name]:
        raise ValueError(f"{path} has another checksum than when it was made: {REMEDY}")
    return array


def _map_covariance(path: Path, n_cells: int) -> Array:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a NumPy array ({error}): {REMEDY}") from error
    if array.shape != (n_cells, n_cells) or array.dtype != np.float32:
        raise ValueError(f"{path} holds {array.shape} {array.dtype} instead of {(n_cells, n_cells)}: {REMEDY}")
    return array.view(np.ndarray)
