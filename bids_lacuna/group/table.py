"""Tables of participants: cells by participant, session and column, whatever program has written the file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_lacuna.files import decode_text
from bids_lacuna.images import check_file
from bids_lacuna.text import one_line, suggest

Cell = str | None
"""A cell's text; None where there is no value."""

Key = tuple[str, str]
"""Labels of participant and session without `sub-` and `ses-`; an empty session where there is none."""

MISSING = {"", "n/a", "na", "nan"}
"""Cells without a value, in lower case. BIDS has n/a; R writes NA, pandas an empty cell, MATLAB NaN."""

PARTICIPANT, SESSION = "participant_id", "session_id"

NAMED = 10
"""Largest number of participants that a sentence names."""


class BadTable(ValueError):  # noqa: N818  a fact about the input, not a defect of the program
    """A table cannot be used; the message names it, and says what was found and what to do."""


@dataclass(frozen=True)
class Table:
    """Cells of participants."""

    source: str
    """What to call the table in a sentence."""
    columns: tuple[str, ...]
    """Names, without those of participant and session."""
    rows: Mapping[Key, Mapping[str, Cell]]
    """Cells by participant and session, and by column."""

    def find(self, key: Key) -> Mapping[str, Cell] | None:
        """Return the row of a participant's session, or else of the participant; None if there is none.

        Raises
        ------
        BadTable
            The table has several sessions of the participant, and the map is of none.
        """
        for candidate in (key, (key[0], "")):
            if candidate in self.rows:
                return self.rows[candidate]
        of_participant = [other for other in self.rows if other[0] == key[0]]
        if key[1] or not of_participant:
            return None
        if len(of_participant) > 1:
            raise BadTable(
                f"{self.source} has {len(of_participant)} sessions of sub-{key[0]}, whose map has no session: leave "
                "one row for each map"
            )
        return self.rows[of_participant[0]]

    def check_column(self, name: str, more: Iterable[str] = ()) -> None:
        """Raise BadTable unless there is a column, in the table or among `more`; the message has a near miss."""
        known = [*self.columns, *more]
        if name in known:
            return
        folded = {column.casefold(): column for column in known}
        near = f": did you mean {folded[name.casefold()]}?" if name.casefold() in folded else suggest(name, known)
        there = f"; its columns are {', '.join(self.columns) or 'none'}" if not near else ""
        is_whole_line = len(self.columns) == 1 and any(mark in self.columns[0] for mark in ",; ")
        tabs = ": separate columns by tabs" if is_whole_line else ""
        raise BadTable(f"{self.source} has no column {one_line(name)}{near}{there}{tabs}")


def read_table_file(path: Path) -> Table:
    """Read a tab-separated table with a column `participant_id`, and, where there are sessions, `session_id`.

    It may begin with a byte order mark, end its lines as Windows does, and quote its cells.

    Raises
    ------
    BadTable
        The file is not such a table, or has two rows for one participant and session.
    OSError
        The file cannot be read.
    """
    columns, rows = read_cells(path)
    return _index(str(path), columns, [row for _, row in rows])


def table_of(columns: Any, source: str = "the table") -> Table:
    """Make a table from values in memory.

    Parameters
    ----------
    columns
        A sequence of values for each column name, as a dictionary or a pandas DataFrame, with `participant_id`.
    source
        What to call it in sentences.

    Raises
    ------
    BadTable
        As in `read_table_file`; or the columns differ in length.
    """
    cells = {str(name): [_cell(value) for value in columns[name]] for name in columns.keys()}  # noqa: SIM118
    if len({len(values) for values in cells.values()}) > 1:
        lengths = ", ".join(f"{name}: {len(values)}" for name, values in cells.items())
        raise BadTable(f"the columns of {source} have different lengths ({lengths}): give each patient one value")
    return _index(source, list(cells), list(zip(*cells.values(), strict=True)))


