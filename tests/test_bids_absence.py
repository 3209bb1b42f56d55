"""Participants without a lesion mask, and files that just miss being one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import synthetic
from program import map_lesions, read_table, run
from synthetic import DERIVATIVE

from bids_lacuna.bids import (
    NoLesionMasks,
    ParticipantWithoutMask,
    find_lesion_masks,
    find_participants_without_mask,
)

MASK = "sub-01/anat/sub-01_space-MNI152NLin6Asym_label-lesion_mask.nii.gz"


def find(root: Path, derivatives: dict[str, Path] | None = None, **options: Any) -> list[ParticipantWithoutMask]:
    """Find the participants without a mask as the command line does."""
    masks = find_lesion_masks(root, derivatives or {}, **options)
    return find_participants_without_mask(masks, root, derivatives or {}, **options)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("anat/sub-02_label-lesion_mask.nii (1).gz", "ending is '.nii (1).gz': save or rename it as .nii.gz"),
        ("anat/sub-02_label-lesion_mask.nii.gz.part", "ending is '.nii.gz.part'"),
        ("anat/sub-02_label-lesion_mask.NII.GZ", "ending is .NII.GZ: rename it to .nii.gz"),
        ("anat/sub-02_label-lesion_mask.Nii", "ending is .Nii: rename it to .nii"),
        ("anat/sub-02_label-lesion_mask.mgz", "ending is .mgz: convert it to NIfTI"),
        ("anat/sub-02_label-lesion_mask.img", "ending is .img: convert it"),
        ("anat/sub-02_label-lesion_mask.nrrd", "ending is .nrrd: convert it"),
        ("anat/sub-02_label-lesion_mask_copy.nii.gz", "suffix is copy, not mask"),
        ("anat/sub-02_label-lesion_mask (1).nii.gz", "suffix is mask (1), not mask"),
        ("anat/sub-02_label-lesion_Mask.nii.gz", "suffix is Mask, not mask"),
        ("anat/sub-02_label-lesion_dseg.nii.gz", "suffix is dseg, not mask"),
        ("anat/sub-02_lesion.nii.gz", "suffix is lesion, not mask"),
        ("anat/lesion.nii.gz", "suffix is lesion, not mask"),
        ("anat/label-lesion_mask.nii.gz", "name has no sub-<label>"),
        (
            "anat/sub-02_label-tumor_mask.nii.gz",
            'label is tumor, not lesion: select it with --bids-filter-file and {"',
        ),
        ("anat/sub-02_label-WMH_roi.nii.gz", "label is WMH, not lesion"),
        ("anat/sub-02_Label-lesion_mask.nii.gz", "has no label-lesion in its name"),
        ("anat/sub-02_lesion_mask.nii.gz", "has no label-lesion in its name"),
        ("anat/sub-02_mask.nii.gz", "has no label-lesion in its name"),
        ("anat/sub-02_desc-brain_mask.nii.gz", "no file there looks like one"),
        ("anat/sub-02_label-GM_mask.nii.gz", "no file there looks like one"),
        ("anat/sub-02_label-lesion_mask.json", "no file there looks like one"),
        ("func/sub-02_label-lesion_stat-t_mask.nii.gz", "no file there looks like one"),
        ("anat/.sub-02_label-lesion_mask.nii.gz", "no file there looks like one"),
        ("anat/sub-02_T1w.nii.gz", "no file there looks like one"),
    ],
)
def test_near_misses(tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, reason: str) -> None:
    """A participant without a mask is named, with the file that may be meant as one and what to do about it."""
    synthetic.write_images(tmp_path, MASK)
    path = tmp_path / "sub-02" / file
    path.parent.mkdir(parents=True)
    path.touch()
    (participant,) = find(tmp_path)
    assert (participant.label, participant.dataset) == ("02", "source")
    assert reason in participant.reason
    assert participant.path == (None if reason.startswith("no file") else path)
    assert "participants without a lesion mask: 1 of 2, sub-02: " in caplog.text
    assert (str(path) in caplog.text) == (participant.path is not None)


def test_nearest_miss(tmp_path: Path) -> None:
    """Of several files, the one that is most like a lesion mask is named."""
    files = ("mask.nii.gz", "label-WMH_mask.nii.gz", "label-lesion_dseg.nii.gz", "label-lesion_mask.mgz")
    images = [f"sub-02/anat/sub-02_{file}" for file in files]
    synthetic.write_images(tmp_path, MASK, *images)
    assert [participant.path for participant in find(tmp_path)] == [tmp_path / images[-1]]


def test_folder_linked_to_another(tmp_path: Path) -> None:
    """A participant whose folder is a link to another one's has no mask of their own."""
    synthetic.write_images(tmp_path, MASK)
    (tmp_path / "sub-02").symlink_to("sub-01")
    (participant,) = find(tmp_path)
    assert participant.reason.startswith("a mask there has another participant's label")


