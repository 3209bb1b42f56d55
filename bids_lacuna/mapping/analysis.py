"""What an analysis is to the batches, the checkpoints and the Dask cluster, which know these protocols alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bids_lacuna.lesion import LesionData
from bids_lacuna.provenance import MappingOptions
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.plan import BatchPlan, BatchSize, Footprint, Resources
from bids_lacuna.weights import LesionWeights, Rows

Array = np.ndarray

Part = tuple[int, int, Array]
"""A part of an accumulator's blocks: the block's index, the first index along its first axis, and the numbers."""


class ReadBlock(Protocol):
    """Reads an accumulator's blocks, one after another, from where they were saved."""

    shapes: Sequence[tuple[int, ...]]
    """Shape of each block."""

    def __call__(self, array: Array) -> Array:
        """Fill an array, a block or some of its rows, with the next numbers, and return it."""


class Accumulator(Protocol):
    """Running sums over connectome subjects, for the rows of one pass."""

    @property
    def nbytes(self) -> int:
        """Memory of the sums in bytes."""

    def blocks(self) -> Sequence[Array]:
        """Give all numbers in C-contiguous arrays, in a fixed order: for checkpoints and messages."""

    def merge(self, parts: Iterable[Part]) -> None:
        """Add parts of another accumulator's blocks: same rows, other connectome subjects.

        Threads merge different parts at the same time.
        """

    def restore(self, read: ReadBlock, rows: Sequence[int]) -> None:
        """Fill an empty accumulator from the saved blocks of another one.

        Parameters
        ----------
        read
            Gives the blocks in order.
        rows
            For each row of this accumulator, its index in the saved one.
        """


class Analysis(Protocol):
    """A computation in one pass over the connectome subjects."""

    name: str
    """The key of its results."""

    @property
    def options(self) -> MappingOptions:
        """The options, made once."""

    @property
    def identity(self) -> Mapping[str, str]:
        """All that decides the sums, beside the rows: checkpoints of another identity are not used."""

    @property
    def n_subjects(self) -> int:
        """Number of connectome subjects."""

    def footprint(self, n_rows: int) -> Footprint:
        """Say how much memory a run of so many rows occupies."""

    def prepare(self, n_threads: int) -> None:
        """Take the memory that every pass needs, such as that of compiled kernels, before a plan is made."""

    def opener(self) -> Callable[[], Analysis]:
        """Give a small function that opens the same analysis in another process, on any machine.

        It raises ValueError or OSError where the data there are missing or differ.
        """

    def subjects(self, first: int, n_ahead: int, keep_cached: bool = True) -> Generator[Any, None, None]:
        """Iterate over the connectome subjects in order.

        Parameters
        ----------
        first
            Index of the first one.
        n_ahead
            How many are read ahead.
        keep_cached
            Whether the files may stay in the system's page cache for the next pass.
        """

    def new_accumulator(self, rows: Rows) -> Accumulator:
        """Make sums of no connectome subject."""

    def add(self, subjects: Sequence[Any], rows: Rows, accumulator: Any) -> None:
        """Add connectome subjects in order, up to the footprint's `group`; their grouping changes no bit."""


class Results(Protocol):
    """What an analysis found for one lesion; made from the batch's accumulator when it is asked for."""

    def keep(self) -> None:
        """Hold the lesion's own numbers from now on, not the batch's accumulator."""

    def release(self) -> None:
        """Let go of all numbers."""

    def __getitem__(self, key: str, /) -> Any:
        """Make one result."""


class LesionAnalysis(Analysis, Protocol):
    """An analysis whose rows are lesions."""

    def load(self, lesion: LesionData) -> LesionData:
        """Read a lesion's mask; raise ValueError or OSError with the reason where it cannot be used."""

    def row(self, lesion: LesionData) -> LesionWeights:
        """Give the row of a loaded lesion."""

    def results(self, lesion: LesionData, accumulator: Any, row: int) -> Results:
        """Make the results of one lesion, once all connectome subjects are added to its row.

        Raises
        ------
        NoResults
            The row has none; the message has the reason.
        """


class Pass(Protocol):
    """Takes the rows of a batch through the whole connectome: in this process, or on a Dask cluster."""

    @property
    def analysis(self) -> Analysis:
        """What is computed."""

    @property
    def resources(self) -> Resources:
        """The part of this machine that the run may use."""

    def plan(self, n_rows: int, batch_size: BatchSize = "auto", keep_results: bool = False) -> BatchPlan:
        """Divide rows into batches that the memory holds: see `plan_batches`."""

    def fitting_now(self, plan: BatchPlan) -> int:
        """Count the rows that fit what other processes leave of the memory by now, at least one."""

    def run(
        self,
        rows: Rows,
        plan: BatchPlan,
        checkpoints: Checkpoints | None = None,
        on_subject: Callable[[], None] = lambda: None,
    ) -> Accumulator:
        """Add all connectome subjects.

        Parameters
        ----------
        rows
            At most the plan's `batch_size`.
        plan
            As from `plan`.
        checkpoints
            Where the sums are saved now and then, and when a signal ends the run, and where they are resumed.
            Signals are held meanwhile: the pass ends between connectome subjects.
        on_subject
            Called after each connectome subject, also for those that an earlier run added.

        Raises
        ------
        PassStopped
            The pass cannot continue.
        KeyboardInterrupt
            A signal has ended the pass.
        """


class NoResults(ValueError):  # noqa: N818  a fact about a lesion
    """A lesion has no results, though its mask could be read."""


class PassStopped(Exception):  # noqa: N818  an end that is no fault of the lesions
    """The pass cannot continue, as without a Dask cluster: the run ends, and resumes when it is started again."""


class NoWorker(ValueError):  # noqa: N818  a fact about the cluster
    """No worker of a Dask cluster can map."""
