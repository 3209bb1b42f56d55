"""The native connectome store: a folder that NumPy alone can read at the speed of the disk.

```
connectome.json               contents, settings and sources
mask.nii.gz                   the grid; voxels are counted in C order
sub-<name>_timeseries.npy     (n_voxels, n_components) int16 or float32: each voxel's series, demeaned per BOLD run
sub-<name>_scale.npy          (2, n_voxels) float32: factor to norm 1, and original standard deviation
```

A subject has as many components as timepoints, or fewer with the same correlations: see `compression`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import nibabel as nib
import numpy as np

from bids_lacuna._version import __version__
from bids_lacuna.connectome.arrays import array_header, read_array
from bids_lacuna.files import FileState, hash_file, read_json_object, renamed_when_whole, write_json
from bids_lacuna.grid import Grid, is_same_place
from bids_lacuna.images import has_usable_affine, open_image, read_brain_mask
from bids_lacuna.kernels.cpu import quantize
from bids_lacuna.spaces import check_template

Array = np.ndarray
StoreDtype = Literal["int16", "float32"]

Rank = Literal["full", "auto"] | int
"""Number of components to keep: all timepoints unchanged, as many as the tolerance requires, or a number."""

DESCRIPTION = "connectome.json"

MASK = "mask.nii.gz"

BUILDING = ".building"
"""Folder of an unfinished build, with a record of each subject that has been written."""

LAYOUT_VERSION = 1
"""Version of the store's layout, for when it changes."""

REMEDY = "copy it again, or remove the store and rebuild it"
"""Advice about a damaged store, for error messages."""


@dataclass(frozen=True)
class StoredRun:
    """One BOLD run of a connectome subject."""

    source: str
    """The file's path relative to the source, with the index within the file if it holds several runs."""
    n_timepoints: int


@dataclass(frozen=True)
class StoredSubject:
    """One connectome subject of a store."""

    name: str
    """Letters and digits."""
    n_timepoints: int
    """Timepoints of all BOLD runs together."""
    n_components: int
    """Length of the series as stored: n_timepoints, or fewer."""
    r_error_bound: float
    """Bound on the error in r due to fewer components (`compression.error_bounds`); 0 at full rank."""
    runs: tuple[StoredRun, ...]
    sha256: Mapping[str, str]
    """SHA-256 of the files `timeseries` and `scale`."""


