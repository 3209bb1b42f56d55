"""The maps of a test as one array: the voxels that all of them have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.spatialimages import SpatialImage

from bids_lacuna.grid import Grid, is_same_place
from bids_lacuna.images import open_image, read_volume
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.text import percent

Array = np.ndarray

MapFile = Path | str | SpatialImage
"""A map: the path of a NIfTI file, or an image."""

COSTLY = 0.1
"""A map that lacks more than this fraction of the voxels is named."""


class BadMaps(ValueError):  # noqa: N818  a fact about the input, not a defect of the program
    """The maps cannot be tested together; the message names one, and says what to do."""


@dataclass(frozen=True, eq=False)
class CommonVoxels:
    """The voxels that are defined in all maps of a test."""

    mask: Array
    """Shape (x, y, z), boolean."""
    affine: Array
    """Shape (4, 4): from voxel indices to millimetres."""
    n_any: int
    """Number of voxels that are defined in any map."""
    lacking: Array
    """Shape (n_patients,): fraction of these that are undefined in each map."""

    @property
    def n(self) -> int:
        """Number of voxels that are defined in all maps."""
        return int(np.count_nonzero(self.mask))

    @property
    def fraction(self) -> float:
        """Fraction of the voxels defined in any map that are defined in all."""
        return self.n / self.n_any


def find_common_voxels(files: Sequence[MapFile], names: Sequence[str], progress: Progress) -> CommonVoxels:
    """Find the voxels that are defined in all maps; no volume is kept.

    Parameters
    ----------
    files
        Maps on one grid; NaN is undefined.
    names
        What to call each in sentences.
    progress
        Counts the maps.

    Raises
    ------
    BadMaps
        A map cannot be read, lies on another grid, or has no voxel in common with the others.
    """
    if not files:
        raise BadMaps("there are no maps: name one for each patient")
    first, affine = _read(files[0], names[0])
    grid = Grid(np.ones(first.shape, bool), affine)
    n_defined = np.zeros(first.shape, np.int32)
    finite: list[Array] = []
    for file, name in zip(files, names, strict=True):
        values, affine = _read(file, name)
        if values.shape != grid.shape or not is_same_place(grid.affine, affine):
            raise BadMaps(
                f"the map of {name} lies on another grid than that of {names[0]}: resample all maps to one grid"
            )
        n_defined += (defined := np.isfinite(values))
        finite.append(np.packbits(defined))
        progress.update()
    mask, n_any = n_defined == len(files), int(np.count_nonzero(n_defined))
    n_lacking = [n_any - int(np.unpackbits(bits, count=mask.size).sum()) for bits in finite]
    if not mask.any():
        worst = int(np.argmax(n_lacking))
        raise BadMaps(
            f"no voxel is defined in all {len(files)} maps: that of {names[worst]} lacks most, "
            f"{percent(n_lacking[worst] / max(n_any, 1))}; leave it out"
        )
    return CommonVoxels(mask, grid.affine, n_any, np.array(n_lacking) / n_any)


def read_stack(files: Sequence[MapFile], names: Sequence[str], voxels: CommonVoxels, progress: Progress) -> Array:
    """Read the values of maps in their common voxels: shape (n_patients, n_voxels), float32.

    Raises
    ------
    BadMaps
        A map cannot be read.
    """
    stack = np.empty((len(files), voxels.n), np.float32)
    for row, (file, name) in enumerate(zip(files, names, strict=True)):
        stack[row] = _read(file, name)[0][voxels.mask]
        progress.update()
    return stack


def _read(file: MapFile, name: str) -> tuple[Array, Array]:
    """Read a map: shape (x, y, z), and its affine."""
    try:
        image = file if isinstance(file, SpatialImage) else open_image(Path(file), "map")
        values = read_volume(image, "map")
    except OSError as error:
        raise BadMaps(f"the map of {name} cannot be used: {error}") from error
    if values.ndim != 3 or values.dtype.kind not in "iuf":
        raise BadMaps(f"the map of {name} has the shape {image.shape} and {values.dtype}: a 3D map is needed")
    return values, np.asarray(image.affine)
