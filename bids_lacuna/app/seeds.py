"""Seeds: coordinates in a table, whose spheres become masks in the output folder."""

from __future__ import annotations

import argparse
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.app.command import Exit, Stop, ending
from bids_lacuna.bids import DamagedDataset, LesionMask, UnknownParticipant, check_dataset, check_labels
from bids_lacuna.derivatives import OWN_DATASET, SEED, read_description, sidecar_path
from bids_lacuna.files import read_json_object, renamed_when_whole, write_json
from bids_lacuna.group.table import PARTICIPANT, SESSION, BadTable, Cell, Table, name_some, read_cells
from bids_lacuna.images import save_gzipped
from bids_lacuna.lesion import SEED_RADIUS_MM, draw_spheres
from bids_lacuna.spaces import nifti_code
from bids_lacuna.text import suggest_labels

logger = logging.getLogger(__name__)

AXES = ("x", "y", "z")

RADIUS = "radius_mm"

RADII_MM = (0.5, 60.0)
"""Smallest and largest radius; another is probably not in millimetres."""

LIKE_CENTIMETRES_MM = 11.0
"""Positions that all lie so close to the origin may be in centimetres: a brain's surface is at most 11 cm from it."""


@dataclass(frozen=True)
class Seed:
    """The spheres of one label in one participant, and session if there are any: one map."""

    participant: str
    session: str
    """Empty without sessions."""
    label: str
    spheres: tuple[tuple[float, float, float, float], ...]
    """x, y, z and radius of each in mm, sorted."""

    def entities(self, space: str) -> dict[str, str]:
        """Return the entities of its mask's name."""
        entities = {"sub": self.participant, "ses": self.session, "space": space, "label": self.label}
        return {name: label for name, label in entities.items() if label}

    def path(self, space: str) -> Path:
        """Return the path of its mask, relative to the output's root."""
        entities = self.entities(space)
        folders = [f"{level}-{entities[level]}" for level in ("sub", "ses") if level in entities]
        name = "_".join(f"{entity}-{label}" for entity, label in entities.items())
        return Path(*folders, "anat", f"{name}_mask.nii.gz")

    def describe(self) -> dict[str, Any]:
        """Return what sidecars say of it."""
        return {"Spheres": [{"Centre": list(sphere[:3]), "Radius": sphere[3]} for sphere in self.spheres]}


def find_seeds(
    arguments: argparse.Namespace, datasets: Mapping[str, Path], space: str | None, folder: Path
) -> list[LesionMask]:
    """Read the seeds of `--coordinates`, without writing their masks.

    Parameters
    ----------
    space
        Space of coordinates without `--coordinates-space`; None for that of their masks on disk.
    folder
        Root of their masks.
    """
    path: Path = arguments.coordinates
    with ending(Exit.NOT_BIDS, FileNotFoundError, NotADirectoryError, DamagedDataset):
        for root in datasets.values():
            check_dataset(root)
    with ending(Exit.NO_INPUT, OSError), ending(Exit.BAD_DATA, BadTable):
        seeds = read_coordinates(path)
    _check_participants(seeds, path, datasets)
    seeds = _select(seeds, arguments.participant_label, arguments.session_label, path)
    _warn_of_centimetres(seeds, path)
    space = arguments.coordinates_space or space or _find_space(seeds, folder, path)
    logger.info("seeds in %s: %d, space %s", path, len(seeds), space)
    return [
        LesionMask(
            (folder / seed.path(space)).absolute(),
            seed.entities(space),
            space,
            OWN_DATASET,
            folder.absolute(),
            seed=seed.describe(),
        )
        for seed in seeds
    ]


def write_seeds(masks: Sequence[LesionMask], output_dir: Path) -> None:
    """Write the masks of seeds that are missing or have other spheres; those of lesions are left alone."""
    seeds = [mask for mask in masks if mask.seed and mask.dataset == OWN_DATASET]
    if not seeds:
        return
    with ending(Exit.CANNOT_CREATE, FileExistsError, ValueError):
        read_description(output_dir)
    with ending(Exit.CANNOT_CREATE, OSError, saying=f"the masks of seeds cannot be written to {output_dir}"):
        for mask in seeds:
            with ending(Exit.BAD_DATA, ValueError, saying=f"{mask.name} cannot be a seed"):
                _write(mask)


def _write(mask: LesionMask) -> None:
    """Write one mask, unless it is there; raises ValueError if its spheres do not fit one mask."""
    path, sidecar = mask.path, sidecar_path(mask.path)
    content = {
        "Description": "Seed: the union of spheres around coordinates",
        "Type": "ROI",
        "SpatialReference": mask.space,
        SEED: mask.seed,
    }
    if path.exists() and sidecar.exists() and read_json_object(sidecar) == content:
        return
    spheres = (mask.seed or {})["Spheres"]
    image = draw_spheres([sphere["Centre"] for sphere in spheres], [sphere["Radius"] for sphere in spheres])
    image.set_sform(image.affine, nifti_code(str(mask.space)))
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    sidecar.unlink(missing_ok=True)
    with renamed_when_whole(path) as temporary:
        save_gzipped(image, temporary)
    write_json(sidecar, content)


