"""The command line: text into domain objects, their calls in order, failures into exit statuses."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from bids_lacuna._version import __version__
from bids_lacuna.app import connectome_options
from bids_lacuna.app.command import Exit, Stop, complete_words, ending, make_folder, run_command, warn_of_space
from bids_lacuna.app.config import add_config_file, write_config
from bids_lacuna.app.options import build_parser
from bids_lacuna.runtime import logs
from bids_lacuna.runtime.numba_cache import keep_in
from bids_lacuna.runtime.signals import sigusr1_ignored
from bids_lacuna.text import format_bytes, one_line, suggest

if TYPE_CHECKING:
    from bids_lacuna.bids import LesionMask
    from bids_lacuna.cluster import ClusterMapping
    from bids_lacuna.connectome.connectome import Connectome
    from bids_lacuna.derivatives.history import Run
    from bids_lacuna.derivatives.records import LesionRecord
    from bids_lacuna.derivatives.writer import DerivativesWriter
    from bids_lacuna.lesion import LesionData
    from bids_lacuna.mapping.functional import FunctionalNetworkMapping
    from bids_lacuna.runtime.checkpoint import Checkpoints
    from bids_lacuna.runtime.locks import Claims
    from bids_lacuna.runtime.memory import MemoryBudget
    from bids_lacuna.runtime.plan import BatchPlan

logger = logging.getLogger("bids_lacuna")

STORE_SPEEDUP = 30
"""How many times as long a pass over gzipped HDF5 takes as one over a store, by `make bench`."""


UNREACHABLE = "the Dask cluster cannot be reached; rerun the same command to resume"

INTERRUPTED = "interrupted: finished batches are on disk; rerun the same command to resume"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the BIDS App.

    Parameters
    ----------
    argv
        Command-line arguments; by default those of this process.

    Returns
    -------
    int
        The exit status: 0 when no lesion failed.
    """
    parser = build_parser()
    complete_words(parser)
    return run_command(parser, add_config_file(parser, argv), run_level, INTERRUPTED)


def run_level(arguments: argparse.Namespace) -> Exit:
    """Run the level that was asked for."""
    levels = {"participant": run_participants, "group": run_group}
    if arguments.analysis_level not in levels:
        raise Stop(
            Exit.UNKNOWN_LEVEL,
            f"there is no {arguments.analysis_level} level: participant maps each lesion, group describes all maps"
            + suggest(arguments.analysis_level, levels),
        )
    if arguments.reports_only:
        return remake_group_report(arguments) if arguments.analysis_level == "group" else remake_reports(arguments)
    return levels[arguments.analysis_level](arguments)


def run_participants(arguments: argparse.Namespace) -> Exit:
    """Map the lesions of a dataset: the participant level."""
    with ExitStack() as cluster, sigusr1_ignored():
        return map_lesions(arguments, cluster)


