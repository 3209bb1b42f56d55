"""run.py on made-up datasets: what lands on disk, what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from program import RUN, Ended, last_line, map_lesions, read_table, read_tsv, run, run_as_user

from bids_lacuna import __version__, reference
from bids_lacuna.grid import Grid
from bids_lacuna.lesion import LesionData, load_lesion

LEFT = synthetic.box((3, 2, 3))
RIGHT = synthetic.box((0, 3, 5), (2, 3, 2))
MASKS = {
    f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-lesion_mask": LEFT,
    f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-L_desc-old_mask": RIGHT,
    f"sub-02/ses-a/anat/sub-02_ses-a_space-{synthetic.SPACE}_label-lesion_mask": RIGHT,
    f"sub-02/ses-b/anat/sub-02_ses-b_space-{synthetic.SPACE}_res-1_label-lesion_mask": LEFT,
}


@pytest.fixture(scope="module")
def connectome(silent_connectome: Path) -> Path:
    """Map on subjects one of whom has no signal in some voxels."""
    return silent_connectome


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Write a dataset of four masks of two participants."""
    return synthetic.write_dataset(tmp_path / "bids", MASKS)


def files_below(folder: Path) -> set[str]:
    """List the files of a folder, without the logs."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith("logs/")}


Finished = tuple[Path, Path, Ended]
"""A dataset, its output, and the program that wrote the output."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, connectome: Path) -> Finished:
    """Map the dataset once, as a user does."""
    folder = tmp_path_factory.mktemp("finished")
    bids = synthetic.write_dataset(folder / "bids", MASKS)
    options = ["--no-reports", "--t-threshold", "2", "3.5", "--lesion-batch-size", "3"]
    result = run_as_user(bids, folder / "out", "participant", "--connectome", connectome, *options)
    return bids, folder / "out", result


def test_each_mask_gets_its_own_maps(finished: Finished) -> None:
    """Each mask gets r, z, t and n maps and two masks, named after its entities and the connectome."""
    _, out, result = finished
    assert result.returncode == 0, result.stderr
    stems = [
        "sub-01/func/sub-01_space-MNI152NLin6Asym_label-lesion_stat-{}_desc-GSP5{}",
        "sub-01/func/sub-01_space-MNI152NLin6Asym_label-L_stat-{}_desc-oldGSP5{}",
        "sub-02/ses-a/func/sub-02_ses-a_space-MNI152NLin6Asym_label-lesion_stat-{}_desc-GSP5{}",
        "sub-02/ses-b/func/sub-02_ses-b_space-MNI152NLin6Asym_res-4_label-lesion_stat-{}_desc-GSP5{}",
    ]
    maps = {stem.format(stat, "_statmap") for stem in stems for stat in "rztn"}
    masks = {stem.format("t", f"T{threshold}_mask") for stem in stems for threshold in ("2", "3p5")}
    pairs = {name + ending for name in maps | masks for ending in (".nii.gz", ".json")}
    assert files_below(out) == pairs | {"dataset_description.json", ".bidsignore"}


@pytest.mark.parametrize(("name", "voxels"), MASKS.items())
def test_maps_equal_the_reference(
    finished: Finished,
    brain: np.ndarray,
    silent_series: list[np.ndarray],
    name: str,
    voxels: np.ndarray,
) -> None:
    """The maps on disk are the reference's, voxel for voxel, and NaN outside the brain."""
    _, out, _ = finished
    grid = Grid(brain, synthetic.RADIOLOGICAL)
    weights = np.zeros((1, grid.n_voxels))
    lesion = load_lesion(LesionData.from_nifti(nib.Nifti1Image(voxels, synthetic.RADIOLOGICAL)), grid).weights
    weights[0, lesion.voxels] = lesion.weights
    expected = reference.map_lesions(weights, silent_series)
    subject, session = name.split("/")[0], name.split("/")[1] if "ses-" in name else "func"
    label = "label-L_" if "label-L" in name else "label-lesion_"
    for stat, tolerance in {"r": 1e-6, "z": 2e-6, "t": 1e-4, "n": 0}.items():
        (path,) = (out / subject / session).rglob(f"*{label}stat-{stat}_*_statmap.nii.gz")
        image = nib.load(path)
        np.testing.assert_allclose(image.affine, synthetic.RADIOLOGICAL)
        found = image.get_fdata()
        np.testing.assert_allclose(
            found[brain], expected[stat][0], rtol=tolerance if stat == "t" else 0, atol=tolerance
        )
        outside = np.zeros if stat == "n" else lambda shape: np.full(shape, np.nan)
        np.testing.assert_array_equal(found[~brain], outside((~brain).sum()))


