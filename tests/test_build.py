"""Builds: the same store from every layout and after every interruption, in little memory."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matlab
import nibabel as nib
import numpy as np
import psutil
import pytest
import synthetic
from program import CONNECTOME_PROGRAM, PATIENCE_S, wait_until

from bids_lacuna import reference
from bids_lacuna.connectome.build import build_store, processes_that_fit
from bids_lacuna.connectome.compression import Rank, rotation_bytes
from bids_lacuna.connectome.exclusive import NoRoom
from bids_lacuna.connectome.importers import npy
from bids_lacuna.connectome.importers.layouts import ImportOptions, detect_layout, open_source
from bids_lacuna.connectome.store import Store, StoreDtype
from bids_lacuna.connectome.verify import verify_store
from bids_lacuna.connectome.workers import DamagedSource
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping.functional import FunctionalNetworkMapping

Array = np.ndarray

MASK = synthetic.make_mask()
N_VOXELS = int(MASK.sum())
RUNS = synthetic.make_runs(N_VOXELS)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_hdf5(folder: Path, affine: Array) -> ImportOptions:
    """Write the subjects as HDF5, each file with its own order of voxels and without runs."""
    rng = np.random.default_rng(17)
    for number, runs in enumerate(RUNS):
        joined = runs[0] if len(runs) == 1 else synthetic.join(runs)
        order = rng.permutation(N_VOXELS)
        synthetic.write_connectome(folder / f"{number}.h5", [joined], MASK, affine, order)
    return ImportOptions(synthetic.SPACE)


def write_nifti(folder: Path, affine: Array) -> ImportOptions:
    """Write the subjects as in GSP1000; run 2 sorts before run 10."""
    for number, runs in enumerate(RUNS, start=1):
        for run, series in zip((2, 10), runs, strict=False):
            name = f"sub-{number:04d}/func/sub-{number:04d}_bld{run}_rest_skip4_finalmask.nii.gz"
            synthetic.write_series(folder / name, series, MASK, affine)
    mask = synthetic.write_mask(folder.with_name("brain.nii.gz"), MASK, affine)
    return ImportOptions(synthetic.SPACE, mask=mask)


def write_bids(folder: Path, affine: Array) -> ImportOptions:
    """Write the subjects as derivatives of fMRIPrep, with runs in two sessions."""
    synthetic.write_dataset(folder, {})
    for number, runs in enumerate(RUNS, start=1):
        for session, series in zip(("a", "b"), runs, strict=False):
            stem = f"sub-{number:04d}_ses-{session}_task-rest_space-{synthetic.SPACE}_desc"
            func = folder / f"sub-{number:04d}" / f"ses-{session}" / "func"
            synthetic.write_series(func / f"{stem}-denoised_bold.nii.gz", series, MASK, affine)
            synthetic.write_mask(func / f"{stem}-brain_mask.nii.gz", MASK, affine)
    return ImportOptions(synthetic.SPACE)


def write_leaddbs(folder: Path, affine: Array, version: str = "v7") -> ImportOptions:
    """Write the subjects as a functional connectome of Lead-DBS: MATLAB's voxel order, counted from 1."""
    indices = np.flatnonzero(MASK.ravel(order="F"))
    to_c_order = np.argsort(np.ravel_multi_index(np.nonzero(MASK), MASK.shape, order="F"))
    one_based = affine.copy()
    one_based[:3, 3] -= affine[:3, :3].sum(axis=1)
    sub_ids = []
    for number, runs in enumerate(RUNS, start=1):
        files = [f"sub-{number:04d}_run_{run}.mat" for run in range(1, len(runs) + 1)]
        sub_ids.append([f"sub-{number:04d}", *files])
        for file, series in zip(files, runs, strict=True):
            matlab.write_mat(folder / "vol" / file, {"gmtc": series.T[to_c_order]}, version)
    space = {"dim": np.array(MASK.shape, float), "mat": one_based}
    vol = {"space": space, "outidx": indices[:, np.newaxis] + 1.0, "subIDs": sub_ids}
    matlab.write_mat(folder / "dataset_volsurf.mat", {"vol": vol}, version)
    return ImportOptions(synthetic.SPACE)


