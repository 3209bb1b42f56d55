"""The peak memory of jobs, each a process of its own, beside what was planned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.data import Data
from benchmarks.measure import N_THREADS, Figure
from bids_lacuna import FunctionalNetworkMapping, LesionData
from bids_lacuna.batch import process_batches
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.runtime.memory import peak_resident_bytes
from bids_lacuna.runtime.plan import Resources

LESIONS = (1, 20, 200, 1000)

LARGEST_GB = 6.5
"""Largest peak memory for 1,000 lesions in one pass, in GB."""

N_MASKS = 500
"""Different masks."""

N_MAPPED = 20
"""Lesions whose maps are made: each takes as much memory as the next."""


def measure(data: Data) -> Iterator[Figure]:
    """Compare the peak with the plan: it must not exceed it, and the plan must not ask for much more."""
    masks = [str(mask.path) for mask in data.masks(N_MASKS)]
    for n_lesions in LESIONS:
        command = [sys.executable, "-m", "benchmarks.memory", str(data.store()), *(masks * 2)[:n_lesions]]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peak, planned = json.loads(result.stdout)
        yield Figure("peak_over_plan", peak / planned, f"{n_lesions}", at_least=0.8, at_most=1)
        limit = LARGEST_GB if n_lesions == LESIONS[-1] else None
        yield Figure("peak_gigabytes", peak / 1e9, f"{n_lesions}", at_most=limit)


def run(connectome: str, masks: list[str]) -> tuple[int, int]:
    """Map lesions in one pass, and tell the peak of this process's memory and what was planned, in bytes."""
    analysis = FunctionalNetworkMapping(connectome)
    pass_ = LocalPass(analysis, Resources(2**40, N_THREADS))
    plan = pass_.plan(len(masks), None)
    lesions = [LesionData.from_nifti(mask) for mask in masks]
    results = process_batches(lesions, analysis, pass_, plan, batch_result_callback=make_maps)
    if errors := [lesion.error for lesion in results if lesion.error]:
        raise RuntimeError(errors[0])
    return peak_resident_bytes(), plan.peak_bytes


def make_maps(results: list[LesionData]) -> None:
    """Make each map of the first lesions, and keep none."""
    for lesion in results[:N_MAPPED]:
        for key in lesion.results[FunctionalNetworkMapping.name]:
            lesion.results[FunctionalNetworkMapping.name][key]


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2:])))
