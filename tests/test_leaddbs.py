"""Connectomes of Lead-DBS, written as MATLAB does and compared with their series; invalid folders."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from matlab import write_mat
from synthetic import OBLIQUE, RADIOLOGICAL, SHAPE, as_nobody, make_mask, make_series

from bids_lacuna.connectome.importers.leaddbs import open_source
from bids_lacuna.kernels.cpu import standardize

Array = np.ndarray

MASK = make_mask()
N_VOXELS = int(MASK.sum())
SERIES = make_series(N_VOXELS, (23, 29, 31, 37))
"""Series of four BOLD runs."""

OUTIDX = np.random.default_rng(7).permutation(np.flatnonzero(MASK.ravel(order="F")) + 1)
"""The result of MATLAB's find(mask), shuffled."""

SUBJECTS = [[7, "7_run1.mat", "7_run2"], ["sub-011", "011/rest.mat"], ["S_3 a", "S3.run.mat"]]
"""Ids and run files as Lead-DBS stores them: an id may be a number, a name may lack `.mat`."""

RUN_FILES = ["7_run1.mat", "7_run2.mat", "011/rest.mat", "S3.run.mat"]
NAMES = ["7", "011", "S3a"]


def write_source(
    folder: Path,
    *,
    dataset_file: str = "dataset_volsurf.mat",
    version: str = "v7",
    affine: Array = OBLIQUE,
    timepoint_rows: bool = False,
    place: str = "vol",
    **fields: object,
) -> Path:
    """Write a connectome of four BOLD runs of three subjects; `fields` replace those of `vol`."""
    volumes = [np.full((*SHAPE, len(series)), np.nan, np.float32) for series in SERIES]
    for volume, series, name in zip(volumes, SERIES, RUN_FILES, strict=True):
        volume[MASK] = series.T
        gmtc = volume.reshape(MASK.size, -1, order="F")[OUTIDX - 1]
        write_mat(folder / place / name, {"gmtc": gmtc.T if timepoint_rows else gmtc, "TR": 2.0}, version)
    space = {"fname": "222.nii", "dim": np.array(SHAPE, float), "mat": one_based(affine), "img": np.zeros(SHAPE)}
    vol = {"space": space, "outidx": OUTIDX[:, np.newaxis].astype(float), "subIDs": SUBJECTS, "df": 3.0, **fields}
    if dataset_file == "dataset_volsurf.mat":
        write_mat(folder / dataset_file, {"surf": {"l": {"subIDs": ["other"]}}, "vol": vol}, version)
        info = {"type": "fMRI_timecourses", "formatversion": 1.1 if timepoint_rows else 1.0, "subsets": []}
        (folder / "dataset_info.json").write_text(json.dumps(info))
    else:
        subsets = [{"name": "PD", "subs": np.array([1.0, 3.0])}]
        write_mat(
            folder / dataset_file, {"dataset": {"type": "fMRI_timecourses", "vol": vol, "subsets": subsets}}, version
        )
    return folder


def one_based(affine: Array) -> Array:
    """Return SPM's matrix for an affine, which counts voxels from 1."""
    shifted = affine.copy()
    shifted[:3, 3] = affine[:3] @ [-1, -1, -1, 1]
    return shifted


def space(**fields: object) -> dict[str, object]:
    """Make the header of a volume, with some fields replaced."""
    return {"dim": np.array(SHAPE, float), "mat": one_based(OBLIQUE), **fields}


@pytest.mark.parametrize("affine", [RADIOLOGICAL, OBLIQUE], ids=["radiological", "oblique"])
@pytest.mark.parametrize("timepoint_rows", [False, True], ids=["voxel rows", "timepoint rows"])
@pytest.mark.parametrize("version", ["v7", "v7.3"])
@pytest.mark.parametrize("dataset_file", ["dataset_volsurf.mat", "dataset_info.mat"])
def test_series_and_grid(
    tmp_path: Path, dataset_file: str, version: str, timepoint_rows: bool, affine: Array
) -> None:
    """Every kind of file yields the grid, and each run the exact stored numbers in C order."""
    source = open_source(
        write_source(
            tmp_path, dataset_file=dataset_file, version=version, timepoint_rows=timepoint_rows, affine=affine
        )
    )
    np.testing.assert_array_equal(source.grid.mask, MASK)
    np.testing.assert_allclose(source.grid.affine, affine, rtol=0, atol=1e-12)
    assert source.space is None
    assert [subject.name for subject in source.subjects] == NAMES
    runs = [run for subject in source.subjects for run in subject.runs]
    assert [len(subject.runs) for subject in source.subjects] == [2, 1, 1]
    assert [subject.n_timepoints for subject in source.subjects] == [52, 31, 37]
    for run, series, name in zip(runs, SERIES, RUN_FILES, strict=True):
        timeseries = run.read(source.grid)
        assert (run.path, run.origin, run.n_timepoints) == (tmp_path / "vol" / name, f"vol/{name}", len(series))
        assert timeseries.dtype == np.float32
        assert timeseries.flags.c_contiguous
        np.testing.assert_array_equal(timeseries, series)


