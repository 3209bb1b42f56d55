"""Null lesions of finished maps: T among them for each lesion, from the connectome's summary."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna import kernels
from bids_lacuna.app.command import Exit, Stop
from bids_lacuna.connectome import Connectome
from bids_lacuna.derivatives import (
    TRANSFORMS,
    WITHOUT_NULLS,
    DerivativesWriter,
    LesionRecord,
    file_hash,
    find_lesion,
    map_path,
    null_map_path,
    sidecar_path,
)
from bids_lacuna.files import read_json_object, write_table
from bids_lacuna.images import open_image, read_volume
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping import FunctionalNetworkMapping, Summary
from bids_lacuna.mapping.maps import make_image
from bids_lacuna.mapping.null_maps import NullMaps, map_nulls, read_shape
from bids_lacuna.mapping.nulls import Connectivity, NullLesion, TooFewPlaces, make_nulls
from bids_lacuna.mapping.places import COVERAGE_EDGES, FEWEST_PLACES, TISSUE_BIN, Shape, Tissue, find_places
from bids_lacuna.mapping.tissue import load_tissue
from bids_lacuna.provenance import MappingOptions, Provenance
from bids_lacuna.runtime.memory import resident_bytes
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.text import format_seconds

logger = logging.getLogger(__name__)

Array = np.ndarray

DEFAULT_N = 1000
"""Null lesions of each lesion where the connectome has a summary."""

LOW_R, LOWEST_R = 0.98, 0.95
"""Spatial r of a map with its approximation below which there is a warning, and below which there is no T."""

SECONDS_PER_LESION, SECONDS_PER_VOXEL, SECONDS_PER_CELL = 1.0, 17e-9, 7e-11
"""Measured processor time to draw null lesions, and of each null lesion for each voxel, and for each cell in it."""

SAMPLED = 8
"""Lesions whose places are counted, at most, for an estimate of time."""

MOST_TOGETHER = 16
"""Largest number of lesions that are compared in one reading of the summary: an interrupted run loses no more, and
reading takes far less time than comparing that many."""

TABLE = "null_lesions.tsv"
"""Table in the folder of a run's log: what became of each lesion."""

COLUMNS = ("lesion", "n_places", "n_nulls", "r_of_approximation", "degree_percentile", "reason")

INTERPRETATION = (
    "Where this lesion's connectivity stands among that of the same lesion elsewhere. A description, not a test: "
    "every place has a network of its own, so there is no p; and it is not about the patient's symptom"
)


@dataclass(frozen=True, eq=False)
class Nulls:
    """What null lesions are drawn and mapped with."""

    connectivity: Connectivity
    space: str
    n: int
    """Null lesions of each lesion."""
    random_seed: int
    tissue_maps: tuple[Path, Path] | None
    """Maps of grey and of white matter; None for nilearn's."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers, beside the lesion and its connectome: keys of a sidecar."""
        hashes = [file_hash(path) for path in self.tissue_maps] if self.tissue_maps else "nilearn's MNI152 masks"
        record = self.connectivity.summary.arrays.record
        return {
            "RequestedNullLesions": self.n,
            "RandomSeed": self.random_seed,
            "TissueMaps": hashes,
            "SummaryHash": record.content_hash,
        }

    def made(self, recorded: object) -> bool:
        """Return whether what a sidecar has recorded was made with these null lesions."""
        return isinstance(recorded, dict) and all(recorded.get(key) == value for key, value in self.identity.items())

    def load_tissue(self) -> Tissue:
        """Read the tissue maps; raises ValueError or OSError."""
        return load_tissue(self.connectivity.grid, self.space, self.tissue_maps)

    def prepare(self, mask: Path, r_map: Path, options: MappingOptions, tissue: Tissue) -> NullLesion:
        """Read a lesion's mask, and draw its null lesions; raises ValueError (`TooFewPlaces`) or OSError.

        Parameters
        ----------
        mask, r_map
            A lesion's mask, and its r-map, beside which lies the lesion if it has been transformed.
        """
        shape = self.read(mask, r_map, options)
        return make_nulls(shape, self.connectivity, tissue, self.n, self.random_seed)

    def read(self, mask: Path, r_map: Path, options: MappingOptions) -> Shape:
        """Read the mask of a lesion that has maps; raises ValueError or OSError."""
        sidecar = read_json_object(sidecar_path(r_map))
        path, lowest = find_lesion(mask, r_map, sidecar)
        # After transforms, the file has the weights themselves, whatever the weighting.
        weighting = "volume" if TRANSFORMS in sidecar else options.weighting
        return read_shape(LesionData.from_nifti(path), self.connectivity.grid, weighting, lowest)


