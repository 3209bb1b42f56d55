"""Tests at the group level, from the command line to the files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import synthetic
from program import last_line, read_tsv, run
from scipy import stats
from statsmodels.api import OLS

from bids_lacuna.app.command import Exit
from bids_lacuna.report.group import write_group_report

Array = np.ndarray

N = 14

LABELS = [f"{number:02}" for number in range(1, N + 1)]

IS_CASE = np.arange(N) % 2 == 0

AGE = 50 + np.arange(N) ** 2 % 23

STEM = f"space-{synthetic.SPACE}_contrast-depressed_stat"


def write_table(bids: Path, **columns: Any) -> None:
    """Write participants.tsv."""
    columns = {
        "participant_id": [f"sub-{label}" for label in LABELS],
        "depressed": np.where(IS_CASE, "yes", "no"),
        "age": AGE,
        "nihss": np.arange(N) * 3 % 11,
    } | columns
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    (bids / "participants.tsv").write_text("\n".join(lines) + "\n")


def make_z() -> Array:
    """Make z-maps; in a corner, those of cases are high, and two maps lack a voxel."""
    z = 0.1 * np.random.default_rng(2).standard_normal((N, *synthetic.SHAPE)).astype(np.float32)
    z[IS_CASE, :2, :2, :2] += 0.8
    z[2, 4, 6, 10] = z[3, 4, 6, 9] = np.nan
    return z


Z = make_z()


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write masks, maps and the table; the lesions grow, and the first five cover one voxel."""
    root = tmp_path_factory.mktemp("contrast")
    synthetic.write_dataset(root / "bids", {})
    for number, (label, z) in enumerate(zip(LABELS, Z, strict=True)):
        name = f"sub-{label}_space-{synthetic.SPACE}_label-lesion_mask.nii.gz"
        corner = (0, 0, 0) if number < 5 else (2, 2, 2)
        mask = synthetic.write_mask(
            root / "bids" / f"sub-{label}" / "anat" / name, synthetic.box(corner, (1, 1, 1 + number % 5))
        )
        synthetic.write_lesion_maps(
            root / "out",
            mask,
            {"r": np.tanh(z), "z": z, "t": 20 * z},
            LesionVolume=float((1 + number) ** 3),
            Sources=[f"bids:source:{mask.relative_to(root / 'bids').as_posix()}"],
        )
    write_table(root / "bids")
    return root


