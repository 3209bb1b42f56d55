"""What a run costs before it maps: starting, and loading lesions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.data import SPACE, Data, in_brain
from benchmarks.measure import N_THREADS, Figure, medians, seconds
from bids_lacuna import FunctionalNetworkMapping, LesionData
from bids_lacuna.batch import load_lesions
from bids_lacuna.connectome.store import Store, StoredRun, StoredSubject, this_software, write_subject
from bids_lacuna.grid import Grid

APP = Path(__file__).parent.parent / "run.py"

N_LESIONS = 40

N_LOADED = 1000

N_FILES = 100
"""Different masks among those loaded: all of them are in the page cache either way."""


def measure(data: Data) -> Iterator[Figure]:
    """Measure the commands' starts and the loading of lesions."""
    for option, took in medians({name: partial(run_app, name) for name in ("--help", "--version")}).items():
        yield Figure("startup_seconds", took, option, at_most=0.6)
    note = f"a whole job on {N_LESIONS} lesions and a tiny connectome"
    for case, limit, took in zip(("cold", "warm"), (12, 6), fixed_costs(data), strict=True):
        yield Figure("startup_seconds", took, case, at_most=limit, note=note)
    yield loading(data)


def run_app(*arguments: str | Path) -> float:
    """Time one run of the app."""
    command = [sys.executable, APP, *arguments]
    return seconds(lambda: subprocess.run(command, capture_output=True, check=True))


def fixed_costs(data: Data) -> Iterator[float]:
    """Time a job that hardly maps anything, without compiled code in the cache and with it."""
    dataset = data.masks(N_LESIONS)[0].dataset_path
    connectome, output_dir = write_tiny_store(data.folder / "tiny"), data.folder / "tiny-maps"
    cache = data.folder / "compiled"
    for _ in range(2):
        yield run_app(
            dataset, output_dir, "participant", "--no-reports", "--connectome", connectome, "--work-dir", cache
        )
        shutil.rmtree(output_dir)


def write_tiny_store(path: Path) -> Path:
    """Write a store of two subjects on a grid of 8 mm."""
    path.mkdir()
    affine = np.array([[-8.0, 0, 0, 90], [0, 8, 0, -126], [0, 0, 8, -72], [0, 0, 0, 1]])
    grid = Grid(in_brain((23, 28, 23), affine), affine)
    rng = np.random.default_rng(1)
    subjects = []
    for name in ("01", "02"):
        series = rng.standard_normal((grid.n_voxels, 20), dtype=np.float32)
        series -= series.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(series, axis=1, keepdims=True)
        scale = np.ones(grid.n_voxels, np.float32)
        sha256 = write_subject(path, name, (series / norm, scale, scale), "int16")
        subjects.append(StoredSubject(name, 20, 20, 0.0, (StoredRun("made up", 20),), sha256))
    sources = ({"path": "made up", "bytes": 0},)
    Store(path, "tiny", SPACE, grid, "int16", "full", None, tuple(subjects), sources, this_software()).save()
    return path


def loading(data: Data) -> Figure:
    """Time the loading of many lesions of 1 mm onto the grid of 2 mm, as one batch of a job."""
    analysis = FunctionalNetworkMapping(data.store())
    paths = [mask.path for mask in data.masks(N_FILES, voxel_size_mm=1)]
    lesions = [LesionData.from_nifti(path) for path in paths * (N_LOADED // N_FILES)]
    note = f"{N_LOADED} masks of 1 mm onto 2 mm"
    return Figure(
        "loading_seconds", seconds(lambda: load_lesions(lesions, analysis, N_THREADS)), at_most=60, note=note
    )