def test_masks_hold_where_t_is_above_the_threshold(
    finished: Finished,
) -> None:
    """Each threshold's mask is 1 exactly where the t-map on disk is above it in size."""
    _, out, _ = finished
    for threshold, label in ((2, "2"), (3.5, "3p5")):
        for path in out.rglob(f"*T{label}_mask.nii.gz"):
            t_map = path.with_name(path.name.replace(f"T{label}_mask", "_statmap"))
            expected = np.abs(nib.load(t_map).get_fdata()) > threshold
            assert 0 < expected.sum() < expected.size
            np.testing.assert_array_equal(nib.load(path).get_fdata(), expected)
            assert nib.load(path).get_data_dtype() == np.uint8


def test_sidecars_say_what_was_done(finished: Finished) -> None:
    """A sidecar names the mask by a BIDS URI, the lesion's volume and coverage, the connectome and the version."""
    bids, out, _ = finished
    path = (
        out / "sub-02/ses-b/func/sub-02_ses-b_space-MNI152NLin6Asym_res-4_label-lesion_stat-t_desc-GSP5_statmap.json"
    )
    sidecar = json.loads(path.read_text())
    source = f"sub-02/ses-b/anat/sub-02_ses-b_space-{synthetic.SPACE}_res-1_label-lesion_mask.nii.gz"
    assert sidecar["Sources"] == [f"bids:source:{source}"]
    assert (bids / source).exists()
    assert sidecar["SpatialReference"] == synthetic.SPACE
    assert sidecar["Resolution"].startswith("4 x 4 x 4 mm")
    assert sidecar["NumberOfConnectomeSubjects"] == 5
    assert sidecar["DegreesOfFreedom"] == 4
    assert sidecar["LesionVolume"] == pytest.approx(LEFT.sum() * 64)
    inside = LEFT.astype(bool) & synthetic.make_mask()
    assert sidecar["LesionCoverage"] == pytest.approx(inside.sum() / LEFT.sum())
    assert sidecar["LesionWeighting"] == "volume"
    assert sidecar["ConnectomeName"] == "GSP5"
    assert len(sidecar["ConnectomeHash"]) == 64
    assert sidecar["SoftwareVersion"] == __version__
    mask = json.loads(path.with_name(path.name.replace("_statmap", "T3p5_mask")).read_text())
    assert mask["Threshold"] == 3.5
    assert mask["Type"] == "ROI"


