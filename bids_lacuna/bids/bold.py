"""BOLD runs of a connectome in the derivatives of fMRIPrep or XCP-D."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_lacuna.bids.index import (
    Image,
    check_dataset,
    explain_nothing,
    fits,
    list_images,
    read_filters,
)
from bids_lacuna.files import reached_once

logger = logging.getLogger(__name__)

BOLD_RULE = (
    "suffix bold, datatype func, task rest and the requested space, without echo; desc denoised, or preproc if no "
    "run is denoised"
)
"""Definition of a connectome's BOLD run without filters, in words."""


XCP_D_OPTIONS = ("--mode", "linc", "--file-format", "nifti")
"""Options with which XCP-D denoises by 36 parameters and a filter from 0.01 to 0.08 Hz, and writes NIfTI files."""


class NoBoldRuns(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """No file matches; the message has the request, the labels that exist instead, and near misses."""


@dataclass(frozen=True)
class BoldRun:
    """One BOLD run on disk."""

    path: Path
    """Absolute path, as in `LesionMask`."""
    entities: dict[str, str]
    """Labels by short entity name, as in `LesionMask`."""
    brain_mask: Path | None
    """File of the same name with `desc-brain_mask`: fMRIPrep writes one per BOLD run, XCP-D none."""


def find_bold_runs(derivatives_dir: Path, space: str, filters: Mapping[str, Any] | None = None) -> list[BoldRun]:
    """Find the BOLD runs of a connectome in the derivatives of fMRIPrep or XCP-D.

    Without filters, a BOLD run has the suffix bold, the datatype func, the task rest, the space and no echo. BOLD
    runs with the desc denoised are used if there are any, or else those with the desc preproc. These are taken with
    a warning, also where a filter selects them. A filter replaces the rule about its entity. A series that XCP-D
    concatenated from several BOLD runs is left out, with a warning, if those BOLD runs are used.

    Parameters
    ----------
    derivatives_dir
        Root of the dataset. Datasets below it are not searched.
    space
        Template space, as in the file names.
    filters
        As in `find_lesion_masks`.

    Returns
    -------
    list of BoldRun
        Sorted by path, including broken links.

    Raises
    ------
    NoBoldRuns
        Nothing matches.
    NotADirectoryError, FileNotFoundError, DamagedDataset, ValueError
        As in `find_lesion_masks`.
    """
    root = derivatives_dir.absolute()
    check_dataset(root)
    rule = {"suffix": "bold", "datatype": "func", "task": "rest", "space": space, "echo": None}
    query = read_filters(rule) | read_filters(filters or {})
    listed = reached_once(list_images("source", root, (), None), lambda image: image.path)
    images = [image for image in listed if "sub" in image.name]
    chosen = [image for image in images if fits(image, query)]
    if "desc" not in query:
        chosen = _prefer_denoised(chosen)
    _warn_of_missing_denoising(chosen, root)
    if not chosen:
        near = sorted((image for image in images if image.name["suffix"] == "bold"), key=lambda image: image.path)
        asked = {"space": space, "filters": filters}
        names = ("suffix", "task", "space", "desc", "ses", *query)
        raise NoBoldRuns("\n".join(explain_nothing("BOLD run", [root], asked, BOLD_RULE, names, images, near)))
    runs = _leave_out_concatenated(chosen)
    n_bold = sum(image.name["suffix"] == "bold" for image in images)
    logger.info("BOLD runs used in %s: %d of %d; the rule: %s", root, len(runs), n_bold, BOLD_RULE)
    masks = {
        _matching_key(image, "desc", "suffix"): image.path
        for image in images
        if image.name["suffix"] == "mask" and image.name.get("desc") == "brain"
    }
    return sorted(
        (BoldRun(run.path, run.entities, masks.get(_matching_key(run, "desc", "suffix"))) for run in runs),
        key=lambda run: run.path,
    )


def _warn_of_missing_denoising(images: Sequence[Image], root: Path) -> None:
    """Warn about BOLD runs that fMRIPrep preprocessed and nobody denoised, with XCP-D's command."""
    preprocessed = [image for image in images if image.name.get("desc") == "preproc"]
    if preprocessed:
        command = shlex.join(["xcp_d", str(root), str(root.with_name("xcp_d")), "participant", *XCP_D_OPTIONS])
        logger.warning(
            "BOLD runs that are preprocessed but not denoised: %d, such as %s; motion and the signals of white "
            "matter, cerebrospinal fluid and the whole brain are not regressed out, frequencies outside 0.01 to 0.08 "
            "Hz are not filtered out, and all of this will be in the maps: denoise them first, for example by `%s`, "
            "and build from its output",
            len(preprocessed),
            preprocessed[0].path,
            command,
        )


def _prefer_denoised(images: Sequence[Image]) -> list[Image]:
    """Return the denoised BOLD runs, or the preprocessed ones if there are none."""
    denoised, preprocessed = (
        [image for image in images if image.name.get("desc") == desc] for desc in ("denoised", "preproc")
    )
    lost = {image.name["sub"] for image in preprocessed} - {image.name["sub"] for image in denoised}
    if denoised and lost:
        logger.warning(
            "participants left out: %d, such as sub-%s; they have preprocessed but no denoised BOLD runs, unlike "
            "others: denoise theirs as well",
            len(lost),
            min(lost),
        )
    return denoised or preprocessed


def _leave_out_concatenated(images: Sequence[Image]) -> list[Image]:
    """Leave out series that XCP-D concatenated from BOLD runs that are used: these would count twice."""
    # XCP-D's --combine-runs names the series as its BOLD runs, without `run`, in newer versions also without `dir`.
    parts = {
        _matching_key(image, *dropped)
        for image in images
        for dropped in (("run",), ("run", "dir"))
        if not image.name.keys().isdisjoint(dropped)
    }
    concatenated = {
        image.path
        for image in images
        if image.name.get("desc", "").startswith("denoised") and _matching_key(image) in parts
    }
    if concatenated:
        logger.warning(
            "series left out: %d, such as %s; XCP-D concatenated them from BOLD runs that are used; the filter "
            '{"bold": {"run": null}} selects series without a run in their name instead',
            len(concatenated),
            min(concatenated),
        )
    return [image for image in images if image.path not in concatenated]


def _matching_key(image: Image, *dropped: str) -> tuple[Path, frozenset[tuple[str, str]]]:
    """Return the folder and the entities of an image without the dropped ones: equal for images that match."""
    left_out = ("extension", *dropped)
    return image.path.parent, frozenset((name, label) for name, label in image.name.items() if name not in left_out)
