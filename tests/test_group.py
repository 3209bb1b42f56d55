"""What a group's maps have in common, against NumPy and SciPy on maps whose numbers are known."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import pytest
import synthetic
from scipy.cluster.hierarchy import leaves_list, linkage

from bids_lacuna.bids import LesionMask
from bids_lacuna.grid import Grid
from bids_lacuna.group.cohort import Group, GroupLesion, Origin, UnfitLesions
from bids_lacuna.group.summary import GroupSummary, cluster, correlate_maps, find_outliers, side, summarize_group
from bids_lacuna.weights import LesionWeights

Array = np.ndarray

NAMES = (
    "sub-01_label-lesion",
    "sub-02_ses-a_label-lesion",
    "sub-02_ses-b_label-L",
    "sub-04_desc-x",
    "sub-07_label-L",
)
"""Of lesions 0, 2 and 4 the maps are alike, and so are those of 1 and 3."""

BOXES = (
    synthetic.box((3, 2, 3)),
    synthetic.box((0, 3, 5), (2, 3, 2)),
    synthetic.box((3, 2, 4), (1, 2, 3)),
    synthetic.box((1, 0, 0), (3, 2, 2)),
    synthetic.box((2, 4, 8), (1, 1, 1)),
)
SIDES = ("left", "right", "left", "both", "both")
"""Stored from right to left: x is 8, 4, 0, -4, -8 mm."""


def make_maps() -> list[dict[str, Array]]:
    """Make r, z and t of each lesion, with voxels that are undefined in all, in one, or in t alone."""
    rng = np.random.default_rng(5)
    patterns = rng.standard_normal((2, *synthetic.SHAPE))
    maps = []
    for number in range(len(NAMES)):
        z = 0.2 * (patterns[number % 2] + 0.3 * rng.standard_normal(synthetic.SHAPE))
        z[0, 0, :3] = np.nan
        z[4, number, 10] = np.nan
        t = 11 * z
        t[2, 6, number] = np.nan
        maps.append({"r": np.tanh(z), "z": z, "t": t})
    return [{stat: values.astype(np.float32) for stat, values in lesion.items()} for lesion in maps]


def write_group(root: Path, maps: list[dict[str, Array]], **changes: object) -> Group:
    """Write masks and maps, and say that all of them make up a group."""
    lesions = []
    for name, voxels, values in zip(NAMES, BOXES, maps, strict=True):
        entities = dict(pair.split("-") for pair in name.split("_"))
        path = root / "bids" / f"sub-{entities['sub']}" / "anat" / f"{name}_mask.nii.gz"
        synthetic.write_mask(path, voxels)
        written = synthetic.write_lesion_maps(root / "out", path, values)
        relative = {
            stat: PurePosixPath(file.relative_to(root / "out")) for stat, file in zip("rzt", written, strict=True)
        }
        sidecar = json.loads(Path(str(written[0]).replace(".nii.gz", ".json")).read_text())
        mask = LesionMask(path, entities, synthetic.SPACE, "source", root / "bids")
        lesions.append(GroupLesion(name, mask, relative, sidecar))
    origin = {
        "connectome_name": "GSP",
        "connectome_hash": "GSPhash",
        "space": synthetic.SPACE,
        "weighting": "volume",
        "shape": synthetic.SHAPE,
        "affine": tuple(synthetic.RADIOLOGICAL.ravel().tolist()),
        "thresholds": (1.0, 2.5),
    }
    return Group(Origin(**origin | changes), tuple(lesions), (), ())


@pytest.fixture(scope="module")
def maps() -> list[dict[str, Array]]:
    """Give the numbers that the maps have."""
    return make_maps()


@pytest.fixture(scope="module")
def summarized(tmp_path_factory: pytest.TempPathFactory, maps: list[dict[str, Array]]) -> tuple[Path, GroupSummary]:
    """Describe the group once: the output's root, and what was returned."""
    root = tmp_path_factory.mktemp("group")
    return root / "out", summarize_group(write_group(root, maps), root / "out", {"source": "masks"})


