"""bids-lacuna-connectome summarize, and what info and verify say of a summary."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import synthetic
from program import Ended, capture

from bids_lacuna import Connectome, Summary, cli
from bids_lacuna.connectome.store import Store

MASK = synthetic.make_mask()


def run(*arguments: object) -> Ended:
    """Run the program within this process."""
    return capture(cli.connectome_main, *arguments)


def rows(ended: Ended) -> dict[str, str]:
    """Return what a command printed, by the names of its rows."""
    assert ended.returncode == 0, ended.stderr
    pairs = (line.split("  ", 1) for line in ended.stdout.splitlines())
    return {name: value.strip() for name, value in pairs}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a store with a summary."""
    folder = tmp_path_factory.mktemp("connectome")
    source = synthetic.write_connectome_folder(folder / "hdf5", synthetic.make_series(int(MASK.sum())), MASK)
    store = folder / "store"
    options = ["--space", synthetic.SPACE, "--name", "GSP5", "--nprocs", "1", "--summarize"]
    ended = run("build", source, store, *options)
    assert ended.returncode == 0, ended.stderr
    assert "the summary has 71 cells of 8 mm" in ended.stderr
    assert f"--connectome {store} now compares each map with degree and null lesions" in ended.stderr
    return store


@pytest.fixture
def own(store: Path, tmp_path: Path) -> Path:
    """Copy the store."""
    return shutil.copytree(store, tmp_path / "own")


def test_build_makes_a_summary(store: Path) -> None:
    """`build --summarize` makes the summary of the store in the store, whose content it does not change."""
    summary = Summary.open(store)
    assert summary.arrays.folder == store / "summary"
    assert summary.arrays.record.connectome_hash == Connectome.open(store).content_hash
    assert summary.arrays.record.n_subjects == 5


def test_summarize_elsewhere(own: Path, tmp_path: Path) -> None:
    """A summary with cells of another size in another folder, with the option that names it."""
    there = tmp_path / "elsewhere"
    ended = run("summarize", own, "--output", there, "--cell-size-mm", "12", "--mem", "4G", "--nprocs", "1", "-q")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert Summary.open(own, there).arrays.record.cell_size_mm == 12
    ended = run("summarize", own, "--output", there, "--cell-size-mm", "12")
    assert ended.returncode == 0
    assert f"{there} is already finished" in ended.stderr
    assert f"--connectome {own} --connectome-summary {there}" in ended.stderr
    assert "cells of 12 mm" in rows(run("info", own, "--connectome-summary", there))["summary"]
    assert rows(run("verify", own, "--connectome-summary", there))["summary"] == "no problem found"
    ended = run("summarize", own, "--output", there)
    assert ended.returncode == 73
    assert "holds a finished summary with cells of 12 mm" in ended.stderr


def test_info_and_verify(own: Path) -> None:
    """`info` describes the summary, `verify` checks it; without one, `info` has the command that makes one."""
    assert rows(run("info", own))["summary"].startswith("71 cells of 8 mm, principal components with ")
    assert rows(run("verify", own))["summary"] == "no problem found"
    shutil.rmtree(own / "summary")
    assert rows(run("info", own))["summary"] == f"none: bids-lacuna-connectome summarize {own}"
    assert rows(run("verify", own))["summary"] == "none"


def test_a_damaged_summary(own: Path) -> None:
    """A flipped bit in the covariances is a problem of the store; other damage is shown by `info` as well."""
    path = own / "summary" / "operator.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 64
    path.write_bytes(content)
    ended = run("verify", own)
    assert ended.returncode == 65
    assert "problems: 1" in ended.stdout
    assert "operator.npy has another checksum than when it was made: remove the folder of the summary" in ended.stderr
    path.write_bytes(content[:-4])
    assert "operator.npy has " in rows(run("info", own))["summary"]


def test_a_summary_of_another_store(store: Path, own: Path) -> None:
    """The summary of other series is refused, since it has their content hash."""
    scale = own / "sub-0001_scale.npy"
    description = (own / "connectome.json").read_text()
    digest = Store.open(own).subjects[0].sha256["scale"]
    (own / "connectome.json").write_text(description.replace(digest, digest[::-1]))
    assert scale.exists()
    assert "is of another connectome (GSP5" in rows(run("info", own))["summary"]
    ended = run("summarize", own)
    assert ended.returncode == 73
    assert "of another connectome: remove it first" in ended.stderr
    assert rows(run("info", store))["summary"].startswith("71 cells")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["summarize", "nowhere"], 66, "no connectome store at nowhere"),
        (["summarize", "nowhere", "--cell-size-mm", "-1"], 64, "not a positive number"),
        (
            ["info", "{store}", "--connectome-summary", "nowhere"],
            0,
            "there is no summary of the connectome in nowhere",
        ),
        (["verify", "{store}", "--connectome-summary", "nowhere"], 65, "there is no summary"),
        (["summarize", "{store}", "--mem", "1M", "--output", "{new}"], 1, "one cell needs"),
        (["summarize", "{store}", "--output", "/proc/nowhere"], 73, "name a folder elsewhere with --output"),
    ],
)
def test_what_cannot_be_done(store: Path, tmp_path: Path, arguments: list[str], status: int, words: str) -> None:
    """Exit statuses and sentences."""
    ended = run(*(each.format(store=store, new=tmp_path / "new") for each in arguments))
    assert ended.returncode == status
    assert words in ended.stderr + ended.stdout
