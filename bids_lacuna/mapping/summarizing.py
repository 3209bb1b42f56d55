"""Making of a connectome's summary: passes over the connectome, which resume after a kill, and what follows them."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from bids_lacuna import kernels
from bids_lacuna.connectome.connectome import Connectome
from bids_lacuna.connectome.exclusive import NoRoom, locked
from bids_lacuna.connectome.store import this_software
from bids_lacuna.connectome.summary import (
    ARRAYS,
    DESCRIPTION,
    N_COMPONENTS,
    Operator,
    SummaryArrays,
    SummaryRecord,
    array_path,
    finish_summary,
    has_summary,
    open_summary,
    read_record,
    write_array,
)
from bids_lacuna.files import read_json_object, sync_folder, write_json
from bids_lacuna.mapping.cells import CellCovariances, CellSums, select_rows
from bids_lacuna.mapping.components import leading_eigenvectors, random_block
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.plan import BatchPlan, Resources
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.text import tell_bytes_apart

logger = logging.getLogger(__name__)

Array = np.ndarray

BUILDING = ".building"
"""Folder of an unfinished summary, with its arrays and checkpoints."""

PROGRESS = "progress.json"
"""The cells whose covariances are on disk."""

CELL_SIZE_MM = 8.0
"""Default edge of the cells."""


def summarize(
    connectome: Connectome,
    folder: Path,
    resources: Resources,
    *,
    cell_size_mm: float = CELL_SIZE_MM,
    checkpoint_minutes: float = 10,
    show_progress: bool = True,
) -> SummaryArrays:
    """Summarize a connectome, or complete an unfinished summary.

    The covariances of cells and voxels are summed in one pass over the connectome subjects, or in several, each for
    some of the cells, where the memory is too small. A run that was killed resumes from its last checkpoint and
    produces the same bytes as an uninterrupted one.

    Parameters
    ----------
    folder
        Folder of the summary: new, empty, or with an unfinished summary.
    resources
        Memory and threads.
    cell_size_mm
        Edge of the cells.
    checkpoint_minutes
        Interval between checkpoints.
    show_progress
        Whether to show a progress bar if stderr is a terminal.

    Returns
    -------
    SummaryArrays
        The finished summary. One that was finished before, with the same settings, is opened unchanged.

    Raises
    ------
    FileExistsError
        The folder holds something else, such as a summary of another connectome, or another process is at work there.
    NoPlace
        The folder cannot be created.
    NoRoom
        The disk is too small.
    MemoryError
        Not even one cell fits the memory.
    OSError
        A file cannot be read or written.
    """
    if has_summary(folder):
        return _take_finished(folder, connectome, cell_size_mm)
    _check_folder(folder)
    with locked(folder, BUILDING, "the summary") as building:
        if has_summary(folder):
            return _take_finished(folder, connectome, cell_size_mm)
        unfinished = _Unfinished(building, CellCovariances(connectome, cell_size_mm))
        if not unfinished.is_complete:
            unfinished.prepare()
            _map_cells(unfinished, resources, checkpoint_minutes, show_progress)
            with kernels.threads(resources.n_threads):
                fractions = _describe_connectome(unfinished)
            unfinished.complete(tuple(fractions.round(6).tolist()))
        unfinished.move_to(folder)
        # Network file systems keep a file that is still open, such as the lock.
        shutil.rmtree(building, ignore_errors=True)
    return open_summary(folder, connectome.content_hash)


def _check_folder(folder: Path) -> None:
    """Raise FileExistsError if a folder holds anything but an unfinished summary."""
    known = {BUILDING, *(array_path(folder, name).name for name in ARRAYS)}
    if folder.exists() and (
        not folder.is_dir()
        or {path.name for path in folder.iterdir()} - known
        or (any(folder.iterdir()) and not (folder / BUILDING).exists())
    ):
        raise FileExistsError(f"{folder} exists and is not a connectome's summary: name a new folder for the summary")


def _take_finished(folder: Path, connectome: Connectome, cell_size_mm: float) -> SummaryArrays:
    """Open the finished summary in the folder if it is the one that this run would produce."""
    try:
        record = read_record(folder)
    except ValueError as error:
        raise FileExistsError(str(error)) from error
    differences = [
        words
        for words, ours, theirs in (
            ("of another connectome", connectome.content_hash, record.connectome_hash),
            (f"with cells of {record.cell_size_mm:g} mm", cell_size_mm, record.cell_size_mm),
        )
        if ours != theirs
    ]
    if differences:
        raise FileExistsError(
            f"{folder} holds a finished summary {' and '.join(differences)}: remove it first, or name another folder "
            "with --output"
        )
    shutil.rmtree(folder / BUILDING, ignore_errors=True)
    summary = open_summary(folder, connectome.content_hash)
    logger.info("%s is already finished: nothing to do", folder)
    return summary


@dataclass(frozen=True)
class _Unfinished:
    """The folder of an unfinished summary."""

    folder: Path
    analysis: CellCovariances

    @property
    def operator(self) -> Operator:
        """File of the covariances of cells and voxels."""
        analysis = self.analysis
        return Operator(array_path(self.folder, "operator"), analysis.n_cells, len(analysis.cells))

    @property
    def n_done(self) -> int:
        """Number of cells whose covariances are on disk."""
        try:
            progress = read_json_object(self.folder / PROGRESS)
        except (OSError, ValueError):
            return 0
        return int(progress["n_done"]) if progress.get("identity") == self._identity else 0

    @property
    def _identity(self) -> dict[str, str]:
        return dict(self.analysis.identity)

    def prepare(self) -> None:
        """Make room for the arrays, unless an earlier run has written some of this summary."""
        if self.n_done:
            return
        needed = self.operator.n_bytes
        free = shutil.disk_usage(self.folder).free
        if needed > free and not self.operator.path.exists():
            needed_words, free_words = tell_bytes_apart(needed, free)
            raise NoRoom(
                f"the summary needs {needed_words}, the disk of {self.folder.parent} has {free_words} free: free "
                "some space, name a folder on another disk, or use larger cells"
            )
        self.operator.create()
        n_cells = self.analysis.n_cells
        np.lib.format.open_memmap(self._covariance, "w+", np.float32, (n_cells, n_cells))

    @property
    def _covariance(self) -> Path:
        return array_path(self.folder, "covariance")

    def write(self, first: int, sums: CellSums) -> None:
        """Write the covariances of some cells, the first of which is given, and record that they are on disk."""
        constant, voxels = sums.constant()
        n_constant = constant.sum(axis=0)
        silent = n_constant == sums.n_subjects[0]
        covariance = np.lib.format.open_memmap(self._covariance, "r+")
        # Some rows at a time: the counts of all would take as much memory as the sums.
        for start in range(0, sums.n_rows, kernels.CELLS):
            rows = slice(start, min(start + kernels.CELLS, sums.n_rows))
            mine = slice(first + rows.start, first + rows.stop)
            for index in range(self.operator.n_blocks):
                block = self.operator.voxels(index)
                # Blocks begin at a whole byte.
                bits = voxels[:, block.start // 8 : (block.stop + 7) // 8]
                defined = np.unpackbits(bits, axis=1, count=block.stop - block.start).astype(np.float32)
                n = sums.n_by_voxel[block].astype(np.float32) - constant[:, mine].T @ defined
                self.operator.write_rows(index, mine.start, _divide(sums.by_voxel[rows, block], n, silent[mine]))
            n = np.float32(sums.n_subjects[0]) - n_constant[mine, np.newaxis] - n_constant
            n += constant[:, mine].T @ constant
            covariance[mine] = np.where(silent, 0, _divide(sums.by_cell[rows], n, silent[mine]))
        covariance.flush()
        with np.errstate(invalid="ignore"):
            write_array(self.folder, "degree", (sums.degree / sums.n_by_voxel).astype(np.float32))
        self.operator.sync()
        write_json(self.folder / PROGRESS, {"identity": self._identity, "n_done": first + sums.n_rows})

    def read(self, name: str) -> Array:
        """Read one array."""
        return np.load(array_path(self.folder, name))

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run has written all of this summary, and ended while it moved the files."""
        try:
            record = read_record(self.folder)
        except (OSError, ValueError):
            return False
        analysis = self.analysis
        made_from = record.connectome_hash, record.cell_size_mm
        return made_from == (analysis.connectome.content_hash, analysis.cell_size_mm)

    def complete(self, variance_fractions: tuple[float, ...]) -> None:
        """Describe the finished arrays, with their checksums."""
        connectome = self.analysis.connectome
        write_array(self.folder, "cells", self.analysis.cells)
        record = SummaryRecord(
            connectome.name,
            connectome.content_hash,
            connectome.n_subjects,
            connectome.grid.n_voxels,
            self.analysis.n_cells,
            self.analysis.cell_size_mm,
            variance_fractions,
            this_software(),
            {},
        )
        finish_summary(self.folder, record)

    def move_to(self, folder: Path) -> None:
        """Move the files to the folder of the finished summary, the description last."""
        for name in ARRAYS:
            # An earlier run may have moved some.
            if array_path(self.folder, name).exists():
                array_path(self.folder, name).replace(array_path(folder, name))
        sync_folder(folder)
        (self.folder / DESCRIPTION).replace(folder / DESCRIPTION)
        sync_folder(folder)


