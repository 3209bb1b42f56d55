"""A mask as weights on the connectome's grid, against block means and brute force; masks that cannot be used."""

from __future__ import annotations

import gzip
import math
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from synthetic import OBLIQUE, RADIOLOGICAL, SHAPE, SPACE, box, make_mask, write_mask

from bids_lacuna import LesionData, images, lesion_masks
from bids_lacuna.grid import Grid
from bids_lacuna.images import open_image
from bids_lacuna.lesion import LesionOutsideGrid, load_lesion
from bids_lacuna.lesion_masks import read_mask
from bids_lacuna.weights import weigh

Array = np.ndarray

GRID = Grid(np.ones(SHAPE, bool), RADIOLOGICAL)
"""Every voxel has a series; the volume spans (-10, -14, -22) to (10, 14, 22) mm."""

ROTATION = nib.eulerangles.euler2mat(0.5, -0.4, 0.7)


def make_blob(shape: tuple[int, ...], seed: int = 3, fraction: float = 0.4) -> Array:
    """Make a lesion with holes and no symmetry."""
    return np.random.default_rng(seed).random(shape) < fraction


def centred_on(point: Array | list[float], axes: Array, shape: tuple[int, ...]) -> Array:
    """Make an affine with these axes that puts the middle of a volume at a point in mm."""
    axes = np.asarray(axes, float)
    return from_matvec(axes, np.asarray(point) - axes @ ((np.array(shape) - 1) / 2))


def weigh_volume(lesion: Array, affine: Array, grid: Grid) -> Array:
    """Put the box of weights back into a whole volume of the grid."""
    (x, y, z), box = weigh(lesion, affine, grid)
    volume = np.zeros(grid.shape)
    volume[x : x + box.shape[0], y : y + box.shape[1], z : z + box.shape[2]] = box
    return volume


def weigh_by_pieces(lesion: Array, affine: Array, grid: Grid, n_pieces: tuple[int, int, int]) -> Array:
    """Cut every lesion voxel into pieces, and count those whose centre is nearest to each grid voxel's."""
    cuts = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in n_pieces]), -1).reshape(-1, 3)
    centres = apply_affine(affine, (np.argwhere(lesion)[:, np.newaxis] + cuts).reshape(-1, 3))
    edges = [np.arange(n + 1) - 0.5 for n in grid.shape]
    counts = np.histogramdd(apply_affine(np.linalg.inv(grid.affine), centres), edges)[0]
    return counts * abs(np.linalg.det(affine[:3, :3])) / len(cuts) / abs(np.linalg.det(grid.affine[:3, :3]))


def load(voxels: Array, affine: Array = RADIOLOGICAL, grid: Grid = GRID, **options: str) -> LesionData:
    """Load a lesion in memory."""
    return load_lesion(
        LesionData.from_nifti(nib.Nifti1Image(voxels.astype(np.uint8), affine)), grid, SPACE, **options
    )


@pytest.mark.parametrize("grid_affine", [RADIOLOGICAL, OBLIQUE], ids=["radiological", "oblique"])
@pytest.mark.parametrize("noise", ["none", "float32", "added", "qform"])
def test_same_grid(grid_affine: Array, noise: str) -> None:
    """A mask on the connectome's own grid weighs exactly 0 and 1, also where its affine was rounded on the way."""
    lesion = make_blob(SHAPE)
    affine = grid_affine
    if noise == "float32":
        affine = grid_affine.astype(np.float32).astype(float)
    elif noise == "added":
        affine = grid_affine + np.random.default_rng(5).uniform(-2e-6, 2e-6, (4, 4)) * [[1], [1], [1], [0]]
    elif noise == "qform":
        header = nib.Nifti1Header()
        header.set_data_shape(SHAPE)
        header.set_qform(grid_affine)
        affine = header.get_qform()
    np.testing.assert_array_equal(weigh_volume(lesion, affine, Grid(GRID.mask, grid_affine)), lesion)


