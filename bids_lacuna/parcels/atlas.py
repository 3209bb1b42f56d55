"""Atlases: images of labels or of probabilities, with the names of their regions."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import SpatialImage
from scipy import sparse

from bids_lacuna.bids import read_space
from bids_lacuna.files import hash_file
from bids_lacuna.images import LARGEST_VOLUME, has_usable_affine, open_image, read_slabs
from bids_lacuna.parcels.labels import Region, read_regions

logger = logging.getLogger(__name__)

Array = np.ndarray

IMAGE_ENDINGS = (".nii.gz", ".nii")

NO_NAME = re.compile(r"(tpl|cohort|space|res|den|desc|seg|scale)-.*|dseg|probseg")
"""Parts of a file's name that do not name the atlas."""

PROBABILITY_TOLERANCE = 1e-3
"""Tolerance below 0 and above 1 for interpolated and rounded probabilities, and for their sum."""

N_PARCELS = (re.compile(r"(?P<scale>\d+)Parcels(?P<seg>\w+)"), re.compile(r"parcels(?P<scale>\d+)(?P<seg>\w+)"))
"""The number of parcels in a `desc`, which BIDS calls `scale`: in TemplateFlow's names, and in Lacuna's."""


@dataclass(frozen=True)
class AtlasFile:
    """An atlas on disk, by the names of its files."""

    image: Path
    table: Path | None
    """Table of its regions; None if there is none beside the image."""
    name: str
    """Letters and digits: the entity `atlas` in file names."""
    seg: str = ""
    scale: str = ""
    space: str | None = None
    """Template space by its name or its sidecar; None if neither says it."""
    software: str = ""
    """Where it comes from, as in "TemplateFlow"; empty for a file that the user named."""

    @classmethod
    def of(cls, image: Path, software: str = "") -> AtlasFile:
        """Read what an image's name says, and what lies beside it; raises FileNotFoundError or ValueError."""
        if not image.is_file():
            raise FileNotFoundError(f"there is no atlas {image}: check the path")
        if not image.name.lower().endswith(IMAGE_ENDINGS):
            raise ValueError(
                f"{image} is no NIfTI image by its name, but an atlas is one: give a .nii or .nii.gz file"
            )
        entities = entities_of(image.name)
        stem = stem_of(image)
        desc = entities.get("desc", "")
        parts = next((found.groupdict() for each in N_PARCELS if (found := each.fullmatch(desc))), {"seg": desc})
        seg, scale = (entities.get(key, parts.get(key, "")) for key in ("seg", "scale"))
        name = "".join(part for part in stem.split("_") if not NO_NAME.fullmatch(part))
        name, seg, scale = (_as_label(label) for label in (entities.get("atlas") or name or stem, seg, scale))
        return cls(image, find_table(image), name or "atlas", seg, scale, read_space(image), software)

    @property
    def entities(self) -> dict[str, str]:
        """The entities of the atlas in file names."""
        found = {"atlas": self.name, "seg": self.seg, "scale": self.scale}
        return {entity: label for entity, label in found.items() if label}

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the image, and of the table if there is one."""
        return " ".join(hash_file(path) for path in (self.image, self.table) if path)


def entities_of(name: str) -> dict[str, str]:
    """Return the entities in the name of a file."""
    return dict(part.split("-", 1) for part in name.partition(".")[0].split("_") if "-" in part)


def stem_of(image: Path) -> str:
    """Return the name of an image without its ending."""
    return re.sub(r"\.nii(\.gz)?$", "", image.name, flags=re.IGNORECASE)


def find_table(image: Path) -> Path | None:
    """Find the table of an atlas' regions: beside the image, with its name, or with some of its entities."""
    stem = stem_of(image)
    for ending in (".tsv", ".txt", "_labels.tsv", "_labels.txt"):
        if (path := image.with_name(stem + ending)).is_file():
            return path
    ours = entities_of(image.name).items()
    suffix = stem.rpartition("_")[2]
    fitting = {
        path: len(theirs)
        for path in sorted(image.parent.glob(f"*_{suffix}.tsv"))
        if (theirs := entities_of(path.name)) and theirs.items() <= ours
    }
    return max(fitting, key=fitting.__getitem__) if fitting else None


def _as_label(text: str) -> str:
    """Return a text as a BIDS label, which has letters and digits only."""
    return re.sub(r"[^A-Za-z0-9]", "", text)


