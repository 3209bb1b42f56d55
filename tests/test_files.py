"""Atomic writes, what killed programs leave behind, and BIDS tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bids_lacuna.files import (
    ChangedMeanwhile,
    FileState,
    check_unchanged,
    read_table,
    remove_unfinished,
    renamed_when_whole,
    write_json,
    write_table,
)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """If writing fails, the old file stays intact and no temporary file remains."""
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_program_left_is_removed(tmp_path: Path) -> None:
    """Only temporary files are removed; other hidden files stay."""
    kept = [tmp_path / name for name in (".bidsignore", ".deadbeef.json", "whole.json")]
    for path in kept:
        path.touch()
    with renamed_when_whole(tmp_path / "sub-1_scale.npy") as temporary:
        left = temporary.with_name(temporary.name.replace("sub-1", "sub-2"))
        left.touch()
        temporary.touch()
    remove_unfinished(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "sub-1_scale.npy"])


def test_only_the_named_files_are_removed(tmp_path: Path) -> None:
    """Temporary files with another final name stay: another program may be writing them."""
    theirs, ours = (tmp_path / f".{'0' * 32}.{name}" for name in ("a.json", "b.json"))
    theirs.touch()
    ours.touch()
    remove_unfinished(tmp_path, of="b.json".__eq__)
    assert list(tmp_path.iterdir()) == [theirs]
    remove_unfinished(tmp_path / "nowhere")


COLUMNS = ("lesion", "volume", "reason")
ROWS = (("sub-01", "n/a", 'the "left" one'), ("sub-02", "7.5", '"'), ("sub-é", "", "a, b; 'c' \\t #d"))
"""Quotes, commas and backslashes have no meaning in a BIDS table, at the beginning of a cell neither."""


def test_tables_are_tabs_and_newlines(tmp_path: Path) -> None:
    """Cells are written as they are, one row per line: another reader finds the same cells."""
    path = tmp_path / "a.tsv"
    write_table(path, COLUMNS, ROWS)
    assert path.read_bytes() == "".join("\t".join(row) + "\n" for row in (COLUMNS, *ROWS)).encode()
    assert np.loadtxt(path, str, delimiter="\t", comments=None).tolist() == [list(row) for row in (COLUMNS, *ROWS)]


def test_tables_come_back(tmp_path: Path) -> None:
    """Reading returns one dictionary per row, with the same text in each cell."""
    write_table(tmp_path / "a.tsv", COLUMNS, ROWS)
    assert read_table(tmp_path / "a.tsv") == [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    write_table(tmp_path / "a.tsv", COLUMNS, [])
    assert read_table(tmp_path / "a.tsv") == []


def test_file_names_cannot_break_a_table(tmp_path: Path) -> None:
    """White space becomes a space and an unprintable character an escape, in column names and in cells."""
    write_table(tmp_path / "a.tsv", ["a\tb", "c"], [["sub-0\n1", "x\r\ny"], ["\x1b[31m", "\udcff"]])
    assert (tmp_path / "a.tsv").read_text() == "a b\tc\nsub-0 1\tx  y\n\\x1b[31m\t\\udcff\n"


def test_a_row_needs_a_cell_for_each_column(tmp_path: Path) -> None:
    """A row with a cell too few or too many is an error, and the earlier table stays."""
    path = tmp_path / "a.tsv"
    write_table(path, COLUMNS, ROWS)
    before = path.read_bytes()
    for row in (("x",) * 2, ("x",) * 4):
        with pytest.raises(ValueError, match=rf"a row of a\.tsv has {len(row)} cells, 3 columns need one each"):
            write_table(path, COLUMNS, [*ROWS, row])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a\tb\n1\n", b"a\tb\n1\t2\t3\n", b"a\n" + b"x" * 200_000])
def test_damaged_tables_are_named(tmp_path: Path, content: bytes) -> None:
    """A table that is empty, not UTF-8, ragged or that has an endless cell is an error with the file's name."""
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} cannot be read as a table .* restore the file"):
        read_table(path)


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    """A table that was saved on Windows, or with an empty line at its end, has the same rows."""
    (tmp_path / "a.tsv").write_bytes(b"a\tb\r\n1\t2\r\n\r\n")
    assert read_table(tmp_path / "a.tsv") == [{"a": "1", "b": "2"}]


def replace_keeping_times(path: Path) -> None:
    """Replace a file by another one of the same size and time, as `rsync -t` does."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def overwrite(path: Path) -> None:
    """Write other content of the same size into a file, at another time."""
    with path.open("r+b") as file:
        file.write(b"7")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "it has 9 bytes instead of 8": lambda path: path.write_bytes(b"123456789"),
    "it has 3 bytes instead of 8": lambda path: os.truncate(path, 3),
    "it was deleted": Path.unlink,
    "it was written to": overwrite,
    "it was replaced": replace_keeping_times,
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_file_that_changes(tmp_path: Path, words: str) -> None:
    """A file that was written to, replaced or deleted is named with what happened to it."""
    path = tmp_path / "a"
    path.write_bytes(b"12345678")
    state = FileState.of(path)
    check_unchanged({path: state})
    CHANGES[words](path)
    with pytest.raises(ChangedMeanwhile, match=rf"{path} has changed while it was in use \({words}\): leave"):
        check_unchanged({path: state})


def test_a_file_that_is_only_looked_at_is_unchanged(tmp_path: Path) -> None:
    """Reading a file, linking it and changing its permissions are no changes."""
    path = tmp_path / "a"
    path.write_bytes(b"12345678")
    state = FileState.of(path)
    path.read_bytes()
    path.chmod(0o600)
    (tmp_path / "b").hardlink_to(path)
    check_unchanged({path: state})