def test_block_means() -> None:
    """A 1 mm lesion on a 2 mm grid weighs the mean of its 2 x 2 x 2 blocks."""
    fine = (10, 14, 22)
    lesion = make_blob(fine)
    grid = Grid(np.ones(SHAPE, bool), centred_on([3, -5, 7], np.diag([2, 2, 2]), SHAPE))
    blocks = lesion.reshape(5, 2, 7, 2, 11, 2).mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(weigh_volume(lesion, centred_on([3, -5, 7], np.eye(3), fine), grid), blocks)


@pytest.mark.parametrize("order", [*permutations(range(3))], ids=str)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)], ids=str)
def test_axis_aligned(order: tuple[int, int, int], signs: tuple[int, int, int]) -> None:
    """Voxels of 1.5 x 2.5 x 3 mm in any order and direction of axes weigh what brute force says, exactly."""
    lesion = make_blob((6, 5, 7))
    axes = (np.diag([1.5, 2.5, 3]) * signs)[list(order)]
    affine = centred_on([0.5, -1.5, 3], axes, lesion.shape)
    # With a corner at whole half millimetres, no piece of half a millimetre straddles two grid voxels.
    corner = apply_affine(affine, [-0.5] * 3)
    affine[:3, 3] += np.round(2 * corner) / 2 - corner
    expected = weigh_by_pieces(lesion, affine, GRID, (3, 5, 6))
    assert np.unique(expected).size > 20
    np.testing.assert_allclose(weigh_volume(lesion, affine, GRID), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (0.7, 1.3, 2.1), (3.3, 5.1, 4.7)], ids=str)
def test_sizes_that_do_not_divide(sizes: tuple[float, float, float]) -> None:
    """Edges at thirds of a grid voxel and beside are divided to one part in ten thousand."""
    lesion = make_blob((3, 4, 5))
    grid = Grid(np.ones(SHAPE, bool), centred_on([1, 2, 3], np.diag([3, 3, 3]), SHAPE))
    affine = centred_on([1.2, 1.9, 3.1], np.diag(sizes), lesion.shape)
    weights = weigh_volume(lesion, affine, grid)
    # The same three matrices, by the definition of an overlap, one pair of voxels at a time.
    expected = np.zeros(SHAPE)
    for voxel in np.argwhere(lesion):
        low, high = (apply_affine(np.linalg.inv(grid.affine) @ affine, voxel + side) for side in (-0.5, 0.5))
        along = [
            np.clip(np.minimum(high[axis], i + 0.5) - np.maximum(low[axis], i - 0.5), 0, None)
            for axis, i in enumerate(map(np.arange, SHAPE))
        ]
        expected += np.einsum("i,j,k", *along)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=5e-4)
    np.testing.assert_allclose(weights.sum() * 27, lesion.sum() * math.prod(sizes), rtol=5e-4)


@pytest.mark.parametrize("grid_affine", [RADIOLOGICAL, OBLIQUE], ids=["radiological", "oblique"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 1.5), (4.5, 3, 3.5)], ids=str)
def test_oblique(grid_affine: Array, sizes: tuple[float, float, float]) -> None:
    """A lesion at an angle keeps its volume exactly, and its weights are near those of a far finer division."""
    lesion = make_blob((3, 2, 3), fraction=0.6)
    grid = Grid(np.ones(SHAPE, bool), grid_affine)
    middle = apply_affine(grid_affine, (np.array(SHAPE) - 1) / 2)
    affine = centred_on(middle, ROTATION @ np.diag(sizes), lesion.shape)
    weights = weigh_volume(lesion, affine, grid)
    np.testing.assert_allclose(weights.sum() * 64, lesion.sum() * math.prod(sizes), rtol=1e-12)
    np.testing.assert_allclose(weights, weigh_by_pieces(lesion, affine, grid, (24, 25, 26)), rtol=0, atol=0.06)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (-3.5, {}),
        (-1.75, {0: 0.25, 1: 0.75}),
        (-1.5, {1: 1}),
        (3.25, {3: 0.25, 4: 0.75}),
        (3.5, {4: 1}),
        (4.25, {4: 0.25}),
        (4.5, {}),
    ],
    ids=str,
)
def test_over_the_edge(start: float, expected: dict[int, float]) -> None:
    """Of a voxel, a gap and a voxel along the first axis, the grid has what lies between its outer edges."""
    affine = RADIOLOGICAL @ from_matvec(np.eye(3), [start + 0.5, 3, 5])
    weights = weigh_volume(np.array([1, 0, 1], bool).reshape(3, 1, 1), affine, GRID)
    assert {int(i): weights[i, 3, 5] for i in np.flatnonzero(weights[:, 3, 5])} == expected
    assert weights.sum() == sum(expected.values())


