"""Whole jobs over the native store: what they take beside their arithmetic, and how that grows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.data import N_HDF5_SUBJECTS, Data
from benchmarks.kernel import UNLIMITED, Arithmetic, subjects_at_once
from benchmarks.measure import N_THREADS, Figure, medians, seconds
from bids_lacuna import FunctionalNetworkMapping, LesionData, batch_process
from bids_lacuna.batch import Callback
from bids_lacuna.bids import LesionMask
from bids_lacuna.derivatives.records import LesionRecord
from bids_lacuna.derivatives.writer import DerivativesWriter
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.weights import Rows

N_LESIONS = 500

N_SUBJECTS = 32

EXPONENT_SUBJECTS = (4, 8, 16, 32)


def measure(data: Data) -> Iterator[Figure]:
    """Measure jobs of few and of many lesions, and of few and of many connectome subjects."""
    masks = data.masks(N_LESIONS)
    job_seconds(data.store(), masks[:1])
    yield from over_kernel(data, masks[:20], n_written=20, rounds=3)
    yield from over_kernel(data, masks, n_written=50, rounds=1)
    yield subjects_exponent(data, masks[:20])
    yield lesions_growth(data, masks)
    yield from one_pass(data, masks)


def drop(results: list[LesionData]) -> None:
    """Take a batch's results and write nothing."""


def job_seconds(
    connectome: Path,
    masks: Sequence[LesionMask],
    callback: Callback = drop,
    lesion_batch_size: int | None = None,
    client: Any = None,
) -> float:
    """Time one job, from the names of the masks to the end of the callback."""
    lesions = [LesionRecord(mask).as_lesion() for mask in masks]

    def job() -> None:
        results = batch_process(
            lesions,
            FunctionalNetworkMapping(connectome),
            lesion_batch_size=lesion_batch_size,
            batch_result_callback=callback,
            show_progress=False,
            n_threads=N_THREADS,
            client=client,
        )
        if errors := [lesion.error for lesion in results if lesion.error]:
            raise RuntimeError(errors[0])

    return seconds(job)


def load_rows(analysis: FunctionalNetworkMapping, masks: Sequence[LesionMask]) -> Rows:
    """Load lesions as the rows of a pass."""
    lesions = [analysis.load(LesionRecord(mask).as_lesion()) for mask in masks]
    return Rows.of({str(row): analysis.row(lesion) for row, lesion in enumerate(lesions)})


def open_writer(data: Data, masks: Sequence[LesionMask], output_dir: Path) -> DerivativesWriter:
    """Return the app's own callback, which writes the maps of lesions."""
    provenance = FunctionalNetworkMapping(data.store()).provenance
    records = [LesionRecord(mask) for mask in masks]
    logs, links = output_dir / "logs", {"source": "source"}
    return DerivativesWriter(output_dir, provenance, records, logs, links, n_threads=N_THREADS)


class TimedWriter:
    """Writes the maps of the first lesions, and keeps the seconds that it takes."""

    def __init__(self, data: Data, masks: Sequence[LesionMask], output_dir: Path, n_lesions: int) -> None:
        self.write = open_writer(data, masks, output_dir)
        self.n_lesions = n_lesions
        self.seconds = 0.0

    def __call__(self, results: list[LesionData]) -> None:
        """Write the maps of a job's one batch."""
        start = time.perf_counter()
        self.write(results[: self.n_lesions])
        self.seconds = time.perf_counter() - start


def over_kernel(data: Data, masks: Sequence[LesionMask], n_written: int, rounds: int) -> Iterator[Figure]:
    """Compare a job with its arithmetic and the writing of its maps; the store is in the page cache.

    Nothing else happens while maps are written, each as long as the next: of many lesions those of `n_written` are
    written, and their time is counted for all.
    """
    output_dir = data.folder / "maps"
    arithmetic = Arithmetic(data, data.lesion_rows(len(masks)))
    measured = []
    for _ in range(rounds):
        kernel = N_SUBJECTS * median(arithmetic.seconds() for _ in range(5))
        writer = TimedWriter(data, masks, output_dir, n_written)
        job = job_seconds(data.store(N_SUBJECTS), masks, writer)
        measured.append((kernel, job - writer.seconds, writer.seconds * len(masks) / n_written))
        shutil.rmtree(output_dir)
    kernel, mapping, writing = np.median(measured, axis=0).tolist()
    case, note = f"{len(masks)}", f"{N_SUBJECTS} connectome subjects"
    if n_written < len(masks):
        note += f"; {n_written} lesions' maps written, their time counted for all"
    yield Figure("job_over_kernel", (mapping + writing) / (kernel + writing), case, at_most=1.3, note=note)
    yield Figure("mapping_over_kernel", mapping / kernel, case, note="the same job without writing")
    yield Figure("mapping_seconds", mapping, case)
    yield Figure("writing_seconds", writing, case)


def subjects_exponent(data: Data, masks: Sequence[LesionMask]) -> Figure:
    """Fit the power of the number of connectome subjects by which a pass's time grows.

    The clock starts after the first subjects, with which the sums' memory is touched for the first time, and stops
    as many before the last ones: at both times some are read ahead.
    """
    n_first = subjects_at_once(data, len(masks))

    def pass_seconds(n_subjects: int) -> float:
        analysis = FunctionalNetworkMapping(data.store(n_first + n_subjects + n_first))
        rows = load_rows(analysis, masks)
        ends: list[float] = []
        pass_ = LocalPass(analysis, UNLIMITED)
        plan = pass_.plan(len(masks))
        seconds(lambda: pass_.run(rows, plan, on_subject=lambda: ends.append(time.perf_counter())))
        return ends[-1 - n_first] - ends[n_first - 1]

    took = medians({f"{n}": partial(pass_seconds, n) for n in EXPONENT_SUBJECTS})
    exponent = np.polyfit(np.log(EXPONENT_SUBJECTS), np.log(list(took.values())), 1)[0]
    note = f"over {', '.join(map(str, EXPONENT_SUBJECTS))} connectome subjects"
    return Figure("subjects_exponent", float(exponent), at_least=0.95, at_most=1.05, note=note)


def lesions_growth(data: Data, masks: Sequence[LesionMask]) -> Figure:
    """Compare one pass for 200 lesions with one for 20."""
    store = data.store(N_SUBJECTS)
    took = medians({f"{n}": partial(job_seconds, store, masks[:n]) for n in (20, 200)}, rounds=3)
    return Figure("lesions_growth", took["200"] / took["20"], at_most=6, note="20 to 200 lesions")


def one_pass(data: Data, masks: Sequence[LesionMask]) -> Iterator[Figure]:
    """Compare one pass for all lesions with a pass for each ten of them; no maps are written."""
    name, n_batches = "one_pass_over_batches_of_10", len(masks) / 10
    store = data.store(N_SUBJECTS)
    ratio = job_seconds(store, masks, lesion_batch_size=10) / job_seconds(store, masks)
    yield Figure(name, ratio, "store", at_least=2.5, note=f"{N_SUBJECTS} connectome subjects")
    job_seconds(data.hdf5, masks[:10])
    ratio = n_batches * job_seconds(data.hdf5, masks[:10]) / job_seconds(data.hdf5, masks)
    note = f"{N_HDF5_SUBJECTS} connectome subjects, one batch's time counted {n_batches:.0f} times"
    yield Figure(name, ratio, "hdf5", at_least=20, note=note)