@dataclass(frozen=True, eq=False)
class Store:
    """An open store."""

    path: Path
    name: str
    """Letters and digits; part of the maps' file names."""
    space: str
    """Template space of the grid."""
    grid: Grid
    series_dtype: StoreDtype
    """Data type of the stored series."""
    rank: Rank
    """Number of components stored per subject."""
    rank_tolerance: float | None
    """Largest bound on the error in r for the rank "auto", otherwise None."""
    subjects: tuple[StoredSubject, ...]
    sources: tuple[Mapping[str, Any], ...]
    """Path relative to the source, and size in bytes, of each source file."""
    software: Mapping[str, str]
    """Name and version of the program that built the store."""
    former_spaces: tuple[str, ...] = ()
    """Spaces that the store recorded before they were corrected, oldest first."""
    states: dict[Path, FileState] = field(default_factory=dict)
    """State of each subject's files when the store was opened."""

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open a store; series are not read yet.

        Raises
        ------
        FileNotFoundError
            There is no store, or it is unfinished.
        ValueError
            The store is damaged; the message names the file.
        """
        if not (path / DESCRIPTION).exists():
            if (path / BUILDING).is_dir():
                raise FileNotFoundError(
                    f"the store {path} is unfinished: rerun its `bids-lacuna-connectome build` command to resume"
                )
            raise FileNotFoundError(f"there is no connectome store at {path}: a folder with {DESCRIPTION} is needed")
        store = _read_store(path)
        states: dict[Path, FileState] = {}
        for subject in store.subjects:
            states |= store.check_files(subject)
        return replace(store, states=states)

    def save(self) -> None:
        """Write the mask and then the description, which completes the store."""
        image = nib.Nifti1Image(self.grid.mask.astype(np.uint8), self.grid.affine)
        image.header.set_xyzt_units("mm")
        with renamed_when_whole(self.path / MASK) as temporary:
            nib.save(image, temporary)
        write_json(
            self.path / DESCRIPTION,
            {
                "layout_version": LAYOUT_VERSION,
                "name": self.name,
                "space": self.space,
                "shape": self.grid.shape,
                "affine": self.grid.affine.tolist(),
                "n_voxels": self.grid.n_voxels,
                "dtype": self.series_dtype,
                "rank": self.rank,
                "rank_tolerance": self.rank_tolerance,
                "subjects": [asdict(subject) for subject in self.subjects],
                "sources": self.sources,
                "software": self.software,
            },
        )

    n_readers: ClassVar[int] = 1
    """Number of subjects read at the same time; reading is limited by memory or disk, not by the processor."""

    @property
    def standardized_dtypes(self) -> frozenset[np.dtype]:
        """Data types that `read` standardizes: none, since the series are stored standardized."""
        return frozenset()

    @property
    def n_components(self) -> int:
        """Largest number of components among the subjects."""
        return max(subject.n_components for subject in self.subjects)

    @property
    def reading_bytes(self) -> int:
        """Bytes of memory needed to read one subject, at most."""
        return max(map(self.bytes_of, self.subjects))

    @property
    def n_bytes(self) -> int:
        """Bytes of all subjects."""
        return sum(map(self.bytes_of, self.subjects))

    @property
    def full_bytes(self) -> int:
        """Bytes of all subjects at full rank."""
        return sum(
            subject_bytes(subject.n_timepoints, self.grid.n_voxels, self.series_dtype) for subject in self.subjects
        )

    def bytes_of(self, subject: StoredSubject) -> int:
        """Return the bytes of one subject, in memory or on disk."""
        return subject_bytes(subject.n_components, self.grid.n_voxels, self.series_dtype)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of all that decides the maps: the subjects' hashes in order, the mask and the affine."""
        digest = hashlib.sha256()
        for subject in self.subjects:
            digest.update(bytes.fromhex(subject.sha256["timeseries"] + subject.sha256["scale"]))
        digest.update(np.array(self.grid.shape, "<i8").tobytes())
        digest.update(np.packbits(self.grid.mask).tobytes())
        digest.update(self.grid.affine.astype("<f8").tobytes())
        return digest.hexdigest()

    def arrays(self, subject: StoredSubject) -> dict[str, tuple[Path, tuple[int, int], np.dtype]]:
        """Return the path, shape and dtype of each of a subject's arrays."""
        n_voxels = self.grid.n_voxels
        return {
            "timeseries": (
                array_path(self.path, subject.name, "timeseries"),
                (n_voxels, subject.n_components),
                np.dtype(self.series_dtype),
            ),
            "scale": (array_path(self.path, subject.name, "scale"), (2, n_voxels), np.dtype(np.float32)),
        }

    def files_of(self, subject: StoredSubject) -> list[Path]:
        """Return the files that `read` reads."""
        return [path for path, _, _ in self.arrays(subject).values()]

    def check_files(self, subject: StoredSubject) -> dict[Path, FileState]:
        """Return the states of a subject's files; raise ValueError if one is missing or has the wrong size."""
        states = {}
        for path, shape, dtype in self.arrays(subject).values():
            try:
                states[path] = FileState.of(path)
            except OSError as error:
                raise ValueError(f"the store lacks {path} ({error}): {REMEDY}") from error
            expected = len(array_header(shape, dtype)) + int(np.prod(shape)) * dtype.itemsize
            if states[path].n_bytes != expected:
                raise ValueError(f"{path} has {states[path].n_bytes} bytes instead of {expected}: {REMEDY}")
        return states

    def has_signal(self, subject: StoredSubject) -> bool:
        """Return whether any voxel of a subject has a signal."""
        scale, _ = read_array(array_path(self.path, subject.name, "scale"))
        return bool(scale.any())

    def has_same_content(self, path: Path) -> bool:
        """Return whether a subject's file still has the content that the description records; raises OSError."""
        recorded = {
            file: subject.sha256[kind]
            for subject in self.subjects
            for kind, (file, _, _) in self.arrays(subject).items()
        }
        return hash_file(path) == recorded[path]

    def read(self, subject: StoredSubject) -> tuple[Array, Array, Array]:
        """Read one subject.

        Returns
        -------
        series : shape (n_voxels, n_components), int16 or float32
        scale, sd : shape (n_voxels,), float32
            Factor that makes the norm of a series 1, and standard deviation of the series as recorded, up to what
            compression left out; 0 where undefined.

        Raises
        ------
        OSError
            A file cannot be read; the message names the file.
        """
        arrays = {}
        for kind, (path, shape, dtype) in self.arrays(subject).items():
            try:
                array = read_array(path)
            except PermissionError as error:
                raise PermissionError(f"the store's {path} may not be read: check its permissions") from error
            except (OSError, ValueError) as error:
                raise OSError(f"the store's {path} cannot be read ({error}): it may be damaged; {REMEDY}") from error
            if array.shape != shape or array.dtype != dtype:
                raise OSError(
                    f"the store's {path} holds {array.shape} {array.dtype} instead of {shape} {dtype}: {REMEDY}"
                )
            arrays[kind] = array
        return arrays["timeseries"], *arrays["scale"]


