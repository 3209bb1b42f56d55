"""Null lesions of finished maps: T among them for each lesion, from the connectome's summary."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna import kernels
from bids_lacuna.app.command import Exit, Stop
from bids_lacuna.connectome import Connectome
from bids_lacuna.derivatives import (
    TRANSFORMS,
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
from bids_lacuna.mapping.places import COVERAGE_EDGES, FEWEST_PLACES, TISSUE_BIN, Tissue
from bids_lacuna.mapping.tissue import load_tissue
from bids_lacuna.provenance import MappingOptions, Provenance
from bids_lacuna.runtime.memory import resident_bytes
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.runtime.progress import Progress

logger = logging.getLogger(__name__)

Array = np.ndarray

DEFAULT_N = 1000
"""Null lesions of each lesion where the connectome has a summary."""

LOW_R, LOWEST_R = 0.98, 0.95
"""Spatial r of a map with its approximation below which there is a warning, and below which there is no T."""

SECONDS_PER_LESION, SECONDS_PER_VOXEL, SECONDS_PER_CELL = 1.0, 17e-9, 7e-11
"""Measured processor time to draw null lesions, and of each null lesion for each voxel, and for each cell in it."""

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

    @property
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
        sidecar = read_json_object(sidecar_path(r_map))
        path, lowest = find_lesion(mask, r_map, sidecar)
        # After transforms, the file has the weights themselves, whatever the weighting.
        weighting = "volume" if TRANSFORMS in sidecar else options.weighting
        shape = read_shape(LesionData.from_nifti(path), self.connectivity.grid, weighting, lowest)
        return make_nulls(shape, self.connectivity, tissue, self.n, self.random_seed)


def find_nulls(arguments: argparse.Namespace, connectome: Connectome, summary: Summary | None) -> Nulls | None:
    """Return what null lesions need, or None if there are none.

    Raises
    ------
    Stop
        They were asked for, and the connectome has no summary, or the tissue maps cannot be used.
    """
    asked: int | None = arguments.null_lesions
    if asked == 0 or (summary is None and asked is None):
        return None
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


def estimate_seconds(
    nulls: Nulls, records: Sequence[LesionRecord], output_dir: Path, provenance: Provenance, n_threads: int
) -> float:
    """Estimate the time of the null lesions of lesions that will be mapped, or that have maps without them."""
    cell_mm = nulls.connectivity.summary.arrays.record.cell_size_mm
    seconds = 0.0
    for record in records:
        volume_mm3 = record.volume_mm3 if record.status == "pending" else None
        if is_due(record, nulls, output_dir, provenance):
            z_map = sidecar_path(output_dir / map_path(record.mask, provenance, stat="z"))
            with suppress(OSError, ValueError):
                volume_mm3 = read_json_object(z_map).get("LesionVolume")
        if volume_mm3:
            n_cells = (np.cbrt(volume_mm3) / cell_mm + 1) ** 3
            each = SECONDS_PER_VOXEL + SECONDS_PER_CELL * n_cells
            seconds += SECONDS_PER_LESION + each * nulls.n * nulls.connectivity.grid.n_voxels / n_threads
    return float(seconds)


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
        Labels of the participants with a new map.
    """
    records = [record for record in writer.records if is_due(record, nulls, writer.output_dir, writer.provenance)]
    if not records:
        return []
    try:
        tissue = nulls.load_tissue()
    except (OSError, ValueError) as error:
        logger.warning("there are no null lesions: %s", error)
        return []
    logger.info("null lesions: %d for each of %d lesions, from the connectome's summary", nulls.n, len(records))
    rows: list[list[str]] = []
    labels = []
    with (
        kernels.threads(resources.n_threads),
        Progress(len(records), "null lesions", "lesion", shown=show_progress) as progress,
    ):
        batches = _batches(records, nulls, tissue, analysis.options, resources, rows, writer, progress)
        for batch in batches:
            mapped = map_nulls([lesion for _, lesion in batch], nulls.connectivity)
            for (record, lesion), maps in zip(batch, mapped, strict=True):
                if _write(record, lesion, maps, nulls, writer, analysis, rows):
                    labels.append(record.mask.entities["sub"])
                progress.update()
    try:
        write_table(writer.log_dir / TABLE, COLUMNS, rows)
    except OSError as error:
        logger.warning("the table of null lesions could not be written: %s", error)
    return labels


