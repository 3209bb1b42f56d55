"""HDF5 files that are locked, linked or open elsewhere, on a real file system."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from synthetic import make_mask, make_series, write_connectome

from bids_lacuna.connectome import Connectome
from bids_lacuna.connectome.importers.opening import LOCKING, is_hdf5

MASK = make_mask()
EQUAL = make_series(int(MASK.sum()), (13, 13, 13, 13))

WRITER = """
import sys, h5py
with h5py.File(sys.argv[1], "r+", locking=True):
    print("open", flush=True)
    sys.stdin.read()
"""
"""A program that has a file open for writing until its input ends."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a connectome of four subjects into one file."""
    return write_connectome(tmp_path / "study.h5", EQUAL, MASK)


def link_series(file: Path, link: h5py.ExternalLink | h5py.SoftLink) -> Path:
    """Replace the series in a connectome's file by a link."""
    with h5py.File(file, "r+") as stored:
        del stored["timeseries"]
        stored["timeseries"] = link
    return file


def write_virtual(folder: Path) -> tuple[Path, list[Path]]:
    """Write a connectome whose series lie in two other files, two subjects in each."""
    file = write_connectome(folder / "virtual.h5", EQUAL, MASK)
    parts = [folder / f"part{number}.dat" for number in range(2)]
    layout = h5py.VirtualLayout((4, *EQUAL[0].shape), "f4")
    for number, part in enumerate(parts):
        with h5py.File(part, "w") as stored:
            stored["ts"] = np.array(EQUAL[2 * number : 2 * number + 2])
        layout[2 * number : 2 * number + 2] = h5py.VirtualSource(part.name, "ts", (2, *EQUAL[0].shape))
    with h5py.File(file, "r+") as stored:
        del stored["timeseries"]
        stored.create_virtual_dataset("timeseries", layout, fillvalue=0)
    return file, parts


def test_reading_needs_no_lock(file: Path) -> None:
    """A connectome is read while its file is locked, as on file systems that refuse all locks."""
    connectome = Connectome.open(file)
    with file.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [subject.scale.all() for subject in connectome.subjects()] == [True] * 4


def test_a_file_that_is_open_for_writing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another program writes is refused with that reason, unless HDF5's locks are turned off."""
    with subprocess.Popen([sys.executable, "-c", WRITER, file], stdin=-1, stdout=-1, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match=f"another program has {file} open for writing: wait until"):
            Connectome.open(file)
        monkeypatch.setenv(LOCKING, "FALSE")
        assert Connectome.open(file).n_subjects == 4
        writer.communicate()
    monkeypatch.delenv(LOCKING)
    assert Connectome.open(file).n_subjects == 4


def test_a_file_that_was_open_for_writing_when_its_program_was_killed(tmp_path: Path) -> None:
    """A file that HDF5 takes for one that is being written is refused with that reason and with the remedy."""
    path = tmp_path / "crashed.h5"
    with h5py.File(path, "w", libver="latest") as stored:
        stored["timeseries"] = [1]
    crash = "import os, sys, h5py; file = h5py.File(sys.argv[1], 'r+', libver='latest'); file.flush(); os._exit(0)"
    subprocess.run([sys.executable, "-c", crash, path], check=True)
    with pytest.raises(ValueError, match=r"another program has .* open for writing: .* run `h5clear -s crashed.h5`"):
        Connectome.open(path)


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (h5py.ExternalLink("gone.h5", "/ts"), "a link to /ts in the file .*gone.h5, which does not exist: make"),
        (h5py.ExternalLink("study.h5", "/ts"), "a link to /ts in the file .*study.h5, which does not hold /ts"),
        (h5py.SoftLink("/ts"), "a link to /ts, which the file does not hold"),
    ],
    ids=["no file", "no dataset", "within the file"],
)
def test_a_link_that_leads_nowhere(file: Path, link: h5py.ExternalLink | h5py.SoftLink, words: str) -> None:
    """A link whose target is missing is the reason that is given, not a missing dataset."""
    with pytest.raises(ValueError, match=f"timeseries is {words}"):
        Connectome.open(link_series(file, link))


def test_an_external_link_is_followed(file: Path) -> None:
    """Series in a linked file are read; its content is part of the connectome's hash and of its size."""
    linked = file.rename(file.with_name("linked.h5"))
    write_connectome(file, EQUAL, MASK)
    connectome = Connectome.open(link_series(file, h5py.ExternalLink("linked.h5", "/timeseries")))
    np.testing.assert_allclose(next(connectome.subjects()).sd, EQUAL[0].std(axis=0), rtol=1e-5)
    assert connectome.n_bytes == file.stat().st_size + linked.stat().st_size
    before = connectome.content_hash
    with h5py.File(linked, "r+") as stored:
        stored["timeseries"][0, 0, 0] += 1
    assert Connectome.open(file).content_hash != before


def test_missing_files_of_a_virtual_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """HDF5 gives zeros for what a missing file holds: a warning names the file."""
    file, parts = write_virtual(tmp_path)
    assert Connectome.open(file).n_bytes == sum(path.stat().st_size for path in (file, *parts))
    assert not caplog.messages
    parts[1].unlink()
    assert [subject.scale.any() for subject in Connectome.open(file).subjects()] == [True, True, False, False]
    assert f"of which 1 of 2 do not exist, such as {parts[1]}" in caplog.text


def test_the_signature_lies_behind_a_user_block(tmp_path: Path) -> None:
    """MATLAB's files of version 7.3 have 512 bytes of text before HDF5's signature; a text has none."""
    for user_block in (0, 512, 2048):
        with h5py.File(tmp_path / f"{user_block}.h5", "w", userblock_size=user_block):
            pass
        with (tmp_path / f"{user_block}.h5").open("rb") as file:
            assert is_hdf5(file)
    (tmp_path / "text").write_bytes(b"no signature" * 1000)
    with (tmp_path / "text").open("rb") as file:
        assert not is_hdf5(file)