def rename_space(path: Path, space: str) -> Store:
    """Correct the space that a store records; its series and its hash stay as they are.

    Returns
    -------
    Store
        The corrected store, whose `former_spaces` end with the earlier name.

    Raises
    ------
    FileNotFoundError
        There is no store, or it is unfinished.
    ValueError
        The store is damaged, or a connectome cannot be in this space.
    OSError
        The description cannot be written.
    """
    check_template(space)
    store = Store.open(path)
    if store.space == space:
        return store
    former = (*store.former_spaces, store.space)
    description = _read_description(path / DESCRIPTION)
    write_json(path / DESCRIPTION, {**description, "space": space, "former_spaces": former})
    return replace(store, space=space, former_spaces=former)


def is_store(path: Path) -> bool:
    """Return whether a folder is a finished or unfinished store."""
    return (path / DESCRIPTION).exists() or (path / BUILDING).is_dir()


def is_subject_name(name: str) -> bool:
    """Return whether a subject's name has letters and digits only, as file names need."""
    return name.isascii() and name.isalnum()


def this_software() -> dict[str, str]:
    """Return this program's name and version for the description of what it builds."""
    return {"name": "bids-lacuna", "version": __version__}


def array_path(folder: Path, name: str, kind: str) -> Path:
    """Return the path of a subject's series (`timeseries`) or scales (`scale`)."""
    return folder / f"sub-{name}_{kind}.npy"


def subject_bytes(n_components: int, n_voxels: int, dtype: StoreDtype) -> int:
    """Return the bytes of one subject, in memory or on disk."""
    return n_voxels * (n_components * np.dtype(dtype).itemsize + 2 * np.dtype(np.float32).itemsize)


def write_subject(
    folder: Path, name: str, standardized: tuple[Array, Array, Array], dtype: StoreDtype
) -> dict[str, str]:
    """Write one subject's two files, each atomically.

    Parameters
    ----------
    standardized
        Series (n_voxels, n_components), scale and sd (n_voxels,), from `kernels.standardize` or `compression.rotate`.
    dtype
        Data type of the stored series. For int16, the scale is that of the rounded series, so that each series
        correlates with itself at exactly 1.

    Returns
    -------
    dict
        SHA-256 of the files `timeseries` and `scale`.
    """
    series, scale, sd = standardized
    if dtype == "int16":
        series, scale = quantize(series)
    return {
        "timeseries": _write_array(array_path(folder, name, "timeseries"), series),
        "scale": _write_array(array_path(folder, name, "scale"), np.stack([scale, sd])),
    }


def _write_array(path: Path, array: Array) -> str:
    with renamed_when_whole(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, array)
        return hash_file(temporary)


