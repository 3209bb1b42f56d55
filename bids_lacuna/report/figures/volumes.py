"""Maps and lesions in world coordinates: reading them, measuring them, and finding clusters."""

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

STRONGEST_FRACTION = 0.1
"""Fraction of a map's voxels that is shown where no threshold was given."""

CLUSTER_FRACTION = 0.02
"""Fraction of a map's voxels outside the lesion that forms the clusters of each sign."""

N_CLUSTERS = 5
"""Clusters of each sign in the table."""


@dataclass(frozen=True)
class Volume:
    """A 3D array in world coordinates."""

    values: Array
    """Shape (x, y, z)."""
    affine: Array
    """Shape (4, 4): voxel indices to millimetres."""

    @cached_property
    def _to_voxels(self) -> Array:
        return np.linalg.inv(self.affine)

    def sample(self, points_mm: Array, outside: float = 0) -> Array:
        """Return the values of the voxels that contain points.

        Parameters
        ----------
        points_mm : shape (..., 3)
        outside
            Value for points outside the volume.

        Returns
        -------
        shape (...)
        """
        voxels = np.rint(nib.affines.apply_affine(self._to_voxels, points_mm)).astype(np.intp)
        inside = ((voxels >= 0) & (voxels < self.values.shape)).all(axis=-1)
        values = np.full(inside.shape, outside, self.values.dtype)
        values[inside] = self.values[tuple(voxels[inside].T)]
        return values

    def interpolate(self, points_mm: Array) -> Array:
        """Interpolate the values at points linearly; 0 outside."""
        voxels = np.moveaxis(nib.affines.apply_affine(self._to_voxels, points_mm), -1, 0)
        return map_coordinates(self.values, voxels, order=1)

    def inside(self, lesion: LesionShape) -> Array:
        """Return whether each voxel's centre lies in a lesion: shape (x, y, z), boolean."""
        points = nib.affines.apply_affine(self.affine, np.moveaxis(np.indices(self.values.shape), 0, -1))
        return lesion.mask.sample(points)

    def at(self, point_mm: Sequence[float]) -> float:
        """Return the value of the voxel that contains a point; NaN outside."""
        return float(self.sample(np.array(point_mm)[np.newaxis], outside=np.nan)[0])

    def image(self) -> nib.Nifti1Image:
        """Return it as an image, with 0 for undefined values: nilearn would warn about each one."""
        values = np.nan_to_num(self.values, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
        return nib.Nifti1Image(values, self.affine)


@dataclass(frozen=True)
class LesionShape:
    """The shape and position of a lesion."""

    mask: Volume
    """Boolean, cropped to the smallest box that contains the lesion."""
    centre_mm: tuple[float, float, float]
    """The lesion's voxel nearest to its centre of mass."""
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    """Lowest and highest coordinates of its voxels' centres."""
    left_fraction: float
    """Fraction of its volume at x < 0, without voxels at x = 0; one half if there are no others."""


@dataclass(frozen=True)
class Cluster:
    """Adjacent voxels, and the strongest of them: a row of the table of clusters."""

    peak_mm: tuple[float, float, float]
    """Position of its strongest voxel."""
    value: float
    """Value of its strongest voxel."""
    size_mm3: float


@dataclass(frozen=True)
class MapFacts:
    """Numbers about the picture of a map."""

    threshold: float
    """Voxels with a greater absolute value are shown."""
    n_above: int
    n_below: int
    """Voxels below minus the threshold."""
    n_defined: int
    maximum: float
    """NaN if no voxel is defined."""
    minimum: float
    maximum_mm: tuple[float, float, float]
    minimum_mm: tuple[float, float, float]


def read_map(path: Path) -> Volume:
    """Read a map or a mask that the program wrote; raises OSError if it cannot be read."""
    image = open_image(path, "map")
    return Volume(read_volume(image, "map", lambda slab: slab.astype(np.float32)), image.affine)


def read_lesion(path: Path, threshold: float | None = None) -> LesionShape:
    """Read the shape and position of a lesion from its mask.

    Parameters
    ----------
    threshold
        As for `load_lesion`: the lowest probability that counts as lesion.

    Raises
    ------
    OSError, ValueError
        As raised by `lesion.read_mask`.
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


def strongest_tenth_threshold(volume: Volume) -> float:
    """Return the absolute value exceeded by a tenth of a map's voxels, to two digits; NaN for an undefined map."""
    sizes = np.abs(volume.values[np.isfinite(volume.values)])
    if not sizes.size:
        return float("nan")
    return float(f"{np.quantile(sizes, 1 - STRONGEST_FRACTION):.2g}")


def measure_map(volume: Volume, threshold: float) -> MapFacts:
    """Find a map's extremes, and count the voxels beyond its threshold."""
    defined = np.isfinite(volume.values)
    values = volume.values
    if not defined.any():
        nowhere = (float("nan"),) * 3
        return MapFacts(threshold, 0, 0, 0, float("nan"), float("nan"), nowhere, nowhere)
    voxels = [np.unravel_index(find(values), values.shape) for find in (np.nanargmax, np.nanargmin)]
    high_mm, low_mm = (_triple(nib.affines.apply_affine(volume.affine, voxel)) for voxel in voxels)
    return MapFacts(
        threshold,
        int((values > threshold).sum()),
        int((values < -threshold).sum()),
        int(defined.sum()),
        float(values[voxels[0]]),
        float(values[voxels[1]]),
        high_mm,
        low_mm,
    )


def find_clusters(volume: Volume, lesion: LesionShape | None) -> tuple[list[Cluster], list[Cluster]]:
    """List the strongest clusters of each sign outside the lesion.

    Clusters consist of voxels with common faces, among the 2 % with the highest or the lowest values outside the
    lesion: with a large connectome, nearly all voxels exceed any usual threshold and form a single cluster. The
    results equal those of nilearn's `get_clusters_table` without subpeaks, which take it seconds.

    Returns
    -------
    positive, negative
        Strongest first.
    """
    outside = np.isfinite(volume.values)
    if lesion is not None:
        outside &= ~volume.inside(lesion)
    positive, negative = (
        _strongest_clusters(Volume(np.where(outside, sign * volume.values, np.nan), volume.affine))
        for sign in (1, -1)
    )
    return positive, [replace(cluster, value=-cluster.value) for cluster in negative]


def _strongest_clusters(volume: Volume) -> list[Cluster]:
    defined = volume.values[np.isfinite(volume.values)]
    threshold = max(0.0, float(np.quantile(defined, 1 - CLUSTER_FRACTION))) if defined.size else 0.0
    values = np.nan_to_num(volume.values)
    labels, n = label(values > threshold)
    numbers = np.arange(1, n + 1)
    voxels = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    peaks = maximum(values, labels, numbers)
    strongest = numbers[np.argsort(-peaks, kind="stable")[:N_CLUSTERS]]
    voxel_mm3 = abs(np.linalg.det(volume.affine[:3, :3]))
    return [
        Cluster(
            _triple(nib.affines.apply_affine(volume.affine, voxel)),
            float(values[voxel]),
            float(voxels[number - 1] * voxel_mm3),
        )
        for number, voxel in zip(strongest, maximum_position(values, labels, strongest), strict=True)
    ]


@cache
def template() -> Volume:
    """Load the MNI template at 2 mm."""
    image = load_mni152_template(resolution=2)
    return Volume(np.asarray(image.dataobj, np.float32), image.affine)
