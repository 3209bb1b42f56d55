"""Argument parsers for the reference, with help text escaped for reStructuredText."""

from __future__ import annotations

import argparse
import re

from bids_lacuna.app import connectome_options, options


def app() -> argparse.ArgumentParser:
    """Return the parser of bids-lacuna."""
    return escape_help(options.build_parser())


def connectome() -> argparse.ArgumentParser:
    """Return the parser of bids-lacuna-connectome."""
    return escape_help(connectome_options.build_parser())


def escape_help(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Escape reStructuredText markup in the help of a parser and its subcommands."""
    for action in parser._actions:
        if action.help:
            action.help = re.sub(r"([|*`_\\])", r"\\\1", action.help)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                escape_help(command)
    return parser