def write_leaddbs_73(folder: Path, affine: Array) -> ImportOptions:
    """Write the same as MATLAB 7.3 files."""
    return write_leaddbs(folder, affine, "v7.3")


def write_npy(folder: Path, affine: Array, dtype: type = np.float32) -> ImportOptions:
    """Write the subjects as NumPy arrays, the runs of each demeaned and joined."""
    folder.mkdir()
    for number, runs in enumerate(RUNS, start=1):
        joined = runs[0] if len(runs) == 1 else synthetic.join(runs)
        np.save(folder / f"sub-{number:04d}.npy", joined.astype(dtype))
        np.save(folder / f"sub-{number:04d}_norms.npy", np.linalg.norm(joined, axis=0))
    mask = synthetic.write_mask(folder.with_name("brain.nii.gz"), MASK, affine)
    return ImportOptions(synthetic.SPACE, mask=mask)


def write_npy_halves(folder: Path, affine: Array) -> ImportOptions:
    """Write the same in float16."""
    return write_npy(folder, affine, np.float16)


LAYOUTS: dict[str, Callable[[Path, Array], ImportOptions]] = {
    "hdf5": write_hdf5,
    "nifti": write_nifti,
    "bids": write_bids,
    "leaddbs": write_leaddbs,
    "leaddbs 7.3": write_leaddbs_73,
    "npy": write_npy,
    "npy float16": write_npy_halves,
}

AFFINES = {"radiological": synthetic.RADIOLOGICAL, "oblique": synthetic.OBLIQUE.round(2)}
"""Neither is exact in a NIfTI header's float32; the stores are compared to a micrometre."""