@pytest.fixture(scope="module")
def tested(mapped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test two groups once; return the output."""
    root = shutil.copytree(mapped, tmp_path_factory.mktemp("tested") / "all")
    network = np.random.default_rng(4).standard_normal(synthetic.SHAPE).astype(np.float32)
    network[:2, :2, :2] += 3
    paths = [root / "circuit.nii", root / "out" / "own.nii"]
    for path, values in zip(paths, (network, network[::-1]), strict=True):
        nib.save(nib.Nifti1Image(values, synthetic.RADIOLOGICAL), path)
    targets = ("--target", f"circuit={paths[0]}", f"own={paths[1]}")
    ended = group(root, "--test", "depressed", "--covariates", "lesion_volume", "--t-threshold", "7", "15", *targets)
    assert ended.returncode == 0, ended.stderr
    assert "target own: own.nii lies in the output folder; if it was made from these patients" in ended.stderr
    assert "circuit.nii lies" not in ended.stderr
    return root / "out"


def group(root: Path, *options: object) -> Any:
    """Run the group level with few permutations."""
    asked = ["--permutations", 399] if "--test" in options else []
    return run(root / "bids", root / "out", "group", "--no-reports", *asked, *options)


def read_map(out: Path, name: str, stem: str = STEM) -> Array:
    """Read a map of the test; its sidecar says that it is no description."""
    path = out / f"{stem}-{name}_statmap.nii.gz"
    sidecar = json.loads((out / f"{stem}-{name}_statmap.json").read_text())
    assert sidecar["Descriptive"] is False
    assert sidecar["NumberOfPatients"] == N
    image = nib.load(path)
    assert image.header["sform_code"] == 4
    return image.get_fdata()


def read_record(out: Path, label: str = "depressed") -> dict[str, Any]:
    """Read the record of a test."""
    return json.loads((out / f"group_contrast-{label}_design.json").read_text())


def test_maps_of_two_groups(tested: Path) -> None:
    """T, effect and p are those of the z-maps; voxels that a map lacks are NaN; the corner is significant."""
    without = read_map(tested, "t_desc-GSPwithoutVolume")
    expected = stats.ttest_ind(Z[IS_CASE], Z[~IS_CASE]).statistic
    np.testing.assert_allclose(without, expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(without[4, 6, 9:]).all()
    effect = Z[IS_CASE].mean(axis=0) - Z[~IS_CASE].mean(axis=0)
    np.testing.assert_allclose(read_map(tested, "effect_desc-GSPwithoutVolume"), effect, rtol=1e-4, atol=1e-6)
    design = np.column_stack([IS_CASE, np.arange(N) + 1, np.ones(N)])
    with_volume = np.linalg.lstsq(design, Z.reshape(N, -1), rcond=None)[0][0].reshape(synthetic.SHAPE)
    np.testing.assert_allclose(read_map(tested, "effect_desc-GSP"), with_volume, rtol=1e-4, atol=1e-6)
    logp = read_map(tested, "logp_desc-GSPFWE")
    t = read_map(tested, "t_desc-GSP")
    record = read_record(tested)
    assert record["NumberOfSignificantVoxels"] == np.count_nonzero(logp >= -np.log10(0.05) - 1e-6)
    np.testing.assert_array_equal(np.abs(t) > record["Threshold"], logp >= -np.log10(0.05) - 1e-6)
    np.testing.assert_allclose(logp[:2, :2, :2].max(), np.log10(400), rtol=1e-6)


def test_target_networks(tested: Path) -> None:
    """Similarity and damage are tested as statsmodels fits the table's columns, in a row for each."""
    table, lesions = (read_tsv(tested / f"group_{name}.tsv") for name in ("contrast-depressed_targets", "lesions"))
    measured = {row["participant_id"]: row for row in lesions}
    names = [(row["target"], row["measure"]) for row in table]
    assert names == [(target, end) for target in ("circuit", "own") for end in ("r", "r_outside", "damage")]
    design = np.column_stack([IS_CASE, np.arange(N) + 1, np.ones(N)])
    for row in table:
        column = f"target_{row['target']}_{row['measure']}"
        values = np.array([float(measured[f"sub-{label}"][column]) for label in LABELS])
        fit = OLS(values, design).fit()
        assert float(row["effect"]) == pytest.approx(fit.params[0], rel=1e-3, abs=1e-5)
        assert float(row["t"]) == pytest.approx(fit.tvalues[0], rel=1e-3, abs=1e-4)
        assert float(row["p"]) <= float(row["p_corrected"])
    assert float(table[0]["p_corrected"]) <= 0.05
    described = json.loads((tested / "group_contrast-depressed_targets.json").read_text())
    assert set(table[0]) <= set(described)
    assert described["TargetNetworks"]["circuit"]["File"] == "circuit.nii"
    record = read_record(tested)
    assert [each["measure"] for each in record["Targets"]] == ["r", "r_outside", "damage"] * 2


def test_sensitivity_and_conjunction(tested: Path) -> None:
    """The fraction of the cases with t beyond a threshold, and its signed conjunction with the test."""
    t = 20 * Z[IS_CASE]
    significant = read_map(tested, "logp_desc-GSPFWE") >= -np.log10(0.05) - 1e-6
    defined = np.isfinite(Z).all(axis=0)
    for threshold in (7, 15):
        above = np.where(defined, (t > threshold).mean(axis=0), np.nan)
        np.testing.assert_allclose(read_map(tested, f"share_desc-GSPT{threshold}above"), above, rtol=1e-6)
        below = np.where(defined, (t < -threshold).mean(axis=0), np.nan)
        np.testing.assert_allclose(read_map(tested, f"share_desc-GSPT{threshold}below"), below, rtol=1e-6)
        both = np.where(significant & (above >= 0.75), above, np.where(defined, 0, np.nan))
        np.testing.assert_allclose(read_map(tested, f"share_desc-GSPT{threshold}conjunction"), both, rtol=1e-6)
        assert (both > 0).any()


def test_where_patients_are_lesioned(tested: Path) -> None:
    """The fraction of lesioned patients is written, and the voxels with a tenth or more are counted."""
    expected = np.zeros(synthetic.SHAPE)
    for number in range(N):
        expected += synthetic.box((0, 0, 0) if number < 5 else (2, 2, 2), (1, 1, 1 + number % 5)) / N
    found = read_map(tested, "share_desc-GSPlesions")
    np.testing.assert_allclose(found[np.isfinite(found)], expected[np.isfinite(found)], atol=1e-6)
    record = read_record(tested)
    marked = expected >= 0.1
    assert record["NumberOfLesionedVoxels"] == marked.sum()
    significant = read_map(tested, "logp_desc-GSPFWE") >= -np.log10(0.05) - 1e-6
    assert record["NumberOfSignificantLesionedVoxels"] == (marked & significant).sum() > 0


def test_lesions_in_another_space(mapped: Path, tested: Path, tmp_path: Path) -> None:
    """A test shows lesions where their transforms put them: its maps are those of masks in the template."""
    root = shutil.copytree(mapped, tmp_path / "all")
    for mask in root.glob("bids/sub-*/anat/*_mask.nii.gz"):
        folder = root / "out" / mask.name[:6] / "func"
        weights = mask.name.replace("_mask", "_desc-GSP_probseg")
        nib.save(
            nib.Nifti1Image(nib.load(mask).get_fdata(dtype=np.float32), synthetic.RADIOLOGICAL), folder / weights
        )
        elsewhere = mask.rename(mask.with_name(mask.name.replace(synthetic.SPACE, "T1w")))
        synthetic.write_mask(elsewhere, synthetic.box((3, 3, 3)), np.diag([3.0, 3, 3, 1]))
        for sidecar in folder.glob("*_statmap.json"):
            changes = {
                "LesionHash": hashlib.sha256(elsewhere.read_bytes()).hexdigest(),
                "LesionTransforms": [{"File": "a.h5", "From": "T1w", "To": synthetic.SPACE, "SHA256": "0"}],
                "Sources": [f"bids:source:{elsewhere.relative_to(root / 'bids').as_posix()}"],
            }
            sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))
    ended = group(root, "--test", "depressed", "--covariates", "lesion_volume", "--t-threshold", "7", "15")
    assert ended.returncode == 0, ended.stderr
    names = {path.name for path in tested.glob("space-*.nii.gz")}
    assert f"{STEM}-share_desc-GSPlesions_statmap.nii.gz" in names
    for name in names:
        found, expected = (nib.load(folder / name).get_fdata() for folder in (root / "out", tested))
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_design_and_record(tested: Path) -> None:
    """The design's table has the model's matrix; the record has model, hashes, files and leave-one-out."""
    rows = read_tsv(tested / "group_contrast-depressed_design.tsv")
    assert [row["participant_id"] for row in rows] == [f"sub-{label}" for label in LABELS]
    assert [row["tested"] for row in rows] == [str(float(case))[0] for case in IS_CASE]
    np.testing.assert_allclose([float(row["lesion_volume"]) for row in rows], np.arange(N) + 1, rtol=1e-5)
    assert {row["constant"] for row in rows} == {"1"}
    record = read_record(tested)
    assert record["Contrast"].startswith("depressed: yes (n = 7) against no (n = 7)")
    assert record["Model"].startswith("map = depressed + lesion_volume (cube root) + a constant,")
    assert (record["NumberOfPermutations"], record["RandomSeed"], record["Alpha"]) == (399, 0, 0.05)
    assert record["NumberOfVoxels"] == np.isfinite(Z).all(axis=0).sum()
    assert all((tested / name).is_file() for name in record["Maps"].values())
    assert len(record["Maps"]) == 13
    assert set(rows[0]) <= set(record)
    assert record["LeaveOneOut"]["Maps"]["Value"] > 0.9
    assert record["LeaveOneOut"]["Baseline"] is not None
    assert record["LeaveOneOut"]["Predictors"] == ["lesion volume"]
    assert len(record["Sources"]) == N
    assert "stat-z" in record["Sources"][0]


