"""Pages of HTML from the templates in `templates/`: all that is put into them is escaped, and nothing is fetched."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from bids_lacuna._version import __version__
from bids_lacuna.files import renamed_when_whole


def write_page(path: Path, template: str, **context: Any) -> None:
    """Write a page, whole or not at all.

    Parameters
    ----------
    template
        Its name in the folder of templates; it extends `page.html.jinja`, which has the look of all pages.
    context
        What the template asks for. Text is escaped; paths need the filter `href` beside it.
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
    environment.filters |= {"href": href, "decimal": decimal, "place": place, "anchor": anchor}
    return environment


def href(path: str) -> str:
    """Write a relative path as a link: a name may hold %, # or ?, and its colon would be taken for a protocol's."""
    return quote(f"./{path}")


def anchor(text: str) -> str:
    """Make the name of a place in the page from any text."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)


def decimal(number: float | None, digits: int = 3) -> str:
    """Write a number with some significant digits and a real minus; a dash where there is none."""
    if number is None or number != number:
        return "\N{EN DASH}"
    rounded = float(f"{number:.{digits}g}")
    text = f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"
    return text.replace("-", "\N{MINUS SIGN}").replace(",", "\N{NARROW NO-BREAK SPACE}")


def place(point: tuple[float, float, float]) -> str:
    """Write coordinates in mm."""
    return ", ".join(decimal(round(coordinate)) for coordinate in point) if point[0] == point[0] else "\N{EN DASH}"
