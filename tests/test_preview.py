"""What a dry run shows of lesions, times and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_lacuna.app.preview import describe_lesions, format_seconds
from bids_lacuna.bids import LesionMask
from bids_lacuna.derivatives.records import LesionRecord


@pytest.mark.parametrize(
    ("coverage", "is_low"), [(0.5, False), (np.nextafter(0.5, 0), True), (1, False), (0.1, True)]
)
def test_lesions_less_than_half_inside_are_mapped_in_part(tmp_path: Path, coverage: float, is_low: bool) -> None:
    """The row of a lesion says that a part of it is mapped, if less than half lies in the connectome's mask."""
    mask = LesionMask(tmp_path / "sub-01_label-lesion_mask.nii.gz", {"sub": "01"}, None, "source", tmp_path)
    row = describe_lesions([LesionRecord(mask, volume_mm3=1234.5, coverage=coverage)]).splitlines()[1]
    assert ("only the part inside the connectome's mask" in row) == is_low
    assert "1.23 mL" in row


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1 s"),
        (40.4, "40 s"),
        (99.9, "100 s"),
        (100, "2 min"),
        (5999, "100 min"),
        (6000, "1.7 h"),
        (36000, "10.0 h"),
    ],
)
def test_times_for_people(seconds: float, text: str) -> None:
    """Seconds up to 100, minutes up to 100, then hours."""
    assert format_seconds(seconds) == text
