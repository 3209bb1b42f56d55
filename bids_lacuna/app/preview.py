"""What a dry run finds out and prints: the lesions and what becomes of each, the plan, and what it would take."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bids_lacuna import kernels
from bids_lacuna.batch import load_lesions
from bids_lacuna.derivatives.names import MapSettings
from bids_lacuna.derivatives.records import LesionRecord
from bids_lacuna.derivatives.writer import DerivativesWriter
from bids_lacuna.group import Group
from bids_lacuna.lesion import LOW_COVERAGE, LesionData
from bids_lacuna.mapping.functional import FunctionalNetworkMapping, count_together
from bids_lacuna.report.pool import PAGE_BYTES, PAGE_SECONDS
from bids_lacuna.runtime.memory import MemoryBudget
from bids_lacuna.runtime.plan import BatchPlan
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.text import format_bytes, one_line

SAMPLED_SUBJECTS = 3 * kernels.GROUP
"""Of the connectome: the first group of them also touches the memory of the moments, the others are timed."""

ACTIONS = {"pending": "map", "skipped": "skip", "failed": "fail"}
"""What a run would do with a lesion of each status."""


@dataclass(frozen=True)
class Sample:
    """What a pass over a few connectome subjects took, and one lesion's maps."""

    n_subjects: int
    n_together: int
    """Connectome subjects of a group: they are mapped together."""
    seconds_begin: float
    """Until the first group of connectome subjects was mapped."""
    seconds_per_subject: float
    """Of those after the first group."""
    seconds_per_lesion: float
    """To write its maps."""
    bytes_per_lesion: int
    """Of its maps on disk."""

    def seconds(self, plan: BatchPlan, n_connectome_subjects: int) -> float:
        """Estimate what a run takes, from its first pass on."""
        n_after = max(0, n_connectome_subjects - self.n_together)
        a_pass = self.seconds_begin + n_after * self.seconds_per_subject
        return plan.n_batches * a_pass + plan.n_lesions * self.seconds_per_lesion


def load_records(
    records: Sequence[LesionRecord],
    analysis: FunctionalNetworkMapping,
    n_kept: int,
    n_threads: int,
    show_progress: bool,
) -> list[LesionData]:
    """Read the masks that would be mapped, and note on each record what comes of it.

    Parameters
    ----------
    n_kept
        How many loaded lesions are given back, as a sample; the others leave the memory.
    """
    pending = [record for record in records if record.status == "pending"]
    kept: list[LesionData] = []
    with Progress(len(pending), "reading masks", "mask", shown=show_progress) as progress:
        for start in range(0, len(pending), 4 * n_threads):
            some = pending[start : start + 4 * n_threads]
            loaded = load_lesions([record.as_lesion() for record in some], analysis, n_threads)
            for record, lesion in zip(some, loaded, strict=True):
                record.volume_mm3, record.coverage = lesion.volume_mm3, lesion.coverage
                if lesion.error:
                    record.set_aside("failed", lesion.error)
                elif len(kept) < n_kept:
                    kept.append(lesion)
            progress.update(len(some))
    return kept


def take_sample(
    lesions: Sequence[LesionData],
    analysis: FunctionalNetworkMapping,
    settings: MapSettings,
    plan: BatchPlan,
    n_threads: int,
) -> Sample:
    """Map lesions in a few connectome subjects, and write one lesion's maps into a folder that is removed again.

    Raises
    ------
    OSError, MemoryError
        The connectome cannot be read, there is no room, or the memory ran out.
    """
    few = FunctionalNetworkMapping(
        analysis.connectome.first(SAMPLED_SUBJECTS),
        compute_t_map=analysis.compute_t_map,
        t_threshold=analysis.t_thresholds or None,
        weighting=analysis.weighting,
        lesion_threshold=analysis.lesion_threshold,
    )
    times = [time.perf_counter()]
    in_memory = plan.subjects_in_memory
    mapped = few.map_batch(lesions, n_threads, in_memory, on_subject=lambda: times.append(time.perf_counter()))
    n_together = count_together(analysis.connectome, in_memory)
    first_group = times[: n_together + 1]
    n_after = len(times) - len(first_group)
    record = replace(lesions[0].metadata["record"])
    with TemporaryDirectory(prefix="bids-lacuna-") as folder:
        writer = DerivativesWriter(Path(folder), settings, [record], Path(folder), {record.mask.dataset: "sample"})
        began = time.perf_counter()
        writer([replace(mapped[0], metadata={"record": record})])
        seconds_per_lesion = time.perf_counter() - began
        n_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return Sample(
        len(times) - 1,
        n_together,
        first_group[-1] - times[0],
        (times[-1] - first_group[-1]) / n_after if n_after else 0,
        seconds_per_lesion,
        n_bytes,
    )


