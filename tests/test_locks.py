"""Claims of lesions, between processes on the same host and on different ones."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from bids_lacuna.runtime import locks
from bids_lacuna.runtime.locks import Claim, Claims, claiming

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


def claim_elsewhere(folder: Path, where: str) -> None:
    """Make the claim of a process look like that of a process on another host, or in another container here."""
    path = folder / "theirs.json"
    claim = json.loads(path.read_text())
    path.write_text(json.dumps(claim | ({"host": "elsewhere"} if where == "host" else {"pid_namespace": 7})))


def lock_elsewhere(folder: Path) -> None:
    """Make the lock of a process look like that of a process that cannot be seen from here."""
    path = folder / "theirs.lock"
    lines = ["host=elsewhere" if line.startswith("host=") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")


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
    with claiming(tmp_path, "third", cleaned.append) as third:
        third.take(["b", "c"])
        assert json.loads((tmp_path / "third.json").read_text())["lesions"] == ["c"]
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.json", "theirs.lock"}


def test_lesions_of_a_dead_process_are_free(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """The lesions of a killed process are free at once, after cleaning up once."""
    holder.kill()
    holder.wait()
    held, cleaned = take(tmp_path, "b", "c")
    assert held == {}
    assert [(claim.pid, claim.lesions) for claim in cleaned] == [(holder.pid, ("a", "b"))]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("alive", "where"), [(True, "host"), (False, "host"), (False, "container")])
def test_a_process_that_cannot_be_seen(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, alive: bool, where: str
) -> None:
    """A heartbeat is awaited from a process on another host, but only if one of its lesions is wanted."""
    monkeypatch.setattr(locks, "LEASE_S", 3.0)
    monkeypatch.setattr(locks, "HEARTBEAT_S", 1.0)
    claim_elsewhere(tmp_path, where)
    if alive:
        ticking = subprocess.Popen(["sh", "-c", f"while sleep 0.3; do touch -c {tmp_path}/theirs.lock; done"])
    else:
        holder.kill()
        holder.wait()
        lock_elsewhere(tmp_path)
    try:
        assert take(tmp_path, "c") == ({}, [])
        held, cleaned = take(tmp_path, "b", "c")
    finally:
        if alive:
            ticking.kill()
            ticking.wait()
    assert list(held) == (["b"] if alive else [])
    assert len(cleaned) == (not alive)


@pytest.mark.usefixtures("holder")
def test_a_late_heartbeat_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose heartbeat comes when its lock has just expired keeps its lesions."""
    claim_elsewhere(tmp_path, "host")
    lock_elsewhere(tmp_path)
    heartbeats: list[None] = []

    def expired(claims: Claims, _lesions: Collection[str]) -> dict[str, tuple[int, int] | None]:
        before = claims._heartbeat("theirs")
        (tmp_path / "theirs.lock").touch()
        heartbeats.append(None)
        return {"theirs": before}

    monkeypatch.setattr(Claims, "_await_heartbeats", expired)
    held, cleaned = take(tmp_path, "b", "c")
    assert heartbeats
    assert (list(held), cleaned) == (["b"], [])


def test_one_run_claims_at_a_time(tmp_path: Path) -> None:
    """A run cannot claim lesions during another one's exclusive block."""
    with claiming(tmp_path, "ours", print) as ours, claiming(tmp_path, "theirs", print) as theirs:
        taking = threading.Thread(target=theirs.take, args=(["a"],), daemon=True)
        with ours.exclusive():
            taking.start()
            taking.join(3 * locks.POLL_S)
            assert not (tmp_path / "theirs.json").exists()
        taking.join(60)
        assert (tmp_path / "theirs.json").exists()


def test_unfinished_files_are_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A claim that a killed run was writing is removed, and not taken for a damaged one."""
    (tmp_path / f".{'0' * 32}.theirs.json").write_text("{")
    assert take(tmp_path, "a") == ({}, [])
    assert list(tmp_path.iterdir()) == []
    assert caplog.text == ""


def test_a_damaged_claim_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged claim causes a warning, and is removed."""
    (tmp_path / "theirs.json").write_text("{")
    assert take(tmp_path, "a") == ({}, [])
    assert "theirs.json is not a valid claim" in caplog.text
    assert list(tmp_path.iterdir()) == []
