"""Similarity of maps to their connectome as a whole: in sidecars, where there is a summary, and added to old maps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from program import capture, map_lesions, run

from bids_lacuna import Summary, cli
from bids_lacuna.files import read_table

MASK = synthetic.make_mask()

BOXES = {"01": synthetic.box((1, 2, 3)), "02": synthetic.box((2, 4, 6), (3, 2, 2))}

STEM = f"space-{synthetic.SPACE}_label-lesion"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a store without a summary."""
    folder = tmp_path_factory.mktemp("connectome")
    source = synthetic.write_connectome_folder(folder / "hdf5", synthetic.make_series(int(MASK.sum())), MASK)
    options = ["--space", synthetic.SPACE, "--name", "GSP5", "--nprocs", "1"]
    assert capture(cli.connectome_main, "build", source, folder / "store", *options).returncode == 0
    return folder / "store"


@pytest.fixture(scope="module")
def summarized(built: Path) -> Path:
    """Copy the store, and summarize the copy."""
    store = shutil.copytree(built, built.with_name("summarized"))
    assert capture(cli.connectome_main, "summarize", store).returncode == 0
    return store


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Write two lesions."""
    masks = {f"sub-{label}/anat/sub-{label}_{STEM}_mask": voxels for label, voxels in BOXES.items()}
    return synthetic.write_dataset(tmp_path / "bids", masks)


def find_map(out: Path, label: str, stat: str) -> Path:
    """Return the path of a lesion's map."""
    return out / f"sub-{label}" / "func" / f"sub-{label}_{STEM}_stat-{stat}_desc-GSP5_statmap.nii.gz"


def read_sidecar(out: Path, label: str, stat: str = "r") -> dict[str, object]:
    """Read a map's sidecar."""
    path = find_map(out, label, stat)
    return json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())


def state_of(out: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of all files of maps."""
    paths = sorted(out.glob("sub-*/func/*"))
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_finished_maps_are_compared_and_not_mapped_again(
    bids: Path, built: Path, summarized: Path, tmp_path: Path
) -> None:
    """Without a summary, a line names the command; after it, the same command changes the r-maps' sidecars alone."""
    out = tmp_path / "out"
    ended = map_lesions(bids, out, built)
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "has no summary" in line]
    assert f"bids-lacuna-connectome summarize {built}" in line
    before = state_of(out)
    ended = map_lesions(bids, out, summarized)
    assert ended.returncode == 0, ended.stderr
    assert "0 done, 2 skipped" in ended.stderr
    after = state_of(out)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {find_map(out, label, "r").name.replace(".nii.gz", ".json") for label in BOXES}
    for name in changed:
        kept, added = json.loads(before[name][0]), json.loads(after[name][0])
        assert added.pop("WithoutNullLesions")["Reason"].startswith("too large to be moved")
        added.pop("ConnectomeSimilarity")
        assert added == kept
    assert map_lesions(bids, out, summarized).returncode == 0
    assert state_of(out) == after


def test_similarity_of_new_maps(bids: Path, built: Path, summarized: Path, tmp_path: Path) -> None:
    """With a summary, maps are those without, and r, R² and voxels in the sidecar are NumPy's of the map on disk."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, summarized).returncode == 0
    assert map_lesions(bids, tmp_path / "other", built).returncode == 0
    arrays = Summary.open(summarized).arrays
    for label, voxels in BOXES.items():
        for stat in "rzt":
            path, other = (find_map(folder, label, stat) for folder in (out, tmp_path / "other"))
            assert path.read_bytes() == other.read_bytes()
        similarity = read_sidecar(out, label)["ConnectomeSimilarity"]
        z = nib.load(find_map(out, label, "z")).get_fdata()[MASK]
        outside = voxels[MASK] == 0
        maps = [arrays.degree, arrays.absolute_degree, *arrays.components]
        expected = [np.corrcoef(z[outside], each[outside])[0, 1] for each in maps]
        found = [similarity[key] for key in ("Degree", "AbsoluteDegree", "PC1", "PC2", "PC3")]
        np.testing.assert_allclose(found, expected, atol=2e-6)
        columns = np.column_stack([np.ones(outside.sum()), *(each[outside] for each in maps)])
        residuals = z[outside] - columns @ np.linalg.lstsq(columns, z[outside], rcond=None)[0]
        assert similarity["RSquared"] == pytest.approx(1 - residuals.var() / z[outside].var(), abs=2e-6)
        assert similarity["NumberOfVoxels"] == outside.sum()
        assert similarity["CellSize"] == 8
        assert "ConnectomeSimilarity" not in read_sidecar(out, label, "z")


def test_another_summary_replaces_the_similarity(bids: Path, summarized: Path, tmp_path: Path) -> None:
    """The summary that --connectome-summary names is used, and what was made with another one is replaced."""
    out, there = tmp_path / "out", tmp_path / "there"
    assert map_lesions(bids, out, summarized).returncode == 0
    before = read_sidecar(out, "01")["ConnectomeSimilarity"]
    assert (
        capture(cli.connectome_main, "summarize", summarized, "--output", there, "--cell-size-mm", 12).returncode == 0
    )
    assert map_lesions(bids, out, summarized, "--connectome-summary", there).returncode == 0
    after = read_sidecar(out, "01")["ConnectomeSimilarity"]
    assert (before["CellSize"], after["CellSize"]) == (8, 12)
    assert before["SummaryHash"] != after["SummaryHash"]
    assert before["Degree"] == after["Degree"]


def test_a_summary_that_cannot_be_used(bids: Path, built: Path, summarized: Path, tmp_path: Path) -> None:
    """A damaged or foreign summary is one warning, and lesions are mapped without it; a missing one is an error."""
    damaged = shutil.copytree(summarized, tmp_path / "damaged")
    (damaged / "summary" / "degree.npy").write_bytes(b"x")
    ended = map_lesions(bids, tmp_path / "out", damaged)
    assert ended.returncode == 0
    (warning,) = [line for line in ended.stderr.splitlines() if " W " in line]
    assert "compared neither to the connectome's degree nor to null lesions" in warning
    assert "degree.npy" in warning
    assert "ConnectomeSimilarity" not in read_sidecar(tmp_path / "out", "01")
    ended = map_lesions(bids, tmp_path / "missing", built, "--connectome-summary", tmp_path / "nowhere")
    assert ended.returncode == 66
    assert "there is no summary of the connectome in" in ended.stderr
    assert not (tmp_path / "missing").exists()


def test_a_map_that_cannot_be_read(bids: Path, built: Path, summarized: Path, tmp_path: Path) -> None:
    """A damaged z-map is one warning, and the other lesion is compared."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, built).returncode == 0
    find_map(out, "01", "z").write_bytes(b"x")
    ended = map_lesions(bids, out, summarized, "--null-lesions", "0")
    assert ended.returncode == 1
    (warning,) = [line for line in ended.stderr.splitlines() if " W " in line]
    assert "sub-01" in warning
    assert "is not compared to the connectome's degree" in warning
    assert "ConnectomeSimilarity" not in read_sidecar(out, "01")
    assert "ConnectomeSimilarity" in read_sidecar(out, "02")


