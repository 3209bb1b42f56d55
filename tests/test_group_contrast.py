"""Tests of maps on disk and in memory, from the table to the result."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_predict

import bids_lacuna
from bids_lacuna.group.contrast import contrast_maps, effect_of, footprint, logp_of
from bids_lacuna.group.design import VOLUME, BadDesign, Question, make_design
from bids_lacuna.group.stack import BadMaps
from bids_lacuna.group.table import BadTable, table_of

Array = np.ndarray

N = 22

NAMES = [f"sub-{number:02}" for number in range(N)]

UNDEFINED = (3, 2, 5)
"""A voxel that one map lacks."""


def make_table(**more: object) -> dict[str, object]:
    """Make columns of 22 patients, of whom every other one is a case."""
    rng = np.random.default_rng(3)
    columns = {
        "participant_id": NAMES,
        "depressed": ["yes", "no"] * 11,
        "score": rng.permutation(N),
        "rare": ["yes"] * 6 + ["no"] * 16,
        "age": rng.normal(60, 9, N).round(1),
    }
    return columns | more


def make_maps() -> list[nib.Nifti1Image]:
    """Make maps in which a corner is stronger in cases, and one map lacks a voxel."""
    rng = np.random.default_rng(4)
    volumes = rng.standard_normal((N, *synthetic.SHAPE)).astype(np.float32)
    volumes[::2, :2, :2, :2] += 5
    volumes[:, 0, 6, :] = np.nan
    volumes[5][UNDEFINED] = np.nan
    return [nib.Nifti1Image(volume, synthetic.RADIOLOGICAL) for volume in volumes]


MAPS = make_maps()

STACK = np.array([image.get_fdata() for image in MAPS])


def test_two_groups() -> None:
    """The t-map is SciPy's where all maps have a value, and NaN elsewhere; cases' corner is found."""
    found = bids_lacuna.group_test(MAPS, make_table(), "depressed", n_permutations=199)
    expected = stats.ttest_ind(STACK[::2], STACK[1::2])
    assert np.isnan(expected.statistic[UNDEFINED])
    image = found.image("statistic")
    np.testing.assert_allclose(image.get_fdata(), expected.statistic, rtol=1e-5)
    np.testing.assert_array_equal(image.affine, synthetic.RADIOLOGICAL)
    np.testing.assert_allclose(found.image("effect").get_fdata(), STACK[::2].mean(0) - STACK[1::2].mean(0), rtol=1e-4)
    logp = found.image("logp").get_fdata()
    np.testing.assert_allclose(logp[:2, :2, :2], np.log10(200), rtol=1e-6)
    assert np.median(logp[found.voxels]) < 0.1
    assert found.n_significant == np.count_nonzero(np.abs(found.result.statistic) > found.result.threshold)
    assert found.fraction_of_voxels == found.voxels.sum() / (found.voxels.sum() + 1)
    assert found.prediction.maps.value > 0.9
    assert found.beside is None
    assert found.warnings == ("p is coarse: with 199 permutations, it cannot be below 0.005",)


def test_similarity_with_a_network(tmp_path: Path) -> None:
    """The maps' correlation with a target on a finer grid is tested: its voxels' means are the values."""
    network = np.random.default_rng(5).standard_normal(synthetic.SHAPE).astype(np.float32)
    fine = synthetic.RADIOLOGICAL @ np.diag([0.5, 0.5, 0.5, 1])
    fine[:3, 3] -= fine[:3, :3].sum(axis=1) / 2
    nib.save(nib.Nifti1Image(network.repeat(2, 0).repeat(2, 1).repeat(2, 2), fine), tmp_path / "circuit.nii.gz")
    found = bids_lacuna.group_test(
        MAPS, make_table(), "depressed", n_permutations=99, targets={"circuit": tmp_path / "circuit.nii.gz"}
    )
    r = np.array([np.corrcoef(values[found.voxels], network[found.voxels])[0, 1] for values in STACK])
    (outcome,) = found.outcomes
    assert (outcome.target, outcome.measure) == ("circuit", "r")
    assert outcome.statistic == pytest.approx(stats.ttest_ind(r[::2], r[1::2]).statistic, rel=1e-4)
    assert outcome.effect == pytest.approx(r[::2].mean() - r[1::2].mean(), rel=1e-4)


def test_files_by_participant(tmp_path: Path) -> None:
    """Files named by participant, in any order, and a table on disk give the same result as images in order."""
    table = make_table()
    lines = ["\t".join(table)] + ["\t".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    (tmp_path / "t.tsv").write_text("\n".join(lines))
    paths = {}
    for name, image in reversed(list(zip(NAMES, MAPS, strict=True))):
        nib.save(image, tmp_path / f"{name}.nii.gz")
        paths[name] = str(tmp_path / f"{name}.nii.gz")
    options = {"covariates": ["age"], "n_permutations": 99}
    found = bids_lacuna.group_test(paths, tmp_path / "t.tsv", "score", **options)
    again = bids_lacuna.group_test(MAPS, table, "score", **options)
    np.testing.assert_allclose(found.result.statistic, again.result.statistic, rtol=1e-10)
    np.testing.assert_allclose(found.image("effect").get_fdata(), again.image("effect").get_fdata(), rtol=1e-6)
    voxel = tuple(np.argwhere(found.voxels)[17])
    residuals = [
        values - np.polyval(np.polyfit(table["age"], values, 1), table["age"])
        for values in (STACK[(slice(None), *voxel)], table["score"])
    ]
    np.testing.assert_allclose(effect_of(found.design, found.result)[17], np.corrcoef(residuals)[0, 1], rtol=1e-5)


def test_threads_and_seed() -> None:
    """Three threads give the same bits as one, another seed gives other p."""
    once, again, other = (
        bids_lacuna.group_test(
            MAPS, make_table(), "rare", covariates=["age"], n_permutations=99, n_threads=n, random_seed=seed
        )
        for n, seed in ((1, 0), (3, 0), (1, 1))
    )
    assert once.design.statistic == "welch"
    np.testing.assert_array_equal(once.result.p, again.result.p)
    np.testing.assert_array_equal(logp_of(once.result), logp_of(again.result))
    assert (once.result.p != other.result.p).any()


def test_a_small_group_that_varies_more() -> None:
    """A warning says so of few patients whose maps vary more than the others', but not of few that vary less."""
    table = make_table()
    few = np.array(table["rare"]) == max(table["rare"])
    assert few.sum() < 10
    for of_few, of_others in ((3, 1), (1, 3)):
        factors = np.where(few, of_few, of_others)
        maps = [
            nib.Nifti1Image(values * factor, MAPS[0].affine) for values, factor in zip(STACK, factors, strict=True)
        ]
        found = bids_lacuna.group_test(maps, table, "rare", n_permutations=99)
        told = any("times the other's variance, which so few" in warning for warning in found.warnings)
        assert told == (of_few > 1)
        assert found.result.variance_ratio == pytest.approx((of_few / of_others) ** 2, rel=0.3)


