"""Signal handlers: set on the main thread only, and restored when a block ends.

Python can set handlers on the main thread only; on another thread, each block leaves signals as they are. Signals
that were ignored before stay ignored, as SIGINT is in a shell's background job, and SIGHUP under nohup.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

TERMINATING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU)
"""The signals that schedulers send before they kill a job, that a closed terminal sends, and of a used-up CPU limit.

Grid Engine sends SIGUSR2 (`qsub -notify`), LSF also at the run limit, and the kernel SIGXCPU once per second.
"""

ENDING = (signal.SIGINT, *TERMINATING)
"""The signals of Ctrl-C, and those that terminate the program."""

INSISTING = (signal.SIGINT, signal.SIGTERM)
"""The signals that a user sends twice to end a program at once; others come twice by themselves."""

SAVING = signal.SIGUSR1
"""The signal to save a checkpoint and continue, as sent by `sbatch --signal=USR1@120`."""


class Terminated(KeyboardInterrupt):
    """Raised on a signal of `TERMINATING`, so that the program cleans up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(f"terminated by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def terminations_raised() -> Iterator[None]:
    """Raise `Terminated` on the first signal of `TERMINATING`, and ignore further ones, until the block ends."""

    def terminate(number: int, _frame: FrameType | None) -> NoReturn:
        # A scheduler may send several signals, which must not interrupt the cleanup.
        for each in TERMINATING:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    def raise_again(lost: Any) -> None:
        # Python drops exceptions in callbacks, such as those of modules that are being imported.
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            hook(lost)
            return
        number: int = signal.SIGINT
        if isinstance(lost.exc_value, Terminated):
            number = lost.exc_value.number
            signal.signal(number, terminate)
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()

    hook = sys.unraisablehook
    with _handled(TERMINATING, terminate) as is_main_thread:
        if not is_main_thread:
            yield
            return
        sys.unraisablehook = raise_again
        try:
            yield
        finally:
            sys.unraisablehook = hook


@contextmanager
def sigusr1_ignored() -> Iterator[None]:
    """Ignore SIGUSR1, which would end the process, until the block ends."""
    with _handled([SAVING], signal.SIG_IGN):
        yield


@contextmanager
def signals_held(hold: bool) -> Iterator[set[int]]:
    """Hold signals back until the block ends; only a second SIGINT or SIGTERM interrupts it.

    Parameters
    ----------
    hold
        False leaves signals as they are.

    Yields
    ------
    set of int
        The signals received so far. SIGUSR1 asks for the moments to be saved, and is not sent again.
    """
    received: set[int] = set()
    if not hold:
        yield received
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if number in received and number in INSISTING:
            raise KeyboardInterrupt
        received.add(number)

    try:
        with _handled([*ENDING, SAVING], note):
            yield received
    finally:
        # Also after an error, which the run may survive: the signal would have no effect.
        for number in received - {SAVING}:
            signal.raise_signal(number)


@contextmanager
def _handled(numbers: Iterable[int], handler: Handler) -> Iterator[bool]:
    """Set a handler until the block ends; yield whether this is the main thread, where that is possible."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {number: signal.getsignal(number) for number in numbers if not _is_kept(number)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield True
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _is_kept(number: int) -> bool:
    """Whether to keep a signal's handler; one that was not set from Python could not be restored."""
    handler = signal.getsignal(number)
    return handler is None or (handler is signal.SIG_IGN and number != SAVING)
