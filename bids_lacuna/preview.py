"""What a dry run prints: the lesions, what becomes of each, and the plan."""

from __future__ import annotations

from collections.abc import Sequence

from bids_lacuna.cohort import Group
from bids_lacuna.derivatives import LesionRecord
from bids_lacuna.plan import BatchPlan, MemoryBudget, format_bytes
from bids_lacuna.text import one_line


def describe_lesions(records: Sequence[LesionRecord]) -> str:
    """List the masks found and what becomes of each."""
    words = {"pending": "map"}
    lines = [f"lesion masks: {len(records)}; a dry run does not open them"]
    for record in records:
        reason = f": {record.reason}" if record.reason else ""
        lines.append(one_line(f"  {words.get(record.status, record.status):8}{record.mask.path.name}{reason}"))
    return "\n".join(lines) + "\n\n"


def describe_plan(plan: BatchPlan, budget: MemoryBudget, n_subjects: int, n_threads: int, reserved_bytes: int) -> str:
    """Lay out the batches and the memory."""
    rows = {
        "lesions to map": f"{plan.n_lesions}",
        "batch size": f"{plan.batch_size}",
        "passes": f"{plan.n_batches} over {n_subjects} connectome subjects, on {n_threads} threads",
        "memory, fixed": f"{format_bytes(plan.fixed_bytes)}, {format_bytes(reserved_bytes)} of it for reports",
        "memory, per lesion": format_bytes(plan.bytes_per_lesion),
        "memory, peak": format_bytes(plan.peak_bytes),
        "memory, available": f"{format_bytes(budget.available_bytes)} ({budget.source})",
    }
    return "".join(f"{name:20}{value}\n" for name, value in rows.items())


def describe_group(group: Group, ignored: Sequence[str]) -> str:
    """List the maps that would be read, and the lesions that cannot be in the group."""
    lines = [f"lesions: {len(group.lesions)}, {group.origin.describe()}"]
    lines += [f"  read    {path}" for lesion in group.lesions for path in (lesion.mask.path, *lesion.maps.values())]
    for lesion in group.left_out:
        word = "leave" if lesion.kind in ignored else "refuse"
        lines.append(f"  {word:8}{lesion.name}: {lesion.kind}: {lesion.reason}")
    return "\n".join(lines) + "\n"