def test_everybody_has_a_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Masks in another dataset, at the root or in a folder for participant and session count; nothing is said."""
    root = synthetic.write_images(
        tmp_path / "raw",
        MASK,
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz",
        "sub-03_label-lesion_mask.nii.gz",
        "sub-04_ses-1/anat/sub-04_ses-1_label-lesion_mask.nii.gz",
        "sub-01/anat/sub-01_label-lesion_probseg.nii.gz",
        MASK.replace(".nii.gz", ".mgz"),
        "code/subjects/sub-07.nii.gz",
    )
    other = synthetic.write_images(tmp_path / "other", MASK.replace("01", "02"), description=DERIVATIVE)
    assert find(root, {"other": other}) == []
    assert not caplog.records


def test_participants_of_all_datasets(tmp_path: Path) -> None:
    """Participants are those of all datasets; the near miss may be in any."""
    raw = synthetic.write_images(tmp_path / "raw", MASK, "sub-02/anat/sub-02_T1w.nii.gz")
    miss = "sub-02/anat/sub-02_label-lesion_dseg.nii.gz"
    other = synthetic.write_images(tmp_path / "other", miss, "sub-03/anat/sub-03_T1w.nii.gz", description=DERIVATIVE)
    found = find(raw, {"other": other})
    assert [(each.label, each.dataset, each.path) for each in found] == [
        ("02", "source", other / miss),
        ("03", "other", None),
    ]


@pytest.mark.parametrize(
    ("options", "label", "reason"),
    [
        ({"session_labels": ["1"]}, "02", "the masks are of other sessions"),
        ({"filters": {"ses": "1"}}, "02", "the filters leave a mask out"),
        ({"filters": {"label": "*", "ses": "1"}}, "02", "the filters leave a mask out"),
        ({"participant_labels": ["01", "sub-03"]}, "03", "no file there looks like one"),
    ],
)
def test_selections(tmp_path: Path, options: dict[str, Any], label: str, reason: str) -> None:
    """Among those who were asked for, participants are named whom the sessions or filters leave without a mask."""
    masks = [f"sub-0{i}/ses-{i}/anat/sub-0{i}_ses-{i}_label-lesion_mask.nii.gz" for i in (1, 2)]
    synthetic.write_images(tmp_path, *masks, "sub-03/ses-1/anat/sub-03_ses-1_T1w.nii.gz")
    reasons = {participant.label: participant.reason for participant in find(tmp_path, **options)}
    assert reasons[label].startswith(reason)
    assert set(reasons) == ({"03"} if "participant_labels" in options else {"02", "03"})


def test_further_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second mask of a participant is named if only its ending keeps it from being found."""
    second = tmp_path / "sub-01/ses-2/anat/sub-01_ses-2_label-lesion_mask.NII.GZ"
    synthetic.write_images(tmp_path, MASK)
    second.parent.mkdir(parents=True)
    second.touch()
    assert find(tmp_path) == []
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"left out, although they may be or hold further lesion masks: 1, such as {second}: ")
    assert message.endswith("a file's ending is .NII.GZ: rename it to .nii.gz")


