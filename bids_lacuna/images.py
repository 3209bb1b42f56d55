"""NIfTI images: headers and volumes, with a clear error for each defect of a file."""

from __future__ import annotations

import gzip
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib, isal_zlib
from nibabel import imageglobals
from nibabel.analyze import AnalyzeHeader
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError, SpatialImage
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError

from bids_lacuna.files import advise, recognize

logger = logging.getLogger(__name__)

ISAL_ERROR = cast("type[Exception]", igzip_lib.error)
"""The exception of ISA-L, which isal's stub declares as an instance."""

UNREADABLE = (OSError, EOFError, zlib.error, ISAL_ERROR, ImageFileError, HeaderDataError, WrapStructError)
"""Exceptions of nibabel, gzip and ISA-L for a damaged file."""

SLAB_BYTES = 2**18
"""Bytes of a volume that are read at a time: a whole float64 mask at 0.5 mm has 450 MB. Slabs of a few MB took up to
twice as long, since they do not fit into the processor's cache and are returned to the system one by one."""

LARGEST_VOLUME = 2**26
"""Maximum number of voxels of a volume that is read whole: the MNI templates have 58 million at 0.5 mm."""

MOST_COMPRESSION = 1032
"""Maximum compression ratio of gzip: see "Maximum Compression Factor" in zlib's technical details."""

GOOD_RAS_FLAG = slice(28, 30)
"""Bytes of a FreeSurfer image that are 0 if its header has no directions and no centre."""

START_BYTES = 1024
"""Bytes at the start of a file by which its format is recognized."""

GZIP = b"\x1f\x8b"
"""First bytes of a gzipped file."""

PLAIN = (b"\x5c\x01", b"\x00\x00", b"\x1c\x02")
"""First bytes of a NIfTI file that is not compressed: the length of its header, in either byte order."""

SIZE_BYTES = 4
"""Bytes at the end of a gzip stream that state its size, modulo 2**32: RFC 1952, ISIZE."""

NOT_GZIPPED = "Not a gzipped file"
"""Words of Python's error for bytes that do not begin a gzip stream."""

GZIP_LEVEL = 2
"""Level of ISA-L. Level 1 is as fast and as small, but compressed one of 160 maps sometimes in one way, sometimes in
another."""

GZIPPED_AT_ONCE = 2**20
"""Bytes that are compressed at a time."""

GZIP_WINDOW = 16 + 15
"""Window of 32 KiB, in a gzip file rather than a zlib stream."""

QUATERNION_TOLERANCE = 1e-5
"""Excess over 1 of b² + c² + d², by rounding, up to which a quaternion is a rotation by 180°."""


_opened: ContextVar[Path | None] = ContextVar("_opened", default=None)
"""The file whose header nibabel reads in this thread."""


class _CheckedHeader(nib.Nifti1Header):
    """A header that nibabel checked when it was read: an image takes it as it is, without a copy and second check."""

    @classmethod
    def from_header(cls, header: Any = None, check: bool = True) -> nib.Nifti1Header:  # type: ignore[override]
        """Return a header that has been checked, or convert another one."""
        return header if type(header) is cls else super().from_header(header, check)


class _CheckedImage(nib.Nifti1Image):
    """An image with the affine of its header, which need not be compared with it."""

    header_class = _CheckedHeader

    def update_header(self) -> None:
        """Do nothing."""


class _WithFileName(logging.Filter):
    """Logs nibabel's messages about a header as this module's, with the file's name, instead of twice without."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether nibabel's own handlers get the message: if it is about no file that is being opened."""
        path = _opened.get()
        if path is not None:
            logger.log(record.levelno, "%s: %s", path, record.getMessage())
        return path is None


imageglobals.logger.addFilter(_WithFileName())


