"""Pages made from what is on disk: `--reports-only`, and the group's page."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from bids_lacuna.app.command import Exit, Stop, ending
from bids_lacuna.app.runlog import keeping_log, name_log_dir
from bids_lacuna.derivatives import GROUP_DICTIONARY
from bids_lacuna.report.maps_on_disk import find_participants
from bids_lacuna.report.pool import ReportPool, choose_n_workers
from bids_lacuna.runtime.memory import find_resources
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.text import suggest_labels

logger = logging.getLogger(__name__)


def run_participant(arguments: argparse.Namespace) -> Exit:
    """Write the participants' pages again."""
    out = arguments.output_dir
    if not (out / "dataset_description.json").is_file():
        raise Stop(Exit.NO_INPUT, f"{out} holds no maps: run without --reports-only first")
    there = find_participants(out)
    wanted = [label.removeprefix("sub-") for label in arguments.participant_label] or there
    if unknown := sorted(set(wanted) - set(there)):
        near = suggest_labels(unknown, there)
        raise Stop(
            Exit.NO_INPUT, f"{out} has no participant {', '.join(unknown)}: there are {', '.join(there)}{near}"
        )
    resources = find_resources(arguments.mem, arguments.nprocs)
    with (
        ending(Exit.CANNOT_CREATE, OSError, saying=f"{out} cannot be written to"),
        keeping_log(arguments, name_log_dir(out)),
        ReportPool(
            out,
            choose_n_workers(resources.available_bytes, resources.n_threads),
            show_progress=not arguments.quiet,
        ) as pages,
    ):
        pages.submit(wanted)
        n_written = pages.wait()
    return Exit.OK if n_written == len(wanted) else Exit.FAILED


def run_group(arguments: argparse.Namespace) -> Exit:
    """Write the group's page again."""
    if not (arguments.output_dir / GROUP_DICTIONARY).is_file():
        raise Stop(Exit.NO_INPUT, f"{arguments.output_dir} holds no group: run without --reports-only first")
    written = write_group_page(arguments.output_dir, find_resources(arguments.mem, arguments.nprocs))
    return Exit.OK if written else Exit.FAILED


def write_group_page(output_dir: Path, resources: Resources) -> bool:
    """Write the group's page in a process of its own, and return whether it was written."""
    if not choose_n_workers(resources.available_bytes, n_threads=1):
        logger.warning("the memory is too small for the page: write it later, with more, by --reports-only")
        return False
    with ReportPool(output_dir, 1) as pages:
        pages.submit_group()
        return pages.wait() == 1
