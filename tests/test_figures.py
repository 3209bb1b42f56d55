"""Pictures of the reports: what they show, and the numbers beside them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.reporting import get_clusters_table
from PIL import Image
from scipy.ndimage import gaussian_filter
from synthetic import write_mask

from bids_lacuna.report import figures
from bids_lacuna.report.figures import charts, mosaic, volumes

TWO_MM = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
"""Stored from right to left: code that ignores the affine draws the brain mirrored."""

SHAPE = (91, 109, 91)


FOUR_MM = np.array([[-4.0, 0, 0, 90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])


def blob(
    centre_mm: tuple[float, float, float],
    radius_mm: float,
    affine: np.ndarray = TWO_MM,
    shape: tuple[int, ...] = SHAPE,
) -> np.ndarray:
    """Make a ball: boolean."""
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return np.linalg.norm(points - np.array(centre_mm), axis=-1) <= radius_mm


@pytest.fixture
def lesion(tmp_path: Path) -> figures.LesionShape:
    """Read a lesion on the left, above the middle and in front of it."""
    return figures.read_lesion(write_mask(tmp_path / "lesion.nii.gz", blob((-40, 20, 30), 9), TWO_MM))


def test_a_lesion_is_placed_in_world_coordinates(lesion: figures.LesionShape) -> None:
    """Centre, extent and side are those of the ball in mm, whatever the order of storage."""
    assert lesion.centre_mm == (-40, 20, 30)
    assert lesion.low_mm == (-48, 12, 22)
    assert lesion.high_mm == (-32, 28, 38)
    assert lesion.left_fraction == 1


def test_a_lesion_across_the_midline_has_a_fraction_on_each_side(tmp_path: Path) -> None:
    """Voxels at x = 0 count for neither side: a ball at 0 mm is half on the left, a ball at -2 mm mostly."""
    x = nib.affines.apply_affine(TWO_MM, np.moveaxis(np.indices(SHAPE), 0, -1))[..., 0]
    for centre, bounds in ((0, (0.5, 0.5)), (-2, (0.75, 0.9))):
        ball = blob((centre, 0, 0), 7)
        shape = figures.read_lesion(write_mask(tmp_path / "middle.nii.gz", ball, TWO_MM))
        left, right = (np.count_nonzero(ball & side) for side in (x < 0, x > 0))
        assert shape.left_fraction == pytest.approx(left / (left + right))
        assert bounds[0] <= shape.left_fraction <= bounds[1]


def test_a_probability_map_is_drawn_above_its_threshold(tmp_path: Path) -> None:
    """Voxels below the threshold are not part of the shape, and sides are weighted by probabilities."""
    values = np.where(blob((-40, 20, 30), 5), 0.9, 0) + np.where(blob((40, 20, 30), 5), 0.3, 0)
    values += np.where(blob((0, -60, 30), 9), 0.1, 0)
    path = tmp_path / "probability.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.float32), TWO_MM), path)
    shape = figures.read_lesion(path, 0.2)
    assert (shape.low_mm, shape.high_mm) == ((-44, 16, 26), (44, 24, 34))
    assert shape.left_fraction == pytest.approx(0.75)


def test_left_is_drawn_on_the_left(tmp_path: Path, lesion: figures.LesionShape) -> None:
    """In each coronal and axial slice, the lesion is left of the middle, and above or in front."""
    path = tmp_path / "lesion.png"
    figures.draw_lesion(path, lesion)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red = (np.abs(pixels - np.array([215, 25, 28])).max(axis=-1) < 12).nonzero()
    heights = [160, 160, 192]
    bottoms = np.cumsum([height + mosaic.LABEL_PIXELS for height in heights])
    plane = np.searchsorted(bottoms, red[0], side="right")
    assert set(plane) == {0, 1, 2}
    across = red[1] % mosaic.PANEL_PIXELS - mosaic.PANEL_PIXELS / 2
    assert (across[plane > 0] < 0).all()
    # In a sagittal slice, the front is on the right; its middle is at y = -16.
    assert (across[plane == 0] > 0).all()
    for row, (height, bottom) in enumerate(zip(heights, bottoms, strict=True)):
        from_top = red[0][plane == row] - (bottom - height - mosaic.LABEL_PIXELS)
        assert (from_top < height / 2).all()


def test_the_middle_slices_pass_through_the_lesion(lesion: figures.LesionShape) -> None:
    """The fourth of seven slices is at the centre, and the outer ones are at the lesion's ends or beyond."""
    for cuts, centre, low, high in zip(
        mosaic.lesion_cuts(lesion), lesion.centre_mm, lesion.low_mm, lesion.high_mm, strict=True
    ):
        assert cuts[3] == centre
        assert cuts[0] <= low + 1
        assert cuts[-1] >= high - 1


def test_threshold_leaves_a_tenth() -> None:
    """A tenth of the defined voxels exceeds the threshold in absolute value, up to its rounding."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal(SHAPE)
    values[:20] = np.nan
    threshold = figures.strongest_tenth_threshold(figures.Volume(values, TWO_MM))
    # A tenth of a normal distribution is beyond 1.645.
    assert threshold in (1.6, 1.7)
    assert (np.abs(values[20:]) > threshold).mean() == pytest.approx(0.1, rel=0.15)
    assert np.isnan(figures.strongest_tenth_threshold(figures.Volume(np.full((2, 3, 5), np.nan), TWO_MM)))


def test_clusters_are_nilearn_s_outside_the_lesion(lesion: figures.LesionShape) -> None:
    """Peaks and sizes equal those in nilearn's table; clusters inside the lesion are not listed."""
    values = gaussian_filter(np.random.default_rng(7).standard_normal((45, 54, 45)), 2)
    outside = ~blob((-40, 20, 30), 9, FOUR_MM, values.shape)
    values[~outside] = 9
    positive, negative = figures.find_clusters(figures.Volume(values, FOUR_MM), lesion)
    for sign, clusters in ((1, positive), (-1, negative)):
        signed = np.where(outside, sign * values, 0)
        table = get_clusters_table(nib.Nifti1Image(signed, FOUR_MM), np.quantile(signed[outside], 0.98))
        table = table[table["Cluster Size (mm3)"] != ""][: volumes.N_CLUSTERS]
        np.testing.assert_array_equal([cluster.peak_mm for cluster in clusters], table[["X", "Y", "Z"]])
        np.testing.assert_allclose([sign * cluster.value for cluster in clusters], table["Peak Stat"], rtol=1e-6)
        sizes = table["Cluster Size (mm3)"].astype(float)
        np.testing.assert_allclose([cluster.size_mm3 for cluster in clusters], sizes)