def read_bids_tables(bids_dir: Path, participants: Iterable[str]) -> Table:
    """Read participants.tsv of a BIDS dataset, and the sessions.tsv of participants.

    A session's row has the participant's cells, too; where both have a column, the session's cell counts.

    Raises
    ------
    BadTable
        A table is damaged, or there is none.
    OSError
        A table cannot be read.
    """
    path = bids_dir / "participants.tsv"
    whole = read_table_file(path) if path.exists() else Table(str(path), (), {})
    columns, rows, sources = dict.fromkeys(whole.columns), dict(whole.rows), [str(path)] if path.exists() else []
    for label in participants:
        of_sessions = bids_dir / f"sub-{label}" / f"sub-{label}_sessions.tsv"
        if not of_sessions.exists():
            continue
        names, numbered = read_cells(of_sessions)
        cells = [row for _, row in numbered]
        if PARTICIPANT not in names:
            names, cells = [PARTICIPANT, *names], [(label, *row) for row in cells]
        table = _index(str(of_sessions), names, cells)
        columns |= dict.fromkeys(table.columns)
        rows |= {key: {**whole.rows.get((label, ""), {}), **row} for key, row in table.rows.items()}
        sources.append(of_sessions.name)
    if not sources:
        raise BadTable(f"there is no {path}, which would have the column to test: name a table with --table FILE")
    source = sources[0] if len(sources) == 1 else f"{sources[0]}, with {len(sources) - 1} sessions.tsv,"
    return Table(source, tuple(columns), rows)


def name_some(names: Sequence[str]) -> str:
    """List names in a sentence, at most `NAMED` of them."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def name_key(key: Key) -> str:
    """Name a participant, or a session of one."""
    return f"sub-{key[0]}" + (f" ses-{key[1]}" if key[1] else "")


def read_cells(path: Path) -> tuple[list[str], list[tuple[int, tuple[Cell, ...]]]]:
    """Read a tab-separated table: the names of its columns, and each row with its number of a line.

    Raises
    ------
    BadTable
        The file is not such a table.
    OSError
        The file cannot be read.
    """
    check_file(path, "table")
    try:
        text = decode_text(path.read_bytes())
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error as error:
        raise BadTable(f"{path} cannot be read as a table ({error}): save it as tab-separated UTF-8") from error
    except ValueError as error:
        raise BadTable(f"{path} cannot be read as a table: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if any(cell.strip() for cell in line)]
    if not numbered:
        raise BadTable(f"{path} is empty: a table with a line of column names is needed")
    names = [name.strip() for name in numbered[0][1]]
    while not names[-1]:
        names.pop()
    rows = []
    for number, line in numbered[1:]:
        cells = [_cell(cell) for cell in line]
        while len(cells) > len(names) and cells[-1] is None:
            cells.pop()
        if len(cells) != len(names):
            raise BadTable(
                f"line {number} of {path} has {len(cells)} cells, and there are {len(names)} columns: separate cells "
                "by tabs, and write n/a where there is no value"
            )
        rows.append((number, tuple(cells)))
    return names, rows


def _cell(value: object) -> Cell:
    text = "" if value is None else str(value).strip()
    return None if text.lower() in MISSING else text


def _index(source: str, names: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> Table:
    """Find the columns that identify rows, and index the rows by them."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadTable(f"{source} has several columns {', '.join(twice)}: give each column a name of its own")
    folded = {name.casefold(): name for name in names}
    participant, session = folded.get(PARTICIPANT), folded.get(SESSION)
    if participant is None:
        one_column = " and separates no columns by tabs" if len(names) == 1 else ""
        raise BadTable(
            f"{source} has no column {PARTICIPANT}{one_column}{suggest(PARTICIPANT, names)}; its columns are "
            f"{one_line(', '.join(names))}"
        )
    indexed: dict[Key, Mapping[str, Cell]] = {}
    duplicates = []
    for row in rows:
        cells = dict(zip(names, row, strict=True))
        label, of_session = cells.pop(participant), cells.pop(session) if session else None
        if label is None:
            raise BadTable(f"{source} has a row without {PARTICIPANT}: fill it in, or remove the row")
        key = label.removeprefix("sub-"), (of_session or "").removeprefix("ses-")
        if key in indexed:
            duplicates.append(name_key(key))
        indexed[key] = cells
    if duplicates:
        needed = "one row for each participant" + (" and session" if session else "")
        raise BadTable(
            f"{source} has several rows for {name_some(sorted(set(duplicates)))}: {needed} is needed"
            + ("" if session else f"; where there are sessions, add the column {SESSION}")
        )
    return Table(source, tuple(name for name in names if name not in (participant, session)), indexed)
