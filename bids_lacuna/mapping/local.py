"""The pass over the connectome in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice

from bids_lacuna import kernels
from bids_lacuna.mapping.analysis import Accumulator, Analysis
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.memory import ADDRESS_SPACE, give_back_freed_memory, memory_limits, resident_bytes
from bids_lacuna.runtime.plan import BatchPlan, BatchSize, Resources, plan_batches
from bids_lacuna.runtime.signals import SAVING, signals_held
from bids_lacuna.weights import Rows


@dataclass(frozen=True)
class LocalPass:
    """Maps the rows of a batch in the connectome, in this process (see `Pass`)."""

    analysis: Analysis
    resources: Resources

    def plan(self, n_rows: int, batch_size: BatchSize = "auto", keep_results: bool = False) -> BatchPlan:
        """Divide rows into batches, from the memory that this process occupies now with its kernels compiled."""
        give_back_freed_memory()
        self.analysis.prepare(self.resources.n_threads)
        return plan_batches(
            n_rows,
            self.analysis.footprint(n_rows),
            self.resources,
            batch_size=batch_size,
            keep_results=keep_results,
            occupied_bytes=resident_bytes(),
        )

    def fitting_now(self, plan: BatchPlan) -> int:
        """Return the number of rows that fit the memory left by other processes now, at least one."""
        # The address space that threads have reserved by now is not missing.
        limits = [limit.available_bytes for limit in memory_limits() if limit.source != ADDRESS_SPACE]
        return max(1, (min(plan.available_bytes, *limits) - plan.fixed_bytes) // plan.bytes_per_row)

    def run(
        self,
        rows: Rows,
        plan: BatchPlan,
        checkpoints: Checkpoints | None = None,
        on_subject: Callable[[], None] = lambda: None,
    ) -> Accumulator:
        """Add all connectome subjects, in order."""
        analysis, make_empty = self.analysis, partial(self.analysis.new_accumulator, rows)
        accumulator, n_added = checkpoints.resume(rows.hashes, make_empty) if checkpoints else (make_empty(), 0)
        for _ in range(n_added):
            on_subject()
        with (
            signals_held(checkpoints is not None) as signals,
            kernels.threads(self.resources.n_threads),
            closing(analysis.subjects(n_added, plan.n_ahead, plan.keep_cached)) as subjects,
        ):
            while group := list(islice(subjects, plan.n_together)):
                analysis.add(group, rows, accumulator)
                n_added += len(group)
                for _ in range(len(group)):
                    on_subject()
                # This group leaves the memory before the next one comes.
                del group
                if checkpoints and (signals or checkpoints.is_due):
                    checkpoints.save(rows.hashes, accumulator, n_added)
                if signals - {SAVING}:
                    break
                signals.discard(SAVING)
        if n_added < analysis.n_subjects:
            # A signal's own handler has let the process continue; the pass has not.
            raise KeyboardInterrupt
        return accumulator
