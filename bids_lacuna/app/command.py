"""What the commands share: their parser, exit statuses, and failures in one sentence."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import argcomplete

from bids_lacuna._version import __version__
from bids_lacuna.runtime import logs
from bids_lacuna.runtime.signals import Terminated, sigterm_raised
from bids_lacuna.spaces import nearest_template
from bids_lacuna.text import meant

logger = logging.getLogger("bids_lacuna")


class Exit(IntEnum):
    """Exit statuses of BIDS Apps."""

    OK = 0
    FAILED = 1
    """A lesion failed, or none could be mapped; or the memory is too small."""
    NOT_BIDS = 16
    UNKNOWN_LEVEL = 17
    NO_FILES_SELECTED = 18
    USAGE = 64
    BAD_DATA = 65
    NO_INPUT = 66
    CANNOT_CREATE = 73
    INPUT_OUTPUT = 74
    TEMPORARY = 75
    """A Dask cluster is out of reach; the same command goes on."""
    INTERRUPTED = 130
    TERMINATED = 143


class Stop(Exception):  # noqa: N818  an end with a status, not always an error
    """The program cannot go on: a sentence for the user, and the exit status."""

    def __init__(self, status: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Parser(argparse.ArgumentParser):
    """An argument parser that exits as BIDS Apps do, with the options that all commands have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument("--version", action="version", version=f"bids-lacuna {__version__}")
        # With other defaults, a command's own would undo what is said before the command's name.
        how_much = self.add_mutually_exclusive_group()
        how_much.add_argument(
            "-v",
            "--verbose",
            action="count",
            default=argparse.SUPPRESS,
            help="log more, with a traceback for each failure; -vv: what libraries log, too",
        )
        how_much.add_argument(
            "-q",
            "--quiet",
            action="store_true",
            default=argparse.SUPPRESS,
            help="log warnings and errors only, and show no bar; the log file has all the rest",
        )

    def error(self, message: str) -> NoReturn:
        """Print the usage and the mistake, and exit."""
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: error: {message}\n")


def complete_words(parser: Parser) -> None:
    """Answer a shell that asks how a word may go on, and exit."""
    if "_ARGCOMPLETE" in os.environ:
        argcomplete.autocomplete(parser)


def run_command(
    parser: Parser, argv: Sequence[str] | None, run: Callable[[argparse.Namespace], Exit], interrupted: str
) -> int:
    """Parse a command line and run the command.

    Parameters
    ----------
    argv
        Command-line arguments; by default those of this process.
    run
        What the command does; it raises `Stop` when it cannot go on.
    interrupted
        What is said after Ctrl-C or SIGTERM.

    Returns
    -------
    int
        The exit status.
    """
    arguments, unknown = parser.parse_known_args(argv, argparse.Namespace(verbose=0, quiet=False, parser=parser))
    if unknown:
        # By itself argparse would print the usage without that of the command, which the options are of.
        first = unknown[0].partition("=")[0]
        flags = [flag for action in arguments.parser._actions for flag in action.option_strings]
        near = meant(first, flags) if first.startswith("-") else ""
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
    with logs.on_terminal(-1 if arguments.quiet else arguments.verbose), sigterm_raised():
        try:
            return run(arguments)
        except Stop as stop:
            logger.debug("traceback of the error below", exc_info=True)
            sys.stderr.write(f"{parser.prog}: error: {stop}\n")
            return stop.status
        except ModuleNotFoundError as error:
            sys.stderr.write(
                f"{parser.prog}: error: {error.name} is not installed for {sys.executable}: run `make demo` and use "
                ".venv/bin/python, or `pip install .`\n"
            )
            return Exit.FAILED
        except Terminated:
            sys.stderr.write(f"{parser.prog}: {interrupted} (SIGTERM)\n")
            return Exit.TERMINATED
        except KeyboardInterrupt:
            sys.stderr.write(f"{parser.prog}: {interrupted}\n")
            return Exit.INTERRUPTED


@contextmanager
def ending(status: Exit, *errors: type[Exception], saying: str = "") -> Iterator[None]:
    """Turn errors of a block into the program's end with a status, in their own words or after those given."""
    try:
        yield
    except errors as error:
        raise Stop(status, f"{saying} ({error})" if saying else str(error)) from error


def make_folder(folder: Path) -> Path:
    """Make a folder that the program may write to."""
    with ending(Exit.CANNOT_CREATE, OSError, saying=f"the folder {folder} cannot be made: name another place"):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise Stop(Exit.CANNOT_CREATE, f"the folder {folder} cannot be written to: name another place")
    return folder


def label(text: str) -> str:
    """Read a BIDS label."""
    if not re.fullmatch(r"[A-Za-z0-9+]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} becomes part of file names: use letters and digits only")
    return text


def warn_of_space(space: str) -> None:
    """Warn of a space that BIDS does not know, but whose name is almost one of its templates'."""
    if near := nearest_template(space):
        logger.warning("%s is no template that BIDS knows: is %s meant?", space, near)


def connectome_name(text: str) -> str:
    """Read a connectome's name."""
    if not re.fullmatch(r"[A-Za-z0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} becomes part of file names: use letters and digits only")
    return text


def positive_integer(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def fraction(text: str) -> float:
    """Read a share above 0, of at most 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0, of at most 1")
    return number
