"""Metadata of lesion masks in JSON files beside them and higher up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import synthetic

from bids_lacuna.bids import find_lesion_masks

MASK = "sub-01/ses-1/anat/sub-01_ses-1_run-2_label-lesion_desc-x_mask.nii.gz"


def write_jsons(root: Path, contents: dict[str, Any]) -> None:
    """Write JSON files, by their paths in a dataset."""
    for path, content in contents.items():
        (root / path).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "path",
    [
        "mask.json",
        "label-lesion_mask.json",
        "desc-x_label-lesion_mask.json",
        "sub-01/sub-01_mask.json",
        "sub-01/ses-1/sub-01_ses-1_label-lesion_mask.json",
        "sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.json",
        "sub-01/ses-1/anat/sub-01_ses-1_run-2_label-lesion_desc-x_mask.json",
    ],
)
def test_json_that_applies(tmp_path: Path, path: str) -> None:
    """A JSON file applies to masks below it with its suffix and all of its entities, in any order."""
    synthetic.write_images(tmp_path, MASK)
    write_jsons(tmp_path, {path: {"SpatialReference": "MNI152NLin6Asym"}})
    assert [mask.space for mask in find_lesion_masks(tmp_path)] == ["MNI152NLin6Asym"]


@pytest.mark.parametrize(
    "path",
    [
        "label-lesion_roi.json",
        "run-1_mask.json",
        "acq-y_mask.json",
        "sub-01/sub-02_mask.json",
        "sub-01/sub-01_old_mask.json",
        "sub-01/.mask.json",
        "sub-02/mask.json",
        "sub-01/ses-1/mask.json.txt",
        "../mask.json",
    ],
)
def test_json_that_does_not_apply(tmp_path: Path, path: str) -> None:
    """A JSON file of other images, in another folder or outside the dataset does not apply."""
    root = synthetic.write_images(tmp_path / "bids", MASK, "sub-02/anat/sub-02_T1w.nii.gz")
    write_jsons(root, {path: {"SpatialReference": "MNI152NLin6Asym"}})
    assert [mask.space for mask in find_lesion_masks(root)] == [None]


def test_nearest_json(tmp_path: Path) -> None:
    """Each key is taken from the file nearest to the mask, and in one folder from the one with most entities."""
    synthetic.write_images(tmp_path, MASK, MASK.replace("run-2", "run-3"), "sub-01/sub-01_label-lesion_mask.nii.gz")
    write_jsons(
        tmp_path,
        {
            "mask.json": {"SpatialReference": "A"},
            "sub-01/sub-01_mask.json": {"SpatialReference": "B"},
            "sub-01/ses-1/anat/sub-01_ses-1_mask.json": {"SpatialReference": "C"},
            "sub-01/ses-1/anat/sub-01_ses-1_run-2_mask.json": {"SpatialReference": "D"},
            "sub-01/ses-1/anat/sub-01_ses-1_run-2_label-lesion_desc-x_mask.json": {"Type": "Lesion"},
        },
    )
    spaces = {mask.path.name: mask.space for mask in find_lesion_masks(tmp_path)}
    assert spaces == {
        "sub-01_label-lesion_mask.nii.gz": "B",
        "sub-01_ses-1_run-2_label-lesion_desc-x_mask.nii.gz": "D",
        "sub-01_ses-1_run-3_label-lesion_desc-x_mask.nii.gz": "C",
    }


def test_inherited_type(tmp_path: Path) -> None:
    """A mask is a lesion mask if a JSON file higher up says so, unless one nearer says otherwise."""
    images = [f"sub-{i}/anat/sub-{i}_label-{label}_mask.nii.gz" for i in (1, 2) for label in ("A", "B")]
    synthetic.write_images(tmp_path, *images)
    write_jsons(
        tmp_path, {"label-A_mask.json": {"Type": "Lesion"}, "sub-2/anat/sub-2_label-A_mask.json": {"Type": "Face"}}
    )
    assert [mask.path for mask in find_lesion_masks(tmp_path)] == [tmp_path / images[0]]


@pytest.mark.parametrize(
    ("reference", "words"), [({"VolumeReference": "x"}, "an object"), (["MNI152NLin6Asym"], "a list"), (7, "a int")]
)
def test_reference_that_is_no_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reference: object, words: str
) -> None:
    """One warning names the file whose SpatialReference is not the name of a space."""
    synthetic.write_images(tmp_path, *(f"sub-{i}/anat/sub-{i}_label-lesion_mask.nii.gz" for i in (1, 2)))
    write_jsons(tmp_path, {"mask.json": {"SpatialReference": reference}})
    assert [mask.space for mask in find_lesion_masks(tmp_path)] == [None, None]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"SpatialReference in {tmp_path / 'mask.json'} is {words}: the name of a template")