def map_lesions(arguments: argparse.Namespace, cluster: ExitStack) -> Exit:
    """Map the lesions of a dataset, with a cluster that is let go with the stack."""
    if not arguments.connectome:
        raise Stop(Exit.USAGE, "the participant level needs a connectome: --connectome PATH")
    datasets = {"source": arguments.bids_dir, **name_datasets(arguments.derivatives)}
    check_folders(arguments, datasets)
    if arguments.work_dir and not arguments.dry_run:
        keep_in(make_folder(arguments.work_dir.absolute() / "numba"))
    # Here and below, not at the top: --help and --version need not wait for numba, pybids and scipy.
    from bids_lacuna.batch import plan_run, process_batches
    from bids_lacuna.derivatives.names import MapSettings
    from bids_lacuna.derivatives.records import claim_pending, decide
    from bids_lacuna.derivatives.writer import DerivativesWriter
    from bids_lacuna.mapping.functional import FunctionalNetworkMapping, NoWorker
    from bids_lacuna.report.methods import write_citation
    from bids_lacuna.report.pool import WORKER_BYTES, ReportPool, choose_n_workers, participants_with_news
    from bids_lacuna.runtime.memory import available_cpus, memory_budget, room_for_files
    from bids_lacuna.runtime.progress import above_the_bar

    started = time.monotonic()
    logger.info("bids-lacuna %s", __version__)
    connectome = open_connectome(arguments)
    masks = find_masks(arguments, datasets)
    analysis = FunctionalNetworkMapping(
        connectome,
        compute_t_map=not arguments.no_t_map,
        t_threshold=arguments.t_threshold or None,
        weighting=arguments.lesion_weighting,
        lesion_threshold=arguments.lesion_threshold,
    )
    settings = MapSettings(
        connectome.name,
        connectome.content_hash,
        connectome.space,
        connectome.grid,
        analysis.weighting,
        analysis.compute_t_map,
        analysis.t_thresholds,
        analysis.lesion_threshold,
    )
    records = decide(masks, arguments.output_dir, settings, arguments.overwrite)
    checkpoints = None if arguments.dry_run else open_checkpoints(arguments, analysis)
    if checkpoints:
        reopen(records, checkpoints.in_work)
    report_failures(records)
    pending = pending_ones(records)
    budget = memory_budget(arguments.mem)
    n_threads = min(arguments.nprocs or available_cpus(), available_cpus())
    n_workers = 0 if arguments.no_reports else choose_n_workers(budget.available_bytes, n_threads)
    if not n_workers and not arguments.no_reports:
        logger.warning("the memory is too small for reports: write them afterwards, with more, by --reports-only")
    reserved_bytes = n_workers * WORKER_BYTES
    make_plan: Callable[..., BatchPlan] = partial(plan_run, analysis)
    clustered = bool(arguments.dask_workers or arguments.dask_scheduler)
    if clustered:
        analysis = cluster.enter_context(on_cluster(arguments, analysis, n_threads))
        make_plan = analysis.plan_run
    advice = f"{format_bytes(reserved_bytes)} are set aside for reports, which --no-reports leaves out"
    make_plan = partial(
        make_plan,
        lesion_batch_size=arguments.lesion_batch_size,
        available_bytes=budget.available_bytes,
        n_threads=n_threads,
        reserved_bytes=reserved_bytes,
    )

    def plan_pending() -> BatchPlan:
        with ending(Exit.FAILED, MemoryError, saying=advice if n_workers else ""), ending(Exit.NO_INPUT, NoWorker):
            return make_plan(n_lesions=len(pending))

    plan = plan_pending()
    if arguments.dry_run:
        from bids_lacuna.app import preview

        with above_the_bar():
            lesions = preview.load_records(records, analysis, plan.batch_size, n_threads, not arguments.quiet)
        sys.stdout.write(preview.describe_lesions(records) + "\n")
        if clustered:
            budget = replace(budget, available_bytes=plan.available_bytes, source="the tightest host of the cluster")
        sys.stdout.write(preview.describe_plan(plan, budget, connectome.n_subjects, n_threads, reserved_bytes))
        if lesions and not clustered:
            with ending(Exit.INPUT_OUTPUT, OSError), ending(Exit.FAILED, MemoryError):
                sample = preview.take_sample(lesions, analysis, settings, plan, n_threads)
            plan = replace(plan, n_lesions=len(pending_ones(records)))
            sys.stdout.write(
                preview.describe_cost(sample, plan, connectome.n_subjects, arguments.output_dir, n_workers)
            )
        return Exit.OK

    log_dir = name_log_dir(arguments.output_dir)
    with ExitStack() as stack:
        with ending(Exit.CANNOT_CREATE, OSError, saying=f"{arguments.output_dir} cannot be written to"):
            claims, links = stack.enter_context(sharing_output(arguments.output_dir, datasets, log_dir.name))
            stack.enter_context(keeping_log(arguments, log_dir))
            n_held = claim_pending(pending, claims, arguments.output_dir, settings, arguments.overwrite)
            if n_held or not goes_on(records, arguments):
                # Another run may be keeping its own there.
                checkpoints = None
            if checkpoints:
                reopen(records, checkpoints.in_work)
            writer = DerivativesWriter(arguments.output_dir, settings, records, log_dir, links)
            writer.write_table()
        report_failures(pending)
        pending = pending_ones(records)
        if len(pending) < plan.n_lesions:
            plan = plan_pending()
        if checkpoints:
            checkpoints.free_bytes = partial(
                room_for_files, checkpoints.folder, budget.available_bytes - plan.peak_bytes
            )
        with ending(Exit.CANNOT_CREATE, OSError, saying=f"{arguments.output_dir} cannot be written to"):
            run = describe_run(analysis, plan, budget, n_threads, links)
            run.write(log_dir)
            if pending:
                write_citation(arguments.output_dir, run, md_only=arguments.md_only_boilerplate)
        reports = stack.enter_context(ReportPool(arguments.output_dir, n_workers))

        def after_batch(results: Sequence[LesionData]) -> None:
            writer(results)
            run.until_now(started).write(log_dir)
            if n_workers:
                reports.submit(participants_with_news(arguments.output_dir, records))

        with above_the_bar(), listing_interrupted(records, writer):
            process_batches(
                [record.as_lesion() for record in pending] if goes_on(records, arguments) else [],
                analysis,
                plan,
                n_threads,
                batch_result_callback=after_batch,
                checkpoints=checkpoints,
                on_outcomes=writer.close,
                stop_on_first_crash=arguments.stop_on_first_crash,
                show_progress=not arguments.quiet,
            )
        for record in pending_ones(records):
            record.set_aside("not run", "the run ended at the first failure (--stop-on-first-crash)")
        with ending(Exit.INPUT_OUTPUT, OSError, saying="the table of outcomes could not be written"):
            writer.write_table()
            run.until_now(started, finished=True).write(log_dir)
        if n_workers:
            reports.submit(participants_with_news(arguments.output_dir, records))
            reports.wait()
        return conclude(records, log_dir)


