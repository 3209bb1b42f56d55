"""Signals are handled on the main thread only, and given back."""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

import pytest
import synthetic

from bids_lacuna import cli
from bids_lacuna.app.command import Exit, Parser, run_command
from bids_lacuna.runtime.signals import TERMINATING, Terminated, signals_held, sigusr1_ignored, terminations_raised

HANDLED = (signal.SIGINT, signal.SIGUSR1, *TERMINATING)

Block = Callable[[], AbstractContextManager[object]]

BLOCKS: list[Block] = [terminations_raised, sigusr1_ignored, lambda: signals_held(True)]


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
    assert handlers() == [ours] * len(HANDLED)
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
    assert during != [ours] * len(HANDLED)
    assert handlers() == [ours] * len(HANDLED)
    assert in_thread(succeed_on_another_thread) == 0


@pytest.mark.parametrize("block", BLOCKS)
def test_what_is_ignored_stays_ignored(block: Block) -> None:
    """SIGINT in a background job, SIGHUP under nohup, and others that are ignored do not end the program."""
    for number in (signal.SIGINT, *TERMINATING):
        signal.signal(number, signal.SIG_IGN)
    expected = [signal.SIG_IGN, ours, *[signal.SIG_IGN] * len(TERMINATING)]
    with block():
        assert [handlers()[0], *handlers()[2:]] == [expected[0], *expected[2:]]
    assert handlers() == expected


@pytest.mark.parametrize("further", TERMINATING)
@pytest.mark.parametrize("first", TERMINATING)
def test_a_termination_is_raised_once(first: int, further: int) -> None:
    """The first signal ends the block, and a further one does not interrupt the cleanup."""
    cleaned_up = []

    def work() -> None:
        with terminations_raised():
            try:
                signal.raise_signal(first)
            finally:
                signal.raise_signal(further)
                cleaned_up.append(True)

    with pytest.raises(Terminated) as end:
        work()
    assert end.value.number == first
    assert cleaned_up
    assert handlers() == [ours] * len(HANDLED)


@pytest.mark.parametrize("number", TERMINATING)
def test_a_held_signal_is_sent_again_when_the_block_ends(number: int) -> None:
    """A signal that ends the program is raised after the block; SIGUSR1 is only noted, however often it comes."""
    noted: list[set[int]] = []

    def work() -> None:
        with terminations_raised(), signals_held(True) as received:
            for each in (number, signal.SIGUSR1, signal.SIGUSR1):
                signal.raise_signal(each)
            noted.append(set(received))

    with pytest.raises(Terminated) as end:
        work()
    assert end.value.number == number
    assert noted == [{number, signal.SIGUSR1}]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU])
def test_signals_that_come_twice_by_themselves_are_held(number: int) -> None:
    """A closed terminal sends SIGHUP twice, and the kernel SIGXCPU each second: they do not interrupt the saving."""
    with signals_held(True) as received:
        for _ in range(3):
            signal.raise_signal(number)
        assert received == {number}


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
        assert handlers() == [ours] * len(HANDLED)
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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), *[(number, 143) for number in TERMINATING]])
def test_a_signal_in_a_callback_is_not_lost(number: int, status: int) -> None:
    """A signal that arrives in a callback, whose exceptions Python drops, ends the program a moment later."""
    result = subprocess.run([sys.executable, "-c", DROPPED, str(int(number))], capture_output=True, text=True)
    assert result.returncode == status
    assert result.stderr.startswith("program: interrupted")


CPU_LIMIT = """
import resource, sys, time
from bids_lacuna.app.command import Exit, Parser, run_command
from bids_lacuna.runtime.signals import signals_held

def run(arguments):
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + 1, resource.RLIM_INFINITY))
    with signals_held(True) as received:
        while not received:
            pass
        while time.process_time() < used + 3.5:
            pass
        print("saved")
    return Exit.OK

sys.exit(run_command(Parser(prog="program"), [], run, "interrupted"))
"""


def test_a_limit_on_processor_time_does_not_interrupt_the_saving() -> None:
    """The kernel repeats SIGXCPU each second: the first one ends the program once its block is over."""
    result = subprocess.run([sys.executable, "-c", CPU_LIMIT], capture_output=True, text=True)
    assert result.stdout == "saved\n"
    assert result.returncode == 143
    assert result.stderr == "program: interrupted (SIGXCPU)\n"


NOHUP = """
import os, signal, sys
from bids_lacuna.app.command import Exit, Parser, run_command
from bids_lacuna.runtime.signals import signals_held

def run(arguments):
    with signals_held(True) as received:
        os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)
    print(received)
    return Exit.OK

sys.exit(run_command(Parser(prog="program"), [], run, "interrupted"))
"""


def test_nohup_survives_a_closed_terminal() -> None:
    """A program that nohup has started neither notes SIGHUP nor ends."""
    result = subprocess.run(["nohup", sys.executable, "-c", NOHUP], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "set()\n"), result.stderr


def test_a_signal_before_an_error_has_its_effect() -> None:
    """A signal that was held when the block failed is sent all the same: who survives the error does not miss it."""
    received = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))

    def work() -> None:
        with signals_held(True):
            signal.raise_signal(signal.SIGTERM)
            assert not received
            raise OSError("the connectome has changed")

    with pytest.raises(OSError, match="the connectome has changed"):
        work()
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGUSR2, "interrupted (SIGUSR2)"), (signal.SIGINT, "interrupted")]
)
def test_a_signal_while_the_handlers_are_given_back(
    number: signal.Signals, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal that comes after the command's last line, and before the program's end, is no traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def send(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and frame.f_code.co_name == "__exit__":
            sys.setprofile(None)
            signal.raise_signal(number)

    def run(_arguments: argparse.Namespace) -> Exit:
        sys.setprofile(send)
        return Exit.OK

    status = run_command(Parser(prog="program"), [], run, "interrupted")
    assert status == {signal.SIGINT: Exit.INTERRUPTED}.get(number, Exit.TERMINATED)
    assert capsys.readouterr().err.splitlines()[-1] == f"program: {words}"