@pytest.mark.parametrize("version", ["v7", "v7.3"])
def test_standardized(tmp_path: Path, version: str) -> None:
    """A subject's runs are joined and standardized like the arrays themselves, also in another process."""
    source = pickle.loads(pickle.dumps(open_source(write_source(tmp_path, version=version))))
    read = source.read(source.subjects[0])
    for ours, expected in zip(read, standardize(np.concatenate(SERIES[:2]), np.array([0, 23, 52])), strict=True):
        np.testing.assert_array_equal(ours, expected)
    for ours, expected in zip(
        source.read(source.subjects[2]), standardize(SERIES[3], np.array([0, 37])), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)


def test_space_counts_voxels_from_1(tmp_path: Path) -> None:
    """With the matrix of SPM's MNI template, 2 mm from right to left, the first voxel is at (90, -126, -72) mm."""
    mat = np.array([[-2.0, 0, 0, 92], [0, 2, 0, -128], [0, 0, 2, -74], [0, 0, 0, 1]])
    grid = open_source(write_source(tmp_path, space=space(mat=mat))).grid
    assert (grid.affine @ [0, 0, 0, 1]).tolist() == [90, -126, -72, 1]
    assert (grid.affine @ [3, 5, 7, 1]).tolist() == [84, -116, -58, 1]


@pytest.mark.parametrize("version", ["v7", "v7.3"])
@pytest.mark.parametrize("dtype", ["float64", "int32", "uint32"])
def test_voxels_in_a_row(tmp_path: Path, version: str, dtype: str) -> None:
    """Voxels and the volume's size may be rows or columns of any class; a fourth dimension is ignored."""
    dim = np.array([[n] for n in (*SHAPE, 1)], dtype)
    source = open_source(
        write_source(tmp_path, version=version, outidx=OUTIDX[np.newaxis].astype(dtype), space=space(dim=dim))
    )
    np.testing.assert_array_equal(source.grid.mask, MASK)
    np.testing.assert_array_equal(source.subjects[1].runs[0].read(source.grid), SERIES[2])


@pytest.mark.parametrize("version", ["v7", "v7.3"])
def test_one_subject(tmp_path: Path, version: str) -> None:
    """A connectome of one subject with one run opens: nested cells are not confused."""
    source = open_source(write_source(tmp_path, version=version, subIDs=[["x", "S3.run"]]))
    (subject,) = source.subjects
    assert (subject.name, subject.runs[0].origin) == ("x", "vol/S3.run.mat")


@pytest.mark.parametrize("version", ["v7", "v7.3"])
@pytest.mark.parametrize(("formatversion", "is_transposed"), [(1, False), (1.1, True), (None, False)])
def test_square_series(tmp_path: Path, version: str, formatversion: float | None, is_transposed: bool) -> None:
    """With as many timepoints as voxels, the connectome's format version decides which are the rows."""
    outidx = np.array([2.0, 3, 5, 7, 11])
    rng = np.random.default_rng(3)
    gmtc = rng.standard_normal((5, 5))
    write_source(tmp_path, version=version, outidx=outidx, subIDs=[["x", "square"]])
    write_mat(tmp_path / "vol" / "square.mat", {"gmtc": gmtc}, version)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"formatversion": formatversion} if formatversion else {}))
    source = open_source(tmp_path)
    timeseries = source.subjects[0].runs[0].read(source.grid)
    expected = gmtc if is_transposed else gmtc.T
    # Voxels 2, 3 and 5 are (1, 0, 0), (2, 0, 0) and (4, 0, 0); 7 is (1, 1, 0), before 3 in C order; 11 is (0, 2, 0).
    np.testing.assert_array_equal(timeseries, expected[:, [4, 0, 3, 1, 2]])
    assert timeseries.dtype == np.float64
    assert timeseries.flags.c_contiguous