def standardized_by_numpy(runs: list[Array]) -> Array:
    """Demean each run, join them, divide by the norm: (n_voxels, n_timepoints), NaN where constant."""
    joined = np.concatenate([run - run.mean(axis=0, dtype=float) for run in runs])
    with np.errstate(invalid="ignore"):
        return (joined / np.linalg.norm(joined, axis=0)).T


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_store_and_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, affine: Array
) -> None:
    """Five subjects with unequal runs and constant voxels give the same bytes and maps from each layout."""
    monkeypatch.chdir(tmp_path)
    folder = Path("source")
    options = LAYOUTS[layout](folder, affine)
    assert detect_layout(folder) == layout.split()[0]
    source = open_source(folder, detect_layout(folder), options)
    store = build_store(source, folder, tmp_path / "store", name="five", space="MNI152NLin6Asym", dtype="float32")
    np.testing.assert_array_equal(store.grid.mask, MASK)
    np.testing.assert_allclose(store.grid.affine, affine, atol=1e-5)
    assert [subject.name for subject in store.subjects] == ["0001", "0002", "0003", "0004", "0005"]
    for subject, runs in zip(store.subjects, RUNS, strict=True):
        series, scale, sd = store.read(subject)
        expected = standardized_by_numpy(runs)
        # Every layout must match these bits, and thereby every other layout.
        np.testing.assert_array_equal(series, np.nan_to_num(expected).astype(np.float32))
        np.testing.assert_array_equal(scale, np.isfinite(expected).all(axis=1))
        joined = np.concatenate([run - run.mean(axis=0, dtype=float) for run in runs])
        np.testing.assert_array_equal(sd, joined.std(axis=0).astype(np.float32))
    weights = np.zeros((1, N_VOXELS))
    weights[0, 31:57] = 1
    lesion = nib.Nifti1Image(store.grid.volume(weights[0].astype(np.uint8), 0), affine)
    analysis = FunctionalNetworkMapping(store.path)
    (mapped,) = synthetic.map_in_one_pass(analysis, [analysis.load(LesionData.from_nifti(lesion))], n_threads=1)
    joined_runs = [np.concatenate([run - run.mean(axis=0, dtype=float) for run in runs]) for runs in RUNS]
    expected_maps = reference.map_lesions(weights, joined_runs)
    maps = mapped.results["FunctionalNetworkMapping"]
    for key, stat, rtol, atol in (("correlation_map", "r", 0, 1e-6), ("t_map", "t", 1e-4, 1e-4)):
        np.testing.assert_allclose(maps[key].get_fdata()[MASK], expected_maps[stat][0], rtol=rtol, atol=atol)
    np.testing.assert_array_equal(maps["n_map"].get_fdata()[MASK], expected_maps["n"][0])


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite part of a file, or truncate it."""
    start = int(rng.integers(len(content)))
    if rng.random() < 0.2:
        return content[:start]
    noise = rng.bytes(int(rng.choice([1, 4, 64])))
    return content[:start] + noise + content[start + len(noise) :]


@pytest.mark.parametrize("layout", ["hdf5", "nifti", "npy"])
def test_damage_of_any_kind_is_an_error_with_a_name(tmp_path: Path, layout: str) -> None:
    """A file with any bytes overwritten is read as other numbers or refused by name."""
    folder = tmp_path / "source"
    options = LAYOUTS[layout](folder, synthetic.RADIOLOGICAL)
    path = sorted(path for path in folder.rglob("*") if path.is_file() and "norms" not in path.name)[1]
    whole, rng, n_refused = path.read_bytes(), np.random.default_rng(23), 0
    with warnings.catch_warnings():
        # NIfTI headers may ask for scaling that overflows.
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(150):
            path.write_bytes(damaged(whole, rng))
            reason = ""
            try:
                opened = open_source(folder, detect_layout(folder), options)
                for subject in opened.subjects[:2]:
                    opened.read(subject)
            except (OSError, ValueError) as error:
                reason = str(error)
            assert not reason or path.name in reason
            n_refused += bool(reason)
    assert n_refused > 10


def test_the_made_up_subjects_have_constant_voxels() -> None:
    """One subject has a constant voxel, and another one a voxel that is constant in the first run only."""
    constant = [np.flatnonzero(np.isnan(standardized_by_numpy(runs)).any(axis=1)).tolist() for runs in RUNS]
    assert constant == [[], [], [], [N_VOXELS - 3], []]
    assert [np.flatnonzero(np.ptp(run, axis=0) == 0).tolist() for run in RUNS[2]] == [[9], []]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write nine subjects, one NumPy file each, and their mask."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number, series in enumerate(synthetic.make_series(N_VOXELS, range(23, 32)), start=1):
        np.save(folder / f"sub-{number}.npy", series)
    synthetic.write_mask(tmp_path / "mask.nii.gz", MASK)
    return folder


def make_store(source: Path, folder: Path, n_processes: int = 1, **changes: object) -> Store:
    """Build a store of the nine subjects."""
    opened = npy.open_source(source, source.with_name("mask.nii.gz"))
    options = {"name": "nine", "space": synthetic.SPACE, **changes}
    return build_store(opened, source, folder, n_processes=n_processes, show_progress=False, **options)


def start_build(source: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a build as a separate process in its own process group."""
    command = [*CONNECTOME_PROGRAM, "build", source, folder, "--name", "nine"]
    command += ["--space", synthetic.SPACE, "--mask", source.with_name("mask.nii.gz"), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that a build has started."""
    return psutil.Process(process.pid).children(recursive=True)


def wait_for_record(folder: Path, n_before: int = 0) -> None:
    """Wait until one more subject is recorded or the store is finished."""
    wait_until(lambda: len(records(folder)) > n_before or (folder / "connectome.json").exists(), 0.001)


def records(folder: Path) -> list[Path]:
    """Return the records of the written subjects."""
    return list(folder.glob(".building/sub-*.json"))


@pytest.mark.parametrize("rank", ["full", "auto"])
def test_several_processes_write_the_same_bytes(source: Path, tmp_path: Path, rank: Rank) -> None:
    """Three processes write the same files as one, and leave nothing else in the folder."""
    one, three = (make_store(source, tmp_path / f"{n}", n, rank=rank) for n in (1, 3))
    assert contents(one.path) == contents(three.path)
    names = {f"sub-{number}_{kind}.npy" for number in range(1, 10) for kind in ("timeseries", "scale")}
    assert contents(one.path).keys() == names | {"connectome.json", "mask.nii.gz"}


@pytest.mark.slow
def test_killed_builds_resume_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    """A build that is killed three times at random ends with the bytes of an uninterrupted one."""
    for number, series in enumerate(synthetic.make_series(N_VOXELS, range(30, 130)), start=1):
        np.save(source / f"sub-{number}.npy", series)
    expected = contents(make_store(source, tmp_path / "undisturbed", rank="auto").path)
    folder = tmp_path / "disturbed"
    moments = random.Random(19)
    n_written = [0]
    for _ in range(3):
        process = start_build(source, folder, "--nprocs", "2", "--rank", "auto")
        wait_for_record(folder, n_written[-1])
        time.sleep(moments.uniform(0, 0.02))
        started = children(process)
        process.kill()
        process.communicate(timeout=PATIENCE_S)
        _, alive = psutil.wait_procs(started, timeout=20)
        assert not alive, "processes outlive a killed build"
        n_written.append(len(records(folder)))
    assert 0 < n_written[1] < n_written[-1] < 100
    assert not (folder / "connectome.json").exists()
    with start_build(source, folder, "--rank", "auto") as process:
        _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, log
    assert f"writing {100 - n_written[-1]} of 100 subjects" in log
    assert contents(folder) == expected


def test_recorded_subjects_are_not_written_again(source: Path, tmp_path: Path) -> None:
    """A build resumes from its records; a subject whose source, files or record changed is written again."""
    damaged = source / "sub-9.npy"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match=r"sub-9\.npy cannot be read"):
        make_store(source, tmp_path / "store")
    damaged.write_bytes(whole)
    opened = npy.open_source(source, source.with_name("mask.nii.gz"))
    damaged.write_bytes(whole[:-1000])
    with pytest.raises(DamagedSource, match=r"1 of 9 subjects cannot be read, the first: sub-9: .*sub-9\.npy"):
        build_store(opened, source, tmp_path / "store", name="nine", space=synthetic.SPACE)
    assert not (tmp_path / "store" / "connectome.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*.npy")}
    assert len(before) == 16
    damaged.write_bytes(whole)
    series = np.load(source / "sub-4.npy")
    np.save(source / "sub-4.npy", series[::-1])
    (tmp_path / "store" / "sub-5_scale.npy").unlink()
    (tmp_path / "store" / ".building" / "sub-6.json").write_text("{}")
    make_store(source, tmp_path / "store")
    after = {path: path.stat().st_mtime_ns for path in before}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed == {f"sub-{number}_{kind}.npy" for number in (4, 5, 6) for kind in ("timeseries", "scale")}
    assert contents(tmp_path / "store") == contents(make_store(source, tmp_path / "anew").path)


def test_a_subject_without_signal_is_reported(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A subject whose series are all constant or all have a NaN is written, with a warning that names it."""
    for number, (timepoint, value) in {2: (slice(None), 3), 7: (5, np.nan)}.items():
        series = np.load(source / f"sub-{number}.npy")
        series[timepoint] = value
        np.save(source / f"sub-{number}.npy", series)
    make_store(source, tmp_path / "store")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(warning.split()[0] for warning in warnings) == ["sub-2", "sub-7"]
    constant, censored = sorted(warnings)
    assert "(each voxel's series is constant)" in constant
    assert "in sub-7.npy, no voxel has a finite value at 1 of 29 timepoints (5, counted from 0)" in censored


@pytest.mark.parametrize("kind", ["censored", "constant", "a NaN everywhere"])
def test_a_store_in_which_no_subject_has_a_signal_is_an_error(source: Path, tmp_path: Path, kind: str) -> None:
    """The reason is given, there is no store, and the same command resumes once a file is repaired."""
    whole = {path: np.load(path) for path in source.glob("*.npy")}
    for path, series in whole.items():
        damaged = series.copy()
        if kind == "censored":
            damaged[3:15] = np.nan
        elif kind == "constant":
            damaged[:] = 7
        else:
            damaged[np.arange(N_VOXELS) % len(series), np.arange(N_VOXELS)] = np.inf
        np.save(path, damaged)
    reason = {
        "censored": r"12 of 23 timepoints \(3, 4, 5, 6, 7, 8, 9, 10, …, counted from 0\); leave such timepoints out",
        "constant": "each voxel's series is constant",
        "a NaN everywhere": "in sub-1.npy, each voxel's series has values that are not finite",
    }[kind]
    for _ in range(2):
        with pytest.raises(ValueError, match=f"none of the 9 subjects has a signal .*sub-1: .*{reason}"):
            make_store(source, tmp_path / "store")
    assert not (tmp_path / "store" / "connectome.json").exists()
    np.save(source / "sub-9.npy", whole[source / "sub-9.npy"])
    store = make_store(source, tmp_path / "store")
    assert [store.has_signal(subject) for subject in store.subjects] == [False] * 8 + [True]


def test_a_finished_store_is_opened(source: Path, tmp_path: Path) -> None:
    """Repeating a build changes nothing; a different build in the same folder is refused with the difference."""
    folder = make_store(source, tmp_path / "store").path
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(make_store(source, folder).subjects) == 9
    for changes, word in (
        ({"name": "ten"}, "name"),
        ({"dtype": "float32"}, "dtype"),
        ({"space": "T1w"}, "space"),
        ({"rank": "full"}, "rank"),
        ({"rank": 100}, "rank"),
    ):
        with pytest.raises(FileExistsError, match=f"differs in {word}"):
            make_store(source, folder, **changes)
    (source / "sub-9.npy").unlink()
    with pytest.raises(FileExistsError, match="differs in subjects and source files"):
        make_store(source, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_unfinished_store_of_another_build_is_left_alone(source: Path, tmp_path: Path) -> None:
    """A build with another dtype, rank or set of subjects does not resume an unfinished store."""
    opened = npy.open_source(source, source.with_name("mask.nii.gz"))
    whole = (source / "sub-9.npy").read_bytes()
    (source / "sub-9.npy").write_bytes(b"")
    with pytest.raises(DamagedSource):
        build_store(opened, source, tmp_path / "store", name="nine", space=synthetic.SPACE)
    (source / "sub-9.npy").write_bytes(whole)
    before = contents(tmp_path / "store")
    with pytest.raises(FileExistsError, match="another dtype"):
        make_store(source, tmp_path / "store", dtype="float32")
    for rank in ("full", 7):
        with pytest.raises(FileExistsError, match="another rank"):
            make_store(source, tmp_path / "store", rank=rank)
    (source / "sub-1.npy").rename(source / "sub-10.npy")
    with pytest.raises(FileExistsError, match="other subjects"):
        make_store(source, tmp_path / "store")
    assert contents(tmp_path / "store") == before


def filter_sources(source: Path) -> list[Array]:
    """Overwrite the nine subjects with series of 10 degrees of freedom."""
    filtered = synthetic.make_filtered_series(N_VOXELS, range(23, 32))
    for number, series in enumerate(filtered, start=1):
        np.save(source / f"sub-{number}.npy", series)
    return filtered


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_rank_auto_stores_the_degrees_of_freedom(source: Path, tmp_path: Path, dtype: StoreDtype) -> None:
    """Filtered series need 10 components instead of 23 to 31 timepoints, with NumPy's correlations."""
    filtered = filter_sources(source)
    store = make_store(source, tmp_path / "auto", rank="auto", dtype=dtype)
    opened = Store.open(store.path)
    assert (opened.rank, opened.rank_tolerance, opened.subjects) == ("auto", 1e-5, store.subjects)
    value_bytes = np.dtype(dtype).itemsize
    for subject, timeseries in zip(store.subjects, filtered, strict=True):
        assert (subject.n_timepoints, subject.n_components) == (len(timeseries), 10)
        assert subject.runs[0].n_timepoints == len(timeseries)
        assert 0 < subject.r_error_bound < 1e-8
        series, scale, sd = store.read(subject)
        assert (series.shape, series.dtype) == ((N_VOXELS, 10), np.dtype(dtype))
        assert store.bytes_of(subject) == N_VOXELS * (10 * value_bytes + 8)
        unit = series.astype(float) * scale[:, np.newaxis]
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
        r = np.corrcoef(timeseries.astype(float).T)
        np.testing.assert_allclose(unit @ unit.T, r, atol=1e-4 if dtype == "int16" else 1e-6)
        np.testing.assert_allclose(sd, timeseries.std(axis=0, dtype=float), rtol=1e-6)
    assert store.reading_bytes == store.n_bytes / 9
    assert store.full_bytes == N_VOXELS * (value_bytes * sum(range(23, 32)) + 9 * 8)
    with pytest.raises(FileExistsError, match="differs in rank"):
        make_store(source, store.path, dtype=dtype, rank="full")
    with pytest.raises(FileExistsError, match="differs in rank"):
        make_store(source, store.path, dtype=dtype, rank="auto", rank_tolerance=1e-4)
    assert make_store(source, store.path, dtype=dtype, rank="auto").subjects == store.subjects
    assert verify_store(store).problems == ()


def test_a_number_of_components(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The requested number is stored; a warning has the bound if it exceeds the tolerance."""
    filter_sources(source)
    store = make_store(source, tmp_path / "twelve", rank=12)
    assert [subject.n_components for subject in store.subjects] == [12] * 9
    assert (store.rank, store.rank_tolerance) == (12, None)
    assert not caplog.records
    store = make_store(source, tmp_path / "nine", rank=9)
    bounds = {subject.name: subject.r_error_bound for subject in store.subjects}
    assert min(bounds.values()) > 1e-3
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    worst = max(bounds, key=bounds.get)
    assert warning.startswith("rank 9: in 9 of 9 subjects the bound on the error in r is above 1e-05")
    assert f"at most {bounds[worst]:.2g} in sub-{worst}" in warning
    caplog.clear()
    make_store(source, tmp_path / "tolerated", rank=9, rank_tolerance=1.9)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_all_components_are_the_series_themselves(source: Path, tmp_path: Path) -> None:
    """A rank that leaves nothing out writes the bytes of a full-rank store, and so does the default for noise."""
    full = make_store(source, tmp_path / "full", rank="full")
    more = make_store(source, tmp_path / "more", rank=31)
    series = {name: content for name, content in contents(full.path).items() if name.endswith(".npy")}
    assert contents(more.path).items() >= series.items()
    assert more.content_hash == full.content_hash
    assert [subject.n_components for subject in more.subjects] == list(range(23, 32))
    some = make_store(source, tmp_path / "some", rank=27)
    assert [subject.n_components for subject in some.subjects] == [23, 24, 25, 26, 27, 27, 27, 27, 27]
    auto = make_store(source, tmp_path / "auto")
    assert contents(auto.path).items() >= series.items()
    assert (auto.rank, auto.content_hash, auto.n_bytes) == ("auto", full.content_hash, full.full_bytes)


def test_a_folder_with_other_files_is_left_alone(source: Path, tmp_path: Path) -> None:
    """A folder that holds anything but a store is refused; an empty one is accepted."""
    with pytest.raises(FileExistsError, match="not a connectome store"):
        make_store(source, source)
    (tmp_path / "empty").mkdir()
    make_store(source, tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="not a connectome store"):
        make_store(source, tmp_path / "file")


def test_one_build_at_a_time(source: Path, tmp_path: Path) -> None:
    """During a build, another one in the same folder is refused and does not disturb it."""
    for number, series in enumerate(synthetic.make_series(N_VOXELS, range(300, 500)), start=1):
        np.save(source / f"sub-{number}.npy", series)
    with start_build(source, tmp_path / "store", "--nprocs", "1") as process:
        wait_for_record(tmp_path / "store")
        with pytest.raises(FileExistsError, match="another process is building"):
            make_store(source, tmp_path / "store")
        _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, log
    assert len(Store.open(tmp_path / "store").subjects) == 200


def test_a_full_disk_is_reported_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    """A sparse source of three times the free space is refused with both numbers."""
    n_timepoints = 3 * shutil.disk_usage(tmp_path).free // (4 * N_VOXELS)
    with (source / "sub-10.npy").open("wb") as file:
        header = {"shape": (n_timepoints, N_VOXELS), "fortran_order": False, "descr": "<f4"}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * n_timepoints * N_VOXELS)
    with pytest.raises(NoRoom, match=r"needs [0-9.]+ .iB more, the disk of .* has [0-9.]+ .iB free"):
        make_store(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoRoom):
        make_store(source, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_recorded_subjects_need_no_more_room(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build resumes if the disk has room for the remaining subjects, to the byte."""
    opened = npy.open_source(source, source.with_name("mask.nii.gz"))
    whole = (source / "sub-9.npy").read_bytes()
    (source / "sub-9.npy").write_bytes(b"")
    with pytest.raises(DamagedSource):
        build_store(opened, source, tmp_path / "store", name="nine", space=synthetic.SPACE)
    (source / "sub-9.npy").write_bytes(whole)
    last_bytes = N_VOXELS * (31 * 2 + 8)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=last_bytes - 1))
    with pytest.raises(NoRoom):
        make_store(source, tmp_path / "store")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=last_bytes))
    assert len(make_store(source, tmp_path / "store").subjects) == 9


