"""How far a run is: a bar on a terminal, and a line a minute in logs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60


class Progress:
    """Counts what is done of a piece of work.

    A terminal shows one bar. The log has a line a minute: at level INFO where there is no bar, as in a file or in
    SLURM's output, and else at level DEBUG.
    """

    def __init__(
        self, total: int, what: str, unit: str, *, initial: int = 0, shown: bool = True, in_bytes: bool = False
    ) -> None:
        """Begin.

        Parameters
        ----------
        total
            How much there is to do.
        what
            Is being done, in a few words.
        unit
            Of the total, as it is told: "map" in 3.2 map/s.
        initial
            How much was done before.
        shown
            Whether there is a bar where stderr is a terminal.
        in_bytes
            Whether numbers are told as K, M and G.
        """
        self.n = initial
        self.total = total
        self._what = what
        self._unit = unit
        self._in_bytes = in_bytes
        # disable=None: no bar where stderr is no terminal.
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=what,
            unit=unit,
            unit_scale=in_bytes,
            unit_divisor=1024,
            disable=None if shown else True,
        )
        self._level = logging.INFO if self._bar.disable else logging.DEBUG
        self._last_line = (time.monotonic(), initial)

    def __enter__(self) -> Self:
        """Enter a block at whose end the bar ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the bar."""
        self._bar.close()

    def change_total(self, by: int) -> None:
        """Take note that there is more to do, or less."""
        self.total += by
        self._bar.total = self.total

    def describe(self, what: str) -> None:
        """Say what is being done from now on."""
        self._what = what
        self._bar.set_description(what)

    def update(self, n: int = 1) -> None:
        """Count what was done; a negative number of what has to be done again."""
        self.n += n
        self._bar.update(n)
        now, (then, n_then) = time.monotonic(), self._last_line
        if now - then >= SECONDS_BETWEEN_LINES:
            rate = (self.n - n_then) / (now - then)
            logger.log(self._level, "%s: %s", self._what, self._in_words(rate))
            self._last_line = (now, self.n)

    def _in_words(self, rate: float) -> str:
        """Tell how far it is, at what rate, and how long it will take."""

        def sized(number: float) -> str:
            if self._in_bytes:
                return f"{tqdm.format_sizeof(number, divisor=1024)}"
            return f"{number:.3g}" if number < 100 else f"{number:,.0f}"

        share = f"{100 * self.n / self.total:.0f} % of {sized(self.total)} {self._unit}"
        if rate <= 0:
            return share
        left = tqdm.format_interval((self.total - self.n) / rate)
        return f"{share}, {sized(rate)} {self._unit}/s, {left} left"


@contextmanager
def above_the_bar() -> Iterator[None]:
    """Log on the terminal without breaking a progress bar."""
    before = list(logging.root.handlers)
    with logging_redirect_tqdm():
        (bar,) = (handler for handler in logging.root.handlers if handler not in before)
        for console in (handler for handler in before if handler not in logging.root.handlers):
            # tqdm's own handler takes over the format, but not the level, nor before 4.67 the filters.
            bar.setLevel(console.level)
            bar.filters = console.filters
        yield