def test_with_and_without_volume() -> None:
    """Beside each test is that with lesion volume, or without it, if the volumes are known."""
    volume = np.random.default_rng(8).normal(20, 5, N)
    table = make_table(lesion_volume=volume)
    options = {"n_permutations": 99}
    without = bids_lacuna.group_test(MAPS, table, "score", covariates=["age"], **options)
    with_volume = bids_lacuna.group_test(MAPS, table, "score", covariates=["age", "lesion_volume"], **options)
    assert without.beside is not None
    assert with_volume.beside is not None
    assert (without.beside.word, with_volume.beside.word) == ("with", "without")
    np.testing.assert_allclose(without.beside.result.statistic, with_volume.result.statistic, rtol=1e-10)
    np.testing.assert_allclose(with_volume.beside.result.p, without.result.p)
    assert without.prediction.baseline is not None
    assert bids_lacuna.group_test(MAPS, table, "lesion_volume", **options).beside is None


def test_no_test_with_volume(caplog: pytest.LogCaptureFixture) -> None:
    """Where the volume follows from a covariate, the test with it is left out, and a warning says so."""
    table = make_table(lesion_volume=np.arange(N), twice=2 * np.arange(N))
    found = bids_lacuna.group_test(MAPS, table, "score", covariates=["twice"], n_permutations=99)
    assert found.beside is None
    assert "there is no test with lesion volume: lesion_volume follows from twice" in caplog.text


def test_missing_values() -> None:
    """Patients left out are in neither the maps nor the design."""
    age = [None, *make_table()["age"][1:]]
    found = bids_lacuna.group_test(
        MAPS, make_table(age=age), "score", covariates=["age"], drop_missing=True, n_permutations=99
    )
    kept = {name: values[1:] for name, values in make_table().items()}
    expected = bids_lacuna.group_test(MAPS[1:], kept, "score", covariates=["age"], n_permutations=99)
    np.testing.assert_array_equal(found.result.statistic, expected.result.statistic)
    assert found.design.dropped == ("sub-00",)
    assert "1 patients with missing values are left out: sub-00" in found.warnings


