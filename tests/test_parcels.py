"""Atlases: what is read of their files, means against nilearn and brute force, and damage against fine counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name
import synthetic
from nilearn.maskers import NiftiLabelsMasker

from bids_lacuna.grid import Grid
from bids_lacuna.lesion import LesionData
from bids_lacuna.parcels import parcellate
from bids_lacuna.parcels.atlas import Atlas, AtlasFile, make_atlas, read_atlas
from bids_lacuna.parcels.averages import place_atlas
from bids_lacuna.parcels.damage import DamageCounter
from bids_lacuna.parcels.finding import find_atlas
from bids_lacuna.parcels.labels import Region, read_regions, side_in
from bids_lacuna.transforms import TransformChain, TransformFile

Array = np.ndarray

GRID = Grid(synthetic.make_mask(), synthetic.RADIOLOGICAL)

N_LABELS = 13


def make_labels(affine: Array, shape: tuple[int, int, int], first: int = 1) -> nib.Nifti1Image:
    """Make labels in streaks of two voxels, with much background."""
    labels = np.random.default_rng(3).integers(0, N_LABELS + 5, shape).astype(np.int16)
    labels[1::2] = labels[: shape[0] // 2 * 2 : 2]
    labels[labels > N_LABELS] = 0
    return nib.Nifti1Image(np.where(labels > 0, labels + first - 1, 0).astype(np.int16), affine)


def fine(turn: float, size: float) -> Array:
    """Return the affine of voxels of a size that cover the grid, turned about an oblique axis."""
    matrix = nib.eulerangles.euler2mat(turn, turn / 2, -turn) @ np.diag([size, size, size])
    return nib.affines.from_matvec(matrix, -matrix @ np.array([7.0, 9, 10]) + [0, 0, 0.5])


def brute_means(values: Array, labels: nib.Nifti1Image, indices: range, n: int) -> Array:
    """Average over the regions, each of whose voxels is cut into n pieces along each axis, one by one."""
    to_grid = np.linalg.inv(GRID.affine) @ labels.affine
    cuts = (np.indices((n, n, n)).reshape(3, -1).T + 0.5) / n - 0.5
    of_volume = np.full(GRID.shape, np.nan)
    of_volume[GRID.mask] = values
    means = []
    for index in indices:
        voxels = np.argwhere(np.asarray(labels.dataobj) == index)
        centres = nib.affines.apply_affine(to_grid, (voxels[:, np.newaxis] + cuts).reshape(-1, 3))
        nearest = np.rint(centres).astype(int)
        nearest = nearest[((nearest >= 0) & (nearest < GRID.shape)).all(axis=1)]
        means.append(np.nanmean(of_volume[tuple(nearest.T)]))
    return np.array(means)


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_means_are_those_of_nilearn(dtype: type) -> None:
    """On the same grid, also with undefined voxels, the means are nilearn's; labels above 255 are no trouble."""
    image = make_labels(GRID.affine, GRID.shape, first=300)
    atlas = make_atlas(nib.Nifti1Image(np.asarray(image.dataobj).astype(dtype), GRID.affine), {}, "atlas")
    values = np.random.default_rng(5).standard_normal(GRID.n_voxels)
    values[::11] = np.nan
    defined = np.zeros(GRID.shape, bool)
    defined[GRID.mask] = np.isfinite(values)
    masker = NiftiLabelsMasker(
        image,
        mask_img=nib.Nifti1Image(defined.astype(np.uint8), GRID.affine),
        resampling_target=None,
        standardize=None,
    )
    expected = masker.fit_transform(nib.Nifti1Image(np.nan_to_num(GRID.volume(values)), GRID.affine)).ravel()
    found = place_atlas(atlas, GRID).average(values)
    assert [region.index for region in atlas.regions] == list(masker.labels_[1:])
    np.testing.assert_allclose(found.means[:-1], expected, atol=1e-6)
    labels = np.asarray(image.dataobj)
    assert found.n_voxels.tolist() == [
        *(int(((labels == i) & defined).sum()) for i in masker.labels_[1:]),
        int(((labels == 0) & defined).sum()),
    ]
    np.testing.assert_allclose(found.covered_mm3, found.n_voxels * 64)