def find_nulls(arguments: argparse.Namespace, connectome: Connectome, summary: Summary | None) -> Nulls | None:
    """Return what null lesions need, or None if there are none.

    Raises
    ------
    Stop
        They were asked for, and the connectome has no summary, or the tissue maps cannot be used.
    """
    asked: int | None = arguments.null_lesions
    if arguments.coordinates or arguments.seed_label:
        if asked:
            raise Stop(
                Exit.USAGE,
                "null lesions are places where a lesion might be, and seeds are none: leave out --null-lesions",
            )
        return None
    if asked == 0 or (summary is None and asked is None):
        return None
    if asked == 1:
        raise Stop(
            Exit.USAGE,
            f"one null lesion has no standard deviation, by which T is divided: use --null-lesions {FEWEST_PLACES} "
            f"or more (by default {DEFAULT_N}), or 0 for none",
        )
    if summary is None:
        raise Stop(
            Exit.BAD_DATA,
            f"--null-lesions {asked} needs the connectome's summary, which is missing or cannot be used: make it "
            f"with `bids-lacuna-connectome summarize {connectome.path}`, or leave out --null-lesions",
        )
    if asked is not None and asked < FEWEST_PLACES:
        logger.warning(
            "%d null lesions are few: T and percentiles are rough, and no p of a group is below 1 / %d; the default "
            "is %d",
            asked,
            asked + 1,
            DEFAULT_N,
        )
    paths = tuple(arguments.tissue_maps) if arguments.tissue_maps else None
    nulls = Nulls(Connectivity.of(summary), summary.space, asked or DEFAULT_N, arguments.random_seed, paths)
    if paths:
        try:
            nulls.load_tissue()
        except (OSError, ValueError) as error:
            raise Stop(Exit.BAD_DATA, f"null lesions need other tissue maps: {error}") from error
    return nulls


@dataclass(frozen=True)
class Movable:
    """A lesion whose null lesions take time."""

    volume_mm3: float
    read: Callable[[], Shape]
    """Reads its mask; raises ValueError or OSError."""


def find_due(
    nulls: Nulls,
    records: Sequence[LesionRecord],
    output_dir: Path,
    provenance: Provenance,
    lacks: Callable[[LesionRecord, Nulls, Path, Provenance], bool],
) -> list[Movable]:
    """List the lesions that will be mapped, and those with maps that lack what null lesions are needed for."""
    due = []
    for record in records:
        volume_mm3 = record.volume_mm3 if record.status == "pending" else None
        if lacks(record, nulls, output_dir, provenance):
            z_map = sidecar_path(output_dir / map_path(record.mask, provenance, stat="z"))
            with suppress(OSError, ValueError):
                volume_mm3 = read_json_object(z_map).get("LesionVolume")
        if volume_mm3:
            options, grid = provenance.options, nulls.connectivity.grid
            read = partial(read_shape, record.as_lesion(), grid, options.weighting, options.lesion_threshold)
            due.append(Movable(volume_mm3, read))
    return due


def describe_time(nulls: Nulls, lesions: Sequence[Movable], n_threads: int) -> str:
    """Return how many null lesions some lesions have, and about how long that takes."""
    count = f"{nulls.n} for each lesion"
    if not lesions:
        return f"{count}; no lesion lacks them"
    some = lesions[:: math.ceil(len(lesions) / SAMPLED)]
    mean = count_nulls(nulls, some)
    if mean < nulls.n:
        of_some = "their places" if len(some) == len(lesions) else f"the places of {len(some)} of them"
        count += f", {mean:.0f} on average by {of_some}"
    cell_mm = nulls.connectivity.summary.arrays.record.cell_size_mm
    seconds = 0.0
    for lesion in lesions:
        n_cells = (np.cbrt(lesion.volume_mm3) / cell_mm + 1) ** 3
        each = SECONDS_PER_VOXEL + SECONDS_PER_CELL * n_cells
        seconds += SECONDS_PER_LESION + each * mean * nulls.connectivity.grid.n_voxels / n_threads
    return f"{count}; lesions to compare: {len(lesions)}, in about {format_seconds(seconds)}"


