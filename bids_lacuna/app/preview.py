"""Dry run: prints the lesions with their expected outcomes, the plan, and estimates of disk and time."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bids_lacuna import kernels
from bids_lacuna.app.command import NAMES_WIDTH, Exit, ending
from bids_lacuna.app.nulls import describe_time, find_due, is_due
from bids_lacuna.app.parcels import describe_due
from bids_lacuna.app.targets import lacks_percentiles
from bids_lacuna.batch import load_lesions
from bids_lacuna.connectome import Connectome, ConnectomeSubject
from bids_lacuna.derivatives import DerivativesWriter, LesionRecord, prepare_dataset
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping import FunctionalNetworkMapping, LocalPass
from bids_lacuna.mapping.moments import RunningMoments
from bids_lacuna.quality import LOW_COVERAGE
from bids_lacuna.report.pool import PageCost, measure_pages
from bids_lacuna.runtime.logs import kind_of
from bids_lacuna.runtime.plan import BatchPlan, Resources
from bids_lacuna.runtime.progress import Progress, above_the_bar
from bids_lacuna.text import format_bytes, format_seconds, layout_rows, one_line, percent
from bids_lacuna.weights import Rows

if TYPE_CHECKING:
    from bids_lacuna.app.participant import Job

logger = logging.getLogger(__name__)

SAMPLED_SUBJECTS = 3 * kernels.GROUP
"""Connectome subjects of the sample; the first group also allocates the moments, the others are timed."""

MASKS_AT_ONCE = 128
"""Masks that are loaded together: to start threads for each 32 took a twelfth of the time, more would need memory."""

MAPPED_LESIONS = 500
"""Largest number of lesions that are mapped in the sample; a batch of more takes longer in proportion."""

WRITTEN_LESIONS = 4
"""Number of lesions, or some more, whose maps are written into a temporary folder."""

ACTIONS = {"pending": "map", "skipped": "skip", "failed": "fail"}
"""Action of a run on a lesion, by the lesion's status."""

LONG_REASON = 60
"""Characters of a reason, above which masks that share it refer to one copy of it."""


@dataclass(frozen=True)
class Sample:
    """Measurements of a pass over a few connectome subjects, and of a few lesions' maps and pages."""

    n_lesions: int
    """Lesions that were mapped."""
    n_subjects: int
    n_together: int
    """Connectome subjects per group, which are mapped together."""
    seconds_begin: float
    """Time until the first group of connectome subjects is mapped for a whole batch."""
    seconds_per_subject: float
    """Time per connectome subject after the first group, for a whole batch."""
    seconds_per_lesion: float
    """Time to write a lesion's maps."""
    bytes_per_lesion: float
    """Size of a lesion's maps on disk."""
    pages: PageCost | None = None
    """Cost of the pages; None if there are none, or if they could not be measured."""

    def seconds(self, plan: BatchPlan, n_connectome_subjects: int, n_report_workers: int) -> float:
        """Estimate the duration of a run from its first pass on.

        The reports of a batch are written once its maps are, while the next batch is mapped.
        """
        n_after = max(0, n_connectome_subjects - self.n_together)
        a_pass = self.seconds_begin + n_after * self.seconds_per_subject
        maps = plan.n_batches * a_pass + plan.n_rows * self.seconds_per_lesion
        if not self.pages:
            return maps
        reports = self.pages.seconds(plan.n_rows, n_report_workers)
        return max(maps + reports / plan.n_batches, maps / plan.n_batches + reports)


@dataclass(frozen=True)
class GroupTimes:
    """When a group of connectome subjects was added, in seconds."""

    n_subjects: int
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """Time that the arithmetic took."""
        return self.ended - self.began


def preview(job: Job, plan: BatchPlan) -> Exit:
    """Print the lesions with their expected outcomes, the plan, and estimates of disk and time."""
    n_subjects, quiet = job.analysis.n_subjects, job.arguments.quiet
    with above_the_bar():
        n_kept = min(plan.batch_size, MAPPED_LESIONS)
        lesions = load_records(job.to_map, job.analysis, n_kept, job.resources.n_threads, not quiet)
    seconds_of_start = time.monotonic() - job.started
    sys.stdout.write(describe_lesions(job.records) + "\n")
    is_local = isinstance(job.pass_, LocalPass)
    source = job.resources.source if is_local else "the tightest host of the Dask cluster"
    sys.stdout.write(describe_plan(plan, replace(job.resources, source=source), n_subjects))
    if lesions and is_local:
        with ending(Exit.INPUT_OUTPUT, OSError), ending(Exit.FAILED, MemoryError):
            sample = take_sample(lesions, job, plan)
        left = replace(plan, n_rows=len(job.to_map))
        seconds = seconds_of_start + sample.seconds(left, n_subjects, job.n_report_workers)
        sys.stdout.write(describe_cost(sample, left, seconds, n_subjects, job))
    if job.nulls:
        needed = {"null lesions": is_due}
        if job.targets:
            needed["nulls and targets"] = partial(lacks_percentiles, job.targets)
        rows = {}
        for name, lacks in needed.items():
            due = find_due(job.nulls, job.records, job.arguments.output_dir, job.provenance, lacks)
            rows[name] = describe_time(job.nulls, due, job.resources.n_threads)
        sys.stdout.write(layout_rows(rows, NAMES_WIDTH))
    if job.atlases:
        due_tables = describe_due(job.atlases, job.records, job.arguments.output_dir, job.provenance)
        sys.stdout.write(layout_rows({"parcels": due_tables}, NAMES_WIDTH))
    return Exit.OK


