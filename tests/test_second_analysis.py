"""Batches, checkpoints and a Dask cluster know an analysis by its protocol: another one passes them unchanged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic
from dask_cluster import DEADLINE_S, started, wait_until
from second_analysis import SeedCorrelations

from bids_lacuna.batch import batch_process
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping.analysis import NoWorker
from bids_lacuna.runtime.checkpoint import Checkpoints

Array = np.ndarray

MASK = synthetic.make_mask()
SERIES = synthetic.make_series(int(MASK.sum()), [19] * 45)
PYTHONPATH = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
"""With the folder of the other analysis."""

BOXES = [synthetic.box((0, 0, 0)), synthetic.box((1, 2, 3)), synthetic.box((2, 4, 6), (3, 2, 2))]


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> SeedCorrelations:
    """Open 45 connectome subjects: six slices of a cluster's."""
    folder = tmp_path_factory.mktemp("connectome")
    return SeedCorrelations(synthetic.write_connectome_folder(folder / "study", SERIES, MASK))


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> list[LesionData]:
    """Write three masks."""
    folder = tmp_path_factory.mktemp("lesions")
    return [
        LesionData.from_nifti(synthetic.write_mask(folder / f"{number}.nii.gz", voxels))
        for number, voxels in enumerate(BOXES)
    ]


@pytest.fixture(autouse=True)
def heed_interrupts() -> Iterator[None]:
    """Heed Ctrl-C also where these tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def correlations(lesions: list[LesionData], analysis: SeedCorrelations, **options: object) -> Array:
    """Map lesions: shape (n_lesions, n_lesions)."""
    mapped = batch_process(lesions, analysis, n_threads=1, show_progress=False, **options)
    assert [lesion.error for lesion in mapped] == [None] * len(lesions)
    return np.array([lesion.results[analysis.name]["r"] for lesion in mapped])


def test_batches(analysis: SeedCorrelations, lesions: list[LesionData]) -> None:
    """The correlations are NumPy's, of all lesions in one batch; a batch of two has those of its own two."""
    seeds = np.array([[series[:, (voxels > 0)[MASK]].mean(axis=1) for voxels in BOXES] for series in SERIES])
    expected = np.mean([np.corrcoef(each) for each in seeds], axis=0)
    np.testing.assert_allclose(correlations(lesions, analysis, lesion_batch_size=None), expected, atol=1e-5)
    batch_sizes = []
    callback = lambda batch: batch_sizes.append([len(lesion.results[analysis.name]["r"]) for lesion in batch])  # noqa: E731
    batch_process(lesions, analysis, lesion_batch_size=2, batch_result_callback=callback, show_progress=False)
    assert batch_sizes == [[2, 2], [1]]


def test_checkpoints(analysis: SeedCorrelations, lesions: list[LesionData], tmp_path: Path) -> None:
    """A pass that Ctrl-C interrupts is resumed to the same bits, for fewer lesions in another order as well."""
    undisturbed = correlations(lesions, analysis)
    loaded = {path: analysis.load(lesion) for path, lesion in zip("abc", lesions, strict=True)}
    rows = synthetic.Rows.of({path: analysis.row(lesion) for path, lesion in loaded.items()})
    pass_ = synthetic.LocalPass(analysis, synthetic.Resources(2**40, 1))
    seen: list[None] = []

    def interrupt() -> None:
        seen.append(None)
        if len(seen) == 17:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pass_.run(rows, pass_.plan(3), Checkpoints(tmp_path, 1e9, analysis.identity), interrupt)
    resumed = pass_.run(rows, pass_.plan(3), Checkpoints(tmp_path, 1e9, analysis.identity))
    np.testing.assert_array_equal(resumed.total / 45, undisturbed)
    fewer = synthetic.Rows.of({path: analysis.row(loaded[path]) for path in "ca"})
    restored, n_subjects = Checkpoints(tmp_path, 1e9, analysis.identity).resume(
        fewer.hashes, lambda: analysis.new_accumulator(fewer)
    )
    assert 17 <= n_subjects < 45
    np.testing.assert_allclose(np.diag(restored.total), n_subjects)
    np.testing.assert_array_equal(restored.total, restored.total.T)


KILLED = """
import sys
from second_analysis import SeedCorrelations
from bids_lacuna.batch import batch_process
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping.analysis import NoWorker
connectome, folder, *masks = sys.argv[1:]
analysis = SeedCorrelations(connectome)
lesions = [LesionData.from_nifti(mask) for mask in masks]
batch_process(
    lesions, analysis, checkpoint_dir=folder, checkpoint_minutes=0, show_progress=False,
    batch_result_callback=lambda _: sys.exit("not killed"),
)
"""


def test_a_kill(analysis: SeedCorrelations, lesions: list[LesionData], tmp_path: Path) -> None:
    """After SIGKILL in the middle of a pass, the same call ends with the bits of an undisturbed one."""
    folder = tmp_path / "kept"
    masks = [str(lesion.mask) for lesion in lesions]
    command = [sys.executable, "-c", KILLED, str(analysis.connectome.path), str(folder), *masks]
    environ = os.environ | {"PYTHONPATH": PYTHONPATH}
    killed = subprocess.Popen(command, env=environ)
    wait_until(lambda: list(folder.glob("[!.]*.sums")) or killed.poll() is not None, every_s=0.001)
    killed.kill()
    killed.wait(DEADLINE_S)
    assert killed.returncode == -signal.SIGKILL
    resumed = correlations(lesions, analysis, checkpoint_dir=folder)
    np.testing.assert_array_equal(resumed, correlations(lesions, analysis))


def test_a_cluster(
    analysis: SeedCorrelations, lesions: list[LesionData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers give the bits of one worker, which are this process's but for rounding."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    with started(tmp_path, "--host", "127.0.0.1") as cluster:
        one = correlations(lesions, analysis, client=cluster.have(1))
        np.testing.assert_array_equal(correlations(lesions, analysis, client=cluster.have(2)), one)
    np.testing.assert_allclose(one, correlations(lesions, analysis), rtol=1e-12)


def test_an_analysis_that_the_cluster_does_not_know(
    analysis: SeedCorrelations, lesions: list[LesionData], tmp_path: Path
) -> None:
    """Where the scheduler cannot import the analysis, the run ends with its reason, and does not wait for ever."""
    with (
        started(tmp_path, "--host", "127.0.0.1") as cluster,
        pytest.raises(NoWorker, match=r"no Dask worker can map: .*different environments"),
    ):
        correlations(lesions, analysis, client=cluster.have(1))
