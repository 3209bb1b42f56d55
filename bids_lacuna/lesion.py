"""Lesions: masks on disk, and their weights on the connectome's grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from bids_lacuna import transforms
from bids_lacuna.files import FileState, check_unchanged
from bids_lacuna.grid import Grid, shift
from bids_lacuna.images import open_image
from bids_lacuna.lesion_masks import check_header, describe_disagreement, read_mask, region
from bids_lacuna.quality import MaskFacts, examine, is_centre_in_brain
from bids_lacuna.spaces import describe_mismatch
from bids_lacuna.text import percent
from bids_lacuna.transforms import TransformChain
from bids_lacuna.weights import LesionWeights, Weighting, bounds, make_spheres, weigh

logger = logging.getLogger(__name__)

Array = np.ndarray

SEED_RADIUS_MM = 6.0
"""Radius of a seed around a coordinate."""

ONE_SIDED = 0.95
"""Smallest fraction of a lesion's volume on one side of the brain for that side to be named."""

VOLUME_RATIOS = (0.5, 2)
"""Range of the ratio of a lesion's volume after its transforms to that before, outside which a warning is logged."""

LARGE_LESION = 0.5
"""Fraction of the connectome's brain mask that a lesion covers, above which a warning is logged."""


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
    transform_states: Mapping[Path, FileState] = field(default_factory=dict)
    """State of each file of the transforms when they were read."""
    outside: LesionWeights | None = None
    """After transforms, weights of the voxels outside the connectome's mask, by their indices in the volume in
    C order, while the lesion's batch is mapped; otherwise None."""
    facts: MaskFacts | None = None
    """Facts about the mask that a person should look at, if it was examined."""
    is_seed: bool = False
    """Whether it is a seed, of which nobody says that it is a lesion."""

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

    @classmethod
    def from_sphere(
        cls,
        center_mm: Sequence[float] | Sequence[Sequence[float]],
        radius_mm: float | Sequence[float] = SEED_RADIUS_MM,
        metadata: Mapping[str, Any] | None = None,
        transform: TransformChain | None = None,
    ) -> LesionData:
        """Make a seed from a sphere, or from several, whose union is one seed.

        Parameters
        ----------
        center_mm
            x, y and z of the centre in mm, or of several centres.
        radius_mm
            Radius of all spheres, or of each.
        metadata, transform
            As in `from_nifti`.

        Raises
        ------
        ValueError
            A centre has no x, y and z, there are not as many radii, a number is not finite, a radius is not positive,
            or small spheres lie too far apart for one mask.
        """
        return cls(draw_spheres(center_mm, radius_mm), dict(metadata or {}), transform=transform, is_seed=True)

    @property
    def loaded_weights(self) -> LesionWeights:
        """Its weights on the connectome's grid; raises ValueError for a lesion that is not loaded."""
        if self.weights is None:
            raise ValueError(f"{self.name} has no weights yet: load it first, as load_lesion does")
        return self.weights

    @property
    def kind(self) -> str:
        """What to call it in messages."""
        return "seed" if self.is_seed else "lesion"

    @property
    def name(self) -> str:
        """Name of this lesion in messages."""
        if isinstance(self.mask, Path):
            return self.mask.name
        return str(self.metadata.get("subject_id", f"a {self.kind} in memory"))


