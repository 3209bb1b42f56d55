"""Calibrate the group's test against chance places: its false positives on null cohorts, and its power.

`make calibrate LESIONS=DATASET CONNECTOME=STORE` reads real lesion masks and a connectome. Null cohorts are lesions
at random places of their own: the observed place is drawn like those of the sets. The maps of each lesion at all its
places are made once, block by block of voxels, for all cohorts. Each number is also measured in a connectome that one
component dominates, which is made from the same summary by adding a common signal whose loading goes with degree.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np

from bids_lacuna import Connectome, LesionData, Summary, kernels
from bids_lacuna.bids import find_lesion_masks
from bids_lacuna.connectome.summary import FOLDER, has_summary
from bids_lacuna.grid import Grid
from bids_lacuna.group.chance import fewest_lesions, p_of_largest
from bids_lacuna.kernels.nulls import NULL_TILE
from bids_lacuna.lesion import load_lesion
from bids_lacuna.mapping import summarize
from bids_lacuna.mapping.nulls import Connectivity, NullLesion, TooFewPlaces, draw_sets, make_nulls
from bids_lacuna.mapping.places import Shape
from bids_lacuna.mapping.tissue import load_tissue
from bids_lacuna.runtime.memory import find_resources
from bids_lacuna.runtime.plan import Resources

Array = np.ndarray

DOMINATED = 0.55
"""Fraction of the variance of the first component that the common signal is made strong enough for."""

HUBS = 0.05
"""Fraction of the voxels, those with the highest degree, that are called hubs."""

CHOICES = (2, 3, 6)
"""Numbers of places, of which each lesion of a cohort takes the one most connected to a hidden target."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """Lesions of a cohort, each with its place and those of its sets."""

    lesions: Array
    """Shape (n,): index of each lesion."""
    sets: Array
    """Shape (n, 1 + n_sets), int32: seed of each lesion in the observed set and in each other."""
    n_choices: int = 1
    """Number of places of which the observed one is the best for the target."""
    target: int = 0
    """Voxel of the target."""


@dataclass(eq=False)
class Found:
    """What the test and simpler rules find in a cohort."""

    mean: Array
    effect: Array
    t: Array
    largest: Array
    uncorrected: Array
    """Two-sided p of each voxel's mean among the sets, not corrected."""

    @classmethod
    def nothing(cls, n_voxels: int, n_sets: int) -> Found:
        """Begin without voxels."""
        mean, effect, t, uncorrected = np.full((4, n_voxels), np.nan, np.float32)
        return cls(mean, effect, t, np.zeros(1 + n_sets), uncorrected)

    @property
    def p(self) -> Array:
        """Corrected p of each voxel."""
        return p_of_largest(self.t, self.largest[1:])


def main() -> None:
    """Calibrate on the lesions and the connectome that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("lesions", type=Path, help="BIDS dataset with lesion masks in the connectome's space")
    parser.add_argument("connectome", type=Path, help="store of a connectome, with or without a summary")
    parser.add_argument("--cohorts", type=int, default=400, help="null cohorts in each connectome")
    parser.add_argument("--power-cohorts", type=int, default=40, help="cohorts of each number of places")
    parser.add_argument("--size", type=int, default=30, help="lesions in a cohort")
    parser.add_argument("--sets", type=int, default=100, help="sets of null lesions")
    parser.add_argument("--random-seed", type=int, default=0)
    arguments = parser.parse_args()
    start, resources = time.monotonic(), find_resources(None, None)
    connectome = Connectome.open(arguments.connectome)
    with kernels.threads(resources.n_threads), open_summary(connectome, resources) as summary:
        shapes = list(read_shapes(arguments.lesions, summary.grid))
        for name, each in (("connectome", summary), ("dominated", dominate(summary))):
            connectivity = Connectivity.of(each)
            print(f"\n{name}: the first component has {first_component(each):.0%} of the variance")
            lesions = list(make_all(shapes, connectivity, arguments.sets, arguments.random_seed))
            print(f"lesions with null places: {len(lesions)} of {len(shapes)}; places: {count_places(lesions)}")
            calibrate(lesions, connectivity, arguments)
            print(f"minutes so far: {(time.monotonic() - start) / 60:.1f}", flush=True)


@contextmanager
def open_summary(connectome: Connectome, resources: Resources) -> Iterator[Summary]:
    """Open a connectome's summary; if it has none, one is made, which is removed after the block."""
    with tempfile.TemporaryDirectory() as folder:
        summary_dir = connectome.path / FOLDER
        if not has_summary(summary_dir):
            summary_dir = Path(folder) / FOLDER
            summarize(connectome, summary_dir, resources)
        yield Summary.open(connectome, summary_dir)


