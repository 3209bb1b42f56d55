"""BOLD runs of a connectome found in the derivatives of fMRIPrep and XCP-D."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import synthetic
from synthetic import DERIVATIVE

from bids_lacuna.bids import BoldRun, NoBoldRuns, find_bold_runs
from bids_lacuna.bids.bold import BOLD_RULE

LESION = "sub-01/anat/sub-01_label-lesion_mask.nii.gz"
SPACE = "MNI152NLin2009cAsym"
REST = f"sub-01/func/sub-01_task-rest_space-{SPACE}_res-2_"
DENOISED = f"{REST}desc-denoised_bold.nii.gz"


def names(found: Sequence[BoldRun]) -> list[str]:
    """List the file names of BOLD runs."""
    return [file.path.name for file in found]


def test_bold_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only the denoised resting-state BOLD runs in one space are found in a derivative dataset."""
    session = f"sub-02/ses-2/func/sub-02_ses-2_task-rest_run-10_space-{SPACE}_desc-denoised_bold.nii"
    synthetic.write_images(
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
    """Without denoised BOLD runs, preprocessed ones are used, with a warning that they are not denoised."""
    run = f"{REST}desc-preproc_bold.nii.gz"
    synthetic.write_images(tmp_path, run, DENOISED.replace("rest", "movie"))
    assert names(find_bold_runs(tmp_path, SPACE)) == [Path(run).name]
    assert f"BOLD runs that are preprocessed but not denoised: 1, such as {tmp_path / run};" in caplog.text
    assert "motion and the signals of white matter, cerebrospinal fluid and the whole brain" in caplog.text
    command = f"xcp_d {tmp_path} {tmp_path.parent / 'xcp_d'} participant --mode linc --file-format nifti"
    assert f"denoise them first, for example by `{command}`" in caplog.text
    caplog.clear()
    find_bold_runs(tmp_path, SPACE, {"desc": "preproc"})
    assert "preprocessed but not denoised: 1" in caplog.text


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
    """A filter replaces the rule about its entity and is combined with the other rules."""
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
    synthetic.write_images(
        tmp_path, *(f"sub-{sub}/{run.replace('*', f'sub-{sub}')}.nii.gz" for sub, run in runs.items())
    )
    assert {run.entities["sub"] for run in find_bold_runs(tmp_path, SPACE, filters)} == expected


def test_brain_masks_of_runs(tmp_path: Path) -> None:
    """The brain mask of a BOLD run is in the same folder and has the same entities except desc."""
    run, mask = f"{REST}desc-denoised_bold.nii.gz", f"{REST}desc-brain_mask.nii"
    others = [
        mask.replace("_res-2", ""),
        mask.replace("_res-2", "_res-1"),
        mask.replace("_task-rest", "_task-rest_run-1"),
        mask.replace("/func/", "/anat/"),
        mask.replace("desc-brain", "desc-CompCorT"),
        mask.replace("_mask", "_probseg"),
    ]
    synthetic.write_images(tmp_path, run, *others)
    assert [found.brain_mask for found in find_bold_runs(tmp_path, SPACE)] == [None]
    synthetic.write_images(tmp_path, mask)
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
def test_concatenated_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture, runs: list[str], joined: str) -> None:
    """A series that XCP-D concatenated is left out with a warning, and a filter selects it."""
    synthetic.write_images(
        tmp_path, *(DENOISED.replace("space-", f"{entities}space-") for entities in [*runs, joined])
    )
    found = find_bold_runs(tmp_path, SPACE)
    assert names(found) == sorted(Path(DENOISED).name.replace("space-", f"{run}space-") for run in runs)
    assert "series left out: 1, such as" in caplog.text
    filters = {"run": None, "dir": joined.removeprefix("dir-").removesuffix("_") or None}
    assert names(find_bold_runs(tmp_path, SPACE, filters)) == [
        Path(DENOISED).name.replace("space-", f"{joined}space-")
    ]


def test_runs_that_are_not_concatenated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbered BOLD runs of another session, task or desc, or not from XCP-D, leave nothing out."""
    run = DENOISED.replace("01/func/sub-01", "01/ses-1/func/sub-01_ses-1")
    synthetic.write_images(tmp_path, run, run.replace("ses-1", "ses-2").replace("space-", "run-1_space-"))
    assert len(find_bold_runs(tmp_path, SPACE)) == 2
    assert not caplog.records
    preprocessed = DENOISED.replace("denoised", "preproc").replace("01", "02")
    synthetic.write_images(tmp_path, preprocessed, preprocessed.replace("space-", "run-2_space-"))
    assert len(find_bold_runs(tmp_path, SPACE, {"desc": "preproc"})) == 2


def test_no_runs(tmp_path: Path) -> None:
    """If no BOLD run matches, the message lists the request, the existing labels and near misses."""
    synthetic.write_images(tmp_path, DENOISED, DENOISED.replace("rest", "movie"), LESION)
    with pytest.raises(NoBoldRuns) as caught:
        find_bold_runs(tmp_path, "MNI152NLin6Asym", {"run": "1"})
    assert str(caught.value).splitlines() == [
        f"no BOLD run in {tmp_path}",
        'space: "MNI152NLin6Asym"',
        'filters: {"run": "1"}',
        f"the rule, unless filters replace it: {BOLD_RULE}",
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
    """A folder of BOLD runs must be a BIDS dataset."""
    with pytest.raises(FileNotFoundError, match=r"no dataset_description\.json"):
        find_bold_runs(tmp_path, SPACE)
    with pytest.raises(ValueError, match="'tsk', which is not a BIDS entity: is 'task' meant"):
        find_bold_runs(synthetic.write_images(tmp_path, DENOISED), SPACE, {"tsk": "rest"})
