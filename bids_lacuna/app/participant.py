"""The participant level: `prepare` a job, `plan` it, then `preview` or `execute` it."""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from bids_lacuna._version import __version__
from bids_lacuna.app.command import Exit, ending
from bids_lacuna.app.inputs import find_masks, open_connectome
from bids_lacuna.app.masks import add_masks
from bids_lacuna.app.nulls import Nulls, add_nulls, find_nulls, is_due
from bids_lacuna.app.parcels import UsedAtlas, add_parcels, cite_atlases, find_atlases, lacks_parcels
from bids_lacuna.app.preview import preview
from bids_lacuna.app.runlog import keeping_log, name_log_dir
from bids_lacuna.app.seeds import write_seeds
from bids_lacuna.app.sharing import claim, reopen, report_failures, sharing_output
from bids_lacuna.app.similarity import add_similarity, find_summary, lacks_similarity
from bids_lacuna.app.targets import add_target_nulls, add_targets, lacks_percentiles, lacks_targets, read_targets
from bids_lacuna.app.transforms import check_shared, find_chains, limit_threads, log_chains, memory_of_transforms
from bids_lacuna.batch import process_batches
from bids_lacuna.bids import ParticipantWithoutMask
from bids_lacuna.derivatives import (
    IMAGES,
    OUTCOMES,
    SPHERES,
    DerivativesWriter,
    LesionRecord,
    Run,
    decide,
)
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping import FunctionalNetworkMapping, LocalPass, NoWorker, Pass, PassStopped, Summary
from bids_lacuna.provenance import MappingOptions, Provenance
from bids_lacuna.report.methods import describe_comparisons, write_citation
from bids_lacuna.report.pool import ReportPool, choose_n_workers, participants_with_news, worker_bytes
from bids_lacuna.runtime import logs
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.memory import find_resources, room_for_files
from bids_lacuna.runtime.plan import BatchPlan, Resources
from bids_lacuna.runtime.progress import above_the_bar
from bids_lacuna.runtime.signals import sigusr1_ignored
from bids_lacuna.targets import Target
from bids_lacuna.text import format_bytes, one_line

logger = logging.getLogger(__name__)

UNREACHABLE = "the Dask cluster cannot be reached; rerun the same command to resume"


