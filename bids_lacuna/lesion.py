"""A lesion: its mask on disk, and its weights on the connectome's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from bids_lacuna.grid import Grid
from bids_lacuna.images import UNREADABLE, has_usable_affine, open_image

Array = np.ndarray
Weighting = Literal["volume", "binary"]

AXIS_ALIGNED_TOLERANCE = 1e-3
"""Two grids count as axis-aligned when no lesion voxel is moved by more than this share of a grid voxel."""

EDGE_DECIMALS = 4
"""Voxel edges are rounded to 1e-4 grid voxels: affines come as float32, and edges that meet must meet exactly."""

SLAB = 16
"""Slices of a mask that are read at a time: one of float64 at 0.5 mm would take 450 MB whole, and takes 20 MB so."""

PIECE_WIDTH = 0.25
"""Between oblique grids, a lesion voxel is cut into pieces at most this share of a grid voxel wide."""


class LesionOutsideGrid(ValueError):  # noqa: N818  a fact about a lesion, not a defect of the program
    """The lesion covers no voxel of the connectome: it fails, and the others go on."""


@dataclass(frozen=True, eq=False)
class LesionWeights:
    """A lesion on the connectome's grid."""

    voxels: Array
    """Shape (n,), int32: the connectome voxels that the lesion covers."""
    shares: Array
    """Shape (n,), float32: the share of each one's volume that the lesion covers."""


