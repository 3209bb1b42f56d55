"""Types of the values of options, as argparse calls them."""

from __future__ import annotations

import argparse

from bids_lacuna.app.command import positive_integer
from bids_lacuna.text import parse_bytes


def transform(text: str) -> str:
    """Check that a text is A:B=FILE; the file of a run's options repeats it."""
    spaces, equals, path = text.partition("=")
    source, colon, target = spaces.partition(":")
    if not (equals and colon and path and source.isalnum() and target.isalnum()):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B=FILE, as in T1w:MNI152NLin6Asym=sub-01_xfm.h5")
    return text


def target(text: str) -> str:
    """Check that a text is NAME=MAP; the file of a run's options repeats it."""
    name, equals, path = text.partition("=")
    if not (equals and path and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MAP, as in depression=depression_circuit.nii.gz")
    if not (name.isascii() and name.isalnum()):
        raise argparse.ArgumentTypeError(
            f"the name {name!r} of a target becomes part of a column's name: use letters and digits only"
        )
    return text


def positive_number(text: str) -> float:
    """Parse a positive number that may become part of file names."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1e-6 <= number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number from 0.000001 to 1000000")
    return number


def group_label(text: str) -> str:
    """Parse the name of a group."""
    if not text.isascii() or not text.isalnum():
        raise argparse.ArgumentTypeError(f"{text!r} becomes part of a folder's name: use letters and digits only")
    return text


def natural_number(text: str) -> int:
    """Parse 0 or a positive integer."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor a positive integer")
    return int(text)


def minutes(text: str) -> float:
    """Parse a number of minutes; 0 is allowed."""
    return 0 if text.strip() == "0" else positive_number(text)


def batch_size(text: str) -> int | str:
    """Parse `auto` or a positive integer."""
    return text if text == "auto" else positive_integer(text)


def memory(text: str) -> int:
    """Parse an amount of memory, and return bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