def _divide(sums: Array, n: Array, silent: Array) -> Array:
    """Return means; NaN where n is 0, and 0 in the rows of cells without a signal in any subject."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (sums / n).astype(np.float32)
    means[silent] = 0
    return means


def plan_passes(pass_: LocalPass, n_cells: int) -> BatchPlan:
    """Divide cells into passes: all at once where the memory allows it, or a multiple of `kernels.CELLS`."""
    plan = pass_.plan(n_cells)
    fitting = (plan.available_bytes - plan.fixed_bytes) // plan.bytes_per_row
    if plan.n_batches > 1 and fitting >= kernels.CELLS:
        # Whatever the memory, cells are then multiplied in the same tiles, which round alike.
        plan = pass_.plan(n_cells, fitting // kernels.CELLS * kernels.CELLS)
    return plan


def _map_cells(unfinished: _Unfinished, resources: Resources, checkpoint_minutes: float, show_progress: bool) -> None:
    """Write the covariances of all cells that are not on disk yet, in passes over the connectome subjects."""
    analysis = unfinished.analysis
    pass_ = LocalPass(analysis, resources)
    n_done = unfinished.n_done
    if n_done == analysis.n_cells:
        return
    plan = plan_passes(pass_, analysis.n_cells - n_done)
    checkpoints = Checkpoints(unfinished.folder, 60 * checkpoint_minutes, analysis.identity, row_name="cell")
    batches = checkpoints.divide(analysis.rows.keys[n_done:], plan.batch_size)
    logger.info(
        "cells of %g mm: %d, with %d voxels; passes over %d connectome subjects: %d",
        analysis.cell_size_mm,
        analysis.n_cells,
        len(analysis.cells),
        analysis.n_subjects,
        len(batches),
    )
    n_steps = len(batches) * analysis.n_subjects
    with Progress(n_steps, "summarizing", "subject", shown=show_progress) as progress:
        for number, batch in enumerate(batches):
            checkpoints.begin(batches[number:])
            first = int(batch[0])
            rows = select_rows(analysis.rows, first, first + len(batch))
            unfinished.write(first, cast("CellSums", pass_.run(rows, plan, checkpoints, progress.update)))


def _describe_connectome(unfinished: _Unfinished) -> Array:
    """Write absolute degree and principal components, and return the components' fractions of variance."""
    operator, degree, covariance = unfinished.operator, unfinished.read("degree"), unfinished.read("covariance")
    variance = np.diag(covariance).copy()
    factors = np.zeros(len(variance), np.float32)
    factors[variance > 0] = 1 / np.sqrt(variance[variance > 0])
    weights = np.bincount(unfinished.analysis.cells) * (factors > 0)
    sums = np.zeros((3, operator.n_voxels))
    for voxels, block in operator.blocks():
        sums[:, voxels] = kernels.summarize_columns(block, factors, weights.astype(float))
    with np.errstate(invalid="ignore"):
        write_array(unfinished.folder, "absolute_degree", (sums[0] / weights.sum()).astype(np.float32))
    matrix = _CentredCorrelations(operator, factors, np.isfinite(sums[0]))
    np.nan_to_num(np.multiply(covariance, factors, out=covariance), copy=False)
    coarse = _CoarseCorrelations(covariance, factors, weights)
    start = random_block(len(factors), N_COMPONENTS)
    _, start = leading_eigenvectors(coarse.multiply, start, N_COMPONENTS)
    del coarse, covariance
    values, vectors = leading_eigenvectors(matrix.multiply, start, N_COMPONENTS)
    n_defined = np.count_nonzero(factors)
    total = np.nansum(sums[2] - sums[1] ** 2 / max(1, n_defined))
    components, fractions = matrix.components(values, vectors, degree, total)
    write_array(unfinished.folder, "components", components)
    return fractions


