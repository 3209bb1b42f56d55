"""Estimates of a dry run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from program import map_lesions

from bids_lacuna.app import preview
from bids_lacuna.app.preview import GroupTimes, Sample, extrapolate
from bids_lacuna.report.pool import PageCost, measure_pages
from bids_lacuna.runtime.plan import BatchPlan

PLAN = BatchPlan(
    n_rows=30, batch_size=15, n_batches=2, fixed_bytes=0, bytes_per_row=0, n_ahead=2, n_together=4, keep_cached=True,
    available_bytes=0,
)  # fmt: skip

SAMPLE = Sample(
    n_lesions=15, n_subjects=12, n_together=4, seconds_begin=7, seconds_per_subject=0.5, seconds_per_lesion=0.2,
    bytes_per_lesion=0,
)  # fmt: skip

WITH_PAGES = replace(SAMPLE, pages=PageCost(start_seconds=3, seconds_per_lesion=2, bytes_per_lesion=0))

SECONDS_OF_MAPS = 2 * (7 + (41 - 4) * 0.5) + 30 * 0.2
"""Two passes over 41 connectome subjects, and 30 lesions' maps."""


def test_a_run_takes_its_passes_and_its_maps() -> None:
    """Each pass begins with the first group of connectome subjects; each lesion's maps are written."""
    assert SAMPLE.seconds(PLAN, 41, n_report_workers=0) == pytest.approx(SECONDS_OF_MAPS)


def test_the_reports_of_the_last_batch_come_after_its_maps() -> None:
    """One worker still has reports of the first batch to write then; several have finished them."""
    slow = 3 + 30 * 2
    assert WITH_PAGES.seconds(PLAN, 41, n_report_workers=1) == pytest.approx(SECONDS_OF_MAPS / 2 + slow)
    fast = 3 + 30 * 2 / 4
    assert WITH_PAGES.seconds(PLAN, 41, n_report_workers=4) == pytest.approx(SECONDS_OF_MAPS + fast / 2)
    one = replace(PLAN, n_batches=1, batch_size=30)
    expected = SAMPLE.seconds(one, 41, n_report_workers=0) + fast
    assert WITH_PAGES.seconds(one, 41, n_report_workers=4) == pytest.approx(expected)


GROUPS = [GroupTimes(4, began=3, ended=5), GroupTimes(4, began=6, ended=7), GroupTimes(2, began=11, ended=12)]
"""Reading takes 3, 1 and 4 seconds, the arithmetic 2, 1 and 1."""


def test_a_batch_takes_as_long_as_the_sample_if_that_has_all_its_lesions() -> None:
    """Nothing is extrapolated: the first group begins the pass, and the time after it is divided by the subjects."""
    assert extrapolate(0, GROUPS, 1) == (5, pytest.approx(7 / 6))
    assert extrapolate(0, GROUPS[:1], 1) == (5, 0)


def test_the_arithmetic_of_more_lesions_takes_longer_and_reading_does_not() -> None:
    """Reading is hidden behind the arithmetic as soon as that takes longer, and is never multiplied."""
    assert extrapolate(0, GROUPS, 3) == (3 + 3 * 2, pytest.approx(7 / 6))
    assert extrapolate(0, GROUPS, 10) == (3 + 10 * 2, pytest.approx(10 * 2 / 6))


def test_a_dry_run_says_with_how_many_lesions_it_measured(
    connectome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a larger batch is mapped, and the estimate says so; all of a smaller one is, and nothing is said."""
    names = [f"sub-{n}/anat/sub-{n}_space-{synthetic.SPACE}_label-lesion_mask" for n in range(4)]
    bids = synthetic.write_dataset(tmp_path / "bids", dict.fromkeys(names, synthetic.box((3, 2, 3))))
    command = bids, tmp_path / "out", connectome, "--dry-run"
    assert "timed on 5 of 5)" in map_lesions(*command).stdout
    monkeypatch.setattr(preview, "MAPPED_LESIONS", 3)
    assert "timed on 5 of 5 with 3 of 4 lesions)" in map_lesions(*command).stdout
    assert "timed on 5 of 5)" in map_lesions(*command, "--lesion-batch-size", "3").stdout


def test_the_cost_of_pages_is_measured_on_some(tmp_path: Path) -> None:
    """Two processes write the pages of three participants, and what is on disk then is what the estimate counts."""
    (tmp_path / "dataset_description.json").write_text("{}")
    before = sum(path.stat().st_size for path in tmp_path.iterdir())
    began = time.monotonic()
    cost = measure_pages(tmp_path, {"a": 1, "b": 2, "c": 1}, n_workers=2)
    seconds = time.monotonic() - began
    pages = [tmp_path / f"sub-{label}.html" for label in "abc"]
    assert cost.bytes_per_lesion == (sum(page.stat().st_size for page in pages)) / 4
    assert before == sum(path.stat().st_size for path in tmp_path.iterdir() if path not in pages)
    assert 0 < cost.seconds_per_lesion < cost.start_seconds < seconds
    assert cost.seconds(10, 2) == pytest.approx(cost.start_seconds + 5 * cost.seconds_per_lesion)
    assert cost.seconds(1, 2) == pytest.approx(cost.start_seconds + cost.seconds_per_lesion)
