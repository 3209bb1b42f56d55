"""Pictures of the reports: what they show, and the numbers beside them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_template
from nilearn.reporting import get_clusters_table
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from synthetic import write_mask

from bids_lacuna.report import figures
from bids_lacuna.report.figures import charts, clusters, colours, glass, mosaic, sheets, slices, volumes

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


@pytest.mark.parametrize(("n_stray", "are_apart"), [(1, True), (2, True), (3, False)])
def test_stray_voxels_do_not_stretch_a_lesion(tmp_path: Path, n_stray: int, are_apart: bool) -> None:
    """Less than a thousandth of the voxels, far from the others, is named and left out of the extent; more is not."""
    values = np.zeros(SHAPE, bool)
    values[60:80, 60:70, 40:50] = True
    values[2 : 2 + n_stray, 5, 6] = True
    shape = figures.read_lesion(write_mask(tmp_path / "stray.nii.gz", values, TWO_MM))
    x, y, z = nib.affines.apply_affine(TWO_MM, np.argwhere(values)).T
    apart = y == nib.affines.apply_affine(TWO_MM, (2, 5, 6))[1]
    part = ~apart if are_apart else np.full(apart.shape, True)
    assert (shape.n_voxels, shape.n_apart) == (2000 + n_stray, n_stray if are_apart else 0)
    assert shape.low_mm == tuple(axis[part].min() for axis in (x, y, z))
    assert shape.high_mm == tuple(axis[part].max() for axis in (x, y, z))
    assert (shape.apart_mm in set(zip(x[apart], y[apart], z[apart], strict=True))) == are_apart


def test_most_of_a_colour_bar_has_colours() -> None:
    """Hidden values take a fifth of the bar at most; its ends, thresholds and colours are those of the scale."""
    for threshold, n_hidden in ((0.8, 40), (0.1, 20)):
        scale = colours.Scale(colours.two_sided_colours(8), 1, "r", threshold, two_sided=True)
        values = sheets._bar_values(scale, 200)
        assert (values[0], values[-1], len(values)) == (1, -1, 200)
        assert (np.diff(values) < 0).all()
        assert np.count_nonzero(np.abs(values) <= threshold) == pytest.approx(n_hidden, abs=2)


def test_a_probability_map_is_drawn_above_its_threshold(tmp_path: Path) -> None:
    """Voxels below the threshold are not part of the shape, and sides are weighted by probabilities."""
    values = np.where(blob((-40, 20, 30), 5), 0.9, 0) + np.where(blob((40, 20, 30), 5), 0.3, 0)
    values += np.where(blob((0, -60, 30), 9), 0.1, 0)
    path = tmp_path / "probability.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.float32), TWO_MM), path)
    shape = figures.read_lesion(path, 0.2)
    assert (shape.low_mm, shape.high_mm) == ((-44, 16, 26), (44, 24, 34))
    assert shape.left_fraction == pytest.approx(0.75)


def pixels_of(path: Path) -> np.ndarray:
    """Read a picture: shape (rows, columns, 3)."""
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def panels(pixels: np.ndarray, row: int) -> list[np.ndarray]:
    """Cut the slices of a row of `draw_views` out of a picture: sagittal, coronal, axial."""
    widths, height = (279, 240, 240), 279
    top = (row + 1) * (mosaic.LABEL_PIXELS + mosaic.GAP_PIXELS) + row * (height + mosaic.LABEL_PIXELS)
    lefts = np.cumsum([0, *widths[:2]]) + mosaic.GAP_PIXELS * np.arange(3) + mosaic.GAP_PIXELS // 2
    return [pixels[top : top + height, left : left + width] for left, width in zip(lefts, widths, strict=True)]


def test_the_template_is_nilearn_s() -> None:
    """The template's values and positions at 2 mm equal those of nilearn's loader."""
    ours, theirs = volumes.template(), load_mni152_template(resolution=2)
    np.testing.assert_allclose(ours.values, theirs.get_fdata(), atol=1e-6)
    np.testing.assert_array_equal(ours.affine, theirs.affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_the_template_are_interpolated(axis: int) -> None:
    """Pixels are those of SciPy's linear interpolation at their positions, in the shades of the template."""
    plane, fine = slices.Plane(axis, 5.25, 1.5), volumes.fine_template()
    points = np.stack(np.broadcast_arrays(*plane.points), axis=-1)
    voxels = np.moveaxis(nib.affines.apply_affine(np.linalg.inv(fine.affine), points), -1, 0)
    expected = map_coordinates(fine.values, voxels, np.float32, order=1) / 255
    drawn = slices.background(plane).astype(int)
    brain = expected > slices.FAINTEST + 0.01
    levels = (drawn[brain] - colours.GREYS) / (colours.N_GREYS - 1)
    assert brain.mean() > 0.2
    np.testing.assert_allclose(levels, expected[brain], atol=0.51 / (colours.N_GREYS - 1))
    assert (drawn[expected < slices.FAINTEST - 0.01] == colours.WHITE).all()


