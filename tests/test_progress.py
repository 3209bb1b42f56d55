"""Progress with and without a terminal."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from bids_lacuna.runtime import progress

COUNT = """
import logging, time
from bids_lacuna.runtime import progress
progress.SECONDS_BETWEEN_LINES = 0
logging.basicConfig(level=logging.INFO, format="%(message)s")
with progress.Progress(8, "mapping batch 1 of 2", "lesion") as bar:
    for _ in range(8):
        time.sleep(0.05)
        bar.update()
"""


def test_a_log_has_a_line_per_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without a terminal, the log has the finished fraction, the rate since the last line, and the time left."""
    times = iter([100.0, 100.0, 130.0, 161.0, 200.0, 225.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with (
        caplog.at_level(logging.INFO, logger="bids_lacuna"),
        progress.Progress(1000, "mapping", "lesion", initial=90) as counted,
    ):
        for n in (10, 100, 22, 100, 28):
            counted.update(n)
    # After 161 s, 222 of 1000 are done, 132 of them in 61 s; after 225 s 350, 128 of them in 64 s.
    assert [record.message for record in caplog.records] == [
        "mapping: 22 % of 1,000 lesion, 2.16 lesion/s, 05:59 left",
        "mapping: 35 % of 1,000 lesion, 2 lesion/s, 05:25 left",
    ]


def test_few_units_are_counted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """After 12 of 40 pages in a minute, 28 are left, which take 140 seconds more."""
    times = iter([0.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with caplog.at_level(logging.INFO, logger="bids_lacuna"), progress.Progress(40, "pages", "page") as counted:
        counted.update(12)
    assert [record.message for record in caplog.records] == ["pages: 12 of 40, 0.2 page/s, 02:20 left"]


def test_bytes_have_prefixes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """At half of 3 GiB and 1 MiB per second, 1536 seconds are left."""
    times = iter([0.0, 1536.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with (
        caplog.at_level(logging.INFO, logger="bids_lacuna"),
        progress.Progress(3 * 2**30, "building", "B", in_bytes=True) as counted,
    ):
        counted.update(3 * 2**29)
    assert [record.message for record in caplog.records] == ["building: 50 % of 3.00G B, 1.00M B/s, 25:36 left"]


def test_a_terminal_has_a_bar_instead() -> None:
    """On a real terminal there is one bar with the batch, the rate and the time left, and no lines."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen([sys.executable, "-c", COUNT], stderr=theirs, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 2**16)
            except OSError:  # as Linux ends a terminal
                break
    os.close(ours)
    assert process.returncode == 0
    assert re.search(
        r"mapping batch 1 of 2: 100%.*8/8 \[\d+:\d\d<00:00, +[\d.]+(lesion/s|s/lesion)\]", shown.decode()
    )
    assert "% of 8" not in shown.decode()
