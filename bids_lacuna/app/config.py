"""Options in a TOML file: as many runs as one likes with the same ones, and each run's own to repeat it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from bids_lacuna.app.command import Exit
from bids_lacuna.files import renamed_when_whole
from bids_lacuna.text import meant

FLAG = "--config-file"


def add_config_file(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> list[str]:
    """Put the options of the file that `--config-file` names before those of a command line, which win.

    Parameters
    ----------
    parser
        Of the command line.
    argv
        Command-line arguments; by default those of this process.

    Returns
    -------
    list of str
        A command line for the parser.

    Raises
    ------
    SystemExit
        There is no such file, it is no TOML, or it has an unknown option or one with another kind of value; what is
        wrong stands on stderr.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # What is missing or shortened here, the program's own parser judges.
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument(FLAG, type=Path, nargs="?")
    path = finder.parse_known_args(argv)[0].config_file
    if path is None:
        return argv
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        parser.exit(Exit.NO_INPUT, f"{parser.prog}: error: the config file {path} cannot be read ({error})\n")
    except ValueError as error:
        parser.error(f"the config file {path} is no TOML ({error})")
    given = _given(parser, argv)
    options = _options(parser)
    words = []
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in options:
            parser.error(f"the config file {path} has {key!r}, which is no option{meant(name, options)}")
        if options[name].dest not in given:
            try:
                words += _words(options[name], name, value)
            except TypeError as error:
                parser.error(f"the config file {path}: {error}")
    # As a command line has them in the user's locale.
    return [os.fsdecode(word.encode()) for word in words] + argv


def write_config(path: Path, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Write the options of a run into a file that repeats it; how to is its first line.

    Parameters
    ----------
    arguments
        As the parser made them.
    """
    content = {}
    for name, action in _options(parser).items():
        value = getattr(arguments, action.dest, None)
        if value is not None and value is not False and value != []:
            content[name] = _plain(action, value)
    places = [str(Path(place).absolute()) for place in (arguments.bids_dir, arguments.output_dir)]
    command = shlex.join([parser.prog, *places, arguments.analysis_level, FLAG, str(path.absolute())])
    with renamed_when_whole(path) as temporary:
        temporary.write_text(
            f"# To run this again: cd {shlex.quote(str(Path.cwd()))} && {command}\n{tomli_w.dumps(content)}",
            encoding="utf-8",
            # In a C locale, paths have their bytes in them.
            errors="surrogateescape",
        )


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """List what a file may have, by the first long name: options that take values, and flags."""
    options = {}
    for action in parser._actions:
        long_names = [flag.removeprefix("--") for flag in action.option_strings if flag.startswith("--")]
        if long_names and FLAG not in action.option_strings and (action.nargs != 0 or action.const is True):
            options[long_names[0]] = action
    return options


def _given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> set[str]:
    """Tell what a command line decides itself: the options that it has, and those that exclude these."""
    # argparse leaves alone what is there before, and extends a copy of it.
    before: dict[str, list[str]] = {action.dest: [] for action in parser._actions if action.dest != "verbose"}
    after, _ = parser.parse_known_args(argv, argparse.Namespace(verbose=0, **before))
    given = {dest for dest, unset in before.items() if getattr(after, dest) is not unset}
    given |= {"verbose"} if after.verbose else set()
    for group in parser._mutually_exclusive_groups:
        exclusive = {action.dest for action in group._group_actions}
        given |= exclusive if exclusive & given else set()
    return given


def _words(action: argparse.Action, name: str, value: object) -> list[str]:
    """Write an option as a command line has it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise TypeError(f"{name} is true or false, not {value!r}")
        return [f"--{name}"] if value else []
    values = value if isinstance(value, list) and action.nargs else [value]
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values):
        raise TypeError(f"{name} is a text or a number{', or a list of them' if action.nargs else ''}, not {value!r}")
    return [f"--{name}={each}" for each in values]


def _plain(action: argparse.Action, value: Any) -> Any:
    """Write a value as TOML has it."""
    if isinstance(value, list):
        return [_plain(action, each) for each in value]
    if action.dest == "mem":
        return f"{value}B"
    return value if isinstance(value, bool | int | float) else str(value)
