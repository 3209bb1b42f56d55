"""HTML pages from the templates in `templates/`: everything is escaped, and nothing is fetched from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from bids_lacuna._version import __version__
from bids_lacuna.files import renamed_when_whole
from bids_lacuna.text import decimal, percent


def write_page(path: Path, template: str, **context: Any) -> None:
    """Write a page atomically.

    Parameters
    ----------
    template
        File name in `templates/`. Each template extends `page.html.jinja`, which all pages share.
    context
        Variables of the template. Text is escaped; paths also need the filter `href`.
    """
    content = _environment().get_template(template).render(version=__version__, **context)
    with renamed_when_whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bids_lacuna.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "href": href,
        "decimal": decimal,
        "fixed": fixed,
        "position": position,
        "anchor": anchor,
        "percent": percent,
    }
    return environment


def href(path: str) -> str:
    """Return the link to a relative path: file names may contain %, # or ?, or a colon like that of a protocol."""
    return quote(f"./{path}")


def anchor(text: str) -> str:
    """Return an HTML id made from any text."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)


def fixed(number: float | None, decimals: int) -> str:
    """Return a number of a table's column, whose numbers all have the same decimals; a dash for None and NaN."""
    if number is None or number != number:
        return "\N{EN DASH}"
    return f"{number:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def position(point: tuple[float, float, float]) -> str:
    """Return coordinates in mm as text; a dash for NaN."""
    return ", ".join(decimal(round(coordinate)) for coordinate in point) if point[0] == point[0] else "\N{EN DASH}"