def load_records(
    pending: Sequence[LesionRecord],
    analysis: FunctionalNetworkMapping,
    n_kept: int,
    n_threads: int,
    show_progress: bool,
) -> list[LesionData]:
    """Read the masks of pending lesions and record volume, coverage and errors.

    Parameters
    ----------
    n_kept
        Number of loaded lesions to return as a sample; the others are released.
    """
    kept: list[LesionData] = []
    with Progress(len(pending), "reading masks", "mask", shown=show_progress) as progress:
        for start in range(0, len(pending), MASKS_AT_ONCE):
            some = pending[start : start + MASKS_AT_ONCE]
            loaded = load_lesions([record.as_lesion() for record in some], analysis, n_threads)
            for record, lesion in zip(some, loaded, strict=True):
                record.volume_mm3, record.coverage = lesion.volume_mm3, lesion.coverage
                if lesion.error:
                    record.set_aside("failed", lesion.error)
                elif len(kept) < n_kept:
                    kept.append(lesion)
            progress.update(len(some))
    return kept


class TimedMapping(FunctionalNetworkMapping):
    """The analysis, which times how long it adds each group of connectome subjects."""

    def __init__(self, connectome: str | PathLike[str] | Connectome) -> None:
        super().__init__(connectome)
        self.groups: list[GroupTimes] = []
        """One for each group that was added."""

    def add(self, subjects: Sequence[ConnectomeSubject], rows: Rows, accumulator: RunningMoments) -> None:
        """Add a group of connectome subjects, and record when."""
        began = time.perf_counter()
        super().add(subjects, rows, accumulator)
        self.groups.append(GroupTimes(len(subjects), began, time.perf_counter()))


def take_sample(lesions: Sequence[LesionData], job: Job, plan: BatchPlan) -> Sample:
    """Measure the mapping of lesions in a few connectome subjects, and the writing of some lesions' maps and pages.

    Raises
    ------
    OSError, MemoryError
        The connectome cannot be read, or there is not enough disk space or memory.
    """
    few = TimedMapping.of(job.analysis.connectome.first(SAMPLED_SUBJECTS), job.analysis.options)
    began = time.perf_counter()
    rows = Rows.of({str(number): few.row(lesion) for number, lesion in enumerate(lesions)})
    accumulator: Any = LocalPass(few, job.resources).run(rows, plan)
    some = range(0, len(lesions), max(1, len(lesions) // WRITTEN_LESIONS))
    mapped = [replace(lesions[row], results={few.name: few.results(lesions[row], accumulator, row)}) for row in some]
    n_in_batch = min(plan.batch_size, len(job.to_map))
    seconds_begin, seconds_per_subject = extrapolate(began, few.groups, n_in_batch / len(lesions))
    return Sample(
        len(lesions),
        few.n_subjects,
        plan.n_together,
        seconds_begin,
        seconds_per_subject,
        *_time_writing(mapped, job),
    )


def extrapolate(began: float, groups: Sequence[GroupTimes], factor: float) -> tuple[float, float]:
    """Estimate how long a batch takes from a pass of fewer lesions.

    The arithmetic takes longer in proportion to the lesions. Reading takes as long as before, and the pass waits
    for it only where the arithmetic of a group is faster.

    Parameters
    ----------
    began
        Time at which the pass began.
    groups
        The groups of connectome subjects that were added.
    factor
        Lesions of the batch per lesion of the pass.

    Returns
    -------
    seconds_begin, seconds_per_subject
        As in `Sample`; 0 seconds per connectome subject if there was one group.
    """
    first, *others = groups
    seconds_begin = first.began - began + factor * first.seconds
    if not others:
        return seconds_begin, 0
    whole = others[-1].ended - first.ended
    arithmetic = factor * sum(group.seconds for group in others)
    return seconds_begin, max(whole, arithmetic) / sum(group.n_subjects for group in others)


def _time_writing(mapped: Sequence[LesionData], job: Job) -> tuple[float, float, PageCost | None]:
    """Write maps and pages into a temporary folder; return seconds and bytes per lesion, and what pages cost."""
    masks = {lesion.mask for lesion in mapped}
    records = [replace(record) for record in job.records if record.mask.path in masks]
    with TemporaryDirectory(prefix="bids-lacuna-") as folder:
        root = Path(folder)
        links, n_threads = prepare_dataset(root, job.datasets), job.resources.n_threads
        writer = DerivativesWriter(root, job.provenance, records, root, links, n_threads=n_threads)
        began = time.perf_counter()
        writer(mapped)
        seconds = time.perf_counter() - began
        n_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        pages = _measure_pages(root, records, job.n_report_workers)
    return seconds / len(mapped), n_bytes / len(mapped), pages


def _measure_pages(output_dir: Path, records: Sequence[LesionRecord], n_workers: int) -> PageCost | None:
    """Measure the pages of lesions whose maps have been written; None if there are none, or if that fails."""
    if not n_workers:
        return None
    try:
        return measure_pages(output_dir, Counter(record.mask.entities["sub"] for record in records), n_workers)
    # As in a run, where a page that fails stops nothing.
    except Exception as error:
        logger.warning(
            "the estimates leave out the reports: those of the sample cannot be written (%s: %s)",
            type(error).__name__,
            error,
        )
        return None


def describe_lesions(records: Sequence[LesionRecord]) -> str:
    """Return a table of the masks with their expected outcomes; long reasons of several masks follow once."""
    rows = [("lesion", "volume", "coverage", "")]
    notes = find_notes(records)
    numbers = {kind: f"reason {number}" for number, kind in enumerate(notes, start=1)}
    for record in records:
        action = ACTIONS[record.status]
        if record.status == "pending" and record.t_map is not None:
            action = "make masks from its t-map"
        if record.reason:
            action += f": {numbers.get(kind_of(record.reason), record.reason)}"
        elif record.coverage is not None and record.coverage < LOW_COVERAGE:
            action += ", only the part inside the connectome's mask"
        volume = "-" if record.volume_mm3 is None else f"{record.volume_mm3 / 1000:.2f} mL"
        coverage = "-" if record.coverage is None else percent(record.coverage)
        rows.append((record.mask.name, volume, coverage, action))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name:{widths[0]}}  {volume:>{widths[1]}}  {coverage:>{widths[2]}}  {action}"
        for name, volume, coverage, action in rows
    ]
    lines += [f"{numbers[kind]}, {len(reasons)} lesions: {_shared(reasons)}" for kind, reasons in notes.items()]
    return "".join(one_line(line).rstrip() + "\n" for line in lines)


