"""Options in TOML files: shared by several runs, or saved by a run so that it can be repeated."""

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
from bids_lacuna.app.suggestions import suggest_option
from bids_lacuna.files import decode_text, renamed_when_whole

FLAG = "--config-file"


def add_config_file(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> list[str]:
    """Insert the options of the file that `--config-file` names before a command line, which takes precedence.

    Parameters
    ----------
    parser
        Parser of the command line.
    argv
        Command-line arguments; by default those of this process.

    Returns
    -------
    list of str
        Command line for the parser.

    Raises
    ------
    SystemExit
        If the file is missing or not valid TOML, or has an unknown option or a value of the wrong type; stderr has
        the error.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # The option may be abbreviated, and a missing value is an error for the program's own parser.
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument(FLAG, type=Path, nargs="?")
    path = finder.parse_known_args(argv)[0].config_file
    if path is None:
        return argv
    try:
        content = tomllib.loads(decode_text(path.read_bytes()))
    except OSError as error:
        parser.exit(Exit.NO_INPUT, f"{parser.prog}: error: the config file {path} cannot be read ({error})\n")
    except ValueError as error:
        parser.error(f"the config file {path} is not valid TOML ({error})")
    given = _given(parser, argv)
    options = _options(parser)
    words = []
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in options:
            parser.error(f"the config file {path} has {key!r}, which is not an option{suggest_option(name, options)}")
        if options[name].dest not in given:
            try:
                words += _words(options[name], name, value)
            except TypeError as error:
                parser.error(f"the config file {path}: {error}")
    # argv is decoded in the user's locale, the file is UTF-8.
    return [os.fsdecode(word.encode()) for word in words] + argv


def write_config(path: Path, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Write the options of a run to a file that repeats it; the file's first line is the command to do so.

    Parameters
    ----------
    arguments
        Namespace returned by the parser.
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
            f"# To repeat this run: cd {shlex.quote(str(Path.cwd()))} && {command}\n{tomli_w.dumps(content)}",
            encoding="utf-8",
            # In a C locale, bytes of paths that are not ASCII are surrogates.
            errors="surrogateescape",
        )


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options that a file may have, by their first long name: those with values, and flags."""
    options = {}
    for action in parser._actions:
        long_names = [flag.removeprefix("--") for flag in action.option_strings if flag.startswith("--")]
        if long_names and FLAG not in action.option_strings and (action.nargs != 0 or action.const is True):
            options[long_names[0]] = action
    return options


def _given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> set[str]:
    """Return the destinations that a command line sets, and those of options that it excludes."""
    # argparse keeps an existing attribute as it is unless the option is given, and extends a copy of it.
    before: dict[str, list[str]] = {action.dest: [] for action in parser._actions if action.dest != "verbose"}
    after, _ = parser.parse_known_args(argv, argparse.Namespace(verbose=0, **before))
    given = {dest for dest, unset in before.items() if getattr(after, dest) is not unset}
    given |= {"verbose"} if after.verbose else set()
    for group in parser._mutually_exclusive_groups:
        exclusive = {action.dest for action in group._group_actions}
        given |= exclusive if exclusive & given else set()
    return given


def _words(action: argparse.Action, name: str, value: object) -> list[str]:
    """Format an option as words of a command line."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be true or false, not {value!r}")
        return [f"--{name}"] if value else []
    values = value if isinstance(value, list) and action.nargs else [value]
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values):
        kinds = "a string, a number or a list of these" if action.nargs else "a string or a number"
        raise TypeError(f"{name} must be {kinds}, not {value!r}")
    return [f"--{name}={each}" for each in values]


def _plain(action: argparse.Action, value: Any) -> Any:
    """Convert a value to a type of TOML."""
    if isinstance(value, list):
        return [_plain(action, each) for each in value]
    if action.dest == "mem":
        return f"{value}B"
    return value if isinstance(value, bool | int | float) else str(value)
