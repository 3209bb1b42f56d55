"""Conversion between voxel vectors and volumes, and equality of grids."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import synthetic

from bids_lacuna.grid import Grid, tell_grids_apart

MASK = synthetic.make_mask()


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_volume_and_vector_are_inverses(dtype: type) -> None:
    """Converting a voxel vector to a volume and back changes neither values nor dtype."""
    grid = Grid(MASK, synthetic.RADIOLOGICAL)
    values = np.random.default_rng(3).integers(1, 200, grid.n_voxels).astype(dtype)
    volume = grid.volume(values, outside=0)
    assert (volume.shape, volume.dtype) == (synthetic.SHAPE, dtype)
    np.testing.assert_array_equal(grid.vector(volume), values)
    np.testing.assert_array_equal(volume[~MASK], 0)


def test_voxels_are_counted_in_c_order() -> None:
    """The last axis runs fastest, as in np.nonzero and Lacuna's mask_indices."""
    grid = Grid(MASK, synthetic.OBLIQUE)
    volume = grid.volume(np.arange(grid.n_voxels, dtype=np.float32))
    for number, voxel in enumerate(zip(*np.nonzero(MASK), strict=True)):
        assert volume[voxel] == number
    assert grid.n_voxels == number + 1


def test_voxel_indices() -> None:
    """Each voxel of the mask has its index in a voxel vector, and the others have -1."""
    grid = Grid(MASK, synthetic.RADIOLOGICAL)
    assert grid.voxel_indices.dtype == np.int32
    np.testing.assert_array_equal(grid.vector(grid.voxel_indices), np.arange(grid.n_voxels))
    assert set(grid.voxel_indices[~MASK]) == {-1}


def test_outside_the_mask_is_undefined() -> None:
    """Voxels outside the mask are NaN, unless another value is requested."""
    grid = Grid(MASK, synthetic.RADIOLOGICAL)
    values = np.ones(grid.n_voxels, np.float32)
    np.testing.assert_array_equal(np.isnan(grid.volume(values)), ~MASK)
    np.testing.assert_array_equal(grid.volume(values, outside=-7)[~MASK], -7)


def test_voxel_sizes_of_an_oblique_grid() -> None:
    """Edge lengths and volume do not depend on the rotation of the grid."""
    rotation = nib.eulerangles.euler2mat(0.3, 0.2, 0.1)
    grid = Grid(MASK, nib.affines.from_matvec(rotation @ np.diag([-2.0, 3, 5]), [7, 11, 13]))
    np.testing.assert_allclose(grid.voxel_sizes_mm, [2, 3, 5])
    assert grid.voxel_volume_mm3 == pytest.approx(30)


@pytest.mark.parametrize(("shift_mm", "same"), [(0, True), (1e-6, True), (0.01, False), (-4, False)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_grids_are_the_same_but_for_rounding(shift_mm: float, same: bool, axis: int) -> None:
    """A shift within the rounding of an affine leaves grids equal; a hundredth of a millimetre does not."""
    affine = synthetic.OBLIQUE.copy()
    affine[axis, 3] += shift_mm
    grid, other = Grid(MASK, synthetic.OBLIQUE), Grid(MASK.copy(), affine)
    assert grid.is_same_as(other) == other.is_same_as(grid) == same


def test_a_tolerance_is_a_fraction_of_a_voxel() -> None:
    """A shift by a thousandth of a voxel, small or large, leaves grids equal; by a hundredth, not."""
    for size in (0.5, 8.0):
        affine = nib.affines.from_matvec(np.diag([-size, size, size]), [90.0, -126, -72])
        for fraction, same in ((0.001, True), (0.01, False)):
            shifted = affine.copy()
            shifted[:3, 3] += fraction * size
            assert Grid(MASK, affine).is_same_as(Grid(MASK, shifted)) == same


def test_a_quaternion_is_rounded() -> None:
    """An oblique grid near a rotation by 180°, whose quaternion is rounded most, is the same as a quaternion."""
    turned = nib.eulerangles.euler2mat(np.pi - 1e-3, 2e-3, 1e-3) @ np.diag([2.0, 2, 2])
    affine = nib.affines.from_matvec(turned, [-90, 126, 72])
    header = nib.Nifti1Header()
    header.set_data_shape(synthetic.SHAPE)
    header.set_qform(affine)
    assert np.abs(header.get_qform() - affine).max() > 1e-3
    assert Grid(MASK, affine).is_same_as(Grid(MASK, header.get_qform()))


def test_grids_that_differ_look_different() -> None:
    """Sizes that differ in the eighth digit, a turned axis and another voxel of the mask are shown."""
    affine = synthetic.RADIOLOGICAL
    finer, turned, other_mask = affine.copy(), affine @ np.diag([-1.0, 1, 1, 1]), MASK.copy()
    finer[0, 0] = -3.9999999
    other_mask.flat[[np.argmax(MASK), np.argmin(MASK)]] = False, True
    ours, theirs = tell_grids_apart(Grid(MASK, affine), Grid(MASK, finer))
    assert "of 4 x 4 x 4 mm" in ours
    assert "of 3.9999999 x 4 x 4 mm" in theirs
    ours, theirs = tell_grids_apart(Grid(MASK, affine), Grid(MASK, turned))
    assert "(-4 0 0 8; " in ours
    assert "(4 0 0 8; " in theirs
    ours, theirs = tell_grids_apart(Grid(MASK, affine), Grid(other_mask, affine))
    assert ours.endswith(", 1 of them its own")


def test_grids_differ_by_direction_mask_and_shape() -> None:
    """Grids differ with a flipped affine, an additional voxel, other axes or a longer volume."""
    grid = Grid(MASK, synthetic.RADIOLOGICAL)
    one_more = MASK.copy()
    one_more.flat[np.argmin(MASK)] = True
    flipped = synthetic.RADIOLOGICAL @ np.diag([-1.0, 1, 1, 1])
    longer = np.pad(MASK, ((0, 0), (0, 0), (0, 1)))
    for other in (
        Grid(MASK, flipped),
        Grid(one_more, grid.affine),
        Grid(MASK.transpose(2, 1, 0), grid.affine),
        Grid(longer, grid.affine),
    ):
        assert not grid.is_same_as(other)
        assert not other.is_same_as(grid)