def test_the_output_is_a_valid_bids_derivative(finished: Finished, tmp_path: Path) -> None:
    """The BIDS validator finds no error."""
    _, out, _ = finished
    result = synthetic.validate(out, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_description_has_what_the_validator_misses(
    finished: Finished,
) -> None:
    """The description names the program and its version, and links every dataset that a sidecar's URI uses."""
    bids, out, _ = finished
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "bids-lacuna"
    assert description["GeneratedBy"][0]["Version"] == __version__
    sources = {source for path in out.glob("sub-*/**/*.json") for source in json.loads(path.read_text())["Sources"]}
    for source in sources:
        _, dataset, path = source.split(":")
        assert (out / description["DatasetLinks"][dataset] / path).resolve().is_relative_to(bids)
        assert (out / description["DatasetLinks"][dataset] / path).exists()


def test_the_table_has_every_mask(finished: Finished) -> None:
    """lesions.tsv has a row for each mask, with its entities, outcome, coverage and batch."""
    _, out, _ = finished
    rows = read_table(out)
    assert {row["mask"] for row in rows} == {f"{name}.nii.gz" for name in MASKS}
    assert {row["status"] for row in rows} == {"done"}
    assert sorted(row["batch"] for row in rows) == ["1", "1", "1", "2"]
    assert {row["ses"] for row in rows} == {"n/a", "a", "b"}
    assert all(0 < float(row["coverage"]) <= 1 for row in rows)


def test_a_second_run_skips_and_overwrite_does_not(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """A finished lesion is skipped by the next run; a new threshold or --overwrite maps it again."""
    out = tmp_path / "out"
    first = map_lesions(bids, out, connectome)
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    second = map_lesions(bids, out, connectome)
    assert second.returncode == 0, second.stderr
    assert {row["status"] for row in read_table(out)} == {"skipped"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    third = map_lesions(bids, out, connectome, "--t-threshold", "3")
    assert third.returncode == 0, third.stderr
    assert {row["status"] for row in read_table(out)} == {"done"}
    assert len(list(out.rglob("*T3_mask.nii.gz"))) == 4
    fourth = map_lesions(bids, out, connectome, "--overwrite")
    assert fourth.returncode == 0, fourth.stderr
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


def test_maps_of_another_mask_or_connectome_are_not_mixed(
    bids: Path, connectome: Path, brain: np.ndarray, tmp_path: Path
) -> None:
    """A changed mask, or another connectome of the same name, fails and says so; the maps stay."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, connectome).returncode == 0
    before = {path: path.read_bytes() for path in out.rglob("*.nii.gz")}
    synthetic.write_mask(bids / f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-lesion_mask.nii.gz", RIGHT)
    changed = map_lesions(bids, out, connectome)
    assert changed.returncode == 1
    assert "another mask" in last_line(changed.stderr)
    assert "--overwrite" in last_line(changed.stderr)
    other = synthetic.write_connectome_folder(
        tmp_path / "GSP-5", synthetic.make_series(int(brain.sum()), seed=5), brain
    )
    mixed = map_lesions(bids, out, other)
    assert mixed.returncode == 1
    assert [row["status"] for row in read_table(out)] == ["failed"] * 4
    assert "another connectome" in last_line(mixed.stderr)
    assert {path: path.read_bytes() for path in before} == before


def test_overwrite_leaves_nothing_of_before(bids: Path, connectome: Path, brain: np.ndarray, tmp_path: Path) -> None:
    """--overwrite with another weighting removes the masks of thresholds that are not asked for any more."""
    out = tmp_path / "out"
    options = ["--participant-label", "01", "--connectome-name", "C"]
    assert map_lesions(bids, out, connectome, *options, "--t-threshold", "2", "3").returncode == 0
    other = synthetic.write_connectome(tmp_path / "o.h5", synthetic.make_series(int(brain.sum()), [23] * 5), brain)
    options_of_other = ["--participant-label", "01", "--connectome-name", "CT2", "--t-threshold", "2"]
    assert map_lesions(bids, out, other, *options_of_other).returncode == 0
    sidecars = {path: json.loads(path.read_text()) for path in out.rglob("sub-*.json")}
    kept = {path.name for path, sidecar in sidecars.items() if sidecar["ConnectomeName"] == "CT2"}
    assert len(kept) == 8
    again = map_lesions(
        bids, out, connectome, *options, "--t-threshold", "2", "--overwrite", "--lesion-weighting", "binary"
    )
    assert again.returncode == 0, again.stderr
    names = {path.name for path in out.rglob("sub-*.nii.gz")}
    assert any(name.endswith("desc-CT2_mask.nii.gz") for name in names)
    assert not any(name.endswith("CT3_mask.nii.gz") for name in names)
    assert kept <= {path.name for path in out.rglob("sub-*")}
    there = [json.loads(path.read_text()) for path in out.rglob("sub-*.json")]
    assert {(s["ConnectomeName"], s["LesionWeighting"]) for s in there} == {("C", "binary"), ("CT2", "volume")}


def test_a_lesion_without_any_signal_fails(bids: Path, brain: np.ndarray, tmp_path: Path) -> None:
    """Where no connectome subject has a signal in the lesion, there is no map, and the lesion is not called done."""
    series = synthetic.make_series(int(brain.sum()), [23] * 3)
    for timeseries in series:
        timeseries[:, LEFT[brain] > 0] = 7
    silent = synthetic.write_connectome(tmp_path / "silent.h5", series, brain)
    result = map_lesions(bids, tmp_path / "out", silent)
    assert result.returncode == 1
    outcomes = {row["label"] + row["ses"]: row["status"] for row in read_table(tmp_path / "out")}
    assert outcomes == {"lesionn/a": "failed", "Ln/a": "done", "lesiona": "done", "lesionb": "failed"}
    assert "no connectome subject has a signal" in last_line(result.stderr)


def test_an_overwrite_that_is_cut_off_mixes_nothing(
    bids: Path, connectome: Path, brain: np.ndarray, tmp_path: Path
) -> None:
    """Maps of another connectome that a full disk cut off are never taken for finished ones of the first."""
    out = tmp_path / "out"
    options = ["--participant-label", "01", "--connectome-name", "C"]
    assert map_lesions(bids, out, connectome, *options).returncode == 0
    other = synthetic.write_connectome(tmp_path / "o.h5", synthetic.make_series(int(brain.sum()), [23] * 5), brain)
    blocked = out / "sub-01" / "func" / f"sub-01_space-{synthetic.SPACE}_label-lesion_stat-z_desc-C_statmap.json"
    blocked.unlink()
    (blocked / "in the way").mkdir(parents=True)
    broken = map_lesions(bids, out, other, *options, "--overwrite")
    assert broken.returncode == 1
    assert "cannot be written" in last_line(broken.stderr)
    (blocked / "in the way").rmdir()
    blocked.rmdir()
    again = map_lesions(bids, out, connectome, *options)
    assert again.returncode == 1
    assert "another connectome" in last_line(again.stderr)


def test_a_damaged_sidecar_concerns_its_lesion_alone(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """A sidecar on disk that is no JSON object fails its lesion until --overwrite, and no other."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, connectome).returncode == 0
    for content in ("{", "[]"):
        next(out.rglob("sub-01*label-L_stat-r*.json")).write_text(content)
        result = map_lesions(bids, out, connectome)
        assert result.returncode == 1
        assert sorted(row["status"] for row in read_table(out)) == ["failed"] + ["skipped"] * 3
        assert "damaged" in last_line(result.stderr)
    assert map_lesions(bids, out, connectome, "--overwrite").returncode == 0


def test_words_beyond_ascii_need_no_locale(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """In a C locale, as in many containers, reasons and paths with other letters are written all the same."""
    voxels = np.arange(385).reshape(synthetic.SHAPE)
    synthetic.write_mask(bids / f"sub-03/anat/sub-03_space-{synthetic.SPACE}_label-lesion_mask.nii.gz", voxels % 9)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    options = ["--connectome", connectome, "--no-reports"]
    result = run_as_user(bids, tmp_path / "ö", "participant", *options, **locale)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert len(read_table(tmp_path / "ö")) == 5


def test_killed_leftovers_do_not_count_as_finished(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """A map without its sidecar, which is written last, is made again."""
    out = tmp_path / "out"
    assert map_lesions(bids, out, connectome, "--participant-label", "01").returncode == 0
    victim = next(out.rglob("*label-L_stat-t*_statmap.json"))
    victim.unlink()
    assert map_lesions(bids, out, connectome, "--participant-label", "01").returncode == 0
    assert sorted(row["status"] for row in read_table(out)) == ["done", "skipped"]
    assert victim.exists()


def test_verbose_adds_the_traceback(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """-v shows where a failure came from."""
    synthetic.write_mask(bids / f"sub-03/anat/sub-03_space-{synthetic.SPACE}_label-lesion_mask.nii.gz", 0 * LEFT)
    result = map_lesions(bids, tmp_path / "out", connectome, "-v", "--participant-label", "03")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_the_same_lesion_in_another_space_is_skipped(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """A native-space copy of a mask that is there in the connectome's space is skipped, which is no failure."""
    synthetic.write_mask(bids / "sub-01/anat/sub-01_space-T1w_label-lesion_mask.nii.gz", LEFT)
    result = map_lesions(bids, tmp_path / "out", connectome, "--participant-label", "sub-01")
    assert result.returncode == 0, result.stderr
    assert sorted(row["status"] for row in read_table(tmp_path / "out")) == ["done", "done", "skipped"]


def test_masks_for_the_same_maps_both_fail(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """Two masks whose maps would overwrite each other fail, and name each other."""
    twin = synthetic.write_dataset(tmp_path / "twin", {next(iter(MASKS)): RIGHT})
    result = map_lesions(bids, tmp_path / "out", connectome, "-d", f"twin={twin}")
    assert result.returncode == 1
    failed = [row for row in read_table(tmp_path / "out") if row["status"] == "failed"]
    assert {row["dataset"] for row in failed} == {"source", "twin"}
    assert all("same names" in row["reason"] for row in failed)


def test_masks_of_other_datasets_are_linked(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """-d NAME=PATH adds a dataset, and its masks' maps point to it by name."""
    name = f"sub-07/anat/sub-07_space-{synthetic.SPACE}_label-lesion_mask"
    more = synthetic.write_dataset(tmp_path / "more", {name: RIGHT})
    out = tmp_path / "out"
    result = map_lesions(bids, out, connectome, "-d", f"more={more}")
    assert result.returncode == 0, result.stderr
    sidecar = json.loads(next(out.glob("sub-07/func/*stat-r*.json")).read_text())
    assert sidecar["Sources"] == [f"bids:more:{name}.nii.gz"]
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert (out / links["more"]).resolve() == more


def test_dry_run_shows_the_plan_and_writes_nothing(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """--dry-run lists the lesions, what becomes of each, and the plan, and leaves no trace."""
    empty = f"sub-02/ses-a/anat/sub-02_ses-a_space-{synthetic.SPACE}_label-lesion_desc-none_mask.nii.gz"
    synthetic.write_mask(bids / empty, 0 * LEFT)
    before = files_below(tmp_path)
    result = map_lesions(bids, tmp_path / "out", connectome, "--dry-run", "--mem", "2G", "--lesion-batch-size", "3")
    assert result.returncode == 0, result.stderr
    assert files_below(tmp_path) == before
    assert not (tmp_path / "out").exists()
    lines = dict(line.rsplit("  ", 1) for line in result.stdout.splitlines() if "  " in line.strip())
    words = {key.strip(): value.strip() for key, value in lines.items()}
    assert words["batch size"] == "3"
    assert words["passes"].startswith("2 over 5 connectome subjects")
    assert words["memory, available"] == "2 GiB (--mem)"
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.splitlines()[1:6]}
    # Boxes of voxels of 4 mm, all within the connectome's mask but for some of the second one's.
    millilitres = [np.count_nonzero(voxels) * 4**3 / 1000 for voxels in (LEFT, RIGHT)]
    assert rows["sub-01_label-lesion"].startswith(f"{millilitres[0]:.2f} mL")
    assert rows["sub-01_label-L_desc-old"].startswith(f"{millilitres[1]:.2f} mL")
    assert rows["sub-02_ses-b_label-lesion"].endswith("map")
    assert re.fullmatch(r"-\s+-\s+fail: the mask is empty.*", rows["sub-02_ses-a_label-lesion_desc-none"])


def test_a_reason_of_many_lesions_is_printed_once(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """In a dry run, masks refer to a long reason that they share; it follows the table, without file names."""
    result = map_lesions(bids, tmp_path / "out", connectome, "--dry-run", "--connectome-space", "MNI152NLin2009aSym")
    table, _, _ = result.stdout.partition("\n\n")
    rows, last = table.splitlines()[1:-1], table.splitlines()[-1]
    assert [row.partition("  -  ")[2].split()[1:] for row in rows] == [["fail:", "reason", "1"]] * 4
    assert last.startswith(f"reason 1, 4 lesions: the lesion is in space {synthetic.SPACE}, the connectome in")
    assert result.stdout.count("nearest-neighbour") == 1
    out = tmp_path / "done"
    assert map_lesions(bids, out, connectome).returncode == 0
    anew = map_lesions(bids, out, connectome, "--dry-run", "--lesion-weighting", "binary")
    rows = anew.stdout.splitlines()[1:5]
    assert all(row.endswith("fail: reason 1") for row in rows)
    assert anew.stdout.splitlines()[5].startswith("reason 1, 4 lesions: … exists, made with volume weighting")


def test_a_run_can_be_repeated_and_a_dry_run_tells_its_size(
    finished: Finished,
) -> None:
    """A run's file of options repeats it: nothing is left to do. What it wrote has the size that is estimated."""
    bids, out, _ = finished
    (config,) = out.glob("logs/*/config.toml")
    again = run(bids, out, "participant", "--config-file", config, "--dry-run", "-q")
    assert again.returncode == 0
    assert [line.split()[1] for line in again.stderr.splitlines()] == ["W"]
    rows = [line.split(maxsplit=1)[1] for line in again.stdout.splitlines()[1:5]]
    assert {" ".join(row.split()) for row in rows} == {"- - skip: all its maps exist"}
    assert "about" not in again.stdout
    anew = run(bids, out, "participant", "--config-file", config, "--dry-run", "--overwrite")
    (size, unit) = re.search(r"^disk +about ([\d.]+) (KiB|MiB);", anew.stdout, re.MULTILINE).groups()
    written = sum(path.stat().st_size for path in out.glob("sub-*/**/*_desc-*") if path.is_file())
    assert float(size) * {"KiB": 2**10, "MiB": 2**20}[unit] == pytest.approx(written, rel=0.3)
    assert re.search(
        r"^time +about \d+ (s|min) \(\d+ ms per connectome subject, timed on 5 of 5",
        anew.stdout,
        re.MULTILINE,
    )


def test_no_t_map(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """--no-t-map leaves out the t-maps, not the masks of a threshold that was asked for."""
    result = map_lesions(bids, tmp_path / "out", connectome, "--no-t-map", "--t-threshold", "3")
    assert result.returncode == 0, result.stderr
    assert not list((tmp_path / "out").rglob("*stat-t*_statmap.nii.gz"))
    assert len(list((tmp_path / "out").rglob("*T3_mask.nii.gz"))) == 4


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        ('{"lesion": {"label": "L"}, "bold": {"task": "rest"}}', 0, ""),
        ('{"lesion": {"label": "tumour"}}', 18, "tumour"),
        ('{"lesion": {"labell": "L"}}', 64, "label"),
        ("label: L", 64, "not valid JSON"),
        ('{"lesions": {"label": "L"}}', 0, 'no filters under "lesion" (it has lesions)'),
    ],
)
def test_the_filter_file_chooses(
    bids: Path, connectome: Path, tmp_path: Path, content: str, status: int, words: str
) -> None:
    """A filter file chooses masks by their entities; keys of other programs are no mistake, unknown entities are."""
    path = tmp_path / "filter.json"
    path.write_text(content)
    result = map_lesions(bids, tmp_path / "out", connectome, "--bids-filter-file", path)
    assert result.returncode == status, result.stderr
    assert words in result.stderr
    if status == 0:
        chosen = [row for row in read_table(tmp_path / "out") if row["status"] != "no mask"]
        assert len(chosen) == (4 if words else 1)


def test_no_matching_mask(tmp_path: Path, connectome: Path) -> None:
    """A dataset without lesion masks ends with status 18, and says which masks there are instead."""
    bids = synthetic.write_dataset(tmp_path / "bids", {"sub-01/anat/sub-01_label-GM_mask": LEFT})
    (bids / "sub-01/anat/sub-01_label-GM_mask.json").unlink()
    result = map_lesions(bids, tmp_path / "out", connectome)
    assert result.returncode == 18
    assert "Traceback" not in result.stderr
    assert "sub-01_label-GM_mask.nii.gz" in result.stderr


@pytest.mark.parametrize("place", [".", "maps", "sub-01/func", "derivatives"])
def test_the_output_may_not_lie_inside_the_input(bids: Path, connectome: Path, place: str) -> None:
    """An output folder in the input is refused, and the right place is suggested."""
    before = files_below(bids)
    result = map_lesions(bids, bids / place, connectome)
    assert result.returncode == 64
    assert "derivatives/bids-lacuna" in last_line(result.stderr)
    assert files_below(bids) == before


def test_the_output_may_lie_in_the_inputs_derivatives(bids: Path, connectome: Path) -> None:
    """derivatives/bids-lacuna is the usual place, and a second run does not take its maps for lesions."""
    out = bids / "derivatives" / "bids-lacuna"
    assert map_lesions(bids, out, connectome, "--t-threshold", "3").returncode == 0
    assert map_lesions(bids, out, connectome, "--t-threshold", "3").returncode == 0
    assert len(read_table(out)) == len(MASKS)


def test_another_datasets_folder_is_no_output(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """An output folder that holds another program's dataset is left as it is."""
    out = synthetic.write_dataset(tmp_path / "out", {})
    before = (out / "dataset_description.json").read_bytes()
    result = map_lesions(bids, out, connectome)
    assert result.returncode == 73
    assert "another dataset" in last_line(result.stderr)
    assert (out / "dataset_description.json").read_bytes() == before


def test_an_unknown_level(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """A level that there is not ends with status 17, and the right ones are named."""
    result = run(bids, tmp_path / "out", "cohort", "--connectome", connectome)
    assert result.returncode == 17
    assert "participant" in last_line(result.stderr)


def test_the_participant_level_needs_a_connectome(bids: Path, tmp_path: Path) -> None:
    """Without --connectome, which the group level can do without, no lesion can be mapped."""
    result = run(bids, tmp_path / "out", "participant")
    assert result.returncode == 64
    assert "--connectome PATH" in last_line(result.stderr)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory, finished: Finished) -> Finished:
    """Run the group level on a copy of the mapped dataset: the dataset, the output, and what was printed."""
    folder = shutil.copytree(finished[1].parent, tmp_path_factory.mktemp("grouped") / "all")
    return folder / "bids", folder / "out", run(folder / "bids", folder / "out", "group", "--no-reports")


def test_the_group_level_describes_the_maps_on_disk(
    grouped: Finished,
) -> None:
    """After the participant level, the same folders give the means, overlaps and correlations of its maps."""
    _, out, result = grouped
    assert result.returncode == 0, result.stderr
    table = read_tsv(out / "group_lesions.tsv")
    assert [(row["participant_id"], row["session_id"], row["label"]) for row in table] == [
        ("sub-01", "n/a", "L"), ("sub-01", "n/a", "lesion"),
        ("sub-02", "ses-a", "lesion"), ("sub-02", "ses-b", "lesion"),
    ]  # fmt: skip
    stem = f"space-{synthetic.SPACE}_stat-{{}}_desc-GSP5{{}}_statmap.nii.gz"
    maps = {
        stat: [nib.load(path).get_fdata() for path in out.glob(f"sub-*/**/*_stat-{stat}_*map.nii.gz")]
        for stat in "rzt"
    }
    for stat in "rz":
        found = nib.load(out / stem.format(stat, "mean")).get_fdata()
        np.testing.assert_allclose(found, np.mean(maps[stat], axis=0), atol=1e-6)
    for threshold, label in ((2, "2"), (3.5, "3p5")):
        for word, sign in (("above", 1), ("below", -1)):
            found = nib.load(out / stem.format("share", f"networkT{label}{word}")).get_fdata()
            expected = np.mean([sign * t > threshold for t in maps["t"]], axis=0)
            np.testing.assert_allclose(found[np.isfinite(found)], expected[np.isfinite(found)], atol=1e-6)
    np.testing.assert_allclose(
        nib.load(out / stem.format("n", "lesions")).get_fdata(), 2.0 * LEFT + 2.0 * RIGHT, atol=1e-6
    )
    sidecar = json.loads((out / stem.format("n", "lesions").replace(".nii.gz", ".json")).read_text())
    assert sidecar["Descriptive"] is True
    assert set(sidecar["Sources"]) == {f"bids:source:{name}.nii.gz" for name in MASKS}
    assert not (out / "group.html").exists()


def test_a_group_that_lacks_a_lesion(grouped: Finished, connectome: Path, tmp_path: Path) -> None:
    """A mask without maps is named and refused, in a dry run told, and left out where the user says so."""
    folder = shutil.copytree(grouped[0].parent, tmp_path / "all")
    bids, out = folder / "bids", folder / "out"
    synthetic.write_mask(bids / f"sub-03/anat/sub-03_space-{synthetic.SPACE}_label-lesion_mask.nii.gz", LEFT)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = run(bids, out, "group")
    assert refused.returncode == 65
    assert "Traceback" not in refused.stderr
    assert "1 of 5 lesions cannot be in the group" in refused.stderr
    assert "sub-03_label-lesion: missing" in refused.stderr
    assert last_line(refused.stderr).endswith("--ignore missing")
    dry = run(bids, out, "group", "--dry-run", "--t-threshold", "7")
    assert dry.returncode == 0
    assert len([line for line in dry.stdout.splitlines() if line.startswith("  read  ")]) == 4 * 4
    assert "  refuse  sub-03_label-lesion: missing" in dry.stdout
    assert "|t| > 7" in dry.stdout
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "group.html").touch()
    options = ["--ignore", "missing", "--t-threshold", "7", "--connectome", connectome, "--no-reports"]
    # The same lesions as those of the earlier group: its files are replaced unasked.
    ignored = run(bids, out, "group", *options)
    assert ignored.returncode == 0, ignored.stderr
    assert len((out / "group_lesions.tsv").read_text().splitlines()) == 1 + 4
    # Of an earlier group.
    assert not (out / "group.html").exists()
    assert "group.html was removed" in ignored.stderr
    assert sorted(path.name.split("desc-")[1] for path in out.glob("*stat-share*T*.nii.gz")) == [
        "GSP5networkT7above_statmap.nii.gz", "GSP5networkT7below_statmap.nii.gz",
    ]  # fmt: skip


def test_another_group_does_not_replace_the_one_on_disk_unasked(grouped: Finished, tmp_path: Path) -> None:
    """A group of fewer or more lesions is refused with their names, by a dry run too; --overwrite replaces."""
    folder = shutil.copytree(grouped[0].parent, tmp_path / "all")
    bids, out = folder / "bids", folder / "out"
    (out / "group.html").write_text("of the earlier group")

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.glob("*") if path.is_file()}

    before = contents()
    fewer = ["group", "--participant-label", "02", "--no-reports"]
    refused = run(bids, out, *fewer)
    assert refused.returncode == 73
    words = "another group of 4 lesions (2 of them are not in this one, such as sub-01_label-L_desc-old): "
    assert f"describes {words}replace it with --overwrite" in last_line(refused.stderr)
    dry = run(bids, out, *fewer, "--dry-run")
    assert f"  refuse  {words}--overwrite\n" in dry.stdout
    assert contents() == before
    # The same group, with its page.
    again = run(bids, out, "group", "--no-reports")
    assert again.returncode == 0, again.stderr
    assert contents() == before
    assert "was removed" not in again.stderr
    replaced = run(bids, out, *fewer, "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    assert len(read_tsv(out / "group_lesions.tsv")) == 2
    assert not (out / "group.html").exists()
    assert "group.html was removed" in replaced.stderr
    back = run(bids, out, "group", "--no-reports")
    assert back.returncode == 73
    assert "another group of 2 lesions (it lacks 2, such as sub-01_label-L_desc-old)" in last_line(back.stderr)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["group", "--atlas", "x"], ["--atlas has no effect at the group level: give it to the participant level"]),
        (
            ["participant", "--connectome", "nowhere", "--test", "age", "--blocks", "site"],
            [
                "--test has no effect at the participant level: give it to the group level",
                "--blocks has no effect at the participant level: give it to the group level",
            ],
        ),
    ],
)
def test_options_of_the_other_level(bids: Path, tmp_path: Path, options: list[str], words: list[str]) -> None:
    """One warning for each option that only the other level uses, and none for the others."""
    said = run(bids, tmp_path / "out", *options, "--t-threshold", "7").stderr
    assert [line[line.index("--") :] for line in said.splitlines() if "no effect" in line] == words


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ([], 66, "run the participant level first"),
        (["--ignore", "all"], 64, "invalid choice: 'all'"),
        (["--participant-label", "09"], 66, "01, 02"),
        (["--reports-only"], 66, "holds no group"),
    ],
)
def test_a_group_without_maps(bids: Path, tmp_path: Path, options: list[str], status: int, words: str) -> None:
    """The group level without anything to read ends with a sentence, and writes nothing."""
    result = run(bids, tmp_path / "out", "group", *options)
    assert result.returncode == status
    assert words in last_line(result.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "program",
    [[sys.executable, RUN], [sys.executable, "-m", "bids_lacuna"], [Path(sys.executable).with_name("bids-lacuna")]],
    ids=["run.py", "module", "script"],
)
def test_version_and_help(program: list[str | Path]) -> None:
    """run.py, `python -m bids_lacuna` and `bids-lacuna` are the same program."""
    version = subprocess.run([*program, "--version"], capture_output=True, text=True)
    assert version.stdout == f"bids-lacuna {__version__}\n"
    usage = subprocess.run([*program, "--help"], capture_output=True, text=True)
    assert usage.returncode == 0
    assert "--connectome-space" in usage.stdout


def test_citation_is_bibtex() -> None:
    """--citation prints the program and Boes et al. as BibTeX, and needs no other argument."""
    result = run("--citation")
    assert result.returncode == 0
    assert f"version = {{{__version__}}}" in result.stdout
    assert "doi = {10.1093/brain/awv228}" in result.stdout


def test_reports_are_in_the_plan(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """A dry run counts the memory of the processes that write pages; where there is too little, there are none."""
    command = (bids, tmp_path / "out", "participant", "--connectome", connectome, "--dry-run", "--nprocs", "1")
    result = run(*command)
    assert ", 240 MiB of it for reports" in result.stdout
    # In a process of its own: this one may occupy more than that.
    result = run_as_user(*command, "--mem", "500M")
    assert result.returncode == 0
    assert "too small for reports" in result.stderr
    assert ", 0 B of it for reports" in result.stdout


def test_no_file_is_left_half_written(finished: Finished) -> None:
    """No temporary file remains."""
    _, out, _ = finished
    assert [path for path in out.rglob(".*") if path.name != ".bidsignore"] == []