@pytest.mark.parametrize(
    ("axes", "tolerance"),
    [
        (np.diag([1, 2, 4]), 1e-12),
        (np.diag([-2, 1, -4]), 1e-12),
        (np.diag([4, -1, 2])[[2, 0, 1]], 1e-12),
        (ROTATION * 1.5, 0.07),
    ],
    ids=["aligned", "flipped", "permuted", "oblique"],
)
@pytest.mark.parametrize("middle", [(-10, -14, -22), (10, 14, 22), (-10, 14, 0), (1, -14, 3), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("shape", [(6, 5, 7), (26, 40, 33)], ids=["small", "larger than the grid"])
def test_partly_outside(
    axes: Array, tolerance: float, middle: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    """At the grid's corners, edges and faces, voxels weigh what brute force says, and what lies beyond is lost."""
    lesion = make_blob(shape, fraction=0.4)
    affine = centred_on(middle, axes, shape)
    if tolerance < 1e-6:
        # With a corner at whole millimetres, no piece of half a millimetre straddles two grid voxels.
        corner = apply_affine(affine, [-0.5] * 3)
        affine[:3, 3] += np.round(corner) - corner
    n_pieces = (8, 8, 8) if shape[0] == 6 else (4, 4, 4)
    expected = weigh_by_pieces(lesion, affine, GRID, n_pieces)
    assert 0 < expected.sum() < lesion.sum() * abs(np.linalg.det(axes)) / 64 or middle == (0, 0, 0)
    np.testing.assert_allclose(weigh_volume(lesion, affine, GRID), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("axes", [np.eye(3), ROTATION], ids=["aligned", "oblique"])
def test_only_the_lesion_is_weighed(axes: Array) -> None:
    """The box of weights reaches no further than a voxel beyond the lesion, however large the grid is."""
    grid = Grid(np.ones((40, 50, 60), bool), np.diag([2, 2, 2, 1]))
    corner, box = weigh(np.ones((4, 4, 4), bool), centred_on([31, 41, 71], axes, (4, 4, 4)), grid)
    assert (np.abs(corner - [14, 19, 34]) <= 2).all()
    assert max(box.shape) <= 6
    assert box.sum() == pytest.approx(4**3 / 2**3)


@pytest.mark.parametrize("axes", [np.eye(3), ROTATION * 1.7], ids=["aligned", "oblique"])
def test_mirrored(axes: Array) -> None:
    """A lesion mirrored in the world has mirrored weights: left stays left."""
    lesion = make_blob((6, 5, 7))
    affine = centred_on([-3.1, 2.3, 4.2], axes, lesion.shape)
    weights = weigh_volume(lesion, affine, GRID)
    mirrored = weigh_volume(lesion, np.diag([-1, 1, 1, 1]) @ affine, GRID)
    assert not np.allclose(weights, weights[::-1])
    np.testing.assert_allclose(mirrored, weights[::-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("side_mm", [-7, 6], ids=["left", "right"])
def test_side(side_mm: float) -> None:
    """A lesion on the world's left lies in the voxels with negative x, though the array begins at the right."""
    lesion = load(np.ones((1, 1, 1)), centred_on([side_mm, 1, 2], np.eye(3), (1, 1, 1)))
    voxel = np.unravel_index(lesion.weights.voxels[0], SHAPE)
    assert abs(apply_affine(RADIOLOGICAL, voxel)[0] - side_mm) <= 2


def test_small_lesion_does_not_vanish() -> None:
    """One voxel of 1 mm on a grid of 4 mm weighs 1/64 of the voxel that it lies in."""
    lesion = load(np.ones((1, 1, 1)), centred_on([-4.5, 7.5, -15.5], np.eye(3), (1, 1, 1)))
    assert lesion.weights.voxels.tolist() == [np.ravel_multi_index((3, 5, 1), SHAPE)]
    assert lesion.weights.weights.tolist() == [1 / 64]
    assert (lesion.volume_mm3, lesion.coverage) == pytest.approx((1, 1))


def test_voxels_are_counted_inside_the_mask() -> None:
    """Weights name voxels by their place among those of the brain mask, in C order."""
    grid = Grid(make_mask(), RADIOLOGICAL)
    voxels = make_blob(SHAPE)
    lesion = load(voxels, grid=grid)
    assert lesion.weights.voxels.tolist() == np.flatnonzero(voxels[grid.mask]).tolist()
    assert lesion.volume_mm3 == pytest.approx(64 * voxels.sum())


@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 0, 0), (0, -3, 4)], ids=str)
def test_coverage(shift: tuple[int, int, int]) -> None:
    """Coverage is the fraction of the lesion in the brain mask; what lies outside the volume counts as lost."""
    grid = Grid(make_mask(), RADIOLOGICAL)
    voxels = make_blob(SHAPE)
    on_grid = np.argwhere(voxels) + shift
    inside = on_grid[((on_grid >= 0) & (on_grid < SHAPE)).all(axis=1)]
    affine = RADIOLOGICAL @ from_matvec(np.eye(3), shift)
    expected = grid.mask[tuple(inside.T)].sum() / voxels.sum()
    assert 0.1 < expected < 0.9
    assert load(voxels, affine, grid).coverage == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("axes", [np.eye(3), ROTATION], ids=["aligned", "oblique"])
def test_outside(axes: Array) -> None:
    """A lesion beside the volume is told where it lies and where the connectome does."""
    affine = centred_on([100, -50, 30], axes * 2, (3, 4, 5))
    with pytest.raises(LesionOutsideGrid) as caught:
        load(np.ones((3, 4, 5)), affine)
    assert "(-10, -14, -22) to (10, 14, 22)" in str(caught.value)
    if axes[0, 0] == 1:
        assert "(97, -54, 25) to (103, -46, 35)" in str(caught.value)


def test_outside_the_mask() -> None:
    """A lesion where the connectome has no series is outside it, even within its volume."""
    with pytest.raises(LesionOutsideGrid, match="outside the connectome's brain mask"):
        load(box((1, 1, 1)), grid=Grid(box((1, 4, 7)) > 0, RADIOLOGICAL))


def test_binary_weighting() -> None:
    """Binary weighting keeps voxels that are covered by half or more; coverage stays that of the whole lesion."""
    fine = tuple(2 * n for n in SHAPE)
    voxels = make_blob(fine)
    blocks = voxels.reshape(5, 2, 7, 2, 11, 2).mean(axis=(1, 3, 5))
    assert (blocks == 0.5).any()
    lesion = load(voxels, centred_on([0, 0, 0], np.diag([-2, 2, 2]), fine), weighting="binary")
    assert lesion.weights.voxels.tolist() == np.flatnonzero(blocks >= 0.5).tolist()
    assert set(lesion.weights.weights.tolist()) == {1}
    assert lesion.coverage == pytest.approx(1)


def test_binary_weighting_loses_small_lesions() -> None:
    """Where no voxel is half covered, the reason says so and names the way out."""
    with pytest.raises(LesionOutsideGrid, match=r"at least half.*volume weighting"):
        load(np.ones((1, 1, 1)), centred_on([0, 0, 0], np.eye(3), (1, 1, 1)), weighting="binary")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 0], "empty"),
        ([1, 2], "not binary: .* 1, 2,"),
        ([0.25, 0.5], r"not binary: .* 0\.25, 0\.5"),
        ([-1, -1], "not binary: .* -1"),
        ([np.nan, 1], "contains NaN"),
        ([np.inf, np.inf], "not binary: .* inf"),
        ([1, 2, 3, 5, 7], "1, 2, 3, 5, …"),
        ([1, 1.000002], r"contains 1, 1\.00000\d+, but"),
        ([1, 1e-6], "contains 1e-06, 1, but"),
        ([-1e-9, 0], "not binary: .* -1e-09"),
    ],
    ids=["empty", "labels", "fractions", "negative", "nan", "infinite", "atlas", "near", "small", "negative noise"],
)
def test_values_that_are_no_mask(tmp_path: Path, values: list[float], words: str) -> None:
    """A mask needs voxels of one positive value beside 0; the reason shows what was found."""
    voxels = np.zeros(SHAPE, np.float32)
    voxels[2, 3, 4 : 4 + len(values)] = values
    nib.save(nib.Nifti1Image(voxels, RADIOLOGICAL), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match=words):
        load_lesion(LesionData.from_nifti(tmp_path / "mask.nii.gz"), GRID)