def _read_description(path: Path) -> dict[str, Any]:
    """Read the description of a store with this program's layout version."""
    try:
        description = read_json_object(path)
        version = description["layout_version"]
    except (KeyError, ValueError, IsADirectoryError) as error:
        raise ValueError(f"{path} does not describe a connectome store ({error!r}): {REMEDY}") from error
    # Check this first: the keys of a newer layout are unknown here.
    if version != LAYOUT_VERSION:
        raise ValueError(
            f"the store {path.parent} has layout {version}, this program reads layout {LAYOUT_VERSION}: use a newer "
            "version of bids-lacuna"
        )
    return description


def _read_store(path: Path) -> Store:
    """Read the description and the mask of a store; raise ValueError where they are damaged or do not match."""
    description = _read_description(path / DESCRIPTION)
    try:
        shape, n_voxels = tuple(description["shape"]), int(description["n_voxels"])
        affine = np.array(description["affine"], float)
        subjects = tuple(map(_read_subject, description["subjects"]))
        names = [str(description[key]) for key in ("name", "space")]
        sources = tuple({"path": str(file["path"]), "bytes": int(file["bytes"])} for file in description["sources"])
        software = {key: str(description["software"][key]) for key in ("name", "version")}
        dtype = description["dtype"]
        rank, rank_tolerance = _read_rank(description)
        former = tuple(map(str, description.get("former_spaces", ())))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path / DESCRIPTION} does not describe a connectome store ({error!r}): {REMEDY}"
        ) from error
    grid = _read_grid(path / MASK, affine)
    n_names = len({subject.name for subject in subjects})
    fits = (shape, n_voxels) == (grid.shape, grid.n_voxels) and dtype in get_args(StoreDtype)
    if not fits or not sources or not subjects or n_names < len(subjects):
        raise ValueError(
            f"{path / DESCRIPTION} and {MASK} do not match (series of {dtype}; {n_names} subjects; "
            f"{n_voxels} voxels in {shape}, {grid.n_voxels} in {grid.shape}): {REMEDY}"
        )
    return Store(path, names[0], names[1], grid, dtype, rank, rank_tolerance, subjects, sources, software, former)


def _read_rank(description: Mapping[str, Any]) -> tuple[Rank, float | None]:
    """Read rank and tolerance; stores from before there was a choice have full rank."""
    rank, tolerance = description.get("rank", "full"), description.get("rank_tolerance")
    if rank not in ("full", "auto") and not (type(rank) is int and rank > 0):
        raise ValueError(f"the rank is {rank!r}, not full, auto or a positive whole number")
    return rank, None if tolerance is None else float(tolerance)


def _read_subject(description: Mapping[str, Any]) -> StoredSubject:
    name, n_timepoints = str(description["name"]), int(description["n_timepoints"])
    if not is_subject_name(name):
        raise ValueError(f"a subject is called {name}, which is not letters and digits")
    n_components = int(description.get("n_components", n_timepoints))
    if not 1 <= n_components <= n_timepoints:
        raise ValueError(f"a subject has {n_components} components of {n_timepoints} timepoints")
    return StoredSubject(
        name,
        n_timepoints,
        n_components,
        float(description.get("r_error_bound", 0)),
        tuple(StoredRun(str(run["source"]), int(run["n_timepoints"])) for run in description["runs"]),
        {kind: bytes.fromhex(description["sha256"][kind]).hex() for kind in ("timeseries", "scale")},
    )


def _read_grid(path: Path, affine: Array) -> Grid:
    """Read the grid: the mask from NIfTI, the exact affine from the description, since NIfTI rounds to float32."""
    try:
        image = open_image(path, "mask of the store")
        mask = read_brain_mask(image, path)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {REMEDY}") from error
    if affine.shape != (4, 4) or not is_same_place(image.affine, affine):
        raise ValueError(f"{path} and {DESCRIPTION} have different affines: {REMEDY}")
    if not has_usable_affine(image):
        raise ValueError(f"{path} has no usable affine: {REMEDY}")
    return Grid(mask, affine)
