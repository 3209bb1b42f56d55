"""Functional connectomes of Lead-DBS: a folder with a dataset file and one MATLAB file per BOLD run."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import h5py
import numpy as np
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadError

from bids_lacuna.connectome.importers.opening import is_hdf5, open_hdf5
from bids_lacuna.connectome.importers.source import Source, group_by_subject, read_dtype
from bids_lacuna.files import advise, read_json_object
from bids_lacuna.grid import Grid, order_voxels
from bids_lacuna.images import LARGEST_VOLUME, check_file

Array = np.ndarray

DATASET_FILES = ("dataset_volsurf.mat", "dataset_info.mat")
"""Files that describe a connectome; the first is that of newer versions of Lead-DBS and takes precedence."""

FIELDS = ("dataset", "type", "vol", "outidx", "subIDs", "space", "mat", "dim")
"""Fields of the dataset file to read; others may hold MATLAB objects and whole images."""

SERIES = "gmtc"
"""Name of the variable that holds a run's series."""

NUMBERS = frozenset({"single", "double", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})
"""MATLAB's classes of real numbers."""

COMPRESSED = 15
"""MATLAB's number for a compressed variable, miCOMPRESSED."""

DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, zlib.error, MatReadError)
"""Exceptions that SciPy and h5py raise for a damaged file, found by damaging thousands of files."""


@dataclass(frozen=True, eq=False)
class MatRun:
    """The file of one BOLD run."""

    path: Path
    origin: str
    """See `Run.origin`."""
    n_timepoints: int
    order: Array | None
    """Shape (n_voxels,): index in the file of each voxel of the grid; None if the orders agree."""
    rows_are_timepoints: bool
    """Whether MATLAB sees (n_timepoints, n_voxels) in the file instead of (n_voxels, n_timepoints)."""

    @classmethod
    def open(cls, path: Path, origin: str, grid: Grid, order: Array | None, prefers_timepoint_rows: bool) -> MatRun:
        """Read the shape of a run's series and check it against the grid.

        Parameters
        ----------
        prefers_timepoint_rows
            Whether the rows of a square series are timepoints; the shape decides for others.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is damaged, has no series, or has another number of voxels.
        """
        check_file(path, "series")
        with _opened(path) as file:
            if isinstance(file, h5py.File):
                arrays = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
                found = {name: (item.shape[::-1], item.dtype.kind in "iuf") for name, item in arrays.items()}
            else:
                found = {name: (shape, kind in NUMBERS) for name, shape, kind in whosmat(file)}
        shape, are_numbers = found.get(SERIES, ((), False))
        n_voxels = grid.n_voxels
        if not are_numbers or len(shape) != 2 or n_voxels not in shape:
            variables = ", ".join(f"{name} {shape}" for name, (shape, _) in found.items()) or "nothing"
            raise ValueError(
                f"{path} holds {variables}: {SERIES} is needed, real numbers ({n_voxels}, n_timepoints) with one row "
                "per voxel of vol.outidx; check that the file belongs to this connectome, or copy it again"
            )
        rows_are_timepoints = shape[1] == n_voxels and (shape[0] != n_voxels or prefers_timepoint_rows)
        n_timepoints = shape[0 if rows_are_timepoints else 1]
        if n_timepoints < 2:
            raise ValueError(f"{path} holds {n_timepoints} timepoints: at least two are needed; copy it again")
        return cls(path, origin, int(n_timepoints), order, rows_are_timepoints)

    def read(self, grid: Grid) -> Array:
        """See `Run.read`."""
        try:
            with _opened(self.path) as file:
                if isinstance(file, h5py.File):
                    stored = file[SERIES][()].T
                else:
                    stored = loadmat(file, variable_names=SERIES)[SERIES]
        except ValueError as error:
            raise OSError(str(error)) from error
        timeseries = stored if self.rows_are_timepoints else stored.T
        expected = (self.n_timepoints, grid.n_voxels)
        if timeseries.shape != expected or stored.dtype.kind not in "iuf":
            raise OSError(
                f"{self.path} has changed since it was opened: it had {expected} values, "
                f"now {timeseries.shape} {stored.dtype}; copy it again"
            )
        timeseries = timeseries.astype(read_dtype(stored.dtype), copy=False)
        return np.ascontiguousarray(timeseries) if self.order is None else np.take(timeseries, self.order, axis=1)


