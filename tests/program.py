"""The command lines, run within this process or as a user runs them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from bids_lacuna import cli

# Imported now, since a test that runs as another user may not be allowed to.
from bids_lacuna.app import connectome as _connectome  # noqa: F401
from bids_lacuna.app import participant as _participant  # noqa: F401

RUN = Path(__file__).parents[1] / "run.py"

CONNECTOME_PROGRAM = (
    sys.executable,
    "-c",
    "import sys; from bids_lacuna.cli import connectome_main; sys.exit(connectome_main())",
)
"""Command that runs `bids-lacuna-connectome` also where its script is not installed."""

PATIENCE_S = 100.0
"""Seconds after which a test stops waiting for a process; pytest ends a test a little later."""

Ended = subprocess.CompletedProcess[str]
"""Exit status, stdout and stderr of a program, within this process or not."""


def environ_without(*prefixes: str) -> dict[str, str]:
    """Return the environment without some variables, and without coverage, which writes files of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith((*prefixes, "COVERAGE_"))}


def run_as_user(*arguments: object, **environ: str) -> Ended:
    """Run the BIDS App in a process of its own, with additional environment variables."""
    return subprocess.run(
        [sys.executable, RUN, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **environ}
    )


def status_of(main: Callable[[Sequence[str]], int], *arguments: object) -> int:
    """Return the exit status of a program that runs within this process."""
    words = list(map(str, arguments))
    environ = dict(os.environ)
    try:
        # The log and run.json have the command line of the process; -w sets variables for numba.
        with patch.object(sys, "argv", [str(RUN), *words]):
            return int(main(words))
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        os.environ.clear()
        os.environ.update(environ)


def capture(main: Callable[[Sequence[str]], int], *arguments: object) -> Ended:
    """Run a program within this process; the output of its worker processes is not captured."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = status_of(main, *arguments)
    return subprocess.CompletedProcess([], status, out.getvalue(), err.getvalue())


def run(*arguments: object) -> Ended:
    """Run the BIDS App within this process."""
    return capture(cli.main, *arguments)


def map_lesions(bids: Path, out: Path, connectome: Path, *options: object) -> Ended:
    """Run the participant level within this process, without pages: they are tested with the reports."""
    return run(bids, out, "participant", "--connectome", connectome, "--no-reports", *options)


def read_table(out: Path) -> list[dict[str, str]]:
    """Read the newest lesions.tsv of an output."""
    newest = max(out.glob("logs/*/lesions.tsv"), key=lambda path: path.stat().st_mtime_ns)
    return read_tsv(newest)


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Read a table."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def wait_until(happened: Callable[[], object], every_s: float = 0.002) -> None:
    """Wait until something has happened, at most `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"nothing happened within {PATIENCE_S:.0f} s"
        time.sleep(every_s)


def last_line(text: str) -> str:
    """Return the last line of stderr, which has no traceback."""
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]