def test_samples_are_the_nearest_voxels() -> None:
    """On an oblique grid, the value at a point is that of the voxel with the nearest index; outside it is given."""
    rng = np.random.default_rng(11)
    oblique = np.array([[-3, 0.4, 0, 20], [0.3, 0, 4.2, -30], [0, 5, 0.2, -10], [0, 0, 0, 1.0]])
    volume = figures.Volume(rng.standard_normal((5, 7, 11)), oblique)
    points = np.meshgrid(np.arange(0, 20, 1.7), np.arange(-35, 10, 2.3), np.arange(-14, 25, 3.1), indexing="ij")
    indices = np.rint(nib.affines.apply_affine(np.linalg.inv(oblique), np.stack(points, axis=-1))).astype(int)
    inside = ((indices >= 0) & (indices < volume.values.shape)).all(axis=-1)
    expected = np.full(inside.shape, 99.0)
    expected[inside] = volume.values[tuple(indices[inside].T)]
    assert 0.2 < inside.mean() < 0.9
    np.testing.assert_array_equal(volume.sample(points, outside=99), expected)
    one = tuple(np.argwhere(inside)[17])
    assert volume.at([axis[one] for axis in points]) == expected[one]
    assert np.isnan(volume.at((0, 0, 99)))


@pytest.mark.parametrize("direction", [1, -1])
def test_a_point_between_two_voxels_is_in_one_of_them(direction: int) -> None:
    """It has the value of the voxel with the higher index, whether that is even or odd; the viewer does the same."""
    affine = nib.affines.from_matvec(np.diag([2.0 * direction, 2, 2]))
    volume = figures.Volume(np.arange(5.0 * 7 * 11).reshape(5, 7, 11), affine)
    for x, y, z in ((1, 2, 3), (2, 3, 4)):
        edge = nib.affines.apply_affine(affine, np.array([x, y, z]) - 0.5)
        assert volume.at(edge) == volume.values[x, y, z]


@pytest.mark.parametrize("affine", [FOUR_MM, TWO_MM])
def test_voxels_inside_a_lesion(lesion: figures.LesionShape, affine: np.ndarray) -> None:
    """A voxel of another grid is inside if its centre lies in a voxel of the lesion."""
    shape = (45, 54, 45)
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(TWO_MM), points)).astype(int)
    expected = np.zeros(shape, bool)
    there = ((voxels >= 0) & (voxels < SHAPE)).all(axis=-1)
    expected[there] = blob((-40, 20, 30), 9)[tuple(voxels[there].T)]
    assert affine is TWO_MM or expected.any()
    np.testing.assert_array_equal(figures.Volume(np.zeros(shape), affine).inside(lesion), expected)


@pytest.mark.parametrize(("name", "anchors"), [("YlOrRd", colours.HOT), ("Blues", colours.COLD)])
def test_colours_are_matplotlib_s(name: str, anchors: tuple[str, ...]) -> None:
    """Colours between the anchors equal those of matplotlib's map, within a step of its table."""
    places = np.linspace(0, 1, 97)
    expected = 255 * mpl.colormaps[name](places)[:, :3]
    np.testing.assert_allclose(colours.blend(anchors, places).astype(float), expected, atol=2.5)


def test_a_lesion_is_drawn_on_the_left_and_hatched_where_the_map_is_undefined(
    tmp_path: Path, lesion: figures.LesionShape
) -> None:
    """In all slices, the lesion is left of the middle and in front; only its undefined upper part is hatched."""
    values = np.zeros(SHAPE, np.float32)
    values[:, :, 52:] = np.nan  # above z = 31 mm
    path = tmp_path / "lesion.png"
    figures.draw_lesion(path, lesion, figures.Volume(values, TWO_MM))
    pixels = pixels_of(path)[: -mosaic.LABEL_PIXELS]
    red = (np.abs(pixels - np.array([215, 25, 28])).max(axis=-1) < 12).nonzero()
    cell, across = red[1] // mosaic.CELL_PIXELS, red[1] % mosaic.CELL_PIXELS
    assert set(cell) == set(range(7))
    assert (across < mosaic.CELL_PIXELS / 2).all()
    assert (red[0] < pixels.shape[0] / 2).all()
    for number, cut in enumerate(mosaic.lesion_cuts(lesion)):
        inside = lesion.mask.sample(slices.Plane(2, cut).points)
        left = number * mosaic.CELL_PIXELS + (mosaic.CELL_PIXELS - inside.shape[1]) // 2
        white = (pixels[:, left : left + inside.shape[1]][inside] == 255).all(axis=-1).mean()
        assert inside.any()
        assert 0.3 < white < 0.7 if cut > 31 else white == 0


