"""Building a store of filtered series and of noise, by default and with all timepoints, and a pass over each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from scipy import fft

from benchmarks.data import AFFINE, N_TIMEPOINTS, SHAPE, SPACE, Data
from benchmarks.job import job_seconds
from benchmarks.measure import Figure, medians, seconds
from bids_lacuna.connectome.compression import RANK, TOLERANCE, rotate
from bids_lacuna.connectome.importers import hdf5
from bids_lacuna.connectome.importers.source import Source
from bids_lacuna.connectome.records import stored_runs
from bids_lacuna.connectome.store import Rank, Store, StoredSubject, this_software, write_subject

LOW_PASS = 0.48
"""Frequency above which filtered series have nothing, as a fraction of the highest one."""

N_IN_PASS = 8
"""Connectome subjects of a pass, all with the same series."""

N_LESIONS = 20

KINDS = {"filtered": 1.3, "noise": 1.05}
"""Series, and how many times as long their build may take by default."""


def measure(data: Data) -> Iterator[Figure]:
    """Measure builds in processor-seconds, and passes."""
    masks = data.masks(N_LESIONS)
    for kind, limit in KINDS.items():
        source = hdf5.open_source(write_source(data, kind))
        folders = {rank: data.folder / f"{kind}-{rank}" for rank in (RANK, "full")}
        builds = {str(rank): partial(build, source, folder, rank) for rank, folder in folders.items()}
        took = medians(builds)
        note = f"of {took['full']:.2f} processor-seconds a subject from gzipped HDF5"
        yield Figure("build_ratio", took[str(RANK)] / took["full"], kind, at_most=limit, note=note)
        stores = {str(rank): open_store(data, source, folder) for rank, folder in folders.items()}
        sizes = {rank: store.n_bytes for rank, store in stores.items()}
        yield Figure("store_bytes_ratio", sizes[str(RANK)] / sizes["full"], kind)
        passes = medians({rank: partial(job_seconds, store.path, masks) for rank, store in stores.items()})
        note = f"of {passes['full'] / N_IN_PASS * 1000:.0f} ms a subject, from the page cache, {N_LESIONS} lesions"
        yield Figure("pass_ratio", passes[str(RANK)] / passes["full"], kind, note=note)


def write_source(data: Data, kind: str) -> Path:
    """Write a connectome of one subject as Lacuna's converter does."""
    series = data.timeseries(0)
    if kind == "filtered":
        spectrum = fft.rfft(series, axis=0)
        spectrum[1 + int(LOW_PASS * (len(spectrum) - 1)) :] = 0
        series = fft.irfft(spectrum, N_TIMEPOINTS, axis=0).astype(np.float32)
    path = data.folder / f"{kind}.h5"
    with h5py.File(path, "w") as file:
        file["mask_indices"] = np.array(np.nonzero(data.grid.mask))
        file["mask_affine"] = AFFINE
        file.attrs["mask_shape"] = SHAPE
        file.create_dataset(
            "timeseries", data=series[np.newaxis], chunks=(1, *series.shape), compression="gzip", compression_opts=1
        )
    return path


def build(source: Source, folder: Path, rank: Rank) -> float:
    """Read and write a subject as a process of a build does; return its processor-seconds."""
    folder.mkdir(exist_ok=True)
    (subject,) = source.subjects

    def work() -> None:
        standardized, _ = rotate(source.read(subject), rank, TOLERANCE)
        write_subject(folder, subject.name, standardized, "int16")

    return processor_seconds(work)


def processor_seconds(function: Callable[[], None]) -> float:
    """Return the processor-seconds of a call with one thread of BLAS."""
    took = 0.0

    def work() -> None:
        nonlocal took
        start = time.process_time()
        function()
        took = time.process_time() - start

    seconds(work)
    return took


def open_store(data: Data, source: Source, folder: Path) -> Store:
    """Make a store of some subjects that all have the series of the one that was written."""
    (subject,) = source.subjects
    series = np.load(folder / f"sub-{subject.name}_timeseries.npy", mmap_mode="r")
    subjects = []
    for number in range(N_IN_PASS):
        for kind in ("timeseries", "scale"):
            link = folder / f"sub-{number}x_{kind}.npy"
            if not link.exists():
                link.hardlink_to(folder / f"sub-{subject.name}_{kind}.npy")
        no_hashes = {"timeseries": "", "scale": ""}
        subjects.append(
            StoredSubject(f"{number}x", N_TIMEPOINTS, series.shape[1], 0.0, stored_runs(subject), no_hashes)
        )
    sources = ({"path": "made up", "bytes": 0},)
    store = Store(
        folder, "bench", SPACE, data.grid, "int16", RANK, TOLERANCE, tuple(subjects), sources, this_software()
    )
    store.save()
    return store
