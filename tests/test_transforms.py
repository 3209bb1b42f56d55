"""Chains of transforms: masks through them against SimpleITK's own fine resampling, directions by hand, formats."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name
from scipy import ndimage

from bids_lacuna.grid import Grid
from bids_lacuna.lesion import LesionData, LesionOutsideGrid, load_lesion
from bids_lacuna.transforms import TransformChain, TransformFile, check_format
from bids_lacuna.transforms.resampling import VoxelFinder, _compose, weigh_through

Array = np.ndarray

TRUTH_MM = 0.125

GRID_SHAPE = (13, 11, 12)

MASK_SHAPE = (24, 27, 22)


def affine_of(sizes: tuple[float, float, float], centre: Array, shape: tuple[int, ...], turn: float = 0) -> Array:
    """Return an affine with voxels of these sizes around a centre in RAS, turned about an oblique axis."""
    rotation = nib.eulerangles.euler2mat(turn, turn / 2, -turn)
    matrix = rotation @ np.diag(sizes)
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = centre - matrix @ ((np.array(shape) - 1) / 2)
    return affine


def make_affine() -> sitk.AffineTransform:
    """Return points' transform with a rotation about an oblique axis, some scale and a strong left-right part."""
    euler = sitk.Euler3DTransform([3.0, -5.0, 7.0], 0.35, -0.2, 0.15, [38.0, -6.0, 4.0])
    matrix = np.reshape(euler.GetMatrix(), (3, 3)) @ np.diag([1.1, 0.95, 1.05])
    return sitk.AffineTransform(matrix.ravel().tolist(), euler.GetTranslation(), euler.GetFixedParameters()[:3])


