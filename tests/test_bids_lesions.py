"""Lesion masks found in datasets on disk, by name, sidecar and filters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import synthetic
from synthetic import DERIVATIVE

from bids_lacuna.bids import LesionMask, NoLesionMasks, find_lesion_masks
from bids_lacuna.bids.lesions import LESION_RULE

LESION = "sub-01/anat/sub-01_label-lesion_mask.nii.gz"


def names(found: Sequence[LesionMask]) -> list[str]:
    """List the file names of masks."""
    return [file.path.name for file in found]


@pytest.mark.parametrize(
    "image",
    [
        "sub-01/anat/sub-01_label-lesion_mask.nii.gz",
        "sub-01/anat/sub-01_label-lesion_roi.nii.gz",
        "sub-01/anat/sub-01_label-acuteinfarct_mask.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz",
        "sub-01/anat/sub-01_label-L_mask.nii",
        "sub-01/dwi/sub-01_desc-leftStroke_mask.nii.gz",
        "sub-01/func/sub-01_task-rest_label-Lesion_mask.nii.gz",
        "sub-01/sub-01_label-lesion_mask.nii.gz",
    ],
)
def test_names_of_lesion_masks(tmp_path: Path, image: str) -> None:
    """A lesion mask is recognized by its label or desc, in any folder of the participant."""
    (mask,) = find_lesion_masks(synthetic.write_images(tmp_path, image))
    assert mask.path == tmp_path / image


@pytest.mark.parametrize(
    "image",
    [
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_label-GM_mask.nii.gz",
        "sub-01/anat/sub-01_hemi-L_mask.nii.gz",
        "sub-01/anat/sub-01_label-lesion_probseg.nii.gz",
        "sub-01/anat/sub-01_mask.nii.gz",
        "sub-01/func/sub-01_label-lesion_stat-t_desc-GSP1000T7_mask.nii.gz",
        "tpl-MNI/anat/tpl-MNI_label-lesion_mask.nii.gz",
    ],
)
def test_other_images(tmp_path: Path, image: str) -> None:
    """Brain masks, tissue masks, probabilities, thresholded maps and templates are not lesion masks."""
    synthetic.write_images(tmp_path, image, LESION)
    assert names(find_lesion_masks(tmp_path)) == [Path(LESION).name]


def test_entities_and_paths_of_a_mask(tmp_path: Path) -> None:
    """Entities are in the order of the name, including those unknown to BIDS; paths are absolute."""
    image = "sub-01/ses-2/anat/sub-01_ses-2_acq-x_odd-7_run-01_space-MNI152NLin6Asym_label-lesion_desc-y_mask.nii.gz"
    (mask,) = find_lesion_masks(synthetic.write_images(tmp_path, image))
    assert list(mask.entities.items()) == [
        ("sub", "01"),
        ("ses", "2"),
        ("acq", "x"),
        ("odd", "7"),
        ("run", "01"),
        ("space", "MNI152NLin6Asym"),
        ("label", "lesion"),
        ("desc", "y"),
    ]
    assert mask == LesionMask(tmp_path / image, mask.entities, "MNI152NLin6Asym", "source", tmp_path)


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path to the dataset gives absolute paths of masks."""
    synthetic.write_images(tmp_path / "data", LESION)
    monkeypatch.chdir(tmp_path)
    (mask,) = find_lesion_masks(Path("data"))
    assert (mask.path, mask.dataset_path) == (tmp_path / "data" / LESION, tmp_path / "data")


def test_folders_above_the_dataset(tmp_path: Path) -> None:
    """Entities in the path to a dataset do not count as entities of its files."""
    root = synthetic.write_images(
        tmp_path / "sub-99_space-Talairach" / "label-lesion_desc-x", "sub-01/anat/sub-01_label-GM_mask.nii.gz", LESION
    )
    (mask,) = find_lesion_masks(root)
    assert mask.entities == {"sub": "01", "label": "lesion"}
    assert mask.space is None


@pytest.mark.parametrize(
    ("sidecar", "space"),
    [
        ('{"SpatialReference": "MNI152NLin6Asym"}', "MNI152NLin6Asym"),
        ('{"SpatialReference": {"VolumeReference": "x"}}', None),
        ("{}", None),
        (None, None),
    ],
)
def test_space_of_the_sidecar(tmp_path: Path, sidecar: str | None, space: str | None) -> None:
    """A mask without space in its name has the space of its sidecar, if that names one."""
    synthetic.write_images(tmp_path, LESION)
    if sidecar is not None:
        (tmp_path / LESION.replace(".nii.gz", ".json")).write_text(sidecar)
    assert [mask.space for mask in find_lesion_masks(tmp_path)] == [space]


def test_name_before_sidecar(tmp_path: Path) -> None:
    """The space in the name takes precedence over the sidecar's."""
    image = "sub-01/anat/sub-01_space-T1w_label-lesion_mask.nii.gz"
    synthetic.write_images(tmp_path, image)
    (tmp_path / image.replace(".nii.gz", ".json")).write_text('{"SpatialReference": "MNI152NLin6Asym"}')
    assert [mask.space for mask in find_lesion_masks(tmp_path)] == ["T1w"]


