"""Tables of parcels of all lesions of a group, one long table for each atlas."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_lacuna._version import __version__
from bids_lacuna.derivatives import sidecar_path
from bids_lacuna.derivatives.parcels import ATLAS_DESCRIPTION_KEYS, COLUMNS, ParcelTable, find_parcels
from bids_lacuna.files import read_json_object, read_table, write_json, write_table
from bids_lacuna.group.cohort import IDENTITY_COLUMNS, GroupLesion
from bids_lacuna.provenance import Provenance

logger = logging.getLogger(__name__)

DESCRIPTION = "The tables of parcels of all lesions of the group, one below the other"


def write_group_parcels(
    lesions: Sequence[GroupLesion], provenance: Provenance, maps_dir: Path, folder: Path
) -> list[Path]:
    """Join the lesions' tables of parcels, and remove what an earlier group has.

    Parameters
    ----------
    lesions
        Lesions of the group.
    maps_dir
        Root of the dataset with their maps and tables.
    folder
        Folder of the group's files.

    Returns
    -------
    list of Path
        One table for each atlas.
    """
    by_atlas: dict[str, dict[str, ParcelTable]] = {}
    for lesion in lesions:
        for table in find_parcels(maps_dir / lesion.maps["r"], lesion.sidecar):
            name = "_".join(f"{entity}-{label}" for entity, label in table.atlas.items())
            by_atlas.setdefault(name, {})[lesion.name] = table
    paths = []
    _remove_earlier(folder, provenance.connectome_name)
    for name, tables in by_atlas.items():
        path = folder / f"group_{name}_desc-{provenance.connectome_name}_parcels.tsv"
        used = _keep_majority(tables, name, len(lesions))
        write_table(path, [*IDENTITY_COLUMNS, *COLUMNS], _rows(lesions, used))
        write_json(sidecar_path(path), _describe(used, maps_dir))
        paths.append(path)
    return paths


def _keep_majority(tables: Mapping[str, ParcelTable], name: str, n_lesions: int) -> dict[str, ParcelTable]:
    """Return the tables made with the content of the atlas that most were made with; tell what is missing."""
    contents = {lesion: str(table.sidecar.get("AtlasHash")) for lesion, table in tables.items()}
    ((most, n),) = Counter(contents.values()).most_common(1)
    if n < n_lesions:
        logger.warning(
            "%s: %d of %d lesions have parcels of the same atlas: give the others theirs by the participant level "
            "with --atlas",
            name,
            n,
            n_lesions,
        )
    return {lesion: table for lesion, table in tables.items() if contents[lesion] == most}


def _rows(lesions: Sequence[GroupLesion], tables: Mapping[str, ParcelTable]) -> Iterator[list[str]]:
    for lesion in lesions:
        if lesion.name in tables:
            for row in read_table(tables[lesion.name].path):
                yield [*lesion.identity.values(), *(row[column] for column in COLUMNS)]


def _describe(tables: Mapping[str, ParcelTable], maps_dir: Path) -> dict[str, Any]:
    first = next(iter(tables.values())).sidecar
    return {
        "Description": DESCRIPTION,
        **IDENTITY_COLUMNS,
        **COLUMNS,
        "NumberOfLesions": len(tables),
        **{key: first[key] for key in ATLAS_DESCRIPTION_KEYS if key in first},
        "SoftwareVersion": __version__,
        "Sources": [f"bids::{table.path.relative_to(maps_dir).as_posix()}" for table in tables.values()],
    }


def _remove_earlier(folder: Path, connectome_name: str) -> None:
    """Remove the tables of an earlier group in the same connectome."""
    for path in folder.glob("group_atlas-*_parcels.json"):
        try:
            same = read_json_object(path).get("ConnectomeName") == connectome_name
        except (OSError, ValueError):
            continue
        if same:
            path.with_suffix(".tsv").unlink(missing_ok=True)
            path.unlink()
