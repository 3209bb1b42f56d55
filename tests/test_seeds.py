"""Seeds in place of lesions: spheres around coordinates, and images with a label."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from nibabel.affines import apply_affine
from program import Ended, last_line, map_lesions, read_table, read_tsv, run

from bids_lacuna import LesionData
from bids_lacuna.app.seeds import read_coordinates
from bids_lacuna.connectome import Connectome
from bids_lacuna.grid import Grid
from bids_lacuna.group.table import BadTable
from bids_lacuna.lesion import LesionOutsideGrid, load_lesion
from bids_lacuna.report.participant import write_participant_report

BRUTE_FORCE_MM = 0.1

ALL = np.ones(synthetic.SHAPE, bool)

STRAIGHT = Grid(ALL, synthetic.RADIOLOGICAL)

HEADER = "participant_id\tlabel\tx\ty\tz\tradius_mm\n"

ROWS = "sub-01\tdlpfc\t-2\t1\t-3\t3\nsub-01\tdlpfc\t2\t1\t-3\t3\nsub-02\tdlpfc\t1.5\t-2\t4\t\n"

COORDINATES = HEADER + ROWS + "sub-02\tfar\t45\t63\t36\t6\n"


def count_by_brute_force(grid: Grid, centres: list[list[float]], radii: list[float]) -> np.ndarray:
    """Return the fraction of each voxel whose points every 0.1 mm lie in some sphere."""
    n = np.rint(grid.voxel_sizes_mm / BRUTE_FORCE_MM).astype(int)
    offsets = (np.stack(np.meshgrid(*map(np.arange, n), indexing="ij"), axis=-1).reshape(-1, 3) + 0.5) / n - 0.5
    fractions = np.zeros(grid.shape)
    reach = max(radii) + np.linalg.norm(grid.voxel_sizes_mm) / 2
    for voxel in np.ndindex(grid.shape):
        distances = np.linalg.norm(np.array(centres) - apply_affine(grid.affine, voxel), axis=1)
        if distances.min() < reach:
            points = apply_affine(grid.affine, offsets + voxel)
            inside = [np.square(points - each).sum(axis=1) < r**2 for each, r in zip(centres, radii, strict=True)]
            fractions[voxel] = np.any(inside, axis=0).mean()
    return fractions


@pytest.mark.parametrize(
    ("affine", "centres", "radii"),
    [
        (synthetic.RADIOLOGICAL, [[1.3, -2.2, 3.7]], [3.7]),
        (synthetic.RADIOLOGICAL, [[-1.0, 2.0, 0.0], [1.0, 2.0, 1.0]], [3.0, 2.0]),
        (synthetic.RADIOLOGICAL, [[9.0, 1.0, 2.0]], [3.0]),
        (synthetic.OBLIQUE, [[-1.0, -3.0, 1.0]], [2.0]),
    ],
    ids=["one", "two that overlap", "over the volume's edge", "oblique"],
)
def test_spheres_are_volume_weights(affine: np.ndarray, centres: list[list[float]], radii: list[float]) -> None:
    """Each voxel has the fraction of it that lies in some sphere, shared parts once; volumes are within 1 %."""
    grid = Grid(ALL, affine)
    seed = load_lesion(LesionData.from_sphere(centres, radii), grid)
    expected = count_by_brute_force(grid, centres, radii)
    assert seed.weights is not None
    vector = np.zeros(grid.n_voxels)
    vector[seed.weights.voxels] = seed.weights.weights
    np.testing.assert_allclose(grid.volume(vector, 0), expected, atol=0.02)
    assert vector.sum() == pytest.approx(expected.sum(), rel=0.01)
    if len(centres) == 1:
        assert seed.volume_mm3 == pytest.approx(4 / 3 * np.pi * radii[0] ** 3, rel=0.01)


def test_a_sphere_over_the_brain_s_edge_tells_how_much_is_inside() -> None:
    """Half a sphere around a point on the volume's face is inside."""
    seed = load_lesion(LesionData.from_sphere([10, 0, 0], 4), STRAIGHT)
    assert seed.coverage == pytest.approx(0.5, abs=0.01)


def test_a_sphere_outside_names_its_place() -> None:
    """The sentence has the sphere's extent, and what positions are mistaken for."""
    with pytest.raises(LesionOutsideGrid, match=r"seed lies outside .* spans \(39, 57, 30\).*not in voxels"):
        load_lesion(LesionData.from_sphere([45, 63, 36]), STRAIGHT)


