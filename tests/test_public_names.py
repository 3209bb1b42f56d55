"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys

import bids_lacuna


def test_dir_lists_the_public_names_without_loading_them() -> None:
    """In a new interpreter, `dir` has all public names, and none of their modules is imported for it."""
    code = "import sys, bids_lacuna; print(*dir(bids_lacuna)); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, modules = (line.split() for line in done.stdout.splitlines())
    assert set(bids_lacuna.__all__) <= set(names)
    assert len(names) == len(set(names))
    assert not {"bids_lacuna.batch", "bids_lacuna.lesion", "numba", "scipy"} & set(modules)
    assert all(hasattr(bids_lacuna, name) for name in bids_lacuna.__all__)
