"""Lesions: masks on disk, and their weights on the connectome's grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, SpatialImage

from bids_lacuna.files import FileState, check_unchanged
from bids_lacuna.grid import DISAGREEMENT, Grid
from bids_lacuna.images import LARGEST_VOLUME, has_usable_affine, open_image, read_slabs, round_quaternion
from bids_lacuna.spaces import describe_mismatch
from bids_lacuna.text import percent, tell_apart
from bids_lacuna.transforms import TransformChain
from bids_lacuna.weights import LesionWeights, Weighting, bounds, weigh

logger = logging.getLogger(__name__)

Array = np.ndarray

LOW_COVERAGE = 0.5
"""Fraction of a lesion inside the connectome's mask, below which a warning is logged."""

ONE_SIDED = 0.95
"""Smallest fraction of a lesion's volume on one side of the brain for that side to be named."""

VOXEL_SIZES_MM = (0.01, 20)
"""Smallest and largest voxel sizes of a mask; others come from an affine in metres or micrometres."""

LARGEST_SLICE_BYTES = 2**26
"""Largest slice of a mask in bytes; masks are read slice by slice, and a header must not set the memory needed."""

ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Relative difference of values that are equal apart from the rounding of float32."""

PROBABILITY_TOLERANCE = 1e-3
"""Tolerance below 0 and above 1 for interpolated and rounded probabilities."""

VOLUME_RATIOS = (0.5, 2)
"""Range of the ratio of a lesion's volume after its transforms to that before, outside which a warning is logged."""

LARGE_LESION = 0.5
"""Fraction of the connectome's brain mask that a lesion covers, above which a warning is logged."""


class _SeveralValues(ValueError):  # noqa: N818  a fact about a mask
    """A mask has other values than 0 and one positive value."""


class LesionOutsideGrid(ValueError):  # noqa: N818  a fact about a lesion, not a defect of the program
    """The lesion covers no voxel of the connectome; it fails alone, and the other lesions are mapped."""


@dataclass(eq=False)
class LesionData:
    """One patient's lesion, and after mapping the results of each analysis.

    `mask` is read when its batch is mapped, so that thousands of waiting lesions take no memory.
    """

    mask: Path | SpatialImage
    """A NIfTI mask: a file, or an image in memory."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Information from the user. `space`, the name of a template, is compared with the connectome's space."""
    weights: LesionWeights | None = None
    """Weights on the connectome's grid while the lesion's batch is mapped, otherwise None."""
    volume_mm3: float | None = None
    """Volume on the mask's own grid in mm³, after reading; the expected volume for a probability map."""
    coverage: float | None = None
    """Fraction of the lesion's volume inside the connectome's mask, after reading."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """Results by name of the analysis; empty after the batch's callback has returned."""
    error: str | None = None
    """Reason why the lesion has no results, otherwise None. A callback may set it for results it could not use."""
    batch: int | None = None
    """Number of the batch in which the lesion was mapped, counted from 1."""
    state: FileState | None = None
    """State of the mask's file when it was read; None before, and for an image in memory."""
    transform: TransformChain | None = None
    """Transforms from the mask's space to the connectome's; None for a mask in the connectome's space."""
    template_volume_mm3: float | None = None
    """Volume after the transforms in mm³, after reading; None without transforms."""

    @classmethod
    def from_nifti(
        cls,
        mask: str | PathLike[str] | SpatialImage,
        metadata: Mapping[str, Any] | None = None,
        transform: TransformChain | None = None,
    ) -> LesionData:
        """Make a lesion from a NIfTI mask, which is read later.

        Parameters
        ----------
        mask
            A file, or an image in memory. If the mask turns out to be unusable when its batch is mapped, `error`
            gives the reason, and the other lesions are mapped.
        metadata
            Information about the lesion: `subject_id`, `space` and anything else; kept as it is.
        transform
            Transforms from the mask's space to the connectome's.
        """
        if not isinstance(mask, SpatialImage):
            mask = Path(mask)
        return cls(mask, dict(metadata or {}), transform=transform)

    @property
    def name(self) -> str:
        """Name of this lesion in messages."""
        if isinstance(self.mask, Path):
            return self.mask.name
        return str(self.metadata.get("subject_id", "a lesion in memory"))


def name_side(left: float, right: float) -> str:
    """Return a lesion's hemisphere by its volume at negative and at positive x: left, right or both."""
    if max(left, right) < ONE_SIDED * (left + right) or left == right:
        return "both"
    return "left" if left > right else "right"


