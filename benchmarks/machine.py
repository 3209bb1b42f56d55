"""What the figures were measured with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from threadpoolctl import threadpool_info

from benchmarks.measure import N_THREADS
from bids_lacuna.kernels import cpu as kernels

PACKAGES = ("bids-lacuna", "h5py", "nibabel", "nilearn", "numba", "numpy", "pybids", "scipy", "threadpoolctl")


def describe() -> dict[str, object]:
    """Describe the machine, the libraries that decide the speed, and versions."""
    # What it loads is listed below.
    kernels.compile_for(np.dtype("int16"), [])
    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": N_THREADS,
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "numba_threading_layer": "none: Python's threads",
        "blas": [
            f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".strip()
            for library in threadpool_info()
            if library["user_api"] == "blas"
        ],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def cpu_model() -> str:
    """Name the processor as the system does."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()
