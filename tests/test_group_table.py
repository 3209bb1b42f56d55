"""Tables of participants, as spreadsheets, R, pandas and MATLAB write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bids_lacuna.group.table import BadTable, read_bids_tables, read_table_file, table_of

TEXT = "participant_id\tage\tdepressed\tnote\nsub-01\t61\tyes\t\nsub-02\tn/a\tno\tfrom Köln\n"
"""Two participants; the second has no age."""

EXPECTED = {
    ("01", ""): {"age": "61", "depressed": "yes", "note": None},
    ("02", ""): {"age": None, "depressed": "no", "note": "from Köln"},
}

# fmt: off
FORMS = {
    "as BIDS has it": TEXT.encode(),
    "byte order mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "UTF-16, as spreadsheets export": TEXT.encode("utf-16"),
    "Windows' line ends": TEXT.replace("\n", "\r\n").encode(),
    "no line end at the end": TEXT.rstrip("\n").encode(),
    "empty lines, and empty cells at their ends": TEXT.replace("\n", "\t\t\n\t\n\n").encode(),
    "quoted, as R writes": TEXT.replace("yes", '"yes"').replace("participant_id", '"participant_id"').encode(),
    "R's and MATLAB's missing values": TEXT.replace("n/a", "NA").replace("yes\t", "yes\tNaN").encode(),
    "labels without sub-": TEXT.replace("sub-", "").encode(),
    "another case": TEXT.replace("participant_id", "Participant_ID").encode(),
    "spaces around cells": TEXT.replace("\t", " \t ").encode(),
}
# fmt: on


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_table(tmp_path: Path, form: str) -> None:
    """Each gives the same cells."""
    (path := tmp_path / "participants.tsv").write_bytes(FORMS[form])
    table = read_table_file(path)
    assert table.rows == EXPECTED
    assert table.columns == ("age", "depressed", "note")


def test_a_quoted_cell_may_have_a_tab_and_a_quote(tmp_path: Path) -> None:
    """Such a cell is one cell; a quote within a cell that is not quoted is a character."""
    (path := tmp_path / "t.tsv").write_text('participant_id\ta\tb\n01\t"x\ty ""z"""\t5"\n')
    assert read_table_file(path).rows == {("01", ""): {"a": 'x\ty "z"', "b": '5"'}}


BAD = {
    "": "is empty: a table with a line of column names is needed",
    "subject\tage\n01\t3\n": "no column participant_id; its columns are subject, age",
    "participantid\tage\n01\t3\n": "no column participant_id: did you mean participantid?",
    "participant_id,age\n01,3\n": "has no column participant_id and separates no columns by tabs",
    "participant_id\tage\n01\t3\nsub-01\t4\n": "several rows for sub-01: one row for each participant is needed",
    "participant_id\tage\n01\n": "line 2 of .* has 1 cells, and there are 2 columns",
    "participant_id\tage\tage\n01\t1\t2\n": "several columns age",
    "participant_id\tage\nn/a\t1\n": "a row without participant_id",
    'participant_id\tage\n01\t"1\n': "cannot be read as a table",
}


@pytest.mark.parametrize("text", BAD)
def test_damaged_tables(tmp_path: Path, text: str) -> None:
    """Each is refused with a sentence that names the file."""
    (path := tmp_path / "participants.tsv").write_text(text)
    with pytest.raises(BadTable, match=BAD[text]) as error:
        read_table_file(path)
    assert str(path) in str(error.value)


def test_another_encoding(tmp_path: Path) -> None:
    """Latin-1 is refused, since its letters would be guessed."""
    (path := tmp_path / "participants.tsv").write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(BadTable, match=r"byte: save it as UTF-8$"):
        read_table_file(path)


def test_values_in_memory() -> None:
    """A dictionary and a DataFrame give the same table; NaN and None are missing."""
    columns = {"participant_id": ["sub-01", "02"], "age": [61.5, np.nan], "case": [True, None], "n": [1, 2]}
    expected = {
        ("01", ""): {"age": "61.5", "case": "True", "n": "1"},
        ("02", ""): {"age": None, "case": None, "n": "2"},
    }
    assert table_of(columns).rows == expected
    assert table_of(pd.DataFrame(columns)).rows == expected
    with pytest.raises(BadTable, match="different lengths"):
        table_of({"participant_id": ["1"], "age": [1, 2]})


def test_sessions(tmp_path: Path) -> None:
    """A session's row has the participant's cells, and its own where both have a column."""
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tnihss\nsub-01\t61\t9\nsub-02\t50\t3\n")
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tnihss\nses-a\t7\nses-b\tn/a\n")
    table = read_bids_tables(tmp_path, ["01", "02"])
    assert table.find(("01", "a")) == {"age": "61", "nihss": "7"}
    assert table.find(("01", "b")) == {"age": "61", "nihss": None}
    assert table.find(("02", "a")) == table.find(("02", "")) == {"age": "50", "nihss": "3"}
    assert table.find(("03", "")) is None
    with pytest.raises(BadTable, match=r"there is no .*participants\.tsv.*--table FILE"):
        read_bids_tables(tmp_path / "sub-01", ["01"])


def test_a_map_without_session() -> None:
    """It has the only row of its participant; of several rows, none is chosen."""
    columns = {"participant_id": ["01", "02", "02"], "session_id": ["ses-x", "a", "b"], "age": [1, 2, 3]}
    table = table_of(columns)
    assert table.find(("01", "")) == {"age": "1"}
    assert table.find(("01", "y")) is None
    with pytest.raises(BadTable, match="2 sessions of sub-02"):
        table.find(("02", ""))


def test_unknown_columns() -> None:
    """The sentence suggests the column that is meant, or lists all."""
    table = table_of({"participant_id": ["01"], "Depressed": [1], "age": [3]})
    for name, words in {
        "depressed": "did you mean Depressed?",
        "Depresed": "did you mean Depressed?",
        "lesion_volum": "did you mean lesion_volume?",
        "nihss": "its columns are Depressed, age",
    }.items():
        with pytest.raises(BadTable, match=words):
            table.check_column(name, ["lesion_volume"])
