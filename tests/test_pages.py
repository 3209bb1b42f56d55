"""Numbers and links on pages, and that nothing put into them becomes markup."""

from __future__ import annotations

import pytest

from bids_lacuna.report.pages import anchor, fixed, href, position


def test_fixed() -> None:
    """Numbers of a column have the same decimals; unknown ones are a dash."""
    numbers = [fixed(number, 2) for number in (0.5, -0.126, 12, None, float("nan"))]
    assert numbers == ["0.50", "\N{MINUS SIGN}0.13", "12.00", "\N{EN DASH}", "\N{EN DASH}"]


def test_position() -> None:
    """Coordinates are rounded to whole millimetres."""
    assert position((-40.2, 7.6, 0)) == "\N{MINUS SIGN}40, 8, 0"


@pytest.mark.parametrize("name", ["a b.png", 'a"b.png', "javascript:alert(1)", "a#b?c%20.png", "<b>.png"])
def test_links_stay_links_to_files(name: str) -> None:
    """A file name cannot end the attribute, name a protocol, or become a query or fragment."""
    link = href(name)
    assert link.startswith("./")
    assert not set(link) & set("\"'<>#?: ")


def test_anchor() -> None:
    """An id has only letters, digits and hyphens."""
    assert anchor('lesion "1"_ü') == "lesion--1---"
