"""NumPy files: read with an error that names the file where it is damaged."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError

import numpy as np

NOT_NUMPY = (ValueError, EOFError, OverflowError, SyntaxError, TokenError, TypeError)
"""What NumPy raises for a damaged file."""


def read_array(path: Path) -> np.ndarray:
    """Read a NumPy file.

    Raises
    ------
    ValueError
        It is damaged, or something else.
    OSError
        It cannot be read.
    """
    # A header that promises more than its file holds would have NumPy take memory for all of it.
    read_array_header(path)
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except NOT_NUMPY as error:
        raise ValueError(f"{path} cannot be read as a NumPy array ({error}): copy it again") from error


def read_array_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and the dtype in a NumPy file; raises what `read_array` raises."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except NOT_NUMPY as error:
        raise ValueError(f"{path} cannot be read as a NumPy array ({error}): copy it again") from error
    return array.shape, array.dtype