def test_the_slices_of_a_lesion(lesion: figures.LesionShape, tmp_path: Path) -> None:
    """The fourth of seven slices is at the centre, the outer ones at the ends; a tiny lesion's do not coincide."""
    assert mosaic.lesion_cuts(lesion) == (22, 25, 27, 30, 33, 35, 38)
    one_voxel = np.zeros(SHAPE)
    one_voxel[60, 60, 60] = 1
    tiny = figures.read_lesion(write_mask(tmp_path / "tiny.nii.gz", one_voxel, TWO_MM))
    assert mosaic.lesion_cuts(tiny) == (42, 44, 46, 48, 50, 52, 54)


def test_one_voxel_on_the_left(tmp_path: Path) -> None:
    """A map's and a lesion's single voxel at x = -32 mm are left of the middle, at their place, in every slice."""
    values = np.zeros(SHAPE, np.float32)
    values[61, 50, 45] = 1
    place = (-32.0, -26.0, 18.0)
    lesion = figures.read_lesion(write_mask(tmp_path / "one.nii.gz", values, TWO_MM))
    assert lesion.centre_mm == place
    assert lesion.left_fraction == 1
    volume = figures.Volume(values, TWO_MM)
    path = tmp_path / "r.png"
    figures.draw_views(path, volume, figures.two_sided_scale(volume, 0.5, "r"), [mosaic.Row("here", place)], lesion)
    pixels = pixels_of(path)
    hot, green = [128, 0, 38], [0, 255, 0]
    for axis, panel in enumerate(panels(pixels, 0)):
        across, up = [other for other in range(3) if other != axis]
        margin = (len(panel) - len(slices.Plane(axis, 0, 1.5).points[up])) // 2
        for colour in (hot, green):
            rows, columns = (panel == colour).all(axis=-1).nonzero()
            assert rows.size
            assert slices.BOX_MM[across][0] + columns.mean() / 1.5 == pytest.approx(place[across], abs=0.7)
            assert slices.BOX_MM[up][1] - (rows.mean() - margin) / 1.5 == pytest.approx(place[up], abs=0.7)
        # The four black lines of the mark point at it.
        row, column = (
            margin + (slices.BOX_MM[up][1] - place[up]) * 1.5,
            (place[across] - slices.BOX_MM[across][0]) * 1.5,
        )
        rows, columns = (panel[:, 20:-20] == 0).all(axis=-1).nonzero()
        assert rows.size
        assert rows.mean() == pytest.approx(row, abs=1.1)
        assert columns.mean() + 20 == pytest.approx(column, abs=1.1)
    # The glass brain has it in the left half, and left of the middle from the back and from above.
    views = {
        view.name: glass.draw_view(view, glass.sample_on_template(volume), figures.two_colour_scale())
        for view in glass.VIEWS
    }
    seen = {name: (picture >= colours.FIRST_COLOUR).nonzero()[1] for name, picture in views.items()}
    assert seen["left half, from the left"].size
    assert not seen["right half, from the right"].size
    assert (seen["from the back"] < 80).all()
    assert (seen["from above"] < 80).all()
    # It lies behind the middle of the head: on the right if seen from the left.
    assert (seen["left half, from the left"] > 186 / 2).all()


