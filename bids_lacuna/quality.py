"""What a person should look at in a lesion's mask: facts and words, never an exclusion."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_lacuna.text import percent

Array = np.ndarray

LOW_COVERAGE = 0.5
"""Fraction of a lesion inside the connectome's mask, below which it is remarked upon."""

VOLUMES_ML = (0.1, 300.0)
"""Smallest and largest volume that is not remarked upon."""

MANY_PIECES = 50
"""More pieces than this are remarked upon."""

MANY_SINGLE = 10
"""Single voxels, apart from all others, that are remarked upon from this number on."""

FAR_MM = 10.0
"""A single voxel this far from the box around the largest piece is remarked upon, even if it is the only one."""

SAME_PLACE_MM = 0.1
"""Rounding of the position of a mask's box, within which lesions lie at the same place."""

TELLING_VOXELS = 100
"""Smallest number of voxels whose shape two lesions do not share by chance."""

TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner are of one piece."""


@dataclass(frozen=True)
class MaskFacts:
    """Facts about a lesion's mask."""

    volume_ml: float
    n_voxels: int
    n_pieces: int
    n_single: int
    """Pieces of one voxel."""
    farthest_mm: float
    """Distance of the farthest single voxel from the box around the largest piece; 0 if there is none outside it."""
    has_centre_in_brain: bool
    """As from `is_centre_in_brain`."""
    shape: str
    """Hash of the lesion's voxels in its box, from left to right, back to front and bottom to top."""
    mirrored: str
    """The same of its mirror image, from right to left."""
    position_mm: tuple[float, float, float]
    """Centre of the box."""
    voxel_mm: float
    """Edge of a voxel from left to right."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should look at, in a few words each."""
        smallest, largest = VOLUMES_ML
        found = []
        if not smallest <= self.volume_ml <= largest:
            word = f"below {smallest:g}" if self.volume_ml < smallest else f"above {largest:g}"
            found.append(f"volume {self.volume_ml:.3g} mL, {word} mL")
        if self.n_pieces > MANY_PIECES:
            found.append(f"{self.n_pieces} pieces")
        if self.n_single >= MANY_SINGLE:
            found.append(f"{self.n_single} single voxels")
        elif self.farthest_mm > FAR_MM:
            found.append(f"a single voxel {self.farthest_mm:.0f} mm from the rest")
        if not self.has_centre_in_brain:
            found.append("centre of gravity outside the brain")
        return tuple(found)


def examine(box: Array, affine: Array, volume_mm3: float, has_centre_in_brain: bool) -> MaskFacts:
    """Find the facts about a mask.

    Parameters
    ----------
    box : shape (x, y, z), boolean, or real numbers from 0 to 1
        The lesion's bounding box.
    affine : shape (4, 4)
        From the box's voxel indices to positions in mm.
    volume_mm3
        Volume of the lesion.
    has_centre_in_brain
        As from `is_centre_in_brain`.
    """
    labels, n_pieces = ndimage.label(box, TOUCHING)
    sizes = np.bincount(labels.ravel(order="K"))[1:]
    orientation = _find_orientation(np.asarray(affine[:3, :3], float).tobytes())
    from_left = nib.apply_orientation(box, orientation)
    centre = nib.affines.apply_affine(affine, (np.array(box.shape) - 1) / 2)
    x, y, z = (centre / SAME_PLACE_MM).round() * SAME_PLACE_MM
    sizes_mm = nib.affines.voxel_sizes(affine)[np.argsort(orientation[:, 0])]
    return MaskFacts(
        volume_mm3 / 1000,
        int(sizes.sum()),
        n_pieces,
        int((sizes == 1).sum()),
        _measure_farthest(labels, sizes, affine),
        has_centre_in_brain,
        _hash(from_left, sizes_mm),
        _hash(from_left[::-1], sizes_mm),
        (float(x), float(y), float(z)),
        float(sizes_mm[0]),
    )


def _measure_farthest(labels: Array, sizes: Array, affine: Array) -> float:
    """Return how far the farthest single voxel lies from the box around the largest piece, in mm."""
    if (sizes == 1).sum() in (0, len(sizes)):
        return 0.0
    boxes = ndimage.find_objects(labels)
    main = boxes[int(sizes.argmax())]
    low, high = (np.array([getattr(part, end) for part in main]) for end in ("start", "stop"))
    single = np.array([[part.start for part in boxes[index]] for index in np.flatnonzero(sizes == 1)])
    apart = np.maximum(np.maximum(low - single, single - (high - 1)), 0)
    return float(np.linalg.norm(apart * nib.affines.voxel_sizes(affine), axis=1).max())


