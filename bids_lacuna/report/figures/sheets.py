"""Pictures as sheets of palette indices: slices, text and colour bars, written as PNG files."""

from __future__ import annotations

import struct
import zlib
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from isal import isal_zlib
from PIL import Image, ImageDraw, ImageFont

from bids_lacuna.files import renamed_when_whole
from bids_lacuna.report.figures.colours import (
    BLACK,
    HIDDEN,
    N_INKS,
    WHITE,
    Scale,
    palette,
    two_sided_ticks,
)

Array = np.ndarray

FONT_SIZE = 15
"""Pixels."""

BAR_PIXELS = 140
"""Width beside the slices, for the colour bar and its numbers."""

BAR_HEIGHT = 0.56
"""Fraction of a sheet's height."""

TALLEST_BAR = 320
"""Pixels."""

HIDDEN_FRACTION = 0.2
"""Greatest fraction of a colour bar for values that are not shown, as in the viewer: the colours need the space."""

N_TEXTS = 512
"""Lines of text in memory, such as the letters of the sides."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Sheet:
    """A picture that is being put together."""

    def __init__(self, width: int, height: int) -> None:
        """Make a white sheet; sizes in pixels."""
        self.pixels: Array = np.full((height, width), WHITE, np.uint8)

    def paste(self, picture: Array, left: int, top: int) -> None:
        """Put an array of palette indices onto the sheet."""
        height, width = picture.shape
        self.pixels[top : top + height, left : left + width] = picture

    def write(self, text: str, x: int, y: int, anchor: str = "la", *, bold: bool = False) -> None:
        """Write a line of text onto a white part of the sheet.

        Parameters
        ----------
        x, y
            Position of the anchor.
        anchor
            Pillow's letters: "la" for the upper left corner, "ma" for the middle of the upper edge.
        """
        levels, left, top = _ink(text, anchor, bold)
        column, row = max(0, x + left), max(0, y + top)
        place = self.pixels[row : row + levels.shape[0], column : column + levels.shape[1]]
        levels = levels[: place.shape[0], : place.shape[1]]
        np.copyto(place, levels, where=levels > 0)

    def draw_colour_bar(self, scale: Scale, left: int) -> None:
        """Draw a colour bar in the middle of the sheet's height, with a line at each threshold."""
        height = min(TALLEST_BAR, round(BAR_HEIGHT * self.pixels.shape[0]))
        top = (self.pixels.shape[0] - height) // 2
        values = _bar_values(scale, height)
        column = scale.indices(values)
        column[column == 0] = HIDDEN
        edges = (-scale.threshold, scale.threshold) if scale.two_sided else ()
        for edge in edges:
            row = int(np.abs(values - edge).argmin())
            column[row : row + 2] = BLACK
        bar = np.repeat(column[:, np.newaxis], 20, axis=1)
        bar[:, [0, -1]] = BLACK
        bar[[0, -1]] = BLACK
        self.paste(bar, left, top)
        self.write(scale.name, left, top - 14, "ls", bold=True)
        ticks = two_sided_ticks(scale.limit, scale.threshold) if scale.two_sided else scale.ticks
        for tick in ticks:
            row = top + int(np.abs(values - tick).argmin())
            self.pixels[row, left + 20 : left + 25] = BLACK
            lines = _label(scale, tick).split("\n")
            for number, line in enumerate(lines):
                self.write(line, left + 29, row + round(18 * (number - (len(lines) - 1) / 2)), "lm")

    def save(self, path: Path, scale: Scale) -> None:
        """Write the sheet as an indexed PNG file, with the colours of a scale."""
        with renamed_when_whole(path) as temporary:
            temporary.write_bytes(encode(self.pixels, palette(scale)))


def _bar_values(scale: Scale, height: int) -> Array:
    """Return the value at each pixel of a colour bar from its upper to its lower end."""
    if not scale.two_sided:
        return np.linspace(scale.limit, 0, height)
    if scale.threshold <= HIDDEN_FRACTION * scale.limit:
        return np.linspace(scale.limit, -scale.limit, height)
    shown = np.linspace(scale.limit, scale.threshold, round(height * (1 - HIDDEN_FRACTION) / 2))
    hidden = np.linspace(scale.threshold, -scale.threshold, height - 2 * shown.size + 2)[1:-1]
    return np.concatenate([shown, hidden, -shown[::-1]])


def _label(scale: Scale, tick: float) -> str:
    """Return a number of a colour bar; the colour at the end of a two-sided one is that of all values beyond."""
    beyond = {scale.limit: "≥ ", -scale.limit: "≤ "}.get(tick, "") if scale.two_sided else ""
    return beyond + scale.tick_label(tick)


def encode(pixels: Array, colours: Array) -> bytes:
    """Return a PNG file of palette indices.

    Parameters
    ----------
    pixels : shape (rows, columns), uint8
    colours : shape (n, 3), uint8
        The palette.
    """
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), np.uint8)
    # The first byte of a row is the filter's number: none.
    rows[:, 1:] = pixels
    # Pillow's zlib takes four times as long.
    data = isal_zlib.compress(rows.tobytes(), 3)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", colours.tobytes()), (b"IDAT", data), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def wrap(text: str, width: int, *, bold: bool = False) -> list[str]:
    """Break a text into lines of at most `width` pixels; a longer word has a line of its own."""
    font = _font(bold)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@lru_cache(maxsize=N_TEXTS)
def _ink(text: str, anchor: str, bold: bool) -> tuple[Array, int, int]:
    """Return a line of text as palette indices, and the position of its upper left corner from the anchor."""
    font = _font(bold)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text, anchor=anchor))
    picture = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(picture).text((-left, -top), text, font=font, fill=255, anchor=anchor)
    return (np.asarray(picture, np.uint16) * (N_INKS - 1) // 255).astype(np.uint8), left, top


@cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    """Load the font that comes with matplotlib: Pillow's own has no minus sign."""
    package = find_spec("matplotlib")
    # The package is only located: importing it takes half a second.
    if package is None or package.origin is None:
        raise FileNotFoundError("matplotlib, whose package has the pictures' font, is not installed: install it")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / name), FONT_SIZE)
