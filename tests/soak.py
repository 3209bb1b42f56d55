"""Kill the program again and again, at random moments, and compare its maps with those of an undisturbed run.

`make soak` runs it; --bids and --connectome select your own dataset and connectome. Each round maps all lesions into
a new folder: the program is ended by a signal and started again until it ends by itself. There are as many rounds as
the signals need. They fall into three phases, in turn: the start, the pass over the connectome, and the writing. They
are SIGKILL, SIGTERM, SIGHUP, SIGUSR2 and SIGXCPU, in turn; every second process has its stderr closed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import synthetic
from program import CONNECTOME_PROGRAM, RUN

UNFINISHED = re.compile(r"\.[0-9a-f]{32}\..+")

N_LESIONS = 40
SHAPE = (29, 31, 23)
N_SUBJECTS = 40
N_TIMEPOINTS = 80

PHASES = ("start", "pass", "writing")


SIGNALS = (signal.SIGKILL, signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU, signal.SIGTERM)

SHUT = ("bash", "-c", 'exec "$@" 2>&-', "bash")
"""Start of a command whose stderr is closed."""


class Soak:
    """One program, its input, and its deadline."""

    def __init__(self, command: list[object], folder: Path, deadline: float, seed: int) -> None:
        self.command = command
        self.folder = folder
        self.deadline = deadline
        self.random = random.Random(seed)
        self.n_kills: Counter[str] = Counter()
        self.n_starts = 0

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """Start the program."""
        arguments = [self.command[0], out, *self.command[1:], "--work-dir", self.folder / "work"]
        command = [*(SHUT if self.n_starts % 2 else ()), sys.executable, str(RUN), *map(str, arguments)]
        self.n_starts += 1
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(command, stdout=said, stderr=said)

    def check(self, status: int, number: int | None = None) -> None:
        """Exit if the program has failed by itself, or did not end as the signal wants it to."""
        said = (self.folder / "said").read_text()
        # Before and after the program, Python has the default handlers.
        expected = {0} if number is None else {0, -number, 143} - ({143} if number == signal.SIGKILL else set())
        if status not in expected or "Traceback" in said:
            raise SystemExit(f"the program ended with status {status}, after signal {number}:\n{said}")

    def undisturbed(self, out: Path) -> dict[str, float]:
        """Map all lesions, and measure how long each phase takes."""
        process = self.start(out)
        moments = [time.monotonic()]
        for begun in (has_claim, has_maps):
            wait_for(begun(out), process, self.deadline)
            moments.append(time.monotonic())
        self.check(process.wait())
        moments.append(time.monotonic())
        return {phase: moments[place + 1] - moments[place] for place, phase in enumerate(PHASES)}

    def disturbed(self, out: Path, durations: dict[str, float], n_wanted: int) -> None:
        """Map all lesions, and kill the program until there were enough kills or it ends by itself."""
        while self.n_kills.total() < n_wanted:
            phase = PHASES[self.n_kills.total() % len(PHASES)]
            number = SIGNALS[self.n_kills.total() % len(SIGNALS)]
            begun = {"pass": has_claim, "writing": has_maps}.get(phase, lambda _: lambda: True)(out)
            process = self.start(out)
            wait_for(begun, process, self.deadline)
            try:
                process.wait(self.random.uniform(0, durations[phase]))
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            self.check(process.wait(), number)
            if process.returncode == 0:
                return
            self.n_kills[phase] += 1
            if time.monotonic() > self.deadline:
                raise SystemExit(f"the time is over after {self.n_kills.total()} kills: {dict(self.n_kills)}")
        self.check(self.start(out).wait())


def has_claim(out: Path) -> Callable[[], bool]:
    """Return a test of whether a run has claimed its lesions since this call."""
    before = set(out.glob("logs/locks/*.json"))
    return lambda: bool(set(out.glob("logs/locks/*.json")) - before)


def has_maps(out: Path) -> Callable[[], bool]:
    """Return a test of whether there are more maps than at this call."""
    before = n_maps(out)
    return lambda: n_maps(out) > before


def wait_for(happened: Callable[[], object], process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait until something has happened on disk, the program has ended, or the time is over."""
    while not happened() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def n_maps(out: Path) -> int:
    """Count the maps that are there."""
    return sum(1 for _ in out.glob("sub-*/**/sub-*_statmap.nii.gz"))