def _hash(box: Array, sizes_mm: Array) -> str:
    values = np.packbits(box) if box.dtype == bool else np.ascontiguousarray(box)
    return hashlib.sha256(f"{box.shape} {sizes_mm.round(3).tolist()}".encode() + values.tobytes()).hexdigest()


@lru_cache(maxsize=64)
def _find_orientation(axes: bytes) -> Array:
    """Return nibabel's orientation of axes, (3, 3) in float64; the masks of a dataset share few."""
    affine = np.eye(4)
    affine[:3, :3] = np.frombuffer(axes).reshape(3, 3)
    return nib.io_orientation(affine)


def is_centre_in_brain(first: Array, weights: Array, brain: Array) -> bool:
    """Return whether a lesion's centre of gravity touches the brain, or has some on both sides along each axis.

    White matter and ventricles have, where a connectome's mask is of grey matter alone.

    Parameters
    ----------
    first : shape (3,)
        Indices of the box's first voxel in the grid.
    weights : shape (x, y, z)
        Weights of the lesion in a box of grid voxels.
    brain : shape (x, y, z), boolean
        Voxels of the brain, on the whole grid.
    """
    if not weights.any():
        return False
    total = weights.sum()
    along = [weights.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    centre = [
        round(float(start + values @ np.arange(len(values)) / total))
        for start, values in zip(first, along, strict=True)
    ]
    if brain[tuple(slice(max(index - 1, 0), index + 2) for index in centre)].any():
        return True
    for axis, index in enumerate(centre):
        across = centre[:axis] + centre[axis + 1 :]
        row = np.moveaxis(brain, axis, -1)[tuple(across)]
        if not (row[: index + 1].any() and row[index:].any()):
            return False
    return True


def describe_coverage(coverage: float | None) -> list[str]:
    """Describe a low coverage in a few words; nothing to say of another, or of an unknown one."""
    return [f"only {percent(coverage)} covered"] if coverage is not None and coverage < LOW_COVERAGE else []


def find_repeats(participants: Sequence[str], names: Sequence[str], facts: Sequence[MaskFacts]) -> list[list[str]]:
    """Find lesions that another participant has to the voxel: at the same place, mirrored, or shifted.

    Parameters
    ----------
    participants, names, facts
        Participant, name and facts of each lesion.

    Returns
    -------
    list of lists of str
        For each lesion, a few words about each kind of repeat, which name the first other lesion.
    """
    by_shape = defaultdict(list)
    for index, each in enumerate(facts):
        by_shape[each.shape].append(index)
    found: list[list[str]] = []
    for index, each in enumerate(facts):
        alike = [other for other in by_shape[each.shape] if participants[other] != participants[index]]
        same = [other for other in alike if _is_at(facts[other], each.position_mm)]
        x, *yz = each.position_mm
        mirrored = [
            other
            for other in by_shape[each.mirrored]
            # The middle of an image may lie between voxels.
            if participants[other] != participants[index]
            and other not in same
            and _is_at(facts[other], (-x, *yz), each.voxel_mm)
        ]
        shifted = [other for other in alike if other not in same and other not in mirrored]
        kinds = {"same voxels as": same, "mirror image of": mirrored}
        if each.n_voxels >= TELLING_VOXELS:
            kinds["same shape, shifted, as"] = shifted
        found.append(
            [
                f"{what} {names[others[0]]}" + (f" and {len(others) - 1} more" if len(others) > 1 else "")
                for what, others in kinds.items()
                if others
            ]
        )
    return found


def _is_at(facts: MaskFacts, position_mm: Sequence[float], apart_mm: float = 0.0) -> bool:
    """Return whether a lesion lies at a position, or so far apart from it from left to right."""
    x, y, z = (abs(ours - other) for ours, other in zip(facts.position_mm, position_mm, strict=True))
    return max(y, z) <= SAME_PLACE_MM and x <= apart_mm + SAME_PLACE_MM