def test_voxels_in_order(tmp_path: Path) -> None:
    """Voxels that are already in C order are not reordered."""
    write_source(tmp_path, outidx=np.array([2.0, 3, 5]), subIDs=[["x", "r"]])
    write_mat(tmp_path / "vol" / "r.mat", {"gmtc": np.arange(21.0).reshape(3, 7)}, "v7")
    source = open_source(tmp_path)
    timeseries = source.subjects[0].runs[0].read(source.grid)
    np.testing.assert_array_equal(timeseries, np.arange(21.0).reshape(3, 7).T)
    assert timeseries.flags.c_contiguous


def test_runs_beside_the_dataset_file(tmp_path: Path) -> None:
    """Runs may be beside the dataset file; one that is also in `vol` is read from there."""
    write_source(tmp_path, place=".")
    write_mat(tmp_path / "vol" / "S3.run.mat", {"gmtc": np.ones((N_VOXELS, 5), np.float32)}, "v7")
    source = open_source(tmp_path)
    runs = [run for subject in source.subjects for run in subject.runs]
    assert [run.origin for run in runs] == [*RUN_FILES[:3], "vol/S3.run.mat"]
    np.testing.assert_array_equal(runs[2].read(source.grid), SERIES[2])
    assert runs[3].n_timepoints == 5


def test_both_dataset_files(tmp_path: Path) -> None:
    """Of two dataset files, the newer kind is used."""
    write_source(tmp_path)
    (tmp_path / "dataset_info.mat").write_text("not even looked at")
    assert [subject.name for subject in open_source(tmp_path).subjects] == NAMES


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_other_files_are_ignored(tmp_path: Path, is_shuffled: bool) -> None:
    """Only files that the connectome names are its runs, in the order in which it names them."""
    write_source(tmp_path, subIDs=SUBJECTS[::-1] if is_shuffled else SUBJECTS)
    (tmp_path / "vol" / "8_run1.mat").write_text("of nobody")
    assert [subject.name for subject in open_source(tmp_path).subjects] == (NAMES[::-1] if is_shuffled else NAMES)


def test_nothing_there(tmp_path: Path) -> None:
    """A missing folder and one without a dataset file have different errors; subfolders are not searched."""
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        open_source(tmp_path / "nowhere")
    write_source(tmp_path / "GSP1000")
    with pytest.raises(FileNotFoundError, match=r"neither dataset_volsurf\.mat nor dataset_info\.mat"):
        open_source(tmp_path)


@pytest.mark.parametrize("version", ["v7", "v7.3"])
def test_missing_run(tmp_path: Path, version: str) -> None:
    """A missing run is named, and so is the target of a broken link."""
    write_source(tmp_path, version=version)
    run = tmp_path / "vol" / "7_run2.mat"
    run.unlink()
    with pytest.raises(FileNotFoundError, match=r"no series at .*vol/7_run2\.mat"):
        open_source(tmp_path)
    run.symlink_to("../.git/annex/objects/MD5E-1.mat")
    with pytest.raises(FileNotFoundError, match=r"7_run2\.mat is a link to .*annex"):
        open_source(tmp_path)


def test_dataset_file_that_is_a_link_to_nowhere(tmp_path: Path) -> None:
    """A dataset file that is a broken link is named, and no other file replaces it."""
    write_source(tmp_path, dataset_file="dataset_info.mat")
    (tmp_path / "dataset_volsurf.mat").symlink_to("annex.mat")
    with pytest.raises(FileNotFoundError, match=r"dataset_volsurf\.mat is a link to annex\.mat"):
        open_source(tmp_path)


@pytest.mark.parametrize("version", ["v7", "v7.3"])
@pytest.mark.parametrize("name", ["dataset_volsurf.mat", "dataset_info.json", "vol/7_run1.mat", "vol"])
def test_forbidden(version: str, name: str) -> None:
    """An unreadable file or folder is named."""
    # Other users may not enter pytest's own folders.
    with TemporaryDirectory() as folder:
        root = write_source(Path(folder), version=version)
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (root / name).chmod(0)
        with as_nobody(), pytest.raises(PermissionError, match=rf"{name}.* may not be read: check its permissions"):
            open_source(root)


