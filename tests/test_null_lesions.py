"""Null lesions on the command line: T of each lesion and the test of a group, from a store with a summary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name
import synthetic
from nulls import SHAPE, make_grid
from program import capture, last_line, map_lesions, run
from program import read_table as read_lesions

from bids_lacuna import LesionData, cli, null_lesions, reference
from bids_lacuna.app import nulls as nulls_of_maps
from bids_lacuna.connectome.summary import DESCRIPTION, FOLDER
from bids_lacuna.files import read_table
from bids_lacuna.mapping.cells import assign_cells
from bids_lacuna.mapping.null_maps import compare_with_targets, map_nulls
from bids_lacuna.mapping.nulls import Connectivity, make_nulls
from bids_lacuna.mapping.places import Shape, Tissue
from bids_lacuna.mapping.summary import Summary
from bids_lacuna.report.group import write_group_report
from bids_lacuna.report.nulls import draw_chance, find_chance_maps
from bids_lacuna.report.participant import write_participant_report
from bids_lacuna.report.pictures import Picture, Pictures
from bids_lacuna.runtime.locks import claiming
from bids_lacuna.text import percent

Array = np.ndarray

GRID = make_grid()

N = 103
"""Null lesions, fewer than there are places."""

BOXES = {"01": ((3, 6, 7), (2, 3, 3)), "02": ((10, 3, 4), (2, 2, 2)), "03": ((1, 1, 1), (13, 16, 14))}
"""Corner and size of the lesions; the third is too large to be moved."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a store of three subjects, whose voxels follow the signal of their cell, and summarize it."""
    folder, rng = tmp_path_factory.mktemp("connectome"), np.random.default_rng(2)
    cells = assign_cells(GRID, 8)
    mixing = rng.standard_normal((9, cells.max() + 1))
    series = [
        (rng.standard_normal((37, 9)) @ mixing[:, cells] + 0.5 * rng.standard_normal((37, len(cells))))
        for _ in range(3)
    ]
    hdf5 = synthetic.write_connectome(folder / "GSP3.h5", np.float32(series), GRID.mask, GRID.affine)
    options = ["--space", synthetic.SPACE, "--name", "GSP3", "--nprocs", "1"]
    assert capture(cli.connectome_main, "build", hdf5, folder / "store", *options).returncode == 0
    assert capture(cli.connectome_main, "summarize", folder / "store").returncode == 0
    return folder / "store"


@pytest.fixture(scope="module")
def tissue_maps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write maps of grey and white matter, one half each."""
    folder = tmp_path_factory.mktemp("tissue")
    for name in ("grey", "white"):
        nib.save(nib.Nifti1Image(np.full(SHAPE, 0.5, np.float32), GRID.affine), folder / f"{name}.nii.gz")
    return folder / "grey.nii.gz", folder / "white.nii.gz"


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three lesions."""
    masks = {}
    for label, (corner, size) in BOXES.items():
        box = np.zeros(SHAPE, np.uint8)
        box[tuple(slice(start, start + n) for start, n in zip(corner, size, strict=True))] = 1
        masks[f"sub-{label}/anat/sub-{label}_space-{synthetic.SPACE}_label-lesion_mask"] = box
    return synthetic.write_dataset(tmp_path_factory.mktemp("dataset") / "bids", masks, GRID.affine)


@pytest.fixture(scope="module")
def options(tissue_maps: tuple[Path, Path]) -> list[object]:
    """Return the options of all runs."""
    return ["--null-lesions", N, "--tissue-maps", *tissue_maps]


@pytest.fixture(scope="module")
def out(bids: Path, store: Path, options: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Map the lesions with their nulls, and compare them as a group with chance places: the output, and both logs."""
    folder = tmp_path_factory.mktemp("out")
    ended = map_lesions(bids, folder, store, *options)
    assert ended.returncode == 0, ended.stderr
    group = run(bids, folder, "group", "--connectome", store, *options, "--no-reports")
    assert group.returncode == 0, group.stderr
    return folder, ended.stderr + group.stderr


def null_map(out: Path, label: str) -> Path:
    """Return the path of a lesion's T among its nulls."""
    name = f"sub-{label}_space-{synthetic.SPACE}_label-lesion_stat-zscore_desc-GSP3null_statmap.nii.gz"
    return out / f"sub-{label}" / "func" / name


def r_map(out: Path, label: str) -> Path:
    """Return the path of a lesion's r-map."""
    path = null_map(out, label)
    return path.with_name(path.name.replace("zscore_desc-GSP3null", "r_desc-GSP3"))


def read_sidecar(path: Path) -> dict[str, object]:
    """Read the sidecar of a map."""
    return json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())