def name_log_dir(output_dir: Path) -> Path:
    """Choose a folder of its own for what a run logs."""
    return output_dir / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}_{uuid4().hex[:8]}"


@contextmanager
def keeping_log(arguments: argparse.Namespace, log_dir: Path) -> Iterator[None]:
    """Keep what a run logs, and the options that would repeat it."""
    with logs.kept_in(log_dir):
        write_config(log_dir / "config.toml", build_parser(), arguments)
        yield


@contextmanager
def on_cluster(
    arguments: argparse.Namespace, analysis: FunctionalNetworkMapping, n_threads: int
) -> Iterator[ClusterMapping]:
    """Take an analysis to the Dask cluster that was asked for."""
    from bids_lacuna.mapping.functional import MappingStopped

    with ending(Exit.USAGE, ModuleNotFoundError, saying="Dask is needed: pip install 'bids-lacuna[distributed]'"):
        from bids_lacuna.cluster import ClusterMapping, connect

    with (
        ending(
            Exit.TEMPORARY,
            MappingStopped,
            saying=UNREACHABLE,
        ),
        connect(arguments.dask_scheduler, arguments.dask_workers, n_threads) as client,
    ):
        yield ClusterMapping(analysis, client, arguments.nprocs if arguments.dask_scheduler else None)


@contextmanager
def sharing_output(
    output_dir: Path, datasets: Mapping[str, Path], run: str
) -> Iterator[tuple[Claims, dict[str, str]]]:
    """Write into the output folder as one of several runs: make it a dataset, and give claims and links."""
    from bids_lacuna.derivatives.dataset import DATASET_FILES, clean_after, prepare_dataset, read_description
    from bids_lacuna.files import remove_unfinished
    from bids_lacuna.runtime.locks import claiming

    with ending(Exit.CANNOT_CREATE, FileExistsError, ValueError):
        read_description(output_dir)
    with claiming(output_dir / "logs" / "locks", run, partial(clean_after, output_dir)) as claims:
        with claims.exclusive(), ending(Exit.CANNOT_CREATE, FileExistsError, ValueError):
            remove_unfinished(output_dir, of=DATASET_FILES.__contains__)
            links = prepare_dataset(output_dir, datasets)
        yield claims, links


