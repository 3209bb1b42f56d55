"""Functional lesion network mapping from files to maps, held against the definition in `reference`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from synthetic import (
    RADIOLOGICAL,
    box,
    make_mask,
    make_series,
    map_in_one_pass,
    write_connectome,
    write_connectome_folder,
    write_mask,
)

from bids_lacuna import reference
from bids_lacuna.connectome.connectome import Connectome
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping.functional import FunctionalNetworkMapping
from bids_lacuna.mapping.maps import NetworkMaps
from bids_lacuna.mapping.moments import RunningMoments
from bids_lacuna.provenance import MappingOptions

Array = np.ndarray

MASK = make_mask()
MASK[1, 4, 8] = MASK[3, 4, 8] = True
N_VOXELS = np.count_nonzero(MASK)

Z_LIMIT = np.arctanh(1 - 1e-6)

FINE_RAS = np.array([[2.0, 0, 0, -11], [0, 2, 0, -13], [0, 0, 2, -21], [0, 0, 0, 1]])
"""2 mm, stored from left to right; two of its voxels lie side by side in each 4 mm of RADIOLOGICAL."""

LESIONS = (
    box((0, 1, 2)),
    box((1, 2, 3), (3, 2, 4)),
    box((3, 0, 7), (2, 3, 1)),
    box((0, 0, 0), synthetic.SHAPE),
    box((4, 5, 9), (1, 1, 2)),
)
"""Of several sizes, some overlapping, one everywhere."""


def voxel_number(*voxel: int) -> int:
    """Count the mask's voxels before this one, in C order."""
    return int(np.count_nonzero(MASK.ravel()[: np.ravel_multi_index(voxel, MASK.shape)]))


def map_masks(
    analysis: FunctionalNetworkMapping, masks: Sequence[Array], affine: Array = RADIOLOGICAL, n_threads: int = 2
) -> list[NetworkMaps]:
    """Map lesions in one batch."""
    images = [nib.Nifti1Image(mask.astype(np.uint8), affine) for mask in masks]
    lesions = [analysis.load(LesionData.from_nifti(image)) for image in images]
    return [lesion.results[analysis.name] for lesion in map_in_one_pass(analysis, lesions, n_threads)]


def by_reference(
    analysis: FunctionalNetworkMapping, masks: Sequence[Array], series: Sequence[Array], affine: Array = RADIOLOGICAL
) -> dict[str, Array]:
    """Map lesions by the definition, with the weights that the analysis gives them."""
    weights = np.zeros((len(masks), N_VOXELS))
    for row, mask in zip(weights, masks, strict=True):
        loaded = analysis.load(LesionData.from_nifti(nib.Nifti1Image(mask.astype(np.uint8), affine)))
        row[loaded.weights.voxels] = loaded.weights.weights
    return reference.map_lesions(weights, series)


def data(image: nib.Nifti1Image) -> Array:
    """Take the mask's voxels out of a map."""
    return np.asarray(image.dataobj)[MASK]


def assert_maps_are(maps: NetworkMaps, r: Array, t: Array) -> None:
    """Compare with 1e-6 in r and 1e-4 in t, relative where |t| is above 1; NaN where NaN is expected."""
    np.testing.assert_allclose(data(maps["correlation_map"]), r, atol=1e-6, rtol=0)
    np.testing.assert_allclose(data(maps["t_map"]), t, atol=1e-4, rtol=1e-4)


@pytest.fixture
def analysis(tmp_path: Path) -> FunctionalNetworkMapping:
    """Map on five connectome subjects of unequal length, in four files."""
    return FunctionalNetworkMapping(write_connectome_folder(tmp_path / "connectome", make_series(N_VOXELS), MASK))


def on_connectome(tmp_path: Path, series: Sequence[Array], **options: object) -> FunctionalNetworkMapping:
    """Map on made-up subjects."""
    return FunctionalNetworkMapping(write_connectome_folder(tmp_path / "connectome", series, MASK), **options)


