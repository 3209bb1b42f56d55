"""Commands of bids-lacuna-connectome: build, describe and verify stores."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

from bids_lacuna.app.command import Exit, Stop, ending, warn_of_space
from bids_lacuna.app.connectome_options import PROGRAM
from bids_lacuna.app.summaries import check_summary, count_problems, describe_summary, make_summary
from bids_lacuna.connectome import Store
from bids_lacuna.connectome.build import build_store, check_folder, processes_that_fit
from bids_lacuna.connectome.compression import LEAST_SAVING, RANK, TOLERANCE
from bids_lacuna.connectome.exclusive import NoPlace, NoRoom
from bids_lacuna.connectome.importers import layouts
from bids_lacuna.connectome.importers.source import NothingMatches, Source
from bids_lacuna.connectome.store import DESCRIPTION, Rank, rename_space
from bids_lacuna.connectome.summary import FOLDER
from bids_lacuna.connectome.verify import Verification, verify_store
from bids_lacuna.connectome.workers import DamagedSource
from bids_lacuna.runtime.memory import available_cpus, find_resources, memory_budget
from bids_lacuna.runtime.progress import Progress, above_the_bar
from bids_lacuna.spaces import TEMPLATES, check_template, nearest_template
from bids_lacuna.text import format_bytes, layout_rows, percent

logger = logging.getLogger("bids_lacuna")


def run_build(arguments: argparse.Namespace) -> Exit:
    """Build a store, or complete an unfinished one."""
    check_rank(arguments)
    check_space(arguments.space)
    check_places(arguments.source, arguments.store)
    with ending(Exit.CANNOT_CREATE, OSError):
        check_folder(arguments.store)
    source = open_source(arguments)
    if source.space not in (None, arguments.space):
        logger.warning(
            "the files of %s name the space %s, but are used as %s",
            arguments.source,
            source.space,
            arguments.space,
        )
    n_processes = min(arguments.nprocs or available_cpus(), available_cpus(), len(source.subjects))
    n_processes = processes_that_fit(source, n_processes, memory_budget().available_bytes, arguments.rank or RANK)
    with (
        above_the_bar(),
        ending(Exit.INPUT_OUTPUT, OSError, saying=f"the store {arguments.store} could not be written"),
        ending(Exit.FAILED, MemoryError),
        ending(Exit.BAD_DATA, DamagedSource, ValueError),
        ending(Exit.CANNOT_CREATE, FileExistsError, NoPlace, NoRoom),
    ):
        store = build_store(
            source,
            arguments.source if arguments.source.is_dir() else arguments.source.parent,
            arguments.store,
            name=arguments.name,
            space=arguments.space,
            dtype=arguments.dtype,
            rank=arguments.rank or rank_of(arguments.store),
            rank_tolerance=arguments.rank_tolerance or TOLERANCE,
            n_processes=n_processes,
            show_progress=not arguments.quiet,
        )
    conclude(store, arguments)
    return Exit.OK


def check_rank(arguments: argparse.Namespace) -> None:
    """Raise Stop for a tolerance that nothing uses."""
    if arguments.rank == "full" and arguments.rank_tolerance is not None:
        raise Stop(Exit.USAGE, "--rank-tolerance is only for --rank auto or a number of components")


def conclude(store: Store, arguments: argparse.Namespace) -> None:
    """Say what a new store holds, and summarize it if asked to."""
    if store.rank != "full":
        logger.info("rank %s", describe_rank(store))
    logger.info(
        "the store has %d subjects, %s: map lesions with --connectome %s, or check the store with %s verify %s",
        len(store.subjects),
        format_bytes(store.n_bytes),
        store.path,
        PROGRAM,
        store.path,
    )
    if arguments.summarize:
        resources = find_resources(None, arguments.nprocs)
        make_summary(store.path, store.path / FOLDER, resources, show_progress=not arguments.quiet)


def rank_of(path: Path) -> Rank:
    """Return the rank of a finished store, to which the default was another one when it was built, or the default."""
    return Store.open(path).rank if (path / DESCRIPTION).exists() else RANK


def check_space(space: str) -> None:
    """Raise Stop for a space that a connectome cannot be in, and warn of a name that is no template's."""
    with ending(Exit.USAGE, ValueError):
        check_template(space)
    if nearest_template(space):
        warn_of_space(space)
    elif space not in TEMPLATES:
        logger.warning(
            "the space %s is not a template of BIDS or TemplateFlow: masks need the same name, or a transform", space
        )


def check_places(source: Path, store: Path) -> None:
    """Raise Stop if the source does not exist, or if source and store are inside one another."""
    with ending(Exit.NO_INPUT, OSError, saying=f"the connectome {source} cannot be accessed"):
        there = source.exists()
    if not there:
        raise Stop(Exit.NO_INPUT, f"there is no connectome at {source}: check the path, and check that it is mounted")
    inside, outside = store.resolve(), source.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise Stop(
            Exit.USAGE, f"the store {store} and the source {source} are inside one another: name a folder elsewhere"
        )


