"""Masks of |t| for new thresholds, made from t-maps on disk: without a pass over the connectome."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bids_lacuna.derivatives.records import LesionRecord
from bids_lacuna.derivatives.writer import DerivativesWriter
from bids_lacuna.grid import Grid
from bids_lacuna.mapping.maps import read_t, threshold_t

logger = logging.getLogger(__name__)


def add_masks(records: Sequence[LesionRecord], writer: DerivativesWriter, grid: Grid, space: str) -> set[float]:
    """Write the masks of lesions that lack nothing else, and record these lesions as done.

    A lesion whose t-map cannot be read stays pending, and is mapped again.

    Parameters
    ----------
    grid, space
        Grid and template of the connectome.

    Returns
    -------
    set of float
        Thresholds of all masks that these lesions have now, those of earlier runs included; empty if there are no
        such lesions.
    """
    n_added, thresholds = 0, set[float]()
    for record in records:
        if record.status != "pending" or record.t_map is None:
            continue
        try:
            t = read_t(record.t_map, grid)
            masks = {each: threshold_t(t, each, grid, space) for each in writer.missing_thresholds(record)}
            writer.add_masks(record, masks)
            thresholds |= writer.thresholds(record)
            n_added += 1
        except (OSError, ValueError) as error:
            logger.warning("%s: no mask is made from its t-map, it is mapped again: %s", record.mask.path.name, error)
            record.t_map = None
    if n_added:
        logger.info("lesions whose masks were made from their t-maps: %d", n_added)
    return thresholds
