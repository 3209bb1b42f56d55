"""Summaries of connectomes: made from files, compared with `reference`, resumed, refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic

from bids_lacuna import Connectome, FunctionalNetworkMapping, LesionData, Summary, batch_process, reference
from bids_lacuna.connectome.exclusive import NoPlace, NoRoom
from bids_lacuna.connectome.summary import ARRAYS, SummaryArrays, array_path, open_summary, verify_summary
from bids_lacuna.grid import Grid
from bids_lacuna.mapping import local
from bids_lacuna.mapping.cells import CellCovariances, assign_cells
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.mapping.summarizing import plan_passes, summarize
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.weights import LesionWeights

Array = np.ndarray

MEMORY = 2**40

LARGE = (13, 14, 15)
"""A volume of more voxels than a block and than four tiles."""


@pytest.fixture(scope="module")
def summary(silent_connectome: Path, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """Summarize a connectome in whose third subject some voxels are silent, with cells of 8 mm: two voxels' edges."""
    folder = tmp_path_factory.mktemp("summary") / "apart"
    connectome = Connectome.open(silent_connectome)
    summarize(connectome, folder, Resources(MEMORY, 1), show_progress=False)
    return Summary.open(silent_connectome, folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Connectome:
    """Write a connectome of 2,200 voxels; a cell of 6 mm is silent in the first subject, some voxels in another."""
    mask = synthetic.make_mask(shape=LARGE)
    series = synthetic.make_series(int(mask.sum()), [11] * 6)
    series[0][:, assign_cells(Grid(mask, synthetic.RADIOLOGICAL), 6) == 17] = 7
    series[3][:, 700:720] = 1
    path = synthetic.write_connectome(tmp_path_factory.mktemp("large") / "large.h5", series, mask)
    return Connectome.open(path)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Read all files of a summary."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def operator_of(arrays: SummaryArrays) -> Array:
    """Read the covariances of cells and voxels."""
    return np.concatenate([block for _, block in arrays.operator.blocks()], axis=1)


def test_cells_are_cubes(brain: Array) -> None:
    """Voxels of 4 mm are in one cell of 8 mm if their indices have the same halves, and in C order of those."""
    grid = Grid(brain, synthetic.RADIOLOGICAL)
    halves = [tuple(voxel // 2) for voxel in np.argwhere(brain)]
    order = {cube: number for number, cube in enumerate(sorted(set(halves)))}
    assert assign_cells(grid, 8).tolist() == [order[cube] for cube in halves]


def test_cells_of_other_sizes() -> None:
    """Cells of 6 mm hold two voxels of 4 mm, then one; those smaller than a voxel hold one each."""
    grid = Grid(np.ones((6, 1, 1), bool), synthetic.RADIOLOGICAL)
    assert assign_cells(grid, 6).tolist() == [0, 1, 1, 2, 3, 3]
    assert assign_cells(grid, 1).tolist() == [0, 1, 2, 3, 4, 5]
    assert assign_cells(grid, 1000).tolist() == [0] * 6


def test_summary_is_that_of_the_reference(summary: Summary, silent_series: list[Array]) -> None:
    """Covariances, degree, absolute degree and components are the reference's, and NaN where they are."""
    arrays = summary.arrays
    by_voxel, by_cell = reference.cell_covariances(arrays.cells, silent_series)
    degree = reference.degree(silent_series)
    components, fractions = reference.principal_components(by_voxel, by_cell, degree)
    np.testing.assert_allclose(operator_of(arrays), by_voxel, atol=2e-6)
    np.testing.assert_allclose(arrays.covariance, by_cell, atol=2e-6)
    np.testing.assert_allclose(arrays.degree, degree, atol=2e-6)
    absolute = reference.absolute_degree(by_voxel, by_cell, np.bincount(arrays.cells))
    np.testing.assert_allclose(arrays.absolute_degree, absolute, rtol=1e-5)
    np.testing.assert_allclose(arrays.components, components, atol=1e-4)
    np.testing.assert_allclose(arrays.record.variance_fractions, fractions, atol=1e-5)
    record = arrays.record
    assert (record.n_cells, record.n_subjects, record.connectome_name) == (len(by_cell), 5, "GSP5")


def test_undefined_where_no_subject_has_a_signal(brain: Array, silent_series: list[Array], tmp_path: Path) -> None:
    """A voxel that is silent in all subjects is NaN, and a cell 0; one that is in some leaves those out."""
    cells = assign_cells(Grid(brain, synthetic.RADIOLOGICAL), 8)
    series = [timeseries.copy() for timeseries in silent_series]
    for timeseries in series:
        timeseries[:, cells == 5] = timeseries[:, 100] = 1
    # Two cells, in some of the subjects.
    for subject, cell in ((1, 9), (3, 9), (3, 12)):
        series[subject][:, cells == cell] = 2
    path = synthetic.write_connectome_folder(tmp_path / "silent", series, brain)
    arrays = summarize(Connectome.open(path), tmp_path / "summary", Resources(MEMORY, 1), show_progress=False)
    by_voxel, by_cell = reference.cell_covariances(cells, series)
    components, _ = reference.principal_components(by_voxel, by_cell, reference.degree(series))
    np.testing.assert_allclose(operator_of(arrays), by_voxel, atol=2e-6)
    np.testing.assert_allclose(arrays.covariance, by_cell, atol=2e-6)
    np.testing.assert_allclose(arrays.components, components, atol=1e-4)
    silent = np.isnan(reference.degree(series))
    assert silent.sum() == 1 + (cells == 5).sum()
    np.testing.assert_array_equal(np.isnan(arrays.degree), silent)
    np.testing.assert_array_equal(np.isnan(arrays.absolute_degree), silent)


@pytest.fixture
def same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process occupy the same in each plan: in fact it varies by megabytes, and a row takes kilobytes."""
    monkeypatch.setattr(local, "resident_bytes", lambda: 2**28)


@pytest.mark.usefixtures("same_memory")
def test_threads_and_passes_change_no_bit(large: Connectome, tmp_path: Path) -> None:
    """One and two threads, one pass and several of up to 512 cells, all make the same files."""
    analysis = CellCovariances(large, 6)
    plan = LocalPass(analysis, Resources(MEMORY, 1)).plan(analysis.n_cells)
    little = plan.fixed_bytes + 700 * plan.bytes_per_row
    summarize(large, tmp_path / "one", Resources(MEMORY, 1), cell_size_mm=6, show_progress=False)
    summarize(large, tmp_path / "two", Resources(MEMORY, 2), cell_size_mm=6, show_progress=False)
    summarize(large, tmp_path / "little", Resources(little, 1), cell_size_mm=6, show_progress=False)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two") == bytes_of(tmp_path / "little")
    assert {*ARRAYS} == {name.removesuffix(".npy") for name in bytes_of(tmp_path / "one")} - {"summary.json"}


@pytest.mark.usefixtures("same_memory")
def test_passes_are_of_whole_tiles(large: Connectome) -> None:
    """Where not all cells fit the memory, each pass has a multiple of 512, so that sums round alike."""
    analysis = CellCovariances(large, 6)
    plan = LocalPass(analysis, Resources(MEMORY, 1)).plan(analysis.n_cells)
    little = Resources(plan.fixed_bytes + 700 * plan.bytes_per_row, 1)
    assert plan_passes(LocalPass(analysis, little), analysis.n_cells).batch_size == 512
    assert plan_passes(LocalPass(analysis, Resources(MEMORY, 1)), analysis.n_cells).n_batches == 1


class Interrupting(logging.Handler):
    """Sends Ctrl-C when the sums have been saved so many times."""

    def __init__(self, n_saved: int) -> None:
        super().__init__()
        self.left = n_saved

    def emit(self, record: logging.LogRecord) -> None:
        """Count, and interrupt."""
        if record.msg.startswith("saved the sums"):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("heed_interrupts", "same_memory")
@pytest.mark.parametrize("n_saved", [1, 4])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    large: Connectome, tmp_path: Path, n_saved: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl-C in the first or in the second pass, and the same call again: the files are those of one run."""
    analysis = CellCovariances(large, 6)
    plan = LocalPass(analysis, Resources(MEMORY, 1)).plan(analysis.n_cells)
    little = Resources(plan.fixed_bytes + 700 * plan.bytes_per_row, 1)
    summarize(large, tmp_path / "whole", little, cell_size_mm=6, show_progress=False)
    caplog.set_level(logging.INFO)
    checkpoints, interrupting = logging.getLogger("bids_lacuna.runtime.checkpoint"), Interrupting(n_saved)
    checkpoints.addHandler(interrupting)
    try:
        with pytest.raises(KeyboardInterrupt):
            summarize(large, tmp_path / "cut", little, cell_size_mm=6, checkpoint_minutes=0, show_progress=False)
    finally:
        checkpoints.removeHandler(interrupting)
    with pytest.raises(FileNotFoundError, match="no summary"):
        Summary.open(large, tmp_path / "cut")
    summarize(large, tmp_path / "cut", little, cell_size_mm=6, checkpoint_minutes=0, show_progress=False)
    assert "resuming after connectome subject" in caplog.text
    assert "cells after connectome subject" in caplog.text
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


def test_a_run_that_ended_after_the_passes_does_not_repeat_them(large: Connectome, tmp_path: Path) -> None:
    """Where all covariances are on disk, the connectome's series are not read again."""
    folder = tmp_path / "summary"
    summarize(large, folder, Resources(MEMORY, 1), show_progress=False)
    whole = bytes_of(folder)
    (folder / ".building").mkdir()
    for name in ("operator", "covariance", "degree"):
        array_path(folder, name).rename(array_path(folder / ".building", name))
    identity = CellCovariances(large, 8).identity
    progress = {"identity": identity, "n_done": len(np.load(folder / ".building" / "covariance.npy"))}
    (folder / ".building" / "progress.json").write_text(json.dumps(progress))
    for path in folder.glob("*.*"):
        if path.is_file():
            path.unlink()
    n_read = large.path.stat().st_atime_ns
    summarize(large, folder, Resources(MEMORY, 1), show_progress=False)
    assert bytes_of(folder) == whole
    assert large.path.stat().st_atime_ns == n_read


def test_a_run_that_ended_while_it_moved_the_files_is_completed(large: Connectome, tmp_path: Path) -> None:
    """Where some of the files are in their place, and the description is not, the others follow."""
    folder = tmp_path / "summary"
    summarize(large, folder, Resources(MEMORY, 1), show_progress=False)
    whole = bytes_of(folder)
    (folder / ".building").mkdir()
    for name in ("operator.npy", "components.npy", "summary.json"):
        (folder / name).rename(folder / ".building" / name)
    summarize(large, folder, Resources(1, 1), show_progress=False)
    assert bytes_of(folder) == whole


def test_sums_of_slices_are_merged(large: Connectome) -> None:
    """The sums over two slices of the subjects, merged, are those over all, also if a cell is silent in one."""
    opened = CellCovariances(large, 6).opener()()
    subjects = list(large.subjects())
    sums = []
    for some in (subjects, subjects[2:], subjects[:2]):
        sums.append(opened.new_accumulator(opened.rows))
        for start in range(0, len(some), 2):
            opened.add(some[start : start + 2], opened.rows, sums[-1])
    whole, mine, theirs = sums
    mine.merge((index, 0, block) for index, block in enumerate(theirs.blocks()))
    for found, expected in zip(mine.blocks(), whole.blocks(), strict=True):
        assert len(expected)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_finished_summaries_are_kept(summary: Summary, silent_connectome: Path, connectome: Path) -> None:
    """The same call changes nothing; other cells or another connectome are refused, with what to do."""
    folder, before = summary.arrays.folder, bytes_of(summary.arrays.folder)
    same = Connectome.open(silent_connectome)
    summarize(same, folder, Resources(MEMORY, 1))
    with pytest.raises(FileExistsError, match="with cells of 8 mm: remove it first, or name another folder"):
        summarize(same, folder, Resources(MEMORY, 1), cell_size_mm=6)
    with pytest.raises(FileExistsError, match="of another connectome"):
        summarize(Connectome.open(connectome), folder, Resources(MEMORY, 1))
    with pytest.raises(ValueError, match=r"is of another connectome .*GSP5.* than this one"):
        Summary.open(connectome, folder)
    assert bytes_of(folder) == before


def test_folders_that_cannot_be_used(silent_connectome: Path, tmp_path: Path) -> None:
    """A folder with something else is refused; one that cannot be created names another as the way out."""
    connectome = Connectome.open(silent_connectome)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a connectome's summary: name a new folder"):
        summarize(connectome, tmp_path, Resources(MEMORY, 1))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with synthetic.as_nobody(), pytest.raises((NoPlace, PermissionError), match=r"cannot be created|denied"):
        summarize(connectome, closed / "summary", Resources(MEMORY, 1))
    with pytest.raises(MemoryError, match="one cell needs"):
        summarize(connectome, tmp_path / "summary", Resources(1000, 1))
    assert not (tmp_path / "summary" / "summary.json").exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("degree.npy", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("cells.npy", lambda content: content[:200]),
        ("operator.npy", lambda content: content[:-4]),
        ("operator.npy", lambda content: b"x" + content[1:]),
        ("covariance.npy", lambda content: content[:-4]),
        ("summary.json", lambda _: b"{}"),
        ("summary.json", lambda _: b"nonsense"),
    ],
)
def test_damage_that_opening_finds(summary: Summary, tmp_path: Path, name: str, damage: object) -> None:
    """A damaged summary is not opened; the error names the file, and what to do."""
    folder = tmp_path / "summary"
    shutil.copytree(summary.arrays.folder, folder)
    (folder / name).write_bytes(damage((folder / name).read_bytes()))  # type: ignore[operator]
    connectome_hash = summary.arrays.record.connectome_hash
    (problem,) = verify_summary(folder, connectome_hash)
    assert name in problem
    with pytest.raises(ValueError, match=name):
        open_summary(folder, connectome_hash)


def test_verification(summary: Summary, tmp_path: Path) -> None:
    """A changed bit in the covariances is found by their checksums; a missing file is named."""
    folder, connectome_hash = tmp_path / "summary", summary.arrays.record.connectome_hash
    shutil.copytree(summary.arrays.folder, folder)
    assert verify_summary(folder, connectome_hash) == ()
    content = (folder / "operator.npy").read_bytes()
    (folder / "operator.npy").write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    (problem,) = verify_summary(folder, connectome_hash)
    assert "operator.npy has another checksum" in problem
    (folder / "operator.npy").unlink()
    assert "operator.npy" in verify_summary(folder, connectome_hash)[0]
    assert "no summary" in verify_summary(tmp_path, connectome_hash)[0]


def make_weights(n_voxels: int) -> LesionWeights:
    """Make a lesion of a fifth of the voxels."""
    rng = np.random.default_rng(3)
    voxels = np.flatnonzero(rng.random(n_voxels) < 0.2).astype(np.int32)
    return LesionWeights(voxels, rng.random(len(voxels)).astype(np.float32))


def test_approximation(summary: Summary, silent_series: list[Array]) -> None:
    """A lesion's approximate map is the reference's."""
    arrays, lesion = summary.arrays, make_weights(summary.grid.n_voxels)
    weights = np.zeros(summary.grid.n_voxels)
    weights[lesion.voxels] = lesion.weights
    expected = reference.approximate(weights, arrays.cells, *reference.cell_covariances(arrays.cells, silent_series))
    found = summary.approximate(lesion)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_approximation_of_a_mask(summary: Summary, silent_connectome: Path) -> None:
    """A lesion is read and weighed; if it is of whole cells, its approximate map is nearly the exact one."""
    image = nib.Nifti1Image(synthetic.box((2, 2, 4), (2, 4, 6)), synthetic.RADIOLOGICAL)
    approximate = summary.approximate(LesionData.from_nifti(image))
    (mapped,) = batch_process(
        [LesionData.from_nifti(image)], FunctionalNetworkMapping(silent_connectome), show_progress=False
    )
    exact = summary.grid.vector(mapped.results["FunctionalNetworkMapping"]["z_map"].get_fdata())
    assert np.corrcoef(approximate, exact)[0, 1] > 0.98


def test_similarity(summary: Summary) -> None:
    """The correlations are NumPy's over the voxels outside the lesion where the map is defined; R² is that of OLS."""
    arrays, rng = summary.arrays, np.random.default_rng(7)
    z = (arrays.degree + 0.1 * rng.standard_normal(summary.grid.n_voxels)).astype(np.float32)
    z[17] = np.nan
    without = np.array([3, 4, 99])
    compared = np.isin(np.arange(len(z)), [17, *without], invert=True)
    maps = np.array([arrays.degree, arrays.absolute_degree, *arrays.components], float)[:, compared]
    found = summary.similarity(z, without)
    expected = [np.corrcoef(z[compared], each)[0, 1] for each in maps]
    np.testing.assert_allclose(list(found.correlations.values()), expected, atol=1e-6)
    assert list(found.correlations) == ["degree", "absolute_degree", "pc1", "pc2", "pc3"]
    columns = np.column_stack([np.ones(compared.sum()), *maps])
    fit = columns @ np.linalg.lstsq(columns, z[compared].astype(float), rcond=None)[0]
    explained = 1 - np.var(z[compared] - fit) / np.var(z[compared].astype(float))
    assert found.r_squared == pytest.approx(explained, abs=1e-6)
    assert found.n_voxels == compared.sum()
    image = nib.Nifti1Image(summary.grid.volume(z), summary.grid.affine)
    assert summary.similarity(image, without) == found


def test_similarity_of_maps_that_cannot_be_compared(summary: Summary) -> None:
    """A map without variance has NaN; an image on another grid is refused."""
    flat = summary.similarity(np.ones(summary.grid.n_voxels, np.float32))
    assert np.isnan([*flat.correlations.values(), flat.r_squared]).all()
    other = nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.eye(4))
    with pytest.raises(ValueError, match="has another grid than the connectome"):
        summary.similarity(other)


def test_a_connectome_of_two_cells(connectome: Path, tmp_path: Path) -> None:
    """Two cells have one component; the others are undefined, and similarity does without them."""
    opened = Connectome.open(connectome)
    arrays = summarize(opened, tmp_path / "summary", Resources(MEMORY, 1), cell_size_mm=28, show_progress=False)
    assert arrays.record.n_cells == 2
    assert np.isfinite(arrays.components[0]).all()
    assert np.isnan(arrays.components[1:]).all()
    similarity = Summary.open(opened, tmp_path / "summary").similarity(arrays.degree)
    assert similarity.degree == pytest.approx(1)
    assert similarity.r_squared == pytest.approx(1)
    assert np.isnan([similarity.pc2, similarity.pc3]).all()


def test_a_full_disk(large: Connectome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the covariances do not fit the disk, nothing is computed, and nothing stays behind."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoRoom, match="the summary needs"):
        summarize(large, tmp_path / "summary", Resources(MEMORY, 1))
    assert not (tmp_path / "summary").exists()