@dataclass(frozen=True, eq=False)
class Atlas:
    """The regions of an atlas as weights of its voxels."""

    regions: tuple[Region, ...]
    """Sorted by index."""
    affine: Array
    """Shape (4, 4): voxel indices to millimetres."""
    shape: tuple[int, int, int]
    weights: sparse.csr_matrix
    """Shape (n_voxels, n_regions), float32, voxels in C order: 1 where a voxel has a region's label, or the
    probability of a region. A voxel's weights add up to at most 1."""
    is_probabilistic: bool = False

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @cached_property
    def volumes_mm3(self) -> Array:
        """Volume of each region on the atlas' own grid, shape (n_regions,)."""
        return np.asarray(self.weights.sum(axis=0, dtype=float)).ravel() * self.voxel_volume_mm3


def read_atlas(file: AtlasFile, *, quietly: bool = False) -> Atlas:
    """Read an atlas.

    Parameters
    ----------
    file
        Its files.
    quietly
        Whether to leave out warnings, for an atlas that has been read before.

    Raises
    ------
    ValueError
        The image is no atlas, or the table is no table of its regions; the message says what is needed.
    OSError
        A file cannot be read.
    """
    regions = read_regions(file.table) if file.table else {}
    level = logging.DEBUG if quietly else logging.WARNING
    if file.table is None:
        logger.log(
            level,
            "%s has no table of its regions beside it, so that they have numbers for names: put one there, %s.tsv "
            "with the columns index and label",
            file.image,
            stem_of(file.image),
        )
    return make_atlas(open_image(file.image, "atlas"), regions, str(file.image), level)


def make_atlas(image: SpatialImage, regions: Mapping[int, Region], name: str, level: int = logging.WARNING) -> Atlas:
    """Make an atlas of an image.

    Parameters
    ----------
    image
        3D: whole numbers from 0 on, whatever the type. 4D: a map of the probability of each region.
    regions
        Regions by index; others get their index as name.
    name
        What messages call the image.
    level
        Level of messages about what is unusual.
    """
    shape = _check_header(image, name)
    is_probabilistic = prod(image.shape[3:]) > 1
    if is_probabilistic:
        voxels, indices, weights = _read_probabilities(image, shape, name)
        regions = _number_maps(regions, image.shape[3])
    else:
        regions = {index: region for index, region in regions.items() if index}
        voxels, indices = _read_labels(image, shape, name)
        weights = np.ones(len(voxels), np.float32)
    if not len(voxels):
        raise ValueError(f"{name} is empty: all its voxels are 0, but an atlas has labels; check the file")
    found = set(np.unique(indices).tolist())
    _compare_with_table(found, regions, name, level)
    known = [regions.get(index) or Region(index, str(index)) for index in sorted(found | regions.keys())]
    columns = np.searchsorted([region.index for region in known], indices)
    matrix = sparse.csr_matrix((weights, (voxels, columns)), shape=(prod(shape), len(known)))
    return Atlas(tuple(known), image.affine, shape, _limit(matrix, name, level), is_probabilistic)


def _compare_with_table(found: Collection[int], regions: Mapping[int, Region], name: str, level: int) -> None:
    """Log which labels have no row in the table, and which rows no voxel."""
    if regions and (without := sorted(set(found) - regions.keys())):
        logger.log(
            level,
            "%s: labels without a row in its table get their numbers for names: %d, for instance %d",
            name,
            len(without),
            without[0],
        )
    if empty := sorted(regions.keys() - set(found)):
        logger.log(
            min(level, logging.INFO),
            "%s: rows of its table without a voxel: %d, for instance %s",
            name,
            len(empty),
            regions[empty[0]].name,
        )


def _check_header(image: SpatialImage, name: str) -> tuple[int, int, int]:
    """Return the shape of an atlas' volume; raise ValueError for an image that cannot be one."""
    shape = image.shape
    if image.get_data_dtype().kind not in "biuf" or not len(shape) >= 3 or any(n != 1 for n in shape[4:]):
        raise ValueError(
            f"{name} has {len(shape)} dimensions {shape} of {image.get_data_dtype()}, but an atlas is a 3D image of "
            "labels or a 4D image of probabilities: save it as one"
        )
    if not has_usable_affine(image):
        raise ValueError(
            f"{name} has no usable affine, so its voxels have no positions: save it with the affine of its template"
        )
    if prod(shape[:3]) > LARGEST_VOLUME:
        raise ValueError(
            f"{name} has volumes of {prod(shape[:3])} voxels, the limit is {LARGEST_VOLUME}: resample it to 0.5 mm "
            "or coarser"
        )
    return shape[0], shape[1], shape[2]


