"""Tests of similarity with target networks, compared with statsmodels, SciPy and by counting permutations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.api import OLS

from bids_lacuna.group.inference import make_model
from bids_lacuna.group.outcomes import Outcome, infer_outcomes, list_columns
from bids_lacuna.group.permutations import choose_permutations

Array = np.ndarray

CASES = np.array([1, 0, 1, 1, 0, 0, 1, 0.0])

COLUMNS = {
    ("circuit", "r"): np.array([0.31, 0.17, 0.29, 0.23, 0.11, 0.13, 0.37, 0.19]),
    ("circuit", "damage"): np.array([5.0, 2, 3, 7, 11, 1, 13, 4]),
    ("other", "r"): np.array([-0.2, 0.3, 0.1, -0.4, 0.5, 0.2, -0.1, 0.6]),
}


def run(columns: dict[tuple[str, str], Array], covariates: Array, welch: bool = False) -> tuple[Outcome, ...]:
    """Test columns with up to 100 permutations."""
    blocks = np.zeros(len(CASES), int)
    permutations = choose_permutations(CASES, covariates, blocks, 100, 3, 0.05, welch)
    return infer_outcomes(columns, make_model(CASES, covariates, blocks, welch), permutations, 0.05)


def size(cases: Array, controls: Array) -> Array:
    """Return |t| of the last axis."""
    return np.abs(stats.ttest_ind(cases, controls, axis=-1).statistic)


def test_p_by_all_permutations() -> None:
    """P alone is SciPy's by all 70 arrangements; corrected p counts those whose largest |t| of three reaches it."""
    found = run(COLUMNS, np.empty((8, 0)))
    arrangements = [np.isin(np.arange(8), chosen) for chosen in itertools.combinations(range(8), 4)]
    largest = np.array([max(size(y[rows], y[~rows]) for y in COLUMNS.values()) for rows in arrangements])
    for (name, values), outcome in zip(COLUMNS.items(), found, strict=True):
        assert (outcome.target, outcome.measure) == name
        groups = values[CASES == 1], values[CASES == 0]
        alone = stats.permutation_test(groups, size, vectorized=False, alternative="greater", n_resamples=np.inf)
        assert outcome.p == pytest.approx(alone.pvalue)
        assert outcome.p_corrected == pytest.approx(np.mean(largest >= size(*groups) * (1 - 1e-9)))
    assert any(outcome.p < outcome.p_corrected for outcome in found)


def test_statistics_of_statsmodels() -> None:
    """With a covariate, effect, t and partial r are those of statsmodels."""
    covariate = np.array([3.0, 1, 4, 1, 5, 9, 2, 6])[:, np.newaxis]
    for values, outcome in zip(COLUMNS.values(), run(COLUMNS, covariate), strict=True):
        fit = OLS(values, np.column_stack([CASES, covariate, np.ones(8)])).fit()
        assert outcome.effect == pytest.approx(fit.params[0])
        assert outcome.statistic == pytest.approx(fit.tvalues[0])
        assert outcome.partial_r == pytest.approx(fit.tvalues[0] / np.sqrt(fit.tvalues[0] ** 2 + fit.df_resid))


def test_each_column_has_its_own_variances() -> None:
    """With Welch's v, p of one column does not depend on another one's variances."""
    together = run(COLUMNS, np.empty((8, 0)), welch=True)
    for name, outcome in zip(COLUMNS, together, strict=True):
        (alone,) = run({name: COLUMNS[name]}, np.empty((8, 0)), welch=True)
        assert (alone.statistic, alone.p) == (outcome.statistic, outcome.p)
        assert alone.p_corrected == alone.p


def test_an_unknown_number() -> None:
    """A column that lacks a patient, and one that does not vary, have no p, and change no other one's."""
    lacking = COLUMNS["other", "r"].copy()
    lacking[2] = np.nan
    *found, unknown, constant = run(
        COLUMNS | {("third", "r"): lacking, ("third", "damage"): np.ones(8)}, np.empty((8, 0))
    )
    assert tuple(found) == run(COLUMNS, np.empty((8, 0)))
    for outcome in (unknown, constant):
        assert np.isnan([outcome.effect, outcome.statistic, outcome.p, outcome.p_corrected]).all()
    assert infer_outcomes({}, make_model(CASES, np.empty((8, 0)), np.zeros(8, int)), None, 0.05) == ()


def test_columns_from_sidecars() -> None:
    """Undefined numbers are NaN, and a measure that no lesion has, as the damage of seeds, is no column."""
    relations = [{"a": {"R": 0.5, "ROutsideLesion": None}}, {"a": {"R": None}}, {}]
    columns = list_columns(["a", "b"], relations)
    assert list(columns) == [("a", "r")]
    np.testing.assert_array_equal(columns["a", "r"], [0.5, np.nan, np.nan])
