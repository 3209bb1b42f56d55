"""Downloads of several files at the same time, each in a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import Empty, Queue, SimpleQueue

from bids_lacuna.connectome.fetch.client import Client, Server
from bids_lacuna.connectome.fetch.dataverse import RemoteFile
from bids_lacuna.connectome.fetch.download import DamagedFile, Download
from bids_lacuna.connectome.fetch.folder import Folder
from bids_lacuna.runtime.progress import Progress

logger = logging.getLogger(__name__)

GRACE_S = 2.0
"""Seconds that threads get to end; what they have received is on the disk anyway."""


@dataclass(frozen=True)
class _Ended:
    """A download that has ended."""

    file: RemoteFile
    error: BaseException | None


def fetch_files(
    server: Server, files: Sequence[RemoteFile], folder: Folder, n_jobs: int, progress: Progress
) -> Generator[RemoteFile]:
    """Fetch files, and yield each one when it is whole.

    A thread begins its next file when the one that it fetched has been used: at most `n_jobs` files are on their way
    or in use.

    Raises
    ------
    DamagedFile
        Some files are not as the server lists them; all others were fetched.
    Unreachable, Refused, Unexpected, OSError
        See `Download.run`; the other downloads were stopped.
    """
    waiting: SimpleQueue[RemoteFile] = SimpleQueue()
    for file in files:
        waiting.put(file)
    ended: Queue[_Ended] = Queue()
    slots = threading.Semaphore(n_jobs)
    stopped, counting = threading.Event(), threading.Lock()

    def advance(n_bytes: int) -> None:
        with counting:
            progress.update(n_bytes)

    def work() -> None:
        with closing(Client(server)) as client, suppress(Empty):
            while slots.acquire() and not stopped.is_set():
                file, error = waiting.get_nowait(), None
                try:
                    Download(client, file, folder.path, advance, stopped).run()
                # The thread that waits raises it.
                except BaseException as raised:
                    error = raised
                ended.put(_Ended(file, error))

    # Not those of a pool, which would keep the program from ending while a connection is silent.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(n_jobs, len(files)))]
    try:
        for thread in threads:
            thread.start()
        yield from _use(ended, len(files), folder, slots)
    finally:
        stopped.set()
        slots.release(n_jobs)
        for thread in threads:
            thread.join(GRACE_S / len(threads))


def _use(ended: Queue[_Ended], n_files: int, folder: Folder, slots: threading.Semaphore) -> Iterator[RemoteFile]:
    damaged: list[str] = []
    for _ in range(n_files):
        end = ended.get()
        if isinstance(end.error, DamagedFile):
            logger.error("%s", end.error)
            damaged.append(str(end.error))
        elif end.error is not None:
            raise end.error
        else:
            folder.note(end.file)
            yield end.file
        slots.release()
    if damaged:
        raise DamagedFile(
            f"{len(damaged)} of {n_files} files could not be fetched, the first: {damaged[0]}. The others are "
            "whole: rerun the same command to try again, and tell those who keep the dataset if it fails as before"
        )
