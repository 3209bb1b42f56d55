"""Tables of parcels: what the regions of an atlas have of a lesion and of its maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_lacuna.derivatives.names import PARCELS, lesion_path, sidecar_path
from bids_lacuna.derivatives.records import DECIDING
from bids_lacuna.files import read_json_object, renamed_when_whole, write_json, write_table
from bids_lacuna.images import save_gzipped

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

ATLAS_ENTITIES = ("atlas", "seg", "scale")

ATLAS_KEYS = ("AtlasHash", "AtlasTransforms")
"""Keys of a sidecar that tell one content of an atlas from another."""

ATLAS_DESCRIPTION_KEYS = (
    "SpatialReference",
    "ConnectomeName",
    "ConnectomeHash",
    "Atlas",
    "AtlasFile",
    "AtlasTable",
    "AtlasHash",
    "AtlasSoftware",
    "AtlasTransforms",
)
"""Keys of a sidecar about an atlas on a connectome's grid."""


PLACED_DESCRIPTION = "An atlas on the connectome's grid: the label of the region that fills most of each voxel"


@dataclass(frozen=True)
class ParcelTable:
    """The table of a lesion and an atlas."""

    path: Path
    atlas: Mapping[str, str]
    """Entities of the atlas: `atlas`, and `seg` and `scale` if it has them."""
    sidecar: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the atlas for people."""
        return " ".join(self.atlas.values())


def find_parcels(r_map: Path, sidecar: Mapping[str, Any]) -> list[ParcelTable]:
    """List the tables that were made from the maps of a lesion, sorted by their names.

    Parameters
    ----------
    r_map, sidecar
        The lesion's r-map, and its sidecar.
    """
    return [
        ParcelTable(path, atlas, there)
        for path, atlas in list_parcels(r_map)
        if (there := read_sidecar_of(path)) and not differ(there, sidecar, DECIDING)
    ]


def list_parcels(r_map: Path) -> list[tuple[Path, dict[str, str]]]:
    """List a lesion's tables of parcels, whatever they were made from, each with the entities of its atlas."""
    paths = sorted(r_map.parent.glob(f"*_stat-mean_*_{PARCELS}.tsv"))
    found = [(path, _find_atlas(path.name, r_map.name)) for path in paths]
    return [(path, atlas) for path, atlas in found if atlas is not None]


def is_beside(name: str, r_map: str) -> bool:
    """Return whether a file belongs to a lesion beside its maps, by its name: a table of parcels, or weights."""
    weights = lesion_path(Path(r_map))
    if name in (weights.name, sidecar_path(weights).name):
        return True
    return f"_{PARCELS}." in name and _find_atlas(name, r_map) is not None


def _find_atlas(name: str, r_map: str) -> dict[str, str] | None:
    """Return the atlas's entities in the name of a lesion's table or its sidecar; None if it is another lesion's."""
    entities = _entities(name)
    atlas = {entity: entities.pop(entity) for entity in ATLAS_ENTITIES if entity in entities}
    return atlas if entities == _entities(r_map) | {"stat": "mean"} else None


def _entities(name: str) -> dict[str, str]:
    return dict(part.split("-", 1) for part in name.partition(".")[0].split("_") if "-" in part)


def differ(there: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> bool:
    """Return whether two sidecars differ in any of some keys."""
    return any(there.get(key) != now.get(key) for key in keys)


def read_sidecar_of(path: Path) -> dict[str, Any]:
    """Read the sidecar of a table or image; empty if one of both is missing, or the sidecar is damaged."""
    try:
        return read_json_object(sidecar_path(path)) if path.exists() else {}
    except (OSError, ValueError):
        return {}


def write_parcels(path: Path, rows: Iterable[Mapping[str, Any]], sidecar: Mapping[str, Any]) -> None:
    """Write a table of parcels, and then its sidecar, without which it counts as incomplete."""
    sidecar_path(path).unlink(missing_ok=True)
    write_table(path, list(COLUMNS), ([format_cell(row[name]) for name in COLUMNS] for row in rows))
    write_json(sidecar_path(path), {"Description": DESCRIPTION, **COLUMNS, **sidecar})


def write_placed_atlas(
    path: Path, image: nib.Nifti1Image, regions: Iterable[tuple[int, str]], sidecar: Mapping[str, Any]
) -> None:
    """Write an atlas on a connectome's grid, the names of its regions, and a sidecar.

    Parameters
    ----------
    regions
        Index and name of each region.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sidecar_path(path).unlink(missing_ok=True)
    with renamed_when_whole(path) as temporary:
        save_gzipped(image, temporary)
    rows = ([str(index), name] for index, name in regions)
    write_table(sidecar_path(path).with_suffix(".tsv"), ["index", "name"], rows)
    write_json(sidecar_path(path), {"Description": PLACED_DESCRIPTION, **sidecar})


def format_cell(value: object) -> str:
    """Format a value as a cell of a BIDS table."""
    if isinstance(value, float):
        return f"{value:.7g}" if np.isfinite(value) else "n/a"
    return str(value) or "n/a"