def load_lesion(
    lesion: LesionData,
    grid: Grid,
    space: str | None = None,
    weighting: Weighting = "volume",
    threshold: float | None = None,
    brain: Array | None = None,
) -> LesionData:
    """Read a lesion's mask and compute its weights on the connectome's grid.

    Parameters
    ----------
    lesion
        Lesion with a mask on any grid; voxels are matched by world coordinates.
    grid
        Grid of the connectome.
    space
        Template space of the connectome; compared with the space in which the lesion's transforms end, or else with
        its `metadata["space"]`, if both are known.
    weighting
        "volume" weights each connectome voxel by the fraction of it that the lesion covers. "binary" gives weight 1
        to voxels covered by at least half and 0 to others, like tools that resample masks by nearest neighbour.
    threshold
        With None, the mask must be binary. With a number, it may be a probability map: voxels of at least this
        value are weighted by their probability, so that 0.6 counts three fifths of a voxel that is surely lesioned.
    brain : shape (x, y, z), boolean
        Voxels of the brain if the grid has all voxels of a volume; by default, the grid's voxels are those of the
        brain.

    Returns
    -------
    LesionData
        A copy with `weights`, `volume_mm3` and `coverage`, and after transforms `template_volume_mm3`.

    Raises
    ------
    ValueError
        The mask is empty, not 3D, not binary (with a threshold: not a probability map) or too large, has an
        unusable affine, or is in another space than the connectome.
    LesionOutsideGrid
        The lesion covers no voxel of the connectome.
    OSError
        The file is missing or cannot be read as NIfTI.
    """
    chain = lesion.transform
    lesion_space = chain.target if chain else lesion.metadata.get("space")
    if lesion_space and space and lesion_space != space:
        raise ValueError(describe_mismatch(lesion_space, space))
    image, state = _open_mask(lesion.mask)
    check_header(image)
    if disagreement := describe_disagreement(image):
        logger.warning("%s: %s", lesion.name, disagreement)
    corner, box = read_mask(image, threshold)
    if isinstance(lesion.mask, Path) and state:
        check_unchanged({lesion.mask: state})
    affine = image.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(image.affine, corner)
    volume_mm3 = box.sum(dtype=float) * abs(np.linalg.det(affine[:3, :3]))
    if chain:
        first, weights, whole_mm3 = _weigh_through(chain, box, affine, grid)
        _warn_of_changed_volume(lesion.name, whole_mm3 / volume_mm3)
    else:
        (first, weights), whole_mm3 = weigh(box, affine, grid), volume_mm3
    indices = grid.voxel_indices[_region(first, weights.shape)]
    covered = (weights > 0) & (indices >= 0)
    voxels, weights = indices[covered], weights[covered]
    n_covered, n_brain = (
        (len(voxels), grid.n_voxels) if brain is None else (int(brain.reshape(-1)[voxels].sum()), int(brain.sum()))
    )
    if n_covered > LARGE_LESION * n_brain:
        logger.warning(
            "%s: the lesion covers %s of the connectome's brain mask: check that it is not a brain mask or inverted",
            lesion.name,
            percent(n_covered / n_brain),
        )
    coverage = float(weights.sum() * grid.voxel_volume_mm3 / whole_mm3) if whole_mm3 else 0.0
    if weighting == "binary":
        voxels = voxels[weights >= 0.5]
        weights = np.ones(len(voxels))
    if not len(voxels):
        raise LesionOutsideGrid(_outside(coverage, grid, affine, box.shape, chain))
    return replace(
        lesion,
        weights=LesionWeights(voxels, weights.astype(np.float32)),
        volume_mm3=float(volume_mm3),
        coverage=min(coverage, 1.0),
        state=state,
        template_volume_mm3=whole_mm3 if chain else None,
    )


def _weigh_through(chain: TransformChain, box: Array, affine: Array, grid: Grid) -> tuple[Array, Array, float]:
    """Weigh a lesion through its transforms."""
    # SimpleITK takes time to import, and few runs need it.
    from bids_lacuna.transforms.resampling import weigh_through

    return weigh_through(chain, box, affine, grid)


def _warn_of_changed_volume(name: str, ratio: float) -> None:
    """Warn if a lesion's transforms change its volume much; a lesion of which nothing remains fails."""
    low, high = VOLUME_RATIOS
    if ratio and not low <= ratio <= high:
        logger.warning(
            "%s: its transforms change the lesion's volume by a factor of %.2g: check them, and look at the lesion "
            "on the participant's page",
            name,
            ratio,
        )


