"""Verification of a store: checksums, shapes, norms, voxels without a signal, and mirror symmetry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from bids_lacuna.connectome.store import REMEDY, Store, StoredSubject
from bids_lacuna.files import hash_file
from bids_lacuna.grid import Grid

Array = np.ndarray

NORM_TOLERANCE = 1e-4
"""Tolerance of the norm of a scaled series: far above float32's rounding."""

ROWS = 4096
"""Number of voxels whose norms are computed at a time."""

MIDLINE_MM = 8
"""Distance from the midline in mm below which smooth data do not distinguish a voxel from its mirror image."""

DISPLACEMENTS_MM = ((-16, 0, 0), (16, 0, 0), (0, -16, 0), (0, 16, 0), (0, 0, -16), (0, 0, 16))
"""Displacements from the mirrored position in mm, for comparison."""

N_PAIRS = 5000
"""Largest number of voxel pairs to correlate; more would not change the answer."""

MIN_PAIRS = 100
"""Smallest number of voxel pairs from which symmetry can be judged."""

MARGIN = 0.02
"""Excess of r required at the mirrored position: real brains have 0.1, scrambled ones 0.002 by chance."""


@dataclass(frozen=True)
class MirrorPairs:
    """Voxels of the left hemisphere with their mirror images and displaced voxels for comparison."""

    left: Array
    """Shape (n_pairs,): voxel indices."""
    right: Array
    """Shape (1 + n_displacements, n_pairs): voxel indices at mirrored, then at displaced positions."""

    @classmethod
    def of(cls, grid: Grid) -> MirrorPairs:
        """Find the pairs of a grid in world coordinates; all partners of a voxel lie inside the mask."""
        indices = np.full(grid.shape, -1, np.int32)
        indices[grid.mask] = np.arange(grid.n_voxels)
        world = nib.affines.apply_affine(grid.affine, np.argwhere(grid.mask))
        left = np.flatnonzero(world[:, 0] < -MIDLINE_MM)
        mirrored = world[left] * (-1, 1, 1)
        to_voxel = np.linalg.inv(grid.affine)
        partners = np.array(
            [
                _look_up(indices, nib.affines.apply_affine(to_voxel, mirrored + by))
                for by in ((0, 0, 0), *DISPLACEMENTS_MM)
            ]
        )
        complete = np.flatnonzero((partners >= 0).all(axis=0))
        if len(complete) > N_PAIRS:
            complete = np.sort(np.random.default_rng(N_PAIRS).choice(complete, N_PAIRS, replace=False))
        return cls(left[complete], partners[:, complete])

    def correlations(self, series: Array, scale: Array) -> Array:
        """Correlate one subject's left hemisphere with the right, at mirrored and displaced positions.

        Returns
        -------
        shape (1 + n_displacements,)
            Mean r over the pairs whose voxels all have a signal; NaN if there are fewer than `MIN_PAIRS`.
        """
        defined = (scale[self.left] > 0) & (scale[self.right] > 0).all(axis=0)
        if np.count_nonzero(defined) < MIN_PAIRS:
            return np.full(len(self.right), np.nan)
        left = _unit_rows(series, scale, self.left[defined])
        return np.array(
            [np.einsum("vt,vt->v", left, _unit_rows(series, scale, right[defined])).mean() for right in self.right]
        )


def _look_up(indices: Array, coordinates: Array) -> Array:
    """Return the mask indices of the voxels nearest to given voxel coordinates; -1 outside."""
    nearest = np.rint(coordinates).astype(int)
    inside = ((nearest >= 0) & (nearest < indices.shape)).all(axis=1)
    found = np.full(len(nearest), -1, np.int32)
    found[inside] = indices[tuple(nearest[inside].T)]
    return found


def _unit_rows(series: Array, scale: Array, voxels: Array) -> Array:
    return series[voxels].astype(np.float32) * scale[voxels, np.newaxis]