def test_a_missing_sign_has_no_clusters() -> None:
    """A map without a negative voxel has no negative clusters, and an undefined map has none at all."""
    positive, negative = figures.find_clusters(figures.Volume(np.full((5, 7, 11), 0.3), TWO_MM), None)
    assert (positive, negative) == ([], [])
    assert figures.find_clusters(figures.Volume(np.full((5, 7, 11), np.nan), TWO_MM), None) == ([], [])


def test_numbers_beside_a_map() -> None:
    """Extremes, their positions, and counts beyond the threshold are those of the array; NaN is not counted."""
    values = np.zeros((5, 7, 11))
    values[0] = np.nan
    values[1, 2, 3], values[4, 6, 10], values[2, 2, 2] = 7, -11, 3
    facts = figures.measure_map(figures.Volume(values, TWO_MM), 2.5)
    assert (facts.n_above, facts.n_below, facts.n_defined) == (2, 1, 4 * 77)
    assert (facts.maximum, facts.minimum) == (7, -11)
    assert facts.maximum_mm == (88, -122, -66)
    assert facts.minimum_mm == (82, -114, -52)


def test_a_map_s_colours_show_its_sign(tmp_path: Path) -> None:
    """Positive voxels are red, negative ones blue, each on its side; weaker voxels are not drawn."""
    values = np.zeros(SHAPE, np.float32)
    values[blob((40, -18, 12), 12)] = 8
    values[blob((-40, -18, 12), 12)] = -8
    values[blob((0, -18, 48), 12)] = 4.9
    path = tmp_path / "t.png"
    figures.draw_map(path, figures.Volume(values, TWO_MM), 5, "t", None)
    width = mosaic.PANEL_PIXELS * mosaic.N_CUTS
    # Only the axial row.
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)[-(192 + mosaic.LABEL_PIXELS) :, :width]
    red, green, blue = np.moveaxis(pixels, -1, 0)
    across = np.broadcast_to(np.arange(width) % mosaic.PANEL_PIXELS - mosaic.PANEL_PIXELS / 2, red.shape)
    reddish, bluish = red - blue > 60, blue - red > 60
    assert reddish.any()
    assert bluish.any()
    assert (across[reddish] > 20).all()
    assert (across[bluish] < -20).all()
    assert not (green - red > 60).any()


def test_an_overlap_is_coloured_above_0(tmp_path: Path) -> None:
    """A map of fractions is dark near 1, pale near 0, and shows the template at 0."""
    values = np.full(SHAPE, np.nan, np.float32)
    values[blob((0, -18, 12), 90)] = 0
    values[blob((40, -18, 12), 12)] = 1
    values[blob((-40, -18, 12), 12)] = 0.05
    path = tmp_path / "overlap.png"
    figures.draw_overlap(
        path, figures.Volume(values, TWO_MM), (0, 0.5, 1), "fraction", str, ("a title", "a sentence")
    )
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    axial = pixels[-(192 + mosaic.LABEL_PIXELS) :, : mosaic.PANEL_PIXELS * mosaic.N_CUTS]
    red, green, blue = np.moveaxis(axial, -1, 0)
    across = np.broadcast_to(np.arange(axial.shape[1]) % mosaic.PANEL_PIXELS - mosaic.PANEL_PIXELS / 2, red.shape)
    dark, pale = (red > 90) & (green < 30), (red > 240) & (green > 190) & (blue < 170)
    assert dark.any()
    assert pale.any()
    assert (across[dark] > 20).all()
    assert (across[pale] < -20).all()


def test_a_matrix_is_drawn_in_the_order_given(tmp_path: Path) -> None:
    """The first row is at the top; 1 is red, -1 blue, and 0 nearly white."""
    path = tmp_path / "similarity.png"
    matrix = np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 1]])
    charts.draw_similarity(path, matrix, ["a", "b", "c"], ("a title", "a sentence"))
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red, _, blue = np.moveaxis(pixels, -1, 0)
    rows, columns = np.nonzero(red - blue > 60)
    edge = (rows.max() - rows.min() + 1) / 3
    middles = ((np.arange(3) + 0.5) * edge).astype(int)
    tints = (red - blue)[np.ix_(rows.min() + middles, columns.min() + middles)]
    np.testing.assert_array_equal(np.where(np.abs(tints) > 60, np.sign(tints), 0), matrix)


def test_a_large_matrix_is_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """To fit five rows into three cells, two pairs are averaged, and the last row stays as it is."""
    monkeypatch.setattr(charts, "N_CELLS", 3)
    matrix = np.arange(25.0).reshape(5, 5)
    expected = [[3, 5, 6.5], [13, 15, 16.5], [20.5, 22.5, 24]]
    np.testing.assert_array_equal(charts._coarsen(matrix), expected)
    np.testing.assert_array_equal(charts._coarsen(matrix[:3, :3]), matrix[:3, :3])