def draw_spheres(
    center_mm: Sequence[float] | Sequence[Sequence[float]], radius_mm: float | Sequence[float]
) -> nib.Nifti1Image:
    """Draw the mask of spheres: see `LesionData.from_sphere`."""
    centres, radii = np.atleast_2d(np.asarray(center_mm, float)), np.asarray(radius_mm, float)
    if centres.shape[1:] != (3,) or radii.shape not in ((), (len(centres),)):
        raise ValueError(
            f"spheres cannot be drawn from centres of shape {np.shape(center_mm)} and radii of shape {radii.shape}: "
            "give x, y and z of each centre, and one radius for all or one for each"
        )
    mask, affine = make_spheres(centres, np.broadcast_to(radii, len(centres)))
    return nib.Nifti1Image(mask.view(np.uint8), affine)


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
    examined: bool = False,
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
    examined
        Whether to find facts about the mask that a person should look at, too.

    Returns
    -------
    LesionData
        A copy with `weights`, `volume_mm3` and `coverage`, and after transforms `template_volume_mm3` and `outside`.

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
    affine = shift(image.affine, corner)
    volume_mm3 = box.sum(dtype=float) * abs(np.linalg.det(affine[:3, :3]))
    states = {file.path: FileState.of(file.path) for file in chain.files} if chain else {}
    if chain:
        first, weights, whole_mm3 = transforms.resampling.weigh_through(chain, box, affine, grid)
        _warn_of_changed_volume(lesion.name, whole_mm3 / volume_mm3)
    else:
        (first, weights), whole_mm3 = weigh(box, affine, grid), volume_mm3
    facts = None
    if examined:
        in_brain = is_centre_in_brain(first, weights, grid.mask if brain is None else brain)
        facts = examine(box, affine, volume_mm3, in_brain)
    indices = grid.voxel_indices[region(first, weights.shape)]
    outside = _select(weights * (indices < 0), first, grid, weighting) if chain else None
    covered = (weights > 0) & (indices >= 0)
    voxels, weights = indices[covered], weights[covered]
    _warn_of_large_lesion(lesion.name, voxels, grid, brain)
    coverage = float(weights.sum() * grid.voxel_volume_mm3 / whole_mm3) if whole_mm3 else 0.0
    if weighting == "binary":
        voxels = voxels[weights >= 0.5]
        weights = np.ones(len(voxels))
    if not len(voxels):
        raise LesionOutsideGrid(_outside(lesion, coverage, grid, affine, box.shape))
    return replace(
        lesion,
        weights=LesionWeights(voxels, weights.astype(np.float32)),
        volume_mm3=float(volume_mm3),
        coverage=min(coverage, 1.0),
        state=state,
        transform_states=states,
        template_volume_mm3=whole_mm3 if chain else None,
        outside=outside,
        facts=facts,
    )


def _warn_of_large_lesion(name: str, voxels: Array, grid: Grid, brain: Array | None) -> None:
    """Warn if a lesion covers much of the brain: see `load_lesion`."""
    n_covered, n_brain = (
        (len(voxels), grid.n_voxels) if brain is None else (int(brain.reshape(-1)[voxels].sum()), int(brain.sum()))
    )
    if n_covered > LARGE_LESION * n_brain:
        logger.warning(
            "%s: the lesion covers %s of the connectome's brain mask: check that it is not a brain mask or inverted",
            name,
            percent(n_covered / n_brain),
        )


def _select(weights: Array, first: Array, grid: Grid, weighting: Weighting) -> LesionWeights:
    """Return the weights of a box, by the indices of its voxels in the volume."""
    kept = weights >= 0.5 if weighting == "binary" else weights > 0
    voxels = np.ravel_multi_index(tuple(np.argwhere(kept).T + first[:, np.newaxis]), grid.shape)
    values = np.ones(len(voxels)) if weighting == "binary" else weights[kept]
    return LesionWeights(voxels.astype(np.int32), values.astype(np.float32))


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


def _outside(lesion: LesionData, coverage: float, grid: Grid, affine: Array, shape: tuple[int, ...]) -> str:
    if coverage > 0:
        return (
            f"the {lesion.kind} covers no connectome voxel by at least half, as binary weighting requires: use "
            "volume weighting, which keeps small ones"
        )
    if lesion.transform:
        names = ", ".join(file.path.name for file in lesion.transform.files)
        return (
            f"after its transforms ({names}), the {lesion.kind} lies outside the connectome's brain mask: check that "
            "they are this participant's, and resample images in the direction that their names say"
        )
    lesion_low, lesion_high = _extent(affine, shape)
    brain_low, brain_high = _extent(grid.affine, grid.shape)
    what = (
        "that its position is in millimetres, not in voxels or centimetres, its"
        if lesion.is_seed
        else "the mask's affine and"
    )
    return (
        f"the {lesion.kind} lies outside the connectome's brain mask: it spans {lesion_low} to {lesion_high} mm, the "
        f"connectome's volume {brain_low} to {brain_high} mm; check {what} template space, and "
        "whether the connectome covers that part of the brain"
    )


def _extent(affine: Array, shape: tuple[int, ...]) -> tuple[str, str]:
    low, high = ("(" + ", ".join(f"{x:.0f}" for x in edge) + ")" for edge in bounds(affine, shape))
    return low, high
