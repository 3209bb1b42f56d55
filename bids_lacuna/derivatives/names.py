"""File names of maps, which this module alone builds and parses, and of the group's files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_lacuna.provenance import Provenance

if TYPE_CHECKING:
    # Processes that draw pages import this package, but do without pybids.
    from bids_lacuna.bids import LesionMask

GROUP_TABLE = "group_lesions.tsv"

GROUP_DICTIONARY = "group_lesions.json"
"""Data dictionary of the group's table; it also lists the group's other files."""

GROUP_PAGE = "group.html"

FIGURES = "figures"
"""Folder of the pictures of participants' and groups' pages."""

# fmt: off
ENTITY_ORDER = (
    "sub", "tpl", "ses", "cohort", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec",
    "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk",
    "atlas", "seg", "scale", "res", "den", "label", "stat", "desc",
)
# fmt: on
"""Order of entities in BIDS, with `stat` at its position in fitlins."""

TRANSFORMS = "LesionTransforms"
"""Key of the transforms from a mask's space to the connectome's, in a sidecar of a lesion that needed some."""

REMARKS = "LesionRemarks"
"""Key, in a sidecar, of what a person should look at in the mask: a list of a few words each."""

SEED = "Seed"
"""Key, in a sidecar, of the spheres of a seed, none of a seed that is an image; absent in that of a lesion."""

LOWEST_WEIGHT = 1e-6
"""Smallest weight of a transformed lesion that counts where its weights are read from disk."""

SIMILARITY = "ConnectomeSimilarity"
"""Key, in a map's sidecar, of its similarity to the connectome as a whole."""

TARGETS = "TargetNetworks"
"""Key, in an r-map's sidecar, of how the lesion relates to each target network, by the targets' names."""

WITHOUT_NULLS = "WithoutNullLesions"
"""Key, in an r-map's sidecar, of why the lesion has no T among null lesions, and of what that was decided with."""

NULL = "null"
"""Appended to the connectome's name in the names of maps that compare a lesion with its null lesions."""

PARCELS = "parcels"
"""Suffix of tables of parcels."""

LAST_BEFORE_SPACE = ENTITY_ORDER.index("space") - 0.5
"""Sort key of entities unknown to BIDS."""


def group_folder(output_dir: Path, name: str | None) -> Path:
    """Return the folder of a group's files: the output's root, or that of a group with a name."""
    return output_dir / f"group_{name}" if name else output_dir


def map_path(
    mask: LesionMask,
    provenance: Provenance,
    *,
    stat: str,
    threshold: float | None = None,
    what: str = "",
    atlas: Mapping[str, str] = {},
) -> PurePosixPath:
    """Return the path of one map, relative to the output's root.

    The mask's `desc` precedes the connectome's name, so that masks that differ in `desc` alone have separate maps.
    If the mask's name has a `res`, the map's name has the connectome's.

    Parameters
    ----------
    stat
        Statistic: r, z, t or n; zscore for T among null lesions.
    threshold
        If given, the path is that of the mask of |stat| above this threshold.
    what
        Appended to the connectome's name.
    atlas
        Entities of an atlas, for what was made with it.
    """
    desc = mask.entities.get("desc", "") + provenance.connectome_name + what
    if threshold is not None:
        desc += "T" + number_label(threshold)
    entities = {
        **mask.entities,
        **atlas,
        "space": provenance.space,
        "res": resolution_label(provenance.voxel_sizes_mm) if "res" in mask.entities else "",
        "label": mask.entities.get("label", "lesion"),
        "stat": stat,
        "desc": desc,
    }
    ordered = sorted(
        entities, key=lambda name: ENTITY_ORDER.index(name) if name in ENTITY_ORDER else LAST_BEFORE_SPACE
    )
    name = "_".join(f"{entity}-{entities[entity]}" for entity in ordered if entities[entity])
    folder = PurePosixPath(*(f"{level}-{entities[level]}" for level in ("sub", "ses") if level in entities), "func")
    return folder / f"{name}_{'statmap' if threshold is None else 'mask'}.nii.gz"


