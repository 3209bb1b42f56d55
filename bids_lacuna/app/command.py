"""The base of both command lines: parser, exit statuses, and errors as one sentence on stderr."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from functools import wraps
from pathlib import Path
from signal import Signals
from typing import Any, NoReturn, Protocol

import argcomplete

from bids_lacuna._version import __version__
from bids_lacuna.app.suggestions import suggest_option
from bids_lacuna.runtime import logs
from bids_lacuna.runtime.signals import Terminated, terminations_raised
from bids_lacuna.runtime.streams import lenient_streams
from bids_lacuna.spaces import nearest_template

logger = logging.getLogger("bids_lacuna")

NAMES_WIDTH = 20
"""Characters of the column of names in what a dry run prints."""


class Main(Protocol):
    """The main function of a program."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Return the exit status for command-line arguments, by default those of the process."""


class Exit(IntEnum):
    """Exit statuses of BIDS Apps."""

    OK = 0
    FAILED = 1
    """A lesion failed or could not be added to, no lesion could be mapped, or the memory is too small."""
    NOT_BIDS = 16
    UNKNOWN_LEVEL = 17
    NO_FILES_SELECTED = 18
    USAGE = 64
    BAD_DATA = 65
    NO_INPUT = 66
    CANNOT_CREATE = 73
    INPUT_OUTPUT = 74
    TEMPORARY = 75
    """The Dask cluster, or the server of a download, cannot be reached; rerunning the same command resumes."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    """The reader of stdout has ended, as `head` does."""
    TERMINATED = 143
    """Ended by SIGTERM, SIGHUP, SIGUSR2 or SIGXCPU."""


class Stop(Exception):  # noqa: N818  not every status is an error
    """The end of the program, with a sentence for the user and an exit status."""

    def __init__(self, status: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Parser(argparse.ArgumentParser):
    """An argument parser with the exit statuses of BIDS Apps and the options that both programs share."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument("--version", action="version", version=f"bids-lacuna {__version__}")
        # Other defaults of a command's parser would overwrite what was given before the command's name.
        verbosity = self.add_mutually_exclusive_group()
        verbosity.add_argument(
            "-v",
            "--verbose",
            action="count",
            default=argparse.SUPPRESS,
            help="log details, and a traceback for each failure; -vv: also the messages of libraries",
        )
        verbosity.add_argument(
            "-q",
            "--quiet",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show only warnings and errors, and no progress bar",
        )

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a command line, and keep in mind which argument takes which words."""
        self._taken: list[tuple[argparse.Action, list[str]]] = []
        return super().parse_known_args(*args, **kwargs)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse has no public place where an argument and its words are known before they are checked.
        self._taken.append((action, list(arg_strings)))
        return super()._get_values(action, arg_strings)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Return what an abbreviation may mean: two spellings of one option are no ambiguity."""
        found: dict[int, Any] = {}
        for match in super()._get_option_tuples(option_string):
            found.setdefault(id(match[0]), match)
        return list(found.values())

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit."""
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: error: {message}{self._describe_taken(message)}\n")

    def _describe_taken(self, error: str) -> str:
        """Describe what took the words of missing positional arguments; empty if nothing did."""
        taken = getattr(self, "_taken", [])
        needed = [action for action in self._actions if not action.option_strings]
        if {id(action) for action, _ in taken} >= {id(action) for action in needed}:
            return ""
        following = [*(action for action, _ in taken[1:]), None][: len(taken)]
        suspects = [
            f"{action.option_strings[0]} took {' '.join(words)}"
            for (action, words), after in zip(taken, following, strict=True)
            if action.option_strings and len(words) > (0 if action.nargs is None and after in needed else 1)
        ]
        read = [f"{words[0]} is read as {action.metavar}" for action, words in taken if action in needed]
        # After other errors, the words that follow have not been read yet.
        if not suspects and not error.startswith("the following arguments are required"):
            return ""
        advice = f"; put {' '.join(str(action.metavar) for action in needed)} before the options" if suspects else ""
        return f": {', '.join([*suspects, *read])}{advice}" if suspects or read else ""


def complete_words(parser: Parser) -> None:
    """If a shell asks for completions, print them and exit."""
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
        The command; it raises `Stop` to exit with a sentence.
    interrupted
        Sentence printed after Ctrl-C, SIGTERM or another signal that ends the program.

    Returns
    -------
    int
        The exit status.
    """
    started = time.monotonic()
    arguments, unknown = parser.parse_known_args(
        argv, argparse.Namespace(verbose=0, quiet=False, parser=parser, started=started)
    )
    if unknown:
        # By default, argparse would print the usage of the program instead of the command's.
        first = unknown[0].partition("=")[0]
        flags = [flag for action in arguments.parser._actions for flag in action.option_strings]
        near = suggest_option(first, flags) if first.startswith("-") else ""
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
    # Outside the block, for a signal may also come while it ends.
    try:
        with logs.on_terminal(-1 if arguments.quiet else arguments.verbose), terminations_raised():
            return _run_to_status(parser, arguments, run)
    except Terminated as end:
        sys.stderr.write(f"{parser.prog}: {interrupted} ({Signals(end.number).name})\n")
        return Exit.TERMINATED
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: {interrupted}\n")
        return Exit.INTERRUPTED


