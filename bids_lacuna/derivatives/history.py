"""What a run was, told by itself in logs/<run>/run.json, beside the table of its lesions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from bids_lacuna.files import read_json_object, write_json
from bids_lacuna.runtime.logs import versions_of
from bids_lacuna.runtime.memory import peak_resident_bytes

LIBRARIES = ("numpy", "scipy", "numba", "nibabel", "nilearn", "matplotlib")

FILE = "run.json"

TABLE = "lesions.tsv"


@dataclass(frozen=True)
class Run:
    """One run of the participant level."""

    command: str
    """As a shell would take it."""
    started: str
    """ISO 8601."""
    version: str
    """Of bids-lacuna."""
    software: dict[str, str]
    """Version of Python and of each library that numbers or pictures come from."""
    connectome_name: str
    connectome_hash: str
    connectome_space: str
    n_connectome_subjects: int
    n_timepoints: int
    """Of a connectome subject, the longest if they differ."""
    n_voxels: int
    """Of the connectome."""
    voxel_sizes_mm: list[float]
    weighting: str
    t_thresholds: list[float]
    n_lesions: int
    """Lesions to map."""
    batch_size: int
    n_threads: int
    planned_bytes: int
    """Of memory, at most."""
    available_bytes: int
    memory_limit: str
    """What decided how much is available."""
    links: dict[str, str]
    """The name that each dataset of the table has in BIDS URIs."""
    seconds: float | None = None
    """That the run has taken; until its end, up to its last finished batch."""
    peak_bytes: int | None = None
    """Of memory that it has occupied, up to then."""
    finished: bool = False

    def write(self, log_dir: Path) -> None:
        """Write it into the run's folder of logs."""
        write_json(log_dir / FILE, asdict(self))

    def until_now(self, started: float, finished: bool = False) -> Run:
        """Add the time that has passed since `time.monotonic()` was `started`, and the memory used since then."""
        return replace(self, seconds=time.monotonic() - started, peak_bytes=peak_resident_bytes(), finished=finished)


def library_versions() -> dict[str, str]:
    """Tell the versions of Python and of the libraries that numbers and pictures come from."""
    return versions_of(LIBRARIES)


def read_run(log_dir: Path) -> Run | None:
    """Read what a run was; None where its folder of logs does not tell, as of other versions."""
    try:
        content = read_json_object(log_dir / FILE)
        return Run(**{field.name: content[field.name] for field in fields(Run)})
    except (OSError, ValueError, KeyError):
        return None


@dataclass(frozen=True)
class Outcome:
    """A row of a run's table: what became of one mask."""

    row: Mapping[str, str]
    """By the table's columns; `n/a` where something is not known."""
    log_dir: Path
    run: Run | None

    @property
    def status(self) -> str:
        """Done, failed, skipped or pending."""
        return self.row.get("status", "n/a")

    @property
    def mask(self) -> tuple[str, str]:
        """The dataset's name in BIDS URIs, and the mask's path in it."""
        dataset = self.row.get("dataset", "")
        return (self.run.links.get(dataset, dataset) if self.run else dataset), self.row.get("mask", "")


def read_outcomes(output_dir: Path) -> list[Outcome]:
    """Read the tables of all runs, the oldest first."""
    outcomes = []
    for table in sorted(output_dir.glob(f"logs/*/{TABLE}")):
        try:
            header, *rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
        # A table that cannot be read tells nothing; the maps are there all the same.
        except (OSError, ValueError):
            continue
        run = read_run(table.parent)
        outcomes += [Outcome(dict(zip(header, row, strict=False)), table.parent, run) for row in rows]
    return outcomes
