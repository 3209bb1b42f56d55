"""Clusters: the strongest adjacent voxels of a map outside the lesion."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy.ndimage import label

from bids_lacuna.report.figures.volumes import LesionShape, Volume

Array = np.ndarray

CLUSTER_FRACTION = 0.02
"""Fraction of a map's voxels outside the lesion that forms the clusters of each sign."""

N_CLUSTERS = 5
"""Clusters of each sign in the table."""

FEWEST_VOXELS = 3
"""Smaller clusters are not listed: a single voxel may be noise."""


@dataclass(frozen=True)
class Cluster:
    """Adjacent voxels, and the strongest of them: a row of the table of clusters."""

    peak_mm: tuple[float, float, float]
    """Position of its strongest voxel."""
    value: float
    """Value of its strongest voxel."""
    size_mm3: float


def find_clusters(volume: Volume, lesion: LesionShape | None) -> tuple[list[Cluster], list[Cluster]]:
    """List the strongest clusters of each sign outside the lesion.

    Clusters consist of at least three voxels with common faces, among the 2 % with the highest or the lowest values
    outside the lesion: with a large connectome, nearly all voxels exceed any usual threshold and form a single
    cluster. The results equal those of nilearn's `get_clusters_table` without subpeaks, which takes seconds.

    Returns
    -------
    positive, negative
        Strongest first.
    """
    # Axes reversed: in the order of the file's and the array's memory.
    values = volume.values.T
    outside = np.isfinite(values)
    if lesion is not None:
        outside &= ~volume.inside(lesion).T
    selected = np.flatnonzero(outside)
    strengths = values.reshape(-1)[selected]
    positive, negative = (_strongest_fraction(sign * strengths) for sign in (1, -1))
    return (
        _list_clusters(volume, selected, strengths, 1, positive, FEWEST_VOXELS),
        _list_clusters(volume, selected, strengths, -1, negative, FEWEST_VOXELS),
    )


def find_clusters_beyond(volume: Volume, threshold: float) -> tuple[list[Cluster], list[Cluster]]:
    """List the strongest clusters of each sign beyond a threshold, of any size, as `find_clusters` does."""
    values = volume.values.T
    selected = np.flatnonzero(np.isfinite(values))
    strengths = values.reshape(-1)[selected]
    positive, negative = (_list_clusters(volume, selected, strengths, sign, threshold, 1) for sign in (1, -1))
    return positive, negative


def _strongest_fraction(strengths: Array) -> float:
    """Return the threshold that `CLUSTER_FRACTION` of the voxels exceed, at least 0."""
    return max(0.0, float(np.quantile(strengths, 1 - CLUSTER_FRACTION))) if strengths.size else 0.0


def _list_clusters(
    volume: Volume, selected: Array, values: Array, sign: int, threshold: float, fewest_voxels: int
) -> list[Cluster]:
    """Label those of the selected voxels, given by their indices in the transposed volume, that are strong."""
    if not selected.size:
        return []
    strengths = sign * values
    strong = strengths > threshold
    voxels, strengths = selected[strong], strengths[strong]
    shape = volume.values.T.shape
    strongest = np.zeros(shape, bool)
    strongest.reshape(-1)[voxels] = True
    labels = label(strongest)[0].reshape(-1)[voxels]
    sizes = np.bincount(labels)
    from_strongest = np.argsort(-strengths, kind="stable")
    _, first = np.unique(labels[from_strongest], return_index=True)
    peaks = [peak for peak in from_strongest[np.sort(first)] if sizes[labels[peak]] >= fewest_voxels]
    voxel_mm3 = abs(np.linalg.det(volume.affine[:3, :3]))
    clusters = []
    for peak in peaks[:N_CLUSTERS]:
        x, y, z = nib.affines.apply_affine(volume.affine, np.unravel_index(voxels[peak], shape)[::-1]).tolist()
        clusters.append(Cluster((x, y, z), sign * float(strengths[peak]), float(sizes[labels[peak]] * voxel_mm3)))
    return clusters
