"""The pass over the connectome in this process: what it takes from its plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic

from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping.functional import FunctionalNetworkMapping
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.runtime.memory import MemoryLimit
from bids_lacuna.runtime.plan import Resources


@pytest.mark.parametrize("keep_cached", [False, True])
def test_the_plan_decides_whether_files_stay_cached(
    connectome: Path, monkeypatch: pytest.MonkeyPatch, keep_cached: bool
) -> None:
    """A connectome that the plan does not keep in the page cache leaves it, each file after it was read."""
    forgotten: list[list[Path]] = []
    monkeypatch.setattr("bids_lacuna.connectome.connectome.forget", forgotten.append)
    analysis = FunctionalNetworkMapping(connectome)
    image = nib.Nifti1Image(synthetic.box((3, 2, 3)), synthetic.RADIOLOGICAL)
    lesion = analysis.load(LesionData.from_nifti(image))
    synthetic.map_in_one_pass(analysis, [lesion], change_plan={"keep_cached": keep_cached})
    names = [[f"part{number}.h5"] for number in (0, 0, 1, 2, 3)]
    # Two threads read.
    assert sorted([path.name for path in files] for files in forgotten) == ([] if keep_cached else names)


@pytest.mark.parametrize(
    ("limits", "fitting"),
    [
        ({"free": 10**12}, 7),
        ({"free": 10**12, "cgroup": 3}, 3),
        ({"free": 3, "cgroup": 10**12}, 3),
        ({"free": 0}, 1),
        ({"free": 10**12, "RLIMIT_AS (ulimit -v)": 0}, 7),
    ],
)
def test_rows_that_fit_now(
    connectome: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], fitting: int
) -> None:
    """The smallest limit counts, up to the plan's; one row is always tried, and address space does not count."""
    pass_ = LocalPass(FunctionalNetworkMapping(connectome), Resources(10**10, 1))
    plan = pass_.plan(7, 7)
    tight = plan.fixed_bytes + 7 * plan.bytes_per_row
    found = tuple(
        MemoryLimit(source, plan.fixed_bytes + n_rows * plan.bytes_per_row) for source, n_rows in limits.items()
    )
    monkeypatch.setattr("bids_lacuna.mapping.local.memory_limits", lambda: found)
    assert pass_.fitting_now(replace(plan, available_bytes=tight)) == fitting


def test_the_memory_that_is_occupied_is_in_the_plan(connectome: Path) -> None:
    """What this process occupies when it plans is part of the memory that the run occupies."""
    pass_ = LocalPass(FunctionalNetworkMapping(connectome), Resources(10**12, 1))
    before = pass_.plan(1)
    written = np.ones(61 * 2**20, np.uint8)
    after = pass_.plan(1)
    assert after.fixed_bytes - before.fixed_bytes == pytest.approx(written.nbytes, rel=0.1)