@dataclass(frozen=True)
class Job:
    """All that a run of the participant level knows before it plans: nothing is written yet."""

    arguments: argparse.Namespace
    datasets: Mapping[str, Path]
    """Roots of the datasets with masks, by name."""
    started: float
    """`time.monotonic()` at the beginning."""
    analysis: FunctionalNetworkMapping
    pass_: Pass
    provenance: Provenance
    records: Sequence[LesionRecord]
    """One for each mask found."""
    checkpoints: Checkpoints | None
    without_mask: Sequence[ParticipantWithoutMask]
    """Participants for whom no mask was found."""
    summary: Summary | None
    """The connectome's summary, if there is one."""
    nulls: Nulls | None
    """What null lesions need, if there are any."""
    targets: Sequence[Target]
    """Target networks, with which each lesion is compared."""
    atlases: Sequence[UsedAtlas]
    """Atlases by whose regions maps are averaged."""

    @property
    def resources(self) -> Resources:
        """Memory and threads of this machine."""
        return self.pass_.resources

    @property
    def n_report_workers(self) -> int:
        """Processes that write pages, for which memory is reserved."""
        return self.resources.reserved_bytes // worker_bytes(self.analysis.connectome.grid.mask.size)

    @property
    def pending(self) -> list[LesionRecord]:
        """The lesions whose outcome is open."""
        return [record for record in self.records if record.status == "pending"]

    @property
    def to_map(self) -> list[LesionRecord]:
        """The pending lesions that need a pass over the connectome."""
        return [record for record in self.pending if record.t_map is None]

    @property
    def continues(self) -> bool:
        """Whether lesions are mapped, although others may have failed before."""
        stops = self.arguments.stop_on_first_crash and any(record.status == "failed" for record in self.records)
        return not stops

    @property
    def comparisons(self) -> str:
        """What the methods text says of the connectome's summary."""
        kind = "seed" if self.arguments.coordinates or self.arguments.seed_label else "lesion"
        nulls = self.nulls.identity if self.nulls else None
        return describe_comparisons(kind, similarity=self.summary is not None, nulls=nulls)

    def compare(self, records: Collection[LesionRecord]) -> list[str]:
        """Add what finished maps are similar to, and return the labels of participants with news."""
        out = self.arguments.output_dir
        with_news = add_targets(self.targets, records, out, self.analysis)
        if self.summary is not None:
            with_news += add_similarity(self.summary, records, out, self.analysis)
        return with_news

    def compare_with_nulls(self, writer: DerivativesWriter) -> list[str]:
        """Compare finished maps with null lesions, and return the labels of participants with news."""
        if not self.nulls:
            return []
        shown = not self.arguments.quiet
        with_news = add_nulls(self.nulls, writer, self.analysis, self.resources, shown)
        if self.targets:
            with_news += add_target_nulls(self.targets, self.nulls, writer, self.resources, shown)
        return with_news

    def lacks(self, record: LesionRecord) -> bool:
        """Return whether a lesion has maps, and this run may add something to them."""
        out, provenance, nulls = self.arguments.output_dir, self.provenance, self.nulls
        return (
            lacks_targets(self.targets, record, out, provenance)
            or (self.summary is not None and lacks_similarity(self.summary, record, out, provenance))
            or (nulls is not None and is_due(record, nulls, out, provenance))
            or (nulls is not None and lacks_percentiles(self.targets, record, nulls, out, provenance))
            or lacks_parcels(self.atlases, record, out, provenance)
        )

    def plan(self) -> BatchPlan:
        """Divide the lesions that need a pass into batches."""
        advice = f"{format_bytes(self.resources.reserved_bytes)} are reserved for reports; --no-reports frees them"
        with (
            ending(Exit.FAILED, MemoryError, saying=advice if self.n_report_workers else ""),
            ending(Exit.NO_INPUT, NoWorker),
        ):
            return self.pass_.plan(len(self.to_map), self.arguments.lesion_batch_size)


def run(arguments: argparse.Namespace, datasets: Mapping[str, Path]) -> Exit:
    """Map the lesions of a dataset."""
    with ExitStack() as stack:
        stack.enter_context(sigusr1_ignored())
        # Half a million objects of the imported libraries live as long as the process: the collector need not visit
        # them each time that there are many masks.
        gc.freeze()
        job = prepare(arguments, datasets, stack)
        plan = job.plan()
        if arguments.dry_run:
            return preview(job, plan)
        return execute(job, plan)


def prepare(arguments: argparse.Namespace, datasets: Mapping[str, Path], stack: ExitStack) -> Job:
    """Find the inputs, and decide what becomes of each mask.

    Parameters
    ----------
    stack
        Lets go of the Dask cluster, if there is one.
    """
    logger.info("bids-lacuna %s", __version__)
    connectome = open_connectome(arguments)
    summary = find_summary(arguments, connectome)
    nulls = find_nulls(arguments, connectome, summary)
    targets = read_targets(arguments, datasets, connectome.grid, connectome.space)
    out = Path(stack.enter_context(tempfile.TemporaryDirectory())) if arguments.dry_run else arguments.output_dir
    masks, without_mask = find_masks(arguments, datasets, connectome.space, out)
    write_seeds(masks, arguments.output_dir)
    analysis = FunctionalNetworkMapping.of(connectome, read_options(arguments))
    provenance = analysis.provenance
    find_chain = find_chains(arguments, datasets, connectome.space)
    atlases = find_atlases(arguments, find_chain)
    records = decide(masks, arguments.output_dir, provenance, arguments.overwrite, find_chain)
    check_shared(find_chain.given, records)
    log_chains(find_chain, records)
    checkpoints = None if arguments.dry_run else open_checkpoints(arguments, analysis)
    if checkpoints:
        reopen(records, checkpoints.current_batch)
    report_failures(records)
    resources = find_resources(arguments.mem, arguments.nprocs)
    limit_threads(records, resources.n_threads)
    resources = replace(resources, available_bytes=resources.available_bytes - memory_of_transforms(records))
    if not arguments.no_reports:
        resources = reserve_for_reports(resources, worker_bytes(connectome.grid.mask.size))
    pass_: Pass = LocalPass(analysis, resources)
    if arguments.dask_workers or arguments.dask_scheduler:
        pass_ = stack.enter_context(on_cluster(arguments, analysis, resources))
    return Job(
        arguments,
        datasets,
        arguments.started,
        analysis,
        pass_,
        provenance,
        records,
        checkpoints,
        without_mask,
        summary,
        nulls,
        targets,
        atlases,
    )


