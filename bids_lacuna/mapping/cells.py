"""Covariances of cells with all voxels, over the connectome subjects: an analysis whose rows are cells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from bids_lacuna import kernels
from bids_lacuna._version import __version__
from bids_lacuna.connectome.connectome import Connectome, ConnectomeSubject, opener_of
from bids_lacuna.connectome.summary import BLOCK_VOXELS
from bids_lacuna.grid import Grid
from bids_lacuna.mapping.analysis import Part, ReadBlock
from bids_lacuna.mapping.moments import packed_bytes
from bids_lacuna.provenance import MappingOptions
from bids_lacuna.runtime.plan import Footprint
from bids_lacuna.weights import Rows

logger = logging.getLogger(__name__)

Array = np.ndarray

SUM_BYTES = 4
"""Bytes per cell and voxel, and per cell and cell: one float32 sum."""

ROW_BYTES = 512
"""Bytes per cell of Python objects: its key and the hash of its row."""

VOXEL_BYTES = 64
"""Bytes per voxel at any number of cells: degree, counts, the voxels' cells and their rows of weights."""

CELL_SERIES_BYTES = 4 * (kernels.GROUP + 1) + 8
"""Bytes per cell and timepoint: its series in each subject of a group, and one that is being summed in float64."""


def assign_cells(grid: Grid, cell_size_mm: float) -> Array:
    """Divide a grid into cubes along its axes, and number those that have voxels in C order.

    Parameters
    ----------
    cell_size_mm
        Edge of the cubes. A voxel belongs to the cube that its centre lies in; the first cube begins at the outer
        corner of the volume's first voxel. Smaller cubes than voxels hold one voxel each.

    Returns
    -------
    shape (n_voxels,), int32
        Cell of each voxel.
    """
    positions = (np.argwhere(grid.mask) + 0.5) * grid.voxel_sizes_mm
    # Sizes come from affines in float32: a centre on a border must not depend on their rounding.
    cubes = np.floor((positions / cell_size_mm).round(4)).astype(np.int64)
    numbers = np.ravel_multi_index(tuple(cubes.T), tuple(cubes.max(axis=0) + 1))
    return np.unique(numbers, return_inverse=True)[1].astype(np.int32)


def rows_of_cells(cells: Array) -> Rows:
    """Return each cell's voxels, with weights of 1, as the row of a lesion."""
    counts = np.bincount(cells)
    starts = np.concatenate([[0], np.cumsum(counts)])
    voxels = np.argsort(cells, kind="stable").astype(np.int32)
    return Rows(tuple(map(str, range(len(counts)))), starts, voxels, np.ones(len(voxels), np.float32))


def select_rows(rows: Rows, first: int, stop: int) -> Rows:
    """Return successive rows."""
    values = slice(rows.starts[first], rows.starts[stop])
    starts = rows.starts[first : stop + 1] - rows.starts[first]
    return Rows(rows.keys[first:stop], starts, rows.voxels[values], rows.weights[values])


