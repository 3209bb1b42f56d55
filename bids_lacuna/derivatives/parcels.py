"""Tables of parcels: what the regions of an atlas have of a lesion and of its maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.derivatives.names import sidecar_path
from bids_lacuna.files import read_json_object, write_json, write_table

COLUMNS: dict[str, dict[str, str]] = {
    "index": {"Description": "Label of the region in the atlas; 0 for what is in no region"},
    "label": {"Description": "Name of the region"},
    "hemisphere": {"Description": "L or R, where the atlas' table or the region's name says it"},
    "mean_z": {
        "Description": "Mean of the z-map over the region, each voxel weighted by the volume of the region in it"
    },
    "mean_r": {"Description": "Hyperbolic tangent of mean_z"},
    "mean_t": {
        "Description": "The same mean of the t-map, which grows with the connectome's size; n/a without a t-map"
    },
    "volume": {"Description": "Volume of the region in the atlas", "Units": "mm^3"},
    "covered_volume": {"Description": "Volume of the region in voxels where the z-map is defined", "Units": "mm^3"},
    "n_voxels": {"Description": "Number of these voxels, those at the region's border included"},
    "fraction_lesioned": {"Description": "Regional damage: fraction of the region's volume that is lesioned"},
    "fraction_of_lesion": {
        "Description": "Fraction of the lesion's volume that is in the region; over all rows, these add up to 1"
    },
}
"""Columns of a table of parcels, with their entries in its data dictionary."""

DESCRIPTION = "Lesion network maps and the lesion by the regions of an atlas"

ATLAS_KEYS = ("AtlasHash", "AtlasTransforms")
"""Keys of a sidecar that tell one content of an atlas from another."""


def read_parcels_sidecar(table: Path) -> dict[str, Any]:
    """Read the sidecar of a table of parcels; empty if the table or its sidecar is missing or damaged."""
    try:
        return read_json_object(sidecar_path(table)) if table.exists() else {}
    except (OSError, ValueError):
        return {}


def write_parcels(path: Path, rows: Iterable[Mapping[str, Any]], sidecar: Mapping[str, Any]) -> None:
    """Write a table of parcels, and then its sidecar, without which it counts as incomplete."""
    sidecar_path(path).unlink(missing_ok=True)
    write_table(path, list(COLUMNS), ([format_cell(row[name]) for name in COLUMNS] for row in rows))
    write_json(sidecar_path(path), {"Description": DESCRIPTION, **COLUMNS, **sidecar})


def format_cell(value: object) -> str:
    """Format a value as a cell of a BIDS table."""
    if isinstance(value, float):
        return f"{value:.7g}" if np.isfinite(value) else "n/a"
    return str(value) or "n/a"