@pytest.mark.parametrize("noise", [1e-9, -1e-9, 1e-30], ids=str)
@pytest.mark.parametrize("value", [1, 255, 1e-3], ids=str)
@pytest.mark.parametrize("slab_bytes", [1, 2**18])
def test_rounding_within_a_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, noise: float, slab_bytes: int
) -> None:
    """A mask whose value is rounded in some voxels, and whose zeros are in others, is the one without rounding."""
    monkeypatch.setattr(images, "SLAB_BYTES", slab_bytes)
    blob = make_blob(SHAPE)
    voxels = blob * np.float32(value)
    first, *_, last = np.argwhere(blob)
    voxels[tuple(first)] = np.nextafter(np.float32(value), np.float32(0))
    voxels[tuple(last)] = np.nextafter(np.float32(value), np.float32(np.inf))
    voxels[0, 0, :] = np.where(blob[0, 0], voxels[0, 0], noise * value)
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(voxels, RADIOLOGICAL), path)
    loaded, clean = load_lesion(LesionData.from_nifti(path), GRID), load(blob)
    np.testing.assert_array_equal(loaded.weights.voxels, clean.weights.voxels)
    np.testing.assert_array_equal(loaded.weights.weights, clean.weights.weights)
    assert loaded.volume_mm3 == clean.volume_mm3


