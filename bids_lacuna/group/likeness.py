"""Similarity of a group's maps to their connectome as a whole: from sidecars, or computed with its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_lacuna.derivatives import SIMILARITY
from bids_lacuna.group.cohort import GroupLesion
from bids_lacuna.mapping import SIMILARITY_KEYS, Summary
from bids_lacuna.weights import LesionWeights

Array = np.ndarray

SIMILARITY_COLUMNS: dict[str, dict[str, Any]] = {
    "r_with_degree": {
        "Description": "Spatial correlation of the z-map, without the lesion's voxels, with the connectome's degree, "
        "the mean r of each voxel with all others"
    },
    "r_with_absolute_degree": {"Description": "The same with absolute degree: the mean |z| with cubes of voxels"},
    **{
        f"r_with_pc{number}": {"Description": f"The same with principal component {number} of the cubes' r"}
        for number in (1, 2, 3)
    },
    "r_squared": {"Description": "Fraction of the z-map's variance there that these five explain together"},
}
"""Columns of the table where the similarity of any lesion is known."""


@dataclass(frozen=True)
class Likeness:
    """Compares maps on a volume to their connectome as a whole."""

    summary: Summary | None
    """The connectome's summary; without, only what sidecars have is known."""

    def of_lesion(self, lesion: GroupLesion, weights: LesionWeights, z_map: Array) -> dict[str, float]:
        """Return a lesion's cells of `SIMILARITY_COLUMNS`; empty if they are not known.

        Parameters
        ----------
        weights
            Weights of the lesion on the whole volume.
        z_map : shape (x, y, z)
        """
        recorded = lesion.sidecar.get(SIMILARITY)
        if self.summary is not None:
            of_summary = self.summary.arrays.record.content_hash
            if not isinstance(recorded, Mapping) or recorded.get("SummaryHash") != of_summary:
                inside = self.summary.grid.voxel_indices.reshape(-1)[weights.voxels]
                recorded = _describe(self.summary, z_map, inside[inside >= 0])
        if not isinstance(recorded, Mapping):
            return {}
        numbers = [recorded.get(key) for key in SIMILARITY_KEYS.values()]
        cells = [float(number) if isinstance(number, int | float) else float("nan") for number in numbers]
        return dict(zip(SIMILARITY_COLUMNS, cells, strict=True))

    def of_mean(self, z_map: Array) -> dict[str, Any]:
        """Return the similarity of a mean z-map, (x, y, z), as it stands in its sidecar; empty without a summary."""
        return {} if self.summary is None else {SIMILARITY: _describe(self.summary, z_map, None)}


def _describe(summary: Summary, z_map: Array, without: Array | None) -> dict[str, Any]:
    return summary.describe(summary.similarity(summary.grid.vector(z_map), without))


def known_columns(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the columns of similarity if any row has them; the other rows get NaN."""
    if not any(name in row for row in rows for name in SIMILARITY_COLUMNS):
        return {}
    for row in rows:
        for name in SIMILARITY_COLUMNS:
            row.setdefault(name, float("nan"))
    return SIMILARITY_COLUMNS
