"""The group level: what the maps of a dataset's lesions have in common."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bids_lacuna._version import __version__
from bids_lacuna.app.chance import compare_group, find_group_nulls, find_movable
from bids_lacuna.app.command import Exit, Stop, ending
from bids_lacuna.app.contrast import (
    Asked,
    describe_test_time,
    keep_other_test,
    read_named_table,
    read_question,
    run_test,
)
from bids_lacuna.app.inputs import find_masks, open_connectome
from bids_lacuna.app.nulls import Nulls, describe_time
from bids_lacuna.app.reports import write_group_page
from bids_lacuna.app.runlog import keeping_log, name_log_dir
from bids_lacuna.app.similarity import find_summary
from bids_lacuna.app.targets import read_targets
from bids_lacuna.bids import DamagedDataset, LesionMask, ParticipantWithoutMask, find_stat_maps
from bids_lacuna.connectome import Connectome
from bids_lacuna.derivatives import GROUP_PAGE, group_folder, prepare_dataset
from bids_lacuna.group import (
    BLOCK_BYTES,
    Group,
    NoMaps,
    UnfitLesions,
    choose_group,
    describe_replaced,
    refuse,
    remove_stale_tests,
    summarize_group,
    write_group_parcels,
)
from bids_lacuna.group.writer import GroupSummary
from bids_lacuna.runtime.memory import find_resources
from bids_lacuna.runtime.progress import above_the_bar

logger = logging.getLogger(__name__)


def run(arguments: argparse.Namespace, datasets: Mapping[str, Path]) -> Exit:
    """Describe the maps of a dataset's lesions as a group."""
    out = arguments.output_dir
    folder = group_folder(out, arguments.name)
    logger.info("bids-lacuna %s", __version__)
    if arguments.connectome_summary and not arguments.connectome:
        raise Stop(Exit.USAGE, "--connectome-summary is of the connectome: give it, too, with --connectome PATH")
    connectome = open_connectome(arguments) if arguments.connectome else None
    group = choose(arguments, connectome, *find_masks(arguments, datasets))
    asked = read_question(arguments, group)
    whole = find_summary(arguments, connectome) if connectome else None
    nulls = find_group_nulls(arguments, connectome, whole)
    targets = read_targets(arguments, datasets, group.provenance.grid, group.provenance.space)
    if arguments.dry_run:
        return preview(arguments, group, asked, nulls)
    with ending(Exit.BAD_DATA, UnfitLesions):
        refuse(group.left_out, len(group.lesions), arguments.ignore)
    keep_other_group(folder, group, arguments.overwrite)
    if asked:
        keep_other_test(folder, asked.design, arguments.overwrite)
    had_page = (folder / GROUP_PAGE).exists()
    with ending(Exit.CANNOT_CREATE, OSError, ValueError):
        links = prepare_dataset(out, datasets)
    resources = find_resources(arguments.mem, arguments.nprocs)
    with (
        ending(Exit.BAD_DATA, UnfitLesions),
        ending(Exit.INPUT_OUTPUT, OSError, saying=f"the group's files cannot be written to {out}"),
        keeping_log(arguments, name_log_dir(out)),
        above_the_bar(),
    ):
        summary = summarize_group(
            group,
            out,
            links,
            folder=folder,
            connectome=whole,
            targets=targets,
            ignored=arguments.ignore,
            block_bytes=min(BLOCK_BYTES, resources.available_bytes // 2),
            show_progress=not arguments.quiet,
        )
        lesions = [lesion for lesion in group.lesions if lesion.name in summary.order]
        write_group_parcels(lesions, group.provenance, out, folder)
        if nulls:
            compare_group(nulls, lesions, group.provenance, out, folder, resources, not arguments.quiet)
        if asked is not None:
            found = summary.relations
            run_test(arguments, asked, lesions, group.provenance, folder, resources, whole, targets, found)
        read_table = partial(read_named_table, arguments=arguments, lesions=lesions)
        for sentence in remove_stale_tests(folder, lesions, out, read_table):
            logger.warning("%s", sentence)
    log_summary(summary)
    if not arguments.no_reports:
        write_group_page(out, resources, arguments.name)
    elif had_page:
        warn_of_removed_page(folder / GROUP_PAGE)
    return Exit.OK


def preview(arguments: argparse.Namespace, group: Group, asked: Asked | None, nulls: Nulls | None) -> Exit:
    """Print the test, the maps that would be read, and how long test and null lesions take."""
    out = arguments.output_dir
    if asked:
        first_map = out / group.lesions[0].maps[arguments.input]
        n_threads = find_resources(arguments.mem, arguments.nprocs).n_threads
        with ending(Exit.INPUT_OUTPUT, OSError, saying="a map cannot be read"):
            duration = describe_test_time(asked, first_map, n_threads)
        sys.stdout.write(f"test: {asked.design.direction}, by {asked.design.statistic} statistics; {duration}\n")
    sys.stdout.write(describe(group, arguments.ignore, group_folder(out, arguments.name), arguments.overwrite))
    if nulls:
        movable = find_movable(nulls, group.lesions, group.provenance, out)
        n_threads = find_resources(arguments.mem, arguments.nprocs).n_threads
        sys.stdout.write(f"null lesions: {describe_time(nulls, movable, n_threads)}\n")
    return Exit.OK


def log_summary(summary: GroupSummary) -> None:
    """Log how many lesions the group has, and where its table is."""
    logger.info(
        "lesions in the group: %d, left out: %d, outliers: %s; the table is %s",
        len(summary.order),
        len(summary.left_out),
        ", ".join(summary.outliers) or "none",
        summary.table,
    )


def warn_of_removed_page(page: Path) -> None:
    """Warn if the page of the earlier files is gone."""
    if not page.exists():
        logger.warning(
            "%s was removed: the page of the earlier files contradicts the new ones; --reports-only writes a new one",
            page,
        )


def keep_other_group(folder: Path, group: Group, overwrite: bool) -> None:
    """Raise Stop if the folder describes another group, which was not asked to be replaced."""
    if (replaced := describe_replaced(folder, group)) and not overwrite:
        raise Stop(
            Exit.CANNOT_CREATE,
            f"{folder} describes {replaced}: replace it with --overwrite, or give the new group a name of its "
            "own (--name LABEL)",
        )


def choose(
    arguments: argparse.Namespace,
    connectome: Connectome | None,
    masks: Sequence[LesionMask],
    without_mask: Sequence[ParticipantWithoutMask],
) -> Group:
    """Choose the lesions of the group."""
    with (
        ending(Exit.NO_INPUT, FileNotFoundError, NotADirectoryError, saying="run the participant level first"),
        ending(Exit.NO_INPUT, NoMaps),
        ending(Exit.BAD_DATA, DamagedDataset, UnfitLesions),
    ):
        return choose_group(
            masks,
            find_stat_maps(arguments.output_dir, arguments.participant_label, arguments.session_label),
            arguments.output_dir,
            connectome_name=connectome.name if connectome else arguments.connectome_name,
            connectome_hash=connectome.content_hash if connectome else None,
            t_thresholds=arguments.t_threshold,
            without_mask=without_mask,
        )


def describe(group: Group, ignored: Sequence[str], folder: Path, overwrite: bool) -> str:
    """List the maps that would be read, the lesions that cannot be in the group, and a group that is in the way."""
    lines = [f"lesions: {len(group.lesions)}, {group.provenance.describe()}"]
    lines += [f"  read    {path}" for lesion in group.lesions for path in (lesion.mask.path, *lesion.maps.values())]
    for lesion in group.left_out:
        word = "leave" if lesion.kind in ignored else "refuse"
        lines.append(f"  {word:8}{lesion.name}: {lesion.kind}: {lesion.reason}")
    lines += [f"  no mask sub-{participant.label}: {participant.reason}" for participant in group.without_mask]
    if replaced := describe_replaced(folder, group):
        lines.append(f"  {'replace' if overwrite else 'refuse':8}{replaced}{'' if overwrite else ': --overwrite'}")
    return "\n".join(lines) + "\n"
