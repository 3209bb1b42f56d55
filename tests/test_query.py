"""Lesion masks and BOLD runs found in datasets on disk: by their names, their sidecars and filters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bids_lacuna.bids.index import (
    BOLD_RULE,
    LESION_RULE,
    BoldRun,
    LesionMask,
    NoBoldRuns,
    NoLesionMasks,
    UnknownParticipant,
    find_bold_runs,
    find_lesion_masks,
    read_filter_file,
)

RAW = {"Name": "made up", "BIDSVersion": "1.10.0"}
DERIVATIVE = {**RAW, "DatasetType": "derivative", "GeneratedBy": [{"Name": "manual"}]}
LESION = "sub-01/anat/sub-01_label-lesion_mask.nii.gz"
SPACE = "MNI152NLin2009cAsym"
REST = f"sub-01/func/sub-01_task-rest_space-{SPACE}_res-2_"
DENOISED = f"{REST}desc-denoised_bold.nii.gz"


def write_dataset(root: Path, *images: str, description: Any = RAW) -> Path:
    """Write a dataset with NIfTI files of one voxel."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(description))
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((1, 1, 1), np.uint8), np.eye(4)), root / image)
    return root


def names(found: Sequence[LesionMask | BoldRun]) -> list[str]:
    """List the file names of masks or runs."""
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
def test_names_of_the_wild(tmp_path: Path, image: str) -> None:
    """A lesion mask is known by its label or desc, in any folder of the participant."""
    (mask,) = find_lesion_masks(write_dataset(tmp_path, image))
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
    """Brain masks, tissue masks, probabilities, thresholded maps and templates are no lesion masks."""
    write_dataset(tmp_path, image, LESION)
    assert names(find_lesion_masks(tmp_path)) == [Path(LESION).name]


@pytest.mark.parametrize(
    "description",
    [RAW, DERIVATIVE, {**RAW, "DatasetType": "derivative"}, {**RAW, "PipelineDescription": {"Name": "old"}}],
)
@pytest.mark.parametrize("dataset_type", ["raw", "derivative"])
def test_kinds_of_dataset(tmp_path: Path, description: dict[str, Any], dataset_type: str) -> None:
    """Raw datasets and derivatives are read alike, whatever they say of what made them."""
    write_dataset(tmp_path, LESION, description={**description, "DatasetType": dataset_type})
    assert names(find_lesion_masks(tmp_path)) == [Path(LESION).name]


def test_what_is_known_of_a_mask(tmp_path: Path) -> None:
    """Entities are the name's, in its order, with those that BIDS does not know; dataset and paths are absolute."""
    image = "sub-01/ses-2/anat/sub-01_ses-2_acq-x_odd-7_run-01_space-MNI152NLin6Asym_label-lesion_desc-y_mask.nii.gz"
    (mask,) = find_lesion_masks(write_dataset(tmp_path, image))
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
    write_dataset(tmp_path / "data", LESION)
    monkeypatch.chdir(tmp_path)
    (mask,) = find_lesion_masks(Path("data"))
    assert (mask.path, mask.dataset_path) == (tmp_path / "data" / LESION, tmp_path / "data")


