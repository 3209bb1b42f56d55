"""Places of null lesions, compared with every placement on small grids."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import synthetic
from nulls import make_grid, make_tissue
from scipy.spatial.distance import cdist

from bids_lacuna.grid import Grid
from bids_lacuna.lesion import name_side
from bids_lacuna.mapping.places import Places, Shape, Tissue, find_places, measure_distances
from bids_lacuna.weights import LesionWeights

Array = np.ndarray

SMALL = (9, 11, 7)

OBLIQUE = np.array([[-4, 1.3, 0, 9], [1.3, 4, 0.4, -25], [0, -0.4, 4, -11], [0, 0, 0, 1]])
"""Voxels of 4 mm and a little more, turned by 18° about z."""


def edges_between(fraction: float, edges: tuple[float, ...]) -> int:
    """Return the number of edges at or below a fraction, apart from rounding."""
    return sum(fraction >= edge - 1e-9 for edge in edges)


def describe(shape: Shape, corner: Array, grid: Grid, tissue: Tissue) -> tuple[str, int, int, int] | None:
    """Find a place's side and bins, voxel by voxel; None if no voxel is covered."""
    total = inside = grey = white = left = right = 0.0
    for offset in np.ndindex(*shape.weights.shape):
        weight, voxel = float(shape.weights[offset]), tuple(corner + offset)
        x = round(float(grid.affine[0] @ [*voxel, 1]), 3)
        total, left, right = total + weight, left + weight * (x < 0), right + weight * (x > 0)
        if all(0 <= i < n for i, n in zip(voxel, grid.shape, strict=True)) and grid.mask[voxel]:
            inside += weight
            grey, white = grey + weight * tissue.grey[voxel], white + weight * tissue.white[voxel]
    if not inside:
        return None
    tissue_edges = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
    bins = edges_between(grey / inside, tissue_edges), edges_between(white / inside, tissue_edges)
    return name_side(left, right), edges_between(inside / total, (0.5, 0.75)), *bins


def every_place(shape: Shape, grid: Grid, tissue: Tissue, step: int, across: int = 0) -> set[tuple[int, ...]]:
    """Try every placement, at which the box overlaps the volume, against the lesion's own."""
    own = describe(shape, shape.corner, grid, tissue)
    assert own
    ranges = [range(1 - m, n) for m, n in zip(shape.weights.shape, grid.shape, strict=True)]
    found = set()
    for corner in product(*ranges):
        moved = np.array(corner) - shape.corner
        if (moved % step).any() or not moved.any() or (own[0] == "both" and moved[across]):
            continue
        if describe(shape, np.array(corner), grid, tissue) == own:
            found.add(corner)
    return found


def as_set(places: Places) -> set[tuple[int, ...]]:
    """Return the corners, none of which occurs twice."""
    corners = set(map(tuple, places.corners.tolist()))
    assert len(corners) == len(places.corners)
    return corners


@pytest.mark.parametrize(
    ("corner", "size_mm", "step"),
    [((1, 4, 2), 4, 1), ((6, 2, 3), 5, 1), ((3, 5, 3), 4, 1), ((-1, 3, 2), 2, 2), ((1, 3, 2), 3, 2)],
)
def test_every_placement(corner: tuple[int, int, int], size_mm: float, step: int) -> None:
    """The places are those of all placements that are on the same side, in the same bins, in whole steps of 4 mm."""
    grid = make_grid(SMALL, size_mm)
    weights = np.random.default_rng(4).uniform(0.1, 1, (3, 2, 2)).astype(np.float32)
    shape, tissue = Shape(np.array(corner), weights), make_tissue(grid)
    own = describe(shape, shape.corner, grid, tissue)
    places = find_places(shape, grid, tissue)
    assert len(places.corners) > 0
    assert as_set(places) == every_place(shape, grid, tissue, step)
    assert own
    assert (places.side, places.step_voxels) == (own[0], (step, step, step))


