"""The comparison of a group with lesions at chance places, where the connectome has a summary."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bids_lacuna import kernels
from bids_lacuna.app.command import Exit, Stop
from bids_lacuna.app.nulls import Movable, Nulls, find_nulls
from bids_lacuna.connectome import Connectome
from bids_lacuna.connectome.summary import BLOCK_VOXELS
from bids_lacuna.derivatives import null_map_path, sidecar_path
from bids_lacuna.files import read_json_object
from bids_lacuna.group.chance import Chance, compare_with_chance
from bids_lacuna.group.chance_files import ALPHA, describe_significant, write_chance
from bids_lacuna.group.cohort import GroupLesion
from bids_lacuna.mapping import Summary
from bids_lacuna.mapping.nulls import Connectivity, NullLesion
from bids_lacuna.provenance import Provenance
from bids_lacuna.runtime.memory import resident_bytes
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.text import format_bytes

logger = logging.getLogger(__name__)

FEWEST_LESIONS = 2
"""Smallest number of lesions that are tested. Every place has a network of its own: a small p of one lesion would say
only that."""

SET_BYTES = (4 + 2) * BLOCK_VOXELS
"""Bytes per set of null lesions: sum and count of each voxel of a block."""


def find_group_nulls(
    arguments: argparse.Namespace, connectome: Connectome | None, summary: Summary | None
) -> Nulls | None:
    """Return what null lesions need, or None if the group is not compared with chance places.

    Raises
    ------
    Stop
        Null lesions were asked for, and there is no summary of a connectome.
    """
    if connectome is not None:
        return find_nulls(arguments, connectome, summary)
    if arguments.null_lesions:
        raise Stop(
            Exit.BAD_DATA,
            f"--null-lesions {arguments.null_lesions} needs the connectome's summary: name the connectome with "
            "--connectome",
        )
    return None


def find_movable(
    nulls: Nulls, lesions: Sequence[GroupLesion], provenance: Provenance, maps_dir: Path
) -> list[Movable]:
    """List the lesions of a group for an estimate of time."""
    return [
        Movable(
            float(lesion.sidecar["LesionVolume"]),
            partial(nulls.read, lesion.mask.path, maps_dir / lesion.maps["r"], provenance.options),
        )
        for lesion in lesions
    ]


def compare_group(
    nulls: Nulls,
    lesions: Sequence[GroupLesion],
    provenance: Provenance,
    maps_dir: Path,
    folder: Path,
    resources: Resources,
    show_progress: bool = True,
) -> Chance | None:
    """Compare a group with sets of null lesions, and write the result to the group's folder; None if it cannot be.

    Parameters
    ----------
    maps_dir
        Root of the lesions' maps.
    folder
        Folder of the group's files.
    """
    try:
        tissue = nulls.load_tissue()
    except (OSError, ValueError) as error:
        logger.warning("the group is not compared with chance places: %s", error)
        return None
    drawn: dict[str, tuple[GroupLesion, NullLesion]] = {}
    left_out: dict[str, str] = {}
    with (
        kernels.threads(resources.n_threads),
        Progress(len(lesions), "null lesions", "lesion", shown=show_progress) as progress,
    ):
        for lesion in lesions:
            try:
                r_map = maps_dir / lesion.maps["r"]
                drawn[lesion.name] = lesion, nulls.prepare(lesion.mask.path, r_map, provenance.options, tissue)
            except (OSError, ValueError) as error:
                left_out[lesion.name] = str(error)
                logger.warning("%s: not compared with chance places: %s", lesion.name, error)
            progress.update()
        if len(drawn) < FEWEST_LESIONS:
            logger.warning(
                "the group is not compared with chance places: %d of its lesions can be compared, %d are needed (one "
                "lesion has T among null lesions, a description)",
                len(drawn),
                FEWEST_LESIONS,
            )
            return None
        _check_memory(drawn, nulls.connectivity, resources)
        chance = compare_with_chance([lesion for _, lesion in drawn.values()], nulls.connectivity)
    summary = nulls.connectivity.summary
    compared = [lesion for lesion, _ in drawn.values()]
    approximation = read_approximations(compared, provenance, maps_dir, nulls.identity["SummaryHash"])
    identity = nulls.identity | {"ApproximationR": approximation}
    write_chance(chance, drawn, left_out, identity, provenance, summary, folder)
    n_significant = describe_significant(chance, summary)["NumberOfSignificantVoxels"]
    logger.info(
        "compared with %d sets of lesions at chance places: %d of %d voxels are significant at %g, smallest p = %.3g",
        chance.n_sets,
        n_significant,
        chance.n_voxels,
        ALPHA,
        chance.p,
    )
    return chance


def read_approximations(
    lesions: Sequence[GroupLesion], provenance: Provenance, maps_dir: Path, summary_hash: str
) -> dict[str, float | None]:
    """Return the r of each lesion's map with its approximation, from the sidecar of its T; None if it has none."""
    found = {}
    for lesion in lesions:
        sidecar: Mapping[str, Any] = {}
        with suppress(OSError, ValueError):
            sidecar = read_json_object(sidecar_path(maps_dir / null_map_path(lesion.mask, provenance)))
        is_same = sidecar.get("SummaryHash") == summary_hash
        found[lesion.name] = sidecar.get("ApproximationR") if is_same else None
    return found


def _check_memory(
    drawn: dict[str, tuple[GroupLesion, NullLesion]], connectivity: Connectivity, resources: Resources
) -> None:
    """Stop if the null lesions' weights do not fit the memory."""
    n_sets = max(1 + len(lesion.sets) for _, lesion in drawn.values())
    n_seeds = max(len(lesion.corners) for _, lesion in drawn.values())
    # Each thread has the maps of one lesion at all places in a tile of voxels.
    of_threads = resources.n_threads * 4 * n_seeds * kernels.NULL_TILE
    more_bytes = connectivity.fixed_bytes(resources.n_threads) + of_threads + n_sets * (SET_BYTES + 4 * len(drawn))
    free_bytes = resources.available_bytes - resident_bytes()
    if more_bytes > free_bytes:
        needed = sum(lesion.n_bytes for _, lesion in drawn.values()) + more_bytes
        raise Stop(
            Exit.FAILED,
            f"the null lesions of {len(drawn)} lesions need {format_bytes(needed)}, of which "
            f"{format_bytes(max(0, more_bytes - free_bytes))} are missing: raise --mem, or use fewer --null-lesions",
        )
