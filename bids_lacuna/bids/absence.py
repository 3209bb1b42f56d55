"""Participants without a lesion mask, and files that just miss being one."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_lacuna.bids.attribution import folder_label, label_of_folder
from bids_lacuna.bids.index import IMAGE_SUFFIXES, NOT_UTF8, Image, fits, listing, parse_name
from bids_lacuna.bids.metadata import Metadata
from bids_lacuna.bids.rule import LESION_WORDS, MASK_SUFFIXES, is_lesion

MOST_LABELS = 200
"""Participants that one warning names; lesions.tsv has all."""

OTHER_WORDS = (
    "tumor",
    "tumour",
    "wmh",
    "glioma",
    "bleed",
    "haemorrhage",
    "hemorrhage",
    "hematoma",
    "resection",
    "cmb",
)
"""Words for other lesions, which no rule recognizes."""

NOT_LESIONS = re.compile(r"(?i)_(desc-brain|label-(bg|brain|b|c?gm|sgm|n?gm|wm|csf|skull|head|bs|cbm))_")
"""Names of masks of the brain and of tissues."""

NOT_IMAGES = re.compile(
    r"(?i)\.(json|tsv|csv|txt|bvals?|bvecs?|html?|svg|png|jpe?g|gif|pdf|md|log|gii|h5|xfm|lta|tfm|mat|py|sh|m)$"
)
"""Endings of files that accompany images."""

OTHER_FORMATS = re.compile(r"(?i)\.(mg[hz]|hdr|img|nrrd|nhdr|mh[ad]|mnc|dcm|ima|par|rec|head|brik|gipl)(\.gz)?$")
"""Endings of images in formats other than NIfTI."""

UNREADABLE = "a folder cannot be read: check its permissions"
"""Reason why a participant's masks are unknown."""

FOLDER_NEAR_MISS = re.compile(r"(?i)(sub|subject|participant|patient|pat)[-_ ]?[a-z0-9+]+")
"""Name of a folder that is probably a participant's, including right ones."""


@dataclass(frozen=True)
class ParticipantWithoutMask:
    """A participant for whom no lesion mask was found."""

    label: str
    """Label, without `sub-`."""
    dataset: str
    """Name of the dataset with the participant's folder, as in `LesionMask`."""
    reason: str
    """Why there is no mask, with advice."""
    path: Path | None = None
    """File or folder that the reason is about."""


@dataclass(frozen=True)
class Search:
    """What masks were searched for, and where."""

    datasets: Mapping[str, Path]
    """Roots of the datasets by name."""
    participants: Sequence[str]
    sessions: Sequence[str]
    """Labels that were asked for; empty for all."""
    query: Mapping[str, Collection[str | None]]
    """Filters, as from `read_filters`."""


def find_absences(search: Search, covered: Collection[str]) -> list[ParticipantWithoutMask]:
    """Find the participants who have a folder, or were asked for, but no lesion mask.

    Parameters
    ----------
    search
        The search for the masks.
    covered
        Labels of the participants with masks.

    Returns
    -------
    list of ParticipantWithoutMask
        Sorted by label.
    """
    folders = _participants_folders(search)
    metadata = Metadata()
    return [
        _explain_absence(label, folders.get(label, []), search, metadata)
        for label in sorted(search.participants or folders)
        if label not in covered
    ]


def find_left_out(search: Search, found: Collection[Path], covered: Collection[str]) -> dict[Path, str]:
    """Find files of participants with masks that would be further masks, but for the ending of their names.

    Folders that cannot be read are among them.

    Parameters
    ----------
    search, covered
        As in `find_absences`.
    found
        Paths of the masks.

    Returns
    -------
    dict
        Reason by path.
    """
    left_out = {}
    metadata = Metadata()
    # A copy beside a mask, in another format or a download's second try, loses nothing.
    stems = {(path.parent, _split(path.name)[0]) for path in found}
    for label, folders in _participants_folders(search).items():
        for dataset, folder in folders if label in covered else []:
            unreadable: list[OSError] = []
            for path in _list_files(folder, unreadable, _has_other_ending):
                stem, ending = _split(path.name)
                image = _as_image(dataset, search.datasets[dataset], path)
                if (
                    (path.parent, stem) not in stems
                    and _is_wanted(image, search)
                    and _is_mask(image, metadata, search)
                ):
                    left_out[path] = _describe_ending(ending)
            left_out |= {Path(error.filename): UNREADABLE for error in unreadable}
    return left_out


