"""Signals are handled on the main thread only, and given back."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import synthetic

from bids_lacuna import cli
from bids_lacuna.runtime.signals import Terminated, signals_held, sigterm_raised, sigusr1_ignored

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

Block = Callable[[], AbstractContextManager[object]]

BLOCKS: list[Block] = [sigterm_raised, sigusr1_ignored, lambda: signals_held(True)]


def ours(_number: int, _frame: object) -> None:
    """Handle a signal, as a program that calls the library might."""


def handlers() -> list[object]:
    """Return the current handler of each signal."""
    return [signal.getsignal(number) for number in HANDLED]


@pytest.fixture(autouse=True)
def set_handlers() -> Iterator[None]:
    """Set our own handlers, and restore those of pytest."""
    before = {number: signal.signal(number, ours) for number in HANDLED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def in_thread(call: Callable[[], int]) -> int:
    """Call a function on another thread, and return what it returns."""
    returned: list[int] = []
    thread = threading.Thread(target=lambda: returned.append(call()), daemon=True)
    thread.start()
    thread.join(120)
    assert returned, "the thread has failed, or did not end in two minutes"
    return returned[0]


class HandlersSeen(logging.Handler):
    """Notes what handles SIGUSR1 whenever the program logs something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def emit(self, _record: logging.LogRecord) -> None:
        """Note the handler of SIGUSR1."""
        self.seen.append(signal.getsignal(signal.SIGUSR1))


@pytest.mark.parametrize("on_main_thread", [True, False])
def test_the_program_gives_signals_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_main_thread: bool
) -> None:
    """cli.main maps lesions on any thread, and gives signals back; on the main one, SIGUSR1 cannot end it."""
    # Checkpoints are kept there.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mask = synthetic.make_mask()
    series = synthetic.make_series(int(mask.sum()), (19,) * 3)
    connectome = synthetic.write_connectome(tmp_path / "GSP.h5", series, mask)
    lesion = f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-lesion_mask"
    bids = synthetic.write_dataset(tmp_path / "bids", {lesion: synthetic.box((3, 2, 3))})
    words = [bids, tmp_path / "out", "participant", "--connectome", connectome, "--no-reports", "--quiet"]

    def run() -> int:
        return cli.main(list(map(str, words)))

    watch = HandlersSeen()
    logging.getLogger("bids_lacuna").addHandler(watch)
    try:
        assert (run() if on_main_thread else in_thread(run)) == 0
    finally:
        logging.getLogger("bids_lacuna").removeHandler(watch)
    assert handlers() == [ours] * 3
    assert watch.seen
    assert (ours in watch.seen) == (not on_main_thread)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_that_fails_gives_signals_back(block: Block) -> None:
    """Handlers are restored after an error, and never changed on another thread."""
    during: list[object] = []

    def fail() -> None:
        with block():
            during.extend(handlers())
            raise ZeroDivisionError

    def succeed_on_another_thread() -> int:
        with block():
            return len(set(handlers()) - {ours})

    with pytest.raises(ZeroDivisionError):
        fail()
    assert during != [ours] * 3
    assert handlers() == [ours] * 3
    assert in_thread(succeed_on_another_thread) == 0


@pytest.mark.parametrize("block", BLOCKS)
def test_what_is_ignored_stays_ignored(block: Block) -> None:
    """SIGINT in a background job, and SIGTERM where it is ignored, do not end the program."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with block():
        assert handlers()[:2] == [signal.SIG_IGN] * 2
    assert handlers() == [signal.SIG_IGN, signal.SIG_IGN, ours]


def test_sigterm_is_raised_once() -> None:
    """The first SIGTERM ends the block, and a second one does not interrupt the cleanup."""
    cleaned_up = []

    def work() -> None:
        with sigterm_raised():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                cleaned_up.append(True)

    with pytest.raises(Terminated):
        work()
    assert cleaned_up


def test_a_held_signal_is_sent_again_when_the_block_ends() -> None:
    """SIGTERM is raised after the block; SIGUSR1 is only noted, however often it comes."""
    noted: list[set[int]] = []

    def work() -> None:
        with sigterm_raised(), signals_held(True) as received:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1):
                signal.raise_signal(number)
            noted.append(set(received))

    with pytest.raises(Terminated):
        work()
    assert noted == [{signal.SIGTERM, signal.SIGUSR1}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_is_not_held(number: int) -> None:
    """A second Ctrl-C or SIGTERM interrupts the block."""
    reached = []

    def work() -> None:
        with signals_held(True):
            signal.raise_signal(number)
            reached.append("the first one is held")
            signal.raise_signal(number)
            reached.append("the second one is held")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["the first one is held"]


def test_nothing_is_held_without_need() -> None:
    """Without checkpoints there is nothing to save: signals are handled at once."""
    with signals_held(False) as received:
        assert handlers() == [ours] * 3
    assert received == set()


DROPPED = """
import os, signal, sys, time
from bids_lacuna.app.command import Exit, Parser, run_command

class Callback:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.1)

# A shell's background job, and its children, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

def run(arguments):
    Callback()
    time.sleep(20)
    return Exit.OK

sys.exit(run_command(Parser(prog="program"), [], run, "interrupted"))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_a_callback_is_not_lost(number: int, status: int) -> None:
    """A signal that arrives in a callback, whose exceptions Python drops, ends the program a moment later."""
    result = subprocess.run([sys.executable, "-c", DROPPED, str(int(number))], capture_output=True, text=True)
    assert result.returncode == status
    assert result.stderr.startswith("program: interrupted")
