"""Parcels of finished maps: means over the regions of atlases, and how much of each region is lesioned."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.app.command import Exit, ending
from bids_lacuna.app.transforms import ChainFinder
from bids_lacuna.derivatives import (
    DerivativesWriter,
    LesionRecord,
    Run,
    map_path,
    parcels_path,
    placed_atlas_path,
    read_outcomes,
    sidecar_path,
)
from bids_lacuna.derivatives.parcels import ATLAS_KEYS, differ, read_sidecar_of, write_parcels, write_placed_atlas
from bids_lacuna.derivatives.records import DECIDING
from bids_lacuna.files import read_json_object, remove_unfinished
from bids_lacuna.grid import Grid
from bids_lacuna.images import open_image, read_volume
from bids_lacuna.kernels import single_threaded_blas
from bids_lacuna.mapping import FunctionalNetworkMapping
from bids_lacuna.mapping.maps import make_image
from bids_lacuna.parcels.atlas import Atlas, AtlasFile, read_atlas
from bids_lacuna.parcels.averages import PlacedAtlas, place_atlas
from bids_lacuna.parcels.damage import DamageCounter, LesionedVolumes
from bids_lacuna.parcels.finding import find_atlas
from bids_lacuna.parcels.labels import OUTSIDE
from bids_lacuna.provenance import Provenance
from bids_lacuna.report.methods import write_citation
from bids_lacuna.runtime.locks import Claims
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.transforms import TransformChain

logger = logging.getLogger(__name__)

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class UsedAtlas:
    """An atlas that was asked for, and how it comes to the connectome's space."""

    file: AtlasFile
    chain: TransformChain | None

    @cached_property
    def described(self) -> dict[str, Any]:
        """What sidecars say of it."""
        known = {
            "Atlas": " ".join(self.file.entities.values()),
            "AtlasFile": self.file.image.name,
            "AtlasTable": self.file.table.name if self.file.table else None,
            "AtlasHash": self.file.content_hash,
            "AtlasSoftware": self.file.software or None,
            "AtlasTransforms": self.chain.describe() if self.chain else None,
        }
        return {key: value for key, value in known.items() if value is not None}


def find_atlases(arguments: argparse.Namespace, find_chain: ChainFinder) -> list[UsedAtlas]:
    """Find the atlases of a command line, and read each once, so that a run stops before it maps anything.

    Raises
    ------
    Stop
        An atlas is missing, cannot be read, or is in a space that no transform leads from.
    """
    found = []
    for given in arguments.atlas:
        with (
            ending(Exit.BAD_DATA, ValueError, OSError, saying=f"the atlas {given} cannot be used"),
            ending(Exit.NO_INPUT, FileNotFoundError),
        ):
            file = find_atlas(given, find_chain.space, download=find_chain.download)
            read_atlas(file)
            if file.space is None:
                logger.warning(
                    "the space of the atlas %s is in neither its name nor SpatialReference of a sidecar: it is taken "
                    "to be the connectome's, %s",
                    file.image,
                    find_chain.space,
                )
            chain = find_chain.of_template(file.space or find_chain.space)
        if chain:
            logger.info("the atlas %s is brought %s", file.image.name, chain.words)
        found.append(UsedAtlas(file, chain))
    names = Counter(tuple(each.file.entities.items()) for each in found)
    for name, n in names.items():
        if n > 1:
            same = ", ".join(str(each.file.image) for each in found if tuple(each.file.entities.items()) == name)
            words = "_".join(f"{entity}-{label}" for entity, label in name)
            with ending(Exit.USAGE, ValueError):
                raise ValueError(f"{n} atlases would have tables of the same name, {words}: {same}: rename one")
    return found


