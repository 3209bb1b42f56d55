"""What a person should look at in a mask: facts from small made-up masks, and words at both levels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from nibabel.affines import apply_affine
from program import map_lesions, read_table, read_tsv, run

from bids_lacuna.quality import MaskFacts, describe_coverage, examine, find_repeats, is_centre_in_brain

Array = np.ndarray

AFFINE = np.array([[-1.0, 0, 0, 20], [0, 1, 0, -30], [0, 0, 1, -10], [0, 0, 0, 1]])

BLOB = np.random.default_rng(1).random((7, 8, 9)) < 0.9


def examine_at(
    box: Array, affine: Array = AFFINE, corner: tuple[int, int, int] = (0, 0, 0), ml: float = 1
) -> MaskFacts:
    """Return the facts about a mask whose box has its first voxel at some indices."""
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, corner)
    return examine(box, moved, 1000 * ml, True)


@pytest.mark.parametrize(
    ("ml", "words"), [(0.05, ("volume 0.05 mL, below 0.1 mL",)), (1, ()), (412.3, ("volume 412 mL, above 300 mL",))]
)
def test_volumes_out_of_the_common_are_named(ml: float, words: tuple[str, ...]) -> None:
    """A volume between the limits has no remark."""
    assert examine_at(BLOB, ml=ml).remarks == words


@pytest.mark.parametrize(("coverage", "words"), [(0.3, ["only 30 % covered"]), (0.5, []), (None, [])])
def test_a_low_coverage_is_named(coverage: float | None, words: list[str]) -> None:
    """Half of a lesion is enough, and an unknown coverage is no low one."""
    assert describe_coverage(coverage) == words


def scatter(n: int, apart: int) -> Array:
    """Return a mask of a cube and of single voxels beyond it, two voxels from each other."""
    box = np.zeros((3 + apart + 2 * n, 3, 3), bool)
    box[:3] = True
    box[2 + apart :: 2, 1, 1] = True
    box[2 + apart + 2 * n :] = False
    return box


@pytest.mark.parametrize(
    ("n", "apart", "words"),
    [
        (1, 11, ("a single voxel 11 mm from the rest",)),
        (1, 10, ()),
        (9, 2, ("a single voxel 18 mm from the rest",)),
        (10, 2, ("10 single voxels",)),
        (60, 2, ("61 pieces", "60 single voxels")),
    ],
)
def test_pieces_and_stray_voxels_are_counted(n: int, apart: int, words: tuple[str, ...]) -> None:
    """Distances are those of voxels from the largest piece's box; voxels that share a corner are of one piece."""
    assert examine_at(scatter(n, apart)).remarks == words
    diagonal = np.eye(60, dtype=bool)[:, :, np.newaxis]
    assert examine_at(diagonal).n_pieces == 1


def test_the_centre_of_gravity_may_lie_in_a_hole_of_the_mask_but_not_beside_it() -> None:
    """A point counts as in the brain if it touches a voxel of it, or has some on both sides along each axis."""
    brain = np.zeros((11, 11, 11), bool)
    brain[1:9, 1:9, 1:9] = True
    brain[3:7, 3:7, 3:7] = False
    lesion = np.ones((1, 1, 1))
    assert is_centre_in_brain(np.array([4, 5, 5]), lesion, brain)
    for axis in range(3):
        for place, expected in ((9, True), (10, False)):
            voxel = np.full(3, 4)
            voxel[axis] = place
            assert is_centre_in_brain(voxel, lesion, brain) == expected
    weights = np.zeros((11, 1, 1))
    weights[[0, 10]] = [[[1]], [[3]]]
    assert is_centre_in_brain(np.array([0, 4, 4]), weights, brain)


def flip(box: Array) -> Array:
    """Return a mask flipped from left to right."""
    return box[::-1]