@pytest.mark.parametrize("weighting", ["volume", "binary"])
def test_maps_are_the_references(tmp_path: Path, weighting: str) -> None:
    """Every lesion's r, z and t are those of the definition, for lesions on a finer grid stored the other way."""
    series = make_series(N_VOXELS)
    analysis = on_connectome(tmp_path, series, weighting=weighting)
    rng = np.random.default_rng(3)
    fine = [np.zeros((10, 14, 22)) for _ in range(3)]
    for mask, corner in zip(fine, ((1, 2, 3), (5, 7, 8), (2, 9, 14)), strict=True):
        region = tuple(slice(start, start + 4) for start in corner)
        mask[region] = rng.random((4, 4, 4)) < 0.6
    expected = by_reference(analysis, fine, series, FINE_RAS)
    for lesion, maps in enumerate(map_masks(analysis, fine, FINE_RAS)):
        assert_maps_are(maps, expected["r"][lesion], expected["t"][lesion])
        np.testing.assert_allclose(data(maps["z_map"]), expected["z"][lesion], atol=1e-5)


def test_a_thousand_subjects_stay_exact(tmp_path: Path) -> None:
    """At N = 1000, r and z are the definition's to 1e-6 and t to 1e-4 of itself, also where t is above 500."""
    rng = np.random.default_rng(9)
    shared = box((1, 2, 3), (3, 2, 4))[MASK] + 0.1
    noise = rng.standard_normal((1000, 53, N_VOXELS), dtype=np.float32)
    series = list(1000 + 5 * rng.standard_normal((1000, 53, 1), dtype=np.float32) * shared.astype(np.float32) + noise)
    analysis = on_connectome(tmp_path, series)
    masks = [box((1, 2, 3), (3, 2, 4)), box((3, 0, 7), (2, 3, 1))]
    expected = by_reference(analysis, masks, series)
    assert np.abs(expected["t"]).max() > 500
    for lesion, maps in enumerate(map_masks(analysis, masks)):
        assert_maps_are(maps, expected["r"][lesion], expected["t"][lesion])
        np.testing.assert_allclose(data(maps["z_map"]), expected["z"][lesion], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("n_ahead", "n_together"), [(1, 3), (2, 3), (2, 4)])
def test_subjects_in_memory_change_no_bit(analysis: FunctionalNetworkMapping, n_ahead: int, n_together: int) -> None:
    """However many connectome subjects are mapped together and read ahead, the maps are the same to the bit."""
    lesions = [
        analysis.load(LesionData.from_nifti(nib.Nifti1Image(mask.astype(np.uint8), RADIOLOGICAL))) for mask in LESIONS
    ]
    plan = {"n_ahead": n_ahead, "n_together": n_together, "keep_cached": False}
    mapped = map_in_one_pass(analysis, lesions, change_plan=plan)
    for lesion, expected in zip(mapped, map_masks(analysis, LESIONS), strict=True):
        maps = lesion.results[analysis.name]
        for key in ("correlation_map", "t_map"):
            np.testing.assert_array_equal(data(maps[key]), data(expected[key]))


def test_weightings_differ(tmp_path: Path) -> None:
    """Shares of voxels weigh in a seed, and do not where the weighting is binary."""
    volume, binary = (
        on_connectome(tmp_path, make_series(N_VOXELS), weighting=weighting) for weighting in ("volume", "binary")
    )
    mask = np.zeros((10, 14, 22))
    mask[3:8, 5:10, 7:14] = 1
    by_volume, by_half = (data(map_masks(a, [mask], FINE_RAS)[0]["correlation_map"]) for a in (volume, binary))
    assert np.abs(by_volume - by_half).max() > 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_does_not_matter(analysis: FunctionalNetworkMapping, batch_size: int) -> None:
    """A lesion's maps are the same alone, in small batches and with all others."""
    together = map_masks(analysis, LESIONS)
    batches = [LESIONS[start : start + batch_size] for start in range(0, len(LESIONS), batch_size)]
    apart = [maps for batch in batches for maps in map_masks(analysis, batch)]
    for ours, expected in zip(apart, together, strict=True):
        assert_maps_are(ours, data(expected["correlation_map"]), data(expected["t_map"]))


