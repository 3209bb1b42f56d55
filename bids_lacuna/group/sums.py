"""The arithmetic of a group: sums over lesions, correlations between their maps, their order and outliers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from bids_lacuna.grid import Grid
from bids_lacuna.group.cohort import UnfitLesions
from bids_lacuna.images import open_image, read_volume
from bids_lacuna.lesion import name_side
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.weights import LesionWeights

Array = np.ndarray

OUTLIER_RULE = (
    "The Fisher z of the r-map's spatial correlation with the group mean is below Q1 - 1.5 x IQR of the group's "
    "(Tukey's lower fence)"
)
"""Definition of an outlier, in words."""

CLUSTERING = "Average linkage of the distances 1 - r"
"""Method that orders the lesions in the similarity matrix, in words."""

BLOCK_BYTES = 2**30
"""Default size of a block of r-maps that is held in memory to be correlated with the others."""

MAPS_AT_A_TIME = 16
"""Number of maps that are correlated with a block at a time: with one, the whole block would be read for each map."""


@dataclass
class RunningMean:
    """Voxelwise mean of the lesions' maps over the lesions where they are defined."""

    total: Array
    """Shape (x, y, z): sum of the defined values."""
    n: Array
    """Shape (x, y, z): number of defined values."""

    def add(self, values: Array) -> None:
        """Add one lesion's map."""
        defined = np.isfinite(values)
        self.total += np.where(defined, values, 0)
        self.n += defined

    @property
    def values(self) -> Array:
        """Mean, float32; NaN where no lesion's map is defined."""
        with np.errstate(invalid="ignore"):
            return (self.total / self.n).astype(np.float32)


class GroupSums:
    """Sums over lesions: a few volumes, whatever the number of lesions."""

    def __init__(self, shape: tuple[int, ...], thresholds: Sequence[float]) -> None:
        self.lesions = np.zeros(shape)
        # In the order of the files: x varies fastest.
        self.mean = {
            stat: RunningMean(np.zeros(shape, order="F"), np.zeros(shape, np.int32, order="F")) for stat in ("r", "z")
        }
        self.n_t = np.zeros(shape, np.int32, order="F")
        self.above, self.below = (
            {threshold: np.zeros(shape, np.int32, order="F") for threshold in thresholds} for _ in range(2)
        )

    def add(self, weights: LesionWeights, maps: Mapping[str, Array]) -> None:
        """Add one lesion, with its r-, z- and t-map."""
        # No voxel occurs twice in a lesion.
        self.lesions.reshape(-1)[weights.voxels] += weights.weights
        for stat, mean in self.mean.items():
            mean.add(maps[stat])
        self.n_t += np.isfinite(maps["t"])
        for threshold in self.above:
            self.above[threshold] += maps["t"] > threshold
            self.below[threshold] += maps["t"] < -threshold


def find_side(weights: LesionWeights, grid: Grid) -> str:
    """Return the hemisphere of a lesion, by world coordinates: left, right or both."""
    voxels = np.stack(np.unravel_index(weights.voxels, grid.shape), axis=1)
    x = nib.affines.apply_affine(grid.affine, voxels)[:, 0].round(3)
    return name_side(weights.weights[x < 0].sum(), weights.weights[x > 0].sum())


def find_peak(stat: str, values: Array, grid: Grid) -> dict[str, float]:
    """Find the value farthest from 0 and its position in mm; NaN if no value is defined."""
    names = [f"peak_{stat}", *(f"peak_{stat}_{axis}" for axis in "xyz")]
    if not np.isfinite(values).any():
        return dict.fromkeys(names, np.nan)
    voxel = np.unravel_index(np.nanargmax(np.abs(values)), values.shape)
    position = nib.affines.apply_affine(grid.affine, voxel)
    return dict(zip(names, [float(values[voxel]), *position.tolist()], strict=True))


def correlate_maps(
    paths: Sequence[Path], common: Array, block_bytes: int = BLOCK_BYTES, show_progress: bool = True
) -> tuple[Array, Array]:
    """Correlate maps with each other and with their mean, over the voxels that are defined in all of them.

    A block of maps is held in memory and correlated with all later maps, which are read once per block.

    Parameters
    ----------
    paths
        Paths of n maps.
    common : shape (x, y, z), boolean
        Voxels that are defined in all maps.
    block_bytes
        Maximum size of a block, at least one map.
    show_progress
        As in `summarize_group`.

    Returns
    -------
    similarity : shape (n, n), float64
        Pearson r; exactly 1 on the diagonal.
    with_mean : shape (n,)
        Pearson r of each map with the mean of all maps.

    Raises
    ------
    UnfitLesions
        A map has no variance over the common voxels, or there are fewer than two of them.
    """
    n = len(paths)
    similarity, norms = np.ones((n, n)), np.ones(n)
    blocks = list(_slices(0, n, max(1, block_bytes // (4 * max(1, int(common.sum()))))))
    n_reads = sum(n - block.start for block in blocks)
    with Progress(n_reads, "correlating maps", "map", shown=show_progress) as progress:
        for block in blocks:
            maps, norms[block] = _standardize(paths[block], common, progress)
            similarity[block, block] = maps @ maps.T
            for later in _slices(block.stop, n, MAPS_AT_A_TIME):
                similarity[block, later] = maps @ _standardize(paths[later], common, progress)[0].T
                similarity[later, block] = similarity[block, later].T
            # Free this block before the next one is read.
            del maps
    np.fill_diagonal(similarity, 1)
    np.clip(similarity, -1, 1, out=similarity)
    # With standardized maps u_i of norms s_i, the mean is Σ s_i u_i / n: u_j · mean follows from the u_i · u_j alone.
    with_mean = similarity @ norms / np.sqrt(norms @ similarity @ norms)
    return similarity, np.clip(with_mean, -1, 1)


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _standardize(paths: Sequence[Path], common: Array, progress: Progress) -> tuple[Array, Array]:
    """Read maps and scale each to mean 0 and norm 1: shape (n, n_voxels), float32; also return the original norms."""
    maps = np.empty((len(paths), int(common.sum())), np.float32)
    norms = np.empty(len(paths))
    for row, path in enumerate(paths):
        values = read_volume(open_image(path, "map"), "map")[common].astype(float)
        values -= values.mean() if len(values) else 0
        norms[row] = np.linalg.norm(values)
        if not norms[row]:
            raise UnfitLesions(
                f"the maps have {len(values)} voxels in common, over which {path.name} does not vary: leave out the "
                "lesion with the fewest voxels (--participant-label)"
            )
        maps[row] = values / norms[row]
        progress.update()
    return maps, norms


def order_by_similarity(similarity: Array) -> Array:
    """Order lesions so that similar ones are neighbours: shape (n,), row indices of the matrix."""
    if len(similarity) == 1:
        return np.zeros(1, dtype=int)
    return leaves_list(linkage(squareform(1 - similarity, checks=False), "average"))


def find_outliers(with_mean: Array) -> Array:
    """Find outliers by `OUTLIER_RULE`: shape (n,), boolean."""
    fisher_z = np.arctanh(np.minimum(with_mean, 1 - 1e-6))
    first, third = np.percentile(fisher_z, [25, 75])
    return fisher_z < first - 1.5 * (third - first)