@pytest.mark.parametrize(("turn", "size", "n"), [(0.0, 2.0, 4), (0.35, 3.0, 3)])
def test_means_on_other_grids(turn: float, size: float, n: int) -> None:
    """From 2 mm, and from oblique voxels of 3 mm, the means are those over the regions' pieces, one by one."""
    image = make_labels(fine(turn, size), (15, 18, 21))
    values = np.random.default_rng(5).standard_normal(GRID.n_voxels)
    values[::11] = np.nan
    found = place_atlas(make_atlas(image, {}, "atlas"), GRID).average(values)
    expected = brute_means(values, image, range(1, N_LABELS + 1), n)
    np.testing.assert_allclose(found.means[:-1], expected, atol=1e-6)
    assert found.covered_mm3.sum() == pytest.approx(np.isfinite(values).sum() * 64, rel=1e-2)


def test_probabilities_are_weights(caplog: pytest.LogCaptureFixture) -> None:
    """A 4D atlas weights voxels by probability; where the sum exceeds 1, probabilities are divided by it."""
    maps = np.random.default_rng(1).random((*GRID.shape, 3)).astype(np.float32) * 0.6
    maps[0] = 0
    values = np.random.default_rng(5).standard_normal(GRID.n_voxels)
    regions = {0: Region(0, "first"), 1: Region(1, "second"), 2: Region(2, "third")}
    for image in (
        nib.Nifti1Image(maps, GRID.affine),
        nib.Nifti1Image(maps[..., np.newaxis, :][:, :, :, 0], GRID.affine),
    ):
        atlas = make_atlas(image, regions, "atlas")
        assert [(region.index, region.name) for region in atlas.regions] == [
            (1, "first"),
            (2, "second"),
            (3, "third"),
        ]
        weights = (maps / np.maximum(maps.sum(axis=-1, keepdims=True, dtype=float), 1))[GRID.mask]
        weights = np.column_stack([weights, 1 - weights.sum(axis=1)])
        found = place_atlas(atlas, GRID).average(values)
        np.testing.assert_allclose(found.means, weights.T @ values / weights.sum(axis=0), atol=1e-5)
    assert "probabilities add up to more than 1" in caplog.text


def write_affine(path: Path) -> TransformChain:
    """Write a chain of one affine transform with a rotation and some scale."""
    euler = sitk.Euler3DTransform([3.0, -5.0, 7.0], 0.2, -0.1, 0.15, [5.0, -3.0, 4.0])
    matrix = np.reshape(euler.GetMatrix(), (3, 3)) @ np.diag([1.1, 0.95, 1.05])
    sitk.WriteTransform(sitk.AffineTransform(matrix.ravel().tolist(), euler.GetTranslation()), str(path))
    return TransformChain((TransformFile(path, "A", "B"),))


def affine_of(chain: TransformChain) -> Array:
    """Return the affine of a chain of one file, from points of the target to points of the source, in RAS."""
    transform = sitk.AffineTransform(sitk.ReadTransform(str(chain.files[0].path)))
    to_lps = np.diag([-1.0, -1, 1, 1])
    return (
        to_lps
        @ nib.affines.from_matvec(np.reshape(transform.GetMatrix(), (3, 3)), transform.GetTranslation())
        @ to_lps
    )


