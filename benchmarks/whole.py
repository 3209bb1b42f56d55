"""The whole program on 100 lesions of 2 mm, beside the pass over the connectome that it cannot do without.

`python -m benchmarks.run whole` measures this version. `python -m benchmarks.whole OTHER/run.py` measures the program
of another folder in the same way, beside this version's pass.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.data import Data
from benchmarks.job import job_seconds, load_rows, open_writer
from benchmarks.kernel import UNLIMITED
from benchmarks.measure import N_THREADS, Figure, Timed, undisturbed
from bids_lacuna import FunctionalNetworkMapping, LesionData
from bids_lacuna.bids import LesionMask
from bids_lacuna.mapping.local import LocalPass

APP = Path(__file__).parent.parent / "run.py"

N_LESIONS = 100

N_SUBJECTS = 100
"""Connectome subjects that are measured."""

N_COUNTED = 1000
"""Connectome subjects for which the pass is counted, as many as GSP1000 has."""

LIMITS = {"no pages": 1.15, "pages": 1.5}

ROUNDS = 2


def measure(data: Data, app: Path = APP, rounds: int = ROUNDS) -> Iterator[Figure]:
    """Measure the program's jobs with and without pages, and the pass, in turn; then the files alone."""
    masks, store = data.masks(N_LESIONS), data.store(N_SUBJECTS)
    # Compiles the kernels, and builds the font cache of matplotlib.
    run_app(app, data, data.masks(1), data.store(2))
    found: dict[str, list[Timed]] = {"pass": [], "no pages": [], "pages": []}
    for _ in range(rounds):
        found["pass"].append(undisturbed(prepared_pass(masks, store)))
        found["no pages"].append(undisturbed(partial(run_app, app, data, masks, store, "--no-reports")))
        found["pages"].append(undisturbed(partial(run_app, app, data, masks, store)))
    seconds = {name: median(timed.seconds for timed in times) for name, times in found.items()}
    counted = seconds["pass"] * N_COUNTED / N_SUBJECTS
    note = f"pass of {N_COUNTED} connectome subjects, measured on {N_SUBJECTS} and multiplied"
    for case, limit in LIMITS.items():
        ratio = (seconds[case] - seconds["pass"] + counted) / counted
        yield Figure("whole_job_over_pass", ratio, case, at_most=limit, note=note)
    for name, times in found.items():
        yield Figure("whole_job_seconds", seconds[name], name, note=f"{N_SUBJECTS} connectome subjects")
        used = median(timed.processors for timed in times)
        yield Figure("whole_job_processors", used, name, note="processor-seconds over wall")
    yield Figure("whole_job_others", max(timed.others for times in found.values() for timed in times), at_most=0.1)
    yield from files(data, masks)


def run_app(app: Path, data: Data, masks: Sequence[LesionMask], store: Path, *options: str) -> None:
    """Run one job, whose files are removed."""
    output_dir = data.folder / "whole-job"
    command = [sys.executable, app, masks[0].dataset_path, output_dir, "participant", "--connectome", store, *options]
    try:
        subprocess.run([*command, "--work-dir", data.folder / "work"], capture_output=True, check=True)
    finally:
        shutil.rmtree(output_dir, ignore_errors=True)


def prepared_pass(masks: Sequence[LesionMask], store: Path) -> partial[object]:
    """Load lesions, and return their pass over the connectome, which is yet to run."""
    analysis = FunctionalNetworkMapping(store)
    rows = load_rows(analysis, masks)
    analysis.prepare(N_THREADS)
    pass_ = LocalPass(analysis, UNLIMITED)
    return partial(pass_.run, rows, pass_.plan(len(masks), None))


def files(data: Data, masks: Sequence[LesionMask]) -> Iterator[Figure]:
    """Measure the statistics, maps and sidecars of lesions alone."""
    output_dir, found = data.folder / "files", list[Timed]()

    def write(results: list[LesionData]) -> None:
        writer = open_writer(data, masks, output_dir)
        writer(results[:5])
        found.append(undisturbed(partial(writer, results)))

    job_seconds(data.store(), masks, write)
    shutil.rmtree(output_dir)
    timed, note = found[0], f"{len(masks)} lesions, {N_THREADS} threads"
    per_lesion = timed.seconds * timed.processors / len(masks)
    yield Figure("files_processor_seconds", per_lesion, at_most=0.06, note="a lesion's statistics, maps and sidecars")
    yield Figure("files_seconds", timed.seconds / len(masks), at_most=0.035, note=note)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for figure in measure(Data(Path(folder)), Path(sys.argv[1]) if sys.argv[1:] else APP, rounds=1):
            print(figure.row, flush=True)