@dataclass(eq=False)
class CellSums:
    """Sums over connectome subjects of the covariances of some cells with all voxels and all cells.

    A constant cell or voxel adds 0, so that only the counts have to know of it.
    """

    n_rows: int
    n_cells: int
    n_voxels: int
    by_voxel: Array = field(init=False)
    """Shape (n_rows, n_voxels), float32: Σ cov(c, v) / (g · sd(v))."""
    by_cell: Array = field(init=False)
    """Shape (n_rows, n_cells), float32: Σ cov(c, c') / g²."""
    degree: Array = field(init=False)
    """Shape (n_voxels,), float64: Σ mean r with all other voxels."""
    n_by_voxel: Array = field(init=False)
    """Shape (n_voxels,), int32: subjects whose voxel has a defined series."""
    n_subjects: Array = field(init=False)
    """Shape (1,), int64: subjects that were added."""
    left_out: list[tuple[Array, Array]] = field(init=False, default_factory=list)
    """For each subject with a constant cell: all constant cells, and defined voxels (packed bits)."""

    def __post_init__(self) -> None:
        """Start at zero."""
        self.by_voxel = np.zeros((self.n_rows, self.n_voxels), np.float32)
        self.by_cell = np.zeros((self.n_rows, self.n_cells), np.float32)
        self.degree = np.zeros(self.n_voxels)
        self.n_by_voxel = np.zeros(self.n_voxels, np.int32)
        self.n_subjects = np.zeros(1, np.int64)

    @property
    def nbytes(self) -> int:
        """Memory of the sums in bytes."""
        return sum(sums.nbytes for sums in self._sums)

    @property
    def _sums(self) -> tuple[Array, Array, Array, Array, Array]:
        return self.by_voxel, self.by_cell, self.degree, self.n_by_voxel, self.n_subjects

    def count_subject(self, cell_is_defined: Array, voxel_is_defined: Array) -> None:
        """Count one connectome subject, after its covariances were added.

        Parameters
        ----------
        cell_is_defined : shape (n_cells,), boolean
        voxel_is_defined : shape (n_voxels,), boolean
        """
        self.n_by_voxel += voxel_is_defined
        self.n_subjects += 1
        if not cell_is_defined.all():
            self.left_out.append((np.packbits(~cell_is_defined), np.packbits(voxel_is_defined)))

    def blocks(self) -> tuple[Array, ...]:
        """Return all numbers as C-contiguous arrays; the last two are those of `left_out`."""
        cells, voxels = zip(*self.left_out, strict=True) if self.left_out else ((), ())
        widths = packed_bytes(self.n_cells), packed_bytes(self.n_voxels)
        return (
            *self._sums,
            *(
                np.array(bits, np.uint8).reshape(len(bits), width)
                for bits, width in zip((cells, voxels), widths, strict=True)
            ),
        )

    def merge(self, parts: Iterable[Part]) -> None:
        """Add parts of the blocks of other connectome subjects' sums: block index, first index, numbers."""
        left_out: dict[int, list[Array]] = {len(self._sums): [], len(self._sums) + 1: []}
        for index, first, numbers in parts:
            if index in left_out:
                left_out[index] += list(numbers)
            else:
                mine = self._sums[index][first : first + len(numbers)]
                np.add(mine, numbers, out=mine)
        self.left_out += zip(*left_out.values(), strict=True)

    def restore(self, read: ReadBlock, rows: Sequence[int]) -> None:
        """Fill in the sums of some rows, from the saved blocks of sums of at least these rows."""
        row_of = {saved: row for row, saved in enumerate(rows)}
        for sums in (self.by_voxel, self.by_cell):
            unused = np.empty(sums.shape[1], np.float32)
            for saved in range(read.shapes[0][0]):
                read(sums[row_of[saved]] if saved in row_of else unused)
        for sums in (self.degree, self.n_by_voxel, self.n_subjects):
            read(sums)
        cells, voxels = (read(np.empty(shape, np.uint8)) for shape in read.shapes[-2:])
        self.left_out += zip(cells, voxels, strict=True)

    def constant(self) -> tuple[Array, Array]:
        """Return what is left out of the counts of subjects.

        Returns
        -------
        cells : shape (n, n_cells), float32
            For each subject with a constant cell, 1 at its constant cells.
        voxels : shape (n, n_voxels), uint8
            Its defined voxels, as packed bits.
        """
        cells, voxels = self.blocks()[-2:]
        return np.unpackbits(cells, axis=1, count=self.n_cells).astype(np.float32), voxels


