"""`--atlas` on the command line: tables of finished maps, made once, replaced when the atlas changes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name
import synthetic
from program import Ended, map_lesions, read_tsv, run
from program import read_table as read_lesions

from bids_lacuna.report.participant import write_participant_report
from bids_lacuna.text import percent

MASK = synthetic.make_mask()

BOXES = {"01": synthetic.box((1, 2, 3)), "02": synthetic.box((2, 4, 6), (3, 2, 2))}

STEM = f"space-{synthetic.SPACE}_label-lesion"

NAMES = {1: "Putamen_L", 2: "Putamen_R", 3: "Brainstem"}

ATLAS = "tpl-MNI152NLin6Asym_atlas-Made_desc-3Parcels1Networks_dseg"


def write_atlas(folder: Path, name: str = ATLAS, seed: int = 3) -> Path:
    """Write an atlas of three regions on the connectome's grid."""
    labels = np.random.default_rng(seed).integers(0, 4, synthetic.SHAPE)
    path = synthetic.write_mask(folder / f"{name}.nii.gz", labels)
    rows = "".join(f"{index}\t{label}\n" for index, label in NAMES.items())
    (folder / f"{name}.tsv").write_text(f"index\tlabel\n{rows}")
    return path


@pytest.fixture(scope="module")
def connectome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a connectome."""
    series = synthetic.make_series(int(MASK.sum()))
    return synthetic.write_connectome_folder(tmp_path_factory.mktemp("connectome") / "GSP5", series, MASK)


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two lesions."""
    masks = {f"sub-{label}/anat/sub-{label}_{STEM}_mask": voxels for label, voxels in BOXES.items()}
    return synthetic.write_dataset(tmp_path_factory.mktemp("dataset") / "bids", masks)