def _open_mask(mask: Path | SpatialImage) -> tuple[SpatialImage, FileState | None]:
    """Open a mask, and return the state of its file before that."""
    if not isinstance(mask, Path):
        return mask, None
    state = None
    with suppress(OSError):
        state = FileState.of(mask)
    # If there is no such file, this says so.
    return open_image(mask, "mask"), state


def _outside(coverage: float, grid: Grid, affine: Array, shape: tuple[int, ...], chain: TransformChain | None) -> str:
    if coverage > 0:
        return (
            "the lesion covers no connectome voxel by at least half, as binary weighting requires: use volume "
            "weighting, which keeps small lesions"
        )
    if chain:
        names = ", ".join(file.path.name for file in chain.files)
        return (
            f"after its transforms ({names}), the lesion lies outside the connectome's brain mask: check that they "
            "are this participant's, and resample images in the direction that their names say"
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
    """Raise ValueError if an image cannot be a lesion mask according to its header, before its voxels are read.

    Raises
    ------
    ValueError
        The image is not a 3D image of real numbers, has no usable affine, or has implausible sizes.
    """
    if not isinstance(image, SpatialImage) or image.get_data_dtype().kind not in "biuf":
        raise ValueError("the mask is not an image of real numbers: save the lesion as a NIfTI file of 0 and 1")
    if len(image.shape) < 3 or any(n != 1 for n in image.shape[3:]):
        raise ValueError(
            f"the mask has {len(image.shape)} dimensions {image.shape}, but a lesion mask has three: "
            "save each lesion as a separate 3D file"
        )
    if not has_usable_affine(image):
        raise ValueError(
            "the mask's affine is missing or singular, so its voxels have no positions: save the mask with the "
            "affine of the image on which it was drawn"
        )
    sizes = nib.affines.voxel_sizes(image.affine)
    shown = " x ".join(f"{size:.3g}" for size in sizes)
    smallest, largest = VOXEL_SIZES_MM
    if not (smallest <= sizes.min() and sizes.max() <= largest):
        raise ValueError(
            f"the mask has voxels of {shown} mm by its affine, which may be in metres or micrometres: save it with "
            f"an affine in millimetres and voxels of {smallest:g} to {largest:g} mm"
        )
    if prod(image.shape[:2]) * image.get_data_dtype().itemsize > LARGEST_SLICE_BYTES:
        raise ValueError(
            f"the mask has slices of {image.shape[0]} x {image.shape[1]} voxels, which are too large: resample it to "
            "0.5 mm or coarser"
        )


def describe_disagreement(image: SpatialImage) -> str:
    """Describe how far apart a NIfTI header's two affines place the image's voxels; empty if they agree."""
    if not isinstance(image.header, nib.Nifti1Header):
        return ""
    try:
        header = image.header.copy()
        round_quaternion(header)
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    # Raised for invalid quaternions and voxel sizes; `check_header` has checked the affine that is used.
    except (HeaderDataError, ValueError) as error:
        return f"the header's qform cannot be read ({error}): the sform is used; save the mask with one affine"
    if sform is None or qform is None:
        return ""
    corners = list(product(*[(0, n - 1) for n in image.shape[:3]]))
    apart = np.linalg.norm(nib.affines.apply_affine(sform - qform, corners), axis=1).max()
    if apart <= DISAGREEMENT * nib.affines.voxel_sizes(sform).min():
        return ""
    return (
        f"the header's sform and qform place voxels up to {apart:.3g} mm apart: the sform is used; check the "
        "lesion's position, and save the mask with one affine"
    )


def read_mask(image: SpatialImage, threshold: float | None = None) -> tuple[Array, Array]:
    """Read a 3D mask slab by slab, cropped to the lesion.

    Parameters
    ----------
    threshold
        As in `load_lesion`.

    Returns
    -------
    corner : shape (3,)
        Indices of the box's first voxel in the image.
    box : shape (x, y, z), boolean, or with a threshold float32
        Weights of the voxels in the lesion's bounding box.

    Raises
    ------
    ValueError
        The mask is empty, not binary (with a threshold: not a probability map), or the box is too large.
    OSError
        The file is damaged.
    """
    if threshold is not None:
        weigh_slab = partial(_weigh_probabilities, threshold=threshold)
        return _read_box(image, weigh_slab, f"no voxel is at least {threshold:g}")
    found: set[float] = set()
    try:
        return _read_box(image, partial(_find_one_value, found=found), "all voxels are 0")
    except _SeveralValues:
        # The largest value tells which others are equal to it, or to 0, apart from rounding.
        largest = max(float(values.max()) for values in read_slabs(image, "mask"))
        try:
            return _read_box(image, partial(_find_rounded, largest=largest), "all voxels are 0")
        except _SeveralValues:
            pass
        raise


def _read_box(image: SpatialImage, weigh_slab: Callable[[Array], Array], nothing: str) -> tuple[Array, Array]:
    """Read a mask slab by slab, and join what a function returns for them in the lesion's bounding box.

    Parameters
    ----------
    nothing
        Describes a mask of which nothing remains.
    """
    pieces: list[tuple[Array, Array]] = []
    n_read = 0
    # Axes are z, y, x here: searching an array in its memory order is fast.
    for values in read_slabs(image, "mask"):
        lesion = weigh_slab(values)
        if lesion.any():
            corner, piece = _crop(lesion)
            corner[0] += n_read
            pieces.append((corner, piece))
            _check_box(sum(piece.size for _, piece in pieces))
        n_read += len(values)
    if not pieces:
        raise ValueError(f"the mask is empty: {nothing}; check that the right file was saved")
    first = np.min([corner for corner, _ in pieces], axis=0)
    end = np.max([corner + piece.shape for corner, piece in pieces], axis=0)
    _check_box(prod((end - first).tolist()))
    box = np.zeros(end - first, dtype=pieces[0][1].dtype)
    for corner, piece in pieces:
        box[_region(corner - first, piece.shape)] = piece
    return first[::-1], box.T


def _find_one_value(values: Array, found: set[float]) -> Array:
    """Return where a mask is not 0; raise if it has more than one value there, or one not in `found` so far."""
    lesion = values != 0
    if lesion.any():
        inside = values[lesion]
        found |= {float(inside.min()), float(inside.max())}
        if len(found) > 1 or not 0 < min(found) < np.inf:
            raise _SeveralValues(_describe_values(found | set(np.unique(inside).tolist())))
    return lesion


def _find_rounded(values: Array, largest: float) -> Array:
    """Return where a mask has its largest value; raise if others are, apart from rounding, neither that nor 0."""
    tolerance = ROUNDING * largest if values.dtype.kind == "f" else 0.0
    is_largest, is_zero = values >= largest - tolerance, np.abs(values) <= tolerance
    # NaN is neither.
    if not 0 < largest < np.inf or not (is_largest | is_zero).all():
        raise _SeveralValues
    return is_largest


def _weigh_probabilities(values: Array, threshold: float) -> Array:
    """Return values of at least the threshold, and 0 elsewhere, as float32."""
    low, high = values.min(), values.max()
    # The condition is negated so that NaN raises.
    if not (low >= -PROBABILITY_TOLERANCE and high <= 1 + PROBABILITY_TOLERANCE):
        raise ValueError(
            f"the mask contains values from {low:g} to {high:g}, but a lesion threshold needs probabilities from 0 "
            "to 1: divide percentages by 100, and replace NaN by 0"
        )
    return np.where(values >= threshold, np.minimum(values, 1), 0).astype(np.float32)


def _check_box(n_voxels: int) -> None:
    if n_voxels > LARGEST_VOLUME:
        raise ValueError(
            f"the lesion's bounding box has {n_voxels} voxels or more, but at most {LARGEST_VOLUME} are read: "
            "resample the mask to 0.5 mm or coarser"
        )


def _crop(lesion: Array) -> tuple[Array, Array]:
    """Return the first voxel of the lesion's bounding box, and a copy of the box."""
    slices = np.flatnonzero(np.any(lesion, axis=(1, 2)))
    plane = np.any(lesion[slices[0] : slices[-1] + 1], axis=0)
    filled = [slices, np.flatnonzero(np.any(plane, axis=1)), np.flatnonzero(np.any(plane, axis=0))]
    corner = np.array([indices[0] for indices in filled])
    end = np.array([indices[-1] + 1 for indices in filled])
    return corner, lesion[_region(corner, end - corner)].copy()


def _describe_values(found: set[float]) -> str:
    if any(np.isnan(value) for value in found):
        return "the mask contains NaN, but 0 is needed: replace NaN by 0 (numpy.nan_to_num)"
    shown = ", ".join(tell_apart(sorted(found)[:4])) + (", …" if len(found) > 4 else "")
    advice = "threshold it, and save one file per lesion"
    if min(found) > 0 and max(found) <= 1 + PROBABILITY_TOLERANCE:
        advice = "if these are probabilities, use --lesion-threshold T to weight voxels of at least T"
    return f"the mask is not binary: besides 0 it contains {shown}, but one positive value is needed; {advice}"