def find_misnamed_folders(search: Search, found: Collection[Path]) -> list[Path]:
    """Find folders whose names are probably meant as `sub-<label>`, with files that may be masks but none that is."""
    candidates = [
        (dataset, folder)
        for dataset, root in search.datasets.items()
        for folder in sorted(root.iterdir())
        if FOLDER_NEAR_MISS.fullmatch(folder.name) and not folder.name.startswith("sub-") and folder.is_dir()
    ]
    metadata = Metadata()
    return [
        folder
        for dataset, folder in candidates
        if not any(path.is_relative_to(folder) for path in found)
        and any(
            _describe_near_miss(_as_image(dataset, search.datasets[dataset], path), path, search, metadata)
            for path in _list_files(folder, [])
        )
    ]


def describe_absence(without: Sequence[ParticipantWithoutMask], n_covered: int) -> list[str]:
    """Describe in one sentence per reason which participants have no mask."""
    by_reason: dict[str, list[ParticipantWithoutMask]] = defaultdict(list)
    for participant in without:
        by_reason[participant.reason].append(participant)
    return [
        f"participants without a lesion mask: {len(alike)} of {n_covered + len(without)}, "
        f"{listing((f'sub-{participant.label}' for participant in alike), MOST_LABELS)}: {reason}"
        + (f" (such as {alike[0].path})" if alike[0].path else "")
        for reason, alike in by_reason.items()
    ]


def _participants_folders(search: Search) -> dict[str, list[tuple[str, Path]]]:
    """List each participant's folders, with the names of their datasets."""
    folders: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for dataset, root in search.datasets.items():
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if entry.name.startswith("sub-") and entry.is_dir())
        for name in names:
            folders[label_of_folder(name, "sub") or ""].append((dataset, root / name))
    return folders


def _explain_absence(
    label: str, folders: Sequence[tuple[str, Path]], search: Search, metadata: Metadata
) -> ParticipantWithoutMask:
    """Explain why a participant has no mask, by the nearest miss among the files in the participant's folders."""
    unreadable: list[OSError] = []
    misses: list[tuple[int, Path, str]] = []
    for dataset, folder in folders:
        for path in _list_files(folder, unreadable):
            image = _as_image(dataset, search.datasets[dataset], path)
            if miss := _describe_near_miss(image, path, search, metadata):
                misses.append((miss[0], path, miss[1]))
    dataset = folders[0][0] if folders else "source"
    if unreadable:
        place = Path(unreadable[0].filename)
        return ParticipantWithoutMask(label, dataset, UNREADABLE, place)
    if misses:
        _, path, reason = min(misses)
        return ParticipantWithoutMask(label, dataset, reason, path)
    return ParticipantWithoutMask(label, dataset, "no file there looks like one")


def _is_mask(image: Image, metadata: Metadata, search: Search) -> bool:
    """Return whether an image is a mask by its name, apart from participant and session."""
    return fits(image, search.query) and is_lesion(image, metadata, search.query)


