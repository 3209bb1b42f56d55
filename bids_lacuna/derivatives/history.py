"""What a run was, told by itself in logs/<run>/run.json, beside the table of its lesions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bids_lacuna.files import read_json_object, read_table, write_json
from bids_lacuna.provenance import MappingOptions, Provenance
from bids_lacuna.runtime.memory import peak_resident_bytes

FILE = "run.json"

OUTCOMES = "lesions.tsv"


@dataclass(frozen=True)
class Run:
    """One run of the participant level."""

    command: str
    """As a shell takes it."""
    started: str
    """ISO 8601."""
    provenance: Provenance
    """What its maps are made from."""
    n_connectome_subjects: int
    n_timepoints: int
    """Timepoints of a connectome subject, the longest if they differ."""
    n_voxels: int
    """Voxels of the connectome."""
    n_lesions: int
    """Lesions to map."""
    batch_size: int
    n_threads: int
    planned_bytes: int
    """Largest amount of memory, by the plan."""
    available_bytes: int
    memory_limit: str
    """The limit that decided how much is available."""
    links: dict[str, str]
    """The name in BIDS URIs of each dataset of the table."""
    reports: bool
    """Whether pages are written."""
    seconds: float | None = None
    """Time that the run has taken; before its end, up to its last finished batch."""
    peak_bytes: int | None = None
    """Largest amount of memory that it has occupied, up to then."""
    finished: bool = False

    def write(self, log_dir: Path) -> None:
        """Write it into the run's folder of logs."""
        write_json(log_dir / FILE, asdict(self))

    def until_now(self, started: float, finished: bool = False) -> Run:
        """Add the time since `time.monotonic()` was `started`, and the memory used since then."""
        return replace(self, seconds=time.monotonic() - started, peak_bytes=peak_resident_bytes(), finished=finished)


def read_run(log_dir: Path) -> Run | None:
    """Read the description of a run; None where its folder of logs has none, or that of another version."""
    try:
        content = read_json_object(log_dir / FILE)
        provenance = dict(content["provenance"])
        options = dict(provenance["options"])
        options["t_thresholds"] = tuple(options["t_thresholds"])
        provenance |= {
            "shape": tuple(provenance["shape"]),
            "affine": tuple(provenance["affine"]),
            "options": MappingOptions(**options),
        }
        return Run(**content | {"provenance": Provenance(**provenance)})
    except (OSError, ValueError, KeyError, TypeError):
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
    for table in sorted(output_dir.glob(f"logs/*/{OUTCOMES}")):
        try:
            rows = read_table(table)
        # The maps are complete without their table.
        except (OSError, ValueError):
            continue
        run = read_run(table.parent)
        outcomes += [Outcome(row, table.parent, run) for row in rows]
    return outcomes