def describe_lesions(records: Sequence[LesionRecord]) -> str:
    """Lay the masks out as a table, with what becomes of each."""
    rows = [("lesion", "volume", "coverage", "")]
    for record in records:
        action = ACTIONS[record.status]
        if record.reason:
            action += f": {record.reason}"
        elif record.coverage is not None and record.coverage < LOW_COVERAGE:
            action += ", the part of it that the connectome covers"
        volume = "-" if record.volume_mm3 is None else f"{record.volume_mm3 / 1000:.2f} mL"
        coverage = "-" if record.coverage is None else f"{100 * record.coverage:.0f} %"
        rows.append((record.mask.name, volume, coverage, action))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "".join(
        one_line(f"{name:{widths[0]}}  {volume:>{widths[1]}}  {coverage:>{widths[2]}}  {action}").rstrip() + "\n"
        for name, volume, coverage, action in rows
    )


def describe_plan(plan: BatchPlan, budget: MemoryBudget, n_subjects: int, n_threads: int, reserved_bytes: int) -> str:
    """Lay out the batches and the memory."""
    return _layout(
        {
            "lesions to map": f"{plan.n_lesions}",
            "batch size": f"{plan.batch_size}",
            "passes": f"{plan.n_batches} over {n_subjects} connectome subjects, on {n_threads} threads",
            "memory, fixed": f"{format_bytes(plan.fixed_bytes)}, {format_bytes(reserved_bytes)} of it for reports",
            "memory, per lesion": format_bytes(plan.bytes_per_lesion),
            "memory, peak": format_bytes(plan.peak_bytes),
            "memory, available": f"{format_bytes(budget.available_bytes)} ({budget.source})",
        }
    )


def describe_cost(
    sample: Sample, plan: BatchPlan, n_connectome_subjects: int, output_dir: Path, n_report_workers: int
) -> str:
    """Estimate the disk that the maps and pages need, and the time that they take."""
    n_bytes = plan.n_lesions * (sample.bytes_per_lesion + (PAGE_BYTES if n_report_workers else 0))
    there = next(path for path in (output_dir, *output_dir.absolute().parents) if path.is_dir())
    free_bytes = shutil.disk_usage(there).free
    seconds = sample.seconds(plan, n_connectome_subjects)
    what = (
        f"{1000 * sample.seconds_per_subject:.0f} ms a connectome subject, timed on {sample.n_subjects} of "
        f"{n_connectome_subjects}"
    )
    if n_report_workers:
        seconds_of_pages = plan.n_lesions * PAGE_SECONDS / n_report_workers
        if seconds_of_pages > seconds:
            seconds, what = seconds_of_pages, f"{PAGE_SECONDS:g} s for each lesion's reports, in {n_report_workers}"
            what += " processes" if n_report_workers > 1 else " process"
    return _layout(
        {
            "disk": f"about {format_bytes(n_bytes)}; {format_bytes(free_bytes)} are free",
            "time": f"about {format_seconds(seconds)}, after the start ({what})",
        }
    )


def format_seconds(seconds: float) -> str:
    """Write a time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _layout(rows: dict[str, str]) -> str:
    return "".join(f"{name:20}{value}\n" for name, value in rows.items())


def describe_group(group: Group, ignored: Sequence[str]) -> str:
    """List the maps that would be read, and the lesions that cannot be in the group."""
    lines = [f"lesions: {len(group.lesions)}, {group.origin.describe()}"]
    lines += [f"  read    {path}" for lesion in group.lesions for path in (lesion.mask.path, *lesion.maps.values())]
    for lesion in group.left_out:
        word = "leave" if lesion.kind in ignored else "refuse"
        lines.append(f"  {word:8}{lesion.name}: {lesion.kind}: {lesion.reason}")
    return "\n".join(lines) + "\n"