def test_neighbouring_labels_are_no_rounding(tmp_path: Path) -> None:
    """Whole numbers are never equal by rounding, however large."""
    voxels = np.zeros(SHAPE, np.int32)
    voxels[2, 3, 4:6] = 100_000_000, 100_000_001
    nib.save(nib.Nifti1Image(voxels, RADIOLOGICAL), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match="contains 100000000, 100000001, but"):
        load_lesion(LesionData.from_nifti(tmp_path / "mask.nii.gz"), GRID)


@pytest.mark.parametrize("shape", [(*SHAPE, 2), SHAPE[:2], (*SHAPE, 1, 3)], ids=str)
def test_dimensions_that_are_no_mask(shape: tuple[int, ...]) -> None:
    """A mask of several volumes, or of no volume, is refused with its shape."""
    with pytest.raises(ValueError, match=rf"{len(shape)} dimensions \({shape[0]}, {shape[1]}.*three"):
        load(np.ones(shape))


PROBABILITIES = np.random.default_rng(9).random((10, 14, 22)).astype(np.float32)
"""On a grid of 2 mm; none is 0 or 1."""


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_probabilities(threshold: float) -> None:
    """With a threshold, a connectome voxel weighs the mean of its 2 x 2 x 2 probabilities, 0 below the threshold."""
    image = nib.Nifti1Image(PROBABILITIES, centred_on([0, 0, 0], np.diag([-2, 2, 2]), PROBABILITIES.shape))
    lesion = load_lesion(LesionData.from_nifti(image), GRID, threshold=threshold)
    weights = np.where(threshold <= PROBABILITIES, PROBABILITIES, 0)
    expected = weights.reshape(5, 2, 7, 2, 11, 2).mean(axis=(1, 3, 5)).ravel()
    assert lesion.weights.voxels.tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(lesion.weights.weights, expected[expected > 0], rtol=1e-6)
    assert (lesion.volume_mm3, lesion.coverage) == pytest.approx((8 * weights.sum(), 1), rel=1e-6)