def test_every_placement_on_an_oblique_grid() -> None:
    """Sides are by world coordinates, and a lesion on both sides stays where it is along the axis nearest to x."""
    grid = Grid(synthetic.make_mask(shape=SMALL), OBLIQUE)
    tissue = make_tissue(grid)
    for corner in ((0, 2, 2), (6, 7, 3), (3, 3, 3)):
        shape = Shape(np.array(corner), np.ones((2, 2, 2), np.float32))
        assert as_set(find_places(shape, grid, tissue)) == every_place(shape, grid, tissue, 1)


def test_a_lesion_on_both_sides_stays_across() -> None:
    """Where x is the grid's last axis, a lesion on both sides moves along the first two alone."""
    grid = Grid(
        synthetic.make_mask(shape=SMALL), np.array([[0, 0, -4, 12], [0, 4, 0, -20], [4, 0, 0, -16], [0, 0, 0, 1.0]])
    )
    tissue = make_tissue(grid)
    shape = Shape(np.array([3, 3, 2]), np.ones((2, 2, 3), np.float32))
    places = find_places(shape, grid, tissue)
    assert places.side == "both"
    assert as_set(places) == every_place(shape, grid, tissue, 1, across=2) != set()


def test_ties_are_above_the_edge() -> None:
    """A fraction that is an edge is in the bin above it, at the own place as elsewhere, whatever the rounding."""
    grid = make_grid(SMALL)
    mask = np.ones(SMALL, bool)
    mask[:, ::4] = False
    grid = Grid(mask, grid.affine)
    grey = np.full(SMALL, 0.3)
    grey[:, :, 3] = 0.6
    tissue = Tissue(grey, np.full(SMALL, 0.45))
    # Three quarters are inside the mask, at all places along y.
    shape = Shape(np.array([1, 1, 2]), np.full((2, 4, 1), 0.1, np.float32))
    places = find_places(shape, grid, tissue)
    assert (places.coverage, places.grey, places.white) == ((0.75, 1.0), (0.3, 0.45), (0.45, 0.6))
    assert as_set(places) == every_place(shape, grid, tissue, 1)


def test_relation_is_symmetric() -> None:
    """A place is among those of the lesion at another place if that is among its own."""
    grid = make_grid(SMALL)
    tissue = make_tissue(grid)
    weights = np.random.default_rng(5).uniform(0.1, 1, (2, 3, 2)).astype(np.float32)
    here = Shape(np.array([1, 3, 2]), weights)
    corners = as_set(find_places(here, grid, tissue))
    assert len(corners) > 10
    for corner in corners:
        there = as_set(find_places(Shape(np.array(corner), weights), grid, tissue))
        assert there == corners - {corner} | {(1, 3, 2)}


def test_shape_of_weights() -> None:
    """The box spans the lesion's voxels, whatever their order."""
    voxels = np.ravel_multi_index(([2, 4, 3], [1, 1, 5], [6, 3, 3]), SMALL).astype(np.int32)
    shape = Shape.of(LesionWeights(voxels, np.array([0.25, 0.5, 1], np.float32)), SMALL)
    assert shape.corner.tolist() == [2, 1, 3]
    assert shape.weights.shape == (3, 5, 4)
    assert [shape.weights[0, 0, 3], shape.weights[2, 0, 0], shape.weights[1, 4, 0]] == [0.25, 0.5, 1]
    assert shape.weights.sum() == 1.75
    assert len(shape.offsets) == 3


def test_distances() -> None:
    """Each voxel's distance is that from the nearest voxel of the lesion, in mm."""
    affine = np.diag([2.0, 3, 4, 1])
    grid = Grid(np.ones(SMALL, bool), affine)
    weights = np.zeros((2, 2, 1), np.float32)
    weights[0, 0, 0] = weights[1, 1, 0] = 0.3
    corner, distances = measure_distances(Shape(np.array([4, 4, 3]), weights), grid, 6)
    assert corner.tolist() == [-3, -2, -2]
    assert distances.shape == (2 + 6, 2 + 4, 1 + 4)
    positions = (np.argwhere(np.ones(distances.shape)) + corner) * [2, 3, 4]
    lesion = np.array([[0, 0, 0], [2, 3, 0]])
    np.testing.assert_allclose(distances.ravel(), cdist(positions, lesion).min(axis=1), rtol=1e-6)