@dataclass(eq=False)
class LesionData:
    """One patient's lesion; after mapping, with the results of each analysis.

    `mask` is read when its batch is mapped, not before: thousands of lesions cost nothing while they wait.
    """

    mask: Path | SpatialImage
    """A binary NIfTI mask: a file, or an image in memory."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the user knows of the lesion. `space` (a template's name) is compared with the connectome's."""
    weights: LesionWeights | None = None
    """The lesion on the connectome's grid, while its batch is mapped."""
    volume_mm3: float | None = None
    """The lesion's volume on its own grid, once it was read."""
    coverage: float | None = None
    """The share of the lesion's volume that lies in the connectome's mask, once it was read."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """What each analysis found, under the analysis's name; empty once the batch's callback has returned."""
    error: str | None = None
    """Why this lesion has no results; None when it has. A callback may set it for a result it could not use."""
    batch: int | None = None
    """The batch that the lesion was mapped in, counted from 1."""

    @classmethod
    def from_nifti(
        cls, mask: str | PathLike[str] | SpatialImage, metadata: Mapping[str, Any] | None = None
    ) -> LesionData:
        """Take a binary NIfTI mask as a lesion, without reading it yet.

        Parameters
        ----------
        mask
            A file, or an image in memory. A mask that turns out to be unusable when its batch comes leaves its
            reason in `error`, and the other lesions go on.
        metadata
            What is known of the lesion: `subject_id`, `space`, and anything else; handed through.
        """
        if not isinstance(mask, SpatialImage):
            mask = Path(mask)
        return cls(mask, dict(metadata or {}))

    @property
    def name(self) -> str:
        """How messages call this lesion."""
        if isinstance(self.mask, Path):
            return self.mask.name
        return str(self.metadata.get("subject_id", "a lesion in memory"))


def load_lesion(
    lesion: LesionData, grid: Grid, space: str | None = None, weighting: Weighting = "volume"
) -> LesionData:
    """Read a lesion's mask and bring it to the connectome's grid.

    Parameters
    ----------
    lesion
        Its mask may lie on any grid: voxels are matched by world coordinates.
    grid
        The connectome's.
    space
        The template of the connectome; compared with the lesion's `metadata["space"]` where both are known.
    weighting
        "volume": the share of each connectome voxel that the lesion covers. "binary": 1 where that share is at
        least a half, else 0, as tools with nearest-neighbour masks have it.

    Returns
    -------
    LesionData
        A copy with `weights`, `volume_mm3` and `coverage`.

    Raises
    ------
    ValueError
        The mask is empty, not 3D or not binary, its affine cannot be used, or it is in another space than the
        connectome.
    LesionOutsideGrid
        The lesion covers no voxel of the connectome.
    OSError
        The file is missing or cannot be read as NIfTI.
    """
    lesion_space = lesion.metadata.get("space")
    if lesion_space and space and lesion_space != space:
        raise ValueError(describe_mismatch(lesion_space, space))
    image = open_image(lesion.mask, "mask") if isinstance(lesion.mask, Path) else lesion.mask
    check_header(image)
    corner, box = read_mask(image)
    affine = image.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(image.affine, corner)
    volume_mm3 = np.count_nonzero(box) * abs(np.linalg.det(affine[:3, :3]))
    shares = grid.vector(weigh(box, affine, grid))
    coverage = float(shares.sum() * grid.voxel_volume_mm3 / volume_mm3)
    if weighting == "binary":
        shares = (shares >= 0.5).astype(float)
    voxels = np.flatnonzero(shares)
    if not len(voxels):
        raise LesionOutsideGrid(_outside(coverage, grid, affine, box.shape))
    weights = LesionWeights(voxels.astype(np.int32), shares[voxels].astype(np.float32))
    return replace(lesion, weights=weights, volume_mm3=float(volume_mm3), coverage=min(coverage, 1.0))


def _outside(coverage: float, grid: Grid, affine: Array, shape: tuple[int, ...]) -> str:
    if coverage > 0:
        return (
            "the lesion covers no connectome voxel by half or more, as binary weighting needs: "
            "use volume weighting, which loses no small lesion"
        )
    lesion_low, lesion_high = _extent(affine, shape)
    brain_low, brain_high = _extent(grid.affine, grid.shape)
    return (
        f"the lesion lies outside the connectome's brain mask: it spans {lesion_low} to {lesion_high} mm, the "
        f"connectome's volume {brain_low} to {brain_high} mm; check the mask's affine and template space, and "
        "whether the connectome covers that part of the brain"
    )


def _extent(affine: Array, shape: tuple[int, ...]) -> tuple[str, str]:
    corners = nib.affines.apply_affine(affine, list(product(*[(-0.5, n - 0.5) for n in shape])))
    low, high = ("(" + ", ".join(f"{x:.0f}" for x in edge) + ")" for edge in (corners.min(0), corners.max(0)))
    return low, high


def describe_mismatch(lesion_space: str, connectome_space: str) -> str:
    """Say that a lesion is in another template space than the connectome, and what to do."""
    return (
        f"the lesion is in space {lesion_space}, the connectome in {connectome_space}: transform the mask to "
        f"{connectome_space} (nearest-neighbour or GenericLabel interpolation), and name it "
        f"space-{connectome_space}; or, if it is the connectome's space that has the wrong name, give the right one "
        "(--connectome-space)"
    )


def check_header(image: SpatialImage) -> None:
    """Refuse an image whose header says that it is no lesion mask, before its voxels are read.

    Raises
    ------
    ValueError
        It is no 3D image of real numbers, or it does not say where its voxels lie.
    """
    if not isinstance(image, SpatialImage) or image.get_data_dtype().kind not in "biuf":
        raise ValueError("the mask is no image of real numbers: save the lesion as a NIfTI file of 0 and 1")
    if len(image.shape) < 3 or any(n != 1 for n in image.shape[3:]):
        raise ValueError(
            f"the mask has {len(image.shape)} dimensions {image.shape}, a lesion mask has three: "
            "save each lesion as a 3D file of its own"
        )
    if not has_usable_affine(image):
        raise ValueError(
            "the mask's header does not say where its voxels lie (its affine is missing or singular): "
            "save the mask with the affine of the image that it was drawn on"
        )


def read_mask(image: SpatialImage) -> tuple[Array, Array]:
    """Read a binary 3D mask, a slab at a time, cropped to the lesion.

    Returns
    -------
    corner : shape (3,)
        The voxel of the image that the box begins at.
    box : shape (x, y, z), boolean
        The smallest box with the whole lesion in it.

    Raises
    ------
    ValueError
        The mask is empty or not binary.
    OSError
        The file is damaged.
    """
    slabs = {}
    found: set[float] = set()
    for start in range(0, image.shape[2], SLAB):
        try:
            values = np.asanyarray(image.dataobj[:, :, start : start + SLAB]).reshape(*image.shape[:2], -1)
        # nibabel says with a ValueError that a file ends too early.
        except (*UNREADABLE, ValueError) as error:
            raise OSError(
                f"the mask's voxels cannot be read ({error}): the file may be truncated; copy it again"
            ) from error
        lesion = values != 0
        if lesion.any():
            slabs[start] = lesion
            found |= set(np.unique(values[lesion]).tolist())
            _check_binary(found)
    if not slabs:
        raise ValueError("the mask is empty: no voxel differs from 0; check that the right file was saved")
    first = min(slabs)
    nothing = np.zeros((*image.shape[:2], SLAB), dtype=bool)
    volume = np.concatenate([slabs.get(start, nothing) for start in range(first, max(slabs) + 1, SLAB)], axis=2)
    filled = [np.flatnonzero(volume.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = volume[tuple(slice(places[0], places[-1] + 1) for places in filled)]
    corner = np.array([places[0] for places in filled])
    corner[2] += first
    return corner, box


def _check_binary(found: set[float]) -> None:
    if any(np.isnan(value) for value in found):
        raise ValueError("the mask holds NaN, where 0 is needed: replace NaN by 0 (numpy.nan_to_num)")
    if len(found) > 1 or not 0 < min(found) < np.inf:
        shown = ", ".join(f"{value:g}" for value in sorted(found)[:4]) + (", …" if len(found) > 4 else "")
        raise ValueError(
            f"the mask is not binary: besides 0 it holds {shown}, where one positive value is needed; "
            "threshold it, and save one file for each lesion"
        )


def weigh(lesion: Array, affine: Array, grid: Grid) -> Array:
    """Compute the share of each grid voxel's volume that a lesion covers.

    Exact between axis-aligned grids, whatever their axes' order, direction and voxel sizes. Between oblique
    grids, lesion voxels are cut into pieces of at most a quarter of a grid voxel, and each piece's volume goes
    to the voxel that holds its centre; a share may then exceed 1 by what a few pieces hold, since the volume is
    conserved in either case.

    Parameters
    ----------
    lesion : shape (x, y, z), boolean
    affine : shape (4, 4)
        The lesion's voxel indices to millimetres.
    grid
        The connectome's; its brain mask is not applied here.

    Returns
    -------
    shape grid.shape, float64
    """
    to_grid = np.linalg.inv(grid.affine) @ affine
    axis_of = np.abs(to_grid[:3, :3]).argmax(axis=1)
    shear = to_grid[:3, :3].copy()
    shear[range(3), axis_of] = 0
    shift = np.abs(shear) @ np.array(lesion.shape)
    if set(axis_of) == {0, 1, 2} and shift.max() < AXIS_ALIGNED_TOLERANCE:
        return _weigh_aligned(lesion, to_grid, axis_of, grid.shape)
    return _weigh_oblique(lesion, to_grid, grid.shape)


def _weigh_aligned(lesion: Array, to_grid: Array, axis_of: Array, shape: tuple[int, ...]) -> Array:
    """Apply the overlap of lesion-voxel edges with grid-voxel edges along each axis in turn."""
    shares = lesion.transpose(axis_of).astype(float)
    centre = (np.array(lesion.shape) - 1) / 2
    for axis, lesion_axis in enumerate(axis_of):
        # Any shear below the tolerance is taken at the lesion's centre.
        offset = to_grid[axis, 3] + to_grid[axis, :3] @ centre - to_grid[axis, lesion_axis] * centre[lesion_axis]
        edges = offset + to_grid[axis, lesion_axis] * (np.arange(shares.shape[axis] + 1) - 0.5)
        edges = edges.round(EDGE_DECIMALS)
        low, high = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
        grid_low = np.arange(shape[axis])[:, np.newaxis] - 0.5
        overlap = np.clip(np.minimum(high, grid_low + 1) - np.maximum(low, grid_low), 0, None)
        shares = np.moveaxis(np.tensordot(overlap, shares, axes=(1, axis)), 0, axis)
    return shares


def _weigh_oblique(lesion: Array, to_grid: Array, shape: tuple[int, ...]) -> Array:
    """Give each piece's volume to the grid voxel that holds its centre."""
    n_pieces = np.ceil(np.linalg.norm(to_grid[:3, :3], axis=0) / PIECE_WIDTH).astype(int)
    piece_volume = abs(np.linalg.det(to_grid[:3, :3])) / n_pieces.prod()
    centres = nib.affines.apply_affine(to_grid, np.argwhere(lesion))
    counts = np.zeros(np.prod(shape), dtype=np.int64)
    for piece in np.ndindex(*n_pieces):
        within_voxel = (np.array(piece) + 0.5) / n_pieces - 0.5
        nearest = np.rint(centres + to_grid[:3, :3] @ within_voxel).astype(np.int64)
        inside = np.all((nearest >= 0) & (nearest < shape), axis=1)
        numbers = np.ravel_multi_index(tuple(nearest[inside].T), shape)
        counts += np.bincount(numbers, minlength=len(counts))
    return (counts * piece_volume).reshape(shape)