def test_probabilities_at_an_angle() -> None:
    """Between oblique grids, the expected volume is kept, and a mask of 0 and 1 weighs what it does without."""
    blob = make_blob((3, 2, 3), fraction=0.6)
    affine = centred_on([0, 0, 0], ROTATION * 3, blob.shape)
    probabilities = PROBABILITIES[:3, :2, :3]
    assert weigh_volume(probabilities, affine, GRID).sum() * 64 == pytest.approx(27 * probabilities.sum(), rel=1e-6)
    np.testing.assert_array_equal(
        weigh_volume(blob.astype(np.float32), affine, GRID), weigh_volume(blob, affine, GRID)
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.3, 0.49], r"is empty: no voxel is at least 0\.5"),
        ([0.7, 1.1], r"from 0 to 1\.1, but a lesion threshold needs probabilities"),
        ([0.7, -0.1], r"from -0\.1 to 0\.7, but"),
        ([60, 100], "divide percentages by 100"),
        ([0.7, np.nan], "from nan to nan"),
    ],
)
def test_values_that_are_no_probabilities(values: list[float], words: str) -> None:
    """A threshold is compared with probabilities; what lies beyond 0 and 1, but for rounding, is none."""
    voxels = np.zeros(SHAPE, np.float32)
    voxels[2, 3, 4 : 4 + len(values)] = values
    with pytest.raises(ValueError, match=words):
        load_lesion(LesionData.from_nifti(nib.Nifti1Image(voxels, RADIOLOGICAL)), GRID, threshold=0.5)


def test_rounded_probabilities() -> None:
    """What interpolation and rounding add to 0 and 1 counts as 0 and 1."""
    voxels = np.zeros(SHAPE, np.float32)
    voxels[2, 3, 4:7] = 1.0005, 0.5, -0.0005
    lesion = load_lesion(LesionData.from_nifti(nib.Nifti1Image(voxels, RADIOLOGICAL)), GRID, threshold=0.5)
    assert lesion.weights.weights.tolist() == [1, 0.5]


@pytest.mark.parametrize("places", [[(0, 0, 0), (4, 6, 10)], [(i, j, 5) for i in range(5) for j in range(7)]])
def test_a_box_that_is_too_large(monkeypatch: pytest.MonkeyPatch, places: list[tuple[int, int, int]]) -> None:
    """A lesion whose box would take more memory than any brain's is refused, whatever its header is."""
    monkeypatch.setattr(lesion_masks, "LARGEST_VOLUME", 34)
    voxels = np.zeros(SHAPE)
    voxels[tuple(np.transpose(places))] = 1
    with pytest.raises(ValueError, match=r"bounding box has .* at most 34 are read"):
        load(voxels)


@pytest.mark.parametrize("values", [{0, 255}, {0, 0.5}, {1}], ids=str)
@pytest.mark.parametrize("n_volumes", [(), (1,), (1, 1)], ids=str)
def test_values_that_are_a_mask(values: set[float], n_volumes: tuple[int, ...]) -> None:
    """Any one positive value marks the lesion, and one volume is a volume in four dimensions too."""
    blob = make_blob(SHAPE) | (len(values) == 1)
    image = nib.Nifti1Image((blob * np.float32(max(values))).reshape(SHAPE + n_volumes), RADIOLOGICAL)
    lesion = load_lesion(LesionData.from_nifti(image), GRID)
    assert lesion.weights.voxels.tolist() == np.flatnonzero(blob).tolist()
    assert set(lesion.weights.weights.tolist()) == {1}


