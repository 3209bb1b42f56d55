"""HDF5 files opened for reading without locks, and the files beside them that hold their numbers."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import IO

import h5py

from bids_lacuna.files import advise, recognize

logger = logging.getLogger(__name__)

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""First bytes of HDF5, at the beginning of a file, or behind a user block of 512 bytes or that times a power of 2."""

LARGEST_USER_BLOCK = 2**20
"""Largest user block in bytes before which the signature is looked for."""

LOCKING = "HDF5_USE_FILE_LOCKING"
"""Environment variable by which a user turns HDF5's locks off."""

OPEN_ELSEWHERE = "already open for write"
"""HDF5's words for a file whose header says that a program has it open for writing."""


def open_hdf5(path: Path, **options: int) -> h5py.File:
    """Open a file for reading. Reading needs no lock, and network file systems may have none."""
    return h5py.File(path, "r", locking=False, **options)


def is_hdf5(file: IO[bytes]) -> bool:
    """Return whether an open file is HDF5; the file's position changes."""
    start = 0
    while start <= LARGEST_USER_BLOCK:
        file.seek(start)
        if (found := file.read(len(SIGNATURE))) == SIGNATURE or not found:
            return bool(found)
        start = max(512, 2 * start)
    return False


def check_not_being_written(path: Path) -> None:
    """Raise ValueError if another program has a file open for writing, where the file system's locks show it.

    What that program holds in its memory may not be in the file yet, so that whole subjects would be missing.
    """
    if os.environ.get(LOCKING, "").upper() in ("FALSE", "0"):
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(_describe_writer(path)) from error
        except OSError as error:
            logger.debug("%s cannot be locked (%s)", path, error)


def _describe_writer(path: Path, remedy: str = f"set {LOCKING}=FALSE") -> str:
    return (
        f"another program has {path} open for writing: wait until it has closed the file; if no program has it open "
        f"any more, {remedy}"
    )


def explain(error: Exception, path: Path) -> str:
    """Explain why a file cannot be read, and what can help."""
    if OPEN_ELSEWHERE in str(error):
        return _describe_writer(path, f"run `h5clear -s {path.name}`")
    damaged = "it may be truncated or of another kind; copy it again"
    if "unable to lock" in str(error):
        damaged = f"the file system has no locks; set {LOCKING}=FALSE"
    elif "signature not found" in str(error):
        damaged = recognize(path) or damaged
    elif "filter" in str(error) and "register" in str(error):
        damaged = "it needs a filter of HDF5 that is not installed; repack the file with gzip (h5repack -f GZIP=1)"
    return f"{path} cannot be read as HDF5 ({error}): {advise(error, damaged)}"


def describe_broken_links(file: h5py.File, path: Path, names: tuple[str, ...]) -> str:
    """Describe links of a file that lead nowhere; "" if there is none."""
    for name in names:
        link = file.get(name, getlink=True)
        if file.get(name) is not None or not isinstance(link, h5py.ExternalLink | h5py.SoftLink):
            continue
        if isinstance(link, h5py.SoftLink):
            return f"in {path}, {name} is a link to {link.path}, which the file does not hold: write the file again"
        target = _beside(path, link.filename)
        lacks = f"which does not hold {link.path}" if target.exists() else "which does not exist"
        return (
            f"in {path}, {name} is a link to {link.path} in the file {target}, {lacks}: make that file available "
            "(mount it, or `datalad get` it), or write one file that holds the series itself"
        )
    return ""


def files_behind(dataset: h5py.Dataset, path: Path) -> tuple[Path, ...]:
    """List the other files that hold a dataset's numbers, by external links, virtual datasets and external storage.

    A missing file of a virtual dataset is left out with a warning: HDF5 gives fill values in its place.
    """
    names = [str(external[0]) for external in dataset.external or ()]
    own = Path(os.fsdecode(dataset.file.filename))
    linked = [] if _is_same(own, path) else [own]
    sources = [source.file_name for source in dataset.virtual_sources()] if dataset.is_virtual else []
    # A name with %b stands for any number of files.
    virtual = dict.fromkeys(_beside(own, name) for name in sources if name != "." and "%b" not in name)
    missing = [file for file in virtual if not file.exists()]
    if missing:
        logger.warning(
            "%s takes its series from other files, of which %d of %d do not exist, such as %s: what they hold counts "
            "as no signal; make them available (mount them, or `datalad get` them)",
            path,
            len(missing),
            len(virtual),
            missing[0],
        )
    files = [*linked, *(_beside(own, name) for name in names), *virtual]
    return tuple(dict.fromkeys(file for file in files if file.exists()))


def _beside(path: Path, name: str) -> Path:
    """Return the path of a file that another one names."""
    return Path(os.path.abspath(path)).parent / name  # noqa: PTH100  a link keeps the folder that its owner chose


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)
