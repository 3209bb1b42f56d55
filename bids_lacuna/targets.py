"""Target networks: maps from elsewhere, such as a published circuit, on the voxels of a connectome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.spatialimages import SpatialImage

from bids_lacuna import transforms
from bids_lacuna.files import hash_file
from bids_lacuna.grid import Grid, is_same_place
from bids_lacuna.images import LARGEST_VOLUME, has_usable_affine, open_image, read_volume
from bids_lacuna.lesion_masks import region
from bids_lacuna.transforms import TransformChain
from bids_lacuna.weights import LesionWeights, weigh

Array = np.ndarray

DEFINED = 0.5
"""Smallest fraction of a voxel's volume in which the map is defined, for the voxel to have a value."""

ROUNDING = 1e-9
"""Fractions this far below the smallest one count as equal to it."""


@dataclass(frozen=True, eq=False)
class Target:
    """A target network on the voxels of a grid."""

    name: str
    """Letters and digits, chosen by the user."""
    values: Array
    """Shape (n_voxels,), float32: mean of the map in each voxel of the grid's mask; NaN where it is undefined."""
    sha256: str
    """Hash of the file."""
    file: Path
    space: str
    """Template space of the file."""
    transform: TransformChain | None = None
    """Transforms from there to the grid's space; None if the file is in that space."""

    def describe(self) -> dict[str, Any]:
        """Return the keys of a sidecar that identify the target; raises OSError if a transform cannot be read."""
        return {
            "File": self.file.name,
            "SHA256": self.sha256,
            "SpatialReference": self.space,
            **({"Transforms": self.transform.describe()} if self.transform else {}),
        }


@dataclass(frozen=True)
class Closeness:
    """How a lesion relates to a target network; NaN where undefined."""

    r: float
    """Spatial Pearson correlation of the lesion's z-map with the target, over the voxels that both have."""
    r_outside: float
    """The same without the lesion's voxels, with which its seed correlates wherever it lies."""
    damage: float
    """Mean of the target over the lesion, weighted by the lesion's weights: the network damage score."""
    n_voxels: int
    """Number of voxels that both have."""


def compare_with_target(z_map: Array, lesion: LesionWeights, target: Array) -> Closeness:
    """Compare a lesion and its map with a target network.

    Parameters
    ----------
    z_map, target : shape (n_voxels,)
        Mean Fisher z, and the target, in the same voxels; NaN where undefined.
    lesion
        The lesion's weights in these voxels. Those in which map or target is undefined do not count.
    """
    common = np.isfinite(z_map) & np.isfinite(target)
    inside = np.zeros(len(common), bool)
    inside[lesion.voxels] = True
    counted = common[lesion.voxels]
    weights = lesion.weights[counted].astype(float)
    damage = float("nan")
    if weights.size:
        damage = float((weights * target[lesion.voxels][counted]).sum() / weights.sum())
    outside = common & ~inside
    return Closeness(
        correlate(z_map[common], target[common]),
        correlate(z_map[outside], target[outside]),
        damage,
        int(np.count_nonzero(common)),
    )


IDENTITY_KEYS = ("SHA256", "SpatialReference", "Transforms")
"""Keys of a sidecar that decide the figures of a target."""

CLOSENESS_KEYS = {
    "r": "R",
    "r_outside": "ROutsideLesion",
    "damage": "DamageScore",
}
"""Keys of the numbers in sidecars, by their names in `Closeness`."""


def describe_closeness(closeness: Closeness, is_seed: bool = False) -> dict[str, Any]:
    """Return the relation of a lesion to a target as it stands in a sidecar; None for what is undefined.

    A seed damages nothing: it has no score.
    """
    numbers = {
        key: getattr(closeness, name) for name, key in CLOSENESS_KEYS.items() if not (is_seed and name == "damage")
    }
    rounded = {key: float(f"{number:.7g}") if np.isfinite(number) else None for key, number in numbers.items()}
    return {**rounded, "NumberOfVoxels": closeness.n_voxels}


def is_recorded(target: Target, recorded: object) -> bool:
    """Return whether an entry of a sidecar is about this very target; raises OSError for a lost transform."""
    if not isinstance(recorded, Mapping):
        return False
    identity = target.describe()
    return all(recorded.get(key) == identity.get(key) for key in IDENTITY_KEYS)


