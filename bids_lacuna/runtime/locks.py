"""Claims: which run maps which lesion, if several runs write into one folder."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import LeaseCompromise, LeaseSettingsMismatch, SoftFileLease, Timeout

from bids_lacuna.files import read_json_object, remove_unfinished, write_json

logger = logging.getLogger(__name__)

LEASE_S = 120.0
"""Seconds without a heartbeat after which the lock of a run on another host expires."""

HEARTBEAT_S = 20.0
"""Seconds between heartbeats, which touch the run's lock file. All runs must use the same two intervals."""

POLL_S = 0.2
"""Seconds between two attempts to take a lock that another run holds."""


@dataclass(frozen=True)
class Claim:
    """The lesions of one run, and where the run is."""

    run: str
    """Name of the run, and of its log folder."""
    host: str
    pid: int
    pid_namespace: int
    """Distinguishes containers with the same host name, which number their processes separately."""
    since: str
    """Start of the claim, in local time."""
    lesions: tuple[str, ...]
    """One name for each lesion."""

    @property
    def is_of_this_host(self) -> bool:
        """Whether the operating system can tell if the process is alive."""
        return (self.host, self.pid_namespace) == _this_host()

    def __str__(self) -> str:
        """Describe the run for a user who looks for it."""
        return f"the run {self.run} (process {self.pid} on {self.host}, since {self.since})"


class Claims:
    """The lesions that a run holds in a folder that it shares with other runs; created by `claiming`.

    A run has two files: its lock, with a heartbeat while the process is alive, and its claim, with its lesions.
    """

    def __init__(self, folder: Path, run: str, clean: Callable[[Claim], None]) -> None:
        self._folder = folder
        self._run = run
        self._clean = clean

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Exclude other runs from `take`, and from their own `exclusive` blocks, until the block ends."""
        with _lease(self._folder / "claiming").acquire(poll_interval=POLL_S):
            yield

    def take(self, lesions: Collection[str]) -> dict[str, Claim]:
        """Claim lesions, except those that another run holds.

        If that run is on another host, it may take two minutes to find out whether it is alive.

        Parameters
        ----------
        lesions
            One name for each lesion.

        Returns
        -------
        dict
            The other run's claim, for each lesion that could not be claimed.
        """
        expired = self._await_heartbeats(lesions)
        with self.exclusive():
            self._remove_dead(expired)
            held = {lesion: claim for claim in self._claims_of_others() for lesion in claim.lesions}
            host, pid_namespace = _this_host()
            taken = tuple(lesion for lesion in lesions if lesion not in held)
            claim = Claim(self._run, host, os.getpid(), pid_namespace, f"{datetime.now():%Y-%m-%d %H:%M:%S}", taken)
            write_json(self._claim_path(self._run), asdict(claim))
        return {lesion: held[lesion] for lesion in lesions if lesion in held}

    def release(self) -> None:
        """Release all lesions."""
        # The folder may have been deleted.
        with suppress(OSError):
            self._claim_path(self._run).unlink(missing_ok=True)

    def _claims_of_others(self) -> list[Claim]:
        paths = (self._claim_path(run) for run in self._other_runs())
        return [claim for path in paths if (claim := _read_claim(path))]

    def _other_runs(self) -> list[str]:
        paths = (path for pattern in ("*.lock", "*.json") for path in self._folder.glob(pattern))
        # Another run may be writing its claim, under a hidden name.
        return sorted({path.stem for path in paths if not path.name.startswith(".")} - {self._run})

    def _await_heartbeats(self, lesions: Collection[str]) -> dict[str, tuple[int, int]]:
        """Wait for heartbeats of runs on other hosts that hold any of the lesions; return those without one."""
        wanted = set(lesions)
        waited_for = {
            claim.run: self._heartbeat(claim.run)
            for claim in self._claims_of_others()
            if not claim.is_of_this_host and not wanted.isdisjoint(claim.lesions)
        }
        if waited_for:
            logger.info(
                "waiting up to %.0f s for heartbeats of other runs that hold some of the lesions: %s",
                LEASE_S,
                ", ".join(waited_for),
            )
        deadline = time.monotonic() + LEASE_S
        while waited_for and time.monotonic() < deadline:
            time.sleep(POLL_S)
            waited_for = {run: beat for run, beat in waited_for.items() if self._heartbeat(run) == beat}
        return {run: beat for run, beat in waited_for.items() if beat}

    def _heartbeat(self, run: str) -> tuple[int, int] | None:
        """Return what changes with each heartbeat of a run; None without a lock file."""
        with suppress(FileNotFoundError), self._lock_path(run).open("rb") as file:
            # fstat, since network file systems may answer stat from a cache.
            status = os.fstat(file.fileno())
            return status.st_ino, status.st_mtime_ns
        return None

    def _remove_dead(self, expired: dict[str, tuple[int, int]]) -> None:
        """Clean up after killed runs: those on this host, and those on other hosts whose locks have expired."""
        for run in self._other_runs():
            if run in expired and self._heartbeat(run) == expired[run]:
                self._lock_path(run).unlink()
            # The lock of a dead process on this host can be acquired.
            with suppress(Timeout, LeaseSettingsMismatch), _lease(self._lock_path(run)).acquire(timeout=0):
                path = self._claim_path(run)
                if claim := _read_claim(path):
                    logger.info("%s was killed: its incomplete files are removed", claim)
                    self._clean(claim)
                path.unlink(missing_ok=True)
        remove_unfinished(self._folder)

    def _lock_path(self, run: str) -> Path:
        return self._folder / f"{run}.lock"

    def _claim_path(self, run: str) -> Path:
        return self._folder / f"{run}.json"


@contextmanager
def claiming(folder: Path, run: str, clean: Callable[[Claim], None]) -> Iterator[Claims]:
    """Join the runs that write into one folder, and release all lesions when the block ends.

    Parameters
    ----------
    folder
        Folder of the lock files, the same for all runs; created if missing.
    run
        Name that no other run has.
    clean
        Removes the incomplete files of a killed run; called while no other run can write them.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claims = Claims(folder, run, clean)
    with _lease(folder / f"{run}.lock").acquire(timeout=0):
        try:
            yield claims
        finally:
            claims.release()


def _lease(path: Path) -> SoftFileLease:
    """Return a lock that only requires of the file system that no two processes can create the same file."""
    return SoftFileLease(
        path,
        lease_duration=LEASE_S,
        heartbeat_interval=HEARTBEAT_S,
        on_compromise=_warn_of_lost_lock,
        thread_local=False,
    )


def _warn_of_lost_lock(loss: LeaseCompromise) -> None:
    logger.warning(
        "the lock file %s was lost (%s): another run may map the same lesions now", loss.lock_file, loss.reason
    )


def _this_host() -> tuple[str, int]:
    """Return the host's name, and a number that distinguishes containers on it."""
    try:
        return socket.gethostname(), Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return socket.gethostname(), 0


def _read_claim(path: Path) -> Claim | None:
    """Read the claim of a run; None if the run has ended, or the file is damaged."""
    try:
        content = read_json_object(path)
        return Claim(**{**content, "run": path.stem, "lesions": tuple(map(str, content["lesions"]))})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is not a valid claim (%s): it is ignored", path, error)
        return None
