"""The processes that write pages, and their cost in time and memory."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bids_lacuna.derivatives import GROUP_PAGE, group_folder
from bids_lacuna.runtime.processes import prepare_worker, start_pool
from bids_lacuna.runtime.progress import Progress, above_the_bar

if TYPE_CHECKING:
    from bids_lacuna.derivatives import LesionRecord

logger = logging.getLogger(__name__)

WORKER_BYTES = 240 * 2**20
"""Peak memory of a process that writes pages with maps of up to `COARSE_VOXELS`; `test_memory` measures it."""

COARSE_VOXELS = 2**20
"""Voxels of a map's volume, 900,000 at 2 mm, up to which other memory decides."""

FINE_VOXEL_BYTES = 28
"""Per voxel beyond: all maps of a lesion are in memory together. At 1 mm, 340 MiB were measured of 405."""

LEAST_DIVISOR = 3
"""The first process takes at most the available memory divided by this; with less, none writes pages."""

MOST_WORKERS = 4
"""More would slow down the disk and the machine's other jobs."""

MEMORY_DIVISOR = 8
"""Two or more workers take at most the available memory divided by this."""


@dataclass(frozen=True)
class PageCost:
    """Time and disk space that pages take, measured on those of a few lesions."""

    start_seconds: float
    """Time until a process has started, and has loaded what the first page needs."""
    seconds_per_lesion: float
    """Time of one process for a lesion's part of a page."""
    bytes_per_lesion: float
    """Size on disk of a lesion's part of a page, with its pictures."""

    def seconds(self, n_lesions: int, n_workers: int) -> float:
        """Estimate how long several processes take for the pages of all lesions."""
        return self.start_seconds + n_lesions * self.seconds_per_lesion / max(1, min(n_workers, n_lesions))


def participants_with_news(output_dir: Path, records: Iterable[LesionRecord]) -> list[str]:
    """List the participants whose page is due.

    A page is due once no lesion of the participant is pending, if any was not skipped or the page does not exist. A
    participant with lesions in two batches gets the page after the second.
    """
    statuses: dict[str, set[str]] = {}
    for record in records:
        statuses.setdefault(record.mask.entities["sub"], set()).add(record.status)
    return [
        label
        for label, happened in statuses.items()
        if "pending" not in happened and (happened != {"skipped"} or not (output_dir / f"sub-{label}.html").exists())
    ]


def worker_bytes(n_voxels: int) -> int:
    """Return the peak memory of a process that writes pages, by the largest number of voxels of a map's volume."""
    return WORKER_BYTES + FINE_VOXEL_BYTES * max(0, n_voxels - COARSE_VOXELS)