@pytest.mark.parametrize("cuts", [(), (1,), (3,), (1, 2, 3, 4), (2, 4)])
@pytest.mark.parametrize("reverse", [False, True])
def test_files_and_order_of_subjects_do_not_matter(tmp_path: Path, cuts: tuple[int, ...], reverse: bool) -> None:
    """However the subjects are split into files and ordered, with the voxels of any file in any order."""
    series = make_series(N_VOXELS, n_timepoints=[29] * 5)
    expected = by_reference(on_connectome(tmp_path / "whole", series), LESIONS, series)
    series = series[::-1] if reverse else series
    rng = np.random.default_rng(5)
    for part, (start, stop) in enumerate(zip((0, *cuts), (*cuts, 5), strict=True)):
        file = tmp_path / "parts" / f"part{part}.h5"
        write_connectome(file, series[start:stop], MASK, order=rng.permutation(N_VOXELS) if part % 2 else None)
    for lesion, maps in enumerate(map_masks(FunctionalNetworkMapping(tmp_path / "parts"), LESIONS)):
        assert_maps_are(maps, expected["r"][lesion], expected["t"][lesion])


def test_threads_do_not_matter(analysis: FunctionalNetworkMapping) -> None:
    """One thread and two give the same bits."""
    for one, two in zip(map_masks(analysis, LESIONS, n_threads=1), map_masks(analysis, LESIONS), strict=True):
        for name in ("correlation_map", "z_map", "t_map"):
            np.testing.assert_array_equal(data(one[name]), data(two[name]))


def test_undefined_voxels_leave_their_subject_out(tmp_path: Path) -> None:
    """A constant or broken series takes its subject out at its voxel, in the lesion or not, and an n-map says so."""
    series = make_series(N_VOXELS)
    inside, outside = np.flatnonzero(LESIONS[1][MASK])[2], np.flatnonzero(LESIONS[1][MASK] == 0)[-3]
    series[1][:, inside], series[3][2, inside], series[4][:, outside] = 0.1, np.nan, np.inf
    analysis = on_connectome(tmp_path, series)
    expected = by_reference(analysis, LESIONS, series)
    n = np.full(N_VOXELS, 5)
    n[inside], n[outside] = 3, 4
    for lesion, maps in enumerate(map_masks(analysis, LESIONS)):
        assert_maps_are(maps, expected["r"][lesion], expected["t"][lesion])
        np.testing.assert_array_equal(data(maps["n_map"]), n)
        np.testing.assert_array_equal(np.asarray(maps["n_map"].dataobj)[~MASK], 0)
        assert maps["summary_statistics"]["n_subjects"] == 5


def test_voxel_that_no_subject_has_is_nan(tmp_path: Path) -> None:
    """Where every subject's series is undefined, r, z, t and p are NaN, n and the binary map are 0."""
    series = make_series(N_VOXELS)
    for timeseries in series:
        timeseries[:, 7] = 1000
    analysis = on_connectome(tmp_path, series, t_threshold=1)
    maps = map_masks(analysis, LESIONS[:1])[0]
    for name in ("correlation_map", "z_map", "t_map", "minus_log10_p_map"):
        np.testing.assert_array_equal(np.isnan(data(maps[name])), np.arange(N_VOXELS) == 7)
    assert data(maps["n_map"])[7] == data(maps["binary_map"])[7] == 0
    assert maps["summary_statistics"]["n_voxels"] == N_VOXELS - 1


