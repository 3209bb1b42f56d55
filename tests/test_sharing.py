"""Additions to finished maps in a folder that several runs share, one of which is stopped or killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic
from program import map_lesions

MASK = synthetic.make_mask()

BOXES = {"01": synthetic.box((1, 2, 3)), "02": synthetic.box((2, 4, 6), (3, 2, 2))}

STEM = f"space-{synthetic.SPACE}_label-lesion"

HALT = """
import os, sys, time
from pathlib import Path
from bids_lacuna import cli, files
from bids_lacuna.app import participant
put_in_place = files.put_in_place
def halt(temporary, path, *, sync=True):
    if path.match(point) and (nth := seen.append(path) or len(seen)) == wanted:
        print(Path(out).name, os.getpid(), flush=True)
        time.sleep(600)
    put_in_place(temporary, path, sync=sync)
files.put_in_place = halt
for out, point, wanted in (part.split(":") for part in sys.argv[1].split(",")):
    if os.fork() == 0:
        seen, wanted = [], int(wanted)
        os._exit(cli.main([sys.argv[2], out, *sys.argv[3:]]))
while True:
    try:
        print("ended", os.wait()[0], flush=True)
    except ChildProcessError:
        break
"""
"""Starts a process for each output, which stops where it would rename a file of that name for the nth time."""

POINTS = {
    "targets": "sub-01*_stat-r_*.json:1",
    "parcels": "sub-02*_parcels.tsv:1",
    "atlas": "tpl-*_dseg.nii.gz:1",
}

LACKING = {"targets": 2, "parcels": 1}
"""Lesions to which something would still be added, at those points."""


@pytest.fixture(scope="module")
def connectome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a connectome."""
    series = synthetic.make_series(int(MASK.sum()))
    return synthetic.write_connectome_folder(tmp_path_factory.mktemp("connectome") / "GSP5", series, MASK)


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two lesions."""
    masks = {f"sub-{label}/anat/sub-{label}_{STEM}_mask": voxels for label, voxels in BOXES.items()}
    return synthetic.write_dataset(tmp_path_factory.mktemp("dataset") / "bids", masks)


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Write a target network and an atlas, and return the options that ask for them."""
    folder, rng = tmp_path_factory.mktemp("added"), np.random.default_rng(3)
    target = synthetic.write_mask(
        folder / f"space-{synthetic.SPACE}_target.nii.gz", rng.integers(0, 9, synthetic.SHAPE)
    )
    atlas = synthetic.write_mask(
        folder / f"tpl-{synthetic.SPACE}_atlas-A_dseg.nii.gz", rng.integers(0, 4, synthetic.SHAPE)
    )
    return ["--target", f"network={target}", "--atlas", atlas, "--nprocs", "1"]


@pytest.fixture(scope="module")
def finished(bids: Path, connectome: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Map the lesions, and add nothing."""
    out = tmp_path_factory.mktemp("finished") / "out"
    ended = map_lesions(bids, out, connectome)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture
def halted(
    bids: Path, connectome: Path, added: list[object], finished: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """Start a run for each point, in a copy of the output of its own, and give the process of each."""
    places = []
    for name, point in POINTS.items():
        shutil.copytree(finished, tmp_path / name)
        places.append(f"{tmp_path / name}:{point}")
    options = ["participant", "--connectome", connectome, "--no-reports", "-q", *added]
    command = [sys.executable, "-c", HALT, ",".join(places), bids, *options]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pids = {}
        try:
            for _ in POINTS:
                name, pid = process.stdout.readline().split()
                assert name in POINTS
                pids[name] = int(pid)
            yield process, pids
        finally:
            process.kill()


def state_of(out: Path) -> dict[str, bytes]:
    """Return the content of all files, hidden ones included, but for logs."""
    files = (path for path in out.rglob("*") if path.is_file() and "logs" not in path.relative_to(out).parts)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_additions_of_a_killed_run(
    bids: Path,
    connectome: Path,
    added: list[object],
    finished: Path,
    tmp_path: Path,
    halted: tuple[subprocess.Popen[str], dict[str, int]],
) -> None:
    """While a run adds to finished maps, another one leaves them alone; killed, a rerun ends as if nothing had been.

    One run was stopped while it wrote an atlas, which belongs to no lesion: others would wait for it.
    """
    whole = shutil.copytree(finished, tmp_path / "whole")
    assert map_lesions(bids, whole, connectome, *added).returncode == 0
    expected = state_of(whole)
    process, pids = halted
    assert process.stdout
    for name, pid in pids.items():
        out = tmp_path / name
        before = state_of(out)
        assert any(Path(path).name.startswith(".") and path.endswith((".json", ".tsv", ".gz")) for path in before)
        if name != "atlas":
            ended = map_lesions(bids, out, connectome, *added)
            assert ended.returncode == 1
            log = "\n".join(line for line in ended.stderr.splitlines() if " W " in line)
            assert log.count("nothing is added to its maps, since the run ") == LACKING[name]
            assert f"(process {pid} on " in log
            assert {name: content for name, content in state_of(out).items() if name.startswith("sub-")} == {
                name: content for name, content in before.items() if name.startswith("sub-")
            }
        os.kill(pid, signal.SIGKILL)
        assert process.stdout.readline() == f"ended {pid}\n"
        assert map_lesions(bids, out, connectome, *added).returncode == 0
        assert state_of(out) == expected
