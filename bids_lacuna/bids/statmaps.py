"""Lesions' maps in the output of the participant level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bids_lacuna.bids.index import check_dataset, list_images


@dataclass(frozen=True)
class StatMap:
    """One map of a lesion on disk, or a thresholded mask of one."""

    path: PurePosixPath
    """Path relative to the dataset's root."""
    entities: dict[str, str]
    """Labels by short entity name, as in `LesionMask`, including `stat`."""
    suffix: str
    """`statmap`, or `mask` for a thresholded mask."""


def find_stat_maps(
    derivatives_dir: Path, participant_labels: Sequence[str] = (), session_labels: Sequence[str] = ()
) -> list[StatMap]:
    """Find the maps of participants' lesions: files with `stat` in their names and the suffix statmap or mask.

    Parameters
    ----------
    derivatives_dir
        Root of the dataset that the participant level wrote.
    participant_labels, session_labels
        As in `find_lesion_masks`.

    Returns
    -------
    list of StatMap
        Sorted by path; empty if there are none.

    Raises
    ------
    NotADirectoryError, FileNotFoundError, DamagedDataset
        As in `find_lesion_masks`.
    """
    root = derivatives_dir.absolute()
    check_dataset(root)
    participants = [label.removeprefix("sub-") for label in participant_labels]
    sessions = [label.removeprefix("ses-") for label in session_labels]
    images = list_images("source", root, participants, None)
    maps = [
        StatMap(PurePosixPath(image.path.relative_to(root)), image.entities, image.name["suffix"])
        for image in images
        if {"sub", "stat"} <= image.name.keys()
        and image.name["suffix"] in ("statmap", "mask")
        and (not participants or image.name["sub"] in participants)
        and (not sessions or image.name.get("ses") in sessions)
    ]
    return sorted(maps, key=lambda stat_map: stat_map.path)