def make_field() -> sitk.DisplacementFieldTransform:
    """Return a smooth displacement field of up to 15 mm, on an oblique grid of its own."""
    shape = (22, 24, 20)
    x, y, z = (axis / 4 for axis in np.indices(shape))
    field = np.stack([9 * np.sin(x + 0.4), 8 * np.cos(y) * np.sin(z / 2), 8 * np.sin(z + x / 3)], axis=-1)
    image = sitk.GetImageFromArray(field.transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing([6.0, 5.0, 7.0])
    image.SetOrigin([-75.0, -60.0, -70.0])
    image.SetDirection(np.ravel(nib.eulerangles.euler2mat(0.1, 0.05, 0)).tolist())
    return sitk.DisplacementFieldTransform(image)


def composite(*transforms: sitk.Transform) -> sitk.CompositeTransform:
    """Return a composite; ITK applies the last one first."""
    joined = sitk.CompositeTransform(3)
    for transform in transforms:
        joined.AddTransform(transform)
    return joined


def rewrite(path: Path, dtype: str, key: str) -> None:
    """Store the parameters of an .h5 file as another type, below another spelling of their key."""
    with h5py.File(path, "r+") as file:
        for group in file["TransformGroup"].values():
            for name in ("TransformParameters", "TranformParameters"):
                if name in group:
                    parameters = group[name][()].astype(dtype)
                    del group[name]
                    group[key] = parameters


@dataclass(frozen=True)
class Case:
    """A chain's files, and affines of grid and mask."""

    chain: TransformChain
    points: sitk.Transform
    grid: Grid
    mask: Array
    affine: Array


def make_lesion() -> Array:
    """Return a lesion of more than 1 ml without any symmetry: an ellipsoid with a box at one side."""
    x, y, z = np.indices(MASK_SHAPE)
    ellipsoid = ((x - 10) / 6.2) ** 2 + ((y - 12) / 8.4) ** 2 + ((z - 10) / 5.3) ** 2 <= 1
    ellipsoid[14:20, 5:11, 9:16] = True
    return ellipsoid


def make_case(tmp_path: Path, kind: str) -> Case:
    """Write the transforms of a kind, and put grid and mask where the chain joins them."""
    affine, field = make_affine(), make_field()
    files: list[sitk.Transform] = {
        "affine": [affine],
        "field": [field],
        "affine and field": [composite(affine, field)],
        "field and affine": [composite(field, affine)],
        "two files": [composite(field), affine],
    }[kind]
    names = {"affine": ["a.txt"], "field": ["f.nii.gz"], "two files": ["f.h5", "a.mat"]}.get(kind, ["c.h5"])
    spaces = ["T1w", "MNI152NLin2009cAsym", "MNI152NLin6Asym"]
    chained = []
    for number, (transform, name) in enumerate(zip(files, names, strict=True)):
        path = tmp_path / name
        if name.endswith(".nii.gz"):
            sitk.WriteImage(sitk.Cast(make_field().GetDisplacementField(), sitk.sitkVectorFloat32), str(path))
        else:
            sitk.WriteTransform(transform, str(path))
        chained.append(TransformFile(path, spaces[number], spaces[number + 1]))
    if kind == "affine and field":
        rewrite(tmp_path / "c.h5", "<f4", "TranformParameters")
    if kind == "field and affine":
        rewrite(tmp_path / "c.h5", "<f8", "TransformParameters")
    points = composite(*files)
    centre = np.array([-21.0, 8.0, 13.0])
    sizes = (-2.0, 2.5, 2.0) if kind in ("affine", "two files") else (2.0, 2.5, 2.0)
    grid = Grid(np.ones(GRID_SHAPE, bool), affine_of(sizes, centre, GRID_SHAPE, 0.2 if kind == "field" else 0))
    in_mask = np.array(points.TransformPoint((centre * [-1, -1, 1]).tolist())) * [-1, -1, 1]
    mask_sizes = (1.0, 1.0, -1.2) if kind == "affine and field" else (-1.0, 1.0, 1.0)
    return Case(
        TransformChain(tuple(chained)),
        points,
        grid,
        make_lesion(),
        affine_of(mask_sizes, in_mask, MASK_SHAPE, 0.15),
    )


def truth(case: Case, tmp_path: Path, points: sitk.Transform) -> Array:
    """Return what SimpleITK makes of the same images on a grid of at most 0.125 mm, read from NIfTI by itself."""
    paths = tmp_path / "grid.nii.gz", tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(case.grid.mask.astype(np.uint8), case.grid.affine), paths[0])
    nib.save(nib.Nifti1Image(case.mask.astype(np.uint8), case.affine), paths[1])
    grid, mask = (sitk.ReadImage(str(path)) for path in paths)
    counts = np.ceil(np.array(grid.GetSpacing()) / TRUTH_MM - 1e-6).astype(int)
    fine = (np.array(grid.GetSpacing()) / counts).tolist()
    first = grid.TransformContinuousIndexToPhysicalPoint((-0.5 + 0.5 / counts).tolist())
    size = (np.array(grid.GetSize()) * counts).tolist()
    pieces = sitk.Resample(mask, size, points, sitk.sitkNearestNeighbor, first, fine, grid.GetDirection())
    (nx, ny, nz), (kx, ky, kz) = GRID_SHAPE, counts
    blocks = sitk.GetArrayViewFromImage(pieces).reshape(nz, kz, ny, ky, nx, kx)
    return blocks.mean(axis=(1, 3, 5), dtype=float).transpose()


def whole(case: Case) -> tuple[Array, float]:
    """Return the weights of all voxels of the grid, and the lesion's volume there."""
    # Masks are cropped when they are read.
    low, high = np.argwhere(case.mask).min(axis=0), np.argwhere(case.mask).max(axis=0) + 1
    box = case.mask[tuple(map(slice, low, high))]
    affine = case.affine @ nib.affines.from_matvec(np.eye(3), low)
    corner, weights, volume_mm3 = weigh_through(case.chain, box, affine, case.grid)
    everywhere = np.zeros(case.grid.shape)
    everywhere[tuple(slice(a, a + n) for a, n in zip(corner, weights.shape, strict=True))] = weights
    return everywhere, volume_mm3