def test_folders_above_the_dataset(tmp_path: Path) -> None:
    """What looks like an entity in the path to a dataset is none of its files'."""
    root = write_dataset(
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
    """A mask without space in its name has its sidecar's, where that names one."""
    write_dataset(tmp_path, LESION)
    if sidecar is not None:
        (tmp_path / LESION.replace(".nii.gz", ".json")).write_text(sidecar)
    assert [mask.space for mask in find_lesion_masks(tmp_path)] == [space]


def test_name_before_sidecar(tmp_path: Path) -> None:
    """The space in the name is believed before the sidecar's."""
    image = "sub-01/anat/sub-01_space-T1w_label-lesion_mask.nii.gz"
    write_dataset(tmp_path, image)
    (tmp_path / image.replace(".nii.gz", ".json")).write_text('{"SpatialReference": "MNI152NLin6Asym"}')
    assert [mask.space for mask in find_lesion_masks(tmp_path)] == ["T1w"]


def test_type_in_the_sidecar(tmp_path: Path) -> None:
    """A mask whose name tells nothing is a lesion's if its sidecar says so, with a byte order mark or without."""
    write_dataset(tmp_path, *(f"sub-0{i}/anat/sub-0{i}_desc-manual_mask.nii.gz" for i in (1, 2, 3)))
    for i, encoding, kind in ((1, "utf-8", "Lesion"), (2, "utf-8-sig", "Lesion"), (3, "utf-8", "Brain")):
        path = tmp_path / f"sub-0{i}/anat/sub-0{i}_desc-manual_mask.json"
        path.write_text(json.dumps({"Type": kind}), encoding)
    assert [mask.entities["sub"] for mask in find_lesion_masks(tmp_path)] == ["01", "02"]


def test_damaged_sidecar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged sidecar is left out with a warning that names it; its mask stays."""
    write_dataset(tmp_path, LESION)
    sidecar = tmp_path / LESION.replace(".nii.gz", ".json")
    sidecar.write_text("{")
    assert [mask.space for mask in find_lesion_masks(tmp_path)] == [None]
    assert str(sidecar) in caplog.text


@pytest.mark.parametrize("with_database", [False, True])
def test_links_to_nowhere(tmp_path: Path, with_database: bool) -> None:
    """In a DataLad clone without content, masks are listed with their BIDS names, and sidecars are no obstacle."""
    root = write_dataset(tmp_path / "clone", description=DERIVATIVE)
    (root / "sub-01" / "anat").mkdir(parents=True)
    for name in (
        LESION,
        LESION.replace(".nii.gz", ".json"),
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "task.json",
    ):
        (root / name).symlink_to("../../.git/annex/objects/MD5E-s7--1" + name[-7:])
    (mask,) = find_lesion_masks(root, database_dir=tmp_path / "database" if with_database else None)
    assert mask.path == root / LESION
    assert not mask.path.exists()


def test_links_stay(tmp_path: Path) -> None:
    """The path of a linked mask is the link's, since the content's name is not BIDS."""
    content = write_dataset(tmp_path / "annex", "MD5E-s7--1.nii.gz") / "MD5E-s7--1.nii.gz"
    root = write_dataset(tmp_path / "clone", "sub-02/anat/sub-02_T1w.nii.gz")
    link = root / "sub-02/anat/sub-02_label-lesion_mask.nii.gz"
    link.symlink_to(content)
    (mask,) = find_lesion_masks(root)
    assert mask.path == link


def test_junk(tmp_path: Path) -> None:
    """Hidden files and folders, other datasets within, empty and oddly named files are passed over."""
    write_dataset(
        tmp_path,
        LESION,
        *(
            f"{folder}/{LESION}"
            for folder in (
                ".git/annex",
                ".datalad",
                "sourcedata",
                "code",
                "stimuli",
                "derivatives/masks",
                "sub-01/.x",
            )
        ),
    )
    for name in ("._sub-01_label-lesion_mask.nii.gz", "sub-01_label-lesion_mask.nii.gz.tmp", "lésion (1).nii.gz"):
        (tmp_path / "sub-01" / "anat" / name).touch()
    (tmp_path / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "sub-02.html").touch()
    assert [mask.path for mask in find_lesion_masks(tmp_path)] == [tmp_path / LESION]


def test_two_lesions_in_one_session(tmp_path: Path) -> None:
    """Both lesions of a session are found, each by its own entities, sorted by path."""
    masks = [f"sub-01/ses-1/anat/sub-01_ses-1_label-lesion_desc-{side}_mask.nii.gz" for side in ("right", "left")]
    found = find_lesion_masks(write_dataset(tmp_path, *masks))
    assert [mask.entities["desc"] for mask in found] == ["left", "right"]


def test_raw_and_derivatives(tmp_path: Path) -> None:
    """Masks of every dataset are listed together with the name of the one they are from."""
    raw = write_dataset(tmp_path / "raw", "sub-02/anat/sub-02_T1w.nii.gz", LESION.replace("_mask", "_roi"))
    manual = write_dataset(raw / "derivatives" / "manual", LESION, description=DERIVATIVE)
    other = write_dataset(tmp_path / "other", LESION.replace("01", "02"), description=DERIVATIVE)
    found = find_lesion_masks(raw, {"tracings": manual, "other": other})
    assert [(mask.dataset, mask.dataset_path, mask.entities["sub"]) for mask in found] == [
        ("other", other, "02"),
        ("tracings", manual, "01"),
        ("source", raw, "01"),
    ]
    with pytest.raises(ValueError, match="called source"):
        find_lesion_masks(raw, {"source": manual})


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Make three participants with two sessions each, and a brain mask for each lesion."""
    return write_dataset(
        tmp_path / "patients",
        *(
            f"sub-{sub}/ses-{ses}/anat/sub-{sub}_ses-{ses}_run-{run}_{kind}_mask.nii.gz"
            for sub in ("1", "01", "011")
            for ses, run in (("pre", "01"), ("post", "2"))
            for kind in ("label-lesion", "desc-brain", "label-tumour")
        ),
    )


@pytest.mark.parametrize("with_database", [False, True])
@pytest.mark.parametrize("labels", [["01"], ["sub-01"], ["sub-1", "011"], []])
def test_participants(patients: Path, tmp_path: Path, labels: list[str], with_database: bool) -> None:
    """Participants are those asked for, with or without sub-, and never those whose labels are alike."""
    database = tmp_path / "database" if with_database else None
    found = find_lesion_masks(patients, participant_labels=labels, database_dir=database)
    expected = {label.removeprefix("sub-") for label in labels} or {"1", "01", "011"}
    assert {mask.entities["sub"] for mask in found} == expected
    assert len(found) == 2 * len(expected)


@pytest.mark.parametrize("label", ["post", "ses-post"])
def test_sessions(patients: Path, label: str) -> None:
    """Sessions are those asked for, with or without ses-."""
    found = find_lesion_masks(patients, participant_labels=["01"], session_labels=[label])
    assert names(found) == ["sub-01_ses-post_run-2_label-lesion_mask.nii.gz"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, 6),
        ({"subject": "01"}, 2),
        ({"sub": ["sub-01", "1"]}, 4),
        ({"session": "ses-pre"}, 3),
        ({"ses": ["pre", "post"], "datatype": "anat"}, 6),
        ({"label": "tumour"}, 6),
        ({"label": "*"}, 12),
        ({"label": None}, 6),
        ({"label": [None, "tumour"]}, 12),
        ({"desc": "brain"}, 6),
        ({"suffix": "mask"}, 18),
        ({"acquisition": None}, 6),
        ({"run": 1}, 3),
        ({"run": "02"}, 3),
        ({"extension": "nii.gz"}, 6),
        ({"extension": ".nii.gz", "space": None, "stat": None}, 6),
    ],
)
def test_filters(patients: Path, filters: dict[str, Any], expected: int) -> None:
    """A filter holds a label, labels, null for none or "*" for any; on label, desc or suffix it replaces the rule."""
    assert len(find_lesion_masks(patients, filters=filters)) == expected