def test_score_beside_the_first_test(tested: Path, tmp_path: Path) -> None:
    """A second test adds files, with the same bits for any threads; its effect is a partial correlation."""
    root = shutil.copytree(tested.parent, tmp_path / "all")
    for n_threads in (1, 2):
        ended = group(root, "--test", "nihss", "--input", "t", "--nprocs", n_threads, "--t-threshold", "7")
        assert ended.returncode == 0, ended.stderr
        images = {path.name: path.read_bytes() for path in root.glob("out/*contrast-nihss*.nii.gz")}
        if n_threads == 1:
            first = images
    assert images == first
    assert not any("conjunction" in name for name in images)
    assert (root / "out" / "group_contrast-depressed_design.json").exists()
    r = np.corrcoef(Z[:, 1, 3, 5], np.arange(N) * 3 % 11)[0, 1]
    stem = STEM.replace("depressed", "nihss")
    np.testing.assert_allclose(read_map(root / "out", "effect_desc-GSP", stem)[1, 3, 5], r, rtol=1e-4)
    assert "stat-t_" in read_record(root / "out", "nihss")["Sources"][0]


def test_a_test_of_another_column_is_kept(tested: Path, tmp_path: Path) -> None:
    """A column whose files would have the same names is refused by name, and nothing is written."""
    root = shutil.copytree(tested.parent, tmp_path / "all")
    write_table(root / "bids", **{"depressed?": np.arange(N) * 5 % 11})
    before = {path: path.read_bytes() for path in root.glob("out/*contrast*")}
    refused = group(root, "--test", "depressed?")
    assert refused.returncode == Exit.CANNOT_CREATE
    assert "a test of depressed, whose files have the same names as those of depressed?: rename" in refused.stderr
    assert {path: path.read_bytes() for path in root.glob("out/*contrast*")} == before
    assert group(root, "--test", "depressed?", "--overwrite").returncode == 0
    assert read_record(root / "out")["Column"] == "depressed?"