@pytest.mark.parametrize(
    ("paths", "pattern", "names"),
    [
        (["a/rest.nii.gz", "b/rest.nii.gz"], "*/rest.nii.gz", ["arest", "brest"]),
        (["sub-1/run-10.nii.gz", "sub-1/run-2.nii.gz"], "*/*.nii.gz", ["1"]),
        (["sub-01-a.nii.gz", "sub-01-b.nii.gz"], "*.nii.gz", ["sub01a", "sub01b"]),
        (["ses-1/sub-3_ses-1_bold.nii.gz", "ses-2/sub-3_ses-2_bold.nii.gz"], "*/*.nii.gz", ["3"]),
    ],
)
def test_names_of_nifti_files(tmp_path: Path, paths: list[str], pattern: str, names: list[str]) -> None:
    """The files of one sub-<label> are one subject's runs in natural order; each file without one is a subject."""
    for path in paths:
        synthetic.write_series(tmp_path / "source" / path, RUNS[0][0], MASK)
    mask = synthetic.write_mask(tmp_path / "mask.nii.gz", MASK)
    opened = open_source(tmp_path / "source", "nifti", ImportOptions(synthetic.SPACE, pattern=pattern, mask=mask))
    assert [subject.name for subject in opened.subjects] == names
    if names == ["1"]:
        assert [run.path.name for run in opened.subjects[0].runs] == ["run-2.nii.gz", "run-10.nii.gz"]