def count_nulls(nulls: Nulls, lesions: Sequence[Movable]) -> float:
    """Return the mean number of null lesions: fewer than asked for where there are fewer places, and 0 without."""
    counts = []
    # The run itself says what is wrong with a file.
    with suppress(OSError, ValueError):
        tissue = nulls.load_tissue()
        for lesion in lesions:
            with suppress(OSError, ValueError):
                n_places = len(find_places(lesion.read(), nulls.connectivity.grid, tissue).corners)
                counts.append(min(n_places, nulls.n) if n_places >= FEWEST_PLACES else 0)
    return float(np.mean(counts)) if counts else 0.0


def add_nulls(
    nulls: Nulls,
    writer: DerivativesWriter,
    analysis: FunctionalNetworkMapping,
    resources: Resources,
    show_progress: bool = True,
) -> list[str]:
    """Write T among null lesions for the finished maps that lack it.

    Returns
    -------
    list of str
        Labels of the participants with a new map, or a new reason why there is none.
    """
    records = [record for record in writer.records if is_due(record, nulls, writer.output_dir, writer.provenance)]
    if not records:
        return []
    try:
        tissue = nulls.load_tissue()
    except (OSError, ValueError) as error:
        logger.warning("there are no null lesions: %s", error)
        return []
    logger.info("null lesions: up to %d for each lesion; lesions to compare: %d", nulls.n, len(records))
    with (
        kernels.threads(resources.n_threads),
        Progress(len(records), "null lesions", "lesion", shown=show_progress) as progress,
    ):
        outcomes = _Outcomes(nulls, writer, progress)
        for batch in _batches(records, tissue, analysis.options, resources, outcomes):
            mapped = map_nulls([lesion for _, lesion in batch], nulls.connectivity)
            for (record, lesion), maps in zip(batch, mapped, strict=True):
                outcomes.write(record, lesion, maps)
    try:
        write_table(writer.log_dir / TABLE, COLUMNS, outcomes.rows)
    except OSError as error:
        logger.warning("the table of null lesions could not be written: %s", error)
    return outcomes.labels


def is_due(record: LesionRecord, nulls: Nulls, output_dir: Path, provenance: Provenance) -> bool:
    """Return whether a lesion has maps, and neither a T of these null lesions nor a reason why it cannot have one."""
    if not record.can_gain(provenance.space):
        return False
    z_map, r_map = (output_dir / map_path(record.mask, provenance, stat=stat) for stat in "zr")
    if not sidecar_path(z_map).exists():
        return False
    path = output_dir / null_map_path(record.mask, provenance)
    decided: list[Any] = []
    with suppress(OSError, ValueError):
        decided.append(read_json_object(sidecar_path(r_map)).get(WITHOUT_NULLS))
    if path.exists():
        with suppress(OSError, ValueError):
            decided.append(read_json_object(sidecar_path(path)))
    return not any(nulls.made(there) for there in decided)