def test_warnings() -> None:
    """A costly map, a pooled t for unequal groups, and a score that goes with volume are named."""
    costly = np.where(np.arange(7)[:, np.newaxis] > 4, np.nan, MAPS[9].get_fdata())
    maps = [*MAPS[:9], nib.Nifti1Image(costly, synthetic.RADIOLOGICAL), *MAPS[10:]]
    table = make_table(lesion_volume=np.arange(N) + 5 * (np.arange(N) < 6))
    found = bids_lacuna.group_test(maps, table, "rare", statistic="pooled", n_permutations=1000)
    assert [
        words in warning
        for words, warning in zip(("groups of 6 and 16", "r = -0.", "sub-09 (26.5 %)"), found.warnings, strict=True)
    ] == [True] * 3, found.warnings


def test_maps_that_cannot_be_tested(tmp_path: Path) -> None:
    """Each gets a sentence that names the patient."""
    table = make_table()
    nowhere = nib.Nifti1Image(np.full(synthetic.SHAPE, np.nan, np.float32), synthetic.RADIOLOGICAL)
    elsewhere = nib.Nifti1Image(MAPS[0].get_fdata(), synthetic.OBLIQUE)
    series = nib.Nifti1Image(np.zeros((2, 3)), synthetic.RADIOLOGICAL)
    for odd, words in {
        nowhere: "no voxel is defined in all 22 maps: that of sub-03 lacks most, 100 %",
        elsewhere: "the map of sub-03 lies on another grid than that of sub-00",
        series: "the map of sub-03 has the shape",
        tmp_path / "x.nii": "the map of sub-03 cannot be used: there is no map at",
    }.items():
        with pytest.raises(BadMaps, match=words):
            bids_lacuna.group_test([*MAPS[:3], odd, *MAPS[4:]], table, "score")
    with pytest.raises(BadTable, match="there are 3 maps, and the table has 22 rows"):
        bids_lacuna.group_test(MAPS[:3], table, "score")
    with pytest.raises(BadDesign, match=r"1 of 22 patients .* sub-x \(score\)"):
        bids_lacuna.group_test({**dict(zip(NAMES[1:], MAPS[1:], strict=True)), "x": MAPS[0]}, table, "score")


def test_memory_is_checked_and_kept() -> None:
    """A test stays within its stated memory, and is refused with both numbers where there is less."""
    question = Question("score", ("age",), n_permutations=99)
    table = table_of(make_table(lesion_volume=np.arange(N) ** 2 % 7))
    keys = list(table.rows)
    rng = np.random.default_rng(0)
    maps = [nib.Nifti1Image(rng.random((40, 40, 40), np.float32), np.eye(4)) for _ in range(N)]
    both = (question, replace(question, covariates=("age", VOLUME)))
    designs = [make_design(keys, table, each) for each in both]
    stated = footprint(designs, 40**3, 99, 2)
    run = partial(contrast_maps, keys, maps, table, question, n_threads=2, show_progress=False)
    with pytest.raises(
        MemoryError, match=r"a test of 22 maps with 64000 voxels needs .* B of memory, .* raise --mem"
    ):
        run(available_bytes=stated - 1)
    tracemalloc.start()
    run(available_bytes=stated)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stated / 3 < peak <= stated


def test_degree_is_in_the_baseline() -> None:
    """Each map's correlation with degree is a predictor, over the voxels where degree is known."""
    table = table_of(make_table())
    degree = np.random.default_rng(5).random(synthetic.SHAPE)
    degree[3, 3] = np.nan
    found = contrast_maps(list(table.rows), MAPS, table, Question("score", n_permutations=99), degree=degree)
    compared = found.voxels & np.isfinite(degree)
    r = np.array([np.corrcoef(values[compared], degree[compared])[0, 1] for values in STACK])
    expected = cross_val_predict(LinearRegression(), r[:, np.newaxis], table_score := make_table()["score"], cv=N)
    assert found.prediction.baseline is not None
    assert found.predictors == ("the map's r with degree",)
    np.testing.assert_allclose(found.prediction.baseline.value, np.corrcoef(expected, table_score)[0, 1], rtol=1e-5)
