"""Runs that are ended by real signals, and go on from what they saved: to the same bytes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from program import PATIENCE_S, RUN, map_lesions, wait_until
from synthetic import (
    RADIOLOGICAL,
    SPACE,
    box,
    make_mask,
    make_series,
    map_in_one_pass,
    write_connectome,
    write_connectome_folder,
    write_dataset,
    write_mask,
)

from bids_lacuna.batch import batch_process
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping.functional import FunctionalNetworkMapping
from bids_lacuna.mapping.moments import RunningMoments
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.signals import TERMINATING, Terminated, terminations_raised

pytestmark = pytest.mark.usefixtures("heed_interrupts")

Array = np.ndarray

MASK = make_mask()
N_VOXELS = int(MASK.sum())
N_SUBJECTS = 13
NAME = "FunctionalNetworkMapping"
BOXES = [box((0, 0, 0)), box((1, 2, 3)), box((2, 4, 6), (3, 2, 2)), box((3, 5, 9), (2, 2, 1)), box((0, 5, 1))]


def write_series(folder: Path, seed: int = 2) -> Path:
    """Write 13 connectome subjects; the fifth has no signal where the first lesion is."""
    series = make_series(N_VOXELS, [19] * N_SUBJECTS, seed)
    series[4][:, BOXES[0][MASK] > 0] = 3
    return write_connectome_folder(folder, series, MASK)


@pytest.fixture(scope="module")
def connectome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the connectome once."""
    return write_series(tmp_path_factory.mktemp("connectome") / "study")


@pytest.fixture
def analysis(connectome: Path) -> FunctionalNetworkMapping:
    """Map in the connectome."""
    return FunctionalNetworkMapping(connectome)


@pytest.fixture
def lesions(tmp_path: Path) -> list[LesionData]:
    """Write five masks."""
    return [write_lesion(tmp_path / f"{number}.nii", voxels) for number, voxels in enumerate(BOXES)]


def write_lesion(path: Path, voxels: Array) -> LesionData:
    """Write one mask."""
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8), RADIOLOGICAL), path)
    return LesionData.from_nifti(path)


def keep(analysis: FunctionalNetworkMapping, folder: Path, interval_s: float = 1e9) -> Checkpoints:
    """Keep checkpoints as a new process would."""
    return Checkpoints(folder, interval_s, analysis.identity)


def map_all(
    analysis: FunctionalNetworkMapping,
    lesions: Sequence[LesionData],
    checkpoints: Checkpoints | None = None,
    on_subject: Callable[[], None] = lambda: None,
) -> list[Array]:
    """Map lesions in one batch: everything that there is of each."""
    loaded = [analysis.load(lesion) for lesion in lesions]
    mapped = map_in_one_pass(analysis, loaded, checkpoints=checkpoints, on_subject=on_subject)
    keys = ("correlation_map", "z_map", "t_map", "n_map")
    return [lesion.results[NAME][key].get_fdata() for lesion in mapped for key in keys if key in lesion.results[NAME]]


def signal_after(n_subjects: int, number: int) -> Callable[[], None]:
    """Send this process a signal once so many connectome subjects were added."""
    seen: list[None] = []

    def on_subject() -> None:
        seen.append(None)
        if len(seen) == n_subjects:
            os.kill(os.getpid(), number)

    return on_subject


def interrupt(
    analysis: FunctionalNetworkMapping,
    lesions: Sequence[LesionData],
    folder: Path,
    *after: int,
    interval_s: float = 1e9,
) -> None:
    """Press Ctrl-C in one run after another, each time after so many subjects."""
    for n_subjects in after:
        with pytest.raises(KeyboardInterrupt):
            map_all(analysis, lesions, keep(analysis, folder, interval_s), signal_after(n_subjects, signal.SIGINT))