def test_type_in_the_sidecar(tmp_path: Path) -> None:
    """A mask is a lesion mask if its sidecar says so, with or without a byte order mark."""
    synthetic.write_images(tmp_path, *(f"sub-0{i}/anat/sub-0{i}_desc-manual_mask.nii.gz" for i in (1, 2, 3)))
    for i, encoding, kind in ((1, "utf-8", "Lesion"), (2, "utf-8-sig", "Lesion"), (3, "utf-8", "Brain")):
        path = tmp_path / f"sub-0{i}/anat/sub-0{i}_desc-manual_mask.json"
        path.write_text(json.dumps({"Type": kind}), encoding)
    assert [mask.entities["sub"] for mask in find_lesion_masks(tmp_path)] == ["01", "02"]


def test_two_lesions_in_one_session(tmp_path: Path) -> None:
    """Both lesions of a session are found, with their own entities, sorted by path."""
    masks = [f"sub-01/ses-1/anat/sub-01_ses-1_label-lesion_desc-{side}_mask.nii.gz" for side in ("right", "left")]
    found = find_lesion_masks(synthetic.write_images(tmp_path, *masks))
    assert [mask.entities["desc"] for mask in found] == ["left", "right"]


def test_raw_and_derivatives(tmp_path: Path) -> None:
    """Masks of all datasets are listed, each with the name of its dataset."""
    raw = synthetic.write_images(tmp_path / "raw", "sub-02/anat/sub-02_T1w.nii.gz", LESION.replace("_mask", "_roi"))
    manual = synthetic.write_images(raw / "derivatives" / "manual", LESION, description=DERIVATIVE)
    other = synthetic.write_images(tmp_path / "other", LESION.replace("01", "02"), description=DERIVATIVE)
    found = find_lesion_masks(raw, {"tracings": manual, "other": other})
    assert [(mask.dataset, mask.dataset_path, mask.entities["sub"]) for mask in found] == [
        ("other", other, "02"),
        ("tracings", manual, "01"),
        ("source", raw, "01"),
    ]
    with pytest.raises(ValueError, match="called source"):
        find_lesion_masks(raw, {"source": manual})


def test_filter_on_the_suffix(tmp_path: Path) -> None:
    """A filter on the label finds masks only; a filter on the suffix finds any image."""
    images = [f"sub-01/anat/sub-01_label-WMH_{suffix}.nii.gz" for suffix in ("mask", "probseg")]
    synthetic.write_images(tmp_path, *images)
    assert names(find_lesion_masks(tmp_path, filters={"label": "WMH"})) == ["sub-01_label-WMH_mask.nii.gz"]
    assert names(find_lesion_masks(tmp_path, filters={"suffix": "probseg"})) == ["sub-01_label-WMH_probseg.nii.gz"]


def test_filter_on_stat(tmp_path: Path) -> None:
    """Maps of a lesion are found if a filter selects their stat."""
    image = "sub-01/func/sub-01_label-lesion_stat-t_mask.nii.gz"
    synthetic.write_images(tmp_path, image, LESION)
    assert names(find_lesion_masks(tmp_path, filters={"stat": "t"})) == [Path(image).name]


def test_nothing_found(tmp_path: Path) -> None:
    """If nothing matches, the message lists the request, the existing labels and near misses."""
    near = [f"sub-01/anat/sub-01_space-T1w_label-{label}_mask.nii.gz" for label in ("CSF", "GM", "WM", "b", "c", "d")]
    synthetic.write_images(
        tmp_path, *near, "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "sub-02/anat/sub-02_T2w.nii.gz"
    )
    with pytest.raises(NoLesionMasks) as caught:
        find_lesion_masks(tmp_path, participant_labels=["sub-01"], filters={"acquisition": None})
    assert str(caught.value).splitlines() == [
        f"no lesion mask in {tmp_path}",
        'participants: ["01"]',
        'filters: {"acquisition": null}',
        f"the rule, unless filters replace it: {LESION_RULE}",
        "NIfTI files there: 7",
        "  suffix: T1w (1), mask (6)",
        "  label: CSF (1), GM (1), WM (1), b (1), c (1), d (1)",
        "  desc: preproc (1)",
        "  space: T1w (6)",
        "  ses: none",
        "  acq: none",
        *(f"near miss: {tmp_path / image}" for image in near[:5]),
    ]


def test_no_images(tmp_path: Path) -> None:
    """The error for a dataset without images says so."""
    with pytest.raises(NoLesionMasks, match="NIfTI files there: 0"):
        find_lesion_masks(synthetic.write_images(tmp_path))


def test_unsearched_derivatives(tmp_path: Path) -> None:
    """If other derivatives contain lesion masks, the message shows the options that add them."""
    raw = synthetic.write_images(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    manual = synthetic.write_images(raw / "derivatives" / "manual", LESION)
    searched = synthetic.write_images(raw / "derivatives" / "searched", LESION)
    synthetic.write_images(raw / "derivatives" / "fmriprep", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    synthetic.write_images(raw / "derivatives" / "bids-lacuna", "sub-01/func/sub-01_label-lesion_stat-t_mask.nii.gz")
    with pytest.raises(NoLesionMasks) as caught:
        find_lesion_masks(raw, {"searched": searched}, filters={"label": "tumour"})
    hints = [line for line in str(caught.value).splitlines() if "-d" in line]
    assert hints == [f"{manual} has lesion masks: add -d {manual}"]
