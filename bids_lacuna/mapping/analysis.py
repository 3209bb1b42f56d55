"""Protocols of analyses, the only interface of batches, checkpoints and Dask clusters to them."""

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
    """Reads saved blocks of an accumulator, one after another."""

    shapes: Sequence[tuple[int, ...]]
    """Shape of each block."""

    def __call__(self, array: Array) -> Array:
        """Fill an array, either a block or some of its rows, with the next saved numbers, and return it."""


class Accumulator(Protocol):
    """Running sums over connectome subjects, for the rows of one pass."""

    @property
    def nbytes(self) -> int:
        """Memory of the sums in bytes."""

    def blocks(self) -> Sequence[Array]:
        """Return all numbers as C-contiguous arrays in a fixed order, for checkpoints and messages."""

    def merge(self, parts: Iterable[Part]) -> None:
        """Add parts of another accumulator's blocks: same rows, other connectome subjects.

        Threads merge different parts at the same time.
        """

    def restore(self, read: ReadBlock, rows: Sequence[int]) -> None:
        """Fill an empty accumulator from the saved blocks of another one.

        Parameters
        ----------
        read
            Reads the blocks in order.
        rows
            Index in the saved accumulator of each row of this one.
        """


class Analysis(Protocol):
    """A computation in one pass over the connectome subjects."""

    name: str
    """Key of its results."""

    @property
    def options(self) -> MappingOptions:
        """Options of the analysis."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Everything but the rows that decides the sums; checkpoints with another identity are not used."""

    @property
    def n_subjects(self) -> int:
        """Number of connectome subjects."""

    def footprint(self, n_rows: int) -> Footprint:
        """Return the memory that a run with this number of rows needs."""

    def prepare(self, n_threads: int) -> None:
        """Allocate the memory that every pass needs, such as for compiled kernels, before planning."""

    def opener(self) -> Callable[[], Analysis]:
        """Return a small function that opens the same analysis in another process, on any machine.

        The function raises ValueError or OSError if the data there are missing or differ.
        """

    def subjects(self, first: int, n_ahead: int, keep_cached: bool = True) -> Generator[Any, None, None]:
        """Iterate over the connectome subjects in order.

        Parameters
        ----------
        first
            Index of the first subject.
        n_ahead
            Number of subjects read ahead.
        keep_cached
            Whether the files may stay in the system's page cache for the next pass.
        """

    def new_accumulator(self, rows: Rows) -> Accumulator:
        """Return an accumulator of zeros, without connectome subjects."""

    def add(self, subjects: Sequence[Any], rows: Rows, accumulator: Any) -> None:
        """Add up to the footprint's `group` connectome subjects in order; the grouping changes no bit."""


class Results(Protocol):
    """Results of an analysis for one lesion, computed on access from the batch's accumulator."""

    def keep(self) -> None:
        """Keep a copy of the lesion's numbers instead of a reference to the batch's accumulator."""

    def release(self) -> None:
        """Release all data."""

    def __getitem__(self, key: str, /) -> Any:
        """Compute one result."""


class LesionAnalysis(Analysis, Protocol):
    """An analysis whose rows are lesions."""

    def load(self, lesion: LesionData) -> LesionData:
        """Read a lesion's mask; raise ValueError or OSError with the reason if it is unusable."""

    def row(self, lesion: LesionData) -> LesionWeights:
        """Return the row of a loaded lesion."""

    def results(self, lesion: LesionData, accumulator: Any, row: int) -> Results:
        """Return the results of one lesion, after all connectome subjects have been added to its row.

        Raises
        ------
        NoResults
            The row has no results; the message gives the reason.
        """


class Pass(Protocol):
    """Maps the rows of a batch in the whole connectome, in this process or on a Dask cluster."""

    @property
    def analysis(self) -> Analysis:
        """Analysis that the pass computes."""

    @property
    def resources(self) -> Resources:
        """Resources of this machine that the run may use."""

    def plan(self, n_rows: int, batch_size: BatchSize = "auto", keep_results: bool = False) -> BatchPlan:
        """Divide rows into batches that fit the memory (`plan_batches`)."""

    def fitting_now(self, plan: BatchPlan) -> int:
        """Return the number of rows that fit the memory left by other processes now, at least one."""

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
            At most the plan's `batch_size` rows.
        plan
            Plan from `plan`.
        checkpoints
            Where the sums are saved at intervals and when a signal ends the run, and from which they are resumed.
            Signals are held during a pass, so that it ends between connectome subjects.
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
    """The pass cannot continue, for example without a Dask cluster; the run ends, and a rerun resumes it."""


class NoWorker(ValueError):  # noqa: N818  a fact about the cluster
    """No worker of a Dask cluster is able to map."""