def test_means_through_transforms(tmp_path: Path) -> None:
    """Through an affine transform, the means are those of the atlas with the affine moved, apart from the pieces."""
    chain = write_affine(tmp_path / "xfm.tfm")
    image = make_labels(fine(0, 2), (15, 18, 21))
    moved = make_atlas(nib.Nifti1Image(image.dataobj, np.linalg.inv(affine_of(chain)) @ image.affine), {}, "atlas")
    # Smooth, since the pieces lie elsewhere.
    values = nib.affines.apply_affine(GRID.affine, np.argwhere(GRID.mask))[:, 0] / 10
    expected, found = (
        place_atlas(atlas, GRID, through).average(values)
        for atlas, through in ((moved, None), (make_atlas(image, {}, "atlas"), chain))
    )
    np.testing.assert_allclose(found.means, expected.means, atol=0.02)
    np.testing.assert_allclose(found.covered_mm3, expected.covered_mm3, rtol=0.04)


def count(mask: Array, affine: Array, atlas: Atlas, labels: nib.Nifti1Image, to_atlas: Array) -> Array:
    """Count a mask's volume by region in pieces of 0.25 mm; last of all outside."""
    n = np.ceil(nib.affines.voxel_sizes(affine) / 0.25).astype(int)
    cuts = (np.indices(n).reshape(3, -1).T + 0.5) / n - 0.5
    centres = nib.affines.apply_affine(affine, (np.argwhere(mask)[:, np.newaxis] + cuts).reshape(-1, 3))
    nearest = np.floor(nib.affines.apply_affine(np.linalg.inv(labels.affine) @ to_atlas, centres) + 0.5).astype(int)
    inside = ((nearest >= 0) & (nearest < labels.shape)).all(axis=1)
    found = np.zeros(len(nearest), int)
    found[inside] = np.asarray(labels.dataobj)[tuple(nearest[inside].T)]
    counts = np.bincount(found, minlength=len(atlas.regions) + 1) * abs(np.linalg.det(affine[:3, :3])) / n.prod()
    return np.append(counts[1:], counts[0])


@pytest.mark.parametrize(("turn", "size"), [(0.0, 2.0), (0.35, 3.0)])
@pytest.mark.parametrize("which", ["none", "atlas", "mask"])
def test_damage_is_that_of_a_fine_count(which: str, turn: float, size: float, tmp_path: Path) -> None:
    """Lesioned volumes are those of a count at 0.25 mm; those of all regions and outside add up to the lesion."""
    chain = write_affine(tmp_path / "xfm.tfm")
    labels = make_labels(fine(turn, size), (15, 18, 21))
    atlas = make_atlas(labels, {}, "atlas")
    mask, affine = np.zeros((9, 11, 10), np.uint8), fine(0.0, 1.5) @ nib.affines.from_matvec(np.eye(3), [4, 6, 5])
    mask[2:8, 1:9, 3:9] = 1
    image = nib.Nifti1Image(mask, affine)
    lesion = LesionData.from_nifti(image, transform=chain if which == "mask" else None)
    found = DamageCounter(atlas, GRID, chain if which == "atlas" else None).count(lesion)
    # A mask that comes by transforms is counted where it comes to lie.
    moved = np.linalg.inv(affine_of(chain)) @ affine if which == "mask" else affine
    expected = count(mask, moved, atlas, labels, affine_of(chain) if which == "atlas" else np.eye(4))
    assert found.fractions.sum() == pytest.approx(1, abs=1e-12)
    tolerance = 0.01 * expected if which != "mask" else 0.03 * expected.max()
    assert (np.abs(found.of_regions_mm3 - expected) <= tolerance + 1e-6).all()
    assert found.of_regions_mm3.sum() == pytest.approx(expected.sum(), rel=0.01 if which == "mask" else 1e-9)