def test_filter_on_the_suffix(tmp_path: Path) -> None:
    """A filter on the label alone finds masks, one with the suffix whatever it asks for."""
    images = [f"sub-01/anat/sub-01_label-WMH_{suffix}.nii.gz" for suffix in ("mask", "probseg")]
    write_dataset(tmp_path, *images)
    assert names(find_lesion_masks(tmp_path, filters={"label": "WMH"})) == ["sub-01_label-WMH_mask.nii.gz"]
    assert names(find_lesion_masks(tmp_path, filters={"suffix": "probseg"})) == ["sub-01_label-WMH_probseg.nii.gz"]


def test_filter_on_stat(tmp_path: Path) -> None:
    """Maps made of a lesion are found where a filter asks for their stat."""
    image = "sub-01/func/sub-01_label-lesion_stat-t_mask.nii.gz"
    write_dataset(tmp_path, image, LESION)
    assert names(find_lesion_masks(tmp_path, filters={"stat": "t"})) == [Path(image).name]


@pytest.mark.parametrize(
    ("entity", "nearest"), [("labl", "label"), ("subjects", "subject"), ("scope", "space"), ("%", ".*")]
)
def test_unknown_entity(patients: Path, entity: str, nearest: str) -> None:
    """A filter on what is no entity is an error that names the nearest one."""
    with pytest.raises(ValueError, match=rf"'{entity}', which is no entity of BIDS: is '{nearest}' meant"):
        find_lesion_masks(patients, filters={entity: "x"})


