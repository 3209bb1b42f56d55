"""Volumes in world coordinates: read, measured, and searched for clusters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_template
from scipy.ndimage import label, map_coordinates, maximum, maximum_position

from bids_lacuna.images import open_image, read_volume
from bids_lacuna.lesion import read_mask

Array = np.ndarray

STRONGEST_SHARE = 0.1
"""Of a map's voxels, shown where no threshold was given."""

CLUSTER_SHARE = 0.02
"""Of a map's voxels outside the lesion, of each sign: what clusters are made of."""

N_CLUSTERS = 5
"""Of each sign, in the table."""


@dataclass(frozen=True)
class Volume:
    """A volume in world coordinates."""

    values: Array
    """Shape (x, y, z)."""
    affine: Array
    """Shape (4, 4): voxel indices to millimetres."""

    @cached_property
    def _to_voxels(self) -> Array:
        return np.linalg.inv(self.affine)

    def sample(self, points_mm: Array, outside: float = 0) -> Array:
        """Read the values of the voxels that hold some points.

        Parameters
        ----------
        points_mm : shape (..., 3)
        outside
            What points outside the volume get.

        Returns
        -------
        shape (...)
        """
        places = np.rint(nib.affines.apply_affine(self._to_voxels, points_mm)).astype(np.intp)
        inside = ((places >= 0) & (places < self.values.shape)).all(axis=-1)
        values = np.full(inside.shape, outside, self.values.dtype)
        values[inside] = self.values[tuple(places[inside].T)]
        return values

    def interpolate(self, points_mm: Array) -> Array:
        """Interpolate the values at points: linearly, 0 outside."""
        places = np.moveaxis(nib.affines.apply_affine(self._to_voxels, points_mm), -1, 0)
        return map_coordinates(self.values, places, order=1)

    def holds(self, lesion: LesionShape) -> Array:
        """Tell which voxels' centres lie in a lesion: shape (x, y, z), boolean."""
        points = nib.affines.apply_affine(self.affine, np.moveaxis(np.indices(self.values.shape), 0, -1))
        return lesion.mask.sample(points)

    def at(self, point_mm: Sequence[float]) -> float:
        """Read the value of the voxel that holds one point."""
        return float(self.sample(np.array(point_mm)[np.newaxis], outside=np.nan)[0])

    def image(self) -> nib.Nifti1Image:
        """Make an image of it, undefined values 0: nilearn would warn of each one."""
        values = np.nan_to_num(self.values, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
        return nib.Nifti1Image(values, self.affine)


@dataclass(frozen=True)
class LesionShape:
    """Where a lesion lies."""

    mask: Volume
    """Boolean: the smallest box with the whole lesion in it."""
    centre_mm: tuple[float, float, float]
    """The voxel of the lesion that is nearest to its centre of mass."""
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    """How far its voxels' centres reach."""
    left_share: float
    """Of its volume at either side of x = 0, that at negative x; a half where all of it is at 0."""


@dataclass(frozen=True)
class Cluster:
    """A row of the table of clusters: voxels that touch, and the strongest of them."""

    place_mm: tuple[float, float, float]
    """Of its strongest voxel."""
    value: float
    size_mm3: float


@dataclass(frozen=True)
class MapFacts:
    """What a picture of a map shows, in numbers."""

    threshold: float
    """Voxels whose size is above it are shown."""
    n_above: int
    n_below: int
    """Voxels below minus the threshold."""
    n_defined: int
    maximum: float
    """NaN where no voxel is defined."""
    minimum: float
    maximum_mm: tuple[float, float, float]
    minimum_mm: tuple[float, float, float]


def read_map(path: Path) -> Volume:
    """Read a map or a mask that the program wrote; raises OSError where it cannot be read."""
    image = open_image(path, "map")
    return Volume(read_volume(image, "map", lambda slab: slab.astype(np.float32)), image.affine)


def read_lesion(path: Path, threshold: float | None = None) -> LesionShape:
    """Read a lesion mask and tell where the lesion lies.

    Parameters
    ----------
    threshold
        As in `load_lesion`: the probability from which on a voxel counts.

    Raises
    ------
    OSError, ValueError
        As `lesion.read_mask`.
    """
    image = open_image(path, "mask")
    corner, weights = read_mask(image, threshold)
    box = weights > 0
    affine = image.affine @ nib.affines.from_matvec(np.eye(3), corner)
    points = nib.affines.apply_affine(affine, np.argwhere(box))
    centre = points[np.argmin(np.sum((points - points.mean(axis=0)) ** 2, axis=1))]
    x = points[:, 0].round(3)
    left, right = (float(weights[box][there].sum()) for there in (x < 0, x > 0))
    return LesionShape(
        Volume(box, affine),
        _triple(centre),
        _triple(points.min(axis=0)),
        _triple(points.max(axis=0)),
        left / (left + right) if left + right else 0.5,
    )


def _triple(point: Iterable[float]) -> tuple[float, float, float]:
    x, y, z = (float(coordinate) for coordinate in point)
    return x, y, z


def strongest_share_threshold(volume: Volume) -> float:
    """Find the size that the strongest tenth of a map's voxels are above, to two digits; NaN of an undefined map."""
    sizes = np.abs(volume.values[np.isfinite(volume.values)])
    if not sizes.size:
        return float("nan")
    return float(f"{np.quantile(sizes, 1 - STRONGEST_SHARE):.2g}")


def measure_map(volume: Volume, threshold: float) -> MapFacts:
    """Find a map's extremes, and count what is beyond its threshold."""
    defined = np.isfinite(volume.values)
    values = volume.values
    if not defined.any():
        nowhere = (float("nan"),) * 3
        return MapFacts(threshold, 0, 0, 0, float("nan"), float("nan"), nowhere, nowhere)
    places = [np.unravel_index(find(values), values.shape) for find in (np.nanargmax, np.nanargmin)]
    high_mm, low_mm = (_triple(nib.affines.apply_affine(volume.affine, place)) for place in places)
    return MapFacts(
        threshold,
        int((values > threshold).sum()),
        int((values < -threshold).sum()),
        int(defined.sum()),
        float(values[places[0]]),
        float(values[places[1]]),
        high_mm,
        low_mm,
    )


def find_clusters(volume: Volume, lesion: LesionShape | None) -> tuple[list[Cluster], list[Cluster]]:
    """List the strongest clusters of each sign outside the lesion.

    A cluster is made of voxels whose faces touch and that are among the 2 % that are highest, or lowest, outside the
    lesion: of a large connectome nearly all voxels are beyond any usual threshold, and are one cluster. The rows are
    those of nilearn's `get_clusters_table` without further peaks, for which it takes seconds.

    Returns
    -------
    positive, negative
        The strongest first.
    """
    outside = np.isfinite(volume.values)
    if lesion is not None:
        outside &= ~volume.holds(lesion)
    positive, negative = (
        _strongest_clusters(Volume(np.where(outside, sign * volume.values, np.nan), volume.affine))
        for sign in (1, -1)
    )
    return positive, [replace(cluster, value=-cluster.value) for cluster in negative]


def _strongest_clusters(volume: Volume) -> list[Cluster]:
    defined = volume.values[np.isfinite(volume.values)]
    threshold = max(0.0, float(np.quantile(defined, 1 - CLUSTER_SHARE))) if defined.size else 0.0
    values = np.nan_to_num(volume.values)
    labels, n = label(values > threshold)
    numbers = np.arange(1, n + 1)
    voxels = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    peaks = maximum(values, labels, numbers)
    strongest = numbers[np.argsort(-peaks, kind="stable")[:N_CLUSTERS]]
    voxel_mm3 = abs(np.linalg.det(volume.affine[:3, :3]))
    return [
        Cluster(
            _triple(nib.affines.apply_affine(volume.affine, place)),
            float(values[place]),
            float(voxels[number - 1] * voxel_mm3),
        )
        for number, place in zip(strongest, maximum_position(values, labels, strongest), strict=True)
    ]


@cache
def template() -> Volume:
    """Read the MNI template, at 2 mm."""
    image = load_mni152_template(resolution=2)
    return Volume(np.asarray(image.dataobj, np.float32), image.affine)
