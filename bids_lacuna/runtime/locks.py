"""Which run maps which lesion, where several write into one folder: lock files with host, process and time."""

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

SILENCE_S = 120.0
"""A run on another host is taken for dead when its lock file has not been touched for so long."""

BEAT_S = 20.0
"""How often a run touches its lock file. All runs have to agree on both numbers."""

POLL_S = 0.2
"""How often a lock that another run holds is looked at."""


@dataclass(frozen=True)
class Claim:
    """What one run says of itself."""

    run: str
    """Its name, also that of its folder of logs."""
    host: str
    pid: int
    pid_namespace: int
    """Containers that share a host's name count their processes apart."""
    since: str
    """Local time."""
    lesions: tuple[str, ...]
    """What it maps: one name for each lesion."""

    @property
    def is_of_this_host(self) -> bool:
        """Whether the system knows if the process is alive."""
        return (self.host, self.pid_namespace) == _this_host()

    def __str__(self) -> str:
        """Tell a user where to look."""
        return f"the run {self.run} (process {self.pid} on {self.host}, since {self.since})"


class Claims:
    """The lesions that a run holds against other runs in the same folder; made by `claiming`.

    A run has two files: its lock, which it touches as long as it lives, and its claim, which names its lesions.
    """

    def __init__(self, folder: Path, run: str, clean: Callable[[Claim], None]) -> None:
        self._folder = folder
        self._run = run
        self._clean = clean

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other runs from claiming, and from whatever else they do in such a block."""
        with _lease(self._folder / "claiming").acquire(poll_interval=POLL_S):
            yield

    def take(self, lesions: Collection[str]) -> dict[str, Claim]:
        """Claim lesions, but for those that another run holds.

        Where that run is on another host, it may take two minutes to see whether it is still alive.

        Parameters
        ----------
        lesions
            One name for each.

        Returns
        -------
        dict
            Who holds it, for each lesion that was not to be had.
        """
        silent = self._await_signs_of_life(lesions)
        with self.exclusive():
            self._remove_dead(silent)
            held = {lesion: claim for claim in self._claims_of_others() for lesion in claim.lesions}
            host, pid_namespace = _this_host()
            taken = tuple(lesion for lesion in lesions if lesion not in held)
            claim = Claim(self._run, host, os.getpid(), pid_namespace, f"{datetime.now():%Y-%m-%d %H:%M:%S}", taken)
            write_json(self._claim_path(self._run), asdict(claim))
        return {lesion: held[lesion] for lesion in lesions if lesion in held}

    def release(self) -> None:
        """Let go of all lesions."""
        # The folder may be gone by now.
        with suppress(OSError):
            self._claim_path(self._run).unlink(missing_ok=True)

    def _claims_of_others(self) -> list[Claim]:
        paths = (self._claim_path(run) for run in self._other_runs())
        return [claim for path in paths if (claim := _read_claim(path))]

    def _other_runs(self) -> list[str]:
        runs = {path.stem for pattern in ("*.lock", "*.json") for path in self._folder.glob(pattern)}
        return sorted(runs - {self._run})

    def _await_signs_of_life(self, lesions: Collection[str]) -> dict[str, tuple[int, int]]:
        """Wait for runs on other hosts that hold any of the lesions; give the locks of those that stayed silent."""
        wanted = set(lesions)
        waited_for = {
            claim.run: self._beat(claim.run)
            for claim in self._claims_of_others()
            if not claim.is_of_this_host and not wanted.isdisjoint(claim.lesions)
        }
        if waited_for:
            logger.info(
                "waiting up to %.0f s to see whether other runs that hold some lesions are still alive: %s",
                SILENCE_S,
                ", ".join(waited_for),
            )
        deadline = time.monotonic() + SILENCE_S
        while waited_for and time.monotonic() < deadline:
            time.sleep(POLL_S)
            waited_for = {run: beat for run, beat in waited_for.items() if self._beat(run) == beat}
        return {run: beat for run, beat in waited_for.items() if beat}

    def _beat(self, run: str) -> tuple[int, int] | None:
        """Give what tells whether a run has touched its lock meanwhile; None without a lock."""
        with suppress(FileNotFoundError), self._lock_path(run).open("rb") as file:
            # Of an open file: network file systems may answer from memory otherwise.
            status = os.fstat(file.fileno())
            return status.st_ino, status.st_mtime_ns
        return None

    def _remove_dead(self, silent: dict[str, tuple[int, int]]) -> None:
        """Clean up after runs that were killed: on this host, or on another one and silent."""
        for run in self._other_runs():
            if run in silent and self._beat(run) == silent[run]:
                self._lock_path(run).unlink()
            # The lock of a process that is dead can be had.
            with suppress(Timeout, LeaseSettingsMismatch), _lease(self._lock_path(run)).acquire(timeout=0):
                path = self._claim_path(run)
                if claim := _read_claim(path):
                    logger.info("%s has ended without a word; what it left half-written is removed", claim)
                    self._clean(claim)
                path.unlink(missing_ok=True)
        remove_unfinished(self._folder)

    def _lock_path(self, run: str) -> Path:
        return self._folder / f"{run}.lock"

    def _claim_path(self, run: str) -> Path:
        return self._folder / f"{run}.json"


@contextmanager
def claiming(folder: Path, run: str, clean: Callable[[Claim], None]) -> Iterator[Claims]:
    """Be one of several runs that write into one folder, and let go of all lesions when the block ends.

    Parameters
    ----------
    folder
        Of the lock files: the same for all runs, and made when missing.
    run
        A name that no other run has.
    clean
        Removes what a run that was killed left half-written; called when no other run can be writing it.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claims = Claims(folder, run, clean)
    with _lease(folder / f"{run}.lock").acquire(timeout=0):
        try:
            yield claims
        finally:
            claims.release()


def _lease(path: Path) -> SoftFileLease:
    """Make a lock that needs nothing of the file system but that two processes cannot create the same file."""
    return SoftFileLease(
        path, lease_duration=SILENCE_S, heartbeat_interval=BEAT_S, on_compromise=_warn_of_loss, thread_local=False
    )


def _warn_of_loss(loss: LeaseCompromise) -> None:
    logger.warning(
        "the lock file %s is lost (%s): another run may map the same lesions now", loss.lock_file, loss.reason
    )


def _this_host() -> tuple[str, int]:
    """Give the host's name and what tells its containers apart."""
    try:
        return socket.gethostname(), Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return socket.gethostname(), 0


def _read_claim(path: Path) -> Claim | None:
    """Read what a run claims; None where it has ended meanwhile, or its file is damaged."""
    try:
        content = read_json_object(path)
        return Claim(**{**content, "run": path.stem, "lesions": tuple(map(str, content["lesions"]))})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is no claim of a run (%s): it is not taken into account", path, error)
        return None
