"""Estimates of a dry run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bids_lacuna.app.preview import Sample, format_seconds
from bids_lacuna.report.pool import PAGE_SECONDS, WORKER_SECONDS
from bids_lacuna.runtime.plan import BatchPlan

PLAN = BatchPlan(
    n_rows=30, batch_size=15, n_batches=2, fixed_bytes=0, bytes_per_row=0, n_ahead=2, n_together=4, keep_cached=True,
    available_bytes=0,
)  # fmt: skip

SAMPLE = Sample(
    n_subjects=12, n_together=4, seconds_begin=7, seconds_per_subject=0.5, seconds_per_lesion=0.2, bytes_per_lesion=0
)

SECONDS_OF_MAPS = 2 * (7 + (41 - 4) * 0.5) + 30 * 0.2
"""Two passes over 41 connectome subjects, and 30 lesions' maps."""


def test_a_run_takes_its_passes_and_its_maps() -> None:
    """Each pass begins with the first group of connectome subjects; each lesion's maps are written."""
    assert SAMPLE.seconds(PLAN, 41, n_report_workers=0) == pytest.approx(SECONDS_OF_MAPS)


def test_the_reports_of_the_last_batch_come_after_its_maps() -> None:
    """One worker still has reports of the first batch to write then; several have finished them."""
    slow = WORKER_SECONDS + 30 * PAGE_SECONDS
    assert SAMPLE.seconds(PLAN, 41, n_report_workers=1) == pytest.approx(SECONDS_OF_MAPS / 2 + slow)
    fast = WORKER_SECONDS + 30 * PAGE_SECONDS / 4
    assert SAMPLE.seconds(PLAN, 41, n_report_workers=4) == pytest.approx(SECONDS_OF_MAPS + fast / 2)
    one = replace(PLAN, n_batches=1, batch_size=30)
    expected = SAMPLE.seconds(one, 41, n_report_workers=0) + fast
    assert SAMPLE.seconds(one, 41, n_report_workers=4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (99, "99 s"), (101, "2 min"), (5000, "83 min"), (7000, "1.9 h")]
)
def test_a_duration_has_the_unit_that_people_use(seconds: float, text: str) -> None:
    """Durations are whole seconds or minutes, or hours with a decimal."""
    assert format_seconds(seconds) == text
