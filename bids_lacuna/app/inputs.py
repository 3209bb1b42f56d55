"""Inputs of both levels: lesion masks and the connectome."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bids_lacuna.app.command import Exit, Stop, ending, make_cache_folder, warn_of_space
from bids_lacuna.app.seeds import find_seeds
from bids_lacuna.bids import (
    MASK_SUFFIXES,
    DamagedDataset,
    LesionMask,
    NoLesionMasks,
    ParticipantWithoutMask,
    UnknownParticipant,
    find_lesion_masks,
    find_participants_without_mask,
    read_filter_file,
)
from bids_lacuna.connectome import Connectome, is_store
from bids_lacuna.spaces import check_template

logger = logging.getLogger(__name__)

STORE_SPEEDUP = 30
"""Time to read gzipped HDF5 divided by the time to read a store, measured by `make bench`."""


def find_masks(
    arguments: argparse.Namespace,
    datasets: Mapping[str, Path],
    space: str | None = None,
    seeds_dir: Path | None = None,
) -> tuple[list[LesionMask], list[ParticipantWithoutMask]]:
    """Find the masks selected by the arguments, and the participants without one.

    Parameters
    ----------
    space
        Space of coordinates without `--coordinates-space`; by default that of their masks on disk.
    seeds_dir
        Root of the masks of coordinates; by default the output's.
    """
    if arguments.coordinates_space and not arguments.coordinates:
        raise Stop(Exit.USAGE, "--coordinates-space is of coordinates: name their table with --coordinates")
    if arguments.coordinates and arguments.bids_filter_file:
        raise Stop(
            Exit.USAGE, "--bids-filter-file chooses images, and --coordinates maps none: leave out one of them"
        )
    if arguments.coordinates:
        return find_seeds(arguments, datasets, space, seeds_dir or arguments.output_dir), []
    with ending(Exit.NO_INPUT, OSError), ending(Exit.USAGE, ValueError):
        filters = read_filter_file(arguments.bids_filter_file) if arguments.bids_filter_file else {}
    if arguments.seed_label and "label" in filters:
        raise Stop(Exit.USAGE, f"{arguments.bids_filter_file} has labels, as --seed-label: leave out one of them")
    if arguments.seed_label:
        filters = {"suffix": [*MASK_SUFFIXES, "probseg"], **filters, "label": arguments.seed_label}
    database_dir = None if arguments.dry_run else arguments.bids_database_dir
    if database_dir:
        make_cache_folder(database_dir)
    with (
        ending(Exit.NO_FILES_SELECTED, NoLesionMasks),
        ending(Exit.NO_INPUT, UnknownParticipant),
        ending(Exit.NO_INPUT, PermissionError, saying="a dataset cannot be searched: check its permissions"),
        ending(Exit.USAGE, ValueError),
        ending(Exit.NOT_BIDS, FileNotFoundError, NotADirectoryError, DamagedDataset),
    ):
        derivatives = {name: path for name, path in datasets.items() if name != "source"}
        selection = {
            "participant_labels": arguments.participant_label,
            "session_labels": arguments.session_label,
            "filters": filters,
        }
        masks = find_lesion_masks(arguments.bids_dir, derivatives, **selection, database_dir=database_dir)
        if arguments.seed_label:
            masks = [replace(mask, seed={}) for mask in masks]
        return masks, find_participants_without_mask(masks, arguments.bids_dir, derivatives, **selection)


def open_connectome(arguments: argparse.Namespace) -> Connectome:
    """Open the connectome given by the arguments."""
    if arguments.connectome_space:
        with ending(Exit.USAGE, ValueError):
            check_template(arguments.connectome_space)
    with ending(Exit.NO_INPUT, FileNotFoundError, PermissionError), ending(Exit.BAD_DATA, ValueError):
        connectome = Connectome.open(
            arguments.connectome, name=arguments.connectome_name, space=arguments.connectome_space
        )
    if not is_store(arguments.connectome):
        logger.warning(
            "reading %s takes about %d times as long as reading a store: build one, once, with "
            "`bids-lacuna-connectome build %s STORE --space %s --name %s`",
            arguments.connectome,
            STORE_SPEEDUP,
            shlex.quote(str(arguments.connectome)),
            connectome.space,
            connectome.name,
        )
    warn_of_space(connectome.space)
    if connectome.n_subjects < 2:
        logger.warning(
            "the connectome %s has one subject, but t needs at least two: t is NaN everywhere",
            connectome.path,
        )
    logger.info(
        "connectome %s: %d subjects, %d voxels, space %s",
        connectome.name,
        connectome.n_subjects,
        connectome.grid.n_voxels,
        connectome.space,
    )
    return connectome
