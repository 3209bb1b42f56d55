"""Who holds which lesion, between processes on this and on another host."""

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
    """Start a process that holds lesions a and b."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def move_to_another_host(folder: Path) -> None:
    """Have files say that their process is elsewhere."""
    claim, lock = folder / "theirs.json", folder / "theirs.lock"
    host, _ = locks._this_host()
    claim.write_text(claim.read_text().replace(host, "elsewhere"))
    lines = ["host=elsewhere" if line.startswith("host=") else line for line in lock.read_text().splitlines()]
    lock.write_text("\n".join(lines) + "\n")


def take(folder: Path, *lesions: str) -> tuple[dict[str, Claim], list[Claim]]:
    """Claim lesions as another run: those that are held, and what was cleaned up."""
    cleaned: list[Claim] = []
    with claiming(folder, "ours", cleaned.append) as ours:
        held = ours.take(lesions)
    return held, cleaned


def test_a_living_process_holds(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """What a living process holds is refused with its process, and nothing of it is removed."""
    held, cleaned = take(tmp_path, "b", "c")
    assert {lesion: claim.pid for lesion, claim in held.items()} == {"b": holder.pid}
    assert cleaned == []
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.json", "theirs.lock"}


def test_a_dead_process_does_not(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """What a process held that was killed is free at once, after one cleaning."""
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
    """Whether a process elsewhere lives shows by its lock's time: it is waited for, but not for other lesions."""
    monkeypatch.setattr(locks, "SILENCE_S", 3.0)
    monkeypatch.setattr(locks, "BEAT_S", 1.0)
    if alive:
        # Its own claim, seen from a host where no such process is.
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


def test_a_damaged_claim_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is no claim is told about, and removed with its run."""
    (tmp_path / "theirs.json").write_text("{")
    assert take(tmp_path, "a") == ({}, [])
    assert "theirs.json is no claim" in caplog.text
    assert list(tmp_path.iterdir()) == []
