"""What holds for every grid, mask and batch, on those that hypothesis thinks of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from hypothesis.strategies import DrawFn
from nibabel.affines import apply_affine, from_matvec

from bids_lacuna import FunctionalNetworkMapping, LesionData, batch_process
from bids_lacuna.grid import Grid
from bids_lacuna.weights import weigh

Array = np.ndarray

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

BRAIN = synthetic.make_mask()

sizes_mm = st.floats(0.3, 6)
angles = st.floats(-math.pi, math.pi)
turns = st.just(np.eye(3)) | st.builds(nib.eulerangles.euler2mat, angles, angles, angles)


@st.composite
def axes(draw: DrawFn) -> Array:
    """Draw an affine's axes, as millimetres for each voxel: of any size, order, direction and rotation."""
    sizes = draw(st.tuples(sizes_mm, sizes_mm, sizes_mm))
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    order = draw(st.permutations(range(3)))
    return draw(turns) @ np.diag(np.multiply(sizes, signs))[:, order]


lesions = arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=4)).filter(np.any)
probabilities = arrays(
    np.float32, array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.sampled_from([0, 0.25, 0.5, 0.875, 1])
).filter(np.any)
points = st.tuples(*[st.floats(-9, 9)] * 3)


def around(affine: Array, shape: tuple[int, ...], grid_axes: Array) -> Grid:
    """Make a grid with these axes that holds a whole lesion with room to spare, however it lies."""
    corners = apply_affine(
        affine, [[x, y, z] for x in (-1, shape[0]) for y in (-1, shape[1]) for z in (-1, shape[2])]
    )
    places = apply_affine(np.linalg.inv(from_matvec(grid_axes)), corners)
    low = np.floor(places.min(axis=0)) - 2
    n_voxels = np.ceil(places.max(axis=0) - low).astype(int) + 3
    return Grid(np.broadcast_to(True, n_voxels), from_matvec(grid_axes, grid_axes @ low))


@settings(max_examples=50)
@given(lesions | probabilities, axes(), points, axes().filter(lambda a: np.linalg.norm(a, axis=0).min() > 2.5))
def test_weights_conserve_volume(
    lesion: Array, lesion_axes: Array, origin: tuple[float, ...], grid_axes: Array
) -> None:
    """The grid's voxels hold the lesion's volume, each of them not more than its own but for a piece or two."""
    affine = from_matvec(lesion_axes, origin)
    grid = around(affine, lesion.shape, grid_axes)
    _, weights = weigh(lesion, affine, grid)
    expected = lesion.sum(dtype=float) * abs(np.linalg.det(lesion_axes))
    # Along aligned axes, edges are rounded to 1e-4 grid voxels, at either end of a lesion voxel.
    rounding = 1e-4 * (np.abs(grid_axes).max() / np.linalg.norm(lesion_axes, axis=0)).sum()
    np.testing.assert_allclose(weights.sum() * grid.voxel_volume_mm3, expected, rtol=1e-6 + rounding)
    assert weights.min() >= 0


@settings(max_examples=60)
@given(lesions | probabilities, axes(), points, st.tuples(sizes_mm, sizes_mm, sizes_mm))
def test_mirrored_affines_give_mirrored_weights(
    lesion: Array, lesion_axes: Array, origin: tuple[float, ...], sizes: tuple[float, ...]
) -> None:
    """A lesion mirrored in the world has mirrored weights on a grid that is its own mirror image."""
    shape = (12, 13, 14)
    grid_axes = np.diag(np.clip(sizes, 2, 6))
    grid = Grid(np.ones(shape, bool), from_matvec(grid_axes, -grid_axes @ (np.array(shape) - 1) / 2))
    # No piece's centre lies just between two voxels, where it would go to the even one on either side.
    affine = from_matvec(lesion_axes, np.add(origin, (0.01307, 0.02111, 0.01703)))
    volumes = []
    for mirror in (1, -1):
        (x, y, z), box = weigh(lesion, np.diag([mirror, 1, 1, 1]) @ affine, grid)
        volume = np.zeros(shape)
        volume[x : x + box.shape[0], y : y + box.shape[1], z : z + box.shape[2]] = box
        volumes.append(volume[::mirror])
    # Edges along aligned axes are rounded to 1e-4 grid voxels.
    np.testing.assert_allclose(volumes[1], volumes[0], rtol=0, atol=3e-4)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> FunctionalNetworkMapping:
    """Map in a connectome of five subjects, one of whom has no signal in some voxels."""
    series = synthetic.make_series(int(BRAIN.sum()))
    series[2][:, 5:17] = 3
    folder = synthetic.write_connectome_folder(tmp_path_factory.mktemp("connectome") / "GSP5", series, BRAIN)
    return FunctionalNetworkMapping(folder, t_threshold=2)


masks = st.builds(
    lambda seed, fraction: np.random.default_rng(seed).random(synthetic.SHAPE) < fraction,
    st.integers(0, 99),
    st.sampled_from([0.02, 0.1, 0.7]),
)


@settings(max_examples=10)
@given(st.lists(masks, min_size=1, max_size=7), st.integers(1, 8) | st.none(), st.integers(1, 3))
def test_any_batch_size_and_thread_count_give_the_same_maps(
    analysis: FunctionalNetworkMapping, voxels: list[Array], batch_size: int | None, n_threads: int
) -> None:
    """However many lesions go through the connectome together, on however many threads, each has its own maps."""
    together = map_all(analysis, voxels, batch_size, n_threads)
    for result, mask in zip(together, voxels, strict=True):
        (alone,) = map_all(analysis, [mask], 1, 1)
        for key, tolerance in {"correlation_map": (0, 1e-6), "t_map": (1e-4, 1e-4), "n_map": (0, 0)}.items():
            found, expected = (maps[key].get_fdata() for maps in (result, alone))
            np.testing.assert_allclose(found, expected, rtol=tolerance[0], atol=tolerance[1])


def map_all(
    analysis: FunctionalNetworkMapping, voxels: list[Array], batch_size: int | None, n_threads: int
) -> list[Mapping[str, Any]]:
    """Map lesions, and give the maps of each."""
    made = [LesionData.from_nifti(nib.Nifti1Image(mask.astype(np.uint8), synthetic.RADIOLOGICAL)) for mask in voxels]
    found = batch_process(made, analysis, lesion_batch_size=batch_size, n_threads=n_threads, show_progress=False)
    assert [lesion.error for lesion in found] == [None] * len(voxels)
    return [lesion.results[analysis.name] for lesion in found]
