"""Run the benchmarks: print a table, and write results/latest.json when all of them have run.

`make bench` runs all; `python -m benchmarks.run kernel memory` runs some. Their files go to a temporary folder of
about 2 GB (TMPDIR), which is removed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path

from benchmarks import build, cluster, inference, job, kernel, machine, memory, nulls, others, startup, whole
from benchmarks.data import Data
from benchmarks.measure import Figure
from bids_lacuna.files import write_json

THEMES: dict[str, Callable[[Data], Iterator[Figure]]] = {
    "kernel": kernel.measure,
    "job": job.measure,
    "whole": whole.measure,
    "memory": memory.measure,
    "nulls": nulls.measure,
    "inference": inference.measure,
    "cluster": cluster.measure,
    "build": build.measure,
    "startup": startup.measure,
    "others": others.measure,
}

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("themes", nargs="*", metavar="THEME", help=f"{', '.join(THEMES)} (default: all)")
    themes = parser.parse_args().themes or list(THEMES)
    if unknown := set(themes) - set(THEMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(THEMES)}")
    description = {"date": date.today().isoformat()} | machine.describe()
    for key, value in description.items():
        print(f"{key}: {value}")
    figures = []
    print(f"\n{'':28}{'case':>10}{'measured':>12}{'goal':>18}")
    with tempfile.TemporaryDirectory() as folder:
        data = Data(Path(folder))
        for theme in themes:
            for figure in THEMES[theme](data):
                print(figure.row, flush=True)
                figures.append(figure)
    if set(themes) == set(THEMES):
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, description | collect(figures))


def collect(figures: Iterable[Figure]) -> dict[str, object]:
    """Bring the figures under their names; those with cases become a mapping."""
    collected: dict[str, object] = {}
    for figure in figures:
        value = float(f"{figure.value:.4g}")
        if figure.case:
            cases = collected.setdefault(figure.name, {})
            assert isinstance(cases, dict)
            cases[figure.case] = value
        else:
            collected[figure.name] = value
    return collected


if __name__ == "__main__":
    main()
