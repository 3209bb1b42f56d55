"""Lesion masks, recognized by name, sidecar and filters."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_lacuna.bids.absence import (
    ParticipantWithoutMask,
    Search,
    describe_absence,
    find_absences,
    find_left_out,
    find_misnamed_folders,
)
from bids_lacuna.bids.attribution import describe_loose_name, describe_wrong_name, folder_label
from bids_lacuna.bids.index import (
    Image,
    check_dataset,
    check_labels,
    explain_nothing,
    fits,
    list_searchable_images,
    listing,
    parse_name,
    read_filters,
)
from bids_lacuna.bids.metadata import Metadata
from bids_lacuna.bids.rule import LESION_RULE, LESION_WORDS, MASK_SUFFIXES, is_lesion
from bids_lacuna.files import reached_once

logger = logging.getLogger(__name__)


class NoLesionMasks(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """No file matches; the message has the request, the labels that exist instead, and near misses."""


@dataclass(frozen=True)
class LesionMask:
    """One lesion mask on disk."""

    path: Path
    """Absolute path; a symbolic link is not resolved, since the targets of DataLad's links have no BIDS names."""
    entities: dict[str, str]
    """Labels by short entity name, in the file name's order, without suffix and extension."""
    space: str | None
    """Space in the name, or else the SpatialReference in a JSON file beside the mask or higher up, or else None."""
    dataset: str
    """`source` for the BIDS dataset itself, or else the name of the additional dataset."""
    dataset_path: Path
    """Absolute path of the dataset's root."""
    problem: str = ""
    """Why it is unclear whose mask this is, with advice; empty if it is clear."""
    seed: Mapping[str, Any] | None = None
    """What the sidecars of a seed's maps say of it; None for a lesion."""

    @property
    def name(self) -> str:
        """Name of the lesion, not of the file: entities without space and resolution."""
        return "_".join(f"{name}-{label}" for name, label in self.entities.items() if name not in ("space", "res"))


def find_lesion_masks(
    bids_dir: Path,
    derivatives: Mapping[str, Path] = {},
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    filters: Mapping[str, Any] | None = None,
    database_dir: Path | None = None,
) -> list[LesionMask]:
    """Find the lesion masks of a BIDS dataset and of additional datasets.

    Without filters, a lesion mask has the suffix mask or roi and either the label L, or "lesion", "infarct" or
    "stroke" in its label or desc, or `"Type": "Lesion"` in a JSON file beside it or higher up. A filter on label,
    desc or suffix replaces the rule about label, desc and JSON file; a filter on suffix also replaces the rule about
    suffixes. A file with `stat` in its name is a map of a lesion, not its mask, unless a filter on `stat` selects it.

    Parameters
    ----------
    bids_dir
        Root of a raw or derivative dataset. Datasets below it are not searched.
    derivatives
        Roots of additional datasets, by name.
    participant_labels, session_labels
        Labels with or without `sub-` and `ses-`; empty for all.
    filters
        Label or list of labels by entity, with the entity's short name or pybids' long one. "*" stands for any
        label, None for no label.
    database_dir
        Folder for an index of each dataset, kept between calls. Changes to a dataset go unnoticed.

    Returns
    -------
    list of LesionMask
        Sorted by path, including broken links.

    Raises
    ------
    NoLesionMasks
        Nothing matches.
    UnknownParticipant
        No dataset has a folder for one of the participants or sessions.
    NotADirectoryError, FileNotFoundError
        A root is not a folder or has no dataset_description.json.
    DamagedDataset
        A dataset_description.json cannot be used.
    ValueError
        An entity is unknown, or an additional dataset is called `source`.
    """
    search = _read_search(bids_dir, derivatives, participant_labels, session_labels, filters)
    for root in search.datasets.values():
        check_dataset(root)
    check_labels("participant", search.participants, search.datasets.values(), "sub-*")
    check_labels("session", search.sessions, search.datasets.values(), "sub-*/ses-*")

    everything = (
        image
        for dataset, root in search.datasets.items()
        for image in list_searchable_images(dataset, root, search.participants, database_dir)
    )
    listed = reached_once(everything, lambda image: image.path)
    _warn_about_missing_labels(listed)
    images = [
        image
        for image in listed
        if "sub" in image.name
        and (not search.participants or not _labels(image, "sub").isdisjoint(search.participants))
    ]
    metadata = Metadata()
    chosen = [
        image
        for image in images
        if (not search.sessions or not _labels(image, "ses").isdisjoint(search.sessions))
        and fits(image, search.query)
        and is_lesion(image, metadata, search.query)
    ]
    _warn_about_loose_names(chosen)
    masks = [
        LesionMask(
            image.path, image.entities, metadata.space(image), image.dataset, image.root, describe_wrong_name(image)
        )
        for image in chosen
    ]
    if not masks:
        asked = {"participants": search.participants, "sessions": search.sessions, "filters": filters}
        raise NoLesionMasks(_explain_no_masks(asked, search, images, database_dir))
    logger.info("lesion masks in %s: %d", listing(search.datasets.values()), len(masks))
    return sorted(masks, key=lambda mask: mask.path)


