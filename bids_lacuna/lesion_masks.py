"""Lesion masks in NIfTI: checked and read, cropped to the lesion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import product
from math import prod

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, SpatialImage

from bids_lacuna.grid import DISAGREEMENT
from bids_lacuna.images import LARGEST_VOLUME, has_usable_affine, read_slabs, round_quaternion
from bids_lacuna.text import tell_apart

Array = np.ndarray

VOXEL_SIZES_MM = (0.01, 20)
"""Smallest and largest voxel sizes of a mask; others come from an affine in metres or micrometres."""

LARGEST_SLICE_BYTES = 2**26
"""Largest slice of a mask in bytes; masks are read slice by slice, and a header must not set the memory needed."""

ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Relative difference of values that are equal apart from the rounding of float32."""

PROBABILITY_TOLERANCE = 1e-3
"""Tolerance below 0 and above 1 for interpolated and rounded probabilities."""


class _SeveralValues(ValueError):  # noqa: N818  a fact about a mask
    """A mask has other values than 0 and one positive value."""


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
    return _describe_disagreement(type(image.header), image.header.binaryblock, image.shape[:3])


# The headers of many masks are the same.
@lru_cache(maxsize=64)
def _describe_disagreement(header_type: type[nib.Nifti1Header], block: bytes, shape: tuple[int, ...]) -> str:
    try:
        header = header_type(block, check=False)
        round_quaternion(header)
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    # Raised for invalid quaternions and voxel sizes; `check_header` has checked the affine that is used.
    except (HeaderDataError, ValueError) as error:
        return f"the header's qform cannot be read ({error}): the sform is used; save the mask with one affine"
    if sform is None or qform is None:
        return ""
    corners = list(product(*[(0, n - 1) for n in shape]))
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


def _read_box(
    image: SpatialImage, weigh_slab: Callable[[Array], tuple[Array, Array] | None], nothing: str
) -> tuple[Array, Array]:
    """Read a mask slab by slab, and join what a function returns for them in the lesion's bounding box.

    Parameters
    ----------
    weigh_slab
        Returns the first voxel and the weights of the box that the lesion fills in a slab, as `_crop`.
    nothing
        Describes a mask of which nothing remains.
    """
    pieces: list[tuple[Array, Array]] = []
    n_read = 0
    # Axes are z, y, x here: searching an array in its memory order is fast.
    for values in read_slabs(image, "mask"):
        lesion = weigh_slab(values)
        if lesion is not None:
            corner, piece = lesion
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
        box[region(corner - first, piece.shape)] = piece
    return first[::-1], box.T


def _find_one_value(values: Array, found: set[float]) -> tuple[Array, Array] | None:
    """Find where a mask is not 0; raise if it has more than one value there, or one not in `found` so far."""
    lesion = values != 0
    if (cropped := _crop(lesion)) is None:
        return None
    corner, piece = cropped
    inside = values[region(corner, piece.shape)][piece]
    found |= {float(inside.min()), float(inside.max())}
    if len(found) > 1 or not 0 < min(found) < np.inf:
        raise _SeveralValues(_describe_values(found | set(np.unique(inside).tolist())))
    return cropped


def _find_rounded(values: Array, largest: float) -> tuple[Array, Array] | None:
    """Find where a mask has its largest value; raise if others are, apart from rounding, neither that nor 0."""
    tolerance = ROUNDING * largest if values.dtype.kind == "f" else 0.0
    is_largest, is_zero = values >= largest - tolerance, np.abs(values) <= tolerance
    # NaN is neither.
    if not 0 < largest < np.inf or not (is_largest | is_zero).all():
        raise _SeveralValues
    return _crop(is_largest)


def _weigh_probabilities(values: Array, threshold: float) -> tuple[Array, Array] | None:
    """Find values of at least the threshold, and 0 elsewhere, as float32."""
    low, high = values.min(), values.max()
    # The condition is negated so that NaN raises.
    if not (low >= -PROBABILITY_TOLERANCE and high <= 1 + PROBABILITY_TOLERANCE):
        raise ValueError(
            f"the mask contains values from {low:g} to {high:g}, but a lesion threshold needs probabilities from 0 "
            "to 1: divide percentages by 100, and replace NaN by 0"
        )
    return _crop(np.where(values >= threshold, np.minimum(values, 1), 0).astype(np.float32))


def _check_box(n_voxels: int) -> None:
    if n_voxels > LARGEST_VOLUME:
        raise ValueError(
            f"the lesion's bounding box has {n_voxels} voxels or more, but at most {LARGEST_VOLUME} are read: "
            "resample the mask to 0.5 mm or coarser"
        )


def _crop(lesion: Array) -> tuple[Array, Array] | None:
    """Return the first voxel of the lesion's bounding box, and a copy of the box; None without a lesion."""
    slices = np.flatnonzero(np.any(lesion, axis=(1, 2)))
    if not len(slices):
        return None
    plane = np.any(lesion[slices[0] : slices[-1] + 1], axis=0)
    filled = [slices, np.flatnonzero(np.any(plane, axis=1)), np.flatnonzero(np.any(plane, axis=0))]
    corner = np.array([indices[0] for indices in filled])
    end = np.array([indices[-1] + 1 for indices in filled])
    return corner, lesion[region(corner, end - corner)].copy()


def _describe_values(found: set[float]) -> str:
    if any(np.isnan(value) for value in found):
        return "the mask contains NaN, but 0 is needed: replace NaN by 0 (numpy.nan_to_num)"
    shown = ", ".join(tell_apart(sorted(found)[:4])) + (", …" if len(found) > 4 else "")
    advice = "threshold it, and save one file per lesion"
    if min(found) > 0 and max(found) <= 1 + PROBABILITY_TOLERANCE:
        advice = "if these are probabilities, use --lesion-threshold T to weight voxels of at least T"
    return f"the mask is not binary: besides 0 it contains {shown}, but one positive value is needed; {advice}"


def region(corner: Array, shape: Iterable[int]) -> tuple[slice, ...]:
    """Return the slices of a box."""
    return tuple(slice(start, start + n) for start, n in zip(corner, shape, strict=True))
