"""Tables of an atlas' regions: BIDS's dseg.tsv, FreeSurfer's colour tables, and lists of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bids_lacuna.files import decode_text, read_table

INDEX_COLUMNS = ("index", "component")
"""Names of the column of indices, in lower case: BIDS's, and that of DiFuMo in TemplateFlow."""

NAME_COLUMNS = ("label", "name", "region", "difumo_names")

HEMISPHERE_COLUMNS = ("hemisphere", "hemi")

SIDES = {"l": "L", "lh": "L", "left": "L", "r": "R", "rh": "R", "right": "R"}
"""Hemispheres in BIDS by their names."""

N_COLOURS = 4
"""Numbers behind the name in FreeSurfer's tables: red, green, blue and alpha."""

ASK_FOR_TABLE = "a table with the columns index and label (or name) is needed, tab-separated, as BIDS has it"


@dataclass(frozen=True)
class Region:
    """A region of an atlas."""

    index: int
    """Its label in the image, or number among its maps; 0 stands for what is in no region."""
    name: str
    hemisphere: str = ""
    """`L`, `R`, or empty if it is not known."""


OUTSIDE = Region(0, "outside")
"""What is in no region."""


def read_regions(path: Path) -> dict[int, Region]:
    """Read a table of regions by their indices.

    Raises
    ------
    ValueError
        It has no column of indices or of names, an index is no whole number, or one occurs twice.
    OSError
        The file cannot be read.
    """
    rows = _read_tsv(path) if path.suffix.lower() == ".tsv" else _read_text(path)
    regions: dict[int, Region] = {}
    for index, name, hemisphere in rows:
        if index in regions:
            raise ValueError(f"{path} has two rows for the index {index}: each region needs an index of its own")
        regions[index] = Region(index, name, SIDES.get(hemisphere.lower(), "") or side_in(name))
    if not regions:
        raise ValueError(f"{path} has no row: {ASK_FOR_TABLE}")
    return regions


def side_in(name: str) -> str:
    """Return the hemisphere that a region's name says, as in 7Networks_LH_Vis_1, Left-Putamen or Putamen_L."""
    words = re.split(r"[\W_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))
    found = {SIDES[word.lower()] for word in words if word.lower() in SIDES}
    return found.pop() if len(found) == 1 else ""


def _read_tsv(path: Path) -> list[tuple[int, str, str]]:
    rows = read_table(path)
    columns = {column.lower(): column for column in (rows[0] if rows else ())}
    index = _choose(columns, INDEX_COLUMNS)
    names = [columns[known] for known in NAME_COLUMNS if known in columns]
    # Some tables call the number a label, and have names beside it.
    worded = [column for column in names if not all(row[column].lstrip("-").isdigit() for row in rows)]
    name = next(iter(worded or names), None)
    if index is None or name is None:
        there = ", ".join(columns.values()) or "none"
        raise ValueError(f"{path} has the columns {there}, but {ASK_FOR_TABLE}")
    side = _choose(columns, HEMISPHERE_COLUMNS)
    return [(_as_index(row[index], path), row[name], row[side] if side else "") for row in rows]


def _choose(columns: Mapping[str, str], known: tuple[str, ...]) -> str | None:
    return next((columns[column] for column in known if column in columns), None)


def _as_index(cell: str, path: Path) -> int:
    try:
        number = float(cell)
    except ValueError:
        number = -1.0
    if number < 0 or number != int(number):
        raise ValueError(f"{path} has the index {cell!r}: whole numbers from 0 on are needed, the image's labels")
    return int(number)


def _read_text(path: Path) -> list[tuple[int, str, str]]:
    """Read FreeSurfer's table (index, name, and colours), or names, one per line, in the order of the labels."""
    lines = [line.strip() for line in decode_text(path.read_bytes()).splitlines()]
    words = [line.split() for line in lines if line and not line.startswith("#")]
    if not all(line[0].isdigit() and len(line) > 1 for line in words):
        return [(number, " ".join(line), "") for number, line in enumerate(words, start=1)]
    return [(int(index), " ".join(_without_colours(rest)), "") for index, *rest in words]


def _without_colours(words: list[str]) -> list[str]:
    colours = words[-N_COLOURS:]
    is_coloured = len(words) > N_COLOURS and all(word.isdigit() for word in colours)
    return words[:-N_COLOURS] if is_coloured else words
