"""Pages made from what is on disk: `--reports-only`, and the group's page."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bids_lacuna.app.command import NAMES_WIDTH, Exit, Stop, ending
from bids_lacuna.app.runlog import keeping_log, name_log_dir
from bids_lacuna.derivatives import FIGURES, GROUP_DICTIONARY, GROUP_PAGE, group_folder, read_description
from bids_lacuna.derivatives.dataset import DESCRIPTION
from bids_lacuna.files import write_json
from bids_lacuna.report.maps_on_disk import count_lesions, count_voxels, find_participants, read_links
from bids_lacuna.report.pool import (
    LEAST_DIVISOR,
    PageCost,
    ReportPool,
    choose_n_workers,
    measure_pages,
    worker_bytes,
)
from bids_lacuna.runtime.memory import find_resources
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.text import format_bytes, format_seconds, layout_rows, suggest_labels

logger = logging.getLogger(__name__)

SAMPLED_PARTICIPANTS = 4
"""Number of participants whose pages a dry run writes into a temporary folder."""


def run_participant(arguments: argparse.Namespace) -> Exit:
    """Write the participants' pages again."""
    out = arguments.output_dir
    if not (out / DESCRIPTION).is_file():
        raise Stop(Exit.NO_INPUT, f"{out} holds no maps: run without --reports-only first")
    there = find_participants(out)
    wanted = [label.removeprefix("sub-") for label in arguments.participant_label] or there
    if unknown := sorted(set(wanted) - set(there)):
        near = suggest_labels(unknown, there)
        raise Stop(
            Exit.NO_INPUT, f"{out} has no participant {', '.join(unknown)}: there are {', '.join(there)}{near}"
        )
    resources = find_resources(arguments.mem, arguments.nprocs)
    bytes_each = worker_bytes(count_voxels(out, wanted))
    n_workers = choose_n_workers(resources.available_bytes, resources.n_threads, bytes_each)
    if not n_workers:
        raise Stop(
            Exit.FAILED,
            f"{format_bytes(resources.available_bytes)} of memory are available, reports need "
            f"{format_bytes(LEAST_DIVISOR * bytes_each)}: raise --mem, or the limit of the job or container",
        )
    if arguments.dry_run:
        sys.stdout.write(describe_cost(out, wanted, n_workers))
        return Exit.OK
    with (
        ending(Exit.CANNOT_CREATE, OSError, saying=f"{out} cannot be written to"),
        keeping_log(arguments, name_log_dir(out)),
        ReportPool(out, n_workers, show_progress=not arguments.quiet) as pages,
    ):
        pages.submit(wanted)
        n_written = pages.wait()
    return Exit.OK if n_written == len(wanted) else Exit.FAILED


def describe_cost(output_dir: Path, labels: Sequence[str], n_workers: int) -> str:
    """Describe what the pages of some participants would cost, by those of a few of them."""
    if not labels:
        return layout_rows({"reports": "0"}, NAMES_WIDTH)
    n_lesions = {label: count_lesions(output_dir, label) for label in labels}
    step = max(1, len(labels) // SAMPLED_PARTICIPANTS)
    try:
        cost = _measure_copies(output_dir, {label: n_lesions[label] for label in labels[::step]}, n_workers)
    # As for a page of a run: whatever is wrong with its files.
    except Exception as error:
        raise Stop(
            Exit.FAILED, f"the reports of a sample cannot be written ({type(error).__name__}: {error})"
        ) from error
    n = sum(n_lesions.values())
    seconds = format_seconds(cost.seconds(n, n_workers))
    processes = f"{n_workers} process{'es' if n_workers > 1 else ''}"
    return layout_rows(
        {
            "reports": f"{len(labels)}, of {n} lesions",
            "disk": f"about {format_bytes(round(n * cost.bytes_per_lesion))}",
            "time": f"about {seconds} ({cost.seconds_per_lesion:.2g} s per lesion, in {processes})",
        },
        NAMES_WIDTH,
    )


def _measure_copies(output_dir: Path, n_lesions: Mapping[str, int], n_workers: int) -> PageCost:
    """Write the pages of some participants from a copy of their maps in a temporary folder."""
    with TemporaryDirectory(prefix="bids-lacuna-") as folder:
        root = Path(folder)
        links = {name: str((output_dir / str(link)).resolve()) for name, link in read_links(output_dir).items()}
        write_json(root / DESCRIPTION, read_description(output_dir) | {"DatasetLinks": links})
        for label in n_lesions:
            if (output_dir / f"sub-{label}").is_dir():
                ignored = shutil.ignore_patterns(FIGURES)
                shutil.copytree(output_dir / f"sub-{label}", root / f"sub-{label}", ignore=ignored)
        (root / "logs").symlink_to((output_dir / "logs").resolve())
        return measure_pages(root, n_lesions, n_workers)


def run_group(arguments: argparse.Namespace) -> Exit:
    """Write the group's page again."""
    folder = group_folder(arguments.output_dir, arguments.name)
    if not (folder / GROUP_DICTIONARY).is_file():
        raise Stop(Exit.NO_INPUT, f"{folder} holds no group: run without --reports-only first")
    if arguments.dry_run:
        page = (folder / GROUP_PAGE).relative_to(arguments.output_dir)
        sys.stdout.write(layout_rows({"reports": str(page)}, NAMES_WIDTH))
        return Exit.OK
    written = write_group_page(arguments.output_dir, find_resources(arguments.mem, arguments.nprocs), arguments.name)
    return Exit.OK if written else Exit.FAILED


def write_group_page(output_dir: Path, resources: Resources, name: str | None = None) -> bool:
    """Write a group's page in a process of its own, and return whether it was written."""
    if not choose_n_workers(resources.available_bytes, n_threads=1):
        logger.warning("the memory is too small for the page: write it later, with more, by --reports-only")
        return False
    with ReportPool(output_dir, 1) as pages:
        pages.submit_group(name)
        return pages.wait() == 1
