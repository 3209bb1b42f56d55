"""Times taken in turn in one process, so that ratios hold where the machine's speed drifts; and reported figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import psutil
from threadpoolctl import ThreadpoolController

from bids_lacuna.runtime.memory import available_cpus

N_THREADS = available_cpus()
"""Threads of the kernels, and of BLAS where it is measured alone."""

PAUSE_SECONDS = 0.2
"""OpenBLAS's threads look out for more work some time after a call, and take the processor from others."""

MIN_ROUNDS = 5

MOST_OTHERS = 0.05
"""Fraction of the processors that other programs may use while something is measured."""

MAX_TRIES = 5
"""Measurements that others disturbed are repeated up to so many times."""


@dataclass(frozen=True)
class Figure:
    """One number that is reported."""

    name: str
    """The key in the results."""
    value: float
    case: str = ""
    """The key below `name`, where there are several."""
    at_most: float | None = None
    """What it must not exceed."""
    at_least: float | None = None
    """What it must reach."""
    note: str = ""
    """What a reader could guess wrong."""

    @property
    def goal(self) -> str:
        """In words; empty where there is none."""
        low = "" if self.at_least is None else f"≥ {self.at_least:g}"
        high = "" if self.at_most is None else f"≤ {self.at_most:g}"
        return f"{low}, {high}" if low and high else low + high

    @property
    def is_reached(self) -> bool:
        """Whether the value is within its goal."""
        high = float("inf") if self.at_most is None else self.at_most
        return (self.at_least or 0) <= self.value <= high

    @property
    def row(self) -> str:
        """As a row of the table."""
        reached = "" if not self.goal else "reached" if self.is_reached else "MISSED"
        value = f"{self.value:.3g}" if self.value < 1000 else f"{self.value:.0f}"
        return f"{self.name:28}{self.case:>10}{value:>12}{self.goal:>18}  {reached:9}{self.note}".rstrip()


def seconds(function: Callable[[], object], blas_threads: int = 1) -> float:
    """Time one call, after the threads of the call before it have gone to sleep."""
    with ThreadpoolController().limit(limits=blas_threads, user_api="blas"):
        time.sleep(PAUSE_SECONDS)
        start = time.perf_counter()
        function()
        return time.perf_counter() - start


@dataclass(frozen=True)
class Timed:
    """One measurement, and who had the processors meanwhile."""

    seconds: float
    processors: float
    """Processor-seconds of this process and of those that it started, over wall."""
    others: float
    """Fraction of the processors that other programs used."""


def timed(function: Callable[[], object], blas_threads: int = 1) -> Timed:
    """Time one call, and count who had the processors that this process may use."""
    with ThreadpoolController().limit(limits=blas_threads, user_api="blas"):
        time.sleep(PAUSE_SECONDS)
        own, busy, start = sum(os.times()[:4]), busy_seconds(), time.perf_counter()
        function()
        took = time.perf_counter() - start
        own, busy = sum(os.times()[:4]) - own, busy_seconds() - busy
    return Timed(took, own / took, max(0.0, busy - own) / took / N_THREADS)


def busy_seconds() -> float:
    """Return the processor-seconds of all programs, on the processors that this process may use."""
    every = psutil.cpu_times(percpu=True)
    allowed = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else range(len(every))
    return sum(every[number].user + every[number].system for number in allowed or [])


def undisturbed(function: Callable[[], object]) -> Timed:
    """Time a call that others hardly disturb: repeat it where they do, and return the least disturbed measurement."""
    tries = list[Timed]()
    while not tries or (tries[-1].others > MOST_OTHERS and len(tries) < MAX_TRIES):
        tries.append(timed(function))
    return min(tries, key=lambda each: each.others)


def medians(
    measures: Mapping[str, Callable[[], float]], rounds: int = MIN_ROUNDS, at_least_seconds: float = 0.0
) -> dict[str, float]:
    """Measure several things in turn, and give the median of each.

    Parameters
    ----------
    measures
        Each gives its own seconds.
    rounds
        Taken at least, after one that is not counted.
    at_least_seconds
        More rounds are taken until this time is up: what is short has more scatter.
    """
    for function in measures.values():
        function()
    found: dict[str, list[float]] = {name: [] for name in measures}
    start, n_rounds = time.perf_counter(), 0
    while n_rounds < rounds or time.perf_counter() - start < at_least_seconds:
        for name, function in measures.items():
            found[name].append(function())
        n_rounds += 1
    return {name: median(times) for name, times in found.items()}
