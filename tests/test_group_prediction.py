"""Leave-one-out, compared with a least-squares fit for each patient, and with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from bids_lacuna import reference
from bids_lacuna.group import prediction
from bids_lacuna.group.inference import make_model
from bids_lacuna.group.permutations import choose_permutations
from bids_lacuna.group.prediction import cross_products, leave_one_out, leave_one_out_baseline, predict

Array = np.ndarray


def make_data(n_patients: int = 19, n_voxels: int = 57) -> tuple[Array, Array, Array, Array]:
    """Make maps with a common pattern, a label, a score, and covariates that go with the label."""
    rng = np.random.default_rng(7)
    label = (np.arange(n_patients) % 3 == 0).astype(float)
    score = rng.exponential(size=n_patients)
    covariates = rng.standard_normal((n_patients, 2)) + label[:, np.newaxis]
    maps = 3 + rng.standard_normal(n_voxels) + rng.standard_normal((n_patients, n_voxels))
    return maps.astype(np.float32), label, score, covariates


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_each_fold_by_least_squares(n_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The similarity of each left-out map is that with the coefficient map of a fit to the others."""
    monkeypatch.setattr(prediction, "VOXELS", 16)
    maps, label, score, covariates = make_data()
    blocks = np.arange(len(label)) * n_blocks // len(label)
    nuisance = np.column_stack([covariates, *(blocks == block for block in range(n_blocks))])
    for tested in (label, score):
        model = make_model(tested, covariates, blocks)
        labels = np.array([tested, tested[::-1]])
        found = leave_one_out(labels, model.nuisance, cross_products(maps))
        for row, values in zip(found, labels, strict=True):
            expected = reference.leave_one_out(maps.astype(float), values, nuisance)
            np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-9)


def test_a_patient_alone_in_a_block() -> None:
    """A patient whom the nuisance fits exactly changes no effect map, and is compared with it all the same."""
    maps, label, _, _ = make_data()
    blocks = np.repeat([0, 1], [18, 1])
    model = make_model(label, np.empty((19, 0)), blocks)
    found = leave_one_out(label[np.newaxis], model.nuisance, cross_products(maps))[0]
    effect = maps[:18][label[:18] == 1].mean(axis=0) - maps[:18][label[:18] == 0].mean(axis=0)
    np.testing.assert_allclose(found[18], np.corrcoef(effect, maps[18])[0, 1], rtol=1e-5)


def test_accuracy_and_baseline_of_scikit_learn() -> None:
    """AUC and the baseline's predictions are scikit-learn's, and r is NumPy's."""
    maps, label, score, covariates = make_data()
    similarity = leave_one_out(np.array([label]), np.full((19, 1), 19**-0.5), cross_products(maps))
    for tested, measure in ((label, "AUC"), (score, "r")):
        labels = tested[np.newaxis]
        simple = leave_one_out_baseline(labels, covariates)
        expected = cross_val_predict(LinearRegression(), covariates, tested, cv=LeaveOneOut())
        np.testing.assert_allclose(simple[0], expected)
        rounded = similarity.round(1)
        accuracy = prediction.measure_accuracy(rounded, labels, measure)[0]
        theirs = roc_auc_score(tested, rounded[0]) if measure == "AUC" else np.corrcoef(tested, rounded[0])[0, 1]
        np.testing.assert_allclose(accuracy, theirs)


def test_p_of_a_real_difference_and_of_none() -> None:
    """A pattern in the cases is predicted better than by chance and by the covariates; noise is not, below .5."""
    maps, label, _, covariates = make_data(40, 300)
    model = make_model(label, covariates, np.zeros(40))
    permutations = choose_permutations(label, np.empty((40, 0)), np.zeros(40), 500, 0, 1)
    pattern = np.random.default_rng(1).standard_normal(300)
    with_pattern = maps + np.outer(label, pattern)
    found = predict(cross_products(with_pattern), label, model.nuisance, permutations, "AUC", covariates)
    assert found.maps.value > 0.9
    assert found.maps.p == 1 / 501
    assert found.maps.chance < 0.5
    assert found.baseline is not None
    assert found.difference is not None
    assert found.difference.value == found.maps.value - found.baseline.value
    assert found.n_permutations == 500
    nothing = predict(cross_products(maps), label, model.nuisance, permutations, "AUC")
    assert nothing.maps.p > 0.05
    assert nothing.baseline is None


def test_p_by_counting_all_arrangements() -> None:
    """With all arrangements of 3 against 3, p is the fraction that reaches the observed accuracy."""
    maps, _, _, _ = make_data(6, 30)
    label = np.array([1, 0, 1, 0, 0, 1.0])
    permutations = choose_permutations(label, np.empty((6, 0)), np.zeros(6), 100, 0, 1)
    constant = np.full((6, 1), 6**-0.5)
    found = predict(cross_products(maps), label, constant, permutations, "AUC")
    areas = []
    for order in permutations.orders:
        values = reference.leave_one_out(maps.astype(float), label[order], np.ones((6, 1)))
        areas.append(roc_auc_score(label[order], values))
    assert found.maps.p == np.mean(np.array(areas) >= found.maps.value - 1e-9)
    np.testing.assert_allclose(found.maps.chance, np.mean(areas))
