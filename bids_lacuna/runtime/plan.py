"""How many lesions are mapped at once within the memory: arithmetic alone."""

from __future__ import annotations

import logging
import operator
from dataclasses import dataclass
from math import ceil
from typing import Literal

from bids_lacuna.text import format_bytes

logger = logging.getLogger(__name__)

BatchSize = int | Literal["auto"] | None
"""Rows per batch: a number, "auto" for as many as fit the memory, or None for all."""

TILE_BYTES = 5 * 2**20
"""Bytes per thread for the cached tile of Fisher z and for its series."""

SUBJECTS_IN_MEMORY = 3
"""Least number of connectome subjects in memory: of a store, two are mapped together and a third is read ahead."""

MOST_SUBJECTS_IN_MEMORY = 6
"""Largest number, for many rows: their sums are then read and written less often."""

SUBJECTS_FRACTION = 10
"""Connectome subjects beyond `SUBJECTS_IN_MEMORY` take up to a tenth of the memory of the sums."""

RESULTS_AT_ONCE = 4
"""Largest number of rows whose results a callback computes at the same time, and has written to disk meanwhile."""

RUNNING_BYTES = 8 * 2**20
"""Threads, open files and Python's own objects of a run; 5 to 8 MiB were measured."""


@dataclass(frozen=True)
class Resources:
    """The part of the machine that a run may use: found once, and passed whole."""

    available_bytes: int
    """Memory that the run may occupy in total, including what this process occupies already."""
    n_threads: int
    """Threads of the kernels."""
    reserved_bytes: int = 0
    """Part of the available memory that other processes of the run may occupy."""
    source: str = "the caller"
    """The smallest memory limit, for people."""


@dataclass(frozen=True)
class Footprint:
    """The memory that an analysis occupies in one process, in bytes."""

    accumulator_bytes: int
    """Per row of a batch: its running sums."""
    row_bytes: int
    """Per row of a batch: its weights, seed and objects."""
    kept_bytes: int
    """Per row of the run, where results outlive their batch."""
    result_bytes: int
    """Once: the results of `RESULTS_AT_ONCE` rows while the callback looks at them."""
    subject_bytes: int
    """Per connectome subject in memory."""
    reading_bytes: int
    """Per connectome subject that is being read."""
    n_readers: int
    """Connectome subjects that are read at the same time."""
    group: int
    """Largest number of connectome subjects that are added together."""
    connectome_bytes: int
    """Size of the connectome on disk."""
    row_name: str = "lesion"
    """Name of a row in messages."""

    @property
    def streaming_bytes(self) -> int:
        """The first `SUBJECTS_IN_MEMORY` connectome subjects, `n_readers` of which are being read."""
        return self.n_readers * self.reading_bytes + (SUBJECTS_IN_MEMORY - self.n_readers) * self.subject_bytes


@dataclass(frozen=True)
class BatchPlan:
    """The division of rows into batches, each of which is one pass over the connectome."""

    n_rows: int
    batch_size: int
    """Rows per batch; the last batch may have fewer."""
    n_batches: int
    """Passes over the connectome."""
    fixed_bytes: int
    """Memory that the run occupies at any batch size."""
    bytes_per_row: int
    """Memory that each row of a batch adds."""
    n_ahead: int
    """Connectome subjects that are read ahead."""
    n_together: int
    """Connectome subjects that are added together."""
    keep_cached: bool
    """Whether the connectome fits the page cache beside the run, and may stay there for the next pass."""
    available_bytes: int
    """Memory that the run may occupy in total."""

    @property
    def peak_bytes(self) -> int:
        """The largest amount of memory that the run occupies."""
        return self.fixed_bytes + self.batch_size * self.bytes_per_row