def execute(job: Job, planned: BatchPlan) -> Exit:
    """Map the lesions, and write their maps and pages."""
    arguments, out = job.arguments, job.arguments.output_dir
    log_dir = name_log_dir(out)
    unwritable = f"{out} cannot be written to"
    with ExitStack() as stack:
        with ending(Exit.CANNOT_CREATE, OSError, saying=unwritable):
            claims, links = stack.enter_context(sharing_output(out, job.datasets, log_dir.name))
            stack.enter_context(keeping_log(arguments, log_dir))
            checkpoints = claim(job, claims)
            n_threads = job.resources.n_threads
            writer = DerivativesWriter(out, job.provenance, job.records, log_dir, links, job.without_mask, n_threads)
            stack.enter_context(listing_interrupted(job, writer))
            writer.write_table()
        with above_the_bar():
            records = job.pending if job.continues else []
            thresholds = add_masks(records, writer, job.analysis.connectome.grid, job.provenance.space)
        plan = planned if len(job.to_map) == planned.n_rows else job.plan()
        if checkpoints:
            spare_bytes = job.resources.available_bytes - plan.peak_bytes
            checkpoints.free_bytes = partial(room_for_files, checkpoints.folder, spare_bytes)
        with ending(Exit.CANNOT_CREATE, OSError, saying=unwritable):
            this_run = describe_run(job, plan, links)
            this_run.write(log_dir)
            if job.pending or thresholds:
                all_masks = this_run.with_thresholds({*job.provenance.options.t_thresholds, *thresholds})
                write_citation(out, all_masks, arguments.md_only_boilerplate, comparisons=job.comparisons)
        pages = stack.enter_context(ReportPool(out, job.n_report_workers, show_progress=not arguments.quiet))
        log = RunLog(job, this_run, log_dir, writer, pages)
        with above_the_bar(), listing_interrupted(job, writer):
            compared = job.compare(job.records)
            process_batches(
                [record.as_lesion() for record in job.pending] if job.continues else [],
                job.analysis,
                job.pass_,
                plan,
                batch_result_callback=writer,
                checkpoints=checkpoints,
                observer=log,
                stop_on_first_crash=arguments.stop_on_first_crash,
                show_progress=not arguments.quiet,
            )
        set_pending_aside(job, "the run ended at the first failure (--stop-on-first-crash)")
        with ending(Exit.INPUT_OUTPUT, OSError, saying="the table of outcomes could not be written"):
            writer.write_table()
            log.write(finished=True)
            if job.analysis.n_without_signal:
                write_citation(out, log.describe(), arguments.md_only_boilerplate, comparisons=job.comparisons)
        with above_the_bar():
            compared += job.compare_with_nulls(writer)
            with_tables = add_parcels(job.atlases, writer, job.analysis, claims, not arguments.quiet)
            if with_tables or (compared and not this_run.n_lesions):
                cite_atlases(job.atlases, log.describe(), out, arguments.md_only_boilerplate, job.comparisons)
            compared += with_tables
            if any(record.lacks for record in job.records):
                writer.close([])
        log.submit_pages(compared)
        pages.wait()
        return conclude(job.records, len(job.without_mask), log_dir)


