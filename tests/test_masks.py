"""Masks for new thresholds, made from t-maps on disk: bit-identical to those of a pass, and without one."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from program import map_lesions, read_table, run

from bids_lacuna.app.sharing import reopen
from bids_lacuna.bids import LesionMask
from bids_lacuna.derivatives.records import LesionRecord
from bids_lacuna.grid import Grid
from bids_lacuna.mapping.maps import read_t, threshold_t
from bids_lacuna.report.participant import write_participant_report

LABELS = ("01", "02", "03")


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset of three participants with a lesion each."""
    masks = {
        f"sub-{label}/anat/sub-{label}_space-{synthetic.SPACE}_label-lesion_mask": synthetic.box((place, 2, 3))
        for place, label in enumerate(LABELS)
    }
    return synthetic.write_dataset(tmp_path_factory.mktemp("dataset") / "bids", masks)


def maps_of(out: Path) -> dict[str, bytes]:
    """Read all maps and their sidecars."""
    return {path.name: path.read_bytes() for path in out.glob("sub-*/func/*")}


def exact_t(out: Path) -> float:
    """Return the value of a t-map at some voxel, as a threshold that this voxel does not exceed."""
    t = nib.load(next(out.glob("sub-01/func/*stat-t*_statmap.nii.gz"))).get_fdata(dtype=np.float32)
    return float(np.sort(np.abs(t[np.isfinite(t)]))[-20])


@pytest.fixture(scope="module")
def once(bids: Path, silent_connectome: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Map with three thresholds in one pass, one of them a value of a t-map: the output, and that value."""
    folder = tmp_path_factory.mktemp("once")
    assert map_lesions(bids, folder / "first", silent_connectome).returncode == 0
    exact = exact_t(folder / "first")
    options = ["--t-threshold", "2", "0.1", repr(exact)]
    assert map_lesions(bids, folder / "out", silent_connectome, *options).returncode == 0
    return folder / "out", exact


def test_new_thresholds_need_no_pass(
    bids: Path, silent_connectome: Path, once: tuple[Path, float], tmp_path: Path
) -> None:
    """Only the missing masks are written: all files are bit-identical to those of one pass with all thresholds."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, silent_connectome, "--t-threshold", "2").returncode == 0
    before = {path: path.stat().st_ino for path in out.glob("sub-*/func/*")}
    options = ["--t-threshold", "0.1", repr(once[1])]
    dry = run(bids, out, "participant", "--connectome", silent_connectome, *options, "--dry-run")
    assert dry.stdout.count("make masks from its t-map") == len(LABELS)
    assert "lesions to map      0\n" in dry.stdout
    added = map_lesions(bids, out, silent_connectome, *options)
    assert added.returncode == 0, added.stderr
    assert "lesions whose masks were made from their t-maps: 3" in added.stderr
    assert "passes over" not in added.stderr
    assert maps_of(out) == maps_of(once[0])
    assert {path: path.stat().st_ino for path in before} == before
    rows = read_table(out)
    assert [(row["status"], row["batch"]) for row in rows] == [("done", "n/a")] * 3
    first = read_table(once[0])
    assert [(row["volume_mm3"], row["coverage"]) for row in rows] == [
        (row["volume_mm3"], row["coverage"]) for row in first
    ]
    again = map_lesions(bids, out, silent_connectome, *options)
    assert "3 skipped" in again.stderr


def test_texts_have_the_masks_of_all_runs(bids: Path, silent_connectome: Path, tmp_path: Path) -> None:
    """The page describes the run that mapped the lesion; it and the methods text have the thresholds of all masks."""
    out = tmp_path / "out"
    for threshold in ("2", "7.5"):
        assert map_lesions(bids, out, silent_connectome, "--t-threshold", threshold).returncode == 0
    sentence = "Binary maps contain the voxels with |t| > 2 and 7.5."
    assert sentence in (out / "logs/CITATION.md").read_text()
    write_participant_report(out, "01")
    page = (out / "sub-01.html").read_text().replace("&gt;", ">")
    assert sentence in page
    assert "|t| > 2; with masks of other runs: |t| > 2, |t| > 7.5" in page
    (mapping,) = [table.parent.name for table in out.glob("logs/*/lesions.tsv") if "\t1\n" in table.read_text()]
    assert f"logs/{mapping}/lesions.tsv" in page
    assert page.count("Outcomes of all lesions") == 1


def test_lesions_with_and_without_new_masks_are_one_group(
    bids: Path, silent_connectome: Path, tmp_path: Path
) -> None:
    """Masks for further thresholds of one participant keep nobody out of the group."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, silent_connectome, "--t-threshold", "2").returncode == 0
    options = ["--t-threshold", "2", "3", "--participant-label", "02"]
    assert map_lesions(bids, out, silent_connectome, *options).returncode == 0
    group = run(bids, out, "group", "--no-reports")
    assert group.returncode == 0, group.stderr
    assert len((out / "group_lesions.tsv").read_text().splitlines()) == 1 + len(LABELS)
    assert len(list(out.glob("space-*networkT2above*.nii.gz"))) == 1
    assert not list(out.glob("space-*networkT3above*"))
    assert "some lesions have masks for |t| > 3, others do not" in group.stderr


@pytest.mark.parametrize("damage", ["truncated", "another grid", "scaled", "gone"])
def test_a_t_map_that_cannot_be_used_is_made_again(
    bids: Path, silent_connectome: Path, once: tuple[Path, float], tmp_path: Path, damage: str
) -> None:
    """The lesion is mapped again, with a warning, and has the same maps in the end; the others need no pass."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, silent_connectome, "--t-threshold", "2").returncode == 0
    (t_map,) = out.glob("sub-02/func/*stat-t*_statmap.nii.gz")
    image = nib.load(t_map)
    match damage:
        case "truncated":
            t_map.write_bytes(t_map.read_bytes()[:-50])
        case "another grid":
            nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine + 1), t_map)
        case "scaled":
            nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), t_map)
        case "gone":
            t_map.unlink()
    done = map_lesions(bids, out, silent_connectome, "--t-threshold", "0.1", repr(once[1]))
    assert done.returncode == 0, done.stderr
    assert ("no mask is made from its t-map, it is mapped again" in done.stderr) == (damage != "gone")
    assert [row["batch"] for row in read_table(out)] == ["n/a", "1", "n/a"]
    assert maps_of(out).keys() == maps_of(once[0]).keys()
    for name, content in maps_of(out).items():
        # A batch of other lesions rounds differently.
        if "sub-02" not in name:
            assert content == maps_of(once[0])[name]