@pytest.fixture(scope="module")
def mapped(bids: Path, connectome: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Map the lesions without an atlas."""
    out = tmp_path_factory.mktemp("mapped") / "out"
    ended = map_lesions(bids, out, connectome)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture
def out(mapped: Path, tmp_path: Path) -> Path:
    """Copy the maps."""
    return shutil.copytree(mapped, tmp_path / "out")


def table_of(out: Path, label: str, atlas: str = "atlas-Made_seg-1Networks_scale-3") -> Path:
    """Return the path of a lesion's table."""
    name = f"sub-{label}_space-{synthetic.SPACE}_{atlas}_label-lesion_stat-mean_desc-GSP5_parcels.tsv"
    return out / f"sub-{label}" / "func" / name


def read_labels(path: Path) -> np.ndarray:
    """Read the labels of an atlas."""
    return np.asarray(nib.load(path).dataobj)


def read_map(out: Path, label: str, stat: str) -> np.ndarray:
    """Read the voxels of a map."""
    return nib.load(out / f"sub-{label}/func/sub-{label}_{STEM}_stat-{stat}_desc-GSP5_statmap.nii.gz").get_fdata()


def state_of(out: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of all files of lesions."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(out.glob("sub-*/func/*"))}


def succeeded(ended: Ended) -> str:
    """Return the log of a run without failures."""
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_tables_of_finished_maps(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """The tables have NumPy's means of the maps on disk, and the lesion's voxels by region; nothing is mapped."""
    before = state_of(out)
    atlas = write_atlas(tmp_path)
    log = succeeded(map_lesions(bids, out, connectome, "--atlas", atlas))
    assert "0 done, 2 skipped" in log
    after = state_of(out)
    assert {name: after[name] for name in before} == before
    labels = read_labels(atlas)
    for label, lesion in BOXES.items():
        rows = read_tsv(table_of(out, label))
        assert [(row["index"], row["label"]) for row in rows] == [
            ("0", "outside"),
            *((str(index), name) for index, name in NAMES.items()),
        ]
        assert [row["hemisphere"] for row in rows] == ["n/a", "L", "R", "n/a"]
        z, t = (read_map(out, label, stat) for stat in "zt")
        for row in rows:
            region = labels == int(row["index"])
            inside = region & np.isfinite(z)
            assert float(row["mean_z"]) == pytest.approx(z[inside].mean(), abs=1e-6)
            assert float(row["mean_r"]) == pytest.approx(np.tanh(z[inside].mean()), abs=1e-6)
            assert float(row["mean_t"]) == pytest.approx(t[inside].mean(), rel=1e-5)
            assert int(row["n_voxels"]) == inside.sum()
            assert float(row["covered_volume"]) == pytest.approx(64 * inside.sum())
            lesioned = (region & (lesion > 0)).sum()
            assert float(row["fraction_of_lesion"]) == pytest.approx(lesioned / lesion.sum(), rel=1e-6)
            if row["index"] != "0":
                assert float(row["volume"]) == pytest.approx(64 * region.sum())
                assert float(row["fraction_lesioned"]) == pytest.approx(lesioned / region.sum(), rel=1e-6)
        assert (rows[0]["volume"], rows[0]["fraction_lesioned"]) == ("n/a", "n/a")
        sidecar = json.loads(table_of(out, label).with_suffix(".json").read_text())
        assert set(rows[0]) <= set(sidecar)
        assert sidecar["AtlasFile"] == atlas.name
        assert sidecar["Sources"][0].endswith("_stat-z_desc-GSP5_statmap.nii.gz")
        assert "LesionTransforms" not in sidecar


def test_tables_are_made_once(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """A rerun writes nothing; another content of the atlas replaces its tables, those of another atlas stay."""
    atlas = write_atlas(tmp_path)
    dry = map_lesions(bids, out, connectome, "--atlas", atlas, "--dry-run")
    assert f"2 tables of {atlas.name}" in dry.stdout
    other = write_atlas(tmp_path, "tpl-MNI152NLin6Asym_atlas-Other_dseg", seed=4)
    succeeded(map_lesions(bids, out, connectome, "--atlas", atlas, "--atlas", other))
    first = state_of(out)
    assert table_of(out, "01", "atlas-Other").exists()
    succeeded(map_lesions(bids, out, connectome, "--atlas", atlas, other))
    assert state_of(out) == first
    dry = map_lesions(bids, out, connectome, "--atlas", atlas, "--dry-run")
    assert f"0 tables of {atlas.name}" in dry.stdout
    write_atlas(tmp_path, seed=5)
    succeeded(map_lesions(bids, out, connectome, "--atlas", atlas, other))
    changed = {name for name, content in state_of(out).items() if first[name] != content}
    tables = [table_of(out, label) for label in BOXES]
    assert changed == {path.with_suffix(ending).name for path in tables for ending in (".tsv", ".json")}
    table_of(out, "02").with_suffix(".json").unlink()
    succeeded(map_lesions(bids, out, connectome, "--atlas", atlas))
    assert table_of(out, "02").with_suffix(".json").exists()


def test_tables_of_new_maps(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """A run that maps writes the same tables; without t-maps, means of t are n/a."""
    atlas = write_atlas(tmp_path)
    succeeded(map_lesions(bids, out, connectome, "--atlas", atlas))
    succeeded(map_lesions(bids, tmp_path / "new", connectome, "--atlas", atlas))
    assert table_of(tmp_path / "new", "01").read_bytes() == table_of(out, "01").read_bytes()
    succeeded(map_lesions(bids, tmp_path / "no_t", connectome, "--atlas", atlas, "--no-t-map"))
    rows = read_tsv(table_of(tmp_path / "no_t", "01"))
    assert {row["mean_t"] for row in rows} == {"n/a"}
    assert [row["mean_z"] for row in rows] == [row["mean_z"] for row in read_tsv(table_of(out, "01"))]


def test_an_atlas_without_a_space(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """Without a space in its name or sidecar, an atlas is taken to be in the connectome's, which is said, once."""
    atlas = write_atlas(tmp_path, "mine_dseg")
    atlas.with_name("mine_dseg.tsv").write_text("index\tlabel\n1\tPutamen\n")
    log = succeeded(map_lesions(bids, out, connectome, "--atlas", atlas))
    for words in ("it is taken to be the connectome's, MNI152NLin6Asym", "labels without a row in its table"):
        assert log.count(words) == 1
    assert table_of(out, "01", "atlas-mine").exists()


@pytest.mark.parametrize(
    ("names", "status", "words"),
    [
        (["missing.nii.gz"], 66, "there is no atlas missing.nii.gz"),
        (["space-T1w_atlas-A_dseg"], 65, "T1w is a participant's own space"),
        (["space-MNI152_atlas-A_dseg"], 65, "is ambiguous"),
        (["space-OASIS30ANTs_atlas-A_dseg"], 65, "--transform OASIS30ANTs:MNI152NLin6Asym=FILE"),
        (["space-MNI152NLin2009cAsym_atlas-A_dseg"], 65, "--no-download was given"),
        (["a_atlas-A_dseg", "b_atlas-A_dseg"], 64, "2 atlases would have tables of the same name, atlas-A"),
    ],
)
def test_atlases_that_cannot_be_used(
    names: list[str],
    status: int,
    words: str,
    bids: Path,
    connectome: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run ends with a sentence before anything is mapped or written."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    atlases = [name if "." in name else write_atlas(tmp_path, name) for name in names]
    ended = map_lesions(bids, tmp_path / "out", connectome, "--no-download", "--atlas", *atlases)
    assert (ended.returncode, words in ended.stderr) == (status, True), ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_mask_that_cannot_be_counted(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """A lesion whose map is damaged has no table, with a warning, a reason and status 1; the others have theirs."""
    z_map = out / f"sub-01/func/sub-01_{STEM}_stat-z_desc-GSP5_statmap.nii.gz"
    z_map.write_bytes(z_map.read_bytes()[:200])
    ended = map_lesions(bids, out, connectome, "--atlas", write_atlas(tmp_path))
    said = f"no parcels of {ATLAS}.nii.gz: the map"
    assert f"sub-01_{STEM}_mask.nii.gz: {said}" in ended.stderr
    assert ended.returncode == 1
    assert [said in row["reason"] for row in read_lesions(out)] == [True, False]
    assert [table_of(out, label).exists() for label in BOXES] == [False, True]


def test_tables_of_a_group(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """The group's table has the rows of all lesions of its atlas, in order; one of an earlier group goes."""
    atlas, other = write_atlas(tmp_path), write_atlas(tmp_path, "tpl-MNI152NLin6Asym_atlas-Other_dseg", seed=4)
    succeeded(map_lesions(bids, out, connectome, "--atlas", atlas, other))
    write_atlas(tmp_path, other.name.removesuffix(".nii.gz"), seed=5)
    succeeded(map_lesions(bids, out, connectome, "--atlas", other, "--participant-label", "01"))
    group = ("--no-reports", "--overwrite")
    log = succeeded(run(bids, out, "group", *group))
    assert "atlas-Other: 1 of 2 lesions have parcels of the same atlas" in log
    path = out / "group_atlas-Made_seg-1Networks_scale-3_desc-GSP5_parcels.tsv"
    rows = read_tsv(path)
    assert list(rows[0])[:3] == ["lesion", "participant_id", "session_id"]
    assert [row["participant_id"] for row in rows] == ["sub-01"] * 4 + ["sub-02"] * 4
    own = [row for label in BOXES for row in read_tsv(table_of(out, label))]
    assert [{column: row[column] for column in own[0]} for row in rows] == own
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert (sidecar["NumberOfLesions"], sidecar["AtlasFile"]) == (2, atlas.name)
    assert set(rows[0]) <= set(sidecar)
    for table in out.glob("sub-*/func/*_parcels.tsv"):
        table.unlink()
    succeeded(run(bids, out, "group", *group))
    assert not list(out.glob("group_atlas-*"))


def test_pages(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """A page has the strongest regions, those of the lesion and of peaks, and the atlas' file in its methods."""
    atlas, same = write_atlas(tmp_path), write_atlas(tmp_path, "tpl-MNI152NLin6Asym_atlas-Same_dseg")
    rows = "1\tPutamen\tL\n2\tPutamen\tR\n3\tBrainstem\tn/a\n"
    same.with_name("tpl-MNI152NLin6Asym_atlas-Same_dseg.tsv").write_text(f"index\tlabel\themisphere\n{rows}")
    succeeded(map_lesions(bids, out, connectome, "--atlas", atlas, same))
    assert write_participant_report(out, "01") == []
    page = (out / "sub-01.html").read_text()
    rows = {row["label"]: row for row in read_tsv(table_of(out, "01"))}
    assert "Strongest regions of Made 1Networks 3" in page
    bars = page[page.index("Mean r of regions") :]
    shown = re.findall(r'<th scope="row">([^<]*)</th>.*?<td class="number">([^<]*)<', bars[: bars.index("</table>")])
    assert sorted(shown, key=lambda bar: -abs(float(bar[1].replace("\N{MINUS SIGN}", "-")))) == shown
    assert {name.partition(" (")[0] for name, _ in shown} == set(NAMES.values())
    for name, r in shown:
        expected = float(rows[name.partition(" (")[0]]["mean_r"])
        assert float(r.replace("\N{MINUS SIGN}", "-")) == pytest.approx(expected, abs=6e-4)
    placed = nib.load(
        out / f"tpl-{synthetic.SPACE}" / f"{ATLAS.partition('_desc')[0]}_seg-1Networks_scale-3_desc-GSP5_dseg.nii.gz"
    )
    labels = read_labels(atlas)
    np.testing.assert_array_equal(np.asarray(placed.dataobj), np.where(MASK, labels, 0))
    (clusters,) = (out / "sub-01/figures").glob("*_clusters.tsv")
    for row in read_tsv(clusters):
        peak_mm = [float(row[f"{axis}_mm"]) for axis in "xyz"]
        at = nib.affines.apply_affine(np.linalg.inv(placed.affine), peak_mm).round().astype(int)
        assert row["region_Made_1Networks_3"] == NAMES.get(labels[tuple(at)], "n/a")
    inside = labels[BOXES["01"] > 0]
    for names in (NAMES, {1: "Putamen L", 2: "Putamen R", 3: "Brainstem"}):
        described = re.search(rf"In {'Made' if names is NAMES else 'Same'}[^<]*</dt><dd>([^<]*)</dd>", page)
        assert described
        assert set(described[1].split("; ")) == {
            f"{names.get(index, 'outside')}: {percent((inside == index).mean(), 2)}" for index in np.unique(inside)
        }
    assert f"Maps were averaged over the regions of Made 1Networks 3 ({atlas.name}, SHA-256 " in page
    citation = (out / "logs/CITATION.md").read_text()
    assert citation.startswith("Lesion network mapping")
    assert f"({atlas.name}, SHA-256 " in citation
    # Made from another mask, the table is not this lesion's.
    sidecar = table_of(out, "01").with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace('"LesionHash": "', '"LesionHash": "0'))
    write_participant_report(out, "01")
    assert "Strongest regions of Made" not in (out / "sub-01.html").read_text()


def test_overwritten_maps_have_no_old_table(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """A lesion that is mapped again with other settings keeps no table of its earlier maps."""
    succeeded(map_lesions(bids, out, connectome, "--atlas", write_atlas(tmp_path)))
    succeeded(map_lesions(bids, out, connectome, "--overwrite", "--lesion-weighting", "binary"))
    assert not list(out.glob("sub-*/func/*_parcels.*"))


def test_an_atlas_in_another_space(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """Through --transform, here a shift by one voxel, the table is that of the shifted atlas; its sidecar says so."""
    path = synthetic.write_mask(
        tmp_path / "space-OASIS30ANTs_atlas-Far_dseg.nii.gz", read_labels(write_atlas(tmp_path))
    )
    here = synthetic.RADIOLOGICAL.copy()
    here[:3, 3] += [4, 0, 0]
    synthetic.write_mask(tmp_path / "space-MNI152NLin6Asym_atlas-Near_dseg.nii.gz", read_labels(path), here)
    # From points of the connectome to points of the atlas, in LPS.
    shift = tmp_path / "shift.txt"
    sitk.WriteTransform(sitk.TranslationTransform(3, [4.0, 0, 0]), str(shift))
    atlases = (path, tmp_path / "space-MNI152NLin6Asym_atlas-Near_dseg.nii.gz")
    given = f"OASIS30ANTs:MNI152NLin6Asym={shift}"
    log = succeeded(map_lesions(bids, out, connectome, "--transform", given, "--atlas", *atlases))
    assert "brought from OASIS30ANTs to MNI152NLin6Asym by a given transform" in log
    far, near = (read_tsv(table_of(out, "01", f"atlas-{name}")) for name in ("Far", "Near"))
    for one, other in zip(far, near, strict=True):
        for column in ("mean_z", "n_voxels", "fraction_of_lesion"):
            assert float(one[column]) == pytest.approx(float(other[column]), abs=1e-5)
    sidecar = json.loads(table_of(out, "01", "atlas-Far").with_suffix(".json").read_text())
    assert sidecar["AtlasTransforms"][0]["File"] == "shift.txt"


def test_a_seed_has_no_damage(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """The table of a seed has means, but no damage, and its page names no lesioned regions."""
    seeds = tmp_path / "seeds.tsv"
    seeds.write_text("participant_id\tlabel\tx\ty\tz\nsub-01\tdlpfc\t0\t0\t0\n")
    out = tmp_path / "out"
    succeeded(map_lesions(bids, out, connectome, "--coordinates", seeds, "--atlas", write_atlas(tmp_path)))
    (path,) = out.glob("sub-01/func/*_label-dlpfc_*_parcels.tsv")
    rows = read_tsv(path)
    assert {row["fraction_of_lesion"] for row in rows} == {row["fraction_lesioned"] for row in rows} == {"n/a"}
    assert "n/a" not in {row["mean_z"] for row in rows}
    assert "lesioned fraction" not in (out / "logs" / "CITATION.md").read_text()
    assert write_participant_report(out, "01") == []
    page = (out / "sub-01.html").read_text()
    assert "Strongest regions of Made" in page
    assert "lesioned" not in page


def test_output_is_valid(bids: Path, connectome: Path, out: Path, tmp_path: Path) -> None:
    """The BIDS validator accepts the output with tables of parcels and of a group."""
    succeeded(map_lesions(bids, out, connectome, "--atlas", write_atlas(tmp_path)))
    succeeded(run(bids, out, "group", "--no-reports"))
    done = synthetic.validate(out, tmp_path / "cache")
    assert done.returncode == 0, done.stdout