def pending_ones(records: Sequence[LesionRecord]) -> list[LesionRecord]:
    """Choose the lesions whose outcome is open."""
    return [record for record in records if record.status == "pending"]


@contextmanager
def listing_interrupted(records: Sequence[LesionRecord], writer: DerivativesWriter) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, or without a cluster any more, list in lesions.tsv what was not run."""
    from bids_lacuna.mapping.functional import MappingStopped

    try:
        yield
    except (KeyboardInterrupt, MappingStopped):
        for record in pending_ones(records):
            record.set_aside("not run", "the run was interrupted")
        writer.close([])
        raise


def goes_on(records: Sequence[LesionRecord], arguments: argparse.Namespace) -> bool:
    """Tell whether lesions are mapped although others have failed before."""
    return not (arguments.stop_on_first_crash and any(record.status == "failed" for record in records))


def open_checkpoints(arguments: argparse.Namespace, analysis: FunctionalNetworkMapping) -> Checkpoints | None:
    """Open the folder of this run's checkpoints, which depends on what it writes and of whom."""
    from bids_lacuna.runtime.checkpoint import Checkpoints

    if arguments.checkpoint_minutes == 0:
        return None
    labels = sorted(arguments.participant_label), sorted(arguments.session_label)
    # In a C locale, a path may hold bytes that are no UTF-8.
    name = hashlib.sha256(os.fsencode(f"{arguments.output_dir.resolve()} {labels}")).hexdigest()[:16]
    work_dir = arguments.work_dir or Path(tempfile.gettempdir()) / f"bids-lacuna-{os.getuid()}"
    folder = work_dir.absolute() / "checkpoints" / name
    try:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not arguments.work_dir and work_dir.stat().st_uid != os.getuid():
            raise PermissionError(f"{work_dir} belongs to somebody else")
        checkpoints = Checkpoints(folder, 60 * arguments.checkpoint_minutes, analysis.dependencies)
    except OSError as error:
        logger.warning("no checkpoints are kept (%s): name a folder for them with -w", error)
        return None
    logger.info("checkpoints are kept in %s", folder)
    return checkpoints


def reopen(records: Sequence[LesionRecord], in_work: Collection[str]) -> None:
    """Map a whole batch again that was being written when the run ended: a part of it is rounded otherwise."""
    batch = [record for record in records if str(record.mask.path.absolute()) in in_work]
    if any(record.status == "pending" for record in batch):
        for record in batch:
            if record.status == "skipped":
                record.status, record.reason = "pending", ""


