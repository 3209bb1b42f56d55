"""The description of a group, compared with NumPy and SciPy on maps with known values."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import synthetic
from grouped import BOXES, NAMES, SIDES, common_vectors, make_maps, read, rows, write_group
from scipy.cluster.hierarchy import leaves_list, linkage
from threadpoolctl import threadpool_info

from bids_lacuna.grid import Grid
from bids_lacuna.group import summary as summary_module
from bids_lacuna.group.cohort import GroupLesion, UnfitLesions
from bids_lacuna.group.summary import list_warnings, read_lesion_map, summarize_group
from bids_lacuna.group.sums import correlate_maps
from bids_lacuna.group.writer import GroupSummary
from bids_lacuna.kernels import single_threaded_blas

Array = np.ndarray


@pytest.fixture(scope="module")
def maps() -> list[dict[str, Array]]:
    """Return the values of the maps."""
    return make_maps()


@pytest.fixture(scope="module")
def summarized(tmp_path_factory: pytest.TempPathFactory, maps: list[dict[str, Array]]) -> tuple[Path, GroupSummary]:
    """Describe the group once: the root of the output, and the summary."""
    root = tmp_path_factory.mktemp("group")
    return root / "out", summarize_group(write_group(root, maps), root / "out", {"source": "masks"})


def test_lesion_overlap_counts_lesions(summarized: tuple[Path, GroupSummary]) -> None:
    """On the connectome's own grid, n of a voxel is the number of masks that are 1 there."""
    expected = np.sum(BOXES, axis=0, dtype=int)
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_allclose(read(summarized[1], "lesions_n"), expected, atol=1e-6)
    np.testing.assert_allclose(read(summarized[1], "lesions_share"), expected / 5, atol=1e-6)


@pytest.mark.parametrize("stat", ["r", "z"])
def test_means_are_over_the_lesions_where_defined(
    summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]], stat: str
) -> None:
    """Means leave out undefined voxels and are NaN where all are undefined; n is the number of defined maps."""
    stack = np.stack([lesion[stat] for lesion in maps]).astype(float)
    n = np.isfinite(stack).sum(axis=0)
    expected = np.where(n > 0, np.nansum(stack, axis=0) / np.maximum(n, 1), np.nan)
    assert set(np.unique(n)) == {0, 4, 5}
    np.testing.assert_allclose(read(summarized[1], f"mean_{stat}"), expected, atol=1e-7)
    np.testing.assert_array_equal(read(summarized[1], "mean_n"), n)


@pytest.mark.parametrize(("threshold", "label"), [(1, "1"), (2.5, "2p5")])
def test_network_overlap_is_a_fraction_of_defined_t(
    summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]], threshold: float, label: str
) -> None:
    """Fractions of lesions above and below a threshold refer to the lesions whose t is defined in the voxel."""
    stack = np.stack([lesion["t"] for lesion in maps])
    n = np.isfinite(stack).sum(axis=0)
    np.testing.assert_array_equal(read(summarized[1], "network_n"), n)
    for word, beyond in {"above": stack > threshold, "below": stack < -threshold}.items():
        count = beyond.sum(axis=0)
        assert len(np.unique(count[n == 4])) > 1
        expected = np.where(n > 0, count / np.maximum(n, 1), np.nan)
        np.testing.assert_allclose(read(summarized[1], f"networkT{label}{word}_share"), expected, atol=1e-7)


def test_similarity_is_the_spatial_correlation(
    summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]]
) -> None:
    """The matrix equals NumPy's over the common voxels, with the lesions' names as header and first column."""
    vectors = common_vectors(maps)
    assert vectors.shape[1] == 385 - 3 - 5
    header, *lines = [line.split("\t") for line in summarized[1].similarity.read_text().splitlines()]
    assert header == ["lesion", *NAMES]
    assert [line[0] for line in lines] == list(NAMES)
    found = np.array([line[1:] for line in lines], float)
    np.testing.assert_allclose(found, np.corrcoef(vectors), atol=2e-6)
    sidecar = json.loads(summarized[1].similarity.with_suffix(".json").read_text())
    assert sidecar["NumberOfVoxels"] == vectors.shape[1]


def test_the_table_describes_each_lesion(summarized: tuple[Path, GroupSummary], maps: list[dict[str, Array]]) -> None:
    """A row has a lesion's entities, volume, coverage and side, and the extreme values with their positions in mm."""
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
    """The clustering groups the maps of each pattern, in SciPy's order of the vectors themselves."""
    order = [NAMES.index(name) for name in summarized[1].order]
    assert {frozenset(order[:2]), frozenset(order[:3])} & {frozenset({1, 3}), frozenset({0, 2, 4})}
    assert order == leaves_list(linkage(common_vectors(maps), "average", metric="correlation")).tolist()
    positions = [int(row["cluster_position"]) for row in rows(summarized[1])]
    assert [positions.index(place) for place in range(1, 6)] == order