def check_file(path: Path, kind: str) -> None:
    """Raise an error for a missing file and for a broken link.

    Parameters
    ----------
    kind
        What the error calls the file: "mask".

    Raises
    ------
    FileNotFoundError
        There is no such file.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"the {kind} {path} is a link to {path.readlink()}, which does not exist: "
            "make the link's target available (mount it, or `datalad get` the file)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} at {path}: check the path")


def unpacked_bytes(path: Path) -> int:
    """Return the size of an image's file, without compression as its gzip stream states it at the end.

    Raises
    ------
    OSError
        The file is missing, or has not even that.
    """
    with path.open("rb") as file:
        if path.suffix.lower() != ".gz":
            return file.seek(0, os.SEEK_END)
        file.seek(-SIZE_BYTES, os.SEEK_END)
        return int.from_bytes(file.read(SIZE_BYTES), "little")


def open_image(path: Path, kind: str) -> SpatialImage:
    """Read an image's header.

    Parameters
    ----------
    kind
        What the error calls the image: "mask".

    Raises
    ------
    OSError
        The file is missing, is not NIfTI, or is smaller than its header requires.
    """
    check_file(path, kind)
    opened = _opened.set(path)
    try:
        # nibabel reports a file without read permission as one of unknown type.
        with path.open("rb") as file:
            start = file.read(START_BYTES)
        problem = _describe_content(path, start)
        image = None if problem else _load(path, start)
    except PermissionError as error:
        raise PermissionError(f"the {kind} {path} cannot be read: check its permissions") from error
    # nibabel raises a TypeError for an image that is not a volume, Python for an offset that is not a number.
    except (*UNREADABLE, TypeError, ValueError, OverflowError) as error:
        advice = advise(error, "copy it again, or save it again")
        raise OSError(f"the {kind} {path} cannot be read as NIfTI ({error}): {advice}") from error
    finally:
        _opened.reset(opened)
    if image is None or (problem := _describe_mismatch(image)):
        raise OSError(f"the {kind} {path} cannot be read as NIfTI: {problem}")
    return image


def _describe_content(path: Path, start: bytes) -> str:
    """Describe content of another kind than the file's name promises, and what to do; "" if there is none."""
    suffix = path.suffix.lower()
    if suffix in (".nii", ".img", ".hdr") and start.startswith(GZIP):
        return f"it is gzipped: rename it to {path.name}.gz"
    if suffix == ".gz" and start.startswith(GZIP):
        return ""
    if suffix == ".gz" and start.startswith(PLAIN):
        return f"it is not compressed: rename it to {path.name.removesuffix(path.suffix)}"
    return recognize(path) if suffix in (".nii", ".img", ".hdr", ".gz") else ""


def _load(path: Path, start: bytes) -> SpatialImage:
    """Load an image, also where NIfTI's own library accepts a header that nibabel does not."""
    try:
        # nibabel would open and decompress the file twice more, to find its format and to read its header.
        header = _read_usual_header(path, start)
        image: SpatialImage = nib.load(path) if header is None else _with_header(path, header)  # type: ignore[assignment]
    except ValueError:
        if (rounded := _load_rounded(path)) is None:
            raise
        image = rounded
    stored = image.dataobj
    if not (isinstance(image, nib.Nifti1Image) and isinstance(stored, ArrayProxy)):
        return image
    smallest = image.header.single_vox_offset
    if stored.offset >= smallest:
        return image
    # Some programs leave vox_offset 0, which would read the header as voxels.
    spec = (stored.shape, stored.dtype, smallest, stored.slope, stored.inter)
    return type(image)(ArrayProxy(stored.file_like, spec), image.affine, image.header)


def _read_usual_header(path: Path, start: bytes) -> nib.Nifti1Header | None:
    """Read the header of a NIfTI-1 image in one file without extensions; None for other content."""
    name = path.name.lower()
    if name.endswith(".nii.gz"):
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS + 16).decompress(start, START_BYTES)
        except zlib.error:
            return None
    elif not name.endswith(".nii"):
        return None
    flags = start[nib.Nifti1Header.sizeof_hdr :][:4]
    # The first flag says whether extensions follow.
    if len(flags) < 4 or flags[0] or not nib.Nifti1Header.may_contain_header(start):
        return None
    block = start[: nib.Nifti1Header.sizeof_hdr]
    return _CheckedHeader(block, check=not _is_sound(block))


@lru_cache(maxsize=64)
def _is_sound(block: bytes) -> bool:
    """Return whether nibabel finds nothing to log or to correct in a header: that of many masks is the same."""
    return not nib.Nifti1Header.diagnose_binaryblock(block)


def _with_header(path: Path, header: nib.Nifti1Header) -> nib.Nifti1Image:
    """Return the image of a file whose header has been read."""
    image_type = _CheckedImage if isinstance(header, _CheckedHeader) else nib.Nifti1Image
    return image_type(ArrayProxy(str(path), header), header.get_best_affine(), header)


def _load_rounded(path: Path) -> nib.Nifti1Image | None:
    """Load an image whose quaternion is longer than 1 by rounding; None if it is not."""
    with ImageOpener(str(path)) as file:
        header = nib.Nifti1Header.from_fileobj(file)
    if not round_quaternion(header):
        return None
    return _with_header(path, header)