def read(summary: GroupSummary, key: str) -> Array:
    """Read a map of the group."""
    image = nib.load(summary.maps[key])
    np.testing.assert_allclose(image.affine, synthetic.RADIOLOGICAL)
    assert image.header["sform_code"] == 4
    return image.get_fdata()


def rows(summary: GroupSummary) -> list[dict[str, str]]:
    """Read the table."""
    header, *lines = [line.split("\t") for line in summary.table.read_text().splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_lesion_overlap_counts_lesions(summarized: tuple[Path, GroupSummary]) -> None:
    """On the connectome's own grid, a voxel's n is the number of masks that are 1 there."""
    expected = np.sum(BOXES, axis=0, dtype=int)
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_allclose(read(summarized[1], "lesions_n"), expected, atol=1e-6)
    np.testing.assert_allclose(read(summarized[1], "lesions_share"), expected / 5, atol=1e-6)


@pytest.mark.parametrize("stat", ["r", "z"])
def test_means_are_over_the_lesions_where_defined(
    summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]], stat: str
) -> None:
    """Means leave undefined voxels out, NaN where none is defined, and n tells how many there are."""
    stack = np.stack([lesion[stat] for lesion in maps]).astype(float)
    n = np.isfinite(stack).sum(axis=0)
    expected = np.where(n > 0, np.nansum(stack, axis=0) / np.maximum(n, 1), np.nan)
    assert set(np.unique(n)) == {0, 4, 5}
    np.testing.assert_allclose(read(summarized[1], f"mean_{stat}"), expected, atol=1e-7)
    np.testing.assert_array_equal(read(summarized[1], "mean_n"), n)


@pytest.mark.parametrize(("threshold", "label"), [(1, "1"), (2.5, "2p5")])
def test_network_overlap_is_a_share_of_defined_t(
    summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]], threshold: float, label: str
) -> None:
    """Shares of lesions above and below a threshold are of those lesions whose t is defined at the voxel."""
    stack = np.stack([lesion["t"] for lesion in maps])
    n = np.isfinite(stack).sum(axis=0)
    np.testing.assert_array_equal(read(summarized[1], "network_n"), n)
    for word, beyond in {"above": stack > threshold, "below": stack < -threshold}.items():
        count = beyond.sum(axis=0)
        assert len(np.unique(count[n == 4])) > 1
        expected = np.where(n > 0, count / np.maximum(n, 1), np.nan)
        np.testing.assert_allclose(read(summarized[1], f"networkT{label}{word}_share"), expected, atol=1e-7)


def common_vectors(maps: list[dict[str, Array]]) -> Array:
    """Take the voxels that all r-maps have."""
    stack = np.stack([lesion["r"] for lesion in maps]).astype(float)
    return stack[:, np.isfinite(stack).all(axis=0)]


def test_similarity_is_the_spatial_correlation(
    summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]]
) -> None:
    """The matrix is NumPy's of the voxels that all maps have, with the lesions' names at its edges."""
    vectors = common_vectors(maps)
    assert vectors.shape[1] == 385 - 3 - 5
    header, *lines = [line.split("\t") for line in summarized[1].similarity.read_text().splitlines()]
    assert header == ["lesion", *NAMES]
    assert [line[0] for line in lines] == list(NAMES)
    found = np.array([line[1:] for line in lines], float)
    np.testing.assert_allclose(found, np.corrcoef(vectors), atol=2e-6)
    sidecar = json.loads(summarized[1].similarity.with_suffix(".json").read_text())
    assert sidecar["NumberOfVoxels"] == vectors.shape[1]


def test_blocks_change_nothing(summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]]) -> None:
    """Blocks of one, two, three or all lesions give the same correlations."""
    paths = [next(summarized[0].rglob(f"{name}_stat-r*.nii.gz")) for name in NAMES]
    vectors = common_vectors(maps)
    common = np.isfinite(np.stack([lesion["r"] for lesion in maps])).all(axis=0)
    for n in (1, 2, 3, 5, 99):
        similarity, with_mean = correlate_maps(paths, common, block_bytes=n * 4 * vectors.shape[1])
        np.testing.assert_allclose(similarity, np.corrcoef(vectors), atol=1e-6)
        np.testing.assert_array_equal(similarity, similarity.T)
        expected = [np.corrcoef(vector, vectors.mean(axis=0))[0, 1] for vector in vectors]
        np.testing.assert_allclose(with_mean, expected, atol=1e-6)


