"""What all pages share: numbers, links, and that nothing put into them can be markup."""

from __future__ import annotations

import pytest

from bids_lacuna.report.pages import anchor, decimal, href, place


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.123456, "0.123"),
        (-0.5, "\N{MINUS SIGN}0.5"),
        (99.96, "100"),
        (1234, "1\N{NARROW NO-BREAK SPACE}230"),
        (0, "0"),
        (2.5e-7, "2.5e\N{MINUS SIGN}07"),
        (None, "\N{EN DASH}"),
        (float("nan"), "\N{EN DASH}"),
    ],
)
def test_decimal(number: float | None, text: str) -> None:
    """Three digits, a real minus, and a dash for what is not known."""
    assert decimal(number) == text


def test_place() -> None:
    """Coordinates are whole millimetres."""
    assert place((-40.2, 7.6, 0)) == "\N{MINUS SIGN}40, 8, 0"


@pytest.mark.parametrize("name", ["a b.png", 'a"b.png', "javascript:alert(1)", "a#b?c%20.png", "<b>.png"])
def test_links_stay_links_to_files(name: str) -> None:
    """A file's name cannot end the attribute, name a protocol, or become a query or fragment."""
    link = href(name)
    assert link.startswith("./")
    assert not set(link) & set("\"'<>#?: ")


def test_anchor() -> None:
    """A place's name has letters, digits and hyphens only."""
    assert anchor('lesion "1"_ü') == "lesion--1---"
