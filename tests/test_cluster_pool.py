"""Connecting to a Dask cluster that is not there."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest

from bids_lacuna.cluster import connect, pool
from bids_lacuna.mapping.analysis import PassStopped


def test_no_scheduler_answers() -> None:
    """An address where nobody listens is named."""
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(PassStopped, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"),
        connect("tcp://127.0.0.1:9", None, 1),
    ):
        pass


def test_no_scheduler_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler file that never comes ends the wait, and an address without its protocol ends it at once."""
    for target in ("127.0.0.1:8786", str(tmp_path / "scheduler.json")):
        with (
            pytest.raises(PassStopped, match=r"there is no scheduler file .*written as tcp://host:8786"),
            connect(target, None, 1),
        ):
            pass
        monkeypatch.setattr(pool, "PATIENCE_S", 0.1)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "Scheduler-1"}'])
def test_a_scheduler_file_without_an_address(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is still incomplete when the wait ends is named, with what to do."""
    monkeypatch.setattr(pool, "WRITING_S", 0.1)
    file = tmp_path / "scheduler.json"
    file.write_text(content)
    with (
        pytest.raises(PassStopped, match=r"scheduler\.json has no scheduler's address .*start the scheduler anew"),
        connect(str(file), None, 1),
    ):
        pass