def run_group(arguments: argparse.Namespace) -> Exit:
    """Describe the maps of a dataset's lesions as a group."""
    datasets = {"source": arguments.bids_dir, **name_datasets(arguments.derivatives)}
    check_folders(arguments, datasets)
    from bids_lacuna.app.preview import describe_group
    from bids_lacuna.bids import DamagedDataset, find_stat_maps
    from bids_lacuna.derivatives.dataset import prepare_dataset
    from bids_lacuna.group import BLOCK_BYTES, NoMaps, UnfitLesions, choose_group, refuse, summarize_group
    from bids_lacuna.runtime.memory import available_cpus, memory_budget
    from bids_lacuna.runtime.progress import above_the_bar

    logger.info("bids-lacuna %s", __version__)
    connectome = open_connectome(arguments) if arguments.connectome else None
    masks = find_masks(arguments, datasets)
    out = arguments.output_dir
    with (
        ending(Exit.NO_INPUT, FileNotFoundError, NotADirectoryError, saying="run the participant level first"),
        ending(Exit.NO_INPUT, NoMaps),
        ending(Exit.BAD_DATA, DamagedDataset, UnfitLesions),
    ):
        group = choose_group(
            masks,
            find_stat_maps(out, arguments.participant_label, arguments.session_label),
            out,
            connectome_name=connectome.name if connectome else arguments.connectome_name,
            connectome_hash=connectome.content_hash if connectome else None,
            t_thresholds=arguments.t_threshold,
        )
    if arguments.dry_run:
        sys.stdout.write(describe_group(group, arguments.ignore))
        return Exit.OK
    with ending(Exit.BAD_DATA, UnfitLesions):
        refuse(group.left_out, len(group.lesions), arguments.ignore)
    with ending(Exit.CANNOT_CREATE, OSError, ValueError):
        links = prepare_dataset(out, datasets)
    available_bytes = memory_budget(arguments.mem).available_bytes
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
            ignored=arguments.ignore,
            block_bytes=min(BLOCK_BYTES, available_bytes // 2),
            n_threads=min(arguments.nprocs or available_cpus(), available_cpus()),
            show_progress=not arguments.quiet,
        )
    logger.info(
        "lesions in the group: %d, left out: %d, outliers: %s; the table is %s",
        len(summary.order),
        len(summary.left_out),
        ", ".join(summary.outliers) or "none",
        summary.table,
    )
    if not arguments.no_reports:
        write_group_page(out, available_bytes)
    return Exit.OK


def write_group_page(output_dir: Path, available_bytes: int) -> bool:
    """Write the group's page, in a process of its own, and tell whether it is there."""
    from bids_lacuna.report.pool import ReportPool, choose_n_workers

    if not choose_n_workers(available_bytes, n_threads=1):
        logger.warning("the memory is too small for the page: write it afterwards, with more, by --reports-only")
        return False
    with ReportPool(output_dir, 1) as reports:
        reports.submit_group()
        return reports.wait() == 1


def remake_group_report(arguments: argparse.Namespace) -> Exit:
    """Write the group's page anew, from what is on disk."""
    from bids_lacuna.group import DICTIONARY
    from bids_lacuna.runtime.memory import memory_budget

    if not (arguments.output_dir / DICTIONARY).is_file():
        raise Stop(Exit.NO_INPUT, f"{arguments.output_dir} holds no group: run without --reports-only first")
    written = write_group_page(arguments.output_dir, memory_budget(arguments.mem).available_bytes)
    return Exit.OK if written else Exit.FAILED


def remake_reports(arguments: argparse.Namespace) -> Exit:
    """Write the participants' pages anew, from what is on disk."""
    from bids_lacuna.report.maps_on_disk import find_participants
    from bids_lacuna.report.pool import ReportPool, choose_n_workers
    from bids_lacuna.runtime.memory import available_cpus, memory_budget

    if not (arguments.output_dir / "dataset_description.json").is_file():
        raise Stop(Exit.NO_INPUT, f"{arguments.output_dir} holds no maps: run without --reports-only first")
    there = find_participants(arguments.output_dir)
    wanted = [label.removeprefix("sub-") for label in arguments.participant_label] or there
    if unknown := sorted(set(wanted) - set(there)):
        raise Stop(
            Exit.NO_INPUT,
            f"{arguments.output_dir} has no participant {', '.join(unknown)}: there are {', '.join(there)}",
        )
    n_threads = min(arguments.nprocs or available_cpus(), available_cpus())
    n_workers = choose_n_workers(memory_budget(arguments.mem).available_bytes, n_threads)
    with (
        ending(Exit.CANNOT_CREATE, OSError, saying=f"{arguments.output_dir} cannot be written to"),
        keeping_log(arguments, name_log_dir(arguments.output_dir)),
        ReportPool(arguments.output_dir, n_workers) as reports,
    ):
        reports.submit(wanted)
        n_written = reports.wait()
    return Exit.OK if n_written == len(wanted) else Exit.FAILED