@dataclass(frozen=True)
class RunLog:
    """Keeps lesions.tsv, run.json and the pages up to date: an observer of the batches."""

    job: Job
    run: Run
    log_dir: Path
    writer: DerivativesWriter
    pages: ReportPool

    def on_started(self, lesions: Sequence[LesionData]) -> None:
        """Do nothing: the lesions are pending in lesions.tsv."""

    def on_failed(self, lesions: Sequence[LesionData]) -> None:
        """Record the lesions of a batch that could not be loaded."""
        self.writer.close(lesions)

    def on_finished(self, lesions: Sequence[LesionData]) -> None:
        """Record a batch, and have its participants' pages written, unless they await null lesions or parcels."""
        self.writer.close(lesions)
        try:
            self.write()
        except OSError as error:
            # The maps are complete; run.json is written again at the end of the run.
            logger.warning("the description of the run could not be written: %s", error)
        self.job.compare([self.writer.record(lesion) for lesion in lesions])
        # The pool writes each page once.
        if not (self.job.nulls or self.job.atlases):
            self.submit_pages()

    def describe(self, finished: bool = False) -> Run:
        """Describe the run as it is by now."""
        n_without_signal = self.job.analysis.n_without_signal or 0
        run = replace(self.run, n_without_signal=n_without_signal)
        return run.until_now(self.job.started, finished=finished)

    def write(self, finished: bool = False) -> None:
        """Write run.json."""
        self.describe(finished).write(self.log_dir)

    def submit_pages(self, compared: Collection[str] = ()) -> None:
        """Have the pages written that are due, and those of participants whose finished maps were compared."""
        if self.job.n_report_workers:
            due = participants_with_news(self.job.arguments.output_dir, self.job.records)
            self.pages.submit([*due, *compared])


def set_pending_aside(job: Job, reason: str) -> None:
    """Record why the pending lesions were not mapped."""
    for record in job.pending:
        record.set_aside("not run", reason)


@contextmanager
def listing_interrupted(job: Job, writer: DerivativesWriter) -> Iterator[None]:
    """List in lesions.tsv what was not mapped before Ctrl-C, SIGTERM or the loss of a Dask cluster."""
    try:
        yield
    except (KeyboardInterrupt, PassStopped):
        set_pending_aside(job, "the run was interrupted")
        writer.close([])
        raise


def read_options(arguments: argparse.Namespace) -> MappingOptions:
    """Read the options of the analysis from a command line."""
    return MappingOptions(
        compute_t_map=not arguments.no_t_map,
        t_thresholds=tuple(arguments.t_threshold),
        weighting=arguments.lesion_weighting,
        lesion_threshold=arguments.lesion_threshold,
    )


def reserve_for_reports(resources: Resources, bytes_each: int) -> Resources:
    """Reserve memory for the processes that write pages, of some bytes each, if they fit."""
    n_workers = choose_n_workers(resources.available_bytes, resources.n_threads, bytes_each)
    if not n_workers:
        logger.warning("the memory is too small for reports: write them later, with more, by --reports-only")
    return replace(resources, reserved_bytes=n_workers * bytes_each)


@contextmanager
def on_cluster(
    arguments: argparse.Namespace, analysis: FunctionalNetworkMapping, resources: Resources
) -> Iterator[Pass]:
    """Send an analysis to the Dask cluster that was asked for."""
    with ending(Exit.USAGE, ModuleNotFoundError, saying="Dask is needed: pip install 'bids-lacuna[distributed]'"):
        # Dask is an optional dependency.
        from bids_lacuna.cluster import ClusterPass, connect

    with (
        ending(Exit.TEMPORARY, PassStopped, saying=UNREACHABLE),
        connect(arguments.dask_scheduler, arguments.dask_workers, resources.n_threads) as client,
    ):
        yield ClusterPass(analysis, client, resources, arguments.nprocs if arguments.dask_scheduler else None)


