"""Text for people: names that are safe to show, suggestions for typing errors, numbers, and amounts of bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from difflib import get_close_matches
from fractions import Fraction

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
"""Units of memory, each 1024 times the one before."""

SIMILAR = 0.75
"""Smallest similarity, from 0 to 1, of a word and a suggestion: words with fewer letters in common are others."""


def one_line(text: str) -> str:
    """Escape text for one line of a table or log: file names may contain newlines and terminal control codes."""
    # Tables have thousands of cells. Of all white space, only the space itself is printable.
    if text.isprintable():
        return text
    visible = (" " if char.isspace() else char for char in text)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in visible)


def suggest(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that is most similar, as in ": did you mean X?"; empty if none is similar."""
    near = get_close_matches(word, list(known), n=1, cutoff=SIMILAR)
    return "".join(f": did you mean {other}?" for other in near)


def tell_apart(values: Sequence[float]) -> list[str]:
    """Format numbers with six digits, or with as many as it takes for different numbers to look different."""
    shown = []
    for digits in range(6, 18):
        shown = [f"{value:.{digits}g}" for value in values]
        if len(set(shown)) == len(set(values)):
            break
    return shown


def tell_bytes_apart(needed: int, available: int) -> tuple[str, str]:
    """Format two numbers of bytes as `format_bytes`, or in bytes if different numbers would look the same."""
    shown = format_bytes(needed), format_bytes(available)
    return shown if shown[0] != shown[1] or needed == available else (f"{needed} B", f"{available} B")


def suggest_labels(labels: Iterable[str], known: Iterable[str]) -> str:
    """Suggest the known BIDS labels that are meant by unknown ones: by what they mean, or else by their letters.

    `1` means `001`, and `01,02` means two labels. Empty if nothing is similar.
    """
    labels, known = list(labels), sorted(known)
    parts = [part for label in labels for part in re.split(r"[,;\s]+", label) if part]
    if len(parts) > len(labels):
        return f": separate labels by spaces, as in {' '.join(parts)}"
    alike = [near for near in known if _meaning(near) in map(_meaning, labels)]
    if alike:
        return f": did you mean {' '.join(alike)}?"
    return suggest(labels[0], known) if labels else ""


def _meaning(label: str) -> str:
    """Return a BIDS label without case, prefix, separators and leading zeros."""
    plain = re.sub(r"[^a-z0-9]", "", re.sub(r"^(sub|ses)-?", "", label.lower()))
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", plain)


def format_seconds(seconds: float) -> str:
    """Format a duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def format_bytes(n: int) -> str:
    """Format a number of bytes for people, as in 512 B, 17 KiB and 1.3 GiB."""
    size = float(n)
    for unit in UNITS:
        if round(size, 1) < 1024 or unit == UNITS[-1]:
            break
        size /= 1024
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"


def layout_rows(rows: Mapping[str, str], width: int | None = None) -> str:
    """Format names and values as a table, one row for each.

    Parameters
    ----------
    width
        Characters of the column of names; by default two more than the longest name has.
    """
    width = width or max(map(len, rows)) + 2
    return "".join(f"{name:{width}}{value}\n" for name, value in rows.items())


def percent(fraction: float, digits: int = 3) -> str:
    """Format a fraction as a percentage for people, as in 12.5 %.

    It is rounded half up to `digits` significant digits; only a fraction of 0 is 0 %, and one below 1 is not 100 %.
    """
    if fraction != fraction:
        return "\N{EN DASH} %"
    # Seven digits hide the rounding errors of sums of float32.
    exact = Decimal(f"{100 * fraction:.7g}")
    last_digit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    rounded = exact.quantize(last_digit, ROUND_HALF_UP)
    if exact < 100 <= rounded:
        rounded -= last_digit
    return f"{rounded.normalize():f} %"


def decimal(number: float | None, digits: int = 3) -> str:
    """Return a number as text, with some significant digits and a true minus sign; a dash for None and NaN."""
    if number is None or number != number:
        return "\N{EN DASH}"
    rounded = float(f"{number:.{digits}g}")
    text = f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"
    return text.replace("-", "\N{MINUS SIGN}").replace(",", "\N{NARROW NO-BREAK SPACE}")


def parse_bytes(text: str) -> int:
    """Parse an amount of memory, and return bytes.

    8G, 8GB and 8GiB are equal: prefixes are powers of 1024. A number without a unit is in MB.

    Raises
    ------
    ValueError
        If the text is not an amount of memory, or is less than one byte.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(?:I?B)?|(B))?", text.strip().upper())
    if match is None:
        raise ValueError(
            f"{text!r} is not an amount of memory: use a number with K, M, G or T, such as 8G or 500M; a number "
            "without a unit is in MB"
        )
    number, prefix, bare_bytes = match.groups()
    power = 0 if bare_bytes else "_KMGT".index(prefix or "M")
    n = int(Fraction(number) * 1024**power)
    if n < 1:
        raise ValueError(f"{text!r} is less than one byte: use a positive amount of memory, such as 8G")
    return n