def find_participants_without_mask(
    masks: Sequence[LesionMask],
    bids_dir: Path,
    derivatives: Mapping[str, Path] = {},
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    filters: Mapping[str, Any] | None = None,
) -> list[ParticipantWithoutMask]:
    """Find the participants who have a folder, or were asked for, but no lesion mask, and warn about them.

    Parameters
    ----------
    masks
        Masks that `find_lesion_masks` found with the other arguments.
    bids_dir, derivatives, participant_labels, session_labels, filters
        As in `find_lesion_masks`.

    Returns
    -------
    list of ParticipantWithoutMask
        Sorted by label.
    """
    search = _read_search(bids_dir, derivatives, participant_labels, session_labels, filters)
    images = [Image(mask.dataset, mask.dataset_path, mask.path, mask.entities) for mask in masks]
    covered = {label for image in images for label in _labels(image, "sub")}
    found = {mask.path for mask in masks}
    without = find_absences(search, covered)
    for sentence in describe_absence(without, len(covered)):
        logger.warning("%s", sentence)
    if left_out := find_left_out(search, found, covered):
        first = min(left_out)
        logger.warning(
            "left out, although they may be or hold further lesion masks: %d, such as %s: %s",
            len(left_out),
            first,
            left_out[first],
        )
    if folders := find_misnamed_folders(search, found):
        logger.warning(
            "folders left out that may be participants': %s; name each sub-<label>, as the files in it",
            listing(folders),
        )
    return without


def _read_search(
    bids_dir: Path,
    derivatives: Mapping[str, Path],
    participant_labels: Sequence[str],
    session_labels: Sequence[str],
    filters: Mapping[str, Any] | None,
) -> Search:
    """Normalize the arguments of a search."""
    if "source" in derivatives:
        raise ValueError("an additional dataset is called source, as the BIDS dataset itself: give it another name")
    return Search(
        {name: path.absolute() for name, path in {"source": bids_dir, **derivatives}.items()},
        [label.removeprefix("sub-") for label in participant_labels],
        [label.removeprefix("ses-") for label in session_labels],
        read_filters(filters or {}),
    )


def _labels(image: Image, level: str) -> set[str]:
    """Return the participant's or session's label in an image's name, and the one of its folder if that differs."""
    labels = {image.name.get(level), folder_label(image, level)}
    return {label for label in labels if label is not None}


def _warn_about_loose_names(masks: Sequence[Image]) -> None:
    """Warn about names of masks that are only partly understood."""
    loose = {image.path: words for image in masks if (words := describe_loose_name(image))}
    if loose:
        first = min(loose)
        logger.warning("masks whose names lose something: %d, such as %s: %s", len(loose), first, loose[first])


def _warn_about_missing_labels(images: Sequence[Image]) -> None:
    """Warn about images in participants' folders that may be lesion masks but have no sub-<label>."""
    unlabelled = [
        image.path
        for image in images
        if "sub" not in image.name
        and "sub-" in str(image.path.parent.relative_to(image.root))
        and any(word in image.path.name.lower() for word in (*LESION_WORDS, *MASK_SUFFIXES))
    ]
    if unlabelled:
        logger.warning(
            "images left out because their names have no sub-<label>: %d, such as %s; name a mask as in "
            "sub-01_space-MNI152NLin6Asym_label-lesion_mask.nii.gz",
            len(unlabelled),
            min(unlabelled),
        )


def _explain_no_masks(
    asked: Mapping[str, Any], search: Search, images: Sequence[Image], database_dir: Path | None
) -> str:
    """List the request, the labels that exist instead, and what may help."""
    metadata = Metadata()
    near = sorted(
        (image for image in images if image.name["suffix"] in MASK_SUFFIXES),
        key=lambda image: (not is_lesion(image, metadata), image.path),
    )
    names = ("suffix", "label", "desc", "space", "ses", *search.query)
    lines = explain_nothing("lesion mask", search.datasets.values(), asked, LESION_RULE, names, images, near)
    listed = {image.path for image in near}
    absences = [absence for absence in find_absences(search, ()) if absence.path and absence.path not in listed]
    lines += [f"near miss: {absence.path}: {absence.reason}" for absence in absences[:5]]
    derivatives = search.datasets["source"] / "derivatives"
    for folder in [derivatives, *sorted(derivatives.glob("*/"))]:
        paths = folder.glob("sub-*/**/*.nii*")
        if folder not in search.datasets.values() and any(
            is_lesion(Image(folder.name, folder, path, parse_name(path)), metadata) for path in paths
        ):
            lacks = (
                "" if (folder / "dataset_description.json").exists() else ", and give it a dataset_description.json"
            )
            lines.append(f"{folder} has lesion masks: add -d {folder}{lacks}")
    if database_dir is not None:
        lines.append(f"the index in {database_dir} may be older than the dataset: delete it to search again")
    return "\n".join(lines)
