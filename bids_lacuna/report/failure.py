"""The section of a participant's page about a mask that was not mapped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_lacuna.derivatives import FIGURES, OUTCOMES, Outcome
from bids_lacuna.report import figures
from bids_lacuna.report.maps_on_disk import find_mask
from bids_lacuna.report.pages import anchor, position
from bids_lacuna.report.pictures import Picture, Pictures
from bids_lacuna.runtime.logs import LOG_FILE
from bids_lacuna.spaces import is_own

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Contents of the section of one mask."""

    mask: str
    """Path in its dataset."""
    anchor: str
    reason: str
    picture: Picture | None
    """The mask on the template; None if it cannot be read."""
    why_no_picture: str
    log: str
    """Log of the run that did not map it, relative to the output's root; "" if it no longer exists."""
    table: str
    """Table of outcomes of that run."""


def describe_failure(output_dir: Path, label: str, outcome: Outcome, links: Mapping[str, Any]) -> Failure:
    """Describe why a mask was not mapped, and draw it if it can be read.

    Parameters
    ----------
    links
        From `read_links`.
    """
    log = outcome.log_dir / LOG_FILE
    picture, why_no_picture = _draw(output_dir, label, outcome, links)
    return Failure(
        outcome.mask[1],
        anchor(f"failed-{outcome.mask[0]}-{outcome.mask[1]}"),
        outcome.row.get("reason", "n/a"),
        picture,
        why_no_picture,
        log.relative_to(output_dir).as_posix() if log.is_file() else "",
        (outcome.log_dir / OUTCOMES).relative_to(output_dir).as_posix(),
    )


def _draw(output_dir: Path, label: str, outcome: Outcome, links: Mapping[str, Any]) -> tuple[Picture | None, str]:
    """Draw a mask; return its picture, or why there is none."""
    mask = find_mask(output_dir, links, *outcome.mask)
    threshold = outcome.run.provenance.options.lesion_threshold if outcome.run else None
    if is_own(space := outcome.row.get("space", "")):
        return None, f"The mask is not drawn: it lies in the participant's own space {space}, not on the template."
    try:
        shape = figures.read_lesion(mask, threshold)
        folder = output_dir / f"sub-{label}" / FIGURES
        folder.mkdir(parents=True, exist_ok=True)
        pictures = Pictures(output_dir, folder / mask.name.removesuffix(".gz").removesuffix(".nii"))
        path = pictures.path("lesion.png")
        figures.draw_lesion(path, shape)
        where = f"around {position(shape.centre_mm)} mm"
        return (
            pictures.add(
                "Mask on the template",
                path,
                f"Slices of the MNI template with the mask in red, {where}",
                f"The mask (red) where its header places it on the MNI template, {where}.",
            ),
            "",
        )
    # The border of a mask that was not mapped: often, it is the mask that is damaged.
    except Exception as error:
        logger.debug("traceback of the failure below", exc_info=True)
        return None, f"The mask is not drawn: {str(error) or type(error).__name__}."