@pytest.mark.parametrize("which", ["none", "atlas", "mask"])
def test_probabilities_of_a_lesion_count_as_fractions(which: str, tmp_path: Path) -> None:
    """A voxel that is lesioned with a probability of a quarter counts as a quarter, one below the threshold not."""
    chain = write_affine(tmp_path / "xfm.tfm")
    atlas = make_atlas(make_labels(fine(0.0, 2.0), (15, 18, 21)), {}, "atlas")
    counter = DamageCounter(atlas, GRID, chain if which == "atlas" else None)
    mask = np.zeros((9, 11, 10), np.float32)
    mask[2:8, 1:9, 3:9] = 0.25
    affine = fine(0.0, 1.5) @ nib.affines.from_matvec(np.eye(3), [4, 6, 5])
    through = chain if which == "mask" else None
    whole = counter.count(LesionData.from_nifti(nib.Nifti1Image(np.sign(mask), affine), transform=through))
    mask[0, 0, 0] = 0.2
    part = counter.count(LesionData.from_nifti(nib.Nifti1Image(mask, affine), transform=through), 0.25)
    np.testing.assert_allclose(part.of_regions_mm3, whole.of_regions_mm3 / 4, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "index\tname\n1\tLeft-Putamen\n300\tctx_rh_insula\n"),
        ("b.tsv", "name\tindex\tlabel\themisphere\nx\t1\tLeft-Putamen\tL\ny\t300\tctx_rh_insula\tright\n"),
        ("c.tsv", "label\tname\tindex\n1\tLeft-Putamen\t1.0\n2\tctx_rh_insula\t300\n"),
        ("f.tsv", "Component\tDifumo_names\tHemi\n1\tLeft-Putamen\tn/a\n300\tctx_rh_insula\tn/a\n"),
        ("d.txt", "# No. Label Name: R G B A\n\n1   Left-Putamen  120 18 131 0\n300 ctx_rh_insula 1 2 3 0\n"),
        ("e.txt", "1 Left-Putamen\n300 ctx_rh_insula\n"),
    ],
)
def test_tables_of_regions(name: str, text: str, tmp_path: Path) -> None:
    """BIDS's tables, FreeSurfer's and plain lists give index, name and hemisphere."""
    (tmp_path / name).write_text(text)
    expected = {1: Region(1, "Left-Putamen", "L"), 300: Region(300, "ctx_rh_insula", "R")}
    assert read_regions(tmp_path / name) == expected


def test_names_alone_are_numbered(tmp_path: Path) -> None:
    """A text with names alone, as Lacuna has, numbers them by line."""
    (tmp_path / "labels.txt").write_text("7Networks_LH_Vis_1\nFornix R\n")
    assert read_regions(tmp_path / "labels.txt") == {
        1: Region(1, "7Networks_LH_Vis_1", "L"),
        2: Region(2, "Fornix R", "R"),
    }
    assert [side_in(name) for name in ("Brain-Stem", "LeftThalamus", "Cingulum_L_R", "RHO")] == ["", "L", "", ""]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index\tcolor\n1\tred\n", "has the columns index, color, but a table with the columns index and label"),
        ("index\tname\n1\ta\n1\tb\n", "two rows for the index 1"),
        ("index\tname\n1.5\ta\n", "the index '1.5': whole numbers"),
        ("index\tname\n", "has the columns none"),
    ],
)
def test_tables_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    """A table that is no table of regions is a sentence."""
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        read_regions(tmp_path / "a.tsv")


def test_labels_and_rows_that_do_not_match(caplog: pytest.LogCaptureFixture) -> None:
    """A label without a row has its number for a name; a row without voxels has no mean; both are said."""
    labels = np.zeros(GRID.shape, np.uint16)
    labels[0], labels[1] = 7, 1000
    caplog.set_level(logging.INFO)
    atlas = make_atlas(nib.Nifti1Image(labels, GRID.affine), {7: Region(7, "seven"), 9: Region(9, "nine")}, "atlas")
    assert [(region.index, region.name) for region in atlas.regions] == [(7, "seven"), (9, "nine"), (1000, "1000")]
    found = place_atlas(atlas, GRID).average(np.ones(GRID.n_voxels))
    assert np.isnan(found.means).tolist() == [False, True, False, False]
    assert found.n_voxels[1] == 0
    assert "labels without a row in its table get their numbers for names: 1, for instance 1000" in caplog.text
    assert "rows of its table without a voxel: 1, for instance nine" in caplog.text