def describe_run(
    analysis: FunctionalNetworkMapping,
    plan: BatchPlan,
    budget: MemoryBudget,
    n_threads: int,
    links: Mapping[str, str],
) -> Run:
    """Put together what is told of a run in its logs."""
    from bids_lacuna.derivatives.history import Run, library_versions

    connectome = analysis.connectome
    return Run(
        command=shlex.join(sys.argv),
        started=f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}",
        version=__version__,
        software=library_versions(),
        connectome_name=connectome.name,
        connectome_hash=connectome.content_hash,
        connectome_space=connectome.space,
        n_connectome_subjects=connectome.n_subjects,
        n_timepoints=connectome.n_timepoints,
        n_voxels=connectome.grid.n_voxels,
        voxel_sizes_mm=connectome.grid.voxel_sizes_mm.round(3).tolist(),
        weighting=analysis.weighting,
        t_thresholds=list(analysis.t_thresholds),
        n_lesions=plan.n_lesions,
        batch_size=plan.batch_size,
        n_threads=n_threads,
        planned_bytes=plan.peak_bytes,
        available_bytes=budget.available_bytes,
        memory_limit=budget.source,
        links=dict(links),
    )


def find_masks(arguments: argparse.Namespace, datasets: Mapping[str, Path]) -> list[LesionMask]:
    """Find the masks that the arguments choose."""
    from bids_lacuna.bids import (
        DamagedDataset,
        NoLesionMasks,
        UnknownParticipant,
        find_lesion_masks,
        read_filter_file,
    )

    with ending(Exit.NO_INPUT, OSError), ending(Exit.USAGE, ValueError):
        filters = read_filter_file(arguments.bids_filter_file) if arguments.bids_filter_file else {}
    database_dir = None if arguments.dry_run else arguments.bids_database_dir
    if database_dir:
        make_folder(database_dir)
    with (
        ending(Exit.NO_FILES_SELECTED, NoLesionMasks),
        ending(Exit.NO_INPUT, UnknownParticipant),
        ending(Exit.NO_INPUT, PermissionError, saying="a dataset cannot be searched: check its permissions"),
        ending(Exit.USAGE, ValueError),
        ending(Exit.NOT_BIDS, FileNotFoundError, NotADirectoryError, DamagedDataset),
    ):
        return find_lesion_masks(
            arguments.bids_dir,
            {name: path for name, path in datasets.items() if name != "source"},
            participant_labels=arguments.participant_label,
            session_labels=arguments.session_label,
            filters=filters,
            database_dir=database_dir,
        )


