"""Maps, lesions and the template in world coordinates: reading and measuring them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_lacuna.images import open_image, read_volume
from bids_lacuna.lesion_masks import read_mask

Array = np.ndarray

STRONGEST_FRACTION = 0.1
"""Fraction of a map's voxels that is shown where no threshold was given."""

TEMPLATE_FILE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
"""The MNI template in nilearn's package: ICBM 2009a, symmetric, 1 mm, without the skull."""

TEMPLATE_STEP = 2
"""Voxels of the file along each edge of a voxel of `template`."""

APART_FRACTION = 0.001
"""Fraction of a lesion's voxels below which those beyond an empty slice are probably an error of the mask."""

NEGLIGIBLE = 1e-5
"""Shear, in voxels per millimetre, that moves no position by a hundredth of a voxel."""

ON_AN_EDGE = 1e-6
"""Distance in voxels from an edge up to which a point is in the voxel with the higher index, as in the viewer."""


@dataclass(frozen=True)
class Volume:
    """A 3D array in world coordinates."""

    values: Array
    """Shape (x, y, z)."""
    affine: Array
    """Shape (4, 4): voxel indices to millimetres."""

    @cached_property
    def to_voxels(self) -> Array:
        """Affine from millimetres to voxel indices: shape (4, 4)."""
        return np.linalg.inv(self.affine)

    @cached_property
    def defined(self) -> Array:
        """The finite values in the array's memory order: shape (n,)."""
        values = self.values.ravel(order="K")
        return values[np.isfinite(values)]

    def sample(self, points_mm: Sequence[Array], outside: float = 0) -> Array:
        """Return the values of the voxels that contain points; of two that share a point, that with the higher index.

        Parameters
        ----------
        points_mm
            x, y and z: arrays that broadcast to a shape. For a plane or a grid they are a row, a column and so on,
            which makes indices cheap if the volume's axes are parallel to them.
        outside
            Value for points outside the volume.

        Returns
        -------
        array of the broadcast shape
        """
        voxels, inside = [], np.True_
        for row, n in zip(self.to_voxels, self.values.shape, strict=False):
            index = row[3]
            for factor, coordinates in zip(row[:3], points_mm, strict=True):
                if abs(factor) > NEGLIGIBLE:
                    index = index + factor * coordinates
            # NumPy rounds halves to even: a lesion's centre at 1 mm is often on an edge of a map's voxels at 2 mm.
            nearest = np.floor(index + (0.5 + ON_AN_EDGE)).astype(np.intp)
            inside = inside & (nearest >= 0) & (nearest < n)
            voxels.append(np.clip(nearest, 0, n - 1))
        values = self.values[tuple(voxels)]
        return values if inside.all() else np.where(inside, values, self.values.dtype.type(outside))

    def inside(self, lesion: LesionShape) -> Array:
        """Return whether each voxel's centre lies in a lesion: shape (x, y, z), boolean."""
        mask, contained = lesion.mask, np.zeros(self.values.shape, bool)
        corners = list(product(*[(-0.5, n - 0.5) for n in mask.values.shape]))
        ends = nib.affines.apply_affine(self.to_voxels @ mask.affine, corners)
        edges = (ends.min(axis=0), ends.max(axis=0) + 1)
        low, high = (np.clip(edge, 0, contained.shape).astype(int) for edge in edges)
        box = tuple(map(slice, low, high))
        indices = np.ogrid[box]
        affine = self.affine
        points = [
            affine[axis, 3] + sum(affine[axis, other] * indices[other] for other in range(3) if affine[axis, other])
            for axis in range(3)
        ]
        contained[box] = mask.sample(points)
        return contained

    def at(self, point_mm: Sequence[float]) -> float:
        """Return the value of the voxel that contains a point; NaN outside."""
        return float(self.sample([np.asarray(coordinate) for coordinate in point_mm], outside=np.nan))


@dataclass(frozen=True)
class LesionShape:
    """The shape and position of a lesion."""

    mask: Volume
    """Boolean, cropped to the smallest box that contains the lesion."""
    centre_mm: tuple[float, float, float]
    """The lesion's voxel nearest to its centre of mass."""
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    """Lowest and highest coordinates of its voxels' centres, without those that lie apart."""
    left_fraction: float
    """Fraction of its volume at x < 0, without voxels at x = 0; one half if there are no others."""
    n_voxels: int = 0
    n_apart: int = 0
    """Voxels beyond an empty slice, if they are few: a stray voxel of the mask is easily overlooked."""
    apart_mm: tuple[float, float, float] | None = None
    """Position of one of them."""
    kind: str = "lesion"
    """What to call it: lesion or seed."""


@dataclass(frozen=True)
class MapFacts:
    """Numbers about the picture of a map."""

    n_above: int
    """Voxels above its threshold."""
    n_below: int
    """Voxels below minus the threshold."""
    maximum: float
    """NaN if no voxel is defined."""
    minimum: float
    maximum_mm: tuple[float, float, float]
    minimum_mm: tuple[float, float, float]