@pytest.mark.parametrize("after", [(1,), (6,), (13,), (3, 8, 9)])
def test_an_interrupted_pass_goes_on_to_the_same_bits(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path, after: tuple[int, ...]
) -> None:
    """After Ctrl-C, also several times, each subject is added once, and the maps are the same to the bit."""
    undisturbed = map_all(analysis, lesions)
    interrupt(analysis, lesions, tmp_path / "kept", *after)
    counted: list[None] = []
    resumed = map_all(analysis, lesions, keep(analysis, tmp_path / "kept"), lambda: counted.append(None))
    assert len(counted) == N_SUBJECTS
    for ours, expected in zip(resumed, undisturbed, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("number", TERMINATING)
def test_a_signal_that_terminates_saves_the_pass(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path, number: int
) -> None:
    """After any of these signals, the next call resumes after the connectome subject at which it came."""
    undisturbed = map_all(analysis, lesions)
    with pytest.raises(Terminated), terminations_raised():
        map_all(analysis, lesions, keep(analysis, tmp_path / "kept"), signal_after(6, number))
    (saved,) = (tmp_path / "kept").glob("*.sums")
    assert saved.stat().st_size > 0
    resumed = map_all(analysis, lesions, keep(analysis, tmp_path / "kept"))
    for ours, expected in zip(resumed, undisturbed, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_sigusr1_saves_and_goes_on(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SLURM's `--signal=USR1` saves the moments, and the run goes on."""
    caplog.set_level(logging.INFO)
    map_all(analysis, lesions, keep(analysis, tmp_path / "kept"), signal_after(4, signal.SIGUSR1))
    assert "saved the sums of 5 lesions after connectome subject 4" in caplog.text


def test_two_generations(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged checkpoint gives way to the one before it; where both are damaged, the pass begins anew."""
    undisturbed = map_all(analysis, lesions)
    folder = tmp_path / "kept"
    interrupt(analysis, lesions, folder, 10, interval_s=0)
    caplog.set_level(logging.INFO)
    newest_last = sorted(folder.glob("*.sums"), key=lambda path: path.stat().st_mtime_ns)
    assert len(newest_last) == 2
    for path, damage, words in (
        (newest_last[1], lambda content: content[:-2000] + b"\0\1" + content[-1998:], "after connectome subject 9,"),
        (newest_last[0], lambda content: content[:-7], "its checksum is wrong"),
    ):
        path.write_bytes(damage(path.read_bytes()))
        caplog.clear()
        for ours, expected in zip(map_all(analysis, lesions, keep(analysis, folder)), undisturbed, strict=True):
            np.testing.assert_array_equal(ours, expected)
        assert words in caplog.text


def test_some_of_the_lesions_go_on(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer lesions than were saved take up their own sums, in any order."""
    interrupt(analysis, lesions, tmp_path / "kept", 6)
    caplog.set_level(logging.INFO)
    some = [lesions[3], lesions[0]]
    for ours, expected in zip(
        map_all(analysis, some, keep(analysis, tmp_path / "kept")), map_all(analysis, some), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    assert "resuming after connectome subject 6" in caplog.text


@pytest.mark.parametrize("other", ["connectome", "weighting", "mask"])
def test_what_does_not_fit_is_refused_and_left_alone(
    analysis: FunctionalNetworkMapping,
    lesions: list[LesionData],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    other: str,
) -> None:
    """Moments of another connectome, weighting or mask are named, kept, and of no influence."""
    folder = tmp_path / "kept"
    interrupt(analysis, lesions, folder, 6)
    (saved,) = folder.glob("*.sums")
    content = saved.read_bytes()
    words = f"made with another {other}"
    if other == "connectome":
        analysis = FunctionalNetworkMapping(write_series(tmp_path / "other", seed=7))
    elif other == "weighting":
        analysis = FunctionalNetworkMapping(analysis.connectome, weighting="binary")
    else:
        lesions[2] = write_lesion(tmp_path / "2.nii", BOXES[1])
        words = "of other lesions or of other masks"
    resumed = map_all(analysis, lesions, keep(analysis, folder))
    assert words in caplog.text
    assert saved.read_bytes() == content
    for ours, expected in zip(resumed, map_all(analysis, lesions), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_folder_that_cannot_be_used_stops_nothing(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be saved, a warning says so and the maps are made."""
    checkpoints = keep(analysis, tmp_path / "kept", interval_s=0)
    checkpoints.free_bytes = lambda: 1000
    map_all(analysis, lesions, checkpoints)
    assert "no checkpoint is kept" in caplog.text
    (tmp_path / "kept").rmdir()
    (tmp_path / "kept").write_text("a file", encoding="utf-8")
    map_all(analysis, lesions, checkpoints)


def test_sigusr1_saves_once(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGUSR1 saves the sums after the current connectome subjects, not after the later ones."""
    caplog.set_level(logging.INFO)
    map_all(analysis, lesions, keep(analysis, tmp_path / "kept"), signal_after(3, signal.SIGUSR1))
    assert caplog.text.count("saved the sums") == 1


@pytest.mark.parametrize("n_saved", [2, 3])
def test_the_newest_sums_stay_until_the_next_are_whole(
    analysis: FunctionalNetworkMapping, tmp_path: Path, n_saved: int
) -> None:
    """A run resumes after the most subjects that were saved, also where its own first save has failed."""
    rows, moments = {"lesion": "hash"}, RunningMoments(1, 5)
    first = keep(analysis, tmp_path)
    first.begin([["lesion"]])
    for n_subjects in range(1, n_saved + 1):
        first.save(rows, moments, n_subjects)
    for _ in range(2):
        resumed = keep(analysis, tmp_path)
        resumed.begin([["lesion"]])
        assert resumed.resume(rows, lambda: RunningMoments(1, 5))[1] == n_saved
        resumed.free_bytes = lambda: 0
        resumed.save(rows, moments, n_saved + 1)


@pytest.mark.parametrize("missing_bytes", [0, 1])
def test_sums_may_fill_the_disk_to_the_byte(
    analysis: FunctionalNetworkMapping,
    lesions: list[LesionData],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    missing_bytes: int,
) -> None:
    """Sums are saved where they just fit, and not where one byte is missing."""
    checkpoints = keep(analysis, tmp_path / "kept", interval_s=0)
    n_bytes = RunningMoments(len(lesions), N_VOXELS).nbytes
    checkpoints.free_bytes = lambda: n_bytes - missing_bytes
    map_all(analysis, lesions, checkpoints)
    assert ("no checkpoint is kept" in caplog.text) == bool(missing_bytes)


def test_batches_stay_those_of_the_first_run(analysis: FunctionalNetworkMapping, tmp_path: Path) -> None:
    """22 lesions by 8 leave 14 after one batch, which would be divided 7 and 7; they stay 8 and 6."""
    first = keep(analysis, tmp_path)
    keys = [f"{number}" for number in range(22)]
    batches = first.divide(keys, 8)
    assert [len(batch) for batch in batches] == [8, 8, 6]
    first.begin(batches[1:])
    again = keep(analysis, tmp_path)
    assert again.current_batch == keys[8:16]
    assert again.divide([*keys[8:], "new", "3"], 7) == [keys[8:15], keys[15:16], keys[16:], ["new", "3"]]
    assert again.divide([*keys[8:], "new", "3"], 9) == [keys[8:16], keys[16:], ["new", "3"]]
    again.end()
    assert keep(analysis, tmp_path).current_batch == []


def test_a_run_that_ends_well_leaves_nothing(connectome: Path, lesions: list[LesionData], tmp_path: Path) -> None:
    """Batches of two, each saved after every group of subjects, give the maps of an undisturbed run and no file."""
    analysis = FunctionalNetworkMapping(connectome)
    options = {"lesion_batch_size": 2, "n_threads": 2, "show_progress": False}
    kept = batch_process(lesions, analysis, checkpoint_dir=tmp_path / "kept", checkpoint_minutes=0, **options)
    for ours, expected in zip(kept, batch_process(lesions, analysis, **options), strict=True):
        for key in ("z_map", "t_map"):
            np.testing.assert_array_equal(*(lesion.results[NAME][key].get_fdata() for lesion in (ours, expected)))
    assert list((tmp_path / "kept").iterdir()) == []


def test_one_lesion_several_times(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path
) -> None:
    """Lesions of one mask are told apart."""
    same = [lesions[1], lesions[1], lesions[2], lesions[1]]
    results = batch_process(
        same, analysis, checkpoint_dir=tmp_path / "kept", lesion_batch_size=3, show_progress=False
    )
    assert [lesion.error for lesion in results] == [None] * 4
    assert [lesion.batch for lesion in results] == [1, 1, 1, 2]


LITTLE_MEMORY = """
import resource, sys
import numpy as np, psutil
from bids_lacuna import FunctionalNetworkMapping, LesionData
from bids_lacuna.batch import batch_process

analysis = FunctionalNetworkMapping(sys.argv[1])
lesions = [LesionData.from_nifti(sys.argv[2]) for _ in range(100)]
options = {"n_threads": 2, "show_progress": False, "available_bytes": 2**40}
one = batch_process(lesions[:9], analysis, **options)[0]
expected = one.results["FunctionalNetworkMapping"].statistics.z

# Room for the moments of 40 lesions, of which the plan, which was told of a terabyte, knows nothing.
limit = psutil.Process().memory_info().vms + 40 * 16 * len(expected)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
far = []
def compare(results):
    for result in results:
        z = result.results["FunctionalNetworkMapping"].statistics.z
        far.append(abs(np.tanh(z) - np.tanh(expected)).max())
done = batch_process(lesions, analysis, lesion_batch_size=None, batch_result_callback=compare, **options)
print([lesion.error for lesion in done if lesion.error], len(far), max(far) < 1e-4, done[-1].batch >= 4)
"""


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_batch(tmp_path: Path) -> None:
    """Under a real limit of which the plan knows nothing, batches become smaller until they fit, and none is lost."""
    shape = (78, 86, 74)
    mask = make_mask(shape=shape)
    connectome = write_connectome(tmp_path / "wide.h5", make_series(int(mask.sum()), [5] * 3), mask)
    lesion = write_mask(tmp_path / "mask.nii.gz", box((5, 7, 11), (13, 14, 15), shape))
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, connectome, lesion], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "100", "True", "True"], done.stdout + done.stderr
    assert "the memory ran out: using batches of up to 50 lesions" in done.stderr
    assert "the memory ran out: using batches of up to 25 lesions" in done.stderr


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        *[
            pytest.param(number, id=number.name, marks=pytest.mark.slow)
            for number in (*TERMINATING[1:], signal.SIGKILL)
        ],
    ],
)
def test_the_same_command_goes_on(tmp_path: Path, number: int) -> None:
    """A run that is ended in the middle of its pass goes on there, and leaves what an undisturbed run leaves."""
    connectome = write_connectome(tmp_path / "many.h5", make_series(N_VOXELS, [19] * 80), MASK)
    names = [f"sub-{n:02}/anat/sub-{n:02}_space-{SPACE}_label-lesion_mask" for n in range(len(BOXES))]
    bids = write_dataset(tmp_path / "bids", dict(zip(names, BOXES, strict=True)))

    # The program looks for compiled kernels in the work folder.
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "numba").symlink_to(os.environ["NUMBA_CACHE_DIR"])
    options = ["-w", tmp_path / "work", "--checkpoint-minutes", "0.0001"]
    command = [sys.executable, RUN, bids, tmp_path / "out", "participant", "--connectome", connectome, *options]
    ended = subprocess.Popen([*map(str, command), "--no-reports"], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(tmp_path.glob("work/checkpoints/*/[!.]*.sums")) or ended.poll() is not None)
    assert ended.poll() is None
    ended.send_signal(number)
    _, said = ended.communicate(timeout=PATIENCE_S)
    assert ended.returncode == (-number if number == signal.SIGKILL else 143)
    assert not list(tmp_path.glob("out/sub-*/func/*.nii.gz"))
    assert ("saved the sums" in said) or number == signal.SIGKILL
    resumed = map_lesions(bids, tmp_path / "out", connectome, *options)
    undisturbed = map_lesions(bids, tmp_path / "undisturbed", connectome, "--checkpoint-minutes", "0")
    for result in (resumed, undisturbed):
        assert result.returncode == 0, result.stderr
        assert ("resuming after connectome subject" in result.stderr) == (result is resumed)
    for path in tmp_path.glob("undisturbed/sub-*/func/*"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "undisturbed")).read_bytes() == path.read_bytes()
    assert not list(tmp_path.glob("work/checkpoints/*/*"))
