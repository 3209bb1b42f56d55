"""Text for people, and amounts of bytes."""

from __future__ import annotations

import pytest

from bids_lacuna.text import (
    decimal,
    format_bytes,
    format_seconds,
    layout_rows,
    one_line,
    parse_bytes,
    percent,
    suggest,
    suggest_labels,
    tell_apart,
    tell_bytes_apart,
)

MIB = 2**20


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sub-01_label-Läsion", "sub-01_label-Läsion"),
        ("two\nlines\tand\ra tab", "two lines and a tab"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\u202eb\udcff", "a\\u202eb\\udcff"),
    ],
)
def test_text_for_one_line_has_no_control_codes(text: str, shown: str) -> None:
    """White space becomes spaces, and other characters that terminals do not print are escaped."""
    assert one_line(text) == shown


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (1 / 8, "12.5 %"),
        (1 / 16, "6.25 %"),
        (1 / 32, "3.13 %"),
        (1 / 3, "33.3 %"),
        (0.285, "28.5 %"),
        (0.5, "50 %"),
        (0.00001, "0.001 %"),
        (0, "0 %"),
        (0.9996, "99.9 %"),
        (0.99999999, "100 %"),
        (1, "100 %"),
        (26.5 / 40, "66.3 %"),
        (float("nan"), "\N{EN DASH} %"),
    ],
)
def test_percentages_have_three_digits(fraction: float, text: str) -> None:
    """A half is rounded up, and neither is a small part called nothing nor nearly all called all."""
    assert percent(fraction) == text


def test_percentages_with_fewer_digits() -> None:
    """Where they change each minute, two digits are enough."""
    assert [percent(fraction, digits=2) for fraction in (0.125, 0.2249, 0.998)] == ["13 %", "22 %", "99 %"]


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [
        ("participan", ": did you mean participant?"),
        ("groups", ": did you mean group?"),
        ("cohort", ""),
        ("patient", ""),
        ("", ""),
    ],
)
def test_a_similar_word_is_suggested(word: str, suggestion: str) -> None:
    """The most similar of the known words is suggested, or none."""
    assert suggest(word, ["participant", "group"]) == suggestion


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (17 * 2**10, "17 KiB"),
        (612 * MIB, "612 MiB"),
        (MIB - 1, "1 MiB"),
        (int(1.3 * 2**30), "1.3 GiB"),
        (int(137.04 * 2**30), "137 GiB"),
        (3 * 2**40, "3 TiB"),
        (4099 * 2**40, "4099 TiB"),
    ],
)
def test_bytes_have_the_largest_unit_below_them(n_bytes: int, text: str) -> None:
    """Amounts have up to one decimal, and bytes none."""
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("8G", 2**33),
        ("8GB", 2**33),
        ("8GiB", 2**33),
        ("8 gib", 2**33),
        (" 8g ", 2**33),
        ("500M", 500 * MIB),
        ("2.5g", 5 * 2**29),
        ("0.5T", 2**39),
        ("17k", 17 * 2**10),
        ("4000", 4000 * MIB),
        ("512 B", 512),
    ],
)
def test_amounts_of_memory_are_read(text: str, n_bytes: int) -> None:
    """Units may be short or long, in upper or lower case; a number without a unit is in MB."""
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("n_bytes", [1, 512, 17 * 2**10, 612 * MIB, 3 * 2**29, 5 * 2**40])
def test_what_is_written_can_be_read(n_bytes: int) -> None:
    """An amount copied from a message is parsed to the same number of bytes."""
    assert parse_bytes(format_bytes(n_bytes)) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "G", "8X", "8iB", "eight", "2,5G", "1e3", "-8G", "8GG", "8 G 5", "0x10", "nan", ".5G"]
)
def test_text_that_is_no_amount_is_an_error(text: str) -> None:
    """The error repeats the text and shows how to write an amount."""
    with pytest.raises(ValueError, match=r"is not an amount of memory: .* such as 8G") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["0", "0G", "0.0T", "0.1B"])
def test_no_memory_is_an_error(text: str) -> None:
    """Less than one byte is not an amount of memory."""
    with pytest.raises(ValueError, match="less than one byte: use a positive amount"):
        parse_bytes(text)


def test_different_numbers_look_different() -> None:
    """Numbers have six digits, or as many more as it takes; equal ones look the same."""
    assert tell_apart([1, 2.5, 1e-9]) == ["1", "2.5", "1e-09"]
    assert tell_apart([1, 0.99999994]) == ["1", "0.9999999"]
    assert tell_apart([1, 1 - 2**-53]) == ["1", "0.9999999999999999"]
    assert tell_apart([7, 7]) == ["7", "7"]


def test_different_numbers_of_bytes_look_different() -> None:
    """Bytes are rounded, unless that would hide the difference."""
    assert tell_bytes_apart(3 * 2**29, 2**30) == ("1.5 GiB", "1 GiB")
    assert tell_bytes_apart(2**30 + 7, 2**30) == ("1073741831 B", "1073741824 B")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["001,002"], ": separate labels by spaces, as in 001 002"),
        (["001", "002;9"], ": separate labels by spaces, as in 001 002 9"),
        (["1"], ": did you mean 001?"),
        (["sub-1", "2"], ": did you mean 001 002?"),
        (["patient7"], ": did you mean Patient07?"),
        (["ses-pre"], ": did you mean pre?"),
        (["0010"], ": did you mean 001?"),
        (["xyz"], ""),
        ([], ""),
    ],
)
def test_suggested_labels(labels: list[str], words: str) -> None:
    """Labels that mean the same are suggested before those with similar letters; commas are no part of a label."""
    assert suggest_labels(labels, ["001", "002", "Patient07", "pre"]) == words


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (99, "99 s"), (101, "2 min"), (5000, "83 min"), (7000, "1.9 h")]
)
def test_a_duration_has_the_unit_that_people_use(seconds: float, text: str) -> None:
    """Durations are whole seconds or minutes, or hours with a decimal."""
    assert format_seconds(seconds) == text


def test_rows_are_laid_out_in_two_columns() -> None:
    """All values begin two characters after the longest name, or at the given width."""
    rows = {"disk": "1 GiB", "passes": "3"}
    assert layout_rows(rows) == "disk    1 GiB\npasses  3\n"
    assert layout_rows(rows, 10) == "disk      1 GiB\npasses    3\n"


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
    """Numbers have three digits and a true minus sign; unknown ones are a dash."""
    assert decimal(number) == text
