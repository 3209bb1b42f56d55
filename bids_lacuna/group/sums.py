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
"""In words, what an outlier is."""

CLUSTERING = "Average linkage of the distances 1 - r"
"""In words, what orders the lesions in the similarity matrix."""

BLOCK_BYTES = 2**30
"""Of r-maps that are held in memory at a time while all are correlated with each other."""

PASSING = 16
"""Maps that pass by a block together: one at a time would read the whole block for each."""


@dataclass
class RunningMean:
    """The mean over lesions of maps with undefined voxels."""

    total: Array
    n: Array

    def add(self, values: Array) -> None:
        """Add one lesion's map."""
        defined = np.isfinite(values)
        self.total += np.where(defined, values, 0)
        self.n += defined

    @property
    def values(self) -> Array:
        """The mean, float32; NaN where no lesion's map is defined."""
        with np.errstate(invalid="ignore"):
            return (self.total / self.n).astype(np.float32)


class GroupSums:
    """What is added up over the lesions: a few volumes, however many lesions there are."""

    def __init__(self, shape: tuple[int, ...], thresholds: Sequence[float]) -> None:
        self.lesions = np.zeros(shape)
        # As files have it, x runs fastest.
        self.mean = {
            stat: RunningMean(np.zeros(shape, order="F"), np.zeros(shape, np.int32, order="F")) for stat in ("r", "z")
        }
        self.n_t = np.zeros(shape, np.int32, order="F")
        self.above, self.below = (
            {threshold: np.zeros(shape, np.int32, order="F") for threshold in thresholds} for _ in range(2)
        )

    def add(self, weights: LesionWeights, maps: Mapping[str, Array]) -> None:
        """Add one lesion, and its r, z and t."""
        # A lesion's voxels are all different ones.
        self.lesions.reshape(-1)[weights.voxels] += weights.shares
        for stat, mean in self.mean.items():
            mean.add(maps[stat])
        self.n_t += np.isfinite(maps["t"])
        for threshold in self.above:
            self.above[threshold] += maps["t"] > threshold
            self.below[threshold] += maps["t"] < -threshold


def find_side(weights: LesionWeights, grid: Grid) -> str:
    """Tell the hemisphere that a lesion is in: left, right or both, by world coordinates."""
    voxels = np.stack(np.unravel_index(weights.voxels, grid.shape), axis=1)
    x = nib.affines.apply_affine(grid.affine, voxels)[:, 0].round(3)
    return name_side(weights.shares[x < 0].sum(), weights.shares[x > 0].sum())


def find_peak(stat: str, values: Array, grid: Grid) -> dict[str, float]:
    """Find the value that is farthest from 0, and where it is; NaN where none is defined."""
    names = [f"peak_{stat}", *(f"peak_{stat}_{axis}" for axis in "xyz")]
    if not np.isfinite(values).any():
        return dict.fromkeys(names, np.nan)
    voxel = np.unravel_index(np.nanargmax(np.abs(values)), values.shape)
    place = nib.affines.apply_affine(grid.affine, voxel)
    return dict(zip(names, [float(values[voxel]), *place.tolist()], strict=True))


def correlate_maps(
    paths: Sequence[Path], common: Array, block_bytes: int = BLOCK_BYTES, show_progress: bool = True
) -> tuple[Array, Array]:
    """Correlate maps with each other, and with their mean, over the voxels that all of them have.

    A block of maps is held in memory, and all later ones pass by; each block reads the maps after it once.

    Parameters
    ----------
    paths
        Of n maps.
    common : shape (x, y, z), boolean
        The voxels.
    block_bytes
        Size of a block.
    show_progress
        As for `summarize_group`.

    Returns
    -------
    similarity : shape (n, n), float64
        Pearson r; exactly 1 on the diagonal.
    with_mean : shape (n,)
        Pearson r with the mean of all maps.

    Raises
    ------
    UnfitLesions
        There are not two voxels, or a map does not vary over them.
    """
    n = len(paths)
    similarity, norms = np.ones((n, n)), np.ones(n)
    blocks = list(_slices(0, n, max(1, block_bytes // (4 * max(1, int(common.sum()))))))
    n_reads = sum(n - block.start for block in blocks)
    with Progress(n_reads, "correlating maps", "map", shown=show_progress) as progress:
        for block in blocks:
            maps, norms[block] = _standardize(paths[block], common, progress)
            similarity[block, block] = maps @ maps.T
            for later in _slices(block.stop, n, PASSING):
                similarity[block, later] = maps @ _standardize(paths[later], common, progress)[0].T
                similarity[later, block] = similarity[block, later].T
            # Before the next block is in memory.
            del maps
    np.fill_diagonal(similarity, 1)
    np.clip(similarity, -1, 1, out=similarity)
    # Of standardized maps u with norms s, the mean is Σ s u / n, so that u·mean needs no map but the u·u.
    with_mean = similarity @ norms / np.sqrt(norms @ similarity @ norms)
    return similarity, np.clip(with_mean, -1, 1)


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _standardize(paths: Sequence[Path], common: Array, progress: Progress) -> tuple[Array, Array]:
    """Read maps, (n, n_voxels) float32, each with mean 0 and norm 1, and the norms that they had."""
    maps = np.empty((len(paths), int(common.sum())), np.float32)
    norms = np.empty(len(paths))
    for row, path in enumerate(paths):
        values = read_volume(open_image(path, "map"), "map")[common].astype(float)
        values -= values.mean() if len(values) else 0
        norms[row] = np.linalg.norm(values)
        if not norms[row]:
            raise UnfitLesions(
                f"all maps together have {len(values)} voxels in common, over which {path.name} does not vary: "
                "leave out the lesion with the fewest voxels (--participant-label)"
            )
        maps[row] = values / norms[row]
        progress.update()
    return maps, norms


def order_by_similarity(similarity: Array) -> Array:
    """Order lesions so that similar ones are neighbours: shape (n,), the numbers of rows of the matrix."""
    if len(similarity) == 1:
        return np.zeros(1, dtype=int)
    return leaves_list(linkage(squareform(1 - similarity, checks=False), "average"))


def find_outliers(with_mean: Array) -> Array:
    """Apply `OUTLIER_RULE`: shape (n,), boolean."""
    fisher_z = np.arctanh(np.minimum(with_mean, 1 - 1e-6))
    first, third = np.percentile(fisher_z, [25, 75])
    return fisher_z < first - 1.5 * (third - first)