def state_of(out: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of all maps and sidecars of lesions."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(out.glob("sub-*/func/*"))}


def test_t_of_a_lesion(out: tuple[Path, str], store: Path) -> None:
    """The map is T from the summary, on the connectome's grid; its sidecar says how it was made."""
    summary = Summary.open(store)
    connectivity = Connectivity.of(summary)
    half = np.full(SHAPE, 0.5)
    corner, size = BOXES["01"]
    lesion = make_nulls(Shape(np.array(corner), np.ones(size, np.float32)), connectivity, Tissue(half, half), N)
    (maps,) = map_nulls([lesion], connectivity)
    image = nib.load(null_map(out[0], "01"))
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32)[GRID.mask], maps.t)
    np.testing.assert_allclose(image.affine, GRID.affine)
    sidecar = read_sidecar(null_map(out[0], "01"))
    z_map = nib.load(str(null_map(out[0], "01")).replace("zscore_desc-GSP3null", "z_desc-GSP3"))
    r_of_all = np.corrcoef(z_map.get_fdata()[GRID.mask], reference.fisher_z(np.tanh(maps.approximation)))[0, 1]
    assert abs(sidecar["ApproximationR"] - r_of_all) < 0.03
    assert sidecar["NumberOfNullLesions"] == N
    assert sidecar["NumberOfPlaces"] == len(lesion.places.corners)
    assert sidecar["RandomSeed"] == 0
    assert sidecar["NeighbourhoodRadius"] == lesion.radius_mm
    assert sidecar["DegreeRPercentile"] == round(maps.degree_percentile, 4)
    assert {"LesionHash", "ConnectomeHash", "SummaryHash", "TissueMaps", "CoverageBin"} <= sidecar.keys()


def test_null_lesions_from_python(
    out: tuple[Path, str], store: Path, bids: Path, tissue_maps: tuple[Path, Path]
) -> None:
    """The function for Python users returns the map that the command line writes."""
    (mask,) = bids.glob("sub-02/anat/*_mask.nii.gz")
    maps = null_lesions(
        LesionData.from_nifti(mask), Summary.open(store), n_nulls=N, tissue_maps=tissue_maps, n_threads=2
    )
    written = nib.load(null_map(out[0], "02")).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(maps.t, written[GRID.mask])


def test_lesion_without_places(out: tuple[Path, str]) -> None:
    """A lesion that is too large has its maps, but no T; the log and a table say why."""
    assert not null_map(out[0], "03").exists()
    assert "sub-03_space-MNI152NLin6Asym_label-lesion_mask.nii.gz: no null lesions: too large to be moved" in out[1]
    (table,) = out[0].glob("logs/*/null_lesions.tsv")
    header, *rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert header == ["lesion", "n_places", "n_nulls", "r_of_approximation", "degree_percentile", "reason"]
    assert {row[0][:6]: row[2] for row in rows} == {"sub-01": str(N), "sub-02": str(N), "sub-03": "0"}
    (reason,) = [row[5] for row in rows if row[2] == "0"]
    (n_places,) = [row[1] for row in rows if row[2] == "0"]
    assert reason == f"too large to be moved: {n_places} places like its own, 100 are needed"
    why = read_sidecar(r_map(out[0], "03"))["WithoutNullLesions"]
    assert (why["Reason"], why["NumberOfPlaces"], why["RequestedNullLesions"]) == (reason, int(n_places), N)
    assert "WithoutNullLesions" not in read_sidecar(r_map(out[0], "01"))


def test_group_against_chance(out: tuple[Path, str]) -> None:
    """The group's effect, T and p are maps of the group, in which the lesion without places is named."""
    stem = out[0] / f"space-{synthetic.SPACE}_stat"
    paths = [
        Path(f"{stem}-{end}_statmap.nii.gz")
        for end in ("effect_desc-GSP3chance", "zscore_desc-GSP3chance", "logp_desc-GSP3chanceFWE")
    ]
    effect, t, logp = (nib.load(path).get_fdata() for path in paths)
    defined = np.isfinite(t)
    assert (np.isfinite(effect) == defined).all()
    assert (np.sign(effect[defined]) == np.sign(t[defined])).all()
    p = 10 ** -logp[defined]
    np.testing.assert_allclose(p * (N + 1), np.rint(p * (N + 1)), atol=1e-3)
    sidecar = read_sidecar(paths[2])
    assert sidecar["NumberOfLesions"] == 2
    assert [left["Lesion"][:6] for left in sidecar["LeftOut"]] == ["sub-03"]
    assert sidecar["NumberOfVoxels"] == defined.sum()
    assert sidecar["SmallestP"] == pytest.approx(p.min(), rel=1e-4)
    assert sidecar["Descriptive"] is False
    of_lesions = [read_sidecar(null_map(out[0], label))["ApproximationR"] for label in ("01", "02")]
    assert list(sidecar["ApproximationR"].values()) == of_lesions
    assert min(of_lesions) > 0.9
    assert "chance places" in sidecar["Interpretation"]
    assert f"compared with {N} sets of lesions at chance places" in out[1]


def test_lesions_in_another_space(
    bids: Path, store: Path, options: list[object], out: tuple[Path, str], tmp_path: Path
) -> None:
    """Lesions brought from elsewhere have the null lesions, T and overlap of the same lesions in the template."""
    moved, folder = tmp_path / "bids", tmp_path / "out"
    synthetic.write_images(moved)
    away = nib.affines.from_matvec(np.eye(3), [-8.0, 12, 4])
    for path in bids.glob("sub-*/anat/*_mask.nii.gz"):
        voxels = nib.load(path).get_fdata()
        name = path.relative_to(bids).as_posix().replace(synthetic.SPACE, "T1w")
        synthetic.write_mask(moved / name, voxels.astype(np.uint8), away @ GRID.affine)
    # Points are LPS: what is at x in the template is at x - 8 in the T1w, thus 8 further to the left.
    for label in BOXES:
        sitk.WriteTransform(sitk.TranslationTransform(3, [8.0, -12, 4]), str(tmp_path / f"{label}.txt"))
    given = f"T1w:{synthetic.SPACE}={tmp_path}/{{sub}}.txt"
    ended = map_lesions(moved, folder, store, *options, "--transform", given)
    assert ended.returncode == 0, ended.stderr
    group = run(moved, folder, "group", "--connectome", store, *options, "--no-reports")
    assert group.returncode == 0, group.stderr
    names = {path.relative_to(out[0]) for path in out[0].rglob("*.nii.gz")}
    assert null_map(Path(), "01") in names
    assert Path(f"space-{synthetic.SPACE}_stat-zscore_desc-GSP3chance_statmap.nii.gz") in names
    for name in names:
        expected, found = (nib.load(root / name).get_fdata() for root in (out[0], folder))
        np.testing.assert_array_equal(found, expected, err_msg=str(name))


def test_rerun_changes_nothing(
    bids: Path, store: Path, options: list[object], out: tuple[Path, str], tmp_path: Path
) -> None:
    """The same command makes no map again; without nulls the maps are the same; another seed changes T alone."""
    folder = shutil.copytree(out[0], tmp_path / "out")
    before = state_of(folder)
    ended = map_lesions(bids, folder, store, *options, "--nprocs", "2")
    assert (ended.returncode, "null lesions" in ended.stderr) == (0, False)
    assert state_of(folder) == before
    none = tmp_path / "none"
    assert map_lesions(bids, none, store, "--null-lesions", "0").returncode == 0
    citation = none / "logs" / "CITATION.md"
    assert "null lesions" not in citation.read_text()
    maps = {name: content for name, (content, _) in before.items() if "null" not in name}
    too_large = r_map(out[0], "03").name.replace(".nii.gz", ".json")
    without = {name: content for name, (content, _) in state_of(none).items()}
    tried, untried = json.loads(maps.pop(too_large)), json.loads(without.pop(too_large))
    tried.pop("WithoutNullLesions")
    assert (without, untried) == (maps, tried)
    two = tmp_path / "two"
    assert map_lesions(bids, two, store, *options, "--nprocs", "2").returncode == 0
    assert {name: content for name, (content, _) in state_of(two).items()} == {
        name: content for name, (content, _) in before.items()
    }
    assert map_lesions(bids, folder, store, *options, "--random-seed", "5").returncode == 0
    after = state_of(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        null_map(folder, label).name.replace(".nii.gz", ending)
        for label in ("01", "02")
        for ending in (".nii.gz", ".json")
    } | {too_large}
    assert map_lesions(bids, none, store, *options).returncode == 0
    assert "null lesions (seed 0)" in citation.read_text()


def test_a_page_waits_for_its_null_lesions(bids: Path, store: Path, options: list[object], tmp_path: Path) -> None:
    """The page of the run that maps a lesion has its comparison with null lesions."""
    arguments = ("--connectome", store, *options, "--participant-label", "01", "--no-t-map")
    ended = run(bids, tmp_path / "out", "participant", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "Compared with null lesions" in (tmp_path / "out/sub-01.html").read_text()


def test_pages(out: tuple[Path, str], tmp_path: Path) -> None:
    """The pages show T and the effect, each with what it says and what it does not say; without maps, nothing."""
    folder = shutil.copytree(out[0], tmp_path / "out")
    assert write_participant_report(folder, "01") == write_participant_report(folder, "03") == []
    page = (folder / "sub-01.html").read_text()
    assert "Compared with null lesions" in page
    assert f"with that of the same lesion at {N} other places of its hemisphere" in page
    assert "It is a description, not a test" in page
    assert next((folder / "sub-01" / "figures").glob("*_null.png")).name in page
    assert null_map(folder, "01").name in page
    said = f"compared with up to {N} null lesions (seed 0): the lesion itself at other places of its hemisphere"
    whole = "with maps of the connectome as a whole: degree, absolute degree and three principal components"
    for text in (page, (folder / "logs/CITATION.md").read_text()):
        assert (text.count(said), text.count(whole)) == (1, 1)
    page = (folder / "sub-03.html").read_text()
    assert "Compared with null lesions" not in page
    assert "There is no T among null lesions: too large to be moved: " in page
    assert (said in page, whole in page) == (False, True)
    write_group_report(folder)
    page = (folder / "group.html").read_text()
    assert "Against lesions at chance places" in page
    assert f"compared with {N} sets of lesions of the same sizes at chance places" in page
    assert f'<a href="./space-{synthetic.SPACE}_stat-effect_desc-GSP3chance_statmap.nii.gz">' in page
    assert f"compared with {N} sets of null lesions (seed 0): one for each lesion" in page
    assert "author = {Phipson" in page
    of_mean = read_sidecar(folder / f"space-{synthetic.SPACE}_stat-z_desc-GSP3mean_statmap.nii.gz")
    similarity = of_mean["ConnectomeSimilarity"]
    assert "<caption>Spatial correlation of the mean z-map</caption>" in page
    assert f'<td class="number">{similarity["PC2"]:.3f}</td>'.replace("-", "\N{MINUS SIGN}") in page
    assert f"degree (r = {similarity['Degree']:.3g})" in page
    assert page.count(f"explain {percent(similarity['RSquared'])} of") == 2


@pytest.mark.parametrize("significant", [False, True])
def test_effect_on_the_page(significant: bool, out: tuple[Path, str], tmp_path: Path) -> None:
    """The effect is drawn where it is significant; if it is nowhere, a sentence says so."""
    folder = shutil.copytree(out[0], tmp_path / "out")
    group = json.loads((folder / "group_lesions.json").read_text())
    maps = find_chance_maps(folder, group)
    logp = np.full(SHAPE, np.nan, np.float32)
    logp[2:9, 3:5, 4] = 2 if significant else 1
    nib.save(nib.Nifti1Image(logp, GRID.affine), maps["logp"])
    drawn = draw_chance(Pictures(folder, folder / "group"), maps)
    if significant:
        assert isinstance(drawn, Picture)
        assert f"{np.isfinite(nib.load(maps['effect']).get_fdata()[2:9, 3:5, 4]).sum()} voxels" in drawn.caption
        assert "not specific to a symptom" in drawn.caption
    else:
        assert drawn.startswith("Nothing is significant (smallest corrected p = ")


def test_dry_run_tells_the_time(bids: Path, store: Path, options: list[object], tmp_path: Path) -> None:
    """A dry run has a line about null lesions, also of maps that lack them, unless there are none.

    One of the three lesions has none, since it cannot be moved.
    """
    dry = map_lesions(bids, tmp_path / "out", store, *options, "--dry-run")
    line = (
        f"null lesions        {N} for each lesion, {2 * N / 3:.0f} on average by their places; lesions to compare: 3,"
    )
    assert line in dry.stdout
    mapped = tmp_path / "mapped"
    assert map_lesions(bids, mapped, store, "--null-lesions", "0").returncode == 0
    later = map_lesions(bids, mapped, store, *options, "--dry-run")
    line = dry.stdout[dry.stdout.index("null lesions  ") :]
    assert line in later.stdout
    assert "null lesions are few" not in dry.stderr + later.stderr
    dry = map_lesions(bids, tmp_path / "out", store, "--null-lesions", "0", "--dry-run")
    assert "null lesions" not in dry.stdout + dry.stderr
    group = run(bids, mapped, "group", "--connectome", store, *options, "--dry-run")
    assert group.stdout.splitlines()[-1].startswith(f"null lesions: {N} for each lesion, {2 * N / 3:.0f} on average")


def test_finished_null_lesions_take_no_time(
    bids: Path, store: Path, options: list[object], out: tuple[Path, str]
) -> None:
    """A dry run says that all lesions have been compared, one of them without places."""
    dry = map_lesions(bids, out[0], store, *options, "--dry-run")
    assert f"null lesions        {N} for each lesion; no lesion lacks them\n" in dry.stdout
    fewer = map_lesions(
        bids, out[0], store, *options, "--null-lesions", "101", "--dry-run", "--participant-label", "02"
    )
    assert "null lesions        101 for each lesion; lesions to compare: 1, in about " in fewer.stdout


def test_percentiles_of_targets(
    bids: Path, store: Path, options: list[object], out: tuple[Path, str], tmp_path: Path
) -> None:
    """A target is compared by finished T, whose files stay; another file of its name replaces all its figures."""
    folder, rng = shutil.copytree(out[0], tmp_path / "out"), np.random.default_rng(6)
    path = tmp_path / "circuit.nii.gz"
    nib.save(nib.Nifti1Image(np.float32(rng.standard_normal(SHAPE)), GRID.affine), path)
    before = state_of(folder)
    dry = map_lesions(bids, folder, store, *options, "--target", f"circuit={path}", "--dry-run")
    lines = {line[:20].strip(): line[20:] for line in dry.stdout.splitlines()}
    assert lines["null lesions"] == f"{N} for each lesion; no lesion lacks them"
    assert lines["nulls and targets"].startswith(f"{N} for each lesion; lesions to compare: 2, in about ")
    ended = map_lesions(bids, folder, store, *options, "--target", f"circuit={path}")
    assert (ended.returncode, "0 done, 3 skipped" in ended.stderr) == (0, True), ended.stderr
    changed = {name for name, state in state_of(folder).items() if state != before[name]}
    assert changed == {r_map(folder, label).name.replace(".nii.gz", ".json") for label in BOXES}
    first = {label: read_sidecar(r_map(folder, label))["TargetNetworks"]["circuit"] for label in BOXES}
    assert "NullLesions" not in first["03"]
    recorded = first["01"]["NullLesions"]
    assert (recorded["NumberOfNullLesions"], recorded["RandomSeed"]) == (N, 0)
    corner, size = BOXES["01"]
    connectivity, half = Connectivity.of(Summary.open(store)), np.full(SHAPE, 0.5)
    shape = Shape(np.array(corner), np.ones(size, np.float32))
    values = nib.load(path).get_fdata(dtype=np.float32)[GRID.mask]
    lesion = make_nulls(shape, connectivity, Tissue(half, half), N)
    ((r,), (damage,)) = compare_with_targets(lesion, shape, [values], connectivity)
    assert recorded["ApproximateR"] == pytest.approx(r[0], abs=1e-4)
    assert recorded["RPercentile"] == pytest.approx(100 * np.mean(r[1:] < r[0]), abs=1e-3)
    assert recorded["DamageScorePercentile"] == pytest.approx(100 * np.mean(damage[1:] < damage[0]), abs=1e-3)
    assert first["01"]["DamageScore"] == pytest.approx(damage[0], rel=1e-6)
    again = state_of(folder)
    assert map_lesions(bids, folder, store, *options, "--target", f"circuit={path}").returncode == 0
    assert state_of(folder) == again
    nib.save(nib.Nifti1Image(-nib.load(path).get_fdata(dtype=np.float32), GRID.affine), path)
    assert map_lesions(bids, folder, store, "--null-lesions", "0", "--target", f"circuit={path}").returncode == 0
    second = read_sidecar(r_map(folder, "01"))["TargetNetworks"]["circuit"]
    assert second["SHA256"] != first["01"]["SHA256"]
    assert second["R"] == pytest.approx(-first["01"]["R"])
    assert "NullLesions" not in second


def test_targets_of_a_group(
    bids: Path, store: Path, options: list[object], out: tuple[Path, str], tmp_path: Path
) -> None:
    """The group's table has the targets of sidecars, or of the command line, and mixes no files of one name."""
    folder, rng = shutil.copytree(out[0], tmp_path / "out"), np.random.default_rng(8)
    for name in ("one", "other"):
        image = nib.Nifti1Image(np.float32(rng.standard_normal(SHAPE)), GRID.affine)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    circuit = [f"circuit={tmp_path / name}.nii.gz" for name in ("one", "other")]
    assert map_lesions(bids, folder, store, *options, "--target", circuit[0]).returncode == 0
    first = [read_sidecar(r_map(folder, label))["TargetNetworks"]["circuit"] for label in BOXES]
    assert run(bids, folder, "group", "--no-reports").returncode == 0
    rows = read_table(folder / "group_lesions.tsv")
    for end, key in (("r", "R"), ("r_outside", "ROutsideLesion"), ("damage", "DamageScore")):
        assert [row[f"target_circuit_{end}"] for row in rows] == [f"{entry[key]:.6g}" for entry in first]
    assert [row["target_circuit_r_percentile"] for row in rows] == [
        *(f"{entry['NullLesions']['RPercentile']:.6g}" for entry in first[:2]),
        "n/a",
    ]
    dictionary = json.loads((folder / "group_lesions.json").read_text())
    assert dictionary["target_circuit_r"]["SHA256"] == first[0]["SHA256"]
    write_group_report(folder)
    page = (folder / "group.html").read_text()
    assert '<th scope="row">circuit</th>' in page
    assert "with the target network circuit (one.nii.gz); [cite" in page
    one = ["--participant-label", "01", "--null-lesions", "0", "--target", circuit[1]]
    assert map_lesions(bids, folder, store, *one).returncode == 0
    mixed = run(bids, folder, "group", "--no-reports")
    assert "target circuit: 1 lesions, such as sub-01_label-lesion, were compared with another file" in mixed.stderr
    assert [row["target_circuit_r"] == "n/a" for row in read_table(folder / "group_lesions.tsv")] == [
        True,
        False,
        False,
    ]
    # In the volume of the maps as in the connectome's mask.
    given = run(bids, folder, "group", "--no-reports", "--target", circuit[0])
    assert (given.returncode, "another file" in given.stderr) == (0, False)
    again = read_table(folder / "group_lesions.tsv")
    for end in ("r", "r_outside", "damage"):
        for row, before in zip(again, rows, strict=True):
            assert float(row[f"target_circuit_{end}"]) == pytest.approx(float(before[f"target_circuit_{end}"]))


def test_few_null_lesions_are_a_warning(bids: Path, store: Path, options: list[object], tmp_path: Path) -> None:
    """The warning says how small the p of a group can be; one null lesion, which has no s, is refused."""
    dry = map_lesions(bids, tmp_path / "out", store, *options, "--null-lesions", "9", "--dry-run")
    assert dry.returncode == 0
    assert "9 null lesions are few: " in dry.stderr
    assert "no p of a group is below 1 / 10" in dry.stderr
    one = map_lesions(bids, tmp_path / "out", store, *options, "--null-lesions", "1", "--dry-run")
    assert one.returncode == 64
    assert "use --null-lesions 100 or more" in last_line(one.stderr)


def test_group_without_nulls_removes_chance_maps(
    bids: Path, store: Path, out: tuple[Path, str], tmp_path: Path
) -> None:
    """A group that is not compared with chance places has no maps of an earlier comparison."""
    folder = shutil.copytree(out[0], tmp_path / "out")
    assert list(folder.glob("space-*chance*"))
    ended = run(bids, folder, "group", "--connectome", store, "--null-lesions", "0", "--no-reports")
    assert ended.returncode == 0, ended.stderr
    assert not list(folder.glob("space-*chance*"))


def test_group_of_one_lesion_has_no_p(
    bids: Path, store: Path, options: list[object], out: tuple[Path, str], tmp_path: Path
) -> None:
    """One lesion among lesions without places is not tested, and maps of an earlier test are removed."""
    folder = shutil.copytree(out[0], tmp_path / "out")
    group = ["--participant-label", "01", "03", "--overwrite", "--no-reports"]
    ended = run(bids, folder, "group", "--connectome", store, *options, *group)
    assert ended.returncode == 0, ended.stderr
    assert "not compared with chance places: 1 of its lesions can be compared, 2 are needed" in ended.stderr
    assert not list(folder.glob("space-*chance*"))


def test_null_lesions_need_a_summary(bids: Path, store: Path, out: tuple[Path, str], tmp_path: Path) -> None:
    """Asked for without a usable summary, or with bad tissue maps, the program ends with 65 and the reason."""
    bare = shutil.copytree(store, tmp_path / "bare", ignore=shutil.ignore_patterns(FOLDER))
    ended = map_lesions(bids, tmp_path / "out", bare, "--null-lesions", "200")
    assert ended.returncode == 65
    assert "--null-lesions 200 needs the connectome's summary" in ended.stderr
    assert f"bids-lacuna-connectome summarize {bare}" in ended.stderr
    shutil.copytree(store / FOLDER, bare / FOLDER)
    (bare / FOLDER / DESCRIPTION).write_text("{}")
    assert map_lesions(bids, tmp_path / "out", bare, "--null-lesions", "200").returncode == 65
    folder = shutil.copytree(out[0], tmp_path / "grouped")
    described = run(bids, folder, "group", "--connectome", bare, "--no-reports")
    assert described.returncode == 0, described.stderr
    assert described.stderr.count("compared neither to the connectome's degree nor to null lesions") == 1
    group = run(bids, out[0], "group", "--null-lesions", "200")
    assert (group.returncode, "name the connectome with --connectome" in group.stderr) == (65, True)
    bad = tmp_path / "bad.nii.gz"
    nib.save(nib.Nifti1Image(np.full(SHAPE, 70.0), GRID.affine), bad)
    ended = map_lesions(bids, tmp_path / "out", store, "--tissue-maps", bad, bad)
    assert (ended.returncode, "fractions from 0 to 1" in ended.stderr) == (65, True)


def test_interrupted_run_keeps_finished_lesions(
    bids: Path,
    store: Path,
    options: list[object],
    out: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After Ctrl-C between two readings of the summary, the same command makes only the T that is missing."""

    def map_one(*arguments: object) -> object:
        if list(tmp_path.glob("out/sub-*/func/*null_statmap.json")):
            raise KeyboardInterrupt
        return map_nulls(*arguments)

    folder = tmp_path / "out"
    monkeypatch.setattr(nulls_of_maps, "MOST_TOGETHER", 1)
    with monkeypatch.context() as patched:
        patched.setattr(nulls_of_maps, "map_nulls", map_one)
        assert map_lesions(bids, folder, store, *options).returncode == 130
    before = state_of(folder)
    assert [null_map(folder, label).exists() for label in ("01", "02")] == [True, False]
    assert map_lesions(bids, folder, store, *options).returncode == 0
    after = state_of(folder)
    assert all(after[name] == state for name, state in before.items())
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in state_of(out[0]).items()
    }


def test_sets_that_do_not_fit_the_memory(
    bids: Path, store: Path, out: tuple[Path, str], tissue_maps: tuple[Path, Path], tmp_path: Path
) -> None:
    """A group with more sets of null lesions than fit the memory is not compared; a sentence says what to do."""
    folder = shutil.copytree(out[0], tmp_path / "out")
    options = ["--null-lesions", 10**6, "--tissue-maps", *tissue_maps, "--mem", "2G", "--no-reports"]
    ended = run(bids, folder, "group", "--connectome", store, *options)
    assert ended.returncode == 1, ended.stderr
    assert "the null lesions of 2 lesions need 1" in ended.stderr
    assert "raise --mem, or use fewer --null-lesions" in ended.stderr


@pytest.mark.parametrize(("r", "is_there"), [(0.979, True), (0.949, False)])
def test_summary_that_fits_badly(
    r: float,
    is_there: bool,
    bids: Path,
    store: Path,
    options: list[object],
    out: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Below 0.98, T has a warning; below 0.95 there is none, and an earlier one is removed."""
    folder = shutil.copytree(out[0], tmp_path / "out")
    monkeypatch.setattr(nulls_of_maps, "correlate_outside", lambda *_: r)
    ended = map_lesions(bids, folder, store, *options, "--random-seed", "3", "--participant-label", "01")
    assert ended.returncode == 0, ended.stderr
    assert null_map(folder, "01").exists() == is_there
    assert ("T is approximate" in ended.stderr, "no T among null lesions" in ended.stderr) == (is_there, not is_there)
    recorded = read_sidecar(r_map(folder, "01")).get("WithoutNullLesions", {})
    assert recorded.get("ApproximationR") == (None if is_there else r)
    again = map_lesions(bids, folder, store, *options, "--random-seed", "3", "--participant-label", "01")
    assert "null lesions" not in again.stderr
    other = map_lesions(bids, folder, store, *options, "--random-seed", "4", "--participant-label", "01")
    assert ("no T among null lesions" in other.stderr) == (not is_there)


def test_fit_is_outside_the_lesion(store: Path) -> None:
    """The correlation of exact and approximate map leaves out the lesion's cells, and undefined voxels."""
    connectivity, half = Connectivity.of(Summary.open(store)), np.full(SHAPE, 0.5)
    corner, size = BOXES["01"]
    lesion = make_nulls(Shape(np.array(corner), np.ones(size, np.float32)), connectivity, Tissue(half, half), N)
    rng = np.random.default_rng(4)
    exact, approximation = rng.standard_normal((2, GRID.n_voxels))
    exact[7] = np.nan
    own = np.zeros(SHAPE, bool)
    own[tuple(slice(start, start + n) for start, n in zip(corner, size, strict=True))] = True
    cells = assign_cells(GRID, 8)
    outside = ~np.isin(cells, cells[own[GRID.mask]]) & np.isfinite(exact)
    found = nulls_of_maps.correlate_outside(exact, approximation, lesion, connectivity)
    assert found == pytest.approx(np.corrcoef(exact[outside], approximation[outside])[0, 1], abs=1e-12)


def test_a_t_map_that_cannot_be_written(
    bids: Path, store: Path, options: list[object], out: tuple[Path, str], tmp_path: Path
) -> None:
    """A T that is lost counts as a failure, in status and table, while a lesion without places does not."""
    folder = shutil.copytree(out[0], tmp_path / "out")
    null_map(folder, "01").unlink()
    null_map(folder, "01").mkdir()
    selected = ["--random-seed", "9", "--participant-label", "01", "03"]
    ended = map_lesions(bids, folder, store, *options, *selected)
    assert ended.returncode == 1
    said = "no T among null lesions: [Errno 21] Is a directory"
    assert f"sub-01_space-{synthetic.SPACE}_label-lesion_mask.nii.gz: {said}" in last_line(ended.stderr)
    rows = read_lesions(folder)
    assert [(row["status"], said in row["reason"]) for row in rows] == [("skipped", True), ("skipped", False)]
    null_map(folder, "01").rmdir()
    assert map_lesions(bids, folder, store, *options, *selected).returncode == 0


def test_lesions_that_another_run_holds_gain_nothing(
    bids: Path, store: Path, options: list[object], out: tuple[Path, str], tmp_path: Path
) -> None:
    """What two lesions lack, a T and a similarity, is left to the run that holds them, which is named."""
    folder = shutil.copytree(out[0], tmp_path / "out")
    null_map(folder, "01").unlink()
    sidecar = r_map(folder, "02").with_name(r_map(folder, "02").name.replace(".nii.gz", ".json"))
    content = json.loads(sidecar.read_text())
    del content["ConnectomeSimilarity"]
    sidecar.write_text(json.dumps(content))
    before = state_of(folder)
    held = [r_map(folder, label).relative_to(folder).as_posix() for label in BOXES]
    with claiming(folder / "logs" / "locks", "theirs", lambda _: None) as theirs:
        theirs.take(held)
        ended = map_lesions(bids, folder, store, *options)
    said = "nothing is added to its maps, since the run theirs "
    assert sum(" W " in line and said in line for line in ended.stderr.splitlines()) == 2
    assert ended.returncode == 1
    assert state_of(folder) == before