def test_stale_tests_are_removed(tested: Path, tmp_path: Path) -> None:
    """The group command keeps a test while maps and columns are the same, and removes it when they are not."""
    root = shutil.copytree(tested.parent, tmp_path / "all")
    changed = np.where(np.arange(N) == 3, 99, AGE)
    write_table(root / "bids", age=changed)
    kept = group(root, "--t-threshold", "7")
    assert "was removed" not in kept.stderr
    assert (root / "out" / f"{STEM}-t_desc-GSP_statmap.nii.gz").exists()
    write_table(root / "bids", depressed=np.where(IS_CASE, "no", "yes"))
    removed = group(root)
    assert "the test of depressed was removed: its columns or its patients have changed" in removed.stderr
    assert not list(root.glob("out/*contrast*"))


def test_a_test_of_remapped_lesions(tested: Path, tmp_path: Path) -> None:
    """A test of maps that were written anew is removed, also where its table is gone."""
    root = shutil.copytree(tested.parent, tmp_path / "all")
    (root / "bids" / "participants.tsv").unlink()
    assert "was removed" not in group(root).stderr
    mask = next((root / "bids" / "sub-02").rglob("*_mask.nii.gz"))
    z = Z[1] + np.float32(0.5)
    synthetic.write_lesion_maps(root / "out", mask, {"r": np.tanh(z), "z": z, "t": 20 * z})
    assert "the test of depressed was removed: its maps have changed" in group(root).stderr


def test_table_elsewhere(mapped: Path, tmp_path: Path) -> None:
    """--table names another table, and --drop-missing leaves out patients without a value; both are recorded."""
    root = shutil.copytree(mapped, tmp_path / "all")
    rows = [f"{label}\t{number % 5}" for number, label in enumerate(LABELS[1:])]
    (root / "scores.tsv").write_bytes(b"\xef\xbb\xbfparticipant_id\tmy score\r\n" + "\r\n".join(rows).encode())
    ended = group(root, "--test", "my score", "--table", root / "scores.tsv")
    assert ended.returncode == Exit.BAD_DATA
    assert "1 of 14 patients with maps have no value" in last_line(ended.stderr)
    assert not (root / "out" / "group_lesions.tsv").exists()
    ended = group(root, "--test", "my score", "--table", root / "scores.tsv", "--drop-missing")
    assert ended.returncode == 0, ended.stderr
    record = read_record(root / "out", "myScore")
    assert record["Dropped"] == ["sub-01"]
    assert record["Table"] == "../scores.tsv"
    assert "was removed" not in group(root).stderr


