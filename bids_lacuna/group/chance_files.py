"""Files of the comparison of a group with chance places: effect, T and -log10 p, each with a sidecar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_lacuna._version import __version__
from bids_lacuna.derivatives import sidecar_path
from bids_lacuna.files import renamed_when_whole, write_json
from bids_lacuna.group.chance import Chance
from bids_lacuna.group.cohort import GroupLesion, describe_settings
from bids_lacuna.images import save_gzipped
from bids_lacuna.mapping.maps import make_image
from bids_lacuna.mapping.nulls import NullLesion
from bids_lacuna.mapping.places import COVERAGE_EDGES, TISSUE_BIN
from bids_lacuna.mapping.summary import Summary
from bids_lacuna.provenance import Provenance

Array = np.ndarray

ALPHA = 0.05
"""Level at which significant voxels are counted."""

INTERPRETATION = (
    "More connected there, or less where the effect is negative, than lesions of these sizes and tissues at chance "
    "places of their hemispheres. Not specific to a symptom: that needs a comparison with lesions without it"
)

MAPS = {
    "effect": (
        "effect",
        "chance",
        "Mean approximate Fisher z of the lesions, minus the mean over sets of null lesions: one for each lesion",
    ),
    "zscore": (
        "t",
        "chance",
        "The effect in standard deviations of the sets. Its peak follows small deviations as much as large effects",
    ),
    "logp": (
        "minus_log10_p",
        "chanceFWE",
        "-log10 of the two-sided p, corrected for all voxels by the largest |T| of each set",
    ),
}
"""Field of `Chance`, end of the connectome's name, and description of each map, by its `stat` entity."""


def chance_path(folder: Path, provenance: Provenance, stat: str) -> Path:
    """Return the path of one map."""
    desc = provenance.connectome_name + MAPS[stat][1]
    return folder / f"space-{provenance.space}_stat-{stat}_desc-{desc}_statmap.nii.gz"


def write_chance(
    chance: Chance,
    lesions: Mapping[str, tuple[GroupLesion, NullLesion]],
    left_out: Mapping[str, str],
    identity: Mapping[str, Any],
    provenance: Provenance,
    summary: Summary,
    folder: Path,
) -> list[Path]:
    """Write the maps of a comparison with chance places.

    Parameters
    ----------
    lesions
        Lesions of the comparison, by name, each with its nulls.
    left_out
        Reason for each lesion of the group that has no null lesions, by name.
    identity
        Keys of the sidecar about the draw and the approximation.
    provenance
        Settings of the group's maps.
    folder
        Folder of the group's files.
    """
    common = {
        "Descriptive": False,
        "Interpretation": INTERPRETATION,
        "NumberOfLesions": len(lesions),
        "LeftOut": [{"Lesion": name, "Reason": reason} for name, reason in left_out.items()],
        "NumberOfNullSets": chance.n_sets,
        "NumberOfPlaces": {name: len(nulls.places.corners) for name, (_, nulls) in lesions.items()},
        "NeighbourhoodRadius": {name: nulls.radius_mm for name, (_, nulls) in lesions.items()},
        "NeighbourhoodRadiusUnits": "mm",
        "CoverageEdges": list(COVERAGE_EDGES),
        "TissueBinWidth": TISSUE_BIN,
        **identity,
        "NumberOfVoxels": chance.n_voxels,
        "SmallestP": chance.p,
        "Alpha": ALPHA,
        **describe_significant(chance, summary),
        **describe_settings(provenance),
        "SoftwareVersion": __version__,
        "Sources": [f"bids::{lesion.maps['z']}" for lesion, _ in lesions.values()],
    }
    paths = []
    for stat, (name, _, description) in MAPS.items():
        path = chance_path(folder, provenance, stat)
        image = make_image(getattr(chance, name), np.nan, summary.grid, provenance.space)
        with renamed_when_whole(path) as temporary:
            save_gzipped(image, temporary)
        write_json(sidecar_path(path), {"Description": description, **common})
        paths.append(path)
    return paths


def describe_significant(chance: Chance, summary: Summary) -> dict[str, Any]:
    """Count significant voxels, and find the largest effects among them."""
    significant = chance.minus_log10_p >= np.float32(-np.log10(ALPHA))
    found: dict[str, Any] = {"NumberOfSignificantVoxels": int(significant.sum())}
    for key, sign in (("PeakEffect", 1), ("LowestEffect", -1)):
        inside = significant & (sign * chance.effect > 0)
        if inside.any():
            voxel = int(np.where(inside, sign * chance.effect, -np.inf).argmax())
            index = np.argwhere(summary.grid.mask)[voxel]
            position: Sequence[float] = nib.affines.apply_affine(summary.grid.affine, index).round(1).tolist()
            found[key] = {"Value": round(float(chance.effect[voxel]), 4), "Position": position, "Units": "mm"}
    return found