def read_coordinates(path: Path) -> list[Seed]:
    """Read a table of coordinates: a sphere for each row, a seed for each label of a participant's session.

    Returns
    -------
    list of Seed
        Sorted by participant, session and label.

    Raises
    ------
    BadTable
        The file is not such a table; the message names the column or line.
    OSError
        The file cannot be read.
    """
    names, rows = read_cells(path)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadTable(f"{path} has several columns {', '.join(twice)}: give each column a name of its own")
    table = Table(str(path), tuple(names), {})
    for name in (PARTICIPANT, "label", *AXES):
        table.check_column(name)
    spheres: dict[tuple[str, str, str], set[tuple[float, float, float, float]]] = defaultdict(set)
    for number, row in rows:
        cells = dict(zip(names, row, strict=True))
        where = f"line {number} of {path}"
        participant = _read_label(cells, PARTICIPANT, "sub-", where)
        session = _read_label(cells, SESSION, "ses-", where) if cells.get(SESSION) else ""
        x, y, z = (_read_number(cells, axis, where) for axis in AXES)
        radius = _read_number(cells, RADIUS, where) if cells.get(RADIUS) else SEED_RADIUS_MM
        smallest, largest = RADII_MM
        if not smallest <= radius <= largest:
            raise BadTable(f"{where} has the radius {radius:g}: {smallest:g} to {largest:g} mm are needed")
        spheres[participant, session, _read_label(cells, "label", "label-", where)].add((x, y, z, radius))
    if not spheres:
        raise BadTable(f"{path} has no rows: write a line for each sphere")
    return [Seed(*key, tuple(sorted(found))) for key, found in sorted(spheres.items())]


def _read_label(cells: Mapping[str, Cell], column: str, prefix: str, where: str) -> str:
    """Return a cell that becomes part of file names."""
    text = (cells[column] or "").removeprefix(prefix)
    if not re.fullmatch(r"[A-Za-z0-9+]+", text):
        near = re.sub(r"[^A-Za-z0-9+]", "", text)
        advice = f", as in {near}" if near else ""
        raise BadTable(
            f"{where} has the {column} {text!r}, which becomes part of file names: use letters and digits "
            f"only{advice}"
        )
    return text


def _read_number(cells: Mapping[str, Cell], column: str, where: str) -> float:
    """Return a cell that is a finite number."""
    text = cells[column]
    try:
        number = float(text or "nan")
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        comma = ", with a decimal point" if text and "," in text else ""
        raise BadTable(f"{where} has {text or 'no number'} in the column {column}: a number in mm is needed{comma}")
    return number + 0.0


def _check_participants(seeds: Sequence[Seed], path: Path, datasets: Mapping[str, Path]) -> None:
    """Stop if a participant of the table is in no dataset, by its folders and participants.tsv."""
    listed: set[str] = set()
    participants = datasets["source"] / "participants.tsv"
    if participants.exists():
        with ending(Exit.NO_INPUT, OSError), ending(Exit.BAD_DATA, BadTable):
            names, rows = read_cells(participants)
        if PARTICIPANT in names:
            listed = {(row[names.index(PARTICIPANT)] or "").removeprefix("sub-") for _, row in rows}
    labels = sorted({seed.participant for seed in seeds} - listed)
    with ending(Exit.NO_INPUT, UnknownParticipant, saying=f"{path} has participants of no dataset"):
        check_labels("participant", labels, datasets.values(), "sub-*")


def _select(
    seeds: Sequence[Seed], participants: Collection[str], sessions: Collection[str], path: Path
) -> list[Seed]:
    """Choose the seeds of participants and sessions; stop if one that was asked for has none."""
    chosen = list(seeds)
    for kind, prefix, asked in (("participant", "sub-", participants), ("session", "ses-", sessions)):
        wanted = {label.removeprefix(prefix) for label in asked}
        known = {seed.participant if kind == "participant" else seed.session for seed in seeds} - {""}
        if unknown := sorted(wanted - known):
            raise Stop(
                Exit.NO_INPUT,
                f"{path} has no {kind} {', '.join(unknown)}: there are {name_some(sorted(known)) or 'none'}"
                f"{suggest_labels(unknown, known)}",
            )
        if wanted:
            chosen = [
                seed for seed in chosen if (seed.participant if kind == "participant" else seed.session) in wanted
            ]
    if not chosen:
        raise Stop(Exit.NO_FILES_SELECTED, f"{path} has no row of these participants and sessions")
    return chosen


def _warn_of_centimetres(seeds: Sequence[Seed], path: Path) -> None:
    """Warn if positions are so small that they may be in another unit."""
    positions = np.array([sphere[:3] for seed in seeds for sphere in seed.spheres])
    if len(positions) > 1 and np.linalg.norm(positions, axis=1).max() < LIKE_CENTIMETRES_MM:
        logger.warning(
            "all positions in %s lie within %g mm of the origin, as if they were in centimetres: check that they are "
            "in millimetres",
            path,
            LIKE_CENTIMETRES_MM,
        )


def _find_space(seeds: Sequence[Seed], folder: Path, path: Path) -> str:
    """Return the space in which the seeds' masks are on disk."""
    before, after = seeds[0].path("?").name.split("space-?", 1)
    names = [mask.name for mask in (folder / seeds[0].path("?")).parent.glob(f"{before}space-*{after}")]
    spaces = sorted({name.removeprefix(f"{before}space-").removesuffix(after) for name in names})
    if len(spaces) == 1:
        return spaces[0]
    raise Stop(
        Exit.NO_INPUT,
        f"{folder} has the seeds of {path} in several spaces, {', '.join(spaces)}: choose with --coordinates-space"
        if spaces
        else f"{folder} has no seed of {path}: run the participant level first, with the same --coordinates",
    )
