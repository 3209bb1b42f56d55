"""Relation of a group's lesions to target networks: from sidecars, or computed with the targets given."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_lacuna.derivatives import SEED, TARGETS
from bids_lacuna.group.cohort import GroupLesion
from bids_lacuna.targets import IDENTITY_KEYS, Target, compare_with_target, describe_closeness, is_recorded
from bids_lacuna.weights import LesionWeights

Array = np.ndarray

COLUMNS = {
    "r": ("R", "Spatial correlation of the z-map with the target network {name}"),
    "r_outside": ("ROutsideLesion", "The same without the lesion's voxels"),
    "damage": ("DamageScore", "Mean of the target network {name} over the lesion, by the lesion's weights"),
}
"""Key in a sidecar, and description, of each column of a target, by the end of its name."""

OF_NULLS = {
    "r_percentile": (
        "RPercentile",
        "Percentile of r outside the lesion among the lesion's null lesions, by approximate maps on both sides",
    ),
    "damage_percentile": ("DamageScorePercentile", "Percentile of the mean over the lesion among the null lesions"),
}
"""The same of the columns that need null lesions."""


def relate_to_targets(
    lesion: GroupLesion, weights: LesionWeights, z_map: Array, targets: Sequence[Target]
) -> dict[str, Mapping[str, Any]]:
    """Return what is known of a lesion and target networks, by their names, as it stands in sidecars.

    Parameters
    ----------
    weights
        Weights of the lesion on the whole volume.
    z_map : shape (x, y, z)
    targets
        Targets on the whole volume; those that the sidecar has are not compared again.
    """
    recorded = lesion.sidecar.get(TARGETS)
    found = {
        name: entry
        for name, entry in (recorded.items() if isinstance(recorded, Mapping) else ())
        if isinstance(entry, Mapping)
    }
    for target in targets:
        if not is_recorded(target, found.get(target.name)):
            closeness = compare_with_target(z_map.reshape(-1), weights, target.values)
            found[target.name] = target.describe() | describe_closeness(closeness, SEED in lesion.sidecar)
    return found


def add_target_columns(
    rows: Sequence[dict[str, Any]], relations: Sequence[Mapping[str, Mapping[str, Any]]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Add the cells of target networks to the rows of lesions; none mixes files of one name.

    Parameters
    ----------
    relations
        From `relate_to_targets`, for each row.

    Returns
    -------
    columns
        Columns with their entries in the data dictionary.
    warnings
        Sentences for the user.
    """
    columns: dict[str, dict[str, Any]] = {}
    warnings = []
    for name in sorted({name for relation in relations for name in relation}):
        identities = [_identity(relation[name]) if name in relation else "" for relation in relations]
        ((chosen, _),) = Counter(filter(None, identities)).most_common(1)
        others = [row["lesion"] for row, each in zip(rows, identities, strict=True) if each not in ("", chosen)]
        if others:
            warnings.append(
                f"target {name}: {len(others)} lesions, such as {others[0]}, were compared with another file of this "
                "name than most, and have no figures: give --target at the participant level again, for all lesions"
            )
        entries = [
            relation[name] if each == chosen else {} for relation, each in zip(relations, identities, strict=True)
        ]
        columns |= _add_cells(name, rows, entries)
    return columns, warnings


def _add_cells(
    name: str, rows: Sequence[dict[str, Any]], entries: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Add the cells of one target, and return its columns."""
    first = next(entry for entry in entries if entry)
    origin = {"TargetNetwork": name, **{key: first[key] for key in ("File", *IDENTITY_KEYS) if key in first}}
    nulls = [entry.get("NullLesions") for entry in entries]
    sources: list[tuple[dict[str, tuple[str, str]], Sequence[Any]]] = [(COLUMNS, entries)]
    if any(nulls):
        sources.append((OF_NULLS, nulls))
    columns = {}
    for kind, of_lesions in sources:
        for end, (key, description) in kind.items():
            if not any(isinstance(entry, Mapping) and key in entry for entry in of_lesions):
                continue
            column = f"target_{name}_{end}"
            columns[column] = {"Description": description.format(name=name), **origin}
            for row, entry in zip(rows, of_lesions, strict=True):
                number = entry.get(key) if isinstance(entry, Mapping) else None
                row[column] = float(number) if isinstance(number, int | float) else float("nan")
    return columns


def _identity(entry: Mapping[str, Any]) -> str:
    return json.dumps([entry.get(key) for key in IDENTITY_KEYS], sort_keys=True)
