"""Masks whose name and folder say different things about whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic
from program import map_lesions, read_table

from bids_lacuna.bids import find_lesion_masks


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("sub-01/anat/sub-02_label-lesion_mask.nii.gz", "name says sub-02, but its folder says sub-01"),
        ("sub-1/anat/sub-01_label-lesion_mask.nii.gz", "name says sub-01, but its folder says sub-1"),
        ("sub-a/anat/sub-A_label-lesion_mask.nii.gz", "name says sub-A, but its folder says sub-a"),
        ("sub-01/ses-1/anat/sub-01_ses-2_label-lesion_mask.nii.gz", "name says ses-2, but its folder says ses-1"),
        ("sub-01_02/anat/sub-01_02_label-lesion_mask.nii.gz", "name says sub-01, but its folder says sub-01_02"),
        ("sub-01/ses-1_2/sub-01_ses-1_2_label-lesion_mask.nii.gz", "name says ses-1, but its folder says ses-1_2"),
        ("masks/sub-01_02_label-lesion_mask.nii.gz", "name has sub-01_02, but a label has no underscore"),
        ("sub-01/sub-01_ses-1_2_label-lesion_mask.nii.gz", "name has ses-1_2, but a label has no underscore"),
        ("sub-01/sub-01_sub-02_label-lesion_mask.nii.gz", "several participant labels, sub-01 and sub-02"),
        ("sub-01_ses-1/anat/sub-01_ses-2_label-lesion_mask.nii.gz", "name says ses-2, but its folder says ses-1"),
    ],
)
def test_masks_of_somebody_else(tmp_path: Path, image: str, problem: str) -> None:
    """A mask has a problem if its name and folder disagree, or if its name may be of several participants."""
    (mask,) = find_lesion_masks(synthetic.write_images(tmp_path, image))
    assert problem in mask.problem
    assert "rename" in mask.problem


@pytest.mark.parametrize(
    "image",
    [
        "sub-01/anat/sub-01_label-lesion_mask.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz",
        "sub-01/sub-01_ses-1_label-lesion_mask.nii.gz",
        "sub-01_label-lesion_mask.nii.gz",
        "masks/sub-01_label-lesion_mask.nii.gz",
        "sub-01_ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz",
        "ses-1/sub-01/sub-01_ses-1_label-lesion_mask.nii.gz",
    ],
)
def test_masks_whose_names_are_clear(tmp_path: Path, image: str, caplog: pytest.LogCaptureFixture) -> None:
    """A name without a session, and folders without labels, contradict nothing."""
    (mask,) = find_lesion_masks(synthetic.write_images(tmp_path / "sub-99_ses-9", image))
    assert not mask.problem
    assert not caplog.records


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("sub-01/anat/sub-01_02_label-lesion_mask.nii.gz", "02 in its name, which has no <entity>-<label>"),
        ("sub-01/anat/sub-01_T1w_label-lesion_left_mask.nii.gz", "T1w, left in its name"),
        ("sub-01/ses-1/anat/sub-01_label-lesion_mask.nii.gz", "no session, although its folder is ses-1"),
    ],
)
def test_names_that_lose_something(tmp_path: Path, image: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """A mask whose folder says whose it is is used; a warning says what its name lacks, or what of it is ignored."""
    (mask,) = find_lesion_masks(synthetic.write_images(tmp_path, image))
    assert not mask.problem
    (message,) = [record.getMessage() for record in caplog.records]
    assert words in message
    assert image in message


@pytest.mark.parametrize("label", ["01", "02"])
def test_selected_participant(tmp_path: Path, label: str) -> None:
    """A mask in another participant's folder is listed, with its problem, where that folder is searched."""
    root = synthetic.write_images(
        tmp_path, "sub-01/anat/sub-02_label-lesion_mask.nii.gz", "sub-02/anat/sub-02_label-lesion_mask.nii.gz"
    )
    found = find_lesion_masks(root, participant_labels=[label])
    assert [mask.path.name for mask in found if mask.problem] == ["sub-02_label-lesion_mask.nii.gz"] * (label == "01")


def test_masks_of_somebody_else_fail(tmp_path: Path) -> None:
    """The program maps no mask under a label that its folder contradicts; the right mask of that label is mapped."""
    brain = synthetic.make_mask()
    series = synthetic.make_series(int(brain.sum()), [23] * 5)
    connectome = synthetic.write_connectome(tmp_path / "GSP5.h5", series, brain)
    bids = synthetic.write_dataset(tmp_path / "bids", {})
    for folder, label in (("01", "02"), ("02", "02"), ("03_04", "03_04")):
        name = f"sub-{folder}/anat/sub-{label}_space-{synthetic.SPACE}_label-lesion_mask.nii.gz"
        synthetic.write_mask(bids / name, synthetic.box((1, 2, 4)))
    ended = map_lesions(bids, tmp_path / "out", connectome)
    assert ended.returncode == 1
    rows = {row["mask"].split("/")[0]: row for row in read_table(tmp_path / "out")}
    assert {folder: row["status"] for folder, row in rows.items()} == {
        "sub-01": "failed",
        "sub-02": "done",
        "sub-03_04": "failed",
    }
    assert rows["sub-01"]["reason"] == "its name says sub-02, but its folder says sub-01: rename or move the file"
    assert [path.name for path in (tmp_path / "out").glob("sub-*")] == ["sub-02"]
