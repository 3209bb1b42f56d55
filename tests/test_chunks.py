"""Inflated chunks, bit-identical to what HDF5 reads, and damaged compressed data."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from bids_lacuna.connectome.importers import chunks
from bids_lacuna.connectome.importers.source import read_dtype

Array = np.ndarray

SHAPE = (3, 13, 101)

GZIP = [
    {"compression": "gzip", "compression_opts": level, "shuffle": shuffle}
    for level in (0, 1, 9)
    for shuffle in (0, 1)
]
"""Level 0 stores without compressing."""

OTHERS: dict[str, dict[str, object]] = {
    "not chunked": {},
    "not compressed": {"chunks": (1, 13, 101)},
    "lzf": {"chunks": (1, 13, 101), "compression": "lzf"},
    "shuffle alone": {"chunks": (1, 13, 101), "shuffle": True},
    "checksums": {"chunks": (1, 13, 101), "compression": "gzip", "fletcher32": True},
    "rounded": {"chunks": (1, 13, 101), "compression": "gzip", "scaleoffset": 3},
}


def make_numbers(dtype: str, shape: tuple[int, ...] = SHAPE) -> Array:
    """Make numbers of a type from random bits, including NaN, infinities and the largest numbers."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    numbers = np.frombuffer(np.random.default_rng(1).bytes(n_bytes), dtype).reshape(shape).copy()
    numbers[:, ::2] = np.array([-3, 5]).astype(dtype)[0]
    if numbers.dtype.kind == "f":
        # Which of the many NaN a conversion yields depends on the processor.
        numbers[np.isnan(numbers)] = np.nan
    return numbers


def check(dataset: h5py.Dataset, inflatable: bool) -> None:
    """Compare each subject with HDF5's reading."""
    assert chunks.is_inflatable(dataset) == inflatable
    for number in range(len(dataset)):
        expected = np.empty(dataset.shape[1:], read_dtype(dataset.dtype))
        dataset.read_direct(expected, np.s_[number])
        with chunks.HDF5:
            read = chunks.read_subject(dataset, number, expected.dtype)
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        # The bits of NaN differ between versions of HDF5, where it converts float16.
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(read), nan)
        assert read[~nan].tobytes() == expected[~nan].tobytes()
        assert read.flags.c_contiguous
        assert read.flags.writeable


@pytest.fixture
def file(tmp_path: Path) -> h5py.File:
    """Open a new HDF5 file."""
    with h5py.File(tmp_path / "study.h5", "w") as opened:
        yield opened


@pytest.mark.parametrize(
    "chunk", [(1, 13, 101), (1, 4, 31), (1, 17, 103), (2, 5, 101), (2, 17, 31), (3, 13, 101), (5, 13, 29)], ids=str
)
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8", "i1", "<i2", ">i2", "<u4", "<i8", "<u8"])
def test_bits(file: h5py.File, dtype: str, chunk: tuple[int, int, int]) -> None:
    """Numbers equal HDF5's for any chunks: with several subjects, not dividing the series, or larger than it."""
    for number, options in enumerate(GZIP):
        dataset = file.create_dataset(str(number), SHAPE, dtype, chunks=chunk, maxshape=(None,) * 3, **options)
        dataset[:] = make_numbers(dtype)
        check(dataset, inflatable=True)


@pytest.mark.parametrize("shape", [(53, 7001), (53, 1009), (7, 7001)], ids=str)
@pytest.mark.parametrize("options", GZIP[2:4], ids=["gzip", "shuffle"])
def test_large_chunks(file: h5py.File, shape: tuple[int, int], options: dict[str, object]) -> None:
    """A chunk may be many times larger than what is inflated at a time."""
    data = make_numbers("f4", (2, 53, 7001))
    dataset = file.create_dataset("timeseries", data=data, chunks=(1, *shape), **options)
    assert dataset.id.get_storage_size() > 8 * chunks.PIECE_BYTES
    assert data[0].nbytes > 5 * chunks.PIECE_BYTES
    check(dataset, inflatable=True)


@pytest.mark.parametrize("kind", OTHERS)
def test_left_to_hdf5(file: h5py.File, kind: str) -> None:
    """HDF5 reads chunks of other kinds."""
    dataset = file.create_dataset("timeseries", SHAPE, "f4", **OTHERS[kind])
    dataset[:] = np.random.default_rng(1).random(SHAPE)
    check(dataset, inflatable=False)


