"""The maps of lesions, found on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from bids_lacuna.derivatives import NO_MASK, SEED, Outcome, Run, find_lesion, read_outcomes
from bids_lacuna.derivatives.dataset import DESCRIPTION
from bids_lacuna.files import read_json_object
from bids_lacuna.images import unpacked_bytes
from bids_lacuna.report.pages import anchor

logger = logging.getLogger(__name__)

VALUE_BYTES = 4
"""Bytes of a voxel in a map: float32."""


@dataclass(frozen=True)
class MappedLesion:
    """The map files of one lesion and one connectome."""

    name: str
    """The map files' common name, without the statistic."""
    entities: Mapping[str, str]
    """BIDS entities in the map files' names."""
    sidecar: Mapping[str, Any]
    """Sidecar of the r-map."""
    r_map: Path
    z_map: Path | None
    t_map: Path | None
    n_map: Path | None
    binary_maps: Mapping[float, Path]
    """Binary maps by threshold, lowest first."""
    source: tuple[str, str]
    """Dataset name in BIDS URIs, and the mask's path in that dataset."""
    mask: Path
    """Path where the lesion mask should be."""

    @property
    def kind(self) -> str:
        """What to call it: lesion or seed."""
        return "seed" if SEED in self.sidecar else "lesion"

    @property
    def shown_lesion(self) -> tuple[Path, float | None]:
        """File that shows the lesion in the space of the maps, and the lowest weight that counts there."""
        return find_lesion(self.mask, self.r_map, self.sidecar)


def find_participants(output_dir: Path) -> list[str]:
    """Return the labels of all participants that have maps or a row in a table of outcomes, sorted."""
    with_maps = {path.name.removeprefix("sub-") for path in output_dir.glob("sub-*") if path.is_dir()}
    in_tables = {
        outcome.row["sub"]
        for outcome in read_outcomes(output_dir)
        if outcome.row.get("sub", "n/a") != "n/a" and outcome.status != NO_MASK
    }
    return sorted(with_maps | in_tables)


def find_mapped_lesions(output_dir: Path, label: str) -> list[MappedLesion]:
    """Find a participant's lesions that have an r-map with a sidecar, sorted by name.

    Raises
    ------
    ValueError
        dataset_description.json is damaged.
    OSError
        The file cannot be read.
    """
    links = read_links(output_dir)
    folder = output_dir / f"sub-{label}"
    found = []
    for path in sorted(folder.rglob("*_stat-r_*_statmap.json")):
        try:
            found.append(read_mapped_lesion(output_dir, path, links))
        except ValueError as error:
            logger.warning("a map is left out of the page: %s", error)
    return found


def count_lesions(output_dir: Path, label: str) -> int:
    """Count the lesions of a participant's page; 1 if only masks that were not mapped are on it."""
    return max(1, sum(1 for _ in (output_dir / f"sub-{label}").rglob("*_stat-r_*_statmap.json")))


def count_voxels(output_dir: Path, labels: Iterable[str]) -> int:
    """Return the largest number of voxels of a volume among the participants' r-maps; 0 if none can be read."""
    n_bytes = 0
    for label in labels:
        for path in (output_dir / f"sub-{label}").rglob("*_stat-r_*_statmap.nii.gz"):
            # What is wrong with a file is on its page.
            with suppress(OSError):
                n_bytes = max(n_bytes, unpacked_bytes(path))
    return n_bytes // VALUE_BYTES


def read_links(output_dir: Path) -> Mapping[str, Any]:
    """Read the paths of the mask datasets by their names in BIDS URIs; raises what `find_mapped_lesions` raises."""
    links = read_json_object(output_dir / DESCRIPTION).get("DatasetLinks", {})
    return links if isinstance(links, dict) else {}


def read_mapped_lesion(output_dir: Path, r_sidecar: Path, links: Mapping[str, Any]) -> MappedLesion:
    """Find the map files of one lesion.

    Parameters
    ----------
    r_sidecar
        Sidecar of its r-map.
    links
        From `read_links`.

    Raises
    ------
    ValueError
        The sidecar is damaged.
    OSError
        The sidecar cannot be read.
    """
    sidecar = read_json_object(r_sidecar)
    before, after = r_sidecar.name.removesuffix("_statmap.json").rsplit("_stat-r_", 1)
    z_map, t_map, n_map = (r_sidecar.with_name(f"{before}_stat-{stat}_{after}_statmap.nii.gz") for stat in "ztn")
    dataset, _, source = str((sidecar.get("Sources") or [""])[0]).removeprefix("bids:").partition(":")
    return MappedLesion(
        f"{before}_{after}",
        dict(part.split("-", 1) for part in f"{before}_{after}".split("_") if "-" in part),
        sidecar,
        _image_of(r_sidecar),
        z_map if z_map.exists() else None,
        t_map if t_map.exists() else None,
        n_map if n_map.exists() else None,
        _find_binary_maps(r_sidecar, before, after, sidecar.get("ConnectomeName")),
        (dataset, source),
        find_mask(output_dir, links, dataset, source),
    )


def find_mask(output_dir: Path, links: Mapping[str, Any], dataset: str, source: str) -> Path:
    """Return the path where a lesion mask should be.

    Parameters
    ----------
    links
        From `read_links`.
    dataset, source
        Dataset name in BIDS URIs, and the mask's path in that dataset.
    """
    return (output_dir / str(links.get(dataset, dataset)) / source).resolve()


def runs_of_maps(lesions: Sequence[MappedLesion | None], origins: Sequence[Outcome | None]) -> dict[Path, Run]:
    """Return the runs that mapped lesions by log folder, with the thresholds of all masks that the lesions have.

    Parameters
    ----------
    lesions, origins
        Lesions, and the outcome of the mapping of each; None where a lesion or its log is missing.
    """
    thresholds: dict[Path, set[float]] = {}
    runs: dict[Path, Run] = {}
    for lesion, origin in zip(lesions, origins, strict=True):
        if lesion and origin and origin.run:
            thresholds.setdefault(origin.log_dir, set()).update(lesion.binary_maps)
            runs[origin.log_dir] = origin.run.with_thresholds(thresholds[origin.log_dir])
    return runs


def page_anchor(lesion: MappedLesion) -> str:
    """Return the HTML id of a lesion's section on its participant's page."""
    return anchor(f"lesion-{lesion.name}")


def _find_binary_maps(r_sidecar: Path, before: str, after: str, connectome: object) -> dict[float, Path]:
    maps = {}
    for path in r_sidecar.parent.glob(f"{escape(before)}_stat-t_{escape(after)}T*_mask.json"):
        sidecar = read_json_object(path)
        # The name may also be that of another connectome, whose own name has a T at this place.
        if sidecar.get("ConnectomeName") == connectome and isinstance(sidecar.get("Threshold"), int | float):
            maps[float(sidecar["Threshold"])] = _image_of(path)
    return dict(sorted(maps.items()))


def _image_of(sidecar: Path) -> Path:
    return sidecar.with_name(sidecar.name.removesuffix(".json") + ".nii.gz")