def test_the_table_describes_each_lesion(summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]]) -> None:
    """A row has a lesion's entities, volume, coverage, side, and the farthest values from 0 where they are in mm."""
    table = rows(summarized[1])
    assert [row["lesion"] for row in table] == list(NAMES)
    assert [row["participant_id"] for row in table] == ["sub-01", "sub-02", "sub-02", "sub-04", "sub-07"]
    assert [row["session_id"] for row in table] == ["n/a", "ses-a", "ses-b", "n/a", "n/a"]
    assert [row["label"] for row in table] == ["lesion", "lesion", "L", "n/a", "L"]
    assert [float(row["volume"]) for row in table] == [box.sum() for box in BOXES]
    assert {(row["coverage"], row["n_connectome_subjects"]) for row in table} == {("0.75", "5")}
    assert [row["side"] for row in table] == list(SIDES)
    vectors = common_vectors(maps)
    signs = set()
    for number, (row, lesion) in enumerate(zip(table, maps, strict=True)):
        for stat in "rt":
            values = lesion[stat]
            (voxel,) = np.argwhere(np.abs(values) == np.nanmax(np.abs(values)))
            assert float(row[f"peak_{stat}"]) == pytest.approx(values[tuple(voxel)], rel=1e-5)
            expected = synthetic.RADIOLOGICAL[:3, :3] @ voxel + synthetic.RADIOLOGICAL[:3, 3]
            assert [float(row[f"peak_{stat}_{axis}"]) for axis in "xyz"] == expected.tolist()
            signs.add(values[tuple(voxel)] > 0)
        expected_r = np.corrcoef(vectors[number], vectors.mean(axis=0))[0, 1]
        assert float(row["r_with_group_mean"]) == pytest.approx(expected_r, abs=1e-5)
    assert signs == {True, False}


def test_similar_lesions_are_neighbours(summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]]) -> None:
    """The clustering puts the maps of each pattern side by side, in SciPy's order of the vectors themselves."""
    order = [NAMES.index(name) for name in summarized[1].order]
    assert {frozenset(order[:2]), frozenset(order[:3])} & {frozenset({1, 3}), frozenset({0, 2, 4})}
    assert order == leaves_list(linkage(common_vectors(maps), "average", metric="correlation")).tolist()
    positions = [int(row["cluster_position"]) for row in rows(summarized[1])]
    assert [positions.index(place) for place in range(1, 6)] == order
    assert cluster(np.ones((1, 1))).tolist() == [0]


@pytest.mark.parametrize(
    ("fisher_z", "outliers"),
    [
        # Quartiles 1.025 and 1.275: the fence is at 1.025 - 1.5 x 0.25 = 0.65.
        ([1, 1.1, 0.64, 1.2, 1.3, 1.4], [2]),
        ([1, 1.1, 0.66, 1.2, 1.3, 1.4], []),
        ([1, 1.1, 1.2, 1.3, 1.4, 3], []),
        ([0.1, 0.2, 0.1, 1.4, 1.5, 1.4], []),
        ([0.1, 1.4], []),
        ([0.1, 1.3, 1.4], []),
        ([0.7], []),
        ([7.0, 7.0], []),
    ],
)
def test_outliers_are_below_the_lower_fence(fisher_z: list[float], outliers: list[int]) -> None:
    """A lesion is an outlier when it resembles the mean much less than most; two clusters, or three, have none."""
    assert np.flatnonzero(find_outliers(np.tanh(fisher_z))).tolist() == outliers


@pytest.mark.parametrize(
    ("x", "shares", "where"),
    [
        ([0, 1], [1, 1], "right"),
        ([3, 4], [1, 1], "left"),
        ([2, 3], [1, 0.1], "left"),
        ([2], [1], "both"),
        ([1, 3], [0.05, 0.96], "left"),
        ([1, 3], [0.06, 0.94], "both"),
        ([1, 3], [1, 1], "both"),
    ],
)
def test_sides_are_those_of_the_world(x: list[int], shares: list[float], where: str) -> None:
    """A lesion is left where x is negative, whatever the storage order; the midline counts for neither side."""
    grid = Grid(np.ones(synthetic.SHAPE, bool), synthetic.RADIOLOGICAL)
    voxels = np.ravel_multi_index((x, [1] * len(x), [2] * len(x)), synthetic.SHAPE)
    assert side(LesionWeights(voxels, np.array(shares, np.float32)), grid) == where


