"""Claims of lesions, between processes on the same host and on different ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bids_lacuna.runtime import locks
from bids_lacuna.runtime.locks import Claim, claiming

HOLD = """
import sys, time
from pathlib import Path
from bids_lacuna.runtime.locks import claiming
with claiming(Path(sys.argv[1]), "theirs", lambda claim: None) as claims:
    claims.take(["a", "b"])
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lesions a and b."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def move_to_another_host(folder: Path) -> None:
    """Make the files of a process look like those of a process on another host."""
    claim, lock = folder / "theirs.json", folder / "theirs.lock"
    host, _ = locks._this_host()
    claim.write_text(claim.read_text().replace(host, "elsewhere"))
    lines = ["host=elsewhere" if line.startswith("host=") else line for line in lock.read_text().splitlines()]
    lock.write_text("\n".join(lines) + "\n")


def take(folder: Path, *lesions: str) -> tuple[dict[str, Claim], list[Claim]]:
    """Claim lesions as another run; return the claims on held lesions, and the claims that were cleaned up."""
    cleaned: list[Claim] = []
    with claiming(folder, "ours", cleaned.append) as ours:
        held = ours.take(lesions)
    return held, cleaned


def test_lesions_of_a_living_process_are_held(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """A lesion of a living process is refused, with the process, and its files stay."""
    held, cleaned = take(tmp_path, "b", "c")
    assert {lesion: claim.pid for lesion, claim in held.items()} == {"b": holder.pid}
    assert cleaned == []
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.json", "theirs.lock"}


def test_lesions_of_a_dead_process_are_free(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """The lesions of a killed process are free at once, after cleaning up once."""
    holder.kill()
    holder.wait()
    held, cleaned = take(tmp_path, "b", "c")
    assert held == {}
    assert [(claim.pid, claim.lesions) for claim in cleaned] == [(holder.pid, ("a", "b"))]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("alive", [True, False])
def test_a_process_on_another_host(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """A heartbeat is awaited from a process on another host, but only if one of its lesions is wanted."""
    monkeypatch.setattr(locks, "LEASE_S", 3.0)
    monkeypatch.setattr(locks, "HEARTBEAT_S", 1.0)
    if alive:
        # Its own claim, seen from a host without such a process.
        claim = tmp_path / "theirs.json"
        claim.write_text(claim.read_text().replace(locks._this_host()[0], "elsewhere"))
        ticking = subprocess.Popen(["sh", "-c", f"while sleep 0.3; do touch -c {tmp_path}/theirs.lock; done"])
    else:
        holder.kill()
        holder.wait()
        move_to_another_host(tmp_path)
    try:
        assert take(tmp_path, "c") == ({}, [])
        held, cleaned = take(tmp_path, "b", "c")
    finally:
        if alive:
            ticking.kill()
            ticking.wait()
    assert list(held) == (["b"] if alive else [])
    assert len(cleaned) == (not alive)


def test_a_damaged_claim_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged claim causes a warning, and is removed."""
    (tmp_path / "theirs.json").write_text("{")
    assert take(tmp_path, "a") == ({}, [])
    assert "theirs.json is not a valid claim" in caplog.text
    assert list(tmp_path.iterdir()) == []