@pytest.mark.parametrize(
    ("centre", "radius", "words"),
    [
        ([0, 0, float("nan")], 6, "radius above 0"),
        ([0, 0, 0], 0, "radius above 0"),
        ([[0, 0, 0], [400, 400, 400]], 0.5, "different labels"),
        ([0, 0], 6, r"centres of shape \(2,\)"),
        ([[0, 0, 0]], [6, 3], r"radii of shape \(2,\)"),
    ],
)
def test_spheres_that_cannot_be_a_mask(centre: list[float], radius: float, words: str) -> None:
    """NaN, an empty sphere, small spheres far apart, and centres or radii of another number are refused."""
    with pytest.raises(ValueError, match=words):
        LesionData.from_sphere(centre, radius)


def write_bids(folder: Path, table: str) -> Path:
    """Write a dataset without any mask, and a table of coordinates."""
    synthetic.write_images(folder / "bids")
    (folder / "bids" / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    path = folder / "seeds.tsv"
    path.write_text(table, newline="")
    return path


Finished = tuple[Path, Path, Path, Ended]
"""Dataset, table, output, and the program that wrote the output."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, connectome: Path) -> Finished:
    """Map a table of coordinates once."""
    folder = tmp_path_factory.mktemp("seeds")
    table = write_bids(folder, COORDINATES)
    result = map_lesions(folder / "bids", folder / "out", connectome, "--coordinates", table)
    return folder / "bids", table, folder / "out", result


def read_r(out: Path, label: str) -> np.ndarray:
    """Read the r-map of a participant's seed."""
    name = f"sub-{label}_space-{synthetic.SPACE}_label-dlpfc_stat-r_desc-GSP5_statmap.nii.gz"
    return np.asanyarray(nib.load(out / f"sub-{label}" / "func" / name).dataobj)


def test_spheres_of_a_label_are_one_map(finished: Finished, connectome: Path, brain: np.ndarray) -> None:
    """The map is the mean Fisher z of correlations with the weighted mean signal of the spheres, by NumPy."""
    _, _, out, result = finished
    assert result.returncode == 1, result.stderr
    grid = Connectome.open(connectome).grid
    weights = count_by_brute_force(grid, [[-2, 1, -3], [2, 1, -3]], [3, 3])[brain]
    z = []
    for series in synthetic.make_series(int(brain.sum())):
        seed = np.corrcoef(np.column_stack([series @ weights, series]).T)[0, 1:]
        z.append(np.arctanh(np.clip(seed, -1 + 1e-6, 1 - 1e-6)))
    np.testing.assert_allclose(read_r(out, "01")[brain], np.tanh(np.mean(z, axis=0)), atol=5e-3)


def test_a_seed_outside_the_brain_fails_alone(finished: Finished) -> None:
    """lesions.tsv has a row for each seed, with the reason of the one outside."""
    rows = {(row["sub"], row["label"]): row for row in read_table(finished[2])}
    assert {key: row["status"] for key, row in rows.items()} == {
        ("01", "dlpfc"): "done",
        ("02", "dlpfc"): "done",
        ("02", "far"): "failed",
    }
    assert "not in voxels or centimetres" in rows["02", "far"]["reason"]


def test_sidecars_have_the_spheres(finished: Finished) -> None:
    """The mask and each map tell the spheres; a radius that is not given is 6 mm."""
    out = finished[2]
    mask = out / "sub-02" / "anat" / f"sub-02_space-{synthetic.SPACE}_label-dlpfc_mask.json"
    expected = {"Spheres": [{"Centre": [1.5, -2, 4], "Radius": 6}]}
    r_map = next(out.glob("sub-02/func/*label-dlpfc_stat-r_*.json"))
    assert [json.loads(path.read_text())["Seed"] for path in (mask, r_map)] == [expected, expected]


def test_the_output_is_a_valid_bids_derivative(finished: Finished, tmp_path: Path) -> None:
    """The BIDS validator finds no error in the masks of spheres."""
    result = synthetic.validate(finished[2], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_same_table_maps_nothing_again(finished: Finished, connectome: Path) -> None:
    """Finished seeds are skipped; one whose coordinates have changed is not mixed with its old maps."""
    bids, table, out, _ = finished
    again = map_lesions(bids, out, connectome, "--coordinates", table)
    assert [row["status"] for row in read_table(out)] == ["skipped", "skipped", "failed"]
    assert "another mask" not in again.stderr


def test_coordinates_that_have_changed(finished: Finished, connectome: Path, tmp_path: Path) -> None:
    """Neither level takes the maps of other coordinates for those of the table."""
    bids, _, _, _ = finished
    table, out = write_bids(tmp_path, HEADER + ROWS), tmp_path / "out"
    options = ["--coordinates", table, "--participant-label", "02"]
    map_lesions(bids, out, connectome, *options)
    table.write_text((HEADER + ROWS).replace("1.5", "2.5"))
    result = run(bids, out, "group", "--no-reports", *options)
    assert "coordinates have changed" in result.stderr
    map_lesions(bids, out, connectome, *options)
    assert "made with another mask" in read_table(out)[0]["reason"]


def test_a_dry_run_writes_nothing(finished: Finished, connectome: Path, tmp_path: Path) -> None:
    """It lists the seeds with volume and coverage."""
    bids, table, _, _ = finished
    result = map_lesions(bids, tmp_path / "out", connectome, "--coordinates", table, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert re.search(r"sub-02_label-dlpfc +0\.90 mL .* map", result.stdout)
    assert not (tmp_path / "out").exists()


def test_a_group_has_seeds_only_if_asked(finished: Finished, connectome: Path, tmp_path: Path) -> None:
    """A group of lesions neither has nor mentions the seeds in the same folder; --coordinates describes them.

    A seed is compared with target networks, but damages none.
    """
    _, table, _, _ = finished
    masks = {
        f"sub-0{n}/anat/sub-0{n}_space-{synthetic.SPACE}_label-lesion_mask": synthetic.box((3, 2, n)) for n in (1, 2)
    }
    bids, out = synthetic.write_dataset(tmp_path / "bids", masks), tmp_path / "out"
    table.with_name("near.tsv").write_text(HEADER + ROWS)
    chosen = ["--coordinates", table.with_name("near.tsv")]
    assert map_lesions(bids, out, connectome).returncode == 0
    (target,) = out.glob("sub-01/func/*label-lesion_stat-z_*.nii.gz")
    assert map_lesions(bids, out, connectome, *chosen, "--target", f"circuit={target}").returncode == 0
    (sidecar,) = out.glob("sub-01/func/*label-dlpfc_stat-r_*.json")
    relation = json.loads(sidecar.read_text())["TargetNetworks"]["circuit"]
    assert (-1 < relation["R"] < 1, "DamageScore" in relation) == (True, False)
    lesions = run(bids, out, "group", "--no-reports")
    assert lesions.returncode == 0, lesions.stderr
    assert {row["label"] for row in read_tsv(out / "group_lesions.tsv")} == {"lesion"}
    assert "not in the group" not in lesions.stderr
    seeds = run(bids, out, "group", "--no-reports", "--name", "seeds", *chosen)
    assert seeds.returncode == 0, seeds.stderr
    rows = read_tsv(out / "group_seeds" / "group_lesions.tsv")
    assert [row["label"] for row in rows] == ["dlpfc", "dlpfc"]
    assert [name for name in rows[0] if "target" in name] == ["target_circuit_r", "target_circuit_r_outside"]


def test_images_with_a_label_are_seeds(connectome: Path, tmp_path: Path) -> None:
    """--seed-label maps masks with a label alone, equal to those of a filter file; sidecars call them seeds."""
    name = f"anat/sub-01_space-{synthetic.SPACE}_label-"
    bids = synthetic.write_dataset(tmp_path / "bids", {f"sub-01/{name}lesion_mask": synthetic.box((0, 3, 5))})
    synthetic.write_mask(bids / "sub-01" / f"{name}dlpfc_mask.nii.gz", synthetic.box((3, 2, 3)))
    filters = tmp_path / "filter.json"
    filters.write_text(json.dumps({"lesion": {"label": "dlpfc"}}))
    outs = {"seed": ["--seed-label", "dlpfc"], "lesion": ["--bids-filter-file", filters]}
    for kind, options in outs.items():
        assert map_lesions(bids, tmp_path / kind, connectome, *options).returncode == 0
    np.testing.assert_array_equal(read_r(tmp_path / "seed", "01"), read_r(tmp_path / "lesion", "01"))
    sidecars = [json.loads(next((tmp_path / kind).glob("sub-01/func/*stat-r_*.json")).read_text()) for kind in outs]
    assert [sidecar.get("Seed") for sidecar in sidecars] == [{}, None]


def test_a_page_says_seed(finished: Finished) -> None:
    """The page of a participant with seeds alone names them so, with their spheres."""
    out = finished[2]
    assert write_participant_report(out, "02") == []
    page = (out / "sub-02.html").read_text(encoding="utf-8")
    for words in (
        "Seed network maps of",
        "Seed labelled dlpfc",
        "6 mm around 1.5, \N{MINUS SIGN}2, 4 mm",
        "Green line: the seed",
    ):
        assert words in page
    assert "the lesion" not in re.sub(r"<style.*?</style>|<script.*?</script>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("table", "status", "words"),
    [
        ("participant_id\tlabel\tX\ty\tz\nsub-01\ta\t1\t2\t3\n", 65, "no column x: did you mean X?"),
        ("participant_id,label,x,y,z\nsub-01,a,1,2,3\n", 65, "participant_id,label,x,y,z: separate columns by tabs"),
        (HEADER + "sub-01\ta\t1\tnan\t3\t6\n", 65, "line 2 of .* no number in the column y"),
        (HEADER + "sub-01\ta\t1,5\t2\t3\t6\n", 65, "1,5 in the column x: .*decimal point"),
        (HEADER + "sub-01\tdl_pfc\t1\t2\t3\t6\n", 65, "label 'dl_pfc'.*as in dlpfc"),
        (HEADER + "sub-01\ta\t1\t2\t3\t0.006\n", 65, "radius 0.006: 0.5 to 60 mm"),
        (HEADER, 65, "no rows"),
        (HEADER + "sub-7\ta\t1\t2\t3\t6\n", 66, "no participant 7"),
    ],
    ids=["column", "commas", "nan", "comma", "underscore", "metres", "empty", "participant"],
)
def test_bad_tables_end_with_a_sentence(
    connectome: Path, tmp_path: Path, table: str, status: int, words: str
) -> None:
    """What cannot be used is named, with its line, before anything is written."""
    path = write_bids(tmp_path, table)
    result = map_lesions(tmp_path / "bids", tmp_path / "out", connectome, "--coordinates", path)
    assert result.returncode == status, result.stderr
    assert re.search(words, last_line(result.stderr))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coordinates-space", "T1w"], "name their table with --coordinates"),
        (["--coordinates", "seeds.tsv", "--bids-filter-file", "filter.json"], "leave out one of them"),
        (["--seed-label", "a", "--bids-filter-file", "filter.json"], "has labels, as --seed-label"),
    ],
)
def test_options_that_exclude_each_other(
    connectome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    """What would have no effect is a usage error."""
    monkeypatch.chdir(tmp_path)
    write_bids(tmp_path, HEADER + ROWS)
    Path("filter.json").write_text('{"lesion": {"label": "b"}}')
    result = map_lesions(tmp_path / "bids", tmp_path / "out", connectome, *options)
    assert result.returncode == 64
    assert words in last_line(result.stderr)


def test_a_missing_table(connectome: Path, tmp_path: Path) -> None:
    """A path without a file is an input that is missing."""
    write_bids(tmp_path, HEADER)
    result = map_lesions(tmp_path / "bids", tmp_path / "out", connectome, "--coordinates", tmp_path / "none.tsv")
    assert result.returncode == 66
    assert "there is no table at" in last_line(result.stderr)


def test_a_table_of_another_program(tmp_path: Path) -> None:
    """A byte order mark, Windows' lines, sessions, prefixes and rows of spheres in any order are read."""
    text = "\ufeffparticipant_id\tsession_id\tlabel\tx\ty\tz\r\n01\tses-1\ta\t3\t2\t1\r\nsub-01\t1\ta\t0\t2\t1\r\n"
    path = tmp_path / "seeds.tsv"
    path.write_text(text, encoding="utf-8", newline="")
    (seed,) = read_coordinates(path)
    assert (seed.participant, seed.session, seed.label) == ("01", "1", "a")
    assert seed.spheres == ((0, 2, 1, 6), (3, 2, 1, 6))


def test_a_column_of_another_name(tmp_path: Path) -> None:
    """A table without participant_id is refused, with the near miss."""
    path = tmp_path / "seeds.tsv"
    path.write_text("participant\tlabel\tx\ty\tz\n01\ta\t1\t2\t3\n")
    with pytest.raises(BadTable, match="did you mean participant"):
        read_coordinates(path)


def test_another_template_s_coordinates_need_a_transform(connectome: Path, tmp_path: Path) -> None:
    """A space to which no transform is known fails with the same sentence as a mask's."""
    path = write_bids(tmp_path, HEADER + ROWS)
    options = ["--coordinates", path, "--coordinates-space", "Talairach"]
    result = map_lesions(tmp_path / "bids", tmp_path / "out", connectome, *options)
    assert result.returncode == 1
    assert "Talairach" in read_table(tmp_path / "out")[0]["reason"]


def test_positions_in_centimetres_are_warned_about(connectome: Path, tmp_path: Path) -> None:
    """Positions that all lie near the origin may have another unit; null lesions of seeds are refused."""
    path = write_bids(tmp_path, HEADER + ROWS)
    options = ["--coordinates", path, "--null-lesions", "100"]
    result = map_lesions(tmp_path / "bids", tmp_path / "out", connectome, "--coordinates", path, "--dry-run")
    assert "as if they were in centimetres" in result.stderr
    result = map_lesions(tmp_path / "bids", tmp_path / "out", connectome, *options)
    assert result.returncode == 64
    assert "--null-lesions" in last_line(result.stderr)