def add_parcels(
    atlases: Sequence[UsedAtlas],
    writer: DerivativesWriter,
    analysis: FunctionalNetworkMapping,
    claims: Claims,
    show_progress: bool = True,
) -> list[str]:
    """Write the tables of parcels that finished maps lack.

    Parameters
    ----------
    claims
        Exclude other runs while an atlas is written that belongs to no lesion.

    Returns
    -------
    list of str
        Labels of the participants with a new table.
    """
    labels = []
    for used in atlases:
        out, provenance = writer.output_dir, writer.provenance
        tables = [each for record in writer.records if (each := _Table.of(record, used, out, provenance)).is_due]
        in_output = _Placed.of(used, out, provenance)
        if tables or in_output.is_due:
            try:
                # Threads that wait for each other's small products take longer than one.
                with single_threaded_blas():
                    labels += _write_tables(used, tables, in_output, analysis, claims, show_progress)
            except (OSError, ValueError) as error:
                logger.warning("there are no parcels of %s: %s", used.file.image.name, error)
                for table in tables:
                    table.record.lacks.append(f"no parcels of {used.file.image.name}: {error}")
    return labels


def _write_tables(
    used: UsedAtlas,
    tables: Sequence[_Table],
    in_output: _Placed,
    analysis: FunctionalNetworkMapping,
    claims: Claims,
    show_progress: bool,
) -> list[str]:
    """Write the tables of an atlas; return the labels of the participants. Raises OSError or ValueError."""
    name, grid, labels = used.file.image.name, analysis.connectome.grid, []
    logger.info("parcels of %s: tables to write: %d", name, len(tables))
    atlas = read_atlas(used.file, quietly=True)
    placed = place_atlas(atlas, grid, used.chain)
    if in_output.is_due:
        with claims.exclusive():
            in_output.write(atlas, placed, grid)
    counter = DamageCounter(atlas, grid, used.chain)
    with Progress(len(tables), f"parcels of {used.file.name}", "lesion", shown=show_progress) as progress:
        for table in tables:
            try:
                table.write(placed, counter, grid, analysis.options.lesion_threshold)
                labels.append(table.record.mask.entities["sub"])
            except (OSError, ValueError) as error:
                table.record.lack(f"no parcels of {name}: {error}")
            progress.update()
    return labels


def lacks_parcels(
    atlases: Sequence[UsedAtlas], record: LesionRecord, output_dir: Path, provenance: Provenance
) -> bool:
    """Return whether a lesion has maps, and lacks the table of an atlas."""
    return any(_Table.of(record, used, output_dir, provenance).is_due for used in atlases)


def describe_due(
    atlases: Sequence[UsedAtlas], records: Sequence[LesionRecord], output_dir: Path, provenance: Provenance
) -> str:
    """Describe for a dry run how many tables of parcels would be written."""
    counts = {
        used.file.image.name: sum(
            record.status == "pending" or _Table.of(record, used, output_dir, provenance).is_due for record in records
        )
        for used in atlases
    }
    return ", ".join(f"{n} tables of {name}" for name, n in counts.items())


def cite_atlases(
    atlases: Sequence[UsedAtlas], run: Run, output_dir: Path, md_only: bool, comparisons: str = ""
) -> None:
    """Write the methods text with the atlases: that of this run, or if it mapped nothing, of the last that did."""
    mapped = [outcome.run for outcome in read_outcomes(output_dir) if outcome.is_mapping and outcome.run]
    if not run.n_lesions and mapped:
        thresholds = {*mapped[-1].provenance.options.t_thresholds, *run.provenance.options.t_thresholds}
        run = replace(mapped[-1], reports=run.reports).with_thresholds(thresholds)
    try:
        write_citation(output_dir, run, md_only, [each.described for each in atlases], comparisons)
    except OSError as error:
        logger.warning("the methods text could not be written: %s", error)