def find_notes(records: Sequence[LesionRecord]) -> dict[str, list[str]]:
    """Return the reasons too long to be repeated in each row, by their kind."""
    by_kind: dict[str, list[str]] = {}
    for record in records:
        if len(record.reason) > LONG_REASON:
            by_kind.setdefault(kind_of(record.reason), []).append(record.reason)
    return {kind: reasons for kind, reasons in by_kind.items() if len(reasons) > 1}


def _shared(reasons: Sequence[str]) -> str:
    """Return what several reasons of one kind have in common: all of it, or all but the file names."""
    return reasons[0] if len(set(reasons)) == 1 else kind_of(reasons[0])


def describe_plan(plan: BatchPlan, resources: Resources, n_subjects: int) -> str:
    """Return a summary of batches and memory."""
    reserved = format_bytes(resources.reserved_bytes)
    return layout_rows(
        {
            "lesions to map": f"{plan.n_rows}",
            "batch size": f"{plan.batch_size}",
            "passes": f"{plan.n_batches} over {n_subjects} connectome subjects, on {resources.n_threads} threads",
            "memory, fixed": f"{format_bytes(plan.fixed_bytes)}, {reserved} of it for reports",
            "memory, per lesion": format_bytes(plan.bytes_per_row),
            "memory, peak": format_bytes(plan.peak_bytes),
            "memory, available": f"{format_bytes(plan.available_bytes)} ({resources.source})",
        },
        NAMES_WIDTH,
    )


def describe_cost(sample: Sample, plan: BatchPlan, seconds: float, n_connectome_subjects: int, job: Job) -> str:
    """Return estimates of the disk space and time for maps and reports."""
    output_dir, n_workers, pages = job.arguments.output_dir, job.n_report_workers, sample.pages
    n_bytes = plan.n_rows * (sample.bytes_per_lesion + (pages.bytes_per_lesion if pages else 0))
    there = next(path for path in (output_dir, *output_dir.absolute().parents) if path.is_dir())
    free_bytes = shutil.disk_usage(there).free
    what = (
        f"{1000 * sample.seconds_per_subject:.0f} ms per connectome subject, timed on {sample.n_subjects} of "
        f"{n_connectome_subjects}"
    )
    if sample.n_lesions < (n_in_batch := min(plan.batch_size, plan.n_rows)):
        what += f" with {sample.n_lesions} of {n_in_batch} lesions"
    if pages:
        what += (
            f"; {pages.seconds_per_lesion:.2g} s per lesion for reports, in {n_workers} "
            f"process{'es' if n_workers > 1 else ''}"
        )
    return layout_rows(
        {
            "disk": f"about {format_bytes(round(n_bytes))}; {format_bytes(free_bytes)} are free",
            "time": f"about {format_seconds(seconds)} ({what})",
        },
        NAMES_WIDTH,
    )