@pytest.mark.parametrize("version", ["v7", "v7.3"])
@pytest.mark.parametrize("content", ["text", "nothing", "a tenth", "half", "all but 99 bytes"])
@pytest.mark.parametrize("name", ["dataset_volsurf.mat", "vol/011/rest.mat"])
def test_damaged(tmp_path: Path, name: str, version: str, content: str) -> None:
    """A truncated file or one of another kind is named when it is opened, or at the latest when it is read."""
    path = write_source(tmp_path, version=version) / name
    whole = path.read_bytes()
    n_bytes = {"a tenth": len(whole) // 10, "half": len(whole) // 2, "all but 99 bytes": len(whole) - 99}
    path.write_bytes({"text": b"gmtc = [1 2 3]\n" * 99, "nothing": b""}.get(content, whole[: n_bytes.get(content)]))
    try:
        source = open_source(tmp_path)
    except ValueError as error:
        assert f"{path} cannot be read as a MATLAB file" in str(error)  # noqa: PT017
    else:
        assert (version, path.name) == ("v7", "rest.mat"), "only a series in v7 may show damage when it is read"
        with pytest.raises(OSError, match=r"rest\.mat cannot be read as a MATLAB file.*copy it again"):
            source.read(source.subjects[1])


def test_one_bit_of_a_compressed_dataset_file(tmp_path: Path) -> None:
    """A compressed dataset file with one wrong bit anywhere fails its checksum."""
    path = write_source(tmp_path, dataset_file="dataset_info.mat") / "dataset_info.mat"
    whole = path.read_bytes()
    for index in range(136, len(whole), 97):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 16]) + whole[index + 1 :])
        with pytest.raises(ValueError, match=r"dataset_info\.mat cannot be read as a MATLAB file"):
            open_source(tmp_path)


@pytest.mark.parametrize("version", ["v7", "v7.3"])
@pytest.mark.parametrize(
    "change", ["truncated", "removed", "one bit", "shorter", "more voxels", "complex", "no gmtc"]
)
def test_run_that_changed_after_opening(tmp_path: Path, version: str, change: str) -> None:
    """A run that was damaged or replaced since it was opened is named when it is read."""
    source = open_source(write_source(tmp_path, version=version))
    run = source.subjects[1].runs[0]
    whole = bytearray(run.path.read_bytes())
    gmtc = np.ones((N_VOXELS, 31), np.float32)
    match change:
        case "truncated":
            run.path.write_bytes(whole[: len(whole) // 2])
        case "removed":
            run.path.unlink()
        case "one bit":
            whole[len(whole) // 2] ^= 16
            run.path.write_bytes(whole)
        case "shorter":
            write_mat(run.path, {"gmtc": gmtc[:, 1:]}, version)
        case "more voxels":
            write_mat(run.path, {"gmtc": np.ones((N_VOXELS + 1, 31), np.float32)}, version)
        case "complex":
            write_mat(run.path, {"gmtc": gmtc * 1j}, version)
        case "no gmtc":
            write_mat(run.path, {"other": gmtc}, version)
    advice = "make the file available" if change == "removed" else "copy it again"
    with pytest.raises(OSError, match=rf"011/rest\.mat .*{advice}"):
        run.read(source.grid)


@pytest.mark.parametrize("version", ["v7", "v7.3"])
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"gmtc": np.zeros((N_VOXELS - 1, 31))}, rf"gmtc \({N_VOXELS - 1}, 31\).*\({N_VOXELS}, n_timepoints\)"),
        ({"gmtc": np.zeros((N_VOXELS, 1))}, "1 timepoints"),
        ({"gmtc": [np.zeros((N_VOXELS, 31))]}, "real numbers"),
        ({"gmtc": "text"}, "gmtc is needed"),
        ({"gmtc": {"data": np.zeros((N_VOXELS, 31))}}, "gmtc is needed"),
        ({"tc": np.zeros((N_VOXELS, 31))}, rf"holds tc \({N_VOXELS}, 31\): gmtc is needed"),
        ({}, "holds nothing"),
    ],
)
def test_run_without_series(tmp_path: Path, version: str, variables: dict[str, object], words: str) -> None:
    """A run's file without a series of the connectome's voxels is refused with its name and contents."""
    write_mat(write_source(tmp_path, version=version) / "vol" / "011" / "rest.mat", variables, version)
    with pytest.raises(ValueError, match=rf"rest\.mat (?s:.*){words}"):
        open_source(tmp_path)


