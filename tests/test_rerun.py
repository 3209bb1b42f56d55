"""run.py killed, stopped, started twice and started again: what is left on disk, and what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import synthetic
from program import PATIENCE_S, RUN, map_lesions, read_tsv, wait_until

UNFINISHED = re.compile(r"\.[0-9a-f]{32}\..+")

PARTICIPANTS = ("01", "02", "03", "04")

Process = subprocess.Popen[str]

STARTED: list[Process] = []
"""By the test that is running."""


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """End what a test that failed has left running."""
    STARTED.clear()
    yield
    for process in STARTED:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def connectome(silent_connectome: Path) -> Path:
    """Map on subjects one of whom has no signal in some voxels."""
    return silent_connectome


def mask_name(participant: str) -> str:
    """Name a participant's mask, below the dataset's root and without its extension."""
    return f"sub-{participant}/anat/sub-{participant}_space-{synthetic.SPACE}_label-lesion_mask"


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset of four participants with a lesion each."""
    masks = {mask_name(label): synthetic.box((place, 2, 3)) for place, label in enumerate(PARTICIPANTS)}
    return synthetic.write_dataset(tmp_path_factory.mktemp("dataset") / "bids", masks)


@pytest.fixture(scope="module")
def undisturbed(bids: Path, connectome: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Map the lesions without any disturbance: what lies in the output folder then."""
    out = tmp_path_factory.mktemp("undisturbed") / "bids-lacuna"
    assert here(bids, out, connectome)[0] == 0
    return contents(out)


def start(bids: Path, out: Path, connectome: Path, *options: object) -> Process:
    """Start the program, with a batch for each lesion."""
    arguments = [bids, out, "participant", "--connectome", connectome, "--lesion-batch-size", "1"]
    arguments += ["--no-reports", *options]
    process = subprocess.Popen([sys.executable, RUN, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    STARTED.append(process)
    return process


def here(bids: Path, out: Path, connectome: Path, *options: object) -> tuple[int, str]:
    """Run the program within this process, with a batch for each lesion: the exit status, and what was said."""
    ended = map_lesions(bids, out, connectome, "--lesion-batch-size", "1", *options)
    return ended.returncode, ended.stderr


def finish(process: Process) -> tuple[int, str]:
    """Wait for the end: the exit status, and what was said."""
    _, said = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said


@contextmanager
def halted(process: Process) -> Iterator[None]:
    """Keep a process from going on, alive as it is."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def claims(out: Path) -> list[Path]:
    """List the claims of runs."""
    return list(out.glob("logs/locks/*.json"))


def contents(out: Path) -> dict[str, bytes]:
    """Read all files of the output but the logs; none may have a temporary name."""
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if UNFINISHED.fullmatch(path.name)]
    assert not list(out.glob("logs/locks/*"))
    return {name: path.read_bytes() for path in files if not (name := str(path.relative_to(out))).startswith("logs")}


def tables(out: Path) -> list[list[dict[str, str]]]:
    """Read the table of each run, in order."""
    paths = sorted(out.glob("logs/*/lesions.tsv"), key=lambda path: path.parent.stat().st_ctime_ns)
    return [read_tsv(path) for path in paths]


def statuses(out: Path) -> list[list[str]]:
    """Read the outcomes in each run's table, by participant."""
    return [[row["status"] for row in rows] for rows in tables(out)]


def maps(out: Path) -> list[Path]:
    """List the maps that are there."""
    return sorted(out.glob("sub-*/func/sub-*.nii.gz"))