def half(values: Array) -> Array:
    """Add a half to the labels."""
    return values + 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (half, "has the value 0.5, but labels are whole numbers"),
        (lambda values: -values, "has the value -[0-9]+, but labels"),
        (lambda values: 0 * values, "is empty: all its voxels are 0"),
        (lambda values: np.stack([100 * values, values], axis=-1), "divide percentages by 100"),
        (lambda values: values[..., np.newaxis, np.newaxis].repeat(2, axis=4), "has 5 dimensions"),
    ],
)
def test_images_that_are_no_atlas(change: Callable[[Array], Array], words: str) -> None:
    """What is no image of labels or of probabilities is a sentence."""
    values = change(np.asarray(make_labels(GRID.affine, GRID.shape).dataobj).astype(np.float32))
    with pytest.raises(ValueError, match=words):
        make_atlas(nib.Nifti1Image(values, GRID.affine), {}, "atlas")


def test_names_of_atlases(tmp_path: Path) -> None:
    """Entities, space and table come from the names of files: TemplateFlow's, AtlasPack's, Lacuna's and any other."""
    names = {
        "tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-400Parcels7Networks_dseg": (
            "tpl-MNI152NLin6Asym_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.tsv",
            {"atlas": "Schaefer2018", "seg": "7Networks", "scale": "400"},
            "MNI152NLin6Asym",
        ),
        "tpl-MNI152NLin6Asym_atlas-Schaefer2018_desc-parcels100networks7_dseg": (
            "tpl-MNI152NLin6Asym_atlas-Schaefer2018_desc-parcels100networks7_dseg_labels.txt",
            {"atlas": "Schaefer2018", "seg": "networks7", "scale": "100"},
            "MNI152NLin6Asym",
        ),
        "atlas-4S156Parcels_space-MNI152NLin2009cAsym_res-01_dseg": (
            "atlas-4S156Parcels_dseg.tsv",
            {"atlas": "4S156Parcels"},
            "MNI152NLin2009cAsym",
        ),
        "space-MNI152NLin6Asym_res-2_tracts_probseg": (None, {"atlas": "tracts"}, "MNI152NLin6Asym"),
        "space-T_dseg": (None, {"atlas": "spaceTdseg"}, "T"),
        "my_own atlas": ("my_own atlas.txt", {"atlas": "myownatlas"}, None),
        "x_atlas-DiFuMo_desc-64dimensions_probseg": (None, {"atlas": "DiFuMo", "seg": "64dimensions"}, "T"),
    }
    (tmp_path / "x_atlas-DiFuMo_desc-64dimensions_probseg.json").write_text('{"SpatialReference": "T"}')
    for name, (table, entities, space) in names.items():
        synthetic.write_mask(tmp_path / f"{name}.nii.gz", synthetic.box((1, 1, 1)))
        if table:
            (tmp_path / table).write_text("index\tname\n1\ta\n")
        file = AtlasFile.of(tmp_path / f"{name}.nii.gz")
        assert file.table == (tmp_path / table if table else None)
        assert (file.entities, file.space) == (entities, space)


