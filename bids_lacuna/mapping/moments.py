"""Running moments of Fisher z over connectome subjects, for functional lesion network mapping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bids_lacuna.mapping.analysis import Part, ReadBlock
from bids_lacuna.statistics import LesionStatistics, of_sums

Array = np.ndarray


@dataclass(eq=False)
class RunningMoments:
    """Sums over connectome subjects of z and z², for every row and voxel, and the number of subjects.

    A constant seed or voxel adds 0 to both sums (`kernels.add_fisher_z`), so that only the counts have to know of
    it, and the common case costs nothing.
    """

    n_rows: int
    n_voxels: int
    total: Array = field(init=False)
    """Shape (n_rows, n_voxels), float64: Σ z."""
    total_of_squares: Array = field(init=False)
    """Shape (n_rows, n_voxels), float64: Σ z²."""
    n_by_voxel: Array = field(init=False)
    """Shape (n_voxels,), int32: subjects whose voxel has a defined series."""
    left_out: list[tuple[Array, Array]] = field(init=False, default_factory=list)
    """For each subject with a constant seed: rows (boolean) and defined voxels (packed bits)."""

    def __post_init__(self) -> None:
        """Start at zero."""
        self.total = np.zeros((self.n_rows, self.n_voxels))
        self.total_of_squares = np.zeros((self.n_rows, self.n_voxels))
        self.n_by_voxel = np.zeros(self.n_voxels, dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """Memory of the sums in bytes."""
        return sum(sums.nbytes for sums in (self.total, self.total_of_squares, self.n_by_voxel))

    def count_subject(self, seed_is_defined: Array, voxel_is_defined: Array) -> None:
        """Count one connectome subject, after its z was added to the sums.

        Parameters
        ----------
        seed_is_defined : shape (n_rows,), boolean
        voxel_is_defined : shape (n_voxels,), boolean
        """
        self.n_by_voxel += voxel_is_defined
        if not seed_is_defined.all():
            self.left_out.append((~seed_is_defined, np.packbits(voxel_is_defined)))

    def blocks(self) -> tuple[Array, Array, Array, Array]:
        """Return all numbers as C-contiguous arrays.

        Returns
        -------
        tuple of arrays
            `total`, `total_of_squares`, `n_by_voxel`, and a row of uint8 for each entry of `left_out`: its rows as
            packed bits, then its voxels.
        """
        left_out = [np.concatenate([np.packbits(rows), voxels]) for rows, voxels in self.left_out]
        width = packed_bytes(self.n_rows) + packed_bytes(self.n_voxels)
        return (
            self.total,
            self.total_of_squares,
            self.n_by_voxel,
            np.array(left_out, np.uint8).reshape(len(left_out), width),
        )

    def merge(self, parts: Iterable[Part]) -> None:
        """Add parts of the blocks of other connectome subjects' moments: block index, first index, numbers."""
        sums = self.total, self.total_of_squares, self.n_by_voxel
        for index, first, numbers in parts:
            if index < len(sums):
                mine = sums[index][first : first + len(numbers)]
                np.add(mine, numbers, out=mine)
            else:
                self.left_out += _unpack(numbers, self.n_rows)

    def restore(self, read: ReadBlock, rows: Sequence[int]) -> None:
        """Fill in the moments of some rows, from the saved blocks of moments of at least these rows.

        Parameters
        ----------
        read
            Fills an array with the next numbers; `read.shapes` has the blocks' shapes.
        rows
            For each row, its index among the saved ones.
        """
        n_saved = read.shapes[0][0]
        row_of = {saved: row for row, saved in enumerate(rows)}
        unused = np.empty(self.n_voxels)
        for sums in (self.total, self.total_of_squares):
            for saved in range(n_saved):
                read(sums[row_of[saved]] if saved in row_of else unused)
        read(self.n_by_voxel)
        for left_out, voxels in _unpack(read(np.empty(read.shapes[3], np.uint8)), n_saved):
            if left_out[list(rows)].any():
                self.left_out.append((left_out[list(rows)], voxels))

    def n(self, row: int) -> Array:
        """Count the subjects with a defined correlation between one row's seed and each voxel.

        Returns
        -------
        shape (n_voxels,), int32
        """
        n = self.n_by_voxel.copy()
        for rows, voxels in self.left_out:
            if rows[row]:
                n -= np.unpackbits(voxels, count=len(n))
        return n

    @property
    def n_without_signal(self) -> int:
        """Number of subjects without a signal in any voxel: no row has a seed in them."""
        return sum(not voxels.any() for _, voxels in self.left_out)

    def statistics(self, row: int) -> LesionStatistics:
        """Compute the statistics of one row from its sums (`statistics.of_sums`)."""
        return of_sums(self.total[row], self.total_of_squares[row], self.n(row))


def packed_bytes(n: int) -> int:
    """Return the number of bytes needed for a number of bits."""
    return (n + 7) // 8


def _unpack(numbers: Array, n_rows: int) -> list[tuple[Array, Array]]:
    """Return entries of `RunningMoments.left_out` from a block of them."""
    rows, voxels = np.split(numbers, [packed_bytes(n_rows)], axis=1)
    return list(zip(np.unpackbits(rows, axis=1, count=n_rows).astype(bool), voxels, strict=True))