def test_numbers_of_twelve_bits(file: h5py.File) -> None:
    """HDF5 reads numbers that fill only part of their bytes."""
    stored = h5py.h5t.STD_I16LE.copy()
    stored.set_precision(12)
    stored.set_offset(4)
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((1, 13, 101))
    creation.set_deflate(1)
    h5py.h5d.create(file.id, b"timeseries", stored, h5py.h5s.create_simple(SHAPE), creation)
    file["timeseries"][:] = np.random.default_rng(1).integers(-2048, 2048, SHAPE)
    check(file["timeseries"], inflatable=False)
    assert np.unique(file["timeseries"]).size > 1000


@pytest.mark.parametrize("shape", [(13, 101), (5, 31)], ids=str)
@pytest.mark.parametrize("shuffle", [False, True])
def test_never_written(file: h5py.File, shape: tuple[int, int], shuffle: bool) -> None:
    """Chunks that were never written read as the fill value."""
    dataset = file.create_dataset(
        "timeseries", SHAPE, ">f4", chunks=(1, *shape), compression="gzip", shuffle=shuffle, fillvalue=7
    )
    dataset[1, :3, :29] = make_numbers(">f4")[1, :3, :29]
    dataset[1, 12:, 100:] = 11
    check(dataset, inflatable=True)
    assert (dataset[0] == 7).all()


@pytest.mark.parametrize("shape", [(13, 101), (5, 31)], ids=str)
@pytest.mark.parametrize("skipped", [0b01, 0b10, 0b11])
def test_skipped_filters(file: h5py.File, skipped: int, shape: tuple[int, int]) -> None:
    """A chunk that records skipped filters, which would not have made it smaller, is read accordingly."""
    dataset = file.create_dataset("timeseries", SHAPE, "f4", chunks=(1, *shape), compression="gzip", shuffle=True)
    chunk = make_numbers("f4", shape)
    stored = chunk if skipped & 0b01 else chunk.reshape(-1).view(np.uint8).reshape(-1, 4).T
    stored = stored.tobytes() if skipped & 0b10 else zlib.compress(stored.tobytes())
    dataset.id.write_direct_chunk((1, 0, 0), stored, skipped)
    path = file.filename
    # HDF5 does not know which filters were skipped until the file is reopened.
    file.close()
    with h5py.File(path) as reopened:
        np.testing.assert_array_equal(reopened["timeseries"][1, : shape[0], : shape[1]], chunk)
        check(reopened["timeseries"], inflatable=True)


HELD = make_numbers("f4").tobytes()
STREAM = zlib.compress(HELD)


@pytest.mark.parametrize("n_bytes", [0, 1, chunks.PIECE_BYTES, 3 * chunks.PIECE_BYTES + 1])
def test_inflate_constant_data(n_bytes: int) -> None:
    """A few bytes of a stream may expand to many pieces, all of which are written."""
    target = bytearray(b"1" * n_bytes)
    chunks.inflate(zlib.compress(bytes(n_bytes)), memoryview(target))
    assert target == bytes(n_bytes)


@pytest.mark.parametrize("level", [-1, 0, 1, 9])
def test_inflate(level: int) -> None:
    """The buffer receives the stream's content; bytes after the stream are ignored, as by HDF5."""
    target = bytearray(len(HELD))
    chunks.inflate(zlib.compress(HELD, level) + b"what follows", memoryview(target))
    assert target == HELD


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"", "ends too early"),
        (STREAM[:1], "ends too early"),
        (STREAM[: len(STREAM) // 2], "ends too early"),
        (STREAM[:-1], "ends too early"),
        (STREAM[:-1] + bytes([STREAM[-1] ^ 1]), "cannot be inflated"),
        (bytes(len(STREAM)), "cannot be inflated"),
        (b"\xff" * len(STREAM), "cannot be inflated"),
        (zlib.compress(HELD[:-1]), f"holds {len(HELD) - 1} bytes instead of {len(HELD)}"),
        (zlib.compress(b""), f"holds 0 bytes instead of {len(HELD)}"),
        (zlib.compress(HELD + b"1"), f"more than its {len(HELD)} bytes"),
        (zlib.compress(HELD * 99), f"more than its {len(HELD)} bytes"),
    ],
)
def test_damaged_stream(stream: bytes, words: str) -> None:
    """A stream that is truncated, changed or of another size is refused."""
    with pytest.raises(OSError, match=words):
        chunks.inflate(stream, memoryview(bytearray(len(HELD))))