def test_every_file_is_stamped_and_leads_to_its_sources(summarized: tuple[Path, GroupSummary]) -> None:
    """Each file at the root has a sidecar that says descriptive, and whose sources are the lesions' files."""
    out, summary = summarized
    written = {path for path in out.iterdir() if path.is_file() and path.name != "dataset_description.json"}
    sidecars = {path for path in written if path.suffix == ".json"}
    files = {*summary.maps.values(), summary.table, summary.similarity}
    assert written - sidecars == files
    assert {path.name.partition(".")[0] for path in files} == {path.stem for path in sidecars}
    for path in sidecars:
        sidecar = json.loads(path.read_text())
        assert sidecar["Descriptive"] is True
        assert "inference" in sidecar["Interpretation"]
        assert sidecar["NumberOfLesions"] == 5
        assert sidecar["ConnectomeHash"] == "GSPhash"
        roots = {"bids::": out, "bids:masks:": out.parent / "bids"}
        for uri in sidecar["Sources"]:
            prefix = uri[: uri.rindex(":") + 1]
            assert (roots[prefix] / uri.removeprefix(prefix)).is_file()
            assert ("lesions_statmap" in path.name) == (prefix == "bids:masks:")
    below = json.loads(summary.maps["networkT2p5below_share"].with_suffix("").with_suffix(".json").read_text())
    assert below["Threshold"] == -2.5


def test_the_dictionary_has_all_that_a_page_needs(summarized: tuple[Path, GroupSummary]) -> None:
    """group_lesions.json describes each column, and names the group's files, order and outliers."""
    out, summary = summarized
    dictionary = json.loads((out / "group_lesions.json").read_text())
    assert all(dictionary[column]["Description"] for column in rows(summary)[0])
    assert {key: out / name for key, name in dictionary["Maps"].items()} == summary.maps
    assert out / dictionary["SimilarityMatrix"] == summary.similarity
    assert tuple(dictionary["ClusteringOrder"]) == summary.order
    assert tuple(dictionary["Outliers"]) == summary.outliers
    assert "Tukey" in dictionary["OutlierRule"]
    assert tuple(dictionary["Warnings"]) == summary.warnings
    assert any("sub-02" in warning for warning in summary.warnings)


def test_finer_masks_keep_their_volume(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """A mask of half the voxel size counts by the share that it covers, or from a half on where the maps did so."""
    fine = synthetic.RADIOLOGICAL @ nib.affines.from_matvec(np.eye(3) / 2, [-0.25] * 3)
    group = write_group(tmp_path, maps)
    voxels = np.zeros((10, 14, 22), np.uint8)
    # One voxel of the grid as a whole, and one of the 8 pieces of the next.
    voxels[2:4, 4:6, 6:8] = 1
    voxels[4, 4, 6] = 1
    synthetic.write_mask(group.lesions[4].mask.path, voxels, fine)
    summary = summarize_group(group, tmp_path / "out", {"source": "masks"})
    expected = np.sum(BOXES[:4], axis=0, dtype=float)
    expected[1, 2, 3] += 1
    expected[2, 2, 3] += 1 / 8
    np.testing.assert_allclose(read(summary, "lesions_n"), expected, atol=1e-6)
    binary = write_group(tmp_path, maps, weighting="binary")
    synthetic.write_mask(group.lesions[4].mask.path, voxels, fine)
    expected[2, 2, 3] -= 1 / 8
    found = read(summarize_group(binary, tmp_path / "out", {"source": "masks"}), "lesions_n")
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("stat", ["r", "t", "mask"])
def test_a_damaged_file_concerns_its_lesion_alone(tmp_path: Path, maps: list[dict[str, Array]], stat: str) -> None:
    """A cut-off map or mask is named and refused, and nothing written; or left out, as if it had never been there."""
    group = write_group(tmp_path, maps)
    bad = group.lesions[2]
    path = bad.mask.path if stat == "mask" else tmp_path / "out" / bad.maps[stat]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UnfitLesions, match=rf"(?s)1 of 5 lesions.*{bad.name}: missing.*--ignore missing"):
        summarize_group(group, tmp_path / "out", {"source": "masks"})
    assert not list((tmp_path / "out").glob("*group*"))
    summary = summarize_group(group, tmp_path / "out", {"source": "masks"}, ignored=("missing",))
    others = [lesion["r"] for number, lesion in enumerate(maps) if number != 2]
    n = np.isfinite(others).sum(axis=0)
    np.testing.assert_array_equal(read(summary, "mean_n"), n)
    np.testing.assert_allclose(
        read(summary, "mean_r")[n > 0], np.nanmean(np.stack(others)[:, n > 0], axis=0), atol=1e-6
    )
    np.testing.assert_allclose(read(summary, "lesions_n").sum(), sum(box.sum() for box in BOXES) - BOXES[2].sum())
    assert [lesion.name for lesion in summary.left_out] == [bad.name]
    assert json.loads((tmp_path / "out" / "group_lesions.json").read_text())["LeftOut"][0]["Lesion"] == bad.name