def open_source(arguments: argparse.Namespace) -> Source:
    """Open the source that the command line names."""
    options = layouts.ImportOptions(
        arguments.space, arguments.pattern, arguments.mask, arguments.mask_fraction, arguments.bids_filter_file
    )
    with (
        ending(Exit.BAD_DATA, ValueError, OSError),
        ending(Exit.NO_INPUT, FileNotFoundError, NotADirectoryError, PermissionError),
        ending(Exit.NO_FILES_SELECTED, NothingMatches),
        ending(Exit.USAGE, layouts.MistakenOption),
    ):
        layout = layouts.detect_layout(arguments.source) if arguments.format == "auto" else arguments.format
        source = layouts.open_source(arguments.source, layout, options)
    logger.info(
        "%s, layout %s: subjects %d, runs %d, %s",
        arguments.source,
        layout,
        len(source.subjects),
        sum(len(subject.runs) for subject in source.subjects),
        source.grid,
    )
    return source


def run_info(arguments: argparse.Namespace) -> Exit:
    """Describe the contents of a store."""
    store = open_store(arguments.store)
    summary = describe_summary(store, arguments.connectome_summary)
    sys.stdout.write(layout_rows({**describe_store(store), "summary": summary}))
    return Exit.OK


def run_rename_space(arguments: argparse.Namespace) -> Exit:
    """Correct the space that a store records."""
    check_space(arguments.space)
    before = open_store(arguments.store).space
    with ending(Exit.CANNOT_CREATE, OSError, saying=f"the store {arguments.store} could not be written"):
        store = rename_space(arguments.store, arguments.space)
    logger.info("%s: the space is %s, before %s; its series are unchanged", store.path, store.space, before)
    return Exit.OK


def run_verify(arguments: argparse.Namespace) -> Exit:
    """Verify a store: its files, its numbers and its mirror symmetry."""
    store = open_store(arguments.store)
    with (
        ending(Exit.INPUT_OUTPUT, OSError),
        Progress(store.n_bytes, "verifying", "B", shown=not arguments.quiet, in_bytes=True) as progress,
    ):
        found = verify_store(store, lambda subject: progress.update(store.bytes_of(subject)))
    of_summary, summary_problems = check_summary(store, arguments.connectome_summary)
    found = replace(found, problems=(*found.problems, *summary_problems))
    sys.stdout.write(layout_rows(describe_verification(store, found, of_summary)))
    for problem in found.problems:
        sys.stderr.write(f"{PROGRAM}: error: {problem}\n")
    return Exit.BAD_DATA if found.problems else Exit.OK


def open_store(path: Path) -> Store:
    """Open a store."""
    with ending(Exit.BAD_DATA, ValueError), ending(Exit.NO_INPUT, FileNotFoundError, PermissionError):
        return Store.open(path)


def describe_store(store: Store) -> dict[str, str]:
    """Return the description of a store as rows of text."""
    lengths = sorted({subject.n_timepoints for subject in store.subjects})
    source_bytes = sum(int(source["bytes"]) for source in store.sources)
    return {
        "name": store.name,
        "space": ", before ".join([store.space, *reversed(store.former_spaces)]),
        "grid": str(store.grid),
        "subjects": str(len(store.subjects)),
        "runs": str(sum(len(subject.runs) for subject in store.subjects)),
        "timepoints": f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} per subject",
        "size": format_bytes(store.n_bytes),
        "dtype": store.series_dtype,
        "rank": describe_rank(store),
        "sources": f"{len(store.sources)} files, {format_bytes(source_bytes)}, the first: {store.sources[0]['path']}",
        "made by": " ".join(store.software.values()),
        "content hash": store.content_hash,
    }


def describe_rank(store: Store) -> str:
    """Describe a store's number of components, the bytes saved and the bound on the error."""
    if store.rank == "full":
        return "full"
    kept = sorted(subject.n_components for subject in store.subjects)
    saved = percent(1 - store.n_bytes / store.full_bytes)
    rule = f"{store.rank}" if store.rank_tolerance is None else f"{store.rank}, tolerance {store.rank_tolerance:g}"
    if store.rank == "auto" and store.n_bytes == store.full_bytes:
        return f"{rule}: all timepoints, since fewer components would not save {percent(LEAST_SAVING)}"
    counts = f"{kept[0]}" if kept[0] == kept[-1] else f"{kept[0]} to {kept[-1]}, median {median(kept):g}"
    return (
        f"{rule}: components {counts} per subject; {format_bytes(store.full_bytes - store.n_bytes)} saved "
        f"({saved}); bound on the error in r "
        f"{max(subject.r_error_bound for subject in store.subjects):.2g}"
    )


def describe_verification(store: Store, found: Verification, summary: str) -> dict[str, str]:
    """Return the findings of a verification, and the verdict on the summary, as rows of text."""
    n_subjects = len(store.subjects)
    side = {"L": "right to left (radiological)", "R": "left to right"}
    stored = [f"stored from {side[axis]}" for axis in found.orientation if axis in side]
    some, all_ = (found.n_constant > 0).sum(), (found.n_constant == n_subjects).sum()
    mirror = "cannot be judged: too few voxels with a signal in both hemispheres"
    if found.n_mirrorable:
        mirror = (
            f"{found.n_mirrored} of {found.n_mirrorable} subjects correlate best at the mirrored position (median r "
            f"{found.homotopic_r:.3f}, displaced by 16 mm {found.displaced_r:.3f})"
        )
    return {
        "store": f"{store.path}: {n_subjects} subjects, {store.grid.n_voxels} voxels",
        "without a signal": f"{some} voxels in at least one subject, {all_} in all, at most "
        f"{found.n_constant.max()} subjects at a voxel",
        "orientation": ", ".join(
            [found.orientation, *stored, "compare with the source: a left-right flip does not show in the series"]
        ),
        "mirror symmetry": mirror,
        "summary": summary,
        "verdict": count_problems(found.problems),
    }