class CellCovariances:
    """Covariances of the mean series of cells with the series of all voxels, over a normative connectome.

    Parameters
    ----------
    connectome
        An open connectome.
    cell_size_mm
        Edge of the cells: see `assign_cells`.
    """

    name = "CellCovariances"

    def __init__(self, connectome: Connectome, cell_size_mm: float) -> None:
        self.connectome = connectome
        self.cell_size_mm = cell_size_mm
        self.cells = assign_cells(connectome.grid, cell_size_mm)
        self.rows = rows_of_cells(self.cells)
        self.options = MappingOptions()

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.rows)

    @property
    def n_subjects(self) -> int:
        """Number of connectome subjects."""
        return self.connectome.n_subjects

    @property
    def identity(self) -> dict[str, str]:
        """Everything but the rows that decides the sums."""
        return {
            "analysis": self.name,
            "software": __version__,
            "connectome": self.connectome.content_hash,
            "cell size": f"{self.cell_size_mm:g}",
        }

    def footprint(self, n_rows: int) -> Footprint:  # noqa: ARG002  the sums of a row do not depend on their number
        """Return the memory that a pass needs."""
        connectome = self.connectome
        n_voxels = connectome.grid.n_voxels
        of_series = CELL_SERIES_BYTES * self.n_cells * connectome.n_components
        # After the passes, when their sums are gone, the components are computed from the covariances of cells.
        of_components = SUM_BYTES * self.n_cells * (self.n_cells + 2 * BLOCK_VOXELS)
        return Footprint(
            accumulator_bytes=SUM_BYTES * (n_voxels + self.n_cells),
            row_bytes=ROW_BYTES,
            kept_bytes=0,
            result_bytes=VOXEL_BYTES * n_voxels + max(of_series, of_components),
            subject_bytes=connectome.subject_bytes,
            reading_bytes=connectome.reading_bytes,
            n_readers=connectome.n_readers,
            group=kernels.GROUP,
            connectome_bytes=connectome.n_bytes,
            row_name="cell",
        )

    def prepare(self, n_threads: int) -> None:
        """Compile the kernels, or load them from the cache, so that their memory can be measured."""
        logger.info("loading the kernels; the first run compiles them, in up to half a minute")
        kernels.compile_for_cells(self.connectome.series_dtype, self.connectome.standardized_dtypes, n_threads)

    def opener(self) -> Callable[[], CellCovariances]:
        """Return a small function that opens the same analysis in another process, on any machine."""
        return partial(_open_same, opener_of(self.connectome), self.cell_size_mm)

    def subjects(
        self, first: int, n_ahead: int, keep_cached: bool = True
    ) -> Generator[ConnectomeSubject, None, None]:
        """Iterate over the connectome subjects in order, with some read ahead."""
        return self.connectome.subjects(n_ahead, keep_cached, first)

    def new_accumulator(self, rows: Rows) -> CellSums:
        """Return sums without connectome subjects."""
        return CellSums(len(rows), self.n_cells, self.connectome.grid.n_voxels)

    def add(self, subjects: Sequence[ConnectomeSubject], rows: Rows, accumulator: CellSums) -> None:
        """Add up to `kernels.GROUP` connectome subjects' covariances of the rows' cells, which follow each other."""
        first = int(rows.keys[0])
        batch = slice(first, first + len(rows))
        series, scale = [subject.series for subject in subjects], [subject.scale for subject in subjects]
        cells = [self._cell_series(subject) for subject in subjects]
        kernels.add_products([each[batch] for each in cells], series, scale, accumulator.by_voxel)
        ones = [np.ones(self.n_cells, np.float32)] * len(subjects)
        kernels.add_products([each[batch] for each in cells], cells, ones, accumulator.by_cell)
        for subject, each in zip(subjects, cells, strict=True):
            kernels.add_degree(subject.series, subject.scale, accumulator.degree)
            accumulator.count_subject(np.any(each, axis=1), subject.scale > 0)

    def _cell_series(self, subject: ConnectomeSubject) -> Array:
        """Return the cells' mean series, as norms in units of the mean of their standard deviations.

        Returns
        -------
        shape (n_cells, n_timepoints), float32
            0 where a cell is constant.
        """
        rows = self.rows
        series, norms = kernels.seeds_and_norms(
            rows.starts, rows.voxels, rows.weights, subject.series, subject.scale, subject.sd
        )
        sd = norms / np.diff(rows.starts)
        mean_sd = sd[sd > 0].mean() if sd.any() else 1.0
        series *= (sd / mean_sd).astype(np.float32)[:, np.newaxis]
        return series


def _open_same(open_connectome: Callable[[], Connectome], cell_size_mm: float) -> CellCovariances:
    return CellCovariances(open_connectome(), cell_size_mm)
