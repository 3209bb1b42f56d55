"""Summaries of connectomes: made, described, and checked by bids-lacuna-connectome."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from bids_lacuna.app.command import Exit, ending
from bids_lacuna.app.connectome_options import PROGRAM
from bids_lacuna.connectome import Connectome, Store
from bids_lacuna.connectome.exclusive import NoPlace, NoRoom
from bids_lacuna.connectome.summary import (
    FOLDER,
    SummaryArrays,
    has_summary,
    open_summary,
    verify_summary,
)
from bids_lacuna.mapping import CELL_SIZE_MM, summarize
from bids_lacuna.runtime.memory import find_resources
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.runtime.progress import above_the_bar
from bids_lacuna.text import format_bytes, percent

logger = logging.getLogger("bids_lacuna")


def run_summarize(arguments: argparse.Namespace) -> Exit:
    """Summarize a store, or complete an unfinished summary."""
    folder = arguments.output or arguments.store / FOLDER
    resources = find_resources(arguments.mem, arguments.nprocs)
    make_summary(arguments.store, folder, resources, arguments.cell_size_mm, show_progress=not arguments.quiet)
    return Exit.OK


def make_summary(
    store: Path, folder: Path, resources: Resources, cell_size_mm: float = CELL_SIZE_MM, *, show_progress: bool = True
) -> None:
    """Summarize a store, and log what to do with the summary.

    Parameters
    ----------
    folder
        Folder of the summary.
    """
    with ending(Exit.BAD_DATA, ValueError), ending(Exit.NO_INPUT, FileNotFoundError, PermissionError):
        connectome = Connectome.open(Store.open(store).path)
    with (
        above_the_bar(),
        ending(Exit.INPUT_OUTPUT, OSError, saying=f"the summary {folder} could not be made"),
        ending(Exit.FAILED, MemoryError),
        ending(Exit.BAD_DATA, ValueError),
        ending(Exit.CANNOT_CREATE, NoPlace, saying="name a folder elsewhere with --output"),
        ending(Exit.CANNOT_CREATE, FileExistsError, NoRoom),
    ):
        summary = summarize(connectome, folder, resources, cell_size_mm=cell_size_mm, show_progress=show_progress)
    elsewhere = "" if folder == store / FOLDER else f" --connectome-summary {folder}"
    logger.info(
        "the summary has %s: bids-lacuna … --connectome %s%s now compares each map with degree and null lesions",
        _describe_arrays(summary),
        store,
        elsewhere,
    )


def describe_summary(store: Store, given: Path | None) -> str:
    """Describe a store's summary in the given folder, by default that in the store."""
    folder = _find_folder(store, given)
    if folder is None:
        return f"none: {PROGRAM} summarize {store.path}"
    try:
        arrays = open_summary(folder, store.content_hash)
    except (OSError, ValueError) as error:
        return str(error)
    return f"{_describe_arrays(arrays)}, in {folder}"


def _find_folder(store: Store, given: Path | None) -> Path | None:
    """Return the folder of a summary: that given, or that in the store; None if the store has none."""
    own = store.path / FOLDER
    return given or (own if has_summary(own) else None)


def _describe_arrays(arrays: SummaryArrays) -> str:
    """Describe a summary by its cells and components."""
    record = arrays.record
    fractions = ", ".join(percent(fraction) for fraction in record.variance_fractions)
    return (
        f"{record.n_cells} cells of {record.cell_size_mm:g} mm, principal components with {fractions} of the "
        f"variance, {format_bytes(arrays.n_bytes)}"
    )


def check_summary(store: Store, given: Path | None) -> tuple[str, tuple[str, ...]]:
    """Read a whole summary, and check it.

    Returns
    -------
    verdict
        A few words.
    problems
        One sentence per problem.
    """
    folder = _find_folder(store, given)
    if folder is None:
        return "none", ()
    problems = verify_summary(folder, store.content_hash)
    return count_problems(problems), problems


def count_problems(problems: Sequence[str]) -> str:
    """Return the verdict of a check in a few words."""
    return f"problems: {len(problems)}" if problems else "no problem found"
