"""The group that a folder already describes, compared with one that would replace it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_lacuna.derivatives import GROUP_DICTIONARY
from bids_lacuna.files import read_json_object
from bids_lacuna.group.cohort import CONNECTOME_KEYS, Group


def describe_replaced(folder: Path, group: Group) -> str:
    """Describe how the group on disk differs from another one; empty if there is none, or it has the same make-up.

    Groups with the same lesions, connectome and weights are the same, whatever their thresholds. A lesion that was
    left out because of its maps was asked for, too.

    Parameters
    ----------
    folder
        Folder of the group's files.
    group
        Group that would replace it.
    """
    try:
        earlier = read_json_object(folder / GROUP_DICTIONARY)
    # The dictionary is written last: without it, an earlier run was killed, and nothing is complete.
    except (OSError, ValueError):
        return ""
    differences = _describe_settings(earlier, group)
    names = {lesion.name for lesion in group.lesions}
    before = set(earlier.get("ClusteringOrder", ()))
    asked_before = before | {lesion.get("Lesion") for lesion in earlier.get("LeftOut", ())}
    asked_now = names | {lesion.name for lesion in group.left_out}
    if gone := before - asked_now:
        verb = "is" if len(gone) == 1 else "are"
        differences.append(f"{len(gone)} of them {verb} not in this one, such as {min(gone)}")
    if new := names - asked_before:
        differences.append(f"it lacks {len(new)}, such as {min(new)}")
    plural = "" if len(before) == 1 else "s"
    return f"another group of {len(before)} lesion{plural} ({'; '.join(differences)})" if differences else ""


def _describe_settings(earlier: Mapping[str, Any], group: Group) -> list[str]:
    provenance = group.provenance
    connectome = (provenance.connectome_name, provenance.connectome_hash, provenance.space)
    now = {**dict(zip(CONNECTOME_KEYS, connectome, strict=True)), **provenance.options.sidecar}
    return [f"its {key} is {earlier.get(key)}" for key, value in now.items() if earlier.get(key) != value]