def test_constant_seed_leaves_its_subject_out_for_its_lesion(tmp_path: Path) -> None:
    """A lesion whose two voxels cancel in one subject is mapped on the others; the next lesion has them all."""
    series = make_series(N_VOXELS)
    two_voxels = np.zeros(synthetic.SHAPE)
    two_voxels[1, 4, 8] = two_voxels[3, 4, 8] = 1
    first, second = voxel_number(1, 4, 8), voxel_number(3, 4, 8)
    series[2][:, first] = series[2][:, first].round()
    series[2][:, second] = 2000 - series[2][:, first]
    analysis = on_connectome(tmp_path, series)
    masks = [two_voxels, LESIONS[1]]
    expected = by_reference(analysis, masks, series)
    without = by_reference(analysis, masks, [*series[:2], *series[3:]])
    lone, other = map_masks(analysis, masks)
    assert_maps_are(lone, without["r"][0], without["t"][0])
    assert_maps_are(other, expected["r"][1], expected["t"][1])
    assert [maps["summary_statistics"]["degrees_of_freedom"] for maps in (lone, other)] == [3, 4]
    assert "n_map" not in lone
    assert "n_map" not in other


def test_constant_seed_and_undefined_voxel_at_once(tmp_path: Path) -> None:
    """A subject without the lesion's seed is not counted twice where it also lacks a voxel."""
    series = make_series(N_VOXELS)
    series[2][:, LESIONS[0][MASK] > 0] = 7
    series[2][:, -1] = series[3][:, -1] = -3.3
    analysis = on_connectome(tmp_path, series)
    expected = by_reference(analysis, LESIONS, series)
    for lesion, maps in enumerate(map_masks(analysis, LESIONS)):
        np.testing.assert_array_equal(data(maps["n_map"]), expected["n"][lesion])
        assert_maps_are(maps, expected["r"][lesion], expected["t"][lesion])
    assert [expected["n"][lesion, -1] for lesion in (0, 1)] == [3, 3]


def test_one_voxel_lesion_at_itself(tmp_path: Path) -> None:
    """Correlations of ±1 are clipped, |z| is 7.2543 where the lesion is and where its negative is, without a t."""
    series = make_series(N_VOXELS)
    here, mirror = voxel_number(1, 4, 8), voxel_number(3, 4, 8)
    for timeseries in series:
        timeseries[:, mirror] = 3000 - timeseries[:, here]
    maps = map_masks(on_connectome(tmp_path, series), [box((1, 4, 8), (1, 1, 1))])[0]
    z, t = data(maps["z_map"]), data(maps["t_map"])
    np.testing.assert_allclose(z[[here, mirror]], [Z_LIMIT, -Z_LIMIT], rtol=1e-7)
    np.testing.assert_allclose(data(maps["correlation_map"])[[here, mirror]], [1 - 1e-6, 1e-6 - 1], atol=1e-7)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(t)), sorted([here, mirror]))


@pytest.mark.parametrize("n_copies", [1, 2, 7])
def test_no_spread_no_t(tmp_path: Path, n_copies: int) -> None:
    """One subject, or the same one again, has r and z as they are, and neither t nor p nor a binary map."""
    timeseries = make_series(N_VOXELS)[3]
    analysis = on_connectome(tmp_path, [timeseries] * n_copies, t_threshold=2)
    expected = by_reference(analysis, LESIONS, [timeseries])
    for lesion, maps in enumerate(map_masks(analysis, LESIONS)):
        assert_maps_are(maps, expected["r"][lesion], np.full(N_VOXELS, np.nan))
        assert np.isnan(data(maps["minus_log10_p_map"])).all()
        assert not data(maps["binary_map"]).any()
        summary = maps["summary_statistics"]
        assert np.isnan([summary["t_min"], summary["t_max"], summary["t_fdr05"]]).all()
        assert (summary["n_subjects"], summary["n_voxels"]) == (n_copies, N_VOXELS)


