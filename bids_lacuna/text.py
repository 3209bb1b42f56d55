"""Text for people: names that somebody else chose must not act on where they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from fractions import Fraction

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
"""Each 1024 times the one before."""


def one_line(text: str) -> str:
    """Put text into one line of a table or a log: names of files may hold newlines and what terminals obey."""
    visible = (" " if char.isspace() else char for char in text)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in visible)


def meant(word: str, known: Iterable[str]) -> str:
    """Ask for what is known and almost this word: ": is X meant?"; nothing where nothing is near."""
    return "".join(f": is {near} meant?" for near in get_close_matches(word, list(known), n=1))


def format_bytes(n: int) -> str:
    """Write a number of bytes for people: 512 B, 17 KiB, 1.3 GiB."""
    size = float(n)
    for unit in UNITS:
        if round(size, 1) < 1024 or unit == UNITS[-1]:
            break
        size /= 1024
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"


def parse_bytes(text: str) -> int:
    """Read an amount of memory: 8G, 8GB and 8GiB are the same, a bare number is in MB; factors are 1024.

    Raises
    ------
    ValueError
        The text is no such amount, or zero.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(?:I?B)?|(B))?", text.strip().upper())
    if match is None:
        raise ValueError(
            f"{text!r} is no amount of memory: give a number with K, M, G or T, such as 8G or 500M; "
            "a bare number is in MB"
        )
    number, prefix, bare_bytes = match.groups()
    power = 0 if bare_bytes else "_KMGT".index(prefix or "M")
    n = int(Fraction(number) * 1024**power)
    if n < 1:
        raise ValueError(f"{text!r} is no memory at all: give an amount above 0, such as 8G")
    return n