def test_a_group_keeps_the_threads_of_blas_for_others(
    tmp_path: Path, maps: list[dict[str, Array]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of another thread that begins meanwhile has its single-threaded BLAS to its end, and no longer."""
    begun, over = threading.Event(), threading.Event()

    def limit() -> None:
        with single_threaded_blas():
            begun.set()
            over.wait(60)

    def correlate(*arguments: Any) -> tuple[Array, Array]:
        other.start()
        assert begun.wait(60)
        return correlate_maps(*arguments)

    def blas_threads() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before, other = blas_threads(), threading.Thread(target=limit)
    monkeypatch.setattr(summary_module, "correlate_maps", correlate)
    summarize_group(write_group(tmp_path, maps), tmp_path / "out", {"source": "masks"})
    assert set(blas_threads()) == {1}
    over.set()
    other.join()
    assert blas_threads() == before


def test_finer_masks_keep_their_volume(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """A finer mask counts by the fraction covered, or from one half on if the maps were made with binary weights."""
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
    """A truncated map or mask is named and refused, and nothing is written; if ignored, it has no effect at all."""
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
    """A t-map of another shape or position is refused even if its r-map is correct."""
    group = write_group(tmp_path, maps)
    path = tmp_path / "out" / group.lesions[1].maps["t"]
    for values, affine in ((maps[1]["t"][1:], synthetic.RADIOLOGICAL), (maps[1]["t"], synthetic.OBLIQUE)):
        nib.save(nib.Nifti1Image(values, affine), path)
        with pytest.raises(UnfitLesions, match="another grid"):
            summarize_group(group, tmp_path / "out", {"source": "masks"})


def test_maps_without_voxels_in_common_are_refused(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """Without voxels that are defined in all maps there is no correlation, and the error says so."""
    group = write_group(tmp_path, maps)
    half = np.arange(385).reshape(synthetic.SHAPE) < 200
    for number, defined in ((0, half), (1, ~half)):
        values = np.where(defined, maps[number]["r"], np.nan)
        nib.save(nib.Nifti1Image(values, synthetic.RADIOLOGICAL), tmp_path / "out" / group.lesions[number].maps["r"])
    with pytest.raises(UnfitLesions, match="0 voxels in common"):
        summarize_group(group, tmp_path / "out", {"source": "masks"})


def test_an_outlier_is_marked(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """The table says yes for the outliers of the summary and no for the others."""
    common = np.isfinite([lesion["r"] for lesion in maps]).all(axis=0)
    noise = np.random.default_rng(7).standard_normal((5, *synthetic.SHAPE))
    alike = [{**lesion, "r": maps[0]["r"] + np.float32(0.01) * noise[0]} for lesion in maps]
    alike[3]["r"] = np.where(common, 0.1 * noise[3], np.nan)
    alike = [{**lesion, "r": lesion["r"].astype(np.float32)} for lesion in alike]
    summary = summarize_group(write_group(tmp_path, alike), tmp_path / "out", {"source": "masks"})
    assert summary.outliers == (NAMES[3],)
    assert [row["outlier"] for row in rows(summary)] == ["no", "no", "no", "yes", "no"]


def change_sidecar(lesion: GroupLesion, **changes: object) -> GroupLesion:
    """Return a lesion with another sidecar."""
    return replace(lesion, sidecar={**lesion.sidecar, **changes})


ALL = np.ones(20, bool)


def test_coverage_below_a_half_is_a_warning(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """Lesions of which less than half is covered are listed; exactly half is enough."""
    group = write_group(tmp_path, maps)
    lesions = [
        change_sidecar(lesion, LesionCoverage=coverage)
        for lesion, coverage in zip(group.lesions, (0.5, np.nextafter(0.5, 0), 0.75, 0, 1), strict=True)
    ]
    (warning,) = list_warnings(group, [lesions[0], lesions[1], lesions[3]], ALL, ALL)
    assert warning.endswith(f": {NAMES[1]}, {NAMES[3]}")


def test_several_lesions_of_a_participant_are_a_warning(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """Participants with more than one lesion are listed, the others are not."""
    group = write_group(tmp_path, maps)
    (warning,) = list_warnings(group, group.lesions, ALL, ALL)
    assert warning.startswith("participants with several lesions")
    assert warning.endswith(": sub-02")


def test_thresholds_of_some_lesions_are_a_warning(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """The overlaps that are not made since some lesions lack the mask are named, with the option that adds them."""
    group = replace(write_group(tmp_path, maps), other_thresholds=(5.0, 7.5))
    (warning,) = list_warnings(group, group.lesions[:2], ALL, ALL)
    assert "masks for |t| > 5, 7.5, others do not: --t-threshold adds the overlaps" in warning


def test_few_voxels_in_common_are_a_warning(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """Fewer than 90 % of the voxels of any map in all maps give a warning with both numbers; exactly 90 % do not."""
    group = write_group(tmp_path, maps)
    lesions = group.lesions[:2]
    assert list_warnings(group, lesions, np.arange(20) < 18, ALL) == ()
    (warning,) = list_warnings(group, lesions, np.arange(20) < 17, ALL)
    assert "17 voxels, of 20 that any map has" in warning


def test_a_large_lesion_is_compared_with_the_brain(
    tmp_path: Path, maps: list[dict[str, Array]], caplog: pytest.LogCaptureFixture
) -> None:
    """The warning has the fraction of the brain mask, as at the participant level, not of the maps' whole volume."""
    number = np.arange(385).reshape(synthetic.SHAPE)
    within = [
        {stat: np.where(number < 200, values, np.nan).astype(np.float32) for stat, values in lesion.items()}
        for lesion in maps
    ]
    group = write_group(tmp_path, within)
    synthetic.write_mask(group.lesions[0].mask.path, (number < 125) | (number >= 380))
    summarize_group(group, tmp_path / "out", {"source": "masks"})
    large = [message for message in caplog.messages if "brain mask" in message]
    assert len(large) == 1
    # Three of the voxels are undefined in all maps: 122 of 197.
    assert "covers 61.9 % of the connectome's brain mask" in large[0]


def test_voxels_of_one_map_count_as_defined(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """The voxels of any map include those that are defined in a single map."""
    half = np.arange(385).reshape(synthetic.SHAPE) < 200
    changed = [{**lesion, "r": np.where(half, lesion["r"], np.nan).astype(np.float32)} for lesion in maps]
    group = write_group(tmp_path, [maps[0], *changed[1:]])
    summary = summarize_group(group, tmp_path / "out", {"source": "masks"})
    stack = np.isfinite(np.stack([maps[0]["r"], *(lesion["r"] for lesion in changed[1:])]))
    n_common, n_any = stack.all(axis=0).sum(), stack.any(axis=0).sum()
    assert (stack.sum(axis=0) == 1).any()
    assert any(f"{n_common} voxels, of {n_any} that any map has" in warning for warning in summary.warnings)


def test_several_versions_are_a_warning(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """Maps from several versions of the program give a warning that lists them, maps from one do not."""
    group = write_group(tmp_path, maps)
    older = change_sidecar(group.lesions[0], SoftwareVersion="0.9")
    assert list_warnings(group, group.lesions[:1], ALL, ALL) == ()
    (warning,) = list_warnings(group, [older, group.lesions[1]], ALL, ALL)
    assert warning.endswith(": 0.9, 1")


def test_lesions_that_were_not_requested_are_a_warning(
    tmp_path: Path, maps: list[dict[str, Array]], caplog: pytest.LogCaptureFixture
) -> None:
    """Maps whose masks were not requested are counted, in the summary and in the log."""
    group = replace(write_group(tmp_path, maps), not_asked=(PurePosixPath("sub-9_a"), PurePosixPath("sub-9_b")))
    (warning,) = list_warnings(group, group.lesions[:1], ALL, ALL)
    assert warning.startswith("2 lesions with maps, such as sub-9_a, are not in the group")
    assert warning in summarize_group(group, tmp_path / "out", {"source": "masks"}).warnings
    assert warning in caplog.messages


def test_a_lesion_without_a_volume_adds_nothing(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """A lesion whose sidecar has no number for its volume is left out of all sums."""
    group = write_group(tmp_path, maps)
    damaged = change_sidecar(group.lesions[1], LesionVolume="n/a")
    group = replace(group, lesions=(group.lesions[0], damaged, *group.lesions[2:]))
    summary = summarize_group(group, tmp_path / "out", {"source": "masks"}, ignored=("missing",))
    assert [lesion.name for lesion in summary.left_out] == [NAMES[1]]
    n = np.isfinite([lesion["r"] for number, lesion in enumerate(maps) if number != 1]).sum(axis=0)
    np.testing.assert_array_equal(read(summary, "mean_n"), n)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_map_is_refused(tmp_path: Path, axis: int) -> None:
    """A map shifted by 0.01 mm lies on another grid; the rounding of an affine does not matter."""
    grid = Grid(np.ones(synthetic.SHAPE, bool), synthetic.RADIOLOGICAL)
    values = np.ones(synthetic.SHAPE, np.float32)
    for shift, fits in ((1e-4, True), (0.01, False)):
        affine = synthetic.RADIOLOGICAL.copy()
        affine[axis, 3] += shift
        nib.save(nib.Nifti1Image(values, affine), tmp_path / "map.nii")
        if fits:
            np.testing.assert_array_equal(read_lesion_map(tmp_path / "map.nii", grid), values)
        else:
            with pytest.raises(ValueError, match="another grid"):
                read_lesion_map(tmp_path / "map.nii", grid)


def test_a_constant_r_map_is_refused(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """An r-map with one value in all voxels, or with none, cannot be correlated and is refused."""
    group = write_group(tmp_path, maps)
    for value in (0.5, np.nan):
        values = np.full(synthetic.SHAPE, value, np.float32)
        nib.save(nib.Nifti1Image(values, synthetic.RADIOLOGICAL), tmp_path / "out" / group.lesions[1].maps["r"])
        with pytest.raises(UnfitLesions, match=rf"1 of 5 lesions.*\n.*{NAMES[1]}: missing: .* does not vary"):
            summarize_group(group, tmp_path / "out", {"source": "masks"})