def test_outside_the_mask(analysis: FunctionalNetworkMapping) -> None:
    """Outside the connectome's mask r, z and t are NaN and p is 0; inside, all are defined."""
    maps = map_masks(analysis, LESIONS[:1])[0]
    for name in ("correlation_map", "z_map", "t_map"):
        np.testing.assert_array_equal(np.isnan(maps[name].get_fdata()), ~MASK)
    log_p = maps["minus_log10_p_map"].get_fdata()
    np.testing.assert_array_equal(log_p[~MASK], 0)
    assert (log_p[MASK] > 0).all()


def test_p_of_huge_t_is_finite(tmp_path: Path) -> None:
    """With hundreds of subjects, p in the lesion is far below the smallest float, and its logarithm is right."""
    rng = np.random.default_rng(7)
    shared = rng.standard_normal((400, 23, 1))
    series = list((shared + 0.1 * rng.standard_normal((400, 23, N_VOXELS))).astype(np.float32))
    maps = map_masks(on_connectome(tmp_path, series), LESIONS[1:2])[0]
    t, log_p = data(maps["t_map"]).astype(float), data(maps["minus_log10_p_map"])
    # For t far out, the tail of t is that of a power law: -log10 p grows by df/2 log10(1 + t²/df), less 1 or 2.
    leading = 399 / 2 * np.log10(1 + t**2 / 399)
    assert np.isfinite(log_p).all()
    assert log_p.min() > 308
    assert ((log_p > leading) & (log_p < leading + 3)).all()


@pytest.mark.parametrize("orientation", ["LAS", "RAS", "PSR", "IRP"])
def test_peak_is_where_the_lesion_is(tmp_path: Path, orientation: str) -> None:
    """A lesion on a grid stored from left to right is found at its place, whatever the connectome's axes."""
    noise = np.random.default_rng(11).standard_normal((4, 53, N_VOXELS))
    numbers = np.full(MASK.shape, -1, np.int16)
    numbers[MASK] = np.arange(N_VOXELS)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(RADIOLOGICAL), nib.orientations.axcodes2ornt(orientation)
    )
    stored = nib.Nifti1Image(numbers, RADIOLOGICAL).as_reoriented(turn)
    places = np.asarray(stored.dataobj)
    series = list(noise[:, :, places[places >= 0]].astype(np.float32))
    path = write_connectome(tmp_path / "connectome.h5", series, places >= 0, stored.affine)
    lesion = np.zeros((10, 14, 22))
    lesion[7:9, 8:10, 16:18] = 1
    r_map = map_masks(FunctionalNetworkMapping(path), [lesion], FINE_RAS)[0]["correlation_map"]
    assert "".join(nib.aff2axcodes(r_map.affine)) == orientation
    r = r_map.get_fdata()
    peak = np.unravel_index(np.nanargmax(r), r.shape)
    # FINE_RAS puts the lesion's eight voxels around (4, 4, 12) mm.
    np.testing.assert_allclose(nib.affines.apply_affine(r_map.affine, peak), [4, 4, 12])
    mirrored = nib.affines.apply_affine(np.linalg.inv(r_map.affine), [-4, 4, 12]).round().astype(int)
    assert r[peak] > 0.99
    assert abs(r[tuple(mirrored)]) < 0.3


@pytest.mark.parametrize("compute_t_map", [False, True])
@pytest.mark.parametrize("t_threshold", [None, 2.5, (2, 3.5, 7)])
def test_which_maps_there_are(
    tmp_path: Path, compute_t_map: bool, t_threshold: float | tuple[float, ...] | None
) -> None:
    """A t-map and binary maps are there where they were asked for, every other map always; p needs no t-map."""
    analysis = on_connectome(tmp_path, make_series(N_VOXELS), compute_t_map=compute_t_map, t_threshold=t_threshold)
    maps = map_masks(analysis, LESIONS[:1])[0]
    expected = {"correlation_map", "z_map", "minus_log10_p_map", "summary_statistics"}
    expected |= {"t_map"} if compute_t_map else set()
    expected |= {"binary_map", "binary_maps"} if t_threshold else set()
    assert set(maps) == expected
    assert len(maps) == len(expected)
    with pytest.raises(KeyError, match=r"there is no 'rmap': choose from correlation_map, z_map"):
        maps["rmap"]


