"""Folders that one process at a time fills: their lock, and their removal if nothing was written."""

from __future__ import annotations

import errno
import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of file systems without locks."""


class NoPlace(OSError):  # noqa: N818  a fact about the disk, not a defect of the program
    """A folder cannot be created."""


class NoRoom(OSError):  # noqa: N818  a fact about the disk, not a defect of the program
    """The disk is too small; the message states the bytes needed and free."""


@contextmanager
def locked(folder: Path, building: str, what: str, doing: str = "building") -> Iterator[Path]:
    """Lock a folder against other builds; the system releases the lock when the process ends.

    A build that has written nothing removes what it created.

    Parameters
    ----------
    folder
        Folder of what is built; created if missing.
    building
        Name of the folder within it that holds the lock and records of what was written.
    what
        What is built, for error messages: "the store".
    doing
        What a process does there, for error messages.

    Yields
    ------
    Path
        The folder within it.

    Raises
    ------
    NoPlace
        The folder cannot be created.
    FileExistsError
        Another process is building there.
    """
    was_there = folder.exists()
    try:
        (folder / building).mkdir(parents=True, exist_ok=True)
        file = (folder / building / "lock").open("w")
    except OSError as error:
        raise NoPlace(f"{what} {folder} cannot be created ({error.strerror}): name another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"another process is {doing} {what} {folder}: wait for it or stop it") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("the file system of %s has no locks: make sure that no other build writes there", folder)
        try:
            yield folder / building
        finally:
            if {path.name for path in folder.glob("**/*")} == {building, "lock"}:
                shutil.rmtree(folder / building if was_there else folder, ignore_errors=True)
