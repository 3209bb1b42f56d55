"""Standard streams that are closed, full or not read do not stop the programs."""

from __future__ import annotations

import io
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from program import CONNECTOME_PROGRAM, RUN, run

from bids_lacuna.runtime.streams import LenientStream, lenient_streams


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset with one lesion."""
    name = f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-lesion_mask"
    return synthetic.write_dataset(tmp_path_factory.mktemp("streams") / "bids", {name: synthetic.box((3, 2, 3))})


@pytest.fixture(scope="module")
def expected(bids: Path, connectome: Path) -> dict[str, np.ndarray]:
    """Map the lesion undisturbed."""
    out = bids.parent / "undisturbed"
    assert run(bids, out, "participant", "--connectome", connectome, "--no-reports").returncode == 0
    return maps(out)


def maps(out: Path) -> dict[str, np.ndarray]:
    """Read all maps."""
    return {path.name: nib.load(path).get_fdata() for path in out.rglob("*_statmap.nii.gz")}


def in_shell(command: list[object], redirection: str) -> subprocess.CompletedProcess[str]:
    """Run a command with redirected streams; stdout has its exit status in the last line."""
    line = f'{shlex.join(map(str, command))} {redirection}; echo "${{PIPESTATUS[0]}}"'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True)


@pytest.mark.parametrize(
    "redirection",
    [
        "2>&-",
        "<&- >&- 2>&-",
        ">/dev/full 2>/dev/full",
        "2>&1 | head -c 1 >/dev/null",
        pytest.param("2> >(true)", marks=pytest.mark.slow),
        pytest.param("-v >/dev/full 2>&1", marks=pytest.mark.slow),
    ],
)
def test_lesions_are_mapped_whatever_becomes_of_messages(
    bids: Path, connectome: Path, tmp_path: Path, expected: dict[str, np.ndarray], redirection: str
) -> None:
    """The maps are those of an undisturbed run, and the exit status is 0."""
    command = [sys.executable, RUN, bids, tmp_path / "out", "participant", "--connectome", connectome, "--no-reports"]
    result = in_shell(command, redirection)
    assert result.stdout.splitlines()[-1] == "0"
    found = maps(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, ours in found.items():
        np.testing.assert_array_equal(ours, expected[name])
    (log,) = tmp_path.glob("out/logs/*/bids-lacuna.log")
    assert "Traceback" not in log.read_text()
    assert not list(tmp_path.glob("out/logs/*/crash*"))


DATA_FILE = """
import sys
from bids_lacuna.runtime.streams import lenient_streams
with lenient_streams():
    print("lost")
    with open(sys.argv[1], "w") as file:
        file.write(str(file.fileno()))
"""


def test_a_data_file_gets_no_standard_descriptor(tmp_path: Path) -> None:
    """With all three closed, a file that is opened within the block has another descriptor."""
    result = in_shell([sys.executable, "-c", DATA_FILE, tmp_path / "data"], "<&- >&- 2>&-")
    assert result.stdout == "0\n"
    assert int((tmp_path / "data").read_text()) > 2


@pytest.mark.parametrize(
    ("redirection", "status", "sentences"),
    [("| true", "141", 0), (">/dev/full", "74", 1), (">&-", "0", 0), (">/dev/full 2>/dev/full", "74", 0)],
)
@pytest.mark.parametrize("option", ["--bids-exec-spec", "--citation", "--version", "--help"])
def test_output_that_is_lost_has_an_exit_status(option: str, redirection: str, status: str, sentences: int) -> None:
    """A pipe that nobody reads is silent, a full disk is one sentence; there is never a traceback."""
    # The reader has ended before anything is written.
    late = "import sys, time; time.sleep(0.5); sys.argv[0] = 'x'; from bids_lacuna.cli import main; sys.exit(main())"
    result = in_shell([sys.executable, "-c", late, option], redirection)
    assert result.stdout.splitlines()[-1] == status
    assert len(result.stderr.splitlines()) == sentences, result.stderr


def test_a_failure_keeps_its_status_where_the_output_is_lost(tmp_path: Path) -> None:
    """`info` of a folder that is no store ends with 66, and its sentence is on stderr."""
    result = in_shell([*CONNECTOME_PROGRAM, "info", tmp_path], ">/dev/full")
    assert result.stdout.splitlines()[-1] == "66"
    assert "connectome.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_terminal_that_hangs_up(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """A run that ignores SIGHUP maps its lesions although its terminal is closed."""
    ours, theirs = pty.openpty()
    words = [sys.executable, RUN, bids, tmp_path / "out", "participant", "--connectome", connectome, "--no-reports"]
    command = ["bash", "-c", f"trap '' HUP; exec {shlex.join(map(str, words))}"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        os.close(ours)
        assert process.wait(100) == 0
    assert maps(tmp_path / "out")


def test_characters_that_an_encoding_lacks_are_escaped() -> None:
    """A name that is not ASCII is written to an ASCII terminal with escapes."""
    raw = io.BytesIO()
    stream = LenientStream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("sub-Jörg\n")
    stream.finish()
    assert raw.getvalue() == b"sub-J\\xf6rg\n"
    assert stream.failure is None


def test_the_streams_of_the_caller_are_restored() -> None:
    """After the block, stdout and stderr are what they were, and can be written to."""
    before = sys.stdout, sys.stderr
    with lenient_streams() as output:
        assert sys.stdout is output
    assert (sys.stdout, sys.stderr) == before


def test_progress_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a daemon, where Python has no stderr, a count has no bar."""
    from bids_lacuna.runtime.progress import Progress

    monkeypatch.setattr(sys, "stderr", None)
    with Progress(3, "mapping", "lesion") as progress:
        progress.update(2)
    assert progress.n == 2