def _centre(vectors: Array, factors: Array) -> Array:
    """Subtract each vector's mean over the cells that have a signal; others become 0."""
    defined = factors > 0
    return np.where(defined[:, np.newaxis], vectors - vectors[defined].mean(axis=0), 0)


def _scale(vectors: Array, factors: Array) -> Array:
    """Centre vectors, and multiply them by what makes the covariances of each cell r."""
    return (factors[:, np.newaxis] * _centre(vectors, factors)).astype(np.float32)


@dataclass(frozen=True)
class _CoarseCorrelations:
    """The matrix of `_CentredCorrelations` with each cell's mean in place of its voxels: close, and fast."""

    covariance: Array
    """Shape (n_cells, n_cells), float32: S, with columns in units of the cells' standard deviations."""
    factors: Array
    weights: Array
    """Shape (n_cells,): number of voxels of each cell; 0 for cells without a signal."""

    def multiply(self, vectors: Array) -> Array:
        """Multiply the matrix by its transpose and by some vectors over cells, (n_cells, k)."""
        scaled = _scale(vectors, self.factors)
        projected = self.weights[:, np.newaxis].astype(np.float32) * (self.covariance.T @ scaled)
        return _centre(self.factors[:, np.newaxis] * (self.covariance @ projected).astype(float), self.factors)


