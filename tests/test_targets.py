"""Target networks: maps from any grid and space, averaged over the voxels of a connectome."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name

from bids_lacuna.app.command import Stop
from bids_lacuna.app.targets import read_targets
from bids_lacuna.bids import read_space
from bids_lacuna.grid import Grid
from bids_lacuna.targets import compare_with_target, describe_closeness, read_target
from bids_lacuna.transforms import TransformChain, TransformFile
from bids_lacuna.weights import LesionWeights

Array = np.ndarray

SPACE = "MNI152NLin6Asym"

SHAPE = (5, 7, 6)

AFFINE = np.diag([-4.0, 4, 4, 1])
AFFINE[:3, 3] = 8, -12, -10


@pytest.fixture
def grid() -> Grid:
    """Make a grid whose mask leaves one corner out."""
    mask = np.ones(SHAPE, bool)
    mask[0, :2] = False
    return Grid(mask, AFFINE)


def save(path: Path, values: Array, affine: Array = AFFINE) -> Path:
    """Write a map."""
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def test_a_map_on_the_grid_keeps_its_values(grid: Grid, tmp_path: Path) -> None:
    """The values are bit-identical, NaN stays NaN, and the hash is that of the file."""
    values = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    values[3, 4, 5] = np.nan
    path = save(tmp_path / "map.nii.gz", values)
    target = read_target("a", path, grid, SPACE)
    np.testing.assert_array_equal(target.values, values[grid.mask])
    assert target.describe() == {
        "File": "map.nii.gz",
        "SHA256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "SpatialReference": SPACE,
    }


def test_a_finer_map_is_averaged(grid: Grid, tmp_path: Path) -> None:
    """Each voxel has the mean of the eight voxels in it that are defined, if at least half are; order is free."""
    finer = np.random.default_rng(2).standard_normal([2 * n for n in SHAPE]).astype(np.float32)
    finer[4:6, 6:8, 2:4] = np.nan
    finer[6:8, 6:8, 2] = np.nan
    finer[0:2, 4:6, 2] = finer[0, 4, 3] = np.nan
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = AFFINE[:3, 3] - [-1, 1, 1]
    # A flipped and transposed copy places the same values at the same positions.
    flipped = affine[:, [2, 0, 1, 3]] @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] = affine[:3, 3] + affine[:3, 2] * (finer.shape[2] - 1)
    blocks = finer.reshape(5, 2, 7, 2, 6, 2).transpose(0, 2, 4, 1, 3, 5).reshape(*SHAPE, 8)
    n = np.isfinite(blocks).sum(axis=3)
    expected = np.where(n >= 4, np.nansum(blocks, axis=3) / np.maximum(n, 1), np.nan)
    assert (n[2, 3, 1], n[3, 3, 1], n[0, 2, 1]) == (0, 4, 3)
    for name, values, of_map in (("a", finer, affine), ("b", finer.transpose(2, 0, 1)[::-1], flipped)):
        target = read_target(name, save(tmp_path / f"{name}.nii", values, of_map), grid, SPACE)
        np.testing.assert_allclose(target.values, expected[grid.mask], atol=1e-6)


def test_a_map_in_another_space_goes_through_the_chain(grid: Grid, tmp_path: Path) -> None:
    """A transform that maps each point 4 mm to the left and 8 mm up reads the map one and two voxels away."""
    values = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    # LPS: the left is positive.
    sitk.WriteTransform(sitk.TranslationTransform(3, [4.0, 0, 8]), str(tmp_path / "moved.txt"))
    chain = TransformChain((TransformFile(tmp_path / "moved.txt", "MNI152NLin2009cAsym", SPACE),))
    target = read_target("a", save(tmp_path / "map.nii", values), grid, "MNI152NLin2009cAsym", chain)
    expected = np.full(SHAPE, np.nan)
    # The first axis runs from right to left.
    expected[:-1, :, :-2] = values[1:, :, 2:]
    np.testing.assert_allclose(target.values, expected[grid.mask], atol=1e-5)
    (file,) = target.describe()["Transforms"]
    assert (file["File"], file["From"], file["To"]) == ("moved.txt", "MNI152NLin2009cAsym", SPACE)


def test_a_lesion_is_compared_with_a_target() -> None:
    """Both correlations and the weighted mean are NumPy's, over the voxels where map and target are defined."""
    rng = np.random.default_rng(4)
    z, values = np.float32(rng.standard_normal((2, 97)))
    z[5], values[6], values[20] = np.nan, np.nan, np.nan
    lesion = LesionWeights(np.int32([3, 5, 6, 11, 40]), np.float32([0.5, 1, 1, 0.25, 0.125]))
    found = compare_with_target(z, lesion, values)
    common = np.setdiff1d(np.arange(97), [5, 6, 20])
    outside = np.setdiff1d(common, [3, 11, 40])
    assert found.r == pytest.approx(np.corrcoef(z[common], values[common])[0, 1], abs=1e-12)
    assert found.r_outside == pytest.approx(np.corrcoef(z[outside], values[outside])[0, 1], abs=1e-12)
    assert found.damage == pytest.approx(np.average(values[[3, 11, 40]].astype(float), weights=[0.5, 0.25, 0.125]))
    assert found.n_voxels == 94
    away = compare_with_target(z, LesionWeights(np.int32([20]), np.float32([1])), values)
    assert np.isnan(away.damage)
    assert away.r == away.r_outside == pytest.approx(found.r)
    flat = compare_with_target(z, lesion, np.full(97, 7.0))
    assert np.isnan(flat.r)
    assert flat.damage == 7
    assert describe_closeness(flat)["R"] is None


