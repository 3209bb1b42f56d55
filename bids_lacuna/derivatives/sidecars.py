"""The contents of maps' sidecars, and the order in which they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_lacuna.derivatives.names import REMARKS, SEED
from bids_lacuna.derivatives.records import lesion_provenance
from bids_lacuna.files import sync_folder, write_json
from bids_lacuna.lesion import LesionData
from bids_lacuna.provenance import Provenance

if TYPE_CHECKING:
    from bids_lacuna.bids import LesionMask


def describe_maps(
    mask: LesionMask, lesion: LesionData, provenance: Provenance, links: Mapping[str, str], n_subjects: int
) -> dict[str, Any]:
    """Return what the sidecars of all maps of a lesion say.

    Parameters
    ----------
    links
        Name of each dataset in DatasetLinks, from `prepare_dataset`.
    n_subjects
        Number of connectome subjects in the maps.
    """
    sidecar = {
        "Sources": [f"bids:{links[mask.dataset]}:{mask.path.relative_to(mask.dataset_path).as_posix()}"],
        "SpatialReference": provenance.space,
        "NumberOfConnectomeSubjects": n_subjects,
        "DegreesOfFreedom": n_subjects - 1,
        "LesionVolume": lesion.volume_mm3,
        "LesionVolumeUnits": "mm^3",
        "LesionCoverage": lesion.coverage,
        **lesion_provenance(mask, provenance, lesion.transform),
        "SoftwareVersion": provenance.version,
    }
    if lesion.transform and lesion.template_volume_mm3 and lesion.volume_mm3:
        sidecar["LesionVolumeInTemplate"] = lesion.template_volume_mm3
        sidecar["LesionVolumeRatio"] = lesion.template_volume_mm3 / lesion.volume_mm3
    if lesion.facts:
        sidecar[REMARKS] = list(lesion.facts.remarks)
    if mask.seed is not None:
        sidecar[SEED] = mask.seed
    if "res" in mask.entities:
        sizes = " x ".join(f"{size:g}" for size in provenance.voxel_sizes_mm)
        sidecar["Resolution"] = f"{sizes} mm, the connectome's grid"
    return sidecar


def write_sidecars(sidecars: Mapping[Path, Mapping[str, Any]]) -> None:
    """Write the sidecars of maps in one folder; a map with a sidecar counts as complete."""
    folders = {path.parent for path in sidecars}
    # All maps are on the disk before the first sidecar.
    for folder in folders:
        sync_folder(folder)
    for path, content in sidecars.items():
        write_json(path, content, sync=False)
    for folder in folders:
        sync_folder(folder)
