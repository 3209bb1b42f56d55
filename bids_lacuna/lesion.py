"""A lesion: its mask on disk, and its weights on the connectome's grid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, SpatialImage

from bids_lacuna.grid import Grid
from bids_lacuna.images import LARGEST_VOLUME, has_usable_affine, open_image, read_slabs
from bids_lacuna.spaces import describe_mismatch
from bids_lacuna.weights import LesionWeights, Weighting, bounds, weigh

logger = logging.getLogger(__name__)

Array = np.ndarray

LOW_COVERAGE = 0.5
"""Below this share of a lesion inside the connectome's mask, a warning says so."""

ONE_SIDED = 0.95
"""A lesion is on one side where at least this share of its volume is."""

VOXEL_SIZES_MM = (0.01, 20)
"""Of a mask: smaller or larger voxels are those of an affine in metres or in micrometres."""

LARGEST_SLICE_BYTES = 2**26
"""Of a mask, which is read a slice at a time: a header must not decide how much memory that takes."""

PROBABILITY_TOLERANCE = 1e-3
"""By how much interpolated and rounded probabilities may lie below 0 or above 1."""

LARGE_LESION = 0.5
"""Above this share of the connectome's brain mask, a warning says so."""

DISAGREEMENT_MM = 1
"""By how much a header's two affines may place a voxel apart without a warning."""


class LesionOutsideGrid(ValueError):  # noqa: N818  a fact about a lesion, not a defect of the program
    """The lesion covers no voxel of the connectome: it fails, and the others go on."""


@dataclass(eq=False)
class LesionData:
    """One patient's lesion; after mapping, with the results of each analysis.

    `mask` is read when its batch is mapped, not before: thousands of lesions cost nothing while they wait.
    """

    mask: Path | SpatialImage
    """A NIfTI mask: a file, or an image in memory."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the user knows of the lesion. `space` (a template's name) is compared with the connectome's."""
    weights: LesionWeights | None = None
    """The lesion on the connectome's grid, while its batch is mapped."""
    volume_mm3: float | None = None
    """The lesion's volume on its own grid, once it was read; of a probability map, the expected volume."""
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
        """Take a NIfTI mask as a lesion, without reading it yet.

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


def name_side(left: float, right: float) -> str:
    """Tell a lesion's hemisphere from its volume at negative and at positive x: left, right or both."""
    if max(left, right) < ONE_SIDED * (left + right) or left == right:
        return "both"
    return "left" if left > right else "right"