def open_source(path: Path) -> Source:
    """Open the folder of a functional connectome, whose dataset file names its subjects and voxels.

    Raises
    ------
    FileNotFoundError
        There is no such folder, it has no dataset file, or a run's file is missing.
    PermissionError
        A file or folder may not be read.
    ValueError
        The connectome is a matrix without series, or a file is damaged or inconsistent with the others.

    References
    ----------
    Horn & Fox (2020), NeuroImage 221:117180, doi:10.1016/j.neuroimage.2020.117180; Lead-DBS, connectomics/cs_fmri.
    """
    try:
        return _open_source(path)
    except PermissionError as error:
        raise PermissionError(f"{error.filename or path} may not be read: check its permissions") from error


def _open_source(path: Path) -> Source:
    file = _find_dataset_file(path)
    info = read_json_object(path / "dataset_info.json") if (path / "dataset_info.json").is_file() else {}
    content = _read_dataset_file(file)
    dataset = content.get("dataset", content)
    if "fMRI_matrix" in map(str, (info.get("type"), _field(dataset, "type"))):
        raise ValueError(
            f"{path} is a matrix of correlations (type fMRI_matrix): series are needed; name the folder of a "
            "connectome of type fMRI_timecourses"
        )
    vol = _field(dataset, "vol")
    grid, order = _read_grid(vol, file)
    version = info.get("formatversion", 1.0)
    if not isinstance(version, int | float):
        raise ValueError(f"{path / 'dataset_info.json'}: formatversion is {version!r}; a number is needed")  # noqa: TRY004
    runs = (
        (name, MatRun.open(path / run, run.as_posix(), grid, order, version > 1))
        for name, its_runs in _read_subjects(vol, file).items()
        for run in its_runs
    )
    return Source(grid, group_by_subject(runs), None)


def _find_dataset_file(path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: name the folder of a functional connectome of Lead-DBS")
    for file in (path / name for name in DATASET_FILES):
        if file.is_symlink() or file.exists():
            check_file(file, "dataset file")
            return file
    raise FileNotFoundError(
        f"the folder {path} holds neither {' nor '.join(DATASET_FILES)}: "
        "name the folder of a functional connectome of Lead-DBS, which holds one of them"
    )


def _read_grid(vol: Any, file: Path) -> tuple[Grid, Array | None]:
    """Return the grid, and the index in the file of each of its voxels; None if the orders agree."""
    outidx, dim, mat = (_numbers(vol, file, *names) for names in (("outidx",), ("space", "dim"), ("space", "mat")))
    outidx, shape = outidx.ravel(), dim.ravel()[:3]
    if (
        shape.shape != (3,)
        or not (shape >= 1).all()
        or (shape != np.rint(shape)).any()
        or np.prod(shape) > LARGEST_VOLUME
    ):
        raise ValueError(f"{file}: vol.space.dim is {dim.tolist()}; three numbers of voxels are needed")
    if mat.shape != (4, 4) or not np.isfinite(mat).all() or np.linalg.det(mat[:3, :3]) == 0:
        raise ValueError(f"{file}: vol.space.mat must be an invertible (4, 4) matrix, but is {mat.tolist()}")
    if not outidx.size or not ((outidx >= 1) & (outidx <= np.prod(shape))).all() or (outidx % 1).any():
        raise ValueError(
            f"{file}: vol.outidx holds {outidx.size} numbers that are not all indices, from 1, of voxels in a volume "
            f"{tuple(map(int, shape))}; copy the file again"
        )
    volume = tuple(map(int, shape))
    indices = np.array(np.unravel_index(outidx.astype(np.int64) - 1, volume, order="F"))
    try:
        mask, order = order_voxels(indices, volume)
    except ValueError as error:
        raise ValueError(
            f"{file}: in vol.outidx {error}, as in connectomes made from CIFTI; "
            "a connectome with one series per voxel is needed"
        ) from error
    # SPM's matrix counts voxels from 1.
    affine = mat @ np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
    return Grid(mask, affine), order


def _read_subjects(vol: Any, file: Path) -> dict[str, list[PurePosixPath]]:
    """Return each subject's name with the paths of its runs relative to the connectome's folder."""
    subjects = _field(vol, "subIDs")
    if not isinstance(subjects, list) or not subjects:
        raise ValueError(
            f"{file} names no subjects: vol.subIDs is needed, with one cell {{id, run file, …}} per subject"
        )
    named = []
    for number, subject in enumerate(subjects, 1):
        cell: list[Any] = subject if isinstance(subject, list) and subject else [None]
        name, runs = _subject_name(cell[0]), cell[1:]
        if not name or not runs or not all(isinstance(run, str) and run for run in runs):
            raise ValueError(
                f"{file}: the cell {number} of vol.subIDs is {subject!r:.200}; {{id, run file, …}} is needed, "
                "an id with letters or digits and one file name per run"
            )
        named.append((name, [_find_run(file.parent, run) for run in runs]))
    (most_frequent, count), *_ = Counter(name for name, _ in named).most_common()
    if count > 1:
        raise ValueError(
            f"{file}: {count} subjects of vol.subIDs are called {most_frequent} in letters and digits; "
            "give each a different id"
        )
    return dict(named)


def _subject_name(stored: Any) -> str:
    """Return the letters and digits of a subject's id; "" if it is neither text nor a whole number."""
    if isinstance(stored, np.ndarray) and stored.size == 1 and stored.dtype.kind in "iuf":
        number = float(stored.item())
        return str(int(number)) if number.is_integer() else ""
    return re.sub(r"[^A-Za-z0-9]", "", stored.removeprefix("sub-")) if isinstance(stored, str) else ""


def _find_run(folder: Path, name: str) -> PurePosixPath:
    """Return the path of a run's file relative to the connectome's folder: in `vol` or beside the dataset file."""
    path = PurePosixPath(name if name.endswith(".mat") else f"{name}.mat")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{folder} names the run {name}, which lies elsewhere: copy it to {folder / 'vol'}")
    beside = folder / path
    return path if not (folder / "vol" / path).exists() and beside.exists() else "vol" / path


def _field(struct: Any, *names: str) -> Any:
    """Return a field of nested structs, or None."""
    for name in names:
        struct = struct.get(name) if isinstance(struct, dict) else None
    return struct


def _numbers(vol: Any, file: Path, *names: str) -> Array:
    """Return a field of `vol` as float64."""
    value = _field(vol, *names)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        raise ValueError(
            f"{file} lacks the numbers vol.{'.'.join(names)}: "
            "a dataset file of Lead-DBS with vol.outidx, vol.space and vol.subIDs is needed"
        )
    return value.astype(float)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File | BinaryIO]:
    """Open a MATLAB file, version 7.3 as HDF5; damage found while it is open is raised as ValueError."""
    try:
        with path.open("rb") as file:
            if is_hdf5(file):
                with open_hdf5(path) as hdf5:
                    yield hdf5
            else:
                file.seek(0)
                yield file
    except PermissionError:
        raise
    except DAMAGE as error:
        raise ValueError(
            f"{path} cannot be read as a MATLAB file ({error or type(error).__name__}): "
            + advise(error, "it may be truncated or of another kind; copy it again")
        ) from error


