"""Weights of masks on a grid, at the limit between axis-aligned and oblique grids; the rest is in test_lesion.py."""

from __future__ import annotations

import numpy as np
import pytest

from bids_lacuna.grid import Grid
from bids_lacuna.weights import weigh

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
