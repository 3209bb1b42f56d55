"""Maps by the regions of an atlas, for users of Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from nibabel.spatialimages import SpatialImage

from bids_lacuna.bids import read_space
from bids_lacuna.grid import Grid
from bids_lacuna.images import has_usable_affine, open_image, read_volume
from bids_lacuna.parcels.atlas import Atlas, make_atlas, read_atlas
from bids_lacuna.parcels.averages import place_atlas
from bids_lacuna.parcels.finding import find_atlas
from bids_lacuna.parcels.labels import Region, side_in
from bids_lacuna.spaces import DEFAULT_SPACE
from bids_lacuna.transforms import TransformChain

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Parcellation:
    """A map by the regions of an atlas; each array has one element for each region."""

    indices: Array
    """Label of each region in the atlas, ascending."""
    labels: tuple[str, ...]
    """Name of each region."""
    hemispheres: tuple[str, ...]
    """`L` or `R`; empty where it is not known."""
    means: Array
    """Mean of the map, each voxel weighted by the volume of the region in it; NaN for a region without a voxel."""
    n_voxels: Array
    """Defined voxels of the map that lie in the region, at least in part."""
    volumes_mm3: Array
    """Volume of the region."""
    covered_mm3: Array
    """Volume of the region in these voxels."""


def parcellate(
    image: str | PathLike[str] | SpatialImage,
    atlas: str | PathLike[str] | SpatialImage,
    *,
    labels: Mapping[int, str] | None = None,
    transform: TransformChain | None = None,
    download: bool = True,
) -> Parcellation:
    """Average a map over the regions of an atlas, as the program does for `--atlas`.

    On the atlas' own grid, the means are those of nilearn's `NiftiLabelsMasker`; on other grids, they are weighted by
    the volume of each voxel in each region, and nothing is resampled.

    Parameters
    ----------
    image
        A 3D map; NaN is no value.
    atlas
        An image of labels, or a 4D one of probabilities; with a file, its table is looked up beside it. Or a folder,
        or a name in TemplateFlow, such as `Schaefer2018:400Parcels7Networks`.
    labels
        Names of the regions by index, for an atlas in memory.
    transform
        Transforms from the atlas' space to the map's.
    download
        Whether TemplateFlow's client may download an atlas.

    Raises
    ------
    ValueError
        The map or the atlas is none, or they are in different spaces and there is no transform.
    OSError
        A file is missing or cannot be read.
    """
    space = None if isinstance(image, SpatialImage) else read_space(Path(image))
    regions, atlas_space = _read(atlas, labels or {}, space or DEFAULT_SPACE, download=download)
    if not transform and space and atlas_space and space != atlas_space:
        raise ValueError(
            f"the map is in space {space}, the atlas in {atlas_space}: give an atlas in {space}, or the transform "
            "from there"
        )
    opened = image if isinstance(image, SpatialImage) else open_image(Path(image), "map")
    if len(opened.shape) < 3 or any(n != 1 for n in opened.shape[3:]) or not has_usable_affine(opened):
        raise ValueError(
            f"the map has the shape {opened.shape}, or no usable affine: a 3D image with one is needed, such as one "
            "volume of it"
        )
    values = read_volume(opened, "map")
    grid = Grid(np.isfinite(values), opened.affine)
    found = place_atlas(regions, grid, transform)
    averages = found.average(grid.vector(values))
    return Parcellation(
        np.array([region.index for region in regions.regions]),
        tuple(region.name for region in regions.regions),
        tuple(region.hemisphere for region in regions.regions),
        averages.means[:-1],
        averages.n_voxels[:-1],
        found.volumes_mm3,
        averages.covered_mm3[:-1],
    )


def _read(
    atlas: str | PathLike[str] | SpatialImage, labels: Mapping[int, str], space: str, *, download: bool
) -> tuple[Atlas, str | None]:
    """Read an atlas, and return it with its space, if that is known."""
    if isinstance(atlas, SpatialImage):
        regions = {index: Region(index, name, side_in(name)) for index, name in labels.items()}
        return make_atlas(atlas, regions, "the atlas"), None
    file = find_atlas(str(atlas), space, download=download)
    return read_atlas(file), file.space