def read_shapes(dataset: Path, grid: Grid) -> Iterator[Shape]:
    """Read all lesions on the volume of a grid."""
    volume = Grid(np.ones(grid.shape, bool), grid.affine)
    for mask in find_lesion_masks(dataset):
        weights = load_lesion(LesionData.from_nifti(mask.path), volume, brain=grid.mask).weights
        assert weights is not None
        yield Shape.of(weights, grid.shape)


def make_all(
    shapes: Sequence[Shape], connectivity: Connectivity, n_nulls: int, random_seed: int
) -> Iterator[NullLesion]:
    """Draw the nulls of all lesions that have places."""
    tissue = load_tissue(connectivity.grid, connectivity.summary.space)
    for shape in shapes:
        try:
            yield make_nulls(shape, connectivity, tissue, n_nulls, random_seed)
        except TooFewPlaces as reason:
            print(f"left out: {reason}")


def count_places(lesions: Sequence[NullLesion]) -> str:
    """Describe the numbers of places."""
    counts = [len(lesion.places.corners) for lesion in lesions]
    return f"{min(counts)} to {max(counts)}, median {np.median(counts):.0f}"


def first_component(summary: Summary) -> float:
    """Compute the fraction of the variance of the cells' r, centred in each voxel, of the first component."""
    r = correlations(summary)
    r -= r.mean(axis=0)
    vector = np.random.default_rng(1).standard_normal(len(r)).astype(np.float32)
    for _ in range(40):
        vector = r @ (r.T @ vector)
        vector /= np.linalg.norm(vector)
    return float(np.linalg.norm(r.T @ vector) ** 2 / np.sum(r.astype(float) ** 2))


def correlations(summary: Summary) -> Array:
    """Compute the approximate r of all cells with all defined voxels."""
    by_voxel = np.concatenate([block for _, block in summary.arrays.operator.blocks()], axis=1)
    variance = np.diag(summary.arrays.covariance)
    has_signal = variance > 0
    r = by_voxel[has_signal] / np.sqrt(variance[has_signal, np.newaxis])
    return r[:, np.isfinite(r).all(axis=0)]


def dominate(summary: Summary) -> Summary:
    """Add a common signal to a connectome's summary, whose loading goes with degree, positive and negative."""
    arrays = summary.arrays
    degree = np.nan_to_num(arrays.degree, nan=float(np.nanmean(arrays.degree)))
    loading = ((degree - degree.mean()) / degree.std()).astype(np.float32)
    of_cells = np.bincount(arrays.cells, loading) / np.bincount(arrays.cells)
    by_voxel = np.concatenate([block for _, block in arrays.operator.blocks()], axis=1)
    strength = 0.2
    while True:
        voxels, cells = strength * loading, (strength * of_cells).astype(np.float32)
        changed = by_voxel + cells[:, np.newaxis] * voxels
        changed /= np.sqrt(1 + voxels**2)
        made = SimpleNamespace(
            cells=arrays.cells,
            degree=arrays.degree,
            absolute_degree=arrays.absolute_degree,
            components=arrays.components,
            covariance=arrays.covariance + np.outer(cells, cells),
            operator=InMemory(changed),
        )
        dominated = replace(summary, arrays=cast("Any", made))
        if first_component(dominated) >= DOMINATED:
            return dominated
        strength *= 1.3