def open_connectome(arguments: argparse.Namespace) -> Connectome:
    """Open the connectome that the arguments name."""
    from bids_lacuna.connectome.connectome import Connectome
    from bids_lacuna.connectome.store import is_store

    with ending(Exit.NO_INPUT, FileNotFoundError, PermissionError), ending(Exit.BAD_DATA, ValueError):
        connectome = Connectome.open(
            arguments.connectome, name=arguments.connectome_name, space=arguments.connectome_space
        )
    if not is_store(arguments.connectome):
        logger.warning(
            "each pass over %s takes about %d times as long to read as one over a store of it: make one, once, with "
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
            "the connectome %s has one subject: without a second one there is no spread to divide by, and t is NaN "
            "everywhere",
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


def check_folders(arguments: argparse.Namespace, datasets: Mapping[str, Path]) -> None:
    """Refuse folders that would mix input and output."""
    for path in datasets.values():
        if not path.is_dir():
            raise Stop(Exit.NO_INPUT, f"there is no folder {path}: a dataset with lesion masks is needed there")
    written = {
        "output": arguments.output_dir,
        "work": arguments.work_dir,
        "database": arguments.bids_database_dir,
    }
    for kind, folder in written.items():
        for source in [*datasets.values(), *filter(None, [arguments.connectome])]:
            if folder and lies_in(folder.resolve(), source.resolve()):
                raise Stop(
                    Exit.USAGE,
                    f"the {kind} folder {folder} lies inside the input {source}, which stays as it is: use "
                    f"{arguments.bids_dir / 'derivatives' / 'bids-lacuna'}, or a folder elsewhere",
                )
    output = arguments.output_dir.resolve()
    if output.parent.name == "derivatives" and "bids-lacuna" not in output.name:
        logger.warning("in a folder called derivatives, BIDS wants the name bids-lacuna in %s", output.name)


def lies_in(folder: Path, source: Path) -> bool:
    """Tell whether a folder is, or is below, an input; a folder of its own in `derivatives` is not."""
    derivatives = source / "derivatives"
    return folder.is_relative_to(source) and not (folder.is_relative_to(derivatives) and folder != derivatives)


def name_datasets(arguments: Sequence[str]) -> dict[str, Path]:
    """Read PATH or NAME=PATH of each further dataset; a path without a name is called after its folder."""
    datasets: dict[str, Path] = {}
    for argument in arguments:
        named = re.match(r"([A-Za-z0-9]+)=", argument)
        path = argument[named.end() :] if named else argument
        name = named[1] if named else re.sub(r"[^A-Za-z0-9]", "", Path(path).resolve().name)
        if not name or name in {"source", *datasets}:
            raise Stop(
                Exit.USAGE,
                f"-d {argument}: the name {name!r} is taken or empty: give each dataset a name of its own, as in "
                "-d NAME=PATH",
            )
        datasets[name] = Path(path)
    return datasets


def report_failures(records: Sequence[LesionRecord]) -> None:
    """Log the lesions that failed before they were read: a reason that many have once."""
    names: dict[str, list[str]] = {}
    for record in records:
        if record.status == "failed":
            names.setdefault(record.reason, []).append(record.mask.path.name)
    for reason, same in names.items():
        logs.log_failure(logger, same, reason)


def conclude(records: Sequence[LesionRecord], log_dir: Path) -> Exit:
    """Say how it went, with the failures of one kind together: one of each was shown as it came, the log has all."""
    counts = Counter[str](record.status for record in records)
    statuses = ["done", "skipped", "failed", *(["not run"] if counts["not run"] else [])]
    logger.info(
        "%s; each lesion's outcome is in %s",
        ", ".join(f"{counts[status]} {status}" for status in statuses),
        log_dir / "lesions.tsv",
    )
    failed = [record for record in records if record.status == "failed"]
    if not failed:
        return Exit.OK
    by_kind: dict[str, list[LesionRecord]] = {}
    for record in failed:
        by_kind.setdefault(logs.kind_of(record.reason), []).append(record)
    for alike in by_kind.values():
        if len(alike) > 1:
            names = logs.name_some([record.mask.path.name for record in alike])
            logger.error("failed alike: %d lesions (%s): %s", len(alike), names, alike[0].reason)
    first = f"{failed[0].mask.path.name}: {failed[0].reason}"
    many = f"{len(failed)} of {len(records)} lesions failed, the first: " if len(failed) > 1 else "a lesion failed: "
    sys.stderr.write(one_line(f"bids-lacuna: error: {many}{first} (the log is in {log_dir})") + "\n")
    return Exit.FAILED


def connectome_main(argv: Sequence[str] | None = None) -> int:
    """Run bids-lacuna-connectome.

    Parameters
    ----------
    argv
        Command-line arguments; by default those of this process.

    Returns
    -------
    int
        The exit status.
    """

    def run(arguments: argparse.Namespace) -> Exit:
        # Not at the top: --help and --version need not wait for numba and scipy.
        from bids_lacuna.app import connectome

        commands = {"build": connectome.run_build, "info": connectome.run_info, "verify": connectome.run_verify}
        return commands[arguments.command](arguments)

    parser = connectome_options.build_parser()
    complete_words(parser)
    return run_command(parser, argv, run, connectome_options.INTERRUPTED)