def _read_dataset_file(path: Path) -> dict[str, Any]:
    with _opened(path) as file:
        if isinstance(file, h5py.File):
            return _plain(file)
        _check_compressed(file.read())
        file.seek(0)
        content = loadmat(file, variable_names=("dataset", "vol"))
        return {name: _plain(value) for name, value in content.items() if name in FIELDS}


def _check_compressed(content: bytes) -> None:
    """Raise zlib.error if a variable of an older MATLAB file fails its checksum."""
    # SciPy 1.17 checks the checksum last; before that, some damaged structs crash the process (SIGSEGV).
    byte_order: Literal["little", "big"] = "little" if content[126:128] == b"IM" else "big"
    start = 128
    while start + 8 <= len(content):
        kind, n_bytes = (int.from_bytes(content[i : i + 4], byte_order) for i in (start, start + 4))
        if kind == COMPRESSED:
            zlib.decompress(content[start + 8 : start + 8 + n_bytes])
        start += 8 + n_bytes


def _plain(item: Any) -> Any:
    """Convert an item of h5py or SciPy: a struct to a dict, a cell to a list, text to a string, or an array."""
    if isinstance(item, h5py.Group):
        return {name: _plain(item[name]) for name in FIELDS if name in item}
    if isinstance(item, h5py.Dataset):
        if item.size > LARGEST_VOLUME:
            raise ValueError(f"{item.name} declares {item.shape} values, at most {LARGEST_VOLUME} are accepted")
        kind = item.attrs.get("MATLAB_class")
        values = np.empty(0) if "MATLAB_empty" in item.attrs else item[()].T
        if kind == b"cell":
            return [_plain(item.file[reference]) for reference in values.ravel(order="F")]
        return "".join(map(chr, values.ravel(order="F"))) if kind == b"char" else values
    if item is None:  # SciPy's struct without fields
        return {}
    if item.dtype.names:
        return {name: _plain(item[name].flat[0]) for name in FIELDS if name in item.dtype.names and item.size}
    if item.dtype.kind == "O":
        return [_plain(value) for value in item.ravel(order="F")]
    return "".join(item.ravel()) if item.dtype.kind == "U" else item