def is_due(record: LesionRecord, nulls: Nulls, output_dir: Path, provenance: Provenance) -> bool:
    """Return whether a lesion has maps, and no T of these null lesions."""
    if not record.has_maps_in(provenance.space):
        return False
    if not sidecar_path(output_dir / map_path(record.mask, provenance, stat="z")).exists():
        return False
    path = output_dir / null_map_path(record.mask, provenance)
    try:
        there = read_json_object(sidecar_path(path))
    except (OSError, ValueError):
        return True
    return not path.exists() or any(there.get(key) != value for key, value in nulls.identity.items())


def _batches(
    records: Sequence[LesionRecord],
    nulls: Nulls,
    tissue: Tissue,
    options: MappingOptions,
    resources: Resources,
    rows: list[list[str]],
    writer: DerivativesWriter,
    progress: Progress,
) -> Iterator[list[tuple[LesionRecord, NullLesion]]]:
    """Draw null lesions, for as many lesions at a time as fit the memory; list those that have none."""
    # Pages are written meanwhile.
    free_bytes = resources.available_bytes - resources.reserved_bytes - resident_bytes()
    batch: list[tuple[LesionRecord, NullLesion]] = []
    occupied = 0
    for record in records:
        try:
            r_map = writer.output_dir / map_path(record.mask, writer.provenance, stat="r")
            lesion = nulls.prepare(record.mask.path, r_map, options, tissue)
        except (OSError, ValueError) as error:
            logger.warning("%s: no null lesions: %s", record.mask.path.name, error)
            n_places = "n/a"
            if isinstance(error, TooFewPlaces):
                n_places = str(error.n_places)
                writer.remove_null_map(record)
            rows.append([record.mask.name, n_places, "0", "n/a", "n/a", str(error)])
            progress.update()
            continue
        n_bytes = lesion.n_bytes + nulls.connectivity.bytes_per_lesion
        if len(batch) == MOST_TOGETHER or (batch and occupied + n_bytes > free_bytes):
            yield batch
            batch, occupied = [], 0
        batch.append((record, lesion))
        occupied += n_bytes
    if batch:
        yield batch


def _write(
    record: LesionRecord,
    lesion: NullLesion,
    maps: NullMaps,
    nulls: Nulls,
    writer: DerivativesWriter,
    analysis: FunctionalNetworkMapping,
    rows: list[list[str]],
) -> bool:
    """Write one lesion's T and its row of the table; return whether there is a T."""
    name, grid = record.mask.path.name, nulls.connectivity.grid
    try:
        path = writer.output_dir / map_path(record.mask, analysis.provenance, stat="z")
        exact = grid.vector(read_volume(open_image(path, "map"), "map"))
        r = correlate_outside(exact, maps.approximation, lesion, nulls.connectivity)
        reason = "" if r >= LOWEST_R else f"its map and the approximation by the summary differ (r = {r:.3f})"
        if reason:
            logger.warning("%s: no T among null lesions: %s", name, reason)
            writer.remove_null_map(record)
        else:
            if r < LOW_R:
                logger.warning("%s: T is approximate: its map and the summary's have r = %.3f", name, r)
            image = make_image(maps.t, np.nan, grid, analysis.provenance.space)
            writer.write_null_map(record, image, nulls.identity | describe(lesion, maps, r))
    except (OSError, ValueError) as error:
        logger.warning("%s: no T among null lesions: %s", name, error)
        r, reason = float("nan"), str(error)
    numbers = (len(lesion.places.corners), lesion.n_nulls, f"{r:.4f}", f"{maps.degree_percentile:.1f}")
    rows.append([record.mask.name, *map(str, numbers), reason or "n/a"])
    return not reason


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
        "DegreeR": _rounded(maps.degree_r[0]),
        "DegreeRPercentile": _rounded(maps.degree_percentile),
        "RSquared": _rounded(maps.r_squared[0]),
        "RSquaredPercentile": _rounded(maps.r_squared_percentile),
    }


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
