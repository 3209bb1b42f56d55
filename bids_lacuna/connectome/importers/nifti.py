"""Connectomes in 4D NIfTI files, one per BOLD run, with a common mask, such as GSP1000."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling

from bids_lacuna.connectome.importers.source import (
    NothingMatches,
    Source,
    find_files,
    group_by_subject,
    read_dtype,
    subject_name,
)
from bids_lacuna.files import advise
from bids_lacuna.grid import Grid, tell_grids_apart
from bids_lacuna.images import UNREADABLE, has_usable_affine, open_image, read_brain_mask, read_to_end

Array = np.ndarray

PATTERN = "sub-*/func/*_rest_*_finalmask.nii.gz"
"""Paths of GSP1000's files."""


@dataclass(frozen=True)
class NiftiRun:
    """One 4D file."""

    path: Path
    origin: str
    """See `Run.origin`."""
    n_timepoints: int

    @classmethod
    def open(cls, path: Path, origin: str, grid: Grid) -> NiftiRun:
        """Read a file's header and check it against the grid.

        Raises
        ------
        ValueError
            The file is not a series of real numbers, or lies on another grid.
        OSError
            The file cannot be read.
        """
        return cls(path, origin, check_series(open_image(path, "series"), path, grid))

    def read(self, grid: Grid) -> Array:
        """Read the run volume by volume, up to the end of the file, where gzip has its checksum."""
        stored: ArrayProxy = open_image(self.path, "series").dataobj  # type: ignore[assignment]
        volume_shape = stored.shape[:3]
        n_bytes = int(np.prod(volume_shape)) * stored.dtype.itemsize
        # NIfTI stores voxels in Fortran order.
        indices = np.ravel_multi_index(np.nonzero(grid.mask), volume_shape, order="F")
        timeseries = np.empty((self.n_timepoints, grid.n_voxels), read_dtype(stored.dtype))
        try:
            with ImageOpener(str(self.path)) as file:
                file.seek(stored.offset)
                for t in range(self.n_timepoints):
                    volume = np.frombuffer(file.read(n_bytes), stored.dtype)
                    timeseries[t] = apply_read_scaling(volume[indices], stored.slope, stored.inter)
                read_to_end(file, self.path)
        except (*UNREADABLE, ValueError, IndexError) as error:
            raise OSError(
                f"the series {self.path} cannot be read to its end ({error}): "
                + advise(error, "it may be truncated; copy it again")
            ) from error
        return timeseries


def open_source(path: Path, mask: Path, pattern: str | None = None) -> Source:
    """Open a folder of 4D files; the files of one `sub-<label>` are one subject's runs, in natural order.

    Parameters
    ----------
    mask
        NIfTI file whose nonzero voxels belong to the connectome.
    pattern
        Glob pattern of the files' paths relative to the folder; by default that of GSP1000. Each file without
        `sub-<label>` in its path is a subject.

    Raises
    ------
    FileNotFoundError
        There is no such folder or mask.
    NothingMatches
        No file matches the pattern.
    ValueError
        A file is not a 4D series, or has another shape or affine than the mask.
    """
    return open_folder(path, read_grid(mask), pattern)


def open_folder(path: Path, grid: Grid, pattern: str | None = None) -> Source:
    """Open a folder of 4D files on a known grid, as `open_source` does."""
    files = find_files(path, pattern or PATTERN)
    if not files:
        raise NothingMatches(
            f"no file in {path} matches {pattern or PATTERN}: name the series with --pattern, as in "
            "--pattern 'sub-*/func/*_bold.nii.gz'"
        )
    runs = ((file.relative_to(path), NiftiRun.open(file, file.relative_to(path).as_posix(), grid)) for file in files)
    return Source(grid, group_by_subject((subject_name(relative), run) for relative, run in runs), None)


def read_grid(mask: Path) -> Grid:
    """Read the grid of a connectome from its brain mask, the voxels that are not 0.

    Raises
    ------
    ValueError
        The mask is not 3D, is empty or has no usable affine.
    OSError
        The mask is missing or damaged.
    """
    image = open_image(mask, "brain mask")
    voxels = read_brain_mask(image, mask)
    if not voxels.any():
        raise ValueError(f"the brain mask {mask} is empty: voxels inside the brain must be 1")
    check_affine(image, mask)
    return Grid(voxels, np.asarray(image.affine, float))


def check_affine(image: SpatialImage, path: Path) -> None:
    """Raise ValueError if an image has no usable affine."""
    if not has_usable_affine(image):
        raise ValueError(
            f"the affine in the header of {path} is missing or singular: save the file with the affine of the image "
            "that it was made from"
        )


def check_series(image: SpatialImage, path: Path, grid: Grid) -> int:
    """Return the number of timepoints of a 4D image after checking its grid.

    Raises
    ------
    ValueError
        The image is not a series of real numbers, or lies on another grid; the message has both grids.
    """
    dtype = image.get_data_dtype()
    if len(image.shape) != 4 or image.shape[3] < 2 or dtype.kind not in "iuf":
        raise ValueError(f"{path} holds {image.shape} {dtype}: a 4D series of real numbers is needed")
    check_affine(image, path)
    theirs = Grid(np.ones(image.shape[:3], bool), image.affine)
    if not theirs.lies_as(grid):
        their_extent, extent = tell_grids_apart(theirs, grid)
        raise ValueError(
            f"{path} lies on another grid than the brain mask: {their_extent}, the mask is {extent}; resample "
            "the mask to the grid of the series, or leave the file out"
        )
    return int(image.shape[3])