VARYING = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)

BAD = {
    "constant": (np.full(SHAPE, 3.0), AFFINE, "are 3, but a target network varies"),
    "4d": (np.stack([VARYING, VARYING], axis=3), AFFINE, "is a 3D image"),
    "complex": (VARYING.astype(np.complex64), AFFINE, "real numbers"),
    "nan": (np.full(SHAPE, np.nan), AFFINE, "are NaN"),
    "infinite": (np.where(VARYING == 9, np.inf, VARYING), AFFINE, "infinite"),
    "elsewhere": (VARYING, AFFINE + 400 * np.eye(4, k=3), "no value in any voxel of the connectome"),
    # Only a margin of zeros lies on the grid.
    "beside": (
        np.pad(VARYING, ((0, 9), (0, 0), (0, 0))),
        AFFINE + 32 * np.eye(4, k=3),
        "has the value 0 in all voxels",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_map_that_cannot_be_used(kind: str, grid: Grid, tmp_path: Path) -> None:
    """A sentence says what is wrong with the file."""
    values, affine, words = BAD[kind]
    with pytest.raises(ValueError, match=words):
        read_target("a", save(tmp_path / "map.nii", values, affine), grid, SPACE)


def read(grid: Grid, *targets: str, transform: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Read targets as the command line does; return name and space of each."""
    arguments = argparse.Namespace(
        target=list(targets), transform=list(transform), participant_label=[], no_download=True
    )
    return [(target.name, target.space) for target in read_targets(arguments, {}, grid, SPACE)]


def test_spaces_of_targets(grid: Grid, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The space is that of the name or the sidecar, or the connectome's, which is said; others need a chain."""
    caplog.set_level("INFO")
    named = save(tmp_path / f"space-{SPACE}_stat-t_statmap.nii.gz", VARYING)
    bare = save(tmp_path / "circuit.nii.gz", VARYING)
    of_tpl = save(tmp_path / "tpl-MNI152NLin2009aSym_mask.nii", VARYING)
    assert read(grid, f"a={named}", f"b={bare}") == [("a", SPACE), ("b", SPACE)]
    assert [record.getMessage() for record in caplog.records] == [
        f"target b: {bare} names no space: taken to be in the connectome's, {SPACE}"
    ]
    assert read_space(of_tpl) == "MNI152NLin2009aSym"
    (tmp_path / "circuit.json").write_text(json.dumps({"SpatialReference": "MNI152NLin2009aSym"}))
    with pytest.raises(Stop, match="give --transform MNI152NLin2009aSym:MNI152NLin6Asym=FILE") as stop:
        read(grid, f"b={bare}")
    assert stop.value.status == 65
    sitk.WriteTransform(sitk.TranslationTransform(3), str(tmp_path / "same.txt"))
    chain = f"MNI152NLin2009aSym:{SPACE}={tmp_path / 'same.txt'}"
    assert read(grid, f"b={bare}", f"c={of_tpl}", transform=(chain,))[1] == ("c", "MNI152NLin2009aSym")
    for space, words in (("MNI", "ambiguous"), ("T1w", "participant's own space")):
        (tmp_path / "circuit.json").write_text(json.dumps({"SpatialReference": space}))
        with pytest.raises(Stop, match=words):
            read(grid, f"b={bare}")


def test_names_and_files_of_targets(grid: Grid, tmp_path: Path) -> None:
    """Two targets of one name, and a file that is not there, end with the statuses of such mistakes."""
    path = save(tmp_path / "map.nii", VARYING)
    for targets, words, status in (
        ((f"a={path}", f"a={path}"), "2 targets are called a", 64),
        ((f"a={tmp_path / 'nowhere.nii'}",), "nowhere.nii", 66),
        ((f"a={tmp_path / 'map.json'}",), "map.json", 65),
    ):
        (tmp_path / "map.json").write_text("{}")
        with pytest.raises(Stop, match=words) as stop:
            read(grid, *targets)
        assert stop.value.status == status