def test_subjects_of_one_name(tmp_path: Path) -> None:
    """Two subjects whose names differ only in case are refused: on many disks they would be one file."""
    for name in ("a", "A"):
        synthetic.write_series(tmp_path / "source" / f"sub-{name}" / "rest.nii.gz", RUNS[0][0], MASK)
    mask = synthetic.write_mask(tmp_path / "mask.nii.gz", MASK)
    opened = open_source(
        tmp_path / "source", "nifti", ImportOptions(synthetic.SPACE, pattern="sub-*/rest.nii.gz", mask=mask)
    )
    with pytest.raises(ValueError, match="two subjects are called A and a"):
        build_store(opened, tmp_path / "source", tmp_path / "store", name="two", space=synthetic.SPACE)
    assert not (tmp_path / "store").exists()


def test_a_process_that_is_killed_alone(source: Path, tmp_path: Path) -> None:
    """If the system kills one of the processes, as for lack of memory, the build ends with advice."""
    series = synthetic.make_series(N_VOXELS, [400])[0]
    for number in range(1, 400):
        np.save(source / f"sub-{number}.npy", series)
    process = start_build(source, tmp_path / "store", "--nprocs", "1")
    wait_for_record(tmp_path / "store")
    (worker,) = [child for child in children(process) if "spawn_main" in " ".join(child.cmdline())]
    worker.kill()
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in log
    assert "smaller --nprocs" in log.splitlines()[-1]