def load_lesion(
    lesion: LesionData,
    grid: Grid,
    space: str | None = None,
    weighting: Weighting = "volume",
    threshold: float | None = None,
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
    threshold
        None: the mask must be binary. A number: the mask may be a probability map, whose voxels of at least that
        value weigh as much as it says, so that a voxel of 0.6 counts three fifths of one that is surely lesioned.

    Returns
    -------
    LesionData
        A copy with `weights`, `volume_mm3` and `coverage`.

    Raises
    ------
    ValueError
        The mask is empty, not 3D, not binary (with a threshold: no probability map) or too large, its affine cannot
        be used, or it is in another space than the connectome.
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
    if disagreement := describe_disagreement(image):
        logger.warning("%s: %s", lesion.name, disagreement)
    corner, box = read_mask(image, threshold)
    affine = image.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(image.affine, corner)
    volume_mm3 = box.sum(dtype=float) * abs(np.linalg.det(affine[:3, :3]))
    first, weights = weigh(box, affine, grid)
    indices = grid.voxel_indices[_region(first, weights.shape)]
    covered = (weights > 0) & (indices >= 0)
    voxels, weights = indices[covered], weights[covered]
    if len(voxels) > LARGE_LESION * grid.n_voxels:
        logger.warning(
            "%s: the lesion covers %.0f %% of the connectome's brain mask: check that it is no brain mask, and not "
            "inverted",
            lesion.name,
            100 * len(voxels) / grid.n_voxels,
        )
    coverage = float(weights.sum() * grid.voxel_volume_mm3 / volume_mm3)
    if weighting == "binary":
        voxels = voxels[weights >= 0.5]
        weights = np.ones(len(voxels))
    if not len(voxels):
        raise LesionOutsideGrid(_outside(coverage, grid, affine, box.shape))
    return replace(
        lesion,
        weights=LesionWeights(voxels, weights.astype(np.float32)),
        volume_mm3=float(volume_mm3),
        coverage=min(coverage, 1.0),
    )


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
    low, high = ("(" + ", ".join(f"{x:.0f}" for x in edge) + ")" for edge in bounds(affine, shape))
    return low, high


def _region(corner: Array, shape: Iterable[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + n) for start, n in zip(corner, shape, strict=True))


def check_header(image: SpatialImage) -> None:
    """Refuse an image whose header says that it is no lesion mask, before its voxels are read.

    Raises
    ------
    ValueError
        It is no 3D image of real numbers, it does not say where its voxels lie, or it says what cannot be.
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
    sizes = nib.affines.voxel_sizes(image.affine)
    shown = " x ".join(f"{size:.3g}" for size in sizes)
    smallest, largest = VOXEL_SIZES_MM
    if not (smallest <= sizes.min() and sizes.max() <= largest):
        raise ValueError(
            f"the mask has voxels of {shown} mm by its affine, which may be in metres or micrometres: save it with "
            f"an affine in millimetres, with voxels of {smallest:g} to {largest:g} mm"
        )
    if prod(image.shape[:2]) * image.get_data_dtype().itemsize > LARGEST_SLICE_BYTES:
        raise ValueError(
            f"the mask has slices of {image.shape[0]} x {image.shape[1]} voxels: bring it to 0.5 mm or coarser"
        )


def describe_disagreement(image: SpatialImage) -> str:
    """Say how far apart the two affines of a NIfTI header place the image's voxels; "" where they agree."""
    if not isinstance(image.header, nib.Nifti1Header):
        return ""
    try:
        sform, qform = image.header.get_sform(coded=True)[0], image.header.get_qform(coded=True)[0]
    # Of quaternions and voxel sizes that are none; the affine that is used was checked.
    except (HeaderDataError, ValueError) as error:
        return f"the header's qform cannot be read ({error}): the sform is used; save the mask with one affine"
    if sform is None or qform is None:
        return ""
    corners = list(product(*[(0, n - 1) for n in image.shape[:3]]))
    apart = np.linalg.norm(nib.affines.apply_affine(sform - qform, corners), axis=1).max()
    if apart <= DISAGREEMENT_MM:
        return ""
    return (
        f"the header's sform and qform place voxels up to {apart:.3g} mm apart: the sform is used; check that the "
        "lesion lies where it should, and save the mask with one affine"
    )


def read_mask(image: SpatialImage, threshold: float | None = None) -> tuple[Array, Array]:
    """Read a 3D mask, a slab at a time, cropped to the lesion.

    Parameters
    ----------
    threshold
        As in `load_lesion`.

    Returns
    -------
    corner : shape (3,)
        The voxel of the image that the box begins at.
    box : shape (x, y, z), boolean, or with a threshold float32
        The smallest box with the whole lesion in it, with what each voxel weighs.

    Raises
    ------
    ValueError
        The mask is empty, not binary, or with a threshold no probability map; or the box is too large.
    OSError
        The file is damaged.
    """
    pieces: list[tuple[Array, Array]] = []
    found: set[float] = set()
    n_read = 0
    # Slices come first and x last here: an array is fast to search in the order that it has in memory.
    for values in read_slabs(image, "mask"):
        lesion = _find_one_value(values, found) if threshold is None else _weigh_probabilities(values, threshold)
        if lesion.any():
            corner, piece = _crop(lesion)
            corner[0] += n_read
            pieces.append((corner, piece))
            _check_box(sum(piece.size for _, piece in pieces))
        n_read += len(values)
    if not pieces:
        what = "no voxel differs from 0" if threshold is None else f"no voxel is at least {threshold:g}"
        raise ValueError(f"the mask is empty: {what}; check that the right file was saved")
    first = np.min([corner for corner, _ in pieces], axis=0)
    end = np.max([corner + piece.shape for corner, piece in pieces], axis=0)
    _check_box(prod((end - first).tolist()))
    box = np.zeros(end - first, dtype=pieces[0][1].dtype)
    for corner, piece in pieces:
        box[_region(corner - first, piece.shape)] = piece
    return first[::-1], box.T


def _find_one_value(values: Array, found: set[float]) -> Array:
    """Tell where a mask is not 0; raise where that is not one positive value, in all of what was `found` before."""
    lesion = values != 0
    if lesion.any():
        inside = values[lesion]
        found |= {float(inside.min()), float(inside.max())}
        if len(found) > 1 or not 0 < min(found) < np.inf:
            raise ValueError(_describe_values(found | set(np.unique(inside).tolist())))
    return lesion


def _weigh_probabilities(values: Array, threshold: float) -> Array:
    """Give the values that are at least the threshold, 0 elsewhere: float32."""
    low, high = values.min(), values.max()
    # Written so that a NaN raises.
    if not (low >= -PROBABILITY_TOLERANCE and high <= 1 + PROBABILITY_TOLERANCE):
        raise ValueError(
            f"the mask holds values from {low:g} to {high:g}, where a lesion threshold needs probabilities from 0 to "
            "1: divide percentages by 100, and replace NaN by 0"
        )
    return np.where(values >= threshold, np.minimum(values, 1), 0).astype(np.float32)


def _check_box(n_voxels: int) -> None:
    if n_voxels > LARGEST_VOLUME:
        raise ValueError(
            f"the lesion spans a box of {n_voxels} voxels or more, at most {LARGEST_VOLUME} are read: bring the "
            "mask to 0.5 mm or coarser"
        )


def _crop(lesion: Array) -> tuple[Array, Array]:
    """Tell where the smallest box with the whole lesion in it begins, and copy it."""
    plane = np.any(lesion, axis=0)
    lines = np.any(lesion, axis=(1, 2)), np.any(plane, axis=1), np.any(plane, axis=0)
    filled = [np.flatnonzero(line) for line in lines]
    corner = np.array([places[0] for places in filled])
    end = np.array([places[-1] + 1 for places in filled])
    return corner, lesion[_region(corner, end - corner)].copy()


def _describe_values(found: set[float]) -> str:
    if any(np.isnan(value) for value in found):
        return "the mask holds NaN, where 0 is needed: replace NaN by 0 (numpy.nan_to_num)"
    shown = ", ".join(f"{value:g}" for value in sorted(found)[:4]) + (", …" if len(found) > 4 else "")
    advice = "threshold it, and save one file for each lesion"
    if min(found) > 0 and max(found) <= 1 + PROBABILITY_TOLERANCE:
        advice = "if these are probabilities, --lesion-threshold T takes those of at least T as weights"
    return f"the mask is not binary: besides 0 it holds {shown}, where one positive value is needed; {advice}"