@pytest.mark.parametrize("version", ["v7", "v7.3"])
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("outidx", np.append(OUTIDX[1:], OUTIDX[2]), "a voxel is listed twice"),
        ("outidx", OUTIDX - 1, "indices, from 1"),
        (
            "outidx",
            np.append(OUTIDX[1:], MASK.size + 1),
            r"not all indices, from 1, of voxels in a volume \(5, 7, 11\)",
        ),
        ("outidx", OUTIDX - 0.5, "not all indices"),
        ("outidx", np.append(OUTIDX[1:], np.nan), "not all indices"),
        ("outidx", "1:279", r"lacks the numbers vol\.outidx"),
        ("space", 2.0, r"lacks the numbers vol\.space\.dim"),
        ("space", space(mat="none"), r"lacks the numbers vol\.space\.mat"),
        ("space", space(mat=np.eye(3)), r"invertible \(4, 4\) matrix"),
        ("space", space(mat=np.diag([2.0, 2, 0, 1])), "invertible"),
        ("space", space(mat=np.full((4, 4), np.nan)), "invertible"),
        ("space", space(dim=np.array([5.0, 7])), r"vol\.space\.dim"),
        ("space", space(dim=np.array([5.0, 7, np.inf])), r"vol\.space\.dim"),
        ("space", space(dim=np.array([5.0, 7, 10.5])), r"vol\.space\.dim"),
        ("subIDs", [], "names no subjects"),
        ("subIDs", 3.0, "names no subjects"),
        ("subIDs", [["a"]], "cell 1 of vol.subIDs"),
        ("subIDs", [*SUBJECTS, "S3.run.mat"], "cell 4 of vol.subIDs is 'S3.run.mat'"),
        ("subIDs", [[np.nan, "S3.run.mat"]], "cell 1 of vol.subIDs"),
        ("subIDs", [[1.5, "S3.run.mat"]], "cell 1 of vol.subIDs"),
        ("subIDs", [["--", "S3.run.mat"]], "cell 1 of vol.subIDs"),
        ("subIDs", [["a", 3.0]], "cell 1 of vol.subIDs"),
        ("subIDs", [*SUBJECTS, ["7", "S3.run.mat"]], "2 subjects of vol.subIDs are called 7"),
        ("subIDs", [*SUBJECTS, ["0_11", "S3.run.mat"]], "2 subjects of vol.subIDs are called 011"),
        ("subIDs", [["a", "/data/S3.run.mat"]], "/data/S3.run.mat, which lies elsewhere"),
        ("subIDs", [["a", "../S3.run.mat"]], "lies elsewhere"),
    ],
)
def test_invalid_dataset_file(tmp_path: Path, version: str, field: str, value: object, words: str) -> None:
    """A dataset file with a missing or invalid field is refused, naming file and field."""
    write_source(tmp_path, version=version, **{field: value})
    with pytest.raises(ValueError, match=rf"{tmp_path.name}(?s:.*){words}"):
        open_source(tmp_path)


@pytest.mark.parametrize("version", ["v7", "v7.3"])
def test_mat_file_of_something_else(tmp_path: Path, version: str) -> None:
    """A MATLAB file that describes no connectome is refused, naming what it lacks."""
    write_mat(tmp_path / "dataset_info.mat", {"dataset": 3.0, "x": 5.0}, version)
    with pytest.raises(ValueError, match=r"dataset_info\.mat lacks the numbers vol\.outidx"):
        open_source(tmp_path)


@pytest.mark.parametrize("version", ["v7", "v7.3"])
def test_matrix(tmp_path: Path, version: str) -> None:
    """A connectome that is a matrix of correlations has no series and is refused, for either dataset file."""
    write_source(tmp_path / "new", version=version)
    (tmp_path / "new" / "dataset_info.json").write_text('{"type": "fMRI_matrix"}')
    write_mat(tmp_path / "old" / "dataset_info.mat", {"dataset": {"type": "fMRI_matrix", "vol": {}}}, version)
    for name in ("new", "old"):
        with pytest.raises(ValueError, match=rf"{name} is a matrix of correlations .*series are needed"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("text", ["{", "[]", '{"formatversion": "new"}', "\xff"])
def test_damaged_json(tmp_path: Path, text: str) -> None:
    """A damaged dataset_info.json is refused by name."""
    write_source(tmp_path)
    (tmp_path / "dataset_info.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"dataset_info\.json"):
        open_source(tmp_path)