@pytest.mark.parametrize("size", [0.5, 1.0])
@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5])
def test_a_lesion_smaller_than_the_pixels_is_drawn(tmp_path: Path, size: float, shift: float) -> None:
    """A single voxel is red in the middle slice and in each slice of its tile, wherever it lies between pixels."""
    lesions = []
    for index in (7, 8):
        one = np.zeros((13, 15, 17))
        one[index, index, index] = 1
        affine = nib.affines.from_matvec(np.eye(3) * size, np.array([-30, -20, 10]) + shift)
        lesions.append(figures.read_lesion(write_mask(tmp_path / f"{index}.nii.gz", one, affine)))
    for lesion in lesions:
        figures.draw_lesion(tmp_path / "lesion.png", lesion)
        red = (pixels_of(tmp_path / "lesion.png") == [215, 25, 28]).all(axis=-1).nonzero()[1]
        assert 3 in red // mosaic.CELL_PIXELS
    width, height = figures.draw_tiles(tmp_path / "tiles.png", lesions)
    red_rows, red_columns = (pixels_of(tmp_path / "tiles.png") == [215, 25, 28]).all(axis=-1).nonzero()
    cells = {(row // height, column // (width // 3)) for row, column in zip(red_rows, red_columns, strict=True)}
    assert cells == {(row, column) for row in range(2) for column in range(3)}


def test_a_slice_just_below_zero_is_at_0() -> None:
    """Rounded, a slice at -0.4 mm is at 0 mm, not at minus 0."""
    labels = [mosaic._panel(slices.Plane(2, cut), np.zeros((3, 5))).label for cut in (-0.4, -0.6)]
    assert labels == ["z = 0", "z = \N{MINUS SIGN}1"]


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
    found = figures.find_clusters(figures.Volume(np.asfortranarray(values), FOUR_MM), lesion)
    for sign, listed in zip((1, -1), found, strict=True):
        signed = np.where(outside, sign * values, 0)
        table = get_clusters_table(nib.Nifti1Image(signed, FOUR_MM), np.quantile(signed[outside], 0.98))
        table = table[table["Cluster Size (mm3)"] != ""][: clusters.N_CLUSTERS]
        np.testing.assert_array_equal([cluster.peak_mm for cluster in listed], table[["X", "Y", "Z"]])
        np.testing.assert_allclose([sign * cluster.value for cluster in listed], table["Peak Stat"], rtol=1e-6)
        sizes = table["Cluster Size (mm3)"].astype(float)
        np.testing.assert_allclose([cluster.size_mm3 for cluster in listed], sizes)


def test_clusters_have_at_least_three_voxels() -> None:
    """Rows of three and four voxels are listed, those of one and two are not, although they are stronger."""
    values = np.zeros((11, 13, 17))
    for n in range(1, 5):
        values[:n, 3 * n, 5] = 9 - n
        values[2, 3 * n, 9 : 9 + n] = -(9 - n)
    positive, negative = figures.find_clusters(figures.Volume(values, TWO_MM), None)
    assert [(cluster.value, round(cluster.size_mm3)) for cluster in positive] == [(6, 24), (5, 32)]
    assert [(cluster.value, round(cluster.size_mm3)) for cluster in negative] == [(-6, 24), (-5, 32)]


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
    assert (facts.n_above, facts.n_below) == (2, 1)
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
    figures.draw_map(path, figures.Volume(values, TWO_MM), 5, "t", ("a title", "a sentence"))
    width = mosaic.CELL_PIXELS * mosaic.N_CUTS
    # Only the axial row.
    pixels = pixels_of(path)[-(186 + mosaic.LABEL_PIXELS) :, :width]
    red, green, blue = np.moveaxis(pixels, -1, 0)
    across = np.broadcast_to(np.arange(width) % mosaic.CELL_PIXELS - mosaic.CELL_PIXELS / 2, red.shape)
    reddish, bluish = red - blue > 60, blue - red > 60
    assert reddish.any()
    assert bluish.any()
    assert (across[reddish] > 20).all()
    assert (across[bluish] < -20).all()
    assert not (green - red > 60).any()
    region = np.zeros(SHAPE, bool)
    region[blob((40, -18, 12), 16)] = True
    figures.draw_map(
        path, figures.Volume(values, TWO_MM), 5, "t", ("a title", "a sentence"), figures.Volume(region, TWO_MM)
    )
    outlined = pixels_of(path)[-(186 + mosaic.LABEL_PIXELS) :, :width]
    green = outlined[..., 1] - outlined[..., 0] > 60
    assert green.any()
    assert (across[green] > 20).all()
    np.testing.assert_array_equal(outlined[~green], pixels[~green])


def test_a_long_sentence_above_a_map_is_whole(tmp_path: Path) -> None:
    """It continues in a second line, within the picture and above the slices, which stay as they are."""
    values = np.zeros(SHAPE, np.float32)
    values[blob((40, -18, 12), 12)] = 8
    drawn = []
    for sentence in ("a sentence", "a sentence of many words " * 12):
        figures.draw_map(tmp_path / "t.png", figures.Volume(values, TWO_MM), 5, "t", ("a title", sentence))
        drawn.append(pixels_of(tmp_path / "t.png"))
    short, long = drawn
    assert len(long) == len(short) + mosaic.LINE_PIXELS
    slices = long[mosaic.TITLE_PIXELS + mosaic.LINE_PIXELS :], short[mosaic.TITLE_PIXELS :]
    width = mosaic.CELL_PIXELS * mosaic.N_CUTS
    np.testing.assert_array_equal(slices[0][:, :width], slices[1][:, :width])
    written = (long[: mosaic.TITLE_PIXELS + mosaic.LINE_PIXELS] < 128).any(axis=-1)
    assert written[mosaic.TITLE_PIXELS :].any()
    assert not written[:, -mosaic.GAP_PIXELS :].any()


@pytest.mark.parametrize("two_sided", [True, False])
def test_a_scale_s_colours(two_sided: bool) -> None:
    """Values up to the threshold and undefined ones have no colour; others have the colour of their strength."""
    n = 10 if two_sided else 5
    scale = colours.Scale(np.zeros((n, 3), np.uint8), 7, "t", 2, two_sided)
    values = np.array([np.nan, 0, 2, -2, 2.5, 3.5, 6.5, 7, 99])
    first = colours.FIRST_COLOUR + (5 if two_sided else 0)
    np.testing.assert_array_equal(scale.indices(values), [0, 0, 0, 0, *(first + np.array([0, 1, 4, 4, 4]))])
    negative = first - 1 - np.array([0, 1, 4, 4, 4]) if two_sided else np.zeros(5)
    np.testing.assert_array_equal(scale.indices(-values)[4:], negative)


def test_a_colour_bar_has_the_colours_of_the_values_beside_it() -> None:
    """The highest value is at the top, hidden ones are a grey fifth; a tick is beside the colour of its value."""
    scale = colours.Scale(colours.two_sided_colours(50), 8, "t", 2, two_sided=True)
    sheet = sheets.Sheet(200, 500)
    sheet.draw_colour_bar(scale, 24)
    bar = sheet.pixels[:, 34]
    rows = (bar >= colours.HIDDEN).nonzero()[0]
    assert bar[rows[0]] == colours.FIRST_COLOUR + 99
    assert bar[rows[-1]] == colours.FIRST_COLOUR
    assert bar[(rows[0] + rows[-1]) // 2] == colours.HIDDEN
    ticks = (sheet.pixels[:, 46] == colours.BLACK).nonzero()[0]
    values = np.array([8, 5, 2, -2, -5, -8])
    np.testing.assert_allclose(ticks, 250 - np.array([140, 84, 28, -28, -84, -140]), atol=1)
    for tick, index in zip(ticks[[1, 4]], scale.indices(values[[1, 4]]), strict=True):
        assert abs(int(bar[tick]) - int(index)) <= 1
    labels = [sheets._label(scale, value) for value in (8, 5, -8)]
    assert labels == ["≥ 8", "5", "≤ \N{MINUS SIGN}8"]


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
    axial = pixels[-(186 + mosaic.LABEL_PIXELS) :, : mosaic.CELL_PIXELS * mosaic.N_CUTS]
    red, green, blue = np.moveaxis(axial, -1, 0)
    across = np.broadcast_to(np.arange(axial.shape[1]) % mosaic.CELL_PIXELS - mosaic.CELL_PIXELS / 2, red.shape)
    dark, pale = (red > 90) & (green < 30), (red > 240) & (green > 190) & (blue < 170)
    assert dark.any()
    assert pale.any()
    assert (across[dark] > 20).all()
    assert (across[pale] < -20).all()


def test_the_group_s_page_shows_whole_tiles(tmp_path: Path, lesion: figures.LesionShape) -> None:
    """A tile is as high as the part of the sheet that the page shows; the lesion is on the left in front views."""
    width, height = figures.draw_tiles(tmp_path / "tiles.png", [lesion, lesion])
    style = (resources.files("bids_lacuna.report") / "templates/style.css").read_text()
    assert f".tiles img {{ height: {height}px;" in style
    pixels = pixels_of(tmp_path / "tiles.png")
    assert pixels.shape == (2 * height, width, 3)
    np.testing.assert_array_equal(pixels[:height], pixels[height:])
    across = (pixels == [215, 25, 28]).all(axis=-1).nonzero()[1]
    cell = width // 3
    assert set(across // cell) == {0, 1, 2}
    assert (across[across >= cell] % cell < cell / 2).all()


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