def round_quaternion(header: nib.Nifti1Header) -> bool:
    """Give a header's quaternion the length 1 if rounding has made it longer; return whether it has."""
    quaternion = np.array([header[f"quatern_{axis}"] for axis in "bcd"], float)
    length = np.linalg.norm(quaternion)
    if not 1 < length**2 <= 1 + QUATERNION_TOLERANCE:
        return False
    for axis, value in zip("bcd", quaternion / length, strict=True):
        header[f"quatern_{axis}"] = value
    return True


def _describe_mismatch(image: SpatialImage) -> str:
    """Describe how the header contradicts the file's size, before any memory is allocated; "" if it does not."""
    stored = image.dataobj
    if min(image.shape, default=0) < 1:
        return f"its header has the shape {image.shape}; save it again"
    if not (isinstance(stored, ArrayProxy) and isinstance(stored.file_like, str)):
        return ""
    needed = int(stored.offset) + prod(map(int, stored.shape)) * stored.dtype.itemsize
    size = Path(stored.file_like).stat().st_size
    suffix = Path(stored.file_like).suffix.lower()
    held = {".nii": size, ".img": size, ".gz": MOST_COMPRESSION * size}.get(suffix)
    if held is None or needed <= held:
        return ""
    return (
        f"its header requires {needed} bytes, the file has {size}, so it is truncated or damaged; copy it again, or "
        "save it again"
    )


def read_slabs(image: SpatialImage, kind: str) -> Iterator[np.ndarray]:
    """Read a volume a few slices at a time, to the end of the file, where gzip stores its checksum.

    Parameters
    ----------
    image
        Image with three axes; further axes have length 1.
    kind
        What the error calls the image: "mask".

    Yields
    ------
    shape (slices, y, x)
        Axes reversed, as in the file. An image that is already in memory is a single slab.

    Raises
    ------
    OSError
        The file is damaged.
    """
    try:
        yield from _slabs(image)
    # nibabel raises a ValueError for a file that ends too early.
    except (*UNREADABLE, ValueError) as error:
        advice = advise(error, "the file is truncated or damaged; copy it again")
        raise OSError(f"the {kind}'s voxels cannot be read ({error}): {advice}") from error