def write_damaged(folder: Path, damage: str) -> Path:
    """Write a mask file that cannot be read."""
    path = folder / "mask.nii.gz"
    if damage == "text":
        path.write_text("not an image\n" * 99)
    elif damage == "zero bytes":
        path.touch()
    elif damage == "dangling link":
        path.symlink_to(folder / "annex" / "object")
    elif damage == "folder":
        path.mkdir()
    elif damage != "missing":
        # Noise does not compress: a half of the file ends in the middle of the voxels.
        path = write_mask(folder / ("mask.nii" if "plain" in damage else path.name), make_blob((31, 37, 41)))
        content = path.read_bytes()
        path.write_bytes(content[: 200 if "header" in damage else len(content) // 2])
    return path


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        ("half", OSError, "(?s)voxels cannot be read .*truncated"),
        ("half of plain", OSError, "its header requires .* truncated"),
        ("header of plain", OSError, "cannot be read as NIfTI"),
        ("zero bytes", OSError, "cannot be read as NIfTI"),
        ("text", OSError, "cannot be read as NIfTI"),
        ("dangling link", FileNotFoundError, "link to .*annex/object, which does not exist"),
        ("folder", FileNotFoundError, "no mask at"),
        ("missing", FileNotFoundError, "no mask at"),
    ],
)
def test_file_that_cannot_be_read(tmp_path: Path, damage: str, error: type[Exception], words: str) -> None:
    """A file that is missing or damaged raises an OSError that says which and how."""
    with pytest.raises(error, match=words):
        load_lesion(LesionData.from_nifti(write_damaged(tmp_path, damage)), GRID)


def test_affine_without_volume(tmp_path: Path) -> None:
    """A mask whose affine has an axis of length 0 is refused with a sentence, not with a warning of NumPy's."""
    path = write_mask(tmp_path / "mask.nii", box((1, 1, 1)))
    content = bytearray(path.read_bytes())
    content[312:328] = bytes(16)  # the header's srow_z
    path.write_bytes(content)
    with pytest.raises(ValueError, match="affine"):
        load_lesion(LesionData.from_nifti(path), GRID)


def test_space_mismatch() -> None:
    """Lesion and connectome in different templates are refused with both names, before the mask is read."""
    lesion = LesionData.from_nifti("missing.nii.gz", {"space": "MNI152NLin2009cAsym"})
    with pytest.raises(ValueError, match=r"MNI152NLin2009cAsym.*MNI152NLin6Asym"):
        load_lesion(lesion, GRID, SPACE)


@pytest.mark.parametrize(("lesion_space", "connectome_space"), [(SPACE, SPACE), (None, SPACE), (SPACE, None)])
def test_space_that_fits(lesion_space: str | None, connectome_space: str | None) -> None:
    """Equal spaces pass, and so does one that is not known."""
    lesion = LesionData.from_nifti(nib.Nifti1Image(box((1, 2, 3)), RADIOLOGICAL), {"space": lesion_space})
    assert load_lesion(lesion, GRID, connectome_space).coverage == pytest.approx(1)


def test_input_stays_as_it_was() -> None:
    """Loading gives a copy: the lesion that was handed in carries no weights of this connectome."""
    lesion = LesionData.from_nifti(nib.Nifti1Image(box((1, 2, 3)), RADIOLOGICAL), {"subject_id": "sub-7"})
    loaded = load_lesion(lesion, GRID)
    assert loaded.weights is not None
    assert (lesion.weights, lesion.volume_mm3, lesion.coverage) == (None, None, None)
    assert loaded.metadata == lesion.metadata == {"subject_id": "sub-7"}


@pytest.mark.parametrize("kind", [str, Path, nib.load])
def test_from_nifti(tmp_path: Path, kind: type) -> None:
    """A path as text, a path and an image are all lesions."""
    path = write_mask(tmp_path / "sub-7_mask.nii.gz", box((1, 2, 3)))
    lesion = LesionData.from_nifti(kind(path), {"subject_id": "sub-7"})
    assert load_lesion(lesion, GRID).volume_mm3 == pytest.approx(8 * 64)
    assert lesion.name == ("sub-7" if kind is nib.load else "sub-7_mask.nii.gz")