def test_a_lesion_is_held_by_one_run_at_a_time(
    bids: Path, connectome: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """A second run on the same participants names the first one, leaves its lesions to it, and maps all others."""
    out = tmp_path / "bids-lacuna"
    first = start(bids, out, connectome, "--participant-label", "01", "02")
    wait_until(lambda: tables(out))
    with halted(first):
        claim = json.loads(claims(out)[0].read_text())
        assert claim["pid"] == first.pid
        status, said = here(bids, out, connectome)
    assert status == 1
    assert f"process {first.pid} on {os.uname().nodename}, since" in said.splitlines()[-1]
    assert said.count("holds this lesion") == 3, "once as it comes, once summed up, once at the end"
    assert finish(first)[0] == 0
    assert sorted(statuses(out)) == [["done", "done"], ["failed", "failed", "done", "done"]]
    assert contents(out) == undisturbed


@pytest.mark.parametrize("labels", [(["01", "02"], ["03", "04"]), (PARTICIPANTS, PARTICIPANTS)], ids=str)
def test_two_runs_at_the_same_time(
    bids: Path,
    connectome: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    labels: tuple[list[str], list[str]],
) -> None:
    """Jobs of an array tear no file and lose no row, whether their participants are disjoint or the same."""
    out = tmp_path / "bids-lacuna"
    jobs = [start(bids, out, connectome, "--participant-label", *some) for some in labels]
    ends = [finish(job) for job in jobs]
    both = statuses(out)
    assert sorted(map(len, both)) == sorted(map(len, labels))
    if labels[0] == labels[1]:
        # Whichever claimed a lesion first has done it; the other one found it held, or finished.
        for one, other in zip(*both, strict=True):
            assert sorted([one, other]) in (["done", "failed"], ["done", "skipped"])
        assert all((status == 1) == ("holds this lesion" in said) for status, said in ends)
    else:
        assert ends[0][0] == ends[1][0] == 0, ends
        assert both == [["done", "done"]] * 2
    assert contents(out) == undisturbed


def test_a_killed_run_is_taken_up(
    bids: Path, connectome: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """After SIGKILL the same command maps what is left; lock and temporary files of the dead run go."""
    out = tmp_path / "bids-lacuna"
    killed = start(bids, out, connectome)
    wait_until(lambda: maps(out))
    killed.kill()
    assert finish(killed)[0] == -signal.SIGKILL
    assert len(list(out.glob("logs/locks/*.lock"))) == 1
    # What a kill within a write leaves: of a map, of the table and of the description.
    names = ["." + "0" * 32 + f".{path.name}" for path in maps(out)[:1]]
    (run,) = (path.stem for path in claims(out))
    left = [maps(out)[0].with_name(names[0]), out / "logs" / run / f".{'1' * 32}.lesions.tsv"]
    left.append(out / f".{'2' * 32}.dataset_description.json")
    for path in left:
        path.write_bytes(b"half")
    status, said = here(bids, out, connectome)
    assert status == 0, said
    assert f"process {killed.pid} on" in said
    assert "was killed: its incomplete files are removed" in said
    assert set(statuses(out)[-1]) <= {"done", "skipped"}
    assert contents(out) == undisturbed


def test_sigterm_leaves_nothing_behind(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """A scheduler's SIGTERM ends the run with a sentence and status 143; its lesions are free again."""
    out = tmp_path / "bids-lacuna"
    process = start(bids, out, connectome)
    wait_until(lambda: claims(out))
    process.terminate()
    status, said = finish(process)
    assert status == 143
    assert said.splitlines()[-1].endswith("rerun the same command to resume (SIGTERM)")
    assert "Traceback" not in said
    contents(out)
    # Before the table is there, it may end, too.
    assert all({"not run"} <= set(outcomes) <= {"done", "not run"} for outcomes in statuses(out))


def test_what_one_lesion_has_is_of_one_kind(
    bids: Path, connectome: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """A map with another weighting keeps a lesion from being mapped, also one that is not asked for now."""
    out = tmp_path / "bids-lacuna"
    for name, content in undisturbed.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    for path in out.glob("sub-0[12]/func/*stat-[rzn]*"):
        path.unlink()
    for path in out.glob("sub-02/func/*.json"):
        path.unlink()
    options = ["--no-t-map", "--lesion-weighting", "binary"]
    status, said = here(bids, out, connectome, *options, "--participant-label", "01", "02")
    assert status == 1
    # A map without a sidecar is what a killed run leaves: it counts for nothing.
    assert statuses(out) == [["failed", "done"]]
    assert "volume weighting" in said.splitlines()[-1]
    assert "--overwrite" in said.splitlines()[-1]


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Write a dataset of which the second lesion is well; the first is 4D, and those that follow are empty."""
    root = synthetic.write_dataset(tmp_path / "bids", {mask_name("02"): synthetic.box((0, 2, 3))})
    synthetic.write_mask(root / f"{mask_name('01')}.nii.gz", np.ones((*synthetic.SHAPE, 2)))
    for label in ("03", "04", "05", "06"):
        synthetic.write_mask(root / f"{mask_name(label)}.nii.gz", np.zeros(synthetic.SHAPE))
    return root


def test_failures_are_told_everywhere(faulty: Path, connectome: Path, tmp_path: Path) -> None:
    """The log has each failure, the terminal each kind; each kind has a crash file with its traceback."""
    out = tmp_path / "bids-lacuna"
    status, said = here(faulty, out, connectome)
    assert status == 1
    assert "Traceback" not in said
    assert said.count("the mask is empty") == 2, "as it comes, and summed up"
    assert "failed alike: 4 lesions (" in said
    assert said.splitlines()[-1].startswith("bids-lacuna: error: 5 of 6 lesions failed, the first: ")
    assert "2)" in said.splitlines()[-1]
    (folder,) = out.glob("logs/*_*")
    assert str(folder) in said.splitlines()[-1]
    log = (folder / "bids-lacuna.log").read_text()
    assert log.count("ERROR   bids_lacuna.batch: failed: ") == 5
    for words in (f"{faulty} {out} participant", "numba ", "Python 3", "lesion masks in", "free on this machine"):
        assert words in log
    crashes = [path.read_text() for path in sorted(folder.glob("crash-????????-??????-*.txt"))]
    assert len(crashes) == 2
    for crash, words in zip(crashes, ("dimensions", "the mask is empty"), strict=True):
        assert crash.count("Traceback (most recent call last)") == 1
        assert words in crash.splitlines()[0]
        assert "load_lesion" in crash


def test_stop_on_first_crash(faulty: Path, connectome: Path, tmp_path: Path) -> None:
    """The run ends with the first failure: what was done stays, and the others are listed as not run."""
    out = tmp_path / "bids-lacuna"
    shutil.rmtree(faulty / "sub-01")
    status, _ = here(faulty, out, connectome, "--stop-on-first-crash")
    assert status == 1
    assert statuses(out) == [["done", "failed", "not run", "not run", "not run"]]
    assert {path.parts[-3] for path in maps(out)} == {"sub-02"}