def test_unknown_participant(patients: Path) -> None:
    """Participants that no dataset has are named with those there are."""
    with pytest.raises(UnknownParticipant, match=r"no participant 02, 03: there are 01, 011, 1$"):
        find_lesion_masks(patients, participant_labels=["01", "sub-02", "03"])


def test_participant_of_a_derivative(patients: Path, tmp_path: Path) -> None:
    """A participant may be in a further dataset only."""
    other = write_dataset(tmp_path / "other", LESION.replace("01", "02"))
    (mask,) = find_lesion_masks(patients, {"other": other}, participant_labels=["02"])
    assert mask.dataset == "other"


def test_many_participants(tmp_path: Path) -> None:
    """Of many labels, twenty are listed and the rest counted."""
    write_dataset(tmp_path)
    for number in range(100, 123):
        (tmp_path / f"sub-{number}").mkdir()
    with pytest.raises(UnknownParticipant, match=r"there are 100, 101, .*, 119 and 3 more$"):
        find_lesion_masks(tmp_path, participant_labels=["x"])


def test_unknown_session(patients: Path, tmp_path: Path) -> None:
    """Sessions that no dataset has are named with those there are, if any."""
    with pytest.raises(UnknownParticipant, match=r"no session mid: there are post, pre$"):
        find_lesion_masks(patients, session_labels=["mid", "pre"])
    with pytest.raises(UnknownParticipant, match=r"no session pre: there are no sub-\*/ses-\* folders$"):
        find_lesion_masks(write_dataset(tmp_path / "other", LESION), session_labels=["pre"])


