"""Text for people: names that somebody else chose must not act on where they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def one_line(text: str) -> str:
    """Put text into one line of a table or a log: names of files may hold newlines and what terminals obey."""
    visible = (" " if char.isspace() else char for char in text)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in visible)


def meant(word: str, known: Iterable[str]) -> str:
    """Ask for what is known and almost this word: ": is X meant?"; nothing where nothing is near."""
    return "".join(f": is {near} meant?" for near in get_close_matches(word, list(known), n=1))
