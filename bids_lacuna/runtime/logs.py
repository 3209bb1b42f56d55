"""What a run says: on the terminal, in a file that keeps all of it, and in a crash file for each kind of failure."""

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
"""Those that numbers, or the finding of masks, depend on."""

PLACE = re.compile(r"\S*/\S*|\S+\.nii(\.gz)?\b")
"""A path or the name of an image in a sentence."""

ENVIRONMENT = re.compile(
    "(SLURM_(JOB|ARRAY|MEM|CPUS|N|TASKS)|OMP_|OPENBLAS_|MKL_|NUMBA_|BIDS_LACUNA_|APPTAINER_CONTAINER|"
    "SINGULARITY_CONTAINER|PYTHON[A-Z]*$|(TMPDIR|HOME|LANG|LC_[A-Z]+)$)"
)
"""Names of variables that decide on memory, threads, folders and text."""

NAMES_SHOWN = 3
"""Of lesions that failed together: a whole batch may."""

NEVER = logging.CRITICAL + 1

EARLY_RECORDS = 10_000
"""Kept at most until the file is open."""


def versions_of(libraries: Sequence[str]) -> dict[str, str]:
    """Tell the versions of Python and of those of the libraries that are installed."""
    found = {"Python": platform.python_version()}
    for library in libraries:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def kind_of(reason: str) -> str:
    """Say what a failure has in common with others: its reason without the files that it names."""
    return PLACE.sub("…", reason)


def name_some(names: Sequence[str]) -> str:
    """Name the first of many lesions."""
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {len(names) - NAMES_SHOWN} more" if names[NAMES_SHOWN:] else "")


def log_failure(whose: logging.Logger, names: Sequence[str], reason: str) -> None:
    """Log why some lesions failed; in an `except` block, its traceback goes to -v, the log file and a crash file.

    Parameters
    ----------
    whose
        The logger of the module that knows.
    """
    whose.error("failed: %s: %s", name_some(names), reason, extra={"reason": reason})
    if sys.exc_info()[0] is not None:
        whose.debug("traceback of the failure of %s: %s", ", ".join(names), reason, exc_info=True)


@contextmanager
def on_terminal(verbosity: int) -> Iterator[None]:
    """Log on the terminal, and nowhere else, until the block ends.

    Parameters
    ----------
    verbosity
        -1: warnings and errors. 0: what happens, and of many failures of one kind only the first. 1: all that the
        program logs. 2: what libraries log, too.
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
    # Each step of a compilation: hundreds of thousands of lines.
    numba.setLevel(logging.INFO)
    early = MemoryHandler(EARLY_RECORDS, flushLevel=NEVER)
    logger.addHandler(early)
    # Of all there is; what reaches the terminal is the handler's choice.
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
    """Keep all that is logged in a file, from the program's first word on, and a crash file of each kind of failure.

    Parameters
    ----------
    folder
        Made when missing.

    Raises
    ------
    OSError
        The folder cannot be written to.
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
        logger.debug("the run ends: %s", error, exc_info=True)
        raise
    except KeyboardInterrupt:
        logger.debug("interrupted")
        raise
    finally:
        for handler in (file, crashes):
            logger.removeHandler(handler)
            handler.close()


class LineFormatter(logging.Formatter):
    """Gives each message one line, whatever names of files it has; tracebacks have theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """Put a message into one line."""
        return one_line(super().formatMessage(record))


def _environment() -> list[str]:
    """List the environment variables that decide how the run goes; others are nobody's business."""
    return [f"{name}={value}" for name, value in sorted(os.environ.items()) if ENVIRONMENT.match(name)]


def _software() -> str:
    """List the versions that a run depends on."""
    found = [f"{name} {number}" for name, number in versions_of(LIBRARIES).items()]
    return ", ".join([*found, platform.platform()])


class _FirstOfItsKind(logging.Filter):
    """Lets one failure of each kind through."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is shown; one of a failure has its `reason`."""
        reason = getattr(record, "reason", None)
        if reason is None:
            return True
        kind = kind_of(reason)
        is_first = kind not in self._seen
        self._seen.add(kind)
        return is_first


class _LogFile(logging.FileHandler):
    """A file that may become unwritable without harm to the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Go on: the terminal has what the file lacks."""

    def close(self) -> None:
        """Close the file; on a full disk without its last lines."""
        with suppress(OSError):
            super().close()


class _CrashFiles(logging.Handler):
    """Writes a file with the traceback for the first failure of each kind: the same error in the same line."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._seen: set[tuple[type[BaseException], str, int | None]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a file, if this is the traceback of a failure of another kind."""
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
            f"Further failures of this kind have no file of their own: {LOG_FILE} has them all, lesions.tsv each "
            "lesion's reason.\n"
        )
        # A full disk may be what failed.
        with suppress(OSError):
            (self._folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
