"""Output of the command lines that needs no slow imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = """
import sys
from bids_lacuna.cli import {program}
try:
    {program}(sys.argv[1:])
except SystemExit as end:
    assert not end.code
print(*sys.modules, sep="\\n")
"""

LIBRARIES = {
    "bids", "dask", "distributed", "h5py", "jinja2", "joblib", "matplotlib", "nibabel", "nilearn", "numba", "numpy",
    "PIL", "psutil", "scipy", "threadpoolctl", "tqdm",
}  # fmt: skip
"""Libraries that are slow to import."""


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("main", "--help"),
        ("main", "--version"),
        ("main", "--citation"),
        ("main", "--bids-exec-spec"),
        ("connectome_main", "--help"),
        ("connectome_main", "--version"),
        ("connectome_main", "build --help"),
    ],
)
def test_help_imports_no_slow_library(program: str, words: str) -> None:
    """Help, version, citation and descriptor appear in a fifth of a second: no slow library is imported."""
    done = subprocess.run(
        [sys.executable, "-c", HEAVY.format(program=program), *words.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stdout.splitlines())
    assert {"argparse", "bids_lacuna.cli"} <= imported
    assert not imported & LIBRARIES