def test_maps_on_another_grid_are_refused(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """A t-map of another shape, or somewhere else, is refused even if its r-map is right."""
    group = write_group(tmp_path, maps)
    path = tmp_path / "out" / group.lesions[1].maps["t"]
    for values, affine in ((maps[1]["t"][1:], synthetic.RADIOLOGICAL), (maps[1]["t"], synthetic.OBLIQUE)):
        nib.save(nib.Nifti1Image(values, affine), path)
        with pytest.raises(UnfitLesions, match="another grid"):
            summarize_group(group, tmp_path / "out", {"source": "masks"})


def test_maps_without_voxels_in_common_are_refused(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """Where no voxel, or only one, is defined in all maps, there is no correlation, and that is said."""
    group = write_group(tmp_path, maps)
    half = np.arange(385).reshape(synthetic.SHAPE) < 200
    for number, defined in ((0, half), (1, ~half)):
        values = np.where(defined, maps[number]["r"], np.nan)
        nib.save(nib.Nifti1Image(values, synthetic.RADIOLOGICAL), tmp_path / "out" / group.lesions[number].maps["r"])
    with pytest.raises(UnfitLesions, match="0 voxels in common"):
        summarize_group(group, tmp_path / "out", {"source": "masks"})


def test_a_new_group_replaces_the_earlier_one(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """Of another threshold's group in the same connectome nothing stays; one in another connectome does."""
    other = write_group(tmp_path, maps, connectome_name="HCP")
    kept = summarize_group(other, tmp_path / "out", {"source": "masks"})
    earlier = summarize_group(write_group(tmp_path, maps), tmp_path / "out", {"source": "masks"})
    lesions = sorted((tmp_path / "out").glob("sub-*/**/*.nii.gz"))
    later = summarize_group(write_group(tmp_path, maps, thresholds=(3.0,)), tmp_path / "out", {"source": "masks"})
    gone = {path for key, path in earlier.maps.items() if "T1" in key or "T2p5" in key}
    assert len(gone) == 4
    assert not any(path.exists() or Path(str(path).replace(".nii.gz", ".json")).exists() for path in gone)
    assert all(path.exists() for path in (*later.maps.values(), *kept.maps.values(), *lesions))


def test_memory_does_not_grow_with_the_group(tmp_path: Path) -> None:
    """Four more lesions take no half of a map more, with blocks of two maps, past which all later ones go."""
    shape = (20, 30, 25)
    path = tmp_path / "map.nii"
    values = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    peaks = []
    # The first correlation of all is not counted: what it imports stays.
    for n in (2, 18, 22):
        tracemalloc.start()
        correlate_maps([path] * n, np.ones(shape, bool), block_bytes=2 * values.nbytes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 2 * values.nbytes < peaks[1]
    assert peaks[2] - peaks[1] < values.nbytes / 2
