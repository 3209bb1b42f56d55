"""Connectomes in made-up derivatives of fMRIPrep and XCP-D, compared with the series that were written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from synthetic import (
    OBLIQUE,
    RADIOLOGICAL,
    SPACE,
    as_nobody,
    make_mask,
    make_series,
    write_dataset,
    write_mask,
    write_series,
)

from bids_lacuna.connectome.importers import bids
from bids_lacuna.connectome.importers.source import NothingMatches, Source
from bids_lacuna.grid import Grid

Array = np.ndarray

MASK = make_mask()
SERIES = make_series(int(MASK.sum()))
VOXEL = tuple(np.argwhere(MASK)[7])
"""A voxel inside the brain mask."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a derivative dataset without subjects."""
    description = {"Name": "made up", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "dataset_description.json").write_text(json.dumps(description))
    return tmp_path / "study"


def write_run(
    root: Path,
    entities: str,
    series: Array,
    brain: Array | None = MASK,
    affine: Array = OBLIQUE,
    desc: str = "preproc",
) -> Path:
    """Write a BOLD run as fMRIPrep and XCP-D do, with a brain mask if one is given.

    Parameters
    ----------
    entities
        Entities up to the space: "sub-01_ses-2_task-rest".
    series : shape (n_timepoints, n_voxels)
        In C order over MASK.
    """
    folder = root.joinpath(*[part for part in entities.split("_") if part.startswith(("sub-", "ses-"))], "func")
    stem = entities if "_space-" in entities else f"{entities}_space-{SPACE}"
    if brain is not None:
        write_mask(folder / f"{stem}_desc-brain_mask.nii.gz", brain, affine)
    return write_series(folder / f"{stem}_desc-{desc}_bold.nii.gz", series, MASK, affine)


def knock_out(*voxels: tuple[int, ...]) -> Array:
    """Return the brain mask without some voxels."""
    brain = MASK.copy()
    for voxel in voxels:
        brain[voxel] = False
    return brain


def origins(source: Source) -> dict[str, list[str]]:
    """Return the file names of each subject's runs."""
    return {subject.name: [Path(run.origin).name for run in subject.runs] for subject in source.subjects}


def test_fmriprep(root: Path) -> None:
    """Subjects have the runs of all sessions in natural order, with the series and grid that were written."""
    runs = {
        "sub-01_ses-1_task-rest_run-10": SERIES[4],
        "sub-01_ses-1_task-rest_run-2": SERIES[3],
        "sub-01_ses-2_task-rest": SERIES[2],
        "sub-02_ses-1_task-rest": SERIES[0],
        "sub-10_ses-1_task-rest": SERIES[1],
    }
    for entities, series in runs.items():
        write_run(root, entities, series)
    source = pickle.loads(pickle.dumps(bids.open_source(root, SPACE)))
    assert source.grid.is_same_as(Grid(MASK, OBLIQUE))
    assert source.space == SPACE
    rest = f"space-{SPACE}_desc-preproc_bold.nii.gz"
    assert origins(source) == {
        "01": [
            f"sub-01_ses-1_task-rest_run-2_{rest}",
            f"sub-01_ses-1_task-rest_run-10_{rest}",
            f"sub-01_ses-2_task-rest_{rest}",
        ],
        "02": [f"sub-02_ses-1_task-rest_{rest}"],
        "10": [f"sub-10_ses-1_task-rest_{rest}"],
    }
    assert [subject.n_timepoints for subject in source.subjects] == [97, 23, 23]
    for subject in source.subjects:
        for run in subject.runs:
            assert run.path == root / run.origin
            np.testing.assert_array_equal(run.read(source.grid), runs[run.path.name.partition("_space")[0]])
        assert source.read(subject)[0].shape == (source.grid.n_voxels, subject.n_timepoints)


