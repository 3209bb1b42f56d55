"""Tests in a group's folder whose maps, patients or columns are no longer those of the group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_lacuna.files import read_json_object
from bids_lacuna.group.cohort import GroupLesion
from bids_lacuna.group.contrast_files import RECORDS, hash_design, hash_maps, remove_test
from bids_lacuna.group.design import COVERAGE, VOLUME, BadDesign, Question, make_design
from bids_lacuna.group.table import BadTable, Key, Table


def list_keys(lesions: Sequence[GroupLesion]) -> list[Key]:
    """Return participant and session of each lesion's maps."""
    return [(lesion.mask.entities["sub"], lesion.mask.entities.get("ses", "")) for lesion in lesions]


def list_measures(lesions: Sequence[GroupLesion]) -> dict[str, list[float]]:
    """Return what the maps' sidecars know of each lesion, for covariates."""
    keys = {VOLUME: "LesionVolume", COVERAGE: "LesionCoverage"}
    return {name: [float(lesion.sidecar[key]) for lesion in lesions] for name, key in keys.items()}


def remove_stale_tests(
    folder: Path, lesions: Sequence[GroupLesion], maps_dir: Path, read_table: Callable[[str], Table]
) -> list[str]:
    """Remove tests that do not fit the group, and return a sentence about each.

    Parameters
    ----------
    folder
        Folder of the group's files.
    lesions
        Lesions in the group.
    maps_dir
        Root of the dataset with their maps.
    read_table
        Reads the table that a record names; raises OSError if there is none any more.
    """
    sentences = []
    for path in sorted(folder.glob(RECORDS)):
        label = path.name.removeprefix("group_contrast-").removesuffix("_design.json")
        try:
            record = read_json_object(path)
            reason = _explain(record, lesions, maps_dir, read_table)
        except (ValueError, KeyError, TypeError):
            record, reason = {}, "its record is damaged"
        if reason:
            remove_test(folder, label)
            sentences.append(
                f"the test of {record.get('Column', label)} was removed: {reason}; run it again with --test"
            )
    return sentences


def _explain(
    record: Mapping[str, Any],
    lesions: Sequence[GroupLesion],
    maps_dir: Path,
    read_table: Callable[[str], Table],
) -> str:
    """Explain why a test does not fit; "" if it does."""
    stat, asked = record["InputStatistic"], record["Question"]
    question = Question(**{**asked, "covariates": tuple(asked["covariates"])})
    tested = set(record["Sources"])
    kept = [lesion for lesion in lesions if f"bids::{lesion.maps[stat]}" in tested]
    try:
        table = read_table(record["Table"])
    except (OSError, BadTable):
        # Without its table, only the maps can be compared.
        table = None
    if table is not None:
        try:
            design = make_design(list_keys(lesions), table, question, list_measures(lesions))
        except (BadDesign, BadTable) as error:
            return f"it can no longer be done ({error})"
        if hash_design(design) != record["TableHash"]:
            return "its columns or its patients have changed"
        kept = [lesions[index] for index in design.kept]
    try:
        same = hash_maps(kept, maps_dir, stat) == record["MapsHash"]
    except OSError as error:
        return f"a map cannot be read ({error})"
    return "" if same else "its maps have changed, or the group has other patients"