@pytest.mark.parametrize("everyone", [False, True])
def test_sigterm_ends_a_build_with_a_sentence(source: Path, tmp_path: Path, everyone: bool) -> None:
    """SIGTERM to the build alone or to its processes too ends it with one sentence and exit status 143."""
    series = synthetic.make_series(N_VOXELS, [400])[0]
    for number in range(1, 400):
        np.save(source / f"sub-{number}.npy", series)
    process = start_build(source, tmp_path / "store", "--nprocs", "2")
    wait_for_record(tmp_path / "store")
    started = children(process)
    os.killpg(process.pid, signal.SIGTERM) if everyone else process.terminate()
    _, log = process.communicate(timeout=60)
    assert process.returncode == 143
    assert log.splitlines()[-1].endswith("rerun the same command to resume (SIGTERM)")
    assert "Traceback" not in log
    assert "resource_tracker" not in log
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive


def test_processes_that_fit(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The number of processes is that of subjects that fit in memory, and at least one."""
    opened = npy.open_source(source, source.with_name("mask.nii.gz"))
    each = 200 * 2**20 + 24 * 31 * N_VOXELS
    assert processes_that_fit(opened, 7, 7 * each, "full") == 7
    assert not caplog.records
    assert processes_that_fit(opened, 7, 7 * each - 1, "full") == 6
    assert "processes: 6 instead of 7" in caplog.text
    assert processes_that_fit(opened, 7, 1) == 1
    # With few voxels, the matrices of a rotation need more memory than the series.
    each = 200 * 2**20 + rotation_bytes(31, N_VOXELS)
    assert processes_that_fit(opened, 7, 7 * each) == 7
    assert processes_that_fit(opened, 7, 7 * each - 1) == 6


MEMORY = """
import resource, sys
from pathlib import Path

from bids_lacuna.connectome.build import build_store
from bids_lacuna.connectome.importers import npy

if __name__ == "__main__":
    source, mask = map(Path, sys.argv[1:3])
    store = source.with_name(source.name + "-store")
    build_store(npy.open_source(source, mask), source, store, name="x", space="MNI152NLin6Asym", rank=sys.argv[3])
    print(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["full", "auto"])
def test_memory_of_one_subject(tmp_path: Path, rank: Rank) -> None:
    """A process's peak memory is one subject and its rounded copy, for two subjects as for eight."""
    voxels = np.ones((30, 40, 50), bool)
    mask = synthetic.write_mask(tmp_path / "mask.nii.gz", voxels)
    script = tmp_path / "build.py"
    script.write_text(MEMORY)
    peaks = {}
    for n_subjects, n_timepoints in ((2, 2), (2, 200), (8, 200)):
        source = tmp_path / f"{n_subjects}-{n_timepoints}"
        source.mkdir()
        series = np.random.default_rng(3).standard_normal((n_timepoints, voxels.size), dtype=np.float32)
        np.save(source / "sub-1.npy", series)
        for number in range(2, n_subjects + 1):
            (source / f"sub-{number}.npy").symlink_to(source / "sub-1.npy")
        done = subprocess.run(
            [sys.executable, script, source, mask, rank], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks[n_subjects, n_timepoints] = int(done.stdout)
    subject = 4 * 200 * voxels.size
    assert peaks[8, 200] < 1.05 * peaks[2, 200]
    assert peaks[8, 200] - peaks[2, 2] < 2.25 * subject
