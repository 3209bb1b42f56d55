"""A lesion: its mask on disk, and its weights on the connectome's grid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, SpatialImage

from bids_lacuna.grid import Grid
from bids_lacuna.images import LARGEST_VOLUME, has_usable_affine, open_image, read_slabs
from bids_lacuna.spaces import describe_mismatch

logger = logging.getLogger(__name__)

Array = np.ndarray
Weighting = Literal["volume", "binary"]

LOW_COVERAGE = 0.5
"""Below this share of a lesion inside the connectome's mask, a warning says so."""

ONE_SIDED = 0.95
"""A lesion is on one side where at least this share of its volume is."""

AXIS_ALIGNED_TOLERANCE = 1e-3
"""Two grids count as axis-aligned when no lesion voxel is moved by more than this share of a grid voxel."""

EDGE_DECIMALS = 4
"""Voxel edges are rounded to 1e-4 grid voxels: affines come as float32, and edges that meet must meet exactly."""

PIECE_WIDTH = 0.25
"""Between oblique grids, a lesion voxel is cut into pieces at most this share of a grid voxel wide."""

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

PIECES_AT_ONCE = 2**16
"""Of a lesion's voxels together: a piece takes about 100 bytes while it is placed, and there may be ten million."""


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
    first, shares = weigh(box, affine, grid)
    numbers = grid.numbers[_region(first, shares.shape)]
    covered = (shares > 0) & (numbers >= 0)
    voxels, shares = numbers[covered], shares[covered]
    if len(voxels) > LARGE_LESION * grid.n_voxels:
        logger.warning(
            "%s: the lesion covers %.0f %% of the connectome's brain mask: check that it is no brain mask, and not "
            "inverted",
            lesion.name,
            100 * len(voxels) / grid.n_voxels,
        )
    coverage = float(shares.sum() * grid.voxel_volume_mm3 / volume_mm3)
    if weighting == "binary":
        voxels = voxels[shares >= 0.5]
        shares = np.ones(len(voxels))
    if not len(voxels):
        raise LesionOutsideGrid(_outside(coverage, grid, affine, box.shape))
    weights = LesionWeights(voxels, shares.astype(np.float32))
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
    low, high = ("(" + ", ".join(f"{x:.0f}" for x in edge) + ")" for edge in _bounds(affine, shape))
    return low, high


def _bounds(affine: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Tell the lowest and the highest coordinates that a volume reaches, to its voxels' outer edges."""
    corners = nib.affines.apply_affine(affine, list(product(*[(-0.5, n - 0.5) for n in shape])))
    return corners.min(axis=0), corners.max(axis=0)


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


def weigh(lesion: Array, affine: Array, grid: Grid) -> tuple[Array, Array]:
    """Compute the share of each grid voxel's volume that a lesion covers, times what the lesion's voxels weigh.

    Exact between axis-aligned grids, whatever their axes' order, direction and voxel sizes. Between oblique
    grids, lesion voxels are cut into pieces of at most a quarter of a grid voxel, and each piece's volume goes
    to the voxel that holds its centre; a share may then exceed 1 by what a few pieces hold, since the volume is
    conserved in either case.

    Parameters
    ----------
    lesion : shape (x, y, z), boolean, or real numbers from 0 to 1
    affine : shape (4, 4)
        The lesion's voxel indices to millimetres.
    grid
        The connectome's; its brain mask is not applied here.

    Returns
    -------
    corner : shape (3,)
        The grid voxel that the box begins at.
    shares : shape (x, y, z), float64
        Of a box of grid voxels; beyond it the lesion covers none. Of length 0 where the lesion is outside the grid.
    """
    to_grid = np.linalg.inv(grid.affine) @ affine
    low, high = _bounds(to_grid, lesion.shape)
    corner, end = (np.clip(edge, 0, grid.shape).astype(int) for edge in (np.floor(low), np.ceil(high) + 1))
    to_box = to_grid.copy()
    to_box[:3, 3] -= corner
    axis_of = np.abs(to_grid[:3, :3]).argmax(axis=1)
    shear = to_grid[:3, :3].copy()
    shear[range(3), axis_of] = 0
    shift = np.abs(shear) @ np.array(lesion.shape)
    if set(axis_of) == {0, 1, 2} and shift.max() < AXIS_ALIGNED_TOLERANCE:
        return corner, _weigh_aligned(lesion, to_box, axis_of, end - corner)
    return corner, _weigh_oblique(lesion, to_box, end - corner)


def _weigh_aligned(lesion: Array, to_box: Array, axis_of: Array, shape: Array) -> Array:
    """Apply the overlap of lesion-voxel edges with grid-voxel edges along each axis in turn."""
    centre = (np.array(lesion.shape) - 1) / 2
    overlaps = []
    for axis, lesion_axis in enumerate(axis_of):
        # Any shear below the tolerance is taken at the lesion's centre.
        offset = to_box[axis, 3] + to_box[axis, :3] @ centre - to_box[axis, lesion_axis] * centre[lesion_axis]
        edges = offset + to_box[axis, lesion_axis] * (np.arange(lesion.shape[lesion_axis] + 1) - 0.5)
        edges = edges.round(EDGE_DECIMALS)
        low, high = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
        grid_low = np.arange(shape[axis])[:, np.newaxis] - 0.5
        overlaps.append(np.clip(np.minimum(high, grid_low + 1) - np.maximum(low, grid_low), 0, None))
    along_x, along_y, along_z = overlaps
    # Plane by plane: the whole lesion in float64 would take eight times the memory of its mask.
    planes = np.moveaxis(lesion.transpose(axis_of), 2, 0)
    flat = np.stack([along_x @ plane.astype(float) @ along_y.T for plane in planes])
    return np.moveaxis(np.tensordot(along_z, flat, axes=1), 0, 2)


def _weigh_oblique(lesion: Array, to_box: Array, shape: Array) -> Array:
    """Give each piece's volume, times its voxel's weight, to the grid voxel that holds its centre."""
    n_pieces = np.ceil(np.linalg.norm(to_box[:3, :3], axis=0) / PIECE_WIDTH).astype(int)
    piece_volume = abs(np.linalg.det(to_box[:3, :3])) / n_pieces.prod()
    cuts = (np.indices(n_pieces).reshape(3, -1).T + 0.5) / n_pieces - 0.5
    within_voxel = cuts @ to_box[:3, :3].T
    counts = np.zeros(shape.prod())
    places = np.flatnonzero(lesion)
    weights = lesion.ravel()[places]
    at_a_time = max(1, PIECES_AT_ONCE // len(cuts))
    for start in range(0, len(places), at_a_time):
        voxels = np.stack(np.unravel_index(places[start : start + at_a_time], lesion.shape), axis=1)
        centres = nib.affines.apply_affine(to_box, voxels)[:, np.newaxis] + within_voxel
        nearest = np.rint(centres.reshape(-1, 3)).astype(np.int64)
        inside = np.all((nearest >= 0) & (nearest < shape), axis=1)
        numbers = np.ravel_multi_index(tuple(nearest[inside].T), tuple(shape))
        piece_weights = np.repeat(weights[start : start + at_a_time], len(cuts))[inside]
        counts += np.bincount(numbers, piece_weights, minlength=len(counts))
    return (counts * piece_volume).reshape(shape)
