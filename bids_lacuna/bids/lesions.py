"""Lesion masks: which files of a dataset they are, by name, sidecar and filters."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_lacuna.bids.index import (
    Image,
    check_dataset,
    check_labels,
    explain_nothing,
    find_space,
    fits,
    list_images,
    listing,
    parse_name,
    read_filters,
    read_sidecar,
)

logger = logging.getLogger(__name__)

MASK_SUFFIXES = ("mask", "roi")
"""BIDS has `mask`; `roi` is what fMRIPrep still reads."""

LESION_WORDS = ("lesion", "infarct", "stroke")
"""A label or desc with one of them in it names a lesion, as in label-acuteinfarct or desc-T1lesion."""

LESION_RULE = (
    "suffix mask or roi; and label L, or lesion, infarct or stroke in the label or desc, "
    'or "Type": "Lesion" in the JSON file beside it'
)
"""In words, what a lesion mask is when no filter says otherwise."""


class NoLesionMasks(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """No file matches; the message holds the query, near misses and what there is instead."""


@dataclass(frozen=True)
class LesionMask:
    """One lesion mask on disk."""

    path: Path
    """Absolute; a symbolic link stays one, since DataLad's point to names that are not BIDS."""
    entities: dict[str, str]
    """Short names to labels in the file name's order, without suffix and extension."""
    space: str | None
    """The space in the name, else the SpatialReference in the JSON file beside the mask, else None."""
    dataset: str
    """`source` for the BIDS dataset itself, else the name that the further dataset was given."""
    dataset_path: Path
    """Absolute path of that dataset's root."""

    @property
    def name(self) -> str:
        """Name the lesion, not the file: entities without space and resolution."""
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
    """Find the lesion masks of a BIDS dataset and of further datasets.

    Without filters, a lesion mask has the suffix mask or roi and either the label L, or "lesion", "infarct" or
    "stroke" in its label or desc, or `"Type": "Lesion"` in its sidecar. A filter on label, desc or suffix takes the
    place of the rule about label, desc and sidecar, one on suffix also that of mask or roi. What has a `stat` in its
    name is a map of a lesion, not its mask, unless a filter asks for `stat`.

    Parameters
    ----------
    bids_dir
        Root of a dataset, raw or derivative. Datasets below it are not looked in.
    derivatives
        Names to roots of the datasets to look in as well.
    participant_labels, session_labels
        With or without `sub-` and `ses-`; all of them where empty.
    filters
        Entities, by their short names or pybids' long ones, to a label, a list of labels, "*" (there is one) or None
        (there is none).
    database_dir
        Keeps an index of each dataset from call to call. It does not notice when a dataset changes.

    Returns
    -------
    list of LesionMask
        Sorted by path. Links are listed even where what they point to is not there.

    Raises
    ------
    NoLesionMasks
        Nothing matches.
    UnknownParticipant
        No dataset has a folder for one of the participants or sessions.
    NotADirectoryError, FileNotFoundError
        A root is no folder, or has no dataset_description.json.
    DamagedDataset
        A dataset_description.json cannot be used.
    ValueError
        An entity is unknown, or a further dataset called `source`.
    """
    if "source" in derivatives:
        raise ValueError("a further dataset is called source, the BIDS dataset's own name: give it another one")
    datasets = {name: path.absolute() for name, path in {"source": bids_dir, **derivatives}.items()}
    for root in datasets.values():
        check_dataset(root)
    query = read_filters(filters or {})
    participants = [label.removeprefix("sub-") for label in participant_labels]
    sessions = [label.removeprefix("ses-") for label in session_labels]
    check_labels("participant", participants, datasets.values(), "sub-*")
    check_labels("session", sessions, datasets.values(), "sub-*/ses-*")

    listed = [
        image
        for dataset, root in datasets.items()
        for image in list_images(dataset, root, participants, database_dir)
    ]
    _warn_of_nameless(listed)
    images = [
        image for image in listed if "sub" in image.name and (not participants or image.name["sub"] in participants)
    ]
    masks = [
        LesionMask(image.path, image.entities, find_space(image), image.dataset, image.root)
        for image in images
        if (not sessions or image.name.get("ses") in sessions) and fits(image, query) and _is_lesion(image, query)
    ]
    if not masks:
        asked = {"participants": participants, "sessions": sessions, "filters": filters}
        raise NoLesionMasks(_explain_no_masks(asked, query, datasets, images, database_dir))
    logger.info("lesion masks in %s: %d", listing(datasets.values()), len(masks))
    return sorted(masks, key=lambda mask: mask.path)


def _is_lesion(image: Image, filtered: Collection[str] = ()) -> bool:
    """Apply the rule of what a lesion mask is, but for what filters decide."""
    if "suffix" not in filtered and image.name["suffix"] not in MASK_SUFFIXES:
        return False
    if "stat" not in filtered and "stat" in image.name:
        return False
    if not {"label", "desc", "suffix"}.isdisjoint(filtered) or image.name.get("label") == "L":
        return True
    names = f"{image.name.get('label')} {image.name.get('desc')}".lower()
    return any(word in names for word in LESION_WORDS) or read_sidecar(image).get("Type") == "Lesion"


def _warn_of_nameless(images: Sequence[Image]) -> None:
    """Tell of what participants have that may be lesion masks by its words, but by its name is nobody's."""
    nameless = [
        image.path
        for image in images
        if "sub" not in image.name
        and "sub-" in str(image.path.parent.relative_to(image.root))
        and any(word in image.path.name.lower() for word in (*LESION_WORDS, *MASK_SUFFIXES))
    ]
    if nameless:
        logger.warning(
            "left out, since their names have no sub-<label>: %d images, such as %s; name a mask as in "
            "sub-01_space-MNI152NLin6Asym_label-lesion_mask.nii.gz",
            len(nameless),
            min(nameless),
        )


def _explain_no_masks(
    asked: Mapping[str, Any],
    query: Collection[str],
    datasets: Mapping[str, Path],
    images: Sequence[Image],
    database_dir: Path | None,
) -> str:
    """Say what was asked for and where, what there is instead, and what may help."""
    near = sorted(
        (image for image in images if image.name["suffix"] in MASK_SUFFIXES),
        key=lambda image: (not _is_lesion(image), image.path),
    )
    names = ("suffix", "label", "desc", "space", "ses", *query)
    lines = explain_nothing("lesion mask", datasets.values(), asked, LESION_RULE, names, images, near)
    derivatives = datasets["source"] / "derivatives"
    for folder in [derivatives, *sorted(derivatives.glob("*/"))]:
        paths = folder.glob("sub-*/**/*.nii*")
        if folder not in datasets.values() and any(
            _is_lesion(Image(folder.name, folder, path, parse_name(path))) for path in paths
        ):
            lacks = (
                "" if (folder / "dataset_description.json").exists() else ", and give it a dataset_description.json"
            )
            lines.append(f"{folder} has lesion masks: add -d {folder}{lacks}")
    if database_dir is not None:
        lines.append(f"the index in {database_dir} may be older than the dataset: delete it to look again")
    return "\n".join(lines)