def test_nothing_found(tmp_path: Path) -> None:
    """When nothing matches, the message says what was asked for, what there is, and what comes near."""
    near = [f"sub-01/anat/sub-01_space-T1w_label-{label}_mask.nii.gz" for label in ("CSF", "GM", "WM", "b", "c", "d")]
    write_dataset(tmp_path, *near, "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "sub-02/anat/sub-02_T2w.nii.gz")
    with pytest.raises(NoLesionMasks) as caught:
        find_lesion_masks(tmp_path, participant_labels=["sub-01"], filters={"acquisition": None})
    assert str(caught.value).splitlines() == [
        f"no lesion mask in {tmp_path}",
        'participants: ["01"]',
        'filters: {"acquisition": null}',
        f"the rule, where no filter says otherwise: {LESION_RULE}",
        "NIfTI files there: 7",
        "  suffix: T1w (1), mask (6)",
        "  label: CSF (1), GM (1), WM (1), b (1), c (1), d (1)",
        "  desc: preproc (1)",
        "  space: T1w (6)",
        "  ses: none",
        "  acq: none",
        *(f"near miss: {tmp_path / image}" for image in near[:5]),
    ]


def test_lesions_that_filters_leave_out(patients: Path) -> None:
    """Among near misses, lesion masks come first."""
    with pytest.raises(NoLesionMasks, match=r"\n  run: 01 \(9\), 2 \(9\)\nnear miss: .*_label-lesion_mask.nii.gz\n"):
        find_lesion_masks(patients, filters={"run": 7})


def test_no_images(tmp_path: Path) -> None:
    """A dataset without any image says so."""
    with pytest.raises(NoLesionMasks, match="NIfTI files there: 0"):
        find_lesion_masks(write_dataset(tmp_path))


def test_unsearched_derivatives(tmp_path: Path) -> None:
    """When derivatives hold lesion masks, the message has the flags that add them."""
    raw = write_dataset(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    manual = write_dataset(raw / "derivatives" / "manual", LESION)
    searched = write_dataset(raw / "derivatives" / "searched", LESION)
    write_dataset(raw / "derivatives" / "fmriprep", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    write_dataset(raw / "derivatives" / "bids-lacuna", "sub-01/func/sub-01_label-lesion_stat-t_mask.nii.gz")
    with pytest.raises(NoLesionMasks) as caught:
        find_lesion_masks(raw, {"searched": searched}, filters={"label": "tumour"})
    hints = [line for line in str(caught.value).splitlines() if "-d" in line]
    assert hints == [f"{manual} has lesion masks: add -d {manual}"]


def test_database_is_kept(patients: Path, tmp_path: Path) -> None:
    """An index made for one participant serves all, does not see later files, and says so."""
    database = tmp_path / "deep" / "database"
    first = find_lesion_masks(patients, participant_labels=["01"], database_dir=database)
    indices = sorted(database.iterdir())
    write_dataset(patients, "sub-01/anat/sub-01_label-wound_mask.nii.gz")
    assert find_lesion_masks(patients, participant_labels=["01"], database_dir=database) == first
    assert find_lesion_masks(patients, database_dir=database) == find_lesion_masks(patients)
    assert sorted(database.iterdir()) == indices
    with pytest.raises(NoLesionMasks, match=f"the index in {database} may be older"):
        find_lesion_masks(patients, filters={"label": "wound"}, database_dir=database)


def test_databases_of_two_datasets(tmp_path: Path) -> None:
    """Datasets that share a database folder, and the name `source`, keep their own indices."""
    for number in ("01", "02"):
        root = write_dataset(tmp_path / number, LESION.replace("01", number))
        (mask,) = find_lesion_masks(root, database_dir=tmp_path / "database")
        assert mask.path == root / LESION.replace("01", number)


def test_no_dataset(tmp_path: Path) -> None:
    """A folder that is no BIDS root is an error that shows how to make it one."""
    (tmp_path / "sub-01").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r'no dataset_description.json: .* \{"Name": "my data", "BIDSVersion"'
    ):
        find_lesion_masks(tmp_path)
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        find_lesion_masks(write_dataset(tmp_path, LESION), {"x": tmp_path / "nowhere"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a JSON list"),
        (json.dumps({**DERIVATIVE, "GeneratedBy": {"Name": "manual"}}), "GeneratedBy in .* is no list of objects"),
    ],
)
def test_damaged_description(tmp_path: Path, content: str, message: str) -> None:
    """A damaged dataset_description.json is an error that names it."""
    write_dataset(tmp_path, LESION)
    (tmp_path / "dataset_description.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        find_lesion_masks(tmp_path)
    assert str(tmp_path / "dataset_description.json") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "filters"),
    [
        ({"lesion": {"space": "T1w", "run": None}, "bold": {"task": "rest"}}, {"space": "T1w", "run": None}),
        ({"t1w": {"datatype": "anat"}}, {}),
        ({"lesion": None}, {}),
    ],
)
def test_filter_file(tmp_path: Path, content: Any, filters: dict[str, Any]) -> None:
    """Of a filter file only what it says about lesions counts."""
    path = tmp_path / "filters.json"
    path.write_text(json.dumps(content))
    assert read_filter_file(path) == filters


def test_filter_file_without_the_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Filters on the runs of a connectome have a key of their own; that there are none is said."""
    path = tmp_path / "filters.json"
    path.write_text('{"bold": {"task": "movie"}}')
    assert read_filter_file(path, "bold") == {"task": "movie"}
    assert not caplog.records
    assert read_filter_file(path) == {}
    assert 'no filters under "lesion" (it has bold)' in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"lesion": "01"}'])
def test_damaged_filter_file(tmp_path: Path, content: str) -> None:
    """A filter file that is no JSON, or no object of objects, is an error that names it."""
    path = tmp_path / "filters.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"filters\.json"):
        read_filter_file(path)


def test_bold_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a derivative dataset, the denoised resting-state runs in one space are found, and nothing else of it."""
    session = f"sub-02/ses-2/func/sub-02_ses-2_task-rest_run-10_space-{SPACE}_desc-denoised_bold.nii"
    write_dataset(
        tmp_path,
        DENOISED,
        session,
        f"{REST}desc-preproc_bold.nii.gz",
        f"{REST}desc-denoisedSmoothed_bold.nii.gz",
        f"{REST}echo-1_desc-denoised_bold.nii.gz",
        f"{REST}boldref.nii.gz",
        f"{REST}stat-alff_boldmap.nii.gz",
        DENOISED.replace("rest", "movie"),
        DENOISED.replace(SPACE, "MNI152NLin6Asym"),
        DENOISED.replace(f"space-{SPACE}_res-2_", ""),
        DENOISED.replace("/func/", "/figures/"),
        f"sub-01/func/sub-01_task-rest_space-{SPACE}_den-91k_desc-denoised_bold.dtseries.nii",
        f"derivatives/other/{DENOISED}",
        f"tpl-x/func/tpl-x_task-rest_space-{SPACE}_desc-denoised_bold.nii.gz",
        description=DERIVATIVE,
    )
    for half in "LR":
        (tmp_path / f"sub-01/func/sub-01_task-rest_hemi-{half}_space-{SPACE}_desc-denoised_bold.func.gii").touch()
    first, second = find_bold_runs(tmp_path, SPACE)
    assert first == BoldRun(
        tmp_path / DENOISED, {"sub": "01", "task": "rest", "space": SPACE, "res": "2", "desc": "denoised"}, None
    )
    assert second.path == tmp_path / session
    assert not caplog.records


def test_preprocessed_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without denoised runs, preprocessed ones are taken, with a warning that they are not denoised."""
    run = f"{REST}desc-preproc_bold.nii.gz"
    write_dataset(tmp_path, run, DENOISED.replace("rest", "movie"))
    assert names(find_bold_runs(tmp_path, SPACE)) == [Path(run).name]
    assert f"1 runs, such as {tmp_path / run}, are preprocessed but not denoised" in caplog.text
    assert "XCP-D" in caplog.text


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {"01", "02"}),
        ({"desc": "preproc"}, {"03"}),
        ({"desc": ["denoised", "preproc"]}, {"01", "02", "03"}),
        ({"desc": None}, {"04"}),
        ({"task": "movie"}, {"05"}),
        ({"task": "*"}, {"01", "02", "05"}),
        ({"space": "T1w"}, {"06"}),
        ({"space": None}, {"07"}),
        ({"res": "2"}, {"01"}),
        ({"res": None}, {"02"}),
        ({"echo": 1}, {"08"}),
        ({"suffix": "cbv"}, {"09"}),
        ({"datatype": "perf"}, {"10"}),
        ({"subject": "02", "extension": ".nii.gz"}, {"02"}),
    ],
)
def test_filters_on_runs(tmp_path: Path, filters: dict[str, Any], expected: set[str]) -> None:
    """A filter takes the place of the rule about its entity, and adds to the others."""
    runs = {
        "01": f"func/*_task-rest_space-{SPACE}_res-2_desc-denoised_bold",
        "02": f"func/*_task-rest_space-{SPACE}_desc-denoised_bold",
        "03": f"func/*_task-rest_space-{SPACE}_desc-preproc_bold",
        "04": f"func/*_task-rest_space-{SPACE}_bold",
        "05": f"func/*_task-movie_space-{SPACE}_desc-denoised_bold",
        "06": "func/*_task-rest_space-T1w_desc-denoised_bold",
        "07": "func/*_task-rest_desc-denoised_bold",
        "08": f"func/*_task-rest_echo-1_space-{SPACE}_desc-denoised_bold",
        "09": f"func/*_task-rest_space-{SPACE}_desc-denoised_cbv",
        "10": f"perf/*_task-rest_space-{SPACE}_desc-denoised_bold",
    }
    write_dataset(tmp_path, *(f"sub-{sub}/{run.replace('*', f'sub-{sub}')}.nii.gz" for sub, run in runs.items()))
    assert {run.entities["sub"] for run in find_bold_runs(tmp_path, SPACE, filters)} == expected


def test_brain_masks_of_runs(tmp_path: Path) -> None:
    """A run's brain mask has its folder and all its entities but desc."""
    run, mask = f"{REST}desc-denoised_bold.nii.gz", f"{REST}desc-brain_mask.nii"
    others = [
        mask.replace("_res-2", ""),
        mask.replace("_res-2", "_res-1"),
        mask.replace("_task-rest", "_task-rest_run-1"),
        mask.replace("/func/", "/anat/"),
        mask.replace("desc-brain", "desc-CompCorT"),
        mask.replace("_mask", "_probseg"),
    ]
    write_dataset(tmp_path, run, *others)
    assert [found.brain_mask for found in find_bold_runs(tmp_path, SPACE)] == [None]
    write_dataset(tmp_path, mask)
    assert [found.brain_mask for found in find_bold_runs(tmp_path, SPACE)] == [tmp_path / mask]


@pytest.mark.parametrize(
    ("runs", "joined"),
    [
        (["run-1_", "run-02_"], ""),
        (["run-001_"], ""),
        (["dir-AP_run-1_", "dir-PA_run-2_"], ""),
        (["dir-AP_run-1_", "dir-AP_run-2_"], "dir-AP_"),
        (["dir-AP_", "dir-PA_"], ""),
    ],
)
def test_joined_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture, runs: list[str], joined: str) -> None:
    """What XCP-D joined from runs is left out with a warning, so that none counts twice; a filter chooses it."""
    write_dataset(tmp_path, *(DENOISED.replace("space-", f"{entities}space-") for entities in [*runs, joined]))
    found = find_bold_runs(tmp_path, SPACE)
    assert names(found) == sorted(Path(DENOISED).name.replace("space-", f"{run}space-") for run in runs)
    assert "1 series, such as" in caplog.text
    filters = {"run": None, "dir": joined.removeprefix("dir-").removesuffix("_") or None}
    assert names(find_bold_runs(tmp_path, SPACE, filters)) == [
        Path(DENOISED).name.replace("space-", f"{joined}space-")
    ]


