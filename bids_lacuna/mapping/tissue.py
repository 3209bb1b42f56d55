"""Grey and white matter on a connectome's grid: from nilearn's MNI152 templates, or from a user's maps."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_closing

from bids_lacuna.grid import Grid, shift
from bids_lacuna.images import has_usable_affine, open_image, read_volume
from bids_lacuna.lesion_masks import PROBABILITY_TOLERANCE, region
from bids_lacuna.mapping.places import Tissue
from bids_lacuna.text import percent
from bids_lacuna.weights import weigh

Array = np.ndarray

TEMPLATES = (
    "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
    "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
)
"""nilearn's templates of grey and white matter."""

TEMPLATE_THRESHOLD, CLOSINGS = 0.2, 2
"""Fraction of a template's largest value above which a voxel is in its mask, and iterations of the closing that
follows: nilearn's defaults."""

LEAST_COVERAGE = 0.5
"""Smallest fraction of the brain mask that a user's map covers: one that covers less is in another space."""


def load_tissue(grid: Grid, space: str, paths: tuple[Path, Path] | None = None) -> Tissue:
    """Read maps of grey and white matter, and compute the fraction of each voxel of a grid in them.

    Parameters
    ----------
    grid
        Grid of the connectome.
    space
        Template space of the connectome.
    paths
        Masks or probability maps of grey and of white matter in this space, on any grid; by default the masks that
        nilearn makes from its MNI152 templates.

    Raises
    ------
    ValueError
        A map is no map of fractions, it lies elsewhere, or the space needs maps from the user.
    OSError
        A map cannot be read.
    """
    if paths is None and not space.startswith("MNI152"):
        raise ValueError(
            f"the connectome is in space {space}, but this program has tissue maps for MNI152 only: give maps of "
            "grey and of white matter in that space with --tissue-maps"
        )
    maps = [_read_map(path, grid) for path in paths] if paths else [_read_template(name) for name in TEMPLATES]
    return Tissue(*(_resample(values, affine, grid) for values, affine in maps))


@lru_cache(maxsize=len(TEMPLATES))
def _read_template(name: str) -> tuple[Array, Array]:
    """Make a mask from a template as `nilearn.datasets.load_mni152_gm_mask` does, without importing nilearn."""
    package = find_spec("nilearn")
    folders = package.submodule_search_locations if package else None
    path = Path(next(iter(folders or ["nilearn"]))) / "datasets" / "data" / name
    image = open_image(path, "template")
    values = read_volume(image, "template").astype(np.float32)
    mask = binary_closing(values / values.max() > TEMPLATE_THRESHOLD, iterations=CLOSINGS)
    return mask, image.affine


def _read_map(path: Path, grid: Grid) -> tuple[Array, Array]:
    image = open_image(path, "tissue map")
    if len(image.shape) != 3 or not has_usable_affine(image):
        raise ValueError(
            f"{path} has {len(image.shape)} dimensions, or no usable affine, but a tissue map is a 3D image in the "
            "connectome's space: save it as one"
        )
    values = read_volume(image, "tissue map").astype(np.float32)
    low, high = values.min(), values.max()
    # The condition is negated so that NaN raises.
    if not (low >= -PROBABILITY_TOLERANCE and high <= 1 + PROBABILITY_TOLERANCE):
        raise ValueError(
            f"{path} has values from {low:g} to {high:g}, but a tissue map has fractions from 0 to 1: divide "
            "percentages by 100, and replace NaN by 0"
        )
    indices = nib.affines.apply_affine(np.linalg.inv(image.affine) @ grid.affine, np.argwhere(grid.mask))
    coverage = np.all((indices > -0.5) & (indices < np.array(values.shape) - 0.5), axis=1).mean()
    if coverage < LEAST_COVERAGE:
        raise ValueError(
            f"{path} covers {percent(coverage)} of the connectome's brain mask, but a tissue map is in the "
            "connectome's space and covers the brain: check its affine, or give another one"
        )
    return np.clip(values, 0, 1), image.affine


def _resample(values: Array, affine: Array, grid: Grid) -> Array:
    """Average a map over each voxel of a grid: shape (x, y, z), 0 outside the map."""
    filled = [np.flatnonzero(values.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(filled[0]):
        return np.zeros(grid.shape)
    low = [indices[0] for indices in filled]
    box = values[tuple(slice(indices[0], indices[-1] + 1) for indices in filled)]
    corner, weights = weigh(box, shift(affine, low), grid)
    fractions = np.zeros(grid.shape)
    fractions[region(corner, weights.shape)] = weights
    return np.minimum(fractions, 1)