def test_binary_maps(tmp_path: Path) -> None:
    """Each binary map is 1 where |t| of the t-map is above its threshold; the first is `binary_map`."""
    analysis = on_connectome(tmp_path, make_series(N_VOXELS), t_threshold=(5, 2, 7.5))
    for maps in map_masks(analysis, LESIONS):
        t = maps["t_map"].get_fdata()
        assert {*np.sign(t[np.abs(t) > 2])} == {-1, 1}
        assert list(maps["binary_maps"]) == [5, 2, 7.5]
        for threshold, image in {**maps["binary_maps"], 5: maps["binary_map"]}.items():
            assert image.get_data_dtype() == np.uint8
            np.testing.assert_array_equal(np.asarray(image.dataobj), np.abs(t) > threshold)
        counts = maps["summary_statistics"]["n_voxels_above_threshold"]
        assert counts == {threshold: np.count_nonzero(np.abs(t) > threshold) for threshold in (5, 2, 7.5)}


@pytest.mark.parametrize(("space", "code"), [(None, 4), ("MNI152NLin2009cAsym", 4), ("OASIS30ANTs", 2)])
@pytest.mark.parametrize("affine", [RADIOLOGICAL, synthetic.OBLIQUE], ids=["radiological", "oblique"])
def test_maps_are_images_on_the_connectomes_grid(tmp_path: Path, affine: Array, space: str | None, code: int) -> None:
    """Maps are NIfTI with the connectome's affine, coded as MNI where it is, and keep it on disk."""
    path = write_connectome(tmp_path / "one.h5", make_series(N_VOXELS, [13, 13, 13]), MASK, affine)
    analysis = FunctionalNetworkMapping(Connectome.open(path, space=space), t_threshold=3)
    maps = map_masks(analysis, LESIONS[:1], affine)[0]
    for name in set(maps) - {"summary_statistics", "binary_maps"}:
        assert type(maps[name]) is nib.Nifti1Image
        nib.save(maps[name], tmp_path / "map.nii.gz")
        saved = nib.load(tmp_path / "map.nii.gz")
        assert saved.shape == MASK.shape
        for matrix, matrix_code in (saved.get_sform(coded=True), saved.get_qform(coded=True)):
            np.testing.assert_allclose(matrix, affine, atol=1e-5)
            assert matrix_code == code
        assert saved.header.get_xyzt_units()[0] == "mm"


def test_summary_is_plain_numbers(tmp_path: Path) -> None:
    """The summary is a plain dict of Python's own numbers, which are those of the maps."""
    analysis = on_connectome(tmp_path, make_series(N_VOXELS), t_threshold=4)
    maps = map_masks(analysis, LESIONS[1:2])[0]
    summary = maps["summary_statistics"]
    assert type(summary) is dict
    counts = summary.pop("n_voxels_above_threshold")
    assert {type(value) for value in [*summary.values(), *counts.values(), *counts]} == {int, float}
    r, t, log_p = (data(maps[name]).astype(float) for name in ("correlation_map", "t_map", "minus_log10_p_map"))
    assert summary["n_subjects"] == 5
    assert summary["degrees_of_freedom"] == 4
    assert summary["n_voxels"] == N_VOXELS
    measured = [summary[key] for key in ("r_min", "r_mean", "r_max", "t_min", "t_max")]
    np.testing.assert_allclose(measured, [r.min(), r.mean(), r.max(), t.min(), t.max()], rtol=1e-6)
    by_size = np.sort(log_p)[::-1]
    kept = np.flatnonzero(10**-by_size <= 0.05 * np.arange(1, N_VOXELS + 1) / N_VOXELS)
    assert summary["t_fdr05"] == pytest.approx(np.sort(np.abs(t))[::-1][kept[-1]], rel=1e-6)