def test_runs_that_are_not_joined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbered runs of another session, task or desc, or of a program that joins none, leave nothing out."""
    run = DENOISED.replace("01/func/sub-01", "01/ses-1/func/sub-01_ses-1")
    write_dataset(tmp_path, run, run.replace("ses-1", "ses-2").replace("space-", "run-1_space-"))
    assert len(find_bold_runs(tmp_path, SPACE)) == 2
    assert not caplog.records
    preprocessed = DENOISED.replace("denoised", "preproc").replace("01", "02")
    write_dataset(tmp_path, preprocessed, preprocessed.replace("space-", "run-2_space-"))
    assert len(find_bold_runs(tmp_path, SPACE, {"desc": "preproc"})) == 2


def test_no_runs(tmp_path: Path) -> None:
    """When no run matches, the message says what was asked for, what there is, and what comes near."""
    write_dataset(tmp_path, DENOISED, DENOISED.replace("rest", "movie"), LESION)
    with pytest.raises(NoBoldRuns) as caught:
        find_bold_runs(tmp_path, "MNI152NLin6Asym", {"run": "1"})
    assert str(caught.value).splitlines() == [
        f"no BOLD run in {tmp_path}",
        'space: "MNI152NLin6Asym"',
        'filters: {"run": "1"}',
        f"the rule, where no filter says otherwise: {BOLD_RULE}",
        "NIfTI files there: 3",
        "  suffix: bold (2), mask (1)",
        "  task: movie (1), rest (1)",
        f"  space: {SPACE} (2)",
        "  desc: denoised (2)",
        "  ses: none",
        "  datatype: anat (1), func (2)",
        "  echo: none",
        "  run: none",
        f"near miss: {tmp_path / DENOISED.replace('rest', 'movie')}",
        f"near miss: {tmp_path / DENOISED}",
    ]


def test_no_dataset_of_runs(tmp_path: Path) -> None:
    """A folder of runs must be a BIDS dataset."""
    with pytest.raises(FileNotFoundError, match=r"no dataset_description\.json"):
        find_bold_runs(tmp_path, SPACE)
    with pytest.raises(ValueError, match="'tsk', which is no entity of BIDS: is 'task' meant"):
        find_bold_runs(write_dataset(tmp_path, DENOISED), SPACE, {"tsk": "rest"})
