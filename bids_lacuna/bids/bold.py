"""The BOLD runs of a connectome: which files of a derivative dataset they are."""

from __future__ import annotations

import logging
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

logger = logging.getLogger(__name__)

BOLD_RULE = (
    "suffix bold, datatype func, task rest and the space asked for, without echo; desc denoised, or preproc where no "
    "run is denoised"
)
"""In words, what a run of a connectome is when no filter says otherwise."""


class NoBoldRuns(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """As `NoLesionMasks`."""


@dataclass(frozen=True)
class BoldRun:
    """One BOLD series on disk."""

    path: Path
    """As `LesionMask.path`."""
    entities: dict[str, str]
    """As `LesionMask.entities`."""
    brain_mask: Path | None
    """The file of the same name but for `desc-brain_mask`: fMRIPrep writes one for each run, XCP-D none."""


def find_bold_runs(derivatives_dir: Path, space: str, filters: Mapping[str, Any] | None = None) -> list[BoldRun]:
    """Find the runs of a connectome in the derivatives of fMRIPrep or XCP-D.

    Without filters, a run has the suffix bold, the datatype func, the task rest, the space and no echo. If any such
    run has the desc denoised, those are taken, else those with the desc preproc, with a warning. A filter takes the
    place of the rule about its entity. What XCP-D joined from several runs is left out, with a warning, where those
    runs are taken.

    Parameters
    ----------
    derivatives_dir
        Root of the dataset. Datasets below it are not looked in.
    space
        The template, as it stands in the files' names.
    filters
        As in `find_lesion_masks`.

    Returns
    -------
    list of BoldRun
        Sorted by path. Links are listed even where what they point to is not there.

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
    images = [image for image in list_images("source", root, (), None) if "sub" in image.name]
    chosen = [image for image in images if fits(image, query)]
    if "desc" not in query:
        chosen = _prefer_denoised(chosen)
    if not chosen:
        near = sorted((image for image in images if image.name["suffix"] == "bold"), key=lambda image: image.path)
        asked = {"space": space, "filters": filters}
        names = ("suffix", "task", "space", "desc", "ses", *query)
        raise NoBoldRuns("\n".join(explain_nothing("BOLD run", [root], asked, BOLD_RULE, names, images, near)))
    runs = _leave_out_joined(chosen)
    n_bold = sum(image.name["suffix"] == "bold" for image in images)
    logger.info("BOLD runs taken in %s: %d of %d; the rule: %s", root, len(runs), n_bold, BOLD_RULE)
    masks = {
        _likeness(image, "desc", "suffix"): image.path
        for image in images
        if image.name["suffix"] == "mask" and image.name.get("desc") == "brain"
    }
    return sorted(
        (BoldRun(run.path, run.entities, masks.get(_likeness(run, "desc", "suffix"))) for run in runs),
        key=lambda run: run.path,
    )


def _prefer_denoised(images: Sequence[Image]) -> list[Image]:
    """Take the denoised runs, or if there are none the preprocessed ones."""
    denoised, preprocessed = (
        [image for image in images if image.name.get("desc") == desc] for desc in ("denoised", "preproc")
    )
    if preprocessed and not denoised:
        logger.warning(
            "%d runs, such as %s, are preprocessed but not denoised: nuisance signals and motion are still in "
            "them, and will be in the maps; denoise them first, for example with XCP-D",
            len(preprocessed),
            preprocessed[0].path,
        )
    lost = {image.name["sub"] for image in preprocessed} - {image.name["sub"] for image in denoised}
    if denoised and lost:
        logger.warning(
            "participants left out: %d, such as sub-%s; they have preprocessed runs but no denoised ones, which "
            "the others have",
            len(lost),
            min(lost),
        )
    return denoised or preprocessed


def _leave_out_joined(images: Sequence[Image]) -> list[Image]:
    """Leave out what XCP-D joined from several runs, where these are taken: they would count twice."""
    # XCP-D's --combine-runs writes it under the runs' name without `run`, in newer versions also without `dir`.
    parts = {
        _likeness(image, *dropped)
        for image in images
        for dropped in (("run",), ("run", "dir"))
        if not image.name.keys().isdisjoint(dropped)
    }
    joined = {
        image.path
        for image in images
        if image.name.get("desc", "").startswith("denoised") and _likeness(image) in parts
    }
    if joined:
        logger.warning(
            "%d series, such as %s, are left out: XCP-D joined them from runs that are taken; the filter "
            '{"bold": {"run": null}} chooses those without a run in their name instead',
            len(joined),
            min(joined),
        )
    return [image for image in images if image.path not in joined]


def _likeness(image: Image, *dropped: str) -> tuple[Path, frozenset[tuple[str, str]]]:
    """Reduce an image to its folder and name, without the extension and what is dropped: what equal ones share."""
    left_out = ("extension", *dropped)
    return image.path.parent, frozenset((name, label) for name, label in image.name.items() if name not in left_out)
