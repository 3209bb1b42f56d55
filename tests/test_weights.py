"""Rows of weights, and the limit between axis-aligned and oblique grids; test_lesion.py tests the weights."""

from __future__ import annotations

import numpy as np
import pytest

from bids_lacuna.grid import Grid
from bids_lacuna.weights import LesionWeights, Rows, weigh

GRID = Grid(np.ones((7, 9, 11), bool), np.eye(4))


@pytest.mark.parametrize(("shift", "expected"), [(0.99e-3, [0.9, 0.1]), (1.01e-3, [1, 0]), (5e-3, [1, 0])])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_shift_of_a_thousandth_of_a_voxel_is_none(shift: float, expected: list[float], axis: int) -> None:
    """Weights are exact up to that shear across the lesion; beyond, they are whole pieces of a quarter voxel."""
    affine = np.eye(4)
    affine[:3, 3] = 3.1, 4, 5
    affine[0, axis] = shift
    corner, weights = weigh(np.ones((1, 1, 1), bool), affine, GRID)
    on_grid = np.zeros(GRID.shape)
    on_grid[tuple(slice(start, start + n) for start, n in zip(corner, weights.shape, strict=True))] = weights
    np.testing.assert_allclose(on_grid[3:5, 4, 5], expected, atol=1e-4)
    assert on_grid.sum() == pytest.approx(1)


def test_a_row_s_hash_is_of_its_voxels_and_weights() -> None:
    """Rows with other voxels or other weights have other hashes; the rows beside them do not matter."""

    def row(voxels: list[int], weights: list[float]) -> LesionWeights:
        return LesionWeights(np.array(voxels, np.int32), np.array(weights, np.float32))

    rows = {
        "a": row([2, 5], [0.5, 1]),
        "b": row([2, 5], [0.5, 0.25]),
        "c": row([2, 7], [0.5, 1]),
        "d": row([2, 5, 7], [0.5, 1, 1]),
    }
    hashes = Rows.of(rows).hashes
    assert list(hashes) == list(rows)
    assert len(set(hashes.values())) == len(rows)
    assert Rows.of({"again": rows["c"]}).hashes["again"] == hashes["c"]