@dataclass(frozen=True)
class Verification:
    """Findings of the verification of a store."""

    problems: tuple[str, ...]
    """One sentence per problem; empty if there is none."""
    n_constant: Array
    """Shape (n_voxels,): number of subjects without a signal in each voxel."""
    orientation: str
    """Direction of the grid's axes: "LAS" is left, anterior, superior."""
    n_mirrored: int
    """Number of subjects whose left hemisphere correlates best with the right at the mirrored position."""
    n_mirrorable: int
    """Number of subjects with enough voxel pairs to judge."""
    homotopic_r: float
    """Median over subjects of the mean r between mirrored voxels; NaN if no subject can be judged."""
    displaced_r: float
    """Median over subjects of the largest mean r at a displaced position."""


def verify_store(store: Store, on_subject: Callable[[StoredSubject], object] = lambda _: None) -> Verification:
    """Read a whole store and check it against its description and for consistency.

    In every healthy brain, mirrored voxels of the two hemispheres correlate more than displaced voxels. If they do
    not, the voxels may be scrambled or shifted sideways by 4 mm or more. The series cannot reveal a smaller shift, a
    shift along the other two axes, or a left-right flip: compare orientation and grid with those of the source.

    Parameters
    ----------
    on_subject
        Called after each subject.
    """
    problems = []
    n_constant = np.zeros(store.grid.n_voxels, np.int32)
    pairs = MirrorPairs.of(store.grid)
    correlations = []
    for subject in store.subjects:
        problems += _check_hashes(store, subject)
        try:
            series, scale, sd = store.read(subject)
        except OSError as error:
            problems.append(str(error))
        else:
            problems += _check_values(subject, series, scale, sd)
            n_constant += scale == 0
            correlations.append(pairs.correlations(series, scale))
        on_subject(subject)
    mirror = np.array([row for row in correlations if np.isfinite(row).all()]).reshape(-1, len(pairs.right))
    displaced = mirror[:, 1:].max(axis=1)
    n_mirrored = int(np.count_nonzero(mirror[:, 0] > displaced + MARGIN))
    if n_mirrored < len(mirror) / 2:
        problems.append(
            f"in {len(mirror) - n_mirrored} of {len(mirror)} subjects the left hemisphere does not correlate best "
            "with the right at the mirrored position: the voxels may be scrambled or shifted, or these are not brains"
        )
    return Verification(
        tuple(problems),
        n_constant,
        "".join(nib.orientations.aff2axcodes(store.grid.affine)),
        n_mirrored,
        len(mirror),
        float(np.median(mirror[:, 0])) if len(mirror) else float("nan"),
        float(np.median(displaced)) if len(mirror) else float("nan"),
    )


def _check_hashes(store: Store, subject: StoredSubject) -> list[str]:
    problems = []
    for kind, (path, _, _) in store.arrays(subject).items():
        try:
            found = hash_file(path)
        except OSError as error:
            problems.append(f"{path} cannot be read ({error})")
            continue
        if found != subject.sha256[kind]:
            problems.append(f"{path} has another checksum than when it was built: {REMEDY}")
    return problems


def _check_values(subject: StoredSubject, series: Array, scale: Array, sd: Array) -> list[str]:
    if not (np.isfinite(scale).all() and np.isfinite(sd).all() and (scale >= 0).all() and (sd >= 0).all()):
        return [f"sub-{subject.name} has scales or standard deviations that are negative or not finite"]
    problems = [] if scale.any() else [f"sub-{subject.name} has no signal in any voxel"]
    starts = range(0, len(series), ROWS)
    norm = np.concatenate([np.linalg.norm(series[start : start + ROWS].astype(float), axis=1) for start in starts])
    wrong = np.abs(norm * scale - (scale > 0)) > NORM_TOLERANCE
    # A NaN counts as wrong.
    wrong |= ~np.isfinite(norm) | ((norm > 0) != (scale > 0)) | ((scale > 0) != (sd > 0))
    if wrong.any():
        problems.append(
            f"sub-{subject.name} has {np.count_nonzero(wrong)} voxels whose series and scales do not match"
        )
    return problems
