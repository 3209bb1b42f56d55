"""Similarity of maps to their connectome's degree and principal components, added to sidecars of finished maps."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection
from functools import partial
from pathlib import Path

from bids_lacuna.app.command import Exit, Stop
from bids_lacuna.connectome import Connectome, is_store
from bids_lacuna.connectome.summary import FOLDER, has_summary
from bids_lacuna.derivatives import SIMILARITY, LesionRecord, add_to_each, map_path, sidecar_path
from bids_lacuna.derivatives.parcels import read_sidecar_of
from bids_lacuna.files import read_json_object, write_json
from bids_lacuna.images import open_image
from bids_lacuna.mapping import FunctionalNetworkMapping, Summary
from bids_lacuna.provenance import Provenance

logger = logging.getLogger(__name__)


def find_summary(arguments: argparse.Namespace, connectome: Connectome) -> Summary | None:
    """Open the summary of the connectome, if there is one that can be used."""
    given: Path | None = arguments.connectome_summary
    if given and not has_summary(given):
        raise Stop(
            Exit.NO_INPUT,
            f"there is no summary of the connectome in {given}: make one with `bids-lacuna-connectome summarize "
            f"{connectome.path} --output {given}`, or correct --connectome-summary",
        )
    if not given and not has_summary(connectome.path / FOLDER):
        # Without a store, there is a warning that asks for one.
        if is_store(connectome.path):
            logger.info(
                "the connectome has no summary, with which each map is compared to degree and to null lesions: make "
                "it, once, with `bids-lacuna-connectome summarize %s`, and rerun the same command",
                connectome.path,
            )
        return None
    try:
        return Summary.open(connectome, given)
    except (OSError, ValueError) as error:
        logger.warning("maps are compared neither to the connectome's degree nor to null lesions: %s", error)
        return None


def add_similarity(
    summary: Summary, records: Collection[LesionRecord], output_dir: Path, analysis: FunctionalNetworkMapping
) -> list[str]:
    """Add the similarity to the sidecars of the r-maps that lack it.

    Parameters
    ----------
    records
        Records of lesions; those without maps are left alone.
    output_dir
        Root of the derivative dataset.
    analysis
        Analysis that made the maps.

    Returns
    -------
    list of str
        Labels of the participants with a sidecar that has changed.
    """
    due = (record for record in records if lacks_similarity(summary, record, output_dir, analysis.provenance))
    add = partial(_add, summary, output_dir, analysis)
    return add_to_each(due, add, "its map is not compared to the connectome's degree")


def lacks_similarity(summary: Summary, record: LesionRecord, output_dir: Path, provenance: Provenance) -> bool:
    """Return whether a lesion has maps that were not compared with this summary."""
    if not record.can_gain(provenance.space):
        return False
    earlier = read_sidecar_of(output_dir / map_path(record.mask, provenance, stat="r")).get(SIMILARITY)
    return not isinstance(earlier, dict) or earlier.get("SummaryHash") != summary.arrays.record.content_hash


def _add(summary: Summary, output_dir: Path, analysis: FunctionalNetworkMapping, record: LesionRecord) -> None:
    """Add the similarity to one sidecar."""
    sidecar = sidecar_path(output_dir / map_path(record.mask, analysis.provenance, stat="r"))
    content = read_json_object(sidecar)
    z_map = open_image(output_dir / map_path(record.mask, analysis.provenance, stat="z"), "map")
    weights = analysis.row(analysis.load(record.as_lesion()))
    similarity = summary.similarity(z_map, weights.voxels)
    write_json(sidecar, content | {SIMILARITY: summary.describe(similarity)})