def _batches(
    records: Sequence[LesionRecord],
    tissue: Tissue,
    options: MappingOptions,
    resources: Resources,
    outcomes: _Outcomes,
) -> Iterator[list[tuple[LesionRecord, NullLesion]]]:
    """Draw null lesions, for as many lesions at a time as fit the memory; list those that have none."""
    # Pages are written meanwhile.
    nulls, writer = outcomes.nulls, outcomes.writer
    free_bytes = resources.available_bytes - resources.reserved_bytes - resident_bytes()
    free_bytes -= nulls.connectivity.fixed_bytes(resources.n_threads)
    batch: list[tuple[LesionRecord, NullLesion]] = []
    occupied = 0
    for record in records:
        try:
            r_map = writer.output_dir / map_path(record.mask, writer.provenance, stat="r")
            lesion = nulls.prepare(record.mask.path, r_map, options, tissue)
        except (OSError, ValueError) as error:
            outcomes.close_without_places(record, error)
            continue
        n_bytes = lesion.n_bytes + nulls.connectivity.bytes_per_lesion
        if len(batch) == MOST_TOGETHER or (batch and occupied + n_bytes > free_bytes):
            yield batch
            batch, occupied = [], 0
        batch.append((record, lesion))
        occupied += n_bytes
    if batch:
        yield batch


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """What became of the lesions: their maps, or why there is none, rows of a table, and pages to be written."""

    nulls: Nulls
    writer: DerivativesWriter
    progress: Progress
    rows: list[list[str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def write(self, record: LesionRecord, lesion: NullLesion, maps: NullMaps) -> None:
        """Write one lesion's T, or why it has none, and its row of the table."""
        r, reason = float("nan"), ""
        try:
            r = self._compare(record, lesion, maps)
            if not r >= LOWEST_R:
                reason = f"its map and the approximation by the summary differ (r = {r:.3f})"
                logger.warning("%s: no T among null lesions: %s", record.mask.path.name, reason)
                self._decline(record, reason, {"ApproximationR": rounded(r)})
            else:
                self._write_map(record, lesion, maps, r)
            self.labels.append(record.mask.entities["sub"])
        except (OSError, ValueError) as error:
            record.lack(f"no T among null lesions: {error}")
            reason = str(error)
        numbers = (len(lesion.places.corners), lesion.n_nulls, f"{r:.4f}", f"{maps.degree_percentile:.1f}")
        self.rows.append([record.mask.name, *map(str, numbers), reason or "n/a"])
        self.progress.update()

    def close_without_places(self, record: LesionRecord, error: Exception) -> None:
        """Record a lesion that has no null lesions; the reason stays where it cannot change by itself."""
        n_places = "n/a"
        if not isinstance(error, TooFewPlaces):
            record.lack(f"no null lesions: {error}")
        else:
            logger.warning("%s: no null lesions: %s", record.mask.path.name, error)
            n_places = str(error.n_places)
            try:
                self._decline(record, str(error), {"NumberOfPlaces": error.n_places})
                self.labels.append(record.mask.entities["sub"])
            except (OSError, ValueError) as unwritten:
                record.lack(f"this could not be recorded: {unwritten}")
        self.rows.append([record.mask.name, n_places, "0", "n/a", "n/a", str(error)])
        self.progress.update()

    def _decline(self, record: LesionRecord, reason: str, numbers: Mapping[str, Any]) -> None:
        self.writer.remove_null_map(record, {**self.nulls.identity, **numbers, "Reason": reason})

    def _compare(self, record: LesionRecord, lesion: NullLesion, maps: NullMaps) -> float:
        path = self.writer.output_dir / map_path(record.mask, self.writer.provenance, stat="z")
        exact = self.nulls.connectivity.grid.vector(read_volume(open_image(path, "map"), "map"))
        return correlate_outside(exact, maps.approximation, lesion, self.nulls.connectivity)

    def _write_map(self, record: LesionRecord, lesion: NullLesion, maps: NullMaps, r: float) -> None:
        if r < LOW_R:
            logger.warning("%s: T is approximate: its map and the summary's have r = %.3f", record.mask.path.name, r)
        image = make_image(maps.t, np.nan, self.nulls.connectivity.grid, self.writer.provenance.space)
        self.writer.write_null_map(record, image, self.nulls.identity | describe(lesion, maps, r))


def correlate_outside(exact: Array, approximation: Array, lesion: NullLesion, connectivity: Connectivity) -> float:
    """Correlate an exact z-map with its approximation, over the voxels outside the lesion's cells."""
    starts, cells = lesion.seeds[:2]
    compared = np.isfinite(exact) & np.isfinite(approximation)
    compared &= ~np.isin(connectivity.summary.arrays.cells, cells[: starts[1]])
    return float(np.corrcoef(exact[compared], approximation[compared])[0, 1])


def describe(lesion: NullLesion, maps: NullMaps, r: float) -> dict[str, Any]:
    """Return what the sidecar of a lesion's T says of its null lesions."""
    places, (width_mm, profile) = lesion.places, lesion.profile
    return {
        "Interpretation": INTERPRETATION,
        "NumberOfNullLesions": lesion.n_nulls,
        "NumberOfPlaces": len(places.corners),
        "Side": places.side,
        "PlaceStepVoxels": list(places.step_voxels),
        "CoverageBin": list(places.coverage),
        "GreyMatterBin": list(places.grey),
        "WhiteMatterBin": list(places.white),
        "CoverageEdges": list(COVERAGE_EDGES),
        "TissueBinWidth": TISSUE_BIN,
        "DrawEntropy": list(lesion.random_seed),
        "NeighbourhoodRadius": lesion.radius_mm,
        "NeighbourhoodRadiusUnits": "mm",
        "NullMeanZOverDistance": [None if np.isnan(z) else round(float(z), 4) for z in profile],
        "NullMeanZRingWidth": width_mm,
        "NullMaximaWithin10mmOfNeighbourhood": round(maps.maxima_nearby, 4),
        "ApproximationR": round(r, 4),
        "DegreeR": rounded(maps.degree_r[0]),
        "DegreeRPercentile": rounded(maps.degree_percentile),
        "RSquared": rounded(maps.r_squared[0]),
        "RSquaredPercentile": rounded(maps.r_squared_percentile),
    }


def rounded(value: float) -> float | None:
    """Return a number as a sidecar has it: with four decimals, and None if it is undefined."""
    return round(float(value), 4) if np.isfinite(value) else None