def test_xcpd(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """XCP-D needs a given mask, since it writes none; its joined, smoothed and surface series are left out."""
    for number, series in (("01", SERIES[0]), ("02", SERIES[2])):
        entities = f"sub-01_task-rest_run-{number}_space-{SPACE}_res-2"
        for desc in ("denoised", "denoisedSmoothed"):
            write_run(root, entities, series, None, desc=desc)
    write_run(root, f"sub-01_task-rest_space-{SPACE}_res-2", np.concatenate(SERIES[:2]), None, desc="denoised")
    (root / "sub-01/func/sub-01_task-rest_run-01_space-fsLR_den-91k_desc-denoised_bold.dtseries.nii").touch()
    with pytest.raises(ValueError, match=r"2 of 2 runs have no …_desc-brain_mask.* as .*run-01_.*: give .*--mask"):
        bids.open_source(root, SPACE)
    source = bids.open_source(root, SPACE, mask=write_mask(tmp_path / "mask.nii.gz", knock_out(VOXEL), OBLIQUE))
    assert origins(source) == {
        "01": [f"sub-01_task-rest_run-{n}_space-{SPACE}_res-2_desc-denoised_bold.nii.gz" for n in ("01", "02")]
    }
    np.testing.assert_array_equal(source.subjects[0].runs[1].read(source.grid), SERIES[2][:, knock_out(VOXEL)[MASK]])
    assert "XCP-D concatenated them" in caplog.text


def test_denoised_first(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Preprocessed runs are left out if any run is denoised; otherwise they are used with a warning."""
    write_run(root, "sub-01_task-rest", SERIES[0])
    write_run(root, "sub-02_task-rest", SERIES[1])
    assert list(origins(bids.open_source(root, SPACE))) == ["01", "02"]
    assert "not denoised: 2, such as" in caplog.text
    assert "not denoised" in caplog.text
    caplog.clear()
    write_run(root, "sub-02_task-rest", SERIES[1], desc="denoised")
    assert list(origins(bids.open_source(root, SPACE))) == ["02"]
    assert [record.getMessage().split(";")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "participants left out: 1, such as sub-01"
    ]


def test_filters(root: Path) -> None:
    """Filters select another task, desc and resolution; the space is that of the files."""
    write_run(root, "sub-01_task-rest", SERIES[0], desc="denoised")
    write_run(root, "sub-02_task-movie_space-T1w_res-2", SERIES[2])
    write_run(root, "sub-02_task-movie_space-T1w_res-1", SERIES[3], affine=RADIOLOGICAL)
    filters = {"task": "movie", "desc": "preproc", "space": "T1w", "res": "2"}
    source = bids.open_source(root, SPACE, filters=filters)
    assert origins(source) == {"02": ["sub-02_task-movie_space-T1w_res-2_desc-preproc_bold.nii.gz"]}
    assert source.space == "T1w"


@pytest.mark.parametrize(
    ("n_runs", "n_inside", "fraction", "inside"),
    [
        (5, 4, 0.8, True),
        (5, 4, 0.81, False),
        (5, 1, 0.2, True),
        (5, 1, 0.21, False),
        (5, 1, 1e-9, True),
        (7, 0, 1e-9, False),
        (7, 6, 6 / 7, True),
        (7, 6, 0.95, False),
        (7, 6, 1, False),
        (7, 7, 1, True),
        (11, 1, 0.1, False),
        (25, 7, 0.28, True),
    ],
)
def test_mask_fraction(root: Path, n_runs: int, n_inside: int, fraction: float, inside: bool) -> None:
    """A voxel belongs to the connectome if it is in the masks of the given fraction of runs, not of subjects."""
    for number in range(n_runs):
        brain = MASK if number < n_inside else knock_out(VOXEL)
        write_run(root, f"sub-{number // 3}_task-rest_run-{number}", SERIES[0], brain)
    source = bids.open_source(root, SPACE, mask_fraction=fraction)
    np.testing.assert_array_equal(source.grid.mask, MASK if inside else knock_out(VOXEL))


@pytest.mark.parametrize("fraction", [0, -1, 1.01, 95, float("nan")])
def test_invalid_fraction(root: Path, fraction: float) -> None:
    """A mask fraction outside (0, 1] is refused."""
    write_run(root, "sub-01_task-rest", SERIES[0])
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        bids.open_source(root, SPACE, mask_fraction=fraction)


def test_masks_without_common_voxel(root: Path) -> None:
    """Brain masks without a common voxel are an error that states the fraction."""
    for number, brain in enumerate((MASK, ~MASK)):
        write_run(root, f"sub-{number}_task-rest", SERIES[0], brain)
    with pytest.raises(ValueError, match=r"no voxel is inside 2 of the 2 brain masks \(.* 0\.95\), .*--mask"):
        bids.open_source(root, SPACE)


def test_missing_brain_mask(root: Path) -> None:
    """A run without brain mask is named."""
    write_run(root, "sub-01_task-rest", SERIES[0])
    lacking = write_run(root, "sub-02_task-rest", SERIES[0], None)
    with pytest.raises(ValueError, match=rf"1 of 2 runs have no .* such as {lacking}: .*--mask"):
        bids.open_source(root, SPACE)


def test_given_mask(root: Path, tmp_path: Path) -> None:
    """A given mask replaces the runs' own and must be on their grid."""
    write_run(root, "sub-01_task-rest", SERIES[0])
    mask = write_mask(tmp_path / "mask.nii.gz", knock_out(VOXEL), OBLIQUE)
    assert bids.open_source(root, SPACE, mask=mask).grid.is_same_as(Grid(knock_out(VOXEL), OBLIQUE))
    with pytest.raises(ValueError, match="lies on another grid than the brain mask"):
        bids.open_source(root, SPACE, mask=write_mask(mask, MASK, RADIOLOGICAL))


@pytest.mark.parametrize("with_mask", [False, True])
def test_two_resolutions(root: Path, tmp_path: Path, with_mask: bool) -> None:
    """Runs on two grids are an error that names one of each and the filter that selects."""
    paths = [
        write_run(root, f"sub-01_task-rest_space-{SPACE}_res-{res}", SERIES[0], affine=affine)
        for res, affine in (("1", RADIOLOGICAL), ("2", OBLIQUE))
    ]
    mask = write_mask(tmp_path / "mask.nii.gz", MASK, OBLIQUE) if with_mask else None
    with pytest.raises(ValueError, match=r'--bids-filter-file, as in \{"bold": \{"res": "2"\}\}') as caught:
        bids.open_source(root, SPACE, mask=mask)
    assert all(str(path) in str(caught.value) for path in paths)
    source = bids.open_source(root, SPACE, mask=mask, filters={"res": "2"})
    np.testing.assert_allclose(source.grid.affine, OBLIQUE, atol=1e-5)


def test_two_spaces(root: Path) -> None:
    """Runs in two spaces, which filters may select, are never mixed."""
    write_run(root, "sub-01_task-rest", SERIES[0])
    write_run(root, "sub-02_task-rest_space-T1w", SERIES[0])
    with pytest.raises(ValueError, match=r"sub-02_.* lies in another space than .*sub-01_"):
        bids.open_source(root, SPACE, filters={"space": "*"})


def test_mask_on_another_grid(root: Path) -> None:
    """A brain mask on another grid than the first is an error that names both."""
    write_run(root, "sub-01_task-rest", SERIES[0])
    path = write_run(root, "sub-02_task-rest", SERIES[0])
    mask = write_mask(path.with_name(path.name.replace("preproc_bold", "brain_mask")), MASK, RADIOLOGICAL)
    with pytest.raises(ValueError, match=rf"{mask} lies on another grid than .*sub-01_.*brain_mask.*--mask"):
        bids.open_source(root, SPACE)


def test_damaged_mask(root: Path) -> None:
    """A truncated brain mask is an error that names it."""
    path = write_run(root, "sub-01_task-rest", SERIES[0])
    mask = path.with_name(path.name.replace("preproc_bold", "brain_mask"))
    mask.write_bytes(mask.read_bytes()[:-40])
    with pytest.raises(OSError, match=rf"{mask}'s voxels cannot be read .*copy it again"):
        bids.open_source(root, SPACE)


def test_broken_link(root: Path) -> None:
    """A run whose content a DataLad clone lacks is an error that states how to fetch it."""
    path = write_run(root, "sub-01_task-rest", SERIES[0])
    path.unlink()
    path.symlink_to("../../.git/annex/objects/MD5E-s7--1.nii.gz")
    with pytest.raises(FileNotFoundError, match="datalad get"):
        bids.open_source(root, SPACE)


def test_no_series(root: Path) -> None:
    """A 3D file where a run is expected is an error that names it."""
    path = write_run(root, "sub-01_task-rest", SERIES[0])
    write_mask(path, MASK, OBLIQUE)
    with pytest.raises(ValueError, match=rf"{path} holds .*: a 4D series"):
        bids.open_source(root, SPACE)


def test_nothing_matches(root: Path) -> None:
    """If no run matches, the message has the request and what the dataset holds."""
    write_run(root, "sub-01_ses-a_task-rest", SERIES[0])
    with pytest.raises(NothingMatches) as caught:
        bids.open_source(root, "MNI152NLin2009cAsym", filters={"task": "movie"})
    for line in (
        'space: "MNI152NLin2009cAsym"',
        'filters: {"task": "movie"}',
        "  suffix: bold (1), mask (1)",
        "  task: rest (2)",
        f"  space: {SPACE} (2)",
        "  desc: brain (1), preproc (1)",
        "  ses: a (2)",
    ):
        assert line in str(caught.value).splitlines()


def test_no_dataset(tmp_path: Path) -> None:
    """A missing folder, one that is not a dataset, and one that may not be read have different errors."""
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        bids.open_source(tmp_path / "nowhere", SPACE)
    with pytest.raises(FileNotFoundError, match=r"has no dataset_description\.json"):
        bids.open_source(tmp_path, SPACE)

    # Other users may not enter pytest's own folders.
    with TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder), {})
        (dataset / "dataset_description.json").chmod(0)
        dataset.chmod(0o755)
        with as_nobody(), pytest.raises(PermissionError, match=r"cannot be searched .*: check its permissions"):
            bids.open_source(dataset, SPACE)