def contents(out: Path) -> dict[str, bytes]:
    """Read all files but the logs."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {name: path.read_bytes() for path in files if not (name := str(path.relative_to(out))).startswith("logs/")}


def leftovers(*folders: Path) -> list[str]:
    """List temporary files, locks and checkpoints."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [
        str(path)
        for path in paths
        if UNFINISHED.fullmatch(path.name) or {"locks", "checkpoints"} & {folder.name for folder in path.parents}
    ]


def write_input(folder: Path) -> tuple[Path, Path]:
    """Write a synthetic dataset and store."""
    rng = np.random.default_rng(31)
    brain = synthetic.make_mask(shape=SHAPE)
    series = synthetic.make_series(int(brain.sum()), [N_TIMEPOINTS] * N_SUBJECTS)
    source, store = folder / "source", folder / "store"
    source.mkdir(parents=True)
    for number, timeseries in enumerate(series):
        np.save(source / f"sub-{number}.npy", timeseries)
    mask = synthetic.write_mask(folder / "brain.nii.gz", brain)
    options = ["--space", synthetic.SPACE, "--name", "soak", "--mask", mask]
    command = [*CONNECTOME_PROGRAM, "build", source, store, *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    masks = {}
    for number in range(N_LESIONS):
        corner = tuple(int(rng.integers(length - 9)) for length in SHAPE)
        size = tuple(int(length) for length in rng.integers(2, 9, 3))
        label = f"{number:02}"
        name = f"sub-{label}/anat/sub-{label}_space-{synthetic.SPACE}_label-lesion_mask"
        masks[name] = synthetic.box(corner, size, SHAPE)
    return synthetic.write_dataset(folder / "bids", masks), store


def main() -> None:
    """Run the soak test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bids", type=Path, help="dataset with lesion masks (default: 40 synthetic lesions)")
    parser.add_argument("--connectome", type=Path, help="with --bids: the connectome")
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="time limit (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 10**6, help="seed of the moments (default: a new one)"
    )
    parser.add_argument(
        "options",
        nargs="*",
        default=["--checkpoint-minutes", "0.002"],
        help="options of the program, after -- (default: %(default)s)",
    )
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    print(f"seed {arguments.seed}")
    with TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        bids, connectome = (arguments.bids, arguments.connectome) if arguments.bids else write_input(folder / "input")
        command = [bids, "participant", "--no-reports", "--connectome", connectome, *arguments.options]
        soak = Soak(command, folder, deadline, arguments.seed)
        # The first one compiles, and does not count for the durations.
        soak.undisturbed(folder / "first")
        durations = soak.undisturbed(folder / "undisturbed")
        print("undisturbed:", json.dumps({phase: round(seconds, 2) for phase, seconds in durations.items()}), "s")
        expected = contents(folder / "undisturbed")
        if expected != contents(folder / "first"):
            raise SystemExit("two undisturbed runs differ")
        n_rounds = 0
        while soak.n_kills.total() < arguments.kills:
            n_rounds += 1
            out = folder / f"disturbed{n_rounds}"
            soak.disturbed(out, durations, arguments.kills)
            if (found := contents(out)) != expected:
                differ = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
                raise SystemExit(f"{len(differ)} files differ from an undisturbed run's, the first: {differ[0]}")
            if left := leftovers(out, folder / "work"):
                raise SystemExit(f"left behind: {', '.join(left)}")
        n_files = sum(name.endswith(".nii.gz") for name in expected)
        kills = f"{soak.n_kills.total()} kills ({dict(soak.n_kills)}) in {n_rounds} rounds"
        print(f"{kills}: {n_files} maps bit-identical, nothing left behind")


if __name__ == "__main__":
    main()
