"""Calibrate tests of a group: false positives with random labels on real lesions, and where effects are found.

`make calibrate LESIONS=DATASET CONNECTOME=STORE` maps real lesion masks once. A study gives them random labels, so
that whatever it finds is false. Power is measured with scores that follow from each map at a hidden target.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import stats

from benchmarks.calibration import open_summary
from bids_lacuna import Connectome, FunctionalNetworkMapping, LesionData, batch_process
from bids_lacuna.bids import find_lesion_masks
from bids_lacuna.group.inference import Inference, infer, make_model
from bids_lacuna.group.permutations import choose_permutations
from bids_lacuna.runtime.memory import find_resources

Array = np.ndarray

ALPHA = 0.05

WITHIN_MM = 12.0
"""Distance from the target up to which a peak is counted as found."""

TARGET_MM = 8.0
"""Radius of a target."""

T_THRESHOLD = 7.0
"""Threshold of the overlap maps."""


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of real lesions, in the voxels that all have."""

    z: Array
    """Shape (n_lesions, n_voxels), float32."""
    t: Array
    """Shape (n_lesions, n_voxels), float32."""
    positions: Array
    """Shape (n_voxels, 3): mm."""
    degree: Array
    """Shape (n_voxels,): mean r of each voxel with all others."""


@dataclass(frozen=True, eq=False)
class Study:
    """Labels, covariates and blocks of one study, and the maps that it is done with."""

    z: Array
    tested: Array
    covariates: Array
    blocks: Array


Kind = Callable[[Maps, np.random.Generator], Study]


def read_maps(dataset: Path, store: Path) -> Maps:
    """Map the lesions of a dataset."""
    connectome = Connectome.open(store)
    masks = find_lesion_masks(dataset)
    found: dict[str, list[Array]] = {"z_map": [], "t_map": []}

    def keep(results: list[LesionData]) -> None:
        for result in results:
            maps = result.results["FunctionalNetworkMapping"]
            for name, rows in found.items():
                rows.append(connectome.grid.vector(np.asarray(maps[name].dataobj)))

    lesions = [LesionData.from_nifti(mask.path, metadata={"space": mask.space}) for mask in masks]
    batch_process(lesions, FunctionalNetworkMapping(connectome), batch_result_callback=keep, show_progress=False)
    z, t = (np.array(rows, np.float32) for rows in found.values())
    with open_summary(connectome, find_resources()) as summary:
        degree = np.array(summary.arrays.degree)
    common = np.isfinite(np.vstack([z, degree])).all(axis=0)
    positions = nib.affines.apply_affine(connectome.grid.affine, np.argwhere(connectome.grid.mask))
    return Maps(z[:, common], t[:, common], positions[common], degree[common])


def draw_groups(n_cases: int, *, doubled: bool = False, covariate: float = 0.0, blocks: bool = False) -> Kind:
    """Make studies with two random groups.

    Parameters
    ----------
    n_cases
        Patients in the smaller group.
    doubled
        Whether the cases vary twice as much about the mean map, in variance.
    covariate
        Correlation of a covariate with the label.
    blocks
        Whether half of the patients have another mean map, with other fractions of cases, and blocks account for it.
    """

    def draw(maps: Maps, rng: np.random.Generator) -> Study:
        n = len(maps.z)
        place = np.arange(n) % 2 if blocks else np.zeros(n, int)
        weights = np.where(place == 1, 3.0, 1.0)
        tested = np.zeros(n)
        tested[rng.choice(n, n_cases, replace=False, p=weights / weights.sum())] = 1
        z = maps.z
        if doubled:
            z = np.where(tested[:, np.newaxis] == 1, z.mean(axis=0) + np.sqrt(2) * (z - z.mean(axis=0)), z)
        if blocks:
            # The second site's maps are shifted by a pattern that one of the maps has.
            z = z + place[:, np.newaxis] * z[rng.integers(n)]
        covariates = np.empty((n, 0))
        if covariate:
            standard = (tested - tested.mean()) / tested.std()
            covariates = (covariate * standard + np.sqrt(1 - covariate**2) * rng.standard_normal(n))[:, np.newaxis]
        return Study(z.astype(np.float32, copy=False), tested, covariates, place)

    return draw


def draw_score(maps: Maps, rng: np.random.Generator) -> Study:
    """Make a study with a random score, skewed as clinical scores are."""
    n = len(maps.z)
    return Study(maps.z, rng.exponential(size=n), np.empty((n, 0)), np.zeros(n, int))


KINDS: dict[str, tuple[Kind, bool]] = {
    "two groups of equal size": (draw_groups(20), False),
    "10 against 30, pooled": (draw_groups(10), False),
    "10 against 30, Welch": (draw_groups(10), True),
    "10 of twice the variance against 30, pooled": (draw_groups(10, doubled=True), False),
    "10 of twice the variance against 30, Welch": (draw_groups(10, doubled=True), True),
    "score": (draw_score, False),
    "covariate that goes with the label (r = .6)": (draw_groups(20, covariate=0.6), False),
    "two blocks with other means": (draw_groups(20, blocks=True), False),
}
"""Studies, each with whether Welch's v is used."""