def _run_to_status(parser: Parser, arguments: argparse.Namespace, run: Callable[[argparse.Namespace], Exit]) -> int:
    """Run a command; its errors become sentences and statuses."""
    try:
        return run(arguments)
    except Stop as stop:
        logger.debug("traceback of the error below", exc_info=True)
        sys.stderr.write(f"{parser.prog}: error: {stop}\n")
        return stop.status
    except PermissionError as error:
        logger.debug("traceback of the error below", exc_info=True)
        sys.stderr.write(f"{parser.prog}: error: {describe_permission(error)}\n")
        return Exit.NO_INPUT
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"{parser.prog}: error: {error.name} is not installed for {sys.executable}: run `make demo` and use "
            ".venv/bin/python, or `pip install .`\n"
        )
        return Exit.FAILED


def tolerate_lost_output(program: str) -> Callable[[Main], Main]:
    """Decorate the main function of a program: what it cannot write to stdout or stderr does not stop it.

    The program ends as otherwise, except that a success without its output has the exit status `BROKEN_PIPE`, or
    `INPUT_OUTPUT` and a sentence.
    """

    def decorate(main: Main) -> Main:
        @wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            with lenient_streams() as output:
                try:
                    status = main(argv)
                except SystemExit as end:
                    output.finish()
                    if end.code or not output.failure:
                        raise
                    status = Exit.OK
                output.finish()
                if status != Exit.OK or not output.failure:
                    return status
                if isinstance(output.failure, BrokenPipeError):
                    return Exit.BROKEN_PIPE
                sys.stderr.write(
                    f"{program}: error: stdout could not be written ({output.failure}): redirect it to a file on "
                    "another disk\n"
                )
                return Exit.INPUT_OUTPUT

        return run

    return decorate


@contextmanager
def ending(status: Exit, *errors: type[Exception], saying: str = "") -> Iterator[None]:
    """Turn errors of a block into `Stop`, with their own message or with `saying` before it."""
    try:
        yield
    except errors as error:
        sentence = describe_permission(error) if isinstance(error, PermissionError) else str(error)
        raise Stop(status, f"{saying} ({error})" if saying else sentence) from error


def describe_permission(error: PermissionError) -> str:
    """Describe an error of permissions: the system's own message does not say what to do."""
    if error.filename is None:
        return str(error)
    return f"{error.filename} may not be opened: check its permissions, and those of the folders above it"


def make_folder(folder: Path) -> Path:
    """Create a folder, and check that it can be written to."""
    with ending(Exit.CANNOT_CREATE, OSError, saying=f"the folder {folder} cannot be created: choose another one"):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise Stop(Exit.CANNOT_CREATE, f"the folder {folder} cannot be written to: choose another one")
    return folder


def make_cache_folder(folder: Path) -> bool:
    """Create a folder for a cache, and return whether it can be written to.

    Only a path that cannot exist is an error: the program does without a cache on a full or read-only disk.
    """
    with suppress(OSError):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            make_folder(folder)
    return os.access(folder, os.W_OK)


def warn_of_space(space: str) -> None:
    """Warn if a space's name is probably a misspelt template."""
    if near := nearest_template(space):
        logger.warning("the space %s is not a template of BIDS: did you mean %s?", space, near)


def label(text: str) -> str:
    """Parse a BIDS label."""
    if not re.fullmatch(r"[A-Za-z0-9+]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} becomes part of file names: use letters and digits only")
    return text


def connectome_name(text: str) -> str:
    """Parse a connectome's name."""
    if not re.fullmatch(r"[A-Za-z0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} becomes part of file names: use letters and digits only")
    return text


def positive_integer(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def fraction(text: str) -> float:
    """Parse a fraction above 0 and up to 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return number