BAD = {
    ("--test", "depresed"): (Exit.BAD_DATA, "no column depresed: did you mean depressed?"),
    ("--test", "nihss", "--alpha", "1"): (Exit.USAGE, "alpha is 1.0"),
    ("--test", "nihss", "--table", "nowhere.tsv"): (Exit.NO_INPUT, "there is no table at nowhere.tsv"),
    ("--covariates", "age"): (Exit.USAGE, "--covariates is for a test: name a column with --test"),
    ("--test", "nihss", "--permutations", "9"): (Exit.BAD_DATA, "no p can be below 0.1, and alpha is 0.05"),
    ("--test", "nihss", "--mem", "1K"): (Exit.FAILED, "a test of 14 maps"),
}


@pytest.mark.parametrize("options", BAD, ids=" ".join)
def test_bad_requests(mapped: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Each ends with its status and a sentence."""
    root = shutil.copytree(mapped, tmp_path / "all")
    ended = run(root / "bids", root / "out", "group", "--no-reports", *options)
    status, words = BAD[options]
    assert ended.returncode == status
    assert words in last_line(ended.stderr)


def test_dry_run(mapped: Path) -> None:
    """What would be tested is printed, and how long it takes, and nothing is written."""
    ended = group(mapped, "--test", "depressed=no", "--dry-run")
    assert ended.returncode == 0
    first = ended.stdout.splitlines()[0]
    assert first.startswith("test: depressed: no (n = 7) against yes (n = 7)")
    assert re.search(r"by pooled statistics; about \d+ s for 385 voxels and 399 permutations$", first)
    assert not list((mapped / "out").glob("*contrast*"))


def test_several_sessions(mapped: Path, tmp_path: Path) -> None:
    """Participants with two lesions are listed, and a selection is one map each."""
    root = shutil.copytree(mapped, tmp_path / "all")
    path = root / "bids" / "sub-03" / "anat" / f"sub-03_space-{synthetic.SPACE}_label-L_mask.nii.gz"
    mask = synthetic.write_mask(path, synthetic.box((1, 1, 1)))
    synthetic.write_lesion_maps(root / "out", mask, {"r": np.tanh(Z[2]), "z": Z[2], "t": 20 * Z[2]})
    refused = group(root, "--test", "nihss")
    assert refused.returncode == Exit.BAD_DATA
    assert "1 participants have several lesions or sessions" in refused.stderr
    assert "sub-03_label-L, sub-03_label-lesion" in refused.stderr
    (root / "filter.json").write_text('{"lesion": {"label": "lesion"}}')
    assert group(root, "--test", "nihss", "--bids-filter-file", root / "filter.json").returncode == 0


def test_groups_with_names(mapped: Path, tmp_path: Path) -> None:
    """Groups with names have folders of their own, with tests and pages; a name is never taken over in silence."""
    root = shutil.copytree(mapped, tmp_path / "all")
    out = root / "out"
    assert group(root, "--name", "all").returncode == 0
    ended = group(root, "--name", "Ten", "--test", "depressed", "--participant-label", *LABELS[:10])
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in sorted(out.glob("group_*"))] == ["group_Ten", "group_all"]
    assert not list(out.glob("space-*"))
    assert len(read_tsv(out / "group_all" / "group_lesions.tsv")) == N
    record = read_record(out / "group_Ten")
    assert record["NumberOfPatients"] == 10
    assert all((out / "group_Ten" / name).is_file() for name in record["Maps"].values())
    refused = group(root, "--name", "all", "--participant-label", *LABELS[:3])
    assert refused.returncode == Exit.CANNOT_CREATE
    assert "or give the new group a name of its own (--name LABEL)" in last_line(refused.stderr)
    assert group(root, "--name", "a-b").returncode == Exit.USAGE
    nothing = run(root / "bids", out, "group", "--reports-only", "--name", "other")
    assert nothing.returncode == Exit.NO_INPUT
    assert "group_other holds no group" in last_line(nothing.stderr)


def test_page_of_a_group_with_a_name(mapped: Path, tmp_path: Path) -> None:
    """The page and its pictures are in the group's folder; links lead to the participants' pages."""
    root = shutil.copytree(mapped, tmp_path / "all")
    (root / "out" / "sub-02.html").touch()
    assert group(root, "--name", "two", "--participant-label", "02", "04").returncode == 0
    assert write_group_report(root / "out", "two") == []
    folder = root / "out" / "group_two"
    page = (folder / "group.html").read_text()
    linked = [folder / link for link in re.findall(r'(?:src|href)="(\./[^"#]+)', page)]
    assert root / "out" / "sub-02.html" in [path.resolve() for path in linked]
    assert all(path.is_file() for path in linked), linked
