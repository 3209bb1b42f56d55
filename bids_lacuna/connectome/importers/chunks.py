"""Fast reading of series in gzip-compressed HDF5: raw chunks are inflated by ISA-L, which is faster than HDF5.

ISA-L runs outside HDF5's global lock, so that several threads can inflate at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import h5py
import numpy as np
from isal import igzip_lib

Array = np.ndarray

DEFLATE = (h5py.h5z.FILTER_DEFLATE,)
SHUFFLE_AND_DEFLATE = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE)

HDF5 = Lock()
"""Lock that a thread holds while it uses h5py. Despite h5py's own lock, a process whose threads open and read files
crashes now and then: within minutes with h5py 3.10, more rarely with newer versions (h5py's issue 2920)."""

PIECE_BYTES = 2**17
"""Bytes that ISA-L takes and returns at a time, copied while in cache; 1 MiB takes 1.4 times as long."""


def read_subject(timeseries: h5py.Dataset, number: int, dtype: np.dtype) -> Array:
    """Read one connectome subject's series; the caller holds `HDF5`, which is released while a chunk is inflated.

    Parameters
    ----------
    timeseries : shape (n_subjects, n_timepoints, n_voxels)
    number
        Index of the subject.
    dtype
        Data type of the result; it must hold every number of the stored type.

    Returns
    -------
    shape (n_timepoints, n_voxels)

    Raises
    ------
    OSError
        A compressed chunk is damaged; for other damage, h5py raises its own errors.
    """
    if not is_inflatable(timeseries):
        values = np.empty(timeseries.shape[1:], dtype)
        timeseries.read_direct(values, np.s_[number])
        return values

    values = np.empty(timeseries.shape[1:], timeseries.dtype)
    shape = timeseries.chunks
    shuffled = _filters(timeseries) == SHUFFLE_AND_DEFLATE
    in_place = shape == (1, *values.shape) and not shuffled
    chunk = values[np.newaxis] if in_place else np.empty(shape, timeseries.dtype)
    row = number % shape[0]
    for t in range(0, values.shape[0], shape[1]):
        for v in range(0, values.shape[1], shape[2]):
            # The last chunks extend beyond the series.
            block = np.s_[t : t + shape[1], v : v + shape[2]]
            if not _inflate_chunk(timeseries, (number - row, t, v), chunk):
                timeseries.read_direct(values, (number, *block), block)
            elif shuffled:
                _unshuffle(chunk, row, values[block])
            elif not in_place:
                n_timepoints, n_voxels = values[block].shape
                values[block] = chunk[row, :n_timepoints, :n_voxels]
    return values.astype(dtype, copy=False)


def reading_bytes(timeseries: h5py.Dataset, dtype: np.dtype) -> int:
    """Return the largest number of bytes that `read_subject` needs, beside HDF5's constant overhead."""
    n_values = int(np.prod(timeseries.shape[1:]))
    stored, read = n_values * timeseries.dtype.itemsize, n_values * dtype.itemsize
    chunk = int(np.prod(timeseries.chunks or 0)) * timeseries.dtype.itemsize
    if not is_inflatable(timeseries):
        # HDF5 holds a chunk twice while inflating it.
        return max(read + chunk, 2 * chunk)
    is_one_chunk = all(n <= step for n, step in zip(timeseries.shape[1:], timeseries.chunks[1:], strict=True))
    # One chunk compressed and inflated, and the values from the chunks before it.
    inflating = 2 * chunk + (0 if is_one_chunk else stored)
    return inflating if timeseries.dtype == dtype else max(inflating, stored + read)


def is_inflatable(timeseries: h5py.Dataset) -> bool:
    """Return whether `read_subject` inflates the chunks itself instead of HDF5.

    It inflates gzip-compressed chunks, shuffled or not. HDF5 handles other filters, and number types that NumPy
    lacks, such as 12 bits of an int16.
    """
    return _filters(timeseries) in (DEFLATE, SHUFFLE_AND_DEFLATE) and timeseries.id.get_type().equal(
        h5py.h5t.py_create(timeseries.dtype)
    )


def _filters(timeseries: h5py.Dataset) -> tuple[int, ...]:
    """Return the codes of the filters applied to chunks, in order."""
    creation = timeseries.id.get_create_plist()
    return tuple(creation.get_filter(i)[0] for i in range(creation.get_nfilters()))


def _inflate_chunk(timeseries: h5py.Dataset, first: tuple[int, ...], chunk: Array) -> bool:
    """Fill an array with the chunk that begins at `first`; return False if only HDF5 can read the chunk."""
    try:
        skipped_filters, compressed = timeseries.id.read_direct_chunk(first)
    except (OSError, RuntimeError):
        # The chunk was never written and has the fill value, or it is damaged: HDF5 returns or reports it.
        return False
    if skipped_filters:
        return False
    with _others_reading():
        inflate(compressed, chunk.reshape(-1).view(np.uint8).data)
    return True


@contextmanager
def _others_reading() -> Iterator[None]:
    """Let other threads use h5py within the block."""
    HDF5.release()
    try:
        yield
    finally:
        HDF5.acquire()


def inflate(compressed: bytes, target: memoryview) -> None:
    """Inflate a zlib stream into a buffer of exactly its size.

    Raises
    ------
    OSError
        The stream is damaged, or is longer or shorter than the buffer.
    """
    source = memoryview(compressed)
    stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
    n_read = n_filled = 0
    while not stream.eof:
        given = source[n_read : n_read + PIECE_BYTES] if stream.needs_input else b""
        n_read += len(given)
        if stream.needs_input and not given:
            raise OSError("a compressed chunk ends too early")
        try:
            piece = stream.decompress(given, PIECE_BYTES)
        except igzip_lib.error as error:  # type: ignore[misc]  # isal's stub declares the class as an instance
            raise OSError(f"a compressed chunk cannot be inflated: {error}") from error
        if n_filled + len(piece) > len(target):
            raise OSError(f"a compressed chunk holds more than its {len(target)} bytes")
        target[n_filled : n_filled + len(piece)] = piece
        n_filled += len(piece)
    if n_filled < len(target):
        raise OSError(f"a compressed chunk holds {n_filled} bytes instead of {len(target)}")


def _unshuffle(chunk: Array, row: int, values: Array) -> None:
    """Reassemble one subject's numbers from a chunk with all first bytes, then all second bytes, and so on."""
    n_timepoints, n_voxels = values.shape
    planes = chunk.reshape(-1).view(np.uint8).reshape(chunk.itemsize, *chunk.shape)
    for byte, plane in enumerate(planes):
        values.view(np.uint8)[:, byte :: chunk.itemsize] = plane[row, :n_timepoints, :n_voxels]