def choose_n_workers(available_bytes: int, n_threads: int, bytes_each: int = WORKER_BYTES) -> int:
    """Choose the number of processes that write pages, by the available memory and processors; 0 if none fits.

    Parameters
    ----------
    bytes_each
        From `worker_bytes`.
    """
    if available_bytes < LEAST_DIVISOR * bytes_each:
        return 0
    return max(1, min(n_threads, MOST_WORKERS, available_bytes // (MEMORY_DIVISOR * bytes_each)))


class ReportPool:
    """Writes pages in separate processes of low priority; a page that fails stops nothing else.

    While lesions are mapped, the log has a line per minute: pages that are written, of those submitted. While the
    program waits for the last pages, a terminal has a bar instead.
    """

    def __init__(self, output_dir: Path, n_workers: int, *, show_progress: bool = True) -> None:
        """Create the pool; no process starts before the first page is submitted.

        Parameters
        ----------
        output_dir
            The derivative dataset's root.
        n_workers
            Number of processes.
        show_progress
            Whether to show a bar if stderr is a terminal.
        """
        self._output_dir = output_dir
        self._n_workers = n_workers
        self._pool: Executor | None = None
        self._pages: dict[str, Future[list[str]]] = {}
        self._show_progress = show_progress
        self._progress = Progress(0, "pages", "page", shown=False)
        self._lock = Lock()

    def __enter__(self) -> Self:
        """Enter a block that ends the processes when it is left."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes; after an error, pages that no process has begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, labels: Collection[str]) -> None:
        """Write the pages of participants, except those already submitted."""
        for label in labels:
            if f"sub-{label}.html" not in self._pages:
                self._add(f"sub-{label}.html", label)

    def submit_group(self, name: str | None = None) -> None:
        """Write the page of a group, by its name if it has one."""
        page = group_folder(self._output_dir, name) / GROUP_PAGE
        self._add(page.relative_to(self._output_dir).as_posix(), None, name)

    def _add(self, name: str, label: str | None, group: str | None = None) -> None:
        with self._lock:
            self._progress.change_total(1)
        self._pages[name] = self._begin(label, group)
        self._pages[name].add_done_callback(self._count)

    def _count(self, _page: Future[list[str]]) -> None:
        """Count a page that has ended, in whatever thread it did."""
        with self._lock:
            self._progress.update()

    def _begin(self, label: str | None, group: str | None) -> Future[list[str]]:
        try:
            if self._pool is None:
                self._pool = start_pool(self._n_workers, _prepare_worker)
            return self._pool.submit(_write_page, self._output_dir, label, group)
        # A process cannot be started or was killed: like a page that fails, no reason to stop.
        except Exception as error:
            failed: Future[list[str]] = Future()
            failed.set_exception(error)
            return failed

    def wait(self) -> int:
        """Wait for all pages, log what is missing from them, and return how many were written."""
        n_written = 0
        with self._showing_the_rest():
            for name, page in self._pages.items():
                try:
                    for problem in page.result():
                        logger.warning("%s: %s", name, problem)
                    n_written += 1
                # The border of a page: the maps are on disk whether or not it can be written.
                except Exception as error:
                    logger.warning("%s could not be written (%s: %s)", name, type(error).__name__, error)
                    logger.debug("traceback of the failure above", exc_info=True)
        if self._pages:
            logger.info("pages written: %d, in %s", n_written, self._output_dir)
        return n_written

    @contextmanager
    def _showing_the_rest(self) -> Iterator[None]:
        """Show how many pages are written while the program waits for those that are not."""
        with self._lock:
            n_ended, total = self._progress.n, self._progress.total
            several_left = n_ended < total > 1
            if several_left:
                logger.info("pages: %d of %d", n_ended, total)
            shown = self._show_progress and several_left
            self._progress = Progress(total, "pages", "page", initial=n_ended, shown=shown)
        with above_the_bar(), self._progress:
            yield


def measure_pages(output_dir: Path, n_lesions: Mapping[str, int], n_workers: int) -> PageCost:
    """Write the pages of a few participants, and measure what they cost.

    Parameters
    ----------
    output_dir
        Root of a dataset that may be changed: a copy, or a sample.
    n_lesions
        Number of lesions by participant.
    n_workers
        Number of processes, as many as will write the pages: processors that share a core slow each other down.

    Raises
    ------
    Exception
        A page cannot be written, or a process cannot be started.
    """
    labels = list(n_lesions)
    parts = [labels[number::n_workers] for number in range(min(n_workers, len(labels)))]
    # The second page of a process is the first that costs what all others do.
    parts = [part if len(part) > 1 else 2 * part for part in parts]
    n_bytes = _count_bytes(output_dir)
    began = time.monotonic()
    with start_pool(len(parts), _prepare_worker) as pool:
        times = list(pool.map(_time_pages, [output_dir] * len(parts), parts))
    later = [
        (end - start, n_lesions[label])
        for part, ends in zip(parts, times, strict=True)
        for label, start, end in zip(part[1:], ends, ends[1:], strict=False)
    ]
    seconds_per_lesion = sum(seconds for seconds, _ in later) / sum(n for _, n in later)
    start_seconds = max(
        ends[0] - began - n_lesions[part[0]] * seconds_per_lesion for part, ends in zip(parts, times, strict=True)
    )
    n_bytes = _count_bytes(output_dir) - n_bytes
    return PageCost(max(0.0, start_seconds), seconds_per_lesion, n_bytes / sum(n_lesions.values()))


def _count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _time_pages(output_dir: Path, labels: Sequence[str]) -> list[float]:
    """Write participants' pages, and return the time at the end of each; the clock is that of all processes."""
    ends = []
    for label in labels:
        _write_page(output_dir, label)
        ends.append(time.monotonic())
    return ends


def _prepare_worker() -> None:
    """Prepare a process that writes pages."""
    prepare_worker(niceness=10)
    # matplotlib keeps a cache of fonts there, and warns if the user's home is not writable.
    if folder := os.environ.get("NUMBA_CACHE_DIR"):
        os.environ["MPLCONFIGDIR"] = folder
    warnings.simplefilter("ignore")


def _write_page(output_dir: Path, label: str | None, group: str | None = None) -> list[str]:
    """Write a participant's page; without a label, that of a group."""
    # Only workers import these, and matplotlib only for the group's page.
    if label is None:
        from bids_lacuna.report.group import write_group_report

        return write_group_report(output_dir, group)
    from bids_lacuna.report.participant import write_participant_report

    return write_participant_report(output_dir, label)