def read_map(path: Path) -> Volume:
    """Read a map or a mask that the program wrote; raises OSError if it cannot be read."""
    image = open_image(path, "map")
    return Volume(read_volume(image, "map", lambda slab: slab.astype(np.float32)), image.affine)


def read_lesion(path: Path, threshold: float | None = None, kind: str = "lesion") -> LesionShape:
    """Read the shape and position of a lesion from its mask.

    Parameters
    ----------
    threshold
        As for `load_lesion`: the lowest probability that counts as lesion.
    kind
        What to call it.

    Raises
    ------
    OSError, ValueError
        As raised by `lesion_masks.read_mask`.
    """
    image = open_image(path, "mask")
    corner, weights = read_mask(image, threshold)
    affine = image.affine @ nib.affines.from_matvec(np.eye(3), corner)
    # Axes reversed: in the order of the memory.
    reversed_weights = weights.T
    box = reversed_weights > 0
    voxels = np.stack(np.nonzero(box)[::-1])
    main = _in_main_part(voxels)
    points = affine[:3, :3] @ voxels + affine[:3, 3:]
    distances = np.square(points - points.mean(axis=1, keepdims=True)).sum(axis=0)
    x, inside = points[0].round(3), reversed_weights[box]
    left, right = (float(inside[there].sum()) for there in (x < 0, x > 0))
    return LesionShape(
        Volume(box.T, affine),
        _triple(points[:, distances.argmin()]),
        _triple(points[:, main].min(axis=1)),
        _triple(points[:, main].max(axis=1)),
        left / (left + right) if left + right else 0.5,
        main.size,
        int((~main).sum()),
        None if main.all() else _triple(points[:, ~main][:, 0]),
        kind,
    )


def _in_main_part(voxels: Array) -> Array:
    """Return which voxels, shape (3, n), do not lie beyond an empty slice together with few others."""
    main = np.ones(voxels.shape[1], bool)
    for index in voxels:
        part = np.cumsum(np.bincount(index) == 0)[index]
        main &= np.bincount(part)[part] >= APART_FRACTION * main.size
    return main


def _triple(point: Iterable[float]) -> tuple[float, float, float]:
    x, y, z = (float(coordinate) for coordinate in point)
    return x, y, z


def strongest_tenth_threshold(volume: Volume) -> float:
    """Return the absolute value exceeded by a tenth of a map's voxels, to two digits; NaN for an undefined map."""
    if not volume.defined.size:
        return float("nan")
    return float(f"{np.quantile(np.abs(volume.defined), 1 - STRONGEST_FRACTION):.2g}")


def measure_map(volume: Volume, threshold: float) -> MapFacts:
    """Find a map's extremes, and count the voxels beyond its threshold."""
    if not volume.defined.size:
        nowhere = (float("nan"),) * 3
        return MapFacts(0, 0, float("nan"), float("nan"), nowhere, nowhere)
    return MapFacts(
        int((volume.defined > threshold).sum()),
        int((volume.defined < -threshold).sum()),
        float(volume.defined.max()),
        float(volume.defined.min()),
        _position_of(volume, np.nanargmax),
        _position_of(volume, np.nanargmin),
    )


def fractions_beyond(volume: Volume, threshold: float) -> tuple[float, float]:
    """Return the fractions of a map's defined voxels above a threshold and below its negative; NaN for none."""
    n = volume.defined.size or float("nan")
    return float((volume.defined > threshold).sum() / n), float((volume.defined < -threshold).sum() / n)


def _position_of(volume: Volume, find: Callable[[Array], np.intp]) -> tuple[float, float, float]:
    """Return the position of a map's extreme in mm."""
    # Searched in the order of the memory, which is that of the file.
    voxel = np.unravel_index(find(volume.values.T), volume.values.T.shape)[::-1]
    return _triple(nib.affines.apply_affine(volume.affine, voxel))


@cache
def fine_template() -> Volume:
    """Load the MNI template at 1 mm: uint8, 0 outside the brain, about 255 at its brightest."""
    package = find_spec("nilearn")
    # The package is only located: importing it takes seconds.
    if package is None or package.origin is None:
        raise FileNotFoundError("nilearn, whose package has the MNI template, is not installed: install it")
    image = open_image(Path(package.origin).parent / TEMPLATE_FILE, "template")
    return Volume(read_volume(image, "template"), image.affine)


@cache
def template() -> Volume:
    """Return the MNI template at 2 mm: float32 from 0 to 1, as from nilearn's `load_mni152_template`."""
    fine = fine_template()
    values = fine.values[::TEMPLATE_STEP, ::TEMPLATE_STEP, ::TEMPLATE_STEP].astype(np.float32)
    return Volume(values / fine.values.max(), fine.affine @ np.diag([TEMPLATE_STEP] * 3 + [1]))