def test_stream_with_a_dictionary() -> None:
    """A stream that needs a dictionary, which HDF5 does not support, is refused."""
    compressor = zlib.compressobj(zdict=HELD[:1000])
    stream = compressor.compress(HELD) + compressor.flush()
    with pytest.raises(OSError, match="cannot be inflated"):
        chunks.inflate(stream, memoryview(bytearray(len(HELD))))


def test_every_changed_byte() -> None:
    """A changed byte is noticed unless it has no effect: a stream has unused bits."""
    held = HELD[:2000]
    stream = zlib.compress(held)
    n_noticed = 0
    for index in range(len(stream)):
        changed = bytearray(stream)
        changed[index] ^= 1 << index % 8
        read = bytearray(len(held))
        try:
            chunks.inflate(bytes(changed), memoryview(read))
        except OSError:
            n_noticed += 1
        else:
            assert read == held
    assert n_noticed > 0.98 * len(stream)


def test_never_more_than_a_chunk() -> None:
    """Inflating a stream that would fill the memory stops once it exceeds its chunk."""
    stream = zlib.compress(bytes(64 * 2**20))
    target = memoryview(bytearray(1000))
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="more than its 1000 bytes"):
            chunks.inflate(stream, target)
        assert tracemalloc.get_traced_memory()[1] < 4 * chunks.PIECE_BYTES
    finally:
        tracemalloc.stop()


def cut(stream: bytes) -> bytes:
    """Remove a stream's second half."""
    return stream[: len(stream) // 2]


def change(stream: bytes) -> bytes:
    """Change a byte in the middle of a stream."""
    middle = len(stream) // 2
    return stream[:middle] + bytes([stream[middle] ^ 0xFF]) + stream[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, change, lambda _: zlib.compress(b"7" * 99)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_damaged_chunk(file: h5py.File, damage: Callable[[bytes], bytes], shuffle: bool) -> None:
    """A damaged chunk affects its own subject and no other."""
    dataset = file.create_dataset(
        "timeseries", data=make_numbers("f4"), chunks=(1, 5, 31), compression="gzip", shuffle=shuffle
    )
    _, stream = dataset.id.read_direct_chunk((1, 5, 31))
    dataset.id.write_direct_chunk((1, 5, 31), damage(stream))
    with pytest.raises(OSError, match="chunk"), chunks.HDF5:
        chunks.read_subject(dataset, 1, np.dtype("f4"))
    assert not chunks.HDF5.locked()
    for number in (0, 2):
        with chunks.HDF5:
            read = chunks.read_subject(dataset, number, np.dtype("f4"))
        assert read.tobytes() == dataset[number].tobytes()


@pytest.mark.parametrize(
    ("chunk", "options", "stored_dtype", "read_dtype", "expected"),
    [
        ((1, 13, 101), {}, "f4", "f4", 2 * 5252),
        ((1, 13, 101), {"shuffle": True}, "f4", "f4", 2 * 5252),
        ((1, 13, 101), {}, "f8", "f8", 2 * 10504),
        ((1, 13, 101), {}, "i2", "f4", 2626 + 5252),
        ((1, 13, 101), {}, ">f8", "f8", 2 * 10504),
        ((1, 17, 103), {}, "f4", "f4", 2 * 7004),
        ((1, 5, 31), {}, "f4", "f4", 5252 + 2 * 620),
        ((1, 17, 31), {}, "f4", "f4", 5252 + 2 * 2108),
        ((3, 13, 101), {}, "f4", "f4", 2 * 15756),
        ((2, 5, 31), {}, "f4", "f4", 5252 + 2 * 1240),
        ((1, 13, 101), {"fletcher32": True}, "f4", "f4", 2 * 5252),
        ((1, 5, 31), {"fletcher32": True}, "i2", "f4", 5252 + 310),
    ],
)
def test_reading_bytes(
    file: h5py.File,
    chunk: tuple[int, int, int],
    options: dict[str, bool],
    stored_dtype: str,
    read_dtype: str,
    expected: int,
) -> None:
    """Reading needs the memory of a chunk, compressed and inflated, and of the series."""
    dataset = file.create_dataset(
        "timeseries", SHAPE, stored_dtype, chunks=chunk, maxshape=(None,) * 3, compression="gzip", **options
    )
    assert chunks.reading_bytes(dataset, np.dtype(read_dtype)) == expected