@pytest.mark.parametrize("folder", ["sub02", "SUB-02", "sub_02", "subject-02", "patient02"])
def test_misnamed_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str) -> None:
    """A folder that is not called sub-<label> is named if a file in it may be a mask."""
    synthetic.write_images(tmp_path, MASK, f"{folder}/anat/{folder}_lesion.nii.gz")
    assert find(tmp_path) == []
    assert f"folders left out that may be participants': {tmp_path / folder}; name each sub-<label>" in caplog.text


def test_many_without_a_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning names all participants with the same reason."""
    synthetic.write_images(tmp_path, MASK)
    labels = [f"c{number}" for number in range(100)]
    for label in labels:
        (tmp_path / f"sub-{label}").mkdir()
    assert [participant.label for participant in find(tmp_path)] == sorted(labels)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("participants without a lesion mask: 100 of 101, ")
    assert all(f"sub-{label}" in message for label in labels)


def test_nothing_but_near_misses(tmp_path: Path) -> None:
    """If no mask is found at all, the error names near misses with other endings and suffixes, too."""
    synthetic.write_images(tmp_path)
    paths = [tmp_path / f"sub-01{place}_label-lesion_{end}" for place, end in (("/sub-01", "mask.mgz"),)]
    paths += [tmp_path / "sub-02/anat/sub-02_label-lesion_dseg.nii.gz"]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    with pytest.raises(NoLesionMasks) as caught:
        find_lesion_masks(tmp_path)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("near miss")]
    assert [line.split(": ")[1] for line in lines] == list(map(str, paths))


def rows_without_mask(rows: Sequence[dict[str, str]]) -> list[tuple[str, str, str]]:
    """Return participant, mask and reason of the rows without a mask."""
    return [(row["sub"], row["mask"], row["reason"]) for row in rows if row["status"] == "no mask"]


def test_both_levels_name_participants_without_a_mask(tmp_path: Path) -> None:
    """Six of twelve participants are mapped; lesions.tsv, both levels and the group's files name the others."""
    mask = synthetic.make_mask()
    connectome = synthetic.write_connectome(
        tmp_path / "GSP5.h5", synthetic.make_series(int(mask.sum()), [23] * 5), mask
    )
    bids, out = tmp_path / "bids", tmp_path / "out"
    synthetic.write_dataset(bids, {})
    for number in range(12):
        name = f"sub-{number:02}/anat/sub-{number:02}_space-{synthetic.SPACE}_label-lesion_mask"
        path = synthetic.write_mask(bids / f"{name}.nii.gz", synthetic.box((number % 3, 2, 4)))
        if number >= 6:
            path.rename(path.with_name(path.name.replace(".nii.gz", ".nii (1).gz")))
    ended = map_lesions(bids, out, connectome)
    lost = [f"{number:02}" for number in range(6, 12)]
    assert ended.returncode == 0, ended.stderr
    assert (
        "participants without a lesion mask: 6 of 12, sub-06, sub-07, sub-08, sub-09, sub-10, sub-11: "
        in ended.stderr
    )
    assert "6 done, 0 skipped, 0 failed, participants without a mask: 6" in ended.stderr
    rows = read_table(out)
    assert [(sub, file) for sub, file, _ in rows_without_mask(rows)] == [(label, "n/a") for label in lost]
    assert all(".nii (1).gz" in reason for _, _, reason in rows_without_mask(rows))
    assert sum(row["status"] == "done" for row in rows) == 6

    dry = run(bids, out, "group", "--dry-run")
    assert all(f"no mask sub-{label}" in dry.stdout for label in lost)
    ended = run(bids, out, "group", "--no-reports", "-q")
    assert ended.returncode == 0, ended.stderr
    assert all(f"sub-{label}" in ended.stderr for label in lost)
    warnings = json.loads((out / "group_lesions.json").read_text())["Warnings"]
    assert any(all(f"sub-{label}" in warning for label in lost) for warning in warnings)