@dataclass(eq=False)
class InMemory:
    """Covariances of cells and voxels, in the blocks of a file."""

    by_voxel: Array

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Return blocks of voxels."""
        for start in range(0, self.by_voxel.shape[1], 8 * NULL_TILE):
            block = slice(start, min(start + 8 * NULL_TILE, self.by_voxel.shape[1]))
            yield block, self.by_voxel[:, block]


def calibrate(lesions: Sequence[NullLesion], connectivity: Connectivity, arguments: argparse.Namespace) -> None:
    """Draw cohorts, test them, and print what is found."""
    rng = np.random.default_rng(arguments.random_seed)
    size, n_sets = min(arguments.size, len(lesions)), arguments.sets
    targets = rng.choice(np.flatnonzero(connectivity.usable), arguments.power_cohorts * len(CHOICES), replace=False)
    at_targets = map_targets(lesions, connectivity, targets)
    cohorts = []
    for number in range(arguments.cohorts + len(targets)):
        index = number - arguments.cohorts
        n_choices = 1 if index < 0 else CHOICES[index % len(CHOICES)]
        chosen = rng.choice(len(lesions), size, replace=False)
        sets = []
        for lesion in chosen:
            z = at_targets[lesion][:, max(index, 0)]
            some = rng.choice(len(z), n_choices, replace=False)
            own = some[np.argmax(np.nan_to_num(z[some], nan=-np.inf))]
            others = np.concatenate([[own], np.delete(np.arange(len(z)), own)])
            sets.append(others[np.concatenate([[0], draw_sets(len(z) - 1, n_sets, rng)])])
        cohorts.append(Cohort(chosen, np.array(sets, np.int32), n_choices, int(targets[max(index, 0)])))
    found = test_all(cohorts, lesions, connectivity)
    report(cohorts, found, connectivity)


def map_tiles(lesion: NullLesion, operator: Array, block: slice, connectivity: Connectivity) -> Array:
    """Map a lesion at all places in a block of voxels, on all threads: shape (n_seeds, n_voxels)."""
    z = np.empty((len(lesion.corners), operator.shape[1]), np.float32)
    voxels = connectivity.voxels(block)

    def work(first: int, last: int) -> None:
        tiles = slice(first * NULL_TILE, last * NULL_TILE)
        of_tiles = cast("Any", tuple(each[tiles] for each in voxels))
        z[:, tiles] = kernels.map_seeds(operator[:, tiles], lesion.seeds, lesion.neighbourhood, of_tiles)

    kernels.distribute(work, -(-operator.shape[1] // NULL_TILE), 8)
    return z


def map_targets(lesions: Sequence[NullLesion], connectivity: Connectivity, targets: Array) -> list[Array]:
    """Map lesions at all places in some voxels: arrays of shape (n_seeds, n_targets)."""
    maps = [np.empty((len(lesion.corners), len(targets)), np.float32) for lesion in lesions]
    for block, operator in connectivity.summary.arrays.operator.blocks():
        inside = (targets >= block.start) & (targets < block.stop)
        for lesion, at_targets in zip(lesions, maps, strict=True):
            z = map_tiles(lesion, operator, block, connectivity)
            at_targets[:, inside] = z[:, targets[inside] - block.start]
    return maps


def test_all(cohorts: Sequence[Cohort], lesions: Sequence[NullLesion], connectivity: Connectivity) -> list[Found]:
    """Test all cohorts, block by block of voxels."""
    n_sets = cohorts[0].sets.shape[1] - 1
    found = [Found.nothing(connectivity.grid.n_voxels, n_sets) for _ in cohorts]
    fewest = fewest_lesions(len(cohorts[0].lesions))
    for block, operator in connectivity.summary.arrays.operator.blocks():
        maps = [map_tiles(lesion, operator, block, connectivity) for lesion in lesions]
        for cohort, result in zip(cohorts, found, strict=True):
            total = np.zeros((1 + n_sets, operator.shape[1]), np.float32)
            n = np.zeros(total.shape, np.uint16)
            add_cohort(cohort, maps, total, n)
            result.effect[block], t, largest = kernels.chance_t(total, n, fewest)
            result.t[block] = t
            result.largest = np.maximum(result.largest, largest)
            means = np.divide(total, n, out=np.full(total.shape, np.nan, np.float32), where=n >= fewest)
            result.mean[block] = np.where(np.isfinite(t), means[0], np.nan)
            n_sides = [(compare(means[1:], means[0])).sum(axis=0) for compare in (np.greater_equal, np.less_equal)]
            n_defined = np.isfinite(means[1:]).sum(axis=0)
            two_sided = np.minimum(1, 2 * (np.minimum(*n_sides) + 1) / (n_defined + 1))
            result.uncorrected[block] = np.where(np.isfinite(t), two_sided, np.nan)
        print(f"  {block.stop} of {connectivity.grid.n_voxels} voxels", flush=True)
    return found


def add_cohort(cohort: Cohort, maps: Sequence[Array], total: Array, n: Array) -> None:
    """Add the maps of a cohort's lesions to its sets, on all threads."""

    def work(first: int, last: int) -> None:
        tiles = slice(first * NULL_TILE, last * NULL_TILE)
        for lesion, sets in zip(cohort.lesions, cohort.sets, strict=True):
            kernels.add_sets(maps[lesion][:, tiles], sets, total[:, tiles], n[:, tiles])

    kernels.distribute(work, -(-total.shape[1] // NULL_TILE), 8)


def report(cohorts: Sequence[Cohort], found: Sequence[Found], connectivity: Connectivity) -> None:
    """Print false positives, what simpler rules find, power, and distances from the targets."""
    degree = np.where(connectivity.usable, connectivity.summary.arrays.degree, -np.inf)
    hubs = degree >= np.quantile(degree[connectivity.usable], 1 - HUBS)
    null = [result for cohort, result in zip(cohorts, found, strict=True) if cohort.n_choices == 1]
    share("null cohorts, P(p <= .05)", [np.nanmin(result.p) <= 0.05 for result in null])
    share("null cohorts, P(p <= .01)", [np.nanmin(result.p) <= 0.01 for result in null])
    share("null cohorts, peak of the mean map in a hub", [hubs[np.nanargmax(result.mean)] for result in null])
    share("null cohorts, a hub with uncorrected p <= .05", [np.nanmin(r.uncorrected[hubs]) <= 0.05 for r in null])
    share("null cohorts, any voxel with uncorrected p <= .05", [np.nanmin(r.uncorrected) <= 0.05 for r in null])
    position = nib.affines.apply_affine(connectivity.grid.affine, connectivity.positions)
    for n_choices in CHOICES:
        pairs = [(c, f) for c, f in zip(cohorts, found, strict=True) if c.n_choices == n_choices]
        share(f"best of {n_choices} places, power", [np.nanmin(result.p) <= 0.05 for _, result in pairs])
        share("  p <= .05 at the target", [result.p[cohort.target] <= 0.05 for cohort, result in pairs])
        ranks = [[np.nanmean(values < values[c.target]) for values in (f.effect, f.mean)] for c, f in pairs]
        effect, mean = 100 * np.nanmedian(ranks, axis=0)
        print(f"  median percentile of the target among all voxels: effect {effect:.0f}, mean map {mean:.0f}")
        distances = []
        for cohort, result in pairs:
            significant = (result.p <= 0.05) & (result.effect > 0)
            if significant.any():
                peaks = np.where(significant, result.effect, -np.inf).argmax(), np.nanargmax(result.mean)
                distances.append([np.linalg.norm(position[peak] - position[cohort.target]) for peak in peaks])
        if distances:
            effect, mean = np.median(distances, axis=0)
            print(
                f"  median distance from the target, mm: effect {effect:.0f}, mean map {mean:.0f} ({len(distances)})"
            )


def share(name: str, happened: Sequence[bool]) -> None:
    """Print how often something happened, with its standard error."""
    fraction = float(np.mean(happened))
    error = np.sqrt(fraction * (1 - fraction) / len(happened))
    print(f"{name}: {fraction:.3f} (SE {error:.3f}, {len(happened)} cohorts)", flush=True)


if __name__ == "__main__":
    main()
