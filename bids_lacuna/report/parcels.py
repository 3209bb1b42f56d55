"""What a page says of parcels: the strongest regions of a map, and the regions of the lesion and of clusters."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from bids_lacuna.derivatives import sidecar_path
from bids_lacuna.derivatives.parcels import ParcelTable, find_parcels, read_sidecar_of
from bids_lacuna.files import read_table
from bids_lacuna.report import figures
from bids_lacuna.report.figures import Volume
from bids_lacuna.report.maps_on_disk import MappedLesion
from bids_lacuna.text import percent

logger = logging.getLogger(__name__)

N_STRONGEST = 10
"""Regions in the chart."""

N_LESIONED = 5
"""Regions of the lesion that are named."""

WORTH_SAYING = 0.01
"""Fraction of a region that is lesioned, or lacks coverage, from which on its bar says so."""


@dataclass(frozen=True, eq=False)
class RegionNames:
    """The regions of an atlas by position."""

    name: str
    """Name of the atlas."""
    labels: Volume
    """Index of the region in each voxel; 0 outside."""
    names: Mapping[int, str]

    def at(self, point_mm: Sequence[float]) -> str:
        """Return the name of the region at a point; empty outside all regions."""
        index = self.labels.at(point_mm)
        return self.names.get(int(index), "") if index == index else ""


def read_region_names(output_dir: Path, made_with: Mapping[str, Any]) -> list[RegionNames]:
    """Read the atlases on a connectome's grid in the output, sorted by name; damaged ones are left out.

    Parameters
    ----------
    made_with
        A sidecar or record, which names the connectome.
    """
    space, connectome = str(made_with.get("SpatialReference")), str(made_with.get("ConnectomeName"))
    found = []
    for path in sorted(output_dir.glob(f"tpl-{escape(space)}/*_desc-{escape(connectome)}_dseg.nii.gz")):
        sidecar = read_sidecar_of(path)
        if sidecar.get("ConnectomeHash") == made_with.get("ConnectomeHash"):
            try:
                rows = read_table(sidecar_path(path).with_suffix(".tsv"))
                names = {int(row["index"]): row["name"] for row in rows}
                found.append(RegionNames(str(sidecar.get("Atlas")), figures.read_map(path), names))
            except (OSError, ValueError, KeyError) as error:
                logger.warning("regions are not named by %s: %s", path.name, error)
    return found


@dataclass(frozen=True, eq=False)
class ShownParcels:
    """A lesion by the regions of an atlas."""

    name: str
    """Name of the atlas."""
    path: Path
    """The table."""
    bars: tuple[tuple[str, float], ...]
    """Name and mean r of the regions whose |r| is largest."""
    lesion: str
    """The regions in which the lesion lies, in words; empty if it is not known."""
    sidecar: Mapping[str, Any]


def read_parcels(lesion: MappedLesion) -> list[ShownParcels]:
    """Read the tables of a lesion's maps; one that cannot be read is left out with a warning."""
    shown = []
    for table in find_parcels(lesion.r_map, lesion.sidecar):
        try:
            shown.append(_read(table))
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s is not on the page: %s", table.path.name, error)
    return shown


def _read(table: ParcelTable) -> ShownParcels:
    rows = _name_apart(read_table(table.path))
    regions = [row for row in rows if row["index"] != "0"]
    defined = [row for row in regions if row["mean_r"] != "n/a"]
    strongest = sorted(defined, key=lambda row: -abs(float(row["mean_r"])))[:N_STRONGEST]
    return ShownParcels(
        table.name,
        table.path,
        tuple((_name_bar(row), float(row["mean_r"])) for row in strongest),
        _describe_lesion(rows),
        table.sidecar,
    )


def _name_apart(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Add the hemisphere to names that several regions of an atlas have."""
    n_named = Counter(row["label"] for row in rows)
    return [
        {**row, "label": f"{row['label']} {row['hemisphere']}"}
        if n_named[row["label"]] > 1 and row["hemisphere"] != "n/a"
        else dict(row)
        for row in rows
    ]


def _name_bar(row: Mapping[str, str]) -> str:
    """Name a region, and say if much of it is lesioned or not covered by the connectome."""
    lesioned = _number(row["fraction_lesioned"])
    volume = _number(row["volume"])
    notes = [f"{percent(lesioned, 2)} lesioned"] if lesioned >= WORTH_SAYING else []
    if volume and _number(row["covered_volume"]) / volume <= 1 - WORTH_SAYING:
        notes.append(f"{percent(_number(row['covered_volume']) / volume)} covered")
    return row["label"] + (f" ({', '.join(notes)})" if notes else "")


def _describe_lesion(rows: Sequence[Mapping[str, str]]) -> str:
    """Name the regions in which most of a lesion lies, each with the fraction of the lesion in it."""
    fractions = [(row["index"], row["label"], _number(row["fraction_of_lesion"])) for row in rows]
    outside = sum(fraction for index, _, fraction in fractions if index == "0")
    inside = [(fraction, name) for index, name, fraction in fractions if index != "0" and fraction > 0]
    if not inside and not outside:
        return ""
    inside.sort(key=lambda region: -region[0])
    words = [f"{name}: {percent(fraction, 2)}" for fraction, name in inside[:N_LESIONED]]
    if len(inside) > N_LESIONED:
        rest = sum(fraction for fraction, _ in inside[N_LESIONED:])
        words.append(f"{len(inside) - N_LESIONED} other regions: {percent(rest, 2)}")
    return "; ".join([*words, f"outside: {percent(outside, 2)}"] if outside else words)


def _number(cell: str) -> float:
    """Return the number in a cell; 0 if there is none."""
    return 0.0 if cell == "n/a" else float(cell)