def _read_labels(image: SpatialImage, shape: tuple[int, int, int], name: str) -> tuple[Array, Array]:
    """Return the voxels with a label, in C order, and their labels."""
    voxels, labels, first = [], [], 0
    for slab in read_slabs(image, f"atlas {name}"):
        where = np.nonzero(np.nan_to_num(slab))
        values = slab[where]
        rounded = np.rint(values)
        # The condition is negated so that infinity counts.
        wrong = values[(values < 0) | ~(np.abs(values - rounded) <= PROBABILITY_TOLERANCE)]
        if len(wrong):
            raise ValueError(
                f"{name} has the value {wrong[0]:g}, but labels are whole numbers from 0 on: resample labels by "
                "nearest neighbour only; maps of probabilities go in one 4D image"
            )
        voxels.append(_c_order(where, first, shape))
        labels.append(rounded.astype(np.int64))
        first += len(slab)
    return np.concatenate(voxels), np.concatenate(labels)


def _read_probabilities(image: SpatialImage, shape: tuple[int, int, int], name: str) -> tuple[Array, Array, Array]:
    """Return voxels in C order, numbers of maps from 1 on, and probabilities above 0."""
    voxels, maps, weights, first = [], [], [], 0
    n_z, stored = shape[2], image.dataobj
    as_long = (*shape[:2], n_z * image.shape[3])
    # One map after another in the file: as slices of one long volume, each is read once.
    long = stored.reshape(as_long) if isinstance(stored, ArrayProxy) else np.reshape(stored, as_long, order="F")
    for slab in read_slabs(nib.Nifti1Image(long, image.affine), f"atlas {name}"):
        values = np.nan_to_num(slab)
        low, high = values.min(), values.max()
        if low < -PROBABILITY_TOLERANCE or high > 1 + PROBABILITY_TOLERANCE:
            raise ValueError(
                f"{name} has values from {low:g} to {high:g}, but a 4D atlas has a map of probabilities from 0 to 1 "
                "of each region: divide percentages by 100"
            )
        z, y, x = np.nonzero(values > 0)
        voxels.append(_c_order(((z + first) % n_z, y, x), 0, shape))
        maps.append((z + first) // n_z + 1)
        weights.append(values[z, y, x].astype(np.float32))
        first += len(slab)
    return np.concatenate(voxels), np.concatenate(maps), np.concatenate(weights)


def _c_order(where: tuple[Array, ...], first: int, shape: tuple[int, int, int]) -> Array:
    """Return the index in C order of voxels of a slab, whose axes are z, y, x and whose slices begin at `first`."""
    z, y, x = where
    return np.ravel_multi_index((x, y, z + first), shape)


def _number_maps(regions: Mapping[int, Region], n_maps: int) -> dict[int, Region]:
    """Return the regions of a 4D image's maps by their number from 1 on; some tables count them from 0."""
    first = 0 if sorted(regions) == list(range(n_maps)) else 1
    named = {index + 1 - first: replace(region, index=index + 1 - first) for index, region in regions.items()}
    if wrong := sorted(named.keys() - range(1, n_maps + 1)):
        raise ValueError(
            f"a 4D atlas has {n_maps} maps, but its table has the index {wrong[-1]}: give each map a row, from 1 on"
        )
    return named


def _limit(weights: sparse.csr_matrix, name: str, level: int) -> sparse.csr_matrix:
    """Divide the weights of voxels whose weights add up to more than 1 by their sum."""
    sums = np.asarray(weights.sum(axis=1, dtype=float)).ravel()
    if sums.max() <= 1 + PROBABILITY_TOLERANCE:
        return weights
    logger.log(
        level,
        "%s: probabilities add up to more than 1 in %d voxels, up to %.3g: there, they are divided by their sum",
        name,
        int((sums > 1 + PROBABILITY_TOLERANCE).sum()),
        sums.max(),
    )
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(sums, 1)) @ weights).astype(np.float32)
