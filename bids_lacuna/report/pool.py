"""Processes that write pages, and what they cost."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bids_lacuna.runtime.processes import prepare_worker

if TYPE_CHECKING:
    from bids_lacuna.derivatives.records import LesionRecord

logger = logging.getLogger(__name__)

WORKER_BYTES = 600 * 2**20
"""Of each process that writes pages, at most: see test_memory."""

MOST_WORKERS = 4
"""With more, the disk and the other jobs of the machine would wait."""

MEMORY_SHARE = 8
"""Workers after the first may take one part in this many of the memory."""

PAGE_SECONDS = 2.0
"""That a process takes for the part of a page that is one lesion's."""

PAGE_BYTES = 2**21
"""On disk, of that part with its pictures and its viewer."""

GROUP_PAGE = "group.html"
"""As `group.PAGE`, whose import would cost the process that maps 7 MB."""


def participants_with_news(output_dir: Path, records: Iterable[LesionRecord]) -> list[str]:
    """List the participants whose page is due: nothing of theirs is pending, and something happened or none is there.

    Who has lesions in two batches gets the page after the second.
    """
    statuses: dict[str, set[str]] = {}
    for record in records:
        statuses.setdefault(record.mask.entities["sub"], set()).add(record.status)
    return [
        label
        for label, happened in statuses.items()
        if "pending" not in happened and (happened != {"skipped"} or not (output_dir / f"sub-{label}.html").exists())
    ]


def choose_n_workers(available_bytes: int, n_threads: int) -> int:
    """Choose in how many processes pages are written: more where memory and processors are plenty, 0 for little.

    One takes a third of the memory at most.
    """
    if available_bytes < 3 * WORKER_BYTES:
        return 0
    return max(1, min(n_threads, MOST_WORKERS, available_bytes // (MEMORY_SHARE * WORKER_BYTES)))


class ReportPool:
    """Writes pages in processes of their own, which give way to all others; a page that fails stops nothing."""

    def __init__(self, output_dir: Path, n_workers: int) -> None:
        """Prepare to write; no process starts before the first page.

        Parameters
        ----------
        output_dir
            The derivative dataset's root.
        n_workers
            Processes.
        """
        self._output_dir = output_dir
        self._n_workers = n_workers
        self._pool: ProcessPoolExecutor | None = None
        self._pages: dict[str, Future[list[str]]] = {}

    def __enter__(self) -> Self:
        """Enter a block at whose end the processes end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes: after an error without the pages that no process has begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, labels: Collection[str]) -> None:
        """Have the pages of participants written, except those that were submitted before."""
        for label in labels:
            if f"sub-{label}.html" not in self._pages:
                self._pages[f"sub-{label}.html"] = self._begin(label)

    def submit_group(self) -> None:
        """Have the group's page written."""
        self._pages[GROUP_PAGE] = self._begin(None)

    def _begin(self, label: str | None) -> Future[list[str]]:
        try:
            if self._pool is None:
                # Not forked: a fork would share the locks and the memory of the process that maps.
                self._pool = ProcessPoolExecutor(self._n_workers, get_context("spawn"), _prepare_worker)
            return self._pool.submit(_write_page, self._output_dir, label)
        # No process can be started, or one was killed: as little a reason to stop as a page that fails.
        except Exception as error:
            failed: Future[list[str]] = Future()
            failed.set_exception(error)
            return failed

    def wait(self) -> int:
        """Wait for all pages, warn of those that lack something, and count those that were written."""
        n_written = 0
        for name, page in self._pages.items():
            try:
                for problem in page.result():
                    logger.warning("%s: %s", name, problem)
                n_written += 1
            # The border of a page: the maps are on disk whatever becomes of it.
            except Exception as error:
                logger.warning("%s could not be written (%s: %s)", name, type(error).__name__, error)
                logger.debug("traceback of the failure above", exc_info=True)
        if self._pages:
            logger.info("pages written: %d, in %s", n_written, self._output_dir)
        return n_written


def _prepare_worker() -> None:
    """Make a process that writes pages a good neighbour."""
    prepare_worker(niceness=10)
    # It keeps a cache of fonts, and warns where the user's home cannot be written to.
    os.environ["MPLCONFIGDIR"] = os.environ["NUMBA_CACHE_DIR"]
    warnings.simplefilter("ignore")


def _write_page(output_dir: Path, label: str | None) -> list[str]:
    """Write a participant's page, or the group's without a label."""
    # Imported by workers alone: nilearn and matplotlib would cost the process that maps 200 MB.
    from bids_lacuna.report import group, participant

    if label is None:
        return group.write_group_report(output_dir)
    return participant.write_participant_report(output_dir, label)