def plan_batches(
    n_rows: int,
    footprint: Footprint,
    resources: Resources,
    *,
    batch_size: BatchSize = "auto",
    keep_results: bool = False,
    occupied_bytes: int = 0,
) -> BatchPlan:
    """Divide rows into as few batches as the memory allows.

    Parameters
    ----------
    n_rows
        Rows of the whole run; one for each lesion.
    footprint
        Memory of the analysis, of all processes together where there are several.
    resources
        Memory and threads.
    batch_size
        "auto": batches of equal size, as few as fit. None: all rows at once. A number: that many at once. The last
        two are lowered, with a warning, to what fits.
    keep_results
        Whether the results of all rows stay in memory to the end, as they do without a callback.
    occupied_bytes
        Memory that the interpreter and the libraries occupy.

    Raises
    ------
    ValueError
        `batch_size` is none of these.
    MemoryError
        Not even one row fits; the message has both numbers.
    """
    requested = _requested_batch_size(batch_size, n_rows)
    available_bytes = resources.available_bytes
    kept_bytes = n_rows * footprint.kept_bytes if keep_results else 0
    working_bytes = RUNNING_BYTES + resources.n_threads * TILE_BYTES + footprint.result_bytes
    fixed_bytes = occupied_bytes + resources.reserved_bytes + footprint.streaming_bytes + working_bytes + kept_bytes
    bytes_per_row = footprint.accumulator_bytes + footprint.row_bytes
    size = 0
    if n_rows:
        fits = (available_bytes - fixed_bytes) // bytes_per_row
        if fits < 1:
            needed = fixed_bytes + bytes_per_row
            raise MemoryError(_describe_need(footprint.row_name, needed, available_bytes, kept_bytes, n_rows))
        size = min(requested, fits)
        if batch_size == "auto":
            size = ceil(n_rows / ceil(n_rows / size))
        elif size < requested:
            logger.warning(
                "a batch of %d %ss needs %s, %s is available: using batches of %d %ss",
                requested,
                footprint.row_name,
                format_bytes(fixed_bytes + requested * bytes_per_row),
                format_bytes(available_bytes),
                size,
                footprint.row_name,
            )
    if keep_results and size:
        # The results of the last batch are kept after its pass, when the connectome subjects have left the memory.
        fixed_bytes -= min(
            footprint.streaming_bytes, (n_rows - 1) % size * footprint.kept_bytes + footprint.kept_bytes
        )
    subjects_in_memory = SUBJECTS_IN_MEMORY
    spare_bytes = min(
        size * footprint.accumulator_bytes // SUBJECTS_FRACTION, available_bytes - fixed_bytes - size * bytes_per_row
    )
    while subjects_in_memory < MOST_SUBJECTS_IN_MEMORY and footprint.subject_bytes <= spare_bytes:
        subjects_in_memory += 1
        fixed_bytes += footprint.subject_bytes
        spare_bytes -= footprint.subject_bytes
    n_ahead = max(subjects_in_memory // 3, footprint.n_readers)
    return BatchPlan(
        n_rows,
        size,
        ceil(n_rows / size) if size else 0,
        fixed_bytes,
        bytes_per_row,
        n_ahead,
        min(subjects_in_memory - n_ahead, footprint.group),
        footprint.connectome_bytes <= available_bytes - fixed_bytes - size * bytes_per_row,
        available_bytes,
    )


def _describe_need(row_name: str, needed: int, available_bytes: int, kept_bytes: int, n_rows: int) -> str:
    """Describe the memory that one row needs and that is available, and what to do."""
    advice = "use a coarser connectome or raise --mem, or the limit of the job or container"
    if needed - kept_bytes <= available_bytes:
        advice = (
            f"{format_bytes(kept_bytes)} of it would keep the results of all {n_rows} {row_name}s; pass a "
            "batch_result_callback that saves them, and they need not be kept"
        )
    return f"one {row_name} needs {format_bytes(needed)}, {format_bytes(available_bytes)} is available: {advice}"


def _requested_batch_size(batch_size: object, n_rows: int) -> int:
    if batch_size is None or batch_size == "auto":
        return n_rows
    try:
        size = 0 if isinstance(batch_size, bool) else operator.index(batch_size)  # type: ignore[arg-type]
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(
            f"lesion_batch_size is {batch_size!r}: it must be a whole number from 1, 'auto' (what fits in "
            "memory) or None (all lesions at once)"
        )
    return min(size, n_rows)