def null_map_path(mask: LesionMask, provenance: Provenance) -> PurePosixPath:
    """Return the path of a lesion's T among its null lesions, relative to the output's root."""
    return map_path(mask, provenance, stat="zscore", what=NULL)


def parcels_path(mask: LesionMask, provenance: Provenance, atlas: Mapping[str, str]) -> PurePosixPath:
    """Return the path of a lesion's table of parcels, relative to the output's root.

    Parameters
    ----------
    atlas
        Entities of the atlas: `atlas`, and `seg` and `scale` if it has them.
    """
    path = map_path(mask, provenance, stat="mean", atlas=atlas)
    return path.with_name(path.name.replace("_statmap.nii.gz", f"_{PARCELS}.tsv"))


def placed_atlas_path(space: str, connectome_name: str, atlas: Mapping[str, str]) -> PurePosixPath:
    """Return the path of an atlas on a connectome's grid, relative to the output's root; `atlas` as above."""
    label = "_".join(f"{entity}-{name}" for entity, name in atlas.items())
    return PurePosixPath(f"tpl-{space}", f"tpl-{space}_{label}_desc-{connectome_name}_dseg.nii.gz")


def find_lesion(mask: Path, r_map: Path, sidecar: Mapping[str, Any]) -> tuple[Path, float | None]:
    """Return the file that shows a lesion in the space of its maps, and the lowest weight that counts there.

    Parameters
    ----------
    mask
        Path of the mask, which may be in another space.
    r_map, sidecar
        Path and sidecar of the lesion's r-map.
    """
    if TRANSFORMS in sidecar:
        return lesion_path(r_map), LOWEST_WEIGHT
    return mask, sidecar.get("LesionThreshold")


def lesion_path(r_map: Path) -> Path:
    """Return the path of a transformed lesion's weights on the connectome's grid, beside its r-map."""
    return r_map.with_name(r_map.name.replace("_stat-r_", "_").replace("_statmap.nii", "_probseg.nii"))


def number_label(number: float) -> str:
    """Return a number as a BIDS label, which has letters and digits only: 7.5 is 7p5."""
    return np.format_float_positional(number, trim="-").replace(".", "p")


def resolution_label(voxel_sizes_mm: Sequence[float]) -> str:
    """Return voxel sizes as a BIDS label: 2, or 2x2x3 if they differ."""
    sizes = [number_label(size) for size in voxel_sizes_mm]
    return sizes[0] if len(set(sizes)) == 1 else "x".join(sizes)


def expected_maps(mask: LesionMask, provenance: Provenance) -> list[PurePosixPath]:
    """Return the paths of all maps that each mask gets, relative to the output's root."""
    stats = ["r", "z", "t"] if provenance.options.compute_t_map else ["r", "z"]
    return [*(map_path(mask, provenance, stat=stat) for stat in stats), *expected_masks(mask, provenance).values()]


def expected_masks(mask: LesionMask, provenance: Provenance) -> dict[float, PurePosixPath]:
    """Return the paths of the masks of |t| by threshold, relative to the output's root."""
    return {
        threshold: map_path(mask, provenance, stat="t", threshold=threshold)
        for threshold in provenance.options.t_thresholds
    }


def sidecar_path(path: Path) -> Path:
    """Return the path of an image's or a table's JSON sidecar."""
    return path.with_name(path.name.removesuffix(".nii.gz").removesuffix(".tsv") + ".json")


def before_statistic(name: str) -> str:
    """Return the part of a map's name that depends on its lesion."""
    return name.partition("_stat-")[0]


def is_of_lesion(name: str, r_map: str) -> bool:
    """Return whether a map or sidecar has the same lesion and connectome as an r-map, by their names."""
    before, after = map(re.escape, r_map.removesuffix("_statmap.nii.gz").rsplit("_stat-r_", 1))
    return bool(re.fullmatch(rf"{before}_stat-[a-z]+_{after}((null)?_statmap|T[0-9p]+_mask)\.(nii\.gz|json)", name))
