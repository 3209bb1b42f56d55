"""The peak memory of a Dask cluster's processes: the plan holds for client and workers together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from dask_cluster import DEADLINE_S
from synthetic import RADIOLOGICAL, box, make_mask, make_series, write_mask

SHAPE = (39, 43, 37)
"""About 50,000 voxels within the mask: an accumulator of 100 lesions has 80 MB."""

N_SUBJECTS = 128
"""Sixteen slices: a worker may hold six accumulators."""

N_LESIONS = 100

RUN = """
import json, sys
from pathlib import Path

from bids_lacuna import FunctionalNetworkMapping, LesionData, batch_process
from bids_lacuna.cluster import ClusterPass, connect
from bids_lacuna.runtime.plan import Resources

connectome, mask, n_lesions, n_workers = sys.argv[1:]
n_lesions, n_workers = int(n_lesions), int(n_workers)


def peak_bytes():
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


errors = []
with connect(None, n_workers, n_workers) as client:
    analysis = FunctionalNetworkMapping(connectome)
    plan = ClusterPass(analysis, client, Resources(2**40, n_workers)).plan(n_lesions, None)
    batch_process(
        [LesionData.from_nifti(mask) for _ in range(n_lesions)],
        analysis,
        lesion_batch_size=None,
        batch_result_callback=lambda results: errors.extend(result.error for result in results if result.error),
        available_bytes=2**40,
        client=client,
        show_progress=False,
    )
    peaks = list(client.run(peak_bytes).values())
print(json.dumps({"planned": plan.peak_bytes, "batch": plan.batch_size, "client": peak_bytes(), "workers": peaks,
    "errors": errors}))
"""


@pytest.fixture(scope="module")
def connectome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a connectome of many subjects and few timepoints, without the time that compression takes."""
    path = tmp_path_factory.mktemp("connectome") / "study.h5"
    mask = make_mask(shape=SHAPE)
    indices = np.array(np.nonzero(mask))
    series = make_series(indices.shape[1], [7] * 5)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("timeseries", (N_SUBJECTS, *series[0].shape), "f4", chunks=(1, *series[0].shape))
        for subject in range(N_SUBJECTS):
            data[subject] = series[subject % 5]
        file["mask_indices"] = indices
        file["mask_affine"] = RADIOLOGICAL
        file.attrs["mask_shape"] = mask.shape
    return path


@pytest.mark.parametrize(
    ("n_workers", "bound"),
    [
        pytest.param(1, 1.25, marks=pytest.mark.slow),
        # Each of two workers maps half of the tree, and holds one or two accumulators less than a worker that
        # is left alone, for which there must be room.
        (2, 1.4),
    ],
)
def test_plan_holds_on_a_cluster(tmp_path: Path, connectome: Path, n_workers: int, bound: float) -> None:
    """Client and workers stay within their plan together, and the plan wastes little of what they need."""
    mask = write_mask(tmp_path / "mask.nii.gz", box((5, 7, 11), (13, 14, 15), SHAPE))
    command = [sys.executable, "-c", RUN, connectome, mask, str(N_LESIONS), str(n_workers)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert process.returncode == 0, process.stderr
    outcome = json.loads(process.stdout)
    assert outcome["errors"] == []
    assert outcome["batch"] == N_LESIONS
    assert len(outcome["workers"]) == n_workers
    measured = outcome["client"] + sum(outcome["workers"])
    assert measured <= outcome["planned"] <= bound * measured