def test_without_t_maps_there_is_a_pass(bids: Path, silent_connectome: Path, tmp_path: Path) -> None:
    """Masks cannot be made from the r-map, and --overwrite maps in any case."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, silent_connectome, "--no-t-map").returncode == 0
    for options in (["--no-t-map"], ["--overwrite"]):
        done = map_lesions(bids, out, silent_connectome, "--t-threshold", "2", *options)
        assert done.returncode == 0, done.stderr
        assert [row["batch"] for row in read_table(out)] == ["1"] * 3


def test_an_interrupted_batch_is_mapped_as_a_whole(tmp_path: Path) -> None:
    """If one lesion of a batch that was being written needs a pass, those that lack only masks are mapped, too."""

    def record(name: str, status: str, t_map: bool) -> LesionRecord:
        mask = LesionMask(tmp_path / name, {"sub": name}, None, "source", tmp_path)
        return LesionRecord(mask, status, t_map=tmp_path / "t.nii.gz" if t_map else None)

    batch = [record("a", "pending", True), record("b", "skipped", False), record("c", "pending", False)]
    paths = [str(each.mask.path.absolute()) for each in batch]
    reopen(batch[:2], paths[:2])
    assert [(each.status, each.t_map is None) for each in batch[:2]] == [("pending", False), ("skipped", True)]
    reopen(batch, paths)
    assert [(each.status, each.t_map is None) for each in batch] == [("pending", True)] * 3


def test_a_threshold_is_compared_as_in_a_pass(tmp_path: Path) -> None:
    """Values and thresholds are compared in float32, from memory and from disk: t = 0.1 does not exceed 0.1."""
    t = np.array([0.1, -0.1, 0.100000001, np.nan, np.nextafter(np.float32(0.1), np.float32(1)), 7], np.float32)
    grid = Grid(np.array([1, 1, 1, 1, 0, 1, 1], bool).reshape(7, 1, 1), synthetic.RADIOLOGICAL)
    image = nib.Nifti1Image(grid.volume(t, np.nan), grid.affine)
    nib.save(image, tmp_path / "t.nii.gz")
    read = read_t(tmp_path / "t.nii.gz", grid)
    np.testing.assert_array_equal(read, t)
    mask = threshold_t(read, 0.1, grid, synthetic.SPACE)
    assert np.asarray(mask.dataobj).ravel().tolist() == [0, 0, 0, 0, 0, 1, 1]
