"""How much faster a pass over a store is than one over gzipped HDF5, and how fast a store is made.

Run it with `make bench`, or on a connectome of your own with `python benchmarks/store.py HDF5`. Both are read in turn
in one run, subject by subject as a map reads them, so that the ratio holds where the machine's speed drifts.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import h5py
import numpy as np

from bids_lacuna import kernels
from bids_lacuna.build import build_store
from bids_lacuna.connectome import Connectome
from bids_lacuna.importers import hdf5
from bids_lacuna.plan import available_cpus, format_bytes

SHAPE, N_TIMEPOINTS, N_SUBJECTS, ROUNDS = (66, 66, 66), 120, 6, 3
"""About as many voxels as a brain of 2 mm."""


def write_connectome(path: Path) -> None:
    """Write noise as scanners give it: whole numbers, which gzip makes smaller."""
    rng = np.random.default_rng(1)
    n_voxels = int(np.prod(SHAPE))
    with h5py.File(path, "w") as file:
        file["mask_indices"] = np.indices(SHAPE).reshape(3, -1)
        file["mask_affine"] = np.diag([-2.0, 2, 2, 1])
        file.attrs["mask_shape"] = SHAPE
        shape = (N_SUBJECTS, N_TIMEPOINTS, n_voxels)
        data = file.create_dataset(
            "timeseries", shape, "f4", chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
        )
        for subject in range(N_SUBJECTS):
            data[subject] = 500 + 20 * rng.standard_normal(shape[1:], dtype=np.float32)


def seconds_a_subject(path: Path, drop_cache: bool = False) -> float:
    """Time one pass over a connectome."""
    connectome = Connectome.open(path)
    if drop_cache:
        forget(path)
    start = time.perf_counter()
    for subject in connectome.subjects():
        subject.series[::64].sum()
    return (time.perf_counter() - start) / connectome.n_subjects


def forget(path: Path) -> None:
    """Ask the system to drop files from its cache, so that they are read from the disk."""
    for file in [path] if path.is_file() else path.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Print a row for each kind of store."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        if len(sys.argv) > 1:
            source = Path(sys.argv[1])
        else:
            source = Path(folder) / "connectome.h5"
            write_connectome(source)
        opened = hdf5.open_source(source)
        print(
            f"{len(opened.subjects)} subjects, {opened.grid.n_voxels} voxels x {opened.subjects[0].n_timepoints} "
            f"timepoints, medians of {ROUNDS} passes, on {available_cpus()} processors"
        )
        paths = {"gzip HDF5": source}
        for dtype in ("int16", "float32"):
            paths[f"store, {dtype}"] = Path(folder) / dtype
            start = time.perf_counter()
            store = build_store(
                opened,
                source if source.is_dir() else source.parent,
                paths[f"store, {dtype}"],
                name="bench",
                space="MNI152NLin6Asym",
                dtype=dtype,
                n_processes=available_cpus(),
            )
            seconds = time.perf_counter() - start
            print(f"built as {dtype} in {seconds:.1f} s, {format_bytes(store.n_bytes)}")
        for path in paths.values():
            connectome = Connectome.open(path)
            kernels.compile_for(connectome.series_dtype, connectome.standardized_dtypes)
        times: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, path in paths.items():
                times.setdefault(name, []).append(seconds_a_subject(path))
                if path != source:
                    times.setdefault(f"{name}, not cached", []).append(seconds_a_subject(path, drop_cache=True))
        slow = median(times["gzip HDF5"])
        print(f"{'':32}{'ms a subject':>14}{'HDF5 / it':>12}")
        for name, measured in times.items():
            print(f"{name:32}{1000 * median(measured):14.0f}{slow / median(measured):12.1f}")


if __name__ == "__main__":
    main()
