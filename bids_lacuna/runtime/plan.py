"""How many lesions are mapped at once within the memory: arithmetic alone."""

from __future__ import annotations

import logging
import operator
from dataclasses import dataclass
from math import ceil
from typing import Literal

from bids_lacuna.text import format_bytes

logger = logging.getLogger(__name__)

TILE_BYTES = 5 * 2**20
"""Of each thread: the tile of Fisher z that it works on, which is meant to stay in cache, and its series."""

SUBJECTS_IN_MEMORY = 3
"""Connectome subjects at least: of a store, two are mapped together and a third one is read ahead."""

MOST_SUBJECTS_IN_MEMORY = 6
"""Where many lesions are mapped, so that their moments are read and written less often."""

SUBJECTS_SHARE = 10
"""Those beyond `SUBJECTS_IN_MEMORY` take at most a tenth of what the moments take."""

RUNNING_BYTES = 8 * 2**20
"""What threads, open files and Python's own objects come to while a run goes on; 5 to 8 MiB were measured."""

MAP_BYTES = 24
"""Of each voxel of the volume while the callback has one lesion's maps made: one map and the vectors behind it."""

KEPT_BYTES = 12
"""Of each voxel and lesion where results outlive their batch: z, t and n, 4 bytes each."""

MOMENT_BYTES = 16
"""Of each voxel and lesion: the sums of z and of its square, float64."""

SEED_BYTES = 8
"""Of each timepoint and lesion: the seed is summed in float64 and then used as float32."""

WEIGHT_BYTES = 16
"""Of each voxel that a lesion covers: its number, int32, and its share, float32, of the lesion and of its batch."""

GRID_PER_LESION = 10
"""Voxels of the grid for each voxel of a lesion: even a large one covers less than a tenth of the brain."""

PER_LESION_OVERHEAD = 4096
"""Python objects of each lesion: paths, entities, results."""


@dataclass(frozen=True)
class BatchPlan:
    """How the lesions are divided into batches, each of which is one pass over the connectome."""

    n_lesions: int
    batch_size: int
    """Lesions of each batch; the last one may have fewer."""
    n_batches: int
    """Passes over the connectome."""
    fixed_bytes: int
    """What the run occupies whatever the batch size."""
    bytes_per_lesion: int
    """What each lesion of a batch adds."""
    subjects_in_memory: int
    """Connectome subjects: those that are mapped together, and those that are read ahead."""
    available_bytes: int
    """What the process may occupy in all."""

    @property
    def peak_bytes(self) -> int:
        """The most that the process will occupy."""
        return self.fixed_bytes + self.batch_size * self.bytes_per_lesion


def plan_batches(
    n_lesions: int,
    n_components: int,
    n_voxels: int,
    available_bytes: int,
    n_threads: int,
    *,
    lesion_batch_size: int | Literal["auto"] | None = "auto",
    volume_voxels: int | None = None,
    keep_results: bool = False,
    base_bytes: int = 0,
    streaming_bytes: int = 0,
    subject_bytes: int = 0,
    moment_bytes: int = MOMENT_BYTES,
) -> BatchPlan:
    """Divide the lesions into as few batches as memory allows.

    Parameters
    ----------
    n_lesions
        Of the whole run.
    n_components, n_voxels
        Of a connectome subject, the longest if they differ: timepoints, or what a store keeps of them.
    available_bytes
        What the process may occupy in all, as from `memory_budget`.
    n_threads
        Threads of the kernels.
    lesion_batch_size
        "auto": batches of equal size, as few as fit. None: all lesions at once. A number: that many at once. The
        last two are lowered, with a warning, to what fits.
    volume_voxels
        Voxels of the whole volume, inside and outside the connectome's mask; by default `n_voxels`.
    keep_results
        Whether results of all lesions stay in memory to the end, as they do without a callback.
    base_bytes
        What the interpreter and the libraries occupy.
    streaming_bytes
        What `SUBJECTS_IN_MEMORY` connectome subjects occupy, of which some are being read.
    subject_bytes
        What each one beyond these occupies.
    moment_bytes
        Of each voxel and lesion of a batch: one set of moments, or what several processes hold together.

    Raises
    ------
    ValueError
        `lesion_batch_size` is none of these.
    MemoryError
        Not even one lesion fits.
    """
    requested = _requested_batch_size(lesion_batch_size, n_lesions)
    kept_bytes = n_lesions * KEPT_BYTES * n_voxels if keep_results else 0
    map_bytes = MAP_BYTES * (n_voxels if volume_voxels is None else volume_voxels)
    working_bytes = RUNNING_BYTES + n_threads * TILE_BYTES + map_bytes
    fixed_bytes = base_bytes + streaming_bytes + working_bytes + kept_bytes
    weight_bytes = WEIGHT_BYTES * n_voxels // GRID_PER_LESION
    bytes_per_lesion = moment_bytes * n_voxels + SEED_BYTES * n_components + weight_bytes + PER_LESION_OVERHEAD
    if n_lesions == 0:
        return BatchPlan(0, 0, 0, fixed_bytes, bytes_per_lesion, SUBJECTS_IN_MEMORY, available_bytes)

    fits = (available_bytes - fixed_bytes) // bytes_per_lesion
    if fits < 1:
        needed = fixed_bytes + bytes_per_lesion
        advice = "use a coarser connectome or raise --mem, or the limit of the job or container"
        if needed - kept_bytes <= available_bytes:
            advice = (
                f"{format_bytes(kept_bytes)} of it would keep the results of all {n_lesions} lesions; give a "
                "batch_result_callback that saves them, and they need not be kept"
            )
        raise MemoryError(
            f"one lesion needs {format_bytes(needed)}, {format_bytes(available_bytes)} is available: {advice}"
        )
    batch_size = min(requested, fits)
    if lesion_batch_size == "auto":
        batch_size = ceil(n_lesions / ceil(n_lesions / batch_size))
    elif batch_size < requested:
        logger.warning(
            "a batch of %d lesions needs %s, %s is available: batches of %d lesions are mapped",
            requested,
            format_bytes(fixed_bytes + requested * bytes_per_lesion),
            format_bytes(available_bytes),
            batch_size,
        )
    n_batches = ceil(n_lesions / batch_size)
    subjects_in_memory = SUBJECTS_IN_MEMORY
    moments_bytes = batch_size * MOMENT_BYTES * n_voxels
    spare_bytes = min(moments_bytes // SUBJECTS_SHARE, available_bytes - fixed_bytes - batch_size * bytes_per_lesion)
    while subjects_in_memory < MOST_SUBJECTS_IN_MEMORY and subject_bytes <= spare_bytes:
        subjects_in_memory += 1
        fixed_bytes += subject_bytes
        spare_bytes -= subject_bytes
    return BatchPlan(
        n_lesions, batch_size, n_batches, fixed_bytes, bytes_per_lesion, subjects_in_memory, available_bytes
    )


def _requested_batch_size(lesion_batch_size: object, n_lesions: int) -> int:
    if lesion_batch_size is None or lesion_batch_size == "auto":
        return n_lesions
    try:
        size = 0 if isinstance(lesion_batch_size, bool) else operator.index(lesion_batch_size)  # type: ignore[arg-type]
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(
            f"lesion_batch_size is {lesion_batch_size!r}: it must be a whole number from 1, 'auto' (what fits in "
            "memory) or None (all lesions at once)"
        )
    return min(size, n_lesions)
