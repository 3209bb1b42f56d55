"""What the command lines print at once, and the values that they read."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = """
import sys
from {module} import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
print(*sys.modules, sep="\\n")
"""

LIBRARIES = {
    "bids", "dask", "distributed", "h5py", "jinja2", "joblib", "matplotlib", "nibabel", "nilearn", "numba", "numpy",
    "PIL", "psutil", "scipy", "threadpoolctl", "tqdm",
}  # fmt: skip
"""Libraries that take long to import."""


@pytest.mark.parametrize(
    ("module", "option"),
    [
        ("bids_lacuna.cli", "--help"),
        ("bids_lacuna.cli", "--version"),
        ("bids_lacuna.cli", "--citation"),
        ("bids_lacuna.cli", "--bids-exec-spec"),
        ("bids_lacuna.app.connectome", "--help"),
        ("bids_lacuna.app.connectome", "--version"),
    ],
)
def test_what_is_printed_at_once_imports_nothing_heavy(module: str, option: str) -> None:
    """Help, version, citation and descriptor appear in a fifth of a second: no slow library is imported."""
    done = subprocess.run(
        [sys.executable, "-c", HEAVY.format(module=module), option], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.splitlines())
    assert {"argparse", module} <= imported
    assert not imported & LIBRARIES