def open_checkpoints(arguments: argparse.Namespace, analysis: FunctionalNetworkMapping) -> Checkpoints | None:
    """Open the folder of this run's checkpoints, which depends on the output folder and on the participants."""
    if arguments.checkpoint_minutes == 0:
        return None
    labels = sorted(arguments.participant_label), sorted(arguments.session_label)
    # In a C locale, a path may hold bytes that are not UTF-8.
    name = hashlib.sha256(os.fsencode(f"{arguments.output_dir.resolve()} {labels}")).hexdigest()[:16]
    work_dir = arguments.work_dir or Path(tempfile.gettempdir()) / f"bids-lacuna-{os.getuid()}"
    folder = work_dir.absolute() / "checkpoints" / name
    try:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not arguments.work_dir and work_dir.stat().st_uid != os.getuid():
            raise PermissionError(f"{work_dir} belongs to somebody else")
        checkpoints = Checkpoints(folder, 60 * arguments.checkpoint_minutes, analysis.identity)
    except OSError as error:
        logger.warning("no checkpoints are kept (%s): choose a folder for them with -w", error)
        return None
    logger.info("checkpoints are kept in %s", folder)
    return checkpoints


def describe_run(job: Job, plan: BatchPlan, links: Mapping[str, str]) -> Run:
    """Describe a run for its log."""
    connectome = job.analysis.connectome
    return Run(
        command=shlex.join(sys.argv),
        started=f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}",
        provenance=job.provenance,
        n_connectome_subjects=connectome.n_subjects,
        n_timepoints=connectome.n_timepoints,
        n_voxels=connectome.grid.n_voxels,
        n_lesions=plan.n_rows,
        batch_size=plan.batch_size,
        n_threads=job.resources.n_threads,
        planned_bytes=plan.peak_bytes,
        available_bytes=job.resources.available_bytes,
        memory_limit=job.resources.source,
        links=dict(links),
        reports=job.n_report_workers > 0,
        seeds=SPHERES if job.arguments.coordinates else IMAGES if job.arguments.seed_label else "",
        transforms=tuple(sorted({record.transform.words for record in job.records if record.transform})),
    )


def conclude(records: Sequence[LesionRecord], n_without_mask: int, log_dir: Path) -> Exit:
    """Log the outcome, with failures of one kind together: the terminal showed the first of each, the log has all."""
    counts = Counter[str](record.status for record in records)
    statuses = ["done", "skipped", "failed", *(["not run"] if counts["not run"] else [])]
    words = [f"{counts[status]} {status}" for status in statuses]
    if n_without_mask:
        words.append(f"participants without a mask: {n_without_mask}")
    logger.info(
        "%s; each lesion's outcome is in %s",
        ", ".join(words),
        log_dir / OUTCOMES,
    )
    failed = [record for record in records if record.status == "failed"]
    lacking = [record for record in records if record.lacks]
    if not failed and not lacking:
        return Exit.OK
    by_kind: dict[str, list[LesionRecord]] = {}
    for record in failed:
        by_kind.setdefault(logs.kind_of(record.reason), []).append(record)
    for alike in by_kind.values():
        if len(alike) > 1:
            names = logs.name_some([record.mask.path.name for record in alike])
            logger.error("failed alike: %d lesions (%s): %s", len(alike), names, alike[0].reason)
    if failed:
        first = f"{failed[0].mask.path.name}: {failed[0].reason}"
        many = (
            f"{len(failed)} of {len(records)} lesions failed, the first: " if len(failed) > 1 else "a lesion failed: "
        )
    else:
        first = f"{lacking[0].mask.path.name}: {lacking[0].lacks[0]}"
        many = (
            f"{len(lacking)} of {len(records)} lesions have maps to which something could not be added, the first: "
        )
    sys.stderr.write(one_line(f"bids-lacuna: error: {many}{first} (the log is in {log_dir})") + "\n")
    return Exit.FAILED
