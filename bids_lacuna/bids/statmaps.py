"""Lesions' maps: which files of the program's own output they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bids_lacuna.bids.index import check_dataset, list_images


@dataclass(frozen=True)
class StatMap:
    """One map of a lesion on disk, or the mask of one above a threshold."""

    path: PurePosixPath
    """Relative to the dataset's root."""
    entities: dict[str, str]
    """As `LesionMask.entities`; `stat` is one of them."""
    suffix: str
    """`statmap`; `mask` where a threshold was applied."""


def find_stat_maps(
    derivatives_dir: Path, participant_labels: Sequence[str] = (), session_labels: Sequence[str] = ()
) -> list[StatMap]:
    """Find the maps of participants' lesions: what has a `stat` in its name, and the suffix statmap or mask.

    Parameters
    ----------
    derivatives_dir
        Root of the dataset that the participant level wrote.
    participant_labels, session_labels
        As in `find_lesion_masks`.

    Returns
    -------
    list of StatMap
        Sorted by path; empty where there are none.

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