def test_repeats_are_found_in_any_order_of_voxels() -> None:
    """A copy on a grid of other directions, a mirror image and a shifted copy are told apart."""
    original = examine_at(BLOB, corner=(3, 4, 5))
    # The same positions, stored from front to back as the first axis.
    turned = AFFINE @ np.array([[0, 1, 0, 3], [1, 0, 0, 4], [0, 0, 1, 5], [0, 0, 0, 1.0]])
    copy = examine(BLOB.transpose(1, 0, 2), turned, 1000, True)
    mirror = examine(flip(BLOB), nib.affines.from_matvec(np.diag([-1, 1, 1]), [-11, -26, -5]), 1000, True)
    shifted = examine_at(BLOB, corner=(3, 4, 25))
    other = examine_at(np.roll(BLOB, 1, axis=2))
    facts = [original, copy, mirror, shifted, other, original]
    participants = ["01", "02", "03", "04", "05", "01"]
    names = ["one", "copy", "mirror", "shifted", "other", "again"]
    found = dict(zip(names, find_repeats(participants, names, facts), strict=True))
    assert found["one"] == ["same voxels as copy", "mirror image of mirror", "same shape, shifted, as shifted"]
    assert found["again"] == found["one"]
    assert found["copy"][0] == "same voxels as one and 1 more"
    assert found["mirror"][0] == "mirror image of one and 2 more"
    assert found["other"] == []


def test_small_lesions_share_their_shape_by_chance() -> None:
    """Two voxels elsewhere are no copy; at the same place, they are."""
    small = [examine_at(np.ones((1, 1, 1), bool), corner=corner) for corner in ((1, 2, 3), (4, 5, 6), (1, 2, 3))]
    assert find_repeats(["01", "02", "03"], ["a", "b", "c"], small) == [
        ["same voxels as c"],
        [],
        ["same voxels as a"],
    ]


def test_a_copy_that_is_symmetric_is_no_mirror_image_as_well() -> None:
    """A lesion across the middle, equal to its mirror image, has one remark."""
    across = examine_at(np.ones((5, 5, 5), bool), corner=(18, 0, 0))
    assert find_repeats(["01", "02"], ["a", "b"], [across, across]) == [["same voxels as b"], ["same voxels as a"]]


def test_a_mirror_image_of_an_image_whose_middle_lies_between_voxels() -> None:
    """Flipping an array moves the middle by up to a voxel."""
    original = examine_at(BLOB)
    mirror = examine(flip(BLOB), AFFINE, 1000, True)
    x, y, z = original.position_mm
    for apart, is_mirror in ((0, True), (1, True), (1.5, False)):
        facts = [original, replace(mirror, position_mm=(-x - apart, y, z))]
        (words, _) = find_repeats(["01", "02"], ["a", "b"], facts)
        assert (words == ["mirror image of b"]) == is_mirror


def test_remarks_are_in_tables_sidecars_and_warnings(connectome: Path, tmp_path: Path) -> None:
    """Both levels name masks to look at, and map all of them."""
    lesion = synthetic.box((0, 2, 3), (2, 3, 3))
    masks = {"01": lesion, "02": lesion, "03": lesion[::-1], "04": synthetic.box((3, 3, 6))}
    names = {label: f"sub-{label}/anat/sub-{label}_space-{synthetic.SPACE}_label-lesion_mask" for label in masks}
    bids = synthetic.write_dataset(tmp_path / "bids", {names[label]: mask for label, mask in masks.items()})
    small = synthetic.RADIOLOGICAL @ np.diag([0.5, 0.5, 0.5, 1])
    synthetic.write_mask(bids / f"{names['04']}.nii.gz", synthetic.box((2, 6, 6), (1, 1, 1)), small)
    mapped = map_lesions(bids, tmp_path / "out", connectome)
    assert mapped.returncode == 0, mapped.stderr
    assert "look at the mask: volume 0.008 mL, below 0.1 mL" in mapped.stderr
    assert [row["look_at"] for row in read_table(tmp_path / "out")][2:] == ["n/a", "volume 0.008 mL, below 0.1 mL"]
    sidecars = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("sub-*/func/*stat-r_*.json"))]
    assert [sidecar["LesionRemarks"] for sidecar in sidecars][2:] == [[], ["volume 0.008 mL, below 0.1 mL"]]
    result = run(bids, tmp_path / "out", "group", "--no-reports")
    assert result.returncode == 0, result.stderr
    rows = {row["participant_id"]: row["look_at"] for row in read_tsv(tmp_path / "out" / "group_lesions.tsv")}
    assert rows["sub-01"] == "same voxels as sub-02_label-lesion; mirror image of sub-03_label-lesion"
    assert rows["sub-03"] == "mirror image of sub-01_label-lesion and 1 more"
    assert rows["sub-04"] == "volume 0.008 mL, below 0.1 mL"
    assert "masks to look at, 4 of 4" in result.stderr