def read_volume(
    image: SpatialImage, kind: str, convert: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> np.ndarray:
    """Read a whole volume, to the end of the file, where gzip stores its checksum.

    Parameters
    ----------
    image, kind
        As for `read_slabs`.
    convert
        Applied to each slab before the next one is read: a smaller dtype saves memory.

    Returns
    -------
    shape (x, y, z)
        In Fortran order, as in the file; axes of length 1 at the end are dropped.

    Raises
    ------
    OSError
        The file is damaged.
    """
    return np.concatenate([convert(slab) for slab in read_slabs(image, kind)]).T


def check_content(path: Path, kind: str) -> None:
    """Read an image's file to its end, where gzip stores its checksum, for another program that does not check it.

    Raises
    ------
    OSError
        The file is missing, is not NIfTI, or is damaged.
    """
    open_image(path, kind)
    try:
        with _open_stream(str(path)) as file:
            read_to_end(file, path)
    except UNREADABLE as error:
        advice = advise(error, "the file is truncated or damaged; copy it again")
        raise OSError(f"the {kind} {path} cannot be read ({error}): {advice}") from error


def _slabs(image: SpatialImage) -> Iterator[np.ndarray]:
    stored = image.dataobj
    # nibabel's subclasses, for other formats, scale each volume separately.
    if type(stored) is ArrayProxy and isinstance(stored.file_like, str):
        yield from _stream(stored)
    else:
        yield np.asanyarray(stored).reshape(image.shape[:3]).T


def _stream(stored: ArrayProxy) -> Iterator[np.ndarray]:
    n_x, n_y, n_slices = stored.shape[:3]
    slice_bytes = n_x * n_y * stored.dtype.itemsize
    at_a_time = max(1, SLAB_BYTES // max(1, slice_bytes))
    with ExitStack() as stack:
        file = _open_stream(stored.file_like)
        stack.callback(file.close)
        file.seek(stored.offset)
        for start in range(0, n_slices, at_a_time):
            n_bytes = slice_bytes * min(at_a_time, n_slices - start)
            try:
                content = file.read(n_bytes)
            except gzip.BadGzipFile:
                # With bytes after the stream, ISA-L's reader fails before the last voxels, Python's behind them.
                file = ImageOpener(stored.file_like)
                stack.callback(file.close)
                file.seek(stored.offset + start * slice_bytes)
                content = file.read(n_bytes)
            if len(content) < n_bytes:
                raise EOFError(f"it ends after {start} of {n_slices} slices")
            slab = np.frombuffer(content, stored.dtype).reshape(-1, n_y, n_x)
            yield apply_read_scaling(slab, stored.slope, stored.inter)
        read_to_end(file, stored.file_like)


def _open_stream(path: str) -> gzip.GzipFile | ImageOpener:
    """Open an image's file without its compression."""
    # A mask of zeros but for a lesion is decompressed by ISA-L in a third of the time.
    return igzip.IGzipFile(path, "rb") if path.lower().endswith(".gz") else ImageOpener(path)


def read_to_end(file: IO[bytes] | gzip.GzipFile | ImageOpener, path: str | Path) -> None:
    """Read the rest of an image's file, at whose end gzip stores its checksum.

    Other bytes behind the end of the gzip stream are ignored with a warning, as gunzip does.

    Raises
    ------
    OSError, EOFError, zlib.error
        The file is damaged.
    """
    try:
        while file.read(SLAB_BYTES):
            pass
    except gzip.BadGzipFile as error:
        # The stream before these bytes had its end and the right checksum.
        if not str(error).startswith(NOT_GZIPPED):
            raise
        logger.warning("%s: the bytes after the end of its gzip stream are ignored", path)


def read_brain_mask(image: SpatialImage, path: Path) -> np.ndarray:
    """Read the nonzero voxels of a brain mask.

    Returns
    -------
    shape (x, y, z), boolean
        Trailing axes of length 1 are dropped.

    Raises
    ------
    OSError
        The file is damaged.
    ValueError
        The image is not 3D, not of real numbers, or larger than `LARGEST_VOLUME`.
    """
    if image.get_data_dtype().kind not in "biuf":
        raise ValueError(f"the mask {path} contains {image.get_data_dtype()}: save it as an image of 0 and 1")
    if len(image.shape) < 3 or any(n != 1 for n in image.shape[3:]):
        raise ValueError(f"the mask {path} has the shape {image.shape}: a 3D image is needed")
    if prod(image.shape) > LARGEST_VOLUME:
        raise ValueError(
            f"the mask {path} has {prod(image.shape)} voxels, the limit is {LARGEST_VOLUME}: use a coarser grid"
        )
    return np.ascontiguousarray(read_volume(image, f"mask {path}", lambda slab: (slab != 0) & ~np.isnan(slab)))


def has_usable_affine(image: SpatialImage) -> bool:
    """Return whether an image's header defines the positions of its voxels."""
    affine = image.affine
    if affine is None or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        return False
    return _states_affine(image)


def _states_affine(image: SpatialImage) -> bool:
    """Return whether an image has its affine from its file or its maker: nibabel invents one where it is missing."""
    header = image.header
    if isinstance(header, nib.Nifti1Header):
        # Without either code, nibabel puts the origin in the middle of the volume.
        return bool(header["sform_code"] + header["qform_code"])
    path = image.get_filename()
    if path is None:
        return True
    if isinstance(header, AnalyzeHeader):
        # The header says neither which side is left nor, in most files, where the origin is; SPM's .mat file does.
        return not np.array_equal(image.affine, header.get_best_affine())
    if isinstance(header, nib.freesurfer.mghformat.MGHHeader):
        with ImageOpener(path) as file:
            return bool(int.from_bytes(file.read(GOOD_RAS_FLAG.stop)[GOOD_RAS_FLAG], "big"))
    return True


def save_gzipped(image: nib.Nifti1Image, path: Path) -> None:
    """Save an image as gzipped NIfTI: uncompressed, the bytes are those of `nibabel.save`; equal images, equal files.

    Parameters
    ----------
    image
        Image in memory whose values have the dtype of its header, and no scaling.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    header = image.header.copy()
    header.set_slope_inter(1, 0)
    start = BytesIO()
    header.write_to(start)
    # C order of the reversed axes is the file's order: no copy for a volume in Fortran order.
    values = np.ascontiguousarray(np.asanyarray(image.dataobj).T).data.cast("B")
    stream = isal_zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WINDOW)
    with path.open("wb") as file:
        file.write(stream.compress(start.getvalue()))
        for first in range(0, len(values), GZIPPED_AT_ONCE):
            file.write(stream.compress(values[first : first + GZIPPED_AT_ONCE]))
        file.write(stream.flush())
