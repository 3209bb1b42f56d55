"""Tests of a group against the bare matrix products that they need, in processor-seconds of one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks.data import Data
from benchmarks.measure import Figure
from bids_lacuna.group import inference
from bids_lacuna.group.inference import Model, infer, make_model
from bids_lacuna.group.permutations import Permutations, choose_permutations
from bids_lacuna.kernels import single_threaded_blas

Array = np.ndarray

N_PATIENTS, N_CASES = 100, 35

GOALS = {"pooled": 2.0, "welch": 3.0}
"""Largest ratio of a test's time to that of its products."""


N_VOXELS, N_PERMUTATIONS = 20_480, 5_000
"""A part of a brain and of the permutations: tiles are independent, and the ratio is that of the whole."""


def measure(_: Data) -> Iterator[Figure]:
    """Measure the time of tests with and without covariates, divided by that of their products."""
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((N_PATIENTS, N_VOXELS)).astype(np.float32)
    tested, blocks = (np.arange(N_PATIENTS) < N_CASES).astype(float), np.zeros(N_PATIENTS, int)
    for n_covariates in (0, 3):
        covariates = rng.standard_normal((N_PATIENTS, n_covariates))
        permutations = choose_permutations(tested, covariates, blocks, N_PERMUTATIONS, 0, 0.05)
        for name, goal in GOALS.items():
            model = make_model(tested, covariates, blocks, name == "welch")
            infer(maps[:, :1], model, permutations, 0.05)
            with single_threaded_blas():
                bare = _time(partial(_multiply, model, maps, permutations))
                test = _time(partial(infer, maps, model, permutations, 0.05))
            case = f"{name}+{n_covariates}"
            yield Figure("test_over_products", test / bare, case, at_most=goal, note=f"{n_covariates} covariates")


def _multiply(model: Model, maps: Array, permutations: Permutations) -> None:
    """Multiply the functionals with the maps, and for Welch's v the group with their squares, tile by tile."""
    n_functionals, n = model.functionals.shape[1], inference.ORDERS
    functionals = np.tile(model.functionals.T, (n, 1))
    group = functionals[:n].copy()
    values = maps[:, : inference.VOXELS].astype(float)
    products, squares = np.empty((n_functionals * n, values.shape[1])), np.empty((n, values.shape[1]))
    for _ in range(-(-maps.shape[1] // inference.VOXELS)):
        for _ in range(-(-len(permutations.orders) // n)):
            np.matmul(functionals, values, out=products)
            if model.welch is not None:
                np.matmul(group, values, out=squares)


def _time(work: Callable[[], object]) -> float:
    """Return the processor-seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began