@dataclass(frozen=True, eq=False)
class _Table:
    """The table of a lesion and an atlas."""

    record: LesionRecord
    path: Path
    z_map: Path
    t_map: Path | None
    is_due: bool
    """Whether the lesion has maps, and no table of this atlas that was made from them."""
    sidecar: dict[str, Any]

    @classmethod
    def of(cls, record: LesionRecord, used: UsedAtlas, out: Path, provenance: Provenance) -> _Table:
        """Compare what is on disk with what would be written."""
        z_map, t_map = (out / map_path(record.mask, provenance, stat=stat) for stat in "zt")
        path = out / parcels_path(record.mask, provenance, used.file.entities)
        has_t = sidecar_path(t_map).exists()
        sidecar: dict[str, Any] = {}
        if record.can_gain(provenance.space) and sidecar_path(z_map).exists():
            sidecar = _describe(z_map, t_map if has_t else None, used, out)
        is_due = bool(sidecar) and differ(read_sidecar_of(path), sidecar, (*DECIDING, *ATLAS_KEYS, "Sources"))
        return cls(record, path, z_map, t_map if has_t else None, is_due, sidecar)

    def write(self, placed: PlacedAtlas, counter: DamageCounter, grid: Grid, threshold: float | None) -> None:
        """Compute and write the table; raises ValueError or OSError."""
        of_z = placed.average(_read(self.z_map, grid))
        mean_t = placed.average(_read(self.t_map, grid)).means if self.t_map else np.full(len(of_z.means), np.nan)
        volumes = np.append(placed.volumes_mm3, np.nan)
        undefined = np.full(len(volumes), np.nan)
        damage = LesionedVolumes(undefined)
        # A seed damages nothing.
        if self.record.mask.seed is None:
            damage = counter.count(self.record.as_lesion(), threshold)
        lesioned = np.divide(damage.of_regions_mm3, volumes, out=undefined.copy(), where=volumes > 0)
        rows = [
            {
                "index": region.index,
                "label": region.name,
                "hemisphere": region.hemisphere,
                "mean_z": float(of_z.means[number]),
                "mean_r": float(np.tanh(of_z.means[number])),
                "mean_t": float(mean_t[number]),
                "volume": float(volumes[number]),
                "covered_volume": float(of_z.covered_mm3[number]),
                "n_voxels": int(of_z.n_voxels[number]),
                "fraction_lesioned": float(lesioned[number]),
                "fraction_of_lesion": float(damage.fractions[number]),
            }
            for number, region in enumerate((*counter.atlas.regions, OUTSIDE))
        ]
        write_parcels(self.path, rows[-1:] + rows[:-1], self.sidecar)


@dataclass(frozen=True, eq=False)
class _Placed:
    """An atlas on the connectome's grid in the output, by which pages name the regions of clusters."""

    path: Path
    is_due: bool
    sidecar: dict[str, Any]

    @classmethod
    def of(cls, used: UsedAtlas, output_dir: Path, provenance: Provenance) -> _Placed:
        """Compare what is on disk with what would be written."""
        path = output_dir / placed_atlas_path(provenance.space, provenance.connectome_name, used.file.entities)
        sidecar = {
            "SpatialReference": provenance.space,
            "ConnectomeName": provenance.connectome_name,
            "ConnectomeHash": provenance.connectome_hash,
            "SoftwareVersion": provenance.version,
            **used.described,
        }
        return cls(path, differ(read_sidecar_of(path), sidecar, ("ConnectomeHash", *ATLAS_KEYS)), sidecar)

    def write(self, atlas: Atlas, placed: PlacedAtlas, grid: Grid) -> None:
        """Write the label of each voxel; raises OSError. No other run may be writing an atlas."""
        remove_unfinished(self.path.parent)
        labels = np.array([*(region.index for region in atlas.regions), OUTSIDE.index])
        dtype = np.int16 if labels.max() < 2**15 else np.int32
        values = labels.astype(dtype)[placed.strongest(grid.n_voxels)]
        image = make_image(values, 0, grid, self.sidecar["SpatialReference"])
        write_placed_atlas(self.path, image, [(each.index, each.name) for each in atlas.regions], self.sidecar)


def _describe(z_map: Path, t_map: Path | None, used: UsedAtlas, output_dir: Path) -> dict[str, Any]:
    """Return what the sidecar of a table says beside its columns; empty if that of the z-map cannot be read."""
    try:
        of_map = read_json_object(sidecar_path(z_map))
    except (OSError, ValueError):
        return {}
    maps = [f"bids::{path.relative_to(output_dir).as_posix()}" for path in (z_map, t_map) if path]
    of_map.pop("Description", None)
    of_map["Sources"] = [*maps, *of_map.get("Sources", [])]
    return {**of_map, **used.described}


def _read(path: Path, grid: Grid) -> Array:
    """Read the values of a map in the voxels of the connectome's mask."""
    return grid.vector(read_volume(open_image(path, "map"), "map"))
