"""Progress: a bar on the terminal, and a line per minute in logs."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bids_lacuna.text import percent

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60
"""Seconds between two lines in the log."""

FEW = 1000
"""Fewer units than this are counted in logs, as in "pages: 12 of 40"; of more, a line has the percentage."""


class Progress:
    """Counts and shows the finished part of a task.

    On a terminal it is a bar. Logs have a line per minute: at level INFO where there is no bar, as in SLURM's output,
    and else at level DEBUG.
    """

    def __init__(
        self, total: int, what: str, unit: str, *, initial: int = 0, shown: bool = True, in_bytes: bool = False
    ) -> None:
        """Start counting.

        Parameters
        ----------
        total
            Size of the task, in units.
        what
            Description of the task, in a few words.
        unit
            Name of the unit, such as "map" in 3.2 map/s.
        initial
            Units that were finished before.
        shown
            Whether to show a bar if stderr is a terminal.
        in_bytes
            Whether to show numbers with the prefixes K, M and G.
        """
        self.n = initial
        self.total = total
        self._what = what
        self._unit = unit
        self._in_bytes = in_bytes
        # disable=None: no bar if stderr is not a terminal. It is None if it was closed.
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=what,
            unit=unit,
            unit_scale=in_bytes,
            unit_divisor=1024,
            disable=None if shown and sys.stderr is not None else True,
        )
        self._level = logging.INFO if self._bar.disable else logging.DEBUG
        self._last_line = (time.monotonic(), initial)

    def __enter__(self) -> Self:
        """Return the counter, whose bar ends with the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the bar."""
        self._bar.close()

    def change_total(self, by: int) -> None:
        """Change the size of the task."""
        self.total += by
        self._bar.total = self.total

    def describe(self, what: str) -> None:
        """Change the description of the task."""
        self._what = what
        self._bar.set_description(what)

    def update(self, n: int = 1) -> None:
        """Add finished units; a negative number for units that must be repeated."""
        self.n += n
        self._bar.update(n)
        now, (then, n_then) = time.monotonic(), self._last_line
        if now - then >= SECONDS_BETWEEN_LINES:
            rate = (self.n - n_then) / (now - then)
            logger.log(self._level, "%s: %s", self._what, self._describe_rate(rate))
            self._last_line = (now, self.n)

    def _describe_rate(self, rate: float) -> str:
        """Describe the finished fraction, the rate, and the remaining time."""

        def sized(number: float) -> str:
            if self._in_bytes:
                return f"{tqdm.format_sizeof(number, divisor=1024)}"
            return f"{number:.3g}" if number < 100 else f"{number:,.0f}"

        fraction = f"{percent(self.n / self.total, digits=2)} of {sized(self.total)} {self._unit}"
        if self.total < FEW:
            fraction = f"{self.n} of {self.total}"
        if rate <= 0:
            return fraction
        left = tqdm.format_interval((self.total - self.n) / rate)
        return f"{fraction}, {sized(rate)} {self._unit}/s, {left} left"


@contextmanager
def above_the_bar() -> Iterator[None]:
    """Log to the terminal above a progress bar."""
    before = list(logging.root.handlers)
    with logging_redirect_tqdm():
        (bar,) = (handler for handler in logging.root.handlers if handler not in before)
        for console in (handler for handler in before if handler not in logging.root.handlers):
            # tqdm's handler copies the format of ours, but not its level, nor, before 4.67, its filters.
            bar.setLevel(console.level)
            bar.filters = console.filters
        yield