def run_study(study: Study, welch: bool, n_permutations: int, seed: int, n_threads: int) -> Inference:
    """Test a study."""
    permutations = choose_permutations(
        study.tested, study.covariates, study.blocks, n_permutations, seed, ALPHA, welch
    )
    model = make_model(study.tested, study.covariates, study.blocks, welch)
    return infer(study.z, model, permutations, ALPHA, n_threads=n_threads)


def calibrate(maps: Maps, n_studies: int, n_permutations: int, n_threads: int) -> Iterator[str]:
    """Yield the rows of the table of false positives."""
    yield "| study | false positives (at most .05) | 2 SE | r of uncorrected ones with degree (2 SE) |"
    yield "|---|---|---|---|"
    for name, (draw, welch) in KINDS.items():
        rng = np.random.default_rng(1)
        found = np.zeros(n_studies, bool)
        uncorrected = np.zeros((n_studies, maps.z.shape[1]), np.float32)
        for number in range(n_studies):
            study = draw(maps, rng)
            result = run_study(study, welch, n_permutations, number, n_threads)
            model = make_model(study.tested, study.covariates, study.blocks)
            critical = stats.norm.isf(ALPHA / 2) if welch else stats.t.isf(ALPHA / 2, model.degrees_of_freedom)
            found[number] = np.nanmin(result.p) <= ALPHA
            # Not a fixed fraction of each study's voxels: a network of many voxels would rarely have room in it.
            uncorrected[number] = np.abs(result.statistic) >= critical
        error = 2 * np.sqrt(ALPHA * (1 - ALPHA) / n_studies)
        r = np.corrcoef(uncorrected.mean(axis=0), maps.degree)[0, 1]
        resampled = [
            np.corrcoef(uncorrected[rng.integers(n_studies, size=n_studies)].mean(axis=0), maps.degree)[0, 1]
            for _ in range(100)
        ]
        yield f"| {name} | {found.mean():.3f} | {error:.3f} | {r:.2f} ({2 * np.std(resampled):.2f}) |"


def measure_power(maps: Maps, n_targets: int, n_draws: int, n_permutations: int, n_threads: int) -> Iterator[str]:
    """Yield the rows of the table of effects that are there: who finds the target."""
    yield f"| effect | map | peaks within {WITHIN_MM:g} mm | median distance | significant |"
    yield "|---|---|---|---|---|"
    for eta_squared in (0.3, 0.5):
        rng = np.random.default_rng(2)
        distances: dict[str, list[float]] = {"contrast": [], "mean of the upper half": [], "overlap of it": []}
        n_significant = 0
        for number in range(n_targets):
            centre = maps.positions[rng.integers(len(maps.positions))]
            away = np.linalg.norm(maps.positions - centre, axis=1)
            at_target = maps.z[:, away <= TARGET_MM].mean(axis=1, dtype=float)
            signal = (at_target - at_target.mean()) / at_target.std()
            for draw in range(n_draws):
                noise = rng.standard_normal(len(signal))
                score = np.sqrt(eta_squared) * signal + np.sqrt(1 - eta_squared) * noise
                none = np.empty((len(score), 0))
                study = Study(maps.z, score, none, np.zeros(len(score), int))
                result = run_study(study, False, n_permutations, 1000 * number + draw, n_threads)
                upper = score > np.median(score)
                peaks = {
                    "contrast": result.statistic,
                    "mean of the upper half": maps.z[upper].mean(axis=0),
                    "overlap of it": (maps.t[upper] > T_THRESHOLD).mean(axis=0),
                }
                for name, values in peaks.items():
                    # Overlap maps have many equal peaks.
                    distances[name].append(float(np.median(away[values >= np.nanmax(values)])))
                n_significant += bool(np.nanmin(result.p) <= ALPHA)
        for name, measured in distances.items():
            near = np.mean(np.array(measured) <= WITHIN_MM)
            power = f"{n_significant / (n_targets * n_draws):.0%}" if name == "contrast" else ""
            yield f"| {eta_squared} | {name} | {near:.0%} | {np.median(measured):.0f} mm | {power} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lesions", type=Path, help="BIDS dataset with at least 40 lesion masks")
    parser.add_argument("connectome", type=Path, help="connectome, best a store of 4 mm")
    parser.add_argument("--studies", type=int, default=500, help="null studies of each kind (default: %(default)s)")
    parser.add_argument("--permutations", type=int, default=1000, help="of each study (default: %(default)s)")
    parser.add_argument("--targets", type=int, default=20, help="hidden targets (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=20, help="studies of each target (default: %(default)s)")
    arguments = parser.parse_args()
    n_threads = find_resources().n_threads
    maps = read_maps(arguments.lesions, arguments.connectome)
    print(f"{len(maps.z)} lesions, {maps.z.shape[1]} voxels", flush=True)
    for line in calibrate(maps, arguments.studies, arguments.permutations, n_threads):
        print(line, flush=True)
    for line in measure_power(maps, arguments.targets, arguments.draws, arguments.permutations, n_threads):
        print(line, flush=True)


if __name__ == "__main__":
    main()
