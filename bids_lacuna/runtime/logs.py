"""Logging: to the terminal, to a file with all messages, and to a crash file for each kind of failure."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import MemoryHandler
from pathlib import Path

from bids_lacuna.text import one_line

logger = logging.getLogger("bids_lacuna")

LOG_FILE = "bids-lacuna.log"

LIBRARIES = ("numpy", "numba", "scipy", "nibabel", "pybids", "h5py")
"""Libraries that determine the numbers, or which masks are found."""

FILE_NAME = re.compile(r"\S*/\S*|\S+\.nii(\.gz)?\b")
"""A path, or the name of an image, in a sentence."""

ENVIRONMENT = re.compile(
    "(SLURM_(JOB|ARRAY|MEM|CPUS|N|TASKS)|OMP_|OPENBLAS_|MKL_|NUMBA_|BIDS_LACUNA_(?!DATAVERSE_TOKEN)|APPTAINER_CONTAINER|"
    "SINGULARITY_CONTAINER|PYTHON[A-Z]*$|(TMPDIR|HOME|LANG|LC_[A-Z]+)$)"
)
"""Names of environment variables that determine memory, threads, folders and text encoding, but not the token."""

NAMES_SHOWN = 3
"""Lesions that are named if many fail together, up to a whole batch."""

NEVER = logging.CRITICAL + 1
"""Level above that of any message."""

EARLY_RECORDS = 10_000
"""Maximum number of messages kept until the log file is open."""


def versions_of(libraries: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of the installed ones of some libraries."""
    found = {"Python": platform.python_version()}
    for library in libraries:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def kind_of(reason: str) -> str:
    """Return the kind of a failure: its reason without file names."""
    return FILE_NAME.sub("…", reason)


def name_some(names: Sequence[str]) -> str:
    """List the first of many lesions, and the number of the others."""
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {len(names) - NAMES_SHOWN} more" if names[NAMES_SHOWN:] else "")


def log_failure(whose: logging.Logger, names: Sequence[str], reason: str) -> None:
    """Log why some lesions failed; in an `except` block, also the traceback, for -v, the log file and a crash file.

    Parameters
    ----------
    whose
        Logger of the calling module.
    """
    whose.error("failed: %s: %s", name_some(names), reason, extra={"reason": reason})
    if sys.exc_info()[0] is not None:
        whose.debug("traceback of the failure of %s: %s", ", ".join(names), reason, exc_info=True)


@contextmanager
def on_terminal(verbosity: int) -> Iterator[None]:
    """Log to the terminal only, until the block ends.

    Parameters
    ----------
    verbosity
        -1: warnings and errors. 0: also information. Both show only the first failure of each kind. 1: all messages
        of the program. 2: also those of libraries.
    """
    console = logging.StreamHandler()
    console.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))
    if verbosity < 1:
        console.addFilter(_FirstOfItsKind())
    console.setFormatter(LineFormatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    root = logging.root
    numba = logging.getLogger("numba")
    before = root.handlers[:], root.level, logger.level, numba.level
    root.handlers[:] = [console]
    root.setLevel(logging.DEBUG if verbosity > 1 else logging.WARNING)
    # numba logs each step of a compilation at level DEBUG: hundreds of thousands of lines.
    numba.setLevel(logging.INFO)
    early = MemoryHandler(EARLY_RECORDS, flushLevel=NEVER)
    logger.addHandler(early)
    # The log file has all messages; the console's own level selects those for the terminal.
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(early)
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        logger.setLevel(before[2])
        numba.setLevel(before[3])


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Log all messages to a file, including those before the block, and write a crash file for each kind of failure.

    Parameters
    ----------
    folder
        Log folder; created if missing.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = _LogFile(folder / LOG_FILE, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(LineFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    early = next((handler for handler in logger.handlers if isinstance(handler, MemoryHandler)), None)
    if early:
        early.setTarget(file)
        early.flush()
        early.setTarget(None)
        logger.removeHandler(early)
    crashes = _CrashFiles(folder)
    for handler in (file, crashes):
        logger.addHandler(handler)
    logger.debug("command: %s", shlex.join(sys.argv))
    logger.debug("in %s, on %s: %s", Path.cwd(), platform.node(), _software())
    logger.debug("environment: %s", shlex.join(_environment()))
    try:
        yield
    except Exception as error:
        logger.debug("the run failed: %s", error, exc_info=True)
        raise
    except KeyboardInterrupt:
        logger.debug("interrupted")
        raise
    finally:
        for handler in (file, crashes):
            logger.removeHandler(handler)
            handler.close()


class LineFormatter(logging.Formatter):
    """Formats each message as one line, whatever characters file names have; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """Format a message as one line."""
        return one_line(super().formatMessage(record))


def _environment() -> list[str]:
    """List the environment variables that affect a run; others may be private."""
    return [f"{name}={value}" for name, value in sorted(os.environ.items()) if ENVIRONMENT.match(name)]


def _software() -> str:
    """List the versions of libraries, and of the operating system."""
    found = [f"{name} {number}" for name, number in versions_of(LIBRARIES).items()]
    return ", ".join([*found, platform.platform()])


class _FirstOfItsKind(logging.Filter):
    """Passes only the first failure of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown; records of failures have a `reason`."""
        reason = getattr(record, "reason", None)
        if reason is None:
            return True
        kind = kind_of(reason)
        is_first = kind not in self._seen
        self._seen.add(kind)
        return is_first


class _LogFile(logging.FileHandler):
    """A log file that may become unwritable without stopping the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Ignore the error: the message is on the terminal."""

    def close(self) -> None:
        """Close the file; its last lines are lost if the disk is full."""
        with suppress(OSError):
            super().close()


class _CrashFiles(logging.Handler):
    """Writes the traceback of the first failure of each kind, an error type in one line of code, to a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._seen: set[tuple[type[BaseException], str, int | None]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a file if the record has a traceback of a new kind."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        frames = traceback.extract_tb(error.__traceback__)
        place = (frames[-1].filename, frames[-1].lineno) if frames else ("", None)
        kind = (type(error), *place)
        if kind in self._seen:
            return
        self._seen.add(kind)
        time = f"{datetime.fromtimestamp(record.created):%Y%m%d-%H%M%S}"
        name = f"crash-{time}-{len(self._seen)}-{type(error).__name__}.txt"
        text = (
            f"{record.getMessage()}\n\n"
            f"{shlex.join(sys.argv)}\n"
            f"{_software()}\n\n"
            f"{''.join(traceback.format_exception(error))}\n"
            f"Further failures of this kind have no crash file: {LOG_FILE} has all tracebacks, lesions.tsv the "
            "reason for each lesion.\n"
        )
        # A full disk may be the failure.
        with suppress(OSError):
            (self._folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
