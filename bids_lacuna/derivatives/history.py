"""Records of runs, in logs/<run>/run.json beside the table of outcomes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bids_lacuna.files import read_json_object, read_table, write_json
from bids_lacuna.provenance import MappingOptions, Provenance
from bids_lacuna.runtime.memory import peak_resident_bytes

FILE = "run.json"

OUTCOMES = "lesions.tsv"

SPHERES, IMAGES = "spheres", "images"
"""Where seeds come from: from coordinates, or from images of the dataset."""

NO_MASK = "no mask"
"""Status in the table of outcomes of a participant for whom no mask was found."""


@dataclass(frozen=True)
class Run:
    """One run of the participant level."""

    command: str
    """Command line, quoted for a shell."""
    started: str
    """Time in ISO 8601."""
    provenance: Provenance
    """Sources and settings of the maps."""
    n_connectome_subjects: int
    n_timepoints: int
    """Timepoints per connectome subject, the most if they differ."""
    n_voxels: int
    """Voxels of the connectome."""
    n_lesions: int
    """Lesions to map."""
    batch_size: int
    n_threads: int
    planned_bytes: int
    """Planned peak of memory."""
    available_bytes: int
    memory_limit: str
    """Source of the smallest limit on memory."""
    links: dict[str, str]
    """Name in BIDS URIs of each dataset in the table."""
    reports: bool
    """Whether reports are written."""
    seconds: float | None = None
    """Duration of the run; before its end, up to its last finished batch."""
    peak_bytes: int | None = None
    """Measured peak of memory, up to the same time."""
    finished: bool = False
    n_without_signal: int = 0
    """Number of connectome subjects without a signal in any voxel; 0 before the first pass."""
    transforms: tuple[str, ...] = ()
    """How masks in other spaces were brought to the connectome's: see `TransformChain.words`."""
    seeds: str = ""
    """`SPHERES` or `IMAGES` if seeds were mapped in place of lesions."""

    @property
    def n_mapped_subjects(self) -> int:
        """Number of connectome subjects that maps include."""
        return self.n_connectome_subjects - self.n_without_signal

    def write(self, log_dir: Path) -> None:
        """Write this record to the run's log folder."""
        write_json(log_dir / FILE, asdict(self))

    def with_thresholds(self, t_thresholds: Iterable[float]) -> Run:
        """Return a copy with the thresholds of all masks that exist: later runs may have added some."""
        options = replace(self.provenance.options, t_thresholds=tuple(sorted(t_thresholds)))
        return replace(self, provenance=replace(self.provenance, options=options))

    def until_now(self, started: float, finished: bool = False) -> Run:
        """Return a copy with the seconds since `started` on `time.monotonic()`, and the peak of memory."""
        return replace(self, seconds=time.monotonic() - started, peak_bytes=peak_resident_bytes(), finished=finished)


def read_run(log_dir: Path) -> Run | None:
    """Read the record of a run; None if its log folder has none, or one of another version."""
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
        transforms = tuple(content.get("transforms", ()))
        return Run(**content | {"provenance": Provenance(**provenance), "transforms": transforms})
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Outcome:
    """Outcome of one mask: a row of a run's table."""

    row: Mapping[str, str]
    """Cells by column; `n/a` for unknown values."""
    log_dir: Path
    run: Run | None

    @property
    def status(self) -> str:
        """Status: done, failed, skipped, not run or pending."""
        return self.row.get("status", "n/a")

    @property
    def is_mapping(self) -> bool:
        """Whether the lesion was mapped in a batch; masks may be added later by runs that map nothing."""
        return self.status == "done" and self.row.get("batch") != "n/a"

    @property
    def mask(self) -> tuple[str, str]:
        """Name of the dataset in BIDS URIs, and path of the mask in it."""
        dataset = self.row.get("dataset", "")
        return (self.run.links.get(dataset, dataset) if self.run else dataset), self.row.get("mask", "")


def read_outcomes(output_dir: Path) -> list[Outcome]:
    """Read the outcomes of all runs, oldest run first."""
    outcomes = []
    for table in sorted(output_dir.glob(f"logs/*/{OUTCOMES}")):
        try:
            rows = read_table(table)
        # Maps are valid without a table, so a damaged table is ignored.
        except (OSError, ValueError):
            continue
        run = read_run(table.parent)
        outcomes += [Outcome(row, table.parent, run) for row in rows]
    return outcomes