def test_hdf5_needs_a_store(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """Without a store there is a warning that asks for one, and no line about a summary."""
    ended = map_lesions(bids, tmp_path / "out", connectome)
    assert "build one, once" in ended.stderr
    assert "summary" not in ended.stderr


COLUMNS = ("r_with_degree", "r_with_absolute_degree", "r_with_pc1", "r_with_pc2", "r_with_pc3", "r_squared")

KEYS = ("Degree", "AbsoluteDegree", "PC1", "PC2", "PC3", "RSquared")


def describe_group(bids: Path, out: Path, *options: object) -> list[list[str]]:
    """Run the group level, and return the cells of similarity of each row; empty without the columns."""
    ended = run(bids, out, "group", "--no-reports", *options)
    assert ended.returncode == 0, ended.stderr
    rows = read_table(out / "group_lesions.tsv")
    dictionary = json.loads((out / "group_lesions.json").read_text())
    assert ("r_with_degree" in dictionary) == ("r_with_degree" in rows[0])
    return [[row[name] for name in COLUMNS] for row in rows if "r_with_degree" in row]


def test_the_group_has_a_column_for_each_number(bids: Path, built: Path, summarized: Path, tmp_path: Path) -> None:
    """The table has what sidecars have; with the connectome, it is computed, and that of the mean map as well."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, built).returncode == 0
    assert describe_group(bids, out) == describe_group(bids, out, "--connectome", built) == []
    computed = describe_group(bids, out, "--connectome", summarized)
    (mean,) = out.glob("*_stat-z_desc-GSP5mean_statmap.json")
    similarity = json.loads(mean.read_text())["ConnectomeSimilarity"]
    z = nib.load(mean.with_suffix(".nii.gz")).get_fdata()[MASK]
    degree = Summary.open(summarized).arrays.degree
    assert similarity["Degree"] == pytest.approx(np.corrcoef(z, degree)[0, 1], abs=2e-6)
    assert similarity["NumberOfVoxels"] == MASK.sum()
    assert map_lesions(bids, out, summarized).returncode == 0
    recorded = describe_group(bids, out)
    assert recorded == computed
    for label, cells in zip(BOXES, recorded, strict=True):
        sidecar = read_sidecar(out, label)["ConnectomeSimilarity"]
        assert cells == [f"{sidecar[key]:.6g}" for key in KEYS]
    assert "ConnectomeSimilarity" not in json.loads(mean.read_text())


def test_the_group_without_some_similarity(bids: Path, built: Path, summarized: Path, tmp_path: Path) -> None:
    """A lesion whose sidecar has no similarity has n/a; a summary without its connectome is a mistake."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, built).returncode == 0
    assert map_lesions(bids, out, summarized, "--participant-label", "02").returncode == 0
    without, with_it = describe_group(bids, out)
    assert without == ["n/a"] * 6
    assert "n/a" not in with_it
    ended = run(bids, out, "group", "--connectome-summary", summarized / "summary")
    assert ended.returncode == 64
    assert "give it, too, with --connectome PATH" in ended.stderr