KINDS = ["affine", "field", "affine and field", "field and affine", "two files"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_fine_resampling(kind: str, tmp_path: Path) -> None:
    """On flipped and oblique grids, weights and volume agree with SimpleITK's resampling at 0.125 mm."""
    case = make_case(tmp_path, kind)
    expected = truth(case, tmp_path, case.points)
    weights, volume_mm3 = whole(case)
    border = (expected > 0) & (expected < 1)
    assert border.sum() > 100
    error = weights - expected
    assert np.sqrt((error[border] ** 2).mean()) <= 0.02
    assert np.abs(error).max() <= 0.1
    expected_mm3 = expected.sum() * case.grid.voxel_volume_mm3
    assert expected_mm3 > 900
    assert weights.sum() * case.grid.voxel_volume_mm3 == pytest.approx(expected_mm3, rel=0.01)
    assert volume_mm3 == pytest.approx(expected_mm3, rel=0.01)


def map_by_numpy(path: Path, points: Array) -> Array:
    """Map points in RAS, shape (n, 3), through an affine and a field, as their HDF5 file describes them."""
    with h5py.File(path) as file:
        group = file["TransformGroup"]
        parts = []
        for number in range(1, len(group)):
            # Old files spell the keys without an s.
            fixed, parameters = (
                next(item[()] for name, item in group[str(number)].items() if name.endswith(f"form{end}"))
                for end in ("FixedParameters", "Parameters")
            )
            parts.append((fixed, parameters.astype(float)))
    x = points * [-1, -1, 1]
    for fixed, parameters in reversed(parts):
        if len(parameters) == 12:
            x = (x - fixed) @ parameters[:9].reshape(3, 3).T + parameters[9:] + fixed
            continue
        size, origin, spacing = fixed[:3].astype(int), fixed[3:6], fixed[6:9]
        index = (x - origin) @ np.linalg.inv(fixed[9:].reshape(3, 3) @ np.diag(spacing)).T
        field = parameters.reshape(*size[::-1], 3)
        moves = [
            ndimage.map_coordinates(axis, index.T[::-1], order=1, mode="nearest") for axis in np.moveaxis(field, 3, 0)
        ]
        inside = ((index >= -0.5) & (index < size - 0.5)).all(axis=1)
        x = x + np.stack(moves, axis=1) * inside[:, np.newaxis]
    return x * [-1, -1, 1]


@pytest.mark.parametrize("kind", ["affine and field", "field and affine"])
def test_points_are_those_of_the_file(kind: str, tmp_path: Path) -> None:
    """Points go where NumPy puts them by the parameters in the file: LPS, the last first, 0 beyond fields."""
    case = make_case(tmp_path, kind)
    points = np.random.default_rng(1).uniform((-54, -26, -32), (26, 54, 48), (500, 3))
    to_mask = _compose(case.chain, np.eye(4), np.eye(4))
    found = [to_mask.TransformPoint(point) for point in points.tolist()]
    np.testing.assert_allclose(found, map_by_numpy(tmp_path / "c.h5", points), atol=1e-4)


def test_the_wrong_direction_is_centimetres_off(tmp_path: Path) -> None:
    """The inverse of a transform puts the lesion elsewhere, so that the tests above notice a wrong direction."""
    case = make_case(tmp_path, "affine")
    sitk.WriteTransform(case.points.GetInverse(), str(tmp_path / "a.txt"))
    weights, volume_mm3 = whole(case)
    assert weights.sum() == volume_mm3 == 0


def box_at(corner: tuple[int, int, int]) -> tuple[Array, Array]:
    """Return a lesion of 4 x 4 x 4 voxels of 1 mm whose first voxel has this position in RAS, and its affine."""
    affine = np.eye(4)
    affine[:3, 3] = corner
    return np.ones((4, 4, 4), bool), affine


def centre_of(weights: Array, corner: Array, grid: Grid) -> Array:
    """Return the centre of gravity of weights, in mm."""
    places = nib.affines.apply_affine(grid.affine, np.argwhere(weights) + corner)
    return np.average(places, axis=0, weights=weights[weights > 0])


GRID = Grid(np.ones((40, 40, 40), bool), nib.affines.from_matvec(2 * np.eye(3), [-39, -39, -39]))


def test_pieces_between_oblique_grids() -> None:
    """Without a chain, a piece lies in the voxel to which its centre rounds by nibabel's affines, or outside."""
    image = affine_of((2, 3, 2.5), np.array([3.0, -4.0, 5.0]), GRID_SHAPE, turn=0.4)
    affine = affine_of((1.5, 2, 1), np.array([17.0, -4.0, 5.0]), (8, 7, 6))
    corner, shape, n_pieces = np.array([1, -2, 1]), (5, 7, 6), np.array([4, 3, 2])
    found = VoxelFinder(None, image, GRID_SHAPE).within(affine).find(corner, shape, n_pieces)
    to_image = np.linalg.inv(image) @ affine
    voxels, pieces = (np.indices(n).reshape(3, -1).T for n in (shape, n_pieces))
    centres = (voxels + corner)[:, np.newaxis] - 0.5 + (pieces + 0.5) / n_pieces
    at = np.floor(nib.affines.apply_affine(to_image, centres) + 0.5).astype(int)
    inside = ((at >= 0) & (at < GRID_SHAPE)).all(axis=-1)
    expected = np.where(inside, np.ravel_multi_index(tuple(np.moveaxis(at, -1, 0)), GRID_SHAPE, mode="clip"), -1)
    assert 0.2 < inside.mean() < 0.95
    np.testing.assert_array_equal(found, expected)


def test_itk_points_are_lps(tmp_path: Path) -> None:
    """A translation of LPS points by (5, 7, 3) mm looks to the left, back and up, so images move the other way."""
    path = tmp_path / "t.txt"
    sitk.WriteTransform(sitk.TranslationTransform(3, [5.0, 7.0, 3.0]), str(path))
    chain = TransformChain((TransformFile(path, "T1w", "MNI305"),))
    corner, weights, volume_mm3 = weigh_through(chain, *box_at((10, 10, 10)), GRID)
    # The box's centre is at 11.5; x and y are turned round between RAS and LPS.
    np.testing.assert_allclose(centre_of(weights, corner, GRID), [11.5 + 5, 11.5 + 7, 11.5 - 3], atol=1e-6)
    assert volume_mm3 == pytest.approx(64)


def test_files_follow_one_another(tmp_path: Path) -> None:
    """The first file is the one at the mask: images shrink by 2 and then move by 6 mm, not the other way round."""
    scale, move = tmp_path / "scale.txt", tmp_path / "move.txt"
    sitk.WriteTransform(sitk.AffineTransform([2.0, 0, 0, 0, 2.0, 0, 0, 0, 2.0], [0.0] * 3), str(scale))
    sitk.WriteTransform(sitk.TranslationTransform(3, [0.0, 0.0, -6.0]), str(move))
    chain = TransformChain((TransformFile(scale, "T1w", "A"), TransformFile(move, "A", "B")))
    corner, weights, volume_mm3 = weigh_through(chain, *box_at((18, -14, 10)), GRID)
    np.testing.assert_allclose(centre_of(weights, corner, GRID), [19.5 / 2, -12.5 / 2, 11.5 / 2 + 6], atol=0.02)
    assert volume_mm3 == pytest.approx(8, rel=0.02)


def test_sheared_masks(tmp_path: Path) -> None:
    """A mask with a sheared affine, which ITK's images cannot have, is weighted as by brute force in NumPy."""
    path = tmp_path / "t.txt"
    sitk.WriteTransform(sitk.TranslationTransform(3, [-4.0, 0.0, 0.0]), str(path))
    affine = affine_of((1.0, 1.2, 1.5), np.array([1.0, 2.0, 3.0]), MASK_SHAPE, 0.3)
    affine[:3, :3] @= np.array([[1, 0.3, 0], [0, 1, -0.2], [0.1, 0, 1]])
    lesion = make_lesion()
    corner, weights, _ = weigh_through(TransformChain((TransformFile(path, "T1w", "MNI305"),)), lesion, affine, GRID)
    cut = (np.indices((16, 16, 16)).reshape(3, -1).T + 0.5) / 16 - 0.5
    expected = np.zeros(weights.shape)
    to_mask = np.linalg.inv(affine) @ nib.affines.from_matvec(np.eye(3), [4, 0, 0]) @ GRID.affine
    for index in np.argwhere(weights > 0)[::7]:
        nearest = np.rint(nib.affines.apply_affine(to_mask, index + corner + cut)).astype(int)
        inside = ((nearest >= 0) & (nearest < lesion.shape)).all(axis=1)
        expected[tuple(index)] = lesion[tuple(nearest[inside].T)].sum() / len(cut)
        assert weights[tuple(index)] == pytest.approx(expected[tuple(index)], abs=0.05)


def test_probabilities_are_interpolated(tmp_path: Path) -> None:
    """The weights of a probability map sum to its expected volume, with those of a voxel at the map's edge."""
    path = tmp_path / "t.txt"
    sitk.WriteTransform(sitk.TranslationTransform(3, [0.3, 0.6, -0.4]), str(path))
    probabilities = np.random.default_rng(5).uniform(0.2, 1, (7, 6, 5)).astype(np.float32)
    affine = nib.affines.from_matvec(np.diag([2.0, 2.0, 2.0]), [-3, 5, 1])
    chain = TransformChain((TransformFile(path, "T1w", "MNI305"),))
    _, weights, volume_mm3 = weigh_through(chain, probabilities, affine, GRID)
    assert 0 < weights.max() < probabilities.max()
    assert volume_mm3 == pytest.approx(float(probabilities.sum()) * 8, rel=0.01)
    uncropped = affine @ nib.affines.from_matvec(np.eye(3), [-3, -3, -3])
    _, same, _ = weigh_through(chain, np.pad(probabilities, 3), uncropped, GRID)
    np.testing.assert_allclose(same[same > 0], weights[weights > 0], atol=1e-5)


def test_part_outside_the_grid_counts(tmp_path: Path) -> None:
    """The volume includes what lies around the grid, of which there are no weights."""
    path = tmp_path / "t.txt"
    sitk.WriteTransform(sitk.TranslationTransform(3, [0.0, 0.0, 0.0]), str(path))
    chain = TransformChain((TransformFile(path, "T1w", "MNI305"),))
    # The grid begins at -40, the box at -42.5.
    corner, weights, volume_mm3 = weigh_through(chain, *box_at((-42, 0, 0)), GRID)
    assert volume_mm3 == pytest.approx(64)
    assert weights.sum() * 8 == pytest.approx(64 * 1.5 / 4)
    assert corner[0] == 0


def test_a_volume_that_changes_much(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A lesion that its transforms shrink to an eighth gets a warning; its coverage is that of the result."""
    path = tmp_path / "scale.txt"
    sitk.WriteTransform(sitk.AffineTransform([2.0, 0, 0, 0, 2.0, 0, 0, 0, 2.0], [0.0] * 3), str(path))
    chain = TransformChain((TransformFile(path, "T1w", "MNI305"),))
    lesion, affine = box_at((18, -14, 10))
    image = nib.Nifti1Image(lesion.astype(np.uint8), affine)
    loaded = load_lesion(LesionData.from_nifti(image, {"space": "T1w"}, chain), GRID, "MNI305")
    assert (loaded.volume_mm3, loaded.template_volume_mm3, loaded.coverage) == pytest.approx((64, 8, 1), rel=0.02)
    assert "change the lesion's volume by a factor of 0.12" in caplog.text
    with pytest.raises(ValueError, match="in space MNI305, the connectome in MNI152NLin6Asym"):
        load_lesion(LesionData.from_nifti(image, {"space": "T1w"}, chain), GRID, "MNI152NLin6Asym")


def test_transforms_that_lead_outside(tmp_path: Path) -> None:
    """A lesion that its transforms put outside the brain fails with their names."""
    path = tmp_path / "away.txt"
    sitk.WriteTransform(sitk.TranslationTransform(3, [500.0, 0.0, 0.0]), str(path))
    chain = TransformChain((TransformFile(path, "T1w", "MNI305"),))
    lesion, affine = box_at((0, 0, 0))
    image = nib.Nifti1Image(lesion.astype(np.uint8), affine)
    with pytest.raises(LesionOutsideGrid, match=r"after its transforms \(away\.txt\)"):
        load_lesion(LesionData.from_nifti(image, transform=chain), GRID)


def test_chains_that_do_not_join() -> None:
    """A chain is refused where one file ends in another space than the next begins in."""
    files = TransformFile(Path("a.h5"), "T1w", "A"), TransformFile(Path("b.h5"), "B", "C")
    with pytest.raises(ValueError, match=r"a\.h5 ends in space A, but b\.h5 begins in B"):
        TransformChain(files)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("junk.h5", "cannot be read as HDF5"),
        ("half.h5", "cannot be read as HDF5.*truncated"),
        ("junk.txt", r"junk\.txt cannot be read by ITK"),
        # ITK itself maps through what it finds.
        ("half.nii.gz", "truncated or damaged"),
        ("checksum.nii.gz", "CRC check failed"),
        ("half.nii", "truncated or damaged"),
        ("nan.nii.gz", "values that are not finite"),
        ("nan.h5", "values that are not finite"),
        ("flat.txt", "of 2 dimensions, but one of 3 is needed"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, words: str) -> None:
    """A transform that is damaged, or not of three dimensions, is an error with its name."""
    path = tmp_path / name
    field = make_field()
    if path.stem.startswith("nan"):
        values = sitk.GetArrayFromImage(field.GetDisplacementField())
        values[3, 4, 5, 1] = np.nan
        field = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(values, isVector=True))
    if path.suffix in (".nii", ".gz"):
        sitk.WriteImage(field.GetDisplacementField(), str(path))
    else:
        sitk.WriteTransform(composite(make_affine(), field), str(path))
    content = path.read_bytes()
    if path.stem.startswith("half"):
        path.write_bytes(content[: len(content) // 2])
    if path.stem.startswith("checksum"):
        path.write_bytes(content[:-8] + bytes(4) + content[-4:])
    if path.stem == "junk":
        path.write_bytes(b"no transform")
    if path.stem == "flat":
        sitk.WriteTransform(sitk.TranslationTransform(2, [1.0, 2.0]), str(path))
    chain = TransformChain((TransformFile(path, "T1w", "MNI305"),))
    with pytest.raises((ValueError, OSError), match=words):
        weigh_through(chain, *box_at((0, 0, 0)), GRID)


def write_field(path: Path, shape: tuple[int, ...], intent: int = 0, name: str = "") -> Path:
    """Write zeros as NIfTI with an intent."""
    image = nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4))
    image.header["intent_code"], image.header["intent_name"] = intent, name.encode()
    nib.save(image, path)
    return path


def test_formats_of_other_programs(tmp_path: Path) -> None:
    """Transforms of SPM, FNIRT, FLIRT and FreeSurfer are refused with their program and what converts them."""
    for name in ("a.lta", "a.m3z", "a.xfm"):
        (tmp_path / name).write_text("")
    (tmp_path / "flirt.mat").write_text("1 0 0 2.5\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    five, four = (4, 4, 4, 1, 3), (4, 4, 4, 3)
    cases = {
        tmp_path / "a.lta": "FreeSurfer.*lta_convert",
        tmp_path / "a.m3z": "FreeSurfer",
        tmp_path / "flirt.mat": "FLIRT.*c3d_affine_tool",
        write_field(tmp_path / "y_t1.nii", five, 1007): "SPM.*Normalise",
        write_field(tmp_path / "warp.nii", five, 1007, "Mapping"): "SPM",
        write_field(tmp_path / "fnirt.nii.gz", four, 2006): "FNIRT.*wb_command",
        write_field(tmp_path / "coefficients.nii.gz", four): "FNIRT",
        write_field(tmp_path / "image.nii.gz", four[:3]): "shape",
    }
    for path, words in cases.items():
        with pytest.raises(ValueError, match=words):
            check_format(path)
    with pytest.raises(FileNotFoundError, match="no transform"):
        check_format(tmp_path / "nowhere.h5")
    make_case(tmp_path, "field")
    make_case(tmp_path, "two files")
    for name in ("f.nii.gz", "f.h5", "a.mat"):
        check_format(tmp_path / name)


def test_simpleitk_is_imported_late() -> None:
    """Chains, and the program's lesions, are there without SimpleITK."""
    script = "import sys, bids_lacuna.transforms, bids_lacuna.lesion; sys.exit('SimpleITK' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