def correlate(x: Array, y: Array) -> float:
    """Return Pearson's r of two vectors; NaN if one of them does not vary."""
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    # Sums of NumPy, not of BLAS, which may depend on the number of its threads.
    x, y = (each - each.mean() for each in (x.astype(float), y.astype(float)))
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def read_target(name: str, path: Path, grid: Grid, space: str, transform: TransformChain | None = None) -> Target:
    """Read a map from any grid, and average it over each voxel of a grid.

    NaN is no value, as outside the brain in statistical maps. On the grid itself, the values stay as they are; from
    another grid, each voxel gets the mean of the map's voxels in it, weighted by their volumes in it.

    Parameters
    ----------
    name
        Name of the target.
    path
        A 3D NIfTI image of real numbers.
    grid
        Grid of the connectome, whose mask is applied.
    space
        Template space of the image.
    transform
        Transforms from that space to the grid's, if it is another one.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The image is no such map, does not vary, or has no voxel in common with the grid.
    OSError
        The file, or a transform, cannot be read.
    """
    image = open_image(path, f"map of target {name}")
    _check_header(image, path)
    values = read_volume(image, f"map of target {name}").astype(np.float32)
    if np.isinf(values).any():
        raise ValueError(f"{path} has infinite values: replace them, by NaN where the map is undefined")
    defined = np.isfinite(values)
    if not defined.any():
        raise ValueError(f"all values of {path} are NaN: a target network is a map of numbers; check the file")
    if np.ptp(values[defined]) == 0:
        raise ValueError(
            f"all values of {path} are {values[defined][0]:g}, but a target network varies over the brain: check the "
            "file"
        )
    on_grid = _average(np.where(defined, values, 0), defined, image.affine, grid, transform)
    found = on_grid[np.isfinite(on_grid)]
    if not found.size:
        raise ValueError(
            f"{path} has no value in any voxel of the connectome ({grid.extent}): check its affine, and that it is "
            f"in space {space}"
        )
    if np.ptp(found) == 0:
        raise ValueError(
            f"{path} has the value {found[0]:g} in all voxels that the connectome shares with it, but a target "
            "network varies over the brain: check its affine and its space"
        )
    return Target(name, on_grid, hash_file(path), path, space, transform)


def _check_header(image: SpatialImage, path: Path) -> None:
    """Raise ValueError unless an image is a volume of real numbers with positions."""
    if image.get_data_dtype().kind not in "biuf" or len(image.shape) < 3 or any(n != 1 for n in image.shape[3:]):
        raise ValueError(
            f"{path} has the shape {image.shape} of {image.get_data_dtype()}, but a target network is a 3D image of "
            "real numbers: save one volume of it"
        )
    if not has_usable_affine(image):
        raise ValueError(
            f"{path} has no usable affine, so its voxels have no positions: save it with the affine of its template"
        )
    if prod(image.shape) > LARGEST_VOLUME:
        raise ValueError(
            f"{path} has {prod(image.shape)} voxels, the limit is {LARGEST_VOLUME}: resample it to 0.5 mm or coarser"
        )


def _average(values: Array, defined: Array, affine: Array, grid: Grid, transform: TransformChain | None) -> Array:
    """Average a map, which is 0 where it is undefined, over the voxels of a grid: shape (n_voxels,), float32."""
    if transform is None and values.shape == grid.shape and is_same_place(grid.affine, affine):
        return np.where(defined, values, np.nan)[grid.mask].astype(np.float32)
    if transform:
        average = transforms.resampling.average_through
        sums, fractions = (average(transform, each, affine, grid) for each in (values, defined.astype(np.float32)))
    else:
        sums, fractions = (_spread(each, affine, grid) for each in (values, defined.astype(np.float32)))
    enough = fractions >= DEFINED - ROUNDING
    means = np.divide(sums, fractions, out=np.full(grid.shape, np.nan), where=enough)
    return means[grid.mask].astype(np.float32)


def _spread(values: Array, affine: Array, grid: Grid) -> Array:
    """Add a map's values, weighted by the fraction of each grid voxel that they fill: shape (x, y, z)."""
    corner, box = weigh(values, affine, grid)
    sums = np.zeros(grid.shape)
    sums[region(corner, box.shape)] = box
    return sums
