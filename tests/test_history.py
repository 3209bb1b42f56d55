"""The record of a run, and the tables of what became of each lesion."""

from __future__ import annotations

import json
import time
from pathlib import Path

from test_methods import RUN

from bids_lacuna.derivatives.history import read_outcomes, read_run


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """What is read is what was written, with the time that has passed and the memory used."""
    started = time.monotonic() - 100
    run = RUN.until_now(started, finished=True)
    latest = time.monotonic() - started
    run.write(tmp_path)
    assert read_run(tmp_path) == run
    assert run.finished
    assert 100 <= run.seconds <= latest
    assert run.peak_bytes > 10 * 2**20


def test_a_damaged_or_older_record_is_none(tmp_path: Path) -> None:
    """Without a record, with half of one, or with one that lacks a field, there is None and no error."""
    assert read_run(tmp_path) is None
    (tmp_path / "run.json").write_text('{"command": "x')
    assert read_run(tmp_path) is None
    (tmp_path / "run.json").write_text(json.dumps({"command": "x"}))
    assert read_run(tmp_path) is None


def test_outcomes_come_run_by_run(tmp_path: Path) -> None:
    """Rows of all tables are given, the oldest run first, with the dataset's name in URIs; others are passed over."""
    for name, status in (("20260102-000000_b", "done"), ("20260101-000000_a", "failed")):
        folder = tmp_path / "logs" / name
        folder.mkdir(parents=True)
        (folder / "lesions.tsv").write_text(f"dataset\tmask\tsub\tstatus\nmore\tm.nii.gz\t01\t{status}\n")
    RUN.until_now(0).write(folder)
    damaged = tmp_path / "logs" / "20260103-000000_c"
    damaged.mkdir()
    (damaged / "lesions.tsv").write_bytes(b"\xff\xfe")
    outcomes = read_outcomes(tmp_path)
    assert [outcome.status for outcome in outcomes] == ["failed", "done"]
    assert outcomes[0].mask == ("more", "m.nii.gz")
    assert [outcome.run is None for outcome in outcomes] == [False, True]