def test_lesions_come_back_in_order(analysis: FunctionalNetworkMapping, tmp_path: Path) -> None:
    """Every lesion keeps its metadata, coverage and place, and lets go of its weights; each subject is counted."""
    files = [write_mask(tmp_path / f"{number}.nii.gz", mask) for number, mask in enumerate(LESIONS)]
    lesions = [analysis.load(LesionData.from_nifti(path, {"session": path.name})) for path in files]
    subjects = []
    mapped = map_in_one_pass(analysis, lesions, 1, on_subject=lambda: subjects.append(len(subjects)))
    assert [lesion.metadata["session"] for lesion in mapped] == [path.name for path in files]
    assert [lesion.coverage for lesion in mapped] == [lesion.coverage for lesion in lesions]
    assert all(lesion.weights is None for lesion in mapped)
    assert len(subjects) == 5


def test_released_maps_say_so(analysis: FunctionalNetworkMapping) -> None:
    """After release, a map's error says what to do, and the maps of the same batch's other lesions are there."""
    released, neighbour = map_masks(analysis, LESIONS[:2])
    released.release()
    with pytest.raises(RuntimeError, match="released when their batch's callback returned: save what you need"):
        released["correlation_map"]
    assert np.isfinite(data(neighbour["correlation_map"])).all()


def test_kept_maps_outlive_the_moments(analysis: FunctionalNetworkMapping) -> None:
    """Maps that were kept do not change when the batch's moments are used for something else."""
    moments = RunningMoments(2, N_VOXELS)
    for subject in range(2):
        moments.total[1] += subject
        moments.total_of_squares[1] += subject**2
        moments.count_subject(np.ones(2, bool), np.ones(N_VOXELS, bool))
    kept = NetworkMaps(lambda: moments.statistics(1), analysis.connectome.grid, "any", MappingOptions(), False)
    kept.keep()
    moments.total[:] = moments.n_by_voxel[:] = 7
    np.testing.assert_array_equal(data(kept["z_map"]), 0.5)
    np.testing.assert_array_equal(data(kept["t_map"]), 1)


@pytest.mark.parametrize("t_threshold", [0, -3.1, float("nan"), (3, 0)])
def test_thresholds_must_be_positive(analysis: FunctionalNetworkMapping, t_threshold: float) -> None:
    """|t| is above 0 anywhere, so that such a threshold can only be a mistake."""
    with pytest.raises(ValueError, match=r"t_threshold is .*must be a finite number above 0"):
        FunctionalNetworkMapping(analysis.connectome, t_threshold=t_threshold)


def test_weighting_must_be_known(analysis: FunctionalNetworkMapping) -> None:
    """An unknown weighting is refused before anything is read."""
    with pytest.raises(ValueError, match="weighting is 'nearest': it must be 'volume' or 'binary'"):
        FunctionalNetworkMapping(analysis.connectome, weighting="nearest")


def test_subjects_without_a_signal_are_counted_across_merges() -> None:
    """A subject without a signal anywhere counts as such; one without a signal in all lesions does not."""
    moments = [RunningMoments(2, 9) for _ in range(2)]
    nowhere, somewhere = np.zeros(9, bool), np.arange(9) > 7
    moments[0].count_subject(np.zeros(2, bool), nowhere)
    moments[0].count_subject(np.zeros(2, bool), somewhere)
    moments[1].count_subject(np.array([True, False]), somewhere)
    moments[1].count_subject(np.zeros(2, bool), nowhere)
    moments[1].count_subject(np.ones(2, bool), np.ones(9, bool))
    assert [each.n_without_signal for each in moments] == [1, 1]
    moments[0].merge((index, 0, block) for index, block in enumerate(moments[1].blocks()))
    assert moments[0].n_without_signal == 2