@dataclass(frozen=True)
class _CentredCorrelations:
    """The cells x voxels matrix of r, whose columns are centred, in blocks of voxels on disk."""

    operator: Operator
    factors: Array
    """Shape (n_cells,): what makes rows of the operator r; 0 for cells without a signal."""
    complete: Array
    """Shape (n_voxels,), boolean: voxels with a defined r with all cells."""

    def multiply(self, vectors: Array) -> Array:
        """Multiply the matrix by its transpose and by some vectors over cells, (n_cells, k)."""
        scaled = _scale(vectors, self.factors)
        products = np.zeros((self.operator.n_blocks, *vectors.shape), np.float32)

        def work(first: int, last: int) -> None:
            for index in range(first, last):
                block = self._block(index)
                np.matmul(block, block.T @ scaled, out=products[index])

        kernels.distribute(work, len(products), len(products))
        return _centre(self.factors[:, np.newaxis] * products.sum(axis=0, dtype=float), self.factors)

    def components(self, values: Array, vectors: Array, degree: Array, total: float) -> tuple[Array, Array]:
        """Project voxels on the first eigenvectors: components (3, n_voxels) and their fractions of the variance."""
        scaled = _scale(vectors[:, :N_COMPONENTS], self.factors)
        components = np.full((N_COMPONENTS, self.operator.n_voxels), np.nan)
        fractions = np.zeros(N_COMPONENTS)
        # A matrix of few cells has fewer components; rounding leaves them a little variance.
        n_components = min(scaled.shape[1], max(0, np.count_nonzero(self.factors) - 1))
        for index in range(self.operator.n_blocks):
            columns = (self._block(index).T @ scaled).T[:n_components]
            components[:n_components, self.operator.voxels(index)] = columns
        components[:, ~self.complete] = np.nan
        centred = degree[self.complete] - degree[self.complete].mean() if self.complete.any() else np.empty(0)
        for number in range(n_components):
            values_at = components[number, self.complete]
            norm = np.linalg.norm(values_at)
            components[number] *= (-1 if centred @ values_at < 0 else 1) / norm if norm > 0 else np.nan
            fractions[number] = values[number] / total if total > 0 else 0
        return components.astype(np.float32), fractions

    def _block(self, index: int) -> Array:
        complete = self.complete[self.operator.voxels(index)]
        block = self.operator.block(index)
        return block if complete.all() else np.where(complete, block, np.float32(0))