def test_parcellate(tmp_path: Path) -> None:
    """From Python, means are those of the voxels of each region, for files and images in memory."""
    image = make_labels(GRID.affine, GRID.shape)
    values = GRID.volume(np.random.default_rng(5).standard_normal(GRID.n_voxels))
    paths = [tmp_path / f"space-{name}.nii.gz" for name in ("A_map", "A_dseg", "B_dseg")]
    for path, content in zip(paths, (nib.Nifti1Image(values, GRID.affine), image, image), strict=True):
        nib.save(content, path)
    names = {index: f"region {index}" for index in range(1, N_LABELS + 1)}
    found = parcellate(nib.Nifti1Image(values, GRID.affine), image, labels=names)
    labels = np.asarray(image.dataobj)
    np.testing.assert_allclose(found.means, [np.nanmean(values[labels == index]) for index in names], atol=1e-12)
    assert found.labels == tuple(names.values())
    assert (found.indices.tolist(), found.hemispheres) == (list(names), ("",) * N_LABELS)
    np.testing.assert_allclose(found.volumes_mm3, [64 * (labels == index).sum() for index in names])
    np.testing.assert_allclose(found.covered_mm3, 64 * found.n_voxels)
    np.testing.assert_array_equal(parcellate(paths[0], paths[1]).means, found.means)
    with pytest.raises(ValueError, match="the map is in space A, the atlas in B: give an atlas in A"):
        parcellate(paths[0], paths[2])
    with pytest.raises(ValueError, match="a 3D image with one is needed"):
        parcellate(nib.Nifti1Image(np.zeros((2, 2, 2, 2)), GRID.affine), image)


def test_hash_of_an_atlas(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The hash changes with the image and with the table; without a table, a sentence asks for one."""
    path = synthetic.write_mask(tmp_path / "a.nii.gz", synthetic.box((1, 1, 1)))
    read_atlas(file := AtlasFile.of(path))
    hashes = [file.content_hash]
    assert "a.tsv with the columns index and label" in caplog.text
    for name in "ab":
        (tmp_path / "a.tsv").write_text(f"index\tname\n1\t{name}\n")
        hashes.append(AtlasFile.of(path).content_hash)
    assert len(set(hashes)) == 3


def test_atlases_by_name_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up in TEMPLATEFLOW_HOME, in the connectome's space first; folders hold one atlas."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    name = "Schaefer2018:400Parcels7Networks"
    with pytest.raises(FileNotFoundError, match="and --no-download was given: give the path of an image, or fetch"):
        find_atlas(name, "MNI152NLin6Asym", download=False)
    images = {}
    for template in ("MNI152NLin2009cAsym", "MNI152NLin6Asym"):
        for res in ("02", "01"):
            stem = f"tpl-{template}_res-{res}_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.nii.gz"
            images[template] = tmp_path / f"tpl-{template}" / stem
            images[template].parent.mkdir(exist_ok=True)
            images[template].write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="from templateflow import api"):
        find_atlas(name, "MNI152NLin6Asym", download=False)
    for template, path in images.items():
        synthetic.write_mask(path, synthetic.box((1, 1, 1)))
        found = find_atlas(name, "MNI152NLin6Asym", download=False)
        assert (found.image, found.space, found.software) == (path, template, "TemplateFlow")
    with pytest.raises(FileNotFoundError, match="Schaefer2018 is not in"):
        find_atlas("Schaefer2018", "MNI152NLin6Asym", download=False)
    assert find_atlas(str(images["MNI152NLin6Asym"].parent), "MNI152NLin6Asym", download=False).image.name.count(
        "res-01"
    )
    with pytest.raises(FileNotFoundError, match="there is no atlas"):
        find_atlas(str(tmp_path / "missing.nii.gz"), "MNI152NLin6Asym", download=False)
    for atlas in ("4S156Parcels", "4S256Parcels"):
        folder = tmp_path / "pack" / f"atlas-{atlas}"
        synthetic.write_mask(
            folder / f"atlas-{atlas}_space-MNI152NLin6Asym_res-01_dseg.nii.gz", synthetic.box((1, 1, 1))
        )
        assert find_atlas(str(folder), "MNI152NLin6Asym", download=False).name == atlas
    with pytest.raises(ValueError, match="holds 2 atlases: name the one"):
        find_atlas(str(tmp_path / "pack"), "MNI152NLin6Asym", download=False)
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no atlas"):
        find_atlas(str(tmp_path / "bare"), "MNI152NLin6Asym", download=False)
