"""NumPy files: their headers, and reading with errors that name the damaged file."""

from __future__ import annotations

import io
from pathlib import Path
from tokenize import TokenError

import numpy as np

from bids_lacuna.files import recognize

NOT_NUMPY = (ValueError, EOFError, OverflowError, SyntaxError, TokenError, TypeError)
"""Exceptions that NumPy raises for a damaged file."""


def read_array(path: Path) -> np.ndarray:
    """Read a NumPy file.

    Raises
    ------
    ValueError
        The file is damaged or is not a NumPy file.
    OSError
        The file cannot be read.
    """
    # For a header that promises more than the file holds, NumPy would allocate all of it.
    read_array_header(path)
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except NOT_NUMPY as error:
        raise ValueError(f"{path} cannot be read as a NumPy array ({error}): copy it again") from error


def read_array_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and dtype of a NumPy file; the errors are those of `read_array`."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except NOT_NUMPY as error:
        advice = recognize(path) or "copy it again"
        raise ValueError(f"{path} cannot be read as a NumPy array ({error}): {advice}") from error
    return array.shape, array.dtype


def array_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return what a NumPy file has before the numbers of an array in C order."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    )
    return file.getvalue()