def _describe_near_miss(image: Image, path: Path, search: Search, metadata: Metadata) -> tuple[int, str] | None:
    """Describe why a file is not used as a lesion mask; None if nothing suggests that it is one.

    Returns
    -------
    rank
        Lower for files that are more likely a lesion mask.
    reason
        Reason with advice, without the file's name.
    """
    stem, ending = _split(path.name)
    ending_reason = "" if ending in IMAGE_SUFFIXES else _describe_ending(ending)
    if _is_mask(image, metadata, search):
        if ending_reason:
            return 0, ending_reason
        if "sub" not in image.name:
            return 0, "a file's name has no sub-<label>: rename the file"
        if image.name["sub"] != folder_label(image, "sub"):
            return 0, "a mask there has another participant's label in its name: rename or move it"
        if NOT_UTF8.search(str(path)):
            return 0, "a file's name is not UTF-8: rename the file"
        if not _is_wanted(image, search):
            return 3, "the masks are of other sessions than those asked for"
        return 1, "a mask is missing in the dataset's index: delete the folder of --bids-database-dir"
    if "stat" in image.name:
        return None
    if is_lesion(image, metadata):
        return 2, "the filters leave a mask out: change the --bids-filter-file"
    return _describe_other_name(image, f"_{stem}_", ending_reason)


def _describe_other_name(image: Image, stem: str, ending_reason: str) -> tuple[int, str] | None:
    """Describe why a name is not that of a lesion mask; None if it does not resemble one."""
    suffix = image.name["suffix"]
    resembles = any(word in stem.lower() for word in (*LESION_WORDS, *OTHER_WORDS)) or image.name.get("label") == "L"
    is_mask = suffix in MASK_SUFFIXES
    if NOT_LESIONS.search(stem) or not (resembles or is_mask or suffix.lower().startswith(MASK_SUFFIXES)):
        return None
    if ending_reason:
        return 5 - resembles, f"{ending_reason}, and name it ..._label-lesion_mask.nii.gz"
    if not is_mask:
        return (
            5 - resembles,
            f"a file's suffix is {suffix}, not mask: name it ..._label-lesion_mask.nii.gz, or select it with "
            f'--bids-filter-file and {{"lesion": {{"suffix": "{suffix}"}}}}',
        )
    if label := image.name.get("label"):
        return (
            5 - resembles,
            f"a mask's label is {label}, not lesion: select it with --bids-filter-file and "
            f'{{"lesion": {{"label": "{label}"}}}}, or rename it',
        )
    return 6 - resembles, "a mask has no label-lesion in its name: rename it if it is a lesion mask"


def _describe_ending(ending: str) -> str:
    if OTHER_FORMATS.search(ending):
        return f"a file's ending is {ending}: convert it to NIfTI (.nii.gz)"
    if ending.lower() in IMAGE_SUFFIXES:
        return f"a file's ending is {ending}: rename it to {ending.lower()}"
    return f"a file's ending is {ending!r}: save or rename it as .nii.gz"


def _is_wanted(image: Image, search: Search) -> bool:
    """Return whether an image is of a session that was asked for."""
    labels = {image.name.get("ses"), folder_label(image, "ses")}
    return not search.sessions or not labels.isdisjoint(search.sessions)


def _as_image(dataset: str, root: Path, path: Path) -> Image:
    """Return a file as if its name had the ending .nii.gz."""
    renamed = path.with_name(f"{_split(path.name)[0]}.nii.gz")
    return Image(dataset, root, renamed, parse_name(renamed))


def _split(name: str) -> tuple[str, str]:
    """Split a file name at the first dot of its ending."""
    stem, dot, ending = name.partition(".")
    return stem, dot + ending


def _has_other_ending(name: str) -> bool:
    """Return whether a file's ending resembles that of a NIfTI file, or is that of another format."""
    ending = _split(name)[1]
    return ending not in IMAGE_SUFFIXES and (".nii" in ending.lower() or OTHER_FORMATS.search(ending) is not None)


def _may_be_image(name: str) -> bool:
    return NOT_IMAGES.search(name) is None


def _list_files(
    folder: Path, unreadable: list[OSError], chosen: Callable[[str], bool] = _may_be_image
) -> Iterator[Path]:
    """List the files in a folder and below whose names are chosen; hidden ones are skipped."""
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        try:
            # Without the permission to search it, a folder may be listed, but its files are out of reach.
            os.stat(f"{place}/.")  # noqa: PTH116
        except OSError as error:
            unreadable.append(error)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and chosen(name):
                yield Path(place, name)