@pytest.mark.parametrize("kind", [str, Path])
def test_from_nifti_reads_nothing(tmp_path: Path, kind: type) -> None:
    """A lesion may be made before its file is there; metadata is copied."""
    metadata = {"subject_id": "sub-7"}
    lesion = LesionData.from_nifti(kind(tmp_path / "later.nii.gz"), metadata)
    metadata.clear()
    write_mask(tmp_path / "later.nii.gz", box((1, 2, 3)))
    assert load_lesion(lesion, GRID).metadata == {"subject_id": "sub-7"}


def test_header_that_says_no_place(tmp_path: Path) -> None:
    """A file without sform and qform, for which nibabel makes a place up, is refused."""
    nib.save(nib.Nifti1Image(box((1, 1, 1)), None), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match="affine is missing or singular"):
        load_lesion(LesionData.from_nifti(tmp_path / "mask.nii.gz"), GRID)


def test_colours_are_no_mask(tmp_path: Path) -> None:
    """An RGB image is refused with a sentence."""
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, RADIOLOGICAL), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match="not an image of real numbers"):
        load_lesion(LesionData.from_nifti(tmp_path / "mask.nii.gz"), GRID)


@pytest.mark.parametrize("n_slices", [1, 3, 4, 5, 11])
@pytest.mark.parametrize("at_a_time", [0.5, 1, 4])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slabs_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_slices: int, at_a_time: float, ending: str
) -> None:
    """A mask that is read in slabs is the mask that nibabel reads whole, wherever the lesion lies, and cropped."""
    monkeypatch.setattr(images, "SLAB_BYTES", int(at_a_time * 5 * 7 * 8))
    rng = np.random.default_rng(n_slices)
    voxels = np.zeros((5, 7, n_slices), np.float64)
    voxels[1:4, 2:, n_slices // 2 :] = rng.random((3, 5, n_slices - n_slices // 2)) < 0.3
    voxels[2, 3, n_slices // 2] = 1
    path = tmp_path / f"mask{ending}"
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    corner, lesion = read_mask(open_image(path, "mask"))
    np.testing.assert_array_equal(np.argwhere(lesion) + corner, np.argwhere(nib.load(path).get_fdata()))
    filled = np.argwhere(lesion)
    assert filled.min(axis=0).tolist() == [0, 0, 0]
    assert (filled.max(axis=0) + 1).tolist() == list(lesion.shape)


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, 0), (3, -6), (np.nan, np.nan)], ids=str)
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f8", "u1"])
@pytest.mark.parametrize("opened", ["path", "image", "bytes"])
def test_stored_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slope: float, intercept: float, dtype: str, opened: str
) -> None:
    """Numbers of either byte order are scaled as the header says before they are compared with 0."""
    monkeypatch.setattr(images, "SLAB_BYTES", 2 * 5 * 7)
    blob = make_blob(SHAPE)
    # With slope 3 and intercept -6, 2 is stored for 0.
    voxels = (blob + 2 * (slope == 3)).astype(dtype)
    image = nib.Nifti1Image(voxels, RADIOLOGICAL, nib.Nifti1Header(endianness=">" if ">" in dtype else "<"))
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([slope, intercept], image.header.endianness + "f4").tobytes()
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(gzip.compress(content))
    mask = {
        "path": lambda: path,
        "image": lambda: nib.load(path),
        "bytes": lambda: nib.Nifti1Image.from_bytes(content),
    }
    lesion = load_lesion(LesionData.from_nifti(mask[opened]()), GRID)
    assert lesion.weights.voxels.tolist() == np.flatnonzero(blob).tolist()


@pytest.mark.parametrize("opened", [Path, nib.load])
@pytest.mark.parametrize("place", [-8, -4], ids=["checksum", "length"])
def test_checksum(tmp_path: Path, opened: type, place: int) -> None:
    """A compressed mask whose voxels are not those that were written is refused, though all of it can be read."""
    # So large that reading the header does not reach the end.
    path = write_mask(tmp_path / "mask.nii.gz", make_blob((31, 37, 41)))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="truncated or damaged"):
        load_lesion(LesionData.from_nifti(opened(path)), GRID)
